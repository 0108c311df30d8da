//! The sampler against f64 arithmetic: which tokens a filter keeps, what a penalty does, how often a token is drawn.

use mlx_lm::generate::sampler::{Sampler, SamplerOptions, logprobs, sample};
use mlx_rs::Array;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const VOCAB: usize = 12;

fn row(logits: &[f32]) -> Array {
    Array::from_slice(logits, &[1, logits.len() as i32])
}

fn sampler(options: SamplerOptions) -> Sampler {
    crate::compute_on_cpu();
    Sampler::new(options, VOCAB as i32).unwrap()
}

/// The token that a sampler chooses by logits `[1, V]`.
fn chosen(sampler: &mut Sampler, logits: &Array) -> u32 {
    sample(logits.clone(), &mut [sampler]).unwrap().0.item_cast()
}

/// How often each token comes in `n` draws from the same logits.
fn draw(options: SamplerOptions, logits: &[f32], n: usize) -> Vec<usize> {
    let (mut sampler, logits) = (sampler(options), row(logits));
    let mut counts = vec![0; logits.size()];
    for _ in 0..n {
        counts[chosen(&mut sampler, &logits) as usize] += 1;
    }
    counts
}

fn softmax(logits: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let total: f64 = logits.clone().map(f64::exp).sum();
    logits.map(|x| x.exp() / total).collect()
}

/// The distribution that the options describe: filters on untempered probabilities, in mlx-lm's order (top-p, min-p,
/// top-k), then the temperature.
fn expected(options: &SamplerOptions, logits: &[f32]) -> Vec<f64> {
    let probs = softmax(logits.iter().map(|&x| f64::from(x)));
    let mut ranked: Vec<usize> = (0..probs.len()).collect();
    ranked.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
    let mut keep = vec![true; probs.len()];
    let mut above = 0.0;
    for (rank, &token) in ranked.iter().enumerate() {
        let nucleus = options.top_p >= 1.0 || rank == 0 || above < f64::from(options.top_p);
        let likely = probs[token] >= f64::from(options.min_p) * probs[ranked[0]];
        keep[token] = nucleus && likely && (options.top_k == 0 || rank < options.top_k);
        above += probs[token];
    }
    softmax(
        (0..probs.len()).map(
            |t| {
                if keep[t] { f64::from(logits[t]) / f64::from(options.temp) } else { f64::NEG_INFINITY }
            },
        ),
    )
}

/// Pearson's statistic, over the tokens that can come; one that cannot come must not.
fn chi_square(counts: &[usize], expected: &[f64]) -> (f64, usize) {
    let n: usize = counts.iter().sum();
    let mut statistic = 0.0;
    for (&count, &p) in counts.iter().zip(expected) {
        if p == 0.0 {
            assert_eq!(count, 0, "a token of probability zero was drawn: {counts:?} for {expected:?}");
        } else {
            statistic += (count as f64 - n as f64 * p).powi(2) / (n as f64 * p);
        }
    }
    (statistic, expected.iter().filter(|&&p| p > 0.0).count() - 1)
}

/// Logits as a small model might give them, the same every time.
fn some_logits() -> [f32; VOCAB] {
    let mut random = StdRng::seed_from_u64(20);
    std::array::from_fn(|_| random.random_range(-2.0..2.0))
}

#[test]
fn draws_follow_the_distribution_that_the_options_describe() {
    let plain = SamplerOptions { temp: 1.0, ..Default::default() };
    let cases = [
        plain.clone(),
        SamplerOptions { temp: 0.5, ..plain.clone() },
        SamplerOptions { temp: 1.8, ..plain.clone() },
        SamplerOptions { top_p: 0.7, ..plain.clone() },
        SamplerOptions { top_k: 4, ..plain.clone() },
        SamplerOptions { min_p: 0.2, ..plain.clone() },
        // Filters act before the temperature: after it, this nucleus would be another.
        SamplerOptions { temp: 2.5, top_p: 0.6, ..plain.clone() },
        SamplerOptions { temp: 0.7, top_p: 0.9, top_k: 6, min_p: 0.1, ..plain },
    ];
    for options in cases {
        let expected = expected(&options, &some_logits());
        let counts = draw(options.clone(), &some_logits(), 4000);
        let (statistic, freedom) = chi_square(&counts, &expected);
        // Four standard deviations above the mean: with the fixed seed this cannot flicker, and a temperature that is
        // a fifth off exceeds it (see the next test).
        let freedom = freedom as f64;
        assert!(statistic < freedom + 4.0 * (2.0 * freedom).sqrt(), "{options:?}: {statistic} for {freedom}");
    }
}

#[test]
fn the_chi_square_test_can_fail() {
    let options = SamplerOptions { temp: 1.0, ..Default::default() };
    let counts = draw(SamplerOptions { temp: 1.2, ..options.clone() }, &some_logits(), 4000);
    let (statistic, freedom) = chi_square(&counts, &expected(&options, &some_logits()));
    assert!(statistic > freedom as f64 + 4.0 * (2.0 * freedom as f64).sqrt(), "{statistic}");
}

#[test]
fn a_seed_gives_the_same_draws_and_another_seed_others() {
    let draws = |seed| {
        let mut sampler = sampler(SamplerOptions { temp: 1.0, seed, ..Default::default() });
        (0..64).map(|_| chosen(&mut sampler, &row(&some_logits()))).collect::<Vec<_>>()
    };
    assert_eq!(draws(7), draws(7));
    assert_ne!(draws(7), draws(8));
}

#[test]
fn one_token_always_stays() {
    for options in [
        SamplerOptions { temp: 1.0, top_p: 0.0, ..Default::default() },
        SamplerOptions { temp: 1.0, min_p: 1.0, ..Default::default() },
        SamplerOptions { temp: 1.0, top_k: 1, ..Default::default() },
        SamplerOptions { temp: 1e-4, ..Default::default() },
    ] {
        let logits = some_logits();
        let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(draw(options.clone(), &logits, 20)[best], 20, "{options:?}");
    }
}

#[test]
fn log_probabilities_are_those_of_f64() {
    let found: Vec<f32> = logprobs(&row(&some_logits())).unwrap().to_vec_cast().unwrap();
    let probs = softmax(some_logits().iter().map(|&x| f64::from(x)));
    for (found, p) in found.iter().zip(probs) {
        assert!((f64::from(*found) - p.ln()).abs() < 1e-6);
    }
}

/// What mlx-lm's processors do, one token at a time.
fn penalized(options: &SamplerOptions, logits: &[f32], history: &[u32]) -> Vec<f64> {
    let mut out: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for &(id, bias) in &options.logit_bias {
        out[id as usize] += f64::from(bias);
    }
    let recent = &history[history.len().saturating_sub(options.repetition_context)..];
    for (id, x) in (0u32..).zip(&mut out) {
        let times = recent.iter().filter(|&&t| t == id).count();
        if times > 0 {
            let factor = f64::from(options.repetition_penalty.unwrap_or(1.0));
            *x = if *x < 0.0 { *x * factor } else { *x / factor };
            *x -= f64::from(options.presence_penalty) + f64::from(options.frequency_penalty) * times as f64;
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn penalties_and_biases_are_those_of_f64(
        logits in prop::collection::vec(-5.0f32..5.0, VOCAB),
        history in prop::collection::vec(0u32..VOCAB as u32, 1..20),
        cut in 0usize..20,
        repetition_penalty in prop::option::of(0.5f32..2.0),
        presence_penalty in prop_oneof![Just(0.0f32), -2.0f32..2.0],
        frequency_penalty in prop_oneof![Just(0.0f32), -2.0f32..2.0],
        repetition_context in 1usize..24,
        bias in prop::collection::vec((0u32..VOCAB as u32, -3.0f32..3.0), 0..3),
    ) {
        let options = SamplerOptions {
            repetition_penalty, presence_penalty, frequency_penalty, repetition_context, logit_bias: bias,
            ..Default::default()
        };
        let mut sampler = sampler(options.clone());
        let (first, second) = history.split_at(cut.min(history.len()));
        for tokens in [first, second].into_iter().filter(|t| !t.is_empty()) {
            sampler.observe(&Array::from_slice(tokens, &[tokens.len() as i32])).unwrap();
        }
        let found: Vec<f32> = sampler.process(row(&logits)).unwrap().to_vec_cast().unwrap();
        for (found, expected) in found.iter().zip(penalized(&options, &logits, &history)) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} for {expected} with {options:?}");
        }
    }

    #[test]
    fn greedy_is_the_largest_logit(logits in prop::collection::vec(-5.0f32..5.0, VOCAB)) {
        let token = chosen(&mut sampler(SamplerOptions::default()), &row(&logits));
        let largest = logits.iter().cloned().fold(f32::MIN, f32::max);
        prop_assert_eq!(logits[token as usize], largest);
    }
}
