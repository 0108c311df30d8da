//! What goes wrong around a running model: memory, files, damaged numbers, interruptions. None of it ends the process by a
//! signal, and each says what happened.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlx_lm::backend::Phase;
use mlx_lm::backend::cpu::InstructionSet;
use mlx_lm::generate::kv_cache::CacheLimits;
use mlx_lm::generate::prompt_cache::PromptCache;
use mlx_lm::generate::{Engine, EngineOptions, Event, FinishReason, Request};
use mlx_lm::models::batch::{Batch, Span};
use mlx_lm::{Checkpoint, Error, GenerateOptions, Model, Watch};
use mlx_rs::ops::indexing::{IntoStrideBy, TryIndexOp};
use mlx_rs::{Array, Dtype};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::{compute_on_cpu, fixture, unpack_demo};

fn mlx_lm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
    command.args(args).stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The demo's tokenizer with a large model whose weights are zeros that take no room on disk.
fn sparse_model(root: &Path) {
    const HIDDEN: usize = 1024;
    unpack_demo(root);
    let mut tensors = serde_json::Map::new();
    let mut end = 0;
    let mut add = |name: String, shape: &[usize]| {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        tensors.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    };
    add("model.embed_tokens.weight".into(), &[2048, HIDDEN]);
    add("model.norm.weight".into(), &[HIDDEN]);
    for layer in 0..2 {
        let name = |module: &str| format!("model.layers.{layer}.{module}.weight");
        add(name("input_layernorm"), &[HIDDEN]);
        add(name("post_attention_layernorm"), &[HIDDEN]);
        for module in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(name(&format!("self_attn.{module}")), &[HIDDEN, HIDDEN]);
        }
        add(name("mlp.gate_proj"), &[4 * HIDDEN, HIDDEN]);
        add(name("mlp.up_proj"), &[4 * HIDDEN, HIDDEN]);
        add(name("mlp.down_proj"), &[HIDDEN, 4 * HIDDEN]);
    }
    let header = Value::Object(tensors).to_string();
    let mut file = File::create(root.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 16, "rms_norm_eps": 1e-5, "vocab_size": 2048, "max_position_embeddings": 4096,
        "tie_word_embeddings": true,
    });
    fs::write(root.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn memory_that_runs_out_is_an_error_that_says_for_what() {
    let scratch = tempfile::tempdir().unwrap();
    sparse_model(scratch.path());
    let prompt = scratch.path().join("prompt.txt");
    fs::write(&prompt, "the old house by the sea was dark ".repeat(100)).unwrap();
    let mut told = Vec::new();
    for kernels in ["portable", "mlx"] {
        for megabytes in (100..300).step_by(25) {
            // MLX's own kernels would take minutes for a long prompt.
            let input =
                if kernels == "mlx" { "--prompt=hi".to_owned() } else { format!("--prompt-file={}", prompt.display()) };
            let script = format!("ulimit -v {megabytes}000; exec \"$0\" \"$@\"");
            let output = Command::new("sh")
                .args(["-c", &script, env!("CARGO_BIN_EXE_mlx_lm"), "--raw", "-n1", &input, "-m"])
                .arg(scratch.path())
                .env("MLX_LM_KERNELS", kernels)
                .env("RUST_BACKTRACE", "0")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let (code, stderr) = (output.status.code(), stderr(&output));
            // Below some size not even the program's libraries load.
            assert!(matches!(code, Some(0 | 1 | 127)), "{kernels}, {megabytes} MB: {:?}: {stderr}", output.status);
            if code == Some(1) {
                assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{megabytes} MB: {stderr}");
                told.extend(stderr.contains("out of memory: ").then_some((kernels, stderr)));
            }
        }
    }
    for kernels in ["portable", "mlx"] {
        assert!(told.iter().any(|(set, message)| *set == kernels && message.contains(" bytes ")), "{told:?}");
    }
}

#[test]
fn a_weights_file_that_is_cut_off_is_told_and_the_text_so_far_stays() {
    for pack in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let (root, file) = match pack {
            false => {
                unpack_demo(scratch.path());
                (scratch.path().to_owned(), scratch.path().join("model.safetensors"))
            }
            true => {
                let file = scratch.path().join("demo.mlxpack");
                fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.mlxpack"), &file).unwrap();
                (file.clone(), file)
            }
        };
        let args =
            ["-p", "Tell me a story", "--ignore-eos", "--context-size", "64", "-n", "1000000", "--format", "jsonl"];
        let mut child = mlx_lm(&args)
            .arg("-m")
            .arg(&root)
            .env("MLX_LM_KERNELS", "portable")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut events = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(|line| -> Value { serde_json::from_str(&line.unwrap()).unwrap() });
        let mut text = String::new();
        let mut done = None;
        for i in 0.. {
            if i == 5 {
                File::options().write(true).open(&file).unwrap().set_len(200_000).unwrap();
            }
            let event = events.next().expect("the last event says that it is done");
            match event["event"].as_str().unwrap() {
                "done" => {
                    done = Some(event);
                    break;
                }
                _ => text.push_str(event["text"].as_str().unwrap_or_default()),
            }
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("{}: was cut off", file.display())), "{}", stderr(&output));
        let done = done.unwrap();
        assert_eq!((&done["finish_reason"], &done["text"]), (&"error".into(), &text.into()));
        assert!(done["error"].as_str().unwrap().contains("was cut off"), "{done}");
    }
}

/// Overwrite a tensor's numbers, and give its place in the file.
fn spoil(file: &Path, tensor: &str, byte: u8) {
    let mut bytes = fs::read(file).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr_range();
    let start = data.start as usize - bytes.as_ptr() as usize;
    let end = data.end as usize - bytes.as_ptr() as usize;
    bytes[start..end].fill(byte);
    fs::write(file, bytes).unwrap();
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    spoil(&scratch.path().join("model.safetensors"), "model.norm.weight", 0xff);
    let text = scratch.path().join("text.txt");
    fs::write(&text, "The sky is blue.").unwrap();
    let root = scratch.path().to_str().unwrap();
    let runs: [&[&str]; 6] = [
        &["-p", "Hello", "-m", root],
        &["-p", "Hello", "-m", root, "-t", "0.8", "--top-p", "0.9"],
        &["-p", "Hello", "-m", root, "--format", "jsonl", "--logprobs", "2"],
        // The token after one that was not chosen is computed ahead, with penalties on it.
        &["-p", "Hello", "-m", root, "-n", "30", "--repetition-penalty", "1.1"],
        &["-p", "Hello", "-n", "30", "--frequency-penalty", "-3.4e38", "--presence-penalty", "-3e38"],
        &["perplexity", "-m", root, "--file", text.to_str().unwrap()],
    ];
    for kernels in ["mlx", "portable", InstructionSet::best().name()] {
        for args in runs {
            let output = mlx_lm(args).env("MLX_LM_KERNELS", kernels).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{kernels} {args:?}: {}", stderr(&output));
            assert!(stderr(&output).contains("NaN or infinity"), "{kernels} {args:?}: {}", stderr(&output));
        }
        let ban: Vec<String> = (0..2048).map(|id| format!("--logit-bias={id}=-inf")).collect();
        let output = mlx_lm(&["-p", "Hello"]).args(ban).env("MLX_LM_KERNELS", kernels).output().unwrap();
        assert!(stderr(&output).contains("ban every token"), "{kernels}: {}", stderr(&output));
    }
}

fn llama() -> Model {
    compute_on_cpu();
    Model::load(&Checkpoint::open(fixture("checkpoints/llama-f32")).unwrap(), &mut Watch::none()).unwrap()
}

/// The logits of a fresh pass over `ids` `[N]`.
fn logits(model: &Model, ids: &Array) -> Result<Vec<f32>, Error> {
    let mut cache = model.new_cache(CacheLimits::new(64));
    let span = Span { cache: &mut cache, tokens: ids.size() as i32, phase: Phase::Prefill };
    let hidden = model.forward(&mut Batch::new(ids.clone(), vec![span])?)?;
    let logits = model.logits(&hidden, 0..hidden.dim(0), Phase::Prefill)?;
    model.evaluate([&logits])?;
    Ok(logits.to_vec_cast().unwrap())
}

#[test]
fn ids_of_another_kind_are_an_error_or_what_they_say() {
    let model = llama();
    let ids = Array::from_slice(&[3u32, 14, 15, 9, 26, 5], &[6]);
    let expected = logits(&model, &ids).unwrap();
    let strided = Array::from_slice(&[3u32, 0, 14, 0, 15, 0, 9, 0, 26, 0, 5, 0], &[12]);
    let strided = strided.try_index((0..12).stride_by(2)).unwrap();
    assert_eq!(logits(&model, &strided).unwrap(), expected);

    let signed = logits(&model, &ids.as_dtype(Dtype::Int32).unwrap()).unwrap_err().to_string();
    assert!(signed.contains("Uint32") && signed.contains("Int32"), "{signed}");
    assert!(logits(&model, &ids.reshape(&[1, 6]).unwrap()).is_err());

    if compute_on_cpu() {
        let vocab_size = model.config().vocab_size as u32;
        let beyond = logits(&model, &Array::from_slice(&[3u32, vocab_size], &[2])).unwrap_err().to_string();
        assert!(beyond.contains(&format!("token {vocab_size} has no embedding")), "{beyond}");
    }
    assert_eq!(logits(&model, &ids).unwrap(), expected, "the model is as good as before");
}

#[test]
fn reading_stops_within_a_chunk_and_counts_what_was_read() {
    compute_on_cpu();
    let ids: Vec<u32> = (0..600u32).map(|i| 300 + i * 7 % 1500).collect();
    let options = GenerateOptions { prefill_step: 256, max_tokens: 1, ..GenerateOptions::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let engine = EngineOptions { stop: Arc::clone(&stop), ..EngineOptions::default() };
    let engine = Engine::load(Checkpoint::demo().unwrap(), engine).unwrap();
    let stopped_at = |limit: usize, prompt_cache: Option<PromptCache>| {
        stop.store(false, Ordering::Relaxed);
        let request = Request { prompt: ids.clone(), options: options.clone(), prompt_cache };
        let mut generation = engine.submit(request).unwrap();
        let (mut seen, mut token) = (Vec::new(), None);
        while let Some(event) = generation.next_event() {
            match event {
                Event::Reading { done, total } => {
                    assert_eq!(total, ids.len());
                    seen.push(done);
                    stop.store(done >= limit, Ordering::Relaxed);
                }
                Event::Delta(delta) => token = Some(delta.token.id),
                Event::Read { .. } | Event::Finished(_) => {}
            }
        }
        let reason = generation.finish_reason().unwrap();
        assert_eq!(reason == FinishReason::Abort, token.is_none());
        (token, generation.stats().unwrap().read_tokens, seen)
    };
    let (none, read, seen) = stopped_at(300, None);
    assert!(none.is_none() && (256..600).contains(&read) || !compute_on_cpu(), "{read}: {seen:?}");
    let (whole, read, seen) = stopped_at(usize::MAX, None);
    assert!(whole.is_some() && read == ids.len() && seen.is_sorted(), "{seen:?}");

    // What is cached of a prompt whose reading was stopped is as good as any.
    let prompt = ids.clone();
    let cached = engine.call(move |model| {
        let stop = Arc::new(AtomicBool::new(false));
        let on_progress = &mut |done, _| stop.store(done > 400, Ordering::Relaxed);
        let mut watch = Watch { on_progress, stop: &stop };
        PromptCache::new(model, &prompt, CacheLimits::new(2048), 256, &mut watch).unwrap()
    });
    let cached = cached.unwrap();
    assert_eq!(cached.ids(), &ids[..256]);
    let (token, read, _) = stopped_at(usize::MAX, Some(cached));
    assert_eq!((token, read), (whole, ids.len() - 256));
}

/// A copy of a fixture's checkpoint whose norms are f32.
fn with_wide_norms(name: &str, root: &Path) {
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let _ = fs::copy(fixture("checkpoints").join(name).join(file), root.join(file));
    }
    let bytes = fs::read(fixture("checkpoints").join(name).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let wide = |data: &[u8]| -> Vec<u8> { data.chunks(2).flat_map(|bf16| [0, 0, bf16[0], bf16[1]]).collect() };
    let all: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| match name.contains("norm") {
            true => (name, safetensors::Dtype::F32, view.shape().to_vec(), wide(view.data())),
            false => (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        })
        .collect();
    let views = all.iter().map(|(name, dtype, shape, data)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(root.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_prompt_cache_is_read_by_the_model_that_wrote_it_whole_and_by_no_other() {
    compute_on_cpu();
    let scratch = tempfile::tempdir().unwrap();
    with_wide_norms("llama-bf16", scratch.path());
    let load = |root: PathBuf| Model::load(&Checkpoint::open(root).unwrap(), &mut Watch::none()).unwrap();
    let model = load(scratch.path().to_owned());
    let ids = [3, 14, 15, 9, 26, 5, 35];
    let mut watch = Watch::none();
    let cache = PromptCache::new(&model, &ids, CacheLimits::new(64), 4, &mut watch).unwrap();
    let path = scratch.path().join("cache.safetensors");
    cache.save(&path, false).unwrap();
    assert_eq!(PromptCache::load(&path, &model).unwrap().ids(), ids);

    // Another model, by file and in memory.
    let other = load(fixture("checkpoints/llama-bf16"));
    let refused = PromptCache::load(&path, &other).unwrap_err().to_string();
    assert!(refused.contains("another model"), "{refused}");
    let demo = Engine::load(Checkpoint::demo().unwrap(), EngineOptions::default()).unwrap();
    let options = GenerateOptions::default();
    let request = Request { prompt: ids.to_vec(), options, prompt_cache: Some(cache.clone()) };
    let refused = demo.submit(request).unwrap().find_map(Result::err);
    assert!(refused.unwrap().to_string().contains("another model"));

    let model = load(scratch.path().to_owned());
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert!(PromptCache::load(&path, &model).is_err(), "a bit of byte {at} was turned");
    }
}

#[test]
fn what_has_no_end_is_not_read_to_it() {
    let runs: [&[&str]; 6] = [
        &["--prompt-file", "/dev/zero"],
        &["--messages", "/dev/zero"],
        &["-p", "x", "--tools", "/dev/zero"],
        &["--batch", "/dev/zero"],
        &["perplexity", "--file", "/dev/zero"],
        &["-p", "x", "--prompt-cache", "/dev/zero"],
    ];
    for args in runs {
        let output = mlx_lm(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        let stderr = stderr(&output);
        assert!(stderr.contains("67108864 bytes") || stderr.contains("not a regular file"), "{args:?}: {stderr}");
    }
}
