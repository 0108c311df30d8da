//! Generation: prompt ids in, text out piece by piece, with the reason it ended and what it took.

pub mod engine;
mod follower;
pub mod generator;
pub mod grammar;
pub mod kv_cache;
pub mod options;
pub mod perplexity;
pub mod prompt_cache;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod tools;

#[cfg(feature = "structured")]
mod constraint;
#[cfg(not(feature = "structured"))]
#[path = "unconstrained.rs"]
mod constraint;
mod output;
mod prefix;
mod stop;
mod worker;

use mlx_rs::Dtype;

use crate::error::{Error, Result};
use crate::models::config::DecoderConfig;
pub use crate::watch::Watch;
pub use engine::{Engine, EngineOptions, Event, Finished, Generation, Load, Request};
pub use follower::follow;
pub use grammar::Grammar;
use kv_cache::CacheLimits;
pub use options::{GenerateOptions, Overflow, Overrides};
pub use output::{Delta, FinishReason, Stats};
#[cfg(feature = "server")]
pub(crate) use worker::available_memory;

/// `None` for what a [`Watch`] stopped.
fn unless_interrupted<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Error::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}

/// Generate from `prompt`: an iterator over the deltas of its text.
///
/// # Errors
/// As [`Engine::submit`].
pub fn generate(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> Result<Generation> {
    engine.submit(Request { prompt: prompt.to_vec(), options: options.clone(), prompt_cache: None })
}

/// A prompt that can be generated from.
struct Prepared {
    /// The tokens that are read.
    read: Vec<u32>,
    /// How many there were.
    prompt_tokens: usize,
    limits: CacheLimits,
    max_tokens: usize,
}

/// Check options against the model.
fn check(config: &DecoderConfig, options: &GenerateOptions) -> Result<CacheLimits> {
    options.validate()?;
    options.sampler.validate_tokens(config.vocab_size)?;
    if let Some(n) = options.logprobs.filter(|n| *n > config.vocab_size as usize) {
        return Err(Error::setting("logprobs", n, format!("at most the {} tokens that there are", config.vocab_size)));
    }
    options.cache_limits(config)
}

/// Check a prompt and its options against the model.
fn prepare(config: &DecoderConfig, dtype: Dtype, prompt: &[u32], options: &GenerateOptions) -> Result<Prepared> {
    let limits = check(config, options)?;
    if prompt.is_empty() {
        return Err(Error::Input("the prompt has no tokens; give at least one character of text".into()));
    }
    config.check_ids(prompt)?;
    let context_size = limits.context_size;
    let context = context_size as usize;
    if prompt.len() > context && options.overflow == Overflow::Error {
        return Err(Error::Input(format!(
            "the prompt has {} tokens, but the context holds {context_size}; shorten it, raise the context size, or let it stream",
            prompt.len()
        )));
    }
    let max_tokens = match options.overflow {
        // The last token is generated without being fed back, so it needs no room.
        Overflow::Error => options.max_tokens.min(context - prompt.len() + 1),
        Overflow::Stream | Overflow::Truncate => options.max_tokens,
    };
    // The last token generated is not fed back.
    warn_of_limits(config, dtype, limits, prompt.len().saturating_add(max_tokens).saturating_sub(1));
    let read = match options.overflow {
        Overflow::Truncate if prompt.len() > context => {
            let (sinks, window) = (limits.num_sink_tokens as usize, limits.window() as usize);
            [&prompt[..sinks], &prompt[prompt.len() - window..]].concat()
        }
        _ => prompt.to_vec(),
    };
    Ok(Prepared { read, prompt_tokens: prompt.len(), limits, max_tokens })
}

/// Tell the user what to expect of a cache with these limits that `tokens` tokens go through.
pub fn warn_of_limits(config: &DecoderConfig, dtype: Dtype, limits: CacheLimits, tokens: usize) {
    let CacheLimits { context_size, num_sink_tokens, .. } = limits;
    let trained = config.max_position_embeddings;
    if context_size > trained {
        log::warn!("the context of {context_size} tokens is longer than the {trained} that the model was made for");
    }
    if tokens <= context_size as usize {
        return;
    }
    let (batch, window) = (limits.eviction_batch(), limits.window());
    if num_sink_tokens == 0 {
        log::warn!("without sink tokens, text falls apart once the context is full; 4 are usual");
    }
    if dtype != Dtype::Float32 && i64::from(batch) * 20 < i64::from(window) {
        log::warn!(
            "evicting {batch} of {window} tokens at a time rounds the 16-bit keys of each token {} times; a batch of 10 percent does well",
            window / batch
        );
    }
}
