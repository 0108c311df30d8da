//! Layers with the same input, computed together: one start of the threads, one preparation of the input.

use std::ops::Range;

use super::elementwise::swiglu;
use super::simd::{Op, Simd};
use super::types::{Element, Layer, Shared};

/// What becomes of the outputs of layers with one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Side by side: `[y₀ y₁ …]`.
    Beside,
    /// `silu(y₀) · y₁`, of two layers of one shape.
    SwiGlu,
}

/// Layers and what becomes of their outputs.
#[derive(Clone, Copy)]
pub(super) struct Joined<'a> {
    pub layers: &'a [Layer<'a>],
    pub join: Join,
}

/// Rows of one layer (and of the other, when they are multiplied).
pub(super) struct Task {
    pub layer: usize,
    pub rows: Range<usize>,
    /// Where they are in a row of the output.
    pub at: usize,
}

impl<'a> Joined<'a> {
    /// Numbers in one row of the output.
    pub fn width(&self) -> usize {
        match self.join {
            Join::Beside => self.layers.iter().map(|layer| layer.weight.rows).sum(),
            Join::SwiGlu => self.layers[0].weight.rows,
        }
    }

    /// All rows, in tasks of up to `size`.
    pub fn tasks(&self, size: usize) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut at = 0;
        let layers = if self.join == Join::SwiGlu { &self.layers[..1] } else { self.layers };
        for (i, layer) in layers.iter().enumerate() {
            let rows = layer.weight.rows;
            for first in (0..rows).step_by(size) {
                tasks.push(Task { layer: i, rows: first..(first + size).min(rows), at: at + first });
            }
            at += rows;
        }
        tasks
    }

    /// The layers whose sums a task is about: one, or the two that are multiplied.
    pub fn layers_of(&self, task: &Task) -> &'a [Layer<'a>] {
        match self.join {
            Join::Beside => &self.layers[task.layer..=task.layer],
            Join::SwiGlu => self.layers,
        }
    }
}

/// Write the outputs for the sums of one layer or two to `y`, which has room for them.
pub(super) struct Finish<'a, E> {
    pub sums: &'a mut [f32],
    pub multiplied: Option<&'a [f32]>,
    pub y: Shared<E>,
}

impl<E: Element> Op for Finish<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Finish { sums, multiplied, y } = self;
        let n = sums.len();
        if let Some(up) = multiplied {
            assert_eq!(up.len(), n);
            let mut lanes = [0.0; 32];
            for i in (0..n).step_by(S::LANES) {
                let count = S::LANES.min(n - i);
                let (a, b) = lanes.split_at_mut(16);
                a[..count].copy_from_slice(&sums[i..i + count]);
                b[..count].copy_from_slice(&up[i..i + count]);
                // SAFETY: there are 16 lanes at most.
                unsafe { s.store(a.as_mut_ptr(), swiglu(s, s.load(a.as_ptr()), s.load(b.as_ptr()))) };
                sums[i..i + count].copy_from_slice(&a[..count]);
            }
        }
        let whole = n / S::LANES * S::LANES;
        // SAFETY: `i + LANES` stays within the sums, and y has room for as many.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                E::store(s, y.at(i), s.load(sums.as_ptr().add(i)));
            }
            for (i, sum) in sums.iter().enumerate().skip(whole) {
                y.at(i).write(E::from_f32(*sum));
            }
        }
    }
}
