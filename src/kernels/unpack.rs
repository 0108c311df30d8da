//! Packed weights to f32, in plain Rust: any width, any order.

use super::types::{Affine, Element, Floats, typed};

/// Row `row` of a weight with `columns` columns, from column 0 on, as many as `values` holds.
pub(super) fn row(w: &Affine, columns: usize, row: usize, values: &mut [f32]) {
    columns_of(w, columns, row, 0, values);
}

/// As [`row`], from column `first` (a multiple of 32) on.
pub(super) fn columns_of(w: &Affine, columns: usize, row: usize, first: usize, values: &mut [f32]) {
    let bits = w.bits as usize;
    let words = &w.packed[row * columns / 32 * bits..(row + 1) * columns / 32 * bits];
    let groups = columns / w.group_size;
    typed!(Floats, w.scales, scales => typed!(Floats, w.biases, biases => {
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
    }));
}
