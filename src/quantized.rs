//! `Linear` and `Embedding`, dense or packed: the only place that knows of bits and groups.
//!
//! Affine quantization as MLX stores it: each row of a weight is cut into groups of `group_size` values, which share
//! a scale and a bias; a value is `scale * q + bias` with `q` of `bits` bits, packed little-endian into u32.
//! Reference: `mlx.core.quantize`, `mlx.nn.QuantizedLinear`, `mlx.nn.QuantizedEmbedding`.

use std::collections::HashMap;

use mlx_rs::ops::indexing::{TryIndexOp, take_axis};
use mlx_rs::ops::{self, addmm, dequantize, matmul, quantized_matmul};
use mlx_rs::{Array, Dtype};

use crate::error::Result;
use crate::kernels::{self, Join, leaves};
use crate::weights::{Kind, Scope};

/// The widths of a quantized value that MLX packs.
pub const BITS: [i32; 6] = [2, 3, 4, 5, 6, 8];
/// How many values may share a scale.
pub const GROUP_SIZES: [i32; 3] = [32, 64, 128];

/// How a packed weight is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// The `quantization` block of config.json, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantization {
    /// For every module that `overrides` does not name.
    pub default: Packing,
    /// By module path, such as `model.layers.0.mlp.down_proj`; `None` keeps that module dense.
    pub overrides: HashMap<String, Option<Packing>>,
}

impl Quantization {
    fn of(&self, module: &str) -> Option<Packing> {
        self.overrides.get(module).copied().unwrap_or(Some(self.default))
    }
}

/// A matrix `[output, input]`.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    Dense(Array),
    Affine { packed: Array, scales: Array, biases: Array, packing: Packing },
}

impl Weight {
    /// Packed if and only if the checkpoint has `.scales` for it, as in mlx-lm.
    fn load(w: &Scope, output: i32, input: i32, quantization: Option<&Quantization>) -> Result<Self> {
        if !w.has("scales") {
            return Ok(Weight::Dense(w.get("weight", &[output, input], Kind::Float)?));
        }
        let Some(packing) = quantization.and_then(|q| q.of(w.path())) else {
            return Err(w.error("scales", "belongs to a quantized weight, but config.json quantizes no such module"));
        };
        let Packing { group_size, bits } = packing;
        if input % group_size != 0 {
            return Err(
                w.error("weight", format!("has rows of {input} values, which groups of {group_size} do not divide"))
            );
        }
        // `input` is a multiple of 32, so every width fills whole words; the product stays below 2^31 in i64.
        let words = (i64::from(input) * i64::from(bits) / 32) as i32;
        let groups = input / group_size;
        if let (Some(found), Some(scales)) = (w.shape("weight"), w.shape("scales"))
            && let (&[_, found_words], &[_, found_groups]) = (&found[..], &scales[..])
            && found_groups > 0
            && (found_words, found_groups) != (words as usize, groups as usize)
        {
            return Err(w.error(
                "weight",
                format!(
                    "is packed with {} bits in groups of {}, expected {bits} bits in groups of {group_size} from config.json",
                    found_words * 32 / input as usize,
                    input as usize / found_groups,
                ),
            ));
        }
        Ok(Weight::Affine {
            packed: w.get("weight", &[output, words], Kind::Packed)?,
            scales: w.get("scales", &[output, groups], Kind::Float)?,
            biases: w.get("biases", &[output, groups], Kind::Float)?,
            packing,
        })
    }

    /// Bytes in memory.
    fn nbytes(&self) -> usize {
        self.arrays().into_iter().map(Array::nbytes).sum()
    }

    /// The arrays that it is made of: the numbers, or words, scales and biases.
    pub(crate) fn arrays(&self) -> Vec<&Array> {
        match self {
            Weight::Dense(values) => vec![values],
            Weight::Affine { packed, scales, biases, .. } => vec![packed, scales, biases],
        }
    }

    /// The type of its numbers, or of its scales.
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Weight::Dense(values) | Weight::Affine { scales: values, .. } => values.dtype(),
        }
    }

    /// `x · Wᵀ (+ bias)` on MLX: `[…, input]` to `[…, output]`.
    fn project(&self, x: &Array, bias: Option<&Array>) -> Result<Array> {
        Ok(match (self, bias) {
            (Weight::Dense(weight), None) => matmul(x, weight.t())?,
            (Weight::Dense(weight), Some(bias)) => addmm(bias, x, weight.t(), None, None)?,
            (Weight::Affine { packed, scales, biases, packing }, bias) => {
                let y = quantized_matmul(x, packed, scales, biases, true, packing.group_size, packing.bits)?;
                match bias {
                    Some(bias) => ops::add(y, bias)?,
                    None => y,
                }
            }
        })
    }
}

/// A linear layer, `[…, input]` to `[…, output]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Array>,
}

impl Linear {
    /// Take `weight` (and `scales`, `biases`, `bias`) from the scope of the module.
    ///
    /// # Errors
    /// When a tensor is missing or does not fit the sizes, or the module is packed otherwise than config.json says.
    pub fn load(w: &Scope, output: i32, input: i32, bias: bool, quantization: Option<&Quantization>) -> Result<Self> {
        Ok(Linear {
            weight: Weight::load(w, output, input, quantization)?,
            bias: if bias { Some(w.get("bias", &[output], Kind::Float)?) } else { None },
        })
    }

    /// Bytes of the weight.
    pub fn nbytes(&self) -> usize {
        self.weight.nbytes()
    }

    /// Numbers in the weight.
    pub fn size(&self) -> usize {
        match &self.weight {
            Weight::Dense(values) => values.size(),
            Weight::Affine { scales, packing, .. } => scales.size() * packing.group_size as usize,
        }
    }

    /// `[…, input]` to `[…, output]`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        if let Some(kernels) = kernels::active() {
            return Ok(leaves::linear(kernels, x, &[self], Join::Beside));
        }
        self.weight.project(x, self.bias.as_ref())
    }

    /// Weight and bias.
    pub(crate) fn parts(&self) -> (&Weight, Option<&Array>) {
        (&self.weight, self.bias.as_ref())
    }
}

/// A table of `vocab_size` vectors of `hidden_size`.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// The table as output projection.
    linear: Linear,
}

impl Embedding {
    /// Take `weight` (and `scales`, `biases`) from the scope of the module. Errors as [`Linear::load`].
    pub fn load(w: &Scope, vocab_size: i32, hidden_size: i32, quantization: Option<&Quantization>) -> Result<Self> {
        Ok(Embedding { linear: Linear::load(w, vocab_size, hidden_size, false, quantization)? })
    }

    /// Token ids `[B, L]` (u32, below `vocab_size`) to vectors `[B, L, D]`.
    pub fn forward(&self, tokens: &Array) -> Result<Array> {
        if let Some(kernels) = kernels::active() {
            return Ok(leaves::embedding(kernels, tokens, &self.linear.weight));
        }
        Ok(match &self.linear.weight {
            Weight::Dense(weight) => take_axis(weight, tokens, 0)?,
            Weight::Affine { packed, scales, biases, packing } => dequantize(
                packed.try_index(tokens)?,
                scales.try_index(tokens)?,
                &biases.try_index(tokens)?,
                packing.group_size,
                packing.bits,
            )?,
        })
    }

    /// The type of the vectors.
    pub fn dtype(&self) -> Dtype {
        self.linear.weight.dtype()
    }

    /// The table as output projection, for models with tied embeddings: `[…, D]` to logits `[…, V]`.
    pub fn as_linear(&self) -> &Linear {
        &self.linear
    }
}
