//! The operations that the model, its cache and the sampler are made of, and the only place that chooses who computes them: a
//! [backend](crate::backend), and MLX's own operations for what it declines.
//!
//! Reference: `mlx.core.quantized_matmul`, `mlx.core.fast`, `mlx_lm.sample_utils`.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use half::f16;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask, scaled_dot_product_attention};
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis, take_along_axis, take_axis};
use mlx_rs::ops::{
    add, addmm, argsort_axis, clip, concatenate, dequantize, divide, full, matmul, minimum, multiply, power,
    quantized_matmul, rsqrt, select, sigmoid, softmax_axis, tanh, zeros, zeros_dtype,
};
use mlx_rs::transforms::{async_eval, eval};
use mlx_rs::{Array, Device, DeviceType, Dtype};

use crate::backend::cpu::{self, InstructionSet};
#[cfg(cuda_kernels)]
use crate::backend::cuda::Gpu;
use crate::backend::{
    Activation, Backend, Block, CachedSpan, Choice, Epilogue, Filter, Key, Linear, NO_TOKEN, Norm, Phase, Residual,
    Weight,
};
use crate::error::Result;
use crate::mapped::Mapped;
use crate::mlx_rs_patch::array_from_bytes;
use crate::mlx_rs_patch::distributed::Group;

static CPU: OnceLock<Option<InstructionSet>> = OnceLock::new();

/// What computes where MLX's device is a CPU: these kernels, or MLX's own CPU backend for `None`. Without this call it is the
/// fastest kernels of the machine. Only the first call in a process counts, and only before anything is computed.
pub fn set_cpu_backend(kernels: Option<InstructionSet>) {
    let _ = CPU.set(kernels);
}

static GPU: OnceLock<bool> = OnceLock::new();

/// Whether kernels of our own compute where MLX's device is a GPU and the build has them; without this call they do. Counts as
/// [`set_cpu_backend`] does.
pub fn set_gpu_backend(ours: bool) {
    let _ = GPU.set(ours);
}

/// The kernels that compute on the CPU, where MLX does and the build has them.
pub fn cpu_backend() -> Option<InstructionSet> {
    chosen().copied()
}

fn chosen() -> Option<&'static InstructionSet> {
    if cfg!(cpu_kernels) && matches!(device_type(), Some(DeviceType::Cpu)) {
        CPU.get_or_init(|| Some(InstructionSet::best())).as_ref()
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

/// Whether MLX's device is a GPU.
pub(crate) fn is_on_gpu() -> bool {
    matches!(device_type(), Some(DeviceType::Gpu))
}

fn backend() -> Option<&'static dyn Backend> {
    #[cfg(cuda_kernels)]
    if is_on_gpu() {
        return Gpu::get().filter(|_| *GPU.get_or_init(|| true)).map(|gpu| gpu as &dyn Backend);
    }
    chosen().map(|kernels| kernels as &dyn Backend)
}

/// See [`Backend::holds_all`].
pub(crate) fn holds_all() -> bool {
    backend().is_some_and(|backend| backend.holds_all())
}

/// What the backend makes of an operation, if there is one and it does not decline.
fn on_backend(compute: impl FnOnce(&dyn Backend) -> Option<Result<Array>>) -> Option<Result<Array>> {
    backend().and_then(compute)
}

/// Transformer blocks, one after another, where a device computes them whole: hidden states `[N, D]` of packed spans to the
/// same, with the spans' keys and values in their caches. `None` leaves them to smaller operations.
pub(crate) fn blocks(x: &Array, blocks: &[Block], spans: &mut [CachedSpan]) -> Option<Result<Array>> {
    backend()?.blocks(x, blocks, spans)
}

/// `x · Wᵀ (+ bias)`: `[N, input]` to `[N, output]`.
pub(crate) fn linear(x: &Array, layer: Linear, phase: Phase) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.linear(x, &[layer], Epilogue::Concat, phase)) {
        return result;
    }
    let Linear { weight, bias } = layer;
    Ok(match (weight, bias) {
        (Weight::Dense(weight), None) => matmul(x, weight.t())?,
        (Weight::Dense(weight), Some(bias)) => addmm(bias, x, weight.t(), None, None)?,
        (Weight::Affine { packed, scales, biases, packing }, bias) => {
            let y = quantized_matmul(x, packed, scales, biases, true, packing.group_size, packing.bits)?;
            match bias {
                Some(bias) => add(y, bias)?,
                None => y,
            }
        }
    })
}

/// `activation(gate) · up`, of two linear layers with one input.
pub(crate) fn gated_linear(x: &Array, gate: Linear, up: Linear, activation: Activation, phase: Phase) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.linear(x, &[gate, up], Epilogue::Gated(activation), phase)) {
        return result;
    }
    // Not mlx-rs' `silu` and `gelu_approximate`, which are compiled functions: on a CPU, MLX compiles those with the machine's
    // C++ compiler, which a machine that only runs models does not have.
    let (gate, up) = (linear(x, gate, phase)?, linear(x, up, phase)?);
    let activated = match activation {
        Activation::Silu => multiply(&gate, sigmoid(&gate)?)?,
        Activation::GeluTanh => {
            let cube = power(&gate, number(3.0, &gate)?)?;
            let inner = add(&gate, scaled(&cube, 0.044715)?)?;
            let tanh = tanh(scaled(&inner, (2.0 / std::f32::consts::PI).sqrt())?)?;
            multiply(scaled(&gate, 0.5)?, add(&tanh, number(1.0, &tanh)?)?)?
        }
    };
    Ok(multiply(activated, up)?)
}

/// `x + residual.multiplier · output`.
pub(crate) fn add_residual(x: &Array, output: &Array, residual: Residual) -> Result<Array> {
    let Residual { multiplier, saturates } = residual;
    let output = if multiplier == 1.0 { output.clone() } else { scaled(output, multiplier)? };
    if !(saturates && x.dtype() == Dtype::Float16 && output.dtype() == Dtype::Float16) {
        return Ok(add(x, output)?);
    }
    let most = f16::MAX.to_f32();
    let sum = add(x.as_type::<f32>()?, output.as_type::<f32>()?)?;
    Ok(clip(sum, (-most, most))?.as_dtype(Dtype::Float16)?)
}

/// `x · factor`, the factor rounded to the type of x.
pub(crate) fn scaled(x: &Array, factor: f32) -> Result<Array> {
    Ok(multiply(x, number(factor, x)?)?)
}

/// `x / divisor`, the divisor rounded to the type of x.
pub(crate) fn divided(x: &Array, divisor: f32) -> Result<Array> {
    Ok(divide(x, number(divisor, x)?)?)
}

/// `x + offset`, the offset rounded to the type of x.
pub(crate) fn offset(x: &Array, offset: f32) -> Result<Array> {
    Ok(add(x, number(offset, x)?)?)
}

/// `cap · tanh(x / cap)`.
pub(crate) fn soft_capped(x: &Array, cap: f32) -> Result<Array> {
    scaled(&tanh(divided(x, cap)?)?, cap)
}

/// A number of the type of x.
fn number(value: f32, x: &Array) -> Result<Array> {
    Ok(Array::from_f32(value).as_dtype(x.dtype())?)
}

/// Rows of an embedding: ids `[N]` (u32) to `[N, D]`.
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

/// [`embedding`] of the ids that lie in `own`, whose rows `weight` has; zeros for the others.
pub(crate) fn part_of_embedding(ids: &Array, weight: &Weight, own: Range<i32>) -> Result<Array> {
    let bound = |at: i32| Array::from_slice(&[at as u32], &[1]);
    let is_own = ids.ge(bound(own.start))?.logical_and(ids.lt(bound(own.end))?)?;
    let own_ids = select(&is_own, ids.subtract(bound(own.start))?, bound(0))?;
    let rows = embedding(&own_ids, weight)?;
    Ok(select(is_own.reshape(&[-1, 1])?, &rows, number(0.0, &rows)?)?)
}

/// The sum of what all ranks have, `[N, D]` each: in f32, in the order of the ranks and rounded once, so that a row does not depend
/// on the others. That is why it is no reduction of MLX's, in which the order depends on where in the array a number lies.
pub(crate) fn all_sum(x: &Array, group: &Group) -> Result<Array> {
    let parts = group.all_gather(x)?.reshape(&[group.size(), x.dim(0), -1])?;
    let part = |rank: i32| Ok::<_, crate::Error>(parts.try_index(rank)?.as_type::<f32>()?);
    let sum = (1..group.size()).try_fold(part(0)?, |sum, rank| Ok::<_, crate::Error>(add(sum, part(rank)?)?))?;
    Ok(sum.as_dtype(x.dtype())?.reshape(x.shape())?)
}

/// Columns of all ranks one after another: `[N, share]` each, of which the last may be narrower, to `[N, width]`.
pub(crate) fn all_columns(x: &Array, width: i32, group: &Group) -> Result<Array> {
    let size = group.size();
    let (n, share) = (x.dim(0), group.largest_share(width));
    let x = match share - x.dim(1) {
        0 => x.clone(),
        missing => concatenate(&[x, &zeros_dtype(&[n, missing], x.dtype())?], 1)?,
    };
    let parts = group.all_gather(&x)?.reshape(&[size, n, share])?.transpose_axes(&[1, 0, 2])?;
    Ok(parts.reshape(&[n, -1])?.try_index((.., ..width))?)
}

/// The `[N]` numbers of rank 0.
pub(crate) fn of_first_rank(x: &Array, group: &Group) -> Result<Array> {
    Ok(group.all_gather(x)?.try_index(..x.dim(0))?)
}

/// [`rms_norm`] over what all ranks have side by side.
pub(crate) fn rms_norm_of_all(x: &Array, norm: Norm, group: &Group) -> Result<Array> {
    let wide = x.as_type::<f32>()?;
    let squares = multiply(&wide, &wide)?.sum_axis(-1, true)?;
    let mean = scaled(&all_sum(&squares, group)?, 1.0 / (x.dim(-1) * group.size()) as f32)?;
    let normed = multiply(wide, rsqrt(offset(&mean, norm.eps)?)?)?.as_dtype(x.dtype())?;
    Ok(multiply(normed, norm.weight)?)
}

/// Root-mean-square normalisation over the last axis (arXiv 1910.07467).
pub(crate) fn rms_norm(x: &Array, norm: Norm) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.rms_norm(x, norm)) {
        return result;
    }
    Ok(fast::rms_norm(x, Some(norm.weight), norm.eps)?)
}

/// Which of the keys of a cache the last tokens see.
#[derive(Debug)]
pub enum Mask {
    /// All.
    All,
    /// Those up to its own.
    Causal,
    /// `[L, keys]`, true where the token of the row sees the key of the column.
    Table(Array),
}

impl Mask {
    /// As MLX's attention takes it.
    pub fn as_mlx(&self) -> Option<ScaledDotProductAttentionMask<'_>> {
        match self {
            Mask::All => None,
            Mask::Causal => Some(ScaledDotProductAttentionMask::Causal),
            Mask::Table(table) => Some(table.into()),
        }
    }
}

/// Attention of queries `[1, n_heads, L, head_dim]` over keys and values `[1, n_kv_heads, T, head_dim]`, to
/// `[L, n_heads · head_dim]`; see [`Block::softcap`].
pub(crate) fn attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    softcap: Option<f32>,
    mask: Mask,
) -> Result<Array> {
    let output = match softcap {
        None => scaled_dot_product_attention(queries, keys, values, scale, mask.as_mlx(), None)?,
        Some(cap) => capped_attention(queries, keys, values, scale, cap, mask)?,
    };
    Ok(output.transpose_axes(&[0, 2, 1, 3])?.reshape(&[queries.dim(2), -1])?)
}

/// [`attention`] to `[1, n_heads, L, head_dim]`, which MLX does not have with capped scores.
fn capped_attention(queries: &Array, keys: &Array, values: &Array, scale: f32, cap: f32, mask: Mask) -> Result<Array> {
    let (&[_, n_heads, length, head_dim], &[_, n_kv_heads, tokens, _]) = (queries.shape(), keys.shape()) else {
        unreachable!("queries and keys have four dimensions")
    };
    let queries = scaled(queries, scale)?.reshape(&[n_kv_heads, n_heads / n_kv_heads, length, head_dim])?;
    let [keys, values] = [keys, values].map(|x| x.reshape(&[n_kv_heads, 1, tokens, head_dim]));
    let scores = soft_capped(&matmul(queries, keys?.transpose_axes(&[0, 1, 3, 2])?)?, cap)?;
    let seen = match mask {
        Mask::All => None,
        Mask::Causal => {
            let positions = Array::from_iter(tokens - length..tokens, &[length, 1]);
            Some(positions.ge(Array::from_iter(0..tokens, &[1, tokens]))?)
        }
        Mask::Table(table) => Some(table),
    };
    let scores = match seen {
        Some(seen) => select(seen, &scores, number(f32::NEG_INFINITY, &scores)?)?,
        None => scores,
    };
    Ok(matmul(softmax_axis(scores, -1, true)?, values?)?.reshape(&[1, n_heads, length, head_dim])?)
}

/// For each row of the logits `[N, V]` a token `[N]` (u32); [`NO_TOKEN`] where they hold NaN or ∞, or are all -∞. Where MLX
/// draws, `draw` draws from one row of logits `[1, V]`.
pub(crate) fn sample(
    logits: &Array,
    choices: &[Choice],
    draw: impl Fn(&Array, &Filter, Key) -> Result<Array>,
) -> Result<Array> {
    if let Some(result) = on_backend(|backend| backend.sample(logits, choices)) {
        return result;
    }
    let is_greedy = |choice: &Choice| matches!(choice, Choice::Greedy);
    let tokens = if choices.iter().all(is_greedy) {
        argmax_axis(logits, -1, false)?
    } else {
        let rows = (0..).zip(choices).map(|(i, choice)| {
            let row = logits.try_index((i..i + 1, ..))?;
            match choice {
                Choice::Greedy => Ok(argmax_axis(&row, -1, false)?),
                Choice::Random { filter, key } => draw(&row, filter, *key),
            }
        });
        concatenate(&rows.collect::<Result<Vec<_>>>()?, 0)?
    };
    // Less than ∞ and more than -∞, which NaN is not either.
    let all = logits.as_type::<f32>()?.logsumexp_axis(-1, false)?;
    let are_numbers = all.abs()?.lt(Array::from_f32(f32::INFINITY))?;
    Ok(select(are_numbers, tokens, Array::from_slice(&[NO_TOKEN], &[1]))?)
}

/// See [`Backend::logprobs`].
pub(crate) fn logprobs(logits: &Array, tokens: &Array, top: usize) -> Result<(Array, Array)> {
    if let Some(backend) = backend()
        && let Some(result) = backend.logprobs(logits, tokens, top)
    {
        return result;
    }
    let logits = logits.as_type::<f32>()?;
    let all = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
    let tokens = minimum(tokens, Array::from_slice(&[logits.dim(1) as u32 - 1], &[1]))?; // NO_TOKEN is none
    let chosen = take_along_axis(&all, tokens.reshape(&[-1, 1])?, 1)?;
    let k = top.min(logits.dim(1) as usize) as i32;
    // A stable sort, so that ties are in order of their ids.
    let ids = argsort_axis(all.negative()?, -1)?.try_index((.., ..k))?;
    let found = take_along_axis(&all, &ids, 1)?;
    let missing = [logits.dim(0), top as i32 - k];
    let values = concatenate(&[chosen, found, full::<f32>(&missing, Array::from_f32(f32::NEG_INFINITY))?], 1)?;
    Ok((values, concatenate(&[ids, zeros::<u32>(&missing)?], 1)?))
}

/// See [`Backend::borrow`].
pub(crate) fn borrow(map: &Arc<Mapped>, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Option<Array> {
    backend()?.borrow(map, bytes, shape, dtype)
}

/// An array of these bytes, copied.
///
/// # Errors
/// When there is no memory for it.
///
/// # Panics
/// When the bytes are not as many as the shape says.
pub(crate) fn copy(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    let uploaded = backend().and_then(|backend| backend.upload(bytes, shape, dtype));
    uploaded.unwrap_or_else(|| array_from_bytes(bytes, shape, dtype))
}

/// Whether a pass over so many tokens is better computed block by block than described whole: where each takes long enough
/// to tell of.
pub(crate) fn computes_by_layer(tokens: i32) -> bool {
    backend().is_some_and(|backend| backend.computes_by_layer(tokens))
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

/// Begin to compute `arrays`, as [`evaluate`] does, without waiting.
///
/// # Errors
/// When they cannot be described to MLX.
pub(crate) fn submit<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    Ok(async_eval(arrays)?)
}

/// While what this gives lives, what this thread describes stops soon after `stop` becomes true.
pub(crate) fn interruptible(stop: &Arc<AtomicBool>) -> cpu::Interruptible {
    cpu::Interruptible::by(stop)
}
