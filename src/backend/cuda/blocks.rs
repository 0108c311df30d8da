//! Transformer blocks where each sequence has one token: all of a pass in one node of MLX's graph, five kernels a block.

use mlx_rs::ops::{multiply, zeros_dtype};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::attention::{self, HeadNorm, Sequence, Sizes};
use super::gemv::{self, Plan, Shared, SharedBytes, weights};
use super::kernel::Kernel;
use super::node::{Held, Memory, When, is_own, node};
use crate::backend::{Block, CachedSpan, Epilogue, LayerCache, Linear, Norm, Phase, Residual, Rotations, make_room};
use crate::error::Result;

/// See [`crate::backend::Backend::blocks`].
pub(super) fn blocks(gpu: &Gpu, x: &Array, blocks: &[Block], spans: &mut [CachedSpan]) -> Option<Result<Array>> {
    let decodes = |span: &CachedSpan| span.positions.phase == Phase::Decode && span.positions.tokens == 1;
    let holds_all = |span: &CachedSpan| span.held.iter().all(|held| held.gap.is_empty());
    if blocks.is_empty() || !spans.iter().all(|span| decodes(span) && holds_all(span)) || x.dim(0) != spans.len() as i32
    {
        return None;
    }
    // All blocks before anything changes the caches.
    let planned: Vec<Planned> = blocks.iter().map(|block| Planned::new(gpu, x, block)).collect::<Option<_>>()?;
    let fits = |(cache, planned): (&LayerCache, &Planned)| {
        let Sizes { n_kv_heads, head_dim, .. } = planned.sizes;
        let fits = |a: &Array| a.dtype() == x.dtype() && (a.dim(1), a.dim(3)) == (n_kv_heads, head_dim);
        cache.as_ref().is_none_or(|(keys, values)| fits(keys) && fits(values) && keys.dim(2) == values.dim(2))
    };
    if !spans.iter().all(|span| span.layers.iter().zip(&planned).all(fits)) {
        return None;
    }
    Some(compute(x, blocks, planned, spans))
}

fn compute(x: &Array, blocks: &[Block], planned: Vec<Planned>, spans: &mut [CachedSpan]) -> Result<Array> {
    for (layer, planned) in planned.iter().enumerate() {
        make_caches(layer, planned.sizes, x.dtype(), spans)?;
    }
    take_over(x.dtype(), spans)?;
    let sequences: Vec<Vec<Sequence>> = (blocks.iter().enumerate())
        .map(|(layer, block)| {
            let sequence = |span: &CachedSpan| {
                let capacity = span.layers[layer].as_ref().map_or(0, |(keys, _)| keys.dim(2));
                Sequence::new(&span.positions, block.window, capacity)
            };
            spans.iter().map(sequence).collect()
        })
        .collect();
    let end = spans.iter().map(|span| span.positions.end()).max().unwrap_or(0);
    let rows = spans.len();
    Memory::with(|memory| {
        let bytes = |size: fn(&Planned) -> i32| planned.iter().map(size).max().unwrap_or(0) as usize * 2 * rows;
        let partial = planned.iter().zip(&sequences).map(|(planned, of)| planned.attention.partial_bytes(of)).max();
        let done = planned.iter().map(|planned| planned.attention.done_bytes()).max();
        let shared = planned.iter().flat_map(Planned::linears).map(|layers| layers.plan.shared_bytes());
        let [sums, squares, counts] = shared.reduce(SharedBytes::max).unwrap_or_default().arrays(memory)?;
        let own = [
            memory.result(x.shape(), x.dtype())?,
            memory.scratch("projected heads", bytes(|planned| planned.projections.plan.width()))?,
            memory.scratch("attended heads", bytes(|planned| planned.sizes.n_heads * planned.sizes.head_dim))?,
            memory.scratch("expanded", bytes(|planned| planned.expansion.plan.width()))?,
            memory.scratch("parts of attention", partial.unwrap_or(0))?,
            memory.scratch("counters", done.unwrap_or(0))?,
            sums,
            squares,
            counts,
        ];
        let turns: Vec<Option<Array>> = (blocks.iter())
            .map(|block| {
                block.rotations.and_then(Rotations::only).map(|rotation| memory.turns(rotation, end)).transpose()
            })
            .collect::<Result<_>>()?;
        let inputs: Vec<&Array> = own.iter().chain([x]).collect();
        let mut others = Vec::new();
        for (layer, (block, turns)) in blocks.iter().zip(&turns).enumerate() {
            others.extend(turns);
            others.extend(block_weights(block));
            let caches = spans.iter().filter_map(|span| span.layers[layer].as_ref());
            others.extend(caches.flat_map(|(keys, values)| [keys, values]));
        }
        let (held, others) = Held::new(&others)?;
        let event = held.event();
        let start = move |stream, addresses: &[u64]| -> Result<()> {
            let mut addresses = addresses.iter().chain(&others).copied();
            let mut next = || addresses.next().expect("an address for each array");
            let [y, projected, attended, expanded, partial, done, sums, squares, counts, x] =
                std::array::from_fn(|_| next());
            let shared = Shared { sums, squares, counts };
            for (layer, (planned, sequences)) in planned.iter().zip(&sequences).enumerate() {
                let turns = if planned.turns { next() } else { 0 };
                let mut of = |layers: &Layers| (0..layers.plan.weights()).map(|_| next()).collect::<Vec<u64>>();
                let projections = of(&planned.projections);
                let (o_proj, expansion, down_proj) =
                    (of(&planned.o_proj), of(&planned.expansion), of(&planned.down_proj));
                let [q_norm, k_norm] = match planned.norms {
                    Some(eps) => eps.map(|eps| HeadNorm { weight: next(), eps }),
                    None => Default::default(),
                };
                let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.at(next(), next())).collect();
                // The hidden states are x before the first block, and y, in place, from then on.
                let x = if layer == 0 { x } else { y };
                let linear = |layers: &Layers, weights: &[u64], x, y, residual, follows| {
                    let at = gemv::Addresses { x, y, weights, residual, shared };
                    // SAFETY: the weights are those that were planned, and the scratch memory has room for the widest.
                    unsafe { layers.plan.launch(layers.kernel, stream, follows, at) }
                };
                linear(&planned.projections, &projections, x, projected, None, layer > 0)?;
                let at = attention::Addresses { projected, turns, q_norm, k_norm, attended, partial, done };
                // SAFETY: as above; each span has caches of its own, with room for its token, which nobody else has
                // a handle of.
                unsafe { planned.attention.launch(stream, &sequences, &at)? };
                linear(&planned.o_proj, &o_proj, attended, y, Some(x), true)?;
                linear(&planned.expansion, &expansion, y, expanded, None, true)?;
                linear(&planned.down_proj, &down_proj, expanded, y, Some(y), true)?;
            }
            Ok(())
        };
        let made = node(&inputs, 1, When::AtOnce, move |stream, addresses| {
            let started = start(stream, addresses);
            event.record(stream)?;
            started
        });
        memory.hold(held);
        Ok(made?.remove(0))
    })
}

/// The arrays of a block's weights, in the order in which its kernels take them.
fn block_weights<'a>(block: &Block<'a>) -> impl Iterator<Item = &'a Array> {
    fn arrays<'a, const N: usize>(layers: [Linear<'a>; N], norm: Option<Norm<'a>>) -> Vec<&'a Array> {
        weights(&layers, norm.map(|norm| norm.weight))
    }
    let norms = block.qk_norm.iter().flatten().map(|norm| norm.weight).collect::<Vec<_>>();
    [
        arrays(block.projections, block.attention_norms.before),
        arrays([block.o_proj], None),
        arrays([block.gate_proj, block.up_proj], block.mlp_norms.before),
        arrays([block.down_proj], None),
        norms,
    ]
    .into_iter()
    .flatten()
}

/// Linear layers, and what computes them.
struct Layers {
    plan: Plan,
    kernel: Kernel,
}

/// A block's kernels.
struct Planned {
    projections: Layers,
    attention: attention::Plan,
    o_proj: Layers,
    expansion: Layers,
    down_proj: Layers,
    sizes: Sizes,
    /// Whether heads are turned.
    turns: bool,
    /// The eps of the queries' and the keys' norm.
    norms: Option<[f32; 2]>,
}

impl Planned {
    fn linears(&self) -> [&Layers; 4] {
        [&self.projections, &self.o_proj, &self.expansion, &self.down_proj]
    }

    /// `None` for what is not done here.
    fn new(gpu: &Gpu, x: &Array, block: &Block) -> Option<Self> {
        let (vectors, d, dtype) = (x.dim(0), x.dim(1), x.dtype());
        let head_dim = block.head_dim;
        let is_head_norm = |norm: Norm| norm.weight.dtype() == dtype && norm.weight.shape() == [head_dim];
        let (projections, o_proj, down_proj) = (block.projections, block.o_proj, block.down_proj);
        let expansion = [block.gate_proj, block.up_proj];
        let outputs = |layer: &Linear| layer.weight.arrays()[0].dim(0);
        let [n_heads, n_kv_heads, n_values] = projections.each_ref().map(|layer| outputs(layer) / head_dim);
        let is_done = n_values == n_kv_heads
            && projections.iter().all(|layer| outputs(layer) % head_dim == 0)
            && outputs(&o_proj) == d
            && outputs(&down_proj) == d
            && block.qk_norm.is_none_or(|norms| norms.into_iter().all(is_head_norm))
            && block.rotations.is_none_or(|rotations| {
                rotations.only().is_some_and(|rotation| rotation.frequencies.len() as i32 == head_dim / 2)
            })
            && [block.attention_norms, block.mlp_norms]
                .iter()
                .all(|norms| norms.before.is_some() && norms.after.is_none())
            && block.softcap.is_none()
            && block.residual == Residual::SUM
            // Nothing here adds up what several ranks have.
            && block.summed_over.is_none();
        if !is_done {
            return None;
        }
        let sizes = Sizes { n_heads, n_kv_heads, head_dim };
        let plan = |columns: i32, layers: &[Linear], epilogue, norm: Option<Norm>| {
            let norm = norm.as_ref().map(|norm| (norm.weight, norm.eps));
            Plan::new(gpu, (vectors, columns, dtype), layers, epilogue, norm, norm.is_none())
        };
        let plans = [
            plan(d, &projections, Epilogue::Concat, block.attention_norms.before)?,
            plan(outputs(&projections[0]), &[o_proj], Epilogue::Concat, None)?,
            plan(d, &expansion, Epilogue::Gated(block.activation), block.mlp_norms.before)?,
            plan(outputs(&expansion[0]), &[down_proj], Epilogue::Concat, None)?,
        ];
        let kernels = Plan::compile(plans.each_ref(), gpu)?;
        let mut layers = plans.into_iter().zip(kernels).map(|(plan, kernel)| Layers { plan, kernel });
        let mut next = || layers.next().expect("four");
        Some(Planned {
            projections: next(),
            o_proj: next(),
            expansion: next(),
            down_proj: next(),
            attention: attention::Plan::new(gpu, sizes, dtype, block.scale)?,
            sizes,
            turns: block.rotations.is_some(),
            norms: block.qk_norm.map(|norms| norms.map(|norm| norm.eps)),
        })
    }
}

/// Caches of a layer with room for the spans' tokens.
fn make_caches(layer: usize, sizes: Sizes, dtype: Dtype, spans: &mut [CachedSpan]) -> Result<()> {
    for CachedSpan { layers, held, .. } in spans {
        let capacity = held[layer].capacity;
        match &mut layers[layer] {
            Some((keys, values)) => {
                make_room(keys, capacity)?;
                make_room(values, capacity)?;
            }
            empty @ None => {
                let zeros = || zeros_dtype(&[1, sizes.n_kv_heads, capacity, sizes.head_dim], dtype);
                *empty = Some((zeros()?, zeros()?));
            }
        }
    }
    Ok(())
}

/// Make the caches' memory the spans' own, so that kernels may write to it: what others have a handle of is copied. A part of
/// a cache that others read lies before the new tokens, or is of a sequence that has gone back, and they have read it by then.
fn take_over(dtype: Dtype, spans: &mut [CachedSpan]) -> Result<()> {
    // What is not computed yet is not known to be ours.
    for copies in [false, true] {
        // MLX's own copy shares the memory, so a copy is a product with this.
        let one = copies.then(|| Array::from_int(1).as_dtype(dtype)).transpose()?;
        let mut started = Vec::new();
        let caches = spans.iter_mut().flat_map(|span| span.layers.iter_mut().flatten());
        for array in caches.flat_map(|(keys, values)| [keys, values]).filter(|array| !is_own(array)) {
            if let Some(one) = &one {
                *array = multiply(&*array, one)?;
            }
            started.push(&*array);
        }
        if started.is_empty() {
            break;
        }
        async_eval(started)?;
    }
    Ok(())
}
