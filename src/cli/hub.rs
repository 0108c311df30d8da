//! Models named `org/name`: what the environment says of the hub and its cache, and the download.
//!
//! The variables are those of Python's `huggingface_hub`:
//! <https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use clap::Args;
use mlx_lm::hub::{ENDPOINT, Events, Hub, HubOptions, ModelName, Proxy, Token};

use super::downloads::Downloads;
use super::process::Usage;

#[derive(Debug, Args)]
pub struct HubArgs {
    /// Download nothing: a model's name is looked up in the Hugging Face cache alone, as with HF_HUB_OFFLINE=1
    #[arg(long)]
    pub offline: bool,
}

/// Where the model is: the path itself, or what the cache holds of this name, downloaded if need be.
pub fn locate(model: &Path, args: &HubArgs, stop: &Arc<AtomicBool>) -> Result<PathBuf> {
    match name(model) {
        Some(name) => watched(&name, stop, |events| Ok(hub(args.offline)?.get(&name, events)?)),
        None => Ok(model.to_owned()),
    }
}

/// What is a name and no path that is there.
fn name(model: &Path) -> Option<ModelName> {
    let is_absent = || fs::symlink_metadata(model).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    ModelName::from_path(model).filter(|_| is_absent())
}

/// Under bars.
pub fn watched(
    name: &ModelName,
    stop: &Arc<AtomicBool>,
    fetch: impl FnOnce(&mut Events) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let mut downloads = Downloads::new(name);
    fetch(&mut Events { on_event: &mut |event| downloads.event(event), stop })
}

/// As the environment says.
pub fn hub(offline: bool) -> Result<Hub> {
    let home = match path("HF_HOME") {
        Some(home) => home,
        None => path("XDG_CACHE_HOME")
            .map_or_else(|| Ok::<_, anyhow::Error>(home_dir()?.join(".cache")), Ok)?
            .join("huggingface"),
    };
    let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
    let is_set = |text: String| ["1", "ON", "YES", "TRUE"].contains(&text.to_uppercase().as_str());
    Ok(Hub::new(HubOptions {
        endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
        token: if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_set) { None } else { token(&home)? },
        is_offline: offline || variable("HF_HUB_OFFLINE").is_some_and(is_set),
        proxy: Proxy::from_environment(),
        ..HubOptions::new(cache)
    }))
}

/// The variable's, or what `hf auth login` left.
fn token(home: &Path) -> Result<Option<Token>> {
    let (source, text) = match variable("HF_TOKEN") {
        Some(text) => ("HF_TOKEN".to_owned(), text),
        None => {
            let path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            let text = fs::read_to_string(&path).unwrap_or_default();
            if text.trim().is_empty() {
                return Ok(None);
            }
            (path.display().to_string(), text)
        }
    };
    let unusable = || Usage(format!("{source} holds characters that no token has"));
    Ok(Some(Token::new(&text).ok_or_else(unusable)?))
}

fn path(name: &str) -> Option<PathBuf> {
    let text = variable(name)?;
    match text.strip_prefix("~/") {
        Some(rest) => Some(home_dir().ok()?.join(rest)),
        None => Some(text.into()),
    }
}

fn home_dir() -> Result<PathBuf> {
    etcetera::home_dir().context("no home directory: HF_HOME says where models are to be kept")
}

/// One that is empty is none.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.trim().is_empty())
}
