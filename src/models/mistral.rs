//! Mistral: `MistralForCausalLM`, Llama with an optional sliding window. Reference: `transformers.MistralConfig`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    let mut config = DecoderConfig::read(fields, Defaults { max_position_embeddings: 131_072, head_dim: None })?;
    // Of the three families, only Mistral slides its window without saying so in `layer_types`.
    if !fields.has("layer_types") {
        config.sliding_window = fields.optional_size("sliding_window")?;
    }
    Ok(config)
}
