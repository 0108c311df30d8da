//! What both programs do around their work: standard output that takes nothing, limits of the system, memory.

use std::fs::{self, File};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::unpack_demo;

const MLX_LM: &str = env!("CARGO_BIN_EXE_mlx_lm");
const MLXPACK: &str = env!("CARGO_BIN_EXE_mlxpack");
const NOTICE: &str = "using the demo model inside this program; --model-root PATH runs another\n";

fn run(program: &str, args: &[&str], stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let output = Command::new(program).args(args).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    said(output)
}

fn said(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Help in all its forms, and results.
const PRINTING: &[(&str, &[&str])] = &[
    (MLX_LM, &["--help"]),
    (MLX_LM, &["-h"]),
    (MLX_LM, &["bench", "--help"]),
    (MLX_LM, &["--version"]),
    (MLX_LM, &["completions", "zsh"]),
    (MLX_LM, &["--prompt", "Hi"]),
    (MLX_LM, &["--prompt", "Hi", "--format", "json"]),
    (MLX_LM, &["tokenize", "--prompt", "Hi"]),
    (MLX_LM, &["bench", "-p", "2", "-g", "1", "-n", "1"]),
    (MLXPACK, &["--help"]),
    (MLXPACK, &["help", "pack"]),
    (MLXPACK, &["--version"]),
    (MLXPACK, &["completions", "bash"]),
    (MLXPACK, &["info", "--input", concat!(env!("CARGO_MANIFEST_DIR"), "/demo/demo.mlxpack")]),
];

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_one_error() {
    for (program, args) in PRINTING {
        let (code, stderr) = run(program, args, File::options().write(true).open("/dev/full").unwrap());
        let said = stderr.strip_prefix(NOTICE).unwrap_or(&stderr);
        assert_eq!(
            (code, said),
            (Some(1), "error: standard output: No space left on device (os error 28)\n"),
            "{args:?}"
        );
    }
}

#[test]
fn a_closed_standard_output_is_none() {
    for (program, args) in PRINTING {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, stderr) = run(program, args, writer);
        assert_eq!((code, stderr.strip_prefix(NOTICE).unwrap_or(&stderr)), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn wrong_usage_is_told_on_stderr() {
    for (program, args) in
        [(MLX_LM, &["--tmep", "1"][..]), (MLXPACK, &["info"]), (MLXPACK, &["unpack"]), (MLXPACK, &[])]
    {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.stdout.is_empty());
        let (code, stderr) = said(output);
        assert!(code == Some(2) && stderr.contains("Usage: "), "{args:?}: {stderr}");
    }
}

/// The signal for it would end the programs where they stand.
#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(&scratch.path().join("in"));
    for (program, args) in [
        (MLXPACK, &["pack", "--input", "in", "--output", "x"][..]),
        (MLXPACK, &["extract", "--input", concat!(env!("CARGO_MANIFEST_DIR"), "/demo/demo.mlxpack"), "--output", "x"]),
        (MLX_LM, &["cache-prompt", "--prompt", "Hi", "--output", "x"]),
        (MLX_LM, &["convert", "--dequantize", "--output", "x"]),
    ] {
        let mut limited = Command::new("sh");
        limited.args(["-c", r#"ulimit -f 2; exec "$0" "$@""#, program]).args(args).current_dir(&scratch);
        let (code, stderr) = said(limited.output().unwrap());
        assert_eq!(code, Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("error: x") && stderr.contains("File too large"), "{args:?}: {stderr}");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 1, "{args:?}");
    }
}

/// On Linux, the usage that the system tells begins with the size of the process that started this one.
#[test]
fn peak_memory_is_that_of_the_program_alone() {
    const LARGE: usize = 1 << 29;
    let memory = vec![1u8; LARGE];
    let args = ["--prompt", "Hi", "--max-tokens", "1", "--format", "json"];
    let output = Command::new(MLX_LM).args(args).output().unwrap();
    assert_eq!(memory[LARGE - 1], 1, "it was there all the time");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let peak = json["peak_memory_bytes"].as_u64().unwrap() as usize;
    assert!((1 << 20..LARGE).contains(&peak), "{peak}");
}
