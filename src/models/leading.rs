//! Rank 0's side of a model that several ranks compute: the others are told each pass, and which caches it concerns.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Weak};

use super::Model;
use super::batch::Batch;
use crate::backend::Phase;
use crate::error::{Error, Result};
use crate::generate::kv_cache::KvCache;
use crate::ranks::{self, Ranks, Source, SpanOf};

#[derive(Debug)]
pub(super) struct Leading {
    ranks: &'static Ranks,
    /// What the others call the model.
    model: u64,
    /// The caches that the others have, and whether they are needed still.
    caches: Mutex<HashMap<u64, Weak<u64>>>,
    /// Something was described that the others have not been told to compute.
    is_described: AtomicBool,
}

impl Leading {
    /// What `load` loads; where this is rank 0 of several, the others load it too, from `source`.
    pub fn load(source: impl FnOnce() -> Source, load: impl FnOnce() -> Result<Model>) -> Result<Model> {
        let Some(ranks) = ranks::current().filter(|ranks| ranks.rank() == 0) else { return load() };
        let model = ranks.load(source());
        let mut loaded = load()?;
        ranks.all_loaded(loaded.identity())?;
        loaded.leading = Some(Leading { ranks, model, caches: Mutex::default(), is_described: AtomicBool::new(false) });
        Ok(loaded)
    }

    fn caches(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Weak<u64>>> {
        self.caches.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Tell the others of a pass that is about to be described.
    pub fn describe(&self, batch: &mut Batch) {
        if self.is_described.swap(true, Ordering::Relaxed) {
            self.ranks.fail("rank 0: a pass was described and never computed");
        }
        let mut caches = self.caches();
        let released: Vec<u64> = caches.extract_if(|_, cache| cache.strong_count() == 0).map(|(id, _)| id).collect();
        let spans: Vec<SpanOf> = batch
            .spans
            .iter_mut()
            .map(|span| SpanOf {
                copy_of: told_apart(span.cache, &mut caches),
                cache: span.cache.id().number(),
                len: span.cache.len(),
                limits: span.cache.limits(),
                tokens: span.tokens,
                phase: span.phase,
            })
            .collect();
        let seen: Vec<u64> = batch.spans.iter().map(|span| span.cache.seen()).collect();
        self.ranks.describe(self.model, spans, &seen, released);
    }

    /// Tell the others of logits that are about to be described.
    pub fn describe_logits(&self, tokens: Range<i32>, phase: Phase) {
        self.ranks.send(&ranks::Message::Logits { model: self.model, tokens, phase });
        self.is_described.store(true, Ordering::Relaxed);
    }

    /// Let the others compute what was described.
    pub fn compute(&self) {
        if self.is_described.swap(false, Ordering::Relaxed) {
            self.ranks.compute();
        }
    }

    /// What was described cannot be computed here.
    pub fn fail(&self, error: &Error) {
        self.ranks.fail(&format!("rank 0: {error}"));
    }
}

/// Make the others know a cache that is about to go on; gives the one that it goes on from, where it is not that one alone.
fn told_apart(cache: &mut KvCache, known: &mut HashMap<u64, Weak<u64>>) -> Option<u64> {
    let before = cache.id().number();
    let was_known = known.contains_key(&before);
    if cache.id().is_shared() {
        cache.renew_id();
    }
    known.insert(cache.id().number(), cache.id().downgrade());
    (was_known && cache.id().number() != before).then_some(before)
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.ranks.send(&ranks::Message::Unload { model: self.model });
    }
}
