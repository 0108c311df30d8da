//! Qwen3: `Qwen3ForCausalLM`, Llama with per-head norms of queries and keys. Reference: `transformers.Qwen3Config`.

use super::config::{DecoderConfig, Defaults, Fields};
use crate::error::Result;

pub(super) fn config(fields: &Fields) -> Result<DecoderConfig> {
    if fields.optional_bool("use_sliding_window")? == Some(true) {
        return Err(fields.unsupported("use_sliding_window (a window in some layers only)", "set it to false"));
    }
    Ok(DecoderConfig {
        qk_norm: true,
        ..DecoderConfig::read(fields, Defaults { max_position_embeddings: 32_768, head_dim: Some(128) })?
    })
}
