//! Affine quantization and back, and casts between types, with the bits that MLX's CPU backend gives.
//!
//! Reference: `mlx/backend/cpu/quantized.cpp` (`quantize`), `mlx/ops.cpp` (`dequantize`). Scales and codes are computed in f32;
//! what is stored of a scale or bias is rounded to the weight's type after the codes have been made with the exact one.
//! Dequantizing rounds to that type after the product and again after the sum.

use half::{bf16, f16};

use crate::backend::Packing;
use crate::backend::cpu::isa::{Op, ROUND, Simd};
use crate::backend::cpu::types::{Element, Floats, FloatsMut, Shared, load_all, same_type, store_all, typed};

/// The least scale.
const EPS: f32 = 1e-7;
/// The largest group.
const MOST: usize = 128;

/// Call `$f::<S, E, BITS>` with the packing's bits.
macro_rules! with_bits {
    ($bits:expr, $f:ident($($argument:expr),*)) => {
        match $bits {
            2 => $f::<_, _, 2>($($argument),*),
            3 => $f::<_, _, 3>($($argument),*),
            4 => $f::<_, _, 4>($($argument),*),
            5 => $f::<_, _, 5>($($argument),*),
            6 => $f::<_, _, 6>($($argument),*),
            8 => $f::<_, _, 8>($($argument),*),
            bits => panic!("{bits} bits"),
        }
    };
}

/// Whole groups of `values` to codes, one after another from the lowest bit of `packed` on, and a scale and bias each.
pub(super) struct Quantize<'a> {
    pub values: Floats<'a>,
    pub packing: Packing,
    pub packed: &'a mut [u8],
    pub scales: FloatsMut<'a>,
    pub biases: FloatsMut<'a>,
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Quantize { values, packing, packed, scales, biases } = self;
        let group = packing.group_size as usize;
        typed!(Floats, values, values => {
            let (scales, biases) = (same_type_mut(values, scales), same_type_mut(values, biases));
            with_bits!(packing.bits, quantize(s, values, group, packed, scales, biases))
        });
    }
}

#[inline(always)]
fn quantize<S: Simd, E: Stored, const BITS: usize>(
    s: S,
    values: &[E],
    group: usize,
    packed: &mut [u8],
    scales: &mut [E],
    biases: &mut [E],
) {
    assert!(group <= MOST && group.is_multiple_of(S::LANES));
    let most = ((1u32 << BITS) - 1) as f32;
    let zero = s.splat(0.0);
    let mut codes = [0f32; MOST];
    let groups = values.chunks_exact(group).zip(packed.chunks_exact_mut(group / 8 * BITS));
    for ((values, packed), (stored_scale, stored_bias)) in groups.zip(scales.iter_mut().zip(biases)) {
        let (mut low, mut high) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        // SAFETY: a group is whole vectors, of `values` and of `codes`.
        unsafe {
            for i in (0..group).step_by(S::LANES) {
                let x = E::load(s, values.as_ptr().add(i));
                (low, high) = (s.min(x, low), s.max(x, high)); // which pass over NaN
            }
            let (scale, bias) = affine(-s.max_lane(s.sub(zero, low)), s.max_lane(high), most);
            (*stored_scale, *stored_bias) = (E::round(scale), E::round(bias));
            let (scale, bias) = (s.splat(scale), s.splat(bias));
            for i in (0..group).step_by(S::LANES) {
                let x = s.div(s.sub(E::load(s, values.as_ptr().add(i)), bias), scale);
                // NaN becomes 0. Rounding leaves the code in the lowest bits.
                let x = s.min(s.max(x, zero), s.splat(most));
                s.store(codes.as_mut_ptr().add(i), s.add(x, s.splat(ROUND)));
            }
        }
        pack::<BITS>(&codes[..group], packed);
    }
}

/// Scale and bias of a group, step by step as MLX computes them, so that NaN and infinities too become what they do there.
#[inline(always)]
fn affine(low: f32, high: f32, most: f32) -> (f32, f32) {
    let scale = (high - low) / most;
    let scale = if scale < EPS { EPS } else { scale };
    // The end that is farther from 0 is met exactly.
    let (scale, edge) = if low.abs() > high.abs() { (scale, low) } else { (-scale, high) };
    let code = (edge / scale).round_ties_even();
    if code != 0.0 { (edge / code, edge) } else { (scale, 0.0) }
}

/// The lowest `BITS` bits of each number's bits, one after another.
#[inline(always)]
fn pack<const BITS: usize>(codes: &[f32], packed: &mut [u8]) {
    let mut bytes = [0u8; MOST];
    for (byte, code) in bytes.iter_mut().zip(codes) {
        *byte = code.to_bits() as u8;
    }
    for (codes, packed) in bytes.chunks_exact(8).zip(packed.chunks_exact_mut(BITS)) {
        let mut word = u64::from_le_bytes(codes.try_into().expect("eight of them"));
        // Neighbours close up: pairs, then fours, then all eight.
        if BITS < 8 {
            let low = |bits: usize, of: usize| u64::MAX / ((1 << of) - 1) * ((1 << bits) - 1);
            word = (word & low(BITS, 16)) | (word >> (8 - BITS) & low(BITS, 16) << BITS);
            word = (word & low(2 * BITS, 32)) | (word >> (16 - 2 * BITS) & low(2 * BITS, 32) << (2 * BITS));
            let (first, second) = (word & 0xffff_ffff, word >> 32);
            word = first | second << (4 * BITS);
        }
        packed.copy_from_slice(&word.to_le_bytes()[..BITS]);
    }
}

/// Codes back to numbers.
pub(super) struct Dequantize<'a> {
    pub packed: &'a [u8],
    pub scales: Floats<'a>,
    pub biases: Floats<'a>,
    pub packing: Packing,
    pub values: FloatsMut<'a>,
}

impl Op for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Dequantize { packed, scales, biases, packing, values } = self;
        let group = packing.group_size as usize;
        typed!(Floats, scales, scales => {
            let biases = same_type(scales, biases);
            let values = same_type_mut(scales, values);
            with_bits!(packing.bits, dequantize(s, packed, scales, biases, group, values))
        });
    }
}

#[inline(always)]
fn dequantize<S: Simd, E: Stored, const BITS: usize>(
    s: S,
    packed: &[u8],
    scales: &[E],
    biases: &[E],
    group: usize,
    values: &mut [E],
) {
    assert!(group <= MOST && group.is_multiple_of(S::LANES));
    let mut codes = [0f32; MOST];
    let groups = values.chunks_exact_mut(group).zip(packed.chunks_exact(group / 8 * BITS));
    for ((values, packed), (scale, bias)) in groups.zip(scales.iter().zip(biases)) {
        for (codes, packed) in codes.chunks_exact_mut(8).zip(packed.chunks_exact(BITS)) {
            let mut word = [0; 8];
            word[..BITS].copy_from_slice(packed);
            let word = u64::from_le_bytes(word);
            for (i, code) in codes.iter_mut().enumerate() {
                *code = (word >> (i * BITS) & ((1 << BITS) - 1)) as u32 as f32;
            }
        }
        let (scale, bias) = (scale.to_f32(), bias.to_f32());
        if scale.is_finite() && bias.is_finite() {
            let (scale, bias) = (s.splat(scale), s.splat(bias));
            for (codes, values) in codes[..group].chunks_exact(S::LANES).zip(values.chunks_exact_mut(S::LANES)) {
                // SAFETY: both are one vector.
                unsafe {
                    E::store(s, values.as_mut_ptr(), s.mul(s.load(codes.as_ptr()), scale));
                    let product = E::load(s, values.as_ptr());
                    E::store(s, values.as_mut_ptr(), s.add(product, bias));
                }
            }
        } else {
            for (code, value) in codes.iter().zip(values) {
                *value = E::round(E::round(code * scale).to_f32() + bias);
            }
        }
    }
}

/// Numbers of one type to as many of another.
pub(super) struct Cast<'a> {
    pub from: Floats<'a>,
    pub to: FloatsMut<'a>,
}

impl Op for Cast<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        const PART: usize = 1024;
        let Cast { from, to } = self;
        typed!(Floats, from, from => typed!(FloatsMut, to, to => {
            let mut wide = [0f32; PART];
            for (from, to) in from.chunks(PART).zip(to.chunks_mut(PART)) {
                let wide = &mut wide[..from.len()];
                load_all(s, from, wide);
                // SAFETY: `to` has as many.
                unsafe { store_all(s, wide, Shared(to.as_mut_ptr())) };
                if wide.iter().fold(false, |any, x| any | x.is_nan()) {
                    wide.iter().zip(to).filter(|(x, _)| x.is_nan()).for_each(|(x, to)| *to = Stored::round(*x));
                }
            }
        }));
    }
}

/// A type as MLX rounds to it: the nearest, ties to even, and one NaN.
trait Stored: Element {
    fn round(x: f32) -> Self;
    /// The slice inside.
    /// # Panics
    /// When it is of another type.
    fn slice_mut(floats: FloatsMut<'_>) -> &mut [Self];
}

macro_rules! stored {
    ($type:ty, $variant:ident, $round:expr) => {
        impl Stored for $type {
            #[inline(always)]
            fn round(x: f32) -> Self {
                $round(x)
            }
            fn slice_mut(floats: FloatsMut<'_>) -> &mut [Self] {
                match floats {
                    FloatsMut::$variant(slice) => slice,
                    other => panic!("{other:?}"),
                }
            }
        }
    };
}
stored!(f32, F32, std::convert::identity);
stored!(bf16, Bf16, |x: f32| if x.is_nan() { bf16::from_bits(0x7fc0) } else { bf16::from_f32(x) });
stored!(f16, F16, |x: f32| {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    if x.is_nan() { f16::from_bits(sign | 0x7d00) } else { f16::from_f32(x) }
});

/// The slice inside `floats`, which are of the type of the other slice.
fn same_type_mut<'a, E: Stored>(_: &[E], floats: FloatsMut<'a>) -> &'a mut [E] {
    E::slice_mut(floats)
}
