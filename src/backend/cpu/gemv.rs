//! `y = W · x + bias` for a few vectors: decoding, which is bound by reading W once.
//!
//! Four- and eight-bit weights are multiplied as they lie: a vector of words is shifted and masked to one field of each,
//! so the activations are put in that order first. A row's group has one scale and bias, so
//! `Σ (s·q + b)·x = s·Σ q·x + b·Σ x`, and the sums of x are made once for all rows.
//!
//! Activations of 16 bits become whole numbers of 16 bits with a scale for each group (see [`crate::backend::cpu::fixed`]), which vector
//! instructions for bytes multiply twice as fast. Activations in f32 stay floats.

use crate::backend::Epilogue;
use crate::backend::cpu::fixed::Fixed;
use crate::backend::cpu::gemm::epilogue::{Finish, FusedLayers};
use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{
    Affine, Element, Floats, FloatsMut, Matrix, Shared, Values, load_all, same_type, typed,
};
use crate::backend::cpu::unpack;

/// The most rows of one task.
const BLOCK: usize = 256;
/// Bytes that are asked for ahead of a weight whose rows are read one after another. Rows side by side, which share the
/// loads of x, read memory at two thirds of the speed when several are in one page, and faster when x is long.
const AHEAD: usize = 4096;
/// Columns from which rows are read four side by side.
const LONG: usize = 6144;

/// `x` `[m, columns]`, `y` `[m, width]`; m small, since every vector goes through the weights on its own.
pub(super) struct Gemv<'a> {
    pub x: Floats<'a>,
    pub fused: FusedLayers<'a>,
    pub y: FloatsMut<'a>,
}

impl Op for Gemv<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Gemv { x, fused, y } = self;
        let columns = fused.layers[0].weight.columns;
        let mut prepared: Vec<(Layout, Vec<Prepared>)> = Vec::new();
        let mut prepared_for = Vec::new();
        for layer in fused.layers {
            let layout = Layout::of(s, &layer.weight, &x);
            let known = prepared.iter().position(|(known, _)| *known == layout);
            prepared_for.push(known.unwrap_or(prepared.len()));
            if known.is_none() {
                let tokens = 0..x.len() / columns;
                prepared.push((layout, tokens.map(|i| s.run(Prepare { x: &x, i, columns, layout })).collect()));
            }
        }
        let width = fused.width();
        let tasks = fused.tasks(|_| threads::share(width).min(BLOCK));
        typed!(FloatsMut, y, y => {
            let y = Shared(y.as_mut_ptr());
            threads::for_each(tasks.len(), |i| {
                let task = &tasks[i];
                let n = task.rows.len();
                for token in 0..prepared[0].1.len() {
                    let mut sums = [[0.0; BLOCK]; 2];
                    for (i, (layer, sums)) in fused.layers_of(task).iter().zip(&mut sums).enumerate() {
                        let (layout, x) = &prepared[prepared_for[task.layer + i]];
                        let (first, sums) = (task.rows.start, &mut sums[..n]);
                        s.run(AddRows { w: &layer.weight, x: &x[token], layout: *layout, first, sums });
                        layer.add_bias(task.rows.clone(), n, sums);
                    }
                    let [sums, other] = &sums;
                    let multiplied = (fused.epilogue == Epilogue::SwiGlu).then_some(&other[..n]);
                    // SAFETY: a row of y has `width` numbers, and this task alone writes these.
                    let y = Shared(unsafe { y.at(token * width + task.at) });
                    s.run(Finish { sums: &sums[..n], multiplied, y });
                }
            });
        });
    }
}

/// How x is laid out for a weight.
#[derive(Clone, Copy, PartialEq)]
struct Layout {
    /// Values in one word that a vector of words takes apart; 1 when weights are turned into f32 first.
    fields: usize,
    /// Lanes of a vector.
    lanes: usize,
    /// Values that share a scale; 0 for none.
    group: usize,
    /// Whether x becomes whole numbers.
    fixed: bool,
}

impl Layout {
    fn of<S: Simd>(_: S, w: &Matrix, x: &Floats) -> Self {
        match w.values {
            Values::Affine(Affine { bits: bits @ (2 | 4 | 8), group_size, .. }) => Layout {
                fields: 32 / bits as usize,
                lanes: S::LANES,
                group: group_size,
                fixed: x.bits() == 16 && S::has_word_dots(bits),
            },
            _ => Layout { fields: 1, lanes: S::LANES, group: 0, fixed: false },
        }
    }
}

/// A vector in the order in which a weight's rows are read, padded with zeros.
#[derive(Default)]
struct Prepared {
    /// For each vector of words, the first field's values of all lanes, then the second's, …
    values: Vec<f32>,
    /// For each vector of words, the rows of [`Simd::word_dots`]; `values` is empty then.
    bytes: Vec<i8>,
    /// Of `bytes`, for each group.
    scales: Vec<f32>,
    /// Of the values of each group.
    sums: Vec<f32>,
    /// Which of the groups whose scales are loaded together each lane of a vector of words belongs to, for the vectors
    /// that those groups fill.
    group_of: Vec<[u32; 16]>,
}

/// Prepare vector `i` of `x`.
struct Prepare<'a> {
    x: &'a Floats<'a>,
    i: usize,
    columns: usize,
    layout: Layout,
}

impl Op for Prepare<'_> {
    type Output = Prepared;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> Prepared {
        let Prepare { x, i, columns, layout: Layout { fields, lanes, group, fixed } } = self;
        let chunk = fields * lanes;
        let mut natural = vec![0.0; columns.next_multiple_of(chunk.max(lanes * group))];
        typed!(Floats, x, x => load_all(s, &x[i * columns..(i + 1) * columns], &mut natural[..columns]));
        if group == 0 {
            return Prepared { values: natural, ..Prepared::default() };
        }
        let vectors = group / fields;
        let group_of =
            (0..vectors).map(|c| std::array::from_fn(|l| ((c * lanes + l % lanes) / vectors) as u32)).collect();
        if fixed {
            let Fixed { numbers, scales, sums } = Fixed::new(s, &natural, group);
            let bytes = match fields {
                4 => halves::<1>(&numbers, lanes),
                8 => halves::<2>(&numbers, lanes),
                _ => halves::<4>(&numbers, lanes),
            };
            return Prepared { bytes, scales, sums, group_of, ..Prepared::default() };
        }
        let sums = natural.chunks(group).map(|group| group.iter().sum()).collect();
        let mut values = Vec::with_capacity(natural.len());
        for chunk in natural.chunks(chunk) {
            values.extend((0..fields).flat_map(|j| (0..lanes).map(move |i| chunk[i * fields + j])));
        }
        Prepared { values, sums, group_of, ..Prepared::default() }
    }
}

/// Numbers as [`Simd::word_dots`] reads them: for each vector of words, rows of upper and lower bytes of each field.
#[inline(always)]
fn halves<const PER_BYTE: usize>(numbers: &[i16], lanes: usize) -> Vec<i8> {
    let mut bytes = vec![0; 2 * numbers.len()];
    let rows = bytes.chunks_exact_mut(8 * PER_BYTE * lanes);
    for (rows, numbers) in rows.zip(numbers.chunks_exact(4 * PER_BYTE * lanes)) {
        for (f, rows) in rows.chunks_exact_mut(8 * lanes).enumerate() {
            let (high, low) = rows.split_at_mut(4 * lanes);
            for ((high, low), numbers) in high.iter_mut().zip(low).zip(numbers.as_chunks::<PER_BYTE>().0) {
                let number = i32::from(numbers[f]);
                *high = ((number + 128) >> 8) as i8;
                *low = number as i8;
            }
        }
    }
    bytes
}

/// Add the products of rows `first..` to `sums`.
struct AddRows<'a> {
    w: &'a Matrix<'a>,
    x: &'a Prepared,
    layout: Layout,
    first: usize,
    sums: &'a mut [f32],
}

impl Op for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let AddRows { w, x, layout, first, sums } = self;
        match w.values {
            Values::Dense(values) => typed!(Floats, values, values => {
                for (sum, row) in sums.iter_mut().zip(values[first * w.columns..].chunks_exact(w.columns)) {
                    *sum += dot(s, row, &x.values);
                }
            }),
            Values::Affine(affine) => match affine.bits {
                2 => affine_block::<S, 2>(s, w, affine, x, layout, first, sums),
                4 => affine_block::<S, 4>(s, w, affine, x, layout, first, sums),
                8 => affine_block::<S, 8>(s, w, affine, x, layout, first, sums),
                _ => {
                    let mut values = vec![0.0; w.columns];
                    for (i, sum) in sums.iter_mut().enumerate() {
                        unpack::row(w, first + i, 0, &mut values);
                        *sum += dot(s, &values, &x.values);
                    }
                }
            },
        }
    }
}

/// The product of a row with x.
#[inline(always)]
fn dot<S: Simd, E: Element>(s: S, row: &[E], x: &[f32]) -> f32 {
    let x = &x[..row.len()];
    let mut sums = [s.splat(0.0); 2];
    let whole = row.len() / (2 * S::LANES) * 2 * S::LANES;
    for k in (0..whole).step_by(2 * S::LANES) {
        s.prefetch(row.as_ptr().wrapping_add(k).wrapping_byte_add(AHEAD));
        for (half, sum) in sums.iter_mut().enumerate() {
            let at = k + half * S::LANES;
            // SAFETY: `at + LANES` stays within the row and x.
            unsafe { *sum = s.fma(E::load(s, row.as_ptr().add(at)), s.load(x.as_ptr().add(at)), *sum) };
        }
    }
    let rest = row[whole..].iter().zip(&x[whole..]).map(|(w, x)| w.to_f32() * x);
    s.sum(s.add(sums[0], sums[1])) + rest.sum::<f32>()
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
}

#[inline(always)]
fn affine_block<S: Simd, const BITS: u32>(
    s: S,
    w: &Matrix,
    affine: Affine,
    x: &Prepared,
    layout: Layout,
    first: usize,
    sums: &mut [f32],
) {
    typed!(Floats, affine.scales, scales => {
        let rows = AffineRows {
            packed: affine.packed,
            scales,
            biases: same_type(scales, affine.biases),
            words: w.columns / layout.fields,
            groups: w.columns / layout.group,
        };
        let mut done = 0;
        if w.columns >= LONG {
            for sums in sums.as_chunks_mut::<4>().0 {
                let products = if layout.fixed {
                    affine_rows::<S, _, BITS, true, 4>(s, &rows, x, layout, first + done)
                } else {
                    affine_rows::<S, _, BITS, false, 4>(s, &rows, x, layout, first + done)
                };
                for (sum, product) in sums.iter_mut().zip(products) {
                    *sum += product;
                }
                done += 4;
            }
        }
        for (i, sum) in sums.iter_mut().enumerate().skip(done) {
            let [product] = if layout.fixed {
                affine_rows::<S, _, BITS, true, 1>(s, &rows, x, layout, first + i)
            } else {
                affine_rows::<S, _, BITS, false, 1>(s, &rows, x, layout, first + i)
            };
            *sum += product;
        }
    });
}

/// The products of rows `row..row + R` with x.
#[inline(always)]
fn affine_rows<S: Simd, E: Element, const BITS: u32, const FIXED: bool, const R: usize>(
    s: S,
    w: &AffineRows<E>,
    x: &Prepared,
    layout: Layout,
    row: usize,
) -> [f32; R] {
    let fields = (32 / BITS) as usize;
    // One vector of scales serves so many vectors of words.
    let chunks = layout.group / fields;
    let padded = w.words.next_multiple_of(chunks * S::LANES) * fields;
    assert!(if FIXED { x.bytes.len() >= 2 * padded } else { x.values.len() >= padded });
    assert!(!FIXED || x.scales.len() == x.sums.len());
    assert!(x.group_of.len() == chunks && x.sums.len() >= w.groups.next_multiple_of(S::LANES));
    assert!(w.packed.len() >= (row + R) * w.words);
    assert!(w.scales.len() >= (row + R) * w.groups && w.biases.len() >= (row + R) * w.groups);
    let ahead = if R == 1 { AHEAD } else { R * w.words * 4 };

    let mut acc = [s.splat(0.0); R];
    for first_group in (0..w.groups).step_by(S::LANES) {
        let n_groups = (w.groups - first_group).min(S::LANES);
        let first_word = first_group * chunks;
        // SAFETY: `n_groups` and `n_words` lie in the rows; x has values for whole vectors of groups and their words.
        unsafe {
            let mut scale = [s.splat(0.0); R];
            for r in 0..R {
                let at = (row + r) * w.groups + first_group;
                let (scales, biases) = (w.scales.as_ptr().add(at), w.biases.as_ptr().add(at));
                s.prefetch(scales.wrapping_byte_add(AHEAD));
                s.prefetch(biases.wrapping_byte_add(AHEAD));
                scale[r] = load_first(s, scales, n_groups);
                acc[r] = s.fma(load_first(s, biases, n_groups), s.load(x.sums.as_ptr().add(first_group)), acc[r]);
                if FIXED {
                    scale[r] = s.mul(scale[r], s.load(x.scales.as_ptr().add(first_group)));
                }
            }
            for (c, group_of) in x.group_of.iter().enumerate() {
                let word = first_word + c * S::LANES;
                if word >= w.words {
                    break;
                }
                let n_words = (w.words - word).min(S::LANES);
                let group_of = s.load_words(group_of.as_ptr());
                let mut words = [group_of; R];
                for r in 0..R {
                    let at = w.packed.as_ptr().add((row + r) * w.words + word);
                    s.prefetch(at.wrapping_byte_add(ahead));
                    words[r] = load_first_words(s, at, n_words);
                }
                let mut dots = [s.splat(0.0); R];
                if FIXED {
                    for r in 0..R {
                        dots[r] = s.word_dots::<BITS>(words[r], x.bytes.as_ptr().add(2 * word * fields));
                    }
                } else {
                    for j in 0..fields {
                        let x = s.load(x.values.as_ptr().add(word * fields + j * S::LANES));
                        for r in 0..R {
                            dots[r] = s.fma(s.field::<BITS>(words[r], j as u32), x, dots[r]);
                        }
                    }
                }
                for r in 0..R {
                    acc[r] = s.fma(dots[r], s.permute(scale[r], group_of), acc[r]);
                }
            }
        }
    }
    let mut sums = [0.0; R];
    for r in 0..R {
        sums[r] = s.sum(acc[r]);
    }
    sums
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
