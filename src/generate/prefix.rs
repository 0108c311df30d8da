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
    /// The tokens that the cache holds.
    pub ids: Vec<u32>,
    /// How many first ones were prefilled: those behind may differ in the last bits from what prefilling them would give.
    pub prefilled: usize,
    pub cache: KvCache,
    /// How many sequences began with it.
    pub uses: u64,
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

    fn usable(&self, prefix: &Prefix, prompt: &[u32]) -> usize {
        let most = if self.deterministic { prefix.prefilled } else { prefix.ids.len() };
        common(&prefix.ids[..most.min(prefix.ids.len())], prompt)
    }

    /// How many first tokens of `prompt` an entry has.
    pub fn longest(&self, prompt: &[u32]) -> usize {
        self.entries.iter().map(|prefix| self.usable(prefix, prompt)).max().unwrap_or(0)
    }

    /// The longest beginning of `prompt` that an entry has, under other limits, and how many of its first tokens were prefilled.
    pub fn get(&mut self, prompt: &[u32], limits: CacheLimits) -> Option<(KvCache, usize)> {
        let length = |i: &usize| self.usable(&self.entries[*i], prompt);
        let best = (0..self.entries.len()).max_by_key(length).filter(|i| length(i) >= WORTHWHILE)?;
        let shared = length(&best);
        let mut entry = self.entries.remove(best).expect("it is there");
        entry.uses += 1;
        let found = (entry.cache.beginning(shared as i32, limits), entry.prefilled.min(shared));
        self.entries.push_back(entry);
        Some(found)
    }

    /// Keep what a sequence left. An entry that is the beginning of it goes.
    pub fn put(&mut self, mut prefix: Prefix) {
        if prefix.ids.len() < WORTHWHILE {
            return;
        }
        self.entries.retain(|entry| {
            let goes = common(&entry.ids, &prefix.ids) == entry.ids.len();
            prefix.uses += if goes { entry.uses } else { 0 };
            !goes
        });
        self.entries.push_back(prefix);
    }

    /// What was prefilled of the entries that were of use, the most used first, at most so many.
    pub fn most_used(&self, model: &Model, most: usize) -> Vec<PromptCache> {
        let mut used: Vec<&Prefix> =
            self.entries.iter().filter(|entry| entry.uses > 0 && entry.prefilled >= WORTHWHILE).collect();
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
