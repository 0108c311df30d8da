//! The model's leaf operations on MLX arrays, computed by kernels.

use mlx_rs::{Array, Dtype};

use super::bridge::{View, leaf};
use super::{Affine, Kernels, Matrix, Values};
use crate::quantized::{Packing, Weight};

/// The type that MLX gives the result of an operation on two types of floats.
fn promoted(a: Dtype, b: Dtype) -> Dtype {
    if a == b { a } else { Dtype::Float32 }
}

impl Weight {
    /// The arrays that [`matrix`] takes.
    fn arrays(&self) -> Vec<&Array> {
        match self {
            Weight::Dense(values) => vec![values],
            Weight::Affine { packed, scales, biases, .. } => vec![packed, scales, biases],
        }
    }

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

/// `x · Wᵀ (+ bias)`: `[…, input]` to `[…, output]`.
pub(crate) fn linear(kernels: Kernels, x: &Array, weight: &Weight, bias: Option<&Array>) -> Array {
    let packing = weight.packing();
    let arrays = weight.arrays();
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("x has a dimension") = arrays[0].dim(0);
    let dtype = promoted(x.dtype(), weight.dtype());
    let n = arrays.len();
    let inputs: Vec<&Array> = [x].into_iter().chain(arrays).chain(bias).collect();
    leaf(&inputs, &shape, dtype, move |inputs, output| {
        let weight = matrix(&inputs[1..1 + n], packing);
        let bias = inputs.get(1 + n).map(View::floats);
        // SAFETY: `output` is the output.
        let y = unsafe { output.floats_mut() };
        inputs[0].contiguous(|x| kernels.matmul(x, &weight, bias, y));
    })
}
