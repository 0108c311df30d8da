//! Layers with the same input, computed together: one start of the threads, one preparation of the input.

use std::ops::Range;

use crate::backend::cpu::elementwise::gated;
use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::types::{Element, Layer, Shared};
use crate::backend::{Activation, Epilogue};

/// Layers and what becomes of their outputs.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct FusedLayers<'a> {
    pub layers: &'a [Layer<'a>],
    pub epilogue: Epilogue,
}

/// Rows of one layer (and of the other, when they are multiplied).
pub(in crate::backend::cpu) struct Task {
    pub layer: usize,
    pub rows: Range<usize>,
    /// Where they are in a row of the output.
    pub at: usize,
}

impl<'a> FusedLayers<'a> {
    /// Numbers in one row of the output.
    pub fn width(&self) -> usize {
        match self.epilogue {
            Epilogue::Concat => self.layers.iter().map(|layer| layer.weight.rows).sum(),
            Epilogue::Gated(_) => self.layers[0].weight.rows,
        }
    }

    /// All rows, in tasks of up to `size` of so many as are left.
    pub fn tasks(&self, size: impl Fn(usize) -> usize) -> Vec<Task> {
        let mut tasks = Vec::new();
        let (mut at, width) = (0, self.width());
        let layers = if self.epilogue.activation().is_some() { &self.layers[..1] } else { self.layers };
        for (layer, Layer { weight, .. }) in layers.iter().enumerate() {
            let mut first = 0;
            while first < weight.rows {
                let n = size(width - at).min(weight.rows - first);
                tasks.push(Task { layer, rows: first..first + n, at });
                first += n;
                at += n;
            }
        }
        tasks
    }

    /// The layers whose sums a task is about: one, or the two that are multiplied.
    pub fn layers_of(&self, task: &Task) -> &'a [Layer<'a>] {
        match self.epilogue {
            Epilogue::Concat => &self.layers[task.layer..=task.layer],
            Epilogue::Gated(_) => self.layers,
        }
    }
}

/// Write the outputs for the sums of one layer or two to `y`, which has room for them.
pub(in crate::backend::cpu) struct Finish<'a, E> {
    pub sums: &'a [f32],
    /// What the sums gate.
    pub gated: Option<(Activation, &'a [f32])>,
    pub y: Shared<E>,
}

impl<E: Element> Op for Finish<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Finish { sums, gated: up, y } = self;
        let n = sums.len();
        assert!(up.is_none_or(|(_, up)| up.len() == n));
        let whole = n / S::LANES * S::LANES;
        // SAFETY: `i + LANES` stays within the sums, and y has room for as many.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let sums = s.load(sums.as_ptr().add(i));
                let output = match up {
                    Some((activation, up)) => gated(s, activation, sums, s.load(up.as_ptr().add(i))),
                    None => sums,
                };
                E::store(s, y.at(i), output);
            }
            if whole < n {
                let mut lanes = [[0.0; 16]; 2];
                lanes[0][..n - whole].copy_from_slice(&sums[whole..]);
                if let Some((activation, up)) = up {
                    lanes[1][..n - whole].copy_from_slice(&up[whole..]);
                    let output = gated(s, activation, s.load(lanes[0].as_ptr()), s.load(lanes[1].as_ptr()));
                    s.store(lanes[0].as_mut_ptr(), output);
                }
                for (i, output) in lanes[0][..n - whole].iter().enumerate() {
                    y.at(whole + i).write(E::from_f32(*output));
                }
            }
        }
    }
}
