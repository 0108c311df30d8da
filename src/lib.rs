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
//! thread, so load and run a model on one thread.

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
