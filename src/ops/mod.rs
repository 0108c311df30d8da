//! The operations that the model, its cache and the sampler are made of, and the only place that chooses who computes them: a
//! [backend](crate::backend), and MLX's own operations for what it declines.
//!
//! Reference: `mlx.core.quantized_matmul`, `mlx.core.fast`, `mlx_lm.sample_utils`.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use mlx_rs::fast::{self, ScaledDotProductAttentionMask, scaled_dot_product_attention};
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis, take_axis};
use mlx_rs::ops::{addmm, dequantize, matmul, minimum, multiply, quantized_matmul, select, sigmoid};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Device, DeviceType, Dtype};

use crate::backend::cpu::{self, Kernels};
#[cfg(cuda_kernels)]
use crate::backend::cuda::Gpu;
use crate::backend::{Backend, Epilogue, Filter, HeadSlice, Linear, NO_TOKEN, Norm, Weight};
use crate::error::Result;
use crate::mapped::Mapped;

static CPU: OnceLock<Option<Kernels>> = OnceLock::new();

/// What computes where MLX's device is a CPU: these kernels, or MLX's own CPU backend for `None`. Without this call it is the
/// fastest kernels of the machine. Only the first call in a process counts, and only before anything is computed.
pub fn set_cpu_backend(kernels: Option<Kernels>) {
    let _ = CPU.set(kernels);
}

static GPU: OnceLock<bool> = OnceLock::new();

/// Whether kernels of our own compute where MLX's device is a GPU and the build has them; without this call they do. Counts as
/// [`set_cpu_backend`] does.
pub fn set_gpu_backend(ours: bool) {
    let _ = GPU.set(ours);
}

/// The kernels that compute on the CPU, where MLX does and the build has them.
pub fn cpu_backend() -> Option<Kernels> {
    chosen().copied()
}

fn chosen() -> Option<&'static Kernels> {
    if cfg!(cpu_kernels) && matches!(device_type(), Some(DeviceType::Cpu)) {
        CPU.get_or_init(|| Some(Kernels::best())).as_ref()
    } else {
        None
    }
}

fn device_type() -> Option<DeviceType> {
    Device::try_default().and_then(|device| device.get_type()).ok()
}

/// The name of the kernels that compute: a set of the CPU's, `cuda`, or `mlx` where MLX's own operations do.
pub fn kernels() -> &'static str {
    match (chosen(), backend()) {
        (Some(kernels), _) => kernels.name(),
        (None, Some(_)) => "cuda",
        (None, None) => "mlx",
    }
}

/// What computes, for messages.
pub fn description() -> String {
    backend().map_or_else(|| "MLX's own".to_owned(), |backend| backend.describe())
}

fn backend() -> Option<&'static dyn Backend> {
    #[cfg(cuda_kernels)]
    if matches!(device_type(), Some(DeviceType::Gpu)) {
        return Gpu::get().filter(|_| *GPU.get_or_init(|| true)).map(|gpu| gpu as &dyn Backend);
    }
    chosen().map(|kernels| kernels as &dyn Backend)
}

/// What the backend makes of an operation, if there is one and it does not decline.
fn on_backend(compute: impl FnOnce(&dyn Backend) -> Option<Result<Array>>) -> Option<Result<Array>> {
    backend().and_then(compute)
}

/// `x · Wᵀ (+ bias)`: `[…, input]` to `[…, output]`.
pub(crate) fn linear(x: &Array, layer: Linear) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.linear(x, &[layer], Epilogue::Concat)) {
        return result;
    }
    let Linear { weight, bias } = layer;
    Ok(match (weight, bias) {
        (Weight::Dense(weight), None) => matmul(x, weight.t())?,
        (Weight::Dense(weight), Some(bias)) => addmm(bias, x, weight.t(), None, None)?,
        (Weight::Affine { packed, scales, biases, packing }, bias) => {
            let y = quantized_matmul(x, packed, scales, biases, true, packing.group_size, packing.bits)?;
            match bias {
                Some(bias) => mlx_rs::ops::add(y, bias)?,
                None => y,
            }
        }
    })
}

/// `silu(gate) · up`, of two linear layers with one input.
pub(crate) fn gated_linear(x: &Array, gate: Linear, up: Linear) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.linear(x, &[gate, up], Epilogue::SwiGlu)) {
        return result;
    }
    // Not mlx-rs' `silu`, which is a compiled function: on a CPU, MLX compiles those with the machine's C++ compiler, which a
    // machine that only runs models does not have.
    let (gate, up) = (linear(x, gate)?, linear(x, up)?);
    Ok(multiply(multiply(&gate, sigmoid(&gate)?)?, up)?)
}

/// Rows of an embedding: ids `[B, L]` (u32) to `[B, L, D]`.
pub(crate) fn embedding(ids: &Array, weight: &Weight) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.embedding(ids, weight)) {
        return result;
    }
    // MLX reads whatever lies where a row should be.
    let last = weight.arrays()[0].dim(0) - 1;
    let ids = &minimum(ids, Array::from_slice(&[last as u32], &[1]))?;
    Ok(match weight {
        Weight::Dense(weight) => take_axis(weight, ids, 0)?,
        Weight::Affine { packed, scales, biases, packing } => dequantize(
            packed.try_index(ids)?,
            scales.try_index(ids)?,
            &biases.try_index(ids)?,
            packing.group_size,
            packing.bits,
        )?,
    })
}

/// Root-mean-square normalisation over the last axis (arXiv 1910.07467).
pub(crate) fn rms_norm(x: &Array, norm: Norm) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.rms_norm(x, norm)) {
        return result;
    }
    Ok(fast::rms_norm(x, Some(norm.weight), norm.eps)?)
}

/// The heads of linear layers with one input `[B, L, D]`, for each layer `[B, heads, L, head_dim]`: projected, normalised and
/// rotated as the layer's slice says. `first` of the slices is set here. Where MLX rotates, `rotate` does.
pub(crate) fn project_heads<const N: usize>(
    x: &Array,
    layers: [(Linear, HeadSlice); N],
    rotate: impl Fn(&Array) -> Result<Array>,
) -> Result<[Array; N]> {
    let all: [Linear; N] = layers.map(|(layer, _)| layer);
    let mut heads = Vec::with_capacity(N);
    if let Some(projected) = on_backend(|backend| backend.linear(x, &all, Epilogue::Concat)).transpose()? {
        let mut first = 0;
        for (_, slice) in layers {
            heads.push(slice_heads(&projected, HeadSlice { first, ..slice }, &rotate)?);
            first += slice.count;
        }
    } else {
        for (layer, slice) in layers {
            heads.push(slice_heads(&linear(x, layer)?, HeadSlice { first: 0, ..slice }, &rotate)?);
        }
    }
    Ok(heads.try_into().expect("one for each layer"))
}

fn slice_heads(projected: &Array, slice: HeadSlice, rotate: impl Fn(&Array) -> Result<Array>) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.heads(projected, slice)) {
        return result;
    }
    let HeadSlice { first, count, head_dim, norm, rotation } = slice;
    let part = projected.try_index((.., .., first * head_dim..(first + count) * head_dim))?;
    let mut heads = part.reshape(&[projected.dim(0), projected.dim(1), count, head_dim])?;
    if let Some(norm) = norm {
        heads = rms_norm(&heads, norm)?;
    }
    let heads = heads.transpose_axes(&[0, 2, 1, 3])?;
    if rotation.is_some() { rotate(&heads) } else { Ok(heads) }
}

/// Attention of queries `[B, n_heads, L, head_dim]` over keys and values `[B, n_kv_heads, T, head_dim]`, to
/// `[B, L, n_heads · head_dim]`.
pub(crate) fn attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    mask: Option<ScaledDotProductAttentionMask>,
) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.attention(queries, keys, values, scale, mask.as_ref())) {
        return result;
    }
    let output = scaled_dot_product_attention(queries, keys, values, scale, mask, None)?;
    Ok(output.transpose_axes(&[0, 2, 1, 3])?.reshape(&[queries.dim(0), queries.dim(2), -1])?)
}

/// `a + b` of one shape.
pub(crate) fn add(a: &Array, b: &Array) -> Result<Array> {
    on_backend(|backend| backend.add(a, b)).unwrap_or_else(|| Ok(mlx_rs::ops::add(a, b)?))
}

/// See [`Backend::append`]; `None` where there is no faster way than to grow the buffer and write into it.
pub(crate) fn append(buffer: &Array, n: i32, new: &Array, capacity: i32) -> Option<Result<Array>> {
    on_backend(|backend| backend.append(buffer, n, new, capacity))
}

/// The token `[1]` (u32) with the largest of the logits `[1, V]`; [`NO_TOKEN`] when they hold NaN or ∞, or are all -∞.
pub(crate) fn argmax(logits: &Array) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.argmax(logits)) {
        return result;
    }
    or_no_token(argmax_axis(logits, -1, false)?, logits)
}

/// A token as [`argmax`] gives it, drawn by the logits `[1, V]` with a key `[2]` (u32) of MLX. Where MLX draws, `draw` does.
pub(crate) fn sample(
    logits: &Array,
    filter: Filter,
    key: &Array,
    draw: impl FnOnce() -> Result<Array>,
) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.sample(logits, filter, key)) {
        return result;
    }
    or_no_token(draw()?, logits)
}

fn or_no_token(token: Array, logits: &Array) -> Result<Array> {
    // Less than ∞ and more than -∞, which NaN is not either.
    let all = logits.as_type::<f32>()?.logsumexp_axis(-1, false)?;
    let are_numbers = all.abs()?.lt(Array::from_f32(f32::INFINITY))?;
    Ok(select(are_numbers, token, Array::from_slice(&[NO_TOKEN], &[1]))?)
}

/// See [`Backend::borrow`].
pub(crate) fn borrow(map: &Arc<Mapped>, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Option<Array> {
    backend()?.borrow(map, bytes, shape, dtype)
}

/// Compute `x`, which a layer gave for so many tokens, where going on without would take more memory.
pub(crate) fn end_layer(x: &Array, tokens: i32) -> Result<()> {
    match backend() {
        Some(backend) if backend.computes_by_layer(tokens) => evaluate([x]),
        _ => Ok(()),
    }
}

/// Compute `arrays`.
///
/// # Errors
/// When memory runs out, a kernel fails, or the computation was [interrupted](crate::Error::Interrupted).
pub(crate) fn evaluate<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    let evaluated = eval(arrays);
    if let Some(backend) = backend() {
        backend.failure()?; // which is why MLX may have failed too
    }
    Ok(evaluated?)
}

/// While what this gives lives, what this thread describes stops soon after `stop` becomes true.
pub(crate) fn interruptible(stop: &Arc<AtomicBool>) -> cpu::Interruptible {
    cpu::Interruptible::by(stop)
}
