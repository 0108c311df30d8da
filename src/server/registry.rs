//! The models that a server has, by name: each is loaded when it is first asked for, and let go when it is idle or another needs
//! its memory.

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use tokio::sync::Mutex as AsyncMutex;

use super::error::ApiError;
use super::prompt_store::PromptStore;
use super::{blocking, unix_seconds};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::generate::{Engine, EngineOptions, Load, available_memory};

/// How long a request waits for its model to be loaded.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);

/// A model that a server may load.
#[derive(Clone)]
pub struct ModelSource {
    /// What requests call it.
    pub name: String,
    /// Opens its files.
    pub open: Arc<dyn Fn() -> Result<Checkpoint> + Send + Sync>,
}

/// A model in memory.
pub struct Served {
    /// What requests call it.
    pub name: String,
    /// What computes.
    pub engine: Engine,
    /// What tells the model from others.
    pub fingerprint: String,
    /// When it was last asked for.
    used: Mutex<Instant>,
    /// When it last made a token.
    made_token: Mutex<Option<Instant>>,
}

impl Served {
    /// It has made a token.
    pub fn token_made(&self) {
        *locked(&self.made_token) = Some(Instant::now());
    }

    /// Whether it made a token so short a time ago.
    pub fn has_made_token(&self, ago: Duration) -> bool {
        locked(&self.made_token).is_some_and(|made| made.elapsed() < ago)
    }

    fn touch(&self) {
        *locked(&self.used) = Instant::now();
    }

    /// For how long nobody has asked for it.
    fn idle(&self) -> Duration {
        locked(&self.used).elapsed()
    }
}

/// A model that stays in memory as long as this lives.
#[derive(Clone)]
pub struct Lease(Arc<Served>);

impl Deref for Lease {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.touch();
    }
}

/// Whether a model is in memory.
enum Residence {
    Absent,
    Loading,
    Loaded(Arc<Served>),
    Failed,
}

struct Slot {
    source: ModelSource,
    residence: Mutex<Residence>,
    /// Held by the task that loads it.
    loading: Arc<AsyncMutex<()>>,
}

/// How the models of a server are loaded.
pub struct Options {
    /// Of each engine.
    pub engine: EngineOptions,
    /// Where the beginnings of prompts survive a restart.
    pub store: Option<PromptStore>,
    /// After how long a model that nobody uses is let go.
    pub idle_unload: Option<Duration>,
}

/// The models of a server.
pub struct Registry {
    slots: Vec<Slot>,
    options: Options,
    /// When the server started, in seconds since 1970.
    pub started: u64,
}

impl Registry {
    /// None is loaded yet. There is at least one source.
    pub fn new(sources: Vec<ModelSource>, options: Options) -> Self {
        let slot = |source| Slot { source, residence: Mutex::new(Residence::Absent), loading: Arc::default() };
        Registry { slots: sources.into_iter().map(slot).collect(), options, started: unix_seconds(SystemTime::now()) }
    }

    /// What requests may call models.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|slot| slot.source.name.as_str())
    }

    /// # Errors
    /// 404 when there is no model of this name.
    pub fn require(&self, name: &str) -> Result<(), ApiError> {
        self.find(Some(name)).map(drop)
    }

    fn find(&self, name: Option<&str>) -> Result<usize, ApiError> {
        let Some(name) = name else { return Ok(0) };
        self.slots.iter().position(|slot| slot.source.name == name).ok_or_else(|| {
            let message = format!("there is no model {name:?}; GET /v1/models lists them");
            let error = ApiError { param: Some("model".into()), ..ApiError::new(StatusCode::NOT_FOUND, message) };
            error.with_code("model_not_found")
        })
    }

    /// The model of this name, or the first, which is loaded if need be.
    ///
    /// # Errors
    /// 404 when there is none; 503 when loading takes long or there is no memory for it; 500 when it cannot be loaded.
    pub async fn lease(self: &Arc<Self>, name: Option<&str>) -> Result<Lease, ApiError> {
        let index = self.find(name)?;
        let loaded = tokio::time::timeout(LOAD_PATIENCE, self.load(index)).await;
        let late = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the model is still being loaded");
        loaded.map_err(late)?.map_err(|error| match error {
            Error::OutOfMemory(_) => error.into(),
            error => {
                // It may name files of the server's.
                log::error!("{}: {error}", self.slots[index].source.name);
                let message = "the model could not be loaded; the server's log says why";
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        })
    }

    /// Load the first model, which is there from the start.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub async fn load_first(self: &Arc<Self>) -> Result<()> {
        self.load(0).await.map(drop)
    }

    async fn load(self: &Arc<Self>, index: usize) -> Result<Lease> {
        let slot = &self.slots[index];
        if let Some(lease) = slot.lease() {
            return Ok(lease);
        }
        let loading = Arc::clone(&slot.loading).lock_owned().await;
        if let Some(lease) = slot.lease() {
            return Ok(lease);
        }
        *locked(&slot.residence) = Residence::Loading;
        let registry = Arc::clone(self);
        // It goes on when whoever asked first goes away.
        let task = tokio::spawn(async move {
            let _loading = loading;
            let slot = &registry.slots[index];
            let (source, for_task) = (slot.source.clone(), Arc::clone(&registry));
            let loaded = blocking(move || for_task.read(index, &source)).await.and_then(|loaded| loaded);
            let (residence, lease) = match loaded {
                Ok(served) => {
                    let served = Arc::new(served);
                    (Residence::Loaded(Arc::clone(&served)), Ok(Lease(served)))
                }
                Err(error) => (Residence::Failed, Err(error)),
            };
            *locked(&slot.residence) = residence;
            lease
        });
        task.await.unwrap_or_else(|e| Err(Error::Internal(e.to_string())))
    }

    fn read(&self, index: usize, source: &ModelSource) -> Result<Served> {
        let checkpoint = (source.open)()?;
        let bytes = checkpoint.weight_bytes()?;
        while available_memory().is_some_and(|available| available < bytes + bytes / 8) {
            if !self.drop_least_recently_used(index) {
                if self.loaded().is_empty() {
                    break; // alone, it may still fit: weights are mapped
                }
                return Err(Error::OutOfMemory(format!(
                    "the model needs {:.1} MB, and the others are in use",
                    bytes as f64 / 1e6
                )));
            }
        }
        let engine = Engine::load(checkpoint, self.options.engine.clone())?;
        let identity = engine.call(|model| model.identity().to_owned())?;
        if let Some(store) = &self.options.store {
            store.load(&engine, &identity);
        }
        log::info!("{}: loaded", source.name);
        Ok(Served {
            name: source.name.clone(),
            engine,
            fingerprint: format!("fp_{}", &identity[..identity.floor_char_boundary(12)]),
            used: Mutex::new(Instant::now()),
            made_token: Mutex::default(),
        })
    }

    /// Let go of the model that nobody has used for longest, but for the one at `except`; whether there was one.
    fn drop_least_recently_used(&self, except: usize) -> bool {
        let others = self.slots.iter().enumerate().filter(|(i, _)| *i != except);
        let idle = others.filter_map(|(_, slot)| Some((slot.idle()?, slot)));
        let longest = idle.max_by_key(|(idle, _)| *idle);
        longest.and_then(|(_, slot)| slot.take(Duration::ZERO)).map(|served| self.let_go(served)).is_some()
    }

    /// Let go of models that nobody has used for as long as was said.
    pub fn drop_idle(&self) {
        let Some(longest) = self.options.idle_unload else { return };
        for served in self.slots.iter().filter_map(|slot| slot.take(longest)) {
            self.let_go(served);
        }
    }

    /// Keep what is worth keeping of the loaded models' caches.
    pub fn save_prompts(&self) {
        for served in self.loaded() {
            self.save_prompts_of(&served);
        }
    }

    fn save_prompts_of(&self, served: &Served) {
        if let Some(store) = &self.options.store {
            store.save(&served.engine);
        }
    }

    fn let_go(&self, served: Arc<Served>) {
        self.save_prompts_of(&served);
        log::info!("{}: unloaded", served.name);
    }

    fn loaded(&self) -> Vec<Arc<Served>> {
        self.slots.iter().filter_map(Slot::loaded).collect()
    }

    /// What the loaded models' engines are doing.
    pub fn loads(&self) -> Vec<Load> {
        self.loaded().iter().map(|served| served.engine.status()).collect()
    }

    /// A loaded model, the one used last; `None` when there is none but could be.
    ///
    /// # Errors
    /// 503 when none is loaded yet, or none could be.
    pub fn any(&self) -> Result<Option<Arc<Served>>, ApiError> {
        if let Some(served) = self.loaded().into_iter().min_by_key(|served| served.idle()) {
            return Ok(Some(served));
        }
        let unavailable = |message: &str| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message));
        match &*locked(&self.slots[0].residence) {
            Residence::Loading => unavailable("the model is being loaded"),
            Residence::Failed => unavailable("the model could not be loaded; the server's log says why"),
            Residence::Absent | Residence::Loaded(_) => Ok(None),
        }
    }

    /// Abort everything under way.
    pub fn stop(&self) {
        self.options.engine.stop.store(true, Ordering::Relaxed);
    }
}

impl Slot {
    fn loaded(&self) -> Option<Arc<Served>> {
        match &*locked(&self.residence) {
            Residence::Loaded(served) => Some(Arc::clone(served)),
            _ => None,
        }
    }

    fn lease(&self) -> Option<Lease> {
        let served = self.loaded()?;
        served.touch();
        Some(Lease(served))
    }

    /// For how long nobody has used it, if it is loaded and nobody does.
    fn idle(&self) -> Option<Duration> {
        match &*locked(&self.residence) {
            Residence::Loaded(served) if Arc::strong_count(served) == 1 => Some(served.idle()),
            _ => None,
        }
    }

    /// Take the model out if nobody uses it, nor has for so long.
    fn take(&self, idle: Duration) -> Option<Arc<Served>> {
        let mut residence = locked(&self.residence);
        match &*residence {
            Residence::Loaded(served) if Arc::strong_count(served) == 1 && served.idle() >= idle => {}
            _ => return None,
        }
        match std::mem::replace(&mut *residence, Residence::Absent) {
            Residence::Loaded(served) => Some(served),
            _ => None,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
