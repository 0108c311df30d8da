//! Transformer blocks: all of a pass in one node of MLX's graph. Spans of tokens that are decoded are computed by five kernels a block
//! (`decode.rs`), spans of prompts by eight (`prompt.rs`).

use std::ops::Range;

use mlx_rs::ops::{multiply, zeros_dtype};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::attention::{HeadNorm, Heads, Sequence};
use super::driver::Stream;
use super::gemv::{Added, Shared, SharedBytes, weights};
use super::node::{Held, Memory, When, is_own, node};
use super::prompt::Prompt;
use super::rows::{RowAddresses, RowNorm};
use super::{decode, kernel, prompt, sample};
use crate::backend::{
    Block, CachedSpan, LayerCache, Linear, Norm, Norms, Phase, Positions, Rotation, Rotations, make_room,
};
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
    let heads: Vec<Heads> = blocks.iter().map(|block| heads(x, block)).collect::<Option<_>>()?;
    let fits = |(cache, heads): (&LayerCache, &Heads)| {
        let fits = |a: &Array| a.dtype() == x.dtype() && (a.dim(1), a.dim(3)) == (heads.n_kv_heads, heads.head_dim);
        cache.as_ref().is_none_or(|(keys, values)| fits(keys) && fits(values) && keys.dim(2) == values.dim(2))
    };
    if !spans.iter().all(|span| span.layers.iter().zip(&heads).all(fits)) {
        return None;
    }
    let of_block = |(block, &heads): (&Block, &Heads), phase, rows| {
        let of = (rows, d, x.dtype());
        Some(match phase {
            Phase::Decode => Planned::Decode(decode::Planned::new(gpu, of, block, heads)?),
            Phase::Prefill => Planned::Prompt(prompt::Planned::new(gpu, of, block, heads)?),
        })
    };
    let of_passes =
        |block| passes.iter().map(|pass| of_block(block, pass.phase, pass.rows)).collect::<Option<Vec<_>>>();
    let plan = || blocks.iter().zip(&heads).map(of_passes).collect::<Option<Vec<_>>>();
    // What follows a prompt, before it is read.
    let decode_next = || {
        for block in blocks.iter().zip(&heads) {
            let _ = of_block(block, Phase::Decode, 1);
        }
        let _ = sample::kernel_for(gpu, x.dtype());
    };
    let planned: Vec<Vec<Planned>> = kernel::all_at_once(plan, decode_next)?;
    Some(compute(x, blocks, &heads, passes, planned, spans))
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

/// The sequences of a pass, in a layer, and whether each is turned as in a long context.
enum Sequences {
    Decode(Vec<(Sequence, bool)>),
    Prompt(Vec<(Prompt, bool)>),
}

impl Sequences {
    fn new(pass: &Pass, spans: &[CachedSpan], layer: usize, block: &Block) -> Self {
        let spans = spans[pass.spans.clone()].iter().map(|span| {
            let capacity = span.layers[layer].as_ref().map_or(0, |(keys, _)| keys.dim(2));
            let is_long = block.rotations.is_some_and(|rotations| rotations.is_long(span.positions.context_size));
            (&span.positions, capacity, is_long)
        });
        match pass.phase {
            Phase::Decode => Sequences::Decode(
                spans.map(|(at, capacity, is_long)| (Sequence::new(at, block.window, capacity), is_long)).collect(),
            ),
            Phase::Prefill => {
                let mut first = 0;
                let prompt = |(at, capacity, is_long): (&Positions, i32, bool)| {
                    let prompt = Prompt::new(at, first, block.window, capacity);
                    first += at.tokens;
                    (prompt, is_long)
                };
                Sequences::Prompt(spans.map(prompt).collect())
            }
        }
    }
}

impl Planned {
    fn room(&self, sequences: &Sequences) -> Room {
        match (self, sequences) {
            (Planned::Decode(planned), Sequences::Decode(sequences)) => {
                planned.room(sequences.iter().map(|(of, _)| of))
            }
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
    /// Of short and of long contexts; 0 where heads are not turned.
    pub turns: [u64; 2],
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
    heads: &[Heads],
    passes: Vec<Pass>,
    planned: Vec<Vec<Planned>>,
    spans: &mut [CachedSpan],
) -> Result<Array> {
    for (layer, heads) in heads.iter().enumerate() {
        make_caches(layer, heads, x.dtype(), spans)?;
    }
    take_over(x.dtype(), spans)?;
    let sequences: Vec<Vec<Sequences>> = (blocks.iter().enumerate())
        .map(|(layer, block)| passes.iter().map(|pass| Sequences::new(pass, spans, layer, block)).collect())
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
        // Those of short and of long contexts.
        let turns: Vec<Option<[Array; 2]>> = (blocks.iter())
            .map(|block| {
                let turns = |rotations: &Rotations| {
                    let [short, long] = [0, i32::MAX].map(|context| memory.turns(rotations.of(context), end));
                    Ok([short?, long?])
                };
                block.rotations.map(turns).transpose()
            })
            .collect::<Result<_>>()?;
        let inputs: Vec<&Array> = own.iter().chain([x]).collect();
        let (mut others, mut layouts) = (Vec::new(), Vec::new());
        for (layer, (block, turns)) in blocks.iter().zip(&turns).enumerate() {
            others.extend(turns.iter().flatten());
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
                let mut caches = || [next(), next()];
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
                                let at_caches =
                                    |(of, is_long): &(Sequence, bool)| of.at(caches(), at.turns[usize::from(*is_long)]);
                                let sequences: Vec<_> = sequences.iter().map(at_caches).collect();
                                planned.launch(stream, follows, &at, &numbers, &sequences)?;
                            }
                            (Planned::Prompt(planned), Sequences::Prompt(prompts)) => {
                                let at_caches =
                                    |(of, is_long): &(Prompt, bool)| of.at(caches(), at.turns[usize::from(*is_long)]);
                                let prompts: Vec<_> = prompts.iter().map(at_caches).collect();
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
        let turns = if self.turns { [next(), next()] } else { [0; 2] };
        let [projections, o_proj, expansion, down_proj] =
            self.linears.map(|n| (0..n).map(|_| next()).collect::<Vec<u64>>());
        let [q_norm, k_norm] = match self.norms {
            Some(eps) => eps.map(|eps| HeadNorm { weight: next(), eps }),
            None => Default::default(),
        };
        At { turns, projections, o_proj, expansion, down_proj, q_norm, k_norm }
    }
}

/// The arrays of a block's linear layers, each group's with the norm before it, or after it.
fn linears<'a>(block: &Block<'a>) -> [Vec<&'a Array>; 4] {
    fn arrays<'a, const N: usize>(layers: [Linear<'a>; N], norm: Option<Norm<'a>>) -> Vec<&'a Array> {
        weights(&layers, norm.map(|norm| norm.weight))
    }
    [
        arrays(block.projections, block.attention_norms.before),
        arrays([block.o_proj], block.attention_norms.after),
        arrays([block.gate_proj, block.up_proj], block.mlp_norms.before),
        arrays([block.down_proj], block.mlp_norms.after),
    ]
}

/// A block's heads; `None` for a block that is not done here, in any phase.
fn heads(x: &Array, block: &Block) -> Option<Heads> {
    let (d, head_dim) = (x.dim(1), block.head_dim);
    let outputs = |layer: &Linear| layer.weight.arrays()[0].dim(0);
    let [n_heads, n_kv_heads, n_values] = block.projections.each_ref().map(|layer| outputs(layer) / head_dim);
    let pairs = |rotation: &Rotation| rotation.frequencies.len() as i32;
    let turned = block.rotations.map_or(0, |rotations| pairs(rotations.of(0)));
    let is_done = n_values == n_kv_heads
        && block.projections.iter().all(|layer| outputs(layer) % head_dim == 0)
        && outputs(&block.o_proj) == d
        && outputs(&block.down_proj) == d
        && block.rotations.is_none_or(|rotations| pairs(rotations.of(i32::MAX)) == turned)
        && turned <= head_dim / 2
        // Nothing here adds up what several ranks have.
        && block.summed_over.is_none();
    let (scale, cap) = (block.scale, block.softcap);
    is_done.then_some(Heads { n_heads, n_kv_heads, head_dim, turned, scale, cap })
}

/// A part of a block whose output is added to the hidden states.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Attention,
    Mlp,
}

/// What is done to rows by kernels of its own in some families' blocks: norms over all heads of queries and keys, and norms of what is
/// added to the hidden states.
#[derive(Debug)]
pub(super) struct RowSteps {
    width: i32,
    heads: Heads,
    /// Of queries and keys, over all heads.
    of_all_heads: Option<[RowNorm; 2]>,
    /// Of attention and of the MLP.
    after: [Option<RowNorm>; 2],
    added: Added,
}

/// A launch of [`RowSteps`].
#[derive(Debug, Clone, Copy)]
pub(super) struct RowLaunch {
    pub stream: Stream,
    pub rows: i32,
    /// Memory for hidden states.
    pub normed: u64,
    /// Hidden states.
    pub y: u64,
}

impl RowSteps {
    /// Of hidden states of this width and type; `None` for what is not done here.
    pub fn new(gpu: &Gpu, (width, dtype): (i32, Dtype), block: &Block, heads: Heads) -> Option<Self> {
        let is_of_one = |norm: Norm| norm.weight.dtype() == dtype && norm.weight.shape() == [heads.head_dim];
        let of_all_heads = match block.qk_norm.filter(|norms| !norms.iter().copied().all(is_of_one)) {
            Some([q, k]) => {
                let norm =
                    |norm, heads_of: i32| RowNorm::new(gpu, heads_of * heads.head_dim, dtype, Some(norm), 16, false);
                Some([norm(q, heads.n_heads)?, norm(k, heads.n_kv_heads)?])
            }
            None => None,
        };
        let after = |norms: Norms| match norms.after {
            Some(norm) => RowNorm::new(gpu, width, dtype, Some(norm), 16, true).map(Some),
            None => Some(None),
        };
        let after = [after(block.attention_norms)?, after(block.mlp_norms)?];
        Some(RowSteps { width, heads, of_all_heads, after, added: Added::new(block.residual, dtype) })
    }

    /// Of hidden states.
    pub fn width(&self) -> i32 {
        self.width
    }

    /// Normalise projected queries and keys, if that is over all heads; the norms that are left, of each head.
    ///
    /// # Safety
    /// `projected` are rows of all heads, and the weights those of the block.
    pub unsafe fn normalise_heads(&self, launch: RowLaunch, at: &At, projected: u64) -> Result<[HeadNorm; 2]> {
        let Some(norms) = self.of_all_heads else { return Ok([at.q_norm, at.k_norm]) };
        let pitch = self.heads.all() * self.heads.head_dim;
        let keys = projected + (self.heads.n_heads * self.heads.head_dim) as u64 * 2;
        for (norm, (x, weight)) in norms.into_iter().zip([(projected, at.q_norm.weight), (keys, at.k_norm.weight)]) {
            // SAFETY: the caller's promise.
            unsafe {
                norm.launch(
                    launch.stream,
                    true,
                    launch.rows,
                    RowAddresses { x, weight, y: x, pitch },
                    Added::default(),
                )?;
            }
        }
        Ok([HeadNorm::default(); 2])
    }

    /// What a part computes, of the address where it goes and of what it is added to there, added to `x`.
    ///
    /// # Safety
    /// The addresses are of rows as wide as was said; `weights` are the part's, as [`At`] has them.
    pub unsafe fn add(
        &self,
        launch: RowLaunch,
        part: Part,
        x: u64,
        weights: &[u64],
        compute: impl FnOnce(u64, Added) -> Result<()>,
    ) -> Result<()> {
        let RowLaunch { stream, rows, normed, y } = launch;
        let Some(norm) = self.after[part as usize] else { return compute(y, self.added.at(x)) };
        compute(normed, Added::default())?;
        let weight = *weights.last().expect("a norm behind the layers");
        let at = RowAddresses { x: normed, weight, y, pitch: self.width };
        // SAFETY: the caller's promise.
        unsafe { norm.launch(stream, true, rows, at, self.added.at(x)) }
    }
}

/// Caches of a layer with room for the spans' tokens.
fn make_caches(layer: usize, heads: &Heads, dtype: Dtype, spans: &mut [CachedSpan]) -> Result<()> {
    for CachedSpan { layers, held, .. } in spans {
        let capacity = held[layer].capacity;
        match &mut layers[layer] {
            Some((keys, values)) => {
                make_room(keys, capacity)?;
                make_room(values, capacity)?;
            }
            empty @ None => {
                let zeros = || zeros_dtype(&[1, heads.n_kv_heads, capacity, heads.head_dim], dtype);
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
