//! Transformer blocks: all of a pass in one node of MLX's graph. Spans of tokens that are decoded are computed by five kernels a block
//! (`decode.rs`), spans of prompts by eight (`prompt.rs`).

use std::ops::Range;

use mlx_rs::ops::{multiply, zeros_dtype};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::attention::{HeadNorm, Sequence, Sizes};
use super::gemv::{Shared, SharedBytes, weights};
use super::node::{Held, Memory, When, is_own, node};
use super::prompt::Prompt;
use super::{decode, prompt};
use crate::backend::{Block, CachedSpan, LayerCache, Linear, Norm, Phase, Residual, Rotations, make_room};
use crate::error::Result;

/// See [`crate::backend::Backend::blocks`].
pub(super) fn blocks(gpu: &Gpu, x: &Array, blocks: &[Block], spans: &mut [CachedSpan]) -> Option<Result<Array>> {
    let &[rows, d] = x.shape() else { return None };
    let holds_all = |span: &CachedSpan| span.held.iter().all(|held| held.gap.is_empty());
    if blocks.is_empty() || !spans.iter().all(holds_all) {
        return None;
    }
    let passes = Pass::of(spans)?;
    if passes.last().is_none_or(|pass| pass.first + pass.rows != rows) {
        return None;
    }
    // All blocks before anything changes the caches.
    let sizes: Vec<Sizes> = blocks.iter().map(|block| sizes(x, block)).collect::<Option<_>>()?;
    let fits = |(cache, sizes): (&LayerCache, &Sizes)| {
        let fits = |a: &Array| a.dtype() == x.dtype() && (a.dim(1), a.dim(3)) == (sizes.n_kv_heads, sizes.head_dim);
        cache.as_ref().is_none_or(|(keys, values)| fits(keys) && fits(values) && keys.dim(2) == values.dim(2))
    };
    if !spans.iter().all(|span| span.layers.iter().zip(&sizes).all(fits)) {
        return None;
    }
    let plan = |(block, &sizes): (&Block, &Sizes)| {
        let plan = |pass: &Pass| {
            let of = (pass.rows, d, x.dtype());
            Some(match pass.phase {
                Phase::Decode => Planned::Decode(decode::Planned::new(gpu, of, block, sizes)?),
                Phase::Prefill => Planned::Prompt(prompt::Planned::new(gpu, of, block, sizes)?),
            })
        };
        passes.iter().map(plan).collect::<Option<Vec<_>>>()
    };
    let planned: Vec<Vec<Planned>> = blocks.iter().zip(&sizes).map(plan).collect::<Option<_>>()?;
    Some(compute(x, blocks, &sizes, passes, planned, spans))
}

/// Spans of one phase, one after another.
#[derive(Debug)]
struct Pass {
    phase: Phase,
    spans: Range<usize>,
    /// Its first row of the hidden states.
    first: i32,
    rows: i32,
}

impl Pass {
    /// `None` where a span has several tokens to decode.
    fn of(spans: &[CachedSpan]) -> Option<Vec<Self>> {
        let mut passes: Vec<Pass> = Vec::new();
        for (i, at) in spans.iter().map(|span| span.positions).enumerate() {
            if at.phase == Phase::Decode && at.tokens != 1 {
                return None;
            }
            match passes.last_mut().filter(|pass| pass.phase == at.phase) {
                Some(pass) => (pass.spans.end, pass.rows) = (i + 1, pass.rows + at.tokens),
                None => {
                    let first = passes.last().map_or(0, |pass| pass.first + pass.rows);
                    passes.push(Pass { phase: at.phase, spans: i..i + 1, first, rows: at.tokens });
                }
            }
        }
        Some(passes)
    }
}

/// A block's kernels for a pass.
enum Planned {
    Decode(decode::Planned),
    Prompt(prompt::Planned),
}

/// The sequences of a pass, in a layer.
enum Sequences {
    Decode(Vec<Sequence>),
    Prompt(Vec<Prompt>),
}

impl Sequences {
    fn new(pass: &Pass, spans: &[CachedSpan], layer: usize, window: Option<i32>) -> Self {
        let spans = spans[pass.spans.clone()].iter();
        let with_capacity = spans.map(|span| {
            let capacity = span.layers[layer].as_ref().map_or(0, |(keys, _)| keys.dim(2));
            (&span.positions, capacity)
        });
        match pass.phase {
            Phase::Decode => {
                Sequences::Decode(with_capacity.map(|(at, capacity)| Sequence::new(at, window, capacity)).collect())
            }
            Phase::Prefill => {
                let mut first = 0;
                let prompt = |(at, capacity)| {
                    let prompt = Prompt::new(at, first, window, capacity);
                    first += at.tokens;
                    prompt
                };
                Sequences::Prompt(with_capacity.map(prompt).collect())
            }
        }
    }
}

impl Planned {
    fn room(&self, sequences: &Sequences) -> Room {
        match (self, sequences) {
            (Planned::Decode(planned), Sequences::Decode(sequences)) => planned.room(sequences),
            (Planned::Prompt(planned), _) => planned.room(),
            (Planned::Decode(_), Sequences::Prompt(_)) => unreachable!("of one pass"),
        }
    }
}

/// Bytes of memory between a block's kernels.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    pub normed: usize,
    pub projected: usize,
    pub attended: usize,
    pub expanded: usize,
    pub partial: usize,
    pub done: usize,
    pub shared: SharedBytes,
}

impl Room {
    /// For any of both.
    fn max(self, other: Room) -> Room {
        Room {
            normed: self.normed.max(other.normed),
            projected: self.projected.max(other.projected),
            attended: self.attended.max(other.attended),
            expanded: self.expanded.max(other.expanded),
            partial: self.partial.max(other.partial),
            done: self.done.max(other.done),
            shared: self.shared.max(other.shared),
        }
    }
}

/// Where hidden states, and what is between kernels, lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub x: u64,
    pub y: u64,
    pub normed: u64,
    pub projected: u64,
    pub attended: u64,
    pub expanded: u64,
    pub partial: u64,
    pub done: u64,
    pub shared: Shared,
}

/// Where a block's weights lie: of linear layers, as [`weights`] has them.
#[derive(Debug)]
pub(super) struct At {
    /// 0 where heads are not turned.
    pub turns: u64,
    pub projections: Vec<u64>,
    pub o_proj: Vec<u64>,
    pub expansion: Vec<u64>,
    pub down_proj: Vec<u64>,
    pub q_norm: HeadNorm,
    pub k_norm: HeadNorm,
}

fn compute(
    x: &Array,
    blocks: &[Block],
    sizes: &[Sizes],
    passes: Vec<Pass>,
    planned: Vec<Vec<Planned>>,
    spans: &mut [CachedSpan],
) -> Result<Array> {
    for (layer, &sizes) in sizes.iter().enumerate() {
        make_caches(layer, sizes, x.dtype(), spans)?;
    }
    take_over(x.dtype(), spans)?;
    let sequences: Vec<Vec<Sequences>> = (blocks.iter().enumerate())
        .map(|(layer, block)| passes.iter().map(|pass| Sequences::new(pass, spans, layer, block.window)).collect())
        .collect();
    let rooms = planned.iter().flatten().zip(sequences.iter().flatten()).map(|(planned, of)| planned.room(of));
    let room = rooms.reduce(Room::max).unwrap_or_default();
    let end = spans.iter().map(|span| span.positions.end()).max().unwrap_or(0);
    let row_bytes = x.dim(1) as u64 * 2;
    Memory::with(|memory| {
        let [sums, squares, counts] = room.shared.arrays(memory)?;
        let own = [
            memory.result(x.shape(), x.dtype())?,
            memory.scratch("normalised", room.normed)?,
            memory.scratch("projected heads", room.projected)?,
            memory.scratch("attended heads", room.attended)?,
            memory.scratch("expanded", room.expanded)?,
            memory.scratch("parts of attention", room.partial)?,
            memory.scratch("counters", room.done)?,
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
        let (mut others, mut layouts) = (Vec::new(), Vec::new());
        for (layer, (block, turns)) in blocks.iter().zip(&turns).enumerate() {
            others.extend(turns);
            let linears = linears(block);
            layouts.push(Layout {
                turns: turns.is_some(),
                linears: linears.each_ref().map(Vec::len),
                norms: block.qk_norm.map(|norms| norms.map(|norm| norm.eps)),
            });
            others.extend(linears.into_iter().flatten());
            others.extend(block.qk_norm.iter().flatten().map(|norm| norm.weight));
            let caches = spans.iter().filter_map(|span| span.layers[layer].as_ref());
            others.extend(caches.flat_map(|(keys, values)| [keys, values]));
        }
        let (held, others) = Held::new(&others)?;
        let event = held.event();
        let start = move |stream, addresses: &[u64]| -> Result<()> {
            let mut addresses = addresses.iter().chain(&others).copied();
            let mut next = || addresses.next().expect("an address for each array");
            let [y, normed, projected, attended, expanded, partial, done, sums, squares, counts, x] =
                std::array::from_fn(|_| next());
            let shared = Shared { sums, squares, counts };
            for (layer, (layout, of_passes)) in layouts.iter().zip(&sequences).enumerate() {
                let at = layout.read(&mut next);
                for ((pass, planned), sequences) in passes.iter().zip(&planned[layer]).zip(of_passes) {
                    let before = pass.first as u64 * row_bytes;
                    let y = y + before;
                    // The hidden states are x before the first block, and y, in place, from then on.
                    let x = if layer == 0 { x + before } else { y };
                    let numbers = Numbers { x, y, normed, projected, attended, expanded, partial, done, shared };
                    let follows = layer > 0 || pass.first > 0;
                    // SAFETY: the weights are those that were planned, and the memory has room for all blocks; each span has
                    // caches of its own, with room for its tokens, which nobody else has a handle of.
                    unsafe {
                        match (planned, sequences) {
                            (Planned::Decode(planned), Sequences::Decode(sequences)) => {
                                let sequences: Vec<_> = sequences.iter().map(|of| of.at(next(), next())).collect();
                                planned.launch(stream, follows, &at, &numbers, &sequences)?;
                            }
                            (Planned::Prompt(planned), Sequences::Prompt(prompts)) => {
                                let prompts: Vec<_> = prompts.iter().map(|of| of.at(next(), next())).collect();
                                planned.launch(stream, follows, &at, &numbers, &prompts)?;
                            }
                            _ => unreachable!("of one pass"),
                        }
                    }
                }
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

/// Which addresses a block has, in order.
struct Layout {
    turns: bool,
    linears: [usize; 4],
    /// The eps of the queries' and the keys' norm.
    norms: Option<[f32; 2]>,
}

impl Layout {
    fn read(&self, mut next: impl FnMut() -> u64) -> At {
        let turns = if self.turns { next() } else { 0 };
        let [projections, o_proj, expansion, down_proj] =
            self.linears.map(|n| (0..n).map(|_| next()).collect::<Vec<u64>>());
        let [q_norm, k_norm] = match self.norms {
            Some(eps) => eps.map(|eps| HeadNorm { weight: next(), eps }),
            None => Default::default(),
        };
        At { turns, projections, o_proj, expansion, down_proj, q_norm, k_norm }
    }
}

/// The arrays of a block's linear layers, each group's with the norm before it.
fn linears<'a>(block: &Block<'a>) -> [Vec<&'a Array>; 4] {
    fn arrays<'a, const N: usize>(layers: [Linear<'a>; N], norm: Option<Norm<'a>>) -> Vec<&'a Array> {
        weights(&layers, norm.map(|norm| norm.weight))
    }
    [
        arrays(block.projections, block.attention_norms.before),
        arrays([block.o_proj], None),
        arrays([block.gate_proj, block.up_proj], block.mlp_norms.before),
        arrays([block.down_proj], None),
    ]
}

/// The sizes of a block's heads; `None` for a block that is not done here, in any phase.
fn sizes(x: &Array, block: &Block) -> Option<Sizes> {
    let (d, head_dim) = (x.dim(1), block.head_dim);
    let is_head_norm = |norm: Norm| norm.weight.dtype() == x.dtype() && norm.weight.shape() == [head_dim];
    let outputs = |layer: &Linear| layer.weight.arrays()[0].dim(0);
    let [n_heads, n_kv_heads, n_values] = block.projections.each_ref().map(|layer| outputs(layer) / head_dim);
    let is_done = n_values == n_kv_heads
        && block.projections.iter().all(|layer| outputs(layer) % head_dim == 0)
        && outputs(&block.o_proj) == d
        && outputs(&block.down_proj) == d
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
    is_done.then_some(Sizes { n_heads, n_kv_heads, head_dim })
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
