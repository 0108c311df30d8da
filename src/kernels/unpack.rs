//! Weights to f32: single rows, in plain Rust for any width; and panels, whose rows lie side by side.

use super::simd::Simd;
use super::types::{Affine, Element, Floats, FloatsMut, Matrix, Values, same_type, typed};

/// Row `row` of a weight with `columns` columns, from column `first` (a multiple of 32) on, as many as `values` holds.
pub(super) fn affine_row(w: &Affine, columns: usize, row: usize, first: usize, values: &mut [f32]) {
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
            match w.values {
                Values::Affine(affine) => affine_row(&affine, w.columns, id as usize, 0, &mut values),
                Values::Dense(dense) => dense_row(dense, id as usize * w.columns, &mut values),
            }
            for (y, value) in y.iter_mut().zip(&values) {
                *y = Element::from_f32(*value);
            }
        }
    });
}

/// The numbers from `first` on, as many as `values` holds.
fn dense_row(dense: Floats, first: usize, values: &mut [f32]) {
    typed!(Floats, dense, dense => {
        for (value, x) in values.iter_mut().zip(&dense[first..]) {
            *value = x.to_f32();
        }
    });
}

/// Columns `column..` (a multiple of 32) of rows `first..first + 2 · LANES`, to `panel` `[columns, 2 · LANES]`. Rows that the
/// weight has not repeat its last one.
#[inline(always)]
pub(super) fn panel<S: Simd>(s: S, w: &Matrix, first: usize, column: usize, panel: &mut [f32]) {
    let width = 2 * S::LANES;
    match w.values {
        Values::Affine(affine @ Affine { bits: 2 | 4 | 8, .. }) if first + width <= w.rows => match affine.bits {
            2 => fields::<S, 2>(s, &affine, w.columns, first, column, panel),
            4 => fields::<S, 4>(s, &affine, w.columns, first, column, panel),
            _ => fields::<S, 8>(s, &affine, w.columns, first, column, panel),
        },
        _ => {
            let mut values = vec![0.0; panel.len() / width];
            for lane in 0..width {
                let row = (first + lane).min(w.rows - 1);
                match w.values {
                    Values::Affine(affine) => affine_row(&affine, w.columns, row, column, &mut values),
                    Values::Dense(dense) => dense_row(dense, row * w.columns + column, &mut values),
                }
                for (to, value) in panel[lane..].iter_mut().step_by(width).zip(&values) {
                    *to = *value;
                }
            }
        }
    }
}

/// [`panel`] where values do not straddle words: the same word of all rows is gathered, and taken apart.
#[inline(always)]
fn fields<S: Simd, const BITS: u32>(
    s: S,
    w: &Affine,
    columns: usize,
    first: usize,
    column: usize,
    panel: &mut [f32],
) {
    let (per_word, width) = ((32 / BITS) as usize, 2 * S::LANES);
    let (words, groups) = (columns / per_word, columns / w.group_size);
    let n = panel.len() / width;
    assert!(column + n <= columns && w.packed.len() >= (first + width) * words);
    typed!(Floats, w.scales, scales => {
        let biases = same_type(scales, w.biases);
        for half in 0..2 {
            let row = first + half * S::LANES;
            let (mut scale, mut bias) = (s.splat(0.0), s.splat(0.0));
            for k in (0..n).step_by(per_word) {
                if k == 0 || (column + k) % w.group_size == 0 {
                    let group = row * groups + (column + k) / w.group_size;
                    scale = column_of(s, &scales[group..], groups);
                    bias = column_of(s, &biases[group..], groups);
                }
                // SAFETY: rows `row..row + LANES` and these columns are in the weight, and the panel has room for them.
                unsafe {
                    let words = s.gather_words(w.packed.as_ptr().add(row * words + (column + k) / per_word), words);
                    for j in 0..per_word {
                        let value = s.fma(s.field::<BITS>(words, j as u32), scale, bias);
                        s.store(panel.as_mut_ptr().add((k + j) * width + half * S::LANES), value);
                    }
                }
            }
        }
    });
}

/// Every `stride`th of `values`, from the first on, one for each lane.
#[inline(always)]
pub(super) fn column_of<S: Simd, E: Element>(s: S, values: &[E], stride: usize) -> S::F {
    let mut lanes = [0.0; 16];
    for (lane, value) in lanes.iter_mut().zip(values.iter().step_by(stride)).take(S::LANES) {
        *lane = value.to_f32();
    }
    // SAFETY: there are 16 lanes at most.
    unsafe { s.load(lanes.as_ptr()) }
}
