//! What is done to each number or each row: addition, SwiGLU, RMS normalisation, rotation.

use std::ops::Range;

use super::attention::Heads;
use super::pool;
use super::simd::{Op, Simd, exp};
use super::types::{Element, Floats, FloatsMut, Shared, same_type, typed};

/// Numbers that one task is worth starting for.
const TASK: usize = 1 << 14;

/// Call `rows` with parts of `0..n`, on all threads when there is work enough; a row has `width` numbers.
fn share_rows(n: usize, width: usize, rows: impl Fn(Range<usize>) + Sync) {
    let size = pool::share(n).max(TASK / width.max(1)).max(1);
    pool::for_each(n.div_ceil(size), |i| rows(i * size..((i + 1) * size).min(n)));
}

/// A function of two numbers of one place, in f32.
pub(super) trait Binary: Copy + Send + Sync {
    fn vectors<S: Simd>(s: S, a: S::F, b: S::F) -> S::F;
}

/// `a + b`.
#[derive(Clone, Copy)]
pub(super) struct Add;

impl Binary for Add {
    #[inline(always)]
    fn vectors<S: Simd>(s: S, a: S::F, b: S::F) -> S::F {
        s.add(a, b)
    }
}

/// `silu(a) · b`, with `silu(a) = a / (1 + e^-a)`.
#[derive(Clone, Copy)]
pub(super) struct SwiGlu;

impl Binary for SwiGlu {
    #[inline(always)]
    fn vectors<S: Simd>(s: S, a: S::F, b: S::F) -> S::F {
        let one = s.splat(1.0);
        s.mul(s.div(a, s.add(one, exp(s, s.sub(s.splat(0.0), a)))), b)
    }
}

/// `y = f(a, b)` place by place; all of one type and length.
pub(super) struct Zip<'a, F> {
    pub f: F,
    pub a: Floats<'a>,
    pub b: Floats<'a>,
    pub y: FloatsMut<'a>,
}

impl<F: Binary> Op for Zip<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Zip { f, a, b, y } = self;
        typed!(FloatsMut, y, y => {
            let (a, b) = (same_type(y, a), same_type(y, b));
            let (n, y) = (y.len(), Shared(y.as_mut_ptr()));
            share_rows(n, 1, |part| s.run(ZipPart { _f: f, a: &a[part.clone()], b: &b[part.clone()], y, first: part.start }));
        });
    }
}

struct ZipPart<'a, F, E> {
    _f: F,
    a: &'a [E],
    b: &'a [E],
    y: Shared<E>,
    first: usize,
}

impl<F: Binary, E: Element> Op for ZipPart<'_, F, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let ZipPart { a, b, y, first, .. } = self;
        assert_eq!(a.len(), b.len());
        let whole = a.len() / S::LANES * S::LANES;
        // SAFETY: `i + LANES` stays within a and b, and this task alone writes y from `first` on as far as a reaches.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let result = F::vectors(s, E::load(s, a.as_ptr().add(i)), E::load(s, b.as_ptr().add(i)));
                E::store(s, y.at(first + i), result);
            }
            if whole < a.len() {
                let (mut pa, mut pb) = ([E::from_f32(0.0); 16], [E::from_f32(0.0); 16]);
                pa[..a.len() - whole].copy_from_slice(&a[whole..]);
                pb[..a.len() - whole].copy_from_slice(&b[whole..]);
                let mut result = pa;
                E::store(s, result.as_mut_ptr(), F::vectors(s, E::load(s, pa.as_ptr()), E::load(s, pb.as_ptr())));
                std::ptr::copy_nonoverlapping(result.as_ptr(), y.at(first + whole), a.len() - whole);
            }
        }
    }
}

/// `y = x / sqrt(mean(x²) + eps) · weight` for each row of `weight.len()` numbers; rounded once.
pub(super) struct RmsNorm<'a> {
    pub x: Floats<'a>,
    pub weight: Floats<'a>,
    pub eps: f32,
    pub y: FloatsMut<'a>,
}

impl Op for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let RmsNorm { x, weight, eps, y } = self;
        let weight: Vec<f32> = typed!(Floats, weight, w => w.iter().map(|w| w.to_f32()).collect());
        let width = weight.len();
        typed!(Floats, x, x => typed!(FloatsMut, y, y => {
            let y = Shared(y.as_mut_ptr());
            share_rows(x.len() / width, width, |rows| {
                for row in rows {
                    s.run(RmsRow { x: &x[row * width..(row + 1) * width], weight: &weight, eps, y, first: row * width });
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

/// See [`super::Kernels::rope`].
pub(super) struct Rotate<'a> {
    pub x: Heads<'a>,
    pub frequencies: &'a [f64],
    pub offset: usize,
    pub factor: f32,
    pub y: FloatsMut<'a>,
}

impl Op for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Rotate { x, frequencies, offset, factor, y } = self;
        let [batch, heads, length, width] = x.shape;
        let half = width / 2;
        let turns: Vec<(Vec<f32>, Vec<f32>)> = (0..length)
            .map(|t| {
                let angles = frequencies.iter().map(|f| f * (offset + t) as f64);
                angles.map(|a| ((a.cos() * f64::from(factor)) as f32, (a.sin() * f64::from(factor)) as f32)).unzip()
            })
            .collect();
        typed!(FloatsMut, y, y => {
            let values = same_type(y, x.values);
            let y = Shared(y.as_mut_ptr());
            share_rows(batch * heads * length, width, |rows| {
                for row in rows {
                    let (b, h, t) = (row / length / heads, row / length % heads, row % length);
                    let from = x.row(b, h, t);
                    let (cos, sin) = &turns[t];
                    let (low, high) = values[from..from + width].split_at(half);
                    s.run(RotateRow { low, high, cos, sin, y, first: row * width });
                }
            });
        });
    }
}

struct RotateRow<'a, E> {
    low: &'a [E],
    high: &'a [E],
    cos: &'a [f32],
    sin: &'a [f32],
    y: Shared<E>,
    first: usize,
}

impl<E: Element> Op for RotateRow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let RotateRow { low, high, cos, sin, y, first } = self;
        let half = low.len();
        assert!(high.len() == half && cos.len() == half && sin.len() == half);
        let whole = half / S::LANES * S::LANES;
        // SAFETY: `i + LANES` stays within all four, and this task alone writes this row of y.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let (a, b) = (E::load(s, low.as_ptr().add(i)), E::load(s, high.as_ptr().add(i)));
                let (cos, sin) = (s.load(cos.as_ptr().add(i)), s.load(sin.as_ptr().add(i)));
                E::store(s, y.at(first + i), s.sub(s.mul(a, cos), s.mul(b, sin)));
                E::store(s, y.at(first + half + i), s.fma(b, cos, s.mul(a, sin)));
            }
            for i in whole..half {
                let (a, b) = (low[i].to_f32(), high[i].to_f32());
                y.at(first + i).write(E::from_f32(a * cos[i] - b * sin[i]));
                y.at(first + half + i).write(E::from_f32(b * cos[i] + a * sin[i]));
            }
        }
    }
}
