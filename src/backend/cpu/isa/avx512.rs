//! Vectors of 512 bits: AVX-512.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::avx2::Avx2;
use super::{Op, Simd, bf16, f16};

/// AVX-512 F, BW, DQ, VL and VNNI: Ice Lake and Zen 4 onwards.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512 {
    /// AMD's cores have two units of 512 bits that multiply and two that add besides, Intel's two for both.
    is_amd: bool,
}

impl Avx512 {
    pub fn detect() -> Option<Self> {
        // Once: a virtual machine traps the question for the vendor.
        static IS_AMD: LazyLock<bool> = LazyLock::new(is_amd);
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let has = has && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl");
        (has && is_x86_feature_detected!("avx512vnni") && Avx2::detect().is_some()).then(|| Avx512 { is_amd: *IS_AMD })
    }
}

fn is_amd() -> bool {
    let leaf = __cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

/// `sum` and the products of pairs. Not the intrinsic, which LLVM takes apart into a product and a sum where it thinks that the
/// sum is waited for.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dpwssd(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes these registers alone.
    unsafe {
        asm!("vpdpwssd {}, {}, {}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// [`dpwssd`] of two with the pair AT pairs behind `x` in all lanes.
/// # Safety
/// That pair can be read.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn dpwssd_two<const AT: usize>(a: [__m512i; 2], x: *const u32, sums: &mut [__m512i]) {
    let [first, second] = sums else { unreachable!("two of them") };
    let _all: __m512i; // a discarded output would have no type, and so no name
    // SAFETY: the instructions read the pair, and read and write these registers.
    unsafe {
        asm!("vpbroadcastd {all}, dword ptr [{x} + {at}]", "vpdpwssd {first}, {a}, {all}", "vpdpwssd {second}, {b}, {all}",
            at = const 4 * AT, x = in(reg) x, all = out(zmm_reg) _all, a = in(zmm_reg) a[0], b = in(zmm_reg) a[1],
            first = inout(zmm_reg) *first, second = inout(zmm_reg) *second,
            options(pure, readonly, nostack, preserves_flags));
    }
}

/// [`Simd::dot_each_winograd`] for two vectors of rows and pair AT of B.
/// # Safety
/// That pair and the one B pairs behind it can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn dpwssd_winograd<const AT: usize, const B: usize>(
    a: [__m512i; 2],
    b: [__m512i; 2],
    x: *const u32,
    sums: &mut [__m512i],
) {
    let [first, second] = sums else { unreachable!("two of them") };
    // Discarded outputs would have no type, and so no name.
    let (_at_x, _behind, _left, _right): (__m512i, __m512i, __m512i, __m512i);
    // SAFETY: the instructions read the pairs, and read and write these registers.
    unsafe {
        asm!(
            "vpbroadcastd {at_x}, dword ptr [{x} + {at}]",
            "vpbroadcastd {behind}, dword ptr [{x} + {then}]",
            "vpaddw {left}, {a0}, {behind}",
            "vpaddw {right}, {b0}, {at_x}",
            "vpdpwssd {first}, {left}, {right}",
            "vpaddw {behind}, {a1}, {behind}",
            "vpaddw {at_x}, {b1}, {at_x}",
            "vpdpwssd {second}, {behind}, {at_x}",
            at = const 4 * AT, then = const 4 * (B + AT), x = in(reg) x,
            a0 = in(zmm_reg) a[0], a1 = in(zmm_reg) a[1], b0 = in(zmm_reg) b[0], b1 = in(zmm_reg) b[1],
            at_x = out(zmm_reg) _at_x, behind = out(zmm_reg) _behind, left = out(zmm_reg) _left, right = out(zmm_reg) _right,
            first = inout(zmm_reg) *first, second = inout(zmm_reg) *second,
            options(pure, readonly, nostack, preserves_flags));
    }
}

// SAFETY, for every block below: an `Avx512` exists only where the machine has these instructions; pointers are the
// caller's promise.
impl Simd for Avx512 {
    const LANES: usize = 16;
    const WHOLE_NUMBERS: bool = true;
    const BYTES: u32 = 8;
    type F = __m512;
    type U = __m512i;

    fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
        unsafe fn compiled<O: Op>(s: Avx512, op: O) -> O::Output {
            op.with(s)
        }
        unsafe { compiled(self, op) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())), 16)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_columns(self, rows: &[*const u32; 16]) -> [__m512i; 16] {
        let rows = |i: usize| unsafe { self.load_words(rows[i]) };
        let first = self.transpose_in_fours([rows(0), rows(1), rows(2), rows(3)]);
        let second = self.transpose_in_fours([rows(4), rows(5), rows(6), rows(7)]);
        let third = self.transpose_in_fours([rows(8), rows(9), rows(10), rows(11)]);
        let fourth = self.transpose_in_fours([rows(12), rows(13), rows(14), rows(15)]);
        let mut columns = [self.splat_word(0); 16];
        for c in 0..4 {
            let fours = [first[c], second[c], third[c], fourth[c]];
            [columns[c], columns[4 + c], columns[8 + c], columns[12 + c]] = self.transpose_fours(fours);
        }
        columns
    }
    #[inline(always)]
    fn transpose_in_fours(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        unsafe {
            let low = [_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d)];
            let high = [_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d)];
            [
                _mm512_unpacklo_epi64(low[0], low[1]),
                _mm512_unpackhi_epi64(low[0], low[1]),
                _mm512_unpacklo_epi64(high[0], high[1]),
                _mm512_unpackhi_epi64(high[0], high[1]),
            ]
        }
    }
    #[inline(always)]
    fn transpose_fours(self, x: [__m512i; 4]) -> [__m512i; 4] {
        unsafe {
            // Quarters 0 and 2 of all, then 1 and 3.
            let even = [_mm512_shuffle_i32x4::<0x88>(x[0], x[1]), _mm512_shuffle_i32x4::<0x88>(x[2], x[3])];
            let odd = [_mm512_shuffle_i32x4::<0xdd>(x[0], x[1]), _mm512_shuffle_i32x4::<0xdd>(x[2], x[3])];
            [
                _mm512_shuffle_i32x4::<0x88>(even[0], even[1]),
                _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]),
                _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]),
                _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: __m512) {
        unsafe {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            // A NaN must not round to infinity.
            let nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
            let whole = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32(whole, 16)))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, x: __m512) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)) }
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
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn keep(self, a: __m512, b: __m512, least: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(b, least, _CMP_GE_OQ), a) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn exp2_whole(self, a: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), a) }
    }
    #[inline(always)]
    fn field<const BITS: u32>(self, words: __m512i, index: u32) -> __m512 {
        unsafe {
            let low = _mm512_srlv_epi32(words, _mm512_set1_epi32((index * BITS) as i32));
            if BITS <= 4 {
                // A permutation looks at the lowest four bits of each index only, so it masks and converts in one.
                let mask = ((1u32 << BITS) - 1) as f32;
                let table: [f32; 16] = std::array::from_fn(|i| (i as u32 & mask as u32) as f32);
                _mm512_permutexvar_ps(low, _mm512_loadu_ps(table.as_ptr()))
            } else {
                _mm512_cvtepi32_ps(_mm512_and_si512(low, _mm512_set1_epi32((1 << BITS) - 1)))
            }
        }
    }
    #[inline(always)]
    fn splat_word(self, x: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(x as i32) }
    }
    #[inline(always)]
    unsafe fn store_words(self, to: *mut u32, x: __m512i) {
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }
    #[inline(always)]
    fn pairs<const BITS: u32>(self, words: __m512i, index: u32) -> __m512i {
        unsafe {
            let low = _mm512_srlv_epi32(words, _mm512_set1_epi32((index * BITS) as i32));
            // The second value to bit 16.
            let high = _mm512_rorv_epi32(words, _mm512_set1_epi32(((index + 2) * BITS + 16) as i32));
            let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, high);
            _mm512_and_si512(both, _mm512_set1_epi16((1 << BITS) - 1))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
        unsafe { dpwssd(sum, a, b) }
    }
    /// Not from the above: LLVM loads many pairs early, and has too few registers for them.
    #[inline(always)]
    unsafe fn dot_each<const R: usize, const B: usize>(
        self,
        a: [__m512i; R],
        x: *const u32,
        sums: &mut [[__m512i; R]; B],
    ) {
        unrolled!(t < B, {
            unsafe {
                if R == 2 {
                    dpwssd_two::<t>([a[0], a[R - 1]], x, &mut sums[t % B]);
                } else {
                    for r in 0..R {
                        sums[t % B][r] = dpwssd(sums[t % B][r], a[r], _mm512_set1_epi32(x.add(t).read() as i32));
                    }
                }
            }
        });
    }
    #[inline(always)]
    fn adds_apart(self) -> bool {
        self.is_amd
    }
    #[inline(always)]
    unsafe fn dot_each_winograd<const R: usize, const B: usize>(
        self,
        a: [__m512i; R],
        b: [__m512i; R],
        x: *const u32,
        sums: &mut [[__m512i; R]; B],
    ) {
        const { assert!(R == 2) };
        unrolled!(t < B, {
            unsafe { dpwssd_winograd::<t, B>([a[0], a[R - 1]], [b[0], b[R - 1]], x, &mut sums[t % B]) };
        });
    }
    #[inline(always)]
    fn half_fields<const BITS: u32>(self, words: __m512i, index: u32) -> __m512i {
        unsafe {
            let fields = _mm512_srlv_epi32(words, _mm512_set1_epi32((index * BITS) as i32));
            _mm512_and_si512(fields, _mm512_set1_epi16((1 << BITS) - 1))
        }
    }
    #[inline(always)]
    fn add_words(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_words(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn to_floats(self, x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn permute(self, table: __m512, lanes: __m512i) -> __m512 {
        unsafe { _mm512_permutexvar_ps(lanes, table) }
    }
    #[inline(always)]
    fn floats(self, words: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(words) }
    }
    #[inline(always)]
    fn bf16_of_words(self, words: __m512i, half: usize) -> __m512 {
        unsafe {
            let upper = if half == 0 { _mm512_slli_epi32(words, 16) } else { words };
            _mm512_castsi512_ps(_mm512_and_si512(upper, _mm512_set1_epi32(-65536)))
        }
    }
    #[inline(always)]
    fn f16_of_words(self, words: __m512i, half: usize) -> __m512 {
        unsafe {
            let lower = if half == 0 { words } else { _mm512_srli_epi32(words, 16) };
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(lower))
        }
    }
    #[inline(always)]
    fn dot_bytes<const BITS: u32>(self, words: __m512i, upper: &[__m512i; 4], lower: &[__m512i; 4]) -> __m512i {
        unsafe {
            let mask = _mm512_set1_epi8(((1u32 << BITS) - 1) as i8);
            let mut dot = _mm512_setzero_si512();
            unrolled!(j < 8 / BITS as usize, {
                let fields =
                    _mm512_and_si512(_mm512_srlv_epi32(words, _mm512_set1_epi32((j as u32 * BITS) as i32)), mask);
                dot = _mm512_dpbusd_epi32(dot, fields, upper[j % 4]);
            });
            dot = _mm512_slli_epi32(dot, 8);
            unrolled!(j < 8 / BITS as usize, {
                let fields =
                    _mm512_and_si512(_mm512_srlv_epi32(words, _mm512_set1_epi32((j as u32 * BITS) as i32)), mask);
                dot = _mm512_dpbusd_epi32(dot, fields, lower[j % 4]);
            });
            dot
        }
    }
    #[inline(always)]
    fn sum_fours(self, rows: &[__m512i; 16]) -> [__m512i; 4] {
        unsafe {
            let mut fours = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
                let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
            }
            self.transpose_fours(fours)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::fixed::{own_products, write_pairs};

    /// Products of two rows, in all lanes the same, with one token, four columns after another.
    struct Winograd<'a> {
        rows: [&'a [i16]; 2],
        x: &'a [i16],
    }

    impl Op for Winograd<'_> {
        type Output = [u32; 2];

        #[inline(always)]
        fn with<S: Simd>(self, s: S) -> [u32; 2] {
            let pairs = |numbers: &[i16]| {
                let mut pairs = vec![0; numbers.len() / 2];
                // SAFETY: there is room for a pair of each two numbers.
                unsafe { write_pairs::<4>(numbers, pairs.as_mut_ptr(), 1) };
                pairs
            };
            let (rows, x) = (self.rows.map(pairs), pairs(self.x));
            let mut sums = [[s.splat_word(0); 2]];
            for i in (0..x.len()).step_by(2) {
                let [a, b] = [i, i + 1].map(|i| [s.splat_word(rows[0][i]), s.splat_word(rows[1][i])]);
                // SAFETY: two pairs can be read.
                unsafe { s.dot_each_winograd(a, b, x[i..i + 2].as_ptr(), &mut sums) };
            }
            sums[0].map(|sum| {
                let mut lanes = [0; 16];
                // SAFETY: no vector has more lanes.
                unsafe { s.store_words(lanes.as_mut_ptr(), sum) };
                assert!(lanes[..S::LANES].iter().all(|&lane| lane == lanes[0]));
                lanes[0]
            })
        }
    }

    #[test]
    fn winograds_products_are_exact_for_the_largest_numbers() {
        let Some(s) = Avx512::detect() else { return };
        let largest = 127 * 256;
        let numbers = |step: usize, of: &[i16]| -> Vec<i16> { (0..128).map(|i| of[i * step % of.len()]).collect() };
        for x in [[largest; 3], [-largest; 3], [largest, -largest, 1], [-largest, 0, 77]] {
            let x = numbers(1, &x);
            for weights in [[255, 255, 255], [0, 255, 128], [15, 0, 15]] {
                let rows = [numbers(1, &weights), numbers(2, &weights)];
                let found = s.run(Winograd { rows: [&rows[0], &rows[1]], x: &x });
                for (row, found) in rows.iter().zip(found) {
                    let expected: i64 = row.iter().zip(&x).map(|(&w, &x)| i64::from(w) * i64::from(x)).sum();
                    let found = found.wrapping_sub(own_products(row)).wrapping_sub(own_products(&x)) as i32;
                    assert_eq!(i64::from(found), expected, "weights {weights:?}, numbers {x:?}");
                }
            }
        }
    }
}
