//! `Y = X · Wᵀ + bias` for many vectors: prefill, which is bound by arithmetic.
//!
//! Some rows of the weight at a time are unpacked, once for a block of tokens, into a panel that the caches hold, with the
//! numbers of all its rows for one column side by side; tokens then go through it in tiles whose sums stay in registers. X
//! is packed tile by tile first. What a panel and a tile are is a [`Microkernel`]'s own affair.

pub(super) mod epilogue;
#[cfg(target_arch = "x86_64")]
pub(super) mod fixed_point;

use std::ops::Range;

use crate::backend::Activation;
use crate::backend::cpu::gemm::epilogue::{Finish, FusedLayers};
use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Affine, Element, Floats, FloatsMut, Matrix, Shared, Values, typed};
use crate::backend::cpu::unpack;

/// Tokens of one task, about: their sums with a few panels fit into the second-level cache.
const BLOCK: usize = 512;

/// A way to multiply rows with tokens.
pub(in crate::backend::cpu) trait Microkernel: Sync {
    /// Rows of a panel.
    const ROWS: usize;
    /// Panels of one task, at most.
    const PANELS: usize = 1;
    /// Tokens of a tile.
    const TOKENS: usize;
    /// The tokens, packed.
    type Packed: Sync;
    /// For what is common to all.
    type S: Simd;

    fn simd(&self) -> Self::S;

    /// `x` `[m, columns]`.
    fn pack(&self, x: Floats, columns: usize) -> Self::Packed;

    /// The products of some tiles with panels, to `sums` `[panels, tiles, TOKENS, ROWS]`. This thread goes on with `following`,
    /// probably.
    fn multiply(
        &self,
        packed: &Self::Packed,
        tiles: Range<usize>,
        panels: &[Panel],
        following: Option<Panel>,
        sums: &mut [f32],
    );
}

/// Rows of a weight from `first` on, as many as a product takes; those that there are not count for nothing.
pub(in crate::backend::cpu) struct Panel<'a> {
    pub weight: &'a Matrix<'a>,
    pub first: usize,
}

impl Panel<'_> {
    /// The cache lines that `n` columns of some of its rows lie in.
    #[inline(always)]
    pub fn lines(&self, rows: Range<usize>, column: usize, n: usize) -> impl Iterator<Item = *const u8> {
        let w = self.weight;
        let (start, bits, group_size, numbers) = match w.values {
            Values::Dense(values) => (values.bytes(), values.bits(), w.columns, [None; 2]),
            Values::Affine(Affine { packed, scales, biases, group_size, bits }) => {
                (packed.as_ptr().cast(), bits as usize, group_size, [Some(scales), Some(biases)])
            }
        };
        (self.first + rows.start..w.rows.min(self.first + rows.end)).flat_map(move |row| {
            let at = row * w.columns + column;
            let values = (0..n * bits / 8).step_by(64).map(move |line| start.wrapping_add(at * bits / 8 + line));
            let numbers = numbers.into_iter().flatten();
            values.chain(numbers.map(move |x| x.bytes().wrapping_add(at / group_size * x.bits() / 8)))
        })
    }
}

/// `x` `[m, columns]`, `y` `[m, width]`.
pub(in crate::backend::cpu) fn multiply<P: Microkernel>(product: &P, x: Floats, fused: FusedLayers, y: FloatsMut) {
    let columns = fused.layers[0].weight.columns;
    let (tokens, width) = (x.len() / columns, fused.width());
    let packed = product.pack(x, columns);
    let tiles = tokens.div_ceil(P::TOKENS);
    let block = tiles.div_ceil(((tokens + BLOCK / 2) / BLOCK).max(1));
    let panels = P::PANELS.div_ceil(if fused.epilogue.activation().is_some() { 2 } else { 1 });
    // Ever smaller ones, so that all threads end at about the same time.
    let part = |left: usize| (left / (2 * threads::threads())).next_multiple_of(P::ROWS);
    let tasks = fused.tasks(|left| part(left).clamp(P::ROWS, panels * P::ROWS));
    let n_tasks = tiles.div_ceil(block) * tasks.len();
    typed!(FloatsMut, y, y => {
        let y = Shared(y.as_mut_ptr());
        threads::for_each(n_tasks, |i| {
            let task = &tasks[i % tasks.len()];
            let first_tile = i / tasks.len() * block;
            let tiles = first_tile..(first_tile + block).min(tiles);
            let padded = tiles.len() * P::TOKENS;
            let first_token = first_tile * P::TOKENS;
            let layers = fused.layers_of(task);
            let starts = || task.rows.clone().step_by(P::ROWS);
            let panel = |weight| move |first| Panel { weight, first };
            let panels: Vec<_> = layers.iter().flat_map(|layer| starts().map(panel(&layer.weight))).collect();
            // Threads take tasks in turn.
            let next = i + threads::threads();
            let following = (next < n_tasks).then(|| {
                let task = &tasks[next % tasks.len()];
                Panel { weight: &fused.layers_of(task)[0].weight, first: task.rows.start }
            });
            let mut sums = Scratch::new(panels.len() * padded * P::ROWS);
            product.multiply(&packed, tiles, &panels, following, &mut sums);
            for (layer, sums) in layers.iter().zip(sums.chunks_exact_mut(starts().len() * padded * P::ROWS)) {
                for (first, sums) in starts().zip(sums.chunks_exact_mut(padded * P::ROWS)) {
                    layer.add_bias(first..task.rows.end, P::ROWS, sums);
                }
            }
            let (sums, others) = sums.split_at(starts().len() * padded * P::ROWS);
            product.simd().run(FinishPanels {
                sums,
                gated: fused.epilogue.activation().map(|activation| (activation, others)),
                tokens: padded.min(tokens - first_token),
                padded,
                panel: P::ROWS,
                rows: task.rows.len(),
                // SAFETY: y has a row of `width` numbers for each token.
                y: Shared(unsafe { y.at(first_token * width + task.at) }),
                width,
            });
        });
    });
}

/// Write the outputs of a task to `y`, `width` numbers from token to token.
struct FinishPanels<'a, E> {
    /// `[panels, padded, panel]`.
    sums: &'a [f32],
    gated: Option<(Activation, &'a [f32])>,
    tokens: usize,
    padded: usize,
    panel: usize,
    rows: usize,
    y: Shared<E>,
    width: usize,
}

impl<E: Element> Op for FinishPanels<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let FinishPanels { sums, gated, tokens, padded, panel, rows, y, width } = self;
        for first in (0..rows).step_by(panel) {
            let n = panel.min(rows - first);
            for token in 0..tokens {
                let from = first * padded + token * panel;
                let gated = gated.map(|(activation, others)| (activation, &others[from..from + n]));
                // SAFETY: a row of y has `width` numbers, and this task alone writes these.
                let y = Shared(unsafe { y.at(token * width + first) });
                Finish { sums: &sums[from..from + n], gated, y }.with(s);
            }
        }
    }
}

/// Columns of a panel of floats: with 32 rows of AVX-512, a quarter of the second-level cache at most.
const COLUMNS: usize = 512;

/// Everything in f32, for any weight and instruction set. A panel is two vectors wide.
pub(in crate::backend::cpu) struct FloatingPoint<S, const TOKENS: usize>(pub S);

impl<S: Simd, const TOKENS: usize> FloatingPoint<S, TOKENS> {
    const WIDTH: usize = 2 * S::LANES;
}

/// `[tiles, columns, TOKENS]`.
pub(in crate::backend::cpu) struct PackedFloats {
    values: Scratch<f32>,
    columns: usize,
}

impl<S: Simd, const TOKENS: usize> Microkernel for FloatingPoint<S, TOKENS> {
    const ROWS: usize = Self::WIDTH;
    const TOKENS: usize = TOKENS;
    type Packed = PackedFloats;
    type S = S;

    fn simd(&self) -> S {
        self.0
    }

    fn pack(&self, x: Floats, columns: usize) -> PackedFloats {
        let tokens = x.len() / columns;
        let mut values = Scratch::<f32>::new(tokens.next_multiple_of(TOKENS) * columns);
        let tiles = Shared(values.as_mut_ptr());
        threads::for_each(tokens.div_ceil(TOKENS), |tile| {
            for t in 0..TOKENS.min(tokens - tile * TOKENS) {
                let from = (tile * TOKENS + t) * columns;
                typed!(Floats, x, x => {
                    for (k, x) in x[from..from + columns].iter().enumerate() {
                        // SAFETY: this task alone writes this tile.
                        unsafe { tiles.at((tile * columns + k) * TOKENS + t).write(x.to_f32()) };
                    }
                });
            }
        });
        PackedFloats { values, columns }
    }

    fn multiply(
        &self,
        packed: &PackedFloats,
        tiles: Range<usize>,
        panels: &[Panel],
        _: Option<Panel>,
        sums: &mut [f32],
    ) {
        let PackedFloats { values, columns } = packed;
        let x = &values[tiles.start * columns * TOKENS..tiles.end * columns * TOKENS];
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(tiles.len() * TOKENS * Self::WIDTH)) {
            self.0.run(MultiplyFloats::<TOKENS> { x, panel, sums });
        }
    }
}

struct MultiplyFloats<'a, const TOKENS: usize> {
    x: &'a [f32],
    panel: &'a Panel<'a>,
    sums: &'a mut [f32],
}

impl<const TOKENS: usize> Op for MultiplyFloats<'_, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let MultiplyFloats { x, panel: &Panel { weight: w, first }, sums } = self;
        let width = 2 * S::LANES;
        let mut panel = Scratch::new(COLUMNS.min(w.columns) * width);
        for column in (0..w.columns).step_by(COLUMNS) {
            let n = COLUMNS.min(w.columns - column);
            unpack::panel(s, w, first, column, &mut panel[..n * width]);
            for (tile, sums) in sums.chunks_exact_mut(TOKENS * width).enumerate() {
                let x = &x[(tile * w.columns + column) * TOKENS..][..n * TOKENS];
                add_tile::<S, TOKENS>(s, x, &panel[..n * width], column == 0, sums);
            }
        }
    }
}

/// Add the product of `x` `[n, TOKENS]` and `panel` `[n, 2 · LANES]` to `sums` `[TOKENS, 2 · LANES]`, which count as zeros
/// when it is the first.
#[inline(always)]
fn add_tile<S: Simd, const TOKENS: usize>(s: S, x: &[f32], panel: &[f32], is_first: bool, sums: &mut [f32]) {
    let n = x.len() / TOKENS;
    assert!(x.len() == n * TOKENS && panel.len() == n * 2 * S::LANES && sums.len() == TOKENS * 2 * S::LANES);
    // SAFETY: the lengths were checked.
    unsafe {
        let mut acc = [[s.splat(0.0); 2]; TOKENS];
        for k in 0..n {
            let w = panel.as_ptr().add(k * 2 * S::LANES);
            let (w0, w1) = (s.load(w), s.load(w.add(S::LANES)));
            for t in 0..TOKENS {
                let x = s.splat(*x.get_unchecked(k * TOKENS + t));
                acc[t][0] = s.fma(x, w0, acc[t][0]);
                acc[t][1] = s.fma(x, w1, acc[t][1]);
            }
        }
        for t in 0..TOKENS {
            for half in 0..2 {
                let at = sums.as_mut_ptr().add((2 * t + half) * S::LANES);
                s.store(at, if is_first { acc[t][half] } else { s.add(s.load(at), acc[t][half]) });
            }
        }
    }
}
