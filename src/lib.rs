//! Run Mistral, Llama and Qwen3 checkpoints on [MLX](https://ml-explore.github.io/mlx/), from Rust.
//!
//! One pipeline, each arrow one function:
//!
//! ```text
//! files ── Checkpoint::open ──▶ Checkpoint { config, weights, tokenizer }
//!       ── Model::load ───────▶ Model
//!       ── Model::forward ────▶ hidden states ── Model::logits ──▶ logits
//!       ── Sampler::sample ───▶ token id
//!       ── Detokenizer::push ─▶ text
//! ```
//!
//! [`generate()`] runs it: prompt ids in, an iterator of text pieces out.
//!
//! | module | owns |
//! |---|---|
//! | [`checkpoint`] | where a model's files are |
//! | [`mlxpack`] | the one-file format: its specification, reader and writer |
//! | [`tensor_index`] | what a safetensors file holds |
//! | [`weights`] | tensors by name, each taken once, shape and type checked |
//! | [`quantized`] | linear layers and embeddings, dense or packed |
//! | [`ops`] | the operations that a model is made of, and who computes them |
//! | [`backend`] | devices that compute operations in place of MLX: the CPU's kernels |
//! | [`models`] | config.json, the families, the decoder, RoPE |
//! | [`tokenizer`], [`chat_template`] | text to ids and back |
//! | [`mod@generate`] | the key-value cache, the sampler, the token loop |
//!
//! Arrays are MLX's and lazy: an operation that returns `Ok` has been described, not run. MLX keeps its streams per
//! thread, so load and run a model on one thread. Every failure is an [`Error`] that names the file, field or tensor it
//! is about. What takes long is told to a [`Watch`], which can stop it.
//!
//! The rest of this page is one example for each task. They run as they stand, on the demo model (feature `demo`);
//! `Checkpoint::open` takes a model directory or a pack in its place.
//!
//! # Load and generate
//!
//! ```
//! use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch, generate};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! let checkpoint = Checkpoint::demo()?;
//! let model = Model::load(&checkpoint, &mut Watch::none())?;
//! let tokenizer = Tokenizer::load(&checkpoint)?;
//!
//! let prompt = tokenizer.encode("Once upon a time", true)?; // with the special tokens that begin a text
//! let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::default() };
//! let mut text = String::new();
//! for piece in generate(&model, &tokenizer, &prompt, &options)? {
//!     text += &piece?.text;
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
//! # use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch, generate};
//!
//! # fn main() -> mlx_lm::Result<()> {
//! # let checkpoint = Checkpoint::demo()?;
//! # let model = Model::load(&checkpoint, &mut Watch::none())?;
//! # let tokenizer = Tokenizer::load(&checkpoint)?;
//! let conversation = Conversation {
//!     messages: vec![json!({"role": "user", "content": "What colour is the sky?"})],
//!     add_generation_prompt: true,
//!     ..Conversation::default()
//! };
//! let text = tokenizer.render(&conversation)?;
//! assert_eq!(text, "<|bos|><|user|>What colour is the sky?<|end|><|assistant|>");
//!
//! let prompt = tokenizer.encode(&text, false)?; // the template has written the special tokens
//! let pieces = generate(&model, &tokenizer, &prompt, &GenerateOptions::default())?;
//! let answer = pieces.map(|piece| Ok(piece?.text)).collect::<mlx_lm::Result<String>>()?;
//! assert_eq!(answer, "The sky is blue.");
//! # Ok(())
//! # }
//! ```
//!
//! A downloaded template is not trusted: see [`chat_template`] for the process that it is best rendered in.
//!
//! # Stream, until something stops it
//!
//! A stop string ends the text, `max_tokens` and the model's own end of sequence do, and so does whoever leaves the loop.
//! What a character or a stop string still holds back then comes from [`interrupt`](generate::Generation::interrupt).
//!
//! ```
//! use std::io::Write;
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! use mlx_lm::generate::{FinishReason, generate_with_progress};
//! # use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let checkpoint = Checkpoint::demo()?;
//! # let model = Model::load(&checkpoint, &mut Watch::none())?;
//! # let tokenizer = Tokenizer::load(&checkpoint)?;
//! # let prompt = tokenizer.encode("<|bos|><|user|>Why is the sky blue?<|end|><|assistant|>", false)?;
//! let stop = Arc::new(AtomicBool::new(false)); // clones go to other threads, or to a signal's handler
//! let mut watch = Watch { on_progress: &mut |read, total| eprint!("\r{read} of {total} tokens"), stop: &stop };
//!
//! let options = GenerateOptions { stop: vec!["scatters".into()], ..GenerateOptions::default() };
//! let mut generation = generate_with_progress(&model, &tokenizer, &prompt, &options, None, &mut watch)?;
//! while !stop.load(Ordering::Relaxed)
//!     && let Some(piece) = generation.next()
//! {
//!     print!("{}", piece?.text); // The sky looks blue because of the way the air
//!     std::io::stdout().flush()?;
//! }
//! match generation.finish_reason() {
//!     None => print!("{}", generation.interrupt()),
//!     reason => assert_eq!(reason, Some(FinishReason::Stop)),
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
//! # use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch, generate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let checkpoint = Checkpoint::demo()?;
//! # let model = Model::load(&checkpoint, &mut Watch::none())?;
//! # let tokenizer = Tokenizer::load(&checkpoint)?;
//! # let prompt = tokenizer.encode("Once upon a time", true)?;
//! let sampler = SamplerOptions { temp: 0.8, top_p: 0.9, seed: 7, ..SamplerOptions::default() };
//! let options = GenerateOptions { sampler, max_tokens: 10, logprobs: Some(3), ..GenerateOptions::default() };
//! for piece in generate(&model, &tokenizer, &prompt, &options)? {
//!     let token = piece?.token;
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
//! ```
//! use mlx_lm::generate::generate_with_progress;
//! use mlx_lm::generate::prompt_cache::PromptCache;
//! # use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let checkpoint = Checkpoint::demo()?;
//! # let model = Model::load(&checkpoint, &mut Watch::none())?;
//! # let tokenizer = Tokenizer::load(&checkpoint)?;
//! # let scratch = tempfile::tempdir()?;
//! # let path = scratch.path().join("lighthouse.safetensors");
//! let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
//! let limits = options.cache_limits(model.config())?;
//! let story = tokenizer.encode("The old lighthouse had been dark for a hundred years.", true)?;
//! PromptCache::new(&model, &story, limits, 512, &mut Watch::none())?.save(&path, false)?;
//!
//! let cached = PromptCache::load(&path, &model)?; // an error for any other model
//! let prompt = tokenizer.encode("The old lighthouse had been dark for a hundred years. Then Lucy, a", true)?;
//! let watch = &mut Watch::none();
//! let generation = generate_with_progress(&model, &tokenizer, &prompt, &options, Some(&cached), watch)?;
//! assert_eq!(generation.stats().read_tokens, prompt.len() - story.len());
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! `cli` (the programs, and what only they need) and `demo` (`Checkpoint::demo`, 3.5 MB) are on by default; the library
//! needs neither.

pub mod backend;
pub mod chat_template;
pub mod checkpoint;
pub mod error;
pub mod generate;
pub mod mlxpack;
pub mod models;
pub mod ops;
pub mod quantized;
pub mod tensor_index;
pub mod tokenizer;
pub mod weights;

mod mapped;
mod mlx_rs_patch;
mod partial;
mod watch;

pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use generate::{GenerateOptions, generate};
pub use models::Model;
pub use tokenizer::Tokenizer;
pub use watch::Watch;

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
