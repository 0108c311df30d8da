//! Quantizing, dequantizing and casting, against MLX to the bit.

use mlx_lm::backend::{BITS, GROUP_SIZES, Packing};
use mlx_rs::ops::{dequantize, quantize};
use mlx_rs::{Array, Dtype};

use super::*;

const DTYPES: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

/// Groups of 128 as they occur and as they do not: of any size, of one sign, constant, zeros, subnormal, near the largest, and
/// with infinities and NaN among them.
fn weights(seed: u64) -> Vec<f32> {
    let rng = &mut <StdRng as rand::SeedableRng>::seed_from_u64(seed);
    let mut numbers = Vec::new();
    for group in 0..256 {
        let size = 10f32.powi(rng.random_range(-9..4));
        let mut values: Vec<f32> = (0..128).map(|_| rng.random_range(-size..size)).collect();
        match group % 16 {
            0 => values.iter_mut().for_each(|x| *x = x.abs()),
            1 => values.iter_mut().for_each(|x| *x = -x.abs()),
            2 => values.fill(size),
            3 => values.fill(0.0),
            4 => values.iter_mut().for_each(|x| *x = -0.0 * x.signum()),
            5 => values.iter_mut().for_each(|x| *x *= 1e-40 / size),
            6 => values.iter_mut().for_each(|x| *x *= 3e38 / size),
            7 => values[rng.random_range(0..128)] = f32::INFINITY,
            8 => values[rng.random_range(0..128)] = f32::NEG_INFINITY,
            9 => values[rng.random_range(0..128)] = f32::NAN,
            10 => values.fill(f32::NAN),
            11 => (values[3], values[5]) = (f32::INFINITY, f32::NEG_INFINITY),
            // Ends of equal size, and quotients that are halves.
            12 => values.iter_mut().enumerate().for_each(|(i, x)| *x = size * (i % 17) as f32 / 8.0 - size),
            13 => values.iter_mut().for_each(|x| *x = 1.0 + *x / size * 1e-3),
            _ => {}
        }
        numbers.extend(values);
    }
    numbers
}

fn bytes(array: &Array) -> Vec<u8> {
    let flat = array.reshape(&[-1]).unwrap().view_dtype(Dtype::Uint8).unwrap();
    flat.eval().unwrap();
    flat.as_slice::<u8>().to_vec()
}

impl Numbers {
    /// From what lies in memory.
    fn from_bytes(kind: usize, bytes: &[u8]) -> Self {
        let half = |x: &[u8]| u16::from_le_bytes(x.try_into().unwrap());
        match kind {
            0 => Numbers::F32(bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()),
            1 => Numbers::F16(bytes.chunks(2).map(|x| f16::from_bits(half(x))).collect()),
            _ => Numbers::Bf16(bytes.chunks(2).map(|x| bf16::from_bits(half(x))).collect()),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Numbers::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::F16(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::Bf16(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

#[test]
fn quantizing_and_back_gives_the_bits_of_mlx() {
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    let values = weights(7);
    let wide = Array::from_slice(&values, &[values.len() as i32 / 512, 512]);
    for kind in KINDS {
        let weight = wide.as_dtype(DTYPES[kind]).unwrap();
        let numbers = Numbers::from_bytes(kind, &bytes(&weight));
        for (bits, group_size) in BITS.into_iter().flat_map(|bits| GROUP_SIZES.map(|group_size| (bits, group_size))) {
            let (packed, scales, biases) = quantize(&weight, group_size, bits).unwrap();
            let back = dequantize(&packed, &scales, &biases, group_size, bits).unwrap();
            let [packed, scales, biases, back] = [packed, scales, biases, back].map(|array| bytes(&array));
            let packing = Packing { group_size, bits };
            let groups = values.len() / group_size as usize;
            for set in InstructionSet::available() {
                let mut found = vec![0; values.len() / 8 * bits as usize];
                let (mut found_scales, mut found_biases) = (Numbers::zeros(kind, groups), Numbers::zeros(kind, groups));
                set.quantize(
                    numbers.floats(),
                    packing,
                    &mut found,
                    found_scales.floats_mut(),
                    found_biases.floats_mut(),
                );
                assert_eq!(found_scales.bytes(), scales, "scales: {set:?}, type {kind}, {packing:?}");
                assert_eq!(found_biases.bytes(), biases, "biases: {set:?}, type {kind}, {packing:?}");
                assert_eq!(found, packed, "packed: {set:?}, type {kind}, {packing:?}");

                let mut found_back = Numbers::zeros(kind, values.len());
                set.dequantize(&packed, found_scales.floats(), found_biases.floats(), packing, found_back.floats_mut());
                let found_back = found_back.bytes();
                let wrong = found_back.iter().zip(&back).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "back: {set:?}, type {kind}, {packing:?}");
            }
        }
    }
}

#[test]
fn casting_gives_the_bits_of_mlx() {
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    // All numbers of 16 bits, and as many of 32 that have them as their upper half, near ties to even.
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let lower = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    let words = (0..=u16::MAX).flat_map(|x| lower.map(|lower| u32::from(x) << 16 | lower)).flat_map(u32::to_le_bytes);
    let words: Vec<u8> = words.collect();
    for (from, to) in KINDS.flat_map(|from| KINDS.map(move |to| (from, to))).filter(|(from, to)| from != to) {
        let data = if from == 0 { &words } else { &halves };
        let width = if from == 0 { 4 } else { 2 };
        let array = Array::from_slice(data, &[data.len() as i32]).view_dtype(DTYPES[from]).unwrap();
        let expected = bytes(&array.as_dtype(DTYPES[to]).unwrap());
        for set in InstructionSet::available() {
            let mut found = Numbers::zeros(to, data.len() / width);
            set.cast(Numbers::from_bytes(from, data).floats(), found.floats_mut());
            let wrong = found.bytes().iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{set:?}, from type {from} to {to}");
        }
    }
}
