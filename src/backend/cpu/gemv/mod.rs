//! `y = W · x + bias` for a few vectors: decoding, which reads all of W for each.
//!
//! Activations of 16 bits become whole numbers of 16 bits with a scale for each group (see [`crate::backend::cpu::fixed`]), which
//! meet weights of 2, 4 and 8 bits in [`fixed_point`], or [`bytes`] where there is one vector. All else is computed in [`floats`].

use std::ops::Range;

use crate::backend::cpu::gemm::epilogue::{Finish, FusedLayers};
use crate::backend::cpu::isa::{Op, Simd};
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Affine, Floats, FloatsMut, Matrix, Shared, Values, typed};

mod bytes;
mod fixed_point;
mod floats;
mod numbers;
mod transposing;

/// The most rows of one task.
const BLOCK: usize = 1024;

/// `x` `[m, columns]`, `y` `[m, width]`; m small. The sums of a vector are made in the same order whatever m is.
pub(super) struct Gemv<'a> {
    pub x: Floats<'a>,
    pub fused: FusedLayers<'a>,
    pub y: FloatsMut<'a>,
}

impl Op for Gemv<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Gemv { x, fused, y } = self;
        let columns = fused.layers[0].weight.columns;
        let tokens = x.len() / columns;
        let mut prepared: Vec<(Layout, Prepared)> = Vec::new();
        let mut prepared_for = Vec::new();
        for layer in fused.layers {
            let layout = Layout::of(s, &layer.weight, &x);
            let known = prepared.iter().position(|(known, _)| *known == layout);
            prepared_for.push(known.unwrap_or(prepared.len()));
            if known.is_none() {
                prepared.push((layout, Prepared::new(s, x, columns, layout)));
            }
        }
        let width = fused.width();
        // Ever smaller ones, so that all threads end at about the same time.
        let part = |left: usize| (left / (2 * threads::threads())).next_multiple_of(2 * S::LANES);
        let tasks = fused.tasks(|left| part(left).clamp(2 * S::LANES, BLOCK));
        typed!(FloatsMut, y, y => {
            let y = Shared(y.as_mut_ptr());
            threads::for_each(tasks.len(), |i| {
                let task = &tasks[i];
                let n = task.rows.len();
                // Threads take tasks in turn.
                let next = tasks.get(i + threads::threads()).filter(|next| next.layer == task.layer);
                let next = next.map_or(task.rows.start, |next| next.rows.start);
                // For one layer or two, `[tokens, n]`.
                let mut sums = [Scratch::<f32>::new(tokens * n), Scratch::new(0)];
                if fused.epilogue.activation().is_some() {
                    sums[1] = Scratch::new(tokens * n);
                }
                for (i, (layer, sums)) in fused.layers_of(task).iter().zip(&mut sums).enumerate() {
                    let (_, x) = &prepared[prepared_for[task.layer + i]];
                    s.run(Products { w: &layer.weight, x, rows: task.rows.clone(), next, sums });
                    layer.add_bias(task.rows.clone(), n, sums);
                }
                for token in 0..tokens {
                    let [sums, other] = &sums;
                    let part = token * n..(token + 1) * n;
                    let gated = fused.epilogue.activation().map(|activation| (activation, &other[part.clone()]));
                    // SAFETY: a row of y has `width` numbers, and this task alone writes these.
                    let y = Shared(unsafe { y.at(token * width + task.at) });
                    s.run(Finish { sums: &sums[part], gated, y });
                }
            });
        });
    }
}

/// How x is laid out for a weight.
#[derive(Clone, Copy, PartialEq)]
struct Layout {
    /// Values in one word of the weight; 1 when they are turned into f32 first.
    fields: usize,
    /// Values that share a scale; 0 for none.
    group: usize,
    form: Form,
}

/// What x becomes.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Floats,
    FixedPoint,
    Bytes,
}

impl Layout {
    fn of<S: Simd>(_: S, w: &Matrix, x: &Floats) -> Self {
        match w.values {
            Values::Affine(Affine { bits: bits @ (2 | 4 | 8), group_size: group, .. }) => {
                let fields = 32 / bits as usize;
                let form = match x.bits() {
                    16 if bits <= S::BYTES && x.len() == w.columns && bytes::takes(group, fields) => Form::Bytes,
                    16 if S::WHOLE_NUMBERS => Form::FixedPoint,
                    _ => Form::Floats,
                };
                Layout { fields, group, form }
            }
            _ => Layout { fields: 1, group: 0, form: Form::Floats },
        }
    }
}

/// x as its products read it.
enum Prepared {
    Floats(Vec<floats::Vector>),
    FixedPoint(fixed_point::Vectors),
    Bytes(bytes::Vector),
}

impl Prepared {
    #[inline(always)]
    fn new<S: Simd>(s: S, x: Floats, columns: usize, layout: Layout) -> Self {
        let Layout { fields, group, form } = layout;
        match form {
            Form::Floats => Prepared::Floats(floats::vectors(s, x, columns, group, fields)),
            Form::FixedPoint => Prepared::FixedPoint(fixed_point::Vectors::new(s, x, columns, group, fields)),
            Form::Bytes => Prepared::Bytes(bytes::Vector::new(s, x, group, fields)),
        }
    }
}

/// The products of some rows with all of x, to `sums` `[x.len(), rows.len()]`.
struct Products<'a> {
    w: &'a Matrix<'a>,
    x: &'a Prepared,
    rows: Range<usize>,
    /// The row with which this thread goes on, probably.
    next: usize,
    sums: &'a mut [f32],
}

impl Op for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Products { w, x, rows, next, sums } = self;
        match x {
            Prepared::FixedPoint(x) => fixed_point::products(s, w, x, rows, next, sums),
            Prepared::Bytes(x) => bytes::products(s, w, x, rows, next, sums),
            Prepared::Floats(x) => floats::products(s, w, x, rows, sums),
        }
    }
}
