//! Choosing a token by its logit.
//!
//! As `mlx.core.random.categorical` does: one number u between 0 and 1, and the first token whose probability, with those of
//! all tokens before it, is more than u.

use crate::backend::cpu::isa::{Op, Simd, exp};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::types::{Element, Floats, load_all, typed};
use crate::backend::{Filter, Key};

/// The first of the largest logits.
pub(super) struct ArgMax<'a>(pub Floats<'a>);

impl Op for ArgMax<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> Option<usize> {
        typed!(Floats, self.0, logits => {
            let largest = largest(s, logits)?;
            logits.iter().position(|x| x.to_f32() == largest)
        })
    }
}

/// `None` when one is NaN or ∞, or all are -∞.
#[inline(always)]
fn largest<S: Simd, E: Element>(s: S, logits: &[E]) -> Option<f32> {
    let (lowest, one) = (s.splat(f32::NEG_INFINITY), s.splat(1.0));
    let mut largest = lowest;
    // Each lane counts its numbers; more than 2^24 of them are no vocabulary.
    let mut numbers = s.splat(0.0);
    let whole = logits.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES` stays within the logits.
        let x = unsafe { E::load(s, logits.as_ptr().add(i)) };
        largest = s.max(x, largest);
        numbers = s.add(numbers, s.keep(one, x, lowest));
    }
    let rest = &logits[whole..];
    let is_nan = s.sum(numbers) != whole as f32 || rest.iter().any(|x| x.to_f32().is_nan());
    let largest = rest.iter().fold(s.max_lane(largest), |a, b| a.max(b.to_f32()));
    (!is_nan && largest.is_finite()).then_some(largest)
}

/// A token at random, by logits, a filter and a key.
pub(super) struct Sample<'a> {
    pub logits: Floats<'a>,
    pub filter: Filter,
    pub key: Key,
}

impl Op for Sample<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> Option<usize> {
        let Sample { logits, filter: Filter { temp, top_p, min_p, top_k }, key } = self;
        let n = logits.len();
        let mut row = Scratch::new(n.next_multiple_of(S::LANES));
        typed!(Floats, logits, logits => load_all(s, logits, &mut row[..n]));
        row[n..].fill(f32::NEG_INFINITY);
        let largest = largest(s, &row)?;
        let mut weights = Scratch::new(row.len());
        let mut least = f32::MIN;
        if top_p < 1.0 || top_k > 0 {
            let sum: f64 = weigh(s, &row, largest, 1.0, least, &mut weights).iter().sum();
            if top_p < 1.0 {
                let mass = f64::from(top_p) * sum;
                // All that are less likely than this are less than what is left out.
                let unlikely = (sum - mass) / (2 * n) as f64;
                least = least.max(threshold::<_, false>(s, &row, &weights, unlikely as f32, mass));
            }
            if 0 < top_k && top_k < n {
                least = least.max(threshold::<_, true>(s, &row, &weights, 0.0, top_k as f64));
            }
        }
        if min_p > 0.0 {
            least = least.max(largest + min_p.ln());
        }
        let sums = weigh(s, &row, largest, 1.0 / temp, least, &mut weights);
        Some(pick(&weights[..n], &sums, key.uniform()))
    }
}

/// See [`super::InstructionSet::logprobs`].
pub(super) struct LogProbs<'a> {
    pub logits: Floats<'a>,
    pub token: u32,
    pub values: &'a mut [f32],
    pub ids: &'a mut [u32],
}

impl Op for LogProbs<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let LogProbs { logits, token, values, ids } = self;
        let n = logits.len();
        let mut row = Scratch::new(n.next_multiple_of(S::LANES));
        typed!(Floats, logits, logits => load_all(s, logits, &mut row[..n]));
        row[n..].fill(f32::NEG_INFINITY);
        let Some(largest) = largest(s, &row) else {
            values.fill(f32::NAN);
            return ids.fill(0);
        };
        let mut weights = Scratch::new(row.len());
        let sum: f64 = weigh(s, &row, largest, 1.0, f32::MIN, &mut weights).iter().sum();
        let logprob = |logit: f32| (f64::from(logit) - f64::from(largest) - sum.ln()) as f32;
        values[0] = row[..n].get(token as usize).map_or(f32::NAN, |logit| logprob(*logit));
        let (k, mut found) = (ids.len(), Vec::with_capacity(2 * ids.len() + 1));
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        // What is not above the least of k larger ones, which come before it, is not among the k largest.
        let mut least = f32::NEG_INFINITY;
        for (id, &logit) in (0..).zip(&row[..n]) {
            if k > 0 && logit > least {
                found.push((id, logit));
                if found.len() > 2 * k {
                    found.select_nth_unstable_by(k - 1, order);
                    found.truncate(k);
                    least = found[k - 1].1;
                }
            }
        }
        found.sort_unstable_by(order);
        found.resize(k, (0, f32::NEG_INFINITY));
        for (i, (id, logit)) in found.into_iter().enumerate() {
            (ids[i], values[1 + i]) = (id, logprob(logit));
        }
    }
}

/// How many numbers are added up in f32; their sums are added up in f64.
const PART: usize = 1024;

/// `weights = e^((row - largest) · factor)` of whole vectors, 0 where `row` is below `least`; and the sum of each part.
#[inline(always)]
fn weigh<S: Simd>(s: S, row: &[f32], largest: f32, factor: f32, least: f32, weights: &mut [f32]) -> Vec<f64> {
    assert!(row.len() == weights.len() && row.len().is_multiple_of(S::LANES));
    let mut sums = Vec::with_capacity(row.len().div_ceil(PART));
    for (row, weights) in row.chunks(PART).zip(weights.chunks_mut(PART)) {
        let mut sum = s.splat(0.0);
        for i in (0..row.len()).step_by(S::LANES) {
            // SAFETY: a part has whole vectors, so that `i + LANES` stays within both.
            unsafe {
                let x = s.load(row.as_ptr().add(i));
                let weight = exp(s, s.mul(s.sub(x, s.splat(largest)), s.splat(factor)));
                let weight = s.keep(weight, x, s.splat(least));
                s.store(weights.as_mut_ptr().add(i), weight);
                sum = s.add(sum, weight);
            }
        }
        sums.push(f64::from(s.sum(sum)));
    }
    sums
}

/// The least of `row` that is kept when the largest are kept until their probabilities (or, with `COUNT`, they themselves)
/// add up to `goal`. `probs` grow with the numbers of `row`, and those below `unlikely` are known not to be kept.
#[inline(always)]
fn threshold<S: Simd, const COUNT: bool>(s: S, row: &[f32], probs: &[f32], unlikely: f32, goal: f64) -> f32 {
    // Positive numbers are ordered as their bits are. All from `low` up reach the goal, those from `high` up do not.
    // Where there is no number, there is nothing between them.
    let mut high = 1f32.to_bits() + 1;
    let mut low = unlikely.to_bits().min(high);
    let mut above = 0.0;
    for _ in 0..4 {
        let ends: [u32; ENDS] = std::array::from_fn(|i| low + (high - low) / (ENDS as u32 + 1) * (i as u32 + 1));
        for (end, sum) in ends.into_iter().zip(sums_from::<_, COUNT>(s, probs, ends.map(f32::from_bits))) {
            if sum < goal {
                (high, above) = (end, sum);
                break;
            }
            low = end;
        }
    }
    let mut between = Vec::new();
    let (low, high) = (f32::from_bits(low), f32::from_bits(high));
    for (row, probs) in row.chunks(4 * S::LANES).zip(probs.chunks(4 * S::LANES)) {
        let mut largest = s.splat(0.0);
        for i in (0..probs.len()).step_by(S::LANES) {
            // SAFETY: there are whole vectors, so that `i + LANES` stays within them.
            let p = unsafe { s.load(probs.as_ptr().add(i)) };
            largest = s.max(largest, s.sub(s.keep(p, p, s.splat(low)), s.keep(p, p, s.splat(high))));
        }
        if s.max_lane(largest) > 0.0 {
            between.extend(row.iter().copied().zip(probs.iter().copied()).filter(|&(_, p)| low <= p && p < high));
        }
    }
    between.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    for &(x, p) in &between {
        above += if COUNT { 1.0 } else { f64::from(p) };
        if above >= goal {
            return x;
        }
    }
    between.last().map_or(f32::MIN, |&(x, _)| x)
}

/// Into how many ranges, less one, [`threshold`] divides a range at a time.
const ENDS: usize = 4;

/// What the `probs` from each of `ends` up add up to, or how many they are.
#[inline(always)]
fn sums_from<S: Simd, const COUNT: bool>(s: S, probs: &[f32], ends: [f32; ENDS]) -> [f64; ENDS] {
    let mut all = [0.0; ENDS];
    for part in probs.chunks(PART) {
        let mut sums = [s.splat(0.0); ENDS];
        for i in (0..part.len()).step_by(S::LANES) {
            // SAFETY: a part has whole vectors, so that `i + LANES` stays within it.
            let p = unsafe { s.load(part.as_ptr().add(i)) };
            let amount = if COUNT { s.splat(1.0) } else { p };
            for k in 0..ENDS {
                sums[k] = s.add(sums[k], s.keep(amount, p, s.splat(ends[k])));
            }
        }
        for k in 0..ENDS {
            all[k] += f64::from(s.sum(sums[k]));
        }
    }
    all
}

/// The token at which the sum of weights from the first on passes the share `u` of all; `sums` are those of the parts.
fn pick(weights: &[f32], sums: &[f64], u: f64) -> usize {
    let mut left = u * sums.iter().sum::<f64>();
    for (part, sum) in sums.iter().enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (i, &weight) in weights[part * PART..].iter().enumerate() {
            left -= f64::from(weight);
            if left < 0.0 {
                return part * PART + i;
            }
        }
    }
    weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
}
