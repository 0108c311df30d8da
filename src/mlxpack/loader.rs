//! What running a model takes from a pack, and what a model must be to be worth packing.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use serde_json::{Map, Value};

use super::header::Entry;
use super::reader::{Pack, Storage};
use super::summary::Summary;
use crate::checkpoint::{Checkpoint, WEIGHTS_INDEX, WeightFile};
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
        let range = entry.offset..entry.end(); // within the pack, or the header was refused
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
