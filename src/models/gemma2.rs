//! Gemma 2: `Gemma2ForCausalLM`. Norms around attention and MLP, GeGLU, capped scores and logits, and a window in every other
//! layer. Reference: `transformers.Gemma2Config`; `mlx_lm.models.gemma2`, which has no window; arXiv 2408.00118.

use super::config::{Activation, DecoderConfig, Defaults, Fields, NormPlacement};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let mut config = gemma(fields, Defaults::default())?;
    config.tie_word_embeddings = Some(true);
    let cap = |key: &str, default: f64| -> Result<Option<f32>> {
        let cap = if fields.is_null(key) { None } else { Some(fields.optional_positive(key)?.unwrap_or(default)) };
        Ok(cap.map(|cap| cap as f32))
    };
    config.final_logit_softcapping = cap("final_logit_softcapping", 30.0)?;
    let of_scores = cap("attn_logit_softcapping", 50.0)?;
    config.for_layers(|layer| layer.attn_logit_softcapping = of_scores);
    if !fields.has("layer_types") {
        let window = fields.optional_size("sliding_window")?.unwrap_or(4096);
        config.slide(&[true, false], Some(window), fields)?;
    }
    Ok(config)
}

/// What Gemma 2 and 3 share.
pub(super) fn gemma(fields: &Fields, defaults: Defaults) -> Result<DecoderConfig> {
    let activation = Activation::GeluTanh;
    let defaults = Defaults { max_position_embeddings: 8192, head_dim: Some(256), activation, ..defaults };
    let mut config = DecoderConfig::read(fields, defaults)?;
    config.embedding_multiplier = (config.hidden_size as f32).sqrt();
    config.norm_weight_offset = 1.0;
    let scale = fields.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    config.for_layers(|layer| {
        layer.attention_scale = scale;
        layer.norms = NormPlacement::Around;
    });
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use serde_json::json;

    #[test]
    fn gemma_2_2b_it() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
                "num_key_value_heads": 4, "head_dim": 256, "rope_theta": 10000.0, "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-6, "vocab_size": 256000, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096,
                "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 256,
                "final_logit_softcapping": 30.0, "attention_bias": false}),
        );
        assert_eq!((config.embedding_multiplier, config.final_logit_softcapping), (48.0, Some(30.0)));
        let windows: Vec<_> = (0..4).map(|i| config.layer(i).sliding_window).collect();
        assert_eq!(windows, [Some(4096), None, Some(4096), None]);
        let layer = config.layer(1);
        assert_eq!((layer.attention_scale, layer.attn_logit_softcapping), (1.0 / 16.0, Some(50.0)));
    }
}
