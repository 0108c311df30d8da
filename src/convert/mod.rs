//! Converting a model: other types, fewer bits, or back to floats, with the result of `mlx_lm.convert`, bit for bit.
//!
//! Reference: `mlx_lm.convert` and `mlx_lm.utils` of mlx-lm 0.32.2. Which tensors a model has is what its layers take
//! ([`crate::models`]); what else a checkpoint holds is left out. Texts come along as they are.

mod config;
mod plan;
mod recipe;
mod write;

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::atomic_directory::{self, AtomicDirectory};
use crate::atomic_file;
use crate::checkpoint::{Checkpoint, TEMPLATES, WEIGHTS_INDEX, template_name};
use crate::error::{Error, Result};
use crate::mlxpack;
use crate::models;
use crate::watch::Watch;
use config::{CONFIG, Config, to_python_json};
use plan::Plan;
pub use recipe::{Override, QuantizeOptions, Recipe};

/// A floating-point type of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FloatType {
    Bfloat16,
    Float16,
    Float32,
}

impl FloatType {
    /// What [`FloatType::from_name`] knows.
    pub const NAMES: [&str; 3] = ["bfloat16", "float16", "float32"];

    /// The type that config.json calls so, such as `bfloat16`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "bfloat16" => Some(FloatType::Bfloat16),
            "float16" => Some(FloatType::Float16),
            "float32" => Some(FloatType::Float32),
            _ => None,
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            FloatType::Bfloat16 => Dtype::BF16,
            FloatType::Float16 => Dtype::F16,
            FloatType::Float32 => Dtype::F32,
        }
    }
}

/// What becomes of the weights of linear layers and embeddings.
#[derive(Debug, Clone, Default)]
pub enum Change {
    /// They stay what they are.
    #[default]
    None,
    /// Those that are not quantized are.
    Quantize(QuantizeOptions),
    /// Those that are quantized become floats.
    Dequantize,
}

/// How to convert a model.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// What becomes of the weights.
    pub change: Change,
    /// The type of all floats; that of config.json's `torch_dtype` where this is `None`, and where there is none either, they
    /// keep theirs.
    pub dtype: Option<FloatType>,
    /// The most bytes of tensors in one file, where one tensor has no more.
    pub shard_size: u64,
    /// Whether a model, or a pack, that is in the way may be replaced.
    pub overwrite: bool,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        ConvertOptions { change: Change::None, dtype: None, shard_size: 5_000_000_000, overwrite: false }
    }
}

/// What a conversion made.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// Bytes of the tensors.
    pub bytes: u64,
    /// Numbers of the model, those of scales and biases not counted.
    pub parameters: u64,
    /// Linear layers and embeddings that were to be quantized, but whose rows are not whole groups.
    pub indivisible: Vec<String>,
}

impl Converted {
    /// Bits that a number takes on average.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters as f64
    }
}

/// Write the model of `checkpoint` to `output`: a pack where that ends in `.mlxpack`, else a directory. It appears when it is
/// complete and on disk. `watch` is told the bytes read, and of a pack those written.
///
/// ```
/// # fn main() -> mlx_lm::Result<()> {
/// use mlx_lm::convert::{Change, ConvertOptions, QuantizeOptions, convert};
/// use mlx_lm::{Checkpoint, Watch};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let (plain, small) = (folder.path().join("plain"), folder.path().join("small"));
/// let options = ConvertOptions { change: Change::Dequantize, ..ConvertOptions::default() };
/// convert(&Checkpoint::demo()?, &plain, &options, &mut Watch::none())?;
///
/// let change = Change::Quantize(QuantizeOptions { bits: Some(3), ..QuantizeOptions::default() });
/// let options = ConvertOptions { change, ..ConvertOptions::default() };
/// let converted = convert(&Checkpoint::open(plain)?, &small, &options, &mut Watch::none())?;
/// assert_eq!(format!("{:.2}", converted.bits_per_weight()), "3.51");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the model is not one that this library runs, an option does not fit it, `output` exists and `overwrite` is not set or it
/// is not a model, reading or writing fails, or `watch` stops it.
pub fn convert(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &ConvertOptions,
    watch: &mut Watch,
) -> Result<Converted> {
    let is_pack = output.extension().is_some_and(|extension| extension == "mlxpack");
    refuse(checkpoint, output, options.overwrite, is_pack)?;
    if options.shard_size == 0 {
        return Err(Error::setting("shard_size", 0, "at least one byte"));
    }
    let decoder = models::read_config(checkpoint)?;
    let mut config = Config::read(checkpoint)?;
    let files = checkpoint.weight_files()?;
    let mut unwatched = Watch::none();
    let plan = Plan::new(&decoder, &mut config, &files, options, &mut unwatched)?;
    let bytes = plan.outputs.iter().map(|output| output.nbytes()).sum();
    let read = plan.source_bytes();

    let target = if is_pack { output.with_extension("mlxpack-model") } else { output.to_owned() };
    let directory = AtomicDirectory::create(&target)?;
    let folder = directory.path();
    let shards = named(plan.shards(options.shard_size));
    let total = if is_pack { read + bytes } else { read };
    let mut texts = texts(checkpoint)?;
    texts.push((CONFIG.into(), config.to_text().into()));
    texts.push((WEIGHTS_INDEX.into(), index(&plan, &shards, bytes).into()));
    let written = write::write(&plan, folder, &shards, total, watch)
        .and_then(|()| texts.iter().try_for_each(|(name, text)| write_text(&folder.join(name), text)));
    written.map_err(|error| of_output(error, folder, output))?;
    if is_pack {
        let model = Checkpoint::open(folder)?;
        let on_progress = &mut |done, total| (watch.on_progress)(read + done, read + total);
        let mut rest = Watch { on_progress, stop: watch.stop };
        let summary = mlxpack::inspect(&model, false)?;
        mlxpack::Plan::new(&model, summary, &[])?.write(output, options.overwrite, &mut rest)?;
    } else {
        directory.commit(replaced(options.overwrite))?;
    }
    Ok(Converted { bytes, parameters: plan.parameters, indivisible: plan.indivisible })
}

fn write_text(path: &Path, text: &[u8]) -> Result<()> {
    let folder = path.parent().expect("a file in a folder");
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    atomic_file::write(path, text, false)
}

/// The error, about a file in `folder`, as one of the `output` that was asked for.
fn of_output(error: Error, folder: &Path, output: &Path) -> Error {
    match error {
        Error::Io { path, error } => match path.strip_prefix(folder) {
            Ok(name) => Error::Io { path: output.join(name), error },
            Err(_) => Error::Io { path, error },
        },
        other => other,
    }
}

/// What stands in the way, before anything is read.
fn refuse(checkpoint: &Checkpoint, output: &Path, overwrite: bool, is_pack: bool) -> Result<()> {
    let same = |a: &Path, b: &Path| matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b);
    if same(checkpoint.root(), output) {
        return Err(Error::malformed(output, "is the model that is converted; write the result elsewhere"));
    }
    match is_pack {
        true => atomic_file::refuse_existing(output, overwrite),
        false => atomic_directory::refuse_existing(output, replaced(overwrite)),
    }
}

/// Which directories may be replaced: models, with the files that converters write and checkpoints have.
fn replaced(overwrite: bool) -> Option<atomic_directory::Belongs> {
    const KINDS: [&str; 5] = [".safetensors", ".json", ".jinja", ".model", ".tiktoken"];
    const CODE: [&str; 4] = ["configuration_", "modeling_", "processing_", "tokenization_"];
    let belongs = |name: &str| {
        if let Some((folder, name)) = name.split_once('/') {
            return folder == TEMPLATES && name.ends_with(".jinja");
        }
        let is_code = name.ends_with(".py") && CODE.iter().any(|begin| name.starts_with(begin));
        let is_of_kind = KINDS.iter().any(|kind| name.ends_with(kind));
        is_of_kind || is_code || mlxpack::is_text(name) || matches!(name, "merges.txt" | "vocab.txt")
    };
    overwrite.then_some(atomic_directory::Belongs { belongs, needs: CONFIG })
}

/// The files' names and their outputs.
fn named(shards: Vec<Vec<usize>>) -> Vec<(String, Vec<usize>)> {
    let count = shards.len();
    let name = |i| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    shards.into_iter().enumerate().map(|(i, outputs)| (name(i), outputs)).collect()
}

/// `model.safetensors.index.json`, as mlx-lm writes it.
fn index(plan: &Plan, shards: &[(String, Vec<usize>)], bytes: u64) -> String {
    let file_of = shards.iter().flat_map(|(name, outputs)| outputs.iter().map(move |&output| (output, name)));
    let mut weight_map: Map<String, Value> =
        file_of.map(|(output, name)| (plan.outputs[output].name.clone(), json!(name))).collect();
    weight_map.sort_keys();
    let metadata = json!({"total_size": bytes, "total_parameters": plan.parameters});
    to_python_json(&json!({"metadata": metadata, "weight_map": weight_map}))
}

/// The card that mlx-lm writes for a model from a local directory.
const CARD: &str = "---\nlanguage: en\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n---\n";
const README: &str = "README.md";

/// The texts that come along, by name.
fn texts(checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<u8>)>> {
    let mut texts = Vec::new();
    let templates = checkpoint.names_in(TEMPLATES)?.into_iter().filter(|name| template_name(name).is_some());
    for name in checkpoint.names()?.into_iter().filter(|name| is_carried(name)).chain(templates) {
        let bytes = checkpoint.bytes(&name)?;
        texts.extend(bytes.map(|bytes| (name, bytes)));
    }
    if !texts.iter().any(|(name, _)| name == README) {
        texts.push((README.into(), CARD.into()));
    }
    Ok(texts)
}

/// Whether a file of this name, without weights, belongs to a model: its texts and its tokenizer, in all forms.
fn is_carried(name: &str) -> bool {
    const KINDS: [&str; 6] = [".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"];
    let is_made = name == CONFIG || name.ends_with(".index.json");
    !is_made && !name.starts_with('.') && (mlxpack::is_text(name) || KINDS.iter().any(|kind| name.ends_with(kind)))
}
