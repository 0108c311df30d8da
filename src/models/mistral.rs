//! Mistral: `MistralForCausalLM`, Llama with an optional sliding window. Reference: `transformers.MistralConfig`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let mut config = DecoderConfig::read(fields, Defaults { max_position_embeddings: 131_072, ..Defaults::default() })?;
    // Its window slides without `layer_types` that say so.
    if !fields.has("layer_types") {
        let is_told = fields.entries().any(|(key, _)| key == "sliding_window");
        let window = if is_told { fields.optional_size("sliding_window")? } else { Some(4096) };
        config.layers[0].sliding_window = window;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use crate::models::config::DecoderConfig;
    use serde_json::{Value, json};

    /// Head dimension, window and theta.
    fn told(config: &DecoderConfig) -> (i32, Option<i32>, f64) {
        let layer = config.layer(0);
        (config.head_dim, layer.sliding_window, layer.rope.as_ref().unwrap().rope_theta)
    }

    fn mistral_7b(sliding_window: Value, rope_theta: f64) -> Value {
        json!({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "vocab_size": 32000,
            "tie_word_embeddings": false, "rope_theta": rope_theta, "sliding_window": sliding_window})
    }

    #[test]
    fn version_1_slides_its_window_and_version_3_does_not() {
        let v1 = read_json(super::config, mistral_7b(json!(4096), 1e4));
        assert_eq!(told(&v1), (128, Some(4096), 1e4));
        let v3 = read_json(super::config, mistral_7b(json!(null), 1e6));
        assert_eq!(told(&v3), (128, None, 1e6));
        let mut silent = mistral_7b(json!(null), 1e6);
        silent.as_object_mut().unwrap().remove("sliding_window");
        assert_eq!(told(&read_json(super::config, silent)), (128, Some(4096), 1e6));
    }

    #[test]
    fn layer_types_overrule_sliding_window() {
        let mut full = mistral_7b(json!(4096), 1e4);
        full["layer_types"] = json!(vec!["full_attention"; 32]);
        assert_eq!(told(&read_json(super::config, full)).1, None);
    }
}
