//! Qwen3: `Qwen3ForCausalLM`, Llama with per-head norms of queries and keys. Reference: `transformers.Qwen3Config`.

use super::config::{DecoderConfig, Defaults, Fields, QkNorm};
use super::qwen2::slide_upper_layers;
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let defaults = Defaults { max_position_embeddings: 32_768, head_dim: Some(128), ..Defaults::default() };
    let mut config = DecoderConfig::read(fields, defaults)?;
    config.for_layers(|layer| layer.qk_norm = Some(QkNorm::PerHead));
    slide_upper_layers(&mut config, fields)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::{QkNorm, read_json};
    use serde_json::json;

    #[test]
    fn qwen3_4b_instruct_2507() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5000000, "rope_scaling": null,
                "sliding_window": null, "use_sliding_window": false, "max_window_layers": 36,
                "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "vocab_size": 151936,
                "tie_word_embeddings": true}),
        );
        let layer = config.layer(0);
        // 32 heads of 128 are wider than the hidden states.
        assert_eq!((config.head_dim, config.num_attention_heads * config.head_dim), (128, 4096));
        assert_eq!((config.rms_norm_eps, layer.rope.as_ref().unwrap().rope_theta), (1e-6, 5e6));
        assert_eq!(layer.qk_norm, Some(QkNorm::PerHead));
        assert!(config.tie_word_embeddings == Some(true) && layer.sliding_window.is_none());
    }
}
