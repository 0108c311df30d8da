//! Vectors of f32 lanes on one instruction set, as a type: a kernel is written once over [`Simd`] and compiled for each.
//!
//! A value of such a type proves that the machine has the instructions, so calculating is safe; only reading and writing
//! through pointers is not. A kernel is an [`Op`]; [`Simd::run`] compiles it with the instructions enabled.

use std::array::from_fn;

use half::{bf16, f16};

/// A loop of at most eight rounds whose index is a constant in each, as shifts want it.
macro_rules! unrolled {
    ($j:ident < $n:expr, $body:block) => {
        unrolled!(@ $j, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $j:ident, $n:expr, $body:block, $($value:literal)*) => {
        $({
            #[allow(non_upper_case_globals)]
            const $j: usize = $value;
            if $j < $n $body
        })*
    };
}

pub(in crate::backend::cpu) use unrolled;

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(in crate::backend::cpu) use avx2::{Avx2, AvxVnni};
#[cfg(target_arch = "x86_64")]
pub(in crate::backend::cpu) use avx512::Avx512;

/// Something to compute with the vectors of any instruction set. `with` must be `#[inline(always)]`, as must all that it
/// calls in turn, or the calls are not compiled for the instruction set.
pub(in crate::backend::cpu) trait Op {
    type Output;
    fn with<S: Simd>(self, s: S) -> Self::Output;
}

/// Vectors of [`Simd::LANES`] lanes. Pointers are to as many values, of any alignment.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // some is for products of whole numbers
pub(in crate::backend::cpu) trait Simd: Copy + Send + Sync + 'static {
    const LANES: usize;
    /// Whether products of whole numbers are there, and pay.
    const WHOLE_NUMBERS: bool;
    /// The most bits of a weight that [`Simd::dot_bytes`] multiplies; 0 where it is not there.
    const BYTES: u32 = 0;
    /// Lanes of f32.
    type F: Copy;
    /// Lanes of u32.
    type U: Copy;

    /// Run `op`, compiled for these instructions.
    fn run<O: Op>(self, op: O) -> O::Output;

    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `from` can be read for all lanes; so for all that read.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// # Safety
    /// `from` can be read for all lanes.
    unsafe fn load_bf16(self, from: *const bf16) -> Self::F;
    /// # Safety
    /// `from` can be read for all lanes.
    unsafe fn load_f16(self, from: *const f16) -> Self::F;
    /// # Safety
    /// `from` can be read for all lanes.
    unsafe fn load_words(self, from: *const u32) -> Self::U;
    /// Words of four rows, transposed by fours: lanes `4h..4h + 4` of vector c have word `4h + c` of each row.
    fn transpose_in_fours(self, rows: [Self::U; 4]) -> [Self::U; 4];
    /// Fours of lanes, transposed: lanes `4i..4i + 4` of vector h are lanes `4h..4h + 4` of vector i; LANES / 4 vectors.
    fn transpose_fours(self, fours: [Self::U; 4]) -> [Self::U; 4];
    /// LANES words of each of LANES rows (the first of the sixteen), transposed: vector i, of the first LANES, has word i of
    /// each row.
    /// # Safety
    /// Each row can be read for all lanes.
    unsafe fn load_columns(self, rows: &[*const u32; 16]) -> [Self::U; 16];
    /// # Safety
    /// `to` can be written for all lanes; so for all that write.
    unsafe fn store(self, to: *mut f32, x: Self::F);
    /// Round to nearest, ties to even.
    /// # Safety
    /// `to` can be written for all lanes.
    unsafe fn store_bf16(self, to: *mut bf16, x: Self::F);
    /// Round to nearest, ties to even.
    /// # Safety
    /// `to` can be written for all lanes.
    unsafe fn store_f16(self, to: *mut f16, x: Self::F);

    /// Begin to bring the cache line of this address near, if it is memory at all.
    fn prefetch<T>(self, address: *const T);
    /// The same to the second-level cache. Lines from memory that are on their way to the first level keep others waiting that
    /// come from the second.
    fn prefetch_far<T>(self, address: *const T);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of each; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `b` is at least `least`, else 0.
    fn keep(self, a: Self::F, b: Self::F, least: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the machine can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// All lanes added up, in a fixed order.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane that is a number.
    fn max_lane(self, a: Self::F) -> f32;
    /// 2 to the power of whole numbers from -126 to 127.
    fn exp2_whole(self, a: Self::F) -> Self::F;
    /// Value `index` of `bits` bits (2, 4 or 8) of each word, counted from the lowest.
    fn field<const BITS: u32>(self, words: Self::U, index: u32) -> Self::F;
    /// All lanes the same.
    fn splat_word(self, x: u32) -> Self::U;
    /// # Safety
    /// `to` can be written for all lanes.
    unsafe fn store_words(self, to: *mut u32, x: Self::U);
    /// Values `index` and `index + 2` of `BITS` bits (2, 4 or 8) of each word, as two numbers of 16 bits.
    fn pairs<const BITS: u32>(self, words: Self::U, index: u32) -> Self::U;
    /// The sum of the products of the two signed numbers of 16 bits in each lane, added to `sum`.
    fn dot_pairs(self, a: Self::U, b: Self::U, sum: Self::U) -> Self::U;
    /// [`Simd::dot_pairs`] of each of `a` with the pairs at `x`, each of which is in all lanes, added to the sums of that pair; at
    /// most eight of them.
    /// # Safety
    /// `x` can be read for as many pairs.
    #[inline(always)]
    unsafe fn dot_each<const R: usize, const B: usize>(
        self,
        a: [Self::U; R],
        x: *const u32,
        sums: &mut [[Self::U; R]; B],
    ) {
        for t in 0..B {
            let x = self.splat_word(unsafe { x.add(t).read() });
            for r in 0..R {
                sums[t][r] = self.dot_pairs(a[r], x, sums[t][r]);
            }
        }
    }
    /// Whether additions have units that do not multiply, so that [`Simd::dot_each_winograd`] is there, and pays.
    #[inline(always)]
    fn adds_apart(self) -> bool {
        false
    }
    /// [`Simd::dot_each`] of `a` with B pairs at `x`, and of `b` with the B pairs behind those, in half the multiplications
    /// (S. Winograd, A New Algorithm for Inner Product, 1968): (a + x_b)(b + x_a) = a·x_a + b·x_b + a·b + x_a·x_b. The last two are
    /// left to subtract; sums wrap, so that what is left is exact. What is added must fit into 16 bits.
    /// # Safety
    /// `x` can be read for 2 · B pairs.
    #[inline(always)]
    unsafe fn dot_each_winograd<const R: usize, const B: usize>(
        self,
        _a: [Self::U; R],
        _b: [Self::U; R],
        _x: *const u32,
        _sums: &mut [[Self::U; R]; B],
    ) {
        unreachable!("asked for where adds_apart says so")
    }
    /// Value `index` of `BITS` bits (2, 4 or 8) of each half of each word, as two numbers of 16 bits.
    fn half_fields<const BITS: u32>(self, words: Self::U, index: u32) -> Self::U;
    /// Whole numbers, added; sums wrap, as do differences.
    fn add_words(self, a: Self::U, b: Self::U) -> Self::U;
    /// `a - b`.
    fn sub_words(self, a: Self::U, b: Self::U) -> Self::U;
    /// Signed whole numbers as floats.
    fn to_floats(self, x: Self::U) -> Self::F;
    /// Lane `i` is lane `lanes[i]` of `table`.
    fn permute(self, table: Self::F, lanes: Self::U) -> Self::F;
    /// The floats whose bits these are.
    fn floats(self, words: Self::U) -> Self::F;
    /// The lower (0) or upper (1) half of each word.
    fn bf16_of_words(self, words: Self::U, half: usize) -> Self::F;
    /// The lower (0) or upper (1) half of each word.
    fn f16_of_words(self, words: Self::U, half: usize) -> Self::F;
    /// The sum, in each lane, of the products of its values of `BITS` bits with signed numbers of 16 bits: `upper[j]` and
    /// `lower[j]` have, signed, the two bytes of those that meet value j of each byte.
    #[inline(always)]
    fn dot_bytes<const BITS: u32>(self, _words: Self::U, _upper: &[Self::U; 4], _lower: &[Self::U; 4]) -> Self::U {
        unreachable!("{WITHOUT_BYTES}")
    }
    /// Whole numbers of LANES rows, added up by fours: lane r of vector q, of the first LANES / 4, is the sum of lanes
    /// `4q..4q + 4` of row r.
    #[inline(always)]
    fn sum_fours(self, _rows: &[Self::U; 16]) -> [Self::U; 4] {
        unreachable!("{WITHOUT_BYTES}")
    }
}

const WITHOUT_BYTES: &str = "products of bytes are for sets that have them";

/// 1.5 · 2^23: adding it leaves no bits for a fraction, and the whole number in the lowest bits.
pub(in crate::backend::cpu) const ROUND: f32 = 12582912.0;

/// `e^x`, within 2 units in the last place; 1.2e-38, the least that is not subnormal (on which machines are slow), below
/// -87.3, and infinite above 88.7.
#[inline(always)]
pub(in crate::backend::cpu) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.max(s.splat(-87.3), s.min(s.splat(89.0), x));
    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    // ln 2 in two parts, the first with few bits, so that their product with n is exact.
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    // Minimax polynomial of (e^r - 1 - r) / r² on |r| ≤ ln 2 / 2.
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(s.mul(p, r), r, s.add(r, s.splat(1.0)));
    // Two factors, so that neither leaves the range of normal numbers where the product does.
    let half = s.sub(s.fma(n, s.splat(0.5), s.splat(ROUND)), s.splat(ROUND));
    s.mul(s.mul(p, s.exp2_whole(half)), s.exp2_whole(s.sub(n, half)))
}

/// Plain Rust on eight lanes, for every machine.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Portable;

#[inline(always)]
fn lanes<T: Copy, R>(a: [T; 8], f: impl Fn(T) -> R) -> [R; 8] {
    a.map(f)
}

#[inline(always)]
fn pairs(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    const LANES: usize = 8;
    const WHOLE_NUMBERS: bool = false;
    type F = [f32; 8];
    type U = [u32; 8];

    fn run<O: Op>(self, op: O) -> O::Output {
        op.with(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::F {
        lanes(unsafe { from.cast::<[u16; 8]>().read_unaligned() }, |x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::F {
        lanes(unsafe { from.cast::<[f16; 8]>().read_unaligned() }, f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> Self::U {
        unsafe { from.cast::<[u32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_columns(self, rows: &[*const u32; 16]) -> [Self::U; 16] {
        let mut columns = [[0; 8]; 16];
        for i in 0..8 {
            for lane in 0..8 {
                columns[i][lane] = unsafe { rows[lane].add(i).read() };
            }
        }
        columns
    }
    #[inline(always)]
    fn transpose_in_fours(self, rows: [Self::U; 4]) -> [Self::U; 4] {
        from_fn(|c| from_fn(|lane| rows[lane % 4][lane / 4 * 4 + c]))
    }
    #[inline(always)]
    fn transpose_fours(self, fours: [Self::U; 4]) -> [Self::U; 4] {
        from_fn(|h| from_fn(|lane| fours[lane / 4][h % 2 * 4 + lane % 4]))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::F) {
        unsafe { to.cast::<[f32; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: Self::F) {
        unsafe { to.cast::<[bf16; 8]>().write_unaligned(lanes(x, bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, x: Self::F) {
        unsafe { to.cast::<[f16; 8]>().write_unaligned(lanes(x, f16::from_f32)) }
    }
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
    #[inline(always)]
    fn prefetch_far<T>(self, _: *const T) {}
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn keep(self, a: Self::F, b: Self::F, least: Self::F) -> Self::F {
        std::array::from_fn(|i| if b[i] >= least[i] { a[i] } else { 0.0 })
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // `mul_add` is a library call where the target has no instruction for it.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        let [a, b, c, d]: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
        (a + c) + (b + d)
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn exp2_whole(self, a: Self::F) -> Self::F {
        // Adding 2^23 leaves the whole number in the lowest bits, without a conversion that must mind NaN.
        lanes(a, |a| f32::from_bits((a + (8388608.0 + 127.0)).to_bits() << 23))
    }
    #[inline(always)]
    fn field<const BITS: u32>(self, words: Self::U, index: u32) -> Self::F {
        lanes(words, |word| ((word >> (index * BITS)) & ((1 << BITS) - 1)) as i32 as f32)
    }
    #[inline(always)]
    fn splat_word(self, x: u32) -> Self::U {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn store_words(self, to: *mut u32, x: Self::U) {
        unsafe { to.cast::<[u32; 8]>().write_unaligned(x) }
    }
    fn pairs<const BITS: u32>(self, _: Self::U, _: u32) -> Self::U {
        unreachable!("floats are faster in plain Rust")
    }
    fn dot_pairs(self, _: Self::U, _: Self::U, _: Self::U) -> Self::U {
        unreachable!("floats are faster in plain Rust")
    }
    fn half_fields<const BITS: u32>(self, _: Self::U, _: u32) -> Self::U {
        unreachable!("floats are faster in plain Rust")
    }
    fn add_words(self, _: Self::U, _: Self::U) -> Self::U {
        unreachable!("floats are faster in plain Rust")
    }
    fn sub_words(self, _: Self::U, _: Self::U) -> Self::U {
        unreachable!("floats are faster in plain Rust")
    }
    fn to_floats(self, _: Self::U) -> Self::F {
        unreachable!("floats are faster in plain Rust")
    }
    #[inline(always)]
    fn permute(self, table: Self::F, lanes: Self::U) -> Self::F {
        lanes.map(|lane| table[lane as usize % 8])
    }
    #[inline(always)]
    fn floats(self, words: Self::U) -> Self::F {
        words.map(f32::from_bits)
    }
    #[inline(always)]
    fn bf16_of_words(self, words: Self::U, half: usize) -> Self::F {
        words.map(|word| f32::from_bits(word >> (16 * half) << 16))
    }
    #[inline(always)]
    fn f16_of_words(self, words: Self::U, half: usize) -> Self::F {
        words.map(|word| f16::from_bits((word >> (16 * half)) as u16).to_f32())
    }
}
