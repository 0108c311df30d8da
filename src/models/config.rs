//! config.json, checked and normalised: everything after this works from [`DecoderConfig`] and asks no questions.
//!
//! Field names are Hugging Face's (`transformers`' `LlamaConfig`, `MistralConfig` and so on).

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::rope::{RopeConfig, RopeFields};
pub use crate::backend::{Activation, Residual};
use crate::error::{Error, Result};
use crate::quantized::{BITS, GROUP_SIZES, Packing, Quantization};

/// Larger than any model's hidden size, vocabulary or number of layers; keeps products of two within i64.
const MAX_SIZE: i64 = 1 << 24;
const MAX_POSITIONS: i64 = 1 << 30;
/// What [`Fields::positive`] takes, for messages.
const POSITIVE_F32: &str = "a number above 0 that f32 holds, from 1.2e-38 to 3.4e38";

/// What the decoder is built from: the union of the families' settings, with every default filled in.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// Number of token ids (V).
    pub vocab_size: i32,
    /// Width of the hidden states (D).
    pub hidden_size: i32,
    /// Width inside the MLP.
    pub intermediate_size: i32,
    /// Number of decoder blocks.
    pub num_hidden_layers: i32,
    /// Query heads.
    pub num_attention_heads: i32,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: i32,
    /// Width of one head; not always `hidden_size / num_attention_heads`.
    pub head_dim: i32,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f32,
    /// The longest sequence the model was made for, in tokens.
    pub max_position_embeddings: i32,
    /// Whether the embedding is also the output projection; `None` when that shows in whether there is one.
    pub tie_word_embeddings: Option<bool>,
    /// What embeddings are multiplied with.
    pub embedding_multiplier: f32,
    /// What logits are divided by.
    pub logits_scaling: f32,
    /// Logits x become `c · tanh(x / c)`.
    pub final_logit_softcapping: Option<f32>,
    /// What is added to the weights of all norms, as they are stored.
    pub norm_weight_offset: f32,
    /// `q_proj`, `k_proj` and `v_proj` are one module, `qkv_proj`; `gate_proj` and `up_proj` are `gate_up_proj`.
    pub fused_projections: bool,
    /// Where in the checkpoint the decoder's tensors are; empty for its top.
    pub weights_prefix: &'static str,
    /// Tensors that a checkpoint may have besides: what their names begin with.
    pub other_weights: &'static [&'static str],
    /// The kinds of layers, by turns; one where all are alike. See [`DecoderConfig::layer`].
    pub layers: Vec<LayerConfig>,
    /// How packed weights are packed; `None` for a model without any.
    pub quantization: Option<Quantization>,
}

/// What may differ from one decoder block to another.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// Rotary position embedding; `None` for queries and keys that do not rotate.
    pub rope: Option<RopeConfig>,
    /// How many positions a query sees, itself included; `None` for all.
    pub sliding_window: Option<i32>,
    /// What products of queries and keys are multiplied with.
    pub attention_scale: f32,
    /// Scores s of attention become `c · tanh(s / c)`.
    pub attn_logit_softcapping: Option<f32>,
    /// `q_proj`, `k_proj` and `v_proj` have a bias.
    pub qkv_bias: bool,
    /// `o_proj` has a bias.
    pub o_bias: bool,
    /// `gate_proj`, `up_proj` and `down_proj` have a bias.
    pub mlp_bias: bool,
    /// What gates the MLP.
    pub activation: Activation,
    /// How queries and keys are RMS-normalised before RoPE (`q_norm`, `k_norm`), if they are.
    pub qk_norm: Option<QkNorm>,
    /// Where the layer normalises its hidden states.
    pub norms: NormPlacement,
    /// How attention and MLP are added to the hidden states.
    pub residual: Residual,
}

/// What queries and keys are normalised over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself; all heads have one weight.
    PerHead,
    /// All heads of a token together.
    AllHeads,
}

/// Where a layer normalises, as seen from attention and the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// What goes in.
    Before,
    /// What comes out.
    After,
    /// Both.
    Around,
}

/// The values by which the families differ when config.json leaves them out.
pub(super) struct Defaults {
    pub max_position_embeddings: i32,
    /// `None` derives it from `hidden_size`.
    pub head_dim: Option<i32>,
    pub rope_theta: f64,
    pub activation: Activation,
    /// The family's heads may rotate in part; others take no `partial_rotary_factor`.
    pub partial_rotation: bool,
    /// The family has a rotation for each type of layer.
    pub rope_by_layer_type: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            max_position_embeddings: 2048,
            head_dim: None,
            rope_theta: 1e4,
            activation: Activation::Silu,
            partial_rotation: false,
            rope_by_layer_type: false,
        }
    }
}

impl DecoderConfig {
    /// Of decoder block `i`.
    pub fn layer(&self, i: usize) -> &LayerConfig {
        &self.layers[i % self.layers.len()]
    }

    /// # Errors
    /// When one of `ids` has no embedding, which a forward pass would not notice.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| i64::from(id) >= i64::from(self.vocab_size)) {
            None => Ok(()),
            Some(id) => Err(Error::Input(format!(
                "the tokenizer made token {id}, but the model's vocabulary ends at {}; do tokenizer.json and config.json belong together?",
                self.vocab_size - 1
            ))),
        }
    }

    /// The settings that all families share.
    pub(super) fn read(fields: &Fields, defaults: Defaults) -> Result<Self> {
        if fields.optional_bool("rope_traditional")? == Some(true) {
            return Err(fields.unsupported("rope_traditional", "supported: half-split rotation"));
        }
        let hidden_size = fields.size("hidden_size")?;
        let num_attention_heads = fields.size("num_attention_heads")?;
        let num_key_value_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(fields.error(
                "num_key_value_heads",
                num_key_value_heads,
                format!("a divisor of num_attention_heads ({num_attention_heads})"),
            ));
        }
        let head_dim = match fields.optional_size("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(fields.error(
                    "num_attention_heads",
                    num_attention_heads,
                    format!("a divisor of hidden_size ({hidden_size}), since there is no head_dim"),
                ));
            }
        };
        if head_dim % 2 != 0 || i64::from(head_dim) * i64::from(num_attention_heads) > MAX_SIZE {
            return Err(fields.error(
                "head_dim",
                head_dim,
                format!("an even number, at most {MAX_SIZE} for all heads together"),
            ));
        }
        let max_position_embeddings = match fields.optional_int("max_position_embeddings", 1..=MAX_POSITIONS)? {
            Some(positions) => positions as i32,
            None => defaults.max_position_embeddings,
        };
        let attention_bias = fields.optional_bool("attention_bias")?.unwrap_or(false);
        let rope = RopeFields { head_dim, max_position_embeddings, defaults: &defaults };
        let layer = LayerConfig {
            rope: Some(RopeConfig::read(fields, rope)?),
            sliding_window: None,
            attention_scale: (head_dim as f32).powf(-0.5),
            attn_logit_softcapping: None,
            qkv_bias: attention_bias,
            o_bias: attention_bias,
            mlp_bias: fields.optional_bool("mlp_bias")?.unwrap_or(false),
            activation: read_activation(fields)?.unwrap_or(defaults.activation),
            qk_norm: None,
            norms: NormPlacement::Before,
            residual: Residual::SUM,
        };
        let mut config = DecoderConfig {
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: fields.positive("rms_norm_eps")? as f32,
            max_position_embeddings,
            tie_word_embeddings: fields.optional_bool("tie_word_embeddings")?,
            embedding_multiplier: 1.0,
            logits_scaling: 1.0,
            final_logit_softcapping: None,
            norm_weight_offset: 0.0,
            fused_projections: false,
            weights_prefix: "",
            other_weights: &[],
            layers: vec![layer],
            quantization: read_quantization(fields)?,
        };
        if let Some(kinds) = layer_types(fields)? {
            config.slide(&kinds, fields.optional_size("sliding_window")?, fields)?;
        }
        Ok(config)
    }

    /// Change all layers.
    pub(super) fn for_layers(&mut self, change: impl Fn(&mut LayerConfig)) {
        self.layers.iter_mut().for_each(change);
    }

    /// Layers that are alike so far, of these kinds by turns: those that slide have a window.
    pub(super) fn slide(&mut self, slides: &[bool], window: Option<i32>, fields: &Fields) -> Result<()> {
        let layer = self.layers[0].clone();
        if slides.contains(&true) && window.is_none() {
            fields.size("sliding_window")?;
        }
        let of = |&slides: &bool| LayerConfig { sliding_window: window.filter(|_| slides), ..layer.clone() };
        self.layers = slides.iter().map(of).collect();
        if self.layers.iter().all(|layer| layer == &self.layers[0]) {
            self.layers.truncate(1);
        }
        Ok(())
    }
}

/// The names of layers' attention in `layer_types` and `rope_parameters`.
pub(super) const FULL_ATTENTION: &str = "full_attention";
pub(super) const SLIDING_ATTENTION: &str = "sliding_attention";

/// Which layers slide a window, for each layer, where config.json lists them.
pub(super) fn layer_types(fields: &Fields) -> Result<Option<Vec<bool>>> {
    let Some(types) = fields.optional_array("layer_types")? else {
        return Ok(None);
    };
    let layers = fields.size("num_hidden_layers")?;
    if types.len() != layers as usize {
        return Err(fields.error(
            "layer_types",
            format!("of {} layers", types.len()),
            format!("{layers}, one a layer"),
        ));
    }
    let slides = |kind: &Value| match kind.as_str() {
        Some(FULL_ATTENTION) => Ok(false),
        Some(SLIDING_ATTENTION) => Ok(true),
        _ => {
            let supported = format!("supported: {FULL_ATTENTION}, {SLIDING_ATTENTION}");
            Err(fields.unsupported(format!("layers of type {}", abbreviate(kind)), supported))
        }
    };
    types.iter().map(slides).collect::<Result<_>>().map(Some)
}

/// What gates the MLP, under its newer or its older name.
fn read_activation(fields: &Fields) -> Result<Option<Activation>> {
    for key in ["hidden_activation", "hidden_act"] {
        match fields.optional_str(key)? {
            None => {}
            Some("silu") => return Ok(Some(Activation::Silu)),
            Some("gelu_pytorch_tanh") => return Ok(Some(Activation::GeluTanh)),
            Some(other) => {
                return Err(fields.unsupported(format!("{key} {other:?}"), "supported: silu, gelu_pytorch_tanh"));
            }
        }
    }
    Ok(None)
}

/// MLX's `quantization` block, or the same under `quantization_config`; mlx-lm writes both.
fn read_quantization(fields: &Fields) -> Result<Option<Quantization>> {
    let key = if fields.has("quantization") { "quantization" } else { "quantization_config" };
    let Some(block) = fields.optional_object(key)? else {
        return Ok(None);
    };
    if let Some(method) = block.optional_str("quant_method")? {
        return Err(block.unsupported(
            format!("quantization method {method:?}"),
            "supported: affine, as mlx_lm.convert writes it; convert the original model with it",
        ));
    }
    // mlx-lm takes null for MLX's default here, but not the lack of the key.
    for (key, allowed) in [("group_size", &GROUP_SIZES[..]), ("bits", &BITS)] {
        if !block.map.contains_key(key) {
            return Err(block.error(key, "missing", format!("one of {allowed:?}")));
        }
    }
    let default = read_packing(&block)?;
    let mut overrides = HashMap::new();
    for (module, value) in block.map {
        match value {
            Value::Object(_) => {
                let block = block.optional_object(module)?.expect("it is an object");
                overrides.insert(module.clone(), Some(read_packing(&block)?));
            }
            Value::Bool(true) => drop(overrides.insert(module.clone(), Some(default))),
            Value::Bool(false) => drop(overrides.insert(module.clone(), None)),
            _ => {}
        }
    }
    Ok(Some(Quantization { default, overrides }))
}

/// How the block says that weights are packed; what it does not say, or says with null, is MLX's default.
fn read_packing(block: &Fields) -> Result<Packing> {
    if let Some(mode) = block.optional_str("mode")?
        && mode != "affine"
    {
        return Err(block.unsupported(format!("quantization mode {mode:?}"), "supported: \"affine\""));
    }
    let one_of = |key: &str, allowed: &[i32], default| {
        let value = block.optional_size(key)?.unwrap_or(default);
        if allowed.contains(&value) { Ok(value) } else { Err(block.error(key, value, format!("one of {allowed:?}"))) }
    };
    let Packing { group_size, bits } = Packing::DEFAULT;
    Ok(Packing { group_size: one_of("group_size", &GROUP_SIZES, group_size)?, bits: one_of("bits", &BITS, bits)? })
}

/// A JSON object whose fields are read with their type and range checked; errors name file and field.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// `path` is only for messages.
    pub fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Fields { path, prefix: String::new(), map }
    }

    /// Where errors are reported against.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether a field is an object itself.
    pub fn has_nested(&self) -> bool {
        self.map.values().any(Value::is_object)
    }

    /// All fields.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// Whether the field is there, and null.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Whether the field is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn optional_object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let object = |v: &'a Value| v.as_object();
        let map = self.optional(key, object, "an object")?;
        Ok(map.map(|map| Fields { path: self.path, prefix: self.full(key) + ".", map }))
    }

    pub fn optional_array(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        self.optional(key, Value::as_array, "a list")
    }

    pub fn optional_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.optional(key, Value::as_str, "a string")
    }

    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        self.optional(key, Value::as_bool, "true or false")
    }

    /// A whole number within `range`; `4096.0` counts as one.
    pub fn optional_int(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let whole = |v: &Value| {
            v.as_i64().or_else(|| v.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15).map(|x| x as i64))
        };
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.optional(key, |v| whole(v).filter(|n| range.contains(n)), &expected)
    }

    /// A size of the model: a whole number from 1 to 2^24.
    pub fn optional_size(&self, key: &str) -> Result<Option<i32>> {
        Ok(self.optional_int(key, 1..=MAX_SIZE)?.map(|n| n as i32))
    }

    pub fn size(&self, key: &str) -> Result<i32> {
        self.optional_size(key)?
            .ok_or_else(|| self.error(key, "missing", format!("a whole number from 1 to {MAX_SIZE}")))
    }

    /// A number above zero that f32 holds in full precision.
    pub fn optional_positive(&self, key: &str) -> Result<Option<f64>> {
        self.optional(key, |v| v.as_f64().filter(|&x| x > 0.0 && (x as f32).is_normal()), POSITIVE_F32)
    }

    /// A list of so many numbers above zero.
    pub fn positives(&self, key: &str, n: usize) -> Result<Vec<f64>> {
        let expected = format!("a list of {n} numbers above 0");
        let positive = |x: &Value| x.as_f64().filter(|&x| x > 0.0 && (x as f32).is_normal());
        let list = self.optional_array(key)?.ok_or_else(|| self.error(key, "missing", &expected))?;
        match list.iter().map(positive).collect::<Option<Vec<f64>>>() {
            Some(numbers) if numbers.len() == n => Ok(numbers),
            _ => Err(self.error(key, format!("a list of {}", list.len()), expected)),
        }
    }

    pub fn positive(&self, key: &str) -> Result<f64> {
        self.optional_positive(key)?.ok_or_else(|| self.error(key, "missing", POSITIVE_F32))
    }

    fn optional<T>(&self, key: &str, read: impl Fn(&'a Value) -> Option<T>, expected: &str) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.error(key, abbreviate(value), expected)),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub fn error(&self, key: &str, found: impl Display, expected: impl Into<String>) -> Error {
        Error::field(self.path, self.full(key), found, expected)
    }

    pub fn unsupported(&self, what: impl Into<String>, supported: impl Into<String>) -> Error {
        Error::unsupported(self.path, what, supported)
    }
}

/// A JSON value short enough for a message.
fn abbreviate(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A family's configuration from JSON, for the families' tests.
#[cfg(test)]
pub(super) fn read_json(read: fn(&Fields) -> Result<DecoderConfig>, json: Value) -> DecoderConfig {
    read(&Fields::new(Path::new("config.json"), json.as_object().unwrap())).unwrap()
}
