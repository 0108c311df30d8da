//! The integration tests, as one binary: MLX starts once, and every module shares the helpers here.

mod chat_template;
mod cli;
mod errors;
mod fidelity;
mod loading;
mod sampling;
mod tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

/// A path below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The text files that the demo model's one file carries.
const DEMO_TEXTS: [&str; 4] = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/// Write the demo model as a model directory: a good checkpoint, quantized and tied.
fn unpack_demo(root: &Path) {
    let bytes = include_bytes!("../../demo/demo.safetensors");
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let texts = header.metadata().as_ref().unwrap();
    for name in DEMO_TEXTS {
        fs::write(root.join(name), &texts[name]).unwrap();
    }
    fs::write(root.join("model.safetensors"), bytes).unwrap();
}
