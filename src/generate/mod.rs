//! Generation: prompt ids in, text out piece by piece, with the reason it ended and what it took.

pub mod generator;
pub mod kv_cache;
pub mod perplexity;
pub mod prompt_cache;
pub mod sampler;

mod stop;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use mlx_rs::Dtype;

use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::config::DecoderConfig;
use crate::tokenizer::{Detokenizer, Tokenizer};
use generator::{Generator, Token};
use kv_cache::CacheLimits;
use prompt_cache::PromptCache;
use sampler::{Sampler, SamplerOptions};
use stop::StopStrings;

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// The most tokens that the model looks back at; `None` is the model's `max_position_embeddings`.
    pub context_size: Option<i64>,
    /// StreamingLLM's attention sinks: first tokens that stay in the cache for ever.
    pub num_sink_tokens: i64,
    /// How much of the cache StreamingLLM evicts at once, in percent.
    pub eviction_batch_percent: i64,
    /// What to do when prompt and output together are longer than the context.
    pub overflow: Overflow,
    /// End before the first of these strings; none of it is part of the text.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// `Some(n)` also gives the log-probabilities of each token and of the n most likely ones.
    pub logprobs: Option<usize>,
    /// Prompt tokens per forward pass.
    pub prefill_step: usize,
    /// How each token is chosen.
    pub sampler: SamplerOptions,
}

/// What to do with more tokens than the context holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Stream: keep sinks and recent tokens, and go on for ever. A longer prompt goes through in chunks.
    Stream,
    /// The same for what is generated; of a longer prompt, only the sinks and its end are read.
    Truncate,
    /// Evict nothing: the text ends when the context is full, and a longer prompt is an error.
    Error,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 500,
            context_size: None,
            num_sink_tokens: 4,
            eviction_batch_percent: 10,
            overflow: Overflow::Stream,
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prefill_step: 2048,
            sampler: SamplerOptions::default(),
        }
    }
}

impl GenerateOptions {
    /// # Errors
    /// When a value is out of its range; the message states the range.
    pub fn validate(&self) -> Result<()> {
        let check = |setting, value: i64, range: std::ops::RangeInclusive<i64>, expected| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(Error::Setting { setting, found: value.to_string(), expected })
            }
        };
        const MAX: i64 = i32::MAX as i64;
        check("context_size", self.context_size.unwrap_or(2), 2..=MAX, "a whole number from 2 to 2147483647")?;
        check("num_sink_tokens", self.num_sink_tokens, 0..=MAX, "a whole number from 0 to 2147483647")?;
        check("eviction_batch_percent", self.eviction_batch_percent, 1..=50, "a whole number from 1 to 50")?;
        check(
            "prefill_step",
            self.prefill_step.try_into().unwrap_or(i64::MAX),
            1..=MAX,
            "a whole number from 1 to 2147483647",
        )?;
        if let Some(context_size) = self.context_size {
            self.limits_within(context_size as i32)?;
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::Setting { setting: "stop", found: "empty".into(), expected: "some text" });
        }
        self.sampler.validate()
    }

    /// What a cache for this model holds, and how it makes room.
    ///
    /// # Errors
    /// When the sinks leave no room for recent tokens.
    pub fn cache_limits(&self, config: &DecoderConfig) -> Result<CacheLimits> {
        self.limits_within(self.context_size.map_or(config.max_position_embeddings, |size| size as i32))
    }

    fn limits_within(&self, context_size: i32) -> Result<CacheLimits> {
        if self.num_sink_tokens > i64::from(context_size) - 2 {
            return Err(Error::Setting {
                setting: "num_sink_tokens",
                found: format!("{} with a context size of {context_size}", self.num_sink_tokens),
                expected: "at least 2 less than the context size, which leaves room for recent tokens",
            });
        }
        Ok(CacheLimits {
            context_size,
            num_sink_tokens: self.num_sink_tokens as i32,
            eviction_batch_percent: self.eviction_batch_percent as i32,
        })
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
    /// Prompt tokens per second.
    pub fn prompt_tps(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt_time)
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
    generate_with_progress(model, tokenizer, prompt, options, None, &mut |_, _| ControlFlow::Continue(()))
}

/// [`generate()`] with a view of the prefill, which is shorter by what `cached` shares with the prompt.
///
/// `on_prefill` is told the prompt tokens done and in all, before each chunk, and may break off; the generation then
/// has no pieces and no [`Generation::finish_reason`].
///
/// # Errors
/// As [`generate()`]; and when `cached` cannot be used for this prompt and context.
pub fn generate_with_progress<'a>(
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    cached: Option<&PromptCache>,
    on_prefill: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
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
    let tokens = Generator::prefill(
        model,
        cache,
        Sampler::new(options.sampler.clone(), vocab_size)?,
        read,
        max_tokens,
        options.logprobs,
        options.prefill_step,
        on_prefill,
    )?;
    Ok(Generation {
        finish_reason: (tokens.is_some() && max_tokens == 0).then_some(FinishReason::Length),
        tokens,
        tokenizer,
        detokenizer: tokenizer.detokenizer(),
        stop: StopStrings::new(&options.stop),
        ignore_eos: options.ignore_eos,
        max_tokens,
        stats: Stats {
            prompt_tokens: prompt.len(),
            evicted_tokens: (prompt.len() - read.len()) as u64,
            ..Stats::default()
        },
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
