//! The engine: a model on a thread of its own, and the sequences that it computes together.
//!
//! Callers talk to it through queues: [`Engine::submit`] hands in a [`Request`] and gives a [`Generation`], whose events come as
//! they are made; dropping it aborts the request.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use mlx_rs::Dtype;
use mlx_rs::memory::clear_cache;

use super::generator::{Step, Token, submit};
use super::kv_cache::CacheLimits;
use super::options::GenerateOptions;
use super::output::{Delta, FinishReason, Output, Stats};
use super::prefix::{Prefix, PrefixCache, WORTHWHILE, common};
use super::prompt_cache::PromptCache;
use super::scheduler::{Id, Plan, Scheduler, SchedulerOptions};
use super::sequence::{Next, Sequence};
use super::{Prepared, prepare};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::config::DecoderConfig;
use crate::ops;
use crate::tokenizer::Tokenizer;
use crate::watch::Watch;

/// Events that a caller has not taken yet from which on its sequence waits, and down to which it does.
const PATIENCE: (usize, usize) = (256, 128);
/// MLX keeps freed buffers for reuse; they are dropped once in so many passes.
const CLEAR_CACHE_EVERY: usize = 256;

/// How an engine works.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The most sequences that are computed together.
    pub parallel: usize,
    /// Prompt tokens that are read at once while other sequences decode: what a token of theirs may have to wait for.
    pub prefill_budget: usize,
    /// Bytes for the keys and values of all sequences; `None` for what is free, less a margin.
    pub cache_memory: Option<u64>,
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

enum Command {
    Submit(Box<Submission>),
    /// A caller took events, or went away.
    Wake,
    Call(Box<dyn FnOnce(&Model) + Send>),
    ShutDown,
}

struct Submission {
    prepared: Prepared,
    options: GenerateOptions,
    prompt_cache: Option<PromptCache>,
    to: Sender<Event>,
    link: Arc<Link>,
    submitted: Instant,
}

/// What a request's two ends share.
#[derive(Debug, Default)]
struct Link {
    /// Deltas that were not taken yet.
    queued: AtomicUsize,
    /// Nobody will take any more.
    is_gone: AtomicBool,
}

/// A model on its own thread. Dropped, it aborts what is under way and waits for the thread.
#[derive(Debug)]
pub struct Engine {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    tokenizer: Arc<Tokenizer>,
    config: DecoderConfig,
    dtype: Dtype,
}

impl Engine {
    /// Load a checkpoint's model and tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::load`], [`Model::load`] and [`Engine::start`].
    pub fn load(checkpoint: Checkpoint, options: EngineOptions) -> Result<Self> {
        let tokenizer = Arc::new(Tokenizer::load(&checkpoint)?);
        let stop = Arc::clone(&options.stop);
        let load = move || Model::load(&checkpoint, &mut Watch { on_progress: &mut |_, _| (), stop: &stop });
        Engine::start(load, tokenizer, options)
    }

    /// Start a thread that loads a model by `load` and computes with it.
    ///
    /// # Errors
    /// Those of `load`, and when there can be no thread.
    pub fn start(
        load: impl FnOnce() -> Result<Model> + Send + 'static,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self> {
        let (commands, received) = channel();
        let (ready, is_ready) = channel();
        let of_thread = Arc::clone(&tokenizer);
        let run = move || {
            let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| Err(panicked(&*panic)));
            match loaded {
                Err(error) => drop(ready.send(Err(error))),
                Ok(model) => {
                    let _ = ready.send(Ok((model.config().clone(), model.dtype())));
                    Worker::new(&model, &of_thread, &options).run(&received);
                }
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).stack_size(16 << 20).spawn(run);
        let thread = thread.map_err(|e| Error::OutOfMemory(format!("a thread could not be started: {e}")))?;
        match is_ready.recv() {
            Ok(Ok((config, dtype))) => Ok(Engine { commands, thread: Some(thread), tokenizer, config, dtype }),
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

    /// Hand in a request.
    ///
    /// # Errors
    /// When an option is out of range, or the prompt is empty, holds an id beyond the model's vocabulary, or is longer than the
    /// context and must not be. What else goes wrong is told by [`Event::Finished`].
    pub fn submit(&self, request: Request) -> Result<Generation> {
        let prepared = prepare(&self.config, self.dtype, &request.prompt, &request.options)?;
        let (to, events) = channel();
        let link = Arc::new(Link::default());
        let submission = Submission {
            prepared,
            options: request.options,
            prompt_cache: request.prompt_cache,
            to,
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
        let (to, result) = channel();
        let call = move |model: &Model| drop(to.send(with(model)));
        self.commands.send(Command::Call(Box::new(call))).map_err(|_| ended())?;
        result.recv().map_err(|_| ended())
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

fn ended() -> Error {
    Error::Internal("the engine's thread has ended".into())
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    Error::Internal(message.unwrap_or("no message").to_owned())
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
        let event = self.events.recv().unwrap_or_else(|_| {
            let stats = Stats::default();
            let held_back = String::new();
            Event::Finished(Finished { reason: FinishReason::Error, error: Some(ended()), held_back, stats })
        });
        match &event {
            Event::Delta(_) => {
                if self.link.queued.fetch_sub(1, Ordering::AcqRel) == PATIENCE.1 {
                    let _ = self.commands.send(Command::Wake);
                }
            }
            Event::Finished(finished) => self.finished = Some((finished.reason, finished.stats)),
            Event::Reading { .. } | Event::Read { .. } => {}
        }
        Some(event)
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
        self.link.is_gone.store(true, Ordering::Release);
        if self.finished.is_none() {
            let _ = self.commands.send(Command::Wake);
        }
    }
}

/// A request on the engine's side.
struct Active<'t> {
    id: Id,
    sequence: Sequence,
    output: Output<'t>,
    limits: CacheLimits,
    /// How many of the prompt's first tokens were, or will be, prefilled.
    prefilled: usize,
    /// Tokens that were evicted while the prompt was prefilled.
    evicted: u64,
    /// Whether it has yet to look for tokens that were read before.
    is_fresh: bool,
    /// Tokens still to be submitted.
    left: usize,
    /// Those generated, as long as the cache holds them all.
    generated: Vec<u32>,
    to: Sender<Event>,
    link: Arc<Link>,
}

impl Active<'_> {
    /// Whether its cache may serve others, and be served by them: no token of the prompt is evicted.
    fn shares(&self) -> bool {
        self.sequence.prompt.len() <= self.limits.context_size as usize
    }

    fn send(&self, event: Event) {
        let _ = self.to.send(event); // whoever is gone is aborted before the next pass
    }
}

/// The engine's thread.
struct Worker<'t> {
    model: &'t Model,
    tokenizer: &'t Tokenizer,
    stop: Arc<AtomicBool>,
    cache_memory: u64,
    bytes_per_token: u64,
    scheduler: Scheduler,
    next_id: Id,
    waiting: Vec<(Id, Submission)>,
    active: Vec<Active<'t>>,
    prefixes: PrefixCache,
    /// The last pass that was submitted, and whose tokens it chooses.
    last: Option<(Step, Vec<Id>)>,
    passes: usize,
}

impl<'t> Worker<'t> {
    fn new(model: &'t Model, tokenizer: &'t Tokenizer, options: &EngineOptions) -> Self {
        let EngineOptions { parallel, prefill_budget, cache_memory, deterministic, ref stop } = *options;
        let cache_memory = cache_memory.unwrap_or_else(free_memory);
        let bytes_per_token = model.cache_bytes_per_token();
        let (parallel, prefill_budget) = (parallel.max(1), prefill_budget.max(1));
        Worker {
            model,
            tokenizer,
            stop: Arc::clone(stop),
            cache_memory,
            bytes_per_token,
            scheduler: Scheduler::new(SchedulerOptions { parallel, prefill_budget, cache_memory }),
            next_id: 0,
            waiting: Vec::new(),
            active: Vec::new(),
            prefixes: PrefixCache::new(bytes_per_token, deterministic),
            last: None,
            passes: 0,
        }
    }

    fn run(mut self, commands: &Receiver<Command>) {
        let stop = Arc::clone(&self.stop);
        let _interruptible = ops::interruptible(&stop);
        let mut has_work = false;
        loop {
            // Everything that has come; where there is nothing to do, the next that comes.
            let mut next = if has_work { commands.try_recv() } else { commands.recv().map_err(TryRecvError::from) };
            while let Ok(command) = next {
                match command {
                    Command::Submit(submission) => self.queue(*submission),
                    Command::Call(call) => {
                        // Whoever called finds that no result comes.
                        let _ = catch_unwind(AssertUnwindSafe(|| call(self.model)));
                    }
                    Command::Wake => {}
                    Command::ShutDown => return self.end_all(&Error::Interrupted),
                }
                next = commands.try_recv();
            }
            if matches!(next, Err(TryRecvError::Disconnected)) {
                return self.end_all(&Error::Interrupted);
            }
            let done = catch_unwind(AssertUnwindSafe(|| self.pass())).unwrap_or_else(|panic| Err(panicked(&*panic)));
            has_work = done.unwrap_or_else(|error| {
                self.end_all(&error);
                false
            });
        }
    }

    fn queue(&mut self, submission: Submission) {
        let id = self.next_id;
        self.next_id += 1;
        let Prepared { read, limits, max_tokens, .. } = &submission.prepared;
        let tokens = read.len().saturating_add(*max_tokens).min(limits.context_size as usize).next_multiple_of(256);
        match self.scheduler.queue(id, tokens as u64 * self.bytes_per_token) {
            Ok(()) => self.waiting.push((id, submission)),
            Err(error) => refuse(&submission, error),
        }
    }

    /// Compute once; whether there is more to do right away.
    fn pass(&mut self) -> Result<bool> {
        if self.stop.load(Ordering::Relaxed) && !(self.active.is_empty() && self.waiting.is_empty()) {
            return Err(Error::Interrupted);
        }
        self.drop_those_gone();
        self.admit();
        let held = self.share_prefixes();
        for active in &self.active {
            let queued = active.link.queued.load(Ordering::Acquire);
            if queued >= PATIENCE.0 || queued < PATIENCE.1 {
                self.scheduler.pause(active.id, queued >= PATIENCE.0);
            }
        }
        let mut plan = self.scheduler.plan(|id| held.contains(&id));
        plan.decode.retain(|id| self.active.iter().any(|active| active.id == *id && active.left > 0));
        let last = self.last.take();
        if !plan.is_empty() {
            self.last = self.submit(&plan, last.as_ref().map(|(step, _)| step))?;
        }
        let goes_on = !plan.is_empty() || last.is_some();
        if let Some((step, ids)) = last {
            self.deliver(step, &ids, &plan.decode)?;
        }
        self.passes += 1;
        if self.passes.is_multiple_of(CLEAR_CACHE_EVERY) {
            clear_cache()?;
        }
        // A prompt of which nothing is to follow ends when it is read.
        let done = |active: &Active| active.output.is_empty_answer() && active.sequence.to_prefill() == 0;
        for id in self.active.iter().filter(|active| done(active)).map(|active| active.id).collect::<Vec<_>>() {
            self.finish(id, FinishReason::Length);
        }
        Ok(goes_on)
    }

    fn drop_those_gone(&mut self) {
        let is_gone = |link: &Link| link.is_gone.load(Ordering::Acquire);
        let waiting = self.waiting.iter().filter(|(_, s)| is_gone(&s.link)).map(|(id, _)| *id);
        let active = self.active.iter().filter(|active| is_gone(&active.link)).map(|active| active.id);
        for id in waiting.chain(active).collect::<Vec<_>>() {
            self.scheduler.remove(id);
            self.waiting.retain(|(waiting, _)| *waiting != id);
            self.active.retain(|active| active.id != id);
        }
    }

    /// Take in what waits, as far as there is room.
    fn admit(&mut self) {
        while let Some(id) = self.scheduler.admissible() {
            let at = self.waiting.iter().position(|(waiting, _)| *waiting == id).expect("it waits");
            let (_, submission) = self.waiting.remove(at);
            let started = self.start(id, &submission);
            match started {
                Ok(active) => {
                    let whole_chunks = !active.shares();
                    self.scheduler.start(active.sequence.to_prefill(), active.sequence.chunk_size, whole_chunks);
                    self.active.push(active);
                }
                Err(error) => {
                    self.scheduler.remove(id);
                    refuse(&submission, error);
                }
            }
        }
        self.prefixes.shrink(self.cache_memory - self.scheduler.used());
    }

    fn start(&self, id: Id, submission: &Submission) -> Result<Active<'t>> {
        let Submission { prepared, options, prompt_cache, to, link, submitted } = submission;
        let Prepared { read, limits, max_tokens, .. } = prepared;
        let cache = match prompt_cache {
            Some(_) if read.len() < prepared.prompt_tokens => {
                log::warn!("the prompt was truncated, so the prompt cache is not used");
                self.model.new_cache(*limits)
            }
            Some(cached) => cached.resume(self.model, *limits, read)?,
            None => self.model.new_cache(*limits),
        };
        let vocab_size = self.model.config().vocab_size;
        let output = Output::new(self.tokenizer, options, prepared, cache.seen() as usize, *submitted);
        let is_fresh = cache.is_empty();
        let sequence =
            Sequence::new(read.clone(), cache, &options.sampler, vocab_size, options.logprobs, options.prefill_step)?;
        Ok(Active {
            id,
            prefilled: if is_fresh { read.len() - 1 } else { 0 },
            sequence,
            output,
            limits: *limits,
            evicted: 0,
            is_fresh,
            left: *max_tokens,
            generated: Vec::new(),
            to: to.clone(),
            link: Arc::clone(link),
        })
    }

    /// Let sequences that have not begun to read go on from what others have read. Gives those that had better wait, since
    /// another is about to read what they begin with.
    fn share_prefixes(&mut self) -> HashSet<Id> {
        let mut held = HashSet::new();
        for i in 0..self.active.len() {
            let (before, rest) = self.active.split_at_mut(i);
            let active = &mut rest[0];
            if !active.is_fresh || !active.shares() {
                continue;
            }
            let prompt = &active.sequence.prompt[..active.sequence.prompt.len() - 1];
            // What another has read, and will have read.
            let shared = |other: &Active| common(&other.sequence.prompt[..other.prefilled], prompt);
            let read = |other: &Active| shared(other).min(other.sequence.read());
            let others = || before.iter().filter(|other| other.shares() && other.sequence.cache.evicted() == 0);
            let kept = self.prefixes.longest(prompt);
            let best = others().max_by_key(|other| read(other));
            let now = best.map_or(0, read).max(kept);
            if others().map(shared).max().is_some_and(|later| later >= now + WORTHWHILE) {
                held.insert(active.id);
                continue;
            }
            active.is_fresh = false;
            let found = match best.filter(|other| read(other) > kept && read(other) >= WORTHWHILE) {
                Some(other) => {
                    let n = read(other);
                    let cache = other.sequence.cache.beginning(n as i32, active.limits);
                    Some(Prefix { ids: Vec::new(), prefilled: n, cache })
                }
                None => self.prefixes.get(prompt, active.limits),
            };
            if let Some(Prefix { cache, prefilled, .. }) = found {
                let n = cache.seen() as usize;
                if prefilled < n {
                    active.prefilled = prefilled;
                }
                active.output.resumed(n);
                active.sequence.cache = cache;
                active.sequence.next = Next::Prompt(n);
                self.scheduler.skip(active.id, active.sequence.to_prefill());
            }
        }
        held
    }

    fn submit(&mut self, plan: &Plan, last: Option<&Step>) -> Result<Option<(Step, Vec<Id>)>> {
        let (mut decoding, mut prefilling, mut lookers) = (Vec::new(), Vec::new(), Vec::new());
        for active in &mut self.active {
            if plan.decode.contains(&active.id) {
                active.left -= 1;
                decoding.push(&mut active.sequence);
            } else if let Some((_, n)) = plan.prefill.iter().find(|(id, _)| *id == active.id) {
                lookers.push((active.to.clone(), active.sequence.read(), *n, active.sequence.prompt.len()));
                prefilling.push((&mut active.sequence, *n));
            }
        }
        let layers = self.model.config().num_hidden_layers as usize;
        let mut tell = |layer: usize| {
            for (to, before, n, total) in &lookers {
                let _ = to.send(Event::Reading { done: before + n * layer / layers, total: *total });
            }
        };
        tell(0);
        let step = submit(self.model, &mut decoding, &mut prefilling, last, &mut tell)?;
        for active in self.active.iter_mut().filter(|active| plan.prefill.iter().any(|(id, _)| *id == active.id)) {
            active.evicted = active.sequence.cache.evicted();
        }
        let ids = plan.decode.clone();
        Ok(step.map(|step| (step, ids)))
    }

    /// Read the tokens of a pass; `next` are the sequences of the one that was submitted after it.
    fn deliver(&mut self, step: Step, ids: &[Id], next: &[Id]) -> Result<()> {
        for (&id, token) in ids.iter().zip(step.read(self.model)?) {
            let Some(active) = self.active.iter_mut().find(|active| active.id == id) else {
                continue; // it ended meanwhile
            };
            let token = match token {
                Ok(token) => token,
                Err(error) => {
                    self.end(id, error);
                    continue;
                }
            };
            if !next.contains(&id) {
                active.sequence.next = Next::Token(token.id);
            }
            match active.sequence.cache.evicted() {
                0 => active.generated.push(token.id),
                _ => active.generated = Vec::new(),
            }
            self.tell(id, token);
        }
        Ok(())
    }

    fn tell(&mut self, id: Id, token: Token) {
        let active = self.active.iter_mut().find(|active| active.id == id).expect("it is under way");
        if !active.output.has_begun() {
            active.send(Event::Read { evicted: active.output.left_out() + active.evicted });
        }
        match active.output.push(self.tokenizer, token) {
            Ok((delta, reason)) => {
                active.link.queued.fetch_add(1, Ordering::AcqRel);
                active.send(Event::Delta(delta));
                if let Some(reason) = reason {
                    self.finish(id, reason);
                }
            }
            Err(error) => self.end(id, error),
        }
    }

    fn take(&mut self, id: Id) -> Active<'t> {
        self.scheduler.remove(id);
        let at = self.active.iter().position(|active| active.id == id).expect("it is under way");
        self.active.remove(at)
    }

    /// A sequence is complete; its cache stays for others.
    fn finish(&mut self, id: Id, reason: FinishReason) {
        let Active { sequence, output, to, prefilled, generated, .. } = self.take(id);
        let evicted = sequence.cache.evicted();
        let _ = to.send(Event::Finished(output.finish(reason, None, evicted, sequence.read())));
        let mut ids = sequence.prompt;
        ids.extend(generated);
        ids.truncate(sequence.cache.len() as usize);
        if evicted == 0 && sequence.cache.len() as usize == ids.len() {
            self.prefixes.put(Prefix { prefilled: prefilled.min(ids.len()), ids, cache: sequence.cache });
            self.prefixes.shrink(self.cache_memory - self.scheduler.used());
        }
    }

    /// A sequence ends with an error, or is aborted.
    fn end(&mut self, id: Id, error: Error) {
        let Active { sequence, output, to, .. } = self.take(id);
        let (reason, error) = match error {
            Error::Interrupted => (FinishReason::Abort, None),
            error => (FinishReason::Error, Some(error)),
        };
        let finished = output.finish(reason, error, sequence.cache.evicted(), sequence.read());
        let _ = to.send(Event::Finished(finished));
    }

    /// Everything under way ends: a pass failed, and what it computed is of no use. So may be what was kept of late.
    fn end_all(&mut self, error: &Error) {
        if let Some((step, _)) = self.last.take() {
            let _ = step.read(self.model); // nothing computes any more after this
        }
        while let Some(active) = self.active.first() {
            let id = active.id;
            self.end(id, error.duplicate());
        }
        if matches!(error, Error::Interrupted) {
            for (id, submission) in std::mem::take(&mut self.waiting) {
                self.scheduler.remove(id);
                refuse(&submission, Error::Interrupted);
            }
        }
        self.prefixes.clear();
    }
}

/// Tell a caller that nothing will come of its request.
fn refuse(submission: &Submission, error: Error) {
    let stats = Stats { prompt_tokens: submission.prepared.prompt_tokens, ..Stats::default() };
    let (reason, error) = match error {
        Error::Interrupted => (FinishReason::Abort, None),
        error => (FinishReason::Error, Some(error)),
    };
    let _ = submission.to.send(Event::Finished(Finished { reason, error, held_back: String::new(), stats }));
}

/// What the system has left, less a quarter: in bytes.
fn free_memory() -> u64 {
    let available = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    let of_mlx = || {
        let (limit, active) = (mlx_rs::memory::memory_limit(), mlx_rs::memory::active_memory());
        limit.unwrap_or(8 << 30).saturating_sub(active.unwrap_or(0)) as u64
    };
    available().unwrap_or_else(of_mlx) / 4 * 3
}
