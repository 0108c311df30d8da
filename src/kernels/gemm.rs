//! `Y = X · Wᵀ + bias` for many vectors: prefill, which is bound by arithmetic.
//!
//! Some rows of the weight at a time are unpacked, once for all tokens, into a panel that the caches hold, with the numbers
//! of all its rows for one column side by side; tokens then go through it in tiles whose sums stay in registers. X is
//! packed tile by tile first. What a panel and a tile are is a [`Product`]'s own affair.

use super::join::{Finish, Join, Joined};
use super::pool;
use super::simd::{Op, Simd};
use super::types::{Element, Floats, FloatsMut, Matrix, Shared, typed};
use super::unpack;

/// A way to multiply a panel of rows with all tokens.
pub(super) trait Product: Sync {
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

    /// Add the products of rows `first..` (those that there are) to `sums` `[panels, m padded to TOKENS, ROWS]`.
    fn add(&self, packed: &Self::Packed, w: &Matrix, first: usize, sums: &mut [f32]);
}

/// `x` `[m, columns]`, `y` `[m, width]`.
pub(super) fn multiply<P: Product>(product: &P, x: Floats, joined: Joined, y: FloatsMut) {
    let columns = joined.layers[0].weight.columns;
    let (tokens, width) = (x.len() / columns, joined.width());
    let packed = product.pack(x, columns);
    let padded = tokens.next_multiple_of(P::TOKENS);
    let tasks = joined.tasks(pool::share(4 * width).next_multiple_of(P::ROWS).min(P::PANELS * P::ROWS));
    typed!(FloatsMut, y, y => {
        let y = Shared(y.as_mut_ptr());
        pool::for_each(tasks.len(), |i| {
            let task = &tasks[i];
            let mut sums = [Vec::new(), Vec::new()];
            for (layer, sums) in joined.layers_of(task).iter().zip(&mut sums) {
                sums.resize(task.rows.len().div_ceil(P::ROWS) * padded * P::ROWS, 0.0);
                if layer.bias.is_some() {
                    for (first, sums) in task.rows.clone().step_by(P::ROWS).zip(sums.chunks_exact_mut(padded * P::ROWS)) {
                        let rows = first..(first + P::ROWS).min(task.rows.end);
                        sums.chunks_exact_mut(P::ROWS).for_each(|sums| layer.begin(rows.clone(), &mut sums[..rows.len()]));
                    }
                }
                product.add(&packed, &layer.weight, task.rows.start, sums);
            }
            let [sums, others] = &mut sums;
            for (panel, first) in (0..task.rows.len()).step_by(P::ROWS).enumerate() {
                let n = P::ROWS.min(task.rows.len() - first);
                for token in 0..tokens {
                    let from = (panel * padded + token) * P::ROWS;
                    let multiplied = (joined.join == Join::SwiGlu).then(|| &others[from..from + n]);
                    // SAFETY: a row of y has `width` numbers, and this task alone writes these.
                    let y = Shared(unsafe { y.at(token * width + task.at + first) });
                    product.simd().run(Finish { sums: &mut sums[from..from + n], multiplied, y });
                }
            }
        });
    });
}

/// Columns of a panel of floats: with 32 rows of AVX-512, a quarter of the second-level cache at most.
const COLUMNS: usize = 512;

/// Everything in f32, for any weight and instruction set. A panel is two vectors wide.
pub(super) struct InFloats<S, const TOKENS: usize>(pub S);

impl<S: Simd, const TOKENS: usize> InFloats<S, TOKENS> {
    const WIDTH: usize = 2 * S::LANES;
}

impl<S: Simd, const TOKENS: usize> Product for InFloats<S, TOKENS> {
    const ROWS: usize = Self::WIDTH;
    const TOKENS: usize = TOKENS;
    /// `[tiles, columns, TOKENS]`.
    type Packed = Vec<f32>;
    type S = S;

    fn simd(&self) -> S {
        self.0
    }

    fn pack(&self, x: Floats, columns: usize) -> Vec<f32> {
        let tokens = x.len() / columns;
        let mut packed = vec![0.0; tokens.next_multiple_of(TOKENS) * columns];
        let tiles = Shared(packed.as_mut_ptr());
        pool::for_each(tokens.div_ceil(TOKENS), |tile| {
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
        packed
    }

    fn add(&self, packed: &Vec<f32>, w: &Matrix, first: usize, sums: &mut [f32]) {
        self.0.run(AddFloats::<TOKENS> { packed, w, first, sums });
    }
}

struct AddFloats<'a, const TOKENS: usize> {
    packed: &'a [f32],
    w: &'a Matrix<'a>,
    first: usize,
    sums: &'a mut [f32],
}

impl<const TOKENS: usize> Op for AddFloats<'_, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let AddFloats { packed, w, first, sums } = self;
        let width = 2 * S::LANES;
        let mut panel = vec![0.0; COLUMNS.min(w.columns) * width];
        for column in (0..w.columns).step_by(COLUMNS) {
            let n = COLUMNS.min(w.columns - column);
            unpack::panel(s, w, first, column, &mut panel[..n * width]);
            for (tile, sums) in sums.chunks_exact_mut(TOKENS * width).enumerate() {
                let x = &packed[(tile * w.columns + column) * TOKENS..][..n * TOKENS];
                add_tile::<S, TOKENS>(s, x, &panel[..n * width], sums);
            }
        }
    }
}

/// Add the product of `x` `[n, TOKENS]` and `panel` `[n, 2 · LANES]` to `sums` `[TOKENS, 2 · LANES]`.
#[inline(always)]
fn add_tile<S: Simd, const TOKENS: usize>(s: S, x: &[f32], panel: &[f32], sums: &mut [f32]) {
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
                s.store(at, s.add(s.load(at), acc[t][half]));
            }
        }
    }
}
