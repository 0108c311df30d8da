//! The engine's thread: takes requests, asks the scheduler, computes pass after pass, and tells what comes of it.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

use mlx_rs::Array;
use mlx_rs::memory::clear_cache;

use super::Prepared;
use super::constraint::{Accepted, Constraint};
use super::engine::{Command, EngineOptions, Event, Events, Finished, Link, Load, PATIENCE, Submission, panicked};
use super::generator::{CLEAR_CACHE_EVERY, Step, Token, choose_constrained, submit};
use super::kv_cache::CacheLimits;
use super::output::{FinishReason, Output, Stats};
use super::prefix::{Prefix, PrefixCache, WORTHWHILE, common};
use super::scheduler::{Id, Plan, Scheduler, SchedulerOptions};
use super::sequence::{Next, Sequence};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::ops;
use crate::tokenizer::Tokenizer;

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
    /// Those generated.
    generated: Vec<u32>,
    events: Events,
    link: Arc<Link>,
}

impl Active<'_> {
    /// Whether its cache may serve others, and be served by them: no token of the prompt is evicted.
    fn shares(&self) -> bool {
        self.sequence.prompt.len() <= self.limits.context_size as usize
    }

    /// What was chosen, and what must follow it, is read like a prompt.
    fn read_on(&mut self, unread: &[u32]) -> Result<()> {
        self.is_fresh = false;
        self.sequence.read_on(std::mem::take(&mut self.generated), unread)
    }
}

/// What the engine's thread keeps.
pub(super) struct Worker<'t> {
    model: &'t Model,
    tokenizer: &'t Tokenizer,
    stop: Arc<AtomicBool>,
    cache_memory: u64,
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
    pub fn new(model: &'t Model, tokenizer: &'t Tokenizer, options: &EngineOptions) -> Self {
        let EngineOptions { parallel, prefill_budget, cache_memory, prefixes, deterministic, ref stop } = *options;
        let cache_memory = cache_memory.unwrap_or_else(free_memory);
        let (parallel, prefill_budget) = (parallel.max(1), prefill_budget.max(1));
        Worker {
            model,
            tokenizer,
            stop: Arc::clone(stop),
            cache_memory,
            scheduler: Scheduler::new(SchedulerOptions { parallel, prefill_budget, cache_memory }),
            next_id: 0,
            waiting: Vec::new(),
            active: Vec::new(),
            prefixes: PrefixCache::new(prefixes, deterministic),
            last: None,
            passes: 0,
        }
    }

    /// Do what `commands` ask for until they end, and `tell` after each pass what is under way.
    pub fn run(mut self, commands: &Receiver<Command>, tell: impl Fn(Load)) {
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
                        let _ = catch_unwind(AssertUnwindSafe(|| call(self.model, &mut self.prefixes)));
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
                !self.waiting.is_empty()
            });
            tell(self.load());
        }
    }

    fn load(&self) -> Load {
        let (waiting, running) = self.scheduler.load();
        let of_active: u64 = self.active.iter().map(|active| active.sequence.cache.bytes()).sum();
        Load { waiting, running, cache_bytes: of_active + self.prefixes.bytes() }
    }

    fn queue(&mut self, submission: Submission) {
        let id = self.next_id;
        self.next_id += 1;
        let Prepared { read, limits, max_tokens, .. } = &submission.prepared;
        let tokens = read.len().saturating_add(*max_tokens);
        let at_once = limits.chunk_size(read.len(), submission.options.prefill_step);
        let bytes = catch_unwind(AssertUnwindSafe(|| self.model.cache_bytes(*limits, tokens, at_once)));
        let queued = bytes.map_err(|panic| panicked(&*panic)).and_then(|bytes| self.scheduler.queue(id, bytes));
        match queued {
            Ok(()) => self.waiting.push((id, submission)),
            Err(error) => refuse(&submission, error),
        }
    }

    /// Compute once; whether there is more to do right away.
    fn pass(&mut self) -> Result<bool> {
        if self.stop.load(Ordering::Relaxed) && !(self.active.is_empty() && self.waiting.is_empty()) {
            return Err(Error::Interrupted);
        }
        self.end_aborted();
        self.admit();
        let held = self.share_prefixes();
        for active in &self.active {
            let queued = active.link.queued.load(Ordering::Acquire);
            if queued >= PATIENCE.0 || queued < PATIENCE.1 {
                self.scheduler.pause(active.id, queued >= PATIENCE.0);
            }
        }
        let mut plan = self.scheduler.plan(|id| held.contains(&id));
        let last = self.last.take();
        // What a constrained sequence may choose next, its last token says, which is not read yet.
        let waits = |active: &Active| {
            active.sequence.constraint.is_some() && last.as_ref().is_some_and(|(_, ids)| ids.contains(&active.id))
        };
        let goes_on = |id: &Id| self.active.iter().any(|active| active.id == *id && active.left > 0 && !waits(active));
        plan.decode.retain(goes_on);
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
        // What has ended may have made room for what waits.
        Ok(goes_on || self.scheduler.admissible().is_some())
    }

    /// End what callers do not want to go on. What was read of it may serve others.
    fn end_aborted(&mut self) {
        let is_aborted = |link: &Link| link.is_aborted.load(Ordering::Acquire);
        for (id, submission) in self.waiting.extract_if(.., |(_, submission)| is_aborted(&submission.link)) {
            self.scheduler.remove(id);
            refuse(&submission, Error::Interrupted);
        }
        let active = self.active.iter().filter(|active| is_aborted(&active.link)).map(|active| active.id);
        for id in active.collect::<Vec<_>>() {
            self.finish(id, FinishReason::Abort);
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
        let Submission { prepared, options, prompt_cache, grammar, events, link, submitted } = submission;
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
        let mut sequence =
            Sequence::new(read.clone(), cache, &options.sampler, vocab_size, options.logprobs, options.prefill_step)?;
        sequence.constraint = grammar.as_ref().map(|start| Constraint::begin(start, vocab_size)).transpose()?;
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
            events: events.clone(),
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
            if !active.is_fresh || !active.shares() && self.prefixes.deterministic() {
                continue;
            }
            let prompt = &active.sequence.prompt[..active.sequence.prompt.len() - 1];
            // What another will have read, where its cache can be cut there, and has read.
            let shared = |other: &Active| {
                let n = common(&other.sequence.prompt[..other.prefilled], prompt);
                let read = n.min(other.sequence.read());
                if other.sequence.cache.has_beginning(read as i32, active.limits) { n } else { 0 }
            };
            let read = |other: &Active| shared(other).min(other.sequence.read());
            let shares = active.shares();
            let others = || before.iter().filter(|other| shares && other.shares());
            let kept = self.prefixes.longest(prompt, active.limits);
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
                    Some((other.sequence.cache.beginning(n as i32, active.limits), n))
                }
                None => self.prefixes.get(prompt, active.limits),
            };
            if let Some((cache, prefilled)) = found {
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
        let (mut free, mut constrained, mut prefilling, mut lookers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for active in &mut self.active {
            if plan.decode.contains(&active.id) {
                active.left -= 1;
                let decoding = if active.sequence.constraint.is_some() { &mut constrained } else { &mut free };
                decoding.push((active.id, &mut active.sequence));
            } else if let Some((_, n)) = plan.prefill.iter().find(|(id, _)| *id == active.id) {
                // Tokens that must follow are read like a prompt, but nobody waits for them.
                if !active.output.has_begun() {
                    lookers.push((active.events.clone(), active.sequence.read(), *n, active.sequence.prompt.len()));
                }
                prefilling.push((&mut active.sequence, *n));
            }
        }
        let layers = self.model.config().num_hidden_layers as usize;
        let mut tell = |layer: usize| {
            for (events, before, n, total) in &lookers {
                events.send(Event::Reading { done: before + n * layer / layers, total: *total });
            }
        };
        tell(0);
        let (ids, mut decoding): (Vec<Id>, Vec<_>) = free.into_iter().chain(constrained).unzip();
        let step = submit(self.model, &mut decoding, &mut prefilling, last, &mut tell)?;
        for active in self.active.iter_mut().filter(|active| plan.prefill.iter().any(|(id, _)| *id == active.id)) {
            active.evicted = active.sequence.cache.evicted();
        }
        Ok(step.map(|step| (step, ids)))
    }

    /// Read the tokens of a pass; `next` are the sequences of the one that was submitted after it.
    fn deliver(&mut self, step: Step, ids: &[Id], next: &[Id]) -> Result<()> {
        let logits = step.constrained();
        let free = step.read(self.model)?;
        let (ids, constrained) = ids.split_at(free.len());
        for (&id, token) in ids.iter().zip(free) {
            let Some(active) = self.active.iter_mut().find(|active| active.id == id) else {
                continue; // it ended meanwhile
            };
            match token {
                Ok(token) => {
                    if !next.contains(&id) {
                        active.sequence.next = Next::Token(token.id);
                    }
                    self.tell(id, token, false);
                }
                Err(error) => self.end(id, error),
            }
        }
        match logits {
            Some(logits) => self.choose(&logits, constrained),
            None => Ok(()),
        }
    }

    /// Choose tokens for the sequences that are constrained, and tell them.
    fn choose(&mut self, logits: &Array, ids: &[Id]) -> Result<()> {
        let (mut rows, mut failed) = (Vec::new(), Vec::new());
        for active in &mut self.active {
            let Some(row) = ids.iter().position(|id| *id == active.id) else { continue };
            match active.sequence.constraint.as_mut().expect("it is constrained").mask() {
                Ok(mask) => rows.push((active.id, (row, mask, &mut active.sequence))),
                Err(error) => failed.push((active.id, error)),
            }
        }
        let (ids, rows): (Vec<Id>, Vec<_>) = rows.into_iter().unzip();
        let tokens = if rows.is_empty() { Vec::new() } else { choose_constrained(self.model, logits, rows)? };
        for (id, error) in failed {
            self.end(id, error);
        }
        for (id, token) in ids.into_iter().zip(tokens) {
            if let Err(error) = token.and_then(|token| self.follow(id, token)) {
                self.end(id, self.blamed(id, error));
            }
        }
        Ok(())
    }

    /// Why a constrained sequence has no token: where its biases ban tokens, they are all that might follow.
    fn blamed(&self, id: Id, error: Error) -> Error {
        let active = self.active.iter().find(|active| active.id == id);
        match error {
            Error::NotANumber(_) if active.is_some_and(|active| active.sequence.sampler.bans()) => {
                Error::setting("logit_bias", "all tokens that may follow are banned", "one to be left")
            }
            error => error,
        }
    }

    /// Tell a token that a constrained sequence chose, and those that alone may follow it.
    fn follow(&mut self, id: Id, token: Token) -> Result<()> {
        let active = self.active.iter_mut().find(|active| active.id == id).expect("it is under way");
        let sequence = &mut active.sequence;
        let Accepted { mut forced, is_over } =
            sequence.constraint.as_mut().expect("it is constrained").accept(token.id)?;
        sequence.next = Next::Token(token.id);
        let is_over = is_over && forced.len() <= active.left;
        forced.truncate(active.left);
        active.left -= forced.len();
        let top = active.sequence.logprobs;
        let unread: Vec<u32> = std::iter::once(token.id).chain(forced.iter().copied()).collect();
        // Of tokens one of which is allowed, it has all the probability.
        let certain = |id: u32| Token {
            id,
            logprob: top.map(|_| 0.0),
            top_logprobs: if top.is_some_and(|n| n > 0) { vec![(id, 0.0)] } else { Vec::new() },
        };
        let last = forced.len();
        for (i, token) in std::iter::once(token).chain(forced.into_iter().map(certain)).enumerate() {
            if !self.tell(id, token, is_over && i == last) {
                return Ok(());
            }
        }
        if last > 0 {
            let active = self.active.iter_mut().find(|active| active.id == id).expect("it is under way");
            active.read_on(&unread)?;
            let Active { sequence, .. } = active;
            self.scheduler.read_on(id, sequence.to_prefill(), sequence.chunk_size);
        }
        Ok(())
    }

    /// Tell a token, after which the text may not go on where `is_over`; whether the sequence is under way still.
    fn tell(&mut self, id: Id, token: Token, is_over: bool) -> bool {
        let active = self.active.iter_mut().find(|active| active.id == id).expect("it is under way");
        active.generated.push(token.id);
        if !active.output.has_begun() {
            active.events.send(Event::Read { evicted: active.output.left_out() + active.evicted });
        }
        match active.output.push(self.tokenizer, token, is_over) {
            Ok((delta, reason)) => {
                active.link.queued.fetch_add(1, Ordering::AcqRel);
                active.events.send(Event::Delta(delta));
                if let Some(reason) = reason {
                    self.finish(id, reason);
                }
                reason.is_none()
            }
            Err(error) => {
                self.end(id, error);
                false
            }
        }
    }

    fn take(&mut self, id: Id) -> Active<'t> {
        self.scheduler.remove(id);
        let at = self.active.iter().position(|active| active.id == id).expect("it is under way");
        self.active.remove(at)
    }

    /// A sequence is complete, or was aborted; its cache stays for others.
    fn finish(&mut self, id: Id, reason: FinishReason) {
        let Active { sequence, output, events, prefilled, generated, .. } = self.take(id);
        let evicted = sequence.cache.evicted();
        events.send(Event::Finished(output.finish(reason, None, evicted, sequence.read())));
        let mut ids = sequence.prompt;
        ids.extend(generated);
        ids.truncate(sequence.cache.seen() as usize);
        if sequence.cache.seen() as usize == ids.len() {
            self.prefixes.put(Prefix { prefilled: prefilled.min(ids.len()), ids, cache: sequence.cache, uses: 0 });
            self.prefixes.shrink(self.cache_memory - self.scheduler.used());
        }
    }

    /// A sequence ends with an error, or is aborted.
    fn end(&mut self, id: Id, error: Error) {
        let Active { sequence, output, events, .. } = self.take(id);
        let (reason, error) = broken_off(error);
        let finished = output.finish(reason, error, sequence.cache.evicted(), sequence.read());
        events.send(Event::Finished(finished));
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

/// How what an error ends is told.
fn broken_off(error: Error) -> (FinishReason, Option<Error>) {
    match error {
        Error::Interrupted => (FinishReason::Abort, None),
        error => (FinishReason::Error, Some(error)),
    }
}

/// Tell a caller that nothing will come of its request.
fn refuse(submission: &Submission, error: Error) {
    let stats = Stats { prompt_tokens: submission.prepared.prompt_tokens, ..Stats::default() };
    let (reason, error) = broken_off(error);
    submission.events.send(Event::Finished(Finished { reason, error, held_back: String::new(), stats }));
}

/// What the system has left, less a quarter: in bytes.
fn free_memory() -> u64 {
    let of_mlx = || {
        let (limit, active) = (mlx_rs::memory::memory_limit(), mlx_rs::memory::active_memory());
        limit.unwrap_or(8 << 30).saturating_sub(active.unwrap_or(0)) as u64
    };
    available_memory().unwrap_or_else(of_mlx) / 4 * 3
}

/// What the system has left, in bytes, where it says so.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
