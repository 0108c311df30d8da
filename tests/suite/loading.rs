//! What loading must notice or let pass.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlx_lm::generate::kv_cache::CacheLimits;
use mlx_lm::{Checkpoint, Error, Model, Watch};
use safetensors::SafeTensors;

use crate::{fixture, unpack_demo};

/// Logits of a few tokens, through an empty cache, of a directory or a pack.
pub fn logits(root: &Path) -> Vec<f32> {
    crate::compute_on_cpu();
    let model = Model::load(&Checkpoint::open(root).unwrap(), &mut Watch::none()).unwrap();
    crate::prefill(&model, &[3, 17, 60], &mut model.new_cache(CacheLimits::new(8))).to_vec_cast().unwrap()
}

/// A quantized embedding's `scales` and `biases` take part in lookup and, tied, in the output projection.
#[test]
fn an_embeddings_scales_and_biases_change_the_output() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    let file = scratch.path().join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let before = logits(scratch.path());
    let header_length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&good[8..8 + header_length]).unwrap();
    for tensor in ["scales", "biases"] {
        let offsets = &header[format!("model.embed_tokens.{tensor}")]["data_offsets"];
        let (start, end) = (offsets[0].as_u64().unwrap() as usize, offsets[1].as_u64().unwrap() as usize);
        let mut changed = good.clone();
        // The sign of the first value of each row of a 16-bit float tensor [2048, groups].
        let row = (end - start) / 2048;
        for value in (8 + header_length + start..8 + header_length + end).step_by(row) {
            changed[value + 1] ^= 0x80;
        }
        fs::write(&file, changed).unwrap();
        let after = logits(scratch.path());
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!(moved > before.len() * 9 / 10, "{tensor}: only {moved} of {} logits moved", before.len());
    }
}

/// Copy a fixture checkpoint, without what is not part of a checkpoint.
fn copy(name: &str, to: &Path) {
    for entry in fs::read_dir(fixture("checkpoints").join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn shards_are_found_without_an_index_or_with_a_stale_one() {
    let scratch = tempfile::tempdir().unwrap();
    copy("llama-sharded", scratch.path());
    let expected = logits(scratch.path());
    let index = scratch.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"model.norm.weight": "gone.safetensors"}}"#).unwrap();
    assert_eq!(logits(scratch.path()), expected);
    fs::remove_file(&index).unwrap();
    assert_eq!(logits(scratch.path()), expected);
}

#[test]
fn a_cache_grows_in_steps_and_never_beyond_the_context() {
    crate::compute_on_cpu();
    let model = Model::load(&Checkpoint::open(fixture("checkpoints/llama-f32")).unwrap(), &mut Watch::none()).unwrap();
    let context = 300;
    let mut cache = model.new_cache(CacheLimits::new(context));
    for chunk in [200, 50, 1, 5, 43, 1] {
        crate::prefill(&model, &vec![5; chunk], &mut cache);
        let capacity = if cache.len() <= 256 { 256 } else { context };
        assert!(cache.arrays().all(|a| a.dim(2) == capacity), "{} tokens", cache.len());
    }
    assert_eq!(cache.len(), context);
    for chunk in [1, 100, 1, 40] {
        crate::prefill(&model, &vec![5; chunk], &mut cache);
        assert!(cache.arrays().all(|a| a.dim(2) == context), "after an eviction");
    }
    assert_eq!((cache.seen(), cache.evicted() > 0), (442, true));
}

#[test]
fn a_load_is_watched_from_its_first_byte_to_its_last_and_stops_between() {
    crate::compute_on_cpu();
    let checkpoint = Checkpoint::open(fixture("checkpoints/llama-sharded")).unwrap();
    let load = |limit: u64| {
        let stop = Arc::new(AtomicBool::new(false));
        let mut told = Vec::new();
        let on_progress = &mut |done, total| {
            told.push((done, total));
            stop.store(done >= limit, Ordering::Relaxed);
        };
        let loaded = Model::load(&checkpoint, &mut Watch { on_progress, stop: &stop });
        (loaded, told)
    };
    let (whole, told) = load(u64::MAX);
    let total = told[0].1;
    assert!(whole.is_ok() && told.len() > 10 && told.is_sorted() && told.iter().all(|(_, of)| *of == total));
    assert_eq!((told[0].0, told.last().unwrap().0), (0, total));
    for limit in [0, 1, total / 2] {
        let (stopped, told) = load(limit);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{limit} of {total}");
        let late = told.iter().filter(|(done, _)| *done >= limit).count();
        assert_eq!(late, 1, "nothing is loaded after {limit} of {total}: {told:?}");
    }
}

/// Repeat a fixture's first layer until loading it takes a while.
fn write_deep_model(layers: usize, root: &Path) {
    let source = fixture("checkpoints/llama-f32");
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    let deep = config.replace("\"num_hidden_layers\": 2", &format!("\"num_hidden_layers\": {layers}"));
    assert_ne!(config, deep);
    fs::write(root.join("config.json"), deep).unwrap();
    let file = fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let mut all = Vec::new();
    for (name, view) in tensors.tensors() {
        match name.split_once("layers.0.") {
            Some((before, after)) => {
                all.extend((0..layers).map(|i| (format!("{before}layers.{i}.{after}"), view.clone())));
            }
            None if name.contains("layers.") => {}
            None => all.push((name, view)),
        }
    }
    safetensors::serialize_to_file(all, None, &root.join("model.safetensors")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("checkpoints/llama-chat").join(file), root.join(file)).unwrap();
    }
}

/// Ctrl-C while the weights are taken: a program that only ended would not say so, and one that went on would say more. Where
/// this test is not given time to send it before the load has ended, it tries again.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_stops_a_load() {
    use nix::sys::signal::{Signal, kill};
    let scratch = tempfile::tempdir().unwrap();
    write_deep_model(1000, scratch.path());
    let interrupted = |_| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
        program.args(["--prompt", "Hi", "--max-tokens", "1", "--model-root"]).arg(scratch.path());
        let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let maps = format!("/proc/{}/maps", child.id());
        while !fs::read_to_string(&maps).unwrap().contains("model.safetensors") {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it loaded");
        }
        kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    let expected = (Some(130), Vec::new(), "interrupted\n".to_owned());
    let found: Vec<_> = (0..5).map(interrupted).take_while(|found| *found != expected).collect();
    assert!(found.len() < 5, "{found:?}");
}
