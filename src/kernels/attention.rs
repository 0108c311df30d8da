//! Scaled dot-product attention by online softmax (FlashAttention, arXiv 2205.14135): keys and values are read once, in
//! blocks, for all query heads that share them.

use super::pool;
use super::simd::{Op, Simd, exp};
use super::types::{Element, Floats, FloatsMut, Shared, load_all, typed};

/// Keys of one block; their scores stay in the first-level cache.
const KEYS: usize = 64;
/// Queries times heads of one task, about.
const ROWS: usize = 64;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// All.
    All,
    /// Those up to its own position, the queries being the last ones.
    Causal,
    /// Where `[L, T]` is true.
    Table(&'a [bool]),
}

/// `[B, heads, tokens, D]` in memory: where each row begins; D lie together.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// From the first element to the last.
    pub values: Floats<'a>,
    /// B, heads, tokens, D.
    pub shape: [usize; 4],
    /// Numbers from one batch, head and token to the next.
    pub strides: [usize; 3],
}

impl Heads<'_> {
    pub(super) fn row(&self, b: usize, head: usize, token: usize) -> usize {
        b * self.strides[0] + head * self.strides[1] + token * self.strides[2]
    }

    pub(super) fn check(&self) {
        let last = (0..3).map(|i| (self.shape[i] - 1) * self.strides[i]).sum::<usize>() + self.shape[3];
        assert!(self.shape.iter().all(|&n| n > 0) && last <= self.values.len(), "{:?}", self.shape);
    }
}

/// `softmax(scale · q · kᵀ) · v`, to `y` `[B, L, heads, D]`.
pub(super) struct Attention<'a> {
    pub q: Heads<'a>,
    pub k: Heads<'a>,
    pub v: Heads<'a>,
    pub scale: f32,
    pub mask: Mask<'a>,
    pub y: FloatsMut<'a>,
}

impl Op for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Attention { q, k, v, scale, mask, y } = self;
        let [batch, n_heads, length, width] = q.shape;
        let (n_kv_heads, tokens) = (k.shape[1], k.shape[2]);
        let group = n_heads / n_kv_heads;
        let queries = (ROWS / group).clamp(1, length);
        let blocks = length.div_ceil(queries);
        typed!(FloatsMut, y, y => {
            let y = Shared(y.as_mut_ptr());
            pool::for_each(batch * n_kv_heads * blocks, |task| {
                // The last queries see the most keys: begin with them, so that no thread is left with them at the end.
                let block = blocks - 1 - task / (batch * n_kv_heads);
                let (b, kv_head) = (task % (batch * n_kv_heads) / n_kv_heads, task % n_kv_heads);
                let first = block * queries;
                let n = queries.min(length - first);
                // SAFETY: this task alone writes the rows of these queries and heads.
                s.run(Block { q, k, v, scale, mask, y, b, kv_head, group, first, n, n_heads, length, width, tokens });
            });
        });
    }
}

/// Queries `first..first + n` of the heads that share one head of keys and values.
struct Block<'a, E> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    scale: f32,
    mask: Mask<'a>,
    y: Shared<E>,
    b: usize,
    kv_head: usize,
    group: usize,
    first: usize,
    n: usize,
    n_heads: usize,
    length: usize,
    width: usize,
    tokens: usize,
}

/// What is known of a row of scores so far.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl<E: Element> Op for Block<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Block { q, k, v, scale, mask, y, b, kv_head, group, first, n, n_heads, length, width, tokens } = self;
        let padded = width.next_multiple_of(S::LANES);
        let rows = n * group;
        let mut queries = vec![0.0; rows * padded];
        for row in 0..rows {
            let to = &mut queries[row * padded..row * padded + width];
            load_row(s, &q, q.row(b, kv_head * group + row % group, first + row / group), to);
            to.iter_mut().for_each(|x| *x *= scale);
        }
        let mut outputs = vec![0.0; rows * padded];
        let mut states = vec![Softmax { max: f32::NEG_INFINITY, sum: 0.0 }; rows];
        let mut scores = vec![0.0; 4 * KEYS];
        let (mut keys, mut values) = (vec![0.0; KEYS * padded], vec![0.0; KEYS * padded]);
        let visible = |row: usize| match mask {
            Mask::Causal => tokens - length + first + row / group + 1,
            Mask::All | Mask::Table(_) => tokens,
        };
        let last = visible(rows - 1);
        for from in (0..last).step_by(KEYS) {
            let count = KEYS.min(last - from);
            for i in 0..count {
                load_row(s, &k, k.row(b, kv_head, from + i), &mut keys[i * padded..i * padded + width]);
                load_row(s, &v, v.row(b, kv_head, from + i), &mut values[i * padded..i * padded + width]);
            }
            let mut row = 0;
            while row < rows {
                let together = if row + 4 <= rows { 4 } else { 1 };
                let scores = &mut scores[..together * KEYS];
                let queries = &queries[row * padded..(row + together) * padded];
                if together == 4 {
                    dots::<S, 4>(s, queries, &keys, padded, count, scores);
                } else {
                    dots::<S, 1>(s, queries, &keys, padded, count, scores);
                }
                for r in 0..together {
                    let scores = &mut scores[r * KEYS..(r + 1) * KEYS];
                    scores[count..].fill(f32::NEG_INFINITY);
                    scores[visible(row + r).saturating_sub(from).min(count)..count].fill(f32::NEG_INFINITY);
                    if let Mask::Table(table) = mask {
                        let table = &table[(first + (row + r) / group) * tokens + from..][..count];
                        for (score, seen) in scores.iter_mut().zip(table) {
                            *score = if *seen { *score } else { f32::NEG_INFINITY };
                        }
                    }
                    let output = &mut outputs[(row + r) * padded..(row + r + 1) * padded];
                    soften(s, scores, &mut states[row + r], output);
                }
                let outputs = &mut outputs[row * padded..(row + together) * padded];
                if together == 4 {
                    weigh::<S, 4>(s, scores, &values, padded, count, outputs);
                } else {
                    weigh::<S, 1>(s, scores, &values, padded, count, outputs);
                }
                row += together;
            }
        }
        for row in 0..rows {
            let at = ((b * length + first + row / group) * n_heads + kv_head * group + row % group) * width;
            let factor = 1.0 / states[row].sum;
            for (i, x) in outputs[row * padded..row * padded + width].iter().enumerate() {
                // SAFETY: this task alone writes the rows of these queries and heads, which lie in y `[B, L, heads, D]`.
                unsafe { y.at(at + i).write(E::from_f32(x * factor)) };
            }
        }
    }
}

/// The numbers of `heads` from `from` on, as many as `to` holds.
#[inline(always)]
fn load_row<S: Simd>(s: S, heads: &Heads, from: usize, to: &mut [f32]) {
    typed!(Floats, heads.values, values => load_all(s, &values[from..from + to.len()], to));
}

/// Products of R queries with `count` keys, `padded` numbers each, to R rows of KEYS scores.
#[inline(always)]
fn dots<S: Simd, const R: usize>(s: S, queries: &[f32], keys: &[f32], padded: usize, count: usize, scores: &mut [f32]) {
    assert!(queries.len() == R * padded && keys.len() >= count * padded && scores.len() == R * KEYS);
    for key in 0..count {
        let mut sums = [s.splat(0.0); R];
        for d in (0..padded).step_by(S::LANES) {
            // SAFETY: rows have `padded` numbers, a multiple of LANES.
            unsafe {
                let k = s.load(keys.as_ptr().add(key * padded + d));
                for r in 0..R {
                    sums[r] = s.fma(s.load(queries.as_ptr().add(r * padded + d)), k, sums[r]);
                }
            }
        }
        if R == 4 {
            for (r, sum) in s.sum4([sums[0], sums[1 % R], sums[2 % R], sums[3 % R]]).into_iter().enumerate() {
                scores[r * KEYS + key] = sum;
            }
        } else {
            for r in 0..R {
                scores[r * KEYS + key] = s.sum(sums[r]);
            }
        }
    }
}

/// Turn KEYS scores into weights, and scale the output so far to the same maximum.
#[inline(always)]
fn soften<S: Simd>(s: S, scores: &mut [f32], state: &mut Softmax, output: &mut [f32]) {
    assert!(scores.len() == KEYS && output.len().is_multiple_of(S::LANES));
    // SAFETY: KEYS and the output's length are multiples of LANES.
    unsafe {
        let mut max = s.splat(state.max);
        for i in (0..KEYS).step_by(S::LANES) {
            max = s.max(max, s.load(scores.as_ptr().add(i)));
        }
        let max = s.max_lane(max);
        if max == f32::NEG_INFINITY {
            scores.fill(0.0); // nothing to see yet
            return;
        }
        let mut sum = s.splat(0.0);
        for i in (0..KEYS).step_by(S::LANES) {
            let weight = exp(s, s.sub(s.load(scores.as_ptr().add(i)), s.splat(max)));
            s.store(scores.as_mut_ptr().add(i), weight);
            sum = s.add(sum, weight);
        }
        if max > state.max {
            let factor = (state.max - max).exp();
            state.sum *= factor;
            for i in (0..output.len()).step_by(S::LANES) {
                let at = output.as_mut_ptr().add(i);
                s.store(at, s.mul(s.load(at), s.splat(factor)));
            }
        }
        *state = Softmax { max, sum: state.sum + s.sum(sum) };
    }
}

/// Add `count` values, by R rows of weights, to R outputs.
#[inline(always)]
fn weigh<S: Simd, const R: usize>(
    s: S,
    weights: &[f32],
    values: &[f32],
    padded: usize,
    count: usize,
    outputs: &mut [f32],
) {
    assert!(weights.len() == R * KEYS && count <= KEYS);
    assert!(values.len() >= count * padded && outputs.len() == R * padded);
    for d in (0..padded).step_by(S::LANES) {
        // SAFETY: rows have `padded` numbers, a multiple of LANES.
        unsafe {
            let mut sums = [s.splat(0.0); R];
            for r in 0..R {
                sums[r] = s.load(outputs.as_ptr().add(r * padded + d));
            }
            for key in 0..count {
                let value = s.load(values.as_ptr().add(key * padded + d));
                for r in 0..R {
                    sums[r] = s.fma(s.splat(*weights.get_unchecked(r * KEYS + key)), value, sums[r]);
                }
            }
            for r in 0..R {
                s.store(outputs.as_mut_ptr().add(r * padded + d), sums[r]);
            }
        }
    }
}
