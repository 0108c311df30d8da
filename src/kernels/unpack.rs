//! Weights to f32: single rows, in plain Rust for any width; and panels, whose rows lie side by side.

use super::simd::Simd;
use super::types::{Affine, Element, FloatsMut, Matrix, Values, same_type, typed};

/// [`row`] of an affine weight with `columns` columns.
fn affine_row(w: &Affine, columns: usize, row: usize, first: usize, values: &mut [f32]) {
    let bits = w.bits as usize;
    let words = &w.packed[row * columns / 32 * bits..(row + 1) * columns / 32 * bits];
    let groups = columns / w.group_size;
    typed!(Floats, w.scales, scales => {
        let biases = same_type(scales, w.biases);
        for (i, values) in values.chunks_mut(32).enumerate() {
            let k = first + i * 32;
            let group = row * groups + k / w.group_size;
            let (scale, bias) = (scales[group].to_f32(), biases[group].to_f32());
            // 32 values fill `bits` whole words.
            let words = &words[k / 32 * bits..(k / 32 + 1) * bits];
            for (j, value) in values.iter_mut().enumerate() {
                let (word, shift) = (j * bits / 32, j * bits % 32);
                let next = if shift + bits > 32 { u64::from(words[word + 1]) << 32 } else { 0 };
                let q = ((next | u64::from(words[word])) >> shift) & ((1 << bits) - 1);
                *value = scale * q as i32 as f32 + bias;
            }
        }
    });
}

/// Rows `ids` of `w`, one after the other.
pub(super) fn rows(ids: &[u32], w: &Matrix, y: FloatsMut) {
    typed!(FloatsMut, y, y => {
        let mut values = vec![0.0; w.columns];
        for (&id, y) in ids.iter().zip(y.chunks_exact_mut(w.columns)) {
            row(w, id as usize, 0, &mut values);
            for (y, value) in y.iter_mut().zip(&values) {
                *y = Element::from_f32(*value);
            }
        }
    });
}

/// Row `row` of `w` from column `first` (a multiple of 32) on, as many as `values` holds.
pub(super) fn row(w: &Matrix, row: usize, first: usize, values: &mut [f32]) {
    match w.values {
        Values::Affine(affine) => affine_row(&affine, w.columns, row, first, values),
        Values::Dense(dense) => typed!(Floats, dense, dense => {
            for (value, x) in values.iter_mut().zip(&dense[row * w.columns + first..]) {
                *value = x.to_f32();
            }
        }),
    }
}

/// Columns `column..` (a multiple of 32) of rows `first..first + 2 · LANES`, to `panel` `[columns, 2 · LANES]`. Rows that the
/// weight has not repeat its last one.
#[inline(always)]
pub(super) fn panel<S: Simd>(s: S, w: &Matrix, first: usize, column: usize, panel: &mut [f32]) {
    let width = 2 * S::LANES;
    for half in 0..2 {
        let first = first + half * S::LANES;
        let panel = &mut panel[half * S::LANES..];
        match w.values {
            Values::Affine(affine @ Affine { bits: 2, .. }) => fields::<S, 2>(s, w, &affine, first, column, panel),
            Values::Affine(affine @ Affine { bits: 4, .. }) => fields::<S, 4>(s, w, &affine, first, column, panel),
            Values::Affine(affine @ Affine { bits: 8, .. }) => fields::<S, 8>(s, w, &affine, first, column, panel),
            _ => {
                let mut values = vec![0.0; panel.len().div_ceil(width)];
                for lane in 0..S::LANES {
                    row(w, (first + lane).min(w.rows - 1), column, &mut values);
                    for (to, value) in panel[lane..].iter_mut().step_by(width).zip(&values) {
                        *to = *value;
                    }
                }
            }
        }
    }
}

/// One vector of [`panel`] where values do not straddle words: the same word of all rows is gathered, and taken apart.
#[inline(always)]
fn fields<S: Simd, const BITS: u32>(s: S, w: &Matrix, affine: &Affine, first: usize, column: usize, panel: &mut [f32]) {
    let (per_word, width) = ((32 / BITS) as usize, 2 * S::LANES);
    let n = panel.len().div_ceil(width);
    let words = Offsets::new(s, w.rows, first, w.columns / per_word);
    assert!(column + n <= w.columns && panel.len() >= (n - 1) * width + S::LANES);
    typed!(Floats, affine.scales, scales => {
        let biases = same_type(scales, affine.biases);
        let groups = w.columns / affine.group_size;
        let (mut scale, mut bias) = (s.splat(0.0), s.splat(0.0));
        for k in (0..n).step_by(per_word) {
            if k == 0 || (column + k).is_multiple_of(affine.group_size) {
                let group = (column + k) / affine.group_size;
                scale = lane_rows(s, scales, w.rows, first, groups, group);
                bias = lane_rows(s, biases, w.rows, first, groups, group);
            }
            // SAFETY: these columns are in the weight, and the panel has room for them.
            unsafe {
                let words = words.gather(s, affine.packed, (column + k) / per_word);
                for j in 0..per_word {
                    let value = s.fma(s.field::<BITS>(words, j as u32), scale, bias);
                    s.store(panel.as_mut_ptr().add((k + j) * width), value);
                }
            }
        }
    });
}

/// Where the rows `first..first + LANES` of a weight with `rows` rows begin; rows that it has not are its last one.
pub(super) struct Offsets<S: Simd> {
    offsets: S::U,
    words: usize,
    rows: usize,
}

impl<S: Simd> Offsets<S> {
    /// A row has `words` words.
    #[inline(always)]
    pub fn new(s: S, rows: usize, first: usize, words: usize) -> Self {
        assert!(rows * words < 1 << 31, "a weight of {rows} rows of {words} words");
        let mut offsets = [0; 16];
        for (lane, offset) in offsets.iter_mut().enumerate() {
            *offset = ((first + lane).min(rows - 1) * words) as u32;
        }
        // SAFETY: there are 16 lanes at most.
        Offsets { offsets: unsafe { s.load_words(offsets.as_ptr()) }, words, rows }
    }

    /// Word `i` of each row.
    #[inline(always)]
    pub fn gather(&self, s: S, packed: &[u32], i: usize) -> S::U {
        assert!(i < self.words && packed.len() >= self.rows * self.words);
        // SAFETY: every offset is that of a row of the weight, which has word `i`.
        unsafe { s.gather_words(packed.as_ptr().add(i), self.offsets) }
    }
}

/// Value `at` of rows `first..first + LANES`, each of `width` values; rows that there are not are the last one.
#[inline(always)]
pub(super) fn lane_rows<S: Simd, E: Element>(
    s: S,
    values: &[E],
    rows: usize,
    first: usize,
    width: usize,
    at: usize,
) -> S::F {
    let mut lanes = [0.0; 16];
    for (lane, value) in lanes.iter_mut().enumerate().take(S::LANES) {
        *value = values[(first + lane).min(rows - 1) * width + at].to_f32();
    }
    // SAFETY: there are 16 lanes at most.
    unsafe { s.load(lanes.as_ptr()) }
}
