//! What every rank but 0 does: the passes that rank 0 tells it, on caches of its own.

use std::collections::HashMap;

use mlx_rs::Array;
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::zeros;
use mlx_rs::transforms::async_eval;

use super::generator::CLEAR_CACHE_EVERY;
use super::kv_cache::KvCache;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::batch::{Batch, Span};
use crate::ops;
use crate::ranks::{Message, Ranks, Source, SpanOf, Steps};

/// A model that rank 0 has loaded too.
struct Followed {
    model: Model,
    caches: HashMap<u64, KvCache>,
    /// Of the last pass, `[N, D]`.
    hidden_states: Option<Array>,
}

/// Do what rank 0 says until it ends; `load` loads a model as rank 0 does.
///
/// # Errors
/// When a model cannot be loaded or a pass fails: then the ranks can compute no more.
pub fn follow(ranks: &Ranks, load: impl Fn(&Source) -> Result<Model>) -> Result<()> {
    let mut models: HashMap<u64, Followed> = HashMap::new();
    let mut steps = Steps::default();
    // What was described and not computed yet.
    let mut described: Vec<Array> = Vec::new();
    // What a GPU computes while the next pass is described.
    let mut begun: Vec<Array> = Vec::new();
    let mut computed = 0;
    loop {
        match ranks.next() {
            Message::Load { model, source } => {
                let loaded = load(&source)?;
                ranks.reply_loaded(loaded.identity());
                models.insert(model, Followed { model: loaded, caches: HashMap::new(), hidden_states: None });
            }
            Message::Unload { model } => drop(models.remove(&model)),
            Message::Pass { model, spans, released } => {
                let followed = known(&mut models, model)?;
                followed.caches.retain(|id, _| !released.contains(id));
                let hidden_states = followed.pass(&spans, &mut steps)?;
                described.push(hidden_states.clone());
                followed.hidden_states = Some(hidden_states);
            }
            Message::Logits { model, tokens, phase } => {
                let Followed { model, hidden_states, .. } = known(&mut models, model)?;
                let hidden_states = hidden_states.as_ref().ok_or_else(|| confused("logits come after a pass"))?;
                described.push(model.logits(hidden_states, tokens, phase)?);
            }
            Message::Compute { check } => {
                if ops::is_on_gpu() {
                    async_eval(&described)?;
                    ops::evaluate(&std::mem::take(&mut begun))?;
                    begun.append(&mut described);
                } else {
                    ops::evaluate(&std::mem::take(&mut described))?;
                }
                if check.is_some() {
                    ranks.reply_computed(&steps);
                }
                computed += 1;
                if computed % CLEAR_CACHE_EVERY == 0 {
                    clear_cache()?;
                }
            }
            Message::End | Message::Failed { .. } => {
                ops::evaluate(&begun)?;
                ranks.reply_done();
                return Ok(());
            }
        }
    }
}

fn known(models: &mut HashMap<u64, Followed>, model: u64) -> Result<&mut Followed> {
    models.get_mut(&model).ok_or_else(|| confused("there is no such model"))
}

fn confused(what: &str) -> Error {
    Error::Internal(format!("rank 0 and this rank have lost step: {what}"))
}

impl Followed {
    /// Hidden states `[N, D]`, described.
    fn pass(&mut self, spans: &[SpanOf], steps: &mut Steps) -> Result<Array> {
        let mut caches = Vec::with_capacity(spans.len());
        for span in spans {
            let mut cache = match (self.caches.remove(&span.cache), span.copy_of) {
                (Some(cache), _) => cache,
                (None, None) => self.model.new_cache(span.limits),
                (None, Some(other)) => {
                    self.caches.get(&other).ok_or_else(|| confused("there is no such cache"))?.clone()
                }
            };
            if cache.limits() != span.limits {
                cache = cache.beginning(span.len, span.limits);
            }
            cache.trim(cache.len() - span.len).map_err(|error| confused(&error.to_string()))?;
            caches.push(cache);
        }
        steps.add(spans, &caches.iter().map(KvCache::seen).collect::<Vec<_>>());
        let tokens = spans.iter().map(|span| span.tokens).sum();
        let of_batch = |(cache, span): (_, &SpanOf)| Span { cache, tokens: span.tokens, phase: span.phase };
        let batch = caches.iter_mut().zip(spans).map(of_batch).collect();
        // Rank 0 knows the ids.
        let hidden_states = self.model.forward(&mut Batch::new(zeros::<u32>(&[tokens])?, batch)?)?;
        self.caches.extend(spans.iter().map(|span| span.cache).zip(caches));
        Ok(hidden_states)
    }
}
