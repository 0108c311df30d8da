//! Caches of sequences that ended, for later ones that begin with the same tokens: by ids, the least recently used go first.

use std::collections::VecDeque;

use super::kv_cache::{CacheLimits, KvCache};
use super::prompt_cache::PromptCache;
use crate::models::Model;

/// Fewer common tokens are not worth a copy of a cache.
pub(super) const WORTHWHILE: usize = 16;

/// How many first tokens both have.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What a sequence left.
#[derive(Debug)]
pub(super) struct Prefix {
    /// The tokens that the cache has seen.
    pub ids: Vec<u32>,
    /// How many first ones were prefilled: those behind may differ in the last bits from what prefilling them would give.
    pub prefilled: usize,
    pub cache: KvCache,
    /// How many sequences began with it.
    pub uses: u64,
}

impl Prefix {
    /// How many of its last tokens are not the first `n`.
    fn rest(&self, n: usize) -> i32 {
        (self.ids.len() - n) as i32
    }

    /// Whether the cache can be cut to its first `n` tokens, under these limits.
    fn can_be_cut(&self, n: usize, limits: CacheLimits) -> bool {
        let cache = &self.cache;
        match cache.evicted() {
            0 => cache.has_beginning(n as i32, limits),
            // The last eviction is not undone.
            _ => cache.limits() == limits && self.rest(n) <= cache.len() - cache.shortest(),
        }
    }

    /// That cache.
    fn cut(&self, n: usize, limits: CacheLimits) -> KvCache {
        if self.cache.evicted() == 0 {
            return self.cache.beginning(n as i32, limits);
        }
        let mut cut = self.cache.clone();
        cut.trim(self.rest(n)).expect("so many can be forgotten");
        cut
    }
}

/// The most recently used last.
#[derive(Debug)]
pub(super) struct PrefixCache {
    entries: VecDeque<Prefix>,
    most: usize,
    /// Only what was prefilled is given out.
    deterministic: bool,
}

impl PrefixCache {
    /// Of at most `most` sequences.
    pub fn new(most: usize, deterministic: bool) -> Self {
        PrefixCache { entries: VecDeque::new(), most, deterministic }
    }

    /// Only what was prefilled is given out, and nothing for a prompt that is longer than the context: what its tokens see
    /// depends on the chunks that it is read in.
    pub fn deterministic(&self) -> bool {
        self.deterministic
    }

    fn usable(&self, prefix: &Prefix, prompt: &[u32], limits: CacheLimits) -> usize {
        let most = if self.deterministic { prefix.prefilled } else { prefix.ids.len() };
        let shared = common(&prefix.ids[..most.min(prefix.ids.len())], prompt);
        let shared = if prefix.cache.evicted() == 0 { shared.min(limits.context_size as usize) } else { shared };
        if prefix.can_be_cut(shared, limits) { shared } else { 0 }
    }

    /// How many first tokens of `prompt` an entry has.
    pub fn longest(&self, prompt: &[u32], limits: CacheLimits) -> usize {
        self.entries.iter().map(|prefix| self.usable(prefix, prompt, limits)).max().unwrap_or(0)
    }

    /// The longest beginning of `prompt` that an entry has, under other limits, and how many of its first tokens were prefilled.
    pub fn get(&mut self, prompt: &[u32], limits: CacheLimits) -> Option<(KvCache, usize)> {
        let length = |i: &usize| self.usable(&self.entries[*i], prompt, limits);
        let best = (0..self.entries.len()).max_by_key(length).filter(|i| length(i) >= WORTHWHILE)?;
        let shared = length(&best);
        let mut entry = self.entries.remove(best).expect("it is there");
        entry.uses += 1;
        let cache = entry.cut(shared, limits);
        let found = (cache, entry.prefilled.min(shared));
        self.entries.push_back(entry);
        Some(found)
    }

    /// Keep what a sequence left. An entry that is the beginning of it goes, unless it can no longer be cut there.
    pub fn put(&mut self, mut prefix: Prefix) {
        let evicted = prefix.cache.evicted() > 0;
        if prefix.ids.len() < WORTHWHILE || evicted && self.deterministic {
            return;
        }
        self.entries.retain(|entry| {
            let is_beginning = common(&entry.ids, &prefix.ids) == entry.ids.len();
            let has_it = || match evicted {
                true => entry.cache.evicted() > 0,
                false => prefix.cache.has_beginning(entry.ids.len() as i32, entry.cache.limits()),
            };
            let goes = is_beginning && has_it();
            prefix.uses += if goes { entry.uses } else { 0 };
            !goes
        });
        self.entries.push_back(prefix);
    }

    /// What was prefilled of the entries that were of use, the most used first, at most so many.
    pub fn most_used(&self, model: &Model, most: usize) -> Vec<PromptCache> {
        let is_used = |entry: &&Prefix| {
            let (prefilled, limits) = (entry.prefilled, entry.cache.limits());
            entry.uses > 0 && prefilled >= WORTHWHILE && entry.cache.has_beginning(prefilled as i32, limits)
        };
        let mut used: Vec<&Prefix> = self.entries.iter().filter(is_used).collect();
        used.sort_by_key(|entry| std::cmp::Reverse(entry.uses));
        let kept = |entry: &&Prefix| {
            let cache = entry.cache.beginning(entry.prefilled as i32, entry.cache.limits());
            PromptCache::of_prefix(model, entry.ids[..entry.prefilled].to_vec(), cache)
        };
        used.iter().take(most).map(kept).collect()
    }

    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.cache.bytes()).sum()
    }

    /// Let go until what is left takes at most so many bytes.
    pub fn shrink(&mut self, bytes: u64) {
        while self.bytes() > bytes || self.entries.len() > self.most {
            self.entries.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }
}
