//! Granite 3: `GraniteForCausalLM`, Llama with four multipliers. Reference: `transformers.GraniteConfig`,
//! `mlx_lm.models.granite`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let mut config = DecoderConfig::read(fields, Defaults::default())?;
    let multiplier = |key: &str| -> Result<f32> { Ok(fields.optional_positive(key)?.unwrap_or(1.0) as f32) };
    config.embedding_multiplier = multiplier("embedding_multiplier")?;
    config.logits_scaling = multiplier("logits_scaling")?;
    let (attention, residual) = (multiplier("attention_multiplier")?, multiplier("residual_multiplier")?);
    config.for_layers(|layer| {
        layer.attention_scale = attention;
        layer.residual.multiplier = residual;
    });
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use serde_json::json;

    #[test]
    fn granite_3_3_2b_instruct() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 32,
                "num_key_value_heads": 8, "rope_theta": 10000000.0, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
                "vocab_size": 49159, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
                "embedding_multiplier": 12.0, "logits_scaling": 8.0, "attention_multiplier": 0.015625,
                "residual_multiplier": 0.22}),
        );
        let layer = config.layer(0);
        assert_eq!((config.embedding_multiplier, config.logits_scaling), (12.0, 8.0));
        assert_eq!((layer.attention_scale, layer.residual.multiplier), (1.0 / 64.0, 0.22));
    }
}
