//! The model's operations as nodes of MLX's graph, computed by kernels.

use std::sync::Arc;

use mlx_rs::{Array, Dtype};

use super::bridge::{self, Output, View, leaf, node};
use super::types::Shared;
use super::{Affine, FloatsMut, InstructionSet, Layer, Matrix, Values, block_node, block_ranks, threads};
use crate::backend::{Backend, Block, CachedSpan, Choice, Epilogue, Linear, NO_TOKEN, Norm, Packing, Phase, Weight};
use crate::error::Result;
use crate::mapped::Mapped;

/// The type that MLX gives the result of an operation on two types of floats.
pub(super) fn promoted(a: Dtype, b: Dtype) -> Dtype {
    if a == b { a } else { Dtype::Float32 }
}

/// A weight from the views of [`Weight::arrays`].
fn matrix(views: &[View], packing: Option<Packing>) -> Matrix<'_> {
    let rows = views[0].shape()[0] as usize;
    match packing {
        None => Matrix { rows, columns: views[0].shape()[1] as usize, values: Values::Dense(views[0].floats()) },
        Some(Packing { group_size, bits }) => Matrix {
            rows,
            columns: (views[1].shape()[1] * group_size) as usize,
            values: Values::Affine(Affine {
                packed: views[0].words(),
                scales: views[1].floats(),
                biases: views[2].floats(),
                group_size: group_size as usize,
                bits: bits as u32,
            }),
        },
    }
}

impl Backend for InstructionSet {
    fn blocks(&self, x: &Array, blocks: &[Block], spans: &mut [CachedSpan]) -> Option<Result<Array>> {
        match blocks.first().and_then(|block| block.summed_over) {
            None => Some(block_node::blocks(*self, x, blocks, spans)),
            Some(group) => Some(block_ranks::blocks(*self, x, blocks, spans, group)),
        }
    }

    fn linear(&self, x: &Array, layers: &[Linear], epilogue: Epilogue, phase: Phase) -> Option<Result<Array>> {
        let kernels = *self;
        let mut inputs = Inputs::default();
        let x_at = inputs.push(x);
        let places: Vec<LayerAt> = layers.iter().map(|layer| inputs.push_layer(layer)).collect();
        let dtype = layers.iter().fold(x.dtype(), |dtype, layer| promoted(dtype, layer.weight.dtype()));
        let width: i32 = layers.iter().map(|layer| layer.weight.arrays()[0].dim(0)).sum();
        let width = if epilogue.activation().is_some() { width / 2 } else { width };
        let shape = [x.dim(0), width];
        Some(leaf(c"a linear layer's output", &inputs.arrays, &shape, dtype, move |inputs, output| {
            let layers: Vec<Layer> = places.iter().map(|place| place.layer(inputs)).collect();
            inputs[x_at].contiguous(|x| kernels.linear(x, &layers, epilogue, phase, output.floats_mut()));
        }))
    }

    fn embedding(&self, ids: &Array, weight: &Weight) -> Option<Result<Array>> {
        let kernels = *self;
        let packing = weight.packing();
        let arrays = weight.arrays();
        let columns = match packing {
            None => arrays[0].dim(1),
            Some(packing) => arrays[1].dim(1) * packing.group_size,
        };
        let inputs: Vec<&Array> = [ids].into_iter().chain(arrays).collect();
        let shape = [ids.dim(0), columns];
        Some(leaf(c"embeddings", &inputs, &shape, weight.dtype(), move |inputs, output| {
            let ids = inputs[0].contiguous_words();
            kernels.embed(&ids, &matrix(&inputs[1..], packing), output.floats_mut());
        }))
    }

    fn rms_norm(&self, x: &Array, Norm { weight, eps }: Norm) -> Option<Result<Array>> {
        let kernels = *self;
        let dtype = promoted(x.dtype(), weight.dtype());
        Some(leaf(c"normalised hidden states", &[x, weight], x.shape(), dtype, move |inputs, output| {
            inputs[0].contiguous(|x| kernels.rms_norm(x, inputs[1].floats(), eps, output.floats_mut()));
        }))
    }

    fn sample(&self, logits: &Array, choices: &[Choice]) -> Option<Result<Array>> {
        let kernels = *self;
        let choices = choices.to_vec();
        let shape = [choices.len() as i32];
        Some(leaf(c"tokens", &[logits], &shape, Dtype::Uint32, move |inputs, output| {
            inputs[0].contiguous(|logits| {
                let n = logits.len() / choices.len();
                let tokens = Shared(output.words_mut().as_mut_ptr());
                threads::for_each(choices.len(), |i| {
                    let row = logits.part(i * n..(i + 1) * n);
                    let token = match choices[i] {
                        Choice::Greedy => kernels.argmax(row),
                        Choice::Random { filter, key } => kernels.sample(row, filter, key),
                    };
                    // SAFETY: this task alone writes this token.
                    unsafe { tokens.at(i).write(token.unwrap_or(NO_TOKEN)) };
                });
            });
        }))
    }

    fn logprobs(&self, logits: &Array, tokens: &Array, top: usize) -> Option<Result<(Array, Array)>> {
        let kernels = *self;
        let rows = logits.dim(0);
        let outputs =
            [Output::new(&[rows, 1 + top as i32], Dtype::Float32), Output::new(&[rows, top as i32], Dtype::Uint32)];
        Some(
            node(c"log-probabilities", &[logits, tokens], &outputs, move |inputs, outputs| {
                let [values, ids] = outputs else { unreachable!("two outputs") };
                let FloatsMut::F32(values) = values.floats_mut() else { unreachable!("made as f32") };
                let (ids, tokens) = (ids.words_mut(), inputs[1].contiguous_words());
                inputs[0].contiguous(|logits| {
                    let n = logits.len() / tokens.len();
                    for (i, token) in tokens.iter().enumerate() {
                        let (values, ids) = (&mut values[i * (1 + top)..][..1 + top], &mut ids[i * top..][..top]);
                        kernels.logprobs(logits.part(i * n..(i + 1) * n), *token, values, ids);
                    }
                });
            })
            .map(|mut made| {
                let ids = made.pop().expect("two outputs");
                (made.pop().expect("two outputs"), ids)
            }),
        )
    }

    fn borrow(&self, map: &Arc<Mapped>, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Option<Array> {
        bridge::borrow(map, bytes, shape, dtype)
    }

    fn computes_by_layer(&self, tokens: i32) -> bool {
        tokens >= 64
    }

    fn failure(&self) -> Result<()> {
        bridge::failure()
    }

    fn describe(&self) -> String {
        let threads = super::threads();
        format!("{}, {threads} thread{}", self.name(), if threads == 1 { "" } else { "s" })
    }
}

/// The inputs of a node.
#[derive(Default)]
pub(super) struct Inputs<'a> {
    pub arrays: Vec<&'a Array>,
}

impl<'a> Inputs<'a> {
    /// Its number.
    pub fn push(&mut self, array: &'a Array) -> usize {
        self.arrays.push(array);
        self.arrays.len() - 1
    }

    pub fn push_layer(&mut self, Linear { weight, bias }: &Linear<'a>) -> LayerAt {
        let first = self.arrays.len();
        self.arrays.extend(weight.arrays());
        LayerAt { weight: first, packing: weight.packing(), bias: bias.map(|bias| self.push(bias)) }
    }
}

/// Which inputs of a node are a linear layer.
#[derive(Clone, Copy)]
pub(super) struct LayerAt {
    weight: usize,
    packing: Option<Packing>,
    bias: Option<usize>,
}

impl LayerAt {
    pub fn layer<'a>(&self, inputs: &'a [View]) -> Layer<'a> {
        Layer { weight: matrix(&inputs[self.weight..], self.packing), bias: self.bias.map(|at| inputs[at].floats()) }
    }
}
