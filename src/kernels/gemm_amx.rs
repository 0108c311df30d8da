//! The product of bf16 activations with weights rounded to bf16 in AMX: `tdpbf16ps` multiplies 16 x 32 with 32 x 16 numbers
//! and adds to 16 x 16 sums in f32.
//!
//! Instructions on tiles are written in assembly, since Rust's are not stable yet. Tiles 0 to 3 hold the sums of 2 x 2
//! blocks, 4 and 5 tokens, 6 and 7 rows of the weight as pairs of columns.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use half::bf16;

use super::gemm::Product;
use super::pool;
use super::simd::{Avx512, Simd};
use super::types::{Affine, Floats, Matrix, Shared, Values, same_type, typed};
use super::unpack::{self, Rows, lane_rows};

const ROWS: usize = 32;
const TOKENS: usize = 32;
/// Columns that one instruction multiplies.
const STEP: usize = 32;
/// Columns of a panel; a block of tokens for as many fills two thirds of the first-level cache.
const COLUMNS: usize = 512;
/// Panels that a block of tokens goes through, from the second-level cache: tokens come from further away.
const PANELS: usize = 8;

/// A machine that has AMX for bf16, allowed by its system.
#[derive(Clone, Copy)]
pub(super) struct Amx(Avx512);

impl Amx {
    pub fn detect() -> Option<Self> {
        static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let s = Avx512::detect()?;
            // CPUID leaf 7: EDX bit 22 is AMX-BF16, bit 24 AMX-TILE.
            let has = is_x86_feature_detected!("avx512bf16")
                && __cpuid_count(7, 0).edx & (1 << 22 | 1 << 24) == 1 << 22 | 1 << 24;
            (has && allowed()).then_some(Amx(s))
        })
    }
}

/// Ask Linux to let this process use tiles, whose state is large: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(target_os = "linux")]
fn allowed() -> bool {
    let (arch_prctl, request, tile_data) = (158i64, 0x1023u64, 18u64);
    let result: i64;
    // SAFETY: the call reads and writes no memory of ours; it clobbers rcx and r11 as every system call does.
    unsafe {
        asm!("syscall", inlateout("rax") arch_prctl => result, in("rdi") request, in("rsi") tile_data,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> bool {
    false
}

/// Whether a weight can be multiplied so.
pub(super) fn takes(x: &Floats, w: &Matrix) -> bool {
    matches!(x, Floats::Bf16(_))
        && w.columns.is_multiple_of(STEP)
        && match w.values {
            // Rows are read as pairs.
            Values::Dense(Floats::Bf16(values)) => values.as_ptr().cast::<u32>().is_aligned(),
            Values::Dense(_) => false,
            Values::Affine(_) => true,
        }
}

impl Product for Amx {
    const ROWS: usize = ROWS;
    const PANELS: usize = PANELS;
    const TOKENS: usize = TOKENS;
    /// `[tokens / 16, columns / STEP, 16, STEP]`, tokens padded to TOKENS.
    type Packed = Vec<bf16>;
    type S = Avx512;

    fn simd(&self) -> Avx512 {
        self.0
    }

    fn pack(&self, x: Floats, columns: usize) -> Vec<bf16> {
        let Floats::Bf16(x) = x else { unreachable!("AMX multiplies bf16") };
        let tokens = x.len() / columns;
        let mut packed = vec![bf16::ZERO; tokens.next_multiple_of(TOKENS) * columns];
        let blocks = Shared(packed.as_mut_ptr());
        pool::for_each(tokens, |token| {
            for (step, x) in x[token * columns..(token + 1) * columns].chunks_exact(STEP).enumerate() {
                let at = ((token / 16 * (columns / STEP) + step) * 16 + token % 16) * STEP;
                // SAFETY: this task alone writes this token's places.
                unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), blocks.at(at), STEP) };
            }
        });
        packed
    }

    fn add(&self, packed: &Vec<bf16>, w: &Matrix, first: usize, sums: &mut [f32]) {
        let block_size = w.columns * 16;
        let padded = packed.len() / w.columns;
        let mut panels = vec![0u32; sums.len() / (padded * ROWS) * COLUMNS / 2 * ROWS];
        // SAFETY: an `Amx` exists only where the machine has tiles and AVX-512 with BF16.
        unsafe {
            configure();
            for column in (0..w.columns).step_by(COLUMNS) {
                let n = COLUMNS.min(w.columns - column);
                for (i, panel) in panels.chunks_exact_mut(COLUMNS / 2 * ROWS).enumerate() {
                    fill(self.0, w, first + i * ROWS, column, &mut panel[..n / 2 * ROWS]);
                }
                for block in 0..padded / TOKENS {
                    let x0 = &packed[2 * block * block_size + column * 16..][..n * 16];
                    let x1 = &packed[(2 * block + 1) * block_size + column * 16..][..n * 16];
                    for (i, panel) in panels.chunks_exact(COLUMNS / 2 * ROWS).enumerate() {
                        let sums = &mut sums[(i * padded + block * TOKENS) * ROWS..][..TOKENS * ROWS];
                        add_block(x0, x1, &panel[..n / 2 * ROWS], sums);
                    }
                }
            }
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}

/// Give all eight tiles 16 rows of 64 bytes.
unsafe fn configure() {
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes_per_row: [u16; 16],
        rows: [u8; 16],
    }
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
    config.bytes_per_row[..8].fill(64);
    config.rows[..8].fill(16);
    // SAFETY: the instruction reads these 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
}

/// Add the product of two blocks of 16 tokens and `panel` `[columns / 2, ROWS]` to `sums` `[TOKENS, ROWS]`.
///
/// # Safety
/// Tiles are configured.
unsafe fn add_block(x0: &[bf16], x1: &[bf16], panel: &[u32], sums: &mut [f32]) {
    let steps = panel.len() / (STEP / 2 * ROWS);
    assert!(steps > 0 && panel.len() == steps * STEP / 2 * ROWS && sums.len() == TOKENS * ROWS);
    assert!(x0.len() == steps * STEP * 16 && x1.len() == x0.len());
    // SAFETY: a step reads 1024 bytes of each block of tokens and 2048 of the panel; sums are two rows of two blocks of
    // 16 x 16, rows 128 bytes apart.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {wide}]",
            "tileloadd tmm1, [{sums} + {wide} + 64]",
            "tileloadd tmm2, [{below} + {wide}]",
            "tileloadd tmm3, [{below} + {wide} + 64]",
            "2:",
            "tileloadd tmm4, [{x0} + {narrow}]",
            "tileloadd tmm6, [{panel} + {wide}]",
            "tileloadd tmm7, [{panel} + {wide} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{x1} + {narrow}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {panel}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {wide}], tmm0",
            "tilestored [{sums} + {wide} + 64], tmm1",
            "tilestored [{below} + {wide}], tmm2",
            "tilestored [{below} + {wide} + 64], tmm3",
            sums = in(reg) sums.as_mut_ptr(),
            below = in(reg) sums.as_mut_ptr().add(16 * ROWS),
            x0 = inout(reg) x0.as_ptr() => _,
            x1 = inout(reg) x1.as_ptr() => _,
            panel = inout(reg) panel.as_ptr() => _,
            steps = inout(reg) steps => _,
            wide = in(reg) ROWS * 4,
            narrow = in(reg) STEP * 2,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Columns `column..` of rows `first..first + ROWS` as pairs of bf16, to `panel` `[columns / 2, ROWS]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn fill(s: Avx512, w: &Matrix, first: usize, column: usize, panel: &mut [u32]) {
    for half in 0..2 {
        let (first, panel) = (first + half * 16, &mut panel[half * 16..]);
        // SAFETY: the features are this function's own.
        unsafe {
            match w.values {
                Values::Dense(Floats::Bf16(values)) => {
                    // SAFETY: two bf16 are one u32, and [`takes`] saw to the alignment.
                    let words = std::slice::from_raw_parts(values.as_ptr().cast::<u32>(), values.len() / 2);
                    let rows = Rows::new(words, w.columns / 2, first);
                    let n = panel.len().div_ceil(ROWS);
                    for p in (0..n).step_by(16) {
                        let (pairs, count) = rows.words(s, column / 2 + p, n - p);
                        for (i, pair) in pairs[..count].iter().enumerate() {
                            _mm512_storeu_si512(panel[(p + i) * ROWS..][..16].as_mut_ptr().cast(), *pair);
                        }
                    }
                }
                Values::Affine(affine @ Affine { bits: 2, .. }) => fields::<2>(s, w, &affine, first, column, panel),
                Values::Affine(affine @ Affine { bits: 4, .. }) => fields::<4>(s, w, &affine, first, column, panel),
                Values::Affine(affine @ Affine { bits: 8, .. }) => fields::<8>(s, w, &affine, first, column, panel),
                _ => {
                    let mut values = vec![0.0; panel.len().div_ceil(ROWS) * 2];
                    for lane in 0..16 {
                        unpack::row(w, (first + lane).min(w.rows - 1), column, &mut values);
                        for (to, pair) in panel[lane..].iter_mut().step_by(ROWS).zip(values.chunks_exact(2)) {
                            let bits = |x| u32::from(bf16::from_f32(x).to_bits());
                            *to = bits(pair[0]) | bits(pair[1]) << 16;
                        }
                    }
                }
            }
        }
    }
}

/// [`fill`] for 16 rows of which values do not straddle words.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn fields<const BITS: u32>(
    s: Avx512,
    w: &Matrix,
    affine: &Affine,
    first: usize,
    column: usize,
    panel: &mut [u32],
) {
    let per_word = (32 / BITS) as usize;
    let n = panel.len().div_ceil(ROWS) * 2;
    let rows = Rows::new(affine.packed, w.columns / per_word, first);
    assert!(panel.len() >= (n / 2 - 1) * ROWS + 16 && n.is_multiple_of(per_word));
    // The conversion puts the second number of all pairs behind the first of all; this brings them together.
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    typed!(Floats, affine.scales, scales => {
        let biases = same_type(scales, affine.biases);
        let groups = w.columns / affine.group_size;
        let (mut scale, mut bias) = (s.splat(0.0), s.splat(0.0));
        // SAFETY: the panel has room for these columns.
        unsafe {
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            let mut k = 0;
            while k < n {
                let (words, count) = rows.words(s, (column + k) / per_word, (n - k) / per_word);
                for word in &words[..count] {
                    if k == 0 || (column + k).is_multiple_of(affine.group_size) {
                        let group = (column + k) / affine.group_size;
                        scale = lane_rows(s, scales, groups, first, group);
                        bias = lane_rows(s, biases, groups, first, group);
                    }
                    for j in (0..per_word).step_by(2) {
                        let low = s.fma(s.field::<BITS>(*word, j as u32), scale, bias);
                        let high = s.fma(s.field::<BITS>(*word, j as u32 + 1), scale, bias);
                        let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                        let pairs = _mm512_permutexvar_epi16(order, both);
                        _mm512_storeu_si512(panel.as_mut_ptr().add((k + j) / 2 * ROWS).cast(), pairs);
                    }
                    k += per_word;
                }
            }
        }
    });
}
