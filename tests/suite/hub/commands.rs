//! The programs, with a model's name where a path may stand.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::stand_in::{COMMIT, Hub, demo, sha256};
use super::{mlx_lm, program, stderr, stdout};

const QUESTION: [&str; 3] = ["-m", "org/demo", "What colour is the sky?"];

#[test]
fn a_name_is_downloaded_once_and_then_found() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let cache = scratch.path();
    let output = mlx_lm(&hub, cache, &QUESTION);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stdout(output), "The sky is blue.\n".trim_end());
    assert!(said.contains("downloading org/demo: ") && said.contains("  model.safetensors 3."), "{said}");
    let requests = hub.requests().len();

    let output = mlx_lm(&hub, cache, &QUESTION);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout(output), "The sky is blue.");
    assert_eq!(stdout(mlx_lm(&hub, cache, &["-m", "org/demo@0123456", "--offline", QUESTION[2]])), "The sky is blue.");
    assert_eq!(hub.requests().len(), requests, "what is in the cache needs no hub");
}
