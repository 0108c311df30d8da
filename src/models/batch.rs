//! What one forward pass computes: the tokens of several sequences, packed one after another, without padding.

use mlx_rs::{Array, Dtype};

use crate::backend::Phase;
use crate::error::{Error, Result};
use crate::generate::kv_cache::KvCache;

/// Token ids `[N]` and the spans that they belong to.
#[derive(Debug)]
pub struct Batch<'a> {
    pub(super) ids: Array,
    pub(super) spans: Vec<Span<'a>>,
}

/// The next tokens of one sequence.
#[derive(Debug)]
pub struct Span<'a> {
    /// What the model remembers of the sequence.
    pub cache: &'a mut KvCache,
    /// How many of the batch's ids are the sequence's.
    pub tokens: i32,
    /// Whether they are part of a prompt.
    pub phase: Phase,
}

impl<'a> Batch<'a> {
    /// `ids` `[N]` (u32, each below `vocab_size`) are those of all spans, in order. Spans of one phase are best neighbours.
    ///
    /// # Errors
    /// When `ids` has another shape or type, or the spans another number of tokens.
    pub fn new(ids: Array, spans: Vec<Span<'a>>) -> Result<Self> {
        let n = spans.iter().map(|span| span.tokens).sum::<i32>();
        if ids.dtype() != Dtype::Uint32 || ids.shape() != [n] || spans.iter().any(|span| span.tokens <= 0) {
            let found = format!("{:?} of {:?}", ids.shape(), ids.dtype());
            let tokens: Vec<i32> = spans.iter().map(|span| span.tokens).collect();
            return Err(Error::Input(format!("token ids are [N] of Uint32 for spans of {tokens:?}, not {found}")));
        }
        Ok(Batch { ids, spans })
    }

    /// Some tokens of one sequence's prompt.
    pub fn prefill(ids: &[u32], cache: &'a mut KvCache) -> Result<Self> {
        let tokens = ids.len() as i32;
        Batch::new(Array::from_slice(ids, &[tokens]), vec![Span { cache, tokens, phase: Phase::Prefill }])
    }

    /// How the products of all spans together are best computed, where that is not decided span by span.
    pub(super) fn phase(&self) -> Phase {
        let is_decode = self.spans.iter().all(|span| span.phase == Phase::Decode);
        if is_decode { Phase::Decode } else { Phase::Prefill }
    }
}
