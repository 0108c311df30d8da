//! One vector with weights of 2, 4 or 8 bits: the whole numbers of 16 bits as two bytes each, of which an instruction multiplies
//! four in each lane.
//!
//! A vector of words of a row meets the numbers that belong to it, which stay in registers for sixteen rows. What the lanes of
//! these rows hold is added up by turning it, until a lane holds a row. Whole numbers are exact, so that sums are those of
//! [`super::fixed_point`].

use std::array::from_fn;
use std::ops::Range;

use crate::backend::cpu::fixed::{FixToken, add_group};
use crate::backend::cpu::gemv::numbers::Numbers;
use crate::backend::cpu::isa::Simd;
use crate::backend::cpu::types::{Affine, Floats, Matrix, Values};
use crate::backend::cpu::unpack::Rows;

/// Vectors of words until they are used, when they are asked for from the second-level cache.
const NEAR: usize = 2;

/// A vector as whole numbers.
pub(super) struct Vector {
    /// As [`Simd::byte_fields`] meets them, `[vectors of words, fields of a byte, upper and lower bytes, LANES]`.
    bytes: Vec<u32>,
    /// Of the whole numbers of each group.
    scales: Vec<f32>,
    /// Of the values of each group.
    sums: Vec<f32>,
}

/// Whether sums of four words of a row make up its groups.
pub(super) fn takes(group: usize, fields: usize) -> bool {
    (group / fields).is_multiple_of(4)
}

impl Vector {
    /// `x` `[columns]` for weights with groups of `group` values, `fields` to a word.
    pub fn new<S: Simd>(s: S, x: Floats, group: usize, fields: usize) -> Self {
        let fixed = s.run(FixToken { x, token: 0, columns: x.len(), group });
        let of_byte = fields / 4;
        let mut bytes = vec![0; (x.len() / fields).next_multiple_of(S::LANES) * 2 * of_byte];
        for (w, word) in fixed.numbers.chunks_exact(fields).enumerate() {
            let at = w / S::LANES * 2 * of_byte * S::LANES + w % S::LANES;
            for j in 0..of_byte {
                let numbers = [0, 1, 2, 3].map(|byte| i32::from(word[byte * of_byte + j]));
                // A number is 256 times its upper byte and its lower one, which are both signed.
                let upper = numbers.map(|number| ((number + 128) >> 8) as u8);
                let lower = numbers.map(|number| number as u8);
                bytes[at + 2 * j * S::LANES] = u32::from_le_bytes(upper);
                bytes[at + (2 * j + 1) * S::LANES] = u32::from_le_bytes(lower);
            }
        }
        Vector { bytes, scales: fixed.scales, sums: fixed.sums }
    }
}

/// The products of some rows with x, to `sums`; `next` is the row after these.
#[inline(always)]
pub(super) fn products<S: Simd>(s: S, w: &Matrix, x: &Vector, rows: Range<usize>, next: usize, sums: &mut [f32]) {
    let Values::Affine(affine) = &w.values else { unreachable!("whole numbers are for quantized weights") };
    match affine.bits {
        2 => blocks::<S, 2>(s, w, affine, x, rows, next, sums),
        4 => blocks::<S, 4>(s, w, affine, x, rows, next, sums),
        _ => blocks::<S, 8>(s, w, affine, x, rows, next, sums),
    }
}

#[inline(always)]
fn blocks<S: Simd, const BITS: u32>(
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
    let fours_of_group = affine.group_size * BITS as usize / 128;
    let fields = (8 / BITS) as usize;
    assert!(width == 16 && x.scales.len() == groups && x.sums.len() == groups && sums.len() == rows.len());
    assert!(x.bytes.len() == words_of_row.next_multiple_of(width) * 2 * fields);
    let mut numbers = Numbers::new(s, affine, w.columns, width);
    for first in rows.clone().step_by(width) {
        let next = if first + width < rows.end { first + width } else { next };
        let packed = Rows::new(affine.packed, words_of_row, first);
        let words_ahead = affine.packed.as_ptr().wrapping_add(next * words_of_row);
        let mut acc = s.splat(0.0);
        let (mut group, mut fours, mut dot) = (0, 0, s.splat_word(0));
        for word in (0..words_of_row).step_by(width) {
            let n = width.min(words_of_row - word);
            if numbers.begin_with(group) && fours == 0 {
                numbers.turn(s, group, first, next);
            }
            let copies;
            let starts = if n == width {
                packed.at::<S>(word)
            } else {
                copies = packed.copied(word, n);
                from_fn(|lane| copies[lane].as_ptr())
            };
            let mut dots = [s.splat_word(0); 16];
            // SAFETY: rows have a word for each lane, and x has bytes for these words, as was checked.
            unsafe {
                let mut bytes = [[s.splat_word(0); 2]; 4];
                for field in 0..fields {
                    for part in 0..2 {
                        bytes[field][part] = s.load_words(
                            x.bytes.as_ptr().add((word / width * fields + field) * 2 * width + part * width),
                        );
                    }
                }
                for lane in 0..width {
                    s.prefetch_far(words_ahead.wrapping_add((word + lane) * width));
                    s.prefetch(starts[lane].wrapping_add(NEAR * width));
                    let words = s.load_words(starts[lane]);
                    let mut dot = s.splat_word(0);
                    unrolled!(j < fields, {
                        dot = s.dot_bytes(s.byte_fields::<BITS>(words, j as u32), bytes[j % 4][0], dot);
                    });
                    dot = s.times_256(dot);
                    unrolled!(j < fields, {
                        dot = s.dot_bytes(s.byte_fields::<BITS>(words, j as u32), bytes[j % 4][1], dot);
                    });
                    dots[lane] = dot;
                }
            }
            let of_fours = s.sum_quarters(&dots);
            unrolled!(q < n / 4, {
                dot = s.add_words(dot, of_fours[q % 4]);
                fours += 1;
                if fours == fours_of_group {
                    let (scales, biases) = numbers.of_group(s, group);
                    // SAFETY: both are a vector.
                    let numbers = unsafe { (s.load(scales.as_ptr()), s.load(biases.as_ptr())) };
                    let x = (s.splat(x.scales[group]), s.splat(x.sums[group]));
                    acc = add_group(s, acc, dot, x, numbers);
                    (group, fours, dot) = (group + 1, 0, s.splat_word(0));
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
