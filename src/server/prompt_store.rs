//! `--prompt-cache-dir`: the beginnings of prompts that were of most use, in files that the next start reads.
//!
//! Each is a file of [`PromptCache`], named after the model and the tokens. What is no such file, or another model's, stays as it is.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::atomic_file;
use crate::error::{Error, Result};
use crate::generate::Engine;
use crate::generate::prompt_cache::PromptCache;

/// The most files of a model.
const MOST: usize = 16;
/// How many characters of a model's identity, and of the hash of its tokens, a file's name has.
const NAME: usize = 16;

/// A directory of prompt caches.
pub struct PromptStore {
    directory: PathBuf,
    /// Files with our names that could not be read; they are written anew.
    damaged: Mutex<HashSet<PathBuf>>,
}

impl PromptStore {
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
        Ok(PromptStore { directory, damaged: Mutex::default() })
    }

    /// Let the engine keep what is there for its model. The rest is ignored, with one warning.
    pub fn load(&self, engine: &Engine, identity: &str) {
        let mut ignored = Vec::new();
        for path in self.files() {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if name.starts_with('.') {
                remove_unfinished(&path);
            } else if is_ours(name) && !name.starts_with(&prefix(identity)) {
                // Another model's.
            } else if let Err(error) = read(engine, path.clone()) {
                ignored.push(error);
                if is_ours(name) {
                    self.damaged().insert(path);
                }
            }
        }
        if let Some(first) = ignored.first() {
            let others =
                if ignored.len() > 1 { format!(", as {} others are", ignored.len() - 1) } else { String::new() };
            log::warn!("ignored{others}: {first}");
        }
    }

    /// Write what was of most use, and remove what was longest of none, where there is more than is kept. What cannot be written is a
    /// warning.
    pub fn save(&self, engine: &Engine) {
        if let Err(error) = self.try_save(engine) {
            log::warn!("a prompt is not kept: {error}");
        }
    }

    fn try_save(&self, engine: &Engine) -> Result<()> {
        let identity = engine.call(|model| model.identity().to_owned())?;
        for cache in engine.prefixes(MOST)?.into_iter().rev() {
            let path = self.path(&identity, &cache);
            let is_damaged = self.damaged().remove(&path);
            if path.exists() && !is_damaged {
                // It is of use still.
                let file = File::options().append(true).open(&path).map_err(Error::io(&path))?;
                file.set_modified(SystemTime::now()).map_err(Error::io(&path))?;
            } else {
                // Arrays are read on the engine's thread; the disk is not waited for there.
                engine.call(move |_| cache.contents())??.write(&path, true)?;
            }
        }
        let is_of_model = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            is_ours(name) && name.starts_with(&prefix(&identity))
        };
        // Another server, or the same weights under another name, may keep some too.
        let mut files: Vec<PathBuf> = self.files().filter(is_of_model).collect();
        files.sort_by_key(|path| Reverse(path.metadata().and_then(|metadata| metadata.modified()).ok()));
        for path in files.iter().skip(MOST) {
            fs::remove_file(path).map_err(Error::io(path))?;
        }
        Ok(())
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path())
    }

    fn path(&self, identity: &str, cache: &PromptCache) -> PathBuf {
        let mut hash = Sha256::new();
        cache.ids().iter().for_each(|id| hash.update(id.to_le_bytes()));
        let ids = hex::encode(hash.finalize());
        self.directory.join(format!("{}{}.safetensors", prefix(identity), &ids[..NAME]))
    }
}

fn read(engine: &Engine, path: PathBuf) -> Result<()> {
    engine.keep(engine.call(move |model| PromptCache::load(&path, model))??)
}

/// What the names of a model's files begin with.
fn prefix(identity: &str) -> String {
    format!("{}-", hex::encode(&Sha256::digest(identity)[..NAME / 2]))
}

/// Whether a file's name is of the form that this module gives.
fn is_ours(name: &str) -> bool {
    let is_hash = |text: &str| text.len() == NAME && text.bytes().all(|c| c.is_ascii_hexdigit());
    let parts = name.strip_suffix(".safetensors").and_then(|stem| stem.split_once('-'));
    parts.is_some_and(|(model, ids)| is_hash(model) && is_hash(ids))
}

/// Remove what a killed process has left, unless another is at it.
fn remove_unfinished(path: &Path) {
    let is_partial = path.to_str().is_some_and(|path| path.ends_with(atomic_file::SUFFIX));
    if is_partial && File::open(path).is_ok_and(|file| atomic_file::lock(&file).unwrap_or(false)) {
        let _ = fs::remove_file(path);
    }
}
