//! Weights of any kind with activations in f32.
//!
//! Values of 2, 4 and 8 bits are multiplied as they lie: a vector of words is shifted and masked to one value of each, so the
//! activations are put in that order first. A row's group has one scale and bias, so `Σ (s·q + b)·x = s·Σ q·x + b·Σ x`, and
//! the sums of x are made once for all rows. Values of other widths are unpacked row by row.

use std::array::{from_fn, from_ref};
use std::ops::Range;

use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Affine, Element, Floats, Matrix, Shared, Values, load_all, same_type, typed};
use crate::backend::cpu::unpack;

/// Rows that several vectors meet one after another, while they are in the first-level cache.
const ROWS: usize = 16;
/// Vectors that share the loads of a row.
const TOKENS: usize = 4;
/// Bytes that are asked for ahead of a weight whose rows are read one after another.
const AHEAD: usize = 4096;

/// A vector in the order in which a weight's rows are read.
#[derive(Default)]
pub(super) struct Vector {
    /// As they are; for words, the first field's values of all lanes of a vector, then the second's, …, padded with zeros.
    values: Vec<f32>,
    /// Of the values of each group.
    sums: Vec<f32>,
}

/// The vectors of `x` `[tokens, columns]`, for weights with groups of `group` values (0 for none), `fields` to a word.
#[inline(always)]
pub(super) fn vectors<S: Simd>(s: S, x: Floats, columns: usize, group: usize, fields: usize) -> Vec<Vector> {
    let tokens = x.len() / columns;
    let mut vectors: Vec<Vector> = (0..tokens).map(|_| Vector::default()).collect();
    let to = Shared(vectors.as_mut_ptr());
    threads::for_each(tokens, |token| {
        // SAFETY: this task alone writes this vector.
        unsafe { *to.at(token) = s.run(Prepare { x, token, columns, group, fields }) };
    });
    vectors
}

/// One of [`vectors`].
struct Prepare<'a> {
    x: Floats<'a>,
    token: usize,
    columns: usize,
    group: usize,
    fields: usize,
}

impl Op for Prepare<'_> {
    type Output = Vector;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> Vector {
        let Prepare { x, token, columns, group, fields } = self;
        let mut natural = vec![0.0; columns];
        typed!(Floats, x, x => load_all(s, &x[token * columns..(token + 1) * columns], &mut natural));
        if group == 0 {
            return Vector { values: natural, sums: Vec::new() };
        }
        natural.resize(columns.next_multiple_of(fields.max(group) * S::LANES), 0.0);
        let mut values = Vec::with_capacity(natural.len());
        for chunk in natural.chunks(fields * S::LANES) {
            values.extend((0..fields).flat_map(|j| (0..S::LANES).map(move |i| chunk[i * fields + j])));
        }
        Vector { values, sums: natural.chunks(group).map(|group| group.iter().sum()).collect() }
    }
}

/// The products of some rows with all of x, to `sums` `[x.len(), rows.len()]`.
#[inline(always)]
pub(super) fn products<S: Simd>(s: S, w: &Matrix, x: &[Vector], rows: Range<usize>, sums: &mut [f32]) {
    let n = rows.len();
    assert!(sums.len() == x.len() * n);
    match &w.values {
        Values::Dense(values) => typed!(Floats, values, values => {
            for (i, row) in values[rows.start * w.columns..].chunks_exact(w.columns).take(n).enumerate() {
                dots(s, row, x, n, &mut sums[i..]);
            }
        }),
        Values::Affine(affine) => match affine.bits {
            2 => affine_rows::<S, 2>(s, w, affine, x, rows, sums),
            4 => affine_rows::<S, 4>(s, w, affine, x, rows, sums),
            8 => affine_rows::<S, 8>(s, w, affine, x, rows, sums),
            _ => {
                let mut values = vec![0.0; w.columns];
                for (i, row) in rows.enumerate() {
                    unpack::row(w, row, 0, &mut values);
                    dots(s, &values, x, n, &mut sums[i..]);
                }
            }
        },
    }
}

/// The products of a row with each of x, to every `n`th of `sums`.
#[inline(always)]
fn dots<S: Simd, E: Element>(s: S, row: &[E], x: &[Vector], n: usize, sums: &mut [f32]) {
    let (fours, rest) = x.as_chunks::<TOKENS>();
    for (i, x) in fours.iter().enumerate() {
        let products = dot::<S, E, TOKENS>(s, row, [&x[0].values, &x[1].values, &x[2].values, &x[3].values]);
        for t in 0..TOKENS {
            sums[(i * TOKENS + t) * n] = products[t];
        }
    }
    for (i, x) in rest.iter().enumerate() {
        let [product] = dot::<S, E, 1>(s, row, [&x.values]);
        sums[(fours.len() * TOKENS + i) * n] = product;
    }
}

/// The products of a row with B vectors.
#[inline(always)]
fn dot<S: Simd, E: Element, const B: usize>(s: S, row: &[E], x: [&[f32]; B]) -> [f32; B] {
    for x in x {
        assert!(x.len() >= row.len());
    }
    let mut sums = [[s.splat(0.0); 2]; B];
    let whole = row.len() / (2 * S::LANES) * 2 * S::LANES;
    for k in (0..whole).step_by(2 * S::LANES) {
        s.prefetch(row.as_ptr().wrapping_add(k).wrapping_byte_add(AHEAD));
        for half in 0..2 {
            let at = k + half * S::LANES;
            // SAFETY: `at + LANES` stays within the row and each of x.
            unsafe {
                let w = E::load(s, row.as_ptr().add(at));
                for b in 0..B {
                    sums[b][half] = s.fma(w, s.load(x[b].as_ptr().add(at)), sums[b][half]);
                }
            }
        }
    }
    let mut products = [0.0; B];
    for b in 0..B {
        let rest = row[whole..].iter().zip(&x[b][whole..]).map(|(w, x)| w.to_f32() * x);
        products[b] = s.sum(s.add(sums[b][0], sums[b][1])) + rest.sum::<f32>();
    }
    products
}

#[inline(always)]
fn affine_rows<S: Simd, const BITS: u32>(
    s: S,
    w: &Matrix,
    affine: &Affine,
    x: &[Vector],
    rows: Range<usize>,
    sums: &mut [f32],
) {
    typed!(Floats, affine.scales, scales => {
        let fields = (32 / BITS) as usize;
        let words_of_group = affine.group_size / fields;
        let rows_of_weight = AffineRows {
            packed: affine.packed,
            scales,
            biases: same_type(scales, affine.biases),
            words: w.columns / fields,
            groups: w.columns / affine.group_size,
            group_of: (0..words_of_group)
                .map(|c| from_fn(|lane| ((c * S::LANES + lane % S::LANES) / words_of_group) as u32))
                .collect(),
        };
        let n = rows.len();
        for first in rows.clone().step_by(ROWS) {
            let some = first..rows.end.min(first + ROWS);
            let (fours, rest) = x.as_chunks::<TOKENS>();
            for (i, x) in fours.iter().enumerate() {
                for row in some.clone() {
                    let products = rows_of_weight.dots::<S, BITS, TOKENS>(s, x, row);
                    for t in 0..TOKENS {
                        sums[(i * TOKENS + t) * n + row - rows.start] = products[t];
                    }
                }
            }
            for (i, x) in rest.iter().enumerate() {
                for row in some.clone() {
                    let [product] = rows_of_weight.dots::<S, BITS, 1>(s, from_ref(x), row);
                    sums[(fours.len() * TOKENS + i) * n + row - rows.start] = product;
                }
            }
        }
    });
}

/// The rows of an affine weight, by type.
struct AffineRows<'a, E> {
    packed: &'a [u32],
    scales: &'a [E],
    biases: &'a [E],
    /// Words of a row.
    words: usize,
    /// Groups of a row.
    groups: usize,
    /// Which of the groups whose scales are loaded together each lane of a vector of words belongs to, for the vectors that
    /// those groups fill.
    group_of: Vec<[u32; 16]>,
}

impl<E: Element> AffineRows<'_, E> {
    /// The products of a row with B vectors.
    #[inline(always)]
    fn dots<S: Simd, const BITS: u32, const B: usize>(&self, s: S, x: &[Vector; B], row: usize) -> [f32; B] {
        let fields = (32 / BITS) as usize;
        // One vector of scales serves so many vectors of words.
        let chunks = self.group_of.len();
        let padded = self.words.next_multiple_of(chunks * S::LANES) * fields;
        for x in x {
            assert!(x.values.len() >= padded && x.sums.len() >= self.groups.next_multiple_of(S::LANES));
        }
        assert!(self.packed.len() >= (row + 1) * self.words);
        assert!(self.scales.len().min(self.biases.len()) >= (row + 1) * self.groups);
        let mut acc = [s.splat(0.0); B];
        for first_group in (0..self.groups).step_by(S::LANES) {
            let n_groups = (self.groups - first_group).min(S::LANES);
            // SAFETY: `n_groups` and `n_words` lie in the row; x has values for whole vectors of groups and their words.
            unsafe {
                let at = row * self.groups + first_group;
                let (scales, biases) = (self.scales.as_ptr().add(at), self.biases.as_ptr().add(at));
                s.prefetch(scales.wrapping_byte_add(AHEAD));
                s.prefetch(biases.wrapping_byte_add(AHEAD));
                let (scales, biases) = (load_first(s, scales, n_groups), load_first(s, biases, n_groups));
                for b in 0..B {
                    acc[b] = s.fma(biases, s.load(x[b].sums.as_ptr().add(first_group)), acc[b]);
                }
                for (c, group_of) in self.group_of.iter().enumerate() {
                    let word = (first_group * chunks) + c * S::LANES;
                    if word >= self.words {
                        break;
                    }
                    let n_words = (self.words - word).min(S::LANES);
                    let at = self.packed.as_ptr().add(row * self.words + word);
                    s.prefetch(at.wrapping_byte_add(AHEAD));
                    let words = load_first_words(s, at, n_words);
                    let mut dots = [s.splat(0.0); B];
                    for j in 0..fields {
                        let field = s.field::<BITS>(words, j as u32);
                        for b in 0..B {
                            let x = s.load(x[b].values.as_ptr().add(word * fields + j * S::LANES));
                            dots[b] = s.fma(field, x, dots[b]);
                        }
                    }
                    let scale = s.permute(scales, s.load_words(group_of.as_ptr()));
                    for b in 0..B {
                        acc[b] = s.fma(dots[b], scale, acc[b]);
                    }
                }
            }
        }
        let mut sums = [0.0; B];
        for b in 0..B {
            sums[b] = s.sum(acc[b]);
        }
        sums
    }
}

/// The first `n` values in the first lanes, zeros in the others.
/// # Safety
/// `n` values can be read.
#[inline(always)]
unsafe fn load_first<S: Simd, E: Element>(s: S, from: *const E, n: usize) -> S::F {
    if n == S::LANES {
        return unsafe { E::load(s, from) };
    }
    let mut padded = [E::from_f32(0.0); 16];
    unsafe {
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), n);
        E::load(s, padded.as_ptr())
    }
}

/// The first `n` words in the first lanes, zeros in the others.
/// # Safety
/// `n` words can be read.
#[inline(always)]
unsafe fn load_first_words<S: Simd>(s: S, from: *const u32, n: usize) -> S::U {
    if n == S::LANES {
        return unsafe { s.load_words(from) };
    }
    let mut padded = [0; 16];
    unsafe {
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), n);
        s.load_words(padded.as_ptr())
    }
}
