//! What the hub refuses, what is refused of it, and that the token is nobody else's.

use std::fs;
use std::net::TcpListener;

use mlx_lm::Error;
use mlx_lm::error::HubProblem;
use mlx_lm::hub::{Events, Hub as Client, HubOptions, Token};
use serde_json::json;

use super::stand_in::{COMMIT, Hub, Kind, Repository, demo, sha256, sharded};
use super::{mlx_lm, name, options, problem, program, pull, stderr, stdout};

const TOKEN: &str = "hf_verysecret";

fn with_token(hub: &Hub, cache: &std::path::Path) -> HubOptions {
    HubOptions { token: Token::new(TOKEN), ..options(hub, cache) }
}

#[test]
fn each_refusal_has_its_words() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let cache = scratch.path();
    hub.put("org/private", Repository { token: Some(TOKEN.to_owned()), ..demo() });
    hub.put("org/gated", Repository { token: Some("another".to_owned()), is_gated: true, ..demo() });
    let (open, known) = (options(&hub, cache), with_token(&hub, cache));
    let page = format!("{}/org/gated", hub.endpoint());
    for (options, model, words) in [
        (
            &open,
            "org/none",
            "org/none: not a public model of 127.0.0.1: the name is wrong, or it is private and needs a token that may read it, in HF_TOKEN or by `hf auth login`",
        ),
        (
            &open,
            "org/private",
            "org/private: not a public model of 127.0.0.1: the name is wrong, or it is private and needs a token that may read it, in HF_TOKEN or by `hf auth login`",
        ),
        (&known, "org/none", "org/none: there is no such model at 127.0.0.1, or your token may not read it"),
        (
            &open,
            "org/gated",
            &format!(
                "org/gated: gated: its owners ask you to accept their terms at {page}, and HF_TOKEN or `hf auth login` then says who you are"
            ),
        ),
        (
            &known,
            "org/gated",
            &format!(
                "org/gated: gated: its owners ask you to accept their terms at {page}, as the user whose token you gave"
            ),
        ),
        (&open, "org/demo@v9", "org/demo@v9: it has no revision \"v9\""),
        (&open, "org/demo@refs/pr/1", "org/demo@refs/pr/1: it has no revision \"refs/pr/1\""),
    ] {
        assert_eq!(pull(options.clone(), model).unwrap_err().to_string(), words);
    }
    pull(known.clone(), "org/private").unwrap();

    hub.fault(
        "/api/models",
        1,
        Kind::Status(401, vec![("X-Error-Message", "Invalid credentials in Authorization header".into())]),
    );
    assert_eq!(problem(pull(known, "org/demo")), HubProblem::WrongToken { host: "127.0.0.1".to_owned() });
    hub.fault(
        "/api/models",
        1,
        Kind::Status(403, vec![("X-Error-Message", "Access to this resource is disabled.".into())]),
    );
    let error = pull(open.clone(), "org/demo").unwrap_err().to_string();
    assert_eq!(error, "org/demo: 127.0.0.1 refuses it with status 403: Access to this resource is disabled.");
    hub.fault(&sha256(demo().file("model.safetensors")), 1, Kind::Status(404, Vec::new()));
    let error = pull(open.clone(), "org/demo").unwrap_err().to_string();
    assert_eq!(error, "org/demo: localhost refuses it with status 404", "the other host knows no models");
    for body in ["<html>Log in to the hotel's network</html>", "{}", "{\"sha\": \"../../x\"}"] {
        hub.fault("/api/models", 1, Kind::Body(body.to_owned()));
        assert!(matches!(problem(pull(open.clone(), "org/demo")), HubProblem::NoHub { .. }), "{body}");
    }
    hub.fault("/api/models", 20, Kind::Status(302, vec![("Location", "/api/models/org/demo".into())]));
    assert!(pull(open, "org/demo").unwrap_err().to_string().contains("redirects without end"));
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (endpoint, words) in [
        (format!("http://{free}"), "org/demo: 127.0.0.1 cannot be reached: Connection refused"),
        ("http://no-such-host.invalid".to_owned(), "org/demo: no-such-host.invalid cannot be reached: "),
        ("huggingface.co".to_owned(), "the hub's address is \"huggingface.co\", expected https://HOST"),
        ("file:///etc".to_owned(), "the hub's address is "),
    ] {
        let options = HubOptions { endpoint, ..options(&hub, scratch.path()) };
        let error = pull(options, "org/demo").unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
}

#[test]
fn a_model_that_was_renamed_is_followed_and_told() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    hub.put("old/name", Repository { moved_to: Some("org/demo".to_owned()), ..demo() });
    let output = mlx_lm(&hub, scratch.path(), &["pull", "old/name"]);
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.contains("[WARN] old/name has moved: it is called \"org/demo\" now"), "{said}");
    assert!(stdout(output).contains("models--old--name"));
    // It is found under the name that was asked for.
    let found = Client::new(HubOptions { is_offline: true, ..options(&hub, scratch.path()) });
    found.get(&name("old/name"), &mut Events::none()).unwrap();
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.put("org/private", Repository { token: Some(TOKEN.to_owned()), ..demo() });
    let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, scratch.path());
    let output =
        command.args(["pull", "org/private"]).env("HF_TOKEN", TOKEN).env("RUST_LOG", "trace").output().unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    stdout(output);
    assert!(said.contains("[DEBUG]") && !said.contains(TOKEN), "{said}");
    assert!(!said.contains("GET./api"), "requests as they are sent, a few bytes a line: {said}");
    let bearer = format!("Bearer {TOKEN}");
    for request in hub.requests() {
        let sent = request.headers.get("authorization");
        assert_eq!(sent, (!request.is_cdn).then_some(&bearer), "{request:?}");
        assert!(!request.path.contains(TOKEN));
    }
    assert!(hub.requests().iter().any(|request| request.is_cdn));
    assert_eq!(format!("{:?}", with_token(&hub, scratch.path())).matches(TOKEN).count(), 0);
    // Nobody asks where that is forbidden.
    let before = hub.requests().len();
    hub.put("org/secret", Repository { token: Some(TOKEN.to_owned()), ..demo() });
    let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, scratch.path());
    let command = command.args(["pull", "org/secret"]).env("HF_TOKEN", TOKEN);
    assert!(!command.env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1").output().unwrap().status.success());
    let anonymous = &hub.requests()[before..];
    assert!(!anonymous.is_empty() && anonymous.iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn what_is_no_model_is_refused_before_it_is_downloaded() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    type Change = fn(&mut Repository);
    let cases: [(&str, Change, &str); 8] = [
        (
            "pickled",
            |r| r.files.retain(|(name, _)| name != "model.safetensors"),
            "org/pickled: its weights are pickled (pytorch_model.bin); reading those can run programs, so it is not done; look for the model with safetensors",
        ),
        (
            "gguf",
            |r| {
                r.files.retain(|(name, _)| name != "model.safetensors" && name != "pytorch_model.bin");
                r.set("q4.gguf", "GGUF");
            },
            "org/gguf: its weights are GGUF (q4.gguf); look for the model that it was made from",
        ),
        ("empty", |r| r.files.clear(), "org/empty: it has no model.safetensors, which a model needs"),
        (
            "bare",
            |r| r.files.retain(|(name, _)| name != "config.json"),
            "org/bare: it has no config.json, which a model needs",
        ),
        (
            "mute",
            |r| r.files.retain(|(name, _)| name != "tokenizer.json"),
            "org/mute: it has no tokenizer.json, which a model needs",
        ),
        ("strange", |r| r.set("config.json", r#"{"model_type": "t5"}"#), "model_type \"t5\" is not supported"),
        (
            "climbing",
            |r| climb(r, "../../../evil.safetensors"),
            "model.safetensors.index.json names \"../../../evil.safetensors\", which is no file of the repository",
        ),
        ("rooted", |r| climb(r, "/tmp/evil.safetensors"), "names \"/tmp/evil.safetensors\""),
    ];
    for (name, change, words) in cases {
        let mut repository = sharded(2);
        if !["climbing", "rooted"].contains(&name) {
            repository = demo();
        }
        change(&mut repository);
        hub.put(&format!("org/{name}"), repository);
        let error = pull(options(&hub, scratch.path()), &format!("org/{name}")).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(!hub.requests().iter().any(|request| request.is_cdn), "no weights were asked for");
    let outside = scratch.path().parent().unwrap().join("evil.safetensors");
    assert!(!outside.exists());
}

/// The index names a file outside, which the listing has too.
fn climb(repository: &mut Repository, file: &str) {
    repository.set("model.safetensors.index.json", json!({"weight_map": {"model.norm.weight": file}}).to_string());
    repository.set(file, "evil");
}

#[test]
fn nothing_but_the_model_is_fetched() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    let mut repository = sharded(2);
    repository.set("USE_POLICY.md", "Be good.");
    repository.set("LICENSE-THAT-IS-NONE", vec![b'x'; 2 << 20]);
    repository.set("license\nx", "odd");
    repository.set("chat_template.jinja", "{{ messages }}");
    repository.set("model-extra.safetensors", "extra");
    repository.set("tokenizer_config.json", "{}");
    hub.put("org/demo", repository);
    let snapshot = pull(options(&hub, scratch.path()), "org/demo").unwrap();
    let mut names: Vec<String> =
        fs::read_dir(&snapshot).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = [
        "LICENSE",
        "USE_POLICY.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    let requests = hub.requests().len();
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    assert_eq!(hub.requests().len(), requests + 1, "a model that is here costs a look at the listing");
}

#[test]
fn a_server_whose_listing_has_names_alone_tells_the_rest_of_each_file() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.put("org/demo", Repository { is_terse: true, ..demo() });
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    let heads: Vec<_> = hub.requests().into_iter().filter(|request| request.method == "HEAD").collect();
    assert!(!heads.is_empty() && heads.iter().all(|request| !request.is_cdn), "{heads:?}");
    assert_eq!(
        stdout(mlx_lm(&hub, scratch.path(), &["-m", "org/demo", "--offline", "What colour is the sky?"])),
        "The sky is blue."
    );
    // What is there in whole can be pulled without the network.
    let offline = HubOptions { is_offline: true, ..options(&hub, scratch.path()) };
    assert_eq!(pull(offline, "org/demo").unwrap(), pull(options(&hub, scratch.path()), "org/demo").unwrap());
}

#[test]
fn without_the_network_only_the_cache_counts() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let cache = scratch.path();
    let said = stderr(mlx_lm(&hub, cache, &["-m", "org/demo", "--offline", "x"]));
    let expected = format!(
        "error: org/demo: not in the cache at {}, and --offline or HF_HUB_OFFLINE keeps from the network; with one, `mlx_lm pull org/demo` fetches it\n",
        cache.display()
    );
    assert_eq!(said, expected);
    for value in ["1", "true", "YES", "on"] {
        let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, cache);
        assert!(
            stderr(command.args(["pull", "org/demo"]).env("HF_HUB_OFFLINE", value).output().unwrap())
                .contains("not in the cache")
        );
    }
    assert!(hub.requests().is_empty());

    pull(options(&hub, cache), "org/demo").unwrap();
    let snapshot = cache.join("models--org--demo/snapshots").join(COMMIT);
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    let requests = hub.requests().len();
    let said = stderr(mlx_lm(&hub, cache, &["-m", "org/demo", "--offline", "x"]));
    assert!(
        said.contains("the cache holds a part of it, without model.safetensors")
            && said.contains("`mlx_lm pull org/demo`"),
        "{said}"
    );
    assert_eq!(hub.requests().len(), requests);
    // With it, the rest is fetched; the blob is still there.
    stdout(mlx_lm(&hub, cache, &["-m", "org/demo", "x"]));
    assert_eq!(hub.downloads(demo().file("model.safetensors")).len(), 1);
}

#[test]
fn a_name_that_is_no_models_is_wrong_usage() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    for model in ["demo", "../x", "a/b/c", "a/b@../c", "https://huggingface.co/a/b"] {
        let output = mlx_lm(&hub, scratch.path(), &["pull", model]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("is no model's name; expected ORG/NAME"), "{said}");
    }
    let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, scratch.path());
    let output = command.args(["pull", "a/b"]).env("HF_TOKEN", "two words").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("HF_TOKEN holds characters that no token has"), "{said}");
    assert!(matches!(
        Client::new(options(&hub, scratch.path())).get(&name("a/b"), &mut Events::none()),
        Err(Error::Hub { .. })
    ));
}
