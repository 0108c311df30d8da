//! From a sequence's tokens to its text: detokenized, watched for stop strings, counted.

use std::time::{Duration, Instant};

use super::Prepared;
use super::engine::Finished;
use super::generator::Token;
use super::options::GenerateOptions;
use super::stop::StopStrings;
use crate::error::{Error, Result};
use crate::tokenizer::{Detokenizer, Tokenizer};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token, a stop string, or the end of what a grammar allows.
    Stop,
    /// `max_tokens`; or, where nothing may be evicted, the context is full.
    Length,
    /// It was broken off.
    Abort,
    /// Something went wrong.
    Error,
}

/// A token and the text that became certain with it. Text may come later than the token that began it, since a
/// character can span tokens and a stop string must not show; all deltas together are the whole text.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// The token just generated.
    pub token: Token,
    /// The text that it made certain; may be empty.
    pub text: String,
    /// How many characters of the text come before the token's own.
    pub offset: usize,
    /// Whether the token stands for the end of the text.
    pub is_eos: bool,
}

/// What a generation took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Including special tokens.
    pub prompt_tokens: usize,
    /// Those of the prompt that were read here: all but what a cache held, was truncated, or came after an interruption.
    pub read_tokens: usize,
    /// Those of the prompt that a cache held.
    pub cached_tokens: usize,
    /// Including an end-of-sequence token.
    pub generated_tokens: usize,
    /// From the request to the first token.
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

/// The text of one sequence.
pub(super) struct Output<'t> {
    detokenizer: Detokenizer<'t>,
    /// Characters of what it has given.
    characters: usize,
    stop: StopStrings,
    ignore_eos: bool,
    max_tokens: usize,
    /// Prompt tokens that are read, but for those of them that a cache holds.
    read: usize,
    stats: Stats,
    started: Instant,
}

impl<'t> Output<'t> {
    /// `resumed` prompt tokens are in the cache already.
    pub fn new(
        tokenizer: &'t Tokenizer,
        options: &GenerateOptions,
        prepared: &Prepared,
        resumed: usize,
        started: Instant,
    ) -> Self {
        let &Prepared { ref read, max_tokens, prompt_tokens, .. } = prepared;
        let mut detokenizer = tokenizer.detokenizer().showing(options.shown.clone());
        if options.grammar.is_some() {
            detokenizer = detokenizer.amid_text();
        }
        Output {
            detokenizer,
            characters: 0,
            stop: StopStrings::new(&options.stop),
            ignore_eos: options.ignore_eos,
            max_tokens,
            read: read.len(),
            stats: Stats {
                prompt_tokens,
                cached_tokens: resumed,
                evicted_tokens: (prompt_tokens - read.len()) as u64,
                ..Stats::default()
            },
            started,
        }
    }

    /// So many prompt tokens turned out to be in the cache already.
    pub fn resumed(&mut self, tokens: usize) {
        self.stats.cached_tokens = tokens;
    }

    /// Whether no token at all is asked for.
    pub fn is_empty_answer(&self) -> bool {
        self.max_tokens == 0
    }

    /// Whether there was a token.
    pub fn has_begun(&self) -> bool {
        self.stats.generated_tokens > 0
    }

    /// Tokens of the prompt that are not read.
    pub fn left_out(&self) -> u64 {
        self.stats.evicted_tokens
    }

    /// What a token makes certain, after which the text may not go on where `is_over`; and why it is the last, if it is.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: Token,
        is_over: bool,
    ) -> Result<(Delta, Option<FinishReason>)> {
        let elapsed = self.started.elapsed();
        if self.stats.generated_tokens == 0 {
            self.stats.prompt_time = elapsed;
            self.stats.read_tokens = self.read - self.stats.cached_tokens;
        }
        self.stats.generation_time = elapsed - self.stats.prompt_time;
        self.stats.generated_tokens += 1;
        let is_eos = !self.ignore_eos && tokenizer.eos_token_ids().contains(&token.id);
        let is_last = is_eos || is_over || self.stats.generated_tokens == self.max_tokens;

        let offset = self.characters;
        let mut certain = if is_eos { String::new() } else { self.detokenizer.push(token.id)? };
        if is_last {
            certain.push_str(&self.detokenizer.finish());
        }
        self.characters += certain.chars().count();
        let (mut text, stopped) = self.stop.push(&certain);
        if is_last {
            text.push_str(&self.stop.finish());
        }
        let reason = match () {
            () if stopped || is_eos || is_over => Some(FinishReason::Stop),
            () if is_last => Some(FinishReason::Length),
            () => None,
        };
        Ok((Delta { token, text, offset, is_eos }, reason))
    }

    /// It ends, after so many tokens were evicted from the cache, of which so many were seen.
    pub fn finish(mut self, reason: FinishReason, error: Option<Error>, evicted: u64, read: usize) -> Finished {
        let mut held_back = String::new();
        if matches!(reason, FinishReason::Abort | FinishReason::Error) {
            held_back = self.stop.push(&self.detokenizer.finish()).0 + &self.stop.finish();
        }
        if self.stats.generated_tokens == 0 {
            self.stats.prompt_time = self.started.elapsed();
            self.stats.read_tokens = read.saturating_sub(self.stats.cached_tokens);
        }
        self.stats.evicted_tokens += evicted;
        Finished { reason, error, held_back, stats: self.stats }
    }
}
