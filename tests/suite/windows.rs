//! Layers whose tokens see a window alone hold what they see and little more, and nothing else can tell. Each test names the
//! mistakes that it was seen to catch.

use std::fs;
use std::ops::Range;
use std::path::Path;

use mlx_lm::generate::kv_cache::{CacheLimits, KvCache, TRIMMABLE};
use mlx_lm::generate::prompt_cache::PromptCache;
use mlx_lm::generate::{Engine, EngineOptions, Generation, Request};
use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch};
use mlx_rs::ops::indexing::TryIndexOp;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{compute_on_cpu, decode, fixture, prefill};

const WINDOW: i32 = 70;
/// What a layer may hold besides sinks, window and chunk: what can be forgotten, a block of keys, two steps of its buffers.
const REST: i32 = TRIMMABLE + 64 + 2 * 256;

/// Layers with a window and without; windows alone, on plain attention; capped scores; bf16.
const MODELS: [&str; 4] = ["gemma3-f32", "mistral-sliding-window", "gemma2-f32", "gemma3-bf16"];

/// A fixture with a wider window.
fn widened(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("checkpoints").join(name);
    fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config["sliding_window"] = json!(WINDOW);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn open(root: &Path) -> Model {
    compute_on_cpu();
    Model::load(&Checkpoint::open(root).unwrap(), &mut Watch::none()).unwrap()
}

fn load(name: &str) -> Model {
    open(widened(name).path())
}

fn limits(context_size: i32, num_sink_tokens: i32, eviction_batch_percent: i32) -> CacheLimits {
    CacheLimits { context_size, num_sink_tokens, eviction_batch_percent }
}

fn tokens(range: Range<usize>) -> Vec<u32> {
    range.map(|i| ((i * i * 7 + i * 3 + i / 90 + 11) % 100) as u32).collect()
}

/// Logits after the last of these tokens, which are decoded where there is one.
fn last_logits(model: &Model, ids: &[u32], cache: &mut KvCache) -> Vec<f32> {
    let logits = match ids {
        [id] => decode(model, *id, cache),
        _ => prefill(model, ids, cache).try_index((-1.., ..)).unwrap(),
    };
    let logits = logits.as_type::<f32>().unwrap();
    model.evaluate([&logits].into_iter().chain(cache.arrays())).unwrap();
    logits.to_vec_cast().unwrap()
}

/// Bit for bit where kernels compute; MLX's own operations promise no such thing.
fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
    let same = if compute_on_cpu() { found == expected } else { off < 0.02 };
    assert!(same && found.iter().all(|x| x.is_finite()), "{what}: off by {off:e}");
}

fn windows(model: &Model) -> Vec<Option<i32>> {
    let config = model.config();
    (0..config.num_hidden_layers as usize).map(|i| config.layer(i).sliding_window).collect()
}

/// Rows of each layer's buffers.
fn rows(cache: &KvCache) -> Vec<i32> {
    let rows: Vec<i32> = cache.arrays().map(|array| array.dim(2)).collect();
    rows.chunks(2)
        .map(|both| {
            assert_eq!(both[0], both[1]);
            both[0]
        })
        .collect()
}

/// Catches: a gap that never grows, buffers that never shrink, a gap that is as long as a global layer's would be, bytes that are
/// admitted for too few tokens.
#[test]
fn a_window_bounds_the_memory_of_its_layers() {
    for (name, context_size) in [("gemma3-f32", 32_768), ("mistral-sliding-window", 32_768), ("gemma3-f32", 900)] {
        let model = load(name);
        let limits = limits(context_size, 4, 10);
        let mut cache = model.new_cache(limits);
        let ids = tokens(0..50 * WINDOW as usize);
        let most = |chunk: i32| limits.num_sink_tokens + WINDOW + chunk + REST;
        let (mut at, mut largest) = (0, 0);
        for n in [&[30][..], &[100; 8], &[1; 20]].concat().into_iter().cycle() {
            if at + n > ids.len() {
                break;
            }
            last_logits(&model, &ids[at..at + n], &mut cache);
            (at, largest) = (at + n, largest.max(n));
            let rows = rows(&cache);
            for (layer, window) in windows(&model).into_iter().enumerate() {
                let (gap, len) = (cache.gap(layer), cache.len());
                let held = cache.layer(layer).unwrap().unwrap().0.dim(2);
                assert_eq!(held + gap.len, len, "{name}, layer {layer} at {at}");
                match window {
                    Some(_) => assert!(rows[layer] <= most(largest as i32), "{name}, layer {layer} at {at}: {rows:?}"),
                    None => assert!(gap.is_empty() && rows[layer] >= len, "{name}, layer {layer} at {at}"),
                }
            }
            let bytes: usize = cache.arrays().map(|array| array.nbytes()).sum();
            assert!(bytes as u64 <= model.cache_bytes(limits, at, largest), "{name} at {at}: {bytes} bytes");
        }
        assert!((0..windows(&model).len()).any(|layer| !cache.gap(layer).is_empty()), "{name}: nothing went");
    }
    // One prompt at once, and what follows needs no more than it ever will.
    let model = load("mistral-sliding-window");
    let mut cache = model.new_cache(limits(32_768, 4, 10));
    last_logits(&model, &tokens(0..3000), &mut cache);
    assert!(rows(&cache).iter().all(|rows| *rows >= 3000));
    for id in tokens(3000..3100) {
        last_logits(&model, &[id], &mut cache);
    }
    assert!(rows(&cache).iter().all(|rows| *rows <= 4 + WINDOW + 1 + REST), "{:?}", rows(&cache));
    // What is admitted does not grow with the text, but for layers without a window.
    let bytes = |tokens| model.cache_bytes(limits(32_768, 4, 10), tokens, 512);
    assert!(bytes(3_000) == bytes(32_768) && bytes(100) < bytes(3_000));
}

/// Chunks of several sizes, and single tokens, with evictions and without. Catches: a block too many dropped, a gap that is off by
/// one or does not end where a block begins, evictions that forget the gap, keys turned without those that they follow.
#[test]
fn what_a_window_hides_is_not_missed() {
    for name in MODELS {
        let model = load(name);
        for limits in [limits(8192, 4, 10), limits(2000, 4, 10), limits(900, 70, 50), limits(800, 0, 3)] {
            let (mut cache, mut full) = (model.new_cache(limits), model.new_cache(limits).holding_all());
            let mut at = 0;
            let mut gaps = Vec::new();
            let most = 2500;
            for n in [300, 1, 257, 64, 1, 1, 63, 129, 5, 400, 1, 38, 2, 200].into_iter().cycle() {
                let n = n.min(limits.window() as usize / 2);
                let ids = tokens(at..at + n);
                let (found, expected) = (last_logits(&model, &ids, &mut cache), last_logits(&model, &ids, &mut full));
                assert_same(&found, &expected, &format!("{name}, {limits:?}, {n} tokens at {at}"));
                assert_eq!((cache.len(), cache.evicted()), (full.len(), full.evicted()));
                let kept = if cache.evicted() == 0 { TRIMMABLE } else { 0 };
                assert!(cache.len() - cache.shortest() >= kept.min(cache.len()), "{name}, {limits:?} at {at}");
                gaps.push((0..windows(&model).len()).map(|layer| cache.gap(layer).len).max().unwrap());
                at += n;
                if at > most {
                    break;
                }
            }
            assert!(gaps.iter().any(|len| *len >= 200), "{name}, {limits:?}: {gaps:?}");
            assert_eq!(cache.evicted() > 0, limits.context_size < 8192);
        }
    }
}

/// Catches: what is cut further than rows are held, a cut that leaves the gap where later tokens are stored, an error that changes
/// something.
#[test]
fn a_cache_is_cut_as_far_as_it_says_and_no_further() {
    for name in ["gemma3-f32", "mistral-sliding-window"] {
        let model = load(name);
        let limits = limits(8192, 4, 10);
        let mut cache = model.new_cache(limits);
        for first in (0..2500).step_by(250) {
            last_logits(&model, &tokens(first..first + 250), &mut cache);
        }
        let (len, shortest) = (cache.len(), cache.shortest());
        assert!((len - 2000..=len - TRIMMABLE).contains(&shortest), "{name}: {shortest} of {len}");
        for left in [shortest, shortest + 1, shortest + 100, len - 1, len] {
            let mut cut = cache.clone();
            cut.trim(len - left).unwrap();
            // As if the rest had never been, in steps that make the gap grow again.
            let mut plain = model.new_cache(limits).holding_all();
            last_logits(&model, &tokens(0..left as usize), &mut plain);
            for n in [1, 5, 600, 1, 700] {
                let ids = tokens(7000 + n..7000 + 2 * n);
                let (found, expected) = (last_logits(&model, &ids, &mut cut), last_logits(&model, &ids, &mut plain));
                assert_same(&found, &expected, &format!("{name}: {n} tokens after {left} of {len}"));
            }
        }
        let refused = cache.trim(len - shortest + 1).unwrap_err();
        assert_eq!((refused.possible, cache.len(), cache.shortest()), (len - shortest, len, shortest), "{name}");
    }
}

/// Catches: a file that lacks the gap or gets its end wrong, rows of a layer without a window left out, a gap that hides what is seen.
#[test]
fn a_file_holds_what_the_layers_hold() {
    let root = widened("gemma3-f32");
    let (model, ids) = (open(root.path()), tokens(0..2600));
    let limits = limits(4096, 4, 10);
    let made = PromptCache::new(&model, &ids, limits, 200, &mut Watch::none()).unwrap();
    let path = root.path().join("prompt.safetensors");
    made.save(&path, false).unwrap();
    let file = fs::read(&path).unwrap();
    let shape = |layer: usize| {
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        tensors.tensor(&format!("layers.{layer}.keys")).unwrap().shape()[2]
    };
    for (layer, window) in windows(&model).into_iter().enumerate() {
        assert_eq!(shape(layer) < 2600, window.is_some(), "layer {layer}: {}", shape(layer));
    }
    PromptCache::load(&path, &model).unwrap();
    let engine = start(root.path(), EngineOptions::default());
    let loaded = engine.call(move |model| PromptCache::load(&path, model)).unwrap().unwrap();
    // The same prompt goes on; one that parts from it late is cut there; one that parts early is read whole.
    for (shared, read) in [(2600, 60), (2000, 60), (500, 560)] {
        let prompt = [&ids[..shared], &tokens(5000..5060)].concat();
        let plain = request(&prompt, limits);
        let cached = Request { prompt_cache: Some(loaded.clone()), ..plain.clone() };
        let (found, read_tokens) = answer(engine.submit(cached).unwrap());
        let (expected, _) = answer(start(root.path(), EngineOptions::default()).submit(plain).unwrap());
        assert_eq!(read_tokens, read, "{shared} tokens shared");
        assert!(!compute_on_cpu() || found == expected, "{shared} tokens shared: {found:?}, {expected:?}");
    }
}

fn start(root: &Path, options: EngineOptions) -> Engine {
    compute_on_cpu();
    let checkpoint = Checkpoint::open(root).unwrap();
    let load = move || Model::load(&checkpoint, &mut Watch::none());
    // Texts do not matter.
    let tokenizer = || Tokenizer::load(&Checkpoint::demo().unwrap());
    Engine::start(load, tokenizer, options).unwrap()
}

fn request(prompt: &[u32], limits: CacheLimits) -> Request {
    let options = GenerateOptions {
        max_tokens: 6,
        ignore_eos: true,
        logprobs: Some(0),
        context_size: Some(limits.context_size.into()),
        prefill_step: 200,
        ..GenerateOptions::default()
    };
    Request { prompt: prompt.to_vec(), options, prompt_cache: None }
}

/// Ids with the bits of their log-probabilities, and how many tokens of the prompt were read.
fn answer(mut generation: Generation) -> (Vec<(u32, u32)>, usize) {
    let tokens = generation.by_ref().map(|delta| delta.unwrap().token);
    let tokens = tokens.map(|token| (token.id, token.logprob.unwrap().to_bits())).collect();
    (tokens, generation.stats().unwrap().read_tokens)
}

/// Catches: a beginning that is taken where the cache cannot be cut, one that is not taken where it can, a prompt that waits for what
/// will not come, the shorter of two beginnings lost to the longer.
#[test]
fn what_prompts_share_is_reused_where_the_windows_allow() {
    let root = widened("gemma3-f32");
    let limits = limits(4096, 4, 10);
    let of = |shared: usize, own: usize, seed: usize| {
        request(&[tokens(0..shared), tokens(seed..seed + own)].concat(), limits)
    };
    let fresh =
        |request: &Request| answer(start(root.path(), EngineOptions::default()).submit(request.clone()).unwrap()).0;
    let check = |found: &[(u32, u32)], request: &Request, what: &str| {
        assert!(!compute_on_cpu() || found == fresh(request), "{what}");
    };
    let deterministic = || start(root.path(), EngineOptions { deterministic: true, ..EngineOptions::default() });
    let engine = deterministic();
    let whole = of(1000, 2000, 3000);
    let run = |request: &Request, expected: Range<usize>, what: &str| {
        let (found, read) = answer(engine.submit(request.clone()).unwrap());
        assert!(expected.contains(&read), "{what}: {read} tokens read");
        check(&found, request, what);
        found.into_iter().map(|(id, _)| id).collect::<Vec<u32>>()
    };
    run(&whole, 3000..3001, "the first");
    run(&whole, 1..2, "the same again");
    let longer = Request { prompt: [whole.prompt.clone(), tokens(10..60)].concat(), ..whole.clone() };
    run(&longer, 50..60, "one that goes on");
    let other_end = Request { prompt: [&whole.prompt[..2900], &tokens(10..60)].concat(), ..whole.clone() };
    run(&other_end, 40..51, "another end");
    // The layers with a window have let go of what the tokens after the first 1000 would see.
    let other = of(1000, 50, 6000);
    let said = run(&other, 1050..1051, "another after 1000");
    run(&of(1000, 60, 7000), 60..62, "a third after 1000");
    run(&longer, 1..2, "one that goes on, again");
    let sinks = GenerateOptions { num_sink_tokens: 8, ..whole.options.clone() };
    // Only what has no gap yet.
    run(&Request { options: sinks, ..whole.clone() }, 2000..2001, "other sinks");
    // A conversation leaves what was there before it.
    let conversation = Request { prompt: [&other.prompt[..], &said, &tokens(200..1700)].concat(), ..other.clone() };
    run(&conversation, 1500..1508, "a conversation");
    run(&Request { prompt: [&other.prompt[..], &tokens(10..60)].concat(), ..other.clone() }, 50..52, "from before it");

    // All at once: the others wait for the first to read what they share, and go on from there.
    let engine = deterministic();
    let requests: Vec<Request> = (0..4).map(|i| of(900, 1700 + 30 * i, 3000 + 1000 * i)).collect();
    let all: Vec<Generation> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut read = 0;
    for (i, (generation, request)) in all.into_iter().zip(&requests).enumerate() {
        let (found, tokens) = answer(generation);
        check(&found, request, &format!("request {i}"));
        read += tokens;
    }
    assert!(read < 900 + 4 * 1800, "{read} tokens were read");

    // One that is under way, but past what both begin with, has no more of it than one that has ended.
    let engine = deterministic();
    let options = GenerateOptions { max_tokens: 100_000, ..requests[0].options.clone() };
    let mut endless = engine.submit(Request { options, ..requests[0].clone() }).unwrap();
    endless.next().unwrap().unwrap();
    let (found, read) = answer(engine.submit(requests[1].clone()).unwrap());
    assert_eq!(read, requests[1].prompt.len());
    check(&found, &requests[1], "beside one under way");
}
