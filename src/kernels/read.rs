//! Reading memory and nothing else, to know what decoding could reach at best.

use std::hint::black_box;

use super::pool;
use super::simd::{Op, Simd};

/// Numbers of one task.
const PART: usize = 1 << 16;

/// Add all numbers up.
pub(super) struct Read<'a> {
    pub numbers: &'a [u64],
}

impl Op for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let parts: Vec<&[u64]> = self.numbers.chunks(PART).collect();
        pool::for_each(parts.len(), |i| {
            black_box(s.run(Part(parts[i])));
        });
    }
}

struct Part<'a>(&'a [u64]);

impl Op for Part<'_> {
    type Output = u64;

    #[inline(always)]
    fn with<S: Simd>(self, _: S) -> u64 {
        let mut sums = [0u64; 32];
        for numbers in self.0.chunks_exact(32) {
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum = sum.wrapping_add(*number);
            }
        }
        sums.iter().fold(0, |a, b| a.wrapping_add(*b))
    }
}
