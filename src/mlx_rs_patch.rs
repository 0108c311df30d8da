//! Every work-around for a gap in mlx-rs, each with the condition under which it is deleted.
//!
//! The QuantizedEmbedding gap of mlx-rs 0.25 (its `scales` and `biases` were no parameters, so a checkpoint's were
//! never loaded) is closed in 0.33. What 0.33 still lacks for checkpoints that are already quantized is a
//! constructor from packed tensors: `QuantizedEmbedding` and `QuantizedLinear` are built by quantizing a dense
//! weight. [`crate::quantized`] therefore holds the packed tensors itself, made by [`array_from_bytes`].

pub mod distributed;

use mlx_rs::{Array, Device, Dtype};

use crate::error::{Error, Result};

/// An array with a copy of `bytes`, which are little-endian elements of `dtype` in row-major order and need no
/// alignment.
///
/// `Array::from_slice` takes typed, aligned slices only. Delete this when mlx-rs has a safe constructor from bytes.
///
/// # Panics
/// When `shape` and `dtype` do not describe exactly `bytes.len()` bytes, or a dimension is negative.
///
/// # Errors
/// When there is no memory for it, which mlx-rs does not look at.
pub(crate) fn array_from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    let expected = shape.iter().try_fold(item_size(dtype), |n: usize, &d| n.checked_mul(usize::try_from(d).ok()?));
    assert_eq!(expected, Some(bytes.len()), "array_from_bytes: shape {shape:?} of {dtype:?}");
    // mlx-rs keeps MLX from ending the process at an error from the first call on that it checks itself.
    Device::try_default()?;
    // SAFETY: MLX reads exactly the product of `shape` times the item size from the pointer, which the assertion
    // above makes the length of `bytes`, and copies it with memcpy before the call returns.
    #[allow(unsafe_code)]
    let array = unsafe { Array::from_raw_data(bytes.as_ptr().cast(), shape, dtype) };
    match array.as_ptr().ctx.is_null() {
        true => Err(Error::OutOfMemory(format!("{} bytes for weights or a cache were not to be had", bytes.len()))),
        false => Ok(array),
    }
}

/// Bytes of one number of a type that checkpoints hold.
///
/// # Panics
/// For other types.
pub(crate) fn item_size(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Float32 | Dtype::Uint32 => 4,
        Dtype::Float16 | Dtype::Bfloat16 => 2,
        other => panic!("no checkpoint holds {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_unchanged_from_any_alignment() {
        let values = [1.5f32, -2.25, f32::MIN_POSITIVE, f32::MAX, 0.0, -0.0];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for shift in 0..4 {
            let mut shifted = vec![0; shift];
            shifted.extend(&bytes);
            let array = array_from_bytes(&shifted[shift..], &[2, 3], Dtype::Float32).unwrap();
            assert_eq!(array.shape(), [2, 3]);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(array.as_slice()), bits(&values));
        }
    }

    #[test]
    #[should_panic(expected = "array_from_bytes")]
    fn a_shape_that_reads_past_the_bytes_is_refused() {
        let _ = array_from_bytes(&[0; 8], &[3], Dtype::Float32);
    }
}
