//! Models of a real architecture with random weights, made in memory: as fast as the real ones, and saying nothing.

use memmap2::MmapMut;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::config::DecoderConfig;
use super::decoder::Decoder;
use crate::checkpoint::WeightFile;
use crate::error::{Error, Result};
use crate::tensor_index::{TensorEntry, TensorIndex};
use crate::watch::Watch;
use crate::weights::Weights;

/// An architecture that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Architecture {
    Llama32_1B,
    TinyLlama,
    Qwen3_4B,
    Mistral7B,
}

/// Values that share a scale, as `mlx_lm.convert` packs them by default.
const GROUP: usize = 64;

impl Architecture {
    /// The architecture's config.json (as published on Hugging Face), quantized to `bits` (4 or 8) or in bf16 (16).
    pub(super) fn config(self, bits: u32) -> Map<String, Value> {
        let mut config = match self {
            Architecture::Llama32_1B => json!({
                "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
                "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
                "tie_word_embeddings": true,
                "rope_scaling": {
                    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            }),
            Architecture::TinyLlama => json!({
                "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 5632,
                "num_attention_heads": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "vocab_size": 32000,
                "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": false,
            }),
            Architecture::Qwen3_4B => json!({
                "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
                "vocab_size": 151936, "max_position_embeddings": 262144, "rope_theta": 5000000.0,
                "tie_word_embeddings": true,
            }),
            Architecture::Mistral7B => json!({
                "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
                "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 32768,
                "max_position_embeddings": 32768, "rope_theta": 1000000.0, "tie_word_embeddings": false,
                "sliding_window": null,
            }),
        };
        if bits != 16 {
            config["quantization"] = json!({"group_size": GROUP, "bits": bits, "mode": "affine"});
        }
        let Value::Object(config) = config else { unreachable!("it is an object") };
        config
    }
}

/// A safetensors file in memory, with the tensors that a model of this configuration asks for.
pub(super) fn weights(config: &DecoderConfig, bits: u32) -> Result<WeightFile<'static>> {
    let mut watch = Watch::none();
    let weights = Weights::recording(bits != 16, &mut watch);
    Decoder::load(&weights.scope(""), config)?;
    let mut tensors = weights.into_record();
    // Packed values are read by words.
    tensors.sort_by_key(|tensor| tensor.dtype != Dtype::U32);
    let mut end = 0;
    for TensorEntry { bytes, .. } in &mut tensors {
        *bytes = end..end + (bytes.end - bytes.start);
        end = bytes.end;
    }
    let io = Error::io("<synthetic>".as_ref());
    let mut map = MmapMut::map_anon(end as usize).map_err(&io)?;
    for tensor in &tensors {
        fill(tensor, bits, &mut map[tensor.bytes.start as usize..tensor.bytes.end as usize]);
    }
    WeightFile::in_memory(TensorIndex { data_start: 0, tensors }, map).map_err(io)
}

/// Random quantized values; other numbers of a size that keeps hidden states near 1.
fn fill(tensor: &TensorEntry, bits: u32, bytes: &mut [u8]) {
    let mut state = tensor.bytes.start;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    // In bf16: a sign and seven bits of fraction at random, and a fixed exponent; four numbers at a time.
    let (keep, set) = match &tensor.name {
        _ if tensor.dtype == Dtype::U32 => (u64::MAX, 0),
        name if name.ends_with("norm.weight") => (0, 0x3f80), // 1
        name if name.ends_with(".biases") => (0, 0xbd00),     // -1/32, which centres the values
        name if name.ends_with(".scales") => (0, if bits == 4 { 0x3b80 } else { 0x3980 }), // 1/256, 1/4096
        _ => (0x807f, 0x3c80),                                // ±1/64 to ±1/32
    };
    let four = |pattern: u64| if pattern == u64::MAX { pattern } else { pattern * 0x0001_0001_0001_0001 };
    let (keep, set) = (four(keep), four(set));
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&(next() & keep | set).to_le_bytes()[..chunk.len()]);
    }
}
