//! `y = W · x + bias` for a few vectors: decoding, which is bound by reading W once.
//!
//! Four- and eight-bit weights are multiplied as they lie: a vector of words is shifted and masked to one field of each,
//! so the activations are put in that order first. A row's group has one scale and bias, so
//! `Σ (s·q + b)·x = s·Σ q·x + b·Σ x`, and the sums of x are made once for all rows.
//!
//! Activations of 16 bits become whole numbers of 16 bits with a scale for each group (see [`crate::backend::cpu::fixed`]), which vector
//! instructions for bytes multiply twice as fast. Activations in f32 stay floats.

use std::ops::Range;

use crate::backend::Epilogue;
use crate::backend::cpu::fixed::Fixed;
use crate::backend::cpu::gemm::epilogue::{Finish, FusedLayers};
use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{
    Affine, Element, Floats, FloatsMut, Matrix, Shared, Values, load_all, same_type, typed,
};
use crate::backend::cpu::unpack;

/// The most rows of one task.
const BLOCK: usize = 256;
/// Rows that several vectors meet one after another, while they are in the first-level cache.
const ROWS: usize = 16;
/// Vectors that share the loads of a row of numbers.
const TOKENS: usize = 4;
/// Bytes that are asked for ahead of a weight whose rows are read one after another. Rows side by side, which share the
/// loads of x, read memory at two thirds of the speed when several are in one page, and faster when x is long.
const AHEAD: usize = 4096;
/// Columns from which rows are read four side by side.
const LONG: usize = 6144;

/// `x` `[m, columns]`, `y` `[m, width]`; m small. The sums of a vector are made in the same order whatever m is.
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
        let tokens = x.len() / columns;
        let mut prepared: Vec<(Layout, Vec<Prepared>)> = Vec::new();
        let mut prepared_for = Vec::new();
        for layer in fused.layers {
            let layout = Layout::of(s, &layer.weight, &x, tokens);
            let known = prepared.iter().position(|(known, _)| *known == layout);
            prepared_for.push(known.unwrap_or(prepared.len()));
            if known.is_none() {
                let mut vectors: Vec<Prepared> = (0..tokens).map(|_| Prepared::default()).collect();
                let to = Shared(vectors.as_mut_ptr());
                threads::for_each(tokens, |i| {
                    // SAFETY: this task alone writes this vector.
                    unsafe { *to.at(i) = s.run(Prepare { x: &x, i, columns, layout }) };
                });
                prepared.push((layout, vectors));
            }
        }
        let width = fused.width();
        let tasks = fused.tasks(|_| threads::share(width).min(BLOCK));
        typed!(FloatsMut, y, y => {
            let y = Shared(y.as_mut_ptr());
            threads::for_each(tasks.len(), |i| {
                let task = &tasks[i];
                let n = task.rows.len();
                // For one layer or two, `[tokens, n]`.
                let mut sums = [Scratch::<f32>::new(tokens * n), Scratch::new(0)];
                if fused.epilogue == Epilogue::SwiGlu {
                    sums[1] = Scratch::new(tokens * n);
                }
                for (i, (layer, sums)) in fused.layers_of(task).iter().zip(&mut sums).enumerate() {
                    let (layout, x) = &prepared[prepared_for[task.layer + i]];
                    s.run(Products { w: &layer.weight, x, layout: *layout, first: task.rows.start, n, sums });
                    layer.add_bias(task.rows.clone(), n, sums);
                }
                for token in 0..tokens {
                    let [sums, other] = &sums;
                    let part = token * n..(token + 1) * n;
                    let multiplied = (fused.epilogue == Epilogue::SwiGlu).then(|| &other[part.clone()]);
                    // SAFETY: a row of y has `width` numbers, and this task alone writes these.
                    let y = Shared(unsafe { y.at(token * width + task.at) });
                    s.run(Finish { sums: &sums[part], multiplied, y });
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
    numbers: Numbers,
}

/// What products are made of. Both kinds of whole numbers give the same sums, which are exact.
#[derive(Clone, Copy, PartialEq)]
enum Numbers {
    Floats,
    /// Of 16 bits, as their two bytes: weights are unpacked with the fewest instructions.
    Bytes,
    /// Of 16 bits, in pairs: products take the fewest instructions, once a row is unpacked for several vectors.
    Pairs,
}

impl Layout {
    fn of<S: Simd>(_: S, w: &Matrix, x: &Floats, tokens: usize) -> Self {
        match w.values {
            Values::Affine(Affine { bits: bits @ (2 | 4 | 8), group_size, .. }) => Layout {
                fields: 32 / bits as usize,
                lanes: S::LANES,
                group: group_size,
                numbers: match (x.bits() == 16 && S::has_word_dots(bits), tokens) {
                    (false, _) => Numbers::Floats,
                    (true, 1) => Numbers::Bytes,
                    (true, _) => Numbers::Pairs,
                },
            },
            _ => Layout { fields: 1, lanes: S::LANES, group: 0, numbers: Numbers::Floats },
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
    /// For each vector of words, the first two fields' values of all lanes, then the next two's, …; `values` is empty then.
    pairs: Vec<u32>,
    /// Of the whole numbers, for each group.
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
        let Prepare { x, i, columns, layout: Layout { fields, lanes, group, numbers: kind } } = self;
        let chunk = fields * lanes;
        let mut natural = vec![0.0; columns.next_multiple_of(chunk.max(lanes * group))];
        typed!(Floats, x, x => load_all(s, &x[i * columns..(i + 1) * columns], &mut natural[..columns]));
        if group == 0 {
            return Prepared { values: natural, ..Prepared::default() };
        }
        let vectors = group / fields;
        let group_of =
            (0..vectors).map(|c| std::array::from_fn(|l| ((c * lanes + l % lanes) / vectors) as u32)).collect();
        if kind != Numbers::Floats {
            let Fixed { numbers, scales, sums } = Fixed::new(s, &natural, group);
            let mut prepared = Prepared { scales, sums, group_of, ..Prepared::default() };
            match (kind, fields) {
                (Numbers::Pairs, _) => prepared.pairs = pairs(&numbers, fields, lanes),
                (_, 4) => prepared.bytes = halves::<1>(&numbers, lanes),
                (_, 8) => prepared.bytes = halves::<2>(&numbers, lanes),
                _ => prepared.bytes = halves::<4>(&numbers, lanes),
            }
            return prepared;
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

/// Numbers as [`Simd::half_fields`] meets them: value j of a word with the one half a word behind it.
#[inline(always)]
fn pairs(numbers: &[i16], fields: usize, lanes: usize) -> Vec<u32> {
    let mut pairs = vec![0; numbers.len() / 2];
    let vectors = pairs.chunks_exact_mut(fields / 2 * lanes);
    for (to, numbers) in vectors.zip(numbers.chunks_exact(fields * lanes)) {
        for (j, to) in to.chunks_exact_mut(lanes).enumerate() {
            for (lane, to) in to.iter_mut().enumerate() {
                let at = lane * fields + j;
                *to = u32::from(numbers[at] as u16) | u32::from(numbers[at + fields / 2] as u16) << 16;
            }
        }
    }
    pairs
}

/// The products of rows `first..first + n` with all of x, to `sums` `[x.len(), n]`.
struct Products<'a> {
    w: &'a Matrix<'a>,
    x: &'a [Prepared],
    layout: Layout,
    first: usize,
    n: usize,
    sums: &'a mut [f32],
}

impl Op for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Products { w, x, layout, first, n, sums } = self;
        assert!(sums.len() == x.len() * n);
        match w.values {
            Values::Dense(values) => typed!(Floats, values, values => {
                for (i, row) in values[first * w.columns..].chunks_exact(w.columns).take(n).enumerate() {
                    dots(s, row, x, n, &mut sums[i..]);
                }
            }),
            Values::Affine(affine) => match affine.bits {
                2 => affine_block::<S, 2>(s, w, affine, x, layout, first, n, sums),
                4 => affine_block::<S, 4>(s, w, affine, x, layout, first, n, sums),
                8 => affine_block::<S, 8>(s, w, affine, x, layout, first, n, sums),
                _ => {
                    let mut values = vec![0.0; w.columns];
                    for i in 0..n {
                        unpack::row(w, first + i, 0, &mut values);
                        dots(s, &values, x, n, &mut sums[i..]);
                    }
                }
            },
        }
    }
}

/// The products of a row with each of x, to every `n`th of `sums`.
#[inline(always)]
fn dots<S: Simd, E: Element>(s: S, row: &[E], x: &[Prepared], n: usize, sums: &mut [f32]) {
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
#[allow(clippy::too_many_arguments)]
fn affine_block<S: Simd, const BITS: u32>(
    s: S,
    w: &Matrix,
    affine: Affine,
    x: &[Prepared],
    layout: Layout,
    first: usize,
    n: usize,
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
        match layout.numbers {
            Numbers::Floats => products::<S, _, BITS, FLOATS>(s, &rows, x, layout, first, n, sums),
            Numbers::Bytes => products::<S, _, BITS, BYTES>(s, &rows, x, layout, first, n, sums),
            Numbers::Pairs => products::<S, _, BITS, PAIRS>(s, &rows, x, layout, first, n, sums),
        }
    });
}

/// [`Numbers`] as parameters.
const FLOATS: u8 = 0;
const BYTES: u8 = 1;
const PAIRS: u8 = 2;

/// The products of rows `first..first + n` with all of x, to `sums` `[x.len(), n]`.
#[inline(always)]
fn products<S: Simd, E: Element, const BITS: u32, const NUMBERS: u8>(
    s: S,
    w: &AffineRows<E>,
    x: &[Prepared],
    layout: Layout,
    first: usize,
    n: usize,
    sums: &mut [f32],
) {
    let mut done = 0;
    if let [x] = x
        && w.words * layout.fields >= LONG
    {
        while done + 4 <= n {
            let products = affine_rows::<S, _, BITS, NUMBERS, 4, 1>(s, w, [x], layout, first + done);
            for r in 0..4 {
                sums[done + r] = products[r][0];
            }
            done += 4;
        }
    }
    while done < n {
        let rows = done..n.min(done + ROWS);
        done = rows.end;
        let mut t = 0;
        while t < x.len() {
            let (rows, sums) = (rows.clone(), &mut sums[t * n..]);
            t += match &x[t..] {
                [a, b, c, d, ..] => rows_of::<S, _, BITS, NUMBERS, 4>(s, w, [a, b, c, d], layout, first, rows, n, sums),
                [a, ..] => rows_of::<S, _, BITS, NUMBERS, 1>(s, w, [a], layout, first, rows, n, sums),
                [] => unreachable!("there are more"),
            };
        }
    }
}

/// Some rows with B vectors, to `sums` `[B, n]`; B.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn rows_of<S: Simd, E: Element, const BITS: u32, const NUMBERS: u8, const B: usize>(
    s: S,
    w: &AffineRows<E>,
    x: [&Prepared; B],
    layout: Layout,
    first: usize,
    rows: Range<usize>,
    n: usize,
    sums: &mut [f32],
) -> usize {
    let pairs = rows.len() / 2;
    for row in (rows.start..rows.end).step_by(2).take(if B > 1 { pairs } else { 0 }) {
        // Two rows share the loads of the vectors.
        let products = affine_rows::<S, _, BITS, NUMBERS, 2, B>(s, w, x, layout, first + row);
        for r in 0..2 {
            for t in 0..B {
                sums[t * n + row + r] = products[r][t];
            }
        }
    }
    for row in rows.start + if B > 1 { 2 * pairs } else { 0 }..rows.end {
        let [products] = affine_rows::<S, _, BITS, NUMBERS, 1, B>(s, w, x, layout, first + row);
        for t in 0..B {
            sums[t * n + row] = products[t];
        }
    }
    B
}

/// A loop of at most eight rounds whose index is a constant in each, as shifts want it.
macro_rules! unrolled {
    ($j:ident < $n:expr, $body:block) => {
        unrolled!(@ $j, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $j:ident, $n:expr, $body:block, $($value:literal)*) => {
        $({
            let $j: usize = $value;
            if $j < $n $body
        })*
    };
}

/// The products of rows `row..row + R` with B vectors.
#[inline(always)]
fn affine_rows<S: Simd, E: Element, const BITS: u32, const NUMBERS: u8, const R: usize, const B: usize>(
    s: S,
    w: &AffineRows<E>,
    x: [&Prepared; B],
    layout: Layout,
    row: usize,
) -> [[f32; B]; R] {
    let fields = (32 / BITS) as usize;
    // One vector of scales serves so many vectors of words.
    let chunks = layout.group / fields;
    let padded = w.words.next_multiple_of(chunks * S::LANES) * fields;
    for x in x {
        let enough = match NUMBERS {
            BYTES => x.bytes.len() >= 2 * padded,
            PAIRS => x.pairs.len() >= padded / 2,
            _ => x.values.len() >= padded,
        };
        assert!(enough);
        assert!(NUMBERS == FLOATS || x.scales.len() == x.sums.len());
        assert!(x.group_of.len() == chunks && x.sums.len() >= w.groups.next_multiple_of(S::LANES));
    }
    assert!(w.packed.len() >= (row + R) * w.words);
    assert!(w.scales.len() >= (row + R) * w.groups && w.biases.len() >= (row + R) * w.groups);
    let ahead = if R == 1 { AHEAD } else { R * w.words * 4 };

    let mut acc = [[s.splat(0.0); B]; R];
    for first_group in (0..w.groups).step_by(S::LANES) {
        let n_groups = (w.groups - first_group).min(S::LANES);
        let first_word = first_group * chunks;
        // SAFETY: `n_groups` and `n_words` lie in the rows; x has values for whole vectors of groups and their words.
        unsafe {
            let mut scale = [[s.splat(0.0); B]; R];
            for r in 0..R {
                let at = (row + r) * w.groups + first_group;
                let (scales, biases) = (w.scales.as_ptr().add(at), w.biases.as_ptr().add(at));
                s.prefetch(scales.wrapping_byte_add(AHEAD));
                s.prefetch(biases.wrapping_byte_add(AHEAD));
                let (scales, biases) = (load_first(s, scales, n_groups), load_first(s, biases, n_groups));
                for b in 0..B {
                    acc[r][b] = s.fma(biases, s.load(x[b].sums.as_ptr().add(first_group)), acc[r][b]);
                    scale[r][b] = match NUMBERS {
                        FLOATS => scales,
                        _ => s.mul(scales, s.load(x[b].scales.as_ptr().add(first_group))),
                    };
                }
            }
            for (c, group_of) in x[0].group_of.iter().enumerate() {
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
                let dots = match NUMBERS {
                    BYTES => {
                        let mut dots = [[s.splat(0.0); B]; R];
                        for r in 0..R {
                            for b in 0..B {
                                dots[r][b] = s.word_dots::<BITS>(words[r], x[b].bytes.as_ptr().add(2 * word * fields));
                            }
                        }
                        dots
                    }
                    PAIRS => {
                        let mut dots = [[s.splat_word(0); B]; R];
                        unrolled!(j < fields / 2, {
                            for r in 0..R {
                                let pairs = s.half_fields::<BITS>(words[r], j as u32);
                                for b in 0..B {
                                    let x = s.load_words(x[b].pairs.as_ptr().add(word * fields / 2 + j * S::LANES));
                                    dots[r][b] = s.dot_pairs(pairs, x, dots[r][b]);
                                }
                            }
                        });
                        // Loops, since a closure is not compiled for the instruction set.
                        let mut floats = [[s.splat(0.0); B]; R];
                        for r in 0..R {
                            for b in 0..B {
                                floats[r][b] = s.to_floats(dots[r][b]);
                            }
                        }
                        floats
                    }
                    _ => {
                        let mut dots = [[s.splat(0.0); B]; R];
                        for j in 0..fields {
                            for r in 0..R {
                                let field = s.field::<BITS>(words[r], j as u32);
                                for b in 0..B {
                                    let x = s.load(x[b].values.as_ptr().add(word * fields + j * S::LANES));
                                    dots[r][b] = s.fma(field, x, dots[r][b]);
                                }
                            }
                        }
                        dots
                    }
                };
                for r in 0..R {
                    for b in 0..B {
                        acc[r][b] = s.fma(dots[r][b], s.permute(scale[r][b], group_of), acc[r][b]);
                    }
                }
            }
        }
    }
    let mut sums = [[0.0; B]; R];
    for r in 0..R {
        for b in 0..B {
            sums[r][b] = s.sum(acc[r][b]);
        }
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
