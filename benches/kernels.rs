//! Each CPU kernel alone, for every instruction set of the machine: `cargo bench --bench kernels [-- FILTER]`.
//!
//! Throughput is in bytes of weights read (GB/s) where reading them is the limit, in multiplications (one element is one
//! multiply-add) where arithmetic is. Weights are as large as all of Llama-3.2-1B's, so that no cache holds them; other shapes
//! are those of its layers.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use mlx_lm::backend::cpu::{Affine, Floats, FloatsMut, Heads, InstructionSet, Layer, Matrix, Span, Turns, Values};
use mlx_lm::backend::{Epilogue, Filter, Gap, Key, Phase, Residual};

/// Numbers between -1 and 1 that look random.
fn numbers(n: usize) -> Vec<bf16> {
    (0..n as u32).map(|i| bf16::from_f32((i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0)).collect()
}

fn words(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) ^ (i << 7)).collect()
}

struct Packed {
    rows: usize,
    columns: usize,
    bits: u32,
    packed: Vec<u32>,
    scales: Vec<bf16>,
}

impl Packed {
    fn new(rows: usize, columns: usize, bits: u32) -> Self {
        let packed = words(rows * columns / 32 * bits as usize);
        Packed { rows, columns, bits, packed, scales: numbers(rows * columns / 64) }
    }

    fn matrix(&self) -> Matrix<'_> {
        let scales = Floats::Bf16(&self.scales);
        let affine = Affine { packed: &self.packed, scales, biases: scales, group_size: 64, bits: self.bits };
        Matrix { rows: self.rows, columns: self.columns, values: Values::Affine(affine) }
    }

    fn bytes(&self) -> u64 {
        (self.packed.len() * 4 + self.scales.len() * 4) as u64
    }
}

fn sets() -> Vec<InstructionSet> {
    InstructionSet::available()
}

fn linear(kernels: InstructionSet, x: &[bf16], weight: Matrix, phase: Phase, y: &mut [bf16]) {
    let layers = black_box([Layer { weight, bias: None }]);
    kernels.linear(Floats::Bf16(x), &layers, Epilogue::Concat, phase, FloatsMut::Bf16(y));
}

fn products(c: &mut Criterion) {
    for (bits, columns) in [(4, 2048), (4, 8192), (8, 2048)] {
        let weight = Packed::new((1 << 29) / columns, columns, bits);
        let mut y = vec![bf16::ZERO; weight.rows];
        let x = numbers(columns);
        let mut group = c.benchmark_group(format!("gemv {bits}-bit, {columns} columns"));
        group.sample_size(10).throughput(Throughput::Bytes(weight.bytes()));
        for kernels in sets() {
            group.bench_function(kernels.name(), |b| {
                b.iter(|| linear(kernels, &x, weight.matrix(), Phase::Decode, &mut y))
            });
        }
    }
    let (columns, rows) = (2048, 1 << 17);
    let (values, x) = (numbers(rows * columns), numbers(columns));
    let mut y = vec![bf16::ZERO; rows];
    let mut group = c.benchmark_group("gemv bf16, 2048 columns");
    group.sample_size(10).throughput(Throughput::Bytes(values.len() as u64 * 2));
    for kernels in sets() {
        let matrix = Matrix { rows, columns, values: Values::Dense(Floats::Bf16(&values)) };
        group.bench_function(kernels.name(), |b| b.iter(|| linear(kernels, &x, matrix, Phase::Decode, &mut y)));
    }
    group.finish();

    let mut group = c.benchmark_group("gemm 4-bit 8192 x 2048");
    let weight = Packed::new(8192, 2048, 4);
    for (tokens, phase) in [(8, Phase::Decode), (8, Phase::Prefill), (512, Phase::Prefill)] {
        let x = numbers(tokens * 2048);
        let mut y = vec![bf16::ZERO; tokens * 8192];
        group.sample_size(10).throughput(Throughput::Elements((tokens * 2048 * 8192) as u64));
        for kernels in sets() {
            group.bench_function(BenchmarkId::new(kernels.name(), format!("{tokens}, {phase:?}")), |b| {
                b.iter(|| linear(kernels, &x, weight.matrix(), phase, &mut y))
            });
        }
    }
}

/// `[heads, tokens, 64]`.
fn heads(values: &[bf16], heads: usize) -> Heads<'_> {
    let tokens = values.len() / heads / 64;
    Heads { values: Floats::Bf16(values), shape: [heads, tokens, 64], strides: [tokens * 64, 64] }
}

fn attention(c: &mut Criterion) {
    for (name, queries, tokens, phase) in
        [("reading 512", 512, 512, Phase::Prefill), ("decoding after 8192", 1, 8192, Phase::Decode)]
    {
        let (q, k, v) = (numbers(queries * 2048), numbers(tokens * 512), numbers(tokens * 512));
        let mut y = vec![bf16::ZERO; q.len()];
        let mut group = c.benchmark_group(format!("attention, {name} tokens"));
        group.sample_size(10).throughput(match queries {
            1 => Throughput::Bytes((k.len() + v.len()) as u64 * 2),
            _ => Throughput::Elements((2048 * queries * (tokens + 1)) as u64), // half of all are masked, keys and values
        });
        for kernels in sets() {
            group.bench_function(kernels.name(), |b| {
                b.iter(|| {
                    let (queries, keys, values) = black_box((heads(&q, 32), heads(&k, 8), heads(&v, 8)));
                    let span = Span { queries, keys, values, window: None, sinks: 0, gap: Gap::default() };
                    kernels.attention(&[span], 0.125, None, phase, FloatsMut::Bf16(&mut y));
                })
            });
        }
    }
}

/// What is done with each number by itself, for 512 tokens.
fn elementwise(c: &mut Criterion) {
    let (x, other) = (numbers(512 * 2048), numbers(512 * 2048));
    let weight = numbers(2048);
    let frequencies: Vec<f64> = (0..32).map(|i| 5e5f64.powf(-f64::from(i) / 32.0)).collect();
    let turns = Turns::new(&frequencies, 1.0, &(100..612).collect::<Vec<_>>());
    let mut y = vec![bf16::ZERO; x.len()];
    let mut group = c.benchmark_group("512 x 2048");
    group.throughput(Throughput::Bytes(x.len() as u64 * 4)); // read and written
    for kernels in sets() {
        group.bench_function(BenchmarkId::new(kernels.name(), "add"), |b| {
            b.iter(|| {
                kernels.add(Floats::Bf16(&x), Floats::Bf16(&other), Residual::SUM, FloatsMut::Bf16(black_box(&mut y)))
            })
        });
        group.bench_function(BenchmarkId::new(kernels.name(), "rms_norm"), |b| {
            let (x, weight) = (Floats::Bf16(&x), Floats::Bf16(&weight));
            b.iter(|| kernels.rms_norm(x, weight, 1e-5, FloatsMut::Bf16(black_box(&mut y))))
        });
        group.bench_function(BenchmarkId::new(kernels.name(), "rope"), |b| {
            let (strides, to) = ([512 * 64, 64], black_box(&mut y));
            b.iter(|| kernels.rope(heads(&x, 32), None, Some((&turns, 0)), FloatsMut::Bf16(to), strides))
        });
    }
    group.finish();

    let weight = Packed::new(1 << 17, 2048, 4);
    let ids: Vec<u32> = (0..512).map(|i| i * 251).collect();
    let mut group = c.benchmark_group("embed 512 tokens, 4-bit");
    group.throughput(Throughput::Bytes(y.len() as u64 * 2));
    for kernels in sets() {
        group.bench_function(kernels.name(), |b| {
            b.iter(|| kernels.embed(&ids, &weight.matrix(), FloatsMut::Bf16(black_box(&mut y))))
        });
    }
}

/// Choosing among as many tokens as Qwen3 has.
fn choose(c: &mut Criterion) {
    let logits: Vec<bf16> = numbers(151_936).into_iter().map(|x| bf16::from_f32(4.0 * x.to_f32())).collect();
    let mut group = c.benchmark_group("choose among 151936");
    group.throughput(Throughput::Elements(logits.len() as u64));
    for kernels in sets() {
        group.bench_function(BenchmarkId::new(kernels.name(), "argmax"), |b| {
            b.iter(|| kernels.argmax(Floats::Bf16(black_box(&logits))))
        });
        let filter = Filter { temp: 0.7, top_p: 0.9, min_p: 0.0, top_k: 0 };
        group.bench_function(BenchmarkId::new(kernels.name(), "temp 0.7, top-p 0.9"), |b| {
            b.iter(|| kernels.sample(Floats::Bf16(black_box(&logits)), filter, black_box(Key::new(1))))
        });
    }
}

criterion_group!(benches, products, attention, elementwise, choose);
criterion_main!(benches);
