//! Transformer blocks where each sequence has one token: a few kernels of our own, with MLX's attention between them.

use mlx_rs::fast::scaled_dot_product_attention;
use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use super::gemv::Plan;
use super::heads::{self, Sizes};
use super::{Affine, Fused, Gpu};
use crate::backend::{Block, CachedSpan, Epilogue, LayerCache, Linear, Norm, Phase, Positions, Rotation};
use crate::error::Result;

/// See [`crate::backend::Backend::blocks`].
pub(super) fn blocks(gpu: &Gpu, x: &Array, blocks: &[Block], spans: &mut [CachedSpan]) -> Option<Result<Array>> {
    let decodes = |span: &CachedSpan| span.positions.phase == Phase::Decode && span.positions.tokens == 1;
    if !spans.iter().all(decodes) || !blocks.iter().all(|block| sees_a_range(block, spans)) {
        return None;
    }
    // All blocks before the first is computed, which changes the caches.
    let plans: Vec<BlockPlan> = blocks.iter().map(|block| BlockPlan::new(gpu, x, block)).collect::<Option<_>>()?;
    let mut turns = Turns { positions: spans.iter().map(|span| span.positions.offset).collect(), known: Vec::new() };
    let mut y = x.clone();
    for (i, (block, plan)) in blocks.iter().zip(&plans).enumerate() {
        let turns = block.rotation.map(|rotation| turns.of(rotation));
        match plan.node(&y, block, i, spans, turns.as_ref()) {
            Ok(after) => y = after,
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(y))
}

/// Whether what the spans' tokens see lies together: the sinks of a window do not.
fn sees_a_range(block: &Block, spans: &[CachedSpan]) -> bool {
    let hides = |at: &Positions| block.window.is_some_and(|window| at.end() > window) && at.sinks > 0;
    !spans.iter().any(|span| hides(&span.positions))
}

/// Cosines and sines of the spans' tokens, made once for each rotation.
struct Turns {
    positions: Vec<i32>,
    known: Vec<(Rotation, Array)>,
}

impl Turns {
    fn of(&mut self, rotation: &Rotation) -> Array {
        if let Some((_, array)) = self.known.iter().find(|(known, _)| known == rotation) {
            return array.clone();
        }
        let mut numbers = Vec::new();
        for &at in &self.positions {
            for frequency in rotation.frequencies.iter() {
                let (sin, cos) = (f64::from(at) * frequency).sin_cos();
                numbers.extend([cos, sin].map(|number| (number * f64::from(rotation.factor)) as f32));
            }
        }
        let shape = [self.positions.len() as i32, rotation.frequencies.len() as i32, 2];
        let array = Array::from_slice(&numbers, &shape);
        self.known.push((rotation.clone(), array.clone()));
        array
    }
}

fn affine<'a, const N: usize>(layers: [Linear<'a>; N]) -> Option<[Affine<'a>; N]> {
    let layers: Vec<_> = layers.iter().map(Affine::of).collect::<Option<_>>()?;
    layers.try_into().ok()
}

/// Linear layers, and how they are computed.
struct Planned<'a, const N: usize> {
    layers: [Affine<'a>; N],
    plan: Plan,
}

/// A block's kernels.
struct BlockPlan<'a> {
    projections: Planned<'a, 3>,
    heads: heads::Plan,
    o_proj: Planned<'a, 1>,
    expansion: Planned<'a, 2>,
    down_proj: Planned<'a, 1>,
}

impl<'a> BlockPlan<'a> {
    /// `None` for what is not done here.
    fn new(gpu: &Gpu, x: &Array, block: &Block<'a>) -> Option<Self> {
        let (vectors, dtype) = (x.dim(0), x.dtype());
        let (d, concat) = (x.dim(1), Epilogue::Concat);
        let norm = |norm: Norm<'a>| Some((norm.weight, norm.eps));
        let projections = affine(block.projections)?;
        let outputs = |layer: &Affine| layer.packed.dim(0);
        let heads = projections.each_ref().map(|layer| outputs(layer) / block.head_dim);
        let norms = block.qk_norm.map(|norms| norms.map(|norm| (norm.weight, norm.eps)));
        let sizes = Sizes { tokens: vectors, n_heads: heads[0], n_kv_heads: heads[1], head_dim: block.head_dim };
        let o_proj = affine([block.o_proj])?;
        let expansion = affine([block.gate_proj, block.up_proj])?;
        let down_proj = affine([block.down_proj])?;
        let (attended, expanded) =
            ((vectors, outputs(&projections[0]), dtype), (vectors, outputs(&expansion[0]), dtype));
        let (before, after) = (norm(block.input_layernorm), norm(block.post_attention_layernorm));
        let x = (vectors, d, dtype);
        Some(BlockPlan {
            heads: heads::Plan::new(gpu, sizes, dtype, norms, block.rotation.is_some())?,
            projections: Planned { plan: Plan::new(gpu, x, &projections, concat, before, false)?, layers: projections },
            o_proj: Planned { plan: Plan::new(gpu, attended, &o_proj, concat, None, true)?, layers: o_proj },
            expansion: Planned {
                plan: Plan::new(gpu, x, &expansion, Epilogue::SwiGlu, after, false)?,
                layers: expansion,
            },
            down_proj: Planned { plan: Plan::new(gpu, expanded, &down_proj, concat, None, true)?, layers: down_proj },
        })
    }

    fn node(
        &self,
        x: &Array,
        block: &Block,
        layer: usize,
        spans: &mut [CachedSpan],
        turns: Option<&Array>,
    ) -> Result<Array> {
        let norm = |Norm { weight, eps }| Fused { norm: Some((weight, eps)), residual: None };
        let add = |residual| Fused { norm: None, residual: Some(residual) };
        let projected = self.projections.node(x, norm(block.input_layernorm))?;
        let norms = block.qk_norm.map(|norms| norms.map(|norm| norm.weight));
        let mut queries = self.heads.node(&projected, norms, turns)?;
        let mut keys = queries.split_off(spans.len());
        let values = keys.split_off(spans.len());
        let attended = attend(block, layer, spans, &queries, keys.into_iter().zip(values))?;
        let x = self.o_proj.node(&attended, add(x))?;
        let expanded = self.expansion.node(&x, norm(block.post_attention_layernorm))?;
        self.down_proj.node(&expanded, add(&x))
    }
}

impl<const N: usize> Planned<'_, N> {
    fn node(&self, x: &Array, fused: Fused) -> Result<Array> {
        self.plan.node(x, &self.layers, fused)
    }
}

/// Keys and values to the caches, and what the queries see of them: `[N, n_heads · head_dim]`.
fn attend(
    block: &Block,
    layer: usize,
    spans: &mut [CachedSpan],
    queries: &[Array],
    new: impl Iterator<Item = (Array, Array)>,
) -> Result<Array> {
    let mut attended = Vec::with_capacity(spans.len());
    for ((span, queries), (key, value)) in spans.iter_mut().zip(queries).zip(new) {
        let at = span.positions;
        let (keys, values) = append(&mut span.layers[layer], &at, key, value)?;
        let first = block.window.map_or(0, |window| (at.end() - window).max(0));
        let seen = |all: &Array| all.try_index((.., .., first..at.end(), ..));
        let output = scaled_dot_product_attention(queries, seen(keys)?, seen(values)?, block.scale, None, None)?;
        attended.push(output.reshape(&[1, -1])?);
    }
    Ok(if let [one] = &attended[..] { one.clone() } else { concatenate(&attended, 0)? })
}

/// Write a token's key and value behind the others.
fn append<'a>(cache: &'a mut LayerCache, at: &Positions, key: Array, value: Array) -> Result<&'a (Array, Array)> {
    let grown = |old: Option<Array>, new: &Array| -> Result<Array> {
        let zeros = |tokens: i32, dtype: Dtype| zeros_dtype(&[1, new.dim(1), tokens, new.dim(3)], dtype);
        Ok(match old {
            None => zeros(at.capacity, new.dtype())?,
            Some(old) if old.dim(2) < at.capacity => {
                let more = zeros(at.capacity - old.dim(2), new.dtype())?;
                concatenate(&[old, more], 2)?
            }
            Some(old) => old,
        })
    };
    let (keys, values) = cache.take().unzip();
    let write = |old: Option<Array>, new: Array| -> Result<Array> {
        let buffer = grown(old, &new)?;
        let mut buffer = buffer;
        buffer.try_index_mut((.., .., (at.offset..at.end()).stride_by(1), ..), new)?;
        Ok(buffer)
    };
    Ok(cache.insert((write(keys, key)?, write(values, value)?)))
}
