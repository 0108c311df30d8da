//! Scaled dot-product attention by online softmax (FlashAttention, arXiv 2205.14135): keys and values are read once, in
//! blocks, for all query heads that share them.

use crate::backend::cpu::isa::{Op, Simd, exp};
use crate::backend::cpu::scratch::{Plain, Scratch};
use crate::backend::cpu::threads;
use crate::backend::cpu::types::{Element, Floats, FloatsMut, Shared, load_all, store_all, typed};
use crate::backend::{Gap, KEY_BLOCK};

/// Keys of one block; their scores stay in the first-level cache.
pub(super) const KEYS: usize = KEY_BLOCK as usize;
/// Queries times heads of one task, about.
const ROWS: usize = 128;

/// `[heads, tokens, D]` in memory: where each row begins; D lie together.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// From the first element to the last.
    pub values: Floats<'a>,
    /// Heads, tokens, D.
    pub shape: [usize; 3],
    /// Numbers from one head and token to the next.
    pub strides: [usize; 2],
}

impl Heads<'_> {
    pub(super) fn row(&self, head: usize, token: usize) -> usize {
        head * self.strides[0] + token * self.strides[1]
    }

    pub(super) fn check(&self) {
        let last = (0..2).map(|i| (self.shape[i] - 1) * self.strides[i]).sum::<usize>() + self.shape[2];
        assert!(self.shape.iter().all(|&n| n > 0) && last <= self.values.len(), "{:?}", self.shape);
    }
}

/// Queries of one sequence with all its keys and values. The queries are the last tokens; each sees those before it, and
/// itself.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// `[H, L, D]`.
    pub queries: Heads<'a>,
    /// `[H / group, T, D]`, without those of the gap.
    pub keys: Heads<'a>,
    /// Of the same shape.
    pub values: Heads<'a>,
    /// How many tokens a query sees, itself included; `None` for all.
    pub window: Option<usize>,
    /// How many first tokens it sees besides.
    pub sinks: usize,
    /// Tokens that no query sees, and whose keys and values are not there. It ends where a block of keys begins.
    pub gap: Gap,
}

impl Span<'_> {
    /// The first token that a window lets a query at this position see.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// How many tokens there are.
    fn tokens(&self) -> usize {
        self.keys.shape[1] + self.gap.len as usize
    }

    /// The row of the first key of a block before `end`, and how many keys of the block follow one another from there on.
    fn block(&self, from: usize, end: usize) -> (usize, usize) {
        let [first, end] = [from, end.min(from + KEYS)].map(|position| self.gap.row(position as i32) as usize);
        (first, end - first)
    }
}

/// How blocks of queries, keys and values are multiplied.
pub(super) trait TileProduct: Copy + Send + Sync {
    /// Rows that are multiplied together.
    const ROWS: usize;
    /// The width of heads is padded to a multiple of this.
    const WIDTH: usize;
    /// What is multiplied.
    type Number: Element + Plain + Default;
    type S: Simd;
    /// The state of the machine in which it multiplies, as long as this is there.
    type Ready;

    fn simd(self) -> Self::S;

    fn ready(self) -> Self::Ready;

    /// `count` rows of keys from `first` on as columns: the `width` rows of a matrix `[width, KEYS]`, in this product's own
    /// order. Columns without a key are zeros.
    fn columns(self, keys: &Rows, count: usize, width: usize, to: &mut [Self::Number]);

    /// `count` rows of values as those of a matrix `[KEYS, width]`, in this product's own order, the others zeros.
    fn rows(self, values: &Rows, count: usize, width: usize, to: &mut [Self::Number]);

    /// Add `a` `[rows, depth]` times `b` `[depth, columns]` to `c` `[rows, columns]`, which counts as zeros when it is the
    /// first. `a` and `c` have [`TileProduct::ROWS`] rows, of which `n` count.
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        self,
        ready: &Self::Ready,
        a: &[Self::Number],
        b: &[Self::Number],
        columns: usize,
        n: usize,
        is_first: bool,
        c: &mut [f32],
    );
}

/// Neighbouring tokens of one head.
pub(super) struct Rows<'a> {
    pub values: Floats<'a>,
    pub first: usize,
    pub stride: usize,
    pub width: usize,
}

impl Rows<'_> {
    /// Row `i`, in the first numbers of `to`.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, i: usize, to: &mut [f32]) {
        let from = self.first + i * self.stride;
        typed!(Floats, self.values, values => load_all(s, &values[from..from + self.width], &mut to[..self.width]));
    }

    /// Begin to bring the next KEYS rows near, which come after these.
    #[inline(always)]
    fn prefetch_next<S: Simd>(&self, s: S) {
        typed!(Floats, self.values, values => {
            for i in KEYS..2 * KEYS {
                let row = values.as_ptr().wrapping_add(self.first + i * self.stride);
                for line in (0..size_of_val(&values[..self.width])).step_by(64) {
                    s.prefetch(row.wrapping_byte_add(line));
                }
            }
        });
    }
}

/// Everything in f32.
#[derive(Clone, Copy)]
struct FloatingPoint<S>(S);

impl<S: Simd> TileProduct for FloatingPoint<S> {
    const ROWS: usize = 4;
    const WIDTH: usize = S::LANES;
    type Number = f32;
    type S = S;
    type Ready = ();

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    fn ready(self) {}

    #[inline(always)]
    fn columns(self, keys: &Rows, count: usize, width: usize, to: &mut [f32]) {
        let s = self.0;
        let mut rows = Scratch::<f32>::zeros(S::LANES * width);
        assert!(to.len() == width * KEYS && width.is_multiple_of(S::LANES));
        for first in (0..KEYS).step_by(S::LANES) {
            for lane in 0..S::LANES {
                let row = &mut rows[lane * width..(lane + 1) * width];
                if first + lane < count {
                    keys.load(s, first + lane, row);
                } else {
                    row.fill(0.0);
                }
            }
            for d in (0..width).step_by(S::LANES) {
                let mut starts = [std::ptr::null(); 16];
                for lane in 0..S::LANES {
                    starts[lane] = rows[lane * width + d..].as_ptr().cast();
                }
                // SAFETY: rows go on for as many words as there are lanes, and `to` has KEYS columns.
                unsafe {
                    for (i, column) in s.load_columns(&starts)[..S::LANES].iter().enumerate() {
                        s.store_words(to.as_mut_ptr().add((d + i) * KEYS + first).cast(), *column);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn rows(self, values: &Rows, count: usize, width: usize, to: &mut [f32]) {
        let (rows, rest) = to.split_at_mut(count * width);
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            row[values.width..].fill(0.0);
            values.load(self.0, i, row);
        }
        rest.fill(0.0);
    }

    #[inline(always)]
    fn multiply(self, _: &(), a: &[f32], b: &[f32], columns: usize, n: usize, is_first: bool, c: &mut [f32]) {
        let depth = b.len() / columns;
        assert!(n <= Self::ROWS && a.len() == Self::ROWS * depth && c.len() == Self::ROWS * columns);
        assert!(b.len() == depth * columns && columns.is_multiple_of(S::LANES));
        let whole = columns / (2 * S::LANES) * 2 * S::LANES;
        // SAFETY: the lengths were checked.
        unsafe {
            if n == Self::ROWS {
                for at in (0..whole).step_by(2 * S::LANES) {
                    add_tile::<S, 4, 2>(self.0, a, &b[at..], columns, depth, is_first, &mut c[at..]);
                }
                if whole < columns {
                    add_tile::<S, 4, 1>(self.0, a, &b[whole..], columns, depth, is_first, &mut c[whole..]);
                }
            } else {
                for row in 0..n {
                    let a = &a[row * depth..];
                    for at in (0..columns).step_by(S::LANES) {
                        add_tile::<S, 1, 1>(
                            self.0,
                            a,
                            &b[at..],
                            columns,
                            depth,
                            is_first,
                            &mut c[row * columns + at..],
                        );
                    }
                }
            }
        }
    }
}

/// Add R rows of `a`, `depth` numbers each, times V vectors of each row of `b` to R rows of `c`; rows of b and c have
/// `columns` numbers.
///
/// # Safety
/// There are as many.
#[inline(always)]
unsafe fn add_tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    a: &[f32],
    b: &[f32],
    columns: usize,
    depth: usize,
    is_first: bool,
    c: &mut [f32],
) {
    unsafe {
        let mut sums = [[s.splat(0.0); V]; R];
        for r in 0..if is_first { 0 } else { R } {
            for v in 0..V {
                sums[r][v] = s.load(c.as_ptr().add(r * columns + v * S::LANES));
            }
        }
        for k in 0..depth {
            let mut row = [s.splat(0.0); V];
            for v in 0..V {
                row[v] = s.load(b.as_ptr().add(k * columns + v * S::LANES));
            }
            for r in 0..R {
                let x = s.splat(*a.get_unchecked(r * depth + k));
                for v in 0..V {
                    sums[r][v] = s.fma(x, row[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                s.store(c.as_mut_ptr().add(r * columns + v * S::LANES), sums[r][v]);
            }
        }
    }
}

/// See [`super::InstructionSet::attention`].
pub(super) struct Attention<'a> {
    pub spans: &'a [Span<'a>],
    pub scale: f32,
    pub softcap: Option<f32>,
    pub y: FloatsMut<'a>,
}

impl Op for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        self.by(FloatingPoint(s));
    }
}

impl Attention<'_> {
    pub fn by<P: TileProduct>(self, product: P) {
        let Attention { spans, scale, softcap, y } = self;
        let mut tasks = Vec::new();
        let mut token = 0;
        for span in spans {
            let ([n_heads, length, _], n_kv_heads) = (span.queries.shape, span.keys.shape[0]);
            let queries = (ROWS / (n_heads / n_kv_heads)).clamp(1, length);
            // The last queries see the most keys: begin with them, so that no thread is left with them at the end.
            for first in (0..length).step_by(queries).rev() {
                let n = queries.min(length - first);
                tasks.extend((0..n_kv_heads).map(|kv_head| (span, kv_head, first, n, token)));
            }
            token += length;
        }
        typed!(FloatsMut, y, y => {
            let y = Shared(y.as_mut_ptr());
            threads::for_each(tasks.len(), |task| {
                let (span, kv_head, first, n, token) = tasks[task];
                let row = span.queries.shape[0] * span.queries.shape[2];
                // SAFETY: y has a row for each token; this task alone writes the rows of these queries and heads.
                let y = Shared(unsafe { y.at(token * row) });
                product.simd().run(Block { product, span, scale, softcap, y, kv_head, first, n });
            });
        });
    }
}

/// Queries `first..first + n` of the heads that share one head of keys and values.
struct Block<'a, P, E> {
    product: P,
    span: &'a Span<'a>,
    scale: f32,
    softcap: Option<f32>,
    y: Shared<E>,
    kv_head: usize,
    first: usize,
    n: usize,
}

/// What is known of a row of scores so far.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl<'a, P: TileProduct, E: Element> Op for Block<'a, P, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, _: S) {
        let Block { product, span, scale, softcap, y, kv_head, first, n } = self;
        let s = product.simd();
        let [n_heads, length, width] = span.queries.shape;
        let (tokens, group) = (span.tokens(), n_heads / span.keys.shape[0]);
        let padded = width.next_multiple_of(P::WIDTH);
        let rows = n * group;
        let rows_of = |heads: &Heads<'a>, head, token| Rows {
            values: heads.values,
            first: heads.row(head, token),
            stride: heads.strides[1],
            width,
        };
        // `[rows, padded]`, whole tiles of rows, whose rest are zeros or nothing.
        let mut queries = Scratch::<P::Number>::zeros(rows.next_multiple_of(P::ROWS) * padded);
        let mut row_of_floats = Scratch::<f32>::new(width);
        for (row, to) in queries.chunks_exact_mut(padded).take(rows).enumerate() {
            let query = rows_of(&span.queries, kv_head * group + row % group, first + row / group);
            query.load(s, 0, &mut row_of_floats);
            // SAFETY: the row has room for the width.
            unsafe { store_all(s, &row_of_floats, Shared(to.as_mut_ptr())) };
        }
        let mut outputs = Scratch::<f32>::new(rows.next_multiple_of(P::ROWS) * padded);
        let mut states = vec![Softmax { max: f32::NEG_INFINITY, sum: 0.0 }; rows];
        let mut scores = Scratch::<f32>::new(P::ROWS * KEYS);
        let mut weights = Scratch::<P::Number>::zeros(P::ROWS * KEYS);
        let mut keys = Scratch::<P::Number>::new(KEYS * padded);
        let mut values = Scratch::<P::Number>::new(KEYS * padded);
        let nothing = exp(s, s.splat(f32::NEG_INFINITY));
        // Capped scores are scaled already.
        let rest_of_scale = if softcap.is_some() { 1.0 } else { scale };
        let position = |row: usize| tokens - length + first + row / group;
        let end = position(rows - 1) + 1;
        let ready = product.ready();
        let mut is_first = true;
        // Blocks begin at multiples of KEYS in the cache, whatever is seen of them, so that the order of sums does not depend
        // on how a prompt is cut.
        for from in (0..end).step_by(KEYS) {
            if from >= span.sinks && from + KEYS <= span.first_seen(position(0)) {
                continue;
            }
            let (key, count) = span.block(from, end);
            if count == 0 {
                continue;
            }
            let (k_rows, v_rows) = (rows_of(&span.keys, kv_head, key), rows_of(&span.values, kv_head, key));
            product.columns(&k_rows, count, padded, &mut keys);
            product.rows(&v_rows, count, padded, &mut values);
            // Memory works while these are multiplied.
            if from + KEYS < end {
                k_rows.prefetch_next(s);
                v_rows.prefetch_next(s);
            }
            for row in (0..rows).step_by(P::ROWS) {
                let n = P::ROWS.min(rows - row);
                let part = row * padded..(row + P::ROWS) * padded;
                product.multiply(&ready, &queries[part.clone()], &keys, KEYS, n, true, &mut scores);
                for r in 0..n {
                    let scores = &mut scores[r * KEYS..(r + 1) * KEYS];
                    if let Some(cap) = softcap {
                        cap_scores(s, scores, scale, cap);
                    }
                    let position = position(row + r);
                    scores[(position + 1).saturating_sub(from).min(count)..].fill(f32::NEG_INFINITY);
                    let hidden = span.sinks.max(from)..span.first_seen(position).min(from + KEYS);
                    if !hidden.is_empty() {
                        scores[hidden.start - from..hidden.end - from].fill(f32::NEG_INFINITY);
                    }
                    let output = &mut outputs[(row + r) * padded..(row + r + 1) * padded];
                    let weights = &mut weights[r * KEYS..(r + 1) * KEYS];
                    soften(s, scores, rest_of_scale, nothing, &mut states[row + r], weights, output);
                }
                product.multiply(&ready, &weights, &values, padded, n, is_first, &mut outputs[part]);
            }
            is_first = false;
        }
        for row in 0..rows {
            let at = ((first + row / group) * n_heads + kv_head * group + row % group) * width;
            let factor = 1.0 / states[row].sum;
            let output = &mut outputs[row * padded..row * padded + width];
            output.iter_mut().for_each(|x| *x *= factor);
            // SAFETY: this task alone writes the rows of these queries and heads, which lie in y `[L, heads, D]`.
            unsafe { store_all(s, output, Shared(y.at(at))) };
        }
    }
}

/// `cap · tanh(scale · x / cap)` of KEYS scores, with `tanh(u) = 1 - 2 / (1 + e^2u)`.
#[inline(always)]
fn cap_scores<S: Simd>(s: S, scores: &mut [f32], scale: f32, cap: f32) {
    assert_eq!(scores.len(), KEYS);
    // SAFETY: KEYS is a multiple of LANES.
    unsafe {
        for i in (0..KEYS).step_by(S::LANES) {
            let at = scores.as_mut_ptr().add(i);
            let power = exp(s, s.mul(s.load(at), s.splat(2.0 * scale / cap)));
            let far = s.div(s.splat(2.0 * cap), s.add(s.splat(1.0), power));
            s.store(at, s.sub(s.splat(cap), far));
        }
    }
}

/// Turn KEYS scores into weights, and scale the output so far to the same maximum. `nothing` is what [`exp`] returns for
/// what cannot be seen.
#[inline(always)]
fn soften<S: Simd, N: Element>(
    s: S,
    scores: &[f32],
    scale: f32,
    nothing: S::F,
    state: &mut Softmax,
    weights: &mut [N],
    output: &mut [f32],
) {
    assert!(scores.len() == KEYS && weights.len() == KEYS && output.len().is_multiple_of(S::LANES));
    // SAFETY: KEYS and the output's length are multiples of LANES.
    unsafe {
        let mut max = s.splat(f32::NEG_INFINITY);
        for i in (0..KEYS).step_by(S::LANES) {
            max = s.max(max, s.load(scores.as_ptr().add(i)));
        }
        let max = state.max.max(s.max_lane(max) * scale);
        if max == f32::NEG_INFINITY {
            weights.fill(N::from_f32(0.0)); // nothing to see yet
            return;
        }
        let mut sum = s.splat(0.0);
        for i in (0..KEYS).step_by(S::LANES) {
            let score = s.load(scores.as_ptr().add(i));
            let weight = s.sub(exp(s, s.fma(score, s.splat(scale), s.splat(-max))), nothing);
            N::store(s, weights.as_mut_ptr().add(i), weight);
            sum = s.add(sum, weight);
        }
        if max > state.max {
            let factor = exp(s, s.splat(state.max - max));
            state.sum *= s.max_lane(factor);
            for i in (0..output.len()).step_by(S::LANES) {
                let at = output.as_mut_ptr().add(i);
                s.store(at, s.mul(s.load(at), factor));
            }
        }
        *state = Softmax { max, sum: state.sum + s.sum(sum) };
    }
}
