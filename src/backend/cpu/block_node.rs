//! Transformer blocks as one node of MLX's graph, which takes over the caches' memory.

use mlx_rs::{Array, Dtype};

use super::bridge::{Output, View, node};
use super::nodes::{Inputs, LayerAt, promoted};
use super::types::{Buffer, convert};
use super::{InstructionSet, Turns, block};
use crate::backend::{
    Activation, Block, CachedSpan, Held, LayerCache, Linear, Norm, Norms, Positions, Residual, Rotations,
};
use crate::error::Result;

/// Which inputs are a normalisation.
type NormAt = (usize, f32);

/// Which inputs of the node are a block's, and its settings.
pub(super) struct BlockAt {
    /// Before and after attention, before and after the MLP.
    norms: [Option<NormAt>; 4],
    projections: [LayerAt; 3],
    qk_norm: Option<[NormAt; 2]>,
    rotations: Option<usize>,
    head_dim: i32,
    scale: f32,
    softcap: Option<f32>,
    window: Option<i32>,
    o_proj: LayerAt,
    expansion: [LayerAt; 2],
    activation: Activation,
    down_proj: LayerAt,
    residual: Residual,
}

impl BlockAt {
    /// `rotations` are those that are known already, each once.
    pub fn new<'a>(inputs: &mut Inputs<'a>, block: &Block<'a>, rotations: &mut Vec<Rotations>) -> Self {
        fn norm<'a>(inputs: &mut Inputs<'a>, norm: Norm<'a>) -> NormAt {
            (inputs.push(norm.weight), norm.eps)
        }
        let mut rotations_at = |wanted: &Rotations| {
            let known = rotations.iter().position(|known| known == wanted);
            known.unwrap_or_else(|| {
                rotations.push(wanted.clone());
                rotations.len() - 1
            })
        };
        let Block { attention_norms, mlp_norms, .. } = block;
        let norms = [attention_norms.before, attention_norms.after, mlp_norms.before, mlp_norms.after];
        BlockAt {
            norms: norms.map(|weight| weight.map(|weight| norm(inputs, weight))),
            projections: block.projections.map(|layer| inputs.push_layer(&layer)),
            qk_norm: block.qk_norm.map(|norms| norms.map(|weight| norm(inputs, weight))),
            rotations: block.rotations.map(&mut rotations_at),
            head_dim: block.head_dim,
            scale: block.scale,
            softcap: block.softcap,
            window: block.window,
            o_proj: inputs.push_layer(&block.o_proj),
            expansion: [block.gate_proj, block.up_proj].map(|layer| inputs.push_layer(&layer)),
            activation: block.activation,
            down_proj: inputs.push_layer(&block.down_proj),
            residual: block.residual,
        }
    }

    pub fn block<'a>(&self, inputs: &'a [View], turns: &'a [Turns]) -> block::Block<'a> {
        let norm = |(at, eps): NormAt| -> block::Norm<'a> { (inputs[at].floats(), eps) };
        let [input, attended, expanding, expanded] = self.norms.map(|at| at.map(norm));
        block::Block {
            attention_norms: block::Norms { before: input, after: attended },
            projections: self.projections.map(|at| at.layer(inputs)),
            qk_norm: self.qk_norm.map(|norms| norms.map(norm)),
            turns: self.rotations.map(|at| &turns[at]),
            head_dim: self.head_dim as usize,
            scale: self.scale,
            softcap: self.softcap,
            window: self.window.map(|window| window as usize),
            o_proj: self.o_proj.layer(inputs),
            mlp_norms: block::Norms { before: expanding, after: expanded },
            expansion: self.expansion.map(|at| at.layer(inputs)),
            activation: self.activation,
            down_proj: self.down_proj.layer(inputs),
            residual: self.residual,
        }
    }
}

fn normed(x: Dtype, norm: Option<Norm>) -> Dtype {
    norm.map_or(x, |norm| promoted(x, norm.weight.dtype()))
}

fn projected(x: Dtype, layers: &[Linear]) -> Dtype {
    layers.iter().fold(x, |x, layer| promoted(x, layer.weight.dtype()))
}

/// The types of a block's keys and values, and of what its attention and its MLP give.
pub(super) fn cached(x: Dtype, block: &Block) -> Dtype {
    projected(normed(x, block.attention_norms.before), &block.projections)
}

pub(super) fn attended(x: Dtype, block: &Block) -> Dtype {
    projected(cached(x, block), &[block.o_proj])
}

pub(super) fn expanded(x: Dtype, block: &Block) -> Dtype {
    projected(projected(normed(x, block.mlp_norms.before), &[block.gate_proj, block.up_proj]), &[block.down_proj])
}

/// The type of the sum of a block's input and what a part of it gives.
pub(super) fn added(x: Dtype, output: Dtype, norms: Norms) -> Dtype {
    promoted(x, normed(output, norms.after))
}

/// Which inputs of a node are the keys and values of a block, for each span that has any, and what its outputs hold; two outputs
/// for each span.
pub(super) struct CachesAt(Vec<(Option<(usize, usize)>, Held)>);

impl CachesAt {
    /// `taken` are the spans' caches, whose memory the outputs take over.
    pub fn new<'a>(
        inputs: &mut Inputs<'a>,
        outputs: &mut Vec<Output>,
        (block, dtype): (&Block, Dtype),
        taken: impl Iterator<Item = (&'a LayerCache, Held)>,
    ) -> Self {
        let n_kv_heads = block.projections[1].weight.arrays()[0].dim(0) / block.head_dim;
        let place = |(taken, held): (&'a LayerCache, Held)| {
            let made = || Output::new(&[1, n_kv_heads, held.capacity, block.head_dim], dtype);
            let at = taken.as_ref().map(|(keys, values)| (inputs.push(keys), inputs.push(values)));
            outputs.extend(match at {
                Some((keys, values)) => [made().in_place_of(keys), made().in_place_of(values)],
                None => [made(), made()],
            });
            (at, held)
        };
        CachesAt(taken.map(place).collect())
    }

    /// With what is there already, to be written on.
    pub fn open<'a>(
        &self,
        inputs: &[View],
        outputs: &'a mut [View],
        positions: &[Positions],
    ) -> Vec<block::SpanCache<'a>> {
        let mut spans = Vec::with_capacity(positions.len());
        for ((positions, (at, held)), outputs) in positions.iter().zip(&self.0).zip(outputs.chunks_exact_mut(2)) {
            let [keys, values] = outputs else { unreachable!("two outputs a span") };
            if let Some((old_keys, old_values)) = at {
                for (old, new) in [(&inputs[*old_keys], &mut *keys), (&inputs[*old_values], &mut *values)] {
                    if !new.is_at(old) {
                        copy_rows(old, new, held.gap.row(positions.offset) as usize);
                    }
                }
            }
            let (keys, values) = (keys.floats_mut(), values.floats_mut());
            spans.push(block::SpanCache { positions: *positions, held: *held, keys, values });
        }
        spans
    }
}

/// The numbers of an input, to calculate with.
pub(super) fn buffer(x: &View) -> Buffer {
    x.contiguous(|x| {
        let mut hidden_states = Buffer::new(x.kind(), x.len());
        convert(x, hidden_states.floats_mut());
        hidden_states
    })
}

/// See [`crate::backend::Backend::blocks`].
pub(super) fn blocks(kernels: InstructionSet, x: &Array, blocks: &[Block], spans: &mut [CachedSpan]) -> Result<Array> {
    let mut rotations = Vec::new();
    let taken: Vec<Vec<_>> =
        spans.iter_mut().map(|span| span.layers.iter_mut().map(Option::take).collect::<Vec<_>>()).collect();
    let positions: Vec<Positions> = spans.iter().map(|span| span.positions).collect();
    let mut inputs = Inputs::default();
    inputs.push(x);
    let mut outputs = Vec::new();
    let mut places = Vec::new();
    let mut dtype = x.dtype();
    for (i, block) in blocks.iter().enumerate() {
        let at = BlockAt::new(&mut inputs, block, &mut rotations);
        let keys = (block, cached(dtype, block));
        let taken = taken.iter().zip(&*spans).map(|(taken, span)| (&taken[i], span.held[i]));
        let caches = CachesAt::new(&mut inputs, &mut outputs, keys, taken);
        dtype = added(dtype, attended(dtype, block), block.attention_norms);
        dtype = added(dtype, expanded(dtype, block), block.mlp_norms);
        places.push((at, caches));
    }
    outputs.insert(0, Output::new(x.shape(), dtype));
    let arrays = std::mem::take(&mut inputs.arrays);
    let run = move |inputs: &[View], outputs: &mut [View]| {
        let turns: Vec<Turns> = rotations.iter().map(|rotations| turns(rotations, &positions)).collect();
        let (output, caches) = outputs.split_first_mut().expect("hidden states are the first output");
        let runs = block::runs(&positions);
        let mut x = buffer(&inputs[0]);
        for ((at, cached), outputs) in places.iter().zip(caches.chunks_exact_mut(2 * positions.len())) {
            let mut spans = cached.open(inputs, outputs, &positions);
            x = kernels.block(&at.block(inputs, &turns), &mut spans, &runs, x);
        }
        convert(x.floats(), output.floats_mut());
    };
    let mut made = node(c"transformer blocks", &arrays, &outputs, run)?.into_iter();
    let output = made.next().expect("hidden states are the first output");
    for i in 0..blocks.len() {
        for span in &mut *spans {
            span.layers[i] = made.next().zip(made.next());
        }
    }
    Ok(output)
}

/// Of the tokens at these positions, each as its sequence rotates them.
pub(super) fn turns(rotations: &Rotations, positions: &[Positions]) -> Turns {
    let mut turns = Turns::default();
    for of_a_kind in positions.chunk_by(|a, b| rotations.is_long(a.context_size) == rotations.is_long(b.context_size)) {
        let rotation = rotations.of(of_a_kind[0].context_size);
        let tokens: Vec<usize> = of_a_kind.iter().flat_map(|at| at.offset as usize..at.end() as usize).collect();
        turns.append(Turns::new(&rotation.frequencies, rotation.factor, &tokens));
    }
    turns
}

/// The first `n` rows of each head of a cache to another, larger one.
fn copy_rows(from: &View, to: &mut View, n: usize) {
    let &[1, heads, capacity, head_dim] = to.shape() else { panic!("caches are [1, H, capacity, D]") };
    let (row, capacity) = (head_dim as usize, capacity as usize);
    let &[_, stride, of_token, 1] = from.strides() else { panic!("tokens of a cache lie {:?} apart", from.strides()) };
    assert!(of_token as usize == row || n <= 1);
    let mut to = to.floats_mut();
    if n > 0 {
        for head in 0..heads as usize {
            let start = head * stride as usize;
            let to = to.part(head * capacity * row..(head * capacity + n) * row);
            convert(from.floats().part(start..start + n * row), to);
        }
    }
}
