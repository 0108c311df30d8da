//! Run Llama, Mistral, Qwen, Phi, Gemma and other checkpoints on [MLX](https://ml-explore.github.io/mlx/), from Rust.
//!
//! One pipeline, each arrow one function:
//!
//! ```text
//! files ── Checkpoint::open ──▶ Checkpoint { config, weights, tokenizer } ── Model::load ──▶ Model
//!
//! requests ── Scheduler::plan ───▶ Batch { ids, spans }
//!          ── Model::forward ────▶ hidden states ── Model::logits ──▶ logits
//!          ── sampler::sample ───▶ token ids
//!          ── Detokenizer::push ─▶ text
//! ```
//!
//! An [`Engine`] runs it on a thread of its own, for many requests at once; [`generate()`] hands in one and gives an iterator
//! over its text.
//!
//! | module | owns |
//! |---|---|
//! | [`checkpoint`] | where a model's files are |
//! | [`mlxpack`] | the one-file format: its specification, reader and writer |
//! | [`tensor_index`], [`tensor_writer`] | what a safetensors file holds, and how one is written |
//! | [`weights`] | tensors by name, each taken once, shape and type checked |
//! | [`quantized`] | linear layers and embeddings, dense or packed |
//! | [`ops`] | the operations that a model is made of, and who computes them |
//! | [`backend`] | devices that compute operations in place of MLX: the CPU's kernels |
//! | [`models`] | config.json, the families, the decoder, RoPE |
//! | [`mod@convert`] | fewer bits, other types: what `mlx_lm.convert` makes |
//! | [`tokenizer`], [`chat_template`] | text to ids and back |
//! | [`mod@generate`] | the engine and its scheduler, the key-value cache, the sampler |
//! | [`ranks`] | processes that compute one model together |
//! | `hub` | models by their names on the Hugging Face hub (feature `hub`) |
//! | `server` | OpenAI's interface over HTTP (feature `server`) |
//!
//! Arrays are MLX's and lazy: an operation that returns `Ok` has been described, not run. MLX keeps its streams per
//! thread, so a model is loaded and run on one thread. Every failure is an [`Error`] that names the file, field or tensor it
//! is about. What takes long is told to a [`Watch`], which can stop it.
//!
//! The rest of this page is one example for each task. They run as they stand, on the demo model (feature `demo`);
//! `Checkpoint::open` takes a model directory or a pack in its place.
//!
//! # Load and generate
//!
//! ```
//! use mlx_lm::{Checkpoint, Engine, EngineOptions, GenerateOptions, generate};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! let engine = Engine::load(Checkpoint::demo()?, EngineOptions::default())?;
//!
//! let prompt = engine.tokenizer().encode("Once upon a time", true)?; // with the special tokens that begin a text
//! let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::default() };
//! let mut text = String::new();
//! for delta in generate(&engine, &prompt, &options)? {
//!     text += &delta?.text;
//! }
//! assert!(text.len() > 20);
//! # Ok(())
//! # }
//! ```
//!
//! # Ask in the words of a chat template
//!
//! ```
//! use mlx_lm::chat_template::Conversation;
//! use serde_json::json;
//! # use mlx_lm::{Checkpoint, Engine, EngineOptions, GenerateOptions, generate};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! # let engine = Engine::load(Checkpoint::demo()?, EngineOptions::default())?;
//! let conversation = Conversation {
//!     messages: vec![json!({"role": "user", "content": "What colour is the sky?"})],
//!     add_generation_prompt: true,
//!     ..Conversation::default()
//! };
//! let text = engine.tokenizer().render(&conversation)?;
//! assert_eq!(text, "<|bos|><|user|>What colour is the sky?<|end|><|assistant|>");
//!
//! let prompt = engine.tokenizer().encode(&text, false)?; // the template has written the special tokens
//! let deltas = generate(&engine, &prompt, &GenerateOptions::default())?;
//! let answer = deltas.map(|delta| Ok(delta?.text)).collect::<mlx_lm::Result<String>>()?;
//! assert_eq!(answer, "The sky is blue.");
//! # Ok(())
//! # }
//! ```
//!
//! A downloaded template is not trusted: see [`chat_template`] for the process that it is best rendered in.
//!
//! # Many at once
//!
//! Requests that are under way together are computed together, each with the result that it has alone. A
//! [`Generation`](generate::Generation) can be sent and kept; dropped, it aborts.
//!
//! ```
//! use std::thread;
//!
//! use mlx_lm::generate::FinishReason;
//! # use mlx_lm::{Checkpoint, Engine, EngineOptions, GenerateOptions, generate};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! # let engine = Engine::load(Checkpoint::demo()?, EngineOptions::default())?;
//! let options = GenerateOptions { stop: vec!["scatters".into()], ..GenerateOptions::default() };
//! let ask = |question: &str| {
//!     let text = format!("<|bos|><|user|>{question}<|end|><|assistant|>");
//!     generate(&engine, &engine.tokenizer().encode(&text, false)?, &options)
//! };
//! let questions = ["Why is the sky blue?", "What colour is the sky?"];
//! let generations = questions.map(ask);
//! let answers = generations.map(|generation| {
//!     thread::spawn(move || {
//!         let mut generation = generation?;
//!         let text = generation.by_ref().map(|delta| Ok(delta?.text)).collect::<mlx_lm::Result<String>>()?;
//!         Ok::<_, mlx_lm::Error>((text, generation.finish_reason()))
//!     })
//! });
//! let [why, what] = answers.map(|answer| answer.join().expect("it does not panic"));
//! assert_eq!(why?, ("The sky looks blue because of the way the air ".into(), Some(FinishReason::Stop)));
//! assert_eq!(what?.0, "The sky is blue.");
//! # Ok(())
//! # }
//! ```
//!
//! # Watch a prompt being read, and stop
//!
//! What a character or a stop string still holds back comes with the last event.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! use mlx_lm::generate::{Event, FinishReason, Request};
//! # use mlx_lm::{Checkpoint, Engine, EngineOptions, GenerateOptions};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! let stop = Arc::new(AtomicBool::new(false)); // clones go to other threads, or to a signal's handler
//! let options = EngineOptions { stop: Arc::clone(&stop), ..EngineOptions::default() };
//! let engine = Engine::load(Checkpoint::demo()?, options)?;
//! # let prompt = engine.tokenizer().encode("<|bos|><|user|>Why is the sky blue?<|end|><|assistant|>", false)?;
//! let options = GenerateOptions { ignore_eos: true, max_tokens: 1_000_000, ..GenerateOptions::default() };
//! let mut generation = engine.submit(Request { prompt, options, prompt_cache: None })?;
//! while let Some(event) = generation.next_event() {
//!     match event {
//!         Event::Reading { done, total } => eprint!("\r{done} of {total} tokens"),
//!         Event::Read { .. } => eprintln!(),
//!         Event::Delta(delta) => {
//!             print!("{}", delta.text);
//!             stop.fetch_or(delta.text.contains("blue"), Ordering::Relaxed);
//!         }
//!         Event::Finished(finished) => {
//!             println!("{}", finished.held_back);
//!             assert_eq!(finished.reason, FinishReason::Abort);
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Sample
//!
//! Options are a struct; [`Overrides`](generate::Overrides) are what a line of JSON sets of them, checked.
//!
//! ```
//! use mlx_lm::generate::Overrides;
//! use mlx_lm::generate::sampler::SamplerOptions;
//! # use mlx_lm::{Checkpoint, Engine, EngineOptions, GenerateOptions, generate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let engine = Engine::load(Checkpoint::demo()?, EngineOptions::default())?;
//! # let prompt = engine.tokenizer().encode("Once upon a time", true)?;
//! let sampler = SamplerOptions { temp: 0.8, top_p: 0.9, seed: 7, ..SamplerOptions::default() };
//! let options = GenerateOptions { sampler, max_tokens: 10, logprobs: Some(3), ..GenerateOptions::default() };
//! for delta in generate(&engine, &prompt, &options)? {
//!     let token = delta?.token;
//!     assert!(token.logprob.is_some() && token.top_logprobs.len() == 3);
//! }
//!
//! let hotter: Overrides = serde_json::from_str(r#"{"temp": 1.2, "stop": ["\n"]}"#)?;
//! assert_eq!(hotter.apply(&options)?.sampler.temp, 1.2);
//! let wrong: Overrides = serde_json::from_str(r#"{"top_p": 2}"#)?;
//! assert_eq!(wrong.apply(&options).unwrap_err().to_string(), "top_p is 2, expected a number from 0 to 1");
//! # Ok(())
//! # }
//! ```
//!
//! # Hold a text to a schema
//!
//! Or to an expression or a grammar; [`generate::tools`] has those of calls of tools, which [`reply`] reads.
//!
//! ```
//! use mlx_lm::generate::Grammar;
//! # use mlx_lm::{Checkpoint, Engine, EngineOptions, GenerateOptions, generate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let engine = Engine::load(Checkpoint::demo()?, EngineOptions::default())?;
//! # let prompt = engine.tokenizer().encode("<|bos|><|user|>What colour is the sky?<|end|><|assistant|>", false)?;
//! let schema = serde_json::json!({
//!     "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"], "additionalProperties": false,
//! });
//! let options = GenerateOptions { grammar: Some(Grammar::JsonSchema(schema)), ..GenerateOptions::default() };
//! let text = generate(&engine, &prompt, &options)?.map(|delta| Ok(delta?.text)).collect::<mlx_lm::Result<String>>()?;
//! let value: serde_json::Value = serde_json::from_str(&text)?;
//! assert_eq!(value["colour"], "blue");
//! # Ok(())
//! # }
//! ```
//!
//! # Make a pack and read it
//!
//! ```
//! use mlx_lm::mlxpack::{Pack, Plan, inspect};
//! use mlx_lm::{Checkpoint, Model, Watch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let (directory, file) = (scratch.path().join("model"), scratch.path().join("model.mlxpack"));
//! # Pack::open("demo/demo.mlxpack")?.extract(&directory, None, false, &mut Watch::none())?;
//! let checkpoint = Checkpoint::open(&directory)?;
//! let summary = inspect(&checkpoint, true)?; // strictly: all that loading would check
//! let bytes = Plan::new(&checkpoint, summary, &[])?.write(&file, false, &mut Watch::none())?;
//!
//! let pack = Pack::open(&file)?; // reads the header alone
//! assert_eq!((pack.length(), pack.summary().parameter_count), (bytes, 6_033_152));
//! assert!(pack.verify(&mut Watch::none())?.is_empty(), "no file is damaged");
//! let config = pack.read(pack.entry("config.json").expect("a model has one"))?;
//! assert!(config.starts_with(b"{"));
//!
//! Model::load(&Checkpoint::open(&file)?, &mut Watch::none())?; // from the memory-map, with nothing extracted
//! # Ok(())
//! # }
//! ```
//!
//! # Measure perplexity
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use mlx_lm::generate::kv_cache::CacheLimits;
//! use mlx_lm::generate::perplexity::{Past, losses};
//! # use mlx_lm::{Checkpoint, Model, Tokenizer, Watch};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! # let checkpoint = Checkpoint::demo()?;
//! # let model = Model::load(&checkpoint, &mut Watch::none())?;
//! # let tokenizer = Tokenizer::load(&checkpoint)?;
//! let ids = tokenizer.encode("The sky looks blue because of the way the air scatters sunlight.", true)?;
//! let mut nats = 0.0;
//! let mut add = |_first: usize, losses: &[f32]| {
//!     nats += losses.iter().sum::<f32>();
//!     ControlFlow::Continue(())
//! };
//! losses(&model, &ids, Past::Cached(CacheLimits::new(1024)), &mut Watch::none(), &mut add)?;
//! let perplexity = (nats / (ids.len() - 1) as f32).exp(); // nothing predicts the first token
//! assert!((1.0..10.0).contains(&perplexity));
//! # Ok(())
//! # }
//! ```
//!
//! # Keep a prompt for later
//!
//! An engine finds by itself what a prompt shares with earlier ones; a file does so for another day. What is done with the
//! model itself is done on the engine's thread.
//!
//! ```
//! use mlx_lm::generate::Request;
//! use mlx_lm::generate::prompt_cache::PromptCache;
//! # use mlx_lm::{Checkpoint, Engine, EngineOptions, GenerateOptions, Watch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let engine = Engine::load(Checkpoint::demo()?, EngineOptions::default())?;
//! # let scratch = tempfile::tempdir()?;
//! # let path = scratch.path().join("lighthouse.safetensors");
//! let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
//! let limits = options.cache_limits(engine.config())?;
//! let story = engine.tokenizer().encode("The old lighthouse had been dark for a hundred years.", true)?;
//! let known = story.len();
//! let cached = engine.call(move |model| {
//!     PromptCache::new(model, &story, limits, 512, &mut Watch::none())?.save(&path, false)?;
//!     PromptCache::load(&path, model) // an error for any other model
//! })??;
//!
//! let text = "The old lighthouse had been dark for a hundred years. Then Lucy, a";
//! let prompt = engine.tokenizer().encode(text, true)?;
//! let new = prompt.len() - known;
//! let mut generation = engine.submit(Request { prompt, options, prompt_cache: Some(cached) })?;
//! assert!(generation.by_ref().all(|delta| delta.is_ok()));
//! assert_eq!(generation.stats().map(|stats| stats.read_tokens), Some(new));
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! `cli` (the programs, and what only they need), `hub` (models from the Hugging Face hub), `server` (`mlx_lm serve`), `structured` (grammars) and `demo`
//! (`Checkpoint::demo`, 3.5 MB) are on by default; the library needs none of them.

pub mod atomic_file;
pub mod backend;
pub mod chat_template;
pub mod checkpoint;
pub mod convert;
pub mod error;
#[cfg(any(feature = "cli", feature = "server"))]
pub mod fields;
pub mod generate;
#[cfg(feature = "hub")]
pub mod hub;
pub mod mlxpack;
pub mod models;
pub mod ops;
pub mod quantized;
pub mod ranks;
pub mod reply;
#[cfg(feature = "server")]
pub mod server;
pub mod tensor_index;
pub mod tensor_writer;
pub mod tokenizer;
pub mod weights;

mod atomic_directory;
mod mapped;
mod mlx_rs_patch;

mod watch;

/// Of this library.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use generate::{Engine, EngineOptions, GenerateOptions, generate};
pub use models::Model;
pub use tokenizer::Tokenizer;
pub use watch::Watch;

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
