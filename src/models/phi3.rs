//! Phi-3, Phi-3.5 and Phi-4-mini: `Phi3ForCausalLM`, Llama with fused projections, partial rotation and LongRoPE. Reference:
//! `transformers.Phi3Config`, `mlx_lm.models.phi3`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let defaults = Defaults { max_position_embeddings: 4096, partial_rotation: true, ..Defaults::default() };
    let mut config = DecoderConfig::read(fields, defaults)?;
    config.fused_projections = true;
    if !fields.has("layer_types") {
        config.layers[0].sliding_window = fields.optional_size("sliding_window")?;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use super::super::rope::RopeScaling;
    use serde_json::json;

    #[test]
    fn phi_4_mini_instruct() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
                "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "vocab_size": 200064,
                "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                "sliding_window": 262144, "tie_word_embeddings": true, "attention_bias": false,
                "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![2.5; 48]}}),
        );
        let rope = config.layer(0).rope.as_ref().unwrap();
        let RopeScaling::LongRope { long_factor, original_max_position_embeddings, attention_factor, .. } =
            &rope.scaling
        else {
            panic!("{:?}", rope.scaling)
        };
        assert_eq!((config.head_dim, rope.rotary_dim, long_factor.len()), (128, 96, 48));
        assert_eq!(*original_max_position_embeddings, 4096.0);
        assert!((attention_factor - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
        assert!(config.fused_projections && config.layer(0).sliding_window == Some(262_144));
    }
}
