//! Vectors of 256 bits: AVX2, and AVX-VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Op, Simd, bf16, f16};

/// AVX2 with FMA and F16C (x86-64-v3), and maybe with AVX-VNNI.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2With<const VNNI: bool>(());

pub(in super::super) type Avx2 = Avx2With<false>;
pub(in super::super) type AvxVnni = Avx2With<true>;

impl<const VNNI: bool> Avx2With<VNNI> {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has = has && is_x86_feature_detected!("f16c") && (!VNNI || is_x86_feature_detected!("avxvnni"));
        has.then_some(Avx2With(()))
    }
}

/// `sum` and the products of pairs, on AVX-VNNI. Not the intrinsic; see `dpwssd` of AVX-512.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn dpwssd_256(mut sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the instruction reads and writes these registers alone.
    unsafe {
        asm!("{{vex}} vpdpwssd {}, {}, {}", inout(ymm_reg) sum, in(ymm_reg) a, in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

// SAFETY, for every block below: an `Avx2With` exists only where the machine has avx2, fma and f16c, and avxvnni where
// it says so; pointers are the caller's promise.
impl<const VNNI: bool> Simd for Avx2With<VNNI> {
    const LANES: usize = 8;
    const WHOLE_NUMBERS: bool = true;
    const BYTES: u32 = 4;
    type F = __m256;
    type U = __m256i;

    fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
        unsafe fn compiled<S: Simd, O: Op>(s: S, op: O) -> O::Output {
            op.with(s)
        }
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avxvnni")]
        unsafe fn compiled_vnni<S: Simd, O: Op>(s: S, op: O) -> O::Output {
            op.with(s)
        }
        unsafe { if VNNI { compiled_vnni(self, op) } else { compiled(self, op) } }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())), 16)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_columns(self, rows: &[*const u32; 16]) -> [__m256i; 16] {
        let rows = |i: usize| unsafe { self.load_words(rows[i]) };
        let upper = self.transpose_in_fours([rows(0), rows(1), rows(2), rows(3)]);
        let lower = self.transpose_in_fours([rows(4), rows(5), rows(6), rows(7)]);
        let mut columns = [self.splat_word(0); 16];
        for c in 0..4 {
            [columns[c], columns[4 + c], ..] = self.transpose_fours([upper[c], lower[c], upper[c], lower[c]]);
        }
        columns
    }
    #[inline(always)]
    fn transpose_in_fours(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        unsafe {
            let low = [_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d)];
            let high = [_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d)];
            [
                _mm256_unpacklo_epi64(low[0], low[1]),
                _mm256_unpackhi_epi64(low[0], low[1]),
                _mm256_unpacklo_epi64(high[0], high[1]),
                _mm256_unpackhi_epi64(high[0], high[1]),
            ]
        }
    }
    #[inline(always)]
    fn transpose_fours(self, [a, b, ..]: [__m256i; 4]) -> [__m256i; 4] {
        unsafe {
            let (low, high) = (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
            [low, high, low, high]
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: __m256) {
        unsafe {
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            // A NaN must not round to infinity.
            let nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
            _mm_storeu_si128(to.cast(), packed)
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, x: __m256) {
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)) }
    }
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_far<T>(self, address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn keep(self, a: __m256, b: __m256, least: __m256) -> __m256 {
        unsafe { _mm256_and_ps(a, _mm256_cmp_ps(b, least, _CMP_GE_OQ)) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        unsafe {
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: __m256) -> f32 {
        unsafe {
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        }
    }
    #[inline(always)]
    fn exp2_whole(self, a: __m256) -> __m256 {
        unsafe {
            let biased = _mm256_add_ps(a, _mm256_set1_ps(8388608.0 + 127.0));
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23))
        }
    }
    #[inline(always)]
    fn field<const BITS: u32>(self, words: __m256i, index: u32) -> __m256 {
        unsafe {
            let low = _mm256_srlv_epi32(words, _mm256_set1_epi32((index * BITS) as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(low, _mm256_set1_epi32((1 << BITS) - 1)))
        }
    }
    #[inline(always)]
    fn splat_word(self, x: u32) -> __m256i {
        unsafe { _mm256_set1_epi32(x as i32) }
    }
    #[inline(always)]
    unsafe fn store_words(self, to: *mut u32, x: __m256i) {
        unsafe { _mm256_storeu_si256(to.cast(), x) }
    }
    #[inline(always)]
    fn pairs<const BITS: u32>(self, words: __m256i, index: u32) -> __m256i {
        unsafe {
            let low = _mm256_srl_epi32(words, _mm_cvtsi32_si128((index * BITS) as i32));
            // The second value to bit 16.
            let high = _mm256_slli_epi32(_mm256_srl_epi32(low, _mm_cvtsi32_si128(2 * BITS as i32)), 16);
            let both = _mm256_blend_epi16(low, high, 0b1010_1010);
            _mm256_and_si256(both, _mm256_set1_epi16((1 << BITS) - 1))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m256i, b: __m256i, sum: __m256i) -> __m256i {
        unsafe { if VNNI { dpwssd_256(sum, a, b) } else { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) } }
    }
    #[inline(always)]
    fn half_fields<const BITS: u32>(self, words: __m256i, index: u32) -> __m256i {
        unsafe {
            let fields = _mm256_srl_epi32(words, _mm_cvtsi32_si128((index * BITS) as i32));
            _mm256_and_si256(fields, _mm256_set1_epi16((1 << BITS) - 1))
        }
    }
    #[inline(always)]
    fn add_words(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_words(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn to_floats(self, x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn permute(self, table: __m256, lanes: __m256i) -> __m256 {
        unsafe { _mm256_permutevar8x32_ps(table, lanes) }
    }
    #[inline(always)]
    fn floats(self, words: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(words) }
    }
    #[inline(always)]
    fn bf16_of_words(self, words: __m256i, half: usize) -> __m256 {
        unsafe {
            let upper = if half == 0 { _mm256_slli_epi32(words, 16) } else { words };
            _mm256_castsi256_ps(_mm256_and_si256(upper, _mm256_set1_epi32(-65536)))
        }
    }
    #[inline(always)]
    fn f16_of_words(self, words: __m256i, half: usize) -> __m256 {
        unsafe {
            let upper = if half == 0 { _mm256_slli_epi32(words, 16) } else { words };
            let lower = _mm256_srli_epi32(upper, 16);
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1));
            _mm256_cvtph_ps(packed)
        }
    }
    /// Pairs add up to 7,680 at most in 16 bits.
    #[inline(always)]
    fn dot_bytes<const BITS: u32>(self, words: __m256i, upper: &[__m256i; 4], lower: &[__m256i; 4]) -> __m256i {
        unsafe {
            let mask = _mm256_set1_epi8(((1u32 << BITS) - 1) as i8);
            let (mut above, mut below) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            unrolled!(j < 8 / BITS as usize, {
                let fields = _mm256_srl_epi32(words, _mm_cvtsi32_si128((j as u32 * BITS) as i32));
                let fields = _mm256_and_si256(fields, mask);
                above = _mm256_add_epi16(above, _mm256_maddubs_epi16(fields, upper[j % 4]));
                below = _mm256_add_epi16(below, _mm256_maddubs_epi16(fields, lower[j % 4]));
            });
            let above = _mm256_madd_epi16(above, _mm256_set1_epi16(256));
            _mm256_add_epi32(above, _mm256_madd_epi16(below, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    fn sum_fours(self, rows: &[__m256i; 16]) -> [__m256i; 4] {
        unsafe {
            let mut fours = [_mm256_setzero_si256(); 2];
            for i in 0..2 {
                let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
                let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                fours[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
            }
            let halves = [
                _mm256_permute2x128_si256::<0x20>(fours[0], fours[1]),
                _mm256_permute2x128_si256::<0x31>(fours[0], fours[1]),
            ];
            [halves[0], halves[1], _mm256_setzero_si256(), _mm256_setzero_si256()]
        }
    }
}
