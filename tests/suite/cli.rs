//! The `mlx_lm` command as shells and people use it, on the demo model.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use assert_cmd::assert::OutputAssertExt;
use mlx_lm::backend::cpu::InstructionSet;

use serde_json::{Value, json};

const NOTICE: &str = "using the demo model inside this program; --model-root PATH runs another\n";

fn mlx_lm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
    command.args(args);
    command
}

/// Run to the end with `input` on stdin.
fn run_with(args: &[&str], input: &str) -> Output {
    let mut child = mlx_lm(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses its arguments may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// stdout of a run that succeeds.
fn stdout(args: &[&str]) -> String {
    let output = run_with(args, "");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn stdout_is_the_text_and_nothing_else() {
    let output = run_with(&["--max-tokens", "12"], "");
    assert_eq!(String::from_utf8_lossy(&output.stderr), NOTICE);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.is_empty() && !text.ends_with('\n') && !text.contains("<|"), "{text:?}");
    assert_eq!(text, stdout(&["--max-tokens", "12", "--prompt", "In the beginning the Universe was created."]));
}

#[test]
fn formats_agree() {
    let args = ["--max-tokens", "16", "--prompt", "Tell me a story", "--format"];
    let with = |format| stdout(&[&args[..], &[format]].concat());
    let text = with("text");
    let json = &lines(&with("json"))[0];
    assert_eq!(json["text"], text);
    assert_eq!((&json["finish_reason"], &json["generated_tokens"]), (&"length".into(), &16.into()));

    let events = lines(&with("jsonl"));
    let (prefill, done) = (events.first().unwrap(), events.last().unwrap());
    assert_eq!(prefill["event"], "prefill");
    assert_eq!(prefill["prompt_tokens"], done["prompt_tokens"]);
    assert_eq!(done["event"], "done");
    assert_eq!(done["text"], text);
    for rate in ["prompt_tps", "generation_tps", "peak_memory_bytes"] {
        assert!(done[rate].as_f64().unwrap() > 0.0, "{rate}");
    }
    let tokens = &events[1..events.len() - 1];
    assert_eq!(tokens.len(), 16);
    assert_eq!(tokens.iter().map(|t| t["text"].as_str().unwrap()).collect::<String>(), text);
    assert!(tokens.iter().all(|t| t["event"] == "token" && t["id"].is_u64() && t["logprob"].as_f64().unwrap() <= 0.0));
}

#[test]
fn top_logprobs_are_ranked_and_hold_the_greedy_token() {
    let events = lines(&stdout(&["--max-tokens", "8", "--format", "jsonl", "--logprobs", "3"]));
    for token in &events[1..events.len() - 1] {
        let top = token["top_logprobs"].as_array().unwrap();
        let logprobs: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert_eq!((top.len(), &top[0]["id"], &top[0]["logprob"]), (3, &token["id"], &token["logprob"]));
        assert!(logprobs.is_sorted_by(|a, b| a >= b) && logprobs.iter().map(|x| x.exp()).sum::<f64>() <= 1.0001);
    }
}

#[test]
fn stop_strings_cut_the_text_even_within_a_token() {
    let whole = stdout(&["--max-tokens", "24"]);
    for stop in [&whole[5..8], &whole[10..20], &whole[30..31]] {
        let events = lines(&stdout(&["--max-tokens", "24", "--stop", "never", "--stop", stop, "--format", "jsonl"]));
        let done = events.last().unwrap();
        assert_eq!(done["text"], whole[..whole.find(stop).unwrap()], "stop {stop:?}");
        assert_eq!(done["finish_reason"], "stop");
    }
}

#[test]
fn generation_ends_at_eos_unless_told_otherwise() {
    let args = ["--prompt", "Hello", "--max-tokens", "80", "--format", "json"];
    let ended = &lines(&stdout(&args))[0];
    assert_eq!(ended["finish_reason"], "stop");
    let on = &lines(&stdout(&[&args[..], &["--ignore-eos"]].concat()))[0];
    assert_eq!((&on["finish_reason"], &on["generated_tokens"]), (&"length".into(), &80.into()));
    assert!(on["text"].as_str().unwrap().starts_with(ended["text"].as_str().unwrap()));
}

#[test]
fn a_full_context_ends_the_text() {
    let done = &lines(&stdout(&[
        "--prompt",
        "Tell me a story",
        "--raw",
        "--ignore-eos",
        "--context-size",
        "20",
        "--overflow",
        "error",
        "--format",
        "json",
    ]))[0];
    // The last token is never fed back, so it may be one more than the context holds.
    let total = done["prompt_tokens"].as_u64().unwrap() + done["generated_tokens"].as_u64().unwrap();
    assert_eq!((&done["finish_reason"], total), (&"length".into(), 21));
}

/// By default the oldest tokens but the sinks go, and the text does not end.
#[test]
fn a_full_context_streams() {
    let run = |args: &[&str]| {
        let output = run_with(&[&["--ignore-eos", "--max-tokens", "30", "--format", "json"], args].concat(), "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let warnings: Vec<String> =
            stderr.lines().filter(|line| !line.starts_with("using the demo")).map(str::to_owned).collect();
        (lines(&String::from_utf8(output.stdout).unwrap())[0].clone(), warnings)
    };
    let (done, warnings) = run(&["--context-size", "24"]);
    assert_eq!((&done["finish_reason"], &done["generated_tokens"]), (&"length".into(), &30.into()));
    assert!(done["evicted_tokens"].as_u64().unwrap() >= 15, "{done}");
    assert_eq!(warnings, &[] as &[String]);

    let long = "one two three four five six seven eight nine ten ".repeat(4);
    let (done, warnings) = run(&["--context-size", "24", "--prompt", &long]);
    assert!(done["evicted_tokens"].as_u64().unwrap() > done["prompt_tokens"].as_u64().unwrap(), "{done}");
    assert!(warnings[0].starts_with("the prompt is longer than the context: "), "{warnings:?}");
    // Truncated, it is a prompt of its own: sinks and end.
    let (cut, warnings) = run(&["--context-size", "24", "--prompt", &long, "--overflow", "truncate"]);
    let expected = format!("{} of its {} tokens", cut["prompt_tokens"].as_u64().unwrap() - 24, cut["prompt_tokens"]);
    assert!(warnings[0].contains(&expected), "{warnings:?}");

    for (args, expected) in [
        (&["--context-size", "24", "--num-sink-tokens", "0"][..], "without sink tokens"),
        (&["--context-size", "4096"], "longer than the 1024"),
        (&["--context-size", "40", "--eviction-batch-percent", "3"], "evicting 1 of 36 tokens at a time"),
    ] {
        let (_, warnings) = run(args);
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{args:?}: {warnings:?}");
    }
    // Nothing to warn of where nothing will be evicted.
    assert_eq!(run(&["--context-size", "100", "--num-sink-tokens", "0"]).1, &[] as &[String]);
}

#[test]
fn sinks_leave_room_for_recent_tokens() {
    for (context, sinks, code) in [("6", "4", 0), ("5", "4", 2), ("4", "4", 2), ("2", "0", 0), ("3", "2", 2)] {
        let args = ["--context-size", context, "--num-sink-tokens", sinks, "--max-tokens", "12"];
        let output = run_with(&args, "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(code == 2, stderr.contains("--num-sink-tokens is "), "{stderr}");
    }
}

#[test]
fn a_seed_repeats_its_text() {
    let with = |seed| stdout(&["--max-tokens", "24", "--temp", "3.0", "--top-p", "0.999", "--seed", seed]);
    assert_eq!(with("1"), with("1"));
    assert_ne!(with("1"), with("2"));
}

#[test]
fn a_prompt_comes_from_stdin_or_a_file_byte_for_byte() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("prompt.txt");
    let prompt = "  two spaces, a tab\t, é and a newline\n";
    std::fs::write(&file, prompt).unwrap();
    let file = file.to_str().unwrap();
    let text = |output: Output| lines(&String::from_utf8(output.stdout).unwrap())[0]["text"].clone();
    let tokenize = |args: &[&str]| run_with(&[&["tokenize", "--raw", "--format", "json"], args].concat(), prompt);
    assert_eq!(text(tokenize(&["--prompt", "-"])), prompt);
    assert_eq!(text(tokenize(&["--prompt-file", file])), prompt);
    assert_eq!(text(tokenize(&["--prompt-file", "-"])), prompt);
}

#[test]
fn tokenize_shows_the_rendered_prompt() {
    let shown = &lines(&stdout(&["tokenize", "--format", "json", "--system", "Be brief.", "--prompt", "Hi"]))[0];
    let text = shown["text"].as_str().unwrap();
    assert!(text.contains("Be brief.") && text.contains("Hi"), "{text}");
    let (ids, pieces) = (shown["ids"].as_array().unwrap(), shown["pieces"].as_array().unwrap());
    assert_eq!(ids.len(), pieces.len());
    assert_eq!(ids.iter().filter(|&id| *id == ids[0]).count(), 1, "one BOS: {ids:?}");
    // Templated and raw are the same text by two ways.
    let raw = &lines(&stdout(&["tokenize", "--format", "json", "--raw", "--prompt", text]))[0];
    assert_eq!(raw["ids"], shown["ids"]);
}

#[test]
fn messages_are_a_whole_conversation() {
    let messages =
        r#"[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."},{"role":"user","content":"Bye"}]"#;
    let output = run_with(&["tokenize", "--format", "json", "--messages", "-"], messages);
    let text = lines(&String::from_utf8(output.stdout).unwrap())[0]["text"].as_str().unwrap().to_owned();
    let at = |s| text.find(s).unwrap_or_else(|| panic!("{s} in {text}"));
    assert!(at("Hi") < at("Hello.") && at("Hello.") < at("Bye"));
}

#[test]
fn a_batch_answers_every_line_in_order() {
    let batch = r#"{"id": "a", "prompt": "Tell me a story", "max_tokens": 6}
not json
{"id": 3, "prompt": "Hello", "top_p": 7}

{"id": 4, "prompt": "Hello", "tmep": 1}
{"id": [5], "messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": 6}
{"id": 6}
{"prompt": "x", "raw": true, "system": "y"}
"#;
    let output = run_with(&["--batch", "-"], batch);
    assert_eq!(output.status.code(), Some(1));
    let results = lines(&String::from_utf8(output.stdout).unwrap());
    let numbers: Vec<u64> = results.iter().map(|r| r["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(results[0]["text"], stdout(&["--prompt", "Tell me a story", "--max-tokens", "6"]));
    assert_eq!((&results[0]["id"], &results[4]["id"]), (&"a".into(), &serde_json::json!([5])));
    assert_eq!(results[4]["text"], results[0]["text"]);
    for (i, part) in [(1, "not JSON"), (2, "top_p is 7"), (3, "tmep"), (5, "prompt"), (6, "raw")] {
        assert!(results[i]["error"].as_str().unwrap().contains(part), "{}", results[i]);
    }

    let good = run_with(&["--batch", "-", "--max-tokens", "1"], "{\"prompt\": \"Hello\"}\n");
    assert_eq!(good.status.code(), Some(0));
}

#[test]
fn out_of_range_values_are_usage_errors_that_state_the_range() {
    let cases = [
        (["--temp", "-1"], "from 0 up"),
        (["--temp", "nan"], "from 0 up"),
        (["--top-p", "1.5"], "from 0 to 1"),
        (["--min-p", "-0.1"], "from 0 to 1"),
        (["--eviction-batch-percent", "0"], "from 1 to 50"),
        (["--eviction-batch-percent", "51"], "from 1 to 50"),
        (["--context-size", "1"], "from 2"),
        (["--num-sink-tokens", "-1"], "from 0"),
        (["--prefill-step", "0"], "from 1"),
        (["--repetition-penalty", "0"], "above 0"),
        (["--presence-penalty", "inf"], "finite"),
        (["--stop", ""], "some text"),
        (["--seed", "-1"], "-1"),
        (["--logit-bias", "5"], "ID=VALUE"),
        (["--template-arg", "x=yes"], "JSON"),
        (["--date", "2025-13-01"], "2025-13-01"),
        (["--max-tokens", "many"], "many"),
        (["--device", "tpu"], "cpu, gpu"),
        (["--format", "xml"], "text, json, jsonl"),
    ];
    for (args, expected) in cases {
        let output = run_with(&args, "");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(args[0]) && stderr.contains(expected), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let mut child =
        mlx_lm(&["--max-tokens", "400", "--ignore-eos"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap(); // and the pipe is closed here
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), NOTICE));
}

#[test]
fn ctrl_c_and_sigterm_stop_a_generation_and_keep_its_text() {
    use nix::sys::signal::{Signal, kill};
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child =
            mlx_lm(&["--max-tokens", "100000", "--context-size", "200000", "--ignore-eos", "--format", "jsonl"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
        let mut events = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let begun: Vec<String> = events.by_ref().take(6).collect();
        kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
        let all: Vec<String> = begun.into_iter().chain(events).collect();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let done: Value = serde_json::from_str(all.last().unwrap()).unwrap();
        assert_eq!(done["finish_reason"], "abort");
        assert!(done["text"].as_str().unwrap().len() > 5);
        assert!(stderr.contains("generation:") && stderr.contains("tokens/s"), "{stderr}");
    }
}

#[test]
fn results_are_the_same_for_any_number_of_threads() {
    // Long enough for products of matrices, then of vectors.
    let prompt = "The old lighthouse had been dark for a hundred years. ".repeat(8);
    let args = ["--prompt", &prompt, "--raw", "--max-tokens", "24", "--format", "jsonl", "--logprobs", "5"];
    let run = |threads| {
        let mut events = lines(&stdout(&[&args[..], &["--threads", threads]].concat()));
        events.pop(); // the last one has timings
        events
    };
    let one = run("1");
    assert_eq!(one.len(), 25);
    for threads in ["2", "3", "7"] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}

#[test]
fn kernels_can_be_forced_and_verbose_names_them() {
    for kernels in InstructionSet::available().into_iter().map(InstructionSet::name).chain(["mlx"]) {
        let found = mlx_lm(&["--prompt", "Hi", "--max-tokens", "2", "--verbose"])
            .env("MLX_LM_KERNELS", kernels)
            .assert()
            .success();
        let stderr = String::from_utf8(found.get_output().stderr.clone()).unwrap();
        let expected = if kernels == "mlx" { "MLX's own" } else { kernels };
        assert!(stderr.contains(&format!("kernels: {expected}")), "{stderr}");
    }
    let found = mlx_lm(&["--prompt", "Hi"]).env("MLX_LM_KERNELS", "sse").assert().code(2);
    let stderr = String::from_utf8(found.get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("--kernels is sse") && stderr.contains("mlx, portable, avx2, avx512 or amx"), "{stderr}");
}

#[test]
fn bench_reports_every_figure() {
    let found = lines(&stdout(&["bench", "-p", "20", "-g", "5", "-n", "3", "--depth", "30", "--format", "json"]));
    let result = &found[0];
    for key in ["prefill_tps", "decode_tps"] {
        let of = |which: &str| result[key][which].as_f64().unwrap();
        assert!(0.0 < of("min") && of("min") <= of("median") && of("median") <= of("max"), "{result}");
    }
    for key in ["load_s", "peak_memory_bytes", "read_bandwidth_gbps", "decode_bandwidth_share", "prefill_tflops"] {
        assert!(result[key].as_f64().unwrap() > 0.0, "{key}: {result}");
    }
    assert_eq!((result["device"].as_str(), result["n_depth"].as_u64()), (Some("cpu"), Some(30)));
    let text = stdout(&["bench", "-p", "20", "-g", "5", "-n", "1", "--temp", "0.7", "--top-p", "0.9"]);
    assert!(text.contains("prefill     20:") && text.contains("decode       5:"), "{text}");
    mlx_lm(&["bench", "--bits", "8"]).assert().code(2);
    mlx_lm(&["bench", "--synthetic", "tinyllama", "--bits", "5"]).assert().code(2);
}

#[test]
fn help_completions_and_man_pages_exist() {
    for flag in [
        "--model-root",
        "--prompt",
        "--max-tokens",
        "--temp",
        "--top-p",
        "--context-size",
        "--num-sink-tokens",
        "--eviction-batch-percent",
        "--seed",
        "--verbose",
    ] {
        assert!(stdout(&["--help"]).contains(flag), "{flag}");
    }
    assert!(stdout(&["completions", "bash"]).contains("--model-root"));
    let scratch = tempfile::tempdir().unwrap();
    stdout(&["man", scratch.path().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(scratch.path().join(name)).unwrap();
    assert!(page("mlx_lm.1").contains("model\\-root"));
    // A flag that is needed stands in the synopsis, and its value with it.
    assert!(page("mlx_lm-cache-prompt.1").contains("cache\\-prompt\\fR [OPTIONS] \\-\\-output <FILE> [PROMPT]\n"));
}

#[test]
fn a_prompt_may_stand_alone_come_from_a_pipe_or_be_short_to_type() {
    let plain = stdout(&["--prompt", "What colour is the sky?", "--max-tokens", "8", "--temp", "0"]);
    assert_eq!(stdout(&["What colour is the sky?", "-n", "8", "-t", "0"]), plain);
    assert_eq!(stdout(&["-n", "8", "-p", "What colour is the sky?"]), plain);
    for line in ["What colour is the sky?", "What colour is the sky?\n", "What colour is the sky?\r\n"] {
        let output = run_with(&["-n", "8"], line);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), plain, "{line:?}");
    }
    let tokens = |args: &[&str], input| String::from_utf8(run_with(args, input).stdout).unwrap();
    assert_eq!(tokens(&["tokenize", "Hello there"], ""), tokens(&["tokenize"], "Hello there\n"));
    assert_ne!(
        tokens(&["tokenize", "--raw", "--prompt", "-"], "Hello there\n"),
        tokens(&["tokenize", "--raw"], "Hello there\n"),
        "--prompt - is byte for byte"
    );
    // The tools are on standard input, so the prompt is not.
    let with_tools = run_with(&["tokenize", "--tools", "-"], "[]");
    assert!(String::from_utf8(with_tools.stdout).unwrap().contains("In the beginning"));
}

#[test]
fn a_command_line_that_asks_for_what_cannot_be_is_wrong_usage() {
    let cases: [(&[&str], &str); 10] = [
        (&["tokenise", "--prompt", "hi"], "\"tokenize\" is one"),
        (&["bnech"], "\"bench\" is one"),
        (&["Hello", "--prompt", "hi"], "--prompt"),
        (&["Hello", "--batch", "-"], "--batch"),
        (&["--batch", "-", "--tools", "-"], "--batch and --tools"),
        (&["--messages", "-", "--tools", "-"], "--messages and --tools"),
        (&["-p", "x", "--logprobs", "3"], "--format json"),
        (&["-p", "x", "--logit-bias", "99999=5"], "ends at 2047"),
        (&["-p", "x", "--threads", "100000"], "1 to 512"),
        (&["-p", "x", "--seed", "often"], "random"),
    ];
    for (args, expected) in cases {
        let output = run_with(args, "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
}

#[test]
fn a_model_that_is_not_there_is_explained() {
    let scratch = tempfile::tempdir().unwrap();
    let empty = scratch.path().to_str().unwrap();
    for (root, expected) in [
        ("./no/such/place", "No such file"),
        (empty, "there is no model in this directory"),
        ("/dev/null", "neither a directory nor an .mlxpack"),
    ] {
        let output = run_with(&["-m", root, "-p", "x"], "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{root}: {stderr}");
    }
}

#[test]
fn a_file_without_permission_says_so() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = scratch.path().join("x.mlxpack");
    fs::write(&file, "x").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = mlx_lm(&["-p", "x", "-m", file.to_str().unwrap()]);
    if fs::read(&file).is_ok() {
        command.uid(65534); // root may read everything
    }
    let Ok(output) = command.output() else { return }; // nobody may not run what lies below root's home
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("Permission denied") && !stderr.contains("neither"), "{stderr}");
}

#[test]
fn a_random_seed_is_another_each_time() {
    let text = |seed| stdout(&["-p", "Tell me a story", "-n", "30", "-t", "1.5", "--ignore-eos", "--seed", seed]);
    assert_eq!(text("7"), text("7"));
    assert!((0..3).any(|_| text("random") != text("random")));
}

#[test]
fn lines_of_a_batch_take_what_flags_take() {
    let batch = |input: &str| {
        let output = run_with(&["--batch", "-", "--max-tokens", "6"], input);
        lines(&String::from_utf8(output.stdout).unwrap())
    };
    let first = stdout(&["-p", "Hi", "-n", "1", "--format", "json", "--logprobs", "0"]);
    let first = &lines(&first)[0]["tokens"][0]["id"];
    let input = [
        json!({"prompt": "Hi", "logit_bias": {first.to_string(): "-inf"}, "logprobs": 2}),
        json!({"prompt": "Hi", "logit_bias": {first.to_string(): -100}, "logprobs": 2}),
        json!({"prompt": "Hi", "stop": "e", "overflow": "error", "context_size": 64, "seed": "random"}),
        json!({"prompt": "Hi", "stop": ["e"], "prefill_step": 1, "num_sink_tokens": 2, "eviction_batch_percent": 20}),
        json!({"prompt": "Hi", "temp": "hot"}),
        json!({"prompt": "Hi", "colour": 1}),
        json!({"prompt": "Hi", "top_p": 2}),
        json!({"prompt": "Hi", "logit_bias": {"99999": 1}}),
        json!(null),
        json!(["prompt"]),
    ];
    let results = batch(&input.map(|line| line.to_string()).join("\n"));
    assert_ne!(&results[0]["tokens"][0]["id"], first);
    assert_eq!(results[0]["tokens"], results[1]["tokens"]);
    assert_eq!(results[0]["tokens"][0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(results[2]["text"], results[3]["text"]);
    assert!(!results[2]["text"].as_str().unwrap().contains('e'));
    for (result, expected) in results[4..].iter().zip([
        "`temp`: invalid type",
        "unknown field `colour`",
        "top_p is 2, expected a number from 0 to 1",
        "99999",
        "expected an object, such as {\"prompt\": \"Hello\"}, not null",
        "expected an object",
    ]) {
        assert!(result["error"].as_str().unwrap().contains(expected), "{result}");
    }
}

#[test]
fn an_answer_that_was_begun_is_continued() {
    let begun = "<|bos|><|user|>What colour is the sky?<|end|><|assistant|>The sky";
    let scratch = tempfile::tempdir().unwrap();
    let messages = scratch.path().join("messages.json");
    let conversation =
        json!([{"role": "user", "content": "What colour is the sky?"}, {"role": "assistant", "content": "The sky"}]);
    fs::write(&messages, conversation.to_string()).unwrap();
    let question = ["-p", "What colour is the sky?", "--prefill-response", "The sky"];
    for prompt in [&question[..], &["--messages", messages.to_str().unwrap()]] {
        let tokens = &lines(&stdout(&[&["tokenize", "--format", "json"], prompt].concat()))[0];
        assert_eq!(tokens["text"], begun);
        assert_eq!(stdout(&[&["-n", "4"], prompt].concat()), " is blue.", "{prompt:?}");
    }
    let line = json!({"prompt": "What colour is the sky?", "prefill_response": "The sky", "max_tokens": 4});
    let output = run_with(&["--batch", "-"], &line.to_string());
    assert_eq!(lines(&String::from_utf8(output.stdout).unwrap())[0]["text"], " is blue.");
}
