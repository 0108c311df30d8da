//! Models of a real architecture with random weights, made in memory: as fast as the real ones, and saying nothing.

use std::sync::LazyLock;

use memmap2::{Advice, MmapMut};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::config::DecoderConfig;
use super::decoder::Decoder;
use crate::checkpoint::WeightFile;
use crate::error::{Error, Result};
use crate::tensor_index::{TensorEntry, TensorIndex};
use crate::watch::Watch;
use crate::weights::Weights;

/// config.json of real models by name, as published on Hugging Face, as far as it decides what is computed.
static ARCHITECTURES: LazyLock<Map<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("architectures.json")).expect("it is JSON"));

/// Values that share a scale, as `mlx_lm.convert` packs them by default.
const GROUP: usize = 64;

/// An architecture that can be made.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    name: &'static str,
    config: &'static Map<String, Value>,
}

impl Architecture {
    /// All there are, at least one of each family.
    pub fn all() -> impl Iterator<Item = Architecture> {
        let of = |(name, config): (&'static String, &'static Value)| {
            Some(Architecture { name, config: config.as_object()? })
        };
        ARCHITECTURES.iter().filter_map(of)
    }

    /// The one of this name, if there is one.
    pub fn named(name: &str) -> Option<Architecture> {
        Architecture::all().find(|architecture| architecture.name == name)
    }

    /// Such as `llama-3.2-1b`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The architecture's config.json, quantized to `bits` (4 or 8) or in bf16 (16).
    pub(super) fn config(self, bits: u32) -> Map<String, Value> {
        let mut config = self.config.clone();
        if bits != 16 {
            config.insert("quantization".into(), json!({"group_size": GROUP, "bits": bits, "mode": "affine"}));
        }
        config
    }
}

/// A safetensors file in memory, with the tensors that a model of this configuration asks for.
pub(super) fn weights(config: &DecoderConfig, bits: u32) -> Result<WeightFile<'static>> {
    let mut watch = Watch::none();
    let weights = Weights::recording(bits != 16, &mut watch);
    Decoder::load(&weights.scope(""), config)?;
    let mut tensors = weights.into_record();
    // Packed values are read by words.
    tensors.sort_by_key(|tensor| tensor.dtype != Dtype::U32);
    let mut end = 0;
    for TensorEntry { bytes, .. } in &mut tensors {
        *bytes = end..end + (bytes.end - bytes.start);
        end = bytes.end;
    }
    let io = Error::io("<synthetic>".as_ref());
    let mut map = MmapMut::map_anon(end as usize).map_err(&io)?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(Advice::HugePage); // as a file's pages are that were read from disk
    for tensor in &tensors {
        fill(tensor, bits, &mut map[tensor.bytes.start as usize..tensor.bytes.end as usize]);
    }
    WeightFile::in_memory(TensorIndex { data_start: 0, tensors }, map).map_err(io)
}

/// Random quantized values; other numbers of a size that keeps hidden states near 1.
fn fill(tensor: &TensorEntry, bits: u32, bytes: &mut [u8]) {
    let mut state = tensor.bytes.start;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    // In bf16: a sign and seven bits of fraction at random, and a fixed exponent; four numbers at a time.
    let (keep, set) = match &tensor.name {
        _ if tensor.dtype == Dtype::U32 => (u64::MAX, 0),
        name if name.ends_with("norm.weight") => (0, 0x3f80), // 1
        name if name.ends_with(".biases") => (0, 0xbd00),     // -1/32, which centres the values
        name if name.ends_with(".scales") => (0, if bits == 4 { 0x3b80 } else { 0x3980 }), // 1/256, 1/4096
        _ => (0x807f, 0x3c80),                                // ±1/64 to ±1/32
    };
    let four = |pattern: u64| if pattern == u64::MAX { pattern } else { pattern * 0x0001_0001_0001_0001 };
    let (keep, set) = (four(keep), four(set));
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&(next() & keep | set).to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{FAMILIES, read_fields};

    #[test]
    fn each_family_has_an_architecture_that_can_be_read() {
        let mut families = Vec::new();
        for architecture in Architecture::all() {
            let config = architecture.config(4);
            families.push(config["model_type"].as_str().unwrap().to_owned());
            read_fields(&super::super::config::Fields::new("<synthetic>".as_ref(), &config)).unwrap();
        }
        // The text part of Gemma 3 that sees is that of the one that does not.
        for (family, _) in FAMILIES.iter().filter(|(family, _)| *family != "gemma3") {
            assert!(families.iter().any(|found| found == family), "{family}");
        }
    }
}
