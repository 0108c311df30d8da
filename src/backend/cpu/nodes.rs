//! The model's operations as nodes of MLX's graph, computed by kernels.

use mlx_rs::{Array, Dtype};

use mlx_rs::fast::ScaledDotProductAttentionMask;

use super::{Affine, Epilogue, Filter, Heads, Kernels, Layer, Mask, Matrix, NO_TOKEN, Values};
use crate::backend::cpu::bridge::{View, leaf};
use crate::backend::cpu::types::{Element, same_type, typed};
use crate::error::Result;
use crate::quantized::{Linear, Packing, Weight};

/// The type that MLX gives the result of an operation on two types of floats.
fn promoted(a: Dtype, b: Dtype) -> Dtype {
    if a == b { a } else { Dtype::Float32 }
}

impl Weight {
    fn packing(&self) -> Option<Packing> {
        match self {
            Weight::Dense(_) => None,
            Weight::Affine { packing, .. } => Some(*packing),
        }
    }
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

/// Linear layers with one input, `[…, input]` to `[…, width]`; see [`Kernels::linear`].
pub(crate) fn linear(kernels: Kernels, x: &Array, layers: &[&Linear], epilogue: Epilogue) -> Result<Array> {
    let mut inputs = vec![x];
    // For each layer, how it is packed, and whether it has a bias.
    let mut kinds = Vec::new();
    let mut dtype = x.dtype();
    let mut width = 0;
    for layer in layers {
        let (weight, bias) = layer.parts();
        inputs.extend(weight.arrays());
        inputs.extend(bias);
        kinds.push((weight.packing(), bias.is_some()));
        dtype = promoted(dtype, weight.dtype());
        width += weight.arrays()[0].dim(0);
    }
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("x has a dimension") = if epilogue == Epilogue::SwiGlu { width / 2 } else { width };
    leaf(c"a linear layer's output", &inputs, &shape, dtype, move |inputs, output| {
        let (x, mut rest) = inputs.split_first().expect("x is an input");
        let mut layers = Vec::with_capacity(kinds.len());
        for &(packing, has_bias) in &kinds {
            let (weight, after) = rest.split_at(if packing.is_some() { 3 } else { 1 });
            let (bias, after) = after.split_at(usize::from(has_bias));
            layers.push(Layer { weight: matrix(weight, packing), bias: bias.first().map(View::floats) });
            rest = after;
        }
        x.contiguous(|x| kernels.linear(x, &layers, epilogue, output.floats_mut()));
    })
}

/// Rows of an embedding: ids `[B, L]` (u32) to `[B, L, D]`. After [`NO_TOKEN`] come no numbers.
pub(crate) fn embedding(kernels: Kernels, ids: &Array, weight: &Weight) -> Result<Array> {
    let packing = weight.packing();
    let arrays = weight.arrays();
    let columns = match packing {
        None => arrays[0].dim(1),
        Some(packing) => arrays[1].dim(1) * packing.group_size,
    };
    let inputs: Vec<&Array> = [ids].into_iter().chain(arrays).collect();
    leaf(c"embeddings", &inputs, &[ids.dim(0), ids.dim(1), columns], weight.dtype(), move |inputs, output| {
        let ids = inputs[0].contiguous_words();
        match ids.contains(&NO_TOKEN) {
            true => output.poison(),
            false => kernels.embed(&ids, &matrix(&inputs[1..], packing), output.floats_mut()),
        }
    })
}

/// Root-mean-square normalisation over the last axis, with `weight` `[D]`.
pub(crate) fn rms_norm(kernels: Kernels, x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    leaf(
        c"normalised hidden states",
        &[x, weight],
        x.shape(),
        promoted(x.dtype(), weight.dtype()),
        move |inputs, output| {
            inputs[0].contiguous(|x| kernels.rms_norm(x, inputs[1].floats(), eps, output.floats_mut()));
        },
    )
}

/// Place by place, of one shape; the sum in the wider type.
pub(crate) fn add(kernels: Kernels, a: &Array, b: &Array) -> Option<Result<Array>> {
    (a.dtype() == b.dtype()).then(|| {
        leaf(c"hidden states", &[a, b], a.shape(), a.dtype(), move |inputs, output| {
            inputs[0].contiguous(|a| inputs[1].contiguous(|b| kernels.add(a, b, output.floats_mut())));
        })
    })
}

/// `[B, H, L, D]` of any strides, if the components of a row lie together.
fn heads(view: &View) -> Heads<'_> {
    let &[b, h, l, d] = view.shape() else { panic!("heads have four dimensions, not {:?}", view.shape()) };
    let &[sb, sh, sl, sd] = view.strides() else { unreachable!("as many strides as dimensions") };
    assert!(sd == 1 || d == 1, "a row's components lie {sd} apart");
    let shape = [b, h, l, d].map(|n| n as usize);
    Heads { values: view.floats(), shape, strides: [sb, sh, sl].map(|stride| stride as usize) }
}

/// Heads `first..first + n` of `head_dim` numbers out of `x` `[B, L, heads · head_dim]`, each normalised by `norm` (weight and
/// eps) and rotated by `rope` (frequencies, position of the first token, factor), as `[B, n, L, head_dim]`.
pub(crate) fn heads_of(
    kernels: Kernels,
    x: &Array,
    first: i32,
    n: i32,
    head_dim: i32,
    norm: Option<(&Array, f32)>,
    rope: (&[f64], i32, f32),
) -> Result<Array> {
    let (frequencies, offset, factor) = (rope.0.to_vec(), rope.1, rope.2);
    let inputs: Vec<&Array> = [x].into_iter().chain(norm.map(|(weight, _)| weight)).collect();
    let eps = norm.map_or(0.0, |(_, eps)| eps);
    leaf(c"queries, keys or values", &inputs, &[x.dim(0), n, x.dim(1), head_dim], x.dtype(), move |inputs, output| {
        let (x, norm) = (&inputs[0], inputs.get(1).map(|weight| (weight.floats(), eps)));
        let &[b, l, width] = x.shape() else { panic!("projections have three dimensions, not {:?}", x.shape()) };
        let &[sb, sl, _] = x.strides() else { unreachable!("as many strides as dimensions") };
        assert!((first + n) * head_dim <= width);
        let values = x.floats().from((first * head_dim) as usize);
        let shape = [b, n, l, head_dim].map(|n| n as usize);
        let heads = Heads { values, shape, strides: [sb as usize, head_dim as usize, sl as usize] };
        kernels.rope(heads, norm, &frequencies, offset as usize, factor, output.floats_mut());
    })
}

/// Attention of queries `[B, H, L, D]` over keys and values `[B, n_kv_heads, T, D]`, to `[B, L, H · D]`.
pub(crate) fn attention(
    kernels: Kernels,
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    mask: Option<&ScaledDotProductAttentionMask>,
) -> Result<Array> {
    let causal = matches!(mask, Some(ScaledDotProductAttentionMask::Causal));
    let table = match mask {
        Some(ScaledDotProductAttentionMask::Array(table)) => Some(*table),
        _ => None,
    };
    let inputs: Vec<&Array> = [queries, keys, values].into_iter().chain(table).collect();
    let shape = [queries.dim(0), queries.dim(2), queries.dim(1) * queries.dim(3)];
    leaf(c"attention's output", &inputs, &shape, queries.dtype(), move |inputs, output| {
        let mask = match inputs.get(3) {
            Some(table) => Mask::Table(table.flags()),
            None if causal => Mask::Causal,
            None => Mask::All,
        };
        let [q, k, v] = [0, 1, 2].map(|i| heads(&inputs[i]));
        kernels.attention(q, k, v, scale, mask, output.floats_mut());
    })
}

/// A buffer `[B, H, capacity, D]` with the first `n` tokens of another, `[B, H, …, D]` and of the same type, then those of
/// `new` `[B, H, L, D]`, then zeros.
pub(crate) fn append(buffer: &Array, n: i32, new: &Array, capacity: i32) -> Result<Array> {
    // An empty array has no memory to look at.
    let inputs: Vec<&Array> = [new].into_iter().chain((n > 0).then_some(buffer)).collect();
    leaf(
        c"keys or values in the cache",
        &inputs,
        &[new.dim(0), new.dim(1), capacity, new.dim(3)],
        new.dtype(),
        move |inputs, output| {
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
        },
    )
}

/// The token `[1]` (u32) with the largest of the logits `[1, V]`, or [`NO_TOKEN`].
pub(crate) fn argmax(kernels: Kernels, logits: &Array) -> Result<Array> {
    leaf(c"a token", &[logits], &[1], Dtype::Uint32, move |inputs, output| {
        inputs[0].contiguous(|logits| output.words_mut()[0] = kernels.argmax(logits).unwrap_or(NO_TOKEN));
    })
}

/// A token `[1]` (u32) drawn by the logits `[1, V]` with a key `[2]` (u32) of MLX, or [`NO_TOKEN`].
pub(crate) fn sample(kernels: Kernels, logits: &Array, filter: Filter, key: &Array) -> Result<Array> {
    leaf(c"a token", &[logits, key], &[1], Dtype::Uint32, move |inputs, output| {
        let &[a, b] = inputs[1].words() else { panic!("a key has two words") };
        inputs[0]
            .contiguous(|logits| output.words_mut()[0] = kernels.sample(logits, filter, [a, b]).unwrap_or(NO_TOKEN));
    })
}
