//! The program `mlxpack`: what it prints, what it refuses, and what is left when it is stopped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::mlxpack::raw_pack;
use crate::{fixture, unpack_demo};

const MLXPACK: &str = env!("CARGO_BIN_EXE_mlxpack");

/// The demo model as a directory `in`, and a place for everything else.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let scratch = Scratch(tempfile::tempdir().unwrap());
        unpack_demo(&scratch.path("in"));
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Run `mlxpack` here; words that are paths are relative to the scratch directory.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        said(self.command(args).output().unwrap())
    }

    fn ok(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        stdout
    }

    /// Run what must fail with one line on stderr that holds `expected`.
    fn refused(&self, args: &[&str], expected: &str) {
        let (code, _, stderr) = self.run(args);
        assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{args:?}: {stderr}");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(MLXPACK);
        command.args(args).current_dir(&self.0);
        command
    }

    fn names(&self, folder: &str) -> Vec<String> {
        names(&self.path(folder))
    }
}

fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn pack_prints_what_it_packs_and_info_shows_it() {
    let scratch = Scratch::new();
    let said = scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack"]);
    let length = fs::metadata(scratch.path("x.mlxpack")).unwrap().len();
    let expected = format!(
        "[INFO] Packing model from: \"in\"\n\
         [INFO] Model architecture: LlamaForCausalLM\n\
         [INFO] Safetensors files to pack:\n  \
           - model.safetensors (3416640 bytes)\n\
         [INFO] ✓ Packed successfully!\n\
         [INFO] Output size: {length} bytes (3.32 MB)\n"
    );
    assert_eq!(said, expected);
    assert_eq!(names(scratch.0.path()), ["in", "x.mlxpack"]);

    let info = scratch.ok(&["info", "--input", "x.mlxpack"]);
    let expected = format!(
        "=== MLXPack File Information ===

File size: {length} bytes (3.32 MB)

--- Model Configuration ---
Architecture: LlamaForCausalLM
Hidden size: 256
Num layers: 7
Num heads: 8
Num key-value heads: 4
Vocab size: 2048
Parameters: 6033152

Quantization:
  Bits: 4
  Group size: 64
  Mode: affine

--- Tokenizer Configuration ---
BOS token ID: 0
EOS token ID: 1
Has chat template: true

--- Safetensors Files ---
Total files: 1
  model.safetensors (3416640 bytes, 3.26 MB)
Total tensors: 165
Total weights size: 3416640 bytes (3.26 MB)

--- Other Files ---
  config.json (562 bytes)
  generation_config.json (52 bytes)
  tokenizer.json (50004 bytes)
  tokenizer_config.json (692 bytes)
"
    );
    assert_eq!(info, expected);

    // Of the directory the same is said, but for its title and size.
    let directory = scratch.ok(&["info", "--input", "in"]);
    let from_model = |text: &str| text[text.find("--- Model").unwrap()..].to_owned();
    assert_eq!(from_model(&directory), from_model(&info));
    assert!(
        directory.starts_with("=== Model Directory Information ===\n\nSize of the files: 3467950 bytes"),
        "{directory}"
    );
}

#[test]
fn info_is_json_and_lists_tensors_when_asked() {
    let scratch = Scratch::new();
    scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack"]);
    let json = |args: &[&str]| -> Value {
        serde_json::from_str(&scratch.ok(&[&["info", "--format", "json", "--input"], args].concat())).unwrap()
    };
    let (pack, directory) = (json(&["x.mlxpack", "--tensors"]), json(&["in", "--tensors"]));
    assert_eq!((&pack["source"], &directory["source"]), (&"pack".into(), &"directory".into()));
    for key in ["architecture", "hidden_size", "quantization", "tokenizer", "parameter_count", "tensors", "files"] {
        assert_eq!(pack[key], directory[key], "{key}");
    }
    assert_eq!((&pack["quantization"]["bits"], &pack["weights_bytes"]), (&4.into(), &3_416_640.into()));
    let tensors = pack["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 165);
    let norm = tensors.iter().find(|tensor| tensor["name"] == "model.norm.weight").unwrap();
    let expected = serde_json::json!({
        "name": "model.norm.weight", "file": "model.safetensors", "dtype": "BF16", "shape": [256], "bytes": 512
    });
    assert_eq!(*norm, expected);
    assert_eq!(json(&["in"])["tensors"], Value::Null);
    assert!(
        scratch.ok(&["info", "--input", "in", "--tensors"]).contains("  model.norm.weight BF16 [256] (512 bytes)\n")
    );
}

#[test]
fn full_precision_and_overrides_are_told() {
    let scratch = Scratch::new();
    let info = |model: &str| {
        let path = fixture("checkpoints").join(model);
        let (code, stdout, _) = scratch.run(&["info", "--input", path.to_str().unwrap()]);
        assert_eq!(code, Some(0));
        stdout
    };
    assert!(!info("llama-bf16").contains("Quantization"));
    let mixed = info("llama-mixed");
    let overrides = "  Overrides: 5
    model.layers.0.mlp.down_proj: 8 bits, group size 32
    model.layers.1.self_attn.v_proj: not quantized
    model.layers.1.mlp.gate_proj: 3 bits, group size 32
    model.embed_tokens: 5 bits, group size 32
    lm_head: 6 bits, group size 64
";
    assert!(mixed.contains(overrides), "{mixed}");
    let null = info("llama-mixed-2-6");
    assert!(null.contains(": 2 bits, group size 64\n") && null.contains(": 6 bits, group size 64\n"), "{null}");
    // Whatever the widths and the groups, the parameters are those of the model before it was quantized.
    let parameters = |info: &str| info.lines().find(|line| line.starts_with("Parameters: ")).unwrap().to_owned();
    let expected = parameters(&info("llama-bf16"));
    assert_eq!([mixed, null].map(|info| parameters(&info)), [expected.clone(), expected]);
}

#[test]
fn extract_gives_back_what_was_packed_and_it_runs() {
    let scratch = Scratch::new();
    scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack"]);
    let said = scratch.ok(&["extract", "--input", "x.mlxpack", "--output", "out/deep"]);
    assert_eq!(said, "[INFO] ✓ Extracted 5 files to \"out/deep\"\n");
    assert_eq!(scratch.names("out/deep"), scratch.names("in"));
    for name in scratch.names("in") {
        assert!(
            fs::read(scratch.path("in").join(&name)).unwrap()
                == fs::read(scratch.path("out/deep").join(&name)).unwrap()
        );
    }
    let text = |root: &str| {
        let args =
            ["--prompt", "Tell me a story", "--max-tokens", "24", "--temp", "1", "--seed", "3", "--model-root", root];
        let output = Command::new(env!("CARGO_BIN_EXE_mlx_lm")).args(args).current_dir(&scratch.0).output().unwrap();
        let (code, stdout, stderr) = self::said(output);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        stdout
    };
    fs::copy(scratch.path("x.mlxpack"), scratch.path("renamed.bin")).unwrap();
    assert_eq!(text("in"), text("renamed.bin"));
    assert_eq!(text("in"), text("out/deep"));

    scratch
        .refused(&["extract", "--input", "x.mlxpack", "--output", "out/deep"], "config.json: exists already; --force");
    scratch.ok(&["extract", "--input", "x.mlxpack", "--output", "out/deep", "--force"]);
    let one = scratch.ok(&["extract", "--input", "x.mlxpack", "--output", "one", "--file", "config.json"]);
    assert_eq!(
        (one.as_str(), scratch.names("one")),
        ("[INFO] ✓ Extracted 1 file to \"one\"\n", vec!["config.json".into()])
    );
    scratch.refused(
        &["extract", "--input", "x.mlxpack", "--output", "two", "--file", "config.jsn"],
        "config.jsn: not found; the pack holds config.json, generation_config.json, tokenizer.json, ",
    );
    assert!(!scratch.path("two").exists());
}

#[test]
fn what_is_packed_is_what_running_needs_and_what_was_asked_for() {
    let scratch = Scratch::new();
    for name in ["LICENSE", "Readme.md", "USE_POLICY.md", "notes.txt", "training.bin", "consolidated.safetensors"] {
        fs::write(scratch.path("in").join(name), name).unwrap();
    }
    fs::write(scratch.path("in/.hidden.txt"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", scratch.path("in/broken")).unwrap();
    fs::create_dir_all(scratch.path("in/onnx/deep")).unwrap();
    fs::write(scratch.path("in/onnx/a.txt"), "").unwrap();
    fs::write(scratch.path("in/onnx/deep/b.txt"), "").unwrap();
    let texts = ["LICENSE", "Readme.md", "USE_POLICY.md", "config.json", "generation_config.json"];
    let tokenizer = ["tokenizer.json", "tokenizer_config.json"];
    let packed = |include: &[&str]| -> Vec<String> {
        let mut args = vec!["pack", "--input", "in", "--output", "x.mlxpack", "--force"];
        include.iter().for_each(|glob| args.extend(["--include", glob]));
        scratch.ok(&args);
        let info: Value =
            serde_json::from_str(&scratch.ok(&["info", "--input", "x.mlxpack", "--format", "json"])).unwrap();
        info["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(packed(&[]), [&texts[..], &tokenizer, &["model.safetensors"]].concat());
    assert_eq!(packed(&["*.txt"]), [&texts[..], &["notes.txt"], &tokenizer, &["model.safetensors"]].concat());
    assert!(packed(&[".h*"]).contains(&".hidden.txt".to_owned()));
    let more = packed(&["**/*.txt", "./training.*"]);
    let expected =
        ["notes.txt", "onnx/a.txt", "onnx/deep/b.txt", "tokenizer.json", "tokenizer_config.json", "training.bin"];
    assert_eq!(more, [&texts[..], &expected, &["model.safetensors"]].concat());
    let pack = ["pack", "--input", "in", "--output", "y.mlxpack", "--include"];
    scratch.refused(&[&pack[..], &["*.nothing"]].concat(), "pattern \"*.nothing\": matches no file below in");
    scratch.refused(&[&pack[..], &["[a"]].concat(), "pattern \"[a\"");
}

/// The Hugging Face cache holds links to files; anything odder is refused by name.
#[test]
fn links_are_followed_and_nothing_odder() {
    let scratch = Scratch::new();
    scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack"]);
    fs::create_dir(scratch.path("linked")).unwrap();
    for name in scratch.names("in") {
        std::os::unix::fs::symlink(format!("../in/{name}"), scratch.path("linked").join(&name)).unwrap();
    }
    scratch.ok(&["pack", "--input", "linked", "--output", "y.mlxpack"]);
    assert!(fs::read(scratch.path("x.mlxpack")).unwrap() == fs::read(scratch.path("y.mlxpack")).unwrap());

    nix::unistd::mkfifo(&scratch.path("in/README.md"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    scratch.refused(&["pack", "--input", "in", "--output", "z.mlxpack"], "in/README.md: not a regular file");
    fs::remove_file(scratch.path("in/README.md")).unwrap();
    fs::remove_file(scratch.path("in/tokenizer.json")).unwrap();
    let dangling = scratch.path("linked/tokenizer.json");
    assert!(dangling.is_symlink() && !dangling.exists());
    let (code, _, stderr) = scratch.run(&["pack", "--input", "linked", "--output", "z.mlxpack", "--no-validate"]);
    assert!(code == Some(1) && stderr.contains("error: linked/tokenizer.json: No such file"), "{stderr}");
    assert!(!scratch.path("z.mlxpack").exists());
}

#[test]
fn what_must_not_be_overwritten_is_not() {
    let scratch = Scratch::new();
    fs::write(scratch.path("x.mlxpack"), "mine").unwrap();
    let pack = ["pack", "--input", "in", "--output"];
    scratch.refused(&[&pack[..], &["x.mlxpack"]].concat(), "x.mlxpack: exists already; --force replaces it");
    assert_eq!(fs::read(scratch.path("x.mlxpack")).unwrap(), b"mine");
    scratch.refused(&[&pack[..], &["in/x.mlxpack"]].concat(), "inside the directory that is packed");
    fs::create_dir(scratch.path("in/sub")).unwrap();
    scratch.refused(&[&pack[..], &["in/sub/x.mlxpack"]].concat(), "inside the directory that is packed");
    std::os::unix::fs::symlink("in", scratch.path("alias")).unwrap();
    scratch.refused(&[&pack[..], &["alias/x.mlxpack"]].concat(), "inside the directory that is packed");
    scratch.refused(&[&pack[..], &["nowhere/x.mlxpack"]].concat(), "nowhere: No such file");
    scratch.refused(&[&pack[..], &["in"]].concat(), "in: exists and is not a file");
    fs::create_dir(scratch.path("blobs")).unwrap();
    fs::rename(scratch.path("in/config.json"), scratch.path("blobs/1")).unwrap();
    std::os::unix::fs::symlink("../blobs/1", scratch.path("in/config.json")).unwrap();
    scratch.refused(&[&pack[..], &["blobs/1", "--force"]].concat(), "blobs/1: is one of the files that are packed");
    scratch.refused(&[&pack[..], &["/dev/null", "--force"]].concat(), "/dev/null: exists and is not a file");
    scratch.ok(&[&pack[..], &["x.mlxpack", "--force"]].concat());
    scratch.ok(&["verify", "--input", "x.mlxpack"]);
    assert_eq!(names(scratch.0.path()), ["alias", "blobs", "in", "x.mlxpack"]);
}

#[test]
fn a_model_that_would_not_run_is_packed_only_unchecked() {
    let scratch = Scratch::new();
    fs::write(scratch.path("in/tokenizer.json"), "{}").unwrap();
    scratch.refused(&["pack", "--input", "in", "--output", "x.mlxpack"], "tokenizer.json");
    assert_eq!(names(scratch.0.path()), ["in"]);
    let (code, stdout, stderr) = scratch.run(&["pack", "--input", "in", "--output", "x.mlxpack", "--no-validate"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.starts_with("[WARN] in/tokenizer.json") && stdout.contains("Packed successfully"), "{stderr}");
    for args in [
        &["pack", "--input", "x.mlxpack", "--output", "y"][..],
        &["info", "--input", "nowhere"],
        &["verify", "--input", "in"],
    ] {
        assert_eq!(scratch.run(args).0, Some(1), "{args:?}");
    }
    fs::write(scratch.path("text.mlxpack"), "not a pack, though it is called one").unwrap();
    scratch.refused(&["verify", "--input", "text.mlxpack"], "does not begin like one");
    scratch.refused(&["info", "--input", "text.mlxpack"], "neither a directory nor an .mlxpack");
}

#[test]
fn verify_names_each_damaged_file() {
    let scratch = Scratch::new();
    scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack"]);
    let said = scratch.ok(&["verify", "--input", "x.mlxpack"]);
    assert!(said.starts_with("[INFO] ✓ 5 files, "), "{said}");
    let mut bytes = fs::read(scratch.path("x.mlxpack")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    bytes[4100] ^= 4; // in config.json, which comes first
    fs::write(scratch.path("x.mlxpack"), &bytes).unwrap();
    let (code, stdout, stderr) = scratch.run(&["verify", "--input", "x.mlxpack"]);
    assert_eq!((code, stderr.as_str()), (Some(1), "error: x.mlxpack: damaged in 2 of 5 files\n"));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(
        lines[0].starts_with("config.json: damaged") && lines[1].starts_with("model.safetensors: damaged"),
        "{stdout}"
    );
    bytes[60] ^= 4;
    fs::write(scratch.path("x.mlxpack"), &bytes).unwrap();
    scratch.refused(&["verify", "--input", "x.mlxpack"], "header is damaged");
    scratch.refused(&["info", "--input", "x.mlxpack"], "header is damaged");
}

#[test]
fn help_completions_and_man_pages_exist() {
    let scratch = Scratch::new();
    assert!(scratch.ok(&["pack", "--help"]).contains("--no-validate"));
    assert!(scratch.ok(&["completions", "bash"]).contains("--no-validate"));
    scratch.ok(&["man", "."]);
    assert!(fs::read_to_string(scratch.path("mlxpack-pack.1")).unwrap().contains("no\\-validate"));
}

#[test]
fn paths_are_given_by_place_or_by_flag() {
    let scratch = Scratch::new();
    for (i, args) in [
        &["pack", "in", "0"][..],
        &["pack", "--input", "in", "--output", "1"],
        &["pack", "-i", "in", "-o", "2"],
        &["pack", "in", "-o", "3"],
        &["pack", "-f", "in", "3"],
    ]
    .into_iter()
    .enumerate()
    {
        scratch.ok(args);
        assert_eq!(scratch.ok(&["verify", &i.min(3).to_string()]), scratch.ok(&["verify", "-i", "0"]), "{args:?}");
    }
    assert_eq!(scratch.ok(&["info", "0"]), scratch.ok(&["info", "-i", "0"]));
    scratch.ok(&["extract", "0", "a"]);
    scratch.ok(&["extract", "-f", "-i", "0", "-o", "a"]);
    scratch.ok(&["extract", "0", "a", "--file", "config.json", "--force"]);
    assert_eq!(scratch.names("a"), scratch.names("in"));

    for (args, expected) in [
        (&["pack", "in"][..], "required arguments were not provided:\n  <FILE|--output <FILE>>"),
        (&["pack", "--input", "in"], "  <FILE|--output <FILE>>"),
        (&["extract"], "  <FILE|--input <FILE>>\n  <DIR|--output <DIR>>"),
        (&["info"], "  <PATH|--input <PATH>>"),
        (&["verify", "0", "--input", "1"], "'[FILE]' cannot be used with '--input <FILE>'"),
        (&["extract", "0", "b", "-o", "c"], "'[DIR]' cannot be used with '--output <DIR>'"),
        (&["info", "0", "1"], "unexpected argument '1'"),
    ] {
        let (code, _, stderr) = scratch.run(args);
        assert!(code == Some(2) && stderr.contains(expected), "{args:?}: {stderr}");
    }
    assert_eq!(names(scratch.0.path()), ["0", "1", "2", "3", "a", "in"]);
}

/// A model too big to be packed in the time that a test takes, of holes: `kill` then finds the program at work.
fn big_model(scratch: &Scratch) {
    File::create(scratch.path("in/model.safetensors")).unwrap().set_len(1 << 36).unwrap();
}

/// Start to pack the big model, wait until its unfinished file has bytes, and send `signal`.
fn stop_packing(scratch: &Scratch, signal: Signal) -> (Option<i32>, String, String) {
    let args = ["pack", "--input", "in", "--output", "x.mlxpack", "--no-validate"];
    stop(scratch, &args, ".x.mlxpack.mlxpack-partial", signal)
}

/// Start the program, wait until `partial` has bytes, and send `signal`.
fn stop(scratch: &Scratch, args: &[&str], partial: &str, signal: Signal) -> (Option<i32>, String, String) {
    let child = scratch.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = scratch.path(partial);
    while fs::metadata(&partial).map_or(0, |found| found.len()) == 0 {
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    said(child.wait_with_output().unwrap())
}

#[test]
fn an_interrupted_pack_leaves_nothing() {
    let scratch = Scratch::new();
    big_model(&scratch);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (code, stdout, stderr) = stop_packing(&scratch, signal);
        assert_eq!(code, Some(130), "{stderr}");
        assert!(stderr.ends_with("interrupted; nothing unfinished was left behind\n"), "{stderr}");
        assert!(!stdout.contains("Packed"));
        assert_eq!(names(scratch.0.path()), ["in"]);
    }
}

#[test]
fn a_killed_pack_leaves_an_unfinished_file_that_the_next_one_takes_over() {
    let scratch = Scratch::new();
    let good = fs::read(scratch.path("in/model.safetensors")).unwrap();
    big_model(&scratch);
    let (code, _, _) = stop_packing(&scratch, Signal::SIGKILL);
    assert_eq!(code, None);
    assert_eq!(names(scratch.0.path()), [".x.mlxpack.mlxpack-partial", "in"]);
    fs::write(scratch.path("in/model.safetensors"), good).unwrap();
    scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack"]);
    assert_eq!(names(scratch.0.path()), ["in", "x.mlxpack"]);
    scratch.ok(&["verify", "--input", "x.mlxpack"]);
}

/// A pack that ends with 64 GiB of holes, which no test waits to be written.
fn big_pack(scratch: &Scratch) {
    let (begin, length) = (1u64 << 20, 1u64 << 36);
    let config = hex::encode(Sha256::digest("{}"));
    let mut header = serde_json::json!({"files": [
        {"name": "config.json", "offset": begin, "length": 2, "sha256": [config]},
        {"name": "a/model.safetensors", "offset": begin + 2, "length": length, "sha256": vec!["0".repeat(64); 4096]},
    ]})
    .to_string();
    header += &" ".repeat(begin as usize - 56 - header.len());
    fs::write(scratch.path("big.mlxpack"), raw_pack(header.as_bytes(), b"{}")).unwrap();
    let file = File::options().write(true).open(scratch.path("big.mlxpack")).unwrap();
    file.set_len(begin + 2 + length).unwrap();
}

#[test]
fn an_interrupted_extraction_leaves_nothing() {
    let scratch = Scratch::new();
    big_pack(&scratch);
    let args = ["extract", "--input", "big.mlxpack", "--output", "new/out"];
    let partial = "new/out/a/.model.safetensors.mlxpack-partial";
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (code, stdout, stderr) = stop(&scratch, &args, partial, signal);
        assert_eq!((code, stdout.as_str()), (Some(130), ""), "{stderr}");
        assert_eq!(stderr, "interrupted; nothing unfinished was left behind\n");
        assert_eq!(names(scratch.0.path()), ["big.mlxpack", "in"]);
    }
    // What a killed one leaves is not in the way of the next.
    stop(&scratch, &args, partial, Signal::SIGKILL);
    assert_eq!(scratch.names("new/out"), [".config.json.mlxpack-partial", "a"]);
    scratch.ok(&["extract", "--input", "big.mlxpack", "--output", "new/out", "--file", "config.json"]);
    assert_eq!(scratch.names("new/out"), ["a", "config.json"]);
}

/// A pack may hold more files than a process may have open.
#[test]
fn extraction_keeps_no_file_open() {
    let scratch = Scratch::new();
    (0..100).for_each(|i| fs::write(scratch.path("in").join(format!("{i}.txt")), "").unwrap());
    scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack", "--include", "*.txt"]);
    let script = r#"ulimit -n 40; exec "$0" extract --input x.mlxpack --output out"#;
    let output = Command::new("sh").args(["-c", script, MLXPACK]).current_dir(&scratch.0).output();
    let (code, _, stderr) = said(output.unwrap());
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(scratch.names("out"), scratch.names("in"));
}

/// On a file system of 2 MB, mounted where only this test sees it, which needs a right that not every machine gives.
#[test]
fn a_full_disk_leaves_nothing() {
    let scratch = Scratch::new();
    scratch.ok(&["pack", "--input", "in", "--output", "x.mlxpack"]);
    fs::create_dir(scratch.path("disk")).unwrap();
    let script = r#"
        mount -t tmpfs -o size=2m none disk || exit 77
        "$0" pack --input in --output disk/y.mlxpack
        echo "code $?, left: $(ls -A disk | tr '\n' ' ')"
        "$0" extract --input x.mlxpack --output disk/out
        echo "code $?, left: $(ls -A disk | tr '\n' ' ')"
    "#;
    let unshare = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(args).args(["sh", "-c", script, MLXPACK]).current_dir(&scratch.0).output()
    };
    let tried = [&["-m"][..], &["-rm"]].into_iter().filter_map(|args| unshare(args).ok());
    let Some(output) = tried.into_iter().find(|output| String::from_utf8_lossy(&output.stdout).contains("left")) else {
        eprintln!("skipped: this machine lets the test mount nothing");
        return;
    };
    let (_, stdout, stderr) = said(output);
    let lines: Vec<&str> = stdout.lines().filter(|line| line.starts_with("code")).collect();
    assert_eq!(lines, ["code 1, left: "; 2], "{stderr}");
    let errors: Vec<&str> = stderr.lines().collect();
    assert_eq!(errors.len(), 2, "{stderr}");
    assert!(errors.iter().all(|error| error.contains("No space left on device")), "{stderr}");
    assert!(errors[0].contains("disk/y.mlxpack") && errors[1].contains("disk/out/model.safetensors"), "{stderr}");
}
