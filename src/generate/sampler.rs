//! From logits to the next token. Arrays in, arrays out, so that the next forward pass can be submitted before this
//! token is read.
//!
//! The order is that of `mlx_lm.sample_utils`: logit bias and penalties act on the logits; top-p, min-p and top-k on
//! the untempered log-probabilities; temperature comes last. All arithmetic after the logits is in f32.

use mlx_rs::Array;
use mlx_rs::ops::indexing::{TryIndexOp, put_along_axis, scatter_add_single, take_along_axis};
use mlx_rs::ops::{self, argpartition_axis, concatenate, sort_axis};
use mlx_rs::random::categorical;

use crate::backend::{Choice, Filter, Key};
use crate::error::{Error, Result};
use crate::ops as model_ops;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// 0 takes the most likely token; above, logits are divided by it.
    pub temp: f32,
    /// Keep the smallest set of most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens with at least this share of the most likely token's probability; 0 keeps all.
    pub min_p: f32,
    /// Divide the positive, multiply the negative logits of recent tokens by this (arXiv 1909.05858).
    pub repetition_penalty: Option<f32>,
    /// How many recent tokens, of prompt and output, the three penalties look at.
    pub repetition_context: usize,
    /// Subtract this from the logits of recent tokens.
    pub presence_penalty: f32,
    /// Subtract this from the logits of recent tokens for each time they occur.
    pub frequency_penalty: f32,
    /// Add to the logits of these tokens; -∞ bans one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same tokens, on the same device.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temp: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: None,
            repetition_context: 20,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// # Errors
    /// When a value is out of its range; the message states the range.
    pub fn validate(&self) -> Result<()> {
        let check = |setting, value: f32, in_range: bool, expected: &'static str| {
            if in_range { Ok(()) } else { Err(Error::setting(setting, value, expected)) }
        };
        let share = |setting, value: f32| check(setting, value, (0.0..=1.0).contains(&value), "a number from 0 to 1");
        let finite = |setting, value: f32| check(setting, value, value.is_finite(), "a finite number");
        check("temp", self.temp, self.temp.is_finite() && self.temp >= 0.0, "a finite number from 0 up")?;
        share("top_p", self.top_p)?;
        share("min_p", self.min_p)?;
        let penalty = self.repetition_penalty.unwrap_or(1.0);
        let in_range = penalty.is_normal() && penalty > 0.0 && (1.0 / penalty).is_normal();
        check(
            "repetition_penalty",
            penalty,
            in_range,
            "a number above 0, and not too large or small for its reciprocal",
        )?;
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        match self.logit_bias.iter().find(|(_, value)| value.is_nan() || *value == f32::INFINITY) {
            Some((id, value)) => Err(Error::setting("logit_bias", format!("{id}={value}"), "a number, or -inf")),
            None => Ok(()),
        }
    }
}

impl SamplerOptions {
    /// # Errors
    /// When `logit_bias` names a token that is not below `vocab_size`.
    pub fn validate_tokens(&self, vocab_size: i32) -> Result<()> {
        match self.logit_bias.iter().find(|(id, _)| i64::from(*id) >= i64::from(vocab_size)) {
            None => Ok(()),
            Some((id, _)) => {
                let expected = format!("a token of the vocabulary, which ends at {}", vocab_size - 1);
                Err(Error::setting("logit_bias", id, expected))
            }
        }
    }
}

/// A sampler with its random state and the recent tokens.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    vocab_size: i32,
    /// What the next draw's key is split off.
    key: Key,
    /// The last `repetition_context` tokens `[1, n]` (u32), when a penalty needs them.
    recent: Option<Array>,
}

impl Sampler {
    /// # Errors
    /// As [`SamplerOptions::validate_tokens`].
    pub fn new(options: SamplerOptions, vocab_size: i32) -> Result<Self> {
        options.validate_tokens(vocab_size)?;
        let key = Key::new(options.seed);
        Ok(Sampler { options, vocab_size, key, recent: None })
    }

    /// Whether it takes recent tokens into account.
    pub fn observes(&self) -> bool {
        let o = &self.options;
        let penalizes = o.repetition_penalty.is_some() || o.presence_penalty != 0.0 || o.frequency_penalty != 0.0;
        penalizes && o.repetition_context > 0
    }

    /// Whether there are tokens that it never chooses.
    pub(super) fn bans(&self) -> bool {
        self.options.logit_bias.iter().any(|(_, value)| *value == f32::NEG_INFINITY)
    }

    /// Take `tokens` `[n]` (u32) into account as the most recent ones.
    pub fn observe(&mut self, tokens: &Array) -> Result<()> {
        if !self.observes() {
            return Ok(());
        }
        // MLX writes wherever an index points, and where logits gave no token that is beyond the vocabulary.
        let tokens = ops::minimum(tokens, Array::from_slice(&[self.vocab_size as u32 - 1], &[1]))?.reshape(&[1, -1])?;
        let all = match &self.recent {
            Some(recent) => concatenate(&[recent, &tokens], 1)?,
            None => tokens,
        };
        let keep = i32::try_from(self.options.repetition_context).unwrap_or(i32::MAX).min(all.dim(1));
        self.recent = Some(all.try_index((.., all.dim(1) - keep..))?);
        Ok(())
    }

    /// Apply bias and penalties to logits `[1, V]`; the result is f32 whenever there are any.
    pub fn process(&self, logits: Array) -> Result<Array> {
        let o = &self.options;
        let mut logits = logits;
        if !o.logit_bias.is_empty() {
            let (ids, values): (Vec<u32>, Vec<f32>) = o.logit_bias.iter().copied().unzip();
            logits = add_at(&logits, &Array::from_slice(&ids, &[ids.len() as i32]), &values)?;
        }
        let Some(recent) = &self.recent else {
            return Ok(logits);
        };
        logits = logits.as_type::<f32>()?;
        if let Some(penalty) = o.repetition_penalty {
            let penalty = Array::from_f32(penalty);
            let seen = take_along_axis(&logits, recent, 1)?;
            let weaker = ops::select(seen.lt(Array::from_f32(0.0))?, seen.multiply(&penalty)?, seen.divide(&penalty)?)?;
            logits = put_along_axis(&logits, recent, &weaker, 1)?;
        }
        if o.presence_penalty != 0.0 {
            let seen = take_along_axis(&logits, recent, 1)?.subtract(Array::from_f32(o.presence_penalty))?;
            logits = put_along_axis(&logits, recent, &seen, 1)?;
        }
        if o.frequency_penalty != 0.0 {
            let n = recent.dim(1);
            logits = add_at(&logits, &recent.reshape(&[n])?, &vec![-o.frequency_penalty; n as usize])?;
        }
        Ok(logits)
    }

    /// Whether [`Sampler::process`] changes anything.
    pub fn changes_logits(&self) -> bool {
        !self.options.logit_bias.is_empty() || self.recent.is_some()
    }

    /// How the next token is chosen by processed logits; each call draws anew.
    fn next_choice(&mut self) -> Choice {
        let SamplerOptions { temp, top_p, min_p, top_k, .. } = self.options;
        // A temperature whose reciprocal f32 cannot hold is as good as zero.
        if !(1.0 / temp).is_finite() {
            return Choice::Greedy;
        }
        let [next, key] = self.key.split();
        self.key = next;
        Choice::Random { filter: Filter { temp, top_p, min_p, top_k }, key }
    }
}

/// For each row of `logits` `[N, V]`, the choice of its sampler: tokens `[N]` (u32), `u32::MAX` where processed logits hold NaN
/// or ∞, or are all -∞; and the processed logits `[N, V]`.
///
/// # Errors
/// When there are not as many samplers as rows.
pub fn sample(logits: Array, samplers: &mut [&mut Sampler]) -> Result<(Array, Array)> {
    if logits.ndim() != 2 || logits.dim(0) as usize != samplers.len() {
        let n = samplers.len();
        return Err(Error::Input(format!("{n} samplers choose by logits [{n}, V], not {:?}", logits.shape())));
    }
    let processed = if samplers.iter().any(|sampler| sampler.changes_logits()) {
        let process = |(i, sampler): (i32, &&mut Sampler)| sampler.process(logits.try_index((i..i + 1, ..))?);
        let rows = (0..).zip(samplers.iter()).map(process).collect::<Result<Vec<_>>>()?;
        concatenate(&rows, 0)?
    } else {
        logits
    };
    let choices: Vec<Choice> = samplers.iter_mut().map(|sampler| sampler.next_choice()).collect();
    let tokens = model_ops::sample(&processed, &choices, |row, filter, key| {
        let logprobs = keep(logprobs(row)?, filter)?;
        Ok(categorical(logprobs.multiply(Array::from_f32(1.0 / filter.temp))?, None, None, &key.to_array())?)
    })?;
    Ok((tokens, processed))
}

/// Give tokens outside top-p, min-p and top-k the log-probability -∞; the rest stay as they are.
fn keep(mut logprobs: Array, o: &Filter) -> Result<Array> {
    let never = Array::from_f32(f32::NEG_INFINITY);
    let vocab_size = logprobs.dim(-1);
    if o.top_p < 1.0 {
        // In ascending order, a token is dropped when those after it already hold top_p of the mass; the last
        // one always stays.
        let sorted = sort_axis(&logprobs, -1)?;
        let probs = sorted.exp()?;
        let above = probs.cumsum(-1, true, false)?;
        let mass = probs.sum_axis(-1, true)?;
        let dropped = above.ge(mass.multiply(Array::from_f32(o.top_p))?)?.as_type::<i32>()?.sum_axis(-1, true)?;
        let dropped = ops::minimum(dropped, Array::from_int(vocab_size - 1))?;
        let threshold = take_along_axis(&sorted, &dropped, -1)?;
        logprobs = ops::select(logprobs.lt(&threshold)?, &never, &logprobs)?;
    }
    if o.min_p > 0.0 {
        let threshold = logprobs.max_axis(-1, true)?.add(Array::from_f32(o.min_p.ln()))?;
        logprobs = ops::select(logprobs.lt(&threshold)?, &never, &logprobs)?;
    }
    if o.top_k > 0 && o.top_k < vocab_size as usize {
        let k = o.top_k as i32;
        let order = argpartition_axis(logprobs.negative()?, k - 1, -1)?;
        logprobs = put_along_axis(&logprobs, order.try_index((.., k..))?, &never, -1)?;
    }
    Ok(logprobs)
}

/// Logits `[1, V]` of any type to log-probabilities `[1, V]` in f32.
pub fn logprobs(logits: &Array) -> Result<Array> {
    let logits = logits.as_type::<f32>()?;
    Ok(logits.subtract(logits.logsumexp_axis(-1, true)?)?)
}

/// `logits` `[1, V]` in f32 with `values` added at `ids` `[n]`; ids may repeat.
fn add_at(logits: &Array, ids: &Array, values: &[f32]) -> Result<Array> {
    let logits = logits.as_type::<f32>()?;
    let updates = Array::from_slice(values, &[values.len() as i32, 1, 1]);
    Ok(scatter_add_single(&logits, ids, &updates, 1)?)
}
