//! A sequence of tokens under way: what the model remembers of it, how its next token is chosen, and what is computed next.

use mlx_rs::Array;

use super::constraint::Constraint;
use super::kv_cache::KvCache;
use super::sampler::{Sampler, SamplerOptions};
use crate::error::Result;

/// What is computed next of a [`Sequence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Prompt tokens from here on, all but the last of which are prefilled.
    Prompt(usize),
    /// The token that row `row` of the last step chose.
    Chosen { row: usize },
    /// This token.
    Token(u32),
}

/// A prompt and what follows.
#[derive(Debug)]
pub struct Sequence {
    pub(super) prompt: Vec<u32>,
    pub(super) cache: KvCache,
    pub(super) sampler: Sampler,
    /// `None`: no log-probabilities. `Some(n)`: that of each token, and of the n most likely.
    pub(super) logprobs: Option<usize>,
    pub(super) next: Next,
    /// Prompt tokens of one pass, at most.
    pub(super) chunk_size: usize,
    /// Which tokens it may choose, where that is constrained.
    pub(super) constraint: Option<Constraint>,
}

impl Sequence {
    /// `prompt` has at least one token, each below the model's `vocab_size`; the first [`KvCache::seen`] of them may be in
    /// `cache` already, but not the last. They are read `prefill_step` at a time.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    ///
    /// # Panics
    /// When the prompt is not longer than what the cache has seen.
    pub fn new(
        prompt: Vec<u32>,
        cache: KvCache,
        sampler: &SamplerOptions,
        vocab_size: i32,
        logprobs: Option<usize>,
        prefill_step: usize,
    ) -> Result<Self> {
        let seen = cache.seen() as usize;
        assert!(seen < prompt.len(), "{} tokens, {seen} of them seen", prompt.len());
        let mut sampler = Sampler::new(sampler.clone(), vocab_size)?;
        if let Some((_, body)) = prompt.split_last().filter(|(_, body)| !body.is_empty() && sampler.observes()) {
            sampler.observe(&Array::from_slice(body, &[body.len() as i32]))?;
        }
        let chunk_size = cache.limits().chunk_size(prompt.len(), prefill_step);
        Ok(Sequence { prompt, cache, sampler, logprobs, next: Next::Prompt(seen), chunk_size, constraint: None })
    }

    /// What the model remembers.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Prompt tokens that are still to be prefilled: all but the last, which is decoded.
    pub fn to_prefill(&self) -> usize {
        match self.next {
            Next::Prompt(read) => self.prompt.len() - 1 - read,
            Next::Chosen { .. } | Next::Token(_) => 0,
        }
    }

    /// The token that was chosen last, and those that must follow it, are read like a prompt, all but the last. `generated` are
    /// all that follow the prompt.
    pub(super) fn read_on(&mut self, generated: Vec<u32>, unread: &[u32]) -> Result<()> {
        let (_, body) = unread.split_last().expect("a token was chosen");
        self.sampler.observe(&Array::from_slice(body, &[body.len() as i32]))?;
        self.prompt.extend(generated);
        self.next = Next::Prompt(self.prompt.len() - unread.len());
        // As of a prompt that streams through the cache.
        self.chunk_size = self.chunk_size.min((self.cache.limits().window() as usize / 2).max(1));
        Ok(())
    }

    /// The prompt tokens that the cache has seen.
    pub(super) fn read(&self) -> usize {
        match self.next {
            Next::Prompt(read) => read,
            Next::Chosen { .. } | Next::Token(_) => self.prompt.len(),
        }
    }
}
