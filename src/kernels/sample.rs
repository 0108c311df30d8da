//! Choosing a token by its logit.
//!
//! As `mlx.core.random.categorical` does: one number u between 0 and 1, and the first token whose probability, with those of
//! all tokens before it, is more than u.

use super::simd::{Op, Simd, exp};
use super::types::{Element, Floats, load_all, typed};

/// What may be chosen; see [`crate::generate::sampler::SamplerOptions`].
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// Above 0.
    pub temp: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 0 keeps all.
    pub top_k: usize,
}

/// The first of the largest logits.
pub(super) struct ArgMax<'a>(pub Floats<'a>);

impl Op for ArgMax<'_> {
    type Output = usize;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> usize {
        typed!(Floats, self.0, logits => {
            let largest = largest(s, logits);
            logits.iter().position(|x| x.to_f32() == largest).unwrap_or(0)
        })
    }
}

#[inline(always)]
fn largest<S: Simd, E: Element>(s: S, logits: &[E]) -> f32 {
    let mut largest = s.splat(f32::NEG_INFINITY);
    let whole = logits.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES` stays within the logits.
        largest = s.max(unsafe { E::load(s, logits.as_ptr().add(i)) }, largest);
    }
    logits[whole..].iter().fold(s.max_lane(largest), |a, b| a.max(b.to_f32()))
}

/// A token at random, by logits, a filter and a key of MLX.
pub(super) struct Sample<'a> {
    pub logits: Floats<'a>,
    pub filter: Filter,
    pub key: [u32; 2],
}

impl Op for Sample<'_> {
    type Output = usize;

    #[inline(always)]
    fn with<S: Simd>(self, s: S) -> usize {
        let Sample { logits, filter, key } = self;
        let n = logits.len();
        // Padded with what is never chosen.
        let mut logprobs = vec![f32::NEG_INFINITY; n.next_multiple_of(S::LANES)];
        typed!(Floats, logits, logits => load_all(s, logits, &mut logprobs[..n]));
        let largest = largest(s, &logprobs);
        let mut probs = vec![0.0; logprobs.len()];
        exp_all(s, &logprobs, -largest, 1.0, &mut probs);
        let sum: f64 = probs.chunks(256).map(|part| f64::from(part.iter().sum::<f32>())).sum();
        let log_sum = largest + sum.ln() as f32;
        logprobs.iter_mut().for_each(|x| *x -= log_sum);

        let mut least = f32::NEG_INFINITY;
        if filter.top_p < 1.0 {
            least = least.max(top_p(&probs, &logprobs, f64::from(filter.top_p) * sum));
        }
        if filter.min_p > 0.0 {
            least = least.max(largest - log_sum + filter.min_p.ln());
        }
        if filter.top_k > 0 && filter.top_k < n {
            let mut kept: Vec<f32> = logprobs[..n].iter().copied().filter(|x| *x >= least).collect();
            if kept.len() > filter.top_k {
                let (_, kth, _) = kept.select_nth_unstable_by(filter.top_k - 1, |a, b| b.total_cmp(a));
                least = *kth;
            }
        }
        let mut weights = probs;
        exp_all(s, &logprobs, log_sum - largest, 1.0 / filter.temp, &mut weights);
        for (weight, logprob) in weights.iter_mut().zip(&logprobs) {
            *weight = if *logprob >= least { *weight } else { 0.0 };
        }
        pick(&weights[..n], uniform(key))
    }
}

/// `to = e^((from + offset) · factor)`, of whole vectors.
#[inline(always)]
fn exp_all<S: Simd>(s: S, from: &[f32], offset: f32, factor: f32, to: &mut [f32]) {
    assert!(from.len() == to.len() && from.len().is_multiple_of(S::LANES));
    for i in (0..from.len()).step_by(S::LANES) {
        // SAFETY: `i + LANES` stays within both.
        unsafe {
            let x = s.mul(s.add(s.load(from.as_ptr().add(i)), s.splat(offset)), s.splat(factor));
            s.store(to.as_mut_ptr().add(i), exp(s, x));
        }
    }
}

/// The smallest log-probability that is kept when the largest `probs` are kept until they reach `mass`.
fn top_p(probs: &[f32], logprobs: &[f32], mass: f64) -> f32 {
    // Numbers from 0 to 1 are ordered as their bits are. Sums of those that share the upper half of their bits find the
    // share in which the mass is reached; only its members have to be sorted.
    const ONE: usize = (1f32.to_bits() >> 16) as usize;
    let share = |p: f32| ((p.to_bits() >> 16) as usize).min(ONE);
    let mut sums = vec![0.0f64; ONE + 1];
    for &p in probs {
        sums[share(p)] += f64::from(p);
    }
    let mut above = 0.0;
    let mut last = ONE;
    while last > 0 && above + sums[last] < mass {
        above += sums[last];
        last -= 1;
    }
    let mut members: Vec<(f32, f32)> =
        probs.iter().copied().zip(logprobs.iter().copied()).filter(|(p, _)| share(*p) == last).collect();
    members.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    for (p, logprob) in &members {
        above += f64::from(*p);
        if above >= mass {
            return *logprob;
        }
    }
    members.last().map_or(f32::NEG_INFINITY, |(_, logprob)| *logprob)
}

/// The token at which the sum of weights from the first on passes the share `u` of all.
fn pick(weights: &[f32], u: f64) -> usize {
    const PART: usize = 256;
    let sums: Vec<f64> = weights.chunks(PART).map(|part| f64::from(part.iter().sum::<f32>())).collect();
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

/// The number that `mlx.core.random.uniform` gives for one number and this key.
fn uniform(key: [u32; 2]) -> f64 {
    let bits = threefry(key);
    f64::from((bits as f32 / 4294967296.0).min(1.0 - f32::EPSILON / 2.0))
}

/// The first word of Threefry 2x32 with 20 rounds (Salmon et al., SC 2011) for the counter (0, 0).
fn threefry(key: [u32; 2]) -> u32 {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd1_1bda];
    let [mut x, mut y] = key;
    for round in 0..5 {
        for rotation in ROTATIONS[round % 2] {
            x = x.wrapping_add(y);
            y = y.rotate_left(rotation) ^ x;
        }
        x = x.wrapping_add(keys[(round + 1) % 3]);
        y = y.wrapping_add(keys[(round + 2) % 3]).wrapping_add(round as u32 + 1);
    }
    x
}
