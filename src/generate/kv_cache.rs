//! The key-value cache: what earlier tokens left for attention, for all layers together, in bounded memory.
//!
//! Reference: StreamingLLM (Xiao et al., arXiv 2309.17453). The cache holds at most `context_size` tokens: the first
//! ones for ever, as attention sinks, and the most recent ones. When the next tokens would not fit, a batch is evicted
//! from the middle:
//!
//! ```text
//! sinks          evicted         kept
//! [0 1 2 3] [4 5 6 7 8 9 10] [11 12 … 63]        64 tokens, full
//! [0 1 2 3] [11 12 … 63]  64 65 …                the kept ones move to positions 4, 5, …; new ones follow
//! ```
//!
//! Two counts: *positions* are those within the cache (section 3.2 of the paper), so none ever reaches `context_size`
//! and RoPE never leaves the range that it was trained for; they are what masks and rotations use. *Absolute* counts
//! ([`KvCache::seen`], [`KvCache::evicted`]) are only for accounting: `seen = evicted + len`.
//!
//! Keys are stored rotated to their position. An eviction moves each kept key by the same number of positions e, so it
//! is turned back by e once; rotations of fixed frequencies compose, whatever scaling made the frequencies. Values and
//! sinks do not change. In 16-bit types a turn rounds; a key lives through about 100 / `eviction_batch_percent` turns.
//!
//! Offset, window and mask arithmetic live here alone. A forward pass of L tokens calls [`KvCache::reserve`] once,
//! for its eviction, positions and mask, and then [`KvCache::update`] for each layer, so that layers cannot drift apart.

use mlx_rs::fast::ScaledDotProductAttentionMask;
use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use crate::error::Result;
use crate::ops;

/// Buffers grow by this many tokens, as in mlx-lm.
const STEP: i32 = 256;

/// How much a cache holds, and how it makes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// The most tokens held (C).
    pub context_size: i32,
    /// First tokens that are never evicted (S); at most C - 2 if there are to be evictions.
    pub num_sink_tokens: i32,
    /// How much of the other C - S tokens is evicted at once, in percent.
    pub eviction_batch_percent: i32,
}

impl CacheLimits {
    /// At most `context_size` tokens, with the default sinks and batch.
    pub fn new(context_size: i32) -> Self {
        CacheLimits { context_size, num_sink_tokens: 4, eviction_batch_percent: 10 }
    }

    /// Tokens besides the sinks (C - S).
    pub fn window(&self) -> i32 {
        self.context_size - self.num_sink_tokens
    }

    /// Tokens that one eviction takes, if more room is not needed.
    pub fn eviction_batch(&self) -> i32 {
        let batch = i64::from(self.window()) * i64::from(self.eviction_batch_percent) / 100;
        (batch as i32).max(1)
    }

    /// How many tokens of a prompt to read at once, if it may be up to `wanted`. A prompt that is longer than the context
    /// streams through it by half a window at most, so that each token sees at least the other half.
    pub fn chunk_size(&self, prompt: usize, wanted: usize) -> usize {
        if prompt > self.context_size as usize { wanted.min(self.window() as usize / 2) } else { wanted }
    }
}

/// Keys `[B, n_kv_heads, len, head_dim]` (rotated) and values of the same shape, for each layer.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<Option<(Array, Array)>>,
    limits: CacheLimits,
    sliding_window: Option<i32>,
    /// Radians per position, for each pair of rotary components.
    frequencies: Vec<f64>,
    len: i32,
    evicted: u64,
    /// What [`KvCache::trim`] leaves at least: the tokens that the last eviction kept.
    untrimmable: i32,
}

/// One forward pass' place in the cache.
#[derive(Debug)]
pub struct Step {
    /// Position of the pass' first token.
    pub offset: i32,
    end: i32,
    /// First cached position that any of the pass' tokens sees.
    start: i32,
    mask: Mask,
    eviction: Option<Eviction>,
}

/// What every layer does before it stores a step's keys: positions `from..to` move down by `from - sinks`.
#[derive(Debug)]
struct Eviction {
    sinks: i32,
    from: i32,
    to: i32,
    /// Cosines and sines `[head_dim / 2]` (f32) of the turn back.
    turn: (Array, Array),
}

#[derive(Debug)]
enum Mask {
    /// Every token sees all that [`KvCache::update`] returns.
    All,
    Causal,
    /// `[L, end - start]`, true where the token of the row sees the position of the column.
    Window(Array),
}

impl KvCache {
    /// An empty cache for `n_layers` layers. `frequencies` are those of the model's RoPE, in radians per position. With a
    /// `sliding_window`, a token sees that many positions, itself included; and the sinks, once tokens were evicted.
    pub fn new(n_layers: usize, limits: CacheLimits, sliding_window: Option<i32>, frequencies: Vec<f64>) -> Self {
        let layers = vec![None; n_layers];
        KvCache { layers, limits, sliding_window, frequencies, len: 0, evicted: 0, untrimmable: 0 }
    }

    /// Tokens held.
    pub fn len(&self) -> i32 {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it held once and evicted.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Tokens that ever went through it: `evicted + len`.
    pub fn seen(&self) -> u64 {
        self.evicted + self.len as u64
    }

    /// The most tokens it will hold, and how it makes room.
    pub fn limits(&self) -> CacheLimits {
        self.limits
    }

    /// Make room for the next `n` tokens, which takes an eviction when they do not fit.
    ///
    /// # Panics
    /// When `n` is not positive, or they would not fit beside the sinks.
    pub fn reserve(&mut self, n: i32) -> Result<Step> {
        let CacheLimits { context_size, num_sink_tokens: sinks, .. } = self.limits;
        assert!(n > 0, "{n} tokens");
        let missing = self.len + n - context_size;
        let count = match missing {
            ..=0 => 0,
            _ => missing.max(self.limits.eviction_batch()).min(self.len - sinks),
        };
        assert!(count >= missing, "{n} tokens do not fit into a cache of {context_size} with {sinks} sinks");
        let (offset, evicted) = (self.len - count, self.evicted + count as u64);
        let end = offset + n;
        let (start, mask) = self.mask(offset, end, evicted > 0)?; // before anything changes
        let eviction =
            (count > 0).then(|| Eviction { sinks, from: sinks + count, to: self.len, turn: self.turn(count) });
        if eviction.is_some() {
            self.untrimmable = offset;
        }
        (self.len, self.evicted) = (end, evicted);
        Ok(Step { offset, end, start, mask, eviction })
    }

    /// What tokens at positions `offset..end` see, and from where on.
    fn mask(&self, offset: i32, end: i32, has_evicted: bool) -> Result<(i32, Mask)> {
        let plain = if end - offset == 1 { Mask::All } else { Mask::Causal };
        let window = match self.sliding_window {
            Some(window) if end > window => window,
            _ => return Ok((0, plain)),
        };
        // Until the first eviction nothing differs from the plain model, for which the first tokens are as any other.
        let sinks = if has_evicted { self.limits.num_sink_tokens } else { 0 };
        let start = if sinks > 0 { 0 } else { (offset + 1 - window).max(0) };
        if end - offset == 1 && sinks == 0 {
            return Ok((start, Mask::All));
        }
        let rows = Array::from_iter(offset..end, &[end - offset, 1]);
        let columns = Array::from_iter(start..end, &[1, end - start]);
        let within = rows.lt(columns.add(Array::from_int(window))?)?.logical_or(columns.lt(Array::from_int(sinks))?)?;
        Ok((start, Mask::Window(rows.ge(&columns)?.logical_and(within)?)))
    }

    /// Cosines and sines of `positions` times each frequency, computed in f64.
    fn turn(&self, positions: i32) -> (Array, Array) {
        let angles = self.frequencies.iter().map(|frequency| frequency * f64::from(positions));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        let array = |values: &[f32]| Array::from_slice(values, &[values.len() as i32]);
        (array(&cos), array(&sin))
    }

    /// Store a layer's new `keys` and `values` `[B, n_kv_heads, L, head_dim]` for `step`; returns all that the step's
    /// tokens may see, of length `end - start`.
    pub fn update(&mut self, layer: usize, step: &Step, keys: Array, values: Array) -> Result<(Array, Array)> {
        let (mut all_keys, mut all_values) = match self.layers[layer].take() {
            Some(buffers) => buffers,
            None => (rows(&keys, 0, 0)?, rows(&values, 0, 0)?),
        };
        if let Some(Eviction { sinks, from, to, turn }) = &step.eviction
            && from < to
        {
            let kept = turn_back(&rows(&all_keys, *from, *to)?, turn)?;
            store(&mut all_keys, kept, *sinks)?;
            let kept = rows(&all_values, *from, *to)?;
            store(&mut all_values, kept, *sinks)?;
        }
        for (buffer, new) in [(&mut all_keys, keys), (&mut all_values, values)] {
            append(buffer, new, step, self.limits.context_size)?;
        }
        let seen = (rows(&all_keys, step.start, step.end)?, rows(&all_values, step.start, step.end)?);
        self.layers[layer] = Some((all_keys, all_values));
        Ok(seen)
    }

    /// Go on where another cache of this model was: `layers` as [`KvCache::layer`] gave them, of `evicted + len` tokens seen
    /// in all, of which the first `untrimmable` in the cache cannot be trimmed.
    ///
    /// # Panics
    /// When they are more than the limits allow, or not for each layer of one length.
    pub fn restore(&mut self, layers: Vec<(Array, Array)>, evicted: u64, untrimmable: i32) {
        let len = layers.first().map_or(0, |(keys, _)| keys.dim(2));
        assert!(len <= self.limits.context_size && untrimmable <= len && layers.len() == self.layers.len());
        assert!(layers.iter().all(|(keys, values)| keys.dim(2) == len && values.dim(2) == len));
        self.layers = layers.into_iter().map(Some).collect();
        (self.len, self.evicted, self.untrimmable) = (len, evicted, untrimmable);
    }

    /// How many of the tokens held cannot be trimmed: those that the last eviction kept.
    pub fn untrimmable(&self) -> i32 {
        self.untrimmable
    }

    /// Forget the last `n` tokens.
    ///
    /// # Errors
    /// When some of them came before the last eviction, which cannot be undone; nothing changes then.
    pub fn trim(&mut self, n: i32) -> Result<(), TrimError> {
        if n < 0 || self.len - n < self.untrimmable {
            return Err(TrimError { asked: n, possible: self.len - self.untrimmable });
        }
        self.len -= n;
        Ok(())
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The keys and values of a layer, `[B, n_kv_heads, len, head_dim]` each; `None` before its first token.
    pub fn layer(&self, layer: usize) -> Result<Option<(Array, Array)>> {
        self.layers[layer].as_ref().map(|(k, v)| Ok((rows(k, 0, self.len)?, rows(v, 0, self.len)?))).transpose()
    }

    /// The buffers of all layers, to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flatten().flat_map(|(keys, values)| [keys, values])
    }
}

/// More tokens were to be forgotten than came since the last eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot forget {asked} tokens: only {possible} came since tokens were last evicted")]
#[allow(missing_docs)]
pub struct TrimError {
    pub asked: i32,
    pub possible: i32,
}

impl Step {
    /// The mask for attention over what [`KvCache::update`] returned.
    pub fn mask(&self) -> Option<ScaledDotProductAttentionMask<'_>> {
        match &self.mask {
            Mask::All => None,
            Mask::Causal => Some(ScaledDotProductAttentionMask::Causal),
            Mask::Window(mask) => Some(mask.into()),
        }
    }
}

/// Tokens `start..end` of `[B, heads, tokens, head_dim]`.
fn rows(a: &Array, start: i32, end: i32) -> Result<Array> {
    Ok(a.try_index((.., .., start..end, ..))?)
}

/// Write `new` over the tokens of `buffer` from `start` on.
fn store(buffer: &mut Array, new: Array, start: i32) -> Result<()> {
    let end = start + new.dim(2);
    Ok(buffer.try_index_mut((.., .., (start..end).stride_by(1), ..), new)?)
}

/// Put `new` at the rows that the step has for it, in a larger buffer where this one has no room.
fn append(buffer: &mut Array, new: Array, step: &Step, limit: i32) -> Result<()> {
    let capacity = buffer.dim(2);
    if step.end > capacity {
        let wanted = ((step.end + STEP - 1) / STEP * STEP).min(limit);
        if let Some(grown) = ops::append(buffer, step.offset, &new, wanted) {
            *buffer = grown?;
            return Ok(());
        }
        let shape = [new.dim(0), new.dim(1), wanted - capacity, new.dim(3)];
        *buffer = concatenate(&[&*buffer, &zeros_dtype(&shape, new.dtype())?], 2)?;
    }
    store(buffer, new, step.offset)
}

/// Turn rotated keys back by the angles of `turn`: computed in f32, rounded once. What RoPE multiplied them with beside
/// the rotation (yarn) stays in them.
fn turn_back(keys: &Array, (cos, sin): &(Array, Array)) -> Result<Array> {
    let half = cos.dim(0);
    let wide = keys.as_dtype(Dtype::Float32)?;
    let (x, y) = (wide.try_index((.., .., .., ..half))?, wide.try_index((.., .., .., half..))?);
    let turned_x = x.multiply(cos)?.add(y.multiply(sin)?)?;
    let turned_y = y.multiply(cos)?.subtract(x.multiply(sin)?)?;
    Ok(concatenate(&[turned_x, turned_y], 3)?.as_dtype(keys.dtype())?)
}
