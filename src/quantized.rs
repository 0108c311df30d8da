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
use crate::mlx_rs_patch::distributed::Group;
use crate::ops;
use crate::weights::{Kind, Scope, Split};

/// The `quantization` block of config.json, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantization {
    /// For every module that `overrides` does not name.
    pub default: Packing,
    /// By module path, such as `model.layers.0.mlp.down_proj`; `None` keeps that module dense.
    pub overrides: HashMap<String, Option<Packing>>,
}

impl Quantization {
    /// How `module` is packed, if it is.
    pub fn of(&self, module: &str) -> Option<Packing> {
        self.overrides.get(module).copied().unwrap_or(Some(self.default))
    }
}

/// This rank's share of weights of so many rows each, which lie one after another in one tensor. They are packed if and only if the
/// checkpoint has `.scales` for it, as in mlx-lm.
fn load_weights(
    w: &Scope,
    outputs: &[i32],
    input: i32,
    split: Split,
    quantization: Option<&Quantization>,
) -> Result<Vec<Weight>> {
    let output = outputs.iter().sum();
    let get = |name, width, kind| w.get_parts(name, &[output, width], outputs, split, kind);
    let cut_in = if split == Split::Inputs { w.group().map_or(1, Group::size) } else { 1 };
    let is_cut = |unit: i32| {
        if input % (unit * cut_in) == 0 {
            return Ok(());
        }
        let problem = format!(
            "has rows of {input} values{}, which cannot be cut for {cut_in} ranks; these numbers of ranks would do: {}",
            if unit > 1 { format!(" in groups of {unit}") } else { String::new() },
            Split::possible_sizes(input / unit)
        );
        Err(w.error("weight", problem))
    };
    if !w.has("scales") {
        is_cut(1)?;
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
    is_cut(group_size)?;
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
    /// Those whose outputs are added, where each has a share of the input.
    summed_over: Option<Group>,
}

impl Linear {
    /// Take `weight` (and `scales`, `biases`, `bias`) from the scope of the module, or this rank's share of them; `output` and
    /// `input` are those of the whole.
    ///
    /// # Errors
    /// When a tensor is missing or does not fit the sizes, or the module is packed otherwise than config.json says.
    pub fn load(
        w: &Scope,
        output: i32,
        input: i32,
        split: Split,
        bias: bool,
        quantization: Option<&Quantization>,
    ) -> Result<Self> {
        Ok(Linear::load_fused(w, &[output], input, split, bias, quantization)?.remove(0))
    }

    /// Layers with one input, whose tensors are one: so many outputs each, one after another.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_fused(
        w: &Scope,
        outputs: &[i32],
        input: i32,
        split: Split,
        bias: bool,
        quantization: Option<&Quantization>,
    ) -> Result<Vec<Self>> {
        let weights = load_weights(w, outputs, input, split, quantization)?;
        let summed_over = w.group().filter(|_| split == Split::Inputs).cloned();
        // What is summed has the bias once.
        let (split, adds) = match &summed_over {
            Some(group) => (Split::Whole, group.rank() == 0),
            None => (split, true),
        };
        let biases: Vec<Option<Array>> = if bias {
            let biases = w.get_parts("bias", &[outputs.iter().sum()], outputs, split, Kind::Float)?;
            biases.into_iter().map(|bias| adds.then_some(bias)).collect()
        } else {
            vec![None; outputs.len()]
        };
        let layer = |(weight, bias)| Linear { weight, bias, summed_over: summed_over.clone() };
        Ok(weights.into_iter().zip(biases).map(layer).collect())
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
        let y = ops::linear(x, self.operand(), phase)?;
        match &self.summed_over {
            Some(group) => ops::all_sum(&y, group),
            None => Ok(y),
        }
    }

    /// Those whose outputs are added to this one's.
    pub(crate) fn summed_over(&self) -> Option<&Group> {
        self.summed_over.as_ref()
    }

    /// Weight and bias, for [`crate::ops`].
    pub(crate) fn operand(&self) -> backend::Linear<'_> {
        backend::Linear { weight: &self.weight, bias: self.bias.as_ref() }
    }
}

/// A table of `vocab_size` vectors of `hidden_size`.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// The table, or this rank's share of it, as output projection.
    linear: Linear,
    vocab_size: i32,
    group: Option<Group>,
}

impl Embedding {
    /// Take `weight` (and `scales`, `biases`) from the scope of the module. Errors as [`Linear::load`].
    pub fn load(w: &Scope, vocab_size: i32, hidden_size: i32, quantization: Option<&Quantization>) -> Result<Self> {
        let linear = Linear::load(w, vocab_size, hidden_size, Split::Outputs, false, quantization)?;
        Ok(Embedding { linear, vocab_size, group: w.group().cloned() })
    }

    /// Token ids `[N]` (u32, below `vocab_size`) to vectors `[N, D]`.
    pub fn forward(&self, tokens: &Array) -> Result<Array> {
        let Some(group) = &self.group else { return ops::embedding(tokens, &self.linear.weight) };
        let own = group.share(self.vocab_size);
        ops::all_sum(&ops::part_of_embedding(tokens, &self.linear.weight, own)?, group)
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
