//! Prompts that are read once, and texts that are measured.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use mlx_lm::generate::kv_cache::CacheLimits;
use mlx_lm::generate::perplexity::{Past, losses};
use mlx_lm::{Checkpoint, Model, Watch};
use serde_json::Value;

use crate::{fixture, unpack_demo};

/// Run `mlx_lm`; exit code, stdout, stderr without the demo's notice.
fn run(args: &[&str], root: &Path) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mlx_lm")).args(args).current_dir(root).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let stderr: String =
        stderr.lines().filter(|l| !l.starts_with("using the demo")).map(|l| format!("{l}\n")).collect();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), stderr)
}

const STORY: &str = "The old lighthouse had been dark for a hundred years. Nobody went there but a fox called Lucy.";

#[test]
fn a_cached_prompt_gives_the_text_that_reading_it_gives() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::write(root.join("story"), STORY).unwrap();
    let (code, _, stderr) =
        run(&["cache-prompt", "--raw", "--prompt-file", "story", "--output", "x.safetensors"], root);
    assert_eq!((code, stderr.starts_with("cached ")), (Some(0), true), "{stderr}");

    let whole = format!("{STORY} One day");
    let args = ["--raw", "--prompt", &whole, "--max-tokens", "16", "--temp", "0.7", "--repetition-penalty", "1.3"];
    let (_, plain, _) = run(&args, root);
    let (code, cached, stderr) = run(&[&args[..], &["--prompt-cache", "x.safetensors"]].concat(), root);
    assert_eq!((code, &cached, stderr.as_str()), (Some(0), &plain, ""));

    // A prompt that diverges from the cached one uses what they share; chat templates end in something of their own.
    let other = ["--prompt", "The old lighthouse was bright.", "--raw", "--max-tokens", "8"];
    let (_, plain, _) = run(&other, root);
    let (code, cached, stderr) = run(&[&other[..], &["--prompt-cache", "x.safetensors"]].concat(), root);
    assert_eq!((code, cached), (Some(0), plain));
    assert!(stderr.starts_with("[WARN] of the ") && stderr.contains("only the first "), "{stderr}");

    // The same model as a directory is the same model.
    unpack_demo(&root.join("demo"));
    let (code, _, stderr) =
        run(&[&args[..], &["--prompt-cache", "x.safetensors", "--model-root", "demo"]].concat(), root);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let (code, _, stderr) = run(&["cache-prompt", "--prompt", "x", "--output", "x.safetensors"], root);
    assert_eq!((code, stderr.as_str()), (Some(1), "error: x.safetensors: exists already; --force replaces it\n"));
    let (code, _, stderr) = run(&["cache-prompt", "--prompt", "x", "--output", "no/where/x"], root);
    assert_eq!((code, stderr.as_str()), (Some(1), "error: no/where: No such file or directory (os error 2)\n"));
}

#[test]
fn a_cache_that_evicted_can_only_be_appended_to() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let limits = ["--context-size", "24", "--num-sink-tokens", "2"];
    let prompt = |text: &str| ["--raw".to_owned(), "--prompt".to_owned(), text.to_owned()];
    let with = |args: &[&str], text: &str| {
        let prompt = prompt(text);
        let args: Vec<&str> = args.iter().copied().chain(prompt.iter().map(String::as_str)).collect();
        run(&args, root)
    };
    let (code, _, stderr) = with(&[&["cache-prompt", "--output", "x"][..], &limits].concat(), &STORY.repeat(2));
    assert!(code == Some(0) && !stderr.contains(" 0 of them"), "{stderr}");
    let generate = [&["--prompt-cache", "x", "--max-tokens", "4"][..], &limits].concat();
    let (code, text, stderr) = with(&generate, &(STORY.repeat(2) + " One day"));
    assert!(code == Some(0) && !text.is_empty(), "{stderr}");
    let (code, _, stderr) = with(&generate, "The old lighthouse");
    assert!(code == Some(1) && stderr.contains("leave the cache out"), "{stderr}");
    let (code, _, stderr) = with(&generate, &STORY.replace("Lucy", "Emma").repeat(2));
    assert!(code == Some(1) && stderr.contains("part after") && stderr.contains("only"), "{stderr}");
    let (code, _, stderr) = with(&["--prompt-cache", "x", "--context-size", "25"], &(STORY.repeat(2) + " One day"));
    assert!(code == Some(1) && stderr.contains("context size of 24, 2 sinks"), "{stderr}");
}

#[test]
fn a_file_that_is_not_this_models_cache_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    run(&["cache-prompt", "--prompt", STORY, "--output", "x"], root);
    let good = fs::read(root.join("x")).unwrap();
    let refused = |bytes: &[u8], expected: &str| {
        fs::write(root.join("bad"), bytes).unwrap();
        let (code, stdout, stderr) = run(&["--prompt", STORY, "--prompt-cache", "bad"], root);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(1), "", 1), "{stderr}");
        assert!(stderr.starts_with("error: bad: ") && stderr.contains(expected), "{expected}: {stderr}");
    };
    refused(&good[..good.len() - 1], "not a prompt cache");
    refused(b"", "not a prompt cache");
    let weights = fs::read(fixture("checkpoints/llama-f32/model.safetensors")).unwrap();
    refused(&weights, "`mlx_lm cache-prompt` makes them");
    let with = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = good.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        [&good[..at], to.as_bytes(), &good[at + from.len()..]].concat()
    };
    refused(&with("context_size\\\":1024", "context_size\\\":0001"), "not a prompt cache");
    refused(&with("context_size\\\":1024", "context_size\\\":   4"), "counts contradict");
    refused(&with("\\\"evicted\\\":0", "\\\"evicted\\\":9"), "counts contradict");
    refused(&with("\\\"context_size\\\":1024", "\\\"context_size\\\":-999"), "counts contradict");
    refused(&with("\\\"untrimmable\\\":0", "\\\"untrimmable\\\":-"), "not a prompt cache");
    // The same shapes with other values are another model.
    unpack_demo(&root.join("tuned"));
    let weights = root.join("tuned/model.safetensors");
    let mut tuned = fs::read(&weights).unwrap();
    let data = 8 + u64::from_le_bytes(tuned[..8].try_into().unwrap()) as usize;
    tuned[data] ^= 1;
    fs::write(weights, tuned).unwrap();
    let (code, _, stderr) = run(&["--prompt", "x", "--prompt-cache", "x", "--model-root", "tuned"], root);
    assert!(code == Some(1) && stderr.contains("was made with another model"), "{stderr}");
    let model = fixture("checkpoints/llama-chat");
    let (code, _, stderr) =
        run(&["--prompt", "x", "--prompt-cache", "x", "--model-root", model.to_str().unwrap()], root);
    assert!(code == Some(1) && stderr.contains("was made with another model"), "{stderr}");
}

/// In one pass, in chunks through a streaming cache, and token by token: the same losses; and they are what the model's
/// own logits say.
#[test]
fn losses_are_those_of_single_tokens() {
    crate::compute_on_cpu();
    let model = Model::load(&Checkpoint::open(fixture("checkpoints/llama-f32")).unwrap(), &mut Watch::none()).unwrap();
    let ids: Vec<u32> = (0..90u32).map(|i| (i * i * 5 + i) % 250).collect();
    let all = |past| {
        let mut found = Vec::new();
        let mut watch = Watch::none();
        let evicted = losses(&model, &ids, past, &mut watch, &mut |first, losses| {
            assert_eq!(first, found.len() + 1);
            found.extend_from_slice(losses);
            ControlFlow::Continue(())
        });
        (found, evicted.unwrap())
    };
    let limits = |context_size| CacheLimits { context_size, num_sink_tokens: 3, eviction_batch_percent: 25 };
    for context_size in [200, 20] {
        let (found, evicted) = all(Past::Cached(limits(context_size)));
        assert_eq!((found.len(), evicted > 60), (89, context_size == 20));
        let mut cache = model.new_cache(limits(context_size));
        for (i, found) in found.iter().enumerate() {
            let logits: Vec<f32> = crate::decode(&model, ids[i], &mut cache).to_vec_cast().unwrap();
            let exp = |x: &f32| f64::from(*x).exp();
            let expected = -(exp(&logits[ids[i + 1] as usize]) / logits.iter().map(exp).sum::<f64>()).ln();
            assert!(
                (f64::from(*found) - expected).abs() < 1e-4,
                "context {context_size}, token {i}: {found}, {expected}"
            );
        }
        assert_eq!(cache.evicted(), evicted);
    }
    // Read again each time, a window that holds everything changes nothing, and a short one forgets.
    let (dense, _) = all(Past::Cached(limits(200)));
    let (again, _) = all(Past::Recomputed(200));
    assert!(dense.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-4));
    let (short, _) = all(Past::Recomputed(1));
    assert!(dense.iter().zip(&short).skip(1).all(|(a, b)| a != b));
    assert!((dense[0] - short[0]).abs() < 1e-4);
}

#[test]
fn perplexity_is_printed_by_position_and_overall() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::write(root.join("text"), STORY).unwrap();
    let args = ["perplexity", "--file", "text", "--bucket", "8", "--context-size", "16", "--num-sink-tokens", "2"];
    let (code, jsonl, _) = run(&[&args[..], &["--format", "jsonl"]].concat(), root);
    assert_eq!(code, Some(0));
    let lines: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (done, buckets) = lines.split_last().unwrap();
    let tokens = |line: &Value| line["tokens"].as_u64().unwrap();
    assert_eq!(buckets.iter().map(tokens).sum::<u64>(), tokens(done));
    let mean =
        buckets.iter().map(|b| b["loss"].as_f64().unwrap() * tokens(b) as f64).sum::<f64>() / tokens(done) as f64;
    assert!((mean - done["loss"].as_f64().unwrap()).abs() < 1e-9);
    assert!((mean.exp() - done["perplexity"].as_f64().unwrap()).abs() < 1e-9);
    assert_eq!((buckets[1]["first"].as_u64(), done["num_sink_tokens"].as_u64()), (Some(9), Some(2)));
    assert!(done["evicted_tokens"].as_u64().unwrap() > 0);
    let (_, text, _) = run(&args, root);
    assert!(text.starts_with("tokens 1-8: loss ") && text.lines().last().unwrap().starts_with("all "), "{text}");
    assert_eq!(run(&["perplexity", "--file", "nowhere"], root).0, Some(1));
    let (code, again, _) = run(&["perplexity", "--file", "text", "--recompute", "--context-size", "3"], root);
    assert!(code == Some(0) && again.contains("; 0 evicted; "), "{again}");
    let (_, _, stderr) = run(&[&args[..5], &["--context-size", "16", "--num-sink-tokens", "0"]].concat(), root);
    assert!(stderr.contains("without sink tokens"), "{stderr}");
    fs::write(root.join("empty"), "").unwrap();
    let (code, _, stderr) = run(&["perplexity", "--file", "empty"], root);
    assert!(code == Some(1) && stderr.contains("nothing to predict"), "{stderr}");
}
