//! The programs without the feature `hub`: a model is a path.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub struct HubArgs {}

/// The path itself.
pub fn locate(model: &Path, _: &HubArgs, _: &Arc<AtomicBool>) -> Result<PathBuf> {
    Ok(model.to_owned())
}
