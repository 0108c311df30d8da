//! The model's operations as nodes of MLX's graph, computed by kernels.

use std::sync::Arc;

use mlx_rs::fast::ScaledDotProductAttentionMask;
use mlx_rs::{Array, Dtype};

use super::bridge::{self, View, leaf};
use super::types::{Element, same_type, typed};
use super::{Affine, Heads, Kernels, Layer, Mask, Matrix, Values};
use crate::backend::{Backend, Epilogue, Filter, HeadSlice, Linear, NO_TOKEN, Norm, Packing, Rotation, Weight};
use crate::error::Result;
use crate::mapped::Mapped;

/// The type that MLX gives the result of an operation on two types of floats.
fn promoted(a: Dtype, b: Dtype) -> Dtype {
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

impl Backend for Kernels {
    fn linear(&self, x: &Array, layers: &[Linear], epilogue: Epilogue) -> Option<Result<Array>> {
        let kernels = *self;
        let mut inputs = vec![x];
        // For each layer, how it is packed, and whether it has a bias.
        let mut kinds = Vec::new();
        let mut dtype = x.dtype();
        let mut width = 0;
        for Linear { weight, bias } in layers {
            inputs.extend(weight.arrays());
            inputs.extend(*bias);
            kinds.push((weight.packing(), bias.is_some()));
            dtype = promoted(dtype, weight.dtype());
            width += weight.arrays()[0].dim(0);
        }
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("x has a dimension") = if epilogue == Epilogue::SwiGlu { width / 2 } else { width };
        Some(leaf(c"a linear layer's output", &inputs, &shape, dtype, move |inputs, output| {
            let (x, mut rest) = inputs.split_first().expect("x is an input");
            let mut layers = Vec::with_capacity(kinds.len());
            for &(packing, has_bias) in &kinds {
                let (weight, after) = rest.split_at(if packing.is_some() { 3 } else { 1 });
                let (bias, after) = after.split_at(usize::from(has_bias));
                layers.push(Layer { weight: matrix(weight, packing), bias: bias.first().map(View::floats) });
                rest = after;
            }
            x.contiguous(|x| kernels.linear(x, &layers, epilogue, output.floats_mut()));
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
        let shape = [ids.dim(0), ids.dim(1), columns];
        Some(leaf(c"embeddings", &inputs, &shape, weight.dtype(), move |inputs, output| {
            let ids = inputs[0].contiguous_words();
            match ids.contains(&NO_TOKEN) {
                true => output.poison(),
                false => kernels.embed(&ids, &matrix(&inputs[1..], packing), output.floats_mut()),
            }
        }))
    }

    fn rms_norm(&self, x: &Array, Norm { weight, eps }: Norm) -> Option<Result<Array>> {
        let kernels = *self;
        let dtype = promoted(x.dtype(), weight.dtype());
        Some(leaf(c"normalised hidden states", &[x, weight], x.shape(), dtype, move |inputs, output| {
            inputs[0].contiguous(|x| kernels.rms_norm(x, inputs[1].floats(), eps, output.floats_mut()));
        }))
    }

    fn heads(&self, projected: &Array, slice: HeadSlice) -> Option<Result<Array>> {
        let kernels = *self;
        let HeadSlice { first, count, head_dim, norm, rotation } = slice;
        let (frequencies, offset, factor) = match rotation {
            Some(Rotation { frequencies, offset, factor }) => (frequencies.to_vec(), offset, factor),
            None => (Vec::new(), 0, 1.0),
        };
        let inputs: Vec<&Array> = [projected].into_iter().chain(norm.map(|norm| norm.weight)).collect();
        let eps = norm.map_or(0.0, |norm| norm.eps);
        let shape = [projected.dim(0), count, projected.dim(1), head_dim];
        Some(leaf(c"queries, keys or values", &inputs, &shape, projected.dtype(), move |inputs, output| {
            let (x, norm) = (&inputs[0], inputs.get(1).map(|weight| (weight.floats(), eps)));
            let &[b, l, width] = x.shape() else { panic!("projections have three dimensions, not {:?}", x.shape()) };
            let &[sb, sl, _] = x.strides() else { unreachable!("as many strides as dimensions") };
            assert!((first + count) * head_dim <= width);
            let values = x.floats().from((first * head_dim) as usize);
            let shape = [b, count, l, head_dim].map(|n| n as usize);
            let heads = Heads { values, shape, strides: [sb as usize, head_dim as usize, sl as usize] };
            kernels.rope(heads, norm, &frequencies, offset as usize, factor, output.floats_mut());
        }))
    }

    fn attention(
        &self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        scale: f32,
        mask: Option<&ScaledDotProductAttentionMask>,
    ) -> Option<Result<Array>> {
        let kernels = *self;
        let causal = matches!(mask, Some(ScaledDotProductAttentionMask::Causal));
        let table = match mask {
            Some(ScaledDotProductAttentionMask::Array(table)) => Some(*table),
            _ => None,
        };
        let inputs: Vec<&Array> = [queries, keys, values].into_iter().chain(table).collect();
        let shape = [queries.dim(0), queries.dim(2), queries.dim(1) * queries.dim(3)];
        Some(leaf(c"attention's output", &inputs, &shape, queries.dtype(), move |inputs, output| {
            let mask = match inputs.get(3) {
                Some(table) => Mask::Table(table.flags()),
                None if causal => Mask::Causal,
                None => Mask::All,
            };
            let [q, k, v] = [0, 1, 2].map(|i| heads(&inputs[i]));
            kernels.attention(q, k, v, scale, mask, output.floats_mut());
        }))
    }

    fn add(&self, a: &Array, b: &Array) -> Option<Result<Array>> {
        let kernels = *self;
        (a.dtype() == b.dtype()).then(|| {
            leaf(c"hidden states", &[a, b], a.shape(), a.dtype(), move |inputs, output| {
                inputs[0].contiguous(|a| inputs[1].contiguous(|b| kernels.add(a, b, output.floats_mut())));
            })
        })
    }

    fn append(&self, buffer: &Array, n: i32, new: &Array, capacity: i32) -> Option<Result<Array>> {
        if buffer.dtype() != new.dtype() {
            return None;
        }
        // An empty array has no memory to look at.
        let inputs: Vec<&Array> = [new].into_iter().chain((n > 0).then_some(buffer)).collect();
        let shape = [new.dim(0), new.dim(1), capacity, new.dim(3)];
        Some(leaf(c"keys or values in the cache", &inputs, &shape, new.dtype(), move |inputs, output| {
            let numbers_of = |view: &View| (view.shape()[2] * view.shape()[3]) as usize;
            let (row, kept) = (numbers_of(output), n as usize * output.shape()[3] as usize);
            typed!(FloatsMut, output.floats_mut(), output => {
                for (view, start, size) in [(inputs.get(1), 0, kept), (inputs.first(), kept, numbers_of(&inputs[0]))] {
                    let Some(view) = view else { continue };
                    view.contiguous(|from| {
                        let from = same_type(output, from).chunks_exact(numbers_of(view));
                        for (to, from) in output.chunks_exact_mut(row).zip(from) {
                            to[start..start + size].copy_from_slice(&from[..size]);
                        }
                    });
                }
                let end = kept + numbers_of(&inputs[0]);
                output.chunks_exact_mut(row).for_each(|row| row[end..].fill(Element::from_f32(0.0)));
            });
        }))
    }

    fn argmax(&self, logits: &Array) -> Option<Result<Array>> {
        let kernels = *self;
        Some(leaf(c"a token", &[logits], &[1], Dtype::Uint32, move |inputs, output| {
            let token = inputs[0].contiguous(|logits| kernels.argmax(logits));
            output.words_mut()[0] = token.unwrap_or(NO_TOKEN);
        }))
    }

    fn sample(&self, logits: &Array, filter: Filter, key: &Array) -> Option<Result<Array>> {
        let kernels = *self;
        Some(leaf(c"a token", &[logits, key], &[1], Dtype::Uint32, move |inputs, output| {
            let &[a, b] = inputs[1].words() else { panic!("a key has two words") };
            let token = inputs[0].contiguous(|logits| kernels.sample(logits, filter, [a, b]));
            output.words_mut()[0] = token.unwrap_or(NO_TOKEN);
        }))
    }

    fn borrow(&self, map: &Arc<Mapped>, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Option<Array> {
        bridge::borrow(map, bytes, shape, dtype)
    }

    fn computes_by_layer(&self, tokens: i32) -> bool {
        // MLX takes memory for operations long before it computes them on a CPU: for a chunk of a prompt, for most layers.
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

/// `[B, H, L, D]` of any strides, if the components of a row lie together.
fn heads(view: &View) -> Heads<'_> {
    let &[b, h, l, d] = view.shape() else { panic!("heads have four dimensions, not {:?}", view.shape()) };
    let &[sb, sh, sl, sd] = view.strides() else { unreachable!("as many strides as dimensions") };
    assert!(sd == 1 || d == 1, "a row's components lie {sd} apart");
    let shape = [b, h, l, d].map(|n| n as usize);
    Heads { values: view.floats(), shape, strides: [sb, sh, sl].map(|stride| stride as usize) }
}
