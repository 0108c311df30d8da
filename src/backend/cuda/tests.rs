//! Blocks and rows on a GPU against f64 arithmetic. Where there is no such GPU, the tests say so and pass.

use half::f16;
use mlx_rs::{Array, Device, Dtype};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Gpu, blocks, node, rows};
use crate::backend::{
    Activation, Block, CachedSpan, Held, LayerCache, Linear, NO_TOKEN, Norm, Norms, Packing, Phase, Positions,
    Residual, Rotation, Rotations, Weight,
};

pub(super) fn gpu() -> Option<&'static Gpu> {
    let gpu = Gpu::get();
    match gpu {
        Some(_) => Device::set_default(&Device::gpu()),
        None => eprintln!("there is no GPU that the kernels run on, so nothing was tested"),
    }
    gpu
}

/// Random numbers of f16 as an array, and as f64.
pub(super) fn numbers(rng: &mut StdRng, shape: &[i32], size: f64, middle: f64) -> (Array, Vec<f64>) {
    let n = shape.iter().product::<i32>();
    let values: Vec<f16> = (0..n).map(|_| f16::from_f64(middle + rng.random_range(-size..size))).collect();
    (Array::from_slice(&values, shape), values.iter().map(|x| x.to_f64()).collect())
}

fn to_f64(array: &Array) -> Vec<f64> {
    array.eval().unwrap();
    array.as_slice::<f16>().iter().map(|x| x.to_f64()).collect()
}

/// A matrix, and its values.
struct Matrix {
    weight: Weight,
    bias: (Array, Vec<f64>),
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn new(rng: &mut StdRng, rows: i32, columns: i32, packing: Option<Packing>) -> Self {
        let (weight, values) = match packing {
            Some(packing) => Matrix::packed(rng, rows, columns, packing),
            None => {
                let (weight, values) = numbers(rng, &[rows, columns], 2.0 / f64::from(columns).sqrt(), 0.0);
                (Weight::Dense(weight), values)
            }
        };
        let bias = numbers(rng, &[rows], 0.5, 0.0);
        Matrix { weight, bias, columns: columns as usize, values }
    }

    fn packed(rng: &mut StdRng, rows: i32, columns: i32, packing: Packing) -> (Weight, Vec<f64>) {
        let Packing { group_size, bits } = packing;
        let words: Vec<u32> = (0..rows * columns * bits / 32).map(|_| rng.random()).collect();
        let step = 4.0 / f64::from(1 << bits) / f64::from(columns).sqrt();
        let (scales, scale) = numbers(rng, &[rows, columns / group_size], step / 4.0, step);
        let (biases, bias) = numbers(rng, &[rows, columns / group_size], step, -step * f64::from(1 << (bits - 1)));
        let value = |i: i32| {
            let q = words[(i * bits / 32) as usize] >> (bits * (i % (32 / bits))) & ((1 << bits) - 1);
            scale[(i / group_size) as usize] * f64::from(q) + bias[(i / group_size) as usize]
        };
        let values = (0..rows * columns).map(value).collect();
        let packed = Array::from_slice(&words, &[rows, columns * bits / 32]);
        (Weight::Affine { packed, scales, biases, packing }, values)
    }

    fn operand(&self, has_bias: bool) -> Linear<'_> {
        Linear { weight: &self.weight, bias: has_bias.then_some(&self.bias.0) }
    }

    fn of(&self, x: &[f64], has_bias: bool) -> Vec<f64> {
        let row = |(row, bias): (&[f64], &f64)| {
            row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + if has_bias { *bias } else { 0.0 }
        };
        self.values.chunks(self.columns).zip(&self.bias.1).map(row).collect()
    }
}

const D: i32 = 320;
const HEAD_DIM: i32 = 64;
const HEADS: i32 = 6;
const KV_HEADS: i32 = 2;
const HIDDEN: i32 = 448;
const EPS: f32 = 1e-5;

/// Blocks that together have the settings that the kernels have branches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Biases, and norms of each head.
    Biased,
    /// Norms around both parts, capped scores, GELU, and a multiplier of what is added: Gemma 2 and Granite.
    Around,
    /// Norms after both parts and over all heads, of which only some components are turned: OLMo 2 and Phi 4.
    After,
}

struct Model {
    /// Before attention and MLP, and after them.
    norms: [(Array, Vec<f64>); 4],
    /// Of queries and keys: as many weights as all heads have.
    head_norms: [(Array, Vec<f64>); 2],
    /// q, k, v, o, gate, up, down.
    matrices: [Matrix; 7],
    rotations: Rotations,
    window: Option<i32>,
    kind: Kind,
}

fn normed(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x * w / (mean + f64::from(EPS)).sqrt()).collect()
}

/// Keys and values of a sequence, by token.
type Seen = Vec<(Vec<f64>, Vec<f64>)>;

impl Model {
    fn new(rng: &mut StdRng, window: Option<i32>, packing: Option<Packing>, kind: Kind) -> Self {
        let mut matrix = |rows, columns| Matrix::new(rng, rows, columns, packing);
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let matrices = [
            matrix(q, D),
            matrix(kv, D),
            matrix(kv, D),
            matrix(D, q),
            matrix(HIDDEN, D),
            matrix(HIDDEN, D),
            matrix(D, HIDDEN),
        ];
        let pairs = if kind == Kind::After { HEAD_DIM / 4 } else { HEAD_DIM / 2 };
        let frequencies = (0..pairs).map(|i| 10000f64.powf(f64::from(-i) / f64::from(pairs))).collect();
        let head_norm_widths = if kind == Kind::After { [q, kv] } else { [HEAD_DIM; 2] };
        Model {
            norms: [(); 4].map(|()| numbers(rng, &[D], 0.5, 1.0)),
            head_norms: head_norm_widths.map(|width| numbers(rng, &[width], 0.5, 1.0)),
            matrices,
            rotations: Rotations::new(Rotation { frequencies, factor: 1.0 }, None),
            window,
            kind,
        }
    }

    fn has_bias(&self) -> bool {
        self.kind == Kind::Biased
    }

    fn has_head_norms(&self) -> bool {
        matches!(self.kind, Kind::Biased | Kind::After)
    }

    fn cap(&self) -> Option<f32> {
        (self.kind == Kind::Around).then_some(1.5)
    }

    fn residual(&self) -> Residual {
        match self.kind {
            Kind::Around => Residual { multiplier: 0.375, saturates: true },
            _ => Residual::SUM,
        }
    }

    /// Of the first two of `norms`, those before, and of the others, those after.
    fn norm(&self, number: usize) -> Option<&(Array, Vec<f64>)> {
        let has = match self.kind {
            Kind::Plain | Kind::Biased => number < 2,
            Kind::Around => true,
            Kind::After => number >= 2,
        };
        has.then_some(&self.norms[number])
    }

    fn operand(&self) -> Block<'_> {
        let [q, k, v, o, gate, up, down] = self.matrices.each_ref().map(|matrix| matrix.operand(self.has_bias()));
        let head_norms = self.head_norms.each_ref().map(|(weight, _)| Norm { weight, eps: EPS });
        let norm = |number| self.norm(number).map(|(weight, _)| Norm { weight, eps: EPS });
        Block {
            attention_norms: Norms { before: norm(0), after: norm(2) },
            projections: [q, k, v],
            qk_norm: self.has_head_norms().then_some(head_norms),
            rotations: Some(&self.rotations),
            head_dim: HEAD_DIM,
            scale: 0.125,
            softcap: self.cap(),
            window: self.window,
            o_proj: o,
            mlp_norms: Norms { before: norm(1), after: norm(3) },
            gate_proj: gate,
            up_proj: up,
            activation: if self.kind == Kind::Around { Activation::GeluTanh } else { Activation::Silu },
            down_proj: down,
            residual: self.residual(),
            summed_over: None,
        }
    }

    /// A token's hidden states after the block, its key and value added to what was seen.
    fn of(&self, x: &[f64], seen: &mut Seen, at: &Positions) -> Vec<f64> {
        let [q, k, v, o, gate, up, down] = self.matrices.each_ref();
        let norm = |x: Vec<f64>, number: usize| match self.norm(number) {
            Some((_, weight)) => normed(&x, weight),
            None => x,
        };
        let h = norm(x.to_vec(), 0);
        let turned = |mut heads: Vec<f64>, norm: usize| -> Vec<f64> {
            if self.has_head_norms() {
                let weight = &self.head_norms[norm].1;
                heads = heads.chunks(weight.len()).flat_map(|part| normed(part, weight)).collect();
            }
            let frequencies = &self.rotations.of(0).frequencies;
            for head in heads.chunks_mut(HEAD_DIM as usize) {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (a, b) = (head[i], head[i + frequencies.len()]);
                    let (sin, cos) = (frequency * f64::from(at.offset)).sin_cos();
                    (head[i], head[i + frequencies.len()]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
            heads
        };
        let queries = turned(q.of(&h, self.has_bias()), 0);
        seen.push((turned(k.of(&h, self.has_bias()), 1), v.of(&h, self.has_bias())));
        let sees = |column: i32| self.window.is_none_or(|window| at.offset < column + window) || column < at.sinks;
        let mut attended = Vec::new();
        for (head, query) in queries.chunks(HEAD_DIM as usize).enumerate() {
            let kv = head / (HEADS / KV_HEADS) as usize * HEAD_DIM as usize;
            let part = kv..kv + HEAD_DIM as usize;
            let tokens = (0..).zip(seen.iter()).filter(|(column, _)| sees(*column)).map(|(_, token)| token);
            let tokens: Vec<_> = tokens.collect();
            let score = |(key, _): &&(Vec<f64>, Vec<f64>)| {
                let score = 0.125 * key[part.clone()].iter().zip(query).map(|(k, q)| k * q).sum::<f64>();
                self.cap().map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
            };
            let weights: Vec<f64> = tokens.iter().map(score).collect();
            let sum = weights.iter().sum::<f64>();
            attended.extend(
                part.clone().map(|i| {
                    tokens.iter().zip(&weights).map(|((_, value), weight)| value[i] * weight / sum).sum::<f64>()
                }),
            );
        }
        let multiplier = f64::from(self.residual().multiplier);
        let add = |x: &[f64], y: Vec<f64>| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x + multiplier * y).collect() };
        let x = add(x, norm(o.of(&attended, self.has_bias()), 2));
        let h = norm(x.clone(), 1);
        let gated = gate.of(&h, self.has_bias()).into_iter().zip(up.of(&h, self.has_bias()));
        let activated = |x: f64| match self.kind {
            Kind::Around => x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
            _ => x / (1.0 + (-x).exp()),
        };
        let expanded: Vec<f64> = gated.map(|(gate, up)| activated(gate) * up).collect();
        add(&x, norm(down.of(&expanded, self.has_bias()), 3))
    }
}

/// A sequence that has seen some tokens: for each block the cache, and what is in it.
struct Sequence {
    positions: Positions,
    held: Vec<Held>,
    caches: Vec<LayerCache>,
    seen: Vec<Seen>,
}

impl Sequence {
    /// With room for `room` more tokens in its caches.
    fn new(rng: &mut StdRng, blocks: usize, tokens: i32, sinks: i32, room: i32) -> Self {
        let positions = Positions { phase: Phase::Decode, offset: tokens, tokens: 1, sinks, context_size: 1 << 20 };
        let held = vec![Held { capacity: tokens + 7, ..Held::default() }; blocks];
        let (mut caches, mut seen) = (Vec::new(), Vec::new());
        for _ in 0..blocks {
            let shape = [1, KV_HEADS, tokens + room, HEAD_DIM];
            let (keys, values) = (numbers(rng, &shape, 1.0, 0.0), numbers(rng, &shape, 1.0, 0.0));
            let token = |of: &[f64], token: i32| -> Vec<f64> {
                let from = |head: i32| ((head * shape[2] + token) * HEAD_DIM) as usize;
                (0..KV_HEADS).flat_map(|head| of[from(head)..][..HEAD_DIM as usize].to_vec()).collect()
            };
            seen.push((0..tokens).map(|i| (token(&keys.1, i), token(&values.1, i))).collect());
            caches.push((tokens > 0).then_some((keys.0, values.0)));
        }
        Sequence { positions, held, caches, seen }
    }

    fn copy(&self) -> Self {
        let copy = |cache: &LayerCache| {
            cache.as_ref().map(|(keys, values)| {
                let [keys, values] = [keys, values].map(|array| {
                    array.eval().unwrap();
                    Array::from_slice(array.as_slice::<f16>(), array.shape())
                });
                (keys, values)
            })
        };
        let caches = self.caches.iter().map(copy).collect();
        Sequence { positions: self.positions, held: self.held.clone(), caches, seen: self.seen.clone() }
    }
}

fn compute(gpu: &Gpu, x: &Array, models: &[Model], sequences: &mut [Sequence]) -> Vec<f64> {
    let operands: Vec<Block> = models.iter().map(Model::operand).collect();
    let mut spans: Vec<CachedSpan> = (sequences.iter_mut())
        .map(|sequence| CachedSpan {
            positions: sequence.positions,
            layers: &mut sequence.caches,
            held: &sequence.held,
        })
        .collect();
    to_f64(&blocks::blocks(gpu, x, &operands, &mut spans).expect("not declined").unwrap())
}

/// ‖found - wanted‖ / ‖wanted‖.
fn distance(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = found.iter().zip(wanted).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    (square / wanted.iter().map(|x| x * x).sum::<f64>()).sqrt()
}

/// One of each kind and packing.
fn models(rng: &mut StdRng) -> [Model; 5] {
    [
        Model::new(rng, None, Some(Packing::DEFAULT), Kind::Plain),
        Model::new(rng, Some(70), Some(Packing { group_size: 32, bits: 8 }), Kind::Biased),
        Model::new(rng, Some(9), None, Kind::Plain),
        Model::new(rng, Some(100), Some(Packing { group_size: 32, bits: 4 }), Kind::Around),
        Model::new(rng, None, Some(Packing { group_size: 64, bits: 8 }), Kind::After),
    ]
}

#[test]
fn blocks_compute_what_f64_does_and_do_not_depend_on_company() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(1);
    let models = models(rng);
    let lengths = [(0, 0), (1, 0), (69, 4), (70, 4), (300, 4), (64, 0), (129, 3)];
    // More than one launch multiplies.
    let mut sequences: Vec<Sequence> = (lengths.into_iter().cycle().take(35).enumerate())
        .map(|(i, (tokens, sinks))| Sequence::new(rng, models.len(), tokens, sinks, if i % 2 == 0 { 7 } else { 0 }))
        .collect();
    let mut alone: Vec<Sequence> = sequences.iter().map(Sequence::copy).collect();
    for step in 0..2 {
        let n = sequences.len();
        let (x, values) = numbers(rng, &[n as i32, D], 2.0, 0.0);
        let found = compute(gpu, &x, &models, &mut sequences);
        for (i, x) in values.chunks(D as usize).enumerate() {
            let at = sequences[i].positions;
            let mut wanted = x.to_vec();
            for (model, seen) in models.iter().zip(&mut sequences[i].seen) {
                wanted = model.of(&wanted, seen, &at);
            }
            let found = &found[i * D as usize..][..D as usize];
            let change = |y: &[f64]| -> Vec<f64> { y.iter().zip(x).map(|(y, x)| y - x).collect() };
            let error = distance(&change(found), &change(&wanted));
            assert!(error < 1e-2, "step {step}, sequence {i}: {error}");
            let x: Vec<f16> = x.iter().map(|&x| f16::from_f64(x)).collect();
            let by_itself = compute(gpu, &Array::from_slice(&x, &[1, D]), &models, &mut alone[i..=i]);
            assert_eq!(by_itself, found, "step {step}, sequence {i} alone");
        }
        for sequence in sequences.iter_mut().chain(&mut alone) {
            sequence.positions.offset += 1;
        }
    }
}

/// Tokens of prompts, and tokens that are decoded, in one pass: each as f64 has it, and the same bit by bit however its prompt is cut, alone
/// and with others.
#[test]
fn prompts_compute_what_f64_does_however_they_are_cut() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(6);
    let models = models(rng);
    // Tokens before, sinks, and tokens of the pass; of the first two, those are decoded.
    let cases = [(5, 0, 1), (90, 4, 1), (0, 0, 1), (0, 4, 200), (64, 0, 64), (300, 4, 33), (70, 4, 150), (129, 3, 17)];
    let mut sequences: Vec<Sequence> = (cases.iter().enumerate())
        .map(|(i, &(before, sinks, tokens))| {
            let mut sequence = Sequence::new(rng, models.len(), before, sinks, if i % 2 == 0 { 0 } else { tokens });
            sequence.positions.tokens = tokens;
            sequence.positions.phase = if i < 2 { Phase::Decode } else { Phase::Prefill };
            sequence.held.iter_mut().for_each(|held| held.capacity = before + tokens + 3);
            sequence
        })
        .collect();
    let mut alone: Vec<Sequence> = sequences.iter().map(Sequence::copy).collect();
    let n = cases.iter().map(|(_, _, tokens)| tokens).sum::<i32>();
    let (x, values) = numbers(rng, &[n, D], 2.0, 0.0);
    let found = compute(gpu, &x, &models, &mut sequences);
    let (mut rows, mut all) = (values.chunks(D as usize), found.chunks(D as usize));
    for (i, sequence) in sequences.iter_mut().enumerate() {
        let tokens = sequence.positions.tokens as usize;
        let x: Vec<&[f64]> = rows.by_ref().take(tokens).collect();
        let found: Vec<&[f64]> = all.by_ref().take(tokens).collect();
        for (token, x) in x.iter().enumerate() {
            let at = Positions { offset: sequence.positions.offset + token as i32, ..sequence.positions };
            let mut wanted = x.to_vec();
            for (model, seen) in models.iter().zip(&mut sequence.seen) {
                wanted = model.of(&wanted, seen, &at);
            }
            let change = |y: &[f64]| -> Vec<f64> { y.iter().zip(*x).map(|(y, x)| y - x).collect() };
            let error = distance(&change(found[token]), &change(&wanted));
            assert!(error < 1e-2, "sequence {i}, token {token}: {error}");
        }
        let alone = &mut alone[i];
        let mut first = 0;
        for cut in [1, 30, 64, 7, 1000] {
            let part = first..(first + cut).min(tokens);
            first = part.end;
            if part.is_empty() {
                break;
            }
            alone.positions.tokens = part.len() as i32;
            let x: Vec<f16> = x[part.clone()].concat().into_iter().map(f16::from_f64).collect();
            let x = Array::from_slice(&x, &[part.len() as i32, D]);
            let by_itself = compute(gpu, &x, &models, std::slice::from_mut(alone));
            assert_eq!(by_itself, found[part.clone()].concat(), "sequence {i}, tokens {part:?} alone");
            alone.positions.offset += part.len() as i32;
        }
    }
}

#[test]
fn a_cache_that_others_hold_is_not_written_to() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(2);
    let models = [Model::new(rng, None, Some(Packing::DEFAULT), Kind::Plain)];
    let mut sequence = Sequence::new(rng, 1, 20, 0, 7);
    let (x, _) = numbers(rng, &[1, D], 1.0, 0.0);
    let held = sequence.caches[0].clone().unwrap();
    let before = to_f64(&held.0);
    let mut same = sequence.copy();
    let y = compute(gpu, &x, &models, std::slice::from_mut(&mut sequence));
    assert_eq!(y, compute(gpu, &x, &models, std::slice::from_mut(&mut same)));
    assert_eq!(to_f64(&held.0), before);
    let (keys, _) = sequence.caches[0].as_ref().unwrap();
    assert_eq!(to_f64(keys), to_f64(&same.caches[0].as_ref().unwrap().0));
    assert_ne!(to_f64(keys), before);
}

#[test]
fn rows_are_those_of_f64() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(3);
    for bits in [2, 4, 8] {
        let matrix = Matrix::new(rng, 50, 192, Some(Packing { group_size: 64, bits }));
        let ids = [3u32, 49, 0, 50, NO_TOKEN];
        let found = to_f64(&rows::embedding(gpu, &Array::from_slice(&ids, &[5]), &matrix.weight).unwrap().unwrap());
        for (found, id) in found.chunks(192).zip(ids) {
            match matrix.values.chunks(192).nth(id as usize) {
                Some(wanted) => assert!(distance(found, wanted) < 1e-3),
                None => assert!(found.iter().all(|x| x.is_nan())),
            }
        }
    }
    let (x, values) = numbers(rng, &[3, 1000], 3.0, 0.5);
    let (weight, weights) = numbers(rng, &[1000], 1.0, 0.0);
    let found = to_f64(&rows::rms_norm(gpu, &x, Norm { weight: &weight, eps: EPS }).unwrap().unwrap());
    for (found, x) in found.chunks(1000).zip(values.chunks(1000)) {
        assert!(distance(found, &normed(x, &weights)) < 1e-3);
    }
}

#[test]
fn a_prompt_is_multiplied_as_f64_does() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(5);
    for (bits, group_size) in [(2, 32), (4, 64), (4, 128), (8, 32)] {
        // Two of one shape, of which the second takes the memory of the first.
        let [first, second] = [(); 2].map(|()| Matrix::new(rng, 50, 384, Some(Packing { group_size, bits })));
        let (x, values) = numbers(rng, &[70, 384], 1.0, 0.0);
        let compute = |matrix: &Matrix| {
            let layer = matrix.operand(true);
            rows::linear_of_prompt(gpu, &x, &layer).expect("not declined").unwrap()
        };
        let found = [(compute(&first), &first), (compute(&second), &second)];
        for (found, matrix) in found {
            for (found, x) in to_f64(&found).chunks(50).zip(values.chunks(384)) {
                let error = distance(found, &matrix.of(x, true));
                assert!(error < 2e-3, "{bits} bits: {error}");
            }
        }
    }
}

#[test]
fn bytes_come_as_they_are() {
    if gpu().is_none() {
        return;
    }
    for n in [0, 1, 3, 1000, 5 << 20] {
        let words: Vec<u32> = (0..n).map(|i: u32| i.wrapping_mul(2_654_435_761)).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let array = node::upload(&bytes, &[n as i32], Dtype::Uint32).unwrap();
        if n == 0 {
            continue;
        }
        let doubled = array.add(&array).unwrap(); // by a kernel
        doubled.eval().unwrap();
        assert!(
            doubled.as_slice::<u32>().iter().eq(&words.iter().map(|word| word.wrapping_mul(2)).collect::<Vec<_>>())
        );
        assert_eq!(array.as_slice::<u32>(), words, "{n}");
    }
}
