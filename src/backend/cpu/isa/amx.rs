//! Products of bf16 numbers in AMX, of activations with weights rounded to bf16 and within attention: `tdpbf16ps` multiplies
//! 16 x 32 with 32 x 16 numbers and adds to 16 x 16 sums in f32.
//!
//! Instructions on tiles are written in assembly, since Rust's are not stable yet. Only four of the eight tiles are in use:
//! two for sums, one for tokens, one for rows. With all eight, loads wait for products, so that where another thread shares
//! the core a product takes nearly twice as long. Rows of tiles begin at cache lines, since they load slowly across two.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use crate::backend::cpu::attention::{self, KEYS};
use crate::backend::cpu::gemm::{Microkernel, Panel};
use crate::backend::cpu::isa::{Avx512, Simd};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Affine, Floats, Matrix, Shared, Values, same_type, typed};
use crate::backend::cpu::unpack::{self, Rows, lane_rows};

/// Rows of a tile, and tokens of another.
const TILE: usize = 16;
const ROWS: usize = 2 * TILE;
const TOKENS: usize = 2 * TILE;
/// Columns that one instruction multiplies.
const STEP: usize = 32;
/// Columns of a panel. A block of tokens for as many fills a third of the first-level cache, through which panels pass.
const COLUMNS: usize = 256;
/// Panels that a block of tokens meets before the next block comes.
const PANELS: usize = 12;

/// A machine that has AMX for bf16, allowed by its system.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Amx(Avx512);

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
pub(in crate::backend::cpu) fn takes(x: &Floats, w: &Matrix) -> bool {
    matches!(x, Floats::Bf16(_))
        && w.columns.is_multiple_of(STEP)
        && match w.values {
            // Rows are read as pairs.
            Values::Dense(Floats::Bf16(values)) => values.as_ptr().cast::<u32>().is_aligned(),
            Values::Dense(_) => false,
            Values::Affine(_) => true,
        }
}

/// Tokens in the order in which tiles are loaded.
pub(in crate::backend::cpu) struct Packed {
    /// `[tokens / TILE, columns / STEP, TILE, STEP]`, tokens padded to TOKENS.
    values: Scratch<bf16>,
    columns: usize,
}

impl Microkernel for Amx {
    const ROWS: usize = ROWS;
    const PANELS: usize = PANELS;
    const TOKENS: usize = TOKENS;
    type Packed = Packed;
    type S = Avx512;

    fn simd(&self) -> Avx512 {
        self.0
    }

    fn pack(&self, x: Floats, columns: usize) -> Packed {
        let Floats::Bf16(x) = x else { unreachable!("AMX multiplies bf16") };
        let tokens = x.len() / columns;
        let mut values = Scratch::new(tokens.next_multiple_of(TOKENS) * columns);
        let blocks = Shared(values.as_mut_ptr());
        threads::for_each(tokens.div_ceil(TILE), |block| {
            for token in block * TILE..tokens.min((block + 1) * TILE) {
                for (step, x) in x[token * columns..(token + 1) * columns].chunks_exact(STEP).enumerate() {
                    let at = ((block * (columns / STEP) + step) * TILE + token % TILE) * STEP;
                    // SAFETY: this task alone writes this block.
                    unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), blocks.at(at), STEP) };
                }
            }
        });
        Packed { values, columns }
    }

    fn multiply(&self, packed: &Packed, tiles: Range<usize>, panels: &[Panel], _: Option<Panel>, sums: &mut [f32]) {
        let Packed { values, columns } = packed;
        let columns = *columns;
        let mut unpacked = Scratch::new(panels.len() * COLUMNS / 2 * ROWS);
        let tiled = Tiled::new(*self);
        // SAFETY: an `Amx` exists only where the machine has AVX-512 with BF16.
        unsafe {
            for column in (0..columns).step_by(COLUMNS) {
                let n = COLUMNS.min(columns - column);
                let size = n / 2 * ROWS;
                for (i, (panel, unpacked)) in panels.iter().zip(unpacked.chunks_exact_mut(size)).enumerate() {
                    // Too short a piece of each row for the machine to see it coming.
                    if let Some(next) = panels.get(i + 1) {
                        next.lines(0..ROWS, column, n).for_each(|line| self.0.prefetch(line));
                    }
                    fill(self.0, panel.weight, panel.first, column, unpacked);
                }
                for tile in tiles.clone() {
                    let at = (2 * tile * columns + column) * TILE;
                    let x = Tiles { first: values[at..].as_ptr().cast(), row: STEP * 2, next: STEP * 2 * TILE };
                    assert!(at + (columns + n) * TILE <= values.len());
                    for (i, panel) in unpacked.chunks_exact(size).take(panels.len()).enumerate() {
                        let at = (i * tiles.len() + tile - tiles.start) * TOKENS * ROWS;
                        let sums = &mut sums[at..at + TOKENS * ROWS];
                        for half in 0..2 {
                            let rows = Tiles {
                                first: panel[half * size / 2..].as_ptr().cast(),
                                row: TILE * 4,
                                next: TILE * 4 * TILE,
                            };
                            let c = Tiles {
                                first: sums[half * TILE..].as_mut_ptr().cast(),
                                row: ROWS * 4,
                                next: ROWS * 4 * TILE,
                            };
                            tiled.add(x, columns * TILE * 2, rows, n / STEP, column == 0, c);
                        }
                    }
                }
            }
        }
    }
}

/// This thread's tiles, four of 16 rows of 64 bytes, as long as it is there: one at a time.
pub(in crate::backend::cpu) struct Tiled(PhantomData<*const ()>);

impl Tiled {
    fn new(_: Amx) -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes_per_row: [u16; 16],
            rows: [u8; 16],
        }
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        config.bytes_per_row[..4].fill(64);
        config.rows[..4].fill(TILE as u8);
        // SAFETY: an `Amx` exists only where the machine has tiles; the instruction reads these 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
        Tiled(PhantomData)
    }

    /// Add the product of two tiles' rows of `a`, `below` bytes apart, and one tile's columns of `b`, `steps` tiles along, to
    /// two tiles of sums `c`, which count as zeros when it is the first.
    ///
    /// # Safety
    /// All this is there, in whole tiles of 16 rows of 64 bytes.
    unsafe fn add(
        &self,
        a: Tiles<*const u8>,
        below: usize,
        b: Tiles<*const u8>,
        steps: usize,
        is_first: bool,
        c: Tiles<*mut u8>,
    ) {
        // SAFETY: as the caller says.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "test {is_first}, {is_first}",
                "jnz 2f",
                "tileloadd tmm0, [{c0} + {c_row}]",
                "tileloadd tmm1, [{c1} + {c_row}]",
                "2:",
                "tileloadd tmm3, [{b} + {b_row}]",
                "tileloadd tmm2, [{a0} + {a_row}]",
                "tdpbf16ps tmm0, tmm2, tmm3",
                "tileloadd tmm2, [{a1} + {a_row}]",
                "tdpbf16ps tmm1, tmm2, tmm3",
                "add {a0}, {a_next}",
                "add {a1}, {a_next}",
                "add {b}, {b_next}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c0} + {c_row}], tmm0",
                "tilestored [{c1} + {c_row}], tmm1",
                a0 = inout(reg) a.first => _,
                a1 = inout(reg) a.first.wrapping_add(below) => _,
                a_row = in(reg) a.row,
                a_next = in(reg) a.next,
                b = inout(reg) b.first => _,
                b_row = in(reg) b.row,
                b_next = in(reg) b.next,
                c0 = in(reg) c.first,
                c1 = in(reg) c.first.wrapping_add(c.next),
                c_row = in(reg) c.row,
                steps = inout(reg) steps => _,
                is_first = in(reg) usize::from(is_first),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiled {
    fn drop(&mut self) {
        // SAFETY: the tiles were configured, and hold nothing that is needed.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A matrix in memory, in bytes from one row of a tile to the next and from one tile to the next.
#[derive(Clone, Copy)]
struct Tiles<T> {
    first: T,
    row: usize,
    next: usize,
}

/// Columns `column..` of rows `first..first + ROWS` as pairs of bf16, to `panel` `[2, columns / 2, TILE]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn fill(s: Avx512, w: &Matrix, first: usize, column: usize, panel: &mut [u32]) {
    let half = panel.len() / 2;
    for (i, panel) in panel.chunks_exact_mut(half).enumerate() {
        let first = first + i * TILE;
        // SAFETY: the features are this function's own.
        unsafe {
            match w.values {
                Values::Dense(Floats::Bf16(values)) => {
                    // SAFETY: two bf16 are one u32, and [`takes`] saw to the alignment.
                    let words = std::slice::from_raw_parts(values.as_ptr().cast::<u32>(), values.len() / 2);
                    let rows = Rows::new(words, w.columns / 2, first);
                    let n = panel.len() / TILE;
                    for p in (0..n).step_by(16) {
                        let count = TILE.min(n - p);
                        let pairs = rows.words(s, column / 2 + p, count);
                        for (pair, to) in pairs[..count].iter().zip(panel[p * TILE..].chunks_exact_mut(TILE)) {
                            s.store_words(to.as_mut_ptr(), *pair);
                        }
                    }
                }
                Values::Affine(affine @ Affine { bits: 2, .. }) => fields::<2>(s, w, &affine, first, column, panel),
                Values::Affine(affine @ Affine { bits: 4, .. }) => fields::<4>(s, w, &affine, first, column, panel),
                Values::Affine(affine @ Affine { bits: 8, .. }) => fields::<8>(s, w, &affine, first, column, panel),
                _ => {
                    let mut values = vec![0.0; panel.len() / TILE * 2];
                    for lane in 0..TILE {
                        unpack::row(w, (first + lane).min(w.rows - 1), column, &mut values);
                        for (to, pair) in panel[lane..].iter_mut().step_by(TILE).zip(values.chunks_exact(2)) {
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
    let n = panel.len() / TILE * 2;
    let rows = Rows::new(affine.packed, w.columns / per_word, first);
    assert!(n.is_multiple_of(per_word));
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
                let count = TILE.min((n - k) / per_word);
                let words = rows.words(s, (column + k) / per_word, count);
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
                        s.store_words(panel.as_mut_ptr().add((k + j) / 2 * TILE), pairs);
                    }
                    k += per_word;
                }
            }
        }
    });
}

/// Whether attention can be computed so.
pub(in crate::backend::cpu) fn attends(span: &attention::Span) -> bool {
    let heads = [span.queries, span.keys, span.values];
    heads.iter().all(|heads| matches!(heads.values, Floats::Bf16(_))) && span.queries.shape[2].is_multiple_of(STEP)
}

/// Numbers of `count` rows from `first` on, as words of two; a row of zeros for each of the others.
struct Pairs<'a> {
    rows: attention::Rows<'a>,
    values: &'a [bf16],
    zeros: Scratch<bf16>,
    count: usize,
}

impl<'a> Pairs<'a> {
    fn new(rows: &attention::Rows<'a>, count: usize) -> Self {
        let Floats::Bf16(values) = rows.values else { unreachable!("AMX multiplies bf16") };
        let rows = attention::Rows { ..*rows };
        Pairs { zeros: Scratch::zeros(rows.width), rows, values, count }
    }

    /// Row `i`.
    fn row(&self, i: usize) -> &[bf16] {
        let from = self.rows.first + i * self.rows.stride;
        if i < self.count { &self.values[from..from + self.rows.width] } else { &self.zeros }
    }
}

/// Matrices are rows of bf16, those on the right rows of pairs: numbers of two neighbouring rows side by side.
impl attention::TileProduct for Amx {
    const ROWS: usize = 2 * TILE;
    const WIDTH: usize = STEP;
    type Number = bf16;
    type S = Avx512;
    type Ready = Tiled;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    fn ready(self) -> Tiled {
        Tiled::new(self)
    }

    #[inline(always)]
    fn columns(self, keys: &attention::Rows, count: usize, width: usize, to: &mut [bf16]) {
        assert!(to.len() == width * KEYS && keys.width == width && width.is_multiple_of(STEP));
        let keys = Pairs::new(keys, count);
        for first in (0..KEYS).step_by(TILE) {
            for d in (0..width).step_by(STEP) {
                let mut starts = [std::ptr::null(); TILE];
                for (lane, start) in starts.iter_mut().enumerate() {
                    *start = keys.row(first + lane)[d..d + STEP].as_ptr().cast();
                }
                // SAFETY: rows go on for sixteen words, and `to` has KEYS pairs for each two of `width`.
                unsafe {
                    for (i, pairs) in self.0.load_columns(&starts).into_iter().enumerate() {
                        self.0.store_words(to.as_mut_ptr().cast::<u32>().add((d / 2 + i) * KEYS + first), pairs);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn rows(self, values: &attention::Rows, count: usize, width: usize, to: &mut [bf16]) {
        assert!(to.len() == width * KEYS && values.width == width && width.is_multiple_of(STEP));
        let values = Pairs::new(values, count);
        // The first halves of two vectors of 32 numbers by turns, and the second ones.
        let order: [[u16; 32]; 2] =
            std::array::from_fn(|half| std::array::from_fn(|i| (i / 2 + half * 16 + i % 2 * 32) as u16));
        for pair in 0..KEYS / 2 {
            let (upper, lower) = (values.row(2 * pair), values.row(2 * pair + 1));
            for d in (0..width).step_by(STEP) {
                // SAFETY: rows have 32 numbers from here on, and `to` twice as many.
                unsafe {
                    let upper = _mm512_loadu_si512(upper[d..d + STEP].as_ptr().cast());
                    let lower = _mm512_loadu_si512(lower[d..d + STEP].as_ptr().cast());
                    for (half, order) in order.iter().enumerate() {
                        let order = _mm512_loadu_si512(order.as_ptr().cast());
                        let pairs = _mm512_permutex2var_epi16(upper, order, lower);
                        let at = 2 * (pair * width + d) + half * STEP;
                        _mm512_storeu_si512(to.as_mut_ptr().add(at).cast(), pairs);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn multiply(self, tiled: &Tiled, a: &[bf16], b: &[bf16], columns: usize, _: usize, is_first: bool, c: &mut [f32]) {
        let depth = b.len() / columns;
        assert!(depth.is_multiple_of(STEP) && columns.is_multiple_of(TILE) && b.len() == depth * columns);
        assert!(a.len() == 2 * TILE * depth && c.len() == 2 * TILE * columns && depth > 0);
        let a = Tiles { first: a.as_ptr().cast(), row: depth * 2, next: STEP * 2 };
        // SAFETY: the lengths were checked.
        unsafe {
            for column in (0..columns).step_by(TILE) {
                let first = b[2 * column..].as_ptr().cast();
                let b = Tiles { first, row: columns * 4, next: columns * 4 * TILE };
                let first = c[column..].as_mut_ptr().cast();
                tiled.add(
                    a,
                    depth * 2 * TILE,
                    b,
                    depth / STEP,
                    is_first,
                    Tiles { first, row: columns * 4, next: columns * 4 * TILE },
                );
            }
        }
    }
}
