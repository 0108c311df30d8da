//! Rotation and attention.

use mlx_lm::backend::Gap;
use mlx_lm::backend::cpu::{Heads, Span, Turns};
use rand::SeedableRng;

use super::*;

/// Heads `[H, T, D]` that lie in a larger buffer, as a cache's do.
fn in_buffer(numbers: &Numbers, shape: [usize; 3], capacity: usize) -> Heads<'_> {
    let [_, _, d] = shape;
    Heads { values: numbers.floats(), shape, strides: [capacity * d, d] }
}

#[test]
fn rope_turns_as_f64_does() {
    let mut rng = StdRng::seed_from_u64(7);
    // The first r components of each head of d.
    for (d, r) in [(2, 2), (6, 6), (16, 16), (64, 64), (80, 80), (128, 128), (96, 72), (40, 2)] {
        for kind in KINDS {
            let (shape, capacity) = ([3, 5, d], 7);
            let positions = [1000, 1001, 3, 100_000, 0];
            let x = Numbers::new(kind, uniform(&mut rng, 3 * capacity * d));
            let frequencies: Vec<f64> = (0..r / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / r as f64)).collect();
            let factor = 1.25;
            let wide = x.wide();
            let turns = Turns::new(&frequencies, factor, &[&[77], &positions[..]].concat());
            for kernels in sets() {
                // To rows of another order: token by token, all heads of one next to each other.
                let mut y = Numbers::zeros(kind, 3 * 5 * d);
                kernels.rope(in_buffer(&x, shape, capacity), None, Some((&turns, 1)), y.floats_mut(), [d, 3 * d]);
                for (i, found) in y.wide().into_iter().enumerate() {
                    let (token, head, c) = (i / (3 * d), i / d % 3, i % d);
                    let from = (head * capacity + token) * d;
                    let (low, high) = (wide[from + c % (r / 2)], wide[from + c % (r / 2) + r / 2]);
                    let (sin, cos) = (frequencies[c % (r / 2)] * positions[token] as f64).sin_cos();
                    let turned = if c < r / 2 { low * cos - high * sin } else { high * cos + low * sin };
                    let expected = if c < r { turned * f64::from(factor) } else { wide[from + c] };
                    let bound = expected.abs() * TYPES[kind] + 1e-6;
                    assert!((found - expected).abs() <= bound, "{}: {d}: {found}, expected {expected}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn heads_are_normalised_before_they_turn() {
    let mut rng = StdRng::seed_from_u64(10);
    let shape = [2, 3, 32];
    let x = Numbers::new(0, uniform(&mut rng, 2 * 3 * 32));
    let weight = Numbers::new(0, uniform(&mut rng, 32));
    let frequencies: Vec<f64> = (0..16).map(|i| 0.5f64.powi(i)).collect();
    let turns = Turns::new(&frequencies, 1.0, &[5, 6, 7]);
    let (turns, strides) = (Some((&turns, 0)), [3 * 32, 32]);
    for kernels in sets() {
        let mut normed = Numbers::zeros(0, 2 * 3 * 32);
        kernels.rms_norm(x.floats(), weight.floats(), 1e-3, normed.floats_mut());
        let (mut expected, mut found) = (normed.clone(), normed.clone());
        kernels.rope(in_buffer(&normed, shape, 3), None, turns, expected.floats_mut(), strides);
        let norm = Some((weight.floats(), 1e-3));
        kernels.rope(in_buffer(&x, shape, 3), norm, turns, found.floats_mut(), strides);
        assert_eq!(found.wide(), expected.wide(), "{}", kernels.name());
        kernels.rope(in_buffer(&x, shape, 3), norm, None, found.floats_mut(), strides);
        assert_eq!(found.wide(), normed.wide(), "{}", kernels.name());
    }
}

/// Queries, keys and values of a sequence, and what it may see.
struct Sequence {
    q: Numbers,
    k: Numbers,
    v: Numbers,
    l: usize,
    t: usize,
    window: Option<usize>,
    sinks: usize,
}

/// Of all sequences of a case.
#[derive(Clone, Copy)]
struct Shape {
    h: usize,
    kv: usize,
    d: usize,
}

impl Sequence {
    fn new(rng: &mut StdRng, kind: usize, Shape { h, kv, d }: Shape) -> Self {
        let l = *[1, 1, 2, 5, 33, 70].choose(rng).unwrap();
        let t = l + *[0, 0, 1, 63, 64, 65, 200].choose(rng).unwrap();
        // Large scores make the softmax sharp, so that its running maximum matters.
        let size = *[1.0, 8.0].choose(rng).unwrap();
        Sequence {
            q: Numbers::new(kind, uniform(rng, h * l * d).into_iter().map(|x| x * size)),
            k: Numbers::new(kind, uniform(rng, kv * (t + 3) * d).into_iter().map(|x| x * size)),
            v: Numbers::new(kind, uniform(rng, kv * (t + 3) * d)),
            l,
            t,
            window: *[None, Some(1), Some(30), Some(100)].choose(rng).unwrap(),
            sinks: *[0, 4, 70].choose(rng).unwrap(),
        }
    }

    fn span(&self, Shape { h, kv, d }: Shape) -> Span<'_> {
        Span {
            queries: in_buffer(&self.q, [h, self.l, d], self.l),
            keys: in_buffer(&self.k, [kv, self.t, d], self.t + 3),
            values: in_buffer(&self.v, [kv, self.t, d], self.t + 3),
            window: self.window,
            sinks: self.sinks,
            gap: Gap::default(),
        }
    }

    /// The outputs `[L, H, D]`, and the sums of their magnitudes.
    fn attended(&self, Shape { h, kv, d }: Shape, scale: f32, softcap: Option<f32>) -> (Vec<f64>, Vec<f64>) {
        let (wq, wk, wv) = (self.q.wide(), self.k.wide(), self.v.wide());
        let mut expected = vec![0.0; self.l * h * d];
        let mut sizes = expected.clone();
        for (row, (expected, sizes)) in expected.chunks_mut(d).zip(sizes.chunks_mut(d)).enumerate() {
            let (i, head) = (row / h, row % h);
            let position = i + self.t - self.l;
            let at = |j: usize| (head / (h / kv) * (self.t + 3) + j) * d;
            let query = &wq[(head * self.l + i) * d..][..d];
            let sees =
                |j: usize| j <= position && (j < self.sinks || self.window.is_none_or(|window| position - j < window));
            let score = |j: usize| {
                let dot: f64 = query.iter().zip(&wk[at(j)..]).map(|(q, k)| q * k).sum();
                let capped = |score: f64| softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                if sees(j) { capped(dot * f64::from(scale)) } else { f64::NEG_INFINITY }
            };
            let scores: Vec<f64> = (0..self.t).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (j, score) in scores.iter().enumerate() {
                let weight = (score - max).exp() / sum;
                expected.iter_mut().zip(&wv[at(j)..]).for_each(|(y, v)| *y += weight * v);
                sizes.iter_mut().zip(&wv[at(j)..]).for_each(|(size, v)| *size += weight * v.abs());
            }
        }
        (expected, sizes)
    }
}

/// Sequences attend together as each would alone, and as f64 does.
#[test]
fn attention_is_that_of_f64() {
    let mut rng = StdRng::seed_from_u64(8);
    for case in 0..60 {
        let kind = rng.random_range(0..3);
        let kv = rng.random_range(1..4);
        let h = kv * *[1, 2, 3, 4, 7, 8].choose(&mut rng).unwrap();
        let shape = Shape { h, kv, d: *[4, 16, 32, 64, 80, 128].choose(&mut rng).unwrap() };
        let sequences: Vec<Sequence> =
            (0..rng.random_range(1..4)).map(|_| Sequence::new(&mut rng, kind, shape)).collect();
        let scale = 1.0 / (shape.d as f32).sqrt();
        let softcap = *[None, Some(2.0), Some(50.0)].choose(&mut rng).unwrap();
        let spans: Vec<Span> = sequences.iter().map(|sequence| sequence.span(shape)).collect();
        for (kernels, phase) in sets().flat_map(|kernels| PHASES.map(|phase| (kernels, phase))) {
            let attended = |spans: &[Span]| {
                let n: usize = spans.iter().map(|span| span.queries.shape.iter().product::<usize>()).sum();
                let mut y = Numbers::zeros(kind, n);
                kernels.attention(spans, scale, softcap, phase, y.floats_mut());
                y.wide()
            };
            let together = attended(&spans);
            let mut rest = &together[..];
            for (sequence, span) in sequences.iter().zip(&spans) {
                let alone = attended(&[*span]);
                assert_eq!(alone, rest[..alone.len()], "{}: case {case}", kernels.name());
                rest = &rest[alone.len()..];
                // AMX rounds weights to bf16.
                let rounding = if kernels == InstructionSet::Amx && kind == 2 { 1.0 / 256.0 } else { 0.0 };
                let (expected, sizes) = sequence.attended(shape, scale, softcap);
                for (found, (expected, size)) in alone.into_iter().zip(expected.iter().zip(&sizes)) {
                    let bound = expected.abs() * TYPES[kind] + size * rounding + 3e-5;
                    assert!(
                        (found - expected).abs() <= bound,
                        "{} {phase:?}: case {case}, {h}/{kv}, {} of {}: {found}, expected {expected}",
                        kernels.name(),
                        sequence.l,
                        sequence.t
                    );
                }
            }
        }
    }
}

/// Without the keys that nobody sees, bit for bit. Catches: keys of one row too early or too late, of a block that is not held.
#[test]
fn a_gap_that_nobody_sees_changes_nothing() {
    let mut rng = StdRng::seed_from_u64(13);
    for case in 0..40 {
        let kind = rng.random_range(0..3);
        let shape = Shape { h: 4, kv: 2, d: *[16, 64, 80].choose(&mut rng).unwrap() };
        let mut whole = Sequence::new(&mut rng, kind, shape);
        let window = rng.random_range(1..100);
        (whole.l, whole.t, whole.window) =
            (*[1, 1, 7, 70].choose(&mut rng).unwrap(), rng.random_range(300..500), Some(window));
        whole.q = Numbers::new(kind, uniform(&mut rng, shape.h * whole.l * shape.d));
        [whole.k, whole.v] =
            [(); 2].map(|()| Numbers::new(kind, uniform(&mut rng, shape.kv * (whole.t + 3) * shape.d)));
        let first = *[0, 4, 64, 70].choose(&mut rng).unwrap();
        whole.sinks = *[0, first].choose(&mut rng).unwrap();
        // Where the first query's window begins, or some blocks before.
        let seen = (whole.t - whole.l + 1 - window) / 64;
        let end = 64 * rng.random_range(seen.saturating_sub(2)..=seen);
        let gap = Gap { first: first as i32, len: end.saturating_sub(first) as i32 };
        let held = |numbers: &Numbers| {
            let rows: Vec<f64> = numbers.wide();
            let of_head =
                |head: &[f64]| [&head[..first * shape.d], &head[(first + gap.len as usize) * shape.d..]].concat();
            Numbers::new(kind, rows.chunks((whole.t + 3) * shape.d).flat_map(of_head))
        };
        let (k, v, rows) = (held(&whole.k), held(&whole.v), whole.t - gap.len as usize);
        for (kernels, phase) in sets().flat_map(|kernels| PHASES.map(|phase| (kernels, phase))) {
            let attended = |span: Span| {
                let mut y = Numbers::zeros(kind, whole.l * shape.h * shape.d);
                kernels.attention(&[span], 0.25, None, phase, y.floats_mut());
                y.wide()
            };
            let all = whole.span(shape);
            let [keys, values] = [&k, &v].map(|numbers| in_buffer(numbers, [shape.kv, rows, shape.d], rows + 3));
            assert_eq!(attended(Span { keys, values, gap, ..all }), attended(all), "{}: case {case}", kernels.name());
        }
    }
}

/// However the queries of a prompt are cut, bit for bit.
#[test]
fn attention_does_not_depend_on_how_a_prompt_is_cut() {
    let mut rng = StdRng::seed_from_u64(12);
    for (window, sinks) in [(None, 0), (Some(50), 0), (Some(50), 4)] {
        let shape = Shape { h: 4, kv: 2, d: 64 };
        let mut whole = Sequence::new(&mut rng, 2, shape);
        (whole.l, whole.t, whole.window, whole.sinks) = (200, 200, window, sinks);
        whole.q = Numbers::new(2, uniform(&mut rng, 4 * 200 * 64));
        whole.k = Numbers::new(2, uniform(&mut rng, 2 * 203 * 64));
        whole.v = Numbers::new(2, uniform(&mut rng, 2 * 203 * 64));
        for kernels in sets() {
            let attended = |first: usize, end: usize| {
                let mut span = whole.span(shape);
                let rows = |heads: &mut Heads, first: usize, end: usize| {
                    heads.values = heads.values.part(first * 64..heads.values.len());
                    heads.shape[1] = end - first;
                };
                rows(&mut span.queries, first, end);
                rows(&mut span.keys, 0, end);
                rows(&mut span.values, 0, end);
                let mut y = Numbers::zeros(2, (end - first) * 4 * 64);
                kernels.attention(&[span], 0.125, None, Phase::Prefill, y.floats_mut());
                y.wide()
            };
            let expected = attended(0, 200);
            let cuts = [0, 1, 70, 71, 128, 200];
            let found: Vec<f64> = cuts.windows(2).flat_map(|cut| attended(cut[0], cut[1])).collect();
            assert_eq!(found, expected, "{}: window {window:?}, {sinks} sinks", kernels.name());
        }
    }
}
