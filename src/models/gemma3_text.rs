//! Gemma 3 (`Gemma3ForCausalLM`): Gemma 2 with norms of heads in place of capped scores, and five layers with a window and a
//! rotation of their own to one without. Reference: `transformers.Gemma3TextConfig`, `mlx_lm.models.gemma3_text`; arXiv 2503.19786.

use half::bf16;

use super::config::{DecoderConfig, Defaults, Fields, QkNorm};
use super::gemma2::gemma;
use super::rope::RopeConfig;
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    if fields.optional_bool("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unsupported("use_bidirectional_attention", "supported: models that generate text"));
    }
    let mut config = gemma(fields, Defaults { rope_theta: 1e6, rope_by_layer_type: true, ..Defaults::default() })?;
    // As it was trained, and as mlx-lm has it in all types.
    config.embedding_multiplier = bf16::from_f32(config.embedding_multiplier).to_f32();
    config.tie_word_embeddings = None;
    config.final_logit_softcapping = fields.optional_positive("final_logit_softcapping")?.map(|cap| cap as f32);
    config.for_layers(|layer| {
        layer.qk_norm = Some(QkNorm::PerHead);
        layer.attn_logit_softcapping = None; // which transformers reads and does not use
        layer.residual.saturates = true;
    });
    if !fields.has("layer_types") {
        let window = fields.optional_size("sliding_window")?.unwrap_or(512);
        let pattern = fields.optional_size("sliding_window_pattern")?.unwrap_or(6);
        let slides: Vec<bool> = (1..=config.num_hidden_layers.min(pattern)).map(|i| i % pattern != 0).collect();
        config.slide(&slides, Some(window), fields)?;
    }
    let rope = RopeConfig::read_sliding(fields, config.head_dim, config.max_position_embeddings)?;
    config.for_layers(|layer| {
        if layer.sliding_window.is_some() {
            layer.rope = Some(rope.clone());
        }
    });
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::{DecoderConfig, read_json};
    use serde_json::json;

    /// Windows and bases of the first layers' rotations.
    fn layers(config: &DecoderConfig, n: usize) -> Vec<(Option<i32>, f64)> {
        let of = |i| (config.layer(i).sliding_window, config.layer(i).rope.as_ref().unwrap().rope_theta);
        (0..n).map(of).collect()
    }

    #[test]
    fn gemma_3_1b_it() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
                "num_key_value_heads": 1, "head_dim": 256, "rope_theta": 1000000, "rope_local_base_freq": 10000,
                "rope_scaling": null, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "vocab_size": 262144,
                "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 512, "sliding_window_pattern": 6,
                "query_pre_attn_scalar": 256, "final_logit_softcapping": null, "attn_logit_softcapping": null}),
        );
        let local = (Some(512), 1e4);
        assert_eq!(layers(&config, 7), [local, local, local, local, local, (None, 1e6), local]);
        assert_eq!((config.embedding_multiplier, config.final_logit_softcapping), (34.0, None));
    }

    #[test]
    fn as_transformers_5_saves_it() {
        let kinds = ["sliding_attention", "full_attention", "sliding_attention"];
        let config = read_json(
            super::config,
            json!({"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
                "head_dim": 32, "rms_norm_eps": 1e-6, "vocab_size": 64, "sliding_window": 8, "layer_types": kinds,
                "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4}}}),
        );
        assert_eq!(layers(&config, 3), [(Some(8), 3e4), (None, 5e5), (Some(8), 3e4)]);
    }
}
