//! Forward passes over the next tokens of several sequences, and the choice of the tokens that follow.
//!
//! Reference: `mlx_lm.generate.generate_step`. A prompt is prefilled in chunks but for its last token, which is the first
//! decode step. Decoding is pipelined: the step after a token is submitted before the token is read.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use mlx_rs::Array;
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::indexing::{TryIndexOp, take_axis};
use mlx_rs::ops::{concatenate, select};

use super::kv_cache::KvCache;
use super::sampler::sample;
use super::sequence::{Next, Sequence};
use super::{Watch, unless_interrupted};
use crate::backend::{NO_TOKEN, Phase};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::batch::{Batch, Span};
use crate::ops;

/// MLX keeps freed buffers for reuse; they are dropped once in so many tokens.
pub(super) const CLEAR_CACHE_EVERY: usize = 256;

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

/// A pass that was submitted.
#[derive(Debug)]
pub struct Step {
    /// The tokens of sequences that may choose any.
    free: Option<Choices>,
    /// Logits `[N, V]` of the others, which choose when it is known what they may: see [`Step::constrained`].
    constrained: Option<Array>,
}

/// Tokens that are chosen.
#[derive(Debug)]
struct Choices {
    /// `[N]`, one for each sequence.
    tokens: Array,
    /// Of the tokens, and of the most likely ones; see [`ops::logprobs`].
    logprobs: Option<(Array, Array)>,
    /// How many log-probabilities each sequence is told.
    wanted: Vec<Option<usize>>,
}

/// Submit a pass over the next token of each of `decoding`, whose prompts are prefilled and of which those that are constrained
/// come last, and the next tokens of the prompts of `prefilling`, as many as are said. `last` is the step before, which chose the tokens of sequences that go on. A pass
/// that only prefills gives no step, and is computed when this returns. `on_layer` is told the layers that are done of a pass
/// long enough to tell of.
///
/// # Errors
/// When the pass cannot be described or, as far as it is computed, fails: the caches of its sequences are then of no use.
pub fn submit(
    model: &Model,
    decoding: &mut [&mut Sequence],
    prefilling: &mut [(&mut Sequence, usize)],
    last: Option<&Step>,
    on_layer: &mut dyn FnMut(usize),
) -> Result<Option<Step>> {
    let rows = decoding.len() as i32;
    let mut ids = next_tokens(decoding, last)?;
    for sequence in decoding.iter_mut().filter(|sequence| sequence.sampler.observes()) {
        let token = next_token(sequence, last)?;
        sequence.sampler.observe(&token)?;
    }
    for (sequence, n) in prefilling.iter() {
        let Next::Prompt(read) = sequence.next else { unreachable!("its prompt is prefilled") };
        ids.push(Array::from_slice(&sequence.prompt[read..read + n], &[*n as i32]));
    }
    let ids = if let [one] = &ids[..] { one.clone() } else { concatenate(&ids, 0)? };
    let decoded =
        decoding.iter_mut().map(|sequence| Span { cache: &mut sequence.cache, tokens: 1, phase: Phase::Decode });
    let prefilled = prefilling.iter_mut().map(|(sequence, n)| Span {
        cache: &mut sequence.cache,
        tokens: *n as i32,
        phase: Phase::Prefill,
    });
    let mut batch = Batch::new(ids, decoded.chain(prefilled).collect())?;
    let hidden_states = model.forward_by_layer(&mut batch, on_layer)?;
    for (sequence, n) in prefilling.iter_mut() {
        if let Next::Prompt(read) = &mut sequence.next {
            *read += *n;
        }
    }
    if decoding.is_empty() {
        model.evaluate([&hidden_states].into_iter().chain(prefilling.iter().flat_map(|(s, _)| s.cache.arrays())))?;
        clear_cache()?;
        return Ok(None);
    }
    let logits = model.logits(&hidden_states, 0..rows, Phase::Decode)?;
    let free = decoding.iter().take_while(|sequence| sequence.constraint.is_none()).count();
    let (free, constrained) = decoding.split_at_mut(free);
    let n = free.len() as i32;
    let (of_free, constrained) = match (free.is_empty(), constrained.is_empty()) {
        (_, true) => (Some(logits), None),
        (true, false) => (None, Some(logits)),
        (false, false) => (Some(logits.try_index((..n, ..))?), Some(logits.try_index((n.., ..))?)),
    };
    let step = Step { free: of_free.map(|logits| choose(logits, free)).transpose()?, constrained };
    for (row, sequence) in free.iter_mut().enumerate() {
        sequence.next = Next::Chosen { row };
    }
    model.submit(step.arrays())?;
    Ok(Some(step))
}

/// Choose by `logits` `[N, V]`.
fn choose(logits: Array, sequences: &mut [&mut Sequence]) -> Result<Choices> {
    let mut samplers: Vec<_> = sequences.iter_mut().map(|sequence| &mut sequence.sampler).collect();
    let (tokens, logits) = sample(logits, &mut samplers)?;
    let wanted: Vec<Option<usize>> = sequences.iter().map(|sequence| sequence.logprobs).collect();
    let top = wanted.iter().flatten().max();
    let logprobs = top.map(|&top| ops::logprobs(&logits, &tokens, top)).transpose()?;
    Ok(Choices { tokens, logprobs, wanted })
}

/// Tokens chosen by rows of the logits that [`Step::constrained`] gives: of each sequence its row and which tokens it may choose.
///
/// # Errors
/// As [`Step::read`].
pub fn choose_constrained(
    model: &Model,
    logits: &Array,
    rows: Vec<(usize, Vec<bool>, &mut Sequence)>,
) -> Result<Vec<Result<Token>>> {
    let (mut indices, mut allowed, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    for (row, mask, sequence) in rows {
        indices.push(row as i32);
        allowed.extend(mask);
        sequences.push(sequence);
    }
    let shape = [sequences.len() as i32, logits.dim(1)];
    let logits = take_axis(logits, Array::from_slice(&indices, &[shape[0]]), 0)?;
    let never = Array::from_f32(f32::NEG_INFINITY).as_dtype(logits.dtype())?;
    let logits = select(Array::from_slice(&allowed, &shape), logits, never)?;
    choose(logits, &mut sequences)?.read(model)
}

/// The ids of `decoding`, in order, in parts.
fn next_tokens(decoding: &[&mut Sequence], last: Option<&Step>) -> Result<Vec<Array>> {
    let chosen = |(i, sequence): (usize, &&mut Sequence)| sequence.next == Next::Chosen { row: i };
    if let Some(last) = last.and_then(|step| step.free.as_ref())
        && last.wanted.len() == decoding.len()
        && decoding.iter().enumerate().all(chosen)
    {
        return Ok(vec![last.tokens.clone()]);
    }
    decoding.iter().map(|sequence| next_token(sequence, last)).collect()
}

/// `[1]`.
fn next_token(sequence: &Sequence, last: Option<&Step>) -> Result<Array> {
    Ok(match sequence.next {
        Next::Prompt(read) => Array::from_slice(&sequence.prompt[read..], &[1]),
        Next::Token(token) => Array::from_slice(&[token], &[1]),
        Next::Chosen { row } => {
            let tokens = &last.and_then(|step| step.free.as_ref()).expect("a step chose it").tokens;
            tokens.try_index(row as i32..row as i32 + 1)?
        }
    })
}

impl Step {
    fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.free.iter().flat_map(Choices::arrays).chain(&self.constrained)
    }

    /// Logits `[N, V]` of the sequences that are constrained, in order, for [`choose_constrained`].
    pub fn constrained(&self) -> Option<Array> {
        self.constrained.clone()
    }

    /// Wait for the tokens, one for each sequence that was decoded and is not constrained, in order.
    ///
    /// # Errors
    /// When the pass failed: for all of them. When its logits give no token: for that sequence.
    pub fn read(self, model: &Model) -> Result<Vec<Result<Token>>> {
        model.evaluate(self.arrays())?;
        self.free.map_or(Ok(Vec::new()), |free| free.read(model))
    }
}

impl Choices {
    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let logprobs = self.logprobs.iter().flat_map(|(values, ids)| [values, ids]);
        [&self.tokens].into_iter().chain(logprobs)
    }

    fn read(self, model: &Model) -> Result<Vec<Result<Token>>> {
        model.evaluate(self.arrays())?;
        let ids: &[u32] = self.tokens.as_slice();
        let tokens = ids.iter().zip(&self.wanted).enumerate().map(|(row, (&id, &wanted))| {
            if id == NO_TOKEN {
                return Err(Error::NotANumber(format!(
                    "the model's logits give no token: they hold NaN or infinity, so its weights or the prompt cache are damaged, or \
                     its numbers are too large for {:?}; or logit biases ban every token",
                    model.dtype()
                )));
            }
            let (Some(n), Some((values, top))) = (wanted, &self.logprobs) else {
                return Ok(Token { id, logprob: None, top_logprobs: Vec::new() });
            };
            let most = top.dim(1) as usize;
            let values: &[f32] = &values.as_slice()[row * (1 + most)..][..1 + most];
            let top: &[u32] = if most > 0 { &top.as_slice()[row * most..][..most] } else { &[] };
            let top = top.iter().copied().zip(values[1..].iter().copied()).take(n);
            let top_logprobs = top.filter(|(_, logprob)| logprob.is_finite()).collect(); // without banned tokens
            Ok(Token { id, logprob: Some(values[0]), top_logprobs })
        });
        Ok(tokens.collect())
    }
}

/// The tokens of one sequence, `max_tokens` at most, on the caller's thread. The caller decides when to stop.
pub struct Tokens<'m> {
    model: &'m Model,
    sequence: Sequence,
    step: Option<Step>,
    /// What came before is as it should be.
    failed: Option<Error>,
    /// How many are still to be submitted, and were given.
    left: usize,
    given: usize,
}

impl<'m> Tokens<'m> {
    /// Prefill all of the prompt but its last token.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when `watch` stops it, and whatever goes wrong in a pass.
    pub fn prefill(model: &'m Model, mut sequence: Sequence, max_tokens: usize, watch: &mut Watch) -> Result<Self> {
        let (body, chunk_size) = (sequence.prompt.len() - 1, sequence.chunk_size);
        let ids = std::mem::take(&mut sequence.prompt);
        let on_progress = &mut |done, _| (watch.on_progress)(done, ids.len() as u64);
        let mut watch = Watch { on_progress, stop: watch.stop };
        if read(model, &mut sequence.cache, &ids[..body], chunk_size, &mut watch)?.is_break() {
            return Err(Error::Interrupted);
        }
        (sequence.prompt, sequence.next) = (ids, Next::Prompt(body));
        Ok(Tokens { model, sequence, step: None, failed: None, left: max_tokens, given: 0 })
    }

    /// What the model remembers.
    pub fn cache(&self) -> &KvCache {
        &self.sequence.cache
    }

    fn submit(&mut self, last: Option<&Step>) -> Result<Option<Step>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        submit(self.model, &mut [&mut self.sequence], &mut [], last, &mut |_| ())
    }

    fn advance(&mut self) -> Result<Option<Token>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let step = match self.step.take() {
            Some(step) => step,
            None if self.given > 0 => return Ok(None),
            None => match self.submit(None)? {
                Some(step) => step,
                None => return Ok(None),
            },
        };
        match self.submit(Some(&step)) {
            Ok(next) => self.step = next,
            Err(error) => self.failed = Some(error),
        }
        self.given += 1;
        if self.given.is_multiple_of(CLEAR_CACHE_EVERY) {
            clear_cache()?;
        }
        let mut tokens = step.read(self.model)?;
        tokens.remove(0).map(Some)
    }
}

impl Iterator for Tokens<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Drop for Tokens<'_> {
    /// Wait for the step that was submitted ahead: a program that ends while MLX's thread still computes tears MLX's
    /// own statics down under it.
    fn drop(&mut self) {
        if let Some(step) = self.step.take() {
            let _ = step.read(self.model); // nobody reads this token, nor its error
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
        let hidden_states =
            Batch::prefill(chunk, cache).and_then(|mut batch| model.forward_by_layer(&mut batch, on_layer));
        let computed = hidden_states.and_then(|x| model.evaluate([&x].into_iter().chain(cache.arrays())));
        // Where MLX computes by itself, nothing but this looks for it.
        if unless_interrupted(computed)?.is_none() || watch.stop.load(Ordering::Relaxed) {
            return Ok(ControlFlow::Break(()));
        }
        clear_cache()?;
    }
    Ok(ControlFlow::Continue(()))
}
