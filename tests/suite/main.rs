//! The integration tests, as one binary: MLX starts once, and every module shares the helpers here.

mod fidelity;

use std::path::PathBuf;

/// A path below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
