//! Which sequences get how many tokens in the next pass: continuous batching, as arithmetic alone.
//!
//! Reference: Orca (Yu et al., OSDI 2022); chunked prefill (Agrawal et al., arXiv 2308.16369). Requests are admitted first
//! come, first served, while the caches of all that run stay within a limit of memory. Each pass decodes every sequence whose
//! prompt is read, and reads on in the prompts of the others within a budget of tokens, half of which is the oldest's, so that a
//! long prompt does not hold up the others for longer than one chunk, nor short ones a long one forever.

use std::collections::VecDeque;

use crate::error::{Error, Result};

/// What bounds a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// The most sequences under way.
    pub parallel: usize,
    /// Prompt tokens of a pass in which other sequences decode.
    pub prefill_budget: usize,
    /// Bytes for the caches of all sequences under way.
    pub cache_memory: u64,
}

/// A number for each request, in the order in which they came.
pub type Id = u64;

#[derive(Debug)]
struct Entry {
    id: Id,
    /// Of its cache, at the most.
    bytes: u64,
    /// Prompt tokens to prefill.
    to_prefill: usize,
    /// How many of them at once, at the most.
    chunk_size: usize,
    /// Whether a chunk must be whole: where tokens are evicted, what a token sees depends on it.
    whole_chunks: bool,
    is_paused: bool,
}

/// What the next pass computes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sequences that get their next token.
    pub decode: Vec<Id>,
    /// Sequences whose prompts are read on, and by how many tokens.
    pub prefill: Vec<(Id, usize)>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.decode.is_empty() && self.prefill.is_empty()
    }
}

/// Queues of requests that wait and sequences that are under way.
#[derive(Debug)]
pub struct Scheduler {
    options: SchedulerOptions,
    waiting: VecDeque<(Id, u64)>,
    running: Vec<Entry>,
}

impl Scheduler {
    /// With nothing to do.
    pub fn new(options: SchedulerOptions) -> Self {
        Scheduler { options, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Queue a request whose cache needs so many bytes at the most.
    ///
    /// # Errors
    /// When that is more than there will ever be.
    pub fn queue(&mut self, id: Id, bytes: u64) -> Result<()> {
        let most = self.options.cache_memory;
        if bytes > most {
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            return Err(Error::Input(format!(
                "the sequence needs a cache of {:.1} MB, of {:.1} MB for all; shorten the prompt or the answer, lower the context size, or \
                 raise the cache memory",
                megabytes(bytes),
                megabytes(most)
            )));
        }
        self.waiting.push_back((id, bytes));
        Ok(())
    }

    /// The request that has waited longest, if there is room for it; it is under way once [`Scheduler::start`] says so.
    pub fn admissible(&self) -> Option<Id> {
        let &(id, bytes) = self.waiting.front()?;
        let fits = self.running.len() < self.options.parallel && self.used() + bytes <= self.options.cache_memory;
        fits.then_some(id)
    }

    /// The request at the head of the queue is under way, with so many prompt tokens to prefill in chunks of so many.
    pub fn start(&mut self, to_prefill: usize, chunk_size: usize, whole_chunks: bool) {
        let (id, bytes) = self.waiting.pop_front().expect("a request was admissible");
        self.running.push(Entry { id, bytes, to_prefill, chunk_size, whole_chunks, is_paused: false });
    }

    /// A request is no longer under way, nor does it wait.
    pub fn remove(&mut self, id: Id) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.running.retain(|entry| entry.id != id);
    }

    /// Leave a sequence out of the passes, or take it in again.
    pub fn pause(&mut self, id: Id, is_paused: bool) {
        self.running.iter_mut().filter(|entry| entry.id == id).for_each(|entry| entry.is_paused = is_paused);
    }

    /// Whether nothing waits or is under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Requests that wait, and sequences under way.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Bytes that the sequences under way may come to need.
    pub fn used(&self) -> u64 {
        self.running.iter().map(|entry| entry.bytes).sum()
    }

    /// What to compute next. Sequences for which `holds` is true do not begin to read their prompts yet.
    pub fn plan(&mut self, mut holds: impl FnMut(Id) -> bool) -> Plan {
        let active = || self.running.iter().filter(|entry| !entry.is_paused);
        let decode: Vec<Id> = active().filter(|entry| entry.to_prefill == 0).map(|entry| entry.id).collect();
        let is_read = |entry: &&mut Entry| !entry.is_paused && entry.to_prefill > 0 && !holds(entry.id);
        let mut reading: Vec<&mut Entry> = self.running.iter_mut().filter(is_read).collect();
        let mut prefill: Vec<(Id, usize)> = Vec::new();
        let mut give = |entry: &mut Entry, budget: usize| {
            let given = prefill.iter().find(|(id, _)| *id == entry.id).map_or(0, |(_, n)| *n);
            let chunk = entry.to_prefill.min(entry.chunk_size - given);
            let n = match entry.whole_chunks {
                true if chunk > budget => 0,
                _ => chunk.min(budget),
            };
            entry.to_prefill -= n;
            match prefill.iter_mut().find(|(id, _)| *id == entry.id) {
                Some((_, all)) => *all += n,
                None if n > 0 => prefill.push((entry.id, n)),
                None => {}
            }
            budget - n
        };
        if let Some((oldest, others)) = reading.split_first_mut() {
            if decode.is_empty() && others.is_empty() || oldest.whole_chunks {
                give(oldest, usize::MAX);
            } else {
                // Half is kept for those with the least to read, which a long prompt would make wait.
                let budget = self.options.prefill_budget;
                let kept = if others.is_empty() { 0 } else { budget / 2 };
                let mut left = give(oldest, budget - kept) + kept;
                others.sort_by_key(|entry| entry.to_prefill);
                for entry in others {
                    left = give(entry, left);
                }
                give(oldest, left);
            }
        }
        Plan { decode, prefill }
    }

    /// Of a sequence that was held, some prompt tokens need not be read.
    pub fn skip(&mut self, id: Id, to_prefill: usize) {
        self.running.iter_mut().filter(|entry| entry.id == id).for_each(|entry| entry.to_prefill = to_prefill);
    }

    /// A sequence that decoded has tokens to read, in whole chunks of so many.
    pub fn read_on(&mut self, id: Id, to_prefill: usize, chunk_size: usize) {
        for entry in self.running.iter_mut().filter(|entry| entry.id == id) {
            (entry.to_prefill, entry.chunk_size, entry.whole_chunks) = (to_prefill, chunk_size, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(parallel: usize, prefill_budget: usize, cache_memory: u64) -> SchedulerOptions {
        SchedulerOptions { parallel, prefill_budget, cache_memory }
    }

    /// Admit whatever may be, each with a prompt of its id's length in `prompts`.
    fn admit(scheduler: &mut Scheduler, prompts: &[usize]) {
        while let Some(id) = scheduler.admissible() {
            scheduler.start(prompts[id as usize] - 1, 64, false);
        }
    }

    #[test]
    fn what_can_never_fit_is_refused_with_both_numbers() {
        let error = Scheduler::new(options(8, 256, 1_000_000)).queue(0, 2_000_000).unwrap_err().to_string();
        assert!(error.contains("2.0 MB") && error.contains("1.0 MB"), "{error}");
    }

    #[test]
    fn a_long_prompt_holds_up_the_others_by_one_chunk() {
        let mut scheduler = Scheduler::new(options(8, 16, 100));
        scheduler.queue(0, 1).unwrap();
        scheduler.queue(1, 1).unwrap();
        admit(&mut scheduler, &[1, 101]);
        let mut read = 0;
        while read < 100 {
            let plan = scheduler.plan(|_| false);
            assert_eq!(plan.decode, [0]);
            let [(1, n)] = plan.prefill[..] else { panic!("{plan:?}") };
            assert!(0 < n && n <= 16);
            read += n;
        }
        assert_eq!(scheduler.plan(|_| false), Plan { decode: vec![0, 1], prefill: vec![] });
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one() {
        let mut scheduler = Scheduler::new(options(8, 16, 100));
        scheduler.queue(0, 1).unwrap();
        scheduler.queue(1, 1).unwrap();
        admit(&mut scheduler, &[1000, 7]);
        assert_eq!(scheduler.plan(|_| false), Plan { decode: vec![], prefill: vec![(0, 10), (1, 6)] });
        assert_eq!(scheduler.plan(|_| false), Plan { decode: vec![1], prefill: vec![(0, 16)] });
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes and goes: memory is never promised twice, each pass gets on and the oldest prompt with it, every
        /// request is served in the end, and decodes in every pass once its prompt is read.
        #[test]
        fn nothing_starves_and_nothing_is_promised_twice(
            requests in proptest::collection::vec((1usize..200, 1usize..20, 1u64..100), 1..40),
            parallel in 1usize..9, budget in 1usize..100,
        ) {
            let memory = 100;
            let mut scheduler = Scheduler::new(options(parallel, budget, memory));
            let prompts: Vec<usize> = requests.iter().map(|(prompt, ..)| *prompt).collect();
            let mut left: Vec<(usize, usize)> = requests.iter().map(|(prompt, n, _)| (prompt - 1, *n)).collect();
            for (id, (.., bytes)) in requests.iter().enumerate() {
                scheduler.queue(id as Id, *bytes).unwrap();
            }
            for _ in 0..10_000 {
                admit(&mut scheduler, &prompts);
                prop_assert!(scheduler.used() <= memory && scheduler.load().1 <= parallel);
                let admitted: Vec<Id> = scheduler.running.iter().map(|entry| entry.id).collect();
                let plan = scheduler.plan(|_| false);
                if scheduler.is_idle() {
                    break;
                }
                prop_assert!(!plan.is_empty());
                let all: usize = plan.prefill.iter().map(|(_, n)| n).sum();
                prop_assert!(admitted.len() == 1 || all <= budget);
                for entry in &scheduler.running {
                    let (to_prefill, _) = left[entry.id as usize];
                    prop_assert_eq!(to_prefill == 0, plan.decode.contains(&entry.id));
                }
                let oldest = left.iter().enumerate().position(|(id, left)| left.0 > 0 && admitted.contains(&(id as Id)));
                prop_assert!(oldest.is_none_or(|oldest| plan.prefill.iter().any(|(id, n)| *id == oldest as Id && *n > 0)));
                for (id, n) in plan.prefill {
                    left[id as usize].0 -= n;
                }
                for id in plan.decode {
                    left[id as usize].1 -= 1;
                    if left[id as usize].1 == 0 {
                        scheduler.remove(id);
                    }
                }
            }
            prop_assert!(scheduler.is_idle() && left.iter().all(|left| *left == (0, 0)));
        }
    }
}
