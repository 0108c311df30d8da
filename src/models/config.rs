//! config.json, checked and normalised: everything after this works from [`DecoderConfig`] and asks no questions.
//!
//! Field names are Hugging Face's (`transformers`' `LlamaConfig`, `MistralConfig`, `Qwen3Config`).

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::rope::RopeConfig;
use crate::error::{Error, Result};
use crate::quantized::{BITS, GROUP_SIZES, Packing, Quantization};

/// Larger than any model's hidden size, vocabulary or number of layers; keeps products of two within i64.
const MAX_SIZE: i64 = 1 << 24;
const MAX_POSITIONS: i64 = 1 << 30;
/// What [`Fields::positive`] takes, for messages.
const POSITIVE_F32: &str = "a number above 0 that f32 holds, from 1.2e-38 to 3.4e38";

/// What the decoder is built from: the union of the three families' settings, with every default filled in. A family whose
/// layers differ lists them in `layers`.
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
    /// Whether the embedding is also the output projection; `None` when config.json does not say.
    pub tie_word_embeddings: Option<bool>,
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
    /// `q_proj`, `k_proj`, `v_proj` and `o_proj` have a bias.
    pub attention_bias: bool,
    /// `gate_proj`, `up_proj` and `down_proj` have a bias.
    pub mlp_bias: bool,
    /// Queries and keys are RMS-normalised per head before RoPE (`q_norm`, `k_norm`).
    pub qk_norm: bool,
}

/// The values by which the families differ when config.json leaves them out.
pub(super) struct Defaults {
    pub max_position_embeddings: i32,
    /// `None` derives it from `hidden_size`.
    pub head_dim: Option<i32>,
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

    /// The settings that all three families share.
    pub(super) fn read(fields: &Fields, defaults: Defaults) -> Result<Self> {
        if let Some(act) = fields.optional_str("hidden_act")?
            && act != "silu"
        {
            return Err(fields.unsupported(format!("hidden_act {act:?}"), "supported: \"silu\""));
        }
        if fields.optional_bool("rope_traditional")? == Some(true) {
            return Err(fields.unsupported("rope_traditional", "supported: half-split rotation"));
        }
        if fields.optional_positive("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(fields.unsupported("partial_rotary_factor", "supported: heads that rotate as a whole"));
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
        Ok(DecoderConfig {
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
            layers: vec![LayerConfig {
                rope: Some(RopeConfig::read(fields, max_position_embeddings)?),
                sliding_window: uniform_window(fields)?,
                attention_scale: (head_dim as f32).powf(-0.5),
                attention_bias: fields.optional_bool("attention_bias")?.unwrap_or(false),
                mlp_bias: fields.optional_bool("mlp_bias")?.unwrap_or(false),
                qk_norm: false,
            }],
            quantization: read_quantization(fields)?,
        })
    }
}

/// The window that `layer_types` implies, which must be the same for all layers.
fn uniform_window(fields: &Fields) -> Result<Option<i32>> {
    let Some(types) = fields.optional_array("layer_types")? else {
        return Ok(None);
    };
    let all = |name: &str| types.iter().all(|t| t == name);
    if all("full_attention") {
        Ok(None)
    } else if all("sliding_attention") {
        fields.size("sliding_window").map(Some)
    } else {
        Err(fields.unsupported("layer_types of several kinds", "supported: the same attention in every layer"))
    }
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

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether a field is an object itself.
    pub fn has_nested(&self) -> bool {
        self.map.values().any(Value::is_object)
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
