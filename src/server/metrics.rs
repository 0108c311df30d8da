//! What `/metrics` tells, in OpenMetrics' text format.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::generate::{Load, Stats};

type Labels<const N: usize> = [(&'static str, String); N];
type Bytes = Gauge<u64, AtomicU64>;

/// Counters of a server.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<2>, Counter>,
    sequences: Family<Labels<1>, Counter>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    time_to_first_token: Histogram,
    time_per_token: Histogram,
    waiting: Gauge,
    running: Gauge,
    cache_bytes: Bytes,
    loaded: Gauge,
}

impl Metrics {
    /// Nothing was done yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("mlx_lm");
        let metrics = Metrics {
            requests: Family::default(),
            sequences: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            time_to_first_token: Histogram::new(exponential_buckets(0.005, 2.0, 15)),
            time_per_token: Histogram::new(exponential_buckets(0.001, 2.0, 12)),
            waiting: Gauge::default(),
            running: Gauge::default(),
            cache_bytes: Gauge::default(),
            loaded: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "requests",
            "Requests by path and result: the status, or abandoned when the client went away before it",
            metrics.requests.clone(),
        );
        registry.register(
            "sequences",
            "Sequences by why they ended; abandoned when the client went away",
            metrics.sequences.clone(),
        );
        registry.register("prompt_tokens", "Tokens of prompts", metrics.prompt_tokens.clone());
        registry.register("cached_tokens", "Tokens of prompts that a cache held", metrics.cached_tokens.clone());
        registry.register("generated_tokens", "Tokens generated", metrics.generated_tokens.clone());
        registry.register_with_unit(
            "time_to_first_token",
            "From a request's head to the first token of each sequence",
            Unit::Seconds,
            metrics.time_to_first_token.clone(),
        );
        registry.register_with_unit(
            "time_per_token",
            "Of a sequence's tokens after the first, on average",
            Unit::Seconds,
            metrics.time_per_token.clone(),
        );
        registry.register("waiting_sequences", "Sequences that wait for their turn", metrics.waiting.clone());
        registry.register("running_sequences", "Sequences under way", metrics.running.clone());
        registry.register_with_unit(
            "cache",
            "Keys and values of sequences under way, and of prompts kept for later ones",
            Unit::Bytes,
            metrics.cache_bytes.clone(),
        );
        registry.register("loaded_models", "Models in memory", metrics.loaded.clone());
        Metrics { registry, ..metrics }
    }

    /// A request was answered, or abandoned.
    pub fn request(&self, path: &str, result: String) {
        self.requests.get_or_create(&[("path", path.to_owned()), ("result", result)]).inc();
    }

    /// A sequence has its first token after so many seconds.
    pub fn first_token(&self, seconds: f64) {
        self.time_to_first_token.observe(seconds);
    }

    /// A sequence ended.
    pub fn sequence(&self, reason: &str, stats: &Stats) {
        self.sequences.get_or_create(&[("reason", reason.to_owned())]).inc();
        self.prompt_tokens.inc_by(stats.prompt_tokens as u64);
        self.cached_tokens.inc_by(stats.cached_tokens as u64);
        self.generated_tokens.inc_by(stats.generated_tokens as u64);
        if stats.generated_tokens > 1 {
            self.time_per_token.observe(stats.generation_time.as_secs_f64() / (stats.generated_tokens - 1) as f64);
        }
    }

    /// All of it, with what the engines of the loaded models are doing.
    pub fn encode(&self, loads: &[Load]) -> String {
        self.waiting.set(loads.iter().map(|load| load.waiting as i64).sum());
        self.running.set(loads.iter().map(|load| load.running as i64).sum());
        self.cache_bytes.set(loads.iter().map(|load| load.cache_bytes).sum());
        self.loaded.set(loads.len() as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}
