//! Devices that compute the model's operations themselves, in place of MLX's own operations.
//!
//! Only [`crate::ops`] asks them, and it has a composition of MLX's operations for whatever they decline.

pub mod cpu;
#[cfg(cuda_kernels)]
pub mod cuda;

use std::sync::Arc;

use mlx_rs::fast::ScaledDotProductAttentionMask;
use mlx_rs::{Array, Dtype};

use crate::error::Result;
use crate::mapped::Mapped;

/// The widths of a quantized value that MLX packs.
pub const BITS: [i32; 6] = [2, 3, 4, 5, 6, 8];
/// How many values may share a scale.
pub const GROUP_SIZES: [i32; 3] = [32, 64, 128];

/// How a packed weight is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packing {
    /// Values that share one scale and bias; one of [`GROUP_SIZES`].
    pub group_size: i32,
    /// Bits of one value; one of [`BITS`].
    pub bits: i32,
}

impl Packing {
    /// What MLX takes for a number of affine quantization that it is not given.
    pub const DEFAULT: Packing = Packing { group_size: 64, bits: 4 };
}

/// A matrix `[output, input]`.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    Dense(Array),
    Affine { packed: Array, scales: Array, biases: Array, packing: Packing },
}

impl Weight {
    /// The arrays that it is made of: the numbers, or words, scales and biases.
    pub fn arrays(&self) -> Vec<&Array> {
        match self {
            Weight::Dense(values) => vec![values],
            Weight::Affine { packed, scales, biases, .. } => vec![packed, scales, biases],
        }
    }

    /// The type of its numbers, or of its scales.
    pub fn dtype(&self) -> Dtype {
        match self {
            Weight::Dense(values) | Weight::Affine { scales: values, .. } => values.dtype(),
        }
    }

    /// How it is packed; `None` for dense.
    pub fn packing(&self) -> Option<Packing> {
        match self {
            Weight::Dense(_) => None,
            Weight::Affine { packing, .. } => Some(*packing),
        }
    }
}

/// `x · Wᵀ (+ bias)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear<'a> {
    pub weight: &'a Weight,
    pub bias: Option<&'a Array>,
}

/// What becomes of the outputs of linear layers with one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// One after another: `[y₀ y₁ …]`.
    Concat,
    /// `silu(y₀) · y₁`, of two layers of one shape.
    SwiGlu,
}

/// A root-mean-square normalisation over the last axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub weight: &'a Array,
    pub eps: f32,
}

/// A rotary position embedding of the half-split kind (arXiv 2104.09864).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation<'a> {
    /// Radians per position, for each pair of components.
    pub frequencies: &'a [f64],
    /// Position of the first token.
    pub offset: i32,
    /// What rotated vectors are multiplied with (YaRN's attention factor).
    pub factor: f32,
}

/// Which heads of a projection `[B, L, all heads · head_dim]` are meant, and what is done to them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadSlice<'a> {
    pub first: i32,
    pub count: i32,
    pub head_dim: i32,
    pub norm: Option<Norm<'a>>,
    pub rotation: Option<Rotation<'a>>,
}

/// What may be chosen of the logits; see [`crate::generate::sampler::SamplerOptions`].
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// Above 0.
    pub temp: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 0 keeps all.
    pub top_k: usize,
}

/// What stands for a token where the logits give none; no vocabulary is so large.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// `None`: the device leaves this operation to MLX.
type Declined = Option<Result<Array>>;

/// A device that computes operations itself. Each method may decline.
pub(crate) trait Backend: Sync {
    /// Linear layers with one input, `[…, input]` to `[…, width]`.
    fn linear(&self, _x: &Array, _layers: &[Linear], _epilogue: Epilogue) -> Declined {
        None
    }

    /// Rows of an embedding: ids `[B, L]` (u32) to `[B, L, D]`. After [`NO_TOKEN`] come no numbers.
    fn embedding(&self, _ids: &Array, _weight: &Weight) -> Declined {
        None
    }

    /// See [`Norm`].
    fn rms_norm(&self, _x: &Array, _norm: Norm) -> Declined {
        None
    }

    /// Heads out of a projection, normalised and rotated: `[B, count, L, head_dim]`.
    fn heads(&self, _projected: &Array, _slice: HeadSlice) -> Declined {
        None
    }

    /// Attention of queries `[B, H, L, D]` over keys and values `[B, n_kv_heads, T, D]`, to `[B, L, H · D]`.
    fn attention(
        &self,
        _queries: &Array,
        _keys: &Array,
        _values: &Array,
        _scale: f32,
        _mask: Option<&ScaledDotProductAttentionMask>,
    ) -> Declined {
        None
    }

    /// `a + b` of one shape.
    fn add(&self, _a: &Array, _b: &Array) -> Declined {
        None
    }

    /// A buffer `[B, H, capacity, D]` with the first `n` tokens of another, `[B, H, …, D]`, then those of `new`
    /// `[B, H, L, D]`, then zeros.
    fn append(&self, _buffer: &Array, _n: i32, _new: &Array, _capacity: i32) -> Declined {
        None
    }

    /// The token `[1]` (u32) with the largest of the logits `[1, V]`, or [`NO_TOKEN`].
    fn argmax(&self, _logits: &Array) -> Declined {
        None
    }

    /// A token `[1]` (u32) drawn by the logits `[1, V]` with a key `[2]` (u32) of MLX, or [`NO_TOKEN`].
    fn sample(&self, _logits: &Array, _filter: Filter, _key: &Array) -> Declined {
        None
    }

    /// An array over a part of a mapped file, which it keeps mapped; `None` where it must be copied.
    fn borrow(&self, _map: &Arc<Mapped>, _bytes: &[u8], _shape: &[i32], _dtype: Dtype) -> Option<Array> {
        None
    }

    /// Whether a pass over so many tokens is better computed layer by layer than described whole, for the memory that MLX
    /// would take for all of it.
    fn computes_by_layer(&self, _tokens: i32) -> bool {
        false
    }

    /// What went wrong in what this thread described, since it last asked.
    fn failure(&self) -> Result<()> {
        Ok(())
    }

    /// What computes, for messages: `avx512, 2 threads`.
    fn describe(&self) -> String;
}
