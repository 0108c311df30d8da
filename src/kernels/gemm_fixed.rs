//! The product of fixed-point activations with quantized weights in AVX-512 VNNI: `vpdpwssd` multiplies two numbers of 16
//! bits for each lane of 32, twice what a multiplication of floats does. Scales and biases come in once for each group.

use std::arch::x86_64::*;

use super::fixed::Fixed;
use super::gemm::Product;
use super::pool;
use super::simd::{Avx512, Op, Simd};
use super::types::{Affine, Floats, Layer, Matrix, Shared, Values, load_all, same_type, typed};
use super::unpack::{Rows, lane_rows};

const ROWS: usize = 32;
/// Twelve sums in whole numbers, twelve in floats, and what is multiplied fill the 32 registers.
const TOKENS: usize = 6;
/// Columns of a panel; whole groups of any size.
const COLUMNS: usize = 512;

/// For weights of 2, 4 or 8 bits in groups of one size.
pub(super) struct InFixed {
    s: Avx512,
    group: usize,
}

impl InFixed {
    /// `None` where activations or weights are of another kind.
    pub fn for_layers(s: Avx512, x: &Floats, layers: &[Layer]) -> Option<Self> {
        let group_of = |layer: &Layer| match layer.weight.values {
            Values::Affine(Affine { bits: 2 | 4 | 8, group_size, .. }) => Some(group_size),
            _ => None,
        };
        let group = group_of(&layers[0]).filter(|_| x.bits() == 16)?;
        layers.iter().all(|layer| group_of(layer) == Some(group)).then_some(InFixed { s, group })
    }
}

/// Tokens as pairs of whole numbers, in tiles of [`TOKENS`].
pub(super) struct Packed {
    /// `[tiles, columns / 2, TOKENS]`.
    pairs: Vec<i32>,
    /// `[tiles, groups, TOKENS]`, as are the sums.
    scales: Vec<f32>,
    sums: Vec<f32>,
    group: usize,
}

impl Product for InFixed {
    const ROWS: usize = ROWS;
    const TOKENS: usize = TOKENS;
    type Packed = Packed;
    type S = Avx512;

    fn simd(&self) -> Avx512 {
        self.s
    }

    fn pack(&self, x: Floats, columns: usize) -> Packed {
        let (group, groups, tokens) = (self.group, columns / self.group, x.len() / columns);
        let tiles = tokens.div_ceil(TOKENS);
        let mut packed = Packed {
            pairs: vec![0; tiles * columns / 2 * TOKENS],
            scales: vec![0.0; tiles * groups * TOKENS],
            sums: vec![0.0; tiles * groups * TOKENS],
            group,
        };
        let pairs = Shared(packed.pairs.as_mut_ptr());
        let (scales, sums) = (Shared(packed.scales.as_mut_ptr()), Shared(packed.sums.as_mut_ptr()));
        pool::for_each(tokens, |token| {
            let (tile, t) = (token / TOKENS, token % TOKENS);
            let fixed = self.s.run(FixToken { x, token, columns, group });
            // SAFETY: this task alone writes this token's places.
            unsafe {
                for (i, pair) in fixed.numbers.chunks_exact(2).enumerate() {
                    let pair = i32::from(pair[0]) & 0xffff | i32::from(pair[1]) << 16;
                    pairs.at((tile * columns / 2 + i) * TOKENS + t).write(pair);
                }
                for (g, (scale, sum)) in fixed.scales.into_iter().zip(fixed.sums).enumerate() {
                    scales.at((tile * groups + g) * TOKENS + t).write(scale);
                    sums.at((tile * groups + g) * TOKENS + t).write(sum);
                }
            }
        });
        packed
    }

    fn add(&self, packed: &Packed, w: &Matrix, first: usize, sums: &mut [f32]) {
        let Values::Affine(affine) = w.values else { unreachable!("fixed-point products are for quantized weights") };
        // SAFETY: an `Avx512` exists only where the machine has these instructions.
        unsafe {
            match affine.bits {
                2 => add::<2>(self.s, packed, w, &affine, first, sums),
                4 => add::<4>(self.s, packed, w, &affine, first, sums),
                _ => add::<8>(self.s, packed, w, &affine, first, sums),
            }
        }
    }
}

/// One token of `x` in fixed point.
struct FixToken<'a> {
    x: Floats<'a>,
    token: usize,
    columns: usize,
    group: usize,
}

impl Op for FixToken<'_> {
    type Output = Fixed;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> Fixed {
        let mut values = vec![0.0; self.columns];
        typed!(Floats, self.x, x => load_all(s, &x[self.token * self.columns..][..self.columns], &mut values));
        Fixed::new(&values, self.group)
    }
}

/// Rows of a weight side by side.
struct Panel {
    /// `[COLUMNS / 2, ROWS]`.
    pairs: Vec<i32>,
    /// `[groups of COLUMNS, ROWS]`, as are the biases.
    scales: Vec<f32>,
    biases: Vec<f32>,
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn add<const BITS: u32>(
    s: Avx512,
    packed: &Packed,
    w: &Matrix,
    affine: &Affine,
    first: usize,
    sums: &mut [f32],
) {
    let group = packed.group;
    let (per_word, groups) = ((32 / BITS) as usize, w.columns / group);
    let mut panel = Panel {
        pairs: vec![0; COLUMNS / 2 * ROWS],
        scales: vec![0.0; COLUMNS / group * ROWS],
        biases: vec![0.0; COLUMNS / group * ROWS],
    };
    for column in (0..w.columns).step_by(COLUMNS) {
        let n = COLUMNS.min(w.columns - column);
        for half in 0..2 {
            let row = first + half * 16;
            let rows = Rows::new(affine.packed, w.columns / per_word, row);
            let mut k = 0;
            while k < n {
                let (words, count) = rows.words(s, (column + k) / per_word, (n - k) / per_word);
                for word in &words[..count] {
                    for j in (0..per_word).step_by(2) {
                        let at = (k + j) / 2 * ROWS + half * 16;
                        // SAFETY: the panel has `COLUMNS / 2` rows of pairs.
                        unsafe {
                            let pair = pair::<BITS>(*word, j as u32);
                            _mm512_storeu_si512(panel.pairs.as_mut_ptr().add(at).cast(), pair);
                        }
                    }
                    k += per_word;
                }
            }
            typed!(Floats, affine.scales, scales => {
                let biases = same_type(scales, affine.biases);
                for g in 0..n / group {
                    let at = g * ROWS + half * 16;
                    let (scale, bias) = (
                        lane_rows(s, scales, groups, row, column / group + g),
                        lane_rows(s, biases, groups, row, column / group + g),
                    );
                    // SAFETY: the panel has `COLUMNS / group` rows of scales.
                    unsafe {
                        s.store(panel.scales.as_mut_ptr().add(at), scale);
                        s.store(panel.biases.as_mut_ptr().add(at), bias);
                    }
                }
            });
        }
        for (tile, sums) in sums.chunks_exact_mut(TOKENS * ROWS).enumerate() {
            let first_group = tile * groups + column / group;
            let x = Tile {
                pairs: &packed.pairs[(tile * w.columns + column) / 2 * TOKENS..][..n / 2 * TOKENS],
                scales: &packed.scales[first_group * TOKENS..][..n / group * TOKENS],
                sums: &packed.sums[first_group * TOKENS..][..n / group * TOKENS],
            };
            // SAFETY: the features are this function's own.
            unsafe { add_tile(&x, &panel, group, sums) };
        }
    }
}

/// Values `j` and `j + 1` of each word, as numbers of 16 bits.
#[target_feature(enable = "avx512f,avx512bw")]
fn pair<const BITS: u32>(words: __m512i, j: u32) -> __m512i {
    let low = _mm512_srlv_epi32(words, _mm512_set1_epi32((j * BITS) as i32));
    // The second value to bit 16.
    let high = _mm512_rorv_epi32(words, _mm512_set1_epi32(((j + 1) * BITS + 16) as i32));
    let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, high);
    _mm512_and_si512(both, _mm512_set1_epi16((1 << BITS) - 1))
}

/// The part of a tile's tokens that a panel covers.
struct Tile<'a> {
    pairs: &'a [i32],
    scales: &'a [f32],
    sums: &'a [f32],
}

/// Add the product of `x` and `panel` to `sums` `[TOKENS, ROWS]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn add_tile(x: &Tile, panel: &Panel, group: usize, sums: &mut [f32]) {
    let groups = x.scales.len() / TOKENS;
    assert!(x.pairs.len() == groups * group / 2 * TOKENS && x.sums.len() == x.scales.len());
    assert!(panel.pairs.len() >= groups * group / 2 * ROWS && panel.scales.len() >= groups * ROWS);
    assert!(panel.biases.len() >= groups * ROWS && sums.len() == TOKENS * ROWS);
    // SAFETY: the lengths were checked.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; TOKENS];
        for t in 0..TOKENS {
            for half in 0..2 {
                acc[t][half] = _mm512_loadu_ps(sums.as_ptr().add(t * ROWS + half * 16));
            }
        }
        for g in 0..groups {
            let mut dots = [[_mm512_setzero_si512(); 2]; TOKENS];
            for p in g * group / 2..(g + 1) * group / 2 {
                let w = panel.pairs.as_ptr().add(p * ROWS);
                let (w0, w1) = (_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(16).cast()));
                for t in 0..TOKENS {
                    let x = _mm512_set1_epi32(*x.pairs.get_unchecked(p * TOKENS + t));
                    dots[t][0] = _mm512_dpwssd_epi32(dots[t][0], w0, x);
                    dots[t][1] = _mm512_dpwssd_epi32(dots[t][1], w1, x);
                }
            }
            for half in 0..2 {
                let scale = _mm512_loadu_ps(panel.scales.as_ptr().add(g * ROWS + half * 16));
                let bias = _mm512_loadu_ps(panel.biases.as_ptr().add(g * ROWS + half * 16));
                for t in 0..TOKENS {
                    let x_scale = _mm512_set1_ps(*x.scales.get_unchecked(g * TOKENS + t));
                    let x_sum = _mm512_set1_ps(*x.sums.get_unchecked(g * TOKENS + t));
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[t][half]), x_scale);
                    acc[t][half] = _mm512_fmadd_ps(bias, x_sum, _mm512_fmadd_ps(dot, scale, acc[t][half]));
                }
            }
        }
        for t in 0..TOKENS {
            for half in 0..2 {
                _mm512_storeu_ps(sums.as_mut_ptr().add(t * ROWS + half * 16), acc[t][half]);
            }
        }
    }
}
