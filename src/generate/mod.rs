//! Generation: prompt ids in, text out piece by piece, with the reason it ended and what it took.

pub mod generator;
pub mod kv_cache;
pub mod options;
pub mod perplexity;
pub mod prompt_cache;
pub mod sampler;

mod stop;

use std::time::{Duration, Instant};

use mlx_rs::Dtype;

use crate::error::{Error, Result};
use crate::models::Model;
use crate::tokenizer::{Detokenizer, Tokenizer};
pub use crate::watch::Watch;
use generator::{Generator, Token};
use kv_cache::CacheLimits;
pub use options::{GenerateOptions, Overflow, Overrides};
use prompt_cache::PromptCache;
use sampler::Sampler;
use stop::StopStrings;

/// `None` for what a [`Watch`] stopped.
fn unless_interrupted<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Error::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token, or a stop string.
    Stop,
    /// `max_tokens`; or, where nothing may be evicted, the context is full.
    Length,
}

/// A token and the text that became certain with it. Text may come later than the token that began it, since a
/// character can span tokens and a stop string must not show; all pieces together are the whole text.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The token just generated.
    pub token: Token,
    /// The text that it made certain; may be empty.
    pub text: String,
}

/// What a generation took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Including special tokens.
    pub prompt_tokens: usize,
    /// Those of the prompt that were read here: all but what a cache held, was truncated, or came after an interruption.
    pub read_tokens: usize,
    /// Including an end-of-sequence token.
    pub generated_tokens: usize,
    /// From the start to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub generation_time: Duration,
    /// Tokens that left the cache to make room.
    pub evicted_tokens: u64,
}

impl Stats {
    /// Prompt tokens read per second.
    pub fn prompt_tps(&self) -> f64 {
        rate(self.read_tokens, self.prompt_time)
    }

    /// Generated tokens per second, not counting the first, which came with the prompt.
    pub fn generation_tps(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.generation_time)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// A running generation: iterate for its pieces.
pub struct Generation<'a> {
    tokens: Option<Generator<'a>>,
    tokenizer: &'a Tokenizer,
    detokenizer: Detokenizer<'a>,
    stop: StopStrings,
    ignore_eos: bool,
    max_tokens: usize,
    finish_reason: Option<FinishReason>,
    stats: Stats,
    started: Instant,
}

/// Prefill `prompt` and begin to generate.
///
/// # Errors
/// When an option is out of range, or the prompt is empty, holds an id beyond the model's vocabulary, or is longer
/// than the context and must not be.
pub fn generate<'a>(
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Generation<'a>> {
    generate_with_progress(model, tokenizer, prompt, options, None, &mut Watch::none())
}

/// [`generate()`] with a view of the prefill, which is shorter by what `cached` shares with the prompt. When `watch` stops
/// it, the generation has no pieces and no [`Generation::finish_reason`].
///
/// # Errors
/// As [`generate()`]; and when `cached` cannot be used for this prompt and context.
pub fn generate_with_progress<'a>(
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    cached: Option<&PromptCache>,
    watch: &mut Watch,
) -> Result<Generation<'a>> {
    let started = Instant::now();
    options.validate()?;
    let vocab_size = model.config().vocab_size;
    let limits = options.cache_limits(model.config())?;
    if prompt.is_empty() {
        return Err(Error::Input("the prompt has no tokens; give at least one character of text".into()));
    }
    model.check_ids(prompt)?;
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
    warn_of_limits(model, limits, prompt.len().saturating_add(max_tokens).saturating_sub(1));
    let read = match options.overflow {
        Overflow::Truncate if prompt.len() > context => {
            let (sinks, window) = (limits.num_sink_tokens as usize, limits.window() as usize);
            &[&prompt[..sinks], &prompt[prompt.len() - window..]].concat()
        }
        _ => prompt,
    };
    let cache = match cached {
        Some(_) if read.len() < prompt.len() => {
            log::warn!("the prompt was truncated, so the prompt cache is not used");
            model.new_cache(limits)
        }
        Some(cached) => cached.resume(model, limits, read)?,
        None => model.new_cache(limits),
    };
    let cached_tokens = cache.seen() as usize;
    let mut read_tokens = 0;
    let mut watch = Watch {
        on_progress: &mut |done, total| {
            read_tokens = done as usize - cached_tokens;
            (watch.on_progress)(done, total);
        },
        stop: watch.stop,
    };
    let tokens = Generator::prefill(
        model,
        cache,
        Sampler::new(options.sampler.clone(), vocab_size)?,
        read,
        max_tokens,
        options.logprobs,
        options.prefill_step,
        &mut watch,
    )?;
    let mut stats = Stats {
        prompt_tokens: prompt.len(),
        evicted_tokens: (prompt.len() - read.len()) as u64,
        read_tokens,
        prompt_time: started.elapsed(),
        ..Stats::default()
    };
    if tokens.is_some() {
        stats.read_tokens = read.len() - cached_tokens; // the last is read with the first step
    }
    Ok(Generation {
        finish_reason: (tokens.is_some() && max_tokens == 0).then_some(FinishReason::Length),
        tokens,
        tokenizer,
        detokenizer: tokenizer.detokenizer(),
        stop: StopStrings::new(&options.stop),
        ignore_eos: options.ignore_eos,
        max_tokens,
        stats,
        started,
    })
}

/// Tell the user what to expect of a cache with these limits that `tokens` tokens go through.
pub fn warn_of_limits(model: &Model, limits: CacheLimits, tokens: usize) {
    let CacheLimits { context_size, num_sink_tokens, .. } = limits;
    let trained = model.config().max_position_embeddings;
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
    if model.dtype() != Dtype::Float32 && i64::from(batch) * 20 < i64::from(window) {
        log::warn!(
            "evicting {batch} of {window} tokens at a time rounds the 16-bit keys of each token {} times; a batch of 10 percent does well",
            window / batch
        );
    }
}

impl Generation<'_> {
    /// Why it ended; `None` while it runs, or when it was broken off.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        let evicted = self.tokens.as_ref().map_or(0, |tokens| tokens.cache().evicted());
        Stats { evicted_tokens: self.stats.evicted_tokens + evicted, ..self.stats }
    }

    /// Break off: the text that was held back, which no piece will bring any more.
    pub fn interrupt(mut self) -> String {
        let (text, _) = self.stop.push(&self.detokenizer.finish());
        text + &self.stop.finish()
    }

    fn advance(&mut self) -> Result<Option<Piece>> {
        if self.finish_reason.is_some() {
            return Ok(None);
        }
        let Some(token) = self.tokens.as_mut().and_then(Iterator::next).transpose()? else {
            return Ok(None);
        };
        self.count_token();
        let is_eos = !self.ignore_eos && self.tokenizer.eos_token_ids().contains(&token.id);
        let is_last = is_eos || self.stats.generated_tokens == self.max_tokens;

        let mut certain = if is_eos { String::new() } else { self.detokenizer.push(token.id)? };
        if is_last {
            certain.push_str(&self.detokenizer.finish());
        }
        let (mut text, stopped) = self.stop.push(&certain);
        if is_last {
            text.push_str(&self.stop.finish());
        }
        if stopped || is_eos {
            self.finish_reason = Some(FinishReason::Stop);
        } else if is_last {
            self.finish_reason = Some(FinishReason::Length);
        }
        Ok(Some(Piece { token, text }))
    }

    fn count_token(&mut self) {
        let elapsed = self.started.elapsed();
        if self.stats.generated_tokens == 0 {
            self.stats.prompt_time = elapsed;
        }
        self.stats.generation_time = elapsed - self.stats.prompt_time;
        self.stats.generated_tokens += 1;
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}
