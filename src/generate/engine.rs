//! The engine: a model on a thread of its own, and the sequences that it computes together.
//!
//! Callers talk to it through queues: [`Engine::submit`] hands in a [`Request`] and gives a [`Generation`], whose events come as
//! they are made; dropping it aborts the request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mlx_rs::Dtype;

use super::constraint::{Compiler, Start};
use super::grammar::Grammar;
use super::options::GenerateOptions;
use super::output::{Delta, FinishReason, Stats};
use super::prefix::PrefixCache;
use super::prompt_cache::PromptCache;
use super::worker::Worker;
use super::{Prepared, prepare};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, panic_message};
use crate::models::Model;
use crate::models::config::DecoderConfig;
use crate::tokenizer::Tokenizer;
use crate::watch::Watch;

/// Deltas that a caller has not taken yet from which on its sequence waits, and down to which it does.
pub(super) const PATIENCE: (usize, usize) = (256, 128);

/// How an engine works.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The most sequences that are computed together.
    pub parallel: usize,
    /// Prompt tokens that are read at once while other sequences decode: what a token of theirs may have to wait for.
    pub prefill_budget: usize,
    /// Bytes for the keys and values of all sequences; `None` for what is free, less a margin.
    pub cache_memory: Option<u64>,
    /// Of how many sequences that ended the caches are kept for those to come, as far as `cache_memory` has room.
    pub prefixes: usize,
    /// Tokens that were generated are read again where a later prompt repeats them, so that its numbers do not depend on what
    /// came before.
    pub deterministic: bool,
    /// Once it is true, everything under way is aborted within a fraction of a second. Any thread may set it, and a signal's
    /// handler.
    pub stop: Arc<AtomicBool>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            parallel: 8,
            prefill_budget: 256,
            cache_memory: None,
            prefixes: usize::MAX,
            deterministic: false,
            stop: Arc::default(),
        }
    }
}

/// What is to be generated.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How.
    pub options: GenerateOptions,
    /// What was kept of a prompt that begins alike.
    pub prompt_cache: Option<PromptCache>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Event {
    /// So many tokens of the prompt were read, of so many.
    Reading {
        /// Read so far.
        done: usize,
        /// In all.
        total: usize,
    },
    /// The prompt is read, and so many of its tokens were evicted meanwhile or left out.
    Read {
        /// How many.
        evicted: u64,
    },
    /// A token.
    Delta(Delta),
    /// The last event.
    Finished(Finished),
}

/// How a request ended.
#[derive(Debug)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// With [`FinishReason::Error`], what went wrong.
    pub error: Option<Error>,
    /// Text that no delta brought, after an abort or an error.
    pub held_back: String,
    /// What it took.
    pub stats: Stats,
}

/// What callers ask of the engine's thread.
pub(super) enum Command {
    Submit(Box<Submission>),
    /// A caller took events, or went away.
    Wake,
    Call(Box<Call>),
    ShutDown,
}

/// What is done between two passes.
type Call = dyn FnOnce(&Model, &mut PrefixCache) + Send;

/// A request that was checked.
pub(super) struct Submission {
    pub prepared: Prepared,
    pub options: GenerateOptions,
    pub prompt_cache: Option<PromptCache>,
    pub grammar: Option<Arc<Start>>,
    pub events: Events,
    pub link: Arc<Link>,
    pub submitted: Instant,
}

/// Where the events of a request go.
#[derive(Clone)]
pub(super) struct Events {
    to: Sender<Event>,
    /// Dropped after `to`, so that whoever is woken finds the end.
    wake: WakeAtEnd,
}

impl Events {
    pub fn send(&self, event: Event) {
        let _ = self.to.send(event); // whoever is gone is aborted before the next pass
        self.wake.0.wake();
    }
}

#[derive(Clone)]
struct WakeAtEnd(Arc<Link>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// What a request's two ends share.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Deltas that were not taken yet.
    pub queued: AtomicUsize,
    /// The end is asked for, or nobody will take any more.
    pub is_aborted: AtomicBool,
    /// Whoever waits for an event without blocking.
    waker: Mutex<Option<Waker>>,
}

impl Link {
    fn wake(&self) {
        if let Some(waker) = locked(&self.waker).take() {
            waker.wake();
        }
    }
}

/// What an engine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that wait.
    pub waiting: usize,
    /// Sequences under way.
    pub running: usize,
    /// Bytes of the keys and values of sequences under way, and of those kept for later ones.
    pub cache_bytes: u64,
}

/// A model on its own thread. Dropped, it aborts what is under way and waits for the thread.
#[derive(Debug)]
pub struct Engine {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    load: Arc<Mutex<Load>>,
    tokenizer: Arc<Tokenizer>,
    config: DecoderConfig,
    dtype: Dtype,
    grammars: Compiler,
}

impl Engine {
    /// Load a checkpoint's model and tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::load`], [`Model::load`] and [`Engine::start`].
    pub fn load(checkpoint: Checkpoint, options: EngineOptions) -> Result<Self> {
        let checkpoint = Arc::new(checkpoint);
        let (of_model, stop) = (Arc::clone(&checkpoint), Arc::clone(&options.stop));
        let load = move || Model::load(&of_model, &mut Watch { on_progress: &mut |_, _| (), stop: &stop });
        Engine::start(load, || Tokenizer::load(&checkpoint), options)
    }

    /// Start a thread that loads a model by `load` and computes with it, and call `load_tokenizer` meanwhile.
    ///
    /// # Errors
    /// Those of `load_tokenizer`, then those of `load`, and when there can be no thread.
    pub fn start(
        load: impl FnOnce() -> Result<Model> + Send + 'static,
        load_tokenizer: impl FnOnce() -> Result<Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self> {
        let (commands, received) = channel();
        let (ready, is_ready) = channel();
        let (give_tokenizer, tokenizer_given) = channel::<Arc<Tokenizer>>();
        let told = Arc::<Mutex<Load>>::default();
        let tell = Arc::clone(&told);
        let run = move || {
            let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| Err(panicked(&*panic)));
            match loaded {
                Err(error) => drop(ready.send(Err(error))),
                Ok(model) => {
                    let _ = ready.send(Ok((model.config().clone(), model.dtype())));
                    if let Ok(tokenizer) = tokenizer_given.recv() {
                        Worker::new(&model, &tokenizer, &options).run(&received, |load| *locked(&tell) = load);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).stack_size(16 << 20).spawn(run);
        let thread = thread.map_err(|e| Error::OutOfMemory(format!("a thread could not be started: {e}")))?;
        let tokenizer = match load_tokenizer() {
            Ok(tokenizer) => Arc::new(tokenizer),
            Err(error) => {
                drop(give_tokenizer);
                let _ = thread.join();
                return Err(error);
            }
        };
        let _ = give_tokenizer.send(Arc::clone(&tokenizer));
        match is_ready.recv() {
            Ok(Ok((config, dtype))) => {
                let grammars = Compiler::new(Arc::clone(&tokenizer), config.vocab_size);
                Ok(Engine { commands, thread: Some(thread), load: told, tokenizer, config, dtype, grammars })
            }
            Ok(Err(error)) => {
                let _ = thread.join();
                Err(error)
            }
            Err(_) => Err(ended()),
        }
    }

    /// What turns text into ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What config.json says.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Compile a grammar ahead of the requests that have it.
    ///
    /// # Errors
    /// When there is no such grammar, no text fits it, or it is too large.
    pub fn compile(&self, grammar: &Grammar) -> Result<()> {
        self.grammars.compile(grammar).map(drop)
    }

    /// # Errors
    /// When [`Engine::submit`] would refuse any request with these options.
    pub fn check(&self, options: &GenerateOptions) -> Result<()> {
        super::check(&self.config, options)?;
        options.grammar.iter().try_for_each(|grammar| self.compile(grammar))
    }

    /// Hand in a request.
    ///
    /// # Errors
    /// When an option is out of range, or the prompt is empty, holds an id beyond the model's vocabulary, or is longer than the
    /// context and must not be; when there is no such [grammar](super::Grammar), no text fits it, or it is too large. What else
    /// goes wrong is told by [`Event::Finished`].
    pub fn submit(&self, request: Request) -> Result<Generation> {
        let prepared = prepare(&self.config, self.dtype, &request.prompt, &request.options)?;
        let grammar = request.options.grammar.as_ref().map(|grammar| self.grammars.compile(grammar)).transpose()?;
        let (to, events) = channel();
        let link = Arc::new(Link::default());
        let submission = Submission {
            prepared,
            options: request.options,
            prompt_cache: request.prompt_cache,
            grammar,
            events: Events { to, wake: WakeAtEnd(Arc::clone(&link)) },
            link: Arc::clone(&link),
            submitted: Instant::now(),
        };
        self.commands.send(Command::Submit(submission.into())).map_err(|_| ended())?;
        Ok(Generation { events, link, commands: self.commands.clone(), finished: None })
    }

    /// What `with` makes of the model, between two passes.
    ///
    /// # Errors
    /// When `with` panics.
    pub fn call<R: Send + 'static>(&self, with: impl FnOnce(&Model) -> R + Send + 'static) -> Result<R> {
        self.call_with_prefixes(move |model, _| with(model))
    }

    /// The beginnings of prompts that are kept and were of use, the most used first, at most so many.
    ///
    /// # Errors
    /// When the engine's thread has ended.
    pub fn prefixes(&self, most: usize) -> Result<Vec<PromptCache>> {
        self.call_with_prefixes(move |model, prefixes| prefixes.most_used(model, most))
    }

    /// Keep what was read of a prompt for requests to come, as if one had just ended with it.
    ///
    /// # Errors
    /// When it was made with another model, evicted tokens, or the engine's thread has ended.
    pub fn keep(&self, prompt_cache: PromptCache) -> Result<()> {
        self.call_with_prefixes(move |model, prefixes| {
            prefixes.put(prompt_cache.into_prefix(model)?);
            Ok(())
        })?
    }

    fn call_with_prefixes<R: Send + 'static>(
        &self,
        with: impl FnOnce(&Model, &mut PrefixCache) -> R + Send + 'static,
    ) -> Result<R> {
        let (to, result) = channel();
        let call = move |model: &Model, prefixes: &mut PrefixCache| drop(to.send(with(model, prefixes)));
        self.commands.send(Command::Call(Box::new(call))).map_err(|_| ended())?;
        result.recv().map_err(|_| ended())
    }

    /// What it was doing after the last pass.
    pub fn status(&self) -> Load {
        *locked(&self.load)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::ShutDown);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The last event where the engine's thread has ended without one.
fn broken() -> Event {
    let (held_back, stats) = (String::new(), Stats::default());
    Event::Finished(Finished { reason: FinishReason::Error, error: Some(ended()), held_back, stats })
}

fn ended() -> Error {
    Error::Internal("the engine's thread has ended".into())
}

pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    Error::Internal(panic_message(panic).to_owned())
}

/// A request under way. Iterate for its deltas, or take all its events; dropped, it aborts.
#[derive(Debug)]
pub struct Generation {
    events: Receiver<Event>,
    link: Arc<Link>,
    commands: Sender<Command>,
    finished: Option<(FinishReason, Stats)>,
}

impl Generation {
    /// Wait for the next event; `None` after [`Event::Finished`].
    pub fn next_event(&mut self) -> Option<Event> {
        if self.finished.is_some() {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| broken());
        Some(self.taken(event))
    }

    /// The next event, if it comes within `patience`.
    pub fn next_event_within(&mut self, patience: Duration) -> Poll<Option<Event>> {
        if self.finished.is_some() {
            return Poll::Ready(None);
        }
        let event = match self.events.recv_timeout(patience) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return Poll::Pending,
            Err(RecvTimeoutError::Disconnected) => broken(),
        };
        Poll::Ready(Some(self.taken(event)))
    }

    /// Ask for the end: [`Event::Finished`] comes after the pass that is being computed. What was read stays for requests to come.
    pub fn abort(&self) {
        self.link.is_aborted.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Wake);
    }

    /// The next event if there is one, `None` after [`Event::Finished`]; otherwise the task of `context` is woken once there is.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.finished.is_some() {
            return Poll::Ready(None);
        }
        // Before looking, so that what comes in between wakes.
        *locked(&self.link.waker) = Some(context.waker().clone());
        match self.events.try_recv() {
            Ok(event) => Poll::Ready(Some(self.taken(event))),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(Some(self.taken(broken()))),
        }
    }

    /// An event that is about to be handed out.
    fn taken(&mut self, event: Event) -> Event {
        match &event {
            Event::Delta(_) => {
                if self.link.queued.fetch_sub(1, Ordering::AcqRel) == PATIENCE.1 {
                    let _ = self.commands.send(Command::Wake);
                }
            }
            Event::Finished(finished) => self.finished = Some((finished.reason, finished.stats)),
            Event::Reading { .. } | Event::Read { .. } => {}
        }
        event
    }

    /// Why it ended; `None` while it runs.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished.map(|(reason, _)| reason)
    }

    /// What it took, once it has ended.
    pub fn stats(&self) -> Option<Stats> {
        self.finished.map(|(_, stats)| stats)
    }
}

impl Iterator for Generation {
    type Item = Result<Delta>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_event()? {
                Event::Delta(delta) => return Some(Ok(delta)),
                Event::Reading { .. } | Event::Read { .. } => {}
                Event::Finished(Finished { error, .. }) => return error.map(Err),
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.finished.is_none() {
            self.abort();
        }
    }
}
