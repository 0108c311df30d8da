//! How well a model predicts a text, token by token, through the cache that generation uses.

use std::ops::ControlFlow;

use mlx_rs::Array;
use mlx_rs::ops::indexing::take_along_axis;

use super::kv_cache::CacheLimits;
use super::sampler::logprobs;
use super::{Watch, unless_interrupted};
use crate::backend::Phase;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::batch::Batch;
use crate::ops;

/// Tokens whose logits are in memory at once, `[tokens, V]` in f32.
const CHUNK: usize = 256;

/// How the past is kept while a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// In the streaming cache, with the evictions that decoding token by token would make.
    Cached(CacheLimits),
    /// Not at all: for each token, this many before it are read again. The paper's "sliding window with
    /// re-computation", slow and without drift.
    Recomputed(usize),
}

/// Read `ids`, until `watch` stops it, and tell `on_losses`, run by run, the position of the first token and the losses of the tokens from there
/// on: `-ln` of the probability that the model gave each, with what came before it. The first token of a text has none.
/// Gives the number of tokens that were evicted.
///
/// # Errors
/// When there are fewer than two tokens, one is not in the model's vocabulary, or a loss is no number.
pub fn losses(
    model: &Model,
    ids: &[u32],
    past: Past,
    watch: &mut Watch,
    on_losses: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
) -> Result<u64> {
    if ids.len() < 2 {
        return Err(Error::Input(format!("a text of {} tokens has nothing to predict; give at least 2", ids.len())));
    }
    model.check_ids(ids)?;
    let _interruptible = ops::interruptible(watch.stop);
    let layers = model.config().num_hidden_layers as usize;
    match past {
        Past::Cached(limits) => {
            let mut cache = model.new_cache(limits);
            let mut at = 0;
            while at + 1 < ids.len() {
                // Chunks end where the cache is full, so that evictions fall where single tokens would make them.
                let room = (limits.context_size - cache.len()) as usize;
                let fits = if room > 0 { room } else { limits.eviction_batch() as usize };
                let n = fits.min(CHUNK).min(ids.len() - 1 - at);
                let evicted = cache.evicted();
                let on_layer = &mut |layer| (watch.on_progress)((at + n * layer / layers) as u64, ids.len() as u64);
                let batch = Batch::prefill(&ids[at..at + n], &mut cache);
                let hidden_states = batch.and_then(|mut batch| model.forward_by_layer(&mut batch, on_layer));
                let logits = hidden_states.and_then(|x| model.logits(&x, 0..n as i32, Phase::Prefill));
                let found = logits.and_then(|logits| of(model, &logits, &ids[at + 1..at + 1 + n]));
                let Some(found) = unless_interrupted(found)? else { return Ok(evicted) };
                if on_losses(at + 1, &found).is_break() {
                    break;
                }
                at += n;
            }
            Ok(cache.evicted())
        }
        Past::Recomputed(window) => {
            // What depends on how long a context is, such as LongRoPE, depends on that of the whole text.
            let context_size = window.min(ids.len()) as i32;
            for at in 1..ids.len() {
                let seen = &ids[at.saturating_sub(window)..at];
                let n = seen.len() as i32;
                let mut cache = model.new_cache(CacheLimits::new(context_size));
                let hidden_states = model.forward(&mut Batch::prefill(seen, &mut cache)?)?;
                let logits = model.logits(&hidden_states, n - 1..n, Phase::Prefill)?;
                let Some(found) = unless_interrupted(of(model, &logits, &ids[at..=at]))? else { break };
                (watch.on_progress)(at as u64, ids.len() as u64);
                if on_losses(at, &found).is_break() {
                    break;
                }
            }
            Ok(0)
        }
    }
}

/// The losses of `targets` under logits `[L, V]`.
fn of(model: &Model, logits: &Array, targets: &[u32]) -> Result<Vec<f32>> {
    let l = targets.len() as i32;
    let logprobs = logprobs(logits)?;
    let found = take_along_axis(&logprobs, Array::from_slice(targets, &[l, 1]), 1)?.negative()?.reshape(&[l])?;
    model.evaluate([&found])?;
    let found = found.as_slice::<f32>().to_vec();
    match found.iter().any(|loss| loss.is_nan()) {
        true => Err(Error::NotANumber(
            "the model's logits hold NaN or infinity; its weights are damaged, or its numbers too large".into(),
        )),
        false => Ok(found),
    }
}
