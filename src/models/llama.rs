//! Llama (and TinyLlama): `LlamaForCausalLM`. Reference: `transformers.LlamaConfig`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    DecoderConfig::read(fields, Defaults { max_position_embeddings: 2048, head_dim: None })
}
