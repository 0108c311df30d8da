//! The engine: what a sequence gives does not depend on what is computed with it, nor on when it joins; and nothing that a
//! caller does ends the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::task::Poll;
use std::time::Duration;

use mlx_lm::generate::sampler::SamplerOptions;
use mlx_lm::generate::{Engine, EngineOptions, Event, FinishReason, Generation, Request};
use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch};

use crate::{compute_on_cpu, fixture};

fn demo(options: EngineOptions) -> Engine {
    compute_on_cpu();
    Engine::load(Checkpoint::demo().unwrap(), options).unwrap()
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| 10 + ((i * i * 7 + i * 13 + seed * 31) % 113) as u32).collect()
}

/// Requests of every kind: long and short prompts, greedy and sampled, with penalties and without.
fn requests(n: usize) -> Vec<Request> {
    let sampler = |i: usize| SamplerOptions {
        temp: [0.0, 0.8, 1.3][i % 3],
        top_p: [1.0, 0.9][i % 2],
        repetition_penalty: (i % 4 == 1).then_some(1.2),
        logit_bias: if i % 5 == 2 { vec![(100, -1.0)] } else { Vec::new() },
        seed: i as u64,
        ..SamplerOptions::default()
    };
    (0..n)
        .map(|i| Request {
            prompt: ids([3, 40, 1, 150, 17][i % 5], i),
            options: GenerateOptions {
                max_tokens: [12, 1, 30, 7][i % 4],
                ignore_eos: true,
                logprobs: (i % 3 != 1).then_some(i % 4),
                context_size: (i % 7 == 3).then_some(24),
                sampler: sampler(i),
                ..GenerateOptions::default()
            },
            prompt_cache: None,
        })
        .collect()
}

/// Ids, and the bits of all log-probabilities.
type Tokens = Vec<(u32, Vec<u32>)>;

fn tokens(generation: Generation) -> Tokens {
    let numbers = |delta: mlx_lm::generate::Delta| {
        let token = delta.token;
        let top = token.top_logprobs.iter().flat_map(|(id, logprob)| [*id, logprob.to_bits()]);
        (token.id, token.logprob.map(f32::to_bits).into_iter().chain(top).collect())
    };
    generation.map(|delta| numbers(delta.unwrap())).collect()
}

/// Catches: a kernel that is chosen by the number of rows, rows of a step mixed up, a sampler's draws shared, positions of one
/// sequence for another, chunks that depend on who waits.
#[test]
fn a_sequence_is_what_it_is_alone_bit_for_bit() {
    let kernels = compute_on_cpu();
    for name in [
        "llama-bf16",
        "mistral-q4",
        "qwen3-mixed-3-6",
        "mistral-sliding-window",
        "qwen3-f32",
        "gemma3-q4",
        "phi3-longrope",
    ] {
        let root = fixture("checkpoints").join(name);
        // Some fixtures have no tokenizer; their texts do not matter.
        let start = |options: EngineOptions| {
            let checkpoint = Checkpoint::open(&root).unwrap();
            let load = move || Model::load(&checkpoint, &mut Watch::none());
            let tokenizer = || Tokenizer::load(&Checkpoint::demo().unwrap());
            Engine::start(load, tokenizer, options).unwrap()
        };
        let options = |parallel, prefill_budget| EngineOptions {
            parallel,
            prefill_budget,
            deterministic: true,
            ..EngineOptions::default()
        };
        let requests: Vec<Request> = requests(if kernels { 24 } else { 6 });
        let alone: Vec<Tokens> = {
            let engine = start(options(1, 1));
            requests.iter().map(|request| tokens(engine.submit(request.clone()).unwrap())).collect()
        };
        for (parallel, budget) in [(3, 16), (8, 256), (24, 7)] {
            let engine = start(options(parallel, budget));
            let all: Vec<Generation> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
            for (i, (generation, alone)) in all.into_iter().zip(&alone).enumerate() {
                let found = tokens(generation);
                // MLX's own operations promise no such thing for the last bits.
                let same = if kernels { found == *alone } else { found.len() == alone.len() };
                assert!(same, "{name}: request {i} with {parallel} together");
            }
        }
    }
}

/// Catches: a cache that is shared and written to, a prefix that is one token too long, generated tokens reused where that was
/// not wanted, bytes that are never given back.
#[test]
fn a_prefix_that_was_read_before_is_not_read_again_and_changes_nothing() {
    let kernels = compute_on_cpu();
    let system = ids(200, 1);
    let request = |i: usize| {
        let prompt = [&system[..], &ids(10 + i, 50 + i)].concat();
        let options = GenerateOptions { max_tokens: 8, ignore_eos: true, logprobs: Some(0), ..Default::default() };
        Request { prompt, options, prompt_cache: None }
    };
    let run = |engine: &Engine, request: Request| {
        let mut generation = engine.submit(request).unwrap();
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        for delta in generation.by_ref() {
            let token = delta.unwrap().token;
            ids.push(token.id);
            logprobs.push(token.logprob.unwrap().to_bits());
        }
        (ids, logprobs, generation.stats().unwrap().read_tokens)
    };
    let fresh = |i| {
        let (ids, logprobs, read) = run(&demo(EngineOptions::default()), request(i));
        assert_eq!(read, request(i).prompt.len());
        (ids, logprobs)
    };
    // One after another.
    let shared = demo(EngineOptions { deterministic: true, ..EngineOptions::default() });
    for i in 0..4 {
        let (found, logprobs, read) = run(&shared, request(i));
        assert!(!kernels || (found, logprobs) == fresh(i), "request {i}");
        let expected = request(i).prompt.len() - if i == 0 { 0 } else { 200 };
        assert!(read <= expected && read + 10 > expected, "request {i}: {read} of {expected} read");
    }
    // All at once: the others wait for the first to read what they share.
    let together = demo(EngineOptions::default());
    let all: Vec<Generation> = (0..4).map(|i| together.submit(request(i)).unwrap()).collect();
    let mut read = 0;
    for (i, mut generation) in all.into_iter().enumerate() {
        let found: Vec<u32> = generation.by_ref().map(|delta| delta.unwrap().token.id).collect();
        assert!(!kernels || found == fresh(i).0, "request {i}");
        read += generation.stats().unwrap().read_tokens;
    }
    assert!(read < 200 + 4 * 20, "{read} tokens were read");
    // A chat's earlier answer is reused, unless that is not wanted.
    for deterministic in [false, true] {
        let engine = demo(EngineOptions { deterministic, ..EngineOptions::default() });
        let (answer, ..) = run(&engine, request(0));
        let prompt = [request(0).prompt, answer, ids(5, 9)].concat();
        let (.., read) = run(&engine, Request { prompt, ..request(0) });
        assert_eq!(read, if deterministic { 14 } else { 6 });
    }
    // Where there is no room to keep anything, nothing is kept.
    let tight = demo(EngineOptions { cache_memory: Some(1_000_000), ..EngineOptions::default() });
    let small = |i| Request { prompt: ids(60, i), ..request(0) };
    for i in [0, 1, 0] {
        let (.., read) = run(&tight, small(i));
        assert_eq!(read, 60);
    }
}

#[test]
fn callers_come_and_go_and_the_engine_stays() {
    let engine = demo(EngineOptions { parallel: 2, ..EngineOptions::default() });
    let endless = |i| Request {
        prompt: ids(5, i),
        options: GenerateOptions { max_tokens: 1_000_000, ignore_eos: true, ..Default::default() },
        prompt_cache: None,
    };
    let short = Request { options: GenerateOptions { max_tokens: 5, ..endless(0).options }, ..endless(0) };
    // Two that never end leave no room for a third, until one is dropped. They are generations that can be sent.
    let mut first = engine.submit(endless(1)).unwrap();
    let second = engine.submit(endless(2)).unwrap();
    let third = engine.submit(short.clone()).unwrap();
    assert!(first.next().unwrap().is_ok());
    let first =
        std::thread::spawn(move || first.by_ref().take(3).count() as u32 + u32::from(first.finish_reason().is_some()));
    assert_eq!(first.join().unwrap(), 3);
    assert_eq!(third.count(), 5);
    drop(second);

    // Nobody takes what comes: the sequence waits, and others do not.
    let mut idle = engine.submit(endless(3)).unwrap();
    // MLX's own operations are slow on a CPU.
    let (rounds, more) = if compute_on_cpu() { (200, 2000) } else { (20, 300) };
    for _ in 0..rounds {
        assert_eq!(engine.submit(short.clone()).unwrap().count(), 5);
    }
    assert!(idle.by_ref().take(more).all(|delta| delta.is_ok()), "it goes on once someone does");
    drop(idle);

    // What panics between passes is an error of the caller's.
    assert!(engine.call(|_| panic!("the sky fell")).is_err());
    assert_eq!(engine.call(|model| model.config().vocab_size).unwrap(), 2048);
    assert_eq!(engine.submit(short).unwrap().count(), 5);
}

/// Catches: a request that ends without a pass, behind which the engine falls asleep.
#[test]
fn requests_for_no_token_at_all_end_too() {
    let engine = demo(EngineOptions { parallel: 1, ..EngineOptions::default() });
    let request = |max_tokens| Request {
        prompt: ids(100, 1),
        options: GenerateOptions { max_tokens, ignore_eos: true, ..Default::default() },
        prompt_cache: None,
    };
    let all: Vec<Generation> = [3, 0, 0, 0, 3].map(|n| engine.submit(request(n)).unwrap()).into();
    assert_eq!(all.into_iter().map(Iterator::count).collect::<Vec<_>>(), [3, 0, 0, 0, 3]);
}

#[test]
fn what_cannot_be_is_refused_and_what_fails_fails_alone() {
    let engine = demo(EngineOptions { cache_memory: Some(10_000_000), ..EngineOptions::default() });
    let request = |prompt: Vec<u32>, options: GenerateOptions| Request { prompt, options, prompt_cache: None };
    let options = || GenerateOptions { max_tokens: 4, ignore_eos: true, ..Default::default() };
    let refused = |request| engine.submit(request).map(|_| ()).unwrap_err().to_string();
    assert!(refused(request(vec![], options())).contains("no tokens"));
    assert!(refused(request(vec![9999], options())).contains("token 9999"));
    let sampler = SamplerOptions { logit_bias: vec![(2048, 1.0)], ..Default::default() };
    assert!(refused(request(vec![1], GenerateOptions { sampler, ..options() })).contains("ends at 2047"));
    let large = GenerateOptions { max_tokens: 100_000, context_size: Some(100_000), ..options() };
    let error = engine.submit(request(vec![300], large)).unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("10.0 MB") && error.contains("cache memory"), "{error}");

    // The largest numbers that there are, which are too large for others to be made of them.
    let huge = GenerateOptions { max_tokens: usize::MAX, context_size: Some(i32::MAX.into()), ..options() };
    let error = engine.submit(request(vec![300], huge)).unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("cache memory"), "{error}");
    let all = GenerateOptions { logprobs: Some(2049), ..options() };
    assert!(refused(request(vec![1], all)).contains("2048 tokens"));
    let all = GenerateOptions { logprobs: Some(2048), max_tokens: 1, ..options() };
    let deltas: Vec<_> = engine.submit(request(vec![1], all)).unwrap().map(Result::unwrap).collect();
    assert_eq!(deltas[0].token.top_logprobs.len(), 2048);

    // Every token is banned for one of them.
    let sampler = SamplerOptions {
        logit_bias: (0..2048).map(|id| (id, f32::NEG_INFINITY)).collect(),
        ..SamplerOptions::default()
    };
    let banned = GenerateOptions { sampler, ..options() };
    let all: Vec<_> = [options(), banned, options()]
        .into_iter()
        .map(|options| engine.submit(request(ids(20, 3), options)).unwrap())
        .collect();
    let ends: Vec<_> = all
        .into_iter()
        .map(|mut generation| {
            let tokens = generation.by_ref().filter(Result::is_ok).count();
            (tokens, generation.finish_reason().unwrap())
        })
        .collect();
    assert_eq!(ends, [(4, FinishReason::Length), (0, FinishReason::Error), (4, FinishReason::Length)]);
}

#[test]
fn stop_ends_everything_and_what_comes_after_goes_on() {
    let stop = Arc::new(AtomicBool::new(false));
    let engine = demo(EngineOptions { parallel: 2, stop: Arc::clone(&stop), ..EngineOptions::default() });
    let endless = |i| Request {
        prompt: ids(30, i),
        options: GenerateOptions { max_tokens: 1_000_000, ignore_eos: true, ..Default::default() },
        prompt_cache: None,
    };
    let mut all: Vec<Generation> = (0..4).map(|i| engine.submit(endless(i)).unwrap()).collect();
    all[0].next().unwrap().unwrap();
    stop.store(true, Ordering::Relaxed);
    for generation in &mut all {
        while let Some(event) = generation.next_event() {
            if let Event::Finished(finished) = event {
                assert!(finished.error.is_none());
            }
        }
        assert_eq!(generation.finish_reason(), Some(FinishReason::Abort));
    }
    stop.store(false, Ordering::Relaxed);
    assert!(engine.submit(endless(9)).unwrap().take(20).all(|delta| delta.is_ok()));
}

/// Catches: what was read thrown away with what was aborted, an abort that is told as an error or not at all.
#[test]
fn an_abort_ends_one_request_and_keeps_what_it_read() {
    let engine = demo(EngineOptions::default());
    let options = GenerateOptions { max_tokens: 1_000_000, ignore_eos: true, ..Default::default() };
    let request = Request { prompt: ids(100, 1), options, prompt_cache: None };
    let mut generation = engine.submit(request.clone()).unwrap();
    let mut said: Vec<u32> = generation.by_ref().take(5).map(|delta| delta.unwrap().token.id).collect();
    generation.abort();
    said.extend(generation.by_ref().map(|delta| delta.unwrap().token.id));
    assert_eq!(generation.finish_reason(), Some(FinishReason::Abort));

    let prompt = [request.prompt, said, ids(5, 9)].concat();
    let options = GenerateOptions { max_tokens: 1, ..request.options };
    let mut next = engine.submit(Request { prompt, options, prompt_cache: None }).unwrap();
    assert_eq!(next.by_ref().count(), 1);
    let read = next.stats().unwrap().read_tokens;
    assert!(read <= 6, "{read} tokens were read");
}

#[test]
fn whoever_waits_for_an_event_may_stop_waiting() {
    let engine = demo(EngineOptions::default());
    let (hold, held) = channel();
    let (go, may_go) = channel::<()>();
    std::thread::scope(|scope| {
        let engine = &engine;
        scope.spawn(move || {
            let wait = move |_: &Model| {
                hold.send(()).unwrap();
                may_go.recv().unwrap();
            };
            engine.call(wait).unwrap();
        });
        held.recv().unwrap();
        let options = GenerateOptions { max_tokens: 1, ..Default::default() };
        let mut generation = engine.submit(Request { prompt: ids(5, 1), options, prompt_cache: None }).unwrap();
        assert!(generation.next_event_within(Duration::ZERO).is_pending());
        go.send(()).unwrap();
        let events: Vec<Event> = std::iter::from_fn(|| generation.next_event()).collect();
        assert!(matches!(events.last(), Some(Event::Finished(_))));
        assert!(matches!(generation.next_event_within(Duration::ZERO), Poll::Ready(None)));
    });
}

/// Catches: a cache that evicted used for a prompt that does not go on from it, or under other limits; ids that are lost.
#[test]
fn a_text_that_streams_goes_on_as_if_it_had_not_been_cut() {
    let kernels = compute_on_cpu();
    let options = |max_tokens, context_size| GenerateOptions {
        max_tokens,
        ignore_eos: true,
        context_size: Some(context_size),
        ..GenerateOptions::default()
    };
    let run = |engine: &Engine, prompt: &[u32], options| {
        let mut generation = engine.submit(Request { prompt: prompt.to_vec(), options, prompt_cache: None }).unwrap();
        let ids: Vec<u32> = generation.by_ref().map(|delta| delta.unwrap().token.id).collect();
        (ids, generation.stats().unwrap())
    };
    let (whole, stats) = run(&demo(EngineOptions::default()), &ids(50, 1), options(90, 64));
    assert!(stats.evicted_tokens > 64);
    let engine = demo(EngineOptions::default());
    let mut text = ids(50, 1);
    for turn in 0..3 {
        let (more, stats) = run(&engine, &text, options(30, 64));
        assert_eq!(stats.read_tokens, if turn == 0 { 50 } else { 1 });
        text.extend(more);
    }
    assert!(!kernels || text[50..] == whole);
    // Another end, other limits, and numbers that must not depend on what came before: all is read.
    let (.., stats) = run(&engine, &[&text[..100], &ids(30, 7)].concat(), options(1, 64));
    assert!(stats.read_tokens > 64, "{stats:?}");
    let (.., stats) = run(&engine, &text, options(1, 63));
    assert!(stats.read_tokens > 64, "{stats:?}");
    let engine = demo(EngineOptions { deterministic: true, ..EngineOptions::default() });
    let (more, _) = run(&engine, &ids(50, 1), options(30, 64));
    let (.., stats) = run(&engine, &[ids(50, 1), more].concat(), options(1, 64));
    assert_eq!(stats.read_tokens, 80);
}
