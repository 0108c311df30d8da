//! Linear layers on NVIDIA GPUs against f64 arithmetic; `src/backend/cuda/tests.rs` has the rest. Where there is no such GPU,
//! the tests say so and pass.
//!
//! `make test-cuda` runs both where there is one.

use half::{bf16, f16};
use mlx_lm::backend::cuda::{Fused, Gpu};
use mlx_lm::backend::{Activation, Epilogue, Linear, Packing, Weight};
use mlx_rs::{Array, Device, Dtype};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn gpu() -> Option<&'static Gpu> {
    let gpu = Gpu::get();
    match gpu {
        Some(_) => Device::set_default(&Device::gpu()),
        None => eprintln!("there is no GPU that the kernels run on, so nothing was tested"),
    }
    gpu
}

/// Numbers as an array of a 16-bit type, and as they are then.
fn numbers(values: Vec<f64>, shape: &[i32], dtype: Dtype) -> (Array, Vec<f64>) {
    match dtype {
        Dtype::Bfloat16 => {
            let rounded: Vec<bf16> = values.into_iter().map(bf16::from_f64).collect();
            (Array::from_slice(&rounded, shape), rounded.iter().map(|x| x.to_f64()).collect())
        }
        _ => {
            let rounded: Vec<f16> = values.into_iter().map(f16::from_f64).collect();
            (Array::from_slice(&rounded, shape), rounded.iter().map(|x| x.to_f64()).collect())
        }
    }
}

fn uniform(rng: &mut StdRng, n: i32, size: f64) -> Vec<f64> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// A layer, and in f64 its values, with the magnitudes that each is made of.
struct Layer {
    rows: i32,
    columns: i32,
    weight: Weight,
    bias: Option<(Array, Vec<f64>)>,
    values: Vec<(f64, f64)>,
}

impl Layer {
    /// Dense without a `packing`.
    fn new(rng: &mut StdRng, rows: i32, columns: i32, packing: Option<Packing>, dtype: Dtype, has_bias: bool) -> Self {
        let (weight, values) = match packing {
            Some(packing) => Layer::packed(rng, rows, columns, packing, dtype),
            None => {
                let (weight, values) = numbers(uniform(rng, rows * columns, 0.5), &[rows, columns], dtype);
                (Weight::Dense(weight), values.into_iter().map(|value| (value, value.abs())).collect())
            }
        };
        let bias = has_bias.then(|| numbers(uniform(rng, rows, 1.0), &[rows], dtype));
        Layer { rows, columns, weight, bias, values }
    }

    fn packed(rng: &mut StdRng, rows: i32, columns: i32, packing: Packing, dtype: Dtype) -> (Weight, Vec<(f64, f64)>) {
        let Packing { group_size, bits } = packing;
        let words: Vec<u32> = (0..rows * columns * bits / 32).map(|_| rng.random()).collect();
        let shape = [rows, columns / group_size];
        let groups = rows * columns / group_size;
        let size = 1.0 / f64::from(1 << bits);
        let (scales, scale) = numbers(uniform(rng, groups, size), &shape, dtype);
        let (biases, bias) = numbers(uniform(rng, groups, 0.5), &shape, dtype);
        let per_word = 32 / bits;
        let value = |i: i32| {
            let q = words[(i / per_word) as usize] >> (bits * (i % per_word)) & ((1 << bits) - 1);
            let group = (i / group_size) as usize;
            let product = scale[group] * f64::from(q);
            (product + bias[group], product.abs() + bias[group].abs())
        };
        let values = (0..rows * columns).map(value).collect();
        let packed = Array::from_slice(&words, &[rows, columns * bits / 32]);
        (Weight::Affine { packed, scales, biases, packing }, values)
    }

    fn operand(&self) -> Linear<'_> {
        Linear { weight: &self.weight, bias: self.bias.as_ref().map(|(bias, _)| bias) }
    }

    /// Output `row` for `x`, and how far from it a sum in f32 of vectors of 16 bits may be: each group's numbers are whole
    /// multiples of its largest over 32639.
    fn output(&self, x: &[f64], row: i32) -> (f64, f64) {
        let (mut sum, mut allowed) = self.bias.as_ref().map_or((0.0, 0.0), |(_, bias)| (bias[row as usize], 0.0));
        let from = (row * self.columns) as usize;
        let values = &self.values[from..from + self.columns as usize];
        let size = self.weight.packing().map_or(64, |packing| packing.group_size as usize);
        for (values, x) in values.chunks(size).zip(x.chunks(size)) {
            let step = x.iter().fold(0.0, |most: f64, x| most.max(x.abs())) / 32639.0;
            for ((value, magnitude), x) in values.iter().zip(x) {
                sum += value * x;
                allowed += value.abs() * step * 0.501 + magnitude * x.abs() * 2e-6;
            }
        }
        (sum, allowed)
    }
}

/// What `layers` give for `x`, and how far from it a result may be before it is rounded.
fn expected(x: &[f64], layers: &[Layer], epilogue: Epilogue) -> Vec<(f64, f64)> {
    match epilogue {
        Epilogue::Concat => layers.iter().flat_map(|layer| (0..layer.rows).map(|row| layer.output(x, row))).collect(),
        Epilogue::Gated(_) => {
            let value = |row| {
                let [(gate, gates), (up, ups)] = [0, 1].map(|i: usize| layers[i].output(x, row));
                let silu = gate / (1.0 + (-gate).exp());
                // The slope of silu is at most 1.1; the exponential function has 1e-6.
                let product = silu * up;
                (product, 1.1 * gates * (up.abs() + ups) + silu.abs() * ups + product.abs() * (1.0 + gate.abs()) * 1e-6)
            };
            (0..layers[0].rows).map(value).collect()
        }
    }
}

fn compute(gpu: &Gpu, x: &Array, layers: &[Layer], epilogue: Epilogue) -> Option<Vec<f64>> {
    compute_fused(gpu, x, layers, epilogue, Fused::default())
}

fn compute_fused(gpu: &Gpu, x: &Array, layers: &[Layer], epilogue: Epilogue, fused: Fused) -> Option<Vec<f64>> {
    let operands: Vec<Linear> = layers.iter().map(Layer::operand).collect();
    let y = gpu.linear_fused(x, &operands, epilogue, fused)?.unwrap();
    let dtype = y.dtype();
    y.eval().unwrap();
    Some(match dtype {
        Dtype::Bfloat16 => y.as_slice::<bf16>().iter().map(|y| y.to_f64()).collect(),
        _ => y.as_slice::<f16>().iter().map(|y| y.to_f64()).collect(),
    })
}

/// Layers of these rows with one to 17 vectors: each number as near as its type allows, and each vector's bit by bit the
/// same alone and among others.
fn check(gpu: &Gpu, seed: u64, (rows, columns): (&[i32], i32), packing: Option<Packing>, dtype: Dtype, has_bias: bool) {
    let rng = &mut StdRng::seed_from_u64(seed);
    let layers: Vec<Layer> =
        rows.iter().map(|&rows| Layer::new(rng, rows, columns, packing, dtype, has_bias)).collect();
    let what = format!("{rows:?} x {columns}, {packing:?}, {dtype:?}, bias {has_bias}");
    let gated = rows.len() == 2 && rows[0] == rows[1];
    for epilogue in [Epilogue::Concat, Epilogue::Gated(Activation::Silu)] {
        if epilogue.activation().is_some() && !gated {
            continue;
        }
        let alone: Vec<(Vec<f64>, Vec<f64>)> = (0..17)
            .map(|i| {
                // Sizes differ by vector, and some numbers stand out.
                let mut x = uniform(rng, columns, 2f64.powi(i % 8 - 6));
                x[(i * 3) as usize] *= 100.0;
                let (array, x) = numbers(x, &[1, columns], dtype);
                let y = compute(gpu, &array, &layers, epilogue).unwrap_or_else(|| panic!("declined: {what}"));
                (x, y)
            })
            .collect();
        for (x, y) in &alone {
            let half_step = if dtype == Dtype::Bfloat16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
            for (row, (&found, (wanted, allowed))) in y.iter().zip(expected(x, &layers, epilogue)).enumerate() {
                // The smallest numbers of f16 have larger steps.
                let allowed =
                    allowed + (wanted.abs() + allowed) * half_step + if half_step < 1e-3 { 6e-8 } else { 0.0 };
                assert!((found - wanted).abs() <= allowed, "{what}, {epilogue:?}, row {row}: {found}, not {wanted}");
            }
        }
        for n in [2, 5, 17] {
            let x: Vec<f64> = alone[..n].iter().flat_map(|(x, _)| x.clone()).collect();
            let (x, _) = numbers(x, &[1, n as i32, columns], dtype);
            let together = compute(gpu, &x, &layers, epilogue).unwrap();
            let apart: Vec<u64> = alone[..n].iter().flat_map(|(_, y)| y.iter().map(|y| y.to_bits())).collect();
            let together: Vec<u64> = together.iter().map(|y| y.to_bits()).collect();
            assert!(together == apart, "{what}, {epilogue:?}: {n} vectors together differ from each alone");
        }
    }
}

#[test]
fn linear_layers_are_exact_and_do_not_depend_on_company() {
    let Some(gpu) = gpu() else { return };
    let mut seed = 0;
    for bits in [4, 8] {
        for group_size in [32, 64, 128] {
            seed += 1;
            let dtype = if seed % 2 == 0 { Dtype::Bfloat16 } else { Dtype::Float16 };
            check(gpu, seed, (&[100, 100], 896), Some(Packing { group_size, bits }), dtype, seed % 3 == 0);
        }
    }
    let [bf16, f16] = [Dtype::Bfloat16, Dtype::Float16];
    let packing = Some(Packing::DEFAULT);
    check(gpu, 100, (&[2432], 896), packing, bf16, true);
    check(gpu, 101, (&[64, 24, 7], 4096), packing, bf16, true);
    check(gpu, 102, (&[40], 14336), packing, bf16, false);
    check(gpu, 103, (&[33, 33], 4096), packing, f16, false);
    check(gpu, 104, (&[17], 64), packing, f16, true);
    check(gpu, 105, (&[50, 50], 96), Some(Packing { group_size: 32, bits: 8 }), bf16, true);
    check(gpu, 106, (&[40], 11008), Some(Packing { group_size: 128, bits: 8 }), f16, false);
    check(gpu, 107, (&[64, 24, 7], 4096), None, bf16, true);
    check(gpu, 108, (&[33, 33], 4096), None, f16, false);
    check(gpu, 109, (&[40], 14336), None, bf16, false);
    check(gpu, 110, (&[17], 192), None, f16, true);
}

/// The input normalised, and something added to the output: of three vectors, and of the last alone.
#[test]
fn norm_and_residual_are_those_of_separate_operations() {
    let Some(gpu) = gpu() else { return };
    let (bf16s, f16s, packed) = (Dtype::Bfloat16, Dtype::Float16, Some(Packing::DEFAULT));
    for (seed, columns, dtype, packing) in [
        (1, 896, bf16s, packed),
        (2, 4096, f16s, packed),
        (3, 14336, bf16s, packed),
        (4, 832, f16s, None),
        (5, 14336, bf16s, None),
    ] {
        let rng = &mut StdRng::seed_from_u64(seed);
        let layers = [Layer::new(rng, 50, columns, packing, dtype, true)];
        let (weight, weights) = numbers(uniform(rng, columns, 2.0), &[columns], dtype);
        let (_, xs) = numbers(uniform(rng, 3 * columns, 3.0), &[3, columns], dtype);
        let (_, residuals) = numbers(uniform(rng, 150, 2.0), &[3, 50], dtype);
        let run = |first: usize| {
            let n = 3 - first as i32;
            let (x, _) = numbers(xs[first * columns as usize..].to_vec(), &[n, columns], dtype);
            let (residual, _) = numbers(residuals[first * 50..].to_vec(), &[n, 50], dtype);
            let fused = Fused { norm: Some((&weight, 1e-5)), residual: Some(&residual) };
            compute_fused(gpu, &x, &layers, Epilogue::Concat, fused).unwrap()
        };
        let y = run(0);
        assert_eq!(y[100..], run(2));
        let half_step = if dtype == Dtype::Bfloat16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
        for (vector, x) in xs.chunks(columns as usize).enumerate() {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / f64::from(columns);
            let factor = 1.0 / (mean + 1e-5).sqrt();
            // Numbers are rounded to their type once: f16's when they are normalised, bf16's before.
            let normed: Vec<f64> = (x.iter().zip(&weights))
                .map(|(x, w)| match dtype {
                    Dtype::Bfloat16 => bf16::from_f64(x * w).to_f64() * factor,
                    _ => f16::from_f64(x * w * factor).to_f64(),
                })
                .collect();
            for (row, (wanted, allowed)) in expected(&normed, &layers, Epilogue::Concat).into_iter().enumerate() {
                let (found, wanted) = (y[vector * 50 + row], wanted + residuals[vector * 50 + row]);
                let allowed = allowed + (wanted.abs() + allowed) * half_step;
                assert!((found - wanted).abs() <= allowed, "{columns}, row {row}: {found}, not {wanted}");
            }
        }
    }
}

#[test]
fn numbers_that_are_none_stay_so() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(7);
    let layers = [Layer::new(rng, 32, 128, Some(Packing::DEFAULT), Dtype::Bfloat16, false)];
    for odd in [f64::NAN, f64::INFINITY] {
        let mut x = uniform(rng, 256, 1.0);
        x[200] = odd;
        let (x, _) = numbers(x, &[2, 128], Dtype::Bfloat16);
        let y = compute(gpu, &x, &layers, Epilogue::Concat).unwrap();
        assert!(y[..32].iter().all(|y| y.is_finite()) && y[32..].iter().all(|y| !y.is_finite()));
    }
    let (zeros, _) = numbers(vec![0.0; 128], &[128], Dtype::Bfloat16);
    assert!(compute(gpu, &zeros, &layers, Epilogue::Concat).unwrap().iter().all(|&y| y == 0.0));
}

#[test]
fn what_is_not_done_is_declined() {
    let Some(gpu) = gpu() else { return };
    let rng = &mut StdRng::seed_from_u64(8);
    let layer = |rng: &mut StdRng, bits| {
        let packing = (bits < 16).then_some(Packing { group_size: 64, bits });
        Layer::new(rng, 16, 128, packing, Dtype::Bfloat16, false)
    };
    let x = |n: i32, dtype| Array::from_slice(&vec![1f32; (n * 128) as usize], &[n, 128]).as_dtype(dtype).unwrap();
    let four = [layer(rng, 4)];
    assert!(compute(gpu, &x(8, Dtype::Bfloat16), &four, Epilogue::Concat).is_some());
    assert!(compute(gpu, &x(33, Dtype::Bfloat16), &four, Epilogue::Concat).is_some());
    assert!(compute(gpu, &x(1, Dtype::Float32), &four, Epilogue::Concat).is_none());
    assert!(compute(gpu, &x(1, Dtype::Float16), &four, Epilogue::Concat).is_none());
    assert!(compute(gpu, &x(1, Dtype::Bfloat16), &[layer(rng, 2)], Epilogue::Concat).is_none());
    assert!(compute(gpu, &x(1, Dtype::Float16), &[layer(rng, 16)], Epilogue::Concat).is_none());
    for others in [8, 16] {
        let mixed = [layer(rng, 4), layer(rng, others)];
        assert!(compute(gpu, &x(1, Dtype::Bfloat16), &mixed, Epilogue::Concat).is_none());
    }
}
