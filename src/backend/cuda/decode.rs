//! A block for one token of each of several sequences: five kernels, four of linear layers (`gemv.rs`) and attention.

use mlx_rs::Dtype;

use super::Gpu;
use super::attention::{self, Sequence, Sizes};
use super::blocks::{At, Numbers, Room};
use super::driver::Stream;
use super::gemv::{self, Plan, SharedBytes};
use super::kernel::Kernel;
use crate::backend::{Block, Epilogue, Linear, Norm};
use crate::error::Result;

/// Linear layers, and what computes them.
#[derive(Debug)]
struct Layers {
    plan: Plan,
    kernel: Kernel,
}

/// A block's kernels, for so many vectors.
#[derive(Debug)]
pub(super) struct Planned {
    vectors: i32,
    sizes: Sizes,
    projections: Layers,
    attention: attention::Plan,
    o_proj: Layers,
    expansion: Layers,
    down_proj: Layers,
}

impl Planned {
    /// `None` for what is not done here.
    pub fn new(gpu: &Gpu, (vectors, d, dtype): (i32, i32, Dtype), block: &Block, sizes: Sizes) -> Option<Self> {
        let expansion = [block.gate_proj, block.up_proj];
        let hidden = expansion[0].weight.arrays()[0].dim(0);
        let plan = |columns: i32, layers: &[Linear], epilogue, norm: Option<Norm>| {
            let norm = norm.as_ref().map(|norm| (norm.weight, norm.eps));
            Plan::new(gpu, (vectors, columns, dtype), layers, epilogue, norm, norm.is_none())
        };
        let plans = [
            plan(d, &block.projections, Epilogue::Concat, block.attention_norms.before)?,
            plan(sizes.n_heads * sizes.head_dim, &[block.o_proj], Epilogue::Concat, None)?,
            plan(d, &expansion, Epilogue::Gated(block.activation), block.mlp_norms.before)?,
            plan(hidden, &[block.down_proj], Epilogue::Concat, None)?,
        ];
        let kernels = Plan::compile(plans.each_ref(), gpu)?;
        let mut layers = plans.into_iter().zip(kernels).map(|(plan, kernel)| Layers { plan, kernel });
        let mut next = || layers.next().expect("four");
        Some(Planned {
            vectors,
            sizes,
            projections: next(),
            attention: attention::Plan::new(gpu, sizes, dtype, block.scale)?,
            o_proj: next(),
            expansion: next(),
            down_proj: next(),
        })
    }

    /// What it needs for these sequences.
    pub fn room(&self, sequences: &[Sequence]) -> Room {
        let bytes = |width: i32| self.vectors as usize * width as usize * 2;
        let layers = [&self.projections, &self.o_proj, &self.expansion, &self.down_proj];
        Room {
            projected: bytes(self.projections.plan.width()),
            attended: bytes(self.sizes.n_heads * self.sizes.head_dim),
            expanded: bytes(self.expansion.plan.width()),
            partial: self.attention.partial_bytes(sequences),
            done: self.attention.done_bytes(),
            shared: layers
                .map(|layers| layers.plan.shared_bytes())
                .into_iter()
                .reduce(SharedBytes::max)
                .unwrap_or_default(),
            ..Room::default()
        }
    }

    /// Start its kernels, behind others of ours where they `follow`: hidden states of x to those of y, which may be x.
    ///
    /// # Safety
    /// The addresses are of the arrays of the block that was planned, and of memory as large as [`Planned::room`] says; each sequence
    /// has caches of its own, with room for its token, which nobody else has a handle of.
    pub unsafe fn launch(
        &self,
        stream: Stream,
        follows: bool,
        at: &At,
        numbers: &Numbers,
        sequences: &[Sequence],
    ) -> Result<()> {
        let &Numbers { x, y, projected, attended, expanded, partial, done, shared, .. } = numbers;
        let linear = |layers: &Layers, weights: &[u64], x, y, residual, follows| {
            let at = gemv::Addresses { x, y, weights, residual, shared };
            // SAFETY: the caller's promise.
            unsafe { layers.plan.launch(layers.kernel, stream, follows, at) }
        };
        linear(&self.projections, &at.projections, x, projected, None, follows)?;
        let &At { turns, q_norm, k_norm, .. } = at;
        let of_attention = attention::Addresses { projected, turns, q_norm, k_norm, attended, partial, done };
        // SAFETY: the caller's promise.
        unsafe { self.attention.launch(stream, sequences, &of_attention)? };
        linear(&self.o_proj, &at.o_proj, attended, y, Some(x), true)?;
        linear(&self.expansion, &at.expansion, y, expanded, None, true)?;
        linear(&self.down_proj, &at.down_proj, expanded, y, Some(y), true)
    }
}
