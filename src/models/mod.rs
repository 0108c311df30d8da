//! From a checkpoint to a model: which family it is, its configuration, its tensors.

pub mod batch;
pub mod config;
pub mod decoder;
pub mod rope;

mod block;
mod gemma2;
mod gemma3;
mod gemma3_text;
mod granite;
mod leading;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
mod synthetic;

pub use synthetic::Architecture;

use std::ops::Range;
use std::sync::Arc;

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use serde_json::{Map, Value};

use crate::backend::Phase;
use crate::checkpoint::{Checkpoint, WeightFile};
use crate::error::{Error, Result};
use crate::generate::kv_cache::{CacheLayer, CacheLimits, KvCache};
use crate::mapped::Mapped;
use crate::mlx_rs_patch::distributed::Group;
use crate::ops;
use crate::ranks::{self, Ranks, Source};
use crate::watch::Watch;
use crate::weights::{Tensor, Weights};
use batch::Batch;
use config::{DecoderConfig, Fields, LayerConfig};
use decoder::Decoder;
use leading::Leading;

type ReadConfig = fn(&Fields) -> Result<DecoderConfig>;

/// `model_type` of config.json, and how that family's configuration is read.
const FAMILIES: [(&str, ReadConfig); 11] = [
    ("gemma2", gemma2::config),
    ("gemma3", gemma3::config),
    ("gemma3_text", gemma3_text::config),
    ("granite", granite::config),
    ("llama", llama::config),
    ("mistral", mistral::config),
    ("olmo2", olmo2::config),
    ("phi3", phi3::config),
    ("qwen2", qwen2::config),
    ("qwen3", qwen3::config),
    ("smollm3", smollm3::config),
];

/// A model that generates: forward passes and nothing of text.
#[derive(Debug)]
pub struct Model {
    config: DecoderConfig,
    decoder: Decoder,
    cache_layers: Arc<[CacheLayer]>,
    /// What the weights lie in, where they are read in place.
    files: Vec<Arc<Mapped>>,
    identity: String,
    /// Where other ranks have shares of it, and this one tells them what to compute.
    leading: Option<Leading>,
}

impl Model {
    /// Load configuration and weights. `watch` is told the bytes of the weights.
    ///
    /// # Errors
    /// When a file is missing or malformed, the family or a setting is not supported, or a tensor does not fit the
    /// configuration; [`crate::Error::Interrupted`] when `watch` stops it.
    pub fn load(checkpoint: &Checkpoint, watch: &mut Watch) -> Result<Self> {
        let source = || if checkpoint.is_demo() { Source::Demo } else { Source::Path(checkpoint.root().to_owned()) };
        Leading::load(source, || {
            let config = read_config(checkpoint)?;
            let files = checkpoint.weight_files()?;
            let identity = checkpoint.identity(&files)?;
            let group = ranks::current().and_then(Ranks::group);
            let model = Model::build(config, &files, identity, group, watch)?;
            model.check_files()?;
            Ok(model)
        })
    }

    /// Check all that [`Model::load`] checks, reading the headers of the weights only.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn check(checkpoint: &Checkpoint) -> Result<()> {
        let config = read_config(checkpoint)?;
        Model::build(config, &checkpoint.weight_headers()?, String::new(), None, &mut Watch::none()).map(drop)
    }

    /// A model with random weights, quantized to `bits` (4 or 8, in groups of 64) or in bf16 (16), for measuring speed.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn synthetic(architecture: Architecture, bits: u32) -> Result<Self> {
        Leading::load(
            || Source::Synthetic(architecture.name().to_owned(), bits),
            || {
                let map = architecture.config(bits);
                let config = read_fields(&Fields::new("<synthetic>".as_ref(), &map))?;
                let identity = format!("synthetic {}, {bits} bits", architecture.name());
                let weights = synthetic::weights(&config, bits)?;
                let group = ranks::current().and_then(Ranks::group);
                Model::build(config, &[weights], identity, group, &mut Watch::none())
            },
        )
    }

    fn build(
        config: DecoderConfig,
        files: &[WeightFile],
        identity: String,
        group: Option<Group>,
        watch: &mut Watch,
    ) -> Result<Self> {
        let (decoder, _) = load_decoder(&config, Weights::new(files, watch)?.shared_out(group))?;
        let files = files.iter().filter_map(WeightFile::map).cloned().collect();
        let cache_layers = cache_layers(&config);
        Ok(Model { config, decoder, cache_layers, files, identity, leading: None })
    }

    fn check_files(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check())
    }

    /// What tells this model from others: a hash of its configuration and of what its weights begin with. The same for a
    /// directory and its pack.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What config.json says, with all defaults filled in.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// An empty cache of this model's shape.
    pub fn new_cache(&self, limits: CacheLimits) -> KvCache {
        let cache = KvCache::new(limits, Arc::clone(&self.cache_layers));
        if ops::holds_all() { cache.holding_all() } else { cache }
    }

    /// The type that hidden states, keys and values have.
    pub fn dtype(&self) -> Dtype {
        self.decoder.dtype()
    }

    /// What a decode step reads of the weights, in bytes: all but an embedding that is not the output projection too.
    pub fn step_bytes(&self) -> usize {
        self.decoder.step_bytes()
    }

    /// Multiplications and additions for one token of a prefill in the layers' matrices.
    pub fn token_flops(&self) -> f64 {
        self.decoder.token_flops()
    }

    /// # Errors
    /// As [`DecoderConfig::check_ids`].
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        self.config.check_ids(ids)
    }

    /// Whether other ranks have shares of it.
    pub fn is_shared_out(&self) -> bool {
        self.decoder.is_shared_out()
    }

    /// Bytes that a cache with these limits comes to take with so many tokens, `at_once` of them in one pass at most; of which each
    /// rank has its share.
    pub fn cache_bytes(&self, limits: CacheLimits, tokens: usize, at_once: usize) -> u64 {
        self.row_bytes() * self.new_cache(limits).most_rows(tokens, at_once)
    }

    /// What a decode step reads of keys and values, in bytes, with so many tokens in the cache; of which each rank reads its share.
    pub fn step_cache_bytes(&self, tokens: usize) -> u64 {
        let seen =
            |layer: &CacheLayer| layer.sliding_window.map_or(tokens, |window| tokens.min(window as usize)) as u64;
        self.row_bytes() * self.cache_layers.iter().map(seen).sum::<u64>()
    }

    /// Bytes of keys and values of a token in a layer.
    fn row_bytes(&self) -> u64 {
        let config = &self.config;
        let heads = config.num_key_value_heads / ranks::current().map_or(1, Ranks::size);
        let numbers = 2 * i64::from(heads) * i64::from(config.head_dim);
        let size = if self.dtype() == Dtype::Float32 { 4 } else { 2 };
        numbers as u64 * size
    }

    /// The tokens of a batch to hidden states `[N, D]`, which are described, not computed: see [`Model::evaluate`].
    ///
    /// # Errors
    /// When there is no memory to describe them.
    ///
    /// # Panics
    /// When a cache cannot make room for its span.
    pub fn forward(&self, batch: &mut Batch) -> Result<Array> {
        self.forward_by_layer(batch, &mut |_| ())
    }

    /// [`Model::forward`] that tells `on_layer` the layers done. Where a CPU computes many tokens, it computes each layer
    /// as it goes.
    pub(crate) fn forward_by_layer(&self, batch: &mut Batch, on_layer: &mut dyn FnMut(usize)) -> Result<Array> {
        if let Some(leading) = &self.leading {
            leading.describe(batch);
        }
        self.decoder.forward(batch, on_layer)
    }

    /// Compute what this thread described with this model, as far as `arrays` need it.
    ///
    /// # Errors
    /// When memory runs out, a token has no embedding, a kernel fails or is interrupted, or a weights' file was cut off;
    /// the arrays and the caches that took part are then of no use, the model is as good as before.
    pub fn evaluate<'a>(&self, arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
        if let Some(leading) = &self.leading {
            leading.compute();
        }
        let evaluated = ops::evaluate(arrays);
        self.check_files()?; // which explains all other failures
        match (&self.leading, &evaluated) {
            // What was interrupted took part in all exchanges.
            (None, _) | (_, Ok(()) | Err(Error::Interrupted)) => {}
            (Some(leading), Err(error)) => leading.fail(error),
        }
        evaluated
    }

    /// Begin to compute `arrays`, as [`Model::evaluate`] does, without waiting.
    ///
    /// # Errors
    /// When they cannot be described to MLX.
    pub(crate) fn submit<'a>(&self, arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
        if let Some(leading) = &self.leading {
            leading.compute();
        }
        ops::submit(arrays)
    }

    /// Hidden states `[N, D]` of the last pass to logits of some of its tokens, `[tokens, V]`. Decoding computes those of the
    /// tokens that are chosen by them as [`Phase::Decode`].
    pub fn logits(&self, hidden_states: &Array, tokens: Range<i32>, phase: Phase) -> Result<Array> {
        if let Some(leading) = &self.leading {
            leading.describe_logits(tokens.clone(), phase);
        }
        let is_all = tokens == (0..hidden_states.dim(0));
        let some = if is_all { hidden_states.clone() } else { hidden_states.try_index((tokens, ..))? };
        let logits = self.decoder.logits(&some, phase)?;
        // Whoever chooses a token may wait for them without asking the model.
        if let Some(leading) = &self.leading {
            leading.compute();
        }
        Ok(logits)
    }
}

/// The decoder, and the tensors that it took.
fn load_decoder<'f>(config: &DecoderConfig, weights: Weights<'f>) -> Result<(Decoder, Vec<Tensor<'f>>)> {
    let decoder = Decoder::load(&weights.scope(""), config)?;
    let tied = config.tie_word_embeddings == Some(true);
    let head = weights.scope(config.weights_prefix).scope("lm_head.").path().to_owned();
    let others = |name: &str| config.other_weights.iter().any(|other| name.starts_with(other));
    weights.ignore(|name| name.ends_with("rotary_emb.inv_freq") || others(name) || (tied && name.starts_with(&head)));
    Ok((decoder, weights.finish()?))
}

/// The tensors that make a model of this configuration, in the order in which its layers take them; without those that a
/// checkpoint may hold besides. Of `files`, the headers alone are read.
///
/// # Errors
/// As [`Model::load`].
pub(crate) fn tensors<'f>(
    config: &DecoderConfig,
    files: &'f [WeightFile],
    watch: &'f mut Watch,
) -> Result<Vec<Tensor<'f>>> {
    Ok(load_decoder(config, Weights::new(files, watch)?.headers_only())?.1)
}

fn cache_layers(config: &DecoderConfig) -> Arc<[CacheLayer]> {
    let of = |layer: &LayerConfig| CacheLayer {
        sliding_window: layer.sliding_window,
        rotations: layer.rope.as_ref().map(|rope| rope.rotations()),
    };
    let kinds: Vec<CacheLayer> = config.layers.iter().map(of).collect();
    kinds.iter().cycle().take(config.num_hidden_layers as usize).cloned().collect()
}

/// config.json of the checkpoint, checked.
///
/// # Errors
/// As [`Model::load`], for what concerns config.json.
pub fn read_config(checkpoint: &Checkpoint) -> Result<DecoderConfig> {
    const CONFIG: &str = "config.json";
    let map: Map<String, Value> =
        checkpoint.required_json(CONFIG, "a model directory holds a config.json, as Hugging Face writes it")?;
    let path = checkpoint.path(CONFIG);
    read_fields(&Fields::new(&path, &map))
}

fn read_fields(fields: &Fields) -> Result<DecoderConfig> {
    let supported = FAMILIES.map(|(name, _)| name).join(", ");
    let Some(model_type) = fields.optional_str("model_type")? else {
        return Err(fields.error("model_type", "missing", format!("one of {supported}")));
    };
    match FAMILIES.iter().find(|(name, _)| *name == model_type) {
        Some((_, read)) => read(fields),
        None => Err(fields.unsupported(format!("model_type {model_type:?}"), format!("supported: {supported}"))),
    }
}
