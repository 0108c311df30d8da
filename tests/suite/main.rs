//! The integration tests, as one binary: MLX starts once, and every module shares the helpers here.

mod batch;
mod chat;
mod chat_template;
mod cli;
mod convert;
#[cfg(cuda_kernels)]
mod cuda;
mod dist;
mod docs;
mod engine;
mod errors;
mod fidelity;
#[cfg(feature = "hub")]
mod hub;
mod imports;
mod kernels;
mod loading;
mod mlxpack;
mod mlxpack_cli;
mod paper;
mod process;
mod prompt_cache;
mod ranks;
mod reply;
mod robustness;
mod sampling;
#[cfg(feature = "server")]
mod server;
mod streaming;
mod structured;
mod tokenizer;
mod tool_calls;
mod windows;

use std::path::{Path, PathBuf};

use mlx_lm::backend::Phase;
use mlx_lm::backend::cpu::InstructionSet;
use mlx_lm::generate::kv_cache::KvCache;
use mlx_lm::mlxpack::Pack;
use mlx_lm::models::batch::{Batch, Span};
use mlx_lm::{Model, Watch, ops};
use mlx_rs::{Array, Device};

/// A path below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Compute on the CPU with the kernels that MLX_LM_KERNELS names, as the programs do; whether there are any. Every test that
/// computes begins with this. With MLX_LM_TEST_DEVICE=gpu, tests of whole models compute on a GPU.
fn compute_on_cpu() -> bool {
    if std::env::var("MLX_LM_TEST_DEVICE").is_ok_and(|device| device == "gpu") {
        Device::set_default(&Device::gpu());
        return ops::kernels() != "mlx";
    }
    Device::set_default(&Device::cpu());
    match std::env::var("MLX_LM_KERNELS").as_deref() {
        Err(_) => {}
        Ok("mlx") => ops::set_cpu_backend(None),
        Ok(name) => ops::set_cpu_backend(Some(InstructionSet::from_name(name).unwrap())),
    }
    ops::cpu_backend().is_some()
}

/// Logits `[L, V]` of a prompt's tokens that follow what the cache holds.
fn prefill(model: &Model, ids: &[u32], cache: &mut KvCache) -> Array {
    let hidden_states = model.forward(&mut Batch::prefill(ids, cache).unwrap()).unwrap();
    model.logits(&hidden_states, 0..hidden_states.dim(0), Phase::Prefill).unwrap()
}

/// Logits `[1, V]` of one token that is decoded.
fn decode(model: &Model, id: u32, cache: &mut KvCache) -> Array {
    let span = Span { cache, tokens: 1, phase: Phase::Decode };
    let mut batch = Batch::new(Array::from_slice(&[id], &[1]), vec![span]).unwrap();
    let hidden_states = model.forward(&mut batch).unwrap();
    model.logits(&hidden_states, 0..1, Phase::Decode).unwrap()
}

/// Write the demo model as a model directory: a good checkpoint, quantized and tied.
fn unpack_demo(root: &Path) {
    let pack = Pack::from_bytes("demo.mlxpack", include_bytes!("../../demo/demo.mlxpack")).unwrap();
    pack.extract(root, None, false, &mut Watch::none()).unwrap();
}
