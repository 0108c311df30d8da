//! Activations of 16 bits as whole numbers of 16 bits with a scale for each group.
//!
//! A number is kept to within 1/65024 of the largest of its group, where bf16 itself rounds each to 1/512 of its own size
//! and f16 to 1/4096. Products with quantized weights are then exact in whole numbers.

use std::ops::Range;

use crate::backend::cpu::isa::{Op, ROUND, Simd};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::types::{Floats, load_all, typed};

/// Groups whose largest number is below this count as zeros: their scale would leave the normal range.
const TINY: f32 = 1e-30;

/// Rounded to a multiple of 256, it still has an upper byte of 127, and with a weight of 8 bits added it fits into 16 bits.
const LARGEST: f32 = 127.0 * 256.0;

/// Fixed-point numbers.
pub(super) struct Fixed {
    /// From -LARGEST to LARGEST.
    pub numbers: Scratch<i16>,
    /// What each group's numbers are multiplied with; NaN when one of them was not finite.
    pub scales: Scratch<f32>,
    /// Of the values of each group, as rounded.
    pub sums: Scratch<f32>,
}

impl Fixed {
    /// `values` are whole groups of `group`, a multiple of LANES.
    #[inline(always)]
    pub fn new<S: Simd>(s: S, values: &[f32], group: usize) -> Self {
        let groups = values.len() / group;
        let mut fixed =
            Fixed { numbers: Scratch::new(values.len()), scales: Scratch::new(groups), sums: Scratch::new(groups) };
        assert!(group.is_multiple_of(S::LANES));
        let of_group = fixed.numbers.chunks_exact_mut(group).zip(values.chunks_exact(group));
        for (g, (numbers, values)) in of_group.enumerate() {
            let zero = s.splat(0.0);
            let (mut largest, mut zeros) = (zero, zero);
            let mut rounded = [0f32; 16];
            // SAFETY: a group is whole vectors, and `rounded` has room for one.
            unsafe {
                for i in (0..group).step_by(S::LANES) {
                    let x = s.load(values.as_ptr().add(i));
                    largest = s.max(s.max(x, s.sub(zero, x)), largest);
                    zeros = s.fma(x, zero, zeros);
                }
                let largest = s.max_lane(largest);
                // A product with zero is NaN for NaN and infinities alone.
                let scale = if s.sum(zeros) == 0.0 { largest / LARGEST } else { f32::NAN };
                let inverse = s.splat(if largest < TINY { 0.0 } else { LARGEST / largest });
                let mut sum = zero;
                for (i, numbers) in numbers.chunks_exact_mut(S::LANES).enumerate() {
                    let x = s.fma(s.load(values.as_ptr().add(i * S::LANES)), inverse, s.splat(ROUND));
                    // Whole numbers below 2^24: their sum is exact.
                    sum = s.add(sum, s.sub(x, s.splat(ROUND)));
                    s.store(rounded.as_mut_ptr(), x);
                    for (number, x) in numbers.iter_mut().zip(&rounded) {
                        *number = x.to_bits() as i16;
                    }
                }
                fixed.scales[g] = scale;
                fixed.sums[g] = scale * s.sum(sum);
            }
        }
        fixed
    }
}

/// Pairs of numbers, one value of 16 bits each, every `stride` words from `to` on: of each FIELDS numbers the first with the one
/// half of them behind it, and so on.
///
/// # Safety
/// So many words can be written there.
#[inline(always)]
pub(super) unsafe fn write_pairs<const FIELDS: usize>(numbers: &[i16], to: *mut u32, stride: usize) {
    for (w, word) in numbers.as_chunks::<FIELDS>().0.iter().enumerate() {
        for j in 0..FIELDS / 2 {
            let pair = u32::from(word[j] as u16) | u32::from(word[j + FIELDS / 2] as u16) << 16;
            unsafe { to.add((w * FIELDS / 2 + j) * stride).write(pair) };
        }
    }
}

/// The sum, wrapped, of the products of numbers with their neighbours, two and two: what Winograd's inner product has too much,
/// when every four numbers are two pairs ([`write_pairs`]).
pub(super) fn own_products(numbers: &[i16]) -> u32 {
    let product = |&[a, b]: &[i16; 2]| (i32::from(a) * i32::from(b)) as u32;
    numbers.as_chunks().0.iter().map(product).fold(0, u32::wrapping_add)
}

/// Some values of `x`, whole groups, in fixed point.
pub(super) struct Fix<'a> {
    pub x: Floats<'a>,
    pub range: Range<usize>,
    pub group: usize,
}

impl Op for Fix<'_> {
    type Output = Fixed;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> Fixed {
        let mut values = Scratch::new(self.range.len());
        typed!(Floats, self.x, x => load_all(s, &x[self.range], &mut values));
        Fixed::new(s, &values, self.group)
    }
}

/// `sum` and the product of a group of fixed-point numbers, of this scale and sum, with weights of this scale and bias;
/// `dot` is that of the whole numbers.
#[inline(always)]
pub(super) fn add_group<S: Simd>(s: S, sum: S::F, dot: S::U, x: (S::F, S::F), w: (S::F, S::F)) -> S::F {
    let ((x_scale, x_sum), (scale, bias)) = (x, w);
    s.fma(bias, x_sum, s.fma(s.mul(s.to_floats(dot), x_scale), scale, sum))
}
