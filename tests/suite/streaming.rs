//! The laws of the StreamingLLM cache, against oracles that share no arithmetic with it. Each test names the mistakes
//! that it was seen to catch when they were made on purpose.

use mlx_lm::backend::Phase;
use mlx_lm::generate::kv_cache::{CacheLayer, CacheLimits, KvCache};
use mlx_lm::{Checkpoint, Model, Watch};
use mlx_rs::fast::scaled_dot_product_attention;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Device, Dtype};
use proptest::prelude::*;
use serde_json::Value;
use std::process::Command;
use std::sync::Arc;

use crate::fixture;
use crate::paper::Paper;

const LAYERS: usize = 3;
const HEADS: usize = 2;
const HEAD_DIM: usize = 32;

fn limits(context_size: i32, num_sink_tokens: i32, eviction_batch_percent: i32) -> CacheLimits {
    CacheLimits { context_size, num_sink_tokens, eviction_batch_percent }
}

fn frequencies() -> Vec<f64> {
    (0..HEAD_DIM / 2).map(|i| 100f64.powf(-2.0 * i as f64 / HEAD_DIM as f64)).collect()
}

fn layers(n: usize, sliding_window: Option<i32>) -> Arc<[CacheLayer]> {
    vec![CacheLayer::new(sliding_window, Some(frequencies().into())); n].into()
}

/// The key or value that absolute token `token` has in a layer and head: any numbers, the same each time.
fn raw(token: usize, layer: usize, head: usize, is_value: bool) -> [f64; HEAD_DIM] {
    std::array::from_fn(|i| {
        let seed = ((token * LAYERS + layer) * HEADS + head) * HEAD_DIM * 2 + i * 2 + usize::from(is_value);
        let hash = (seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        f64::from(((hash ^ (hash >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5)
    })
}

fn rotated(v: [f64; HEAD_DIM], position: usize) -> [f64; HEAD_DIM] {
    let half = HEAD_DIM / 2;
    std::array::from_fn(|k| {
        let (sin, cos) = (position as f64 * frequencies()[k % half]).sin_cos();
        let (x, y) = (v[k % half], v[k % half + half]);
        if k < half { x * cos - y * sin } else { y * cos + x * sin }
    })
}

/// `[1, HEADS, tokens, HEAD_DIM]`, filled by `f(head, index)`.
fn array(tokens: usize, f: impl Fn(usize, usize) -> [f64; HEAD_DIM]) -> Array {
    let values: Vec<f32> = (0..HEADS)
        .flat_map(|head| (0..tokens).map(move |i| (head, i)))
        .flat_map(|(h, i)| f(h, i))
        .map(|x| x as f32)
        .collect();
    Array::from_slice(&values, &[1, HEADS as i32, tokens as i32, HEAD_DIM as i32])
}

/// Which absolute tokens a cache must hold, by the rule in words: when `n` more do not fit, the oldest after the sinks
/// go, a batch of them or as many as are needed.
#[derive(Default)]
struct Held {
    tokens: Vec<usize>,
    seen: usize,
}

impl Held {
    /// Append `n`; the position of the first.
    fn push(&mut self, n: usize, limits: CacheLimits) -> usize {
        let (c, s) = (limits.context_size as usize, limits.num_sink_tokens as usize);
        if self.tokens.len() + n > c {
            let batch = ((c - s) * limits.eviction_batch_percent as usize / 100).max(1);
            let count = batch.max(self.tokens.len() + n - c).min(self.tokens.len() - s);
            self.tokens.drain(s..s + count);
        }
        let offset = self.tokens.len();
        self.tokens.extend(self.seen..self.seen + n);
        self.seen += n;
        offset
    }
}

/// Feed `n` tokens to all layers, as a model would.
fn feed(cache: &mut KvCache, held: &mut Held, n: usize, dtype: Dtype) {
    let offset = held.push(n, cache.limits());
    let first = held.seen - n;
    let at = cache.reserve(n as i32, Phase::Prefill).unwrap();
    assert_eq!(at.offset as usize, offset);
    for layer in 0..LAYERS {
        let keys = array(n, |head, i| rotated(raw(first + i, layer, head, false), offset + i));
        let values = array(n, |head, i| raw(first + i, layer, head, true));
        let (keys, values) = (keys.as_dtype(dtype).unwrap(), values.as_dtype(dtype).unwrap());
        cache.update(layer, &at, keys, values).unwrap();
    }
}

/// Keys and values of all layers are those of the tokens that must be held; gives the largest relative error of a key.
fn check(cache: &KvCache, held: &Held, dtype: Dtype) -> f64 {
    assert_eq!(cache.len() as usize, held.tokens.len());
    assert!(cache.len() <= cache.limits().context_size);
    assert_eq!((cache.seen() as usize, cache.evicted()), (held.seen, (held.seen - held.tokens.len()) as u64));
    let len = held.tokens.len();
    let mut worst = 0f64;
    for layer in 0..LAYERS {
        let (keys, values) = cache.layer(layer).unwrap().unwrap();
        let expected = array(len, |head, i| raw(held.tokens[i], layer, head, true)).as_dtype(dtype).unwrap();
        assert_eq!(floats(&values), floats(&expected), "values of layer {layer}");
        let keys = floats(&keys);
        for head in 0..HEADS {
            for (i, &token) in held.tokens.iter().enumerate() {
                let found = &keys[(head * len + i) * HEAD_DIM..][..HEAD_DIM];
                let expected = rotated(raw(token, layer, head, false), i);
                let distance = |a: &[f32], b: &[f64]| {
                    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt()
                };
                let norm = distance(&[0.0; HEAD_DIM], &expected);
                worst = worst.max(distance(found, &expected) / norm);
            }
        }
    }
    worst
}

fn floats(a: &Array) -> Vec<f32> {
    a.as_dtype(Dtype::Float32).unwrap().reshape(&[-1]).unwrap().to_vec_cast().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Catches: the wrong sign, a turn by one too many, a layer left out, yarn's factor applied again, values that stay
    /// where they were, an eviction too early or of one too many, positions that count evicted tokens.
    #[test]
    fn any_schedule_keeps_sinks_and_recent_tokens_where_they_belong(
        c in 3i32..40, s in 0i32..38, percent in 1i32..=50, sizes in proptest::collection::vec(1usize..24, 1..30),
    ) {
        let limits = limits(c, s.min(c - 2), percent);
        crate::compute_on_cpu();
        let mut cache = KvCache::new(limits, layers(LAYERS, None));
        let mut held = Held::default();
        for n in sizes {
            feed(&mut cache, &mut held, n.min(limits.window() as usize), Dtype::Float32);
            prop_assert!(check(&cache, &held, Dtype::Float32) < 1e-4);
        }
    }
}

/// At 10 percent over 20 contexts, two tokens at a time. Catches what the test above does.
#[test]
fn keys_stay_right_over_twenty_contexts() {
    let limits = limits(256, 4, 10);
    for (dtype, most) in [(Dtype::Float32, 1e-4), (Dtype::Bfloat16, 0.015)] {
        crate::compute_on_cpu();
        let mut cache = KvCache::new(limits, layers(LAYERS, None));
        let mut held = Held::default();
        let mut worst = 0f64;
        while held.seen < 20 * 256 {
            let n = if held.seen == 0 { 250 } else { 2 };
            feed(&mut cache, &mut held, n, dtype);
            if held.seen.is_multiple_of(500) {
                worst = worst.max(check(&cache, &held, dtype));
            }
        }
        assert!(worst < most, "{dtype:?}: {worst}");
    }
}

fn load(name: &str) -> Model {
    crate::compute_on_cpu();
    Model::load(&Checkpoint::open(fixture("checkpoints").join(name)).unwrap(), &mut Watch::none()).unwrap()
}

fn tokens(range: std::ops::Range<usize>, vocab_size: i32) -> Vec<u32> {
    range.map(|i| ((i * i * 7 + i * 3 + 11) % vocab_size as usize) as u32).collect()
}

fn last_logits(model: &Model, ids: &[u32], cache: &mut KvCache) -> Vec<f32> {
    floats(&crate::prefill(model, ids, cache).try_index((-1, ..)).unwrap())
}

const MODELS: [&str; 13] = [
    "llama-f32",
    "llama-linear-rope",
    "llama-llama3-rope-tied",
    "llama-yarn-rope",
    "qwen3-f32",
    "mistral-sliding-window",
    "gemma2-f32",
    "gemma3-f32",
    "granite-f32",
    "olmo2-f32",
    "phi3-longrope",
    "qwen2-sliding-window",
    "smollm3-f32",
];

/// Until the first eviction nothing tells a small cache from an endless one, bit for bit; at exactly C tokens too.
/// Catches: an eviction too early, sinks that a sliding window spares before there was one.
#[test]
fn a_cache_that_is_not_yet_full_is_the_plain_one() {
    for name in MODELS {
        let model = load(name);
        let mut small = model.new_cache(limits(24, 4, 10));
        // Not beyond what phi3's shorter rotation is for.
        let mut endless = model.new_cache(limits(32, 0, 10));
        let ids = tokens(0..24, model.config().vocab_size);
        let mut at = 0;
        for n in [7, 1, 1, 9, 5, 1] {
            let chunk = &ids[at..at + n];
            assert_eq!(
                last_logits(&model, chunk, &mut small),
                last_logits(&model, chunk, &mut endless),
                "{name} at {at}"
            );
            at += n;
        }
        assert_eq!((small.len(), small.evicted()), (24, 0));
    }
}

/// Every family and kind of RoPE, against the paper's own scheme, through chunks and single tokens. Catches all mistakes
/// above, and sinks that a sliding window hides.
#[test]
fn logits_are_those_of_the_papers_scheme() {
    Device::set_default(&Device::cpu()); // a GPU multiplies f32 matrices less exactly
    for name in MODELS {
        for (limits, sizes) in [(limits(24, 4, 10), [9, 1, 10, 1, 1, 3]), (limits(12, 1, 50), [4, 1, 1, 5, 2, 1])] {
            let model = load(name);
            let mut cache = model.new_cache(limits);
            let mut paper = Paper::load(&fixture("checkpoints").join(name), model.config());
            let mut held = Held::default();
            for n in sizes.into_iter().cycle().take(48) {
                let chunk = tokens(held.seen..held.seen + n, model.config().vocab_size);
                let offset = held.push(n, limits);
                let sinks = limits.num_sink_tokens as usize;
                paper.evict(sinks.min(paper.len()), sinks.min(paper.len()) + paper.len() - offset);
                let expected = paper.forward(&chunk, sinks);
                let found = last_logits(&model, &chunk, &mut cache);
                let worst = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-4, "{name}, {limits:?}, {} tokens seen: {worst}", held.seen);
            }
            assert_eq!(cache.evicted() as usize, paper.evicted);
            assert!(paper.evicted > 3 * limits.context_size as usize);
        }
    }
}

/// What each query of a step attends to, found by values that name their token: `weights[query][token]`.
fn attention(cache: &mut KvCache, held: &mut Held, n: usize) -> Vec<Vec<f32>> {
    const TOKENS: usize = 128;
    held.push(n, cache.limits());
    let first = held.seen - n;
    let at = cache.reserve(n as i32, Phase::Prefill).unwrap();
    let names: Vec<f32> = (first..first + n).flat_map(|t| (0..TOKENS).map(move |k| f32::from(k == t))).collect();
    let values = Array::from_slice(&names, &[1, 1, n as i32, TOKENS as i32]);
    let zeros = Array::from_slice(&vec![0f32; n * 2], &[1, 1, n as i32, 2]);
    let (keys, values) = cache.update(0, &at, zeros.clone(), values).unwrap();
    let keys = mlx_rs::ops::broadcast_to(keys.try_index((.., .., .., ..1)).unwrap(), values.shape()).unwrap();
    let queries = mlx_rs::ops::zeros::<f32>(&[1, 1, n as i32, TOKENS as i32]).unwrap();
    let mask = cache.mask(0, &at).unwrap();
    let seen = scaled_dot_product_attention(queries, keys, values, 1.0, mask.as_mlx(), None).unwrap();
    floats(&seen).chunks(TOKENS).map(<[f32]>::to_vec).collect()
}

/// Catches: sinks that a sliding window hides, or spares too early; evictions too early; values that stay where they were;
/// positions that count evicted tokens.
#[test]
fn every_query_sees_the_sinks_and_what_it_should_and_nothing_else() {
    for window in [None, Some(6)] {
        let limits = limits(16, 3, 25);
        crate::compute_on_cpu();
        let mut cache = KvCache::new(limits, vec![CacheLayer::new(window, Some([1.0].into()))].into());
        let mut held = Held::default();
        for n in [5, 6, 1, 4, 6, 1, 1, 6, 5, 1, 6, 3, 6] {
            let weights = attention(&mut cache, &mut held, n);
            let offset = held.tokens.len() - n;
            for (row, weights) in weights.iter().enumerate() {
                let i = offset + row;
                for (j, &token) in held.tokens.iter().enumerate() {
                    let is_sink = j < 3 && cache.evicted() > 0;
                    let sees = j <= i && (is_sink || window.is_none_or(|window| i - j < window as usize));
                    assert_eq!(
                        weights[token] > 0.0,
                        sees,
                        "window {window:?}: position {i} and {j}, {} seen",
                        held.seen
                    );
                }
                let total: f32 = held.tokens.iter().map(|&token| weights[token]).sum();
                assert!((total - 1.0).abs() < 1e-5, "tokens that were evicted are seen");
            }
        }
        assert!(cache.evicted() > 20);
    }
}

/// Catches: trimming that reaches past an eviction, positions that count evicted tokens.
#[test]
fn trimmed_tokens_never_were() {
    for name in ["llama-f32", "mistral-sliding-window"] {
        let model = load(name);
        let ids = tokens(0..200, model.config().vocab_size);
        let (mut trimmed, mut plain) = (model.new_cache(limits(24, 4, 10)), model.new_cache(limits(24, 4, 10)));
        for (a, b) in [(0, 9), (9, 19), (19, 29), (29, 30)] {
            last_logits(&model, &ids[a..b], &mut trimmed);
            last_logits(&model, &ids[a..b], &mut plain);
        }
        assert!(trimmed.evicted() > 0);
        last_logits(&model, &ids[100..101], &mut trimmed);
        trimmed.trim(1).unwrap();
        let (a, b) = (last_logits(&model, &ids[30..31], &mut trimmed), last_logits(&model, &ids[30..31], &mut plain));
        assert_eq!(a, b, "{name}");
        assert_eq!((trimmed.len(), trimmed.seen()), (plain.len(), plain.seen()));

        let possible = trimmed.trim(1000).unwrap_err().possible;
        assert_eq!(possible, 2, "{name}: the tokens since the last eviction, 29 and 30");
        assert!(trimmed.trim(-1).is_err());
        let len = trimmed.len();
        let refused = trimmed.trim(possible + 1).unwrap_err().to_string();
        assert!(refused.contains(&format!("only the last {possible}:")), "{refused}");
        assert_eq!(trimmed.len(), len, "nothing changes");
        trimmed.trim(possible).unwrap();
        assert_eq!(trimmed.len(), len - possible);
    }
    let model = load("llama-f32");
    let mut cache = model.new_cache(limits(24, 4, 10));
    last_logits(&model, &tokens(0..20, 100), &mut cache);
    cache.trim(20).unwrap();
    assert!(cache.is_empty());
}

/// Memory after ten contexts is memory forever, and no number is lost. In a process of its own, which measures itself.
#[test]
fn endless_generation_needs_no_more_memory() {
    let peak = |tokens: &str| {
        let root = fixture("checkpoints/llama-chat");
        let output = Command::new(env!("CARGO_BIN_EXE_mlx_lm"))
            .args(["--prompt", "Hello", "--ignore-eos", "--temp", "1", "--context-size", "32", "--max-tokens", tokens])
            .args(["--format", "jsonl", "--model-root", root.to_str().unwrap()])
            .output()
            .unwrap();
        let events = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let mut events: Vec<Value> = events.map(|line| serde_json::from_slice(line).unwrap()).collect();
        let done = events.pop().unwrap();
        assert!(
            events.iter().filter(|e| e["event"] == "token").all(|e| e["logprob"].as_f64().is_some_and(f64::is_finite))
        );
        assert_eq!(done["generated_tokens"].to_string(), tokens);
        let evicted = done["evicted_tokens"].as_u64().unwrap();
        let seen = done["prompt_tokens"].as_u64().unwrap() + tokens.parse::<u64>().unwrap() - 1;
        assert!(seen - evicted <= 32, "{evicted} of {seen} evicted");
        done["peak_memory_bytes"].as_u64().unwrap()
    };
    peak("1"); // the first run of a new program maps fewer of its pages
    let (ten, two_hundred) = (peak("320"), peak("6400"));
    assert!(two_hundred as f64 <= ten as f64 * 1.08, "{two_hundred} bytes, {ten} after ten contexts");
}
