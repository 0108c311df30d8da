//! Models by their names on the Hugging Face hub: `org/name[@revision]`, found in its cache or downloaded into it.
//!
//! The cache is that of Python's `huggingface_hub`, which finds what is downloaded here, and the other way round. Nothing is read
//! from the environment: [`HubOptions`] says it all.
//!
//! ```no_run
//! use mlx_lm::hub::{Events, Hub, HubOptions, ModelName};
//! use mlx_lm::{Checkpoint, Watch};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! let hub = Hub::new(HubOptions::new("/home/me/.cache/huggingface/hub"));
//! let name = ModelName::parse("mlx-community/Qwen3-4B-4bit").expect("it is a name");
//! let checkpoint = Checkpoint::open(hub.get(&name, &mut Events::none())?)?;
//! # Ok(())
//! # }
//! ```

mod client;
mod download;
mod folder;
mod listing;
mod name;
mod shared;
mod stored;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use listing::HubFile;
pub use name::ModelName;
pub use stored::{Stored, remove, stored};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, HubProblem, Result};
use crate::models;
use crate::watch::Watch;
use client::Client;
use folder::Folder;
use listing::Listing;

/// The hub itself.
pub const ENDPOINT: &str = "https://huggingface.co";
/// The longest description of a repository that is read: that of a hundred thousand files.
const MAX_INFO_BYTES: u64 = 64 << 20;

/// What a hub is asked with.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The folder of the cache; it need not exist.
    pub cache: PathBuf,
    /// Where the hub is: [`ENDPOINT`], or another that speaks its interface.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<Token>,
    /// Use what is in the cache alone.
    pub is_offline: bool,
    /// Through what the hub is asked.
    pub proxy: Option<Proxy>,
    /// For how long a lost connection is tried again while nothing comes.
    pub patience: Duration,
}

impl HubOptions {
    /// The public hub, asked by nobody in particular.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        let (cache, endpoint) = (cache.into(), ENDPOINT.to_owned());
        HubOptions { cache, endpoint, token: None, is_offline: false, proxy: None, patience: Duration::from_secs(60) }
    }
}

/// What tells the hub who asks. It is sent to the hub's own host alone, and never shown; the client, `ureq`, shows it where a logger
/// takes its records of level trace, as the programs' does not.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// `None` when it is empty or holds what no header may.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|c| c.is_ascii_graphic())).then(|| Token(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A proxy.
#[derive(Debug, Clone)]
pub struct Proxy(ureq::Proxy);

impl Proxy {
    /// What `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    pub fn from_environment() -> Option<Self> {
        ureq::Proxy::try_from_env().map(Proxy)
    }
}

/// Who looks on while a model is downloaded, and may end it; as [`Watch`] for other work.
pub struct Events<'a> {
    /// Told what happens, by the thread that asked for the model.
    pub on_event: &'a mut dyn FnMut(Event),
    /// Once it is true, the download ends within a fraction of a second. What is here stays, for the next one to go on with.
    pub stop: &'a Arc<AtomicBool>,
}

impl Events<'_> {
    /// Nobody looks on.
    pub fn none() -> Events<'static> {
        // A function without state takes no memory, so nothing leaks.
        Events { on_event: Box::leak(Box::new(|_| ())), stop: Watch::none().stop }
    }
}

/// What happens in a download. A file is its place among those of the last [`Event::Begin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// These are to come.
    Begin {
        /// Those that are not here yet.
        files: &'a [HubFile],
    },
    /// So much of it is here.
    Progress {
        /// Which.
        file: usize,
        /// Its first bytes; fewer than before where they had to be thrown away.
        bytes: u64,
    },
    /// Another process is downloading it, and is waited for.
    Waiting {
        /// Which.
        file: usize,
    },
    /// It is here, whole and checked.
    Finished {
        /// Which.
        file: usize,
    },
}

/// The hub and its cache.
#[derive(Debug, Clone)]
pub struct Hub {
    options: HubOptions,
}

impl Hub {
    /// Nothing is asked yet.
    pub fn new(options: HubOptions) -> Self {
        Hub { options }
    }

    /// The cache's folder.
    pub fn cache(&self) -> &Path {
        &self.options.cache
    }

    /// The model's folder in the cache. What is there in whole is taken as it is; what is not is downloaded.
    ///
    /// # Errors
    /// As [`Hub::pull`]; [`HubProblem::Offline`] and [`HubProblem::OfflineInPart`] when it would have to be downloaded and may not.
    pub fn get(&self, name: &ModelName, events: &mut Events) -> Result<PathBuf> {
        match self.cached(name)? {
            Ok(snapshot) => Ok(snapshot),
            Err(_) if !self.options.is_offline => self.pull(name, events),
            Err(missing) => Err(problem(name, missing)),
        }
    }

    /// The model's folder in the cache, or what is not there.
    fn cached(&self, name: &ModelName) -> Result<std::result::Result<PathBuf, HubProblem>> {
        let (cache, asked) = (self.cache().to_owned(), name.to_string());
        let Some(snapshot) = Folder::new(self.cache(), name.repository()).find(name.revision())? else {
            return Ok(Err(HubProblem::Offline { cache, name: asked }));
        };
        Ok(match Folder::missing(&snapshot)? {
            None => Ok(snapshot),
            Some(file) => Err(HubProblem::OfflineInPart { file, name: asked }),
        })
    }

    /// Ask the hub for the model and download what is not in the cache: configuration, tokenizer, chat template, weights and
    /// licence. The folder is the snapshot of its commit. Offline, that is all in the cache, or an error.
    ///
    /// # Errors
    /// [`Error::Hub`]; [`Error::Unsupported`] and others of [`models::read_config`] for a model that does not run here, before its
    /// weights are downloaded; [`Error::Io`] when the cache cannot be written; [`Error::Interrupted`].
    pub fn pull(&self, name: &ModelName, events: &mut Events) -> Result<PathBuf> {
        if self.options.is_offline {
            return self.cached(name)?.map_err(|missing| problem(name, missing));
        }
        let client = Client::new(&self.options, name, events.stop)?;
        let listing = Listing::fetch(&client)?;
        if let Some(id) = listing.id.as_deref().filter(|id| *id != name.repository()) {
            log::warn!("{} has moved: it is called {id:?} now", name.repository());
        }
        let first = listing.first(&client)?;
        let folder = Folder::new(self.cache(), name.repository());
        folder.prepare(&listing.commit)?;
        let snapshot = folder.snapshot(&listing.commit);
        let mut unseen = Events { on_event: &mut |_| (), stop: events.stop };
        download::fetch(&client, &folder, &listing.commit, first, &mut unseen)?;
        let checkpoint = Checkpoint::open(&snapshot)?;
        models::read_config(&checkpoint)?;
        let others = listing.others(&client, checkpoint.index()?)?;
        download::fetch(&client, &folder, &listing.commit, others, events)?;
        folder.set_ref(name.revision(), &listing.commit)?;
        Ok(snapshot)
    }
}

fn problem(name: &ModelName, problem: HubProblem) -> Error {
    Error::Hub { name: name.to_string(), problem }
}
