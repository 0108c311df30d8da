//! Several ranks compute what one computes: logits, ids, whatever else is computed with them; and whatever goes wrong with one of
//! them, all end.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mlx_lm::backend::Phase;
use mlx_lm::backend::cpu::set_threads;
use mlx_lm::convert::{Change, ConvertOptions, FloatType, QuantizeOptions, convert};
use mlx_lm::generate::follow;
use mlx_lm::generate::kv_cache::{CacheLimits, KvCache};
use mlx_lm::models::batch::{Batch, Span};
use mlx_lm::ranks::{self, Source};
use mlx_lm::tensor_writer::{TensorHead, TensorWriter};
use mlx_lm::{Checkpoint, Model, Watch};
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::server::Server;
use crate::{compute_on_cpu, fixture, prefill};

const MLX_LM: &str = env!("CARGO_BIN_EXE_mlx_lm");
/// So many ranks share 8 heads, 4 key-value heads, 512 columns of an MLP in groups of 32, and 131 tokens of a vocabulary.
const SIZES: [usize; 2] = [2, 4];

/// A checkpoint of a fixture's family with random weights, wide enough to be shared out.
fn widened(name: &str, dtype: Dtype) -> TempDir {
    const HIDDEN: usize = 256;
    const VOCABULARY: usize = 131;
    let (queries, keys, expanded) = (8 * 32, 4 * 32, 512);
    let from = fixture("checkpoints").join(name);
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    let sizes = json!({"hidden_size": HIDDEN, "intermediate_size": expanded, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "head_dim": 32});
    config.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
    let of_all_heads = config["model_type"] == "olmo2";
    let file = fs::read(from.join("model.safetensors")).unwrap();
    let mut heads: Vec<TensorHead> = Vec::new();
    for (name, view) in SafeTensors::deserialize(&file).unwrap().tensors() {
        let module = name.rsplit('.').nth(1).unwrap();
        let (outputs, inputs) = match module {
            "embed_tokens" | "lm_head" => (VOCABULARY, HIDDEN),
            "q_proj" => (queries, HIDDEN),
            "k_proj" | "v_proj" => (keys, HIDDEN),
            "qkv_proj" => (queries + 2 * keys, HIDDEN),
            "o_proj" => (HIDDEN, queries),
            "gate_proj" | "up_proj" => (expanded, HIDDEN),
            "gate_up_proj" => (2 * expanded, HIDDEN),
            "down_proj" => (HIDDEN, expanded),
            "q_norm" => (if of_all_heads { queries } else { 32 }, 0),
            "k_norm" => (if of_all_heads { keys } else { 32 }, 0),
            _ => (HIDDEN, 0),
        };
        let shape = if view.shape().len() == 2 { vec![outputs, inputs] } else { vec![outputs] };
        heads.push(TensorHead { name, dtype, shape });
    }
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    let writer = TensorWriter::create(&weights, &heads, HashMap::new(), false).unwrap();
    let mut random = StdRng::seed_from_u64(1);
    for (i, TensorHead { shape, .. }) in heads.iter().enumerate() {
        let (middle, around) = if shape.len() == 2 { (0.0, 0.1) } else { (0.5f32, 0.5) };
        let numbers = (0..shape.iter().product()).map(|_| middle + around * (random.random::<f32>() - 0.5));
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            _ => numbers.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        };
        writer.write(i, 0, &bytes).unwrap();
    }
    writer.finish().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// The same, quantized.
fn quantized(name: &str, bits: i32, group_size: i32) -> TempDir {
    let (source, folder) = (widened(name, Dtype::F32), tempfile::tempdir().unwrap());
    let change = Change::Quantize(QuantizeOptions {
        bits: Some(bits),
        group_size: Some(group_size),
        ..QuantizeOptions::default()
    });
    let options = ConvertOptions { change, dtype: FloatType::from_name("float32"), ..ConvertOptions::default() };
    let target = folder.path().join("model");
    convert(&Checkpoint::open(source.path()).unwrap(), &target, &options, &mut Watch::none()).unwrap();
    for entry in fs::read_dir(&target).unwrap().map(Result::unwrap) {
        fs::rename(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn load(root: &Path) -> mlx_lm::Result<Model> {
    Model::load(&Checkpoint::open(root)?, &mut Watch::none())
}

/// Logits of what an engine does with caches: prompts in chunks, copies that go on, sequences together, tokens forgotten and
/// evicted.
fn logits(model: &Model) -> Vec<Vec<f32>> {
    let limits = CacheLimits { context_size: 40, num_sink_tokens: 4, eviction_batch_percent: 10 };
    let mut all = Vec::new();
    let mut keep = |logits: &Array| {
        // In rows of their own, wherever they lie.
        let logits = logits.as_type::<f32>().unwrap().multiply(Array::from_f32(1.0)).unwrap();
        model.evaluate([&logits]).unwrap();
        all.extend(logits.as_slice::<f32>().chunks(131).map(<[f32]>::to_vec));
    };
    let together = |tokens: &[u32], caches: Vec<(&mut KvCache, Phase)>| {
        let each = tokens.len() as i32 - (caches.len() as i32 - 1);
        let spans = caches.into_iter().enumerate().map(|(i, (cache, phase))| Span {
            cache,
            tokens: if i == 0 { each } else { 1 },
            phase,
        });
        let ids = Array::from_slice(tokens, &[tokens.len() as i32]);
        let hidden_states = model.forward(&mut Batch::new(ids, spans.collect()).unwrap()).unwrap();
        model.logits(&hidden_states, 0..tokens.len() as i32, Phase::Decode).unwrap()
    };
    let mut a = model.new_cache(limits);
    keep(&prefill(model, &[1, 5, 9, 130, 70, 2], &mut a));
    keep(&prefill(model, &[3, 4, 8, 100, 99, 98, 97], &mut a));
    let mut b = a.clone();
    for id in [7, 77, 130, 0] {
        keep(&together(&[id], vec![(&mut a, Phase::Decode)]));
    }
    b.trim(3).unwrap();
    let mut c = b.clone();
    keep(&together(&[11], vec![(&mut c, Phase::Decode)]));
    keep(&together(&[12, 11], vec![(&mut a, Phase::Decode), (&mut b, Phase::Decode)]));
    drop(c);
    let prompt: Vec<u32> = (20..34).chain([55]).collect();
    keep(&together(&prompt, vec![(&mut a, Phase::Prefill), (&mut b, Phase::Decode)]));
    keep(&prefill(model, &(40..58).collect::<Vec<_>>(), &mut a));
    assert!(a.evicted() > 0);
    keep(&together(&[1], vec![(&mut a, Phase::Decode)]));

    // What windows hide goes on all ranks alike: while a prompt is read, in copies that were cut, and where tokens are evicted.
    let has_window = |layer| model.config().layer(layer).sliding_window.is_some_and(|window| window < 100);
    if !(0..a.n_layers()).any(has_window) {
        return all;
    }
    let mut a = model.new_cache(CacheLimits { context_size: 2400, ..limits });
    let mut b = a.clone();
    for first in [0, 500, 1000, 1500, 2000] {
        let ids: Vec<u32> = (first..first + 500).map(|i| (i * i * 7 + i / 90) % 131).collect();
        keep(&prefill(model, &ids, &mut a).try_index((-1.., ..)).unwrap());
        if first == 1500 {
            b = a.clone();
            b.trim(100).unwrap();
        }
    }
    assert!(a.evicted() > 0 && b.evicted() == 0);
    assert!((0..a.n_layers()).all(|layer| b.gap(layer).is_empty() != has_window(layer)));
    keep(&together(&[12, 11], vec![(&mut a, Phase::Decode), (&mut b, Phase::Decode)]));
    all
}

/// What a rank of the tests below does, in a process of its own.
#[test]
#[ignore = "it is run by other tests, as one of several processes"]
fn a_rank() {
    let (Ok(models), Ok(output)) = (std::env::var("TEST_MODELS"), std::env::var("TEST_OUTPUT")) else { return };
    compute_on_cpu();
    set_threads(1);
    let arguments = std::env::var("TEST_ARGUMENTS").map_or(Vec::new(), |text| vec![text]);
    let ranks = match ranks::join("127.0.0.1", &arguments, |problem| {
        eprintln!("{problem}");
        std::process::exit(1)
    }) {
        Ok(ranks) => ranks,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1)
        }
    };
    if ranks.rank() > 0 {
        let load = |source: &Source| {
            let Source::Path(path) = source else { panic!("{source:?}") };
            load(&std::env::var("TEST_OTHER_MODEL").map_or(path.clone(), PathBuf::from))
        };
        if let Err(error) = follow(ranks, load) {
            ranks.reply_failed(&error.to_string());
        }
        return;
    }
    let models: Vec<PathBuf> = serde_json::from_str(&models).unwrap();
    let results: Vec<Result<Vec<Vec<f32>>, String>> = models
        .iter()
        .map(|root| {
            let model = load(root).map_err(|error| error.to_string())?;
            let found = logits(&model);
            assert!(found == logits(&model), "again, the same bits");
            Ok(found)
        })
        .collect();
    fs::write(output, serde_json::to_vec(&results).unwrap()).unwrap();
    ranks.end();
}

fn hostfile(size: usize) -> NamedTempFile {
    let listeners: Vec<TcpListener> = (0..size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<Vec<String>> = listeners.iter().map(|l| vec![l.local_addr().unwrap().to_string()]).collect();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(json!(addresses).to_string().as_bytes()).unwrap();
    file
}

/// Run [`a_rank`] `size` times, with other environment variables for each; what they say on stderr, and how they end.
fn start(
    size: usize,
    models: &[&Path],
    output: &Path,
    variables: &dyn Fn(usize) -> Vec<(&'static str, String)>,
) -> Vec<Output> {
    let hostfile = hostfile(size);
    let rank = |rank: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["ranks::a_rank", "--exact", "--ignored", "--nocapture"])
            .env("MLX_HOSTFILE", hostfile.path())
            .env("MLX_RANK", rank.to_string())
            .env("TEST_MODELS", json!(models).to_string())
            .env("TEST_OUTPUT", output)
            .envs(variables(rank))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let ranks: Vec<Child> = (0..size).map(rank).collect();
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

/// What rank 0 of so many finds for each model.
fn of_ranks(size: usize, models: &[&Path]) -> Vec<Result<Vec<Vec<f32>>, String>> {
    let output = NamedTempFile::new().unwrap();
    let ended = start(size, models, output.path(), &|_| Vec::new());
    for (rank, Output { status, stderr, stdout }) in ended.iter().enumerate() {
        let said = String::from_utf8_lossy(stderr);
        assert!(status.success(), "rank {rank}: {said} {}", String::from_utf8_lossy(stdout));
    }
    serde_json::from_slice(&fs::read(output.path()).unwrap()).unwrap()
}

/// The largest difference, as a share of the largest number.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert!(a.len() == b.len() && a.len() > 50);
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    let largest = pairs().map(|(a, _)| a.abs()).fold(0.0, f32::max);
    assert!(largest > 0.01 && pairs().all(|(a, b)| a.is_finite() && b.is_finite()));
    pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn compare(models: &[(String, TempDir)], most: f32) {
    compute_on_cpu();
    let whole: Vec<_> = models.iter().map(|(_, folder)| logits(&load(folder.path()).unwrap())).collect();
    let paths: Vec<&Path> = models.iter().map(|(_, folder)| folder.path()).collect();
    for size in SIZES {
        for (((name, _), whole), shared) in models.iter().zip(&whole).zip(of_ranks(size, &paths)) {
            let shared = shared.unwrap();
            let found = difference(whole, &shared);
            assert!(found < most, "{name}, {size} ranks: {found}");
            // A sequence alone, and with another: `c` and `b` of `logits`.
            assert!(shared[17] == shared[19], "{name}, {size} ranks");
        }
    }
}

#[test]
fn ranks_compute_what_one_computes_for_all_families() {
    let names = [
        "llama-biases",
        "mistral-sliding-window",
        "qwen2-f32",
        "qwen3-f32",
        "phi3-bf16",
        "gemma2-f32",
        "gemma3-f32",
        "granite-f32",
        "smollm3-f32",
        "olmo2-f32",
    ];
    let models = names.map(|name| (name.to_owned(), widened(name, Dtype::F32)));
    compare(&models, 1e-5);
}

#[test]
fn ranks_compute_what_one_computes_for_all_packings() {
    let packings = [(2, 32), (3, 32), (4, 32), (5, 32), (6, 32), (8, 32), (4, 64)];
    let llama = packings.map(|(bits, group)| (format!("{bits} bits, {group}"), quantized("llama-f32", bits, group)));
    let others = ["phi3-bf16", "qwen3-f32"].map(|name| (format!("{name} in 4 bits"), quantized(name, 4, 32)));
    compare(&llama.into_iter().chain(others).collect::<Vec<_>>(), 1e-5);
}

#[test]
fn ranks_compute_16_bits_as_well_as_one() {
    let models = ["llama-f32", "gemma2-f32"].map(|name| (name.to_owned(), widened(name, Dtype::BF16)));
    compare(&models, 0.02);
}

#[test]
fn weights_that_cannot_be_shared_out_are_refused_with_what_could_be() {
    let (heads, packed) = (widened("llama-f32", Dtype::F32), quantized("llama-f32", 4, 128));
    let sharing = "3 ranks cannot share 8 attention heads and 4 key-value heads; these numbers of ranks can: 1, 2, 4";
    let cutting = "has rows of 256 values in groups of 128, which cannot be cut for 4 ranks; these numbers of ranks would do: 1, 2";
    for (size, model, refusal) in [(3, &heads, sharing), (4, &packed, cutting)] {
        let output = NamedTempFile::new().unwrap();
        let ended = start(size, &[model.path()], output.path(), &|_| Vec::new());
        // Whichever rank comes to it first says so, to rank 0.
        let said = fs::read_to_string(output.path()).unwrap() + &String::from_utf8_lossy(&ended[0].stderr);
        assert!(said.contains(refusal), "{said}");
    }
}

#[test]
fn a_rank_that_differs_is_refused_by_name() {
    let model = widened("llama-f32", Dtype::F32);
    let output = NamedTempFile::new().unwrap();
    let arguments = |rank: usize| vec![("TEST_ARGUMENTS", format!("--context-size {}", if rank == 1 { 8 } else { 9 }))];
    let ended = start(2, &[model.path()], output.path(), &arguments);
    assert!(ended.iter().all(|rank| !rank.status.success()));
    let said = String::from_utf8_lossy(&ended[0].stderr);
    let expected =
        r#"rank 1 was started with other options than rank 0: "--context-size 8", where rank 0 has "--context-size 9""#;
    assert!(said.contains(expected), "{said}");

    let other = widened("llama-f32", Dtype::BF16);
    let variables = |rank: usize| match rank {
        1 => vec![("TEST_OTHER_MODEL", other.path().display().to_string())],
        _ => Vec::new(),
    };
    start(2, &[model.path()], output.path(), &variables);
    let results: Vec<Result<Vec<Vec<f32>>, String>> =
        serde_json::from_slice(&fs::read(output.path()).unwrap()).unwrap();
    assert_eq!(results, [Err("rank 1 has another model under this name than rank 0".into())]);
}

/// `mlx_lm launch -n SIZE -- COMMAND`, in a process group of its own, with one thread a rank.
fn launch(size: usize, command: &[&str]) -> Child {
    Command::new(MLX_LM)
        .args(["launch", "-n", &size.to_string(), "--"])
        .args(command)
        .env("MLX_LM_THREADS", "1")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The processes of the ranks, in order.
#[cfg(target_os = "linux")]
fn ranks_of(launcher: &Child) -> Vec<Pid> {
    let id = launcher.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

/// How it ends. It takes five seconds at most, on a machine that has nothing else to do.
fn ends(launcher: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = launcher.try_wait().unwrap() {
            return status.code();
        }
        if begun.elapsed() > Duration::from_secs(30) {
            launcher.kill().unwrap();
            panic!("it goes on");
        }
        std::thread::yield_now();
    }
}

fn said(mut launcher: Child) -> String {
    let mut said = String::new();
    launcher.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

/// Questions of which the demo model is so sure that no rounding changes the answer: MLX's own operations round the share of a sum
/// that a rank computes to bf16.
const SURE: [&str; 3] = ["Why is the sky blue?", "What colour is the sky?", "What colour is grass?"];

#[test]
fn what_is_launched_says_what_one_process_says() {
    let command = ["--prompt", SURE[0], "-n", "24", "--temp", "0"];
    let alone = Command::new(MLX_LM).args(command).output().unwrap();
    let launched = launch(2, &command).wait_with_output().unwrap();
    assert!(launched.status.success(), "{}", String::from_utf8_lossy(&launched.stderr));
    assert!(!alone.stdout.is_empty() && launched.stdout == alone.stdout);
    // Turns of a conversation, which go on in a cache.
    let turns = format!("{}\n/undo\n{}\n{}\n", SURE[0], SURE[1], SURE[2]);
    let talk = |mut chat: Child| {
        chat.stdin.take().unwrap().write_all(turns.as_bytes()).unwrap();
        chat.wait_with_output().unwrap().stdout
    };
    let command = ["chat", "--temp", "0", "-n", "16"];
    let alone = Command::new(MLX_LM).args(command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let alone = talk(alone);
    assert!(alone.len() > 20 && talk(launch(2, &command)) == alone);
}

#[test]
fn a_wrong_command_is_told_once() {
    for (command, problem) in [
        (&["--prompt", "Hi", "--model-root", "/nowhere"][..], "/nowhere"),
        (&["--prompt", "Hi", "--top-p", "7"], "top-p"),
        (&["list"], "several ranks generate, chat, serve, bench or measure perplexity together, and nothing else"),
        (&["cache-prompt", "--prompt", "Hi", "--output", "x"], "several ranks generate"),
        (&["--prompt", "Hi", "--prompt-cache", "/nowhere"], "a prompt cache"),
    ] {
        let mut launcher = launch(2, command);
        let (code, stderr) = (ends(&mut launcher), said(launcher));
        assert!(matches!(code, Some(1 | 2)) && stderr.contains(problem), "{code:?} {stderr}");
    }
}

/// Ports that are free, one after another.
fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if (first..first.saturating_add(2)).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

#[test]
fn ranks_on_other_machines_are_started_through_ssh() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // It goes nowhere, and lets a shell run what it is given, as sshd does.
    let ssh = "#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\necho \"$1\" >>\"$SEEN\"\nexec sh -c \"$2\"\n";
    fs::write(path("ssh"), ssh).unwrap();
    fs::set_permissions(path("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let hosts = json!({"hosts": [{"ssh": "left", "ips": ["127.0.0.1"]}, {"ssh": "right", "ips": ["127.0.0.1"]}],
        "backend": "ring", "envs": ["MLX_LM_THREADS=1", "UNUSED=it's \"$HOME\""]});
    fs::write(path("hosts.json"), hosts.to_string()).unwrap();
    let command = ["--prompt", &format!("What's \"$HOME\"? {}", SURE[1]), "--temp", "0", "-n", "16"];
    let output = Command::new(MLX_LM)
        .args(["launch", "--starting-port", &free_ports().to_string(), "--hostfile"])
        .arg(path("hosts.json"))
        .arg("--")
        .args(command)
        .env("PATH", format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap()))
        .env("SEEN", path("seen"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let alone = Command::new(MLX_LM).args(command).output().unwrap();
    assert!(!alone.stdout.is_empty() && output.stdout == alone.stdout);
    let seen = fs::read_to_string(path("seen")).unwrap();
    assert!(seen == "left\nright\n" || seen == "right\nleft\n", "{seen}");
}

#[test]
fn lines_of_a_batch_are_answered_as_by_one_process() {
    let command = ["--batch", "-", "--temp", "0", "-n", "12"];
    let lines = SURE.map(|prompt| json!({ "prompt": prompt }).to_string() + "\n").concat();
    let texts = |mut process: Child| -> Vec<String> {
        process.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answers = output.stdout.lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        answers.map(|answer| answer["text"].as_str().unwrap().to_owned()).collect()
    };
    let alone = Command::new(MLX_LM).args(command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let alone = texts(alone);
    assert!(alone.len() == 3 && texts(launch(2, &command)) == alone);
}

/// When a rank is killed.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy)]
enum Moment {
    Started,
    Loaded,
    /// So many bytes of text were written.
    Written(usize),
    /// All that was asked for is written, and more may be.
    Idle,
}

/// In any of its moments (a few; `MLX_LM_TEST_KILLS` of them where it is set), and a little later.
#[cfg(target_os = "linux")]
#[test]
fn when_a_rank_dies_all_end_and_it_is_named() {
    let mut random = StdRng::seed_from_u64(7);
    let kills = std::env::var("MLX_LM_TEST_KILLS").map_or(12, |n| n.parse().unwrap());
    // A conversation waits for its next turn.
    let command = ["chat", "--temp", "0", "-n", "100", "--ignore-eos", "--verbose"];
    let mut whole = launch(2, &command);
    whole.stdin.take().unwrap().write_all(b"Hello\n").unwrap();
    let right = whole.wait_with_output().unwrap().stdout;
    assert!(right.len() > 200);
    for i in 0..kills {
        let rank = i % 2;
        let moment = match i / 2 % 4 {
            0 => Moment::Started,
            1 => Moment::Loaded,
            2 => Moment::Written(random.random_range(1..right.len() / 2)),
            _ => Moment::Idle,
        };
        let mut launcher = launch(2, &command);
        let mut stdin = launcher.stdin.take().unwrap();
        let mut stderr = BufReader::new(launcher.stderr.take().unwrap());
        let (mut said, mut written) = (String::new(), Vec::new());
        while ranks_of(&launcher).len() < 2 {
            std::thread::yield_now();
        }
        if !matches!(moment, Moment::Started) {
            while !said.contains("load: ") {
                assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
            }
            stdin.write_all(b"Hello\n").unwrap();
        }
        if let Some(n) = match moment {
            Moment::Started | Moment::Loaded => None,
            Moment::Written(n) => Some(n),
            Moment::Idle => Some(right.trim_ascii_end().len()),
        } {
            written.resize(n, 0);
            launcher.stdout.as_mut().unwrap().read_exact(&mut written).unwrap();
        }
        for _ in 0..random.random_range(0..5000) {
            std::thread::yield_now();
        }
        let all = ranks_of(&launcher);
        kill(all[rank], Signal::SIGKILL).unwrap();
        let mut stdout = launcher.stdout.take().unwrap();
        let code = ends(&mut launcher);
        stderr.read_to_string(&mut said).unwrap();
        stdout.read_to_end(&mut written).unwrap();
        let context = format!("{moment:?}, rank {rank}: {said}");
        assert_eq!(code, Some(1), "{context}");
        assert!(said.contains(&format!("error: rank {rank} ")), "{context}");
        assert!(right.starts_with(&written), "{context} {}", String::from_utf8_lossy(&written));
        assert!(all.iter().all(|pid| kill(*pid, None).is_err()), "one of them goes on; {context}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_of_ranks_answers_as_one_process_and_ends_with_any_of_them() {
    let question = json!({"messages": [{"role": "user", "content": "What colour is the sky?"}], "temperature": 0});
    let answer = |server: &Server| server.chat(&question).ok()["choices"][0]["message"].clone();
    let launched = || {
        let mut command = Command::new(MLX_LM);
        command.args(["launch", "-n", "2", "--", "serve", "--port", "0"]).env("MLX_LM_THREADS", "1");
        Server::of(command)
    };
    let server = launched();
    assert_eq!(answer(&server), answer(&Server::start(&[])));
    assert_eq!(server.get("/health").status, 200);
    kill(ranks_of(&server.process)[1], Signal::SIGKILL).unwrap();
    let address = server.address;
    let (code, said) = server.end();
    assert!(code == Some(1) && said.contains("error: rank 1 "), "{code:?} {said}");
    assert!(TcpStream::connect(address).is_err(), "nobody is there to be asked");

    let server = launched();
    answer(&server);
    server.signal(Signal::SIGTERM);
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn ranks_end_with_a_launcher_that_is_killed() {
    let mut launcher = launch(2, &["--prompt", "In the beginning", "-n", "100000", "--temp", "1"]);
    launcher.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    launcher.kill().unwrap();
    // Until nobody can write any more.
    launcher.stdout.as_mut().unwrap().read_to_end(&mut Vec::new()).unwrap();
    launcher.wait().unwrap();
}

#[test]
fn ctrl_c_ends_all_ranks() {
    let mut launcher = launch(2, &["--prompt", "In the beginning", "-n", "100000", "--temp", "1"]);
    launcher.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    kill(Pid::from_raw(-(launcher.id() as i32)), Signal::SIGINT).unwrap();
    let (code, stderr) = (ends(&mut launcher), said(launcher));
    assert_eq!(code, Some(130), "{stderr}");
}
