//! What a model is, and what it must be to be worth packing.

use std::collections::{HashMap, HashSet};

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::summary::{QuantizationSummary, Summary, TokenizerSummary};
use crate::checkpoint::{Checkpoint, WEIGHTS_INDEX, WeightFile};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::quantized::Packing;
use crate::tensor_index::TensorEntry;
use crate::tokenizer::Tokenizer;

/// What a checkpoint is. When `strict`, everything is checked that running it checks, and that its index is right;
/// otherwise what cannot be read is absent, with a warning.
///
/// # Errors
/// Only when `strict`: as [`Model::load`] and [`Tokenizer::load`].
pub fn inspect(checkpoint: &Checkpoint, strict: bool) -> Result<Summary> {
    fn lenient<T: Default>(result: Result<T>, strict: bool) -> Result<T> {
        result.or_else(|error| {
            if strict {
                return Err(error);
            }
            log::warn!("{error}");
            Ok(T::default())
        })
    }
    if strict {
        Model::check(checkpoint)?;
    }
    let config: Map<String, Value> = lenient(checkpoint.json("config.json"), strict)?.unwrap_or_default();
    let weights = lenient(checkpoint.weight_headers(), strict)?;
    if strict {
        check_index(checkpoint, &weights)?;
    }
    let tokenizer = lenient(Tokenizer::load(checkpoint).map(Some), strict)?;
    Ok(Summary::new(&config, tokenizer.as_ref(), &weights))
}

/// Each tensor that `model.safetensors.index.json` names must be in the file that it names.
fn check_index(checkpoint: &Checkpoint, weights: &[WeightFile]) -> Result<()> {
    let Some(index) = checkpoint.index()? else {
        return Ok(());
    };
    let mut found = HashMap::new();
    for file in weights {
        found.extend(file.index.tensors.iter().map(|tensor| (&tensor.name, &file.path)));
    }
    let is_misplaced = |(tensor, file): &(&String, &String)| found.get(tensor) != Some(&&checkpoint.path(file));
    match index.weight_map.iter().find(is_misplaced) {
        Some((tensor, file)) => {
            let problem = format!("is not in {file}, as the index says");
            Err(Error::tensor(&checkpoint.path(WEIGHTS_INDEX), tensor, problem))
        }
        None => Ok(()),
    }
}

impl Summary {
    /// From config.json, the tokenizer and the headers of the weights, as far as they are there.
    fn new(config: &Map<String, Value>, tokenizer: Option<&Tokenizer>, weights: &[WeightFile]) -> Self {
        let number = |key: &str| config.get(key).and_then(Value::as_u64);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let quantization = ["quantization", "quantization_config"].iter().find_map(|key| config.get(*key)?.as_object());
        let quantization = quantization.map(QuantizationSummary::new);
        Summary {
            architecture: config
                .get("architectures")
                .and_then(|list| text(list.get(0)?))
                .or_else(|| text(config.get("model_type")?)),
            hidden_size: number("hidden_size"),
            num_hidden_layers: number("num_hidden_layers"),
            num_attention_heads: number("num_attention_heads"),
            num_key_value_heads: number("num_key_value_heads"),
            vocab_size: number("vocab_size"),
            max_position_embeddings: number("max_position_embeddings"),
            tokenizer: tokenizer.map(TokenizerSummary::new).unwrap_or_default(),
            tensor_count: weights.iter().map(|file| file.index.tensors.len() as u64).sum(),
            parameter_count: parameter_count(quantization.as_ref(), weights),
            quantization,
        }
    }
}

impl QuantizationSummary {
    fn new(block: &Map<String, Value>) -> Self {
        let block = &without_nulls(block);
        let overrides = block.iter().filter_map(|(module, value)| match value {
            Value::Object(settings) => Some((module.clone(), without_nulls(settings).into())),
            Value::Bool(_) => Some((module.clone(), value.clone())),
            _ => None,
        });
        QuantizationSummary {
            bits: block.get("bits").and_then(Value::as_u64),
            group_size: block.get("group_size").and_then(Value::as_u64),
            mode: block.get("mode").and_then(Value::as_str).unwrap_or("affine").to_owned(),
            overrides: overrides.collect(),
        }
    }

    /// Bits of a packed value of `module`.
    fn bits_of(&self, module: &str) -> Option<u64> {
        let bits = match self.overrides.get(module) {
            // What a module's own settings leave out is MLX's default, not that of the other modules.
            Some(Value::Object(settings)) => {
                settings.get("bits").map_or(Some(Packing::DEFAULT.bits as u64), Value::as_u64)
            }
            _ => self.bits,
        };
        bits.filter(|bits| (1..=32).contains(bits))
    }
}

/// The settings with MLX's default in place of null, which mlx-lm writes for what its user did not choose.
fn without_nulls(settings: &Map<String, Value>) -> Map<String, Value> {
    let mut settings = settings.clone();
    for (key, default) in [("group_size", Packing::DEFAULT.group_size), ("bits", Packing::DEFAULT.bits)] {
        if let Some(value @ Value::Null) = settings.get_mut(key) {
            *value = default.into();
        }
    }
    settings
}

impl TokenizerSummary {
    fn new(tokenizer: &Tokenizer) -> Self {
        TokenizerSummary {
            bos_token_id: tokenizer.bos_token_id(),
            eos_token_ids: tokenizer.eos_token_ids().iter().copied().collect(),
            has_chat_template: tokenizer.has_chat_template(),
        }
    }
}

fn parameter_count(quantization: Option<&QuantizationSummary>, weights: &[WeightFile]) -> u64 {
    let tensors = || weights.iter().flat_map(|file| &file.index.tensors);
    let packed: HashSet<&str> = tensors().filter_map(|tensor| tensor.name.strip_suffix(".scales")).collect();
    let count = |tensor: &TensorEntry| {
        let elements = tensor.shape.iter().product::<usize>() as u64; // checked when the header was read
        match tensor.name.rsplit_once('.') {
            Some((module, "scales" | "biases")) if packed.contains(module) => 0,
            Some((module, "weight")) if packed.contains(module) && tensor.dtype == Dtype::U32 => {
                let bits = quantization.and_then(|quantization| quantization.bits_of(module)).unwrap_or(32);
                (u128::from(elements) * 32 / u128::from(bits)) as u64
            }
            _ => elements,
        }
    };
    tensors().map(count).fold(0, u64::saturating_add)
}
