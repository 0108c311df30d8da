//! A checkpoint's files, whatever holds them: a model directory, or one `.mlxpack` with everything inside.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::MmapMut;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::mapped::Mapped;
use crate::mlxpack::{Pack, Place};
use crate::tensor_index::{TensorEntry, TensorIndex};

/// Where a model's files are.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Directory,
    Pack(Box<Pack>),
}

/// One safetensors file of a checkpoint.
#[derive(Debug)]
pub struct WeightFile<'c> {
    /// The file's path, for messages.
    pub path: PathBuf,
    /// What it holds.
    pub index: TensorIndex,
    /// The whole file; `None` when only its header was read.
    bytes: Option<Bytes<'c>>,
}

#[derive(Debug)]
enum Bytes<'c> {
    Mapped(Arc<Mapped>),
    Borrowed(&'c [u8]),
}

/// What messages call the demo model's directory.
const DEMO_ROOT: &str = "<demo model>";

/// `demo/demo.mlxpack`, placed so that its tensors are aligned in memory as they are in the file.
#[cfg(feature = "demo")]
static DEMO: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/demo.mlxpack"));

#[cfg(feature = "demo")]
#[repr(align(4096))]
struct Aligned<T: ?Sized>(T);

/// The weights of a model that are in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Which file holds each tensor of a model whose weights are in several.
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// What tells a model's directory from others.
const MODEL_FILES: [&str; 3] = ["config.json", "tokenizer.json", WEIGHTS];

/// The largest text file that is read: tokenizers of 250k entries stay under 40 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;

impl Checkpoint {
    /// A model directory as Hugging Face and `mlx_lm.convert` write it, or a pack of one, which is told from other files
    /// by its first bytes.
    ///
    /// # Errors
    /// When `root` is neither or cannot be read; for packs, as [`Pack::open`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let found = fs::metadata(&root).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if is_hub_name(&root) => Error::Missing {
                path: root.clone(),
                expected: format!(
                    "it looks like a model of the Hugging Face hub: `{} {}` tells where it is, then give that directory",
                    if cfg!(feature = "hub") { "mlx_lm pull" } else { "hf download" },
                    root.display()
                ),
            },
            _ => Error::Io { path: root.clone(), error },
        })?;
        let source = if found.is_dir() {
            Source::Directory
        } else if found.is_file() && Pack::has_magic(&root)? {
            Source::Pack(Pack::open(&root)?.into())
        } else {
            return Err(Error::unsupported(
                &root,
                "a model that is neither a directory nor an .mlxpack",
                "give the directory that holds config.json, or a file that `mlxpack pack` made",
            ));
        };
        Ok(Checkpoint { root, source })
    }

    /// # Errors
    /// When it is a directory with none of the files that make a model.
    pub fn require_model(&self) -> Result<()> {
        let is_models = |name: &String| MODEL_FILES.contains(&name.as_str()) || name.ends_with(".safetensors");
        match self.pack().is_some() || self.names()?.iter().any(is_models) {
            true => Ok(()),
            false => {
                let problem = format!("there is no model in this directory: none of {}", MODEL_FILES.join(", "));
                Err(Error::malformed(&self.root, problem))
            }
        }
    }

    /// The demo model inside this program: 6 million parameters, 4 bits, a chat template.
    #[cfg(feature = "demo")]
    pub fn demo() -> Result<Self> {
        let root = PathBuf::from(DEMO_ROOT);
        let source = Source::Pack(Pack::from_bytes(&root, &DEMO.0)?.into());
        Ok(Checkpoint { root, source })
    }

    /// Whether it is [`Checkpoint::demo`].
    pub(crate) fn is_demo(&self) -> bool {
        self.root == Path::new(DEMO_ROOT)
    }

    /// The directory or the pack.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What messages call the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The pack, if the checkpoint is one.
    pub fn pack(&self) -> Option<&Pack> {
        match &self.source {
            Source::Directory => None,
            Source::Pack(pack) => Some(pack),
        }
    }

    /// The directory, if the checkpoint is one.
    pub(crate) fn directory(&self) -> Result<&Path> {
        match &self.source {
            Source::Directory => Ok(&self.root),
            Source::Pack(_) => Err(Error::malformed(&self.root, "is a pack already; give a model directory")),
        }
    }

    /// The names of the files, without those in folders.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        self.names_in("")
    }

    /// The names of the files in a folder, `FOLDER/NAME`; none where there is no such folder.
    pub(crate) fn names_in(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        match &self.source {
            Source::Directory => {
                let path = self.root.join(folder);
                let entries = match fs::read_dir(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound && !folder.is_empty() => {
                        return Ok(Vec::new());
                    }
                    entries => entries.map_err(Error::io(&path))?,
                };
                let mut names = Vec::new();
                for entry in entries {
                    let entry = entry.map_err(Error::io(&path))?;
                    if !entry.path().is_dir() {
                        names.push(prefix.clone() + &entry.file_name().to_string_lossy());
                    }
                }
                Ok(names)
            }
            Source::Pack(pack) => {
                let names = pack.entries().iter().map(|entry| entry.name.clone());
                let is_in = |name: &String| name.strip_prefix(&prefix).is_some_and(|name| !name.contains('/'));
                Ok(names.filter(is_in).collect())
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Directory => self.path(name).is_file(),
            Source::Pack(pack) => pack.entry(name).is_some(),
        }
    }

    /// The text of the file `name`, or `None` when there is none. From a pack it is checked against its hash.
    ///
    /// # Errors
    /// When the file exists but cannot be read, is damaged or is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(Error::malformed(&self.path(name), format!("not UTF-8 text: {}", e.utf8_error()))),
        }
    }

    /// The bytes of the small file `name`, as [`Checkpoint::text`].
    pub(crate) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        let small = |bytes| match bytes {
            ..=MAX_TEXT_BYTES => Ok(()),
            _ => Err(Error::malformed(&path, format!("{bytes} bytes long, expected at most {MAX_TEXT_BYTES}"))),
        };
        let bytes = match &self.source {
            Source::Directory => {
                match fs::metadata(&path) {
                    Ok(found) if found.is_file() => small(found.len())?,
                    Ok(_) => return Err(Error::malformed(&path, "not a regular file")),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(Error::Io { path, error }),
                };
                fs::read(&path).map_err(Error::io(&path))?
            }
            Source::Pack(pack) => {
                let Some(entry) = pack.entry(name) else {
                    return Ok(None);
                };
                small(entry.length)?;
                pack.read(entry)?
            }
        };
        Ok(Some(bytes))
    }

    /// The file `name` parsed as JSON, or `None` when there is none.
    ///
    /// # Errors
    /// When the file is not JSON of the shape of `T`; the message has line and column.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match serde_json::from_str(&text) {
            Ok(value) => Ok(Some(value)),
            Err(e) => Err(Error::malformed(&self.path(name), format!("not valid JSON for this file: {e}"))),
        }
    }

    /// Like [`Checkpoint::json`], but the file must exist; `expected` says what it is for.
    pub fn required_json<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<T> {
        self.json(name)?.ok_or_else(|| Error::Missing { path: self.path(name), expected: expected.into() })
    }

    /// The safetensors files of the model, ready to be used: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names. A missing or stale index falls back to
    /// `model-*-of-*.safetensors` with a warning. Other safetensors files are not the model's
    /// (Mistral's repositories also hold `consolidated.safetensors`).
    ///
    /// # Errors
    /// When there is none, or one cannot be read or is not valid.
    pub fn weight_files(&self) -> Result<Vec<WeightFile<'_>>> {
        self.weight_names()?.iter().map(|name| self.weight_file(name, true)).collect()
    }

    /// The same files with only their headers read.
    pub(crate) fn weight_headers(&self) -> Result<Vec<WeightFile<'_>>> {
        self.weight_names()?.iter().map(|name| self.weight_file(name, false)).collect()
    }

    /// The bytes of all tensors of the model.
    #[cfg(feature = "server")]
    pub(crate) fn weight_bytes(&self) -> Result<u64> {
        let tensors = |file: &WeightFile| {
            file.index.tensors.iter().map(|tensor| tensor.bytes.end - tensor.bytes.start).sum::<u64>()
        };
        Ok(self.weight_headers()?.iter().map(tensors).sum())
    }

    /// What the safetensors file `name` holds.
    pub(crate) fn tensor_index(&self, name: &str) -> Result<TensorIndex> {
        Ok(self.weight_file(name, false)?.index)
    }

    fn weight_file(&self, name: &str, with_data: bool) -> Result<WeightFile<'_>> {
        let path = self.path(name);
        let mapped = |path: &Path, file: &File, range| {
            Mapped::file(path, file, range).map(|map| Bytes::Mapped(map.into())).map_err(Error::io(path))
        };
        let (index, bytes) = match &self.source {
            Source::Directory => {
                let file = File::open(&path).map_err(Error::io(&path))?;
                let found = file.metadata().map_err(Error::io(&path))?;
                if !found.is_file() {
                    return Err(Error::malformed(&path, "not a regular file"));
                }
                let index = TensorIndex::read(&path, found.len(), |buffer, at| file.read_exact_at(buffer, at))?;
                (index, if with_data { Some(mapped(&path, &file, 0..found.len())?) } else { None })
            }
            Source::Pack(pack) => {
                let missing = || Error::Missing { path: path.clone(), expected: "the pack does not hold it".into() };
                let entry = pack.entry(name).ok_or_else(missing)?;
                let index = TensorIndex::read(&path, entry.length, |buffer, at| pack.read_at(entry, buffer, at))?;
                let bytes = match pack.place(entry) {
                    _ if !with_data => None,
                    Place::File(file, range) => Some(mapped(pack.path(), file, range)?),
                    Place::Memory(bytes) => Some(Bytes::Borrowed(bytes)),
                };
                (index, bytes)
            }
        };
        Ok(WeightFile { path, index, bytes })
    }

    /// What tells this model from others: the SHA-256 of its configuration, and of each tensor's name, type, shape and first
    /// bytes, so that a fine-tuned copy is another. The same for a directory and its pack. `files` are its weights.
    pub(crate) fn identity(&self, files: &[WeightFile]) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(self.text("config.json")?.unwrap_or_default());
        let mut tensors: Vec<_> =
            files.iter().flat_map(|f| f.index.tensors.iter().map(move |tensor| (tensor, f))).collect();
        tensors.sort_by_key(|(tensor, _)| &tensor.name);
        for (tensor, file) in tensors {
            let TensorEntry { name, dtype, shape, .. } = tensor;
            hash.update(format!("\0{name}\0{dtype}\0{shape:?}\0"));
            let data = file.data(tensor).expect("the files are mapped");
            hash.update(&data[..data.len().min(64)]);
        }
        Ok(hex::encode(hash.finalize()))
    }

    /// `model.safetensors.index.json`, if there is one.
    pub(crate) fn index(&self) -> Result<Option<Index>> {
        self.json(WEIGHTS_INDEX)
    }

    pub(crate) fn weight_names(&self) -> Result<BTreeSet<String>> {
        if let Some(index) = self.index()? {
            let names: BTreeSet<String> = index.weight_map.into_values().collect();
            if let Some(name) = names.iter().find(|n| n.contains(['/', '\\'])) {
                return Err(Error::field(
                    &self.path(WEIGHTS_INDEX),
                    "weight_map",
                    format!("{name:?}"),
                    "file names without directories",
                ));
            }
            match names.iter().find(|name| !self.has(name)) {
                None if !names.is_empty() => return Ok(names),
                None => log::warn!("{WEIGHTS_INDEX} names no file; looking for the weights by name"),
                Some(name) => {
                    log::warn!("{WEIGHTS_INDEX} names {name}, which does not exist; looking for the weights by name");
                }
            }
        }
        let found = weights_among(&self.names()?, None);
        match found.first() {
            None => {
                return Err(Error::Missing {
                    path: self.path(WEIGHTS),
                    expected: format!("a model holds {WEIGHTS}, or {WEIGHTS_INDEX} and the shards it names"),
                });
            }
            Some(name) if name != WEIGHTS && !self.has(WEIGHTS_INDEX) => {
                log::warn!("{WEIGHTS_INDEX} is missing; using the {} files model-*-of-*.safetensors", found.len());
            }
            Some(_) => {}
        }
        Ok(found)
    }
}

/// The hub's part: whether a directory has come whole.
#[cfg(feature = "hub")]
impl Checkpoint {
    /// The first of a model's files that is not here.
    pub(crate) fn missing_file(&self) -> Result<Option<String>> {
        if let Some(name) = ["config.json", "tokenizer.json"].into_iter().find(|name| !self.has(name)) {
            return Ok(Some(name.to_owned()));
        }
        let index = self.index()?.filter(|index| !index.weight_map.is_empty());
        let is_complete = index.is_some();
        let weights = weights_among(&self.names()?, index);
        let Some(first) = weights.first() else { return Ok(Some(WEIGHTS.to_owned())) };
        let count = first.trim_end_matches(".safetensors").rsplit_once("-of-").and_then(|(_, n)| n.parse().ok());
        Ok(match count.filter(|&count: &usize| !is_complete && count > weights.len()) {
            Some(count) => Some(format!("{} of its {count} shards", count - weights.len())),
            None => weights.into_iter().find(|name| !self.has(name)),
        })
    }
}

/// Where chat templates are, other than the one that is taken by default.
pub(crate) const TEMPLATES: &str = "additional_chat_templates";

/// The name of the chat template in a file of that folder.
pub(crate) fn template_name(path: &str) -> Option<&str> {
    path.strip_prefix(TEMPLATES)?.strip_prefix('/')?.strip_suffix(".jinja").filter(|name| !name.contains('/'))
}

/// `model.safetensors.index.json`: which file holds each tensor.
#[derive(Deserialize)]
pub(crate) struct Index {
    pub weight_map: HashMap<String, String>,
}

/// The files of a model's weights: those that its index names, else one file, else all shards that are there.
pub(crate) fn weights_among(names: &[impl AsRef<str>], index: Option<Index>) -> BTreeSet<String> {
    let names = || names.iter().map(AsRef::as_ref);
    match index.filter(|index| !index.weight_map.is_empty()) {
        Some(index) => index.weight_map.into_values().collect(),
        None if names().any(|name| name == WEIGHTS) => [WEIGHTS.to_owned()].into(),
        None => names().filter(|name| is_shard(name)).map(str::to_owned).collect(),
    }
}

/// `organisation/name`, as models are called on the hub.
fn is_hub_name(path: &Path) -> bool {
    let name = path.to_str().unwrap_or_default();
    let is_part = |part: &str| {
        !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.is_empty()
    };
    name.split_once('/').is_some_and(|(organisation, name)| is_part(organisation) && is_part(name))
}

/// `model-00001-of-00003.safetensors`, whatever the numbers' widths.
fn is_shard(name: &str) -> bool {
    name.strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"))
        .is_some_and(|(a, b)| [a, b].iter().all(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit())))
}

impl WeightFile<'_> {
    /// The bytes of one of its tensors; `None` when only the header was read.
    pub fn data(&self, tensor: &TensorEntry) -> Option<&[u8]> {
        let bytes = match self.bytes.as_ref()? {
            Bytes::Mapped(map) => map,
            Bytes::Borrowed(bytes) => *bytes,
        };
        Some(&bytes[tensor.bytes.start as usize..tensor.bytes.end as usize])
    }

    /// The map that holds the tensors' bytes, if they come from a file.
    pub(crate) fn map(&self) -> Option<&Arc<Mapped>> {
        match self.bytes.as_ref()? {
            Bytes::Mapped(map) => Some(map),
            Bytes::Borrowed(_) => None,
        }
    }

    /// A file that exists in memory alone.
    pub(crate) fn in_memory(index: TensorIndex, bytes: MmapMut) -> io::Result<WeightFile<'static>> {
        let path = PathBuf::from("<synthetic>");
        let bytes = Some(Bytes::Mapped(Mapped::memory(&path, bytes)?.into()));
        Ok(WeightFile { path, index, bytes })
    }
}
