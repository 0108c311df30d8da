//! What is done to each number or each row: addition, gating, RMS normalisation, rotation.

use std::ops::Range;

use half::f16;

use crate::backend::cpu::attention::Heads;
use crate::backend::cpu::isa::{Op, Simd, exp};
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Element, Floats, FloatsMut, Shared, load_all, same_type, store_all, typed};
use crate::backend::{Activation, Residual};

/// Numbers that one task is worth starting for.
const TASK: usize = 1 << 14;

/// Call `rows` with parts of `0..n`, on all threads when there is work enough; a row has `width` numbers.
fn share_rows(n: usize, width: usize, rows: impl Fn(Range<usize>) + Sync) {
    let size = threads::share(n).max(TASK / width.max(1)).max(1);
    threads::for_each(n.div_ceil(size), |i| rows(i * size..((i + 1) * size).min(n)));
}

/// `activation(a) · b`. Both activations are `a / (1 + e^-u)`: silu with u = a, and since (1 + tanh(t)) / 2 = 1 / (1 + e^-2t),
/// GELU's approximation with u = √(8/π) · (a + 0.044715 a³).
#[inline(always)]
pub(super) fn gated<S: Simd>(s: S, activation: Activation, a: S::F, b: S::F) -> S::F {
    let minus_u = match activation {
        Activation::Silu => s.sub(s.splat(0.0), a),
        Activation::GeluTanh => {
            let minus_root = -(8.0 / std::f64::consts::PI).sqrt();
            let cubic = s.splat((0.044715 * minus_root) as f32);
            s.mul(s.fma(s.mul(cubic, a), a, s.splat(minus_root as f32)), a)
        }
    };
    s.mul(s.div(a, s.add(s.splat(1.0), exp(s, minus_u))), b)
}

/// `y = a + multiplier · b` place by place, rounded once; all of one type and length.
pub(super) struct Add<'a> {
    pub a: Floats<'a>,
    pub b: Floats<'a>,
    pub residual: Residual,
    pub y: FloatsMut<'a>,
}

impl Op for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Add { a, b, residual, y } = self;
        let saturates = residual.saturates && matches!(y, FloatsMut::F16(_));
        let (multiplier, most) = (residual.multiplier, if saturates { f16::MAX.to_f32() } else { f32::INFINITY });
        typed!(FloatsMut, y, y => {
            let (a, b) = (same_type(y, a), same_type(y, b));
            let (n, y) = (y.len(), Shared(y.as_mut_ptr()));
            share_rows(n, 1, |part| {
                let (a, b) = (&a[part.clone()], &b[part.clone()]);
                s.run(AddPart { a, b, multiplier, most, y, first: part.start });
            });
        });
    }
}

struct AddPart<'a, E> {
    a: &'a [E],
    b: &'a [E],
    multiplier: f32,
    /// The largest sum.
    most: f32,
    y: Shared<E>,
    first: usize,
}

impl<E: Element> Op for AddPart<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let AddPart { a, b, multiplier, most, y, first } = self;
        assert_eq!(a.len(), b.len());
        let whole = a.len() / S::LANES * S::LANES;
        // NaN stays NaN: of these, `max` and `min` give the second.
        let bounded = |x| s.max(s.splat(-most), s.min(s.splat(most), x));
        // SAFETY: `i + LANES` stays within a and b, and this task alone writes y from `first` on as far as a reaches.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let (a, b) = (E::load(s, a.as_ptr().add(i)), E::load(s, b.as_ptr().add(i)));
                E::store(s, y.at(first + i), bounded(s.fma(b, s.splat(multiplier), a)));
            }
            for i in whole..a.len() {
                let sum = a[i].to_f32() + b[i].to_f32() * multiplier;
                y.at(first + i).write(E::from_f32(sum.clamp(-most, most)));
            }
        }
    }
}

/// `y = x / sqrt(mean(x²) + eps) · weight` for each row of `weight.len()` numbers; rounded once.
pub(super) struct RmsNorm<'a> {
    pub x: Floats<'a>,
    /// Numbers of x from one row to the next.
    pub stride: usize,
    pub weight: Floats<'a>,
    pub eps: f32,
    pub y: FloatsMut<'a>,
}

impl Op for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let RmsNorm { x, stride, weight, eps, y } = self;
        let weight: Vec<f32> = typed!(Floats, weight, w => w.iter().map(|w| w.to_f32()).collect());
        let width = weight.len();
        typed!(Floats, x, x => typed!(FloatsMut, y, y => {
            let (n, y) = (y.len() / width, Shared(y.as_mut_ptr()));
            share_rows(n, width, |rows| {
                for row in rows {
                    let x = &x[row * stride..row * stride + width];
                    s.run(RmsRow { x, weight: &weight, eps, y, first: row * width });
                }
            });
        }));
    }
}

struct RmsRow<'a, X, Y> {
    x: &'a [X],
    weight: &'a [f32],
    eps: f32,
    y: Shared<Y>,
    first: usize,
}

impl<X: Element, Y: Element> Op for RmsRow<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let RmsRow { x, weight, eps, y, first } = self;
        assert_eq!(x.len(), weight.len());
        let whole = x.len() / S::LANES * S::LANES;
        let mut squares = s.splat(0.0);
        // SAFETY: `i + LANES` stays within x and the weight, and this task alone writes this row of y.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let x = X::load(s, x.as_ptr().add(i));
                squares = s.fma(x, x, squares);
            }
            let rest: f32 = x[whole..].iter().map(|x| x.to_f32() * x.to_f32()).sum();
            let factor = 1.0 / ((s.sum(squares) + rest) / x.len() as f32 + eps).sqrt();
            for i in (0..whole).step_by(S::LANES) {
                let scaled = s.mul(X::load(s, x.as_ptr().add(i)), s.splat(factor));
                Y::store(s, y.at(first + i), s.mul(scaled, s.load(weight.as_ptr().add(i))));
            }
            for i in whole..x.len() {
                y.at(first + i).write(Y::from_f32(x[i].to_f32() * factor * weight[i]));
            }
        }
    }
}

/// Cosines and sines of rotations, a row for each token.
#[derive(Default)]
pub struct Turns {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Numbers of a row.
    half: usize,
}

impl Turns {
    /// Of tokens at `positions`, for components that turn by `frequencies` radians a position. Rotated vectors are multiplied
    /// with `factor`.
    pub fn new(frequencies: &[f64], factor: f32, positions: &[usize]) -> Self {
        let half = frequencies.len();
        let mut turns = Turns { cos: vec![0.0; half * positions.len()], sin: vec![0.0; half * positions.len()], half };
        let (cos, sin) = (Shared(turns.cos.as_mut_ptr()), Shared(turns.sin.as_mut_ptr()));
        share_rows(positions.len(), 16 * half, |tokens| {
            for token in tokens {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (s, c) = (frequency * positions[token] as f64).sin_cos();
                    // SAFETY: this task alone writes this row.
                    unsafe {
                        cos.at(token * half + i).write((c * f64::from(factor)) as f32);
                        sin.at(token * half + i).write((s * f64::from(factor)) as f32);
                    }
                }
            }
        });
        turns
    }

    /// Those of more tokens, after these; of as many components, if there are tokens.
    pub(super) fn append(&mut self, mut more: Turns) {
        assert!(self.cos.is_empty() || self.half == more.half);
        self.cos.append(&mut more.cos);
        self.sin.append(&mut more.sin);
        self.half = more.half;
    }

    /// Components of a vector that they turn.
    pub(super) fn width(&self) -> usize {
        2 * self.half
    }
}

/// See [`super::InstructionSet::rope`].
pub(super) struct Rotate<'a> {
    pub x: Heads<'a>,
    pub norm: Option<(Floats<'a>, f32)>,
    pub turns: Option<(&'a Turns, usize)>,
    pub y: FloatsMut<'a>,
    pub strides: [usize; 2],
}

impl Op for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Rotate { x, norm, turns, y, strides } = self;
        let [heads, length, width] = x.shape;
        let norm = norm.map(|(weight, eps)| {
            let weight: Vec<f32> = typed!(Floats, weight, w => w.iter().map(|w| w.to_f32()).collect());
            (weight, eps)
        });
        typed!(FloatsMut, y, y => {
            let values = same_type(y, x.values);
            let y = Shared(y.as_mut_ptr());
            share_rows(heads * length, width, |rows| {
                let mut normed = vec![0.0; width];
                for row in rows {
                    // Token by token, as the heads lie in x.
                    let (token, head) = (row / heads, row % heads);
                    let from = x.row(head, token);
                    let (cos, sin) = match turns {
                        Some((Turns { cos, sin, half }, first)) => {
                            let row = (first + token) * half..(first + token + 1) * half;
                            (&cos[row.clone()], &sin[row])
                        }
                        None => (&[][..], &[][..]),
                    };
                    s.run(RotateRow {
                        x: &values[from..from + width],
                        norm: norm.as_ref().map(|(weight, eps)| (weight.as_slice(), *eps)),
                        normed: &mut normed,
                        cos,
                        sin,
                        y,
                        first: head * strides[0] + token * strides[1],
                    });
                }
            });
        });
    }
}

/// Normalise and rotate a row, or only write it where there are no angles.
struct RotateRow<'a, E> {
    x: &'a [E],
    norm: Option<(&'a [f32], f32)>,
    /// As many numbers.
    normed: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    y: Shared<E>,
    first: usize,
}

impl<E: Element> Op for RotateRow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let RotateRow { x, norm, normed, cos, sin, y, first } = self;
        match norm {
            Some((weight, eps)) => {
                assert_eq!(x.len(), normed.len());
                RmsRow { x, weight, eps, y: Shared(normed.as_mut_ptr()), first: 0 }.with(s);
            }
            None => load_all(s, x, normed),
        }
        if cos.is_empty() {
            // SAFETY: this task alone writes this row of y.
            return unsafe { store_all(s, normed, Shared(y.at(first))) };
        }
        let half = cos.len();
        let (turning, rest) = normed.split_at(2 * half);
        let (low, high) = turning.split_at(half);
        assert_eq!(sin.len(), half);
        // SAFETY: this task alone writes this row of y.
        unsafe { store_all(s, rest, Shared(y.at(first + 2 * half))) };
        let whole = half / S::LANES * S::LANES;
        // SAFETY: `i + LANES` stays within all four, and this task alone writes this row of y.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let (a, b) = (s.load(low.as_ptr().add(i)), s.load(high.as_ptr().add(i)));
                let (cos, sin) = (s.load(cos.as_ptr().add(i)), s.load(sin.as_ptr().add(i)));
                E::store(s, y.at(first + i), s.sub(s.mul(a, cos), s.mul(b, sin)));
                E::store(s, y.at(first + half + i), s.fma(b, cos, s.mul(a, sin)));
            }
            for i in whole..half {
                let (a, b) = (low[i], high[i]);
                y.at(first + i).write(E::from_f32(a * cos[i] - b * sin[i]));
                y.at(first + half + i).write(E::from_f32(b * cos[i] + a * sin[i]));
            }
        }
    }
}
