//! The integration tests, as one binary: MLX starts once, and every module shares the helpers here.

mod chat_template;
mod cli;
mod dist;
mod errors;
mod fidelity;
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

use mlx_lm::mlxpack::Pack;

/// A path below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Write the demo model as a model directory: a good checkpoint, quantized and tied.
fn unpack_demo(root: &Path) {
    let pack = Pack::from_bytes("demo.mlxpack", include_bytes!("../../demo/demo.mlxpack")).unwrap();
    pack.extract(root, None, false, &|_, _| ControlFlow::Continue(())).unwrap();
}
