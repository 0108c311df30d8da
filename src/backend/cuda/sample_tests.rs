//! Tokens chosen on a GPU against f64 arithmetic.

use mlx_rs::{Array, Dtype};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::sample::sample;
use super::tests::{gpu, numbers};
use crate::backend::{Choice, Filter, Key, NO_TOKEN};

#[test]
fn the_first_of_the_largest_is_chosen() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(4);
    let n = 70_001;
    let (_, plain) = numbers(rng, &[n], 4.0, -5.0);
    let with = |changes: &[(usize, f64)]| {
        let mut row = plain.clone();
        changes.iter().for_each(|&(i, x)| row[i] = x);
        row
    };
    let wanted = [
        (with(&[(60_000, 2.0), (40_000, 2.0), (69_999, 2.0)]), 40_000),
        (with(&[(70_000, 0.5)]), 70_000),
        (with(&[(0, 0.0), (7, -0.0)]), 0),
        (with(&[(9, -0.0), (70, 0.0)]), 9),
        (with(&[(5, f64::NAN)]), NO_TOKEN),
        (with(&[(5, f64::INFINITY)]), NO_TOKEN),
        (vec![f64::NEG_INFINITY; n as usize], NO_TOKEN),
        (
            {
                let mut row = vec![f64::NEG_INFINITY; n as usize];
                row[33] = -60000.0;
                row
            },
            33,
        ),
    ];
    for dtype in [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32] {
        let all: Vec<f32> = wanted.iter().flat_map(|(row, _)| row.iter().map(|&x| x as f32)).collect();
        let logits = Array::from_slice(&all, &[wanted.len() as i32, n]).as_dtype(dtype).unwrap();
        for _ in 0..2 {
            let tokens = sample(gpu, &logits, &vec![Choice::Greedy; wanted.len()]).unwrap().unwrap();
            tokens.eval().unwrap();
            assert_eq!(tokens.as_slice::<u32>(), wanted.each_ref().map(|(_, token)| *token));
        }
    }
}

/// The weights of the tokens that a filter keeps, 0 for others: nucleus (arXiv 1904.09751) of so much, top-k, min-p (arXiv 2407.01082).
fn weights(logits: &[f64], filter: &Filter, top_p: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let probs: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let mass = probs.iter().sum::<f64>() * top_p;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let (mut above, mut kept) = (0.0, vec![0.0; logits.len()]);
    for (rank, &i) in order.iter().enumerate() {
        let is_enough = filter.top_p < 1.0 && above >= mass || filter.top_k > 0 && rank >= filter.top_k;
        // Of equals, all are kept or none; the largest always are.
        let is_less = rank > 0 && logits[i] < logits[order[rank - 1]];
        if is_enough && is_less || probs[i] < f64::from(filter.min_p) * (1.0 - 1e-6) {
            break;
        }
        above += probs[i];
        kept[i] = ((logits[i] - largest) / f64::from(filter.temp)).exp();
    }
    kept
}

/// Catches: a filter's bound off by one, a sum over some warps or blocks left out, tokens passed over or weighed twice, rows mixed up,
/// a row of another launch, greedy rows among others.
#[test]
fn tokens_are_drawn_by_their_weights() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(5);
    let mut drawn = 0;
    for round in 0..45 {
        let dtype = [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32][round % 3];
        let n = [1, 2, 31, 257, 1000, 8200, 40_000, 128_256, 262_144][rng.random_range(0..9)];
        let rows = if n < 1000 { 70 } else { 5 };
        let spread = [0.1, 4.0, 30.0][rng.random_range(0..3)];
        let values: Vec<f32> = (0..rows * n).map(|_| rng.random_range(-spread..spread)).collect();
        let logits = Array::from_slice(&values, &[rows, n]).as_dtype(dtype).unwrap();
        let rounded = logits.as_dtype(Dtype::Float32).unwrap();
        rounded.eval().unwrap();
        let choices: Vec<Choice> = (0..rows)
            .map(|row| {
                let temp = [0.5, 1.0, 2.0][rng.random_range(0..3)];
                let mut filter = Filter { temp, top_p: 1.0, min_p: 0.0, top_k: 0 };
                match row % 6 {
                    0 => return Choice::Greedy,
                    1 => filter.top_p = [0.0, 0.3, 0.9, 0.999][rng.random_range(0..4)],
                    2 => filter.min_p = [0.01, 0.5, 1.0][rng.random_range(0..3)],
                    3 => filter.top_k = [1, 5, 40, 900][rng.random_range(0..4)],
                    4 => (filter.top_p, filter.min_p, filter.top_k) = (0.9, 0.05, 20),
                    _ => {}
                }
                Choice::Random { filter, key: Key::new(rng.random()) }
            })
            .collect();
        let tokens = sample(gpu, &logits, &choices).unwrap().unwrap();
        tokens.eval().unwrap();
        for ((row, choice), &token) in
            rounded.as_slice::<f32>().chunks(n as usize).zip(&choices).zip(tokens.as_slice::<u32>())
        {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let context = format!("{dtype:?}, {n} logits, {choice:?}: {token}");
            let Choice::Random { filter, key } = choice else {
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert_eq!(row.iter().position(|x| *x == largest), Some(token as usize), "{context}");
                continue;
            };
            // Where a sum ends a hair before or behind what is asked for, a token more or less may be kept.
            let is_drawn = [1.0, 1.0 - 1e-5, 1.0 + 1e-5].into_iter().any(|factor| {
                let weights = weights(&row, filter, f64::from(filter.top_p) * factor);
                let all: f64 = weights.iter().sum();
                let before: f64 = weights[..token as usize].iter().sum();
                let (at, hair) = (key.uniform() * all, 1e-5 * all);
                weights[token as usize] > 0.0 && before - hair <= at && at < before + weights[token as usize] + hair
            });
            assert!(is_drawn, "{context}");
            drawn += 1;
        }
    }
    assert!(drawn > 500, "{drawn}");
}
