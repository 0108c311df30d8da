//! What running a model takes from a pack, and what a model must be to be worth packing.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use serde_json::{Map, Value};

use super::header::Entry;
use super::reader::{Pack, Storage};
use super::summary::Summary;
use crate::checkpoint::{Checkpoint, WEIGHTS_INDEX};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::tokenizer::Tokenizer;

/// Where a file of a pack can be had without a copy.
pub(crate) enum Place<'p> {
    /// These bytes of the file.
    File(&'p File, Range<u64>),
    /// These bytes, in memory already.
    Memory(&'p [u8]),
}

impl Pack {
    /// For the weights.
    pub(crate) fn place(&self, entry: &Entry) -> Place<'_> {
        let range = entry.offset..entry.offset + entry.length; // within the pack, or the header was refused
        match self.storage() {
            Storage::File(file) => Place::File(file, range),
            Storage::Memory(bytes) => Place::Memory(&bytes[range.start as usize..range.end as usize]),
        }
    }
}

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
        check_index(checkpoint)?;
    }
    let config: Map<String, Value> = lenient(checkpoint.json("config.json"), strict)?.unwrap_or_default();
    let weights = lenient(checkpoint.weight_headers(), strict)?;
    let tokenizer = lenient(Tokenizer::load(checkpoint).map(Some), strict)?;
    Ok(Summary::new(&config, tokenizer.as_ref(), &weights))
}

/// Each tensor that `model.safetensors.index.json` names must be in the file that it names.
fn check_index(checkpoint: &Checkpoint) -> Result<()> {
    let Some(index) = checkpoint.index()? else {
        return Ok(());
    };
    let path = checkpoint.path(WEIGHTS_INDEX);
    let mut found = HashMap::new();
    for file in checkpoint.weight_headers()? {
        let name = file.path.file_name().map_or(Cow::default(), |name| name.to_string_lossy().into_owned().into());
        found.extend(file.index.tensors.into_iter().map(|tensor| (tensor.name, name.clone())));
    }
    match index.weight_map.iter().find(|(tensor, file)| found.get(*tensor).is_none_or(|name| name != *file)) {
        Some((tensor, file)) => Err(Error::tensor(&path, tensor, format!("is not in {file}, as the index says"))),
        None => Ok(()),
    }
}
