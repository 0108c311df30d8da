//! MLX's random numbers on the host, so that whoever draws a token needs no array for one.
//!
//! Reference: `mlx.core.random`; Threefry 2x32 with 20 rounds (Salmon et al., SC 2011).

use mlx_rs::Array;

/// A key, of which each number is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key([u32; 2]);

impl Key {
    /// That of `mlx.core.random.key`.
    pub fn new(seed: u64) -> Self {
        Key([(seed >> 32) as u32, seed as u32])
    }

    /// The two keys of `mlx.core.random.split`.
    pub fn split(self) -> [Key; 2] {
        let [[a, c], [b, d]] = [[0, 2], [1, 3]].map(|counter| self.threefry(counter));
        [Key([a, b]), Key([c, d])]
    }

    /// The number from 0 up to 1 that `mlx.core.random.uniform` gives for one number.
    pub fn uniform(self) -> f64 {
        let [bits, _] = self.threefry([0, 0]);
        f64::from((bits as f32 / 4294967296.0).min(1.0 - f32::EPSILON / 2.0))
    }

    /// `[2]` (u32), as MLX takes it.
    pub fn to_array(self) -> Array {
        Array::from_slice(&self.0, &[2])
    }

    fn threefry(self, counter: [u32; 2]) -> [u32; 2] {
        const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
        let Key([a, b]) = self;
        let keys = [a, b, a ^ b ^ 0x1bd1_1bda];
        let mut x = counter[0].wrapping_add(a);
        let mut y = counter[1].wrapping_add(b);
        for round in 0..5 {
            for rotation in ROTATIONS[round % 2] {
                x = x.wrapping_add(y);
                y = y.rotate_left(rotation) ^ x;
            }
            x = x.wrapping_add(keys[(round + 1) % 3]);
            y = y.wrapping_add(keys[(round + 2) % 3]).wrapping_add(round as u32 + 1);
        }
        [x, y]
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::random::{self, RandomState};
    use mlx_rs::{Device, Dtype};

    use super::*;

    /// Catches: words of a key the wrong way round, counters of a split mixed up, the wrong half kept.
    #[test]
    fn keys_and_numbers_are_those_of_mlx() {
        Device::set_default(&Device::cpu());
        let words = |array: &Array| {
            assert_eq!(array.dtype(), Dtype::Uint32);
            array.to_vec_cast::<u32>().unwrap()
        };
        for seed in [0, 1, 7, u64::from(u32::MAX), 0x0123_4567_89ab_cdef, u64::MAX] {
            let (mut key, mut state) = (Key::new(seed), RandomState::with_seed(seed).unwrap());
            assert_eq!(words(state.as_array()), key.0);
            for _ in 0..20 {
                let [next, drawn] = key.split();
                assert_eq!(words(&state.next_key().unwrap()), drawn.0, "{seed}");
                assert_eq!(words(state.as_array()), next.0, "{seed}");
                let number = random::uniform::<_, f32>(0.0, 1.0, &[1], &drawn.to_array()).unwrap();
                assert_eq!(f64::from(number.item_cast::<f32>()), drawn.uniform(), "{seed}");
                key = next;
            }
        }
    }
}
