//! A block for one token of each of several sequences: five kernels, four of linear layers (`gemv.rs`) and attention, and those of
//! `blocks::RowSteps`.

use mlx_rs::Dtype;

use super::Gpu;
use super::attention::{self, Heads, Sequence};
use super::blocks::{At, Numbers, Part, Room, RowLaunch, RowSteps};
use super::driver::Stream;
use super::gemv::{self, Added, Plan, SharedBytes};
use super::kernel::Kernel;
use crate::backend::{Block, Epilogue, Linear, Norm, Norms};
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
    heads: Heads,
    rows: RowSteps,
    projections: Layers,
    attention: attention::Plan,
    o_proj: Layers,
    expansion: Layers,
    down_proj: Layers,
}

impl Planned {
    /// `None` for what is not done here.
    pub fn new(gpu: &Gpu, (vectors, d, dtype): (i32, i32, Dtype), block: &Block, heads: Heads) -> Option<Self> {
        let expansion = [block.gate_proj, block.up_proj];
        let hidden = expansion[0].weight.arrays()[0].dim(0);
        let plan = |columns: i32, layers: &[Linear], epilogue, norm: Option<Norm>, adds| {
            let norm = norm.as_ref().map(|norm| (norm.weight, norm.eps));
            Plan::new(gpu, (vectors, columns, dtype), layers, epilogue, norm, adds)
        };
        let (attention_norms, mlp_norms) = (block.attention_norms, block.mlp_norms);
        let adds = |norms: Norms| norms.after.is_none();
        let gated = Epilogue::Gated(block.activation);
        let plans = [
            plan(d, &block.projections, Epilogue::Concat, attention_norms.before, false)?,
            plan(heads.n_heads * heads.head_dim, &[block.o_proj], Epilogue::Concat, None, adds(attention_norms))?,
            plan(d, &expansion, gated, mlp_norms.before, false)?,
            plan(hidden, &[block.down_proj], Epilogue::Concat, None, adds(mlp_norms))?,
        ];
        let kernels = Plan::compile(plans.each_ref(), gpu)?;
        let mut layers = plans.into_iter().zip(kernels).map(|(plan, kernel)| Layers { plan, kernel });
        let mut next = || layers.next().expect("four");
        Some(Planned {
            vectors,
            heads,
            rows: RowSteps::new(gpu, (d, dtype), block, heads)?,
            projections: next(),
            attention: attention::Plan::new(gpu, heads, dtype)?,
            o_proj: next(),
            expansion: next(),
            down_proj: next(),
        })
    }

    /// What it needs for these sequences.
    pub fn room<'a>(&self, sequences: impl Iterator<Item = &'a Sequence> + Clone) -> Room {
        let bytes = |width: i32| self.vectors as usize * width as usize * 2;
        let layers = [&self.projections, &self.o_proj, &self.expansion, &self.down_proj];
        let shared = layers.map(|layers| layers.plan.shared_bytes());
        Room {
            normed: bytes(self.rows.width()),
            projected: bytes(self.projections.plan.width()),
            attended: bytes(self.heads.n_heads * self.heads.head_dim),
            expanded: bytes(self.expansion.plan.width()),
            partial: self.attention.partial_bytes(sequences),
            done: self.attention.done_bytes(),
            shared: shared.into_iter().reduce(SharedBytes::max).unwrap_or_default(),
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
        let &Numbers { x, y, normed, projected, attended, expanded, partial, done, shared } = numbers;
        let linear = |layers: &Layers, weights: &[u64], x, y, residual, follows| {
            let at = gemv::Addresses { x, y, weights, residual, shared };
            // SAFETY: the caller's promise.
            unsafe { layers.plan.launch(layers.kernel, stream, follows, at) }
        };
        let launch = RowLaunch { stream, rows: self.vectors, normed, y };
        linear(&self.projections, &at.projections, x, projected, Added::default(), follows)?;
        // SAFETY: the caller's promise.
        unsafe {
            let [q_norm, k_norm] = self.rows.normalise_heads(launch, at, projected)?;
            let of_attention = attention::Addresses { projected, q_norm, k_norm, attended, partial, done };
            self.attention.launch(stream, sequences, &of_attention)?;
            self.rows.add(launch, Part::Attention, x, &at.o_proj, |y, added| {
                linear(&self.o_proj, &at.o_proj, attended, y, added, true)
            })?;
            linear(&self.expansion, &at.expansion, y, expanded, Added::default(), true)?;
            self.rows.add(launch, Part::Mlp, y, &at.down_proj, |y, added| {
                linear(&self.down_proj, &at.down_proj, expanded, y, added, true)
            })
        }
    }
}
