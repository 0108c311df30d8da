//! Token after token: prefill, then decode, as named states of an iterator.
//!
//! Reference: `mlx_lm.generate.generate_step`. The prompt is prefilled in chunks but for its last token, which is the
//! first decode step. Decoding is pipelined: the step after a token is submitted before the token is read.

use std::ops::ControlFlow;

use mlx_rs::Array;
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::{async_eval, eval};

use super::kv_cache::KvCache;
use super::sampler::{Sampler, logprobs};
use crate::error::Result;
use crate::models::Model;

/// MLX keeps freed buffers for reuse; they are dropped once in so many tokens.
const CLEAR_CACHE_EVERY: usize = 256;

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Natural log of its probability before temperature and filters, when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens with theirs, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Iterates over generated tokens, `max_tokens` at most. The caller decides when to stop.
pub struct Generator<'m> {
    model: &'m Model,
    cache: KvCache,
    sampler: Sampler,
    /// `None`: no log-probabilities. `Some(n)`: that of the token, and of the n most likely.
    logprobs: Option<usize>,
    max_tokens: usize,
    generated: usize,
    state: State,
}

enum State {
    /// The prompt's last token waits for its forward pass.
    Prefilled(u32),
    /// Submitted but not read.
    Decoding(Step),
    Finished,
}

/// A decode step's results: the token `[1]`, and the log-probabilities `[1, V]` when asked for.
struct Step {
    token: Array,
    logprobs: Option<Array>,
}

impl<'m> Generator<'m> {
    /// Prefill all of `prompt` but its last token, `prefill_step` tokens at a time. `on_prefill` is told the tokens
    /// done and in all before each chunk, and may stop there; then there is no generator.
    ///
    /// `prompt` has at least one token, each below the model's `vocab_size`; the first [`KvCache::seen`] of them may be in
    /// `cache` already, but not the last.
    #[allow(clippy::too_many_arguments)]
    pub fn prefill(
        model: &'m Model,
        mut cache: KvCache,
        mut sampler: Sampler,
        prompt: &[u32],
        max_tokens: usize,
        logprobs: Option<usize>,
        prefill_step: usize,
        on_prefill: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Self>> {
        let (last, body) = prompt.split_last().expect("a prompt has at least one token");
        let chunk_size = cache.limits().chunk_size(prompt.len(), prefill_step);
        let mut on_prefill = |done| on_prefill(done, prompt.len());
        if read(model, &mut cache, body, chunk_size, &mut on_prefill)?.is_break() || on_prefill(body.len()).is_break() {
            return Ok(None);
        }
        if !body.is_empty() {
            sampler.observe(&row(body))?;
        }
        let state = if max_tokens == 0 { State::Finished } else { State::Prefilled(*last) };
        Ok(Some(Generator { model, cache, sampler, logprobs, max_tokens, generated: 0, state }))
    }

    /// What the model remembers.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Submit the forward pass of `token` `[1]` and the choice of the one after it.
    fn submit(&mut self, token: &Array) -> Result<Step> {
        let tokens = token.reshape(&[1, 1])?;
        self.sampler.observe(&tokens)?;
        let hidden_states = self.model.forward(&tokens, &mut self.cache)?;
        let logits = self.model.logits(&hidden_states)?.try_index((.., -1, ..))?; // [1, V]
        let logits = self.sampler.process(logits)?;
        let step = Step {
            token: self.sampler.sample(&logits)?,
            logprobs: if self.logprobs.is_some() { Some(logprobs(&logits)?) } else { None },
        };
        async_eval([&step.token].into_iter().chain(&step.logprobs))?;
        Ok(step)
    }

    fn advance(&mut self) -> Result<Option<Token>> {
        let step = match std::mem::replace(&mut self.state, State::Finished) {
            State::Finished => return Ok(None),
            State::Prefilled(last) => self.submit(&row(&[last]))?,
            State::Decoding(step) => step,
        };
        self.generated += 1;
        if self.generated < self.max_tokens {
            self.state = State::Decoding(self.submit(&step.token)?);
        }
        if self.generated.is_multiple_of(CLEAR_CACHE_EVERY) {
            clear_cache()?;
        }
        self.read(step).map(Some)
    }

    /// Wait for a step and copy its results.
    fn read(&self, step: Step) -> Result<Token> {
        step.token.eval()?;
        let id: u32 = step.token.item_exact();
        let (Some(logprobs), Some(n)) = (step.logprobs, self.logprobs) else {
            return Ok(Token { id, logprob: None, top_logprobs: Vec::new() });
        };
        logprobs.eval()?;
        let logprobs: &[f32] = logprobs.as_slice();
        Ok(Token { id, logprob: Some(logprobs[id as usize]), top_logprobs: top(logprobs, n) })
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Drop for Generator<'_> {
    /// Wait for the step that was submitted ahead: a program that ends while MLX's thread still computes tears MLX's
    /// own statics down under it.
    fn drop(&mut self) {
        if let State::Decoding(step) = &self.state {
            let _ = step.token.eval(); // nobody reads this token, nor its error
        }
    }
}

/// Take into `cache` what it has not [seen](KvCache::seen) of `ids`, `chunk_size` tokens at a time. `before_chunk` is told
/// how many are done, and may stop there.
pub(super) fn read(
    model: &Model,
    cache: &mut KvCache,
    ids: &[u32],
    chunk_size: usize,
    before_chunk: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    for chunk in ids[cache.seen() as usize..].chunks(chunk_size) {
        if before_chunk(cache.seen() as usize).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        model.forward(&row(chunk), cache)?;
        eval(cache.arrays())?;
        clear_cache()?;
    }
    Ok(ControlFlow::Continue(()))
}

/// Token ids as `[1, L]`.
pub(super) fn row(ids: &[u32]) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32])
}

/// The `n` largest of `logprobs` with their indices, largest first, ties by index.
fn top(logprobs: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logprobs.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < ranked.len() {
        ranked.select_nth_unstable_by(n, order);
        ranked.truncate(n);
    }
    ranked.sort_unstable_by(order);
    ranked
}
