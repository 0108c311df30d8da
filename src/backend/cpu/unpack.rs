//! Weights to f32: single rows, in plain Rust for any width; and panels, whose rows lie side by side.

use std::array::from_fn;

use crate::backend::NO_TOKEN;
use crate::backend::cpu::isa::Simd;
use crate::backend::cpu::types::{Affine, Element, FloatsMut, Matrix, Values, same_type, typed};

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
            match id {
                NO_TOKEN => values.fill(f32::NAN),
                _ => row(w, id as usize, 0, &mut values),
            }
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

/// One vector of [`panel`] where values do not straddle words.
#[inline(always)]
fn fields<S: Simd, const BITS: u32>(s: S, w: &Matrix, affine: &Affine, first: usize, column: usize, panel: &mut [f32]) {
    let (per_word, width) = ((32 / BITS) as usize, 2 * S::LANES);
    let n = panel.len().div_ceil(width);
    assert!(panel.len() >= (n - 1) * width + S::LANES);
    let rows = Rows::new(affine.packed, w.columns / per_word, first);
    typed!(Floats, affine.scales, scales => {
        let biases = same_type(scales, affine.biases);
        let groups = w.columns / affine.group_size;
        let (mut scale, mut bias) = (s.splat(0.0), s.splat(0.0));
        let mut k = 0;
        while k < n {
            let left = (n - k) / per_word;
            let words = rows.words(s, (column + k) / per_word, left);
            for word in &words[..left.min(S::LANES)] {
                if k == 0 || (column + k).is_multiple_of(affine.group_size) {
                    let group = (column + k) / affine.group_size;
                    scale = lane_rows(s, scales, groups, first, group);
                    bias = lane_rows(s, biases, groups, first, group);
                }
                for j in 0..per_word {
                    let value = s.fma(s.field::<BITS>(*word, j as u32), scale, bias);
                    // SAFETY: the panel has room for these columns.
                    unsafe { s.store(panel.as_mut_ptr().add((k + j) * width), value) };
                }
                k += per_word;
            }
        }
    });
}

/// Words of a cache line.
pub(super) const LINE: usize = 16;

/// Some rows of words, to be read side by side; rows that there are not are the last one.
pub(super) struct Rows<'a> {
    words: &'a [u32],
    width: usize,
    starts: [usize; 16],
}

impl<'a> Rows<'a> {
    /// Rows `first..` of `words` `[rows, width]`.
    #[inline(always)]
    pub fn new(words: &'a [u32], width: usize, first: usize) -> Self {
        let last = words.len() / width - 1;
        Rows { words, width, starts: from_fn(|lane| (first + lane).min(last) * width) }
    }

    /// Words from `i` on of LANES rows, a vector for each of `n` or of LANES, whichever is less; zeros where that is `n`.
    #[inline(always)]
    pub fn words<S: Simd>(&self, s: S, i: usize, n: usize) -> [S::U; 16] {
        let copies;
        let rows = if n >= S::LANES {
            self.at::<S>(i)
        } else {
            copies = self.copied(i, n);
            from_fn(|lane| copies[lane].as_ptr())
        };
        // SAFETY: each row has as many words as there are lanes.
        unsafe { s.load_columns(&rows) }
    }

    /// Where a row begins.
    #[inline(always)]
    pub fn start(&self, lane: usize) -> *const u32 {
        self.words.as_ptr().wrapping_add(self.starts[lane])
    }

    /// Words from `i` on of the rows, LANES of each.
    #[inline(always)]
    pub fn at<S: Simd>(&self, i: usize) -> [*const u32; 16] {
        // Starts ascend.
        assert!(i + S::LANES <= self.width && self.starts[15] + self.width <= self.words.len());
        from_fn(|lane| self.words.as_ptr().wrapping_add(self.starts[lane] + i))
    }

    /// Where a cache line of words of the first row begins, from word `i` on, if the other rows follow it and have one too.
    #[inline(always)]
    pub fn line<S: Simd>(&self, _: S, i: usize) -> Option<*const u32> {
        let whole = self.starts[S::LANES - 1] == self.starts[0] + (S::LANES - 1) * self.width && i + LINE <= self.width;
        assert!(self.starts[S::LANES - 1] + self.width <= self.words.len());
        whole.then(|| self.words.as_ptr().wrapping_add(self.starts[0] + i))
    }

    /// Begin to bring words from `i` on near, as many as a cache line of each of LANES rows has.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, s: S, i: usize) {
        for lane in 0..S::LANES {
            s.prefetch(self.start(lane).wrapping_add(i));
        }
    }

    /// `n` words from `i` on of each row, and zeros.
    pub fn copied(&self, i: usize, n: usize) -> [[u32; LINE]; 16] {
        self.starts.map(|start| padded(&self.words[start + i..][..n]))
    }
}

fn padded(words: &[u32]) -> [u32; 16] {
    let mut padded = [0; 16];
    padded[..words.len()].copy_from_slice(words);
    padded
}

/// Value `at` of rows `first..first + LANES` of `values` `[rows, width]`; rows that there are not are the last one.
#[inline(always)]
pub(super) fn lane_rows<S: Simd, E: Element>(s: S, values: &[E], width: usize, first: usize, at: usize) -> S::F {
    let last = values.len() / width - 1;
    let mut lanes = [values[at]; 16];
    for lane in 0..S::LANES {
        lanes[lane] = values[(first + lane).min(last) * width + at];
    }
    // SAFETY: there are 16 lanes at most.
    unsafe { E::load(s, lanes.as_ptr()) }
}
