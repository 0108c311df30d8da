//! What a model is, in a few numbers: written into a pack's header, shown by `mlxpack info`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A model's sizes. What its files do not say is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // config.json's names
pub struct Summary {
    /// The first of config.json's `architectures`, such as `LlamaForCausalLM`; without one, its `model_type`.
    pub architecture: Option<String>,
    pub hidden_size: Option<u64>,
    pub num_hidden_layers: Option<u64>,
    pub num_attention_heads: Option<u64>,
    pub num_key_value_heads: Option<u64>,
    pub vocab_size: Option<u64>,
    pub max_position_embeddings: Option<u64>,
    /// Absent for full precision.
    pub quantization: Option<QuantizationSummary>,
    pub tokenizer: TokenizerSummary,
    /// Tensors in the weights.
    pub tensor_count: u64,
    /// Values of the model that was quantized: a packed weight counts as what it stands for, scales and biases of
    /// groups do not count.
    pub parameter_count: u64,
}

/// config.json's `quantization`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // config.json's names
pub struct QuantizationSummary {
    pub bits: Option<u64>,
    pub group_size: Option<u64>,
    /// `affine` where config.json does not say, as in mlx-lm.
    pub mode: String,
    /// By module: an object with other settings, or whether it is quantized at all.
    pub overrides: Map<String, Value>,
}

/// What matters of the tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct TokenizerSummary {
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    pub has_chat_template: bool,
}
