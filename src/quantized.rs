//! `Linear` and `Embedding`, dense or packed: the only place that knows of bits and groups.
//!
//! Affine quantization as MLX stores it: each row of a weight is cut into groups of `group_size` values, which share
//! a scale and a bias; a value is `scale * q + bias` with `q` of `bits` bits, packed little-endian into u32.
//! Reference: `mlx.core.quantize`, `mlx.nn.QuantizedLinear`, `mlx.nn.QuantizedEmbedding`.

use std::collections::HashMap;

use mlx_rs::{Array, Dtype};

use crate::backend::{self, Phase, Weight};
pub use crate::backend::{BITS, GROUP_SIZES, Packing};
use crate::error::Result;
use crate::ops;
use crate::weights::{Kind, Scope};

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

/// Weights of so many rows each, which lie one after another in one tensor. They are packed if and only if the checkpoint has
/// `.scales` for it, as in mlx-lm.
fn load_weights(w: &Scope, outputs: &[i32], input: i32, quantization: Option<&Quantization>) -> Result<Vec<Weight>> {
    let output = outputs.iter().sum();
    let get = |name, width, kind| w.get_parts(name, &[output, width], outputs, kind);
    if !w.has("scales") {
        return Ok(get("weight", input, Kind::Float)?.into_iter().map(Weight::Dense).collect());
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
    let packed = get("weight", words, Kind::Packed)?;
    let scales = get("scales", groups, Kind::Float)?;
    let biases = get("biases", groups, Kind::Float)?;
    let parts = packed.into_iter().zip(scales).zip(biases);
    Ok(parts.map(|((packed, scales), biases)| Weight::Affine { packed, scales, biases, packing }).collect())
}

/// A linear layer, `[N, input]` to `[N, output]`.
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
        Ok(Linear::load_fused(w, &[output], input, bias, quantization)?.remove(0))
    }

    /// Layers with one input, whose tensors are one: so many outputs each, one after another.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_fused(
        w: &Scope,
        outputs: &[i32],
        input: i32,
        bias: bool,
        quantization: Option<&Quantization>,
    ) -> Result<Vec<Self>> {
        let weights = load_weights(w, outputs, input, quantization)?;
        let biases: Vec<Option<Array>> = if bias {
            let biases = w.get_parts("bias", &[outputs.iter().sum()], outputs, Kind::Float)?;
            biases.into_iter().map(Some).collect()
        } else {
            vec![None; outputs.len()]
        };
        Ok(weights.into_iter().zip(biases).map(|(weight, bias)| Linear { weight, bias }).collect())
    }

    /// Bytes of the weight.
    pub fn nbytes(&self) -> usize {
        self.weight.arrays().into_iter().map(Array::nbytes).sum()
    }

    /// Numbers in the weight.
    pub fn size(&self) -> usize {
        match &self.weight {
            Weight::Dense(values) => values.size(),
            Weight::Affine { scales, packing, .. } => scales.size() * packing.group_size as usize,
        }
    }

    /// `[N, input]` to `[N, output]`.
    pub fn forward(&self, x: &Array, phase: Phase) -> Result<Array> {
        ops::linear(x, self.operand(), phase)
    }

    /// Weight and bias, for [`crate::ops`].
    pub(crate) fn operand(&self) -> backend::Linear<'_> {
        backend::Linear { weight: &self.weight, bias: self.bias.as_ref() }
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

    /// Token ids `[N]` (u32, below `vocab_size`) to vectors `[N, D]`.
    pub fn forward(&self, tokens: &Array) -> Result<Array> {
        ops::embedding(tokens, &self.linear.weight)
    }

    /// The type of the vectors.
    pub fn dtype(&self) -> Dtype {
        self.linear.weight.dtype()
    }

    /// The table as output projection, for models with tied embeddings: `[N, D]` to logits `[N, V]`.
    pub fn as_linear(&self) -> &Linear {
        &self.linear
    }
}
