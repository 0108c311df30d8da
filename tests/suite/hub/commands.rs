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

#[test]
fn a_model_is_pulled_listed_and_removed() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let cache = scratch.path();
    let snapshot = cache.join("models--org--demo/snapshots").join(COMMIT);
    let none = mlx_lm(&hub, &cache.join("not there"), &["list"]);
    assert!(String::from_utf8_lossy(&none.stderr).starts_with("there are no models at "));
    assert_eq!(stdout(none), "");

    for _ in 0..2 {
        let path = stdout(mlx_lm(&hub, cache, &["pull", "org/demo", "org/demo@v1"]));
        assert_eq!(path, format!("{0}\n{0}\n", snapshot.display()));
    }
    let mut strange = demo();
    strange.set("config.json", r#"{"model_type": "t5", "torch_dtype": "float32"}"#);
    hub.put("org/strange", strange);
    stderr(mlx_lm(&hub, cache, &["pull", "org/strange"]));
    let table = "\
        NAME         REVISION      SIZE  TYPE   BITS  RUNS\n\
        org/demo     main,v1   3.31 MiB  llama     4  yes\n\
        org/strange  01234567      46 B  t5       32  no: config.json: model_type \"t5\" is not supported; supported: ";
    let listed = stdout(mlx_lm(&hub, cache, &["list"]));
    assert!(listed.starts_with(table), "{listed}");

    let listed: Value = serde_json::from_str(&stdout(mlx_lm(&hub, cache, &["list", "--format", "json"]))).unwrap();
    let demo = &listed[0];
    assert_eq!(
        (&demo["name"], &demo["commit"], &demo["model_type"]),
        (&"org/demo".into(), &COMMIT.into(), &"llama".into())
    );
    assert_eq!((&demo["bits"], &demo["runs"], &demo["revisions"][1]), (&4.into(), &true.into(), &"v1".into()));
    assert_eq!(demo["path"], snapshot.to_str().unwrap());
    assert!(demo["bytes"].as_u64().unwrap() > 3 << 20 && demo.get("problem").is_none());
    assert!(listed[1]["runs"] == false && listed[1]["problem"].is_string());

    let said = stderr(mlx_lm(&hub, cache, &["rm", "org/dmeo"]));
    assert!(said.contains("not in the cache at ") && said.ends_with("; did you mean org/demo?\n"), "{said}");
    let said = stderr(mlx_lm(&hub, cache, &["rm", "org/demo@v2"]));
    assert!(said.contains("did you mean org/demo@main or org/demo@v1?"), "{said}");
    assert_eq!(stdout(mlx_lm(&hub, cache, &["rm", "org/demo", "org/strange"])).lines().count(), 2);
    assert_eq!(stdout(mlx_lm(&hub, cache, &["list", "--format", "json"])), "[]\n");
    assert!(!cache.join("models--org--demo").exists() && !cache.join(".locks/models--org--demo").exists());
}

/// What two commits share stays with the other one.
#[test]
fn one_commit_of_two_is_removed() {
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let cache = scratch.path();
    stdout(mlx_lm(&hub, cache, &["pull", "org/demo"]));
    let mut newer = demo();
    newer.revisions = vec![("main".to_owned(), OTHER.to_owned())];
    newer.set("LICENSE", "Do what you must.\n");
    hub.put("org/demo", newer);
    // The cache answers for what it has; who wants news pulls.
    let requests = hub.requests().len();
    stdout(mlx_lm(&hub, cache, &QUESTION));
    assert_eq!(hub.requests().len(), requests);
    assert!(stdout(mlx_lm(&hub, cache, &["pull", "org/demo"])).contains(OTHER));
    assert_eq!(hub.downloads(demo().file("model.safetensors")).len(), 1, "the weights are the same");
    let listed = stdout(mlx_lm(&hub, cache, &["list"]));
    assert!(listed.contains("org/demo  01234567") && listed.contains("org/demo  main    "), "{listed}");

    assert_eq!(stdout(mlx_lm(&hub, cache, &["rm", "org/demo@0123456"])), "removed org/demo@0123456: 18 B freed\n");
    assert_eq!(stdout(mlx_lm(&hub, cache, &["-m", "org/demo", "--offline", QUESTION[2]])), "The sky is blue.");
    let said = stdout(mlx_lm(&hub, cache, &["rm", "org/demo@main"]));
    assert!(said.contains(" MiB freed"), "{said}");
    assert!(!cache.join("models--org--demo").exists());
}

#[test]
fn a_path_that_is_there_is_no_name() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    crate::unpack_demo(&scratch.path().join("org/demo"));
    let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, &scratch.path().join("cache"));
    assert_eq!(stdout(command.args(QUESTION).current_dir(&scratch).output().unwrap()), "The sky is blue.");
    assert!(hub.requests().is_empty());
}

#[test]
fn every_command_takes_a_name() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let cache = scratch.path();
    let text = cache.join("text");
    fs::write(&text, "The sky looks blue.").unwrap();
    let (text, pack, prompt) = (text.to_str().unwrap(), cache.join("x.mlxpack"), cache.join("x.safetensors"));
    let (pack, prompt) = (pack.to_str().unwrap(), prompt.to_str().unwrap());
    let converted = cache.join("converted");
    let converted = converted.to_str().unwrap();
    stdout(mlx_lm(&hub, cache, &["pull", "org/demo"]));
    for args in [
        &["chat", "-m", "org/demo", "--offline"][..],
        &["tokenize", "-m", "org/demo@v1", "-p", "Hi"],
        &["perplexity", "-m", "org/demo", "--file", text],
        &["cache-prompt", "-m", "org/demo", "-p", "Hi", "-o", prompt],
        &["bench", "-m", "org/demo", "-p", "2", "-g", "1", "-n", "1"],
        &["convert", "-m", "org/demo", "-o", converted, "--dequantize"],
    ] {
        stdout(mlx_lm(&hub, cache, args));
    }
    for args in [&["info", "org/demo"][..], &["pack", "--input", "org/demo", "--output", pack]] {
        stdout(program(env!("CARGO_BIN_EXE_mlxpack"), &hub, cache).args(args).output().unwrap());
    }
    assert_eq!(stdout(mlx_lm(&hub, cache, &["-m", pack, QUESTION[2]])), "The sky is blue.");
}

/// A pack is made from the name alone.
#[test]
fn a_name_is_packed() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let pack = scratch.path().join("x.mlxpack");
    let mut command = program(env!("CARGO_BIN_EXE_mlxpack"), &hub, &scratch.path().join("cache"));
    stdout(command.args(["pack", "--input", "org/demo@v1", "--output", pack.to_str().unwrap()]).output().unwrap());
    assert_eq!(stdout(mlx_lm(&hub, scratch.path(), &["-m", pack.to_str().unwrap(), QUESTION[2]])), "The sky is blue.");
}

#[cfg(feature = "server")]
#[test]
fn a_server_calls_its_models_as_the_hub_does() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, scratch.path());
    command.args(["serve", "--port", "0", "-m", "org/demo@v1", "-m", "small=org/demo"]).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let last = lines.inspect(|line| println!("{line}")).find(|line| line.starts_with("listening at"));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(last.is_some_and(|line| line.ends_with(", models: org/demo, small")));
}

/// As Python's client reads the environment.
#[test]
fn the_environment_says_where_and_who() {
    let scratch = tempfile::tempdir().unwrap();
    let hub = Hub::start();
    let private = super::stand_in::Repository { token: Some("hf_x".to_owned()), ..demo() };
    hub.put("org/demo", private);
    let root = scratch.path();
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    for folder in ["a", "b", "c", "home/.cache/huggingface"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for token in ["b/token", "home/.cache/huggingface/token", "token"] {
        fs::write(root.join(token), "hf_x\n").unwrap();
    }
    for (variables, cache) in [
        (&[("HF_HUB_CACHE", path("a")), ("HF_HOME", path("b")), ("HF_TOKEN", "hf_x\n".to_owned())][..], "a"),
        (&[("HF_HOME", path("b"))], "b/hub"),
        (&[("XDG_CACHE_HOME", path("c")), ("HF_TOKEN_PATH", path("token"))], "c/huggingface/hub"),
        (&[("HF_HOME", "~/own".to_owned()), ("HF_TOKEN_PATH", path("token"))], "home/own/hub"),
        (&[], "home/.cache/huggingface/hub"),
    ] {
        let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, Path::new(""));
        command
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_TOKEN_PATH")
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", path("home"));
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        let found = stdout(command.args(["pull", "org/demo"]).output().unwrap());
        let expected = root.join(cache).join("models--org--demo/snapshots").join(COMMIT);
        assert_eq!(found, format!("{}\n", expected.display()), "{variables:?}");
    }
}

#[test]
fn a_terminal_shows_bars() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    hub.fault(&sha256(demo().file("model.safetensors")), 1, super::stand_in::Kind::Hold(1 << 20));
    let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, scratch.path());
    command.args(["pull", "org/demo"]).env("TERM", "xterm");
    let mut terminal = rexpect::session::spawn_command(command, Some(60_000)).unwrap();
    terminal.exp_string("downloading org/demo: 5 files, 3.31 MiB").unwrap();
    terminal.exp_regex(r"model\.safetensors .*1\.00 MiB/3\.26 MiB").unwrap();
    terminal.exp_regex(r"in all .*/3\.31 MiB").unwrap();
    hub.open_gate();
    terminal.exp_string(COMMIT).unwrap();
    terminal.exp_eof().unwrap();
}
