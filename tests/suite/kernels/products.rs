//! Products of activations and weights, in every form.

use mlx_lm::backend::Epilogue;
use mlx_lm::backend::cpu::Layer;
use rand::SeedableRng;

use super::*;

pub(super) fn linear(
    kernels: InstructionSet,
    x: Floats,
    w: &Weight,
    bias: Option<&Numbers>,
    phase: Phase,
    y: FloatsMut,
) {
    let layer = Layer { weight: w.matrix(), bias: bias.map(Numbers::floats) };
    kernels.linear(x, &[layer], Epilogue::Concat, phase, y);
}

/// `x · Wᵀ + bias` for all sets of kernels within what rounding explains; and each row is, bit for bit, what it is alone.
fn check_matmul(w: &Weight, x: &Numbers, x_kind: usize, bias: Option<&Numbers>, y_kind: usize, what: &str) {
    let (wide, tokens) = (x.wide(), x.wide().len() / w.columns);
    for (kernels, phase) in sets().flat_map(|kernels| PHASES.map(|phase| (kernels, phase))) {
        let mut y = Numbers::zeros(y_kind, tokens * w.rows);
        linear(kernels, x.floats(), w, bias, phase, y.floats_mut());
        for token in 0..tokens {
            let mut alone = Numbers::zeros(y_kind, w.rows);
            let x = x.floats().part(token * w.columns..(token + 1) * w.columns);
            linear(kernels, x, w, bias, phase, alone.floats_mut());
            let together = &y.wide()[token * w.rows..(token + 1) * w.rows];
            let same = alone.wide().iter().zip(together).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{} {phase:?}: {what}: token {token} depends on its company", kernels.name());
        }
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
            let rounding = if kernels == InstructionSet::Amx && x_kind == 2 { rounded / 256.0 } else { 0.0 };
            let bound = sum * input + rounding + expected.abs() * TYPES[y_kind] + 1e-30;
            assert!(
                (found - expected).abs() <= bound,
                "{} {phase:?}: {what}: token {token}, row {row}: {found}, expected {expected} ± {bound}",
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
        let tokens = *[1, 1, 2, 4, 5, 6, 12, 13, 31, 50, 61].choose(&mut rng).unwrap();
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
    for tokens in [1, 7, 51] {
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
    for (kernels, phase) in sets().flat_map(|kernels| PHASES.map(|phase| (kernels, phase))) {
        let whole = [(4, 1, 2), (4, 6, 2), (4, 50, 2), (8, 1, 1), (8, 6, 1), (8, 50, 1)];
        for (bits, tokens, kind) in whole.into_iter().chain([(5, 6, 2), (4, 1, 0), (4, 6, 0)]) {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let w = Weight::affine(&mut rng, 20, 192, kind, bits, 64);
                let mut values = uniform(&mut rng, tokens * 192);
                let token = tokens - 1;
                values[token * 192 + rng.random_range(0..192)] = bad;
                let x = Numbers::new(kind, values);
                let mut y = Numbers::zeros(kind, tokens * 20);
                linear(kernels, x.floats(), &w, None, phase, y.floats_mut());
                for (i, y) in y.wide().into_iter().enumerate() {
                    let what = format!("{}: {bits} bits, {tokens} tokens, {bad}: {i}: {y}", kernels.name());
                    assert_eq!(y.is_finite(), i / 20 != token, "{what}");
                }

                let x = Numbers::new(kind, uniform(&mut rng, tokens * 192));
                let mut scales = w.scales.wide();
                scales[7 * 3 + 1] = bad;
                let w = Weight { scales: Numbers::new(kind, scales), ..w };
                linear(kernels, x.floats(), &w, None, phase, y.floats_mut());
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
        for (tokens, phase) in [(1, Phase::Decode), (9, Phase::Decode), (60, Phase::Prefill)] {
            let w = Weight::affine(&mut rng, 1000, 512, 2, 4, 64);
            let x = Numbers::new(2, uniform(&mut rng, tokens * 512));
            let product = || {
                let mut y = Numbers::zeros(0, tokens * 1000);
                linear(kernels, x.floats(), &w, None, phase, y.floats_mut());
                y.wide()
            };
            let first = product();
            (0..20).for_each(|_| assert_eq!(product(), first, "{}", kernels.name()));
        }
    }
}
