//! Weights of 2, 4 or 8 bits with activations in whole numbers, which instructions for pairs of numbers of 16 bits multiply.
//!
//! As many rows as a vector has lanes are turned, some words at a time, so that a lane holds a row: a group's products
//! then add up lane by lane, and scale and bias come in once for each group. Sums are those of
//! [`crate::backend::cpu::gemm::fixed_point`], in the same order. While some rows are computed, those that follow are
//! asked for in the order in which they lie in memory.

use std::ops::Range;

use crate::backend::cpu::fixed::{Fix, add_group, write_pairs};
use crate::backend::cpu::gemv::numbers::Numbers;
use crate::backend::cpu::gemv::transposing::{Transposing, WORDS};
use crate::backend::cpu::isa::{Simd, unrolled};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Affine, Floats, Matrix, Shared, Values};

/// Some vectors as whole numbers, group by group: what a step reads lies together.
pub(super) struct Vectors {
    tokens: usize,
    /// `[groups, batches of tokens, group / 2, tokens of a batch]`, as [`Simd::half_fields`] meets them: value j of a word with the
    /// one half a word behind it.
    pairs: Scratch<u32>,
    /// Of the whole numbers, `[groups, tokens]`.
    scales: Scratch<f32>,
    /// Of the values of each group.
    sums: Scratch<f32>,
}

impl Vectors {
    /// `x` `[tokens, columns]` for weights with groups of `group` values, so many to a word.
    pub fn new<S: Simd>(s: S, x: Floats, columns: usize, group: usize, fields: usize) -> Self {
        let (tokens, groups) = (x.len() / columns, columns / group);
        let (pairs, scales) = (Scratch::new(tokens * columns / 2), Scratch::new(tokens * groups));
        let mut vectors = Vectors { tokens, pairs, scales, sums: Scratch::new(tokens * groups) };
        let (pairs, scales) = (Shared(vectors.pairs.as_mut_ptr()), Shared(vectors.scales.as_mut_ptr()));
        let sums = Shared(vectors.sums.as_mut_ptr());
        // A task is some groups and not some tokens, whose pairs share cache lines.
        let share = threads::share(groups);
        threads::for_each(groups.div_ceil(share), |task| {
            let these = task * share..groups.min((task + 1) * share);
            for batch in batches::<S>(tokens) {
                for token in batch.clone() {
                    let range = token * columns + these.start * group..token * columns + these.end * group;
                    let fixed = s.run(Fix { x, range, group });
                    for (i, numbers) in fixed.numbers.chunks_exact(group).enumerate() {
                        let first = (these.start + i) * tokens;
                        // SAFETY: this task alone writes these groups.
                        unsafe {
                            scales.at(first + token).write(fixed.scales[i]);
                            sums.at(first + token).write(fixed.sums[i]);
                            let to = pairs.at((first + batch.start) * group / 2 + token - batch.start);
                            match fields {
                                4 => write_pairs::<4>(numbers, to, batch.len()),
                                8 => write_pairs::<8>(numbers, to, batch.len()),
                                _ => write_pairs::<16>(numbers, to, batch.len()),
                            }
                        }
                    }
                }
            }
        });
        vectors
    }
}

/// Tokens that are computed together: as many as there are registers for.
#[inline(always)]
fn batches<S: Simd>(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let most = if S::LANES == 16 { 8 } else { 4 };
    let mut end = 0;
    std::iter::from_fn(move || {
        let left = tokens - end;
        let start = end;
        end += if left >= most { most } else { (left + 1).next_power_of_two() / 2 };
        (left > 0).then_some(start..end)
    })
}

/// Whether words are transposed between the products of those before. Fewer products are done too soon, and eight lanes come with
/// too few registers.
#[inline(always)]
fn in_pieces<S: Simd>(tokens: usize) -> bool {
    S::LANES == 16 && tokens >= 4
}

/// The products of some rows with all of x, to `sums` `[x.tokens, rows.len()]`; `next` is the row after these.
#[inline(always)]
pub(super) fn products<S: Simd>(s: S, w: &Matrix, x: &Vectors, rows: Range<usize>, next: usize, sums: &mut [f32]) {
    let Values::Affine(affine) = &w.values else { unreachable!("whole numbers are for quantized weights") };
    // Several vectors take two vectors of rows, which share the loads of x; one waits for memory, which likes one.
    match (affine.bits, x.tokens) {
        (2, 1) => blocks::<S, 2, 1>(s, w, affine, x, rows, next, sums),
        (2, _) => blocks::<S, 2, 2>(s, w, affine, x, rows, next, sums),
        (4, 1) => blocks::<S, 4, 1>(s, w, affine, x, rows, next, sums),
        (4, _) => blocks::<S, 4, 2>(s, w, affine, x, rows, next, sums),
        (_, 1) => blocks::<S, 8, 1>(s, w, affine, x, rows, next, sums),
        (_, _) => blocks::<S, 8, 2>(s, w, affine, x, rows, next, sums),
    }
}

#[inline(always)]
fn blocks<S: Simd, const BITS: u32, const R: usize>(
    s: S,
    w: &Matrix,
    affine: &Affine,
    x: &Vectors,
    rows: Range<usize>,
    next: usize,
    sums: &mut [f32],
) {
    let width = R * S::LANES;
    let words_of_row = w.columns / 32 * BITS as usize;
    let words_of_group = affine.group_size / 32 * BITS as usize;
    let step = words_of_group.max(S::LANES);
    assert!(step <= WORDS && sums.len() == x.tokens * rows.len());
    let mut words = Scratch::new(WORDS * width);
    let mut transposing = Transposing::<S, R>::new(s, affine.packed, words_of_row);
    if in_pieces::<S>(x.tokens) {
        transposing.begin(rows.start, 0, step.min(words_of_row));
    }
    let mut numbers = Numbers::<R>::new(s, affine, w.columns);
    let mut acc = Scratch::<f32>::new(x.tokens * width);
    for first in rows.clone().step_by(width) {
        let is_last = first + width >= rows.end;
        let next = if is_last { next } else { first + width };
        let words_ahead = affine.packed.as_ptr().wrapping_add(next * words_of_row);
        acc.fill(0.0);
        for word in (0..words_of_row).step_by(step) {
            let n = step.min(words_of_row - word);
            if in_pieces::<S>(x.tokens) {
                transposing.finish(&mut words);
                let following = word + step;
                if following < words_of_row {
                    transposing.begin(first, following, step.min(words_of_row - following));
                } else if !is_last {
                    transposing.begin(next, 0, step.min(words_of_row));
                }
            } else {
                transposing.begin(first, word, n);
                transposing.finish(&mut words);
            }
            for i in (0..n).step_by(words_of_group) {
                let group = (word + i) / words_of_group;
                if numbers.begin_with(group) {
                    numbers.turn(s, group, first, next);
                }
                let group = Group {
                    words: &words[i * width..(i + words_of_group) * width],
                    numbers: numbers.of_group(s, group),
                    pairs: &x.pairs[group * x.tokens * affine.group_size / 2..][..x.tokens * affine.group_size / 2],
                    scales: &x.scales[group * x.tokens..][..x.tokens],
                    sums: &x.sums[group * x.tokens..][..x.tokens],
                    ahead: words_ahead.wrapping_add((word + i) * width),
                };
                for batch in batches::<S>(x.tokens) {
                    match batch.len() {
                        8 => group.add::<S, BITS, R, 8>(s, batch.start, &mut acc, &mut transposing),
                        4 => group.add::<S, BITS, R, 4>(s, batch.start, &mut acc, &mut transposing),
                        2 => group.add::<S, BITS, R, 2>(s, batch.start, &mut acc, &mut transposing),
                        _ => group.add::<S, BITS, R, 1>(s, batch.start, &mut acc, &mut transposing),
                    }
                }
            }
        }
        let (at, n) = (first - rows.start, width.min(rows.end - first));
        for (acc, sums) in acc.chunks_exact(width).zip(sums.chunks_exact_mut(rows.len())) {
            sums[at..at + n].copy_from_slice(&acc[..n]);
        }
    }
}

/// One group of each row of a block, and of all vectors.
struct Group<'a> {
    /// `[words, R · LANES]`.
    words: &'a [u32],
    /// Scales and biases, `[R · LANES]` each.
    numbers: [*const f32; 2],
    /// `[batches of tokens, group / 2, tokens of a batch]`.
    pairs: &'a [u32],
    /// `[tokens]`, as are the sums.
    scales: &'a [f32],
    sums: &'a [f32],
    /// What lies as far into the next block.
    ahead: *const u32,
}

impl Group<'_> {
    /// Add the products with a batch of B vectors from `token` on to `acc` `[tokens, R · LANES]`. The pieces of what is transposed
    /// meanwhile are done in between.
    #[inline(always)]
    fn add<S: Simd, const BITS: u32, const R: usize, const B: usize>(
        &self,
        s: S,
        token: usize,
        acc: &mut [f32],
        transposing: &mut Transposing<S, R>,
    ) {
        let (width, pairs_of_word) = (R * S::LANES, (16 / BITS) as usize);
        let words = self.words.len() / width;
        let pairs = words * pairs_of_word;
        assert!(acc.len() >= (token + B) * width);
        assert!(self.pairs.len() >= (token + B) * pairs && self.scales.len().min(self.sums.len()) >= token + B);
        // Sums of whole numbers are exact, so several can be under way where one would be waited for.
        let chains = (8 / (R * B)).clamp(1, 4);
        // SAFETY: the lengths were checked; scales and biases are those of [`Numbers`].
        unsafe {
            let x = self.pairs.as_ptr().add(token * pairs);
            let mut dots = [[[s.splat_word(0); R]; B]; 4];
            for k in 0..words {
                let mut packed = [s.splat_word(0); R];
                for r in 0..R {
                    packed[r] = s.load_words(self.words.as_ptr().add(k * width + r * S::LANES));
                    s.prefetch_far(self.ahead.wrapping_add(k * width + r * S::LANES));
                }
                if in_pieces::<S>(B) {
                    transposing.go_on();
                }
                unrolled!(j < pairs_of_word, {
                    let mut w = packed;
                    for r in 0..R {
                        w[r] = s.half_fields::<BITS>(packed[r], j as u32);
                    }
                    s.dot_each(w, x.add((k * pairs_of_word + j) * B), &mut dots[j % chains]);
                });
            }
            for r in 0..R {
                let [scales, biases] = self.numbers.map(|numbers| s.load(numbers.add(r * S::LANES)));
                for t in 0..B {
                    let mut dot = dots[0][t][r];
                    for chain in 1..chains {
                        dot = s.add_words(dot, dots[chain][t][r]);
                    }
                    let acc = acc.as_mut_ptr().add((token + t) * width + r * S::LANES);
                    let x_scale = s.splat(*self.scales.get_unchecked(token + t));
                    let x_sum = s.splat(*self.sums.get_unchecked(token + t));
                    s.store(acc, add_group(s, s.load(acc), dot, (x_scale, x_sum), (scales, biases)));
                }
            }
        }
    }
}
