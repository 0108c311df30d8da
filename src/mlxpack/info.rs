//! What `mlxpack info` shows, of a pack or of a model directory.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::inspect::inspect;
use super::summary::Summary;
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// A model at a glance. Of a pack, only the header is read; with the tensors, also those of its safetensors files.
#[derive(Debug, Serialize)]
pub struct Info {
    /// The pack or directory.
    pub path: String,
    /// `pack` or `directory`.
    pub source: &'static str,
    /// The pack's length; of a directory, that of the files that packing would choose.
    pub bytes: u64,
    /// What the model is.
    #[serde(flatten)]
    pub summary: Summary,
    /// All files, in the order of the pack.
    pub files: Vec<FileInfo>,
    /// Which of the files are the model's weights.
    pub weights: BTreeSet<String>,
    /// Their bytes.
    pub weights_bytes: u64,
    /// Their tensors, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<TensorInfo>>,
}

/// A file of a model.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct FileInfo {
    pub name: String,
    pub bytes: u64,
}

/// A tensor of a safetensors file.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct TensorInfo {
    pub name: String,
    pub file: String,
    /// As safetensors spells it: `F32`, `BF16`, `U32`, …
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

impl Info {
    /// Look at the pack or directory at `path`.
    ///
    /// # Errors
    /// When it is neither, a header is not valid, or what should be a file of the model is none. What is missing in a
    /// directory is only absent here.
    pub fn read(path: &Path, tensors: bool) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let (source, bytes, summary, files) = match checkpoint.pack() {
            Some(pack) => {
                let files =
                    pack.entries().iter().map(|entry| FileInfo { name: entry.name.clone(), bytes: entry.length });
                ("pack", pack.length(), pack.summary().clone(), files.collect())
            }
            None => {
                let plan = super::Plan::new(&checkpoint, inspect(&checkpoint, false)?, &[])?;
                let file = |(name, bytes): (&str, u64)| FileInfo { name: name.to_owned(), bytes };
                let files: Vec<FileInfo> = plan.files().map(file).collect();
                ("directory", files.iter().map(|file| file.bytes).sum(), plan.summary().clone(), files)
            }
        };
        let weights = checkpoint.weight_names().unwrap_or_default();
        let path = path.display().to_string();
        let mut info = Info { path, source, bytes, summary, files, weights, weights_bytes: 0, tensors: None };
        info.weights_bytes = info.weights().map(|file| file.bytes).sum();
        if tensors {
            let mut all = Vec::new();
            for file in info.weights() {
                all.extend(checkpoint.tensor_index(&file.name)?.tensors.into_iter().map(|tensor| TensorInfo {
                    file: file.name.clone(),
                    dtype: tensor.dtype.to_string(),
                    bytes: tensor.bytes.end - tensor.bytes.start,
                    name: tensor.name,
                    shape: tensor.shape,
                }));
            }
            info.tensors = Some(all);
        }
        Ok(info)
    }

    fn weights(&self) -> impl Iterator<Item = &FileInfo> {
        self.files.iter().filter(|file| self.weights.contains(&file.name))
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let summary = &self.summary;
        let number = |value: Option<u64>| value.map_or("unknown".to_owned(), |value| value.to_string());
        let (title, size) = match self.source {
            "pack" => ("MLXPack File", "File size"),
            _ => ("Model Directory", "Size of the files"),
        };
        writeln!(f, "=== {title} Information ===\n")?;
        writeln!(f, "{size}: {}\n", Bytes(self.bytes))?;

        writeln!(f, "--- Model Configuration ---")?;
        let architecture = summary.architecture.as_deref().unwrap_or("unknown");
        writeln!(f, "Architecture: {}", architecture.escape_debug())?;
        writeln!(f, "Hidden size: {}", number(summary.hidden_size))?;
        writeln!(f, "Num layers: {}", number(summary.num_hidden_layers))?;
        writeln!(f, "Num heads: {}", number(summary.num_attention_heads))?;
        if let Some(heads) = summary.num_key_value_heads {
            writeln!(f, "Num key-value heads: {heads}")?;
        }
        writeln!(f, "Vocab size: {}", number(summary.vocab_size))?;
        writeln!(f, "Parameters: {}\n", summary.parameter_count)?;

        if let Some(quantization) = &summary.quantization {
            writeln!(f, "Quantization:")?;
            writeln!(f, "  Bits: {}", number(quantization.bits))?;
            writeln!(f, "  Group size: {}", number(quantization.group_size))?;
            writeln!(f, "  Mode: {}", quantization.mode.escape_debug())?;
            if !quantization.overrides.is_empty() {
                writeln!(f, "  Overrides: {}", quantization.overrides.len())?;
            }
            for (module, settings) in &quantization.overrides {
                writeln!(f, "    {}: {}", module.escape_debug(), in_words(settings).escape_debug())?;
            }
            writeln!(f)?;
        }

        writeln!(f, "--- Tokenizer Configuration ---")?;
        let tokenizer = &summary.tokenizer;
        let bos = tokenizer.bos_token_id.map_or("none".to_owned(), |id| id.to_string());
        writeln!(f, "BOS token ID: {bos}")?;
        match &tokenizer.eos_token_ids[..] {
            [] => writeln!(f, "EOS token ID: none")?,
            [id] => writeln!(f, "EOS token ID: {id}")?,
            ids => writeln!(f, "EOS token IDs: {}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))?,
        }
        writeln!(f, "Has chat template: {}\n", tokenizer.has_chat_template)?;

        writeln!(f, "--- Safetensors Files ---")?;
        writeln!(f, "Total files: {}", self.weights().count())?;
        for FileInfo { name, bytes } in self.weights() {
            let size = in_unit(*bytes, &UNITS[1..]).map_or(String::new(), |size| format!(", {size}"));
            writeln!(f, "  {name} ({bytes} bytes{size})")?;
        }
        writeln!(f, "Total tensors: {}", summary.tensor_count)?;
        writeln!(f, "Total weights size: {}", Bytes(self.weights_bytes))?;

        if let Some(tensors) = &self.tensors {
            writeln!(f, "\n--- Tensors ---")?;
            for TensorInfo { name, dtype, shape, bytes, .. } in tensors {
                writeln!(f, "  {} {dtype} {shape:?} ({bytes} bytes)", name.escape_debug())?;
            }
        }

        writeln!(f, "\n--- Other Files ---")?;
        for FileInfo { name, bytes } in self.files.iter().filter(|file| !self.weights.contains(&file.name)) {
            writeln!(f, "  {name} ({bytes} bytes)")?;
        }
        Ok(())
    }
}

/// What a quantization's override says: `6 bits, group size 64`.
fn in_words(settings: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match settings {
        Value::Bool(false) => "not quantized".to_owned(),
        Value::Bool(true) => "quantized".to_owned(),
        Value::Object(settings) => {
            let mut words: Vec<String> =
                settings.get("bits").map(|bits| format!("{} bits", plain(bits))).into_iter().collect();
            // The mode that all have is told once, above.
            let others = settings.iter().filter(|(key, value)| *key != "bits" && **value != "affine");
            words.extend(others.map(|(key, value)| format!("{} {}", key.replace('_', " "), plain(value))));
            words.join(", ")
        }
        other => plain(other),
    }
}

const UNITS: [(&str, u64); 3] = [("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)];

/// In the first of these units that it fills.
fn in_unit(bytes: u64, units: &[(&str, u64)]) -> Option<String> {
    let (unit, size) = units.iter().find(|(_, size)| bytes >= *size)?;
    Some(format!("{:.2} {unit}", bytes as f64 / *size as f64))
}

/// `13422109876 bytes (12.50 GB)`, a GB being 2^30 bytes; smaller sizes in MB, KB or bytes alone.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let size = in_unit(self.0, &UNITS).map_or(String::new(), |size| format!(" ({size})"));
        write!(f, "{} bytes{size}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_have_a_unit_that_fits() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1024 bytes (1.00 KB)"),
            ((1 << 20) - 1, "1048575 bytes (1024.00 KB)"),
            (3_485_184, "3485184 bytes (3.32 MB)"),
            (1 << 30, "1073741824 bytes (1.00 GB)"),
            (13_422_109_876, "13422109876 bytes (12.50 GB)"),
            (1 << 43, "8796093022208 bytes (8192.00 GB)"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }

    #[test]
    fn overrides_are_told_in_words() {
        for (settings, words) in [
            (json!({"group_size": 64, "bits": 6}), "6 bits, group size 64"),
            (json!({"bits": 8, "mode": "affine"}), "8 bits"),
            (json!({"bits": 8, "mode": "mxfp8"}), "8 bits, mode mxfp8"),
            (json!(false), "not quantized"),
            (json!(true), "quantized"),
            (json!("odd"), "odd"), // a pack's header may say anything
        ] {
            assert_eq!(in_words(&settings), words);
        }
    }
}
