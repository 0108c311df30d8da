//! Activations of 16 bits as whole numbers of 16 bits with a scale for each group.
//!
//! A number is kept to within 1/65024 of the largest of its group, where bf16 itself rounds each to 1/512 of its own size
//! and f16 to 1/4096. Products with quantized weights are then exact in whole numbers.

/// Groups whose largest number is below this count as zeros: their scale would leave the normal range.
const TINY: f32 = 1e-30;

/// Rounded to a multiple of 256, it still has an upper byte of 127.
const LARGEST: f32 = 127.0 * 256.0;

/// Fixed-point numbers.
pub(super) struct Fixed {
    /// From -LARGEST to LARGEST.
    pub numbers: Vec<i16>,
    /// What each group's numbers are multiplied with; NaN when one of them was not finite.
    pub scales: Vec<f32>,
    /// Of the values of each group, as rounded.
    pub sums: Vec<f32>,
}

impl Fixed {
    /// `values` are whole groups of `group`.
    #[inline(always)]
    pub fn new(values: &[f32], group: usize) -> Self {
        let groups = values.len() / group;
        let mut fixed = Fixed {
            numbers: vec![0; values.len()],
            scales: Vec::with_capacity(groups),
            sums: Vec::with_capacity(groups),
        };
        for (numbers, values) in fixed.numbers.chunks_exact_mut(group).zip(values.chunks_exact(group)) {
            let largest = values.iter().fold(0f32, |largest, x| if x.abs() > largest { x.abs() } else { largest });
            // A product with zero is NaN for NaN and infinities alone.
            let scale = if values.iter().map(|x| x * 0.0).sum::<f32>() == 0.0 { largest / LARGEST } else { f32::NAN };
            let inverse = if largest < TINY { 0.0 } else { LARGEST / largest };
            let mut sum = 0;
            for (number, x) in numbers.iter_mut().zip(values) {
                *number = (x * inverse).round_ties_even() as i16;
                sum += i32::from(*number);
            }
            fixed.scales.push(scale);
            fixed.sums.push(scale * sum as f32);
        }
        fixed
    }
}
