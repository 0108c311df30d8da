//! A prompt that was prefilled once, kept in a file for later generations that begin with it.
//!
//! The file is safetensors: `layers.N.keys` and `layers.N.values`, `[1, n_kv_heads, rows, head_dim]`, as they lie in the
//! cache, and in `__metadata__` under `mlx_lm.prompt_cache` a JSON object with the token ids, the counts, the limits, the
//! model's identity and a hash of all of it. A layer whose tokens see a window may have fewer rows than there are tokens: those
//! that lack are its gap, behind the sinks.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use mlx_rs::{Array, Dtype};
use safetensors::{Dtype as FileDtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Watch;
use super::generator::read;
use super::kv_cache::{CacheLimits, KvCache};
use super::prefix::Prefix;
use crate::error::{Error, Result};
use crate::mapped::Mapped;
use crate::models::Model;
use crate::ops;
use crate::tensor_writer::{TensorHead, TensorWriter};

const KEY: &str = "mlx_lm.prompt_cache";

/// A prompt's tokens and the cache that they left.
#[derive(Debug, Clone)]
pub struct PromptCache {
    /// [`Model::identity`].
    model: String,
    ids: Vec<u32>,
    cache: KvCache,
}

/// What a [`PromptCache`]'s file holds, which any thread may write.
pub(crate) struct Contents {
    metadata: String,
    tensors: Vec<(TensorHead, Vec<u8>)>,
}

impl Contents {
    /// As [`PromptCache::save`].
    pub fn write(&self, path: &Path, overwrite: bool) -> Result<()> {
        let heads: Vec<_> = self.tensors.iter().map(|(head, _)| head.clone()).collect();
        let metadata = HashMap::from([(KEY.to_owned(), self.metadata.clone())]);
        let file = TensorWriter::create(path, &heads, metadata, overwrite)?;
        for (i, (_, bytes)) in self.tensors.iter().enumerate() {
            file.write(i, 0, bytes)?;
        }
        file.finish()
    }
}

/// What the file says besides the tensors.
#[derive(Clone, Serialize, Deserialize)]
struct Metadata {
    model: String,
    ids: Vec<u32>,
    evicted: u64,
    untrimmable: i32,
    context_size: i32,
    num_sink_tokens: i32,
    eviction_batch_percent: i32,
    /// Of these fields, with this one empty, and of the tensors.
    sha256: String,
}

impl Metadata {
    /// The hash that belongs to these fields and to the layers' tensors, in order.
    fn hash<'t>(&self, tensors: impl Iterator<Item = (FileDtype, &'t [u8])>) -> String {
        let fields = Metadata { sha256: String::new(), ..self.clone() };
        let mut hash = Sha256::new_with_prefix(fields.to_json());
        for (dtype, bytes) in tensors {
            hash.update(format!("\0{dtype:?}\0{}\0", bytes.len()));
            hash.update(bytes);
        }
        hex::encode(hash.finalize())
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("it has only what JSON has")
    }
}

/// # Errors
/// Where each rank has a share of the keys and values, which no file tells of.
fn require_whole(model: &Model) -> Result<()> {
    if model.is_shared_out() {
        return Err(Error::Ranks("a prompt cache is of a whole model; several ranks make and use none".into()));
    }
    Ok(())
}

impl PromptCache {
    /// Prefill `ids`, `chunk_size` tokens at a time. When `watch` stops it, it holds the chunks that were finished.
    ///
    /// # Errors
    /// When there are none, one is not in the model's vocabulary, or it was stopped before the end of the first chunk.
    pub fn new(model: &Model, ids: &[u32], limits: CacheLimits, chunk_size: usize, watch: &mut Watch) -> Result<Self> {
        require_whole(model)?;
        if ids.is_empty() {
            return Err(Error::Input("the prompt has no tokens; give at least one character of text".into()));
        }
        model.check_ids(ids)?;
        let mut cache = model.new_cache(limits);
        let chunk_size = limits.chunk_size(ids.len(), chunk_size);
        let on_progress = &mut |done, _| (watch.on_progress)(done, ids.len() as u64);
        let mut watch = Watch { on_progress, stop: watch.stop };
        while (cache.seen() as usize) < ids.len() {
            let before = cache.clone();
            let end = ids.len().min(cache.seen() as usize + chunk_size);
            if read(model, &mut cache, &ids[..end], chunk_size, &mut watch)?.is_break() {
                cache = before;
                break;
            }
        }
        match cache.seen() as usize {
            0 => Err(Error::Interrupted),
            seen => Ok(PromptCache { model: model.identity().to_owned(), ids: ids[..seen].to_vec(), cache }),
        }
    }

    /// What an engine has kept: `cache` holds `ids`.
    pub(super) fn of_prefix(model: &Model, ids: Vec<u32>, cache: KvCache) -> Self {
        PromptCache { model: model.identity().to_owned(), ids, cache }
    }

    /// The same, for an engine to keep.
    ///
    /// # Errors
    /// When it was made with another model, or evicted tokens.
    pub(super) fn into_prefix(self, model: &Model) -> Result<Prefix> {
        self.require(model)?;
        if self.cache.evicted() > 0 {
            return Err(Error::Input("the prompt cache evicted tokens, so that it serves one prompt alone".into()));
        }
        Ok(Prefix { prefilled: self.ids.len(), ids: self.ids, cache: self.cache, uses: 1 })
    }

    fn require(&self, model: &Model) -> Result<()> {
        match self.model == model.identity() {
            true => Ok(()),
            false => {
                Err(Error::Input("the prompt cache was made with another model; make it again with this one".into()))
            }
        }
    }

    /// Tokens that it saves a generation from reading.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens that did not fit and were evicted.
    pub fn evicted(&self) -> u64 {
        self.cache.evicted()
    }

    /// Write it to `path`, which appears when it is complete.
    ///
    /// # Errors
    /// When `path` exists and `overwrite` is not set, or writing fails.
    pub fn save(&self, path: &Path, overwrite: bool) -> Result<()> {
        self.contents()?.write(path, overwrite)
    }

    /// What goes into the file. Where the model is used meanwhile, its thread must call this.
    pub(crate) fn contents(&self) -> Result<Contents> {
        let limits = self.cache.limits();
        let mut metadata = Metadata {
            model: self.model.clone(),
            ids: self.ids.clone(),
            evicted: self.cache.evicted(),
            untrimmable: self.cache.untrimmable(),
            context_size: limits.context_size,
            num_sink_tokens: limits.num_sink_tokens,
            eviction_batch_percent: limits.eviction_batch_percent,
            sha256: String::new(),
        };
        let mut tensors = Vec::new();
        for layer in 0..self.cache.n_layers() {
            let (keys, values) = self.cache.layer(layer)?.expect("it holds tokens");
            for (name, array) in [("keys", keys), ("values", values)] {
                let shape = array.shape().iter().map(|&dim| dim as usize).collect();
                let name = format!("layers.{layer}.{name}");
                tensors.push((TensorHead { name, dtype: file_dtype(array.dtype()), shape }, bytes(&array)?));
            }
        }
        metadata.sha256 = metadata.hash(tensors.iter().map(|(head, bytes)| (head.dtype, bytes.as_slice())));
        Ok(Contents { metadata: metadata.to_json(), tensors })
    }

    /// Read what [`PromptCache::save`] wrote for this `model`.
    ///
    /// # Errors
    /// When it cannot be read, is no such file, is damaged, or was made with another model.
    pub fn load(path: &Path, model: &Model) -> Result<Self> {
        require_whole(model)?;
        // Asked before opening, since opening a fifo waits for its writer.
        let found = fs::metadata(path).map_err(Error::io(path))?;
        if !found.is_file() {
            return Err(Error::malformed(path, "not a regular file"));
        }
        let file =
            File::open(path).and_then(|file| Mapped::file(path, &file, 0..found.len())).map_err(Error::io(path))?;
        let invalid =
            |problem: &dyn std::fmt::Display| Error::malformed(path, format!("not a prompt cache: {problem}"));
        let tensors = SafeTensors::deserialize(&file).map_err(|e| invalid(&e))?;
        let (_, header) = SafeTensors::read_metadata(&file).map_err(|e| invalid(&e))?;
        let Some(text) = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY)) else {
            return Err(invalid(&"`mlx_lm cache-prompt` makes them"));
        };
        let metadata: Metadata = serde_json::from_str(text).map_err(|e| invalid(&e))?;
        if metadata.model != model.identity() {
            return Err(Error::malformed(path, "was made with another model; make it again with this one"));
        }
        let limits = CacheLimits {
            context_size: metadata.context_size,
            num_sink_tokens: metadata.num_sink_tokens,
            eviction_batch_percent: metadata.eviction_batch_percent,
        };
        let config = model.config();
        let len = (metadata.ids.len() as u64).saturating_sub(metadata.evicted);
        let (context_size, sinks) = (i64::from(limits.context_size), i64::from(limits.num_sink_tokens));
        let least = if metadata.evicted > 0 { sinks } else { 0 };
        let counts_fit = i64::try_from(len)
            .is_ok_and(|len| (1..=context_size).contains(&len) && (least..=len).contains(&metadata.untrimmable.into()))
            && (0..=context_size - 2).contains(&sinks)
            && (metadata.evicted == 0 || metadata.ids.len() as i64 > context_size)
            && (1..=50).contains(&limits.eviction_batch_percent);
        if !counts_fit || metadata.ids.iter().any(|&id| i64::from(id) >= i64::from(config.vocab_size)) {
            return Err(invalid(&"its counts contradict each other"));
        }
        let len = len as i32;
        let mut cache = model.new_cache(limits);
        let views = (0..2 * cache.n_layers())
            .map(|i| {
                let (layer, part) = (i / 2, ["keys", "values"][i % 2]);
                let keys = tensors.tensor(&format!("layers.{layer}.keys")).map_err(|e| invalid(&e))?;
                let rows = keys.shape().get(2).and_then(|&rows| i32::try_from(rows).ok());
                let rows = rows.filter(|rows| cache.fits(layer, len, *rows));
                let shape = [1, config.num_key_value_heads, rows.unwrap_or(len), config.head_dim];
                let name = format!("layers.{layer}.{part}");
                let view = tensors.tensor(&name).map_err(|e| invalid(&e))?;
                let fits = view.shape().iter().copied().eq(shape.iter().map(|&dim| dim as usize));
                match mlx_dtype(view.dtype()) {
                    Some(dtype) if fits => Ok((dtype, shape, view)),
                    _ => Err(Error::tensor(path, &name, format!("is not {shape:?} of F32, F16 or BF16"))),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        if metadata.sha256 != metadata.hash(views.iter().map(|(_, _, view)| (view.dtype(), view.data()))) {
            return Err(Error::malformed(path, "is damaged (SHA-256 differs); make it again"));
        }
        let arrays = views.iter().map(|(dtype, shape, view)| ops::copy(view.data(), shape, *dtype));
        let mut arrays = arrays.collect::<Result<Vec<_>>>()?.into_iter();
        file.check()?;
        let layers = std::iter::from_fn(|| Some((arrays.next()?, arrays.next()?))).collect();
        cache.restore(layers, len, metadata.evicted, metadata.untrimmable);
        Ok(PromptCache { model: metadata.model, ids: metadata.ids, cache })
    }

    /// A cache with `limits` that holds what this one shares with the beginning of `prompt`, but not its last token; nothing, where
    /// this one cannot be cut there.
    ///
    /// # Errors
    /// When it was made with another model; when tokens were evicted and what is left is not what such a cache would hold for
    /// this prompt, or it holds more than the limits allow.
    pub(super) fn resume(&self, model: &Model, limits: CacheLimits, prompt: &[u32]) -> Result<KvCache> {
        self.require(model)?;
        let most = prompt.len() - 1;
        let shared = self.ids.iter().zip(&prompt[..most]).take_while(|(a, b)| a == b).count();
        let cache = match self.cache.evicted() {
            0 => self.beginning(model, limits, shared)?,
            _ => self.going_on(limits, prompt, shared)?,
        };
        if (cache.seen() as usize) < self.ids.len().min(most) {
            log::warn!("of the {} cached tokens, only the first {} serve this prompt", self.ids.len(), cache.seen());
        }
        Ok(cache)
    }

    /// Where nothing was evicted: what it holds of the first `shared` tokens.
    fn beginning(&self, model: &Model, limits: CacheLimits, shared: usize) -> Result<KvCache> {
        if shared > limits.context_size as usize {
            return Err(Error::Input(format!(
                "the prompt cache holds {shared} tokens, but the context only {}",
                limits.context_size
            )));
        }
        match shared > 0 && self.cache.has_beginning(shared as i32, limits) {
            true => Ok(self.cache.beginning(shared as i32, limits)),
            false => Ok(model.new_cache(limits)),
        }
    }

    /// Where tokens were evicted: itself, without its last tokens if the prompt goes on otherwise after `shared`.
    fn going_on(&self, limits: CacheLimits, prompt: &[u32], shared: usize) -> Result<KvCache> {
        let mut cache = self.cache.clone();
        if prompt.len() <= limits.context_size as usize {
            return Err(Error::Input(format!(
                "the prompt cache evicted tokens, but this prompt of {} fits into the context of {}; leave the cache out",
                prompt.len(),
                limits.context_size
            )));
        }
        if cache.limits() != limits {
            let CacheLimits { context_size, num_sink_tokens, eviction_batch_percent } = cache.limits();
            return Err(Error::Input(format!(
                "the prompt cache evicted tokens with a context size of {context_size}, {num_sink_tokens} sinks and batches of {eviction_batch_percent} percent; use the same here"
            )));
        }
        cache.trim((self.ids.len() - shared) as i32).map_err(|error| {
            Error::Input(format!("this prompt and the cached one part after {shared} tokens, and the cache {error}"))
        })?;
        Ok(cache)
    }
}

/// The elements of an array, little-endian, in row-major order.
fn bytes(array: &Array) -> Result<Vec<u8>> {
    let flat = array.reshape(&[-1])?.view_dtype(Dtype::Uint8)?;
    flat.eval()?;
    Ok(flat.as_slice::<u8>().to_vec())
}

fn mlx_dtype(dtype: FileDtype) -> Option<Dtype> {
    [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32].into_iter().find(|&known| file_dtype(known) == dtype)
}

fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::Float16 => FileDtype::F16,
        Dtype::Bfloat16 => FileDtype::BF16,
        _ => FileDtype::F32,
    }
}
