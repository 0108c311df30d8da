//! Choosing a token.

use mlx_lm::backend::{Filter, Key};
use mlx_rs::random::categorical;
use mlx_rs::{Array, Device};
use rand::SeedableRng;

use super::*;

/// `logits` with -∞ for those that a filter drops, in f64: nucleus (arXiv 1904.09751), min-p (arXiv 2407.01082), top-k.
fn filtered(logits: &[f32], filter: &Filter) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let probs: Vec<f64> = logits.iter().map(|&x| f64::from(x - largest).exp()).collect();
    let mass = probs.iter().sum::<f64>() * f64::from(filter.top_p);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let mut above = 0.0;
    let mut kept = vec![f32::NEG_INFINITY; logits.len()];
    for (rank, &i) in order.iter().enumerate() {
        let is_enough = filter.top_p < 1.0 && above >= mass || filter.top_k > 0 && rank >= filter.top_k;
        // Of equals, all are kept or none; the largest always are.
        let is_less = rank > 0 && logits[i] < logits[order[rank - 1]];
        if is_enough && is_less || probs[i] < f64::from(filter.min_p) {
            break;
        }
        above += probs[i];
        kept[i] = logits[i];
    }
    kept
}

#[test]
fn draws_are_those_of_mlx() {
    Device::set_default(&Device::cpu());
    let mut rng = StdRng::seed_from_u64(11);
    for draw in 0..400 {
        let n = *[1, 2, 5, 12, 257, 1000, 40_000].choose(&mut rng).unwrap();
        let spread = *[0.1, 4.0, 30.0].choose(&mut rng).unwrap();
        let logits: Vec<f32> = uniform(&mut rng, n).into_iter().map(|x| spread * x as f32).collect();
        let temp = *[0.5, 1.0, 2.0].choose(&mut rng).unwrap();
        let mut filter = Filter { temp, top_p: 1.0, min_p: 0.0, top_k: 0 };
        match draw % 5 {
            0 => filter.top_p = *[0.0, 0.3, 0.9, 0.999].choose(&mut rng).unwrap(),
            1 => filter.min_p = *[0.01, 0.5, 1.0].choose(&mut rng).unwrap(),
            2 => filter.top_k = *[1, 5, 40, 900].choose(&mut rng).unwrap(),
            3 => (filter.top_p, filter.min_p, filter.top_k) = (0.9, 0.05, 20),
            _ => {}
        }
        let key = Key::new(rng.random());
        let tempered: Vec<f32> = filtered(&logits, &filter).iter().map(|x| x / temp).collect();
        let row = Array::from_slice(&tempered, &[1, n as i32]);
        let expected = categorical(row, None, None, &key.to_array()).unwrap().item_cast::<u32>();
        for kernels in sets() {
            let found = kernels.sample(Floats::F32(&logits), filter, key);
            assert_eq!(found, Some(expected), "{}: draw {draw}, {n} logits, {filter:?}", kernels.name());
        }
    }
}

#[test]
fn logits_that_are_no_numbers_give_no_token() {
    let place = |i: usize, nonsense| [vec![1.0; i], vec![nonsense], vec![1.0; 99 - i]].concat();
    let nothing = [
        vec![f32::NEG_INFINITY; 100],
        place(99, f32::INFINITY),
        place(0, f32::NAN),
        place(63, f32::NAN),
        place(99, f32::NAN),
    ];
    for kernels in sets() {
        for (top_p, top_k) in [(1.0, 0), (0.9, 0), (1.0, 5)] {
            let filter = Filter { temp: 0.7, top_p, min_p: 0.0, top_k };
            for logits in &nothing {
                assert_eq!(
                    kernels.sample(Floats::F32(logits), filter, Key::new(1)),
                    None,
                    "{}: {logits:?}",
                    kernels.name()
                );
                assert_eq!(kernels.argmax(Floats::F32(logits)), None, "{}: {logits:?}", kernels.name());
            }
            // A banned token is not chosen, and is no reason not to choose.
            for banned in [0, 50, 99] {
                let logits = place(banned, f32::NEG_INFINITY);
                let found = kernels.sample(Floats::F32(&logits), filter, Key::new(1));
                assert!(found.is_some_and(|token| token != banned as u32), "{}: {found:?}", kernels.name());
                assert_eq!(kernels.argmax(Floats::F32(&logits)), Some(u32::from(banned == 0)));
            }
        }
    }
}
