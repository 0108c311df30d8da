//! Reading memory and nothing else, to know what decoding could reach at best.

use std::hint::black_box;

use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::threads;

/// Bytes of one task.
const PART: usize = 1 << 18;

/// Add all numbers up that the bytes are.
pub(super) struct Read<'a> {
    pub bytes: &'a [u8],
}

impl Op for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let parts: Vec<&[u8]> = self.bytes.chunks(PART).collect();
        threads::for_each(parts.len(), |i| {
            black_box(s.run(Part(parts[i])));
        });
    }
}

struct Part<'a>(&'a [u8]);

impl Op for Part<'_> {
    type Output = f32;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 4];
        for part in self.0.chunks_exact(4 * 4 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a part has four vectors, and any bits are numbers.
                *sum = s.add(*sum, unsafe { s.load(part.as_ptr().cast::<f32>().add(i * S::LANES)) });
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum()
    }
}
