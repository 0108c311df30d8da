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
    /// How many of its last tokens can be forgotten.
    fn trimmable(&self) -> usize {
        (self.cache.len() - self.cache.untrimmable()) as usize
    }

    /// A cache that has seen its first `n` tokens.
    fn trimmed(&self, n: usize) -> KvCache {
        let mut cache = self.cache.clone();
        cache.trim((self.ids.len() - n) as i32).expect("so many can be forgotten");
        cache
    }
}

/// The most recently used last.
#[derive(Debug)]
pub(super) struct PrefixCache {
    entries: VecDeque<Prefix>,
    most: usize,
    bytes_per_token: u64,
    /// Only what was prefilled is given out.
    deterministic: bool,
}

impl PrefixCache {
    /// Of at most `most` sequences.
    pub fn new(most: usize, bytes_per_token: u64, deterministic: bool) -> Self {
        PrefixCache { entries: VecDeque::new(), most, bytes_per_token, deterministic }
    }

    /// Only what was prefilled is given out, and nothing for a prompt that is longer than the context: what its tokens see
    /// depends on the chunks that it is read in.
    pub fn deterministic(&self) -> bool {
        self.deterministic
    }

    fn usable(&self, prefix: &Prefix, prompt: &[u32], limits: CacheLimits) -> usize {
        let most = if self.deterministic { prefix.prefilled } else { prefix.ids.len() };
        let shared = common(&prefix.ids[..most.min(prefix.ids.len())], prompt);
        match prefix.cache.evicted() {
            0 if !prefix.cache.rotates_as(limits) => 0,
            0 => shared.min(limits.context_size as usize),
            // The last eviction is not undone.
            _ if prefix.cache.limits() == limits && prefix.ids.len() - shared <= prefix.trimmable() => shared,
            _ => 0,
        }
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
        let cache = match entry.cache.evicted() {
            0 => entry.cache.beginning(shared as i32, limits),
            _ => entry.trimmed(shared),
        };
        let found = (cache, entry.prefilled.min(shared));
        self.entries.push_back(entry);
        Some(found)
    }

    /// Keep what a sequence left. An entry that is the beginning of it goes, unless tokens were evicted since.
    pub fn put(&mut self, mut prefix: Prefix) {
        let evicted = prefix.cache.evicted() > 0;
        if prefix.ids.len() < WORTHWHILE || evicted && self.deterministic {
            return;
        }
        self.entries.retain(|entry| {
            let is_beginning = common(&entry.ids, &prefix.ids) == entry.ids.len();
            let goes = is_beginning && evicted == (entry.cache.evicted() > 0);
            prefix.uses += if goes { entry.uses } else { 0 };
            !goes
        });
        self.entries.push_back(prefix);
    }

    /// What was prefilled of the entries that were of use, the most used first, at most so many.
    pub fn most_used(&self, model: &Model, most: usize) -> Vec<PromptCache> {
        let is_used = |entry: &&Prefix| entry.uses > 0 && entry.prefilled >= WORTHWHILE && entry.cache.evicted() == 0;
        let mut used: Vec<&Prefix> = self.entries.iter().filter(is_used).collect();
        used.sort_by_key(|entry| std::cmp::Reverse(entry.uses));
        let kept = |entry: &&Prefix| {
            let cache = entry.cache.beginning(entry.prefilled as i32, entry.cache.limits());
            PromptCache::of_prefix(model, entry.ids[..entry.prefilled].to_vec(), cache)
        };
        used.iter().take(most).map(kept).collect()
    }

    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.cache.capacity().unsigned_abs()) * self.bytes_per_token).sum()
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
