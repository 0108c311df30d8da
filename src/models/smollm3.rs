//! SmolLM3: `SmolLM3ForCausalLM`, Llama with layers that do not rotate. Reference: `transformers.SmolLM3Config`,
//! `mlx_lm.models.smollm3`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let defaults = Defaults { max_position_embeddings: 32_768, rope_theta: 2e6, ..Defaults::default() };
    let mut config = DecoderConfig::read(fields, defaults)?;
    let slides = fields.optional_bool("use_sliding_window")? == Some(true) && !fields.has("layer_types");
    let window = if slides { fields.optional_size("sliding_window")? } else { None };
    let layers = config.num_hidden_layers as usize;
    let rotates: Vec<bool> = match fields.optional_array("no_rope_layers")? {
        // In spite of its name, 1 is for a layer that rotates.
        Some(listed) if listed.len() == layers => listed.iter().map(|flag| flag.as_i64() != Some(0)).collect(),
        Some(listed) => {
            let found = format!("a list of {}", listed.len());
            return Err(fields.error("no_rope_layers", found, format!("{layers} numbers, one a layer")));
        }
        None => {
            let interval = fields.optional_size("no_rope_layer_interval")?.unwrap_or(4);
            (1..=config.num_hidden_layers).map(|i| i % interval != 0).collect()
        }
    };
    config.layers = (0..layers).map(|i| config.layer(i).clone()).collect();
    for (layer, rotates) in config.layers.iter_mut().zip(rotates) {
        layer.rope.take_if(|_| !rotates);
        // Those that rotate slide, unless it is said of each.
        layer.sliding_window = window.filter(|_| rotates).or(layer.sliding_window);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_json;
    use serde_json::json;

    #[test]
    fn smollm3_3b() {
        let mut smollm = json!({"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 4, "rope_theta": 5000000.0, "no_rope_layer_interval": 4,
            "max_position_embeddings": 65536, "rms_norm_eps": 1e-6, "vocab_size": 128256, "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "use_sliding_window": false, "sliding_window": null});
        let rotates = |config: serde_json::Value| {
            let config = read_json(super::config, config);
            (0..8).map(|i| config.layer(i).rope.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(rotates(smollm.clone()), [true, true, true, false, true, true, true, false]);
        smollm["no_rope_layers"] =
            json!(vec![json!([0, 1]); 18].into_iter().flat_map(|v| v.as_array().unwrap().clone()).collect::<Vec<_>>());
        assert_eq!(rotates(smollm.clone()), [false, true, false, true, false, true, false, true]);
        (smollm["use_sliding_window"], smollm["sliding_window"]) = (json!(true), json!(512));
        let config = read_json(super::config, smollm);
        assert_eq!([0, 1, 2, 3].map(|i| config.layer(i).sliding_window), [None, Some(512), None, Some(512)]);
    }
}
