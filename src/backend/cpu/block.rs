//! A transformer block on the hidden states of packed spans: normalise, project, rotate, store, attend, project, add;
//! normalise, gated MLP, add. Each step is one of the kernels; what lies between them never leaves the memory to calculate in.

use std::ops::Range;

use super::types::{Buffer, Kind};
use super::{Floats, FloatsMut, Heads, InstructionSet, Layer, Span, Turns};
use crate::backend::{Activation, Epilogue, Held, Phase, Positions, Residual};

/// The weights and settings of [`crate::backend::Block`].
pub(super) struct Block<'a> {
    pub attention_norms: Norms<'a>,
    pub projections: [Layer<'a>; 3],
    pub qk_norm: Option<[Norm<'a>; 2]>,
    /// A row for each token of the pass.
    pub turns: Option<&'a Turns>,
    pub head_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
    pub o_proj: Layer<'a>,
    pub mlp_norms: Norms<'a>,
    /// Gate and up.
    pub expansion: [Layer<'a>; 2],
    pub activation: Activation,
    pub down_proj: Layer<'a>,
    pub residual: Residual,
}

/// Weight and eps.
pub(super) type Norm<'a> = (Floats<'a>, f32);

/// See [`crate::backend::Norms`].
pub(super) struct Norms<'a> {
    pub before: Option<Norm<'a>>,
    pub after: Option<Norm<'a>>,
}

/// A span's keys and values, `[n_kv_heads, capacity, head_dim]`.
pub(super) struct SpanCache<'a> {
    pub positions: Positions,
    pub held: Held,
    pub keys: FloatsMut<'a>,
    pub values: FloatsMut<'a>,
}

/// Neighbouring spans that are computed alike.
pub(super) struct Run {
    phase: Phase,
    spans: Range<usize>,
    tokens: Range<usize>,
}

pub(super) fn runs(positions: &[Positions]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut token = 0;
    for (i, positions) in positions.iter().enumerate() {
        let end = token + positions.tokens as usize;
        match runs.last_mut().filter(|run| run.phase == positions.phase) {
            Some(run) => (run.spans.end, run.tokens.end) = (i + 1, end),
            None => runs.push(Run { phase: positions.phase, spans: i..i + 1, tokens: token..end }),
        }
        token = end;
    }
    runs
}

impl InstructionSet {
    /// Hidden states `[N, D]` of these runs of the spans to the same.
    pub(super) fn block(self, block: &Block, spans: &mut [SpanCache], runs: &[Run], x: Buffer) -> Buffer {
        let attended = self.attention_block(block, spans, runs, &x);
        let x = self.added(x, attended, block.attention_norms.after, block.residual);
        let expanded = self.mlp_block(block, runs, &x);
        self.added(x, expanded, block.mlp_norms.after, block.residual)
    }

    /// What a part of a block gives, normalised and added to its input.
    pub(super) fn added(self, x: Buffer, output: Buffer, norm: Option<Norm>, residual: Residual) -> Buffer {
        let output = match norm {
            Some(norm) => self.normed(&output, norm),
            None => output,
        };
        self.sum(x, output, residual)
    }

    /// Norm and gated MLP.
    pub(super) fn mlp_block(self, block: &Block, runs: &[Run], x: &Buffer) -> Buffer {
        let normed = block.mlp_norms.before.map(|norm| self.normed(x, norm));
        let normed = normed.as_ref().unwrap_or(x);
        let expanded = self.projected(normed, &block.expansion, Epilogue::Gated(block.activation), runs);
        self.projected(&expanded, &[block.down_proj], Epilogue::Concat, runs)
    }

    /// The sum of what so many ranks gave, one after another: in f32, in their order, and rounded once.
    pub(super) fn sum_of_ranks(self, parts: Floats, ranks: usize) -> Buffer {
        let (kind, n) = (parts.kind(), parts.len() / ranks);
        let wide = if ranks > 2 { Kind::F32 } else { kind };
        let part = |rank: usize| {
            let mut part = Buffer::new(wide, n);
            super::types::convert(parts.part(rank * n..(rank + 1) * n), part.floats_mut());
            part
        };
        let sum = (1..ranks).fold(part(0), |sum, rank| self.sum(sum, part(rank), Residual::SUM));
        in_kind(sum, kind)
    }

    /// Norm, attention over what the spans' tokens see, and its output projection. Their keys and values go to the caches.
    pub(super) fn attention_block(self, block: &Block, spans: &mut [SpanCache], runs: &[Run], x: &Buffer) -> Buffer {
        let n = runs.last().map_or(0, |run| run.tokens.end);
        let head_dim = block.head_dim;
        let [n_heads, n_kv_heads, _] = block.projections.map(|layer| layer.weight.rows / head_dim);

        let normed = block.attention_norms.before.map(|norm| self.normed(x, norm));
        let normed = normed.as_ref().unwrap_or(x);
        let projected = self.projected(normed, &block.projections, Epilogue::Concat, runs);
        let width = (n_heads + 2 * n_kv_heads) * head_dim;
        let kind = projected.floats().kind();
        // Queries and keys that are normalised over all heads together are so here, each head by itself where it is rotated.
        let norms = block.qk_norm.map_or([None; 2], |norms| norms.map(Some));
        let is_of_all = |norm: &Norm| norm.0.len() != head_dim;
        let normed = [(0, norms[0]), (n_heads, norms[1])].map(|(first, norm)| {
            let (weight, eps) = norm.filter(is_of_all)?;
            let mut normed = Buffer::new(kind, n * weight.len());
            let x = projected.floats().part(first * head_dim..n * width);
            self.rms_norm_of_rows(x, width, weight, eps, normed.floats_mut());
            Some(normed)
        });
        let norms = norms.map(|norm| norm.filter(|norm| !is_of_all(norm)));
        // Of queries, keys and values: how many heads, and where they are, in rows of so many numbers.
        let own = |i: usize, count: usize| normed[i].as_ref().map(|normed| (count, normed, 0, count * head_dim));
        let places = [
            own(0, n_heads).unwrap_or((n_heads, &projected, 0, width)),
            own(1, n_kv_heads).unwrap_or((n_kv_heads, &projected, n_heads, width)),
            (n_kv_heads, &projected, n_heads + n_kv_heads, width),
        ];
        let heads = |i: usize, tokens: Range<usize>| {
            let (count, values, first, width) = places[i];
            Heads {
                values: values.floats().part(tokens.start * width + first * head_dim..tokens.end * width),
                shape: [count, tokens.len(), head_dim],
                strides: [head_dim, width],
            }
        };
        let mut queries = Buffer::new(kind, n * n_heads * head_dim);
        let turns = block.turns.map(|turns| (turns, 0));
        self.rope(heads(0, 0..n), norms[0], turns, queries.floats_mut(), [head_dim, n_heads * head_dim]);
        let mut token = 0;
        for SpanCache { positions, held, keys, values } in spans.iter_mut() {
            let tokens = token..token + positions.tokens as usize;
            let strides = [held.capacity as usize * head_dim, head_dim];
            let from = held.gap.row(positions.offset) as usize * head_dim;
            let turns = block.turns.map(|turns| (turns, token));
            let new_keys = heads(1, tokens.clone());
            self.rope(new_keys, norms[1], turns, keys.part(from..keys.len()), strides);
            let new_values = heads(2, tokens.clone());
            self.rope(new_values, None, None, values.part(from..values.len()), strides);
            token = tokens.end;
        }

        let attended = self.attended(block, spans, &queries, n_heads, runs);
        self.projected(&attended, &[block.o_proj], Epilogue::Concat, runs)
    }

    fn normed(self, x: &Buffer, (weight, eps): Norm) -> Buffer {
        let x = x.floats();
        let mut y = Buffer::new(x.kind().promoted(weight.kind()), x.len());
        self.rms_norm(x, weight, eps, y.floats_mut());
        y
    }

    fn projected(self, x: &Buffer, layers: &[Layer], epilogue: Epilogue, runs: &[Run]) -> Buffer {
        let x = x.floats();
        let rows: usize = layers.iter().map(|layer| layer.weight.rows).sum();
        let width = if epilogue.activation().is_some() { rows / 2 } else { rows };
        let columns = layers[0].weight.columns;
        let kind = layers.iter().fold(x.kind(), |kind, layer| kind.promoted(layer.kind()));
        let mut y = Buffer::new(kind, x.len() / columns * width);
        if runs.len() > 1 && self.are_phases_alike(&x, layers) {
            // The weights are read once.
            self.linear(x, layers, epilogue, Phase::Prefill, y.floats_mut());
            return y;
        }
        for Run { phase, tokens, .. } in runs {
            let part = |size| tokens.start * size..tokens.end * size;
            self.linear(x.part(part(columns)), layers, epilogue, *phase, y.floats_mut().part(part(width)));
        }
        y
    }

    fn attended(self, block: &Block, spans: &[SpanCache], queries: &Buffer, n_heads: usize, runs: &[Run]) -> Buffer {
        let queries = queries.floats();
        let (head_dim, row) = (block.head_dim, n_heads * block.head_dim);
        let mut y = Buffer::new(queries.kind(), queries.len());
        for run in runs {
            let mut attending = Vec::with_capacity(run.spans.len());
            let mut first = run.tokens.start;
            for SpanCache { positions, held, keys, values } in &spans[run.spans.clone()] {
                let (tokens, capacity) = (positions.tokens as usize, held.capacity as usize);
                let strides = [capacity * head_dim, head_dim];
                let shape = [keys.len() / strides[0], held.gap.row(positions.end()) as usize, head_dim];
                let queries = queries.part(first * row..(first + tokens) * row);
                attending.push(Span {
                    queries: Heads { values: queries, shape: [n_heads, tokens, head_dim], strides: [head_dim, row] },
                    keys: Heads { values: keys.floats(), shape, strides },
                    values: Heads { values: values.floats(), shape, strides },
                    window: block.window,
                    sinks: positions.sinks as usize,
                    gap: held.gap,
                });
                first += tokens;
            }
            let part = run.tokens.start * row..run.tokens.end * row;
            self.attention(&attending, block.scale, block.softcap, run.phase, y.floats_mut().part(part));
        }
        y
    }

    /// `a + residual.multiplier · b`.
    fn sum(self, a: Buffer, b: Buffer, residual: Residual) -> Buffer {
        let kind = a.floats().kind().promoted(b.floats().kind());
        let (a, b) = (in_kind(a, kind), in_kind(b, kind));
        let mut y = Buffer::new(kind, a.floats().len());
        self.add(a.floats(), b.floats(), residual, y.floats_mut());
        y
    }
}

/// The numbers in a wider type, where they are not of it.
fn in_kind(x: Buffer, kind: Kind) -> Buffer {
    if x.floats().kind() == kind {
        return x;
    }
    let mut wide = Buffer::new(kind, x.floats().len());
    super::types::convert(x.floats(), wide.floats_mut());
    wide
}
