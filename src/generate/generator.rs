//! Token after token: prefill, then decode, as named states of an iterator.
//!
//! Reference: `mlx_lm.generate.generate_step`. The prompt is prefilled in chunks but for its last token, which is the
//! first decode step. Decoding is pipelined: the step after a token is submitted before the token is read.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use mlx_rs::Array;
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::async_eval;

use super::kv_cache::KvCache;
use super::sampler::{Sampler, logprobs};
use super::{Watch, unless_interrupted};
use crate::backend::NO_TOKEN;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::ops;

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
    /// What came before is as it should be.
    Failed(Error),
    Finished,
}

/// A decode step's results: the token `[1]`, and the log-probabilities `[1, V]` when asked for.
struct Step {
    token: Array,
    logprobs: Option<Array>,
}

impl<'m> Generator<'m> {
    /// Prefill all of `prompt` but its last token, `prefill_step` tokens at a time. When `watch` stops it, there is no
    /// generator.
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
        watch: &mut Watch,
    ) -> Result<Option<Self>> {
        let (last, body) = prompt.split_last().expect("a prompt has at least one token");
        let chunk_size = cache.limits().chunk_size(prompt.len(), prefill_step);
        let on_progress = &mut |done, _| (watch.on_progress)(done, prompt.len() as u64);
        let mut watch = Watch { on_progress, stop: watch.stop };
        if read(model, &mut cache, body, chunk_size, &mut watch)?.is_break() {
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
            State::Failed(error) => return Err(error),
            State::Prefilled(last) => self.submit(&row(&[last]))?,
            State::Decoding(step) => step,
        };
        self.generated += 1;
        if self.generated < self.max_tokens {
            self.state = self.submit(&step.token).map_or_else(State::Failed, State::Decoding);
        }
        if self.generated.is_multiple_of(CLEAR_CACHE_EVERY) {
            clear_cache()?;
        }
        self.read(step).map(Some)
    }

    /// Wait for a step and copy its results.
    fn read(&self, step: Step) -> Result<Token> {
        self.model.evaluate([&step.token].into_iter().chain(&step.logprobs))?;
        let id: u32 = step.token.item_exact();
        if id == NO_TOKEN {
            return Err(Error::NotANumber(format!(
                "the model's logits give no token: they hold NaN or infinity, so its weights or the prompt cache are damaged, or \
                 its numbers are too large for {:?}; or logit biases ban every token",
                self.model.dtype()
            )));
        }
        let (Some(logprobs), Some(n)) = (step.logprobs, self.logprobs) else {
            return Ok(Token { id, logprob: None, top_logprobs: Vec::new() });
        };
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
            let _ = self.model.evaluate([&step.token]); // nobody reads this token, nor its error
        }
    }
}

/// Take into `cache` what it has not [seen](KvCache::seen) of `ids`, `chunk_size` tokens at a time, until `watch` stops it;
/// then the cache is of no use.
pub(super) fn read(
    model: &Model,
    cache: &mut KvCache,
    ids: &[u32],
    chunk_size: usize,
    watch: &mut Watch,
) -> Result<ControlFlow<()>> {
    let _interruptible = ops::interruptible(watch.stop);
    let layers = model.config().num_hidden_layers as usize;
    let total = ids.len() as u64;
    (watch.on_progress)(cache.seen(), total);
    for chunk in ids[cache.seen() as usize..].chunks(chunk_size) {
        let before = cache.seen() as usize;
        let on_layer = &mut |layer| (watch.on_progress)((before + chunk.len() * layer / layers) as u64, total);
        let read = model.forward_by_layer(&row(chunk), cache, on_layer).and_then(|_| model.evaluate(cache.arrays()));
        // Where MLX computes by itself, nothing but this looks for it.
        if unless_interrupted(read)?.is_none() || watch.stop.load(Ordering::Relaxed) {
            return Ok(ControlFlow::Break(()));
        }
        clear_cache()?;
    }
    Ok(ControlFlow::Continue(()))
}

/// Token ids as `[1, L]`.
pub(super) fn row(ids: &[u32]) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32])
}

/// The `n` largest of `logprobs` with their indices, largest first, ties by index; without those of banned tokens.
fn top(logprobs: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logprobs.iter().copied()).filter(|(_, p)| p.is_finite()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < ranked.len() {
        ranked.select_nth_unstable_by(n, order);
        ranked.truncate(n);
    }
    ranked.sort_unstable_by(order);
    ranked
}
