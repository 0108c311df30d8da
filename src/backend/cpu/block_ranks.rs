//! Transformer blocks of which each rank computes a share of the heads and of the MLP: a node for each part of a block, and MLX's
//! exchange of what it gives between them (tensor parallelism; Megatron-LM, arXiv 1909.08053, section 3).

use mlx_rs::{Array, Dtype};

use super::block::runs;
use super::block_node::{BlockAt, CachesAt, added, attended, buffer, cached, expanded, turns};
use super::bridge::{Output, View, node};
use super::nodes::Inputs;
use super::types::convert;
use super::{InstructionSet, Turns};
use crate::backend::{Block, CachedSpan, Held, LayerCache, Norms, Positions, Residual};
use crate::error::Result;
use crate::mlx_rs_patch::distributed::Group;

/// What all ranks gave for a part of a block, `[ranks · N, D]`, which is still to be added to the hidden states.
struct Given<'a> {
    parts: Array,
    norms: Norms<'a>,
    residual: Residual,
}

/// See [`crate::backend::Backend::blocks`].
pub(super) fn blocks(
    kernels: InstructionSet,
    x: &Array,
    blocks: &[Block],
    spans: &mut [CachedSpan],
    group: &Group,
) -> Result<Array> {
    let positions: Vec<Positions> = spans.iter().map(|span| span.positions).collect();
    let ranks = group.size() as usize;
    let (mut x, mut given) = (x.clone(), None);
    for (i, block) in blocks.iter().enumerate() {
        let taken: Vec<_> = spans.iter_mut().map(|span| (span.layers[i].take(), span.held[i])).collect();
        let part = Part { kernels, ranks, positions: &positions };
        let mut made = part.node(&x, given.as_ref(), Some((block, Half::Attention(&taken))))?.into_iter();
        let mut next = || made.next().expect("an output for each that was asked for");
        (x, given) = (next(), Some(exchanged(&next(), block.attention_norms, block, group)?));
        for span in &mut *spans {
            span.layers[i] = Some((next(), next()));
        }
        let mut made = part.node(&x, given.as_ref(), Some((block, Half::Mlp)))?.into_iter();
        let mut next = || made.next().expect("an output for each that was asked for");
        (x, given) = (next(), Some(exchanged(&next(), block.mlp_norms, block, group)?));
    }
    let part = Part { kernels, ranks, positions: &positions };
    Ok(part.node(&x, given.as_ref(), None)?.remove(0))
}

fn exchanged<'a>(part: &Array, norms: Norms<'a>, block: &Block, group: &Group) -> Result<Given<'a>> {
    Ok(Given { parts: group.all_gather(part)?, norms, residual: block.residual })
}

/// What a node computes of a block.
#[derive(Clone, Copy)]
enum Half<'a> {
    /// With the spans' caches.
    Attention(&'a [(LayerCache, Held)]),
    Mlp,
}

struct Part<'a> {
    kernels: InstructionSet,
    ranks: usize,
    positions: &'a [Positions],
}

impl Part<'_> {
    /// The hidden states with what was given, and what a half of a block makes of them, if there is one: its outputs to
    /// exchange, and with attention keys and values of each span.
    fn node(&self, x: &Array, given: Option<&Given>, half: Option<(&Block, Half)>) -> Result<Vec<Array>> {
        let mut inputs = Inputs::default();
        inputs.push(x);
        let mut dtype = x.dtype();
        let mut given_at = None;
        if let Some(Given { parts, norms, residual }) = given {
            dtype = added(dtype, parts.dtype(), *norms);
            let norm = norms.after.map(|norm| (inputs.push(norm.weight), norm.eps));
            given_at = Some((inputs.push(parts), norm, *residual));
        }
        let mut outputs = vec![Output::new(x.shape(), dtype)];
        let mut rotations = Vec::new();
        let half_at = half.map(|(block, half)| {
            let at = BlockAt::new(&mut inputs, block, &mut rotations);
            let given = |dtype: Dtype| Output::new(&[x.dim(0), block.o_proj.weight.arrays()[0].dim(0)], dtype);
            let caches = match half {
                Half::Attention(taken) => {
                    outputs.push(given(attended(dtype, block)));
                    let keys = (block, cached(dtype, block));
                    let taken = taken.iter().map(|(taken, held)| (taken, *held));
                    Some(CachesAt::new(&mut inputs, &mut outputs, keys, taken))
                }
                Half::Mlp => {
                    outputs.push(given(expanded(dtype, block)));
                    None
                }
            };
            (at, caches)
        });
        let (kernels, ranks, positions) = (self.kernels, self.ranks, self.positions.to_vec());
        let run = move |inputs: &[View], outputs: &mut [View]| {
            let mut x = buffer(&inputs[0]);
            if let Some((at, norm, residual)) = given_at {
                let output = inputs[at].contiguous(|parts| kernels.sum_of_ranks(parts, ranks));
                x = kernels.added(x, output, norm.map(|(at, eps)| (inputs[at].floats(), eps)), residual);
            }
            let [hidden_states, rest @ ..] = outputs else { unreachable!("hidden states are the first output") };
            convert(x.floats(), hidden_states.floats_mut());
            let (Some((at, caches)), [output, caches_out @ ..]) = (&half_at, rest) else { return };
            let turns: Vec<Turns> = rotations.iter().map(|rotations| turns(rotations, &positions)).collect();
            let block = at.block(inputs, &turns);
            let runs = runs(&positions);
            let made = match caches {
                Some(caches) => {
                    let mut spans = caches.open(inputs, caches_out, &positions);
                    kernels.attention_block(&block, &mut spans, &runs, &x)
                }
                None => kernels.mlp_block(&block, &runs, &x),
            };
            convert(made.floats(), output.floats_mut());
        };
        node(c"a part of a transformer block", &inputs.arrays.clone(), &outputs, run)
    }
}
