//! The text part of Gemma 3 that sees images too (`Gemma3ForConditionalGeneration`): [`super::gemma3_text`], whose configuration
//! is a part of this one. Reference: `transformers.Gemma3Config`, `mlx_lm.models.gemma3`.

use serde_json::{Map, json};

use super::config::{DecoderConfig, Fields};
use super::gemma3_text;
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let Some(text) = fields.optional_object("text_config")? else {
        return Err(fields.error("text_config", "missing", "an object"));
    };
    // What published configurations leave out.
    let mut settings = Map::from_iter([
        ("num_attention_heads".to_owned(), json!(8)),
        ("num_key_value_heads".to_owned(), json!(4)),
        ("rms_norm_eps".to_owned(), json!(1e-6)),
        ("vocab_size".to_owned(), json!(262_208)),
    ]);
    let of_all = ["vocab_size", "quantization", "quantization_config"];
    let from_top = fields.entries().filter(|(key, _)| of_all.contains(&key.as_str()));
    settings.extend(text.entries().chain(from_top).map(|(key, value)| (key.clone(), value.clone())));
    let mut config = gemma3_text::config(&Fields::new(fields.path(), &settings))?;
    config.weights_prefix = "language_model";
    config.other_weights = &["vision_tower.", "multi_modal_projector."];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use serde_json::json;

    #[test]
    fn gemma_3_4b_it() {
        let config = read_json(
            super::config,
            json!({"model_type": "gemma3", "vision_config": {"hidden_size": 1152}, "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}}),
        );
        assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.vocab_size), (8, 4, 262_208));
        let [local, global] =
            [4, 5].map(|i| (config.layer(i).sliding_window, config.layer(i).rope.as_ref().unwrap().rope_theta));
        assert_eq!((local, global), ((Some(1024), 1e4), (None, 1e6)));
        assert_eq!(config.weights_prefix, "language_model");
    }
}
