//! Devices that compute the model's operations themselves, in place of MLX's own operations.
//!
//! Only [`crate::ops`] asks them, and it has a composition of MLX's operations for whatever they decline.

pub mod cpu;
#[cfg(cuda_kernels)]
pub mod cuda;
mod random;

use std::sync::Arc;

use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::mapped::Mapped;
use crate::mlx_rs_patch::distributed::Group;
pub use random::Key;

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
pub enum Weight {
    /// Its numbers.
    Dense(Array),
    /// Quantized, as MLX packs it.
    Affine {
        /// `[output, input · bits / 32]`, u32.
        packed: Array,
        /// `[output, input / group_size]`.
        scales: Array,
        /// As `scales`.
        biases: Array,
        /// How `packed` is to be read.
        packing: Packing,
    },
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
pub struct Linear<'a> {
    /// W.
    pub weight: &'a Weight,
    /// `[output]`.
    pub bias: Option<&'a Array>,
}

/// What becomes of the outputs of linear layers with one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// One after another: `[y₀ y₁ …]`.
    Concat,
    /// `activation(y₀) · y₁`, of two layers of one shape (GLU variants, arXiv 2002.05202).
    Gated(Activation),
}

impl Epilogue {
    /// How the first layer's outputs gate the second's, if they do.
    pub fn activation(self) -> Option<Activation> {
        match self {
            Epilogue::Concat => None,
            Epilogue::Gated(activation) => Some(activation),
        }
    }
}

/// What gates the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// The approximation of GELU by tanh (arXiv 1606.08415): `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`.
    GeluTanh,
}

/// A root-mean-square normalisation over the last axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub weight: &'a Array,
    pub eps: f32,
}

/// A rotary position embedding of the half-split kind (arXiv 2104.09864).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotation {
    /// Radians per position, for each pair of components; of the components after the last pair, none.
    pub frequencies: Arc<[f64]>,
    /// What rotated components are multiplied with (YaRN's and LongRoPE's attention factor).
    pub factor: f32,
}

/// The rotations of sequences in short and long contexts, which are one but for LongRoPE (arXiv 2402.13753).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotations {
    short: Rotation,
    /// Of contexts of more than so many tokens.
    long: Option<(i32, Rotation)>,
}

impl Rotations {
    /// `long` is for contexts of more than so many tokens.
    pub fn new(short: Rotation, long: Option<(i32, Rotation)>) -> Self {
        Rotations { short, long }
    }

    /// Whether such a context is a long one.
    pub fn is_long(&self, context_size: i32) -> bool {
        self.long.as_ref().is_some_and(|(length, _)| context_size > *length)
    }

    /// Of a sequence whose context holds `context_size` tokens at most.
    pub fn of(&self, context_size: i32) -> &Rotation {
        match &self.long {
            Some((_, long)) if self.is_long(context_size) => long,
            _ => &self.short,
        }
    }
}

/// How tokens of a sequence are computed. It decides which kernels compute them, whatever else is computed with them, so
/// that their numbers never depend on their company.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// As part of a prompt: kernels are bound by arithmetic.
    Prefill,
    /// One token after another: kernels are bound by reading the weights.
    Decode,
}

/// Where the tokens of a span lie in the cache of their sequence, and what they see there.
#[derive(Debug, Clone, Copy)]
pub struct Positions {
    /// How the span is computed.
    pub phase: Phase,
    /// Position of its first token.
    pub offset: i32,
    /// How many tokens it has (L).
    pub tokens: i32,
    /// How many first positions a sliding window does not hide.
    pub sinks: i32,
    /// How many tokens the sequence's cache ever holds.
    pub context_size: i32,
}

impl Positions {
    /// The position behind the last token's.
    pub fn end(&self) -> i32 {
        self.offset + self.tokens
    }
}

/// Keys of one block of attention. Blocks begin at positions that are multiples of it.
pub const KEY_BLOCK: i32 = 64;

/// Positions that a layer's buffers do not hold, since no token sees them any more. The rows of those behind follow the rows of
/// those before. It ends where a block of keys begins, so that sums over blocks are those of a cache that holds all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first: i32,
    /// How many there are.
    pub len: i32,
}

impl Gap {
    /// The first position behind it.
    pub fn end(&self) -> i32 {
        self.first + self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a position is not held.
    pub fn contains(&self, position: i32) -> bool {
        (self.first..self.end()).contains(&position)
    }

    /// The row of a position; of one that is not held, that of the first behind the gap.
    pub fn row(&self, position: i32) -> i32 {
        if position < self.end() { position.min(self.first) } else { position - self.len }
    }
}

/// What the buffers of a layer are, from the tokens of a span on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Which positions are not held.
    pub gap: Gap,
    /// Rows that they have room for.
    pub capacity: i32,
}

/// Keys and values of a layer, `[1, n_kv_heads, rows, head_dim]` each, keys rotated; `None` before the first token.
pub type LayerCache = Option<(Array, Array)>;

/// Make a buffer of keys or values as large as `capacity` rows, if it is not.
pub(crate) fn make_room(buffer: &mut Array, capacity: i32) -> Result<()> {
    let missing = capacity - buffer.dim(2);
    if missing > 0 {
        let more = zeros_dtype(&[buffer.dim(0), buffer.dim(1), missing, buffer.dim(3)], buffer.dtype())?;
        *buffer = concatenate(&[&*buffer, &more], 2)?;
    }
    Ok(())
}

/// A span of a pass with the cache of its sequence.
#[derive(Debug)]
pub(crate) struct CachedSpan<'a> {
    pub positions: Positions,
    /// For each block of the pass.
    pub layers: &'a mut [LayerCache],
    /// What each has room for when the block is computed.
    pub held: &'a [Held],
}

/// The weights and settings of a transformer block: attention, then a gated MLP, each added to the hidden states.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    pub attention_norms: Norms<'a>,
    /// Of queries, keys and values.
    pub projections: [Linear<'a>; 3],
    /// Of queries and keys before the rotation: of each head, or where the weights are as wide as all heads, of all together.
    pub qk_norm: Option<[Norm<'a>; 2]>,
    pub rotations: Option<&'a Rotations>,
    pub head_dim: i32,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Scores s become `c · tanh(s / c)` (Gemma 2, arXiv 2408.00118, section 2).
    pub softcap: Option<f32>,
    /// How many positions a query sees, its own included.
    pub window: Option<i32>,
    pub o_proj: Linear<'a>,
    pub mlp_norms: Norms<'a>,
    pub gate_proj: Linear<'a>,
    pub up_proj: Linear<'a>,
    pub activation: Activation,
    pub down_proj: Linear<'a>,
    pub residual: Residual,
    /// Those whose outputs of `o_proj` and of `down_proj` are added, where each computes with a share of the heads and of the MLP.
    pub summed_over: Option<&'a Group>,
}

/// The normalisations around a part of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norms<'a> {
    /// Of what it is given.
    pub before: Option<Norm<'a>>,
    /// Of what it gives.
    pub after: Option<Norm<'a>>,
}

/// How the output of a part of a block is added to its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Residual {
    /// What the output is multiplied with before.
    pub multiplier: f32,
    /// Sums that f16 cannot hold become its largest number.
    pub saturates: bool,
}

impl Residual {
    /// The plain sum.
    pub const SUM: Residual = Residual { multiplier: 1.0, saturates: false };
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

/// How a token is chosen by its logits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Choice {
    /// The first of the largest.
    Greedy,
    /// At random: as `mlx.core.random.categorical` draws with this key.
    Random { filter: Filter, key: Key },
}

/// What stands for a token where the logits give none; no vocabulary is so large.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// `None`: the device leaves this operation to MLX.
type Declined = Option<Result<Array>>;

/// A device that computes operations itself. Each method may decline.
pub(crate) trait Backend: Sync {
    /// Transformer blocks, one after another, on the hidden states `[N, D]` of packed spans, to hidden states of the same
    /// shape. Keys and values of the spans' tokens go to the spans' caches.
    fn blocks(&self, _x: &Array, _blocks: &[Block], _spans: &mut [CachedSpan]) -> Declined {
        None
    }

    /// Linear layers with one input, `[N, input]` to `[N, width]`.
    fn linear(&self, _x: &Array, _layers: &[Linear], _epilogue: Epilogue, _phase: Phase) -> Declined {
        None
    }

    /// Rows of an embedding: ids `[N]` (u32) to `[N, D]`. After [`NO_TOKEN`] come no numbers.
    fn embedding(&self, _ids: &Array, _weight: &Weight) -> Declined {
        None
    }

    /// See [`Norm`].
    fn rms_norm(&self, _x: &Array, _norm: Norm) -> Declined {
        None
    }

    /// For each row of the logits `[N, V]` a token `[N]` (u32), or [`NO_TOKEN`].
    fn sample(&self, _logits: &Array, _choices: &[Choice]) -> Declined {
        None
    }

    /// Log-probabilities of `tokens` `[N]` (u32) under logits `[N, V]`, and the `top` most likely tokens with theirs, most
    /// likely first, ties by id: `[N, 1 + top]` (f32) and their ids `[N, top]` (u32). Where there are no more, -∞.
    fn logprobs(&self, _logits: &Array, _tokens: &Array, _top: usize) -> Option<Result<(Array, Array)>> {
        None
    }

    /// An array over a part of a mapped file, which it keeps mapped; `None` where it must be copied.
    fn borrow(&self, _map: &Arc<Mapped>, _bytes: &[u8], _shape: &[i32], _dtype: Dtype) -> Option<Array> {
        None
    }

    /// An array of these bytes in the device's memory, without a detour.
    fn upload(&self, _bytes: &[u8], _shape: &[i32], _dtype: Dtype) -> Declined {
        None
    }

    /// Whether it is fast only with caches of which each layer holds all positions, whatever its window hides.
    fn holds_all(&self) -> bool {
        false
    }

    /// Whether a pass over so many tokens is computed block by block, for whoever looks on.
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
