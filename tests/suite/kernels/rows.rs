//! What is done to each row by itself, and layers that are computed together.

use mlx_lm::backend::cpu::Layer;
use mlx_lm::backend::{Activation, Epilogue, Residual};
use rand::SeedableRng;

use super::*;

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
                let check = |what: &str, y: &Numbers, size: &dyn Fn(usize) -> f64, expected: &dyn Fn(usize) -> f64| {
                    for (i, found) in y.wide().into_iter().enumerate() {
                        let least = if kind == 1 { 6e-8 } else { 1e-35 };
                        let bound = expected(i).abs() * (TYPES[kind] + 2e-6) + size(i) * 2e-7 + least;
                        let difference = (found - expected(i)).abs();
                        assert!(difference <= bound, "{}: {what}: {found}, expected {}", kernels.name(), expected(i));
                    }
                };
                let mut y = Numbers::zeros(kind, rows * width);
                kernels.rms_norm(x.floats(), weight.floats(), 1e-5, y.floats_mut());
                check("rms_norm", &y, &|_| 0.0, &|i| {
                    let row = &wide[i / width * width..][..width];
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    wide[i] / (mean + f64::from(1e-5f32)).sqrt() * wide_weight[i % width]
                });
                // Parts of the rows, as they lie.
                let part = width / 2 + 1;
                let mut parts = Numbers::zeros(kind, rows * part);
                let part_of_weight = weight.floats().part(0..part);
                kernels.rms_norm_of_rows(x.floats(), width, part_of_weight, 1e-5, parts.floats_mut());
                check("rms_norm_of_rows", &parts, &|_| 0.0, &|i| {
                    let row = &wide[i / part * width..][..part];
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / part as f64;
                    row[i % part] / (mean + f64::from(1e-5f32)).sqrt() * wide_weight[i % part]
                });
                for (multiplier, saturates) in [(1.0, false), (0.22, false), (-3.0, true)] {
                    kernels.add(x.floats(), z.floats(), Residual { multiplier, saturates }, y.floats_mut());
                    let bound = if saturates && kind == 1 { 65504.0 } else { f64::INFINITY };
                    // Sums cancel: their rounding is that of what is added.
                    let size = |i: usize| wide[i].abs() + (f64::from(multiplier) * wide_z[i]).abs();
                    check("add", &y, &size, &|i| (wide[i] + f64::from(multiplier) * wide_z[i]).clamp(-bound, bound));
                }
            }
        }
    }
}

#[test]
fn layers_of_one_input_are_what_each_is_alone() {
    let mut rng = StdRng::seed_from_u64(9);
    for (tokens, phase) in [(1, Phase::Decode), (3, Phase::Decode), (9, Phase::Decode), (9, Phase::Prefill)] {
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
                    let biases = (w.rows == 17).then_some(&biases);
                    products::linear(kernels, x.floats(), w, biases, phase, y.floats_mut());
                    y.wide()
                };
                let layer = |w| {
                    let w: &Weight = w;
                    Layer { weight: w.matrix(), bias: (w.rows == 17).then(|| biases.floats()) }
                };
                let each: Vec<Vec<f64>> = weights.iter().map(alone).collect();
                let mut y = Numbers::zeros(0, tokens * 107);
                let layers: Vec<Layer> = weights.iter().map(layer).collect();
                kernels.linear(x.floats(), &layers, Epilogue::Concat, phase, y.floats_mut());
                for (token, row) in y.wide().chunks(107).enumerate() {
                    let expected = each.iter().flat_map(|y| {
                        let rows = y.len() / tokens;
                        &y[token * rows..(token + 1) * rows]
                    });
                    for (found, expected) in row.iter().zip(expected) {
                        // Next to layers of another kind, one may be multiplied in floats; in AMX weights are rounded.
                        let bound = if kernels == InstructionSet::Amx { 0.1 } else { 2e-3 };
                        assert!((found - expected).abs() < bound, "{}: {found}, {expected}", kernels.name());
                    }
                }
                let mut y = Numbers::zeros(0, tokens * 17);
                kernels.linear(x.floats(), &layers[1..3], Epilogue::Gated(Activation::Silu), phase, y.floats_mut());
                for (i, found) in y.wide().into_iter().enumerate() {
                    let (gate, up) = (each[1][i], each[2][i]);
                    let expected = gate / (1.0 + (-gate).exp()) * up;
                    let bound = if kernels == InstructionSet::Amx { 0.1 } else { 2e-3 } * (1.0 + gate.abs() + up.abs());
                    assert!((found - expected).abs() < bound, "{}: {found}, {expected}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn gates_of_extreme_numbers_are_those_of_f64() {
    let gates = [-1e30f32, -200.0, -88.0, -1.0, 0.0, 1e-3, 88.0, 200.0, 1e30, f32::NAN, f32::INFINITY];
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
    let ones = [1f32; 11];
    // One column: a row's output is its weight.
    let dense = |values| Layer {
        weight: Matrix { rows: 11, columns: 1, values: Values::Dense(Floats::F32(values)) },
        bias: None,
    };
    for kernels in sets() {
        let layers = [dense(&gates), dense(&ones)];
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut y = [0.0; 11];
            let epilogue = Epilogue::Gated(activation);
            kernels.linear(Floats::F32(&[1.0]), &layers, epilogue, Phase::Decode, FloatsMut::F32(&mut y));
            for (x, y) in gates.into_iter().zip(y) {
                let x = f64::from(x);
                let expected = if activation == Activation::Silu { silu(x) } else { gelu(x) };
                let near = (f64::from(y) - expected).abs() <= expected.abs() * 1e-6 + 1e-30;
                let right = near || expected.is_nan() && y.is_nan() || f64::from(y) == expected;
                assert!(right, "{}: {activation:?} of {x}: {y}, expected {expected}", kernels.name());
            }
        }
    }
}
