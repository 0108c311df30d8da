//! The integration tests, as one binary: MLX starts once, and every module shares the helpers here.

mod chat_template;
mod cli;
#[cfg(cuda_kernels)]
mod cuda;
mod dist;
mod errors;
mod fidelity;
mod imports;
mod kernels;
mod loading;
mod mlxpack;
mod mlxpack_cli;
mod paper;
mod process;
mod prompt_cache;
mod robustness;
mod sampling;
mod streaming;
mod tokenizer;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_lm::backend::cpu::Kernels;
use mlx_lm::mlxpack::Pack;
use mlx_lm::ops;
use mlx_rs::Device;

/// A path below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Compute on the CPU with the kernels that MLX_LM_KERNELS names, as the programs do; whether there are any. Every test that
/// computes begins with this.
fn compute_on_cpu() -> bool {
    Device::set_default(&Device::cpu());
    match std::env::var("MLX_LM_KERNELS").as_deref() {
        Err(_) => {}
        Ok("mlx") => ops::set_cpu_backend(None),
        Ok(name) => ops::set_cpu_backend(Some(Kernels::from_name(name).unwrap())),
    }
    ops::cpu_backend().is_some()
}

/// Write the demo model as a model directory: a good checkpoint, quantized and tied.
fn unpack_demo(root: &Path) {
    let pack = Pack::from_bytes("demo.mlxpack", include_bytes!("../../demo/demo.mlxpack")).unwrap();
    pack.extract(root, None, false, &|_, _| ControlFlow::Continue(())).unwrap();
}
