//! The CPU kernels against f64 arithmetic, for every instruction set of this machine.
//!
//! Mistakes that were planted and made a test here fail: a neighbour's scale in panels; the
//! causal limit off by one; a block of scores not scaled to the maximum so far; the sign of a turn; `eps` counted twice;
//! numbers that are not finite rounded like others.

mod attention;
mod products;
mod quantize;
mod rows;
mod sampling;

use half::{bf16, f16};
use mlx_lm::backend::Phase;
use mlx_lm::backend::cpu::{Affine, Floats, FloatsMut, InstructionSet, Matrix, Values};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Numbers of a type that is chosen at run time.
#[derive(Clone)]
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// A type, by the distance of neighbours in `1..2`.
const TYPES: [f64; 3] = [1.0 / 8388608.0, 1.0 / 1024.0, 1.0 / 128.0];
/// f32, f16 and bf16.
const KINDS: std::ops::Range<usize> = 0..TYPES.len();

impl Numbers {
    fn new(kind: usize, values: impl IntoIterator<Item = f64>) -> Self {
        let values = values.into_iter();
        match kind {
            0 => Numbers::F32(values.map(|x| x as f32).collect()),
            1 => Numbers::F16(values.map(f16::from_f64).collect()),
            _ => Numbers::Bf16(values.map(bf16::from_f64).collect()),
        }
    }

    fn zeros(kind: usize, n: usize) -> Self {
        Numbers::new(kind, vec![0.0; n])
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Numbers::F32(x) => Floats::F32(x),
            Numbers::F16(x) => Floats::F16(x),
            Numbers::Bf16(x) => Floats::Bf16(x),
        }
    }

    fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Numbers::F32(x) => FloatsMut::F32(x),
            Numbers::F16(x) => FloatsMut::F16(x),
            Numbers::Bf16(x) => FloatsMut::Bf16(x),
        }
    }

    fn wide(&self) -> Vec<f64> {
        match self {
            Numbers::F32(x) => x.iter().map(|&x| x.into()).collect(),
            Numbers::F16(x) => x.iter().map(|&x| x.into()).collect(),
            Numbers::Bf16(x) => x.iter().map(|&x| x.into()).collect(),
        }
    }
}

fn sets() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::available().into_iter()
}

fn uniform(rng: &mut StdRng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A weight with its values in f64, and the sums of the magnitudes that each is made of.
struct Weight {
    rows: usize,
    columns: usize,
    packing: Option<(u32, usize)>,
    packed: Vec<u32>,
    scales: Numbers,
    biases: Numbers,
    values: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Weight {
    fn dense(rng: &mut StdRng, rows: usize, columns: usize, kind: usize) -> Self {
        let dense = Numbers::new(kind, uniform(rng, rows * columns));
        let values = dense.wide();
        let magnitudes = values.iter().map(|x| x.abs()).collect();
        let biases = Numbers::zeros(kind, 0);
        Weight { rows, columns, packing: None, packed: Vec::new(), scales: dense, biases, values, magnitudes }
    }

    fn affine(rng: &mut StdRng, rows: usize, columns: usize, kind: usize, bits: u32, group: usize) -> Self {
        let q: Vec<u32> = (0..rows * columns).map(|_| rng.random_range(0..1u32 << bits)).collect();
        let n = rows * columns / group;
        // Some groups are all zeros, some tiny.
        let size = |rng: &mut StdRng| *[1.0, 1.0, 1.0, 0.0, 1e-6].choose(rng).unwrap() / f64::from(1 << bits);
        let scales = Numbers::new(kind, (0..n).map(|_| size(rng) * rng.random_range(-1.0..1.0)).collect::<Vec<_>>());
        let biases = Numbers::new(kind, uniform(rng, n));
        Weight::from_parts(rows, columns, bits, group, &q, scales, biases)
    }

    fn from_parts(
        rows: usize,
        columns: usize,
        bits: u32,
        group: usize,
        q: &[u32],
        scales: Numbers,
        biases: Numbers,
    ) -> Self {
        let mut packed = Vec::new();
        for row in q.chunks(columns) {
            // One long little-endian number for each row.
            let mut words = vec![0u32; columns * bits as usize / 32];
            for (k, &q) in row.iter().enumerate() {
                for bit in 0..bits as usize {
                    let at = k * bits as usize + bit;
                    words[at / 32] |= (q >> bit & 1) << (at % 32);
                }
            }
            packed.extend(words);
        }
        let (s, b) = (scales.wide(), biases.wide());
        let values = q.iter().enumerate().map(|(i, &q)| s[i / group] * f64::from(q) + b[i / group]).collect();
        let magnitudes =
            q.iter().enumerate().map(|(i, &q)| s[i / group].abs() * f64::from(q) + b[i / group].abs()).collect();
        Weight { rows, columns, packing: Some((bits, group)), packed, scales, biases, values, magnitudes }
    }

    fn matrix(&self) -> Matrix<'_> {
        let values = match self.packing {
            None => Values::Dense(self.scales.floats()),
            Some((bits, group_size)) => Values::Affine(Affine {
                packed: &self.packed,
                scales: self.scales.floats(),
                biases: self.biases.floats(),
                group_size,
                bits,
            }),
        };
        Matrix { rows: self.rows, columns: self.columns, values }
    }
}

const PHASES: [Phase; 2] = [Phase::Prefill, Phase::Decode];
