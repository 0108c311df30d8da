//! OpenAI's interface over HTTP: `mlx_lm serve`.
//!
//! | file | owns |
//! |---|---|
//! | `http` | sockets: connections and what bounds them, the end of the server |
//! | `routes`, `submit`, `tokens` | what each path does |
//! | `security` | who may ask: keys, hosts, origins |
//! | [`openai`], [`error`](ApiError) | OpenAI's bodies and errors |
//! | `answer` | from the events of generations to an answer, whole or streamed |
//! | `registry`, `prompt_store` | models by name; what is kept of their prompts |
//! | `metrics` | counters |
//! | `page` | the chat page |
//!
//! Each model has its [`Engine`](crate::Engine), on a thread of its own. Requests are read, rendered and tokenized on threads of
//! a pool, a few at a time, and their generations polled by tokio's tasks. Nothing here touches an array.

mod answer;
mod error;
mod http;
mod metrics;
pub mod openai;
mod page;
mod prompt_store;
mod registry;
mod routes;
mod security;
mod submit;
mod tokens;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::generate::{EngineOptions, Overrides};
pub use error::ApiError;
use metrics::Metrics;
use prompt_store::PromptStore;
pub use registry::ModelSource;
use registry::Registry;
pub use security::ApiKeys;
use security::Guard;

/// How a server works.
#[derive(Clone)]
pub struct ServerOptions {
    /// The models; requests that name none get the first. At least one.
    pub models: Vec<ModelSource>,
    /// The most sequences that are computed together, of each model.
    pub parallel: usize,
    /// The most sequences that wait, of all models.
    pub queue: usize,
    /// Bytes for keys and values, of each model; `None` for what is free, less a margin.
    pub cache_memory: Option<u64>,
    /// Where the beginnings of prompts survive a restart.
    pub prompt_cache_dir: Option<PathBuf>,
    /// What requests leave out.
    pub defaults: Overrides,
    /// After how long a model that nobody uses is let go.
    pub idle_unload: Option<Duration>,
    /// How long requests under way may go on once the server ends.
    pub drain: Duration,
    /// Who may ask; `None` for anybody.
    pub api_keys: Option<ApiKeys>,
    /// Origins of web pages that may ask, or `*`.
    pub cors: Vec<String>,
}

/// What all requests share.
struct Shared {
    registry: Arc<Registry>,
    metrics: Metrics,
    guard: Guard,
    defaults: Overrides,
    /// One for each sequence that may be under way or wait.
    permits: Arc<Semaphore>,
    capacity: usize,
    /// One for each large body that may be in memory.
    large_bodies: Arc<Semaphore>,
    /// One for each request that may be rendered and tokenized at a time.
    preparing: Semaphore,
    is_draining: AtomicBool,
    next_id: AtomicU64,
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    options: ServerOptions,
}

impl Server {
    /// Listen at the first of `addresses` that is free, `port` 0 for any port.
    ///
    /// # Errors
    /// When there is none, an origin is not one, or the directory for prompts cannot be made.
    pub fn bind(addresses: &[SocketAddr], options: ServerOptions) -> Result<Self> {
        let listen = || {
            let listener = TcpListener::bind(addresses)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let name = || addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ").into();
        let (listener, address) = listen().map_err(|error| Error::Io { path: name(), error })?;
        let engine = EngineOptions {
            parallel: options.parallel,
            cache_memory: options.cache_memory,
            prefixes: 4 * options.parallel,
            // An answer must not depend on those before it.
            deterministic: true,
            ..EngineOptions::default()
        };
        let store = options.prompt_cache_dir.clone().map(PromptStore::open).transpose()?;
        let registry = registry::Options { engine, store, idle_unload: options.idle_unload };
        let capacity = options.parallel + options.queue;
        let shared = Shared {
            registry: Arc::new(Registry::new(options.models.clone(), registry)),
            metrics: Metrics::new(),
            guard: Guard::new(address, options.api_keys.clone(), &options.cors)?,
            defaults: options.defaults.clone(),
            permits: Arc::new(Semaphore::new(capacity)),
            capacity,
            large_bodies: Arc::new(Semaphore::new(routes::LARGE_BODIES)),
            preparing: Semaphore::new(num_cpus::get()),
            is_draining: AtomicBool::new(false),
            next_id: AtomicU64::new(0),
        };
        Ok(Server { listener, address, shared: Arc::new(shared), options })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answer requests until `end` says so, then those under way.
    ///
    /// # Errors
    /// When the first model cannot be loaded, or the system gives no threads.
    pub fn run(self, end: impl Future<Output = ()> + Send) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|e| Error::OutOfMemory(format!("threads could not be started: {e}")))?;
        let Server { listener, shared, options, .. } = self;
        let served = runtime.block_on(http::serve(listener, &shared, &options, end));
        runtime.shutdown_timeout(Duration::from_secs(1));
        shared.registry.save_prompts();
        served
    }
}

impl Shared {
    /// # Errors
    /// 400 when there will never be place for so many sequences.
    fn check_room(&self, n: usize) -> Result<(), ApiError> {
        let most = self.capacity;
        match n <= most {
            true => Ok(()),
            false => {
                Err(ApiError::bad_request(format!("{n} answers are asked for, and the queue has room for {most}")))
            }
        }
    }

    /// Take places for `n` sequences.
    ///
    /// # Errors
    /// 503 when the server ends, 429 when there is no place, 400 when there will never be so many.
    fn admit(&self, n: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        if self.is_draining.load(Ordering::Acquire) {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending"));
        }
        self.check_room(n)?;
        let full = |_| ApiError::new(StatusCode::TOO_MANY_REQUESTS, "the queue is full; try again in a moment");
        Arc::clone(&self.permits).try_acquire_many_owned(n as u32).map_err(full)
    }

    /// Do what takes a moment on a thread for it, when it is its turn.
    async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _turn = self.preparing.acquire().await;
        blocking(work).await.map_err(ApiError::from).and_then(|done| done)
    }

    /// An identifier that no other call has: of nine letters and digits, since Mistral's chat templates take no other.
    fn call_id(&self) -> String {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let number = (self.registry.started << 15).wrapping_add(self.next_id.fetch_add(1, Ordering::Relaxed));
        (0..9).rev().map(|digit| char::from(DIGITS[(number / 36u64.pow(digit) % 36) as usize])).collect()
    }

    /// An identifier that no other answer has.
    fn id(&self, prefix: &str) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{:x}{number:06x}", self.registry.started)
    }
}

/// Run on a thread for what blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(e.to_string()))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
