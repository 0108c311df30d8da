//! OLMo 2: `Olmo2ForCausalLM`, Llama that normalises what attention and MLP give, and all heads of queries and keys together.
//! Reference: `transformers.Olmo2Config`, `mlx_lm.models.olmo2`.

use super::config::{DecoderConfig, Defaults, Fields, NormPlacement, QkNorm};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let mut config = DecoderConfig::read(fields, Defaults::default())?;
    config.for_layers(|layer| {
        layer.norms = NormPlacement::After;
        layer.qk_norm = Some(QkNorm::AllHeads);
    });
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::{NormPlacement, QkNorm, read_json};
    use serde_json::json;

    #[test]
    fn olmo_2_1b_instruct() {
        let config = read_json(
            super::config,
            json!({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16,
                "num_key_value_heads": 16, "rope_theta": 500000, "rope_scaling": null, "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-6, "vocab_size": 100352, "tie_word_embeddings": false, "attention_bias": false}),
        );
        let layer = config.layer(0);
        assert_eq!((layer.norms, layer.qk_norm), (NormPlacement::After, Some(QkNorm::AllHeads)));
        assert_eq!((config.head_dim, layer.rope.as_ref().unwrap().rope_theta), (128, 5e5));
    }
}
