//! `--batch`: the same results whatever is computed together, each as soon as it can be told.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn batch(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
    command.args(["--batch", "-"]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn run(lines: &[Value], args: &[&str]) -> Output {
    let mut child = batch(args);
    let mut input = child.stdin.take().unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

/// Results without their timings.
fn results(output: &Output) -> Vec<Value> {
    let untimed = |line: &str| {
        let mut result: Value = serde_json::from_str(line).unwrap();
        let fields = result.as_object_mut().unwrap();
        for timing in ["prompt_tps", "generation_tps", "peak_memory_bytes"] {
            fields.remove(timing);
        }
        result
    };
    String::from_utf8_lossy(&output.stdout).lines().map(untimed).collect()
}

/// Lines of all kinds, some without a token to generate, some that are no good, many that begin alike.
fn lines() -> Vec<Value> {
    let story = "Once upon a time there was a small girl who lived in a village where it often rained. ".repeat(3);
    (0..40)
        .map(|i| match i % 8 {
            0 => json!({"prompt": story, "max_tokens": 0, "raw": true}),
            1 => json!({"prompt": format!("{story}{i}"), "max_tokens": 12, "raw": true, "logprobs": 2}),
            2 => json!({"prompt": "Why is the sky blue?", "temp": 0.9, "seed": i, "stop": "sky"}),
            3 => json!({"prompt": story.repeat(4), "max_tokens": 3, "context_size": 64}),
            4 => json!({"prompt": "x", "temp": -1}),
            5 => json!({"prompt": story, "max_tokens": 2, "raw": true, "repetition_penalty": 1.3}),
            6 => json!({"id": i, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}),
            _ => json!({"prompt": "Tell me a story.", "max_tokens": 30, "ignore_eos": true}),
        })
        .collect()
}

/// Catches: results that depend on what is computed with them, an order that is lost, a batch that waits forever.
#[test]
fn results_are_the_same_however_many_lines_are_computed_together() {
    let computes = crate::compute_on_cpu();
    // MLX's own operations are slow on a CPU, and promise nothing about the last bits.
    let lines = if computes { lines() } else { lines()[..8].to_vec() };
    let alone = run(&lines, &["--parallel", "1"]);
    assert_eq!((alone.status.code(), results(&alone).len()), (Some(1), lines.len()));
    for args in [&["--parallel", "2"][..], &["--parallel", "8"], &["--parallel", "32"], &["--unordered"]] {
        let together = run(&lines, args);
        let mut found = results(&together);
        found.sort_by_key(|result| if args == ["--unordered"] { result["line"].as_u64() } else { None });
        assert!(found == results(&alone) || !computes && found.len() == lines.len(), "{args:?}");
    }
}

#[test]
fn a_result_comes_before_the_next_line_and_ctrl_c_ends_the_wait_for_it() {
    let mut child = batch(&[]);
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for id in 0..2 {
        writeln!(input, "{}", json!({"id": id, "prompt": "Hello", "max_tokens": 2})).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["id"], id, "{line}");
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// Catches: what a line or a flag says and nobody heeds, fields that are given twice.
#[test]
fn nothing_that_a_line_or_a_flag_says_is_ignored() {
    let error = |line: &str, args: &[&str]| {
        let mut child = batch(&[args, &["--max-tokens", "1"]].concat());
        let _ = child.stdin.take().unwrap().write_all(line.as_bytes());
        let output = child.wait_with_output().unwrap();
        results(&output)[0]["error"].as_str().map(str::to_owned)
    };
    let messages = r#"{"messages": [{"role": "user", "content": "Hello"}]}"#;
    let raw = r#"{"prompt": "a", "raw": true}"#;
    for (line, args, part) in [
        (messages, &["--system", "x"][..], "\"system\""),
        (messages, &["--prefill-response", "x"], "\"prefill_response\""),
        (raw, &["--system", "x"], "\"system\""),
        (raw, &["--date", "2020-01-01"], "\"date\""),
        (r#"{"prompt": "a", "raw": true, "template_args": {"x": 1}}"#, &[], "\"template_args\""),
        (r#"{"prompt": "a", "tools": 5}"#, &[], "list of tools"),
        (r#"{"prompt": "a", "prompt": "b"}"#, &[], "duplicate field `prompt`"),
        (r#"{"prompt": "a", "logprobs": 4294967296}"#, &[], "logprobs"),
    ] {
        let told = error(line, args).unwrap_or_default();
        assert!(told.contains(part), "{line} {args:?}: {told}");
    }
    for (line, args) in [(messages, &[][..]), (raw, &[]), (r#"{"prompt": "a"}"#, &["--prefill-response", "The sky"])] {
        assert_eq!(error(line, args), None, "{line} {args:?}");
    }
    // What no line can do is said once.
    let mut child = batch(&["--regex", "("]);
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]));
}

/// Catches: lines that read again what a file has, or what others have read, where there is such a file.
#[test]
fn lines_go_on_from_a_prompt_cache_as_from_each_other() {
    crate::compute_on_cpu();
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("story.safetensors");
    let story = "Once upon a time there was a small girl who lived in a village where it often rained. ".repeat(3);
    let made = Command::new(env!("CARGO_BIN_EXE_mlx_lm"))
        .args(["cache-prompt", "--raw", "--prompt", &story, "-o"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let other = "The old lighthouse had been dark for a hundred years. Nobody went there but a fox called Lucy. ";
    let lines: Vec<Value> = (0..6)
        .map(|i| json!({"prompt": format!("{}{i}", if i % 2 == 0 { &story } else { other }), "raw": true, "max_tokens": 4}))
        .collect();
    // Results, and how many tokens of each prompt were read.
    let answers = |args: &[&str]| -> (Vec<Value>, Vec<u64>) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mlx_lm"))
            .args(["--batch", "-", "--parallel", "1", "--verbose"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        let read = |line: &str| {
            let (all, rest) = line.strip_prefix("prompt: ")?.split_once(" tokens, ")?;
            Some(rest.split_once(" of them read").map_or(all, |(read, _)| read).parse().unwrap())
        };
        (results(&output), said.lines().filter_map(read).collect())
    };
    let (without, all) = answers(&[]);
    let (with, rest) = answers(&["--prompt-cache", file.to_str().unwrap()]);
    assert_eq!(with, without);
    assert!(all[0] > 60 && rest[0] < 10 && rest[1..] == all[1..] && all[2] < 10, "{rest:?}, {all:?}");
}
