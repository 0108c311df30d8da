//! The key-value cache: what earlier tokens left for attention, for all layers together.
//!
//! Offset, window and mask arithmetic live here alone. A forward pass of L tokens calls [`KvCache::reserve`] once,
//! for its positions and mask, and then [`KvCache::update`] for each layer, so that layers cannot drift apart.

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::fast::ScaledDotProductAttentionMask;
use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};

/// Buffers grow by this many tokens, as in mlx-lm.
const STEP: i32 = 256;

/// Keys `[B, n_kv_heads, len, head_dim]` (rotated) and values of the same shape, for each layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<(Array, Array)>>,
    len: i32,
    context_size: i32,
    window: Option<i32>,
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
    /// An empty cache for `n_layers` layers that will hold at most `context_size` tokens. With a `window`, a token
    /// sees that many positions, itself included.
    pub fn new(n_layers: usize, context_size: i32, window: Option<i32>) -> Self {
        KvCache { layers: vec![None; n_layers], len: 0, context_size, window }
    }

    /// Tokens held.
    pub fn len(&self) -> i32 {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most tokens it will hold.
    pub fn context_size(&self) -> i32 {
        self.context_size
    }

    /// Make room for the next `n` tokens, `n` at least 1.
    ///
    /// # Panics
    /// When they would not fit into the context size; the generator sees to it that they do.
    pub fn reserve(&mut self, n: i32) -> Result<Step, Exception> {
        let (offset, end) = (self.len, self.len + n);
        assert!(n > 0 && end <= self.context_size, "{end} tokens do not fit into a cache of {}", self.context_size);
        let start = self.window.map_or(0, |window| (offset + 1 - window).max(0));
        let mask = match self.window {
            _ if n == 1 => Mask::All,
            Some(window) if end > window => {
                let rows = Array::from_iter(offset..end, &[n, 1]);
                let columns = Array::from_iter(start..end, &[1, end - start]);
                Mask::Window(rows.ge(&columns)?.logical_and(rows.lt(columns.add(Array::from_int(window))?)?)?)
            }
            _ => Mask::Causal,
        };
        self.len = end;
        Ok(Step { offset, end, start, mask })
    }

    /// Store a layer's new `keys` and `values` `[B, n_kv_heads, L, head_dim]` for `step`; returns all that the step's
    /// tokens may see, of length `end - start`.
    pub fn update(
        &mut self,
        layer: usize,
        step: &Step,
        keys: Array,
        values: Array,
    ) -> Result<(Array, Array), Exception> {
        let range = (step.offset, step.end);
        let (mut all_keys, mut all_values) = match self.layers[layer].take() {
            Some(buffers) => buffers,
            None => (empty_like(&keys)?, empty_like(&values)?),
        };
        store(&mut all_keys, keys, range, self.context_size)?;
        store(&mut all_values, values, range, self.context_size)?;
        let seen = |a: &Array| a.try_index((.., .., step.start..step.end, ..));
        let seen = (seen(&all_keys)?, seen(&all_values)?);
        self.layers[layer] = Some((all_keys, all_values));
        Ok(seen)
    }

    /// The buffers of all layers, to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flatten().flat_map(|(keys, values)| [keys, values])
    }
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

fn empty_like(a: &Array) -> Result<Array, Exception> {
    a.try_index((.., .., 0..0, ..))
}

/// Write `new` at `start..end` of `buffer`'s third axis, growing the buffer in steps up to `limit`.
fn store(buffer: &mut Array, new: Array, (start, end): (i32, i32), limit: i32) -> Result<(), Exception> {
    let capacity = buffer.dim(2);
    if end > capacity {
        let wanted = ((end + STEP - 1) / STEP * STEP).min(limit);
        let shape = [new.dim(0), new.dim(1), wanted - capacity, new.dim(3)];
        *buffer = concatenate(&[&*buffer, &zeros_dtype(&shape, new.dtype())?], 2)?;
    }
    buffer.try_index_mut((.., .., (start..end).stride_by(1), ..), new)
}
