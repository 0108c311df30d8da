//! Llama (and TinyLlama): `LlamaForCausalLM`. Reference: `transformers.LlamaConfig`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    DecoderConfig::read(fields, Defaults::default())
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use super::super::rope::RopeScaling;
    use serde_json::json;

    #[test]
    fn llama_3_2_1b_instruct() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 64, "rope_theta": 500000.0, "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5, "vocab_size": 128256, "tie_word_embeddings": true, "attention_bias": false,
                "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
        );
        assert_eq!((config.head_dim, config.num_key_value_heads, config.max_position_embeddings), (64, 8, 131_072));
        assert_eq!(
            (config.tie_word_embeddings, config.layer(0).sliding_window, config.layer(0).qk_norm),
            (Some(true), None, None)
        );
        let llama3 = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let rope = config.layer(0).rope.as_ref().unwrap();
        assert_eq!((rope.rope_theta, &rope.scaling), (5e5, &llama3));
    }

    #[test]
    fn tinyllama_derives_its_head_dim() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                "num_key_value_heads": 4, "rope_scaling": null, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "vocab_size": 32000, "tie_word_embeddings": false}),
        );
        let rope = config.layer(0).rope.as_ref().unwrap();
        assert_eq!((config.head_dim, config.num_key_value_heads, rope.rope_theta), (64, 4, 1e4));
        assert_eq!((config.tie_word_embeddings, &rope.scaling), (Some(false), &RopeScaling::Default));
    }
}
