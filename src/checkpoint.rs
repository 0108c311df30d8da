//! A checkpoint's files, whatever holds them: a model directory, or one file with everything inside.
//!
//! The one-file form is a safetensors file whose `__metadata__` carries the text files under their names
//! (`config.json`, `tokenizer.json`, …). The demo model is embedded in the program in this form.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::PathBuf;

use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Where a model's files are.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Directory,
    Embedded { weights: &'static [u8], texts: HashMap<String, String> },
}

/// The bytes of one safetensors file.
#[derive(Debug)]
pub struct WeightFile {
    /// The file's path, for messages.
    pub path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

/// `demo/demo.safetensors`, placed so that its tensors are aligned in memory as they are in the file.
static DEMO: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/demo.safetensors"));

#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// The largest JSON file that is read: tokenizers of 250k entries stay under 40 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

impl Checkpoint {
    /// A model directory as Hugging Face and `mlx_lm.convert` write it.
    ///
    /// # Errors
    /// When `root` is not a directory that can be read.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let metadata = fs::metadata(&root).map_err(|error| Error::Io { path: root.clone(), error })?;
        if !metadata.is_dir() {
            return Err(Error::unsupported(
                &root,
                "a model that is not a directory",
                "give the directory that holds config.json",
            ));
        }
        let checkpoint = Checkpoint { root, source: Source::Directory };
        Ok(checkpoint)
    }

    /// The demo model inside this program.
    pub fn demo() -> Result<Self> {
        let root = PathBuf::from("<demo model>");
        let weights = &DEMO.0;
        let (_, header) = SafeTensors::read_metadata(weights).map_err(|e| Error::malformed(&root, e))?;
        let texts = header.metadata().clone().unwrap_or_default();
        Ok(Checkpoint { root, source: Source::Embedded { weights, texts } })
    }

    /// What messages call the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The text of the file `name`, or `None` when there is none.
    ///
    /// # Errors
    /// When the file exists but cannot be read or is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<Cow<'_, str>>> {
        let path = self.path(name);
        match &self.source {
            Source::Embedded { texts, .. } => Ok(texts.get(name).map(|t| t.as_str().into())),
            Source::Directory => {
                let size = match fs::metadata(&path) {
                    Ok(metadata) if metadata.is_file() => metadata.len(),
                    Ok(_) => return Err(Error::malformed(&path, "not a regular file")),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(Error::Io { path, error }),
                };
                if size > MAX_JSON_BYTES {
                    return Err(Error::malformed(
                        &path,
                        format!("{size} bytes long, expected at most {MAX_JSON_BYTES}"),
                    ));
                }
                let bytes = fs::read(&path).map_err(|error| Error::Io { path: path.clone(), error })?;
                match String::from_utf8(bytes) {
                    Ok(text) => Ok(Some(text.into())),
                    Err(e) => Err(Error::malformed(&path, format!("not UTF-8 text: {}", e.utf8_error()))),
                }
            }
        }
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

    /// The safetensors files of the model: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names. A missing or stale index falls back to
    /// `model-*-of-*.safetensors` with a warning. Other safetensors files are not the model's
    /// (Mistral's repositories also hold `consolidated.safetensors`).
    pub fn weight_files(&self) -> Result<Vec<WeightFile>> {
        match self.source {
            Source::Embedded { weights, .. } => {
                Ok(vec![WeightFile { path: self.root.clone(), bytes: Bytes::Static(weights) }])
            }
            Source::Directory => self.weight_names()?.iter().map(|name| WeightFile::map(self.path(name))).collect(),
        }
    }

    fn weight_names(&self) -> Result<BTreeSet<String>> {
        const SINGLE: &str = "model.safetensors";
        const INDEX: &str = "model.safetensors.index.json";
        if let Some(index) = self.json::<Index>(INDEX)? {
            let names: BTreeSet<String> = index.weight_map.into_values().collect();
            if let Some(name) = names.iter().find(|n| n.contains(['/', '\\'])) {
                return Err(Error::field(
                    &self.path(INDEX),
                    "weight_map",
                    format!("{name:?}"),
                    "file names without directories",
                ));
            }
            match names.iter().find(|name| !self.path(name).is_file()) {
                None if !names.is_empty() => return Ok(names),
                None => log::warn!("{INDEX} names no file; looking for the weights by name"),
                Some(name) => log::warn!("{INDEX} names {name}, which does not exist; looking for the weights by name"),
            }
        }
        if self.path(SINGLE).is_file() {
            return Ok([SINGLE.to_owned()].into());
        }
        let io = |error| Error::Io { path: self.root.clone(), error };
        let mut shards = BTreeSet::new();
        for entry in fs::read_dir(&self.root).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            shards.extend(name.into_string().ok().filter(|name| is_shard(name)));
        }
        if shards.is_empty() {
            return Err(Error::Missing {
                path: self.path(SINGLE),
                expected: format!("a model directory holds {SINGLE}, or {INDEX} and the shards it names"),
            });
        }
        if !self.path(INDEX).exists() {
            log::warn!("{INDEX} is missing; using the {} files model-*-of-*.safetensors", shards.len());
        }
        Ok(shards)
    }
}

/// `model.safetensors.index.json`: which file holds each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// `model-00001-of-00003.safetensors`, whatever the numbers' widths.
fn is_shard(name: &str) -> bool {
    name.strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"))
        .is_some_and(|(a, b)| [a, b].iter().all(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit())))
}

impl WeightFile {
    fn map(path: PathBuf) -> Result<Self> {
        let io = |error| Error::Io { path: path.clone(), error };
        let file = File::open(&path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(Error::malformed(&path, "not a regular file"));
        }
        // SAFETY: the map is only read, and only here and while tensors are copied out of it. Another process that
        // shortens the file meanwhile would raise SIGBUS; like every reader of mapped weights we rely on model files
        // being replaced, not rewritten in place.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        #[cfg(unix)]
        let _ = map.advise(Advice::Sequential); // a hint; failure costs only speed
        Ok(WeightFile { path, bytes: Bytes::Mapped(map) })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// Hand the pages of `part` (a slice of [`WeightFile::bytes`]) back to the system once they have been copied,
    /// so that a model is never in memory twice.
    pub fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes {
            let offset = part.as_ptr() as usize - map.as_ptr() as usize;
            // SAFETY: the map is shared and read-only, so dropped pages are read from the file again when touched.
            #[allow(unsafe_code)]
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len()) };
        }
    }
}
