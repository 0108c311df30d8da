//! One vector with weights of 2, 4 or 8 bits: the whole numbers of 16 bits as two bytes each, of which an instruction multiplies
//! four in each lane.
//!
//! A vector of words of a row meets the numbers that belong to it, which stay in registers for as many rows as there are lanes. What the lanes of
//! these rows hold is added up by turning it, until a lane holds a row. Whole numbers are exact, so that sums are those of
//! [`super::fixed_point`].

use std::ops::Range;

use crate::backend::cpu::fixed::{Fix, Fixed, add_group};
use crate::backend::cpu::gemv::numbers::Numbers;
use crate::backend::cpu::isa::{Simd, unrolled};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::types::{Affine, Floats, Matrix, Values};
use crate::backend::cpu::unpack::{LINE, Rows};

/// Words until they are used, when they are asked for from the second-level cache.
const NEAR: usize = 2 * LINE;

/// A vector as whole numbers.
pub(super) struct Vector {
    /// As [`Simd::dot_bytes`] takes them, `[vectors of words, upper and lower bytes, fields of a byte, LANES]`.
    bytes: Vec<u32>,
    /// Of the whole numbers of each group.
    scales: Scratch<f32>,
    /// Of the values of each group.
    sums: Scratch<f32>,
}

/// Whether sums of four words of a row make up its groups.
pub(super) fn takes(group: usize, fields: usize) -> bool {
    (group / fields).is_multiple_of(4)
}

impl Vector {
    /// `x` `[columns]` for weights with groups of `group` values, `fields` to a word.
    pub fn new<S: Simd>(s: S, x: Floats, group: usize, fields: usize) -> Self {
        let Fixed { numbers, scales, sums } = s.run(Fix { x, range: 0..x.len(), group });
        let of_byte = fields / 4;
        let mut bytes = vec![0; (x.len() / fields).next_multiple_of(S::LANES) * 2 * of_byte];
        for (w, word) in numbers.chunks_exact(fields).enumerate() {
            let at = w / S::LANES * 2 * of_byte * S::LANES + w % S::LANES;
            for j in 0..of_byte {
                let numbers = [0, 1, 2, 3].map(|byte| i32::from(word[byte * of_byte + j]));
                // A number is 256 times its upper byte and its lower one, which are both signed.
                let upper = numbers.map(|number| ((number + 128) >> 8) as u8);
                let lower = numbers.map(|number| number as u8);
                bytes[at + j * S::LANES] = u32::from_le_bytes(upper);
                bytes[at + (of_byte + j) * S::LANES] = u32::from_le_bytes(lower);
            }
        }
        Vector { bytes, scales, sums }
    }
}

/// The products of some rows with x, to `sums`; `next` is the row after these.
#[inline(always)]
pub(super) fn products<S: Simd>(s: S, w: &Matrix, x: &Vector, rows: Range<usize>, next: usize, sums: &mut [f32]) {
    let Values::Affine(affine) = &w.values else { unreachable!("whole numbers are for quantized weights") };
    match (affine.bits, affine.group_size * affine.bits as usize / 128) {
        (2, 1) => blocks::<S, 2, 1>(s, w, affine, x, rows, next, sums),
        (2, _) => blocks::<S, 2, 2>(s, w, affine, x, rows, next, sums),
        (4, 1) => blocks::<S, 4, 1>(s, w, affine, x, rows, next, sums),
        (4, 2) => blocks::<S, 4, 2>(s, w, affine, x, rows, next, sums),
        (4, _) => blocks::<S, 4, 4>(s, w, affine, x, rows, next, sums),
        (_, 2) => blocks::<S, 8, 2>(s, w, affine, x, rows, next, sums),
        (_, 4) => blocks::<S, 8, 4>(s, w, affine, x, rows, next, sums),
        (_, _) => blocks::<S, 8, 8>(s, w, affine, x, rows, next, sums),
    }
}

/// Groups of FOURS times four words. Where in a line they end is known when this is compiled, so that their sums stay in registers.
#[inline(always)]
fn blocks<S: Simd, const BITS: u32, const FOURS: usize>(
    s: S,
    w: &Matrix,
    affine: &Affine,
    x: &Vector,
    rows: Range<usize>,
    next: usize,
    sums: &mut [f32],
) {
    let (width, groups) = (S::LANES, w.columns / affine.group_size);
    let words_of_row = w.columns / 32 * BITS as usize;
    let fields = (8 / BITS) as usize;
    assert!(affine.group_size * BITS as usize == 128 * FOURS && sums.len() == rows.len());
    assert!(x.scales.len() == groups && x.sums.len() == groups);
    assert!(x.bytes.len() == words_of_row.next_multiple_of(width) * 2 * fields);
    let mut numbers = Numbers::<1>::new(s, affine, w.columns);
    for first in rows.clone().step_by(width) {
        let next = if first + width < rows.end { first + width } else { next };
        let packed = Rows::new(affine.packed, words_of_row, first);
        let words_ahead = affine.packed.as_ptr().wrapping_add(next * words_of_row);
        let (mut acc, mut dot) = (s.splat(0.0), s.splat_word(0));
        for word in (0..words_of_row).step_by(LINE) {
            let n = LINE.min(words_of_row - word);
            if (word / 4).is_multiple_of(FOURS) && numbers.begin_with(word / 4 / FOURS) {
                numbers.turn(s, word / 4 / FOURS, first, next);
            }
            let copies;
            let (start, stride) = match packed.line(s, word) {
                Some(start) => (start, words_of_row),
                None => {
                    copies = packed.copied(word, n);
                    (copies.as_ptr().cast(), LINE)
                }
            };
            unrolled!(v < LINE / width, {
                let at = word + v * width;
                if at < words_of_row {
                    let mut dots = [s.splat_word(0); 16];
                    // SAFETY: rows have a line of words here, and x has bytes for as many vectors of words as a row has.
                    unsafe {
                        let mut bytes = [[s.splat_word(0); 4]; 2];
                        for part in 0..2 {
                            for field in 0..fields {
                                let at = 2 * fields * at + (part * fields + field) * width;
                                bytes[part][field] = s.load_words(x.bytes.as_ptr().add(at));
                            }
                        }
                        for lane in 0..width {
                            if v == 0 {
                                s.prefetch_far(words_ahead.wrapping_add(word * width + lane * LINE));
                                s.prefetch(start.wrapping_add(lane * stride + NEAR));
                            }
                            let words = s.load_words(start.add(lane * stride + v * width));
                            dots[lane] = s.dot_bytes::<BITS>(words, &bytes[0], &bytes[1]);
                        }
                    }
                    let of_fours = s.sum_fours(&dots);
                    unrolled!(q < width / 4, {
                        let four = at / 4 + q;
                        if at + 4 * q < words_of_row {
                            dot = s.add_words(dot, of_fours[q % 4]);
                            let ends = (v * width / 4 + q + 1).is_multiple_of(FOURS.min(4));
                            if ends && (FOURS <= 4 || (four + 1).is_multiple_of(FOURS)) {
                                let group = four / FOURS;
                                let numbers = numbers.of_group(s, group);
                                // SAFETY: both are a vector, and x has a scale and a sum for each group.
                                let (x, numbers) = unsafe {
                                    let of_x = |values: &[f32]| s.splat(*values.get_unchecked(group));
                                    ((of_x(&x.scales), of_x(&x.sums)), (s.load(numbers[0]), s.load(numbers[1])))
                                };
                                acc = add_group(s, acc, dot, x, numbers);
                                dot = s.splat_word(0);
                            }
                        }
                    });
                }
            });
        }
        let mut products = [0.0; 16];
        // SAFETY: there are 16 lanes.
        unsafe { s.store(products.as_mut_ptr(), acc) };
        let n = width.min(rows.end - first);
        sums[first - rows.start..][..n].copy_from_slice(&products[..n]);
    }
}
