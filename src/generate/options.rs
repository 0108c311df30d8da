//! What may be set of a generation: its options, and what a flag or a line of a batch overrides of them.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::grammar::Grammar;
use super::kv_cache::CacheLimits;
use super::sampler::SamplerOptions;
use crate::error::{Error, Result};
use crate::models::config::DecoderConfig;

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// The most tokens that the model looks back at; `None` is the model's `max_position_embeddings`.
    pub context_size: Option<i64>,
    /// StreamingLLM's attention sinks: first tokens that stay in the cache.
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
    /// What the text must be; where it can go on no more it ends, as by an end-of-sequence token.
    pub grammar: Option<Grammar>,
    /// Special tokens that are part of the text as the vocabulary spells them, such as the
    /// [markers](crate::reply::Format::markers) of a reply.
    pub shown: BTreeSet<u32>,
}

/// What to do with more tokens than the context holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(try_from = "String")] // nothing but a text
pub enum Overflow {
    /// Stream: keep sinks and recent tokens, and go on without end. A longer prompt goes through in chunks.
    Stream,
    /// The same for what is generated; of a longer prompt, only the sinks and its end are read.
    Truncate,
    /// Evict nothing: the text ends when the context is full, and a longer prompt is an error.
    Error,
}

impl TryFrom<String> for Overflow {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.as_str() {
            "stream" => Ok(Overflow::Stream),
            "truncate" => Ok(Overflow::Truncate),
            "error" => Ok(Overflow::Error),
            _ => Err(format!("{word:?}, expected stream, truncate or error")),
        }
    }
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
            grammar: None,
            shown: BTreeSet::new(),
        }
    }
}

impl GenerateOptions {
    /// # Errors
    /// When a value is out of its range; the message states the range.
    pub fn validate(&self) -> Result<()> {
        let check = |setting, value: i64, range: RangeInclusive<i64>, expected: &'static str| {
            if range.contains(&value) { Ok(()) } else { Err(Error::setting(setting, value, expected)) }
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
            return Err(Error::setting("stop", "empty", "some text"));
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
            return Err(Error::setting(
                "num_sink_tokens",
                format!("{} with a context size of {context_size}", self.num_sink_tokens),
                "at least 2 less than the context size, which leaves room for recent tokens",
            ));
        }
        Ok(CacheLimits {
            context_size,
            num_sink_tokens: self.num_sink_tokens as i32,
            eviction_batch_percent: self.eviction_batch_percent as i32,
        })
    }
}

/// What a flag or a field of a JSON object sets, where it is there: each option of a generation, once.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// The most tokens to generate [default: 500]
    #[cfg_attr(
        feature = "cli",
        arg(long, short = 'n', value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Limits")
    )]
    #[serde(alias = "max_completion_tokens")]
    pub max_tokens: Option<usize>,
    /// The most tokens that the model looks back at; see [`GenerateOptions::context_size`]
    #[cfg_attr(feature = "cli", arg(skip))] // other commands have this and the next two as well
    pub context_size: Option<i64>,
    /// See [`GenerateOptions::num_sink_tokens`]
    #[cfg_attr(feature = "cli", arg(skip))]
    pub num_sink_tokens: Option<i64>,
    /// See [`GenerateOptions::eviction_batch_percent`]
    #[cfg_attr(feature = "cli", arg(skip))]
    pub eviction_batch_percent: Option<i64>,
    /// With more tokens than the context holds: let the oldest but the sinks go, read only the sinks and the end of a
    /// longer prompt, or end the text and refuse the prompt [default: stream]
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            value_enum,
            hide_possible_values = true,
            value_name = "stream|truncate|error",
            help_heading = "Limits"
        )
    )]
    pub overflow: Option<Overflow>,
    /// End before this text (repeatable)
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Limits"))]
    #[serde(deserialize_with = "one_or_many")]
    pub stop: Option<Vec<String>>,
    /// Go on after an end-of-sequence token
    #[cfg_attr(feature = "cli", arg(long, num_args = 0, default_missing_value = "true", help_heading = "Limits"))]
    pub ignore_eos: Option<bool>,
    /// Prompt tokens per forward pass [default: 2048]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Limits"))]
    pub prefill_step: Option<usize>,
    /// Temperature: 0 takes the most likely token, higher is more random [default: 0]
    #[cfg_attr(
        feature = "cli",
        arg(long, short = 't', value_name = "T", allow_negative_numbers = true, help_heading = "Sampling")
    )]
    #[serde(alias = "temperature")]
    pub temp: Option<f32>,
    /// Keep the most likely tokens that together have this probability (0-1) [default: 1]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling"))]
    pub top_p: Option<f32>,
    /// Keep this many most likely tokens; 0 keeps all [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "K", value_parser = whole, allow_negative_numbers = true, help_heading = "Sampling"))]
    pub top_k: Option<usize>,
    /// Keep tokens with at least this share of the most likely one's probability (0-1) [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling"))]
    pub min_p: Option<f32>,
    /// Weaken the logits of recent tokens by this factor
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "FACTOR", allow_negative_numbers = true, help_heading = "Sampling")
    )]
    pub repetition_penalty: Option<f32>,
    /// How many recent tokens the penalties look at [default: 20]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Sampling"))]
    pub repetition_context: Option<usize>,
    /// Subtract this from the logits of recent tokens [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling"))]
    pub presence_penalty: Option<f32>,
    /// Subtract this from the logits of recent tokens for each time they occur [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling"))]
    pub frequency_penalty: Option<f32>,
    /// Add a value to a token's logit; -inf bans the token (repeatable)
    #[cfg_attr(feature = "cli", arg(long, value_name = "ID=VALUE", value_parser = logit_bias, help_heading = "Sampling"))]
    #[serde(deserialize_with = "logit_biases")]
    pub logit_bias: Option<Vec<(u32, f32)>>,
    /// Same seed, same text; `random` gives another text each time [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling"))]
    pub seed: Option<Seed>,
    /// Give the log-probabilities of the N most likely tokens at each step (with --format json or jsonl, or --batch)
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Output"))]
    pub logprobs: Option<usize>,
    /// A JSON schema that the text must fit
    #[cfg_attr(feature = "cli", arg(skip))] // the flags of this and the next but one name files
    pub json_schema: Option<Value>,
    /// A regular expression that the whole text must match
    #[cfg_attr(feature = "cli", arg(skip))]
    pub regex: Option<String>,
    /// A grammar that the text must follow; see [`Grammar::Lark`]
    #[cfg_attr(feature = "cli", arg(skip))]
    pub grammar: Option<String>,
}

impl Overrides {
    /// `base`, with what is set here in its place.
    ///
    /// # Errors
    /// When a value is out of its range; the message states the range.
    pub fn apply(&self, base: &GenerateOptions) -> Result<GenerateOptions> {
        fn or<T: Clone>(value: &Option<T>, base: &T) -> T {
            value.as_ref().unwrap_or(base).clone()
        }
        let sampler = &base.sampler;
        let options = GenerateOptions {
            max_tokens: or(&self.max_tokens, &base.max_tokens),
            context_size: self.context_size.or(base.context_size),
            num_sink_tokens: or(&self.num_sink_tokens, &base.num_sink_tokens),
            eviction_batch_percent: or(&self.eviction_batch_percent, &base.eviction_batch_percent),
            overflow: or(&self.overflow, &base.overflow),
            stop: or(&self.stop, &base.stop),
            ignore_eos: or(&self.ignore_eos, &base.ignore_eos),
            logprobs: self.logprobs.or(base.logprobs),
            prefill_step: or(&self.prefill_step, &base.prefill_step),
            sampler: SamplerOptions {
                temp: or(&self.temp, &sampler.temp),
                top_p: or(&self.top_p, &sampler.top_p),
                top_k: or(&self.top_k, &sampler.top_k),
                min_p: or(&self.min_p, &sampler.min_p),
                repetition_penalty: self.repetition_penalty.or(sampler.repetition_penalty),
                repetition_context: or(&self.repetition_context, &sampler.repetition_context),
                presence_penalty: or(&self.presence_penalty, &sampler.presence_penalty),
                frequency_penalty: or(&self.frequency_penalty, &sampler.frequency_penalty),
                logit_bias: or(&self.logit_bias, &sampler.logit_bias),
                seed: self.seed.map_or(sampler.seed, Seed::number),
            },
            grammar: self.grammar()?.or_else(|| base.grammar.clone()),
            shown: base.shown.clone(),
        };
        options.validate()?;
        Ok(options)
    }

    /// The one of the three that is there.
    fn grammar(&self) -> Result<Option<Grammar>> {
        match (self.json_schema.clone(), self.regex.clone(), self.grammar.clone()) {
            (None, None, None) => Ok(None),
            (Some(schema), None, None) => Ok(Some(Grammar::JsonSchema(schema))),
            (None, Some(regex), None) => Ok(Some(Grammar::Regex(regex))),
            (None, None, Some(lark)) => Ok(Some(Grammar::Lark(lark))),
            _ => Err(Error::Input("`json_schema`, `regex` and `grammar` exclude each other; give one of them".into())),
        }
    }
}

/// Where randomness begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// The same each time.
    Fixed(u64),
    /// Another each time.
    Random,
}

impl Seed {
    fn number(self) -> u64 {
        match self {
            Seed::Fixed(seed) => seed,
            Seed::Random => RandomState::new().hash_one(()), // keyed by the system's randomness
        }
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Seed::Random),
            _ => text.parse().map(Seed::Fixed).map_err(|_| "expected a whole number from 0, or `random`".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = Value::deserialize(deserializer)?;
        let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
        text.parse().map_err(|e| D::Error::custom(format!("{found}: {e}")))
    }
}

/// A text or a list of texts.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let found = Value::deserialize(deserializer)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let texts = match &found {
        Value::Null => return Ok(None),
        Value::Array(texts) => texts.iter().map(text).collect(),
        one => text(one).map(|text| vec![text]),
    };
    texts.map(Some).ok_or_else(|| D::Error::custom(format!("{found}: expected a text or a list of texts")))
}

/// An object of values by token id, as in OpenAI's interface.
fn logit_biases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<(u32, f32)>>, D::Error> {
    let Some(found) = Option::<Map<String, Value>>::deserialize(deserializer)? else { return Ok(None) };
    let bias = |(id, value): (&String, &Value)| {
        // JSON has no infinity, so that one is a string.
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        logit_bias(&format!("{id}={value}"))
    };
    let biases: Result<_, String> = found.iter().map(bias).collect();
    biases.map(Some).map_err(|e| D::Error::custom(format!("{e}, as {{\"42\": -5.5}} or {{\"42\": \"-inf\"}}")))
}

#[cfg(feature = "cli")]
fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number from 0".to_owned())
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    // A number is written in one way, so that none is given twice unseen.
    let id = |id: &str| id.parse().ok().filter(|number: &u32| number.to_string() == id);
    let parsed = text.split_once('=').and_then(|(name, value)| Some((id(name)?, value.parse().ok()?)));
    parsed
        .filter(|(_, value): &(u32, f32)| !value.is_nan() && *value != f32::INFINITY)
        .ok_or_else(|| format!("{text}: expected a token's id and a number or -inf"))
}
