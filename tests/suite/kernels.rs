//! The CPU kernels against f64 arithmetic, for every instruction set of this machine.
//!
//! Mistakes that were planted and made a test here fail: a neighbour's scale in panels; the
//! causal limit off by one; a block of scores not scaled to the maximum so far; the sign of a turn; `eps` counted twice;
//! numbers that are not finite rounded like others.

use half::{bf16, f16};
use mlx_lm::backend::cpu::{Affine, Floats, FloatsMut, Heads, Kernels, Layer, Mask, Matrix, Values};
use mlx_lm::backend::{Epilogue, Filter};
use mlx_rs::random::categorical;
use mlx_rs::{Array, Device};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

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

fn sets() -> impl Iterator<Item = Kernels> {
    Kernels::available().into_iter()
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

fn linear(kernels: Kernels, x: &Numbers, w: &Weight, bias: Option<&Numbers>, y: &mut Numbers) {
    let layer = Layer { weight: w.matrix(), bias: bias.map(Numbers::floats) };
    kernels.linear(x.floats(), &[layer], Epilogue::Concat, y.floats_mut());
}

/// `x · Wᵀ + bias` for all sets of kernels within what rounding explains.
fn check_matmul(w: &Weight, x: &Numbers, x_kind: usize, bias: Option<&Numbers>, y_kind: usize, what: &str) {
    let (wide, tokens) = (x.wide(), x.wide().len() / w.columns);
    for kernels in sets() {
        let mut y = Numbers::zeros(y_kind, tokens * w.rows);
        linear(kernels, x, w, bias, &mut y);
        for (i, found) in y.wide().into_iter().enumerate() {
            let (token, row) = (i / w.rows, i % w.rows);
            let x = &wide[token * w.columns..(token + 1) * w.columns];
            let (values, magnitudes) = (&w.values[row * w.columns..], &w.magnitudes[row * w.columns..]);
            let products: f64 = x.iter().zip(values).map(|(x, w)| x * w).sum();
            let expected = products + bias.map_or(0.0, |bias| bias.wide()[row]);
            // Activations of 16 bits may be rounded to a share of the largest of their group.
            let group = w.packing.map_or(w.columns, |(_, group)| group);
            let largest = |k: usize| x[k / group * group..][..group].iter().fold(0.0f64, |a, x| a.max(x.abs()));
            let input = if x_kind == 0 { 1e-6 } else { 1.0 / 65024.0 + 1e-6 };
            let sum: f64 = (0..w.columns).map(|k| magnitudes[k] * largest(k)).sum();
            // AMX rounds weights to bf16.
            let rounded: f64 = x.iter().zip(values).map(|(x, w)| (x * w).abs()).sum();
            let rounding = if kernels == Kernels::Amx && x_kind == 2 { rounded / 256.0 } else { 0.0 };
            let bound = sum * input + rounding + expected.abs() * TYPES[y_kind] + 1e-30;
            assert!(
                (found - expected).abs() <= bound,
                "{}: {what}: token {token}, row {row}: {found}, expected {expected} ± {bound}",
                kernels.name()
            );
        }
    }
}

#[test]
fn products_of_every_shape_and_packing_are_those_of_f64() {
    let mut rng = StdRng::seed_from_u64(1);
    for case in 0..300 {
        let (x_kind, y_kind, w_kind) = (rng.random_range(0..3), rng.random_range(0..3), rng.random_range(0..3));
        let tokens = *[1, 1, 2, 4, 5, 6, 12, 13, 31].choose(&mut rng).unwrap();
        let rows = *[1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 48, 70].choose(&mut rng).unwrap();
        let (w, what) = if case % 4 == 0 {
            let columns = rng.random_range(1..300);
            (Weight::dense(&mut rng, rows, columns, w_kind), format!("dense {rows} x {columns}"))
        } else {
            let (bits, group) = (*[2, 3, 4, 5, 6, 8].choose(&mut rng).unwrap(), [32, 64, 128][case % 3]);
            let columns = group * *[1, 2, 3, 5, 8, 16, 17, 33].choose(&mut rng).unwrap();
            let w = Weight::affine(&mut rng, rows, columns, w_kind, bits, group);
            (w, format!("{bits} bits, groups of {group}, {rows} x {columns}"))
        };
        let x = Numbers::new(x_kind, uniform(&mut rng, tokens * w.columns));
        let bias = (case % 5 == 0).then(|| Numbers::new(w_kind, uniform(&mut rng, rows)));
        check_matmul(
            &w,
            &x,
            x_kind,
            bias.as_ref(),
            y_kind,
            &format!("{what}, {tokens} tokens, types {x_kind}{w_kind}{y_kind}"),
        );
    }
}

#[test]
fn products_of_extreme_numbers_are_those_of_f64() {
    let mut rng = StdRng::seed_from_u64(2);
    for tokens in [1, 7] {
        for (size, kind) in
            [(1e30, 0), (1e30, 2), (1e-20, 0), (1e-20, 2), (6e-8, 1), (1e-40, 0), (0.0, 2), (60000.0, 1)]
        {
            for bits in [4, 8, 3] {
                let w = Weight::affine(&mut rng, 17, 320, 0, bits, 64);
                let x = Numbers::new(kind, uniform(&mut rng, tokens * 320).into_iter().map(|x| x * size));
                check_matmul(&w, &x, kind, None, 0, &format!("numbers of {size}, {bits} bits, {tokens} tokens"));
            }
        }
    }
}

#[test]
fn what_is_not_a_number_reaches_the_products_it_is_part_of_and_no_other() {
    let mut rng = StdRng::seed_from_u64(3);
    for kernels in sets() {
        for (bits, tokens, kind) in [(4, 1, 2), (4, 6, 2), (8, 1, 1), (8, 6, 1), (5, 6, 2), (4, 1, 0), (4, 6, 0)] {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let w = Weight::affine(&mut rng, 20, 192, kind, bits, 64);
                let mut values = uniform(&mut rng, tokens * 192);
                let token = tokens - 1;
                values[token * 192 + rng.random_range(0..192)] = bad;
                let x = Numbers::new(kind, values);
                let mut y = Numbers::zeros(kind, tokens * 20);
                linear(kernels, &x, &w, None, &mut y);
                for (i, y) in y.wide().into_iter().enumerate() {
                    let what = format!("{}: {bits} bits, {tokens} tokens, {bad}: {i}: {y}", kernels.name());
                    assert_eq!(y.is_finite(), i / 20 != token, "{what}");
                }

                let x = Numbers::new(kind, uniform(&mut rng, tokens * 192));
                let mut scales = w.scales.wide();
                scales[7 * 3 + 1] = bad;
                let w = Weight { scales: Numbers::new(kind, scales), ..w };
                linear(kernels, &x, &w, None, &mut y);
                for (i, y) in y.wide().into_iter().enumerate() {
                    assert_eq!(y.is_finite(), i % 20 != 7, "{}: scale {bad}: {i}: {y}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn results_are_the_same_again() {
    let mut rng = StdRng::seed_from_u64(4);
    for kernels in sets() {
        for tokens in [1, 40] {
            let w = Weight::affine(&mut rng, 1000, 512, 2, 4, 64);
            let x = Numbers::new(2, uniform(&mut rng, tokens * 512));
            let product = || {
                let mut y = Numbers::zeros(0, tokens * 1000);
                linear(kernels, &x, &w, None, &mut y);
                y.wide()
            };
            let first = product();
            (0..20).for_each(|_| assert_eq!(product(), first, "{}", kernels.name()));
        }
    }
}

#[test]
fn an_embedding_is_the_rows_of_its_weight() {
    let mut rng = StdRng::seed_from_u64(5);
    for (bits, kind) in [(2, 0), (3, 1), (4, 2), (5, 0), (6, 1), (8, 2)] {
        for w in [Weight::affine(&mut rng, 9, 96, kind, bits, 32), Weight::dense(&mut rng, 9, 50, kind)] {
            let ids = [8, 0, 3, 3];
            for kernels in sets() {
                let mut y = Numbers::zeros(kind, ids.len() * w.columns);
                kernels.embed(&ids, &w.matrix(), y.floats_mut());
                for (i, found) in y.wide().into_iter().enumerate() {
                    let at = ids[i / w.columns] as usize * w.columns + i % w.columns;
                    let bound = w.magnitudes[at] * 1e-6 + w.values[at].abs() * TYPES[kind];
                    assert!((found - w.values[at]).abs() <= bound, "{}: {found}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn norms_and_sums_are_those_of_f64() {
    let mut rng = StdRng::seed_from_u64(6);
    for width in [1, 7, 8, 16, 33, 64, 2048] {
        for kind in KINDS {
            let rows = 3;
            let size = *[1e-3, 1.0, 50.0].choose(&mut rng).unwrap();
            let x = Numbers::new(kind, uniform(&mut rng, rows * width).into_iter().map(|x| x * size));
            let z = Numbers::new(kind, uniform(&mut rng, rows * width).into_iter().map(|x| x * size));
            let weight = Numbers::new(kind, uniform(&mut rng, width));
            let (wide, wide_z, wide_weight) = (x.wide(), z.wide(), weight.wide());
            for kernels in sets() {
                let check = |what: &str, y: &Numbers, expected: &dyn Fn(usize) -> f64| {
                    for (i, found) in y.wide().into_iter().enumerate() {
                        let bound = expected(i).abs() * (TYPES[kind] + 2e-6) + if kind == 1 { 6e-8 } else { 1e-35 };
                        let difference = (found - expected(i)).abs();
                        assert!(difference <= bound, "{}: {what}: {found}, expected {}", kernels.name(), expected(i));
                    }
                };
                let mut y = Numbers::zeros(kind, rows * width);
                kernels.rms_norm(x.floats(), weight.floats(), 1e-5, y.floats_mut());
                check("rms_norm", &y, &|i| {
                    let row = &wide[i / width * width..][..width];
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    wide[i] / (mean + f64::from(1e-5f32)).sqrt() * wide_weight[i % width]
                });
                kernels.add(x.floats(), z.floats(), y.floats_mut());
                check("add", &y, &|i| wide[i] + wide_z[i]);
            }
        }
    }
}

#[test]
fn layers_of_one_input_are_what_each_is_alone() {
    let mut rng = StdRng::seed_from_u64(9);
    for tokens in [1, 3, 9] {
        for kind in KINDS {
            let sizes = [(40, 4, 64), (17, 8, 64), (17, 4, 32), (33, 3, 64)];
            let weights: Vec<Weight> = sizes
                .iter()
                .map(|&(rows, bits, group)| Weight::affine(&mut rng, rows, 256, kind, bits, group))
                .collect();
            let biases = Numbers::new(kind, uniform(&mut rng, 17));
            let x = Numbers::new(kind, uniform(&mut rng, tokens * 256));
            for kernels in sets() {
                let alone = |w: &Weight| {
                    let mut y = Numbers::zeros(0, tokens * w.rows);
                    linear(kernels, &x, w, (w.rows == 17).then_some(&biases), &mut y);
                    y.wide()
                };
                let layer = |w| {
                    let w: &Weight = w;
                    Layer { weight: w.matrix(), bias: (w.rows == 17).then(|| biases.floats()) }
                };
                let each: Vec<Vec<f64>> = weights.iter().map(alone).collect();
                let mut y = Numbers::zeros(0, tokens * 107);
                let layers: Vec<Layer> = weights.iter().map(layer).collect();
                kernels.linear(x.floats(), &layers, Epilogue::Concat, y.floats_mut());
                for (token, row) in y.wide().chunks(107).enumerate() {
                    let expected = each.iter().flat_map(|y| {
                        let rows = y.len() / tokens;
                        &y[token * rows..(token + 1) * rows]
                    });
                    for (found, expected) in row.iter().zip(expected) {
                        // Beside layers of another kind, one may be multiplied in floats; in AMX weights are rounded.
                        let bound = if kernels == Kernels::Amx { 0.1 } else { 2e-3 };
                        assert!((found - expected).abs() < bound, "{}: {found}, {expected}", kernels.name());
                    }
                }
                let mut y = Numbers::zeros(0, tokens * 17);
                kernels.linear(x.floats(), &layers[1..3], Epilogue::SwiGlu, y.floats_mut());
                for (i, found) in y.wide().into_iter().enumerate() {
                    let (gate, up) = (each[1][i], each[2][i]);
                    let expected = gate / (1.0 + (-gate).exp()) * up;
                    let bound = if kernels == Kernels::Amx { 0.1 } else { 2e-3 } * (1.0 + gate.abs() + up.abs());
                    assert!((found - expected).abs() < bound, "{}: {found}, {expected}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn swiglu_of_extreme_numbers_is_that_of_f64() {
    let gates = [-1e30f32, -200.0, -88.0, -1.0, 0.0, 1e-3, 88.0, 200.0, 1e30, f32::NAN, f32::INFINITY];
    let ones = [1f32; 11];
    // One column: a row's output is its weight.
    let dense = |values| Layer {
        weight: Matrix { rows: 11, columns: 1, values: Values::Dense(Floats::F32(values)) },
        bias: None,
    };
    for kernels in sets() {
        let mut y = [0.0; 11];
        kernels.linear(Floats::F32(&[1.0]), &[dense(&gates), dense(&ones)], Epilogue::SwiGlu, FloatsMut::F32(&mut y));
        for (x, y) in gates.into_iter().zip(y) {
            let x = f64::from(x);
            let expected = x / (1.0 + (-x).exp());
            let near = (f64::from(y) - expected).abs() <= expected.abs() * 1e-6 + 1e-30;
            let right = near || expected.is_nan() && y.is_nan() || f64::from(y) == expected;
            assert!(right, "{}: {x}: {y}, expected {expected}", kernels.name());
        }
    }
}

/// Heads `[B, H, T, D]` that lie in a larger buffer, as a cache's do.
fn in_buffer(numbers: &Numbers, shape: [usize; 4], capacity: usize) -> Heads<'_> {
    let [_, h, _, d] = shape;
    Heads { values: numbers.floats(), shape, strides: [h * capacity * d, capacity * d, d] }
}

#[test]
fn rope_turns_as_f64_does() {
    let mut rng = StdRng::seed_from_u64(7);
    for d in [2, 6, 16, 64, 80, 128] {
        for kind in KINDS {
            let (shape, capacity, offset) = ([2, 3, 5, d], 7, 1000);
            let x = Numbers::new(kind, uniform(&mut rng, 2 * 3 * capacity * d));
            let frequencies: Vec<f64> = (0..d / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / d as f64)).collect();
            let factor = 1.25;
            let wide = x.wide();
            for kernels in sets() {
                let mut y = Numbers::zeros(kind, 2 * 3 * 5 * d);
                kernels.rope(in_buffer(&x, shape, capacity), None, &frequencies, offset, factor, y.floats_mut());
                for (i, found) in y.wide().into_iter().enumerate() {
                    let (row, c) = (i / d, i % d);
                    let from = row / 5 * capacity * d + row % 5 * d;
                    let (low, high) = (wide[from + c % (d / 2)], wide[from + c % (d / 2) + d / 2]);
                    let (sin, cos) = (frequencies[c % (d / 2)] * (offset + row % 5) as f64).sin_cos();
                    let turned = if c < d / 2 { low * cos - high * sin } else { high * cos + low * sin };
                    let expected = turned * f64::from(factor);
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
    let shape = [1, 2, 3, 32];
    let x = Numbers::new(0, uniform(&mut rng, 2 * 3 * 32));
    let weight = Numbers::new(0, uniform(&mut rng, 32));
    let frequencies: Vec<f64> = (0..16).map(|i| 0.5f64.powi(i)).collect();
    for kernels in sets() {
        let mut normed = Numbers::zeros(0, 2 * 3 * 32);
        kernels.rms_norm(x.floats(), weight.floats(), 1e-3, normed.floats_mut());
        let (mut expected, mut found) = (normed.clone(), normed.clone());
        kernels.rope(in_buffer(&normed, shape, 3), None, &frequencies, 5, 1.0, expected.floats_mut());
        let norm = Some((weight.floats(), 1e-3));
        kernels.rope(in_buffer(&x, shape, 3), norm, &frequencies, 5, 1.0, found.floats_mut());
        assert_eq!(found.wide(), expected.wide(), "{}", kernels.name());
        kernels.rope(in_buffer(&x, shape, 3), norm, &[], 5, 1.0, found.floats_mut());
        assert_eq!(found.wide(), normed.wide(), "{}", kernels.name());
    }
}

#[test]
fn attention_is_that_of_f64() {
    let mut rng = StdRng::seed_from_u64(8);
    for case in 0..60 {
        let kind = rng.random_range(0..3);
        let d = *[4, 16, 32, 64, 80, 128].choose(&mut rng).unwrap();
        let (b, kv, group) =
            (rng.random_range(1..3), rng.random_range(1..4), *[1, 2, 3, 4, 7, 8].choose(&mut rng).unwrap());
        let l = *[1, 1, 2, 5, 33, 70].choose(&mut rng).unwrap();
        let t = l + *[0, 0, 1, 63, 64, 65, 200].choose(&mut rng).unwrap();
        let h = kv * group;
        let capacity = t + 3;
        // Large scores make the softmax sharp, so that its running maximum matters.
        let size = *[1.0, 8.0].choose(&mut rng).unwrap();
        let q = Numbers::new(kind, uniform(&mut rng, b * h * l * d).into_iter().map(|x| x * size));
        let k = Numbers::new(kind, uniform(&mut rng, b * kv * capacity * d).into_iter().map(|x| x * size));
        let v = Numbers::new(kind, uniform(&mut rng, b * kv * capacity * d));
        let table: Vec<bool> = (0..l * t).map(|i| i % t == i / t || rng.random_range(0..3) == 0).collect();
        let mask = [Mask::All, Mask::Causal, Mask::Table(&table)][case % 3];
        let sees = |i: usize, j: usize| match mask {
            Mask::All => true,
            Mask::Causal => j <= i + t - l,
            Mask::Table(table) => table[i * t + j],
        };
        let (wq, wk, wv) = (q.wide(), k.wide(), v.wide());
        let scale = 1.0 / (d as f32).sqrt();
        let mut expected = vec![0.0; b * l * h * d];
        let mut sizes = expected.clone();
        for (row, (expected, sizes)) in expected.chunks_mut(d).zip(sizes.chunks_mut(d)).enumerate() {
            let (bi, i, hi) = (row / h / l, row / h % l, row % h);
            let at = |j: usize| ((bi * kv + hi / group) * capacity + j) * d;
            let query = &wq[((bi * h + hi) * l + i) * d..][..d];
            let score = |j: usize| {
                let dot: f64 = query.iter().zip(&wk[at(j)..]).map(|(q, k)| q * k).sum();
                if sees(i, j) { dot * f64::from(scale) } else { f64::NEG_INFINITY }
            };
            let scores: Vec<f64> = (0..t).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (j, score) in scores.iter().enumerate() {
                let weight = (score - max).exp() / sum;
                expected.iter_mut().zip(&wv[at(j)..]).for_each(|(y, v)| *y += weight * v);
                sizes.iter_mut().zip(&wv[at(j)..]).for_each(|(size, v)| *size += weight * v.abs());
            }
        }
        for kernels in sets() {
            let mut y = Numbers::zeros(kind, b * l * h * d);
            let heads = |numbers, n, tokens, capacity| in_buffer(numbers, [b, n, tokens, d], capacity);
            let (q, k, v) = (heads(&q, h, l, l), heads(&k, kv, t, capacity), heads(&v, kv, t, capacity));
            kernels.attention(q, k, v, scale, mask, y.floats_mut());
            // AMX rounds weights to bf16.
            let rounding = if kernels == Kernels::Amx && kind == 2 { 1.0 / 256.0 } else { 0.0 };
            for (found, (expected, size)) in y.wide().into_iter().zip(expected.iter().zip(&sizes)) {
                let bound = expected.abs() * TYPES[kind] + size * rounding + 3e-5;
                assert!(
                    (found - expected).abs() <= bound,
                    "{}: case {case}, [{b}, {h}/{kv}, {l}, {t}, {d}]: {found}, expected {expected}",
                    kernels.name()
                );
            }
        }
    }
}

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
        let key = [rng.random::<u32>(), rng.random::<u32>()];
        let tempered: Vec<f32> = filtered(&logits, &filter).iter().map(|x| x / temp).collect();
        let row = Array::from_slice(&tempered, &[1, n as i32]);
        let expected = categorical(row, None, None, &Array::from_slice(&key, &[2])).unwrap().item_cast::<u32>();
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
                assert_eq!(kernels.sample(Floats::F32(logits), filter, [1, 2]), None, "{}: {logits:?}", kernels.name());
                assert_eq!(kernels.argmax(Floats::F32(logits)), None, "{}: {logits:?}", kernels.name());
            }
            // A banned token is not chosen, and is no reason not to choose.
            for banned in [0, 50, 99] {
                let logits = place(banned, f32::NEG_INFINITY);
                let found = kernels.sample(Floats::F32(&logits), filter, [1, 2]);
                assert!(found.is_some_and(|token| token != banned as u32), "{}: {found:?}", kernels.name());
                assert_eq!(kernels.argmax(Floats::F32(&logits)), Some(u32::from(banned == 0)));
            }
        }
    }
}
