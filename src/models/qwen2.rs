//! Qwen2 and Qwen2.5: `Qwen2ForCausalLM`, Llama with biases of queries, keys and values. Reference: `transformers.Qwen2Config`,
//! `mlx_lm.models.qwen2`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let defaults = Defaults { max_position_embeddings: 32_768, rope_theta: 1e6, ..Defaults::default() };
    let mut config = DecoderConfig::read(fields, defaults)?;
    config.for_layers(|layer| (layer.qkv_bias, layer.o_bias) = (true, false));
    slide_upper_layers(&mut config, fields)?;
    Ok(config)
}

/// With `use_sliding_window`, layers from `max_window_layers` on slide one. Qwen3 has it too.
pub(super) fn slide_upper_layers(config: &mut DecoderConfig, fields: &Fields) -> Result<()> {
    if fields.has("layer_types") || fields.optional_bool("use_sliding_window")? != Some(true) {
        return Ok(());
    }
    let first = fields.optional_int("max_window_layers", 0..=i64::from(i32::MAX))?.unwrap_or(28);
    let slides: Vec<bool> = (0..config.num_hidden_layers).map(|i| i64::from(i) >= first).collect();
    config.slide(&slides, fields.optional_size("sliding_window")?, fields)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use serde_json::json;

    #[test]
    fn qwen2_5_1_5b_instruct() {
        let mut qwen = json!({"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "rope_theta": 1000000.0, "sliding_window": 32768,
            "use_sliding_window": false, "max_window_layers": 21, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "vocab_size": 151936, "tie_word_embeddings": true});
        let config = read_json(super::config, qwen.clone());
        let layer = config.layer(0);
        assert_eq!((config.head_dim, config.layers.len(), layer.sliding_window), (128, 1, None));
        assert!(layer.qkv_bias && !layer.o_bias && !layer.mlp_bias);

        qwen["use_sliding_window"] = json!(true);
        let config = read_json(super::config, qwen);
        let windows: Vec<_> = (19..23).map(|i| config.layer(i).sliding_window).collect();
        assert_eq!(windows, [None, None, Some(32768), Some(32768)]);
    }
}
