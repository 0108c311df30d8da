//! The product of fixed-point activations with quantized weights: instructions for pairs of numbers of 16 bits do twice the
//! multiplications that those for floats do. Scales and biases come in once for each group. Where additions cost a core
//! nothing that it multiplies with, Winograd's inner product ([`Simd::dot_each_winograd`]) halves the multiplications, exactly.

use std::ops::Range;

use crate::backend::cpu::fixed::{Fix, add_group, own_products, write_pairs};
use crate::backend::cpu::gemm::{Microkernel, Panel};
use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Affine, Floats, Layer, Shared, Values, same_type, typed};
use crate::backend::cpu::unpack::{Rows, lane_rows};

/// Columns of a panel; whole groups of any size.
const COLUMNS: usize = 512;

/// For weights of 2, 4 or 8 bits in groups of one size. A panel is two vectors wide.
pub(in crate::backend::cpu) struct FixedPoint<S, const TOKENS: usize> {
    s: S,
    group: usize,
}

impl<S: Simd, const TOKENS: usize> FixedPoint<S, TOKENS> {
    /// `None` where activations or weights are of another kind.
    pub fn for_layers(s: S, x: &Floats, layers: &[Layer]) -> Option<Self> {
        group(x, layers).map(|group| FixedPoint { s, group })
    }
}

/// How many values share a scale, if all can be multiplied as whole numbers.
pub(in crate::backend::cpu) fn group(x: &Floats, layers: &[Layer]) -> Option<usize> {
    let group_of = |layer: &Layer| match layer.weight.values {
        Values::Affine(Affine { bits: 2 | 4 | 8, group_size, .. }) => Some(group_size),
        _ => None,
    };
    let group = group_of(&layers[0]).filter(|_| x.bits() == 16)?;
    layers.iter().all(|layer| group_of(layer) == Some(group)).then_some(group)
}

/// Tokens as pairs of whole numbers, tile by tile.
pub(in crate::backend::cpu) struct Packed {
    /// `[tiles, columns / 2, TOKENS]`.
    pairs: Scratch<u32>,
    /// `[tiles, groups, TOKENS]`, as are the sums.
    scales: Scratch<f32>,
    sums: Scratch<f32>,
    /// `[tiles, groups, TOKENS]`: what Winograd's products start from: minus those of the numbers with each other.
    starts: Scratch<u32>,
}

impl<S: Simd, const TOKENS: usize> Microkernel for FixedPoint<S, TOKENS> {
    const ROWS: usize = 2 * S::LANES;
    const TOKENS: usize = TOKENS;
    type Packed = Packed;
    type S = S;

    fn simd(&self) -> S {
        self.s
    }

    fn pack(&self, x: Floats, columns: usize) -> Packed {
        let (groups, tokens) = (columns / self.group, x.len() / columns);
        let tiles = tokens.div_ceil(TOKENS);
        let mut packed = Packed {
            pairs: Scratch::new(tiles * columns / 2 * TOKENS),
            scales: Scratch::new(tiles * groups * TOKENS),
            sums: Scratch::new(tiles * groups * TOKENS),
            starts: Scratch::new(tiles * groups * TOKENS),
        };
        let pairs = Shared(packed.pairs.as_mut_ptr());
        let (scales, sums) = (Shared(packed.scales.as_mut_ptr()), Shared(packed.sums.as_mut_ptr()));
        let starts = Shared(packed.starts.as_mut_ptr());
        threads::for_each(tiles, |tile| {
            for t in 0..TOKENS.min(tokens - tile * TOKENS) {
                let first = (tile * TOKENS + t) * columns;
                let fixed = self.s.run(Fix { x, range: first..first + columns, group: self.group });
                // SAFETY: this task alone writes this tile.
                unsafe {
                    write_pairs::<4>(&fixed.numbers, pairs.at(tile * columns / 2 * TOKENS + t), TOKENS);
                    for (g, numbers) in fixed.numbers.chunks_exact(self.group).enumerate() {
                        let at = (tile * groups + g) * TOKENS + t;
                        scales.at(at).write(fixed.scales[g]);
                        sums.at(at).write(fixed.sums[g]);
                        if self.s.adds_apart() {
                            starts.at(at).write(own_products(numbers).wrapping_neg());
                        }
                    }
                }
            }
        });
        packed
    }

    fn multiply(
        &self,
        packed: &Packed,
        tiles: Range<usize>,
        panels: &[Panel],
        following: Option<Panel>,
        sums: &mut [f32],
    ) {
        let (first_tile, group) = (tiles.start, self.group);
        for (i, sums) in sums.chunks_exact_mut(tiles.len() * TOKENS * Self::ROWS).enumerate() {
            let next = panels.get(i + 1).or(following.as_ref());
            self.s.run(MultiplyFixed::<TOKENS> { packed, first_tile, panel: &panels[i], next, group, sums });
        }
    }
}

/// The products of one panel with tiles from `first_tile` on, as many as `sums` has.
struct MultiplyFixed<'a, const TOKENS: usize> {
    packed: &'a Packed,
    first_tile: usize,
    panel: &'a Panel<'a>,
    /// The one after it.
    next: Option<&'a Panel<'a>>,
    group: usize,
    sums: &'a mut [f32],
}

impl<const TOKENS: usize> Op for MultiplyFixed<'_, TOKENS> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let MultiplyFixed { packed, first_tile, panel: this @ &Panel { weight: w, first }, next, group, sums } = self;
        let Values::Affine(affine) = w.values else { unreachable!("fixed-point products are for quantized weights") };
        let (rows, groups) = (2 * S::LANES, w.columns / group);
        let mut panel = Unpacked {
            pairs: Scratch::new(COLUMNS / 2 * rows),
            scales: Scratch::new(COLUMNS / group * rows),
            biases: Scratch::new(COLUMNS / group * rows),
            own: Scratch::new(COLUMNS / group * rows),
        };
        for column in (0..w.columns).step_by(COLUMNS) {
            let n = COLUMNS.min(w.columns - column);
            for half in 0..2 {
                let (first, at) = (first + half * S::LANES, half * S::LANES);
                let width = w.columns / 32 * affine.bits as usize;
                let words = Rows::new(affine.packed, width, first);
                match affine.bits {
                    2 => pairs::<S, 2>(s, &words, column, &mut panel.pairs[at..n / 2 * rows]),
                    4 => pairs::<S, 4>(s, &words, column, &mut panel.pairs[at..n / 2 * rows]),
                    _ => pairs::<S, 8>(s, &words, column, &mut panel.pairs[at..n / 2 * rows]),
                }
                typed!(Floats, affine.scales, scales => {
                    let biases = same_type(scales, affine.biases);
                    for g in 0..n / group {
                        let scale = lane_rows(s, scales, groups, first, column / group + g);
                        let bias = lane_rows(s, biases, groups, first, column / group + g);
                        // SAFETY: the panel has `COLUMNS / group` rows of scales.
                        unsafe {
                            s.store(panel.scales.as_mut_ptr().add(g * rows + at), scale);
                            s.store(panel.biases.as_mut_ptr().add(g * rows + at), bias);
                        }
                    }
                });
            }
            if s.adds_apart() {
                panel.multiply_own(s, group, n);
            }
            // Memory works while tiles are multiplied, on a share of the rows for each.
            let (ahead, from) = if column + n < w.columns { (Some(this), column + n) } else { (next, 0) };
            let columns_ahead = COLUMNS.min(w.columns - from);
            let tiles = sums.len() / (TOKENS * rows);
            for (tile, sums) in sums.chunks_exact_mut(TOKENS * rows).enumerate() {
                if let Some(ahead) = ahead {
                    let share = tile * rows / tiles..(tile + 1) * rows / tiles;
                    ahead.lines(share, from, columns_ahead).for_each(|line| s.prefetch_far(line));
                }
                let tile = first_tile + tile;
                let first_group = tile * groups + column / group;
                let x = Tile {
                    pairs: &packed.pairs[(tile * w.columns + column) / 2 * TOKENS..][..n / 2 * TOKENS],
                    scales: &packed.scales[first_group * TOKENS..][..n / group * TOKENS],
                    sums: &packed.sums[first_group * TOKENS..][..n / group * TOKENS],
                    starts: &packed.starts[first_group * TOKENS..][..n / group * TOKENS],
                };
                add_tile::<S, TOKENS>(s, &x, &panel, group, column == 0, sums);
            }
        }
    }
}

/// Rows of a weight side by side.
struct Unpacked {
    /// `[COLUMNS / 2, ROWS]`.
    pairs: Scratch<u32>,
    /// `[groups of COLUMNS, ROWS]`, as are the biases.
    scales: Scratch<f32>,
    biases: Scratch<f32>,
    /// `[groups of COLUMNS, ROWS]`: the products of the weights with each other, where they are needed.
    own: Scratch<u32>,
}

impl Unpacked {
    /// Multiply the pairs of the first `n` columns with those that follow them, two and two.
    #[inline(always)]
    fn multiply_own<S: Simd>(&mut self, s: S, group: usize, n: usize) {
        let rows = 2 * S::LANES;
        assert!(self.pairs.len() >= n / 2 * rows && self.own.len() >= n / group * rows);
        for g in 0..n / group {
            for half in 0..2 {
                let at = half * S::LANES;
                // SAFETY: the lengths were checked.
                unsafe {
                    let mut own = s.splat_word(0);
                    for p in (g * group / 2..(g + 1) * group / 2).step_by(2) {
                        let pairs = self.pairs.as_ptr().add(p * rows + at);
                        own = s.dot_pairs(s.load_words(pairs), s.load_words(pairs.add(rows)), own);
                    }
                    s.store_words(self.own.as_mut_ptr().add(g * rows + at), own);
                }
            }
        }
    }
}

/// One vector of each row of a panel `[columns / 2, 2 · LANES]`, from column `column` of the weight on.
#[inline(always)]
fn pairs<S: Simd, const BITS: u32>(s: S, rows: &Rows, column: usize, panel: &mut [u32]) {
    let (per_word, width) = ((32 / BITS) as usize, 2 * S::LANES);
    let n = panel.len().div_ceil(width) * 2 / per_word;
    assert!(panel.len() >= (n * per_word / 2 - 1) * width + S::LANES);
    for first in (0..n).step_by(S::LANES) {
        let words = rows.words(s, column / per_word + first, n - first);
        for (i, word) in words[..S::LANES.min(n - first)].iter().enumerate() {
            for j in 0..per_word / 2 {
                let at = ((first + i) * per_word / 2 + j) * width;
                // SAFETY: the panel has a row for each pair of columns.
                unsafe {
                    s.store_words(panel.as_mut_ptr().add(at), s.pairs::<BITS>(*word, (j / 2 * 4 + j % 2) as u32))
                };
            }
        }
    }
}

/// The part of a tile's tokens that a panel covers.
struct Tile<'a> {
    pairs: &'a [u32],
    scales: &'a [f32],
    sums: &'a [f32],
    starts: &'a [u32],
}

/// Add the product of `x` and `panel` to `sums` `[TOKENS, 2 · LANES]`, which count as zeros when it is the first.
#[inline(always)]
fn add_tile<S: Simd, const TOKENS: usize>(
    s: S,
    x: &Tile,
    panel: &Unpacked,
    group: usize,
    is_first: bool,
    sums: &mut [f32],
) {
    let (groups, rows) = (x.scales.len() / TOKENS, 2 * S::LANES);
    assert!(x.pairs.len() == groups * group / 2 * TOKENS);
    assert!(x.sums.len() == x.scales.len() && x.starts.len() == x.scales.len());
    assert!(panel.pairs.len() >= groups * group / 2 * rows && panel.scales.len() >= groups * rows);
    assert!(panel.biases.len().min(panel.own.len()) >= groups * rows && sums.len() == TOKENS * rows);
    // SAFETY: the lengths were checked.
    unsafe {
        let mut acc = [[s.splat(0.0); 2]; TOKENS];
        for t in 0..if is_first { 0 } else { TOKENS } {
            for half in 0..2 {
                acc[t][half] = s.load(sums.as_ptr().add(t * rows + half * S::LANES));
            }
        }
        for g in 0..groups {
            let mut dots = [[s.splat_word(0); 2]; TOKENS];
            let pairs = g * group / 2..(g + 1) * group / 2;
            let w = |p| {
                let w = panel.pairs.as_ptr().add(p * rows);
                [s.load_words(w), s.load_words(w.add(S::LANES))]
            };
            if s.adds_apart() {
                for t in 0..TOKENS {
                    dots[t] = [s.splat_word(*x.starts.get_unchecked(g * TOKENS + t)); 2];
                }
                for p in pairs.step_by(2) {
                    s.dot_each_winograd(w(p), w(p + 1), x.pairs.as_ptr().add(p * TOKENS), &mut dots);
                }
                for half in 0..2 {
                    let own = s.load_words(panel.own.as_ptr().add(g * rows + half * S::LANES));
                    for t in 0..TOKENS {
                        dots[t][half] = s.sub_words(dots[t][half], own);
                    }
                }
            } else {
                for p in pairs {
                    s.dot_each(w(p), x.pairs.as_ptr().add(p * TOKENS), &mut dots);
                }
            }
            for half in 0..2 {
                let at = g * rows + half * S::LANES;
                let (scale, bias) = (s.load(panel.scales.as_ptr().add(at)), s.load(panel.biases.as_ptr().add(at)));
                for t in 0..TOKENS {
                    let x_at = g * TOKENS + t;
                    let x_scale = s.splat(*x.scales.get_unchecked(x_at));
                    let x_sum = s.splat(*x.sums.get_unchecked(x_at));
                    acc[t][half] = add_group(s, acc[t][half], dots[t][half], (x_scale, x_sum), (scale, bias));
                }
            }
        }
        for t in 0..TOKENS {
            for half in 0..2 {
                s.store(sums.as_mut_ptr().add(t * rows + half * S::LANES), acc[t][half]);
            }
        }
    }
}
