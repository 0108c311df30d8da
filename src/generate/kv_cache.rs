//! The key-value cache: what earlier tokens left for attention, for all layers together, in bounded memory.
//!
//! Reference: StreamingLLM (Xiao et al., arXiv 2309.17453). The cache holds at most `context_size` tokens: the first
//! ones forever, as attention sinks, and the most recent ones. When the next tokens would not fit, a batch is evicted
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
//! is rotated by -e once; rotations of fixed frequencies compose, whatever scaling made the frequencies. Values and
//! sinks do not change. In 16-bit types a rotation rounds; a key lives through about 100 / `eviction_batch_percent` of them.
//!
//! A layer whose tokens see a window alone holds what they see and little more, however long the context is. Behind the sinks it
//! has a [`Gap`], positions that no token sees any more: those that are older than the window by [`TRIMMABLE`] tokens. It grows by
//! 256 tokens or more at a time, and the rows behind it move up:
//!
//! ```text
//! positions   0 1 2 3 | 4 … 4479 | 4480 … 6100        a window of 512
//! rows        0 1 2 3 |   gap    |    4 … 1624
//! ```
//!
//! Offset, window and mask arithmetic live here alone. A forward pass of L tokens calls [`KvCache::reserve`] once, which
//! evicts and gives the tokens their positions; then each layer stores its keys and values there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};
use serde::{Deserialize, Serialize};

use crate::backend::{CachedSpan, Gap, Held, KEY_BLOCK, LayerCache, Phase, Positions, Rotation, Rotations, make_room};
use crate::error::Result;
use crate::ops::Mask;

/// Buffers grow by this many tokens, as in mlx-lm, and gaps by this many or more.
const STEP: i32 = 256;
/// So many last tokens can be forgotten whatever a window hides.
pub const TRIMMABLE: i32 = 1024;

/// How much a cache holds, and how it makes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// What the cache must know of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheLayer {
    /// How many positions a token sees, itself included, and the sinks besides, once tokens were evicted; `None` for all.
    pub sliding_window: Option<i32>,
    /// Those of the layer's RoPE; `None` for keys that do not rotate.
    pub(crate) rotations: Option<Rotations>,
}

impl CacheLayer {
    /// Of these frequencies in contexts of any length, if it rotates.
    pub fn new(sliding_window: Option<i32>, frequencies: Option<Arc<[f64]>>) -> Self {
        let rotation = |frequencies| Rotations::new(Rotation { frequencies, factor: 1.0 }, None);
        CacheLayer { sliding_window, rotations: frequencies.map(rotation) }
    }
}

/// Keys `[1, n_kv_heads, rows, head_dim]` (rotated) and values of the same shape, for each layer. A clone shares them until
/// either goes on.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Arc<[CacheLayer]>,
    buffers: Vec<LayerCache>,
    /// Of each layer.
    held: Vec<Held>,
    /// Windows leave no gaps.
    holds_all: bool,
    limits: CacheLimits,
    len: i32,
    evicted: u64,
    /// The tokens that the last eviction kept.
    untrimmable: i32,
    id: CacheId,
}

/// Which cache it is, for whoever keeps what belongs to it. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct CacheId(Arc<u64>);

impl CacheId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        CacheId(NEXT.fetch_add(1, Ordering::Relaxed).into())
    }

    pub fn number(&self) -> u64 {
        *self.0
    }

    /// Whether other caches have it too.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// What tells whether any cache has it still.
    pub fn downgrade(&self) -> Weak<u64> {
        Arc::downgrade(&self.0)
    }
}

impl KvCache {
    /// An empty cache.
    pub fn new(limits: CacheLimits, layers: Arc<[CacheLayer]>) -> Self {
        let (buffers, held) = (vec![None; layers.len()], vec![Held::default(); layers.len()]);
        let id = CacheId::new();
        KvCache { layers, buffers, held, holds_all: false, limits, len: 0, evicted: 0, untrimmable: 0, id }
    }

    /// An empty cache of which each layer will hold all positions, whatever its window hides.
    pub fn holding_all(self) -> Self {
        KvCache { holds_all: true, ..self }
    }

    pub(crate) fn id(&self) -> &CacheId {
        &self.id
    }

    /// Be another cache than those that it was cloned from.
    pub(crate) fn renew_id(&mut self) {
        self.id = CacheId::new();
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

    /// Make room for the next `n` tokens, which takes an eviction when they do not fit, and give them their positions.
    ///
    /// # Panics
    /// When `n` is not positive, or they would not fit next to the sinks.
    pub fn reserve(&mut self, n: i32, phase: Phase) -> Result<Positions> {
        let CacheLimits { context_size, num_sink_tokens, .. } = self.limits;
        assert!(n > 0, "{n} tokens");
        let missing = self.len + n - context_size;
        if missing > 0 {
            let count = missing.max(self.limits.eviction_batch()).min(self.len - num_sink_tokens);
            assert!(
                count >= missing,
                "{n} tokens do not fit into a cache of {context_size} with {num_sink_tokens} sinks"
            );
            self.evict(count)?;
        }
        self.grow(n)?;
        let offset = self.len;
        self.len += n;
        // Until the first eviction nothing differs from the plain model, for which the first tokens are as any other.
        let sinks = if self.evicted > 0 { num_sink_tokens } else { 0 };
        Ok(Positions { phase, offset, tokens: n, sinks, context_size })
    }

    /// The positions behind the sinks that no token from this one on sees in a layer, to where a block of keys begins.
    fn unseen(&self, layer: usize, position: i32) -> Gap {
        let first = self.limits.num_sink_tokens;
        let window = self.layers[layer].sliding_window.filter(|_| !self.holds_all);
        let end = window.map_or(0, |window| (position + 1 - window) / KEY_BLOCK * KEY_BLOCK);
        Gap { first, len: (end - first).max(0) }
    }

    /// Let all layers have room for `n` more tokens. Where a layer has none left, what its window hides goes, if that is much.
    fn grow(&mut self, n: i32) -> Result<()> {
        let end = self.len + n;
        if self.held.iter().all(|held| held.gap.row(end) <= held.capacity) {
            return Ok(());
        }
        let (mut buffers, mut held) = (self.buffers.clone(), self.held.clone()); // before anything changes
        for (layer, (buffers, held)) in buffers.iter_mut().zip(&mut held).enumerate() {
            let before = held.gap;
            if before.row(end) <= held.capacity {
                continue;
            }
            let gap = self.unseen(layer, self.len - TRIMMABLE);
            if gap.len < before.len + STEP {
                held.capacity = self.rounded(before.row(end));
                continue;
            }
            *held = Held { gap, capacity: self.rounded(gap.row(end) + STEP) };
            if let Some((keys, values)) = buffers {
                for buffer in [keys, values] {
                    let kept = rows(buffer, before.row(gap.end()), before.row(self.len))?;
                    *buffer = moved_up(buffer, gap.first, 0, kept, held.capacity)?;
                }
            }
        }
        (self.buffers, self.held) = (buffers, held);
        Ok(())
    }

    /// Rows of buffers that have room for so many.
    fn rounded(&self, rows: i32) -> i32 {
        (rows as u32).next_multiple_of(STEP as u32).min(self.limits.context_size as u32) as i32
    }

    /// Let the first `count` tokens after the sinks go; those behind them move down. Of what a window hides, nothing is kept.
    fn evict(&mut self, count: i32) -> Result<()> {
        let (sinks, len) = (self.limits.num_sink_tokens, self.len - count);
        let (mut buffers, mut held) = (self.buffers.clone(), self.held.clone()); // before anything changes
        for (layer, (buffers, held)) in buffers.iter_mut().zip(&mut held).enumerate() {
            let (gap, before) = (self.unseen(layer, len), held.gap);
            *held = Held { gap, capacity: held.capacity.max(gap.row(len)) };
            let Some((keys, values)) = buffers.as_mut().filter(|_| sinks < len) else { continue };
            // A block of keys may begin with some that are not held, nor seen.
            let first = (gap.end() + count).max(before.end());
            let lacking = first - (gap.end() + count);
            let kept = |buffer: &Array| rows(buffer, before.row(first), before.row(self.len));
            let kept_keys = match &self.layers[layer].rotations {
                Some(rotations) => {
                    rotate_back(&kept(keys)?, &rotations.of(self.limits.context_size).frequencies, count)?
                }
                None => kept(keys)?,
            };
            *keys = moved_up(keys, sinks, lacking, kept_keys, held.capacity)?;
            *values = moved_up(values, sinks, lacking, kept(values)?, held.capacity)?;
        }
        (self.buffers, self.held) = (buffers, held);
        self.len = len;
        self.evicted += count as u64;
        self.untrimmable = self.len;
        Ok(())
    }

    /// Store a layer's new `keys` and `values` `[1, n_kv_heads, L, head_dim]`; returns all that one of these tokens may see.
    pub fn update(&mut self, layer: usize, at: &Positions, keys: Array, values: Array) -> Result<(Array, Array)> {
        let (mut all_keys, mut all_values) = match self.buffers[layer].take() {
            Some(buffers) => buffers,
            None => (rows(&keys, 0, 0)?, rows(&values, 0, 0)?),
        };
        let Held { gap, capacity } = self.held[layer];
        for (buffer, new) in [(&mut all_keys, keys), (&mut all_values, values)] {
            make_room(buffer, capacity)?;
            store(buffer, new, gap.row(at.offset))?;
        }
        let (start, end) = (gap.row(self.first_seen(layer, at)), gap.row(at.end()));
        let seen = (rows(&all_keys, start, end)?, rows(&all_values, start, end)?);
        self.buffers[layer] = Some((all_keys, all_values));
        Ok(seen)
    }

    /// The first position that one of these tokens sees.
    fn first_seen(&self, layer: usize, at: &Positions) -> i32 {
        match self.layers[layer].sliding_window {
            Some(window) if at.sinks == 0 => (at.offset + 1 - window).max(0),
            _ => 0,
        }
    }

    /// Which of the keys that [`KvCache::update`] returns for a layer these tokens see.
    pub fn mask(&self, layer: usize, at: &Positions) -> Result<Mask> {
        let plain = if at.tokens == 1 { Mask::All } else { Mask::Causal };
        let window = match self.layers[layer].sliding_window {
            Some(window) if at.end() > window => window,
            _ => return Ok(plain),
        };
        if at.tokens == 1 && at.sinks == 0 {
            return Ok(Mask::All);
        }
        let gap = self.held[layer].gap;
        let seen: Vec<i32> = (self.first_seen(layer, at)..at.end()).filter(|i| !gap.contains(*i)).collect();
        let rows = Array::from_iter(at.offset..at.end(), &[at.tokens, 1]);
        let columns = Array::from_slice(&seen, &[1, seen.len() as i32]);
        let in_window = rows.lt(columns.add(Array::from_int(window))?)?;
        let within = in_window.logical_or(columns.lt(Array::from_int(at.sinks))?)?;
        Ok(Mask::Table(rows.ge(&columns)?.logical_and(within)?))
    }

    /// The tokens at these positions with the buffers of `layers`, for what computes whole blocks.
    pub(crate) fn span(&mut self, positions: Positions, layers: std::ops::Range<usize>) -> CachedSpan<'_> {
        CachedSpan { positions, layers: &mut self.buffers[layers.clone()], held: &self.held[layers] }
    }

    /// Go on where another cache of this model was: `layers` as [`KvCache::layer`] gave them, of `len` tokens held and
    /// `evicted + len` seen in all, of which the last eviction kept `untrimmable`.
    ///
    /// # Panics
    /// When they are more than the limits allow, or a layer has not the rows of such a cache.
    pub fn restore(&mut self, layers: Vec<(Array, Array)>, len: i32, evicted: u64, untrimmable: i32) {
        assert!(len <= self.limits.context_size && untrimmable <= len && layers.len() == self.layers.len());
        let first = self.limits.num_sink_tokens;
        for (layer, (keys, values)) in layers.iter().enumerate() {
            let capacity = keys.dim(2);
            assert!(values.dim(2) == capacity && self.fits(layer, len, capacity));
            self.held[layer] = Held { gap: Gap { first, len: len - capacity }, capacity };
        }
        self.buffers = layers.into_iter().map(Some).collect();
        (self.len, self.evicted, self.untrimmable) = (len, evicted, untrimmable);
    }

    /// Whether a layer of a cache that holds `len` tokens may have so many rows.
    pub(super) fn fits(&self, layer: usize, len: i32, rows: i32) -> bool {
        let gap = Gap { first: self.limits.num_sink_tokens, len: len - rows };
        let most = self.unseen(layer, len).len;
        (0..=most).contains(&gap.len) && (gap.is_empty() || gap.end() % KEY_BLOCK == 0)
    }

    /// How many of the tokens held the last eviction kept.
    pub(super) fn untrimmable(&self) -> i32 {
        self.untrimmable
    }

    /// To how few tokens it can be cut: those that the last eviction kept, or more where the next token would see what the gap of
    /// a layer does not hold.
    pub fn shortest(&self) -> i32 {
        let of = |(layer, held): (&CacheLayer, &Held)| match layer.sliding_window {
            Some(window) if !held.gap.is_empty() => held.gap.end() + window - 1,
            _ => 0,
        };
        self.layers.iter().zip(&self.held).map(of).fold(self.untrimmable, i32::max)
    }

    /// Forget the last `n` tokens.
    ///
    /// # Errors
    /// When fewer than the [shortest](KvCache::shortest) would be left; nothing changes then.
    pub fn trim(&mut self, n: i32) -> Result<(), TrimError> {
        if n < 0 || self.len - n < self.shortest() {
            return Err(TrimError { asked: n, possible: self.len - self.shortest() });
        }
        self.len -= n;
        Ok(())
    }

    /// Whether a cache with these limits rotates keys as this one does.
    fn rotates_as(&self, limits: CacheLimits) -> bool {
        let mut rotations = self.layers.iter().filter_map(|layer| layer.rotations.as_ref());
        rotations.all(|rotations| rotations.is_long(self.limits.context_size) == rotations.is_long(limits.context_size))
    }

    /// Whether it has the first `n` tokens of its sequence as a cache with these limits would hold them.
    pub(super) fn has_beginning(&self, n: i32, limits: CacheLimits) -> bool {
        let has_sinks = || limits.num_sink_tokens == self.limits.num_sink_tokens;
        self.evicted == 0
            && (self.shortest()..=self.len.min(limits.context_size)).contains(&n)
            && self.rotates_as(limits)
            && (self.held.iter().all(|held| held.gap.is_empty()) || has_sinks())
    }

    /// The first `n` tokens of what this one holds, under other limits.
    ///
    /// # Panics
    /// When it [does not have](KvCache::has_beginning) them.
    pub(crate) fn beginning(&self, n: i32, limits: CacheLimits) -> KvCache {
        assert!(self.has_beginning(n, limits), "{n} of {} tokens under {limits:?}", self.len);
        KvCache { len: n, limits, ..self.clone() }
    }

    /// The most rows that its layers come to have in all with `tokens` tokens, `at_once` of them in one pass at most.
    pub fn most_rows(&self, tokens: usize, at_once: usize) -> u64 {
        let [tokens, at_once] = [tokens, at_once].map(|n| n.min(self.limits.context_size as usize) as i32);
        let all = self.rounded(tokens);
        let of = |layer: &CacheLayer| match layer.sliding_window.filter(|_| !self.holds_all) {
            // The gap may be one that does not grow yet, and ends before a block; the capacity is rounded and has room for more.
            Some(window) => {
                let seen = window.saturating_add(at_once).saturating_add(self.limits.num_sink_tokens);
                all.min(seen.saturating_add(TRIMMABLE + KEY_BLOCK + 2 * STEP))
            }
            None => all,
        };
        self.layers.iter().map(|layer| of(layer) as u64).sum()
    }

    /// Bytes of its buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The positions that a layer does not hold.
    pub fn gap(&self, layer: usize) -> Gap {
        self.held[layer].gap
    }

    /// The keys and values of a layer, `[1, n_kv_heads, rows, head_dim]` each, of all positions but those of its
    /// [gap](KvCache::gap); `None` before its first token.
    pub fn layer(&self, layer: usize) -> Result<Option<(Array, Array)>> {
        let end = self.held[layer].gap.row(self.len);
        self.buffers[layer].as_ref().map(|(k, v)| Ok((rows(k, 0, end)?, rows(v, 0, end)?))).transpose()
    }

    /// The buffers of all layers, to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.buffers.iter().flatten().flat_map(|(keys, values)| [keys, values])
    }
}

/// More tokens were to be forgotten than came since the last eviction, or what those before them saw is not held any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot forget {asked} tokens, only the last {possible}: what came before is not held as it was")]
#[allow(missing_docs)]
pub struct TrimError {
    pub asked: i32,
    pub possible: i32,
}

/// Rows `start..end` of `[1, heads, rows, head_dim]`.
fn rows(a: &Array, start: i32, end: i32) -> Result<Array> {
    Ok(a.try_index((.., .., start..end, ..))?)
}

/// The first rows of `buffer`, so many zeros, the rows of `kept`, and room for `capacity` rows in all.
fn moved_up(buffer: &Array, first: i32, zeros: i32, kept: Array, capacity: i32) -> Result<Array> {
    let empty = |n: i32| zeros_dtype(&[1, buffer.dim(1), n, buffer.dim(3)], buffer.dtype());
    let room = capacity - first - zeros - kept.dim(2);
    Ok(concatenate(&[rows(buffer, 0, first)?, empty(zeros)?, kept, empty(room)?], 2)?)
}

/// Write `new` over the rows of `buffer` from `start` on.
fn store(buffer: &mut Array, new: Array, start: i32) -> Result<()> {
    let end = start + new.dim(2);
    Ok(buffer.try_index_mut((.., .., (start..end).stride_by(1), ..), new)?)
}

/// Keys rotated by so many positions less: computed in f32, rounded once. What RoPE multiplied them with besides the rotation
/// (yarn) stays in them.
fn rotate_back(keys: &Array, frequencies: &[f64], positions: i32) -> Result<Array> {
    let angles = frequencies.iter().map(|frequency| frequency * f64::from(positions));
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
    let half = frequencies.len() as i32;
    let (cos, sin) = (Array::from_slice(&cos, &[half]), Array::from_slice(&sin, &[half]));
    let wide = keys.as_dtype(Dtype::Float32)?;
    let part = |range: std::ops::Range<i32>| wide.try_index((.., .., .., range));
    let (x, y, rest) = (part(0..half)?, part(half..2 * half)?, part(2 * half..keys.dim(3))?);
    let rotated_x = x.multiply(&cos)?.add(y.multiply(&sin)?)?;
    let rotated_y = y.multiply(&cos)?.subtract(x.multiply(&sin)?)?;
    Ok(concatenate(&[rotated_x, rotated_y, rest], 3)?.as_dtype(keys.dtype())?)
}
