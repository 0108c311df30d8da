//! The models of a server, what is kept of their prompts, and what is told of both.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Server, content, mlx_lm, two_models, user};
use crate::compute_on_cpu;

#[test]
fn models_tokens_health_and_metrics_are_told() {
    compute_on_cpu();
    let server = Server::start(&[]);
    let models = server.get("/v1/models").ok();
    assert_eq!((&models["data"][0]["id"], models["data"].as_array().unwrap().len()), (&json!("demo"), 1));
    assert_eq!(server.get("/v1/models/demo").ok(), models["data"][0]);
    let told: Value =
        serde_json::from_str(&mlx_lm(&["tokenize", "--raw", "--prompt", "Hello there", "--format", "json"])).unwrap();
    let tokens = server.post("/v1/tokenize", &json!({"prompt": "Hello there", "return_token_strs": true})).ok();
    assert_eq!(
        (&tokens["tokens"], &tokens["token_strs"], &tokens["count"]),
        (&told["ids"], &told["pieces"], &json!(3))
    );
    assert_eq!(server.post("/v1/detokenize", &json!({"tokens": told["ids"]})).ok()["prompt"], "Hello there");
    let told: Value = serde_json::from_str(&mlx_lm(&["tokenize", "--prompt", "Hi", "--format", "json"])).unwrap();
    assert_eq!(server.post("/v1/tokenize", &json!({"messages": user("Hi")})).ok()["tokens"], told["ids"]);
    assert_eq!(server.get("/health").ok()["status"], "ok");

    let answer = server.chat(&json!({"messages": user("What colour is the sky?")})).ok();
    let usage = |name: &str| answer["usage"][name].as_f64().unwrap();
    assert_eq!(server.metric("mlx_lm_prompt_tokens_total"), usage("prompt_tokens"));
    assert_eq!(server.metric("mlx_lm_generated_tokens_total"), usage("completion_tokens"));
    assert_eq!(server.metric("mlx_lm_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(server.metric(r#"mlx_lm_requests_total{path="/v1/chat/completions",result="200"}"#), 1.0);
    assert_eq!(server.metric(r#"mlx_lm_sequences_total{reason="stop"}"#), 1.0);
    assert!(server.metric("mlx_lm_cache_bytes") > 0.0);
}

#[test]
fn what_a_prompt_begins_with_is_read_once_also_after_a_restart() {
    compute_on_cpu();
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("prompts");
    let dir = store.to_str().unwrap();
    let story =
        "The old lighthouse had been dark for a hundred years. Nobody went there but a fox called Lucy. ".repeat(3);
    let body = |end: &str| json!({"prompt": format!("{story}{end}"), "max_tokens": 4});
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let server = Server::start(&["--prompt-cache-dir", dir]);
    let first = server.post("/v1/completions", &body("One day")).ok();
    let second = server.post("/v1/completions", &body("At night")).ok();
    let (read, again) = (cached(&first), cached(&second));
    assert!(read == 0 && again > 50 && again < second["usage"]["prompt_tokens"].as_u64().unwrap(), "{first} {second}");
    assert_eq!(server.metric("mlx_lm_cached_tokens_total"), again as f64);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.end().0, Some(0));
    let files = || fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let kept = files();
    assert!(!kept.is_empty() && kept.iter().all(|path| path.extension() == Some("safetensors".as_ref())), "{kept:?}");

    // What is no such file is left alone, with one warning; what a killed process left is cleared away.
    fs::write(store.join("notes.txt"), "not a cache").unwrap();
    fs::write(store.join("other.safetensors"), "not a cache").unwrap();
    fs::write(store.join(".x.safetensors.mlxpack-partial"), "half").unwrap();
    // Another model's is not looked into, and of this model's only the sixteen that were of use last stay.
    let foreign = store.join("0123456789abcdef-0123456789abcdef.safetensors");
    fs::write(&foreign, "another model's").unwrap();
    let model = kept[0].file_name().unwrap().to_str().unwrap().split_once('-').unwrap().0;
    let stale: Vec<PathBuf> = (0..20).map(|i| store.join(format!("{model}-{i:016x}.safetensors"))).collect();
    for path in &stale {
        fs::copy(&kept[0], path).unwrap();
        fs::File::options().append(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let server = Server::start(&["--prompt-cache-dir", dir]);
    let third = server.post("/v1/completions", &body("At night")).ok();
    assert!(cached(&third) > 50, "{third}");
    assert_eq!(third["choices"], second["choices"]);
    server.signal(Signal::SIGTERM);
    let (code, said) = server.end();
    assert!(code == Some(0) && said.matches("[WARN]").count() == 1, "{said}");
    assert!(said.contains("ignored, as 1 others are"), "{said}");
    let left = files();
    assert!(
        left.contains(&store.join("notes.txt"))
            && left.contains(&foreign)
            && left.iter().filter(|path| stale.contains(path)).count() == 16 - kept.len()
            && kept.iter().all(|path| left.contains(path))
            && left.iter().all(|path| !path.to_str().unwrap().ends_with("mlxpack-partial")),
        "{left:?}"
    );

    // A damaged one costs its prompt.
    for path in files().iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(model)) {
        let mut bytes = fs::read(path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let server = Server::start(&["--prompt-cache-dir", dir]);
    let fourth = server.post("/v1/completions", &body("At night")).ok();
    assert_eq!((cached(&fourth), &fourth["choices"]), (0, &second["choices"]));
    // It is written anew when it is of use again.
    server.post("/v1/completions", &body("At noon")).ok();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.end().0, Some(0));
    let server = Server::start(&["--prompt-cache-dir", dir]);
    let fifth = server.post("/v1/completions", &body("At night")).ok();
    assert!(cached(&fifth) > 50, "{fifth}");
    assert_eq!(fifth["choices"], second["choices"]);
}

#[test]
fn models_are_loaded_when_they_are_asked_for_and_let_go_when_idle() {
    compute_on_cpu();
    let scratch = tempfile::tempdir().unwrap();
    let [first, second] = two_models(scratch.path());
    let server = Server::start(&["--model-root", &first, "--model-root", &second, "--idle-unload", "1"]);
    let names: Vec<Value> =
        server.get("/v1/models").ok()["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(names, ["first", "tools"]);
    let ask = |model: &str| server.chat(&json!({"model": model, "messages": user("What colour is the sky?")})).ok();
    assert_eq!(content(&ask("first")), "The sky is blue.");
    assert_eq!(ask("tools")["model"], "tools");
    server.wait_for("mlx_lm_loaded_models", 0.0);
    assert_eq!(server.get("/health").ok()["status"], "idle");
    assert_eq!(content(&ask("first")), "The sky is blue.");
    assert_eq!(server.metric("mlx_lm_loaded_models"), 1.0);

    let same = ["serve", "--port", "0", "--model-root", &first, "--model-root", &first];
    let output = Command::new(env!("CARGO_BIN_EXE_mlx_lm")).args(same).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    let missing = ["serve", "--port", "0", "--model-root", "/nowhere"];
    let output = Command::new(env!("CARGO_BIN_EXE_mlx_lm")).args(missing).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}
