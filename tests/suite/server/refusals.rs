//! What is refused, with its name and a status that fits.

use std::fs;
use std::io::{BufReader, Write};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{Answer, Server, until, user, with};
use crate::compute_on_cpu;

/// Catches: fields that are ignored, errors that do not say which field is wrong.
#[test]
fn what_is_not_supported_is_refused_by_name() {
    compute_on_cpu();
    let server = Server::start(&["--default", "max_tokens=1"]);
    let chat = json!({"model": "demo", "messages": user("Hi")});
    assert_eq!(server.chat(&chat).status, 200);
    let message = |fields: Value| json!({"messages": [with(json!({"role": "user", "content": "Hi"}), &fields)]});
    let function = json!({"type": "function", "function": {"name": "f"}});
    let other_function = json!({"type": "function", "function": {"name": "g"}});
    let schema = json!({"name": "nothing", "schema": false});
    let nothing: serde_json::Map<_, _> = (0..2048).map(|id| (id.to_string(), json!("-inf"))).collect();
    let wrong = [
        (json!({"foo": 1}), "foo"),
        (json!({"store": true}), "store"),
        (json!({"metadata": {}}), "metadata"),
        (json!({"modalities": ["text"]}), "modalities"),
        (json!({"prediction": {}}), "prediction"),
        (json!({"functions": []}), "functions"),
        (json!({"service_tier": "auto"}), "service_tier"),
        (json!({"prefill_step": 1}), "prefill_step"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"min_p": -0.5}), "min_p"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens"),
        (json!({"seed": -1}), "seed"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (json!({"stream": 1}), "stream"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "Hi"}), "messages"),
        (message(json!({"role": "robot"})), "messages[0].role"),
        (message(json!({"audio": {}})), "messages[0].audio"),
        (message(json!({"content": 5})), "messages[0].content"),
        (message(json!({"content": null})), "messages[0].content"),
        (message(json!({"content": [{"type": "image_url", "image_url": {"url": "x"}}]})), "messages[0].content"),
        (message(json!({"content": [{"type": "text", "text": "x", "y": 1}]})), "messages[0].content"),
        (
            message(
                json!({"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "x"}}]}),
            ),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (json!({"parallel_tool_calls": false}), "parallel_tool_calls"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [with(function.clone(), &json!({"x": 1}))]}), "tools[0].x"),
        (json!({"tools": [function.clone()], "tool_choice": "often"}), "tool_choice"),
        (json!({"tools": [function.clone()], "tool_choice": ["function", ["f"]]}), "tool_choice"),
        (json!({"tools": [function.clone(), function.clone()]}), "tools[1].function.name"),
        (json!({"tools": [["function", ["f"]]]}), "tools[0]"),
        (json!({"messages": [["user", "Hi"]]}), "messages[0]"),
        (message(json!({"tool_calls": [[null, null, ["f", "{}"]]]})), "messages[0].tool_calls[0]"),
        (message(json!({"tool_calls": []})), "messages[0].tool_calls"),
        (message(json!({"reasoning_content": "x"})), "messages[0].reasoning_content"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": ["x", null, {}, null]}}),
            "response_format.json_schema",
        ),
        (json!({"logit_bias": {"1": 1, "01": 2}}), "logit_bias"),
        (json!({"regex": "[a-z]+", "logit_bias": nothing}), "logit_bias"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
        (
            json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}}),
            "chat_template_kwargs.enable_thinking",
        ),
        (json!({"tools": [function.clone()], "tool_choice": other_function}), "tool_choice.function.name"),
        (json!({"tools": [function.clone()], "response_format": {"type": "json_object"}}), "response_format"),
        // The demo model's template knows neither.
        (json!({"tools": [function]}), "tools"),
        (json!({"reasoning_effort": "low"}), "reasoning_effort"),
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), "chat_template_kwargs.enable_thinking"),
        (json!({"response_format": ["json_object"]}), "response_format"),
        (json!({"stream": true, "stream_options": [true]}), "stream_options"),
        (message(json!({"role": {"user": null}})), "messages[0].role"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "text", "x": 1}}), "response_format.x"),
        (json!({"response_format": {"type": "text", "json_schema": schema}}), "response_format.json_schema"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
            "response_format.json_schema.name",
        ),
        (json!({"response_format": {"type": "json_schema", "json_schema": schema}}), "response_format"),
        (json!({"json_schema": false}), "json_schema"),
        (json!({"regex": "("}), "regex"),
        (json!({"grammar": "start: x"}), "grammar"),
        (json!({"overflow": {"stream": null}}), "overflow"),
        (json!({"reasoning_effort": {"low": null}}), "reasoning_effort"),
        (message(json!({"name": "Ada"})), "messages[0].name"),
        (with(message(json!({"content": "x ".repeat(20_000)})), &json!({"overflow": "error"})), "messages"),
    ];
    for (fields, param) in wrong {
        let answer = server.chat(&with(chat.clone(), &fields));
        assert_eq!(answer.error(), (400, Some(param.to_owned())), "{fields}: {}", answer.body);
    }
    let completion = json!({"prompt": "Hi"});
    for (fields, param) in [
        (json!({"echo": true}), "echo"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[1], "x", {}]}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [9999]}), "prompt"),
        (json!({"messages": []}), "messages"),
    ] {
        let answer = server.post("/v1/completions", &with(completion.clone(), &fields));
        assert_eq!(answer.error(), (400, Some(param.to_owned())), "{fields}: {}", answer.body);
    }
    for (path, body, param) in [
        ("/v1/chat/completions", json!({}), Some("messages")),
        ("/v1/chat/completions", json!([]), None),
        ("/v1/tokenize", json!({}), Some("prompt")),
        ("/v1/tokenize", json!({"prompt": "x", "x": 1}), Some("x")),
        ("/v1/detokenize", json!({"tokens": [-1]}), Some("tokens[0]")),
        ("/v1/detokenize", json!({"tokens": [1, 99_999_999]}), Some("tokens")),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.error(), (400, param.map(str::to_owned)), "{body}: {}", answer.body);
    }
    for body in ["", "{", "{}x", "nul", "\u{0}", &"[".repeat(100_000)] {
        assert_eq!(server.ask("POST", "/v1/chat/completions", &[], body).error(), (400, None), "{body:.20}");
    }
    for (body, param) in [
        (r#"{"messages": [{"role": "user", "content": "Hi"}], "seed": 1, "seed": 2}"#, "seed"),
        (r#"{"messages": [{"role": "user", "content": "Hi", "content": "Ho"}]}"#, "messages[0].content"),
        (r#"{"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"1": 1, "1": 2}}"#, "logit_bias.1"),
    ] {
        let answer = server.ask("POST", "/v1/chat/completions", &[], body);
        assert_eq!(answer.error(), (400, Some(param.into())), "{body}: {}", answer.body);
    }
    // Null is what is left out.
    for fields in [
        json!({"max_tokens": 1, "max_completion_tokens": null}),
        json!({"stream": true, "stream_options": {"include_usage": null}}),
        message(json!({"refusal": null, "audio": null, "tool_calls": null})),
    ] {
        let answer = server.chat(&with(chat.clone(), &fields));
        assert_eq!(answer.status, 200, "{fields}: {}", answer.body);
    }
    // More than memory holds, by several fields.
    let huge = with(chat.clone(), &json!({"context_size": i32::MAX, "max_tokens": i32::MAX}));
    assert_eq!(server.chat(&huge).error(), (400, None));
    assert_eq!(server.chat(&chat).status, 200);
    let other = with(chat, &json!({"model": "../../etc/passwd"}));
    assert_eq!(server.chat(&other).error(), (404, Some("model".into())));
    assert_eq!(server.get("/v1/models/..%2f..%2fetc%2fpasswd").error(), (404, Some("model".into())));
    assert_eq!(server.get("/v1/models/%ff").error().0, 400);
    assert_eq!(server.get("/v1/nothing").error().0, 404);
    server.wait_for(r#"mlx_lm_requests_total{path="other",result="404"}"#, 1.0);
    let field = format!("X-Large: {}", "x".repeat(64 << 10));
    assert_eq!(server.ask("GET", "/v1/models", &[&field], "").error().0, 431);
    let many = json!({"prompt": vec!["x"; 300]});
    let answer = server.post("/v1/completions", &many);
    assert!(answer.error().0 == 400 && answer.body.contains("300 answers"), "{answer:?}");
    let answer = server.get("/v1/chat/completions");
    assert!(answer.error().0 == 405 && answer.headers.contains("allow: post"), "{answer:?}");
    let large = json!({"messages": user(&"x".repeat(9 << 20))});
    assert_eq!(server.chat(&large).error().0, 413);
}

#[test]
fn keys_hosts_and_origins_are_checked() {
    compute_on_cpu();
    let scratch = tempfile::tempdir().unwrap();
    let keys = scratch.path().join("keys");
    fs::write(&keys, "secret-1\nsecret-2\n").unwrap();
    let server = Server::start(&["--api-key-file", keys.to_str().unwrap(), "--cors", "https://example.com"]);
    for path in ["/v1/models", "/metrics", "/v1/models/demo"] {
        let answer = server.get(path);
        assert!(answer.error().0 == 401 && answer.headers.contains("www-authenticate: bearer"), "{answer:?}");
        assert_eq!(server.ask("GET", path, &["Authorization: Bearer secret"], "").status, 401);
        assert_eq!(server.ask("GET", path, &["Authorization: Bearer secret-2"], "").status, 200);
    }
    until("the model is there", || server.get("/health").status == 200);
    assert_eq!(server.get("/").status, 200);
    let preflight =
        ["Origin: https://example.com", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-a"];
    let answer = server.ask("OPTIONS", "/v1/chat/completions", &preflight, "");
    let allows = |answer: &Answer| answer.headers.contains("access-control-allow-origin: https://example.com");
    assert!(answer.status == 200 && allows(&answer), "{answer:?}");
    let page = |origin: &str| {
        server.ask("GET", "/v1/models", &["Authorization: Bearer secret-1", &format!("Origin: {origin}")], "")
    };
    assert!(allows(&page("https://example.com")));
    assert_eq!(page("https://example.org").error().0, 403);

    let server = Server::start(&[]);
    assert!(
        !server
            .ask("GET", "/v1/models", &[&format!("Origin: http://{}", server.address)], "")
            .headers
            .contains("access-control")
    );
    assert_eq!(server.ask("GET", "/v1/models", &["Origin: http://example.com"], "").error().0, 403);
    server.wait_for(r#"mlx_lm_requests_total{path="/v1/models",result="403"}"#, 1.0);
    let mut bent = server.connect();
    bent.write_all(b"GET /v1/models HTTP/1.0\r\nHost: example.com\r\n\r\n").unwrap();
    assert_eq!(Answer::read(BufReader::new(bent)).error().0, 403);

    let open = Command::new(env!("CARGO_BIN_EXE_mlx_lm"))
        .args(["serve", "--host", "0.0.0.0", "--port", "0"])
        .output()
        .unwrap();
    let said = String::from_utf8(open.stderr).unwrap();
    assert!(open.status.code() == Some(2) && said.contains("--no-api-key"), "{said}");
    for args in [
        &["--default", "temp=hot"][..],
        &["--default", "nothing=1"],
        &["--default", "temp"],
        &["--default", "logprobs=2"],
        &["--default", "regex=a"],
        &["--cors", "example.com"],
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_mlx_lm")).args(["serve", "--port", "0"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A body that was tampered with is a request, or an error that can be told. `fuzz/` does the same for longer.
#[test]
fn bodies_that_were_tampered_with_are_requests_or_errors() {
    let function =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}});
    let chat = json!({"model": "m", "messages": [{"role": "system", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "\u{e9}\n"}], "tools": [function], "tool_choice": "required",
        "stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 2, "stop": ["a", "b"],
        "temperature": 0.5, "logit_bias": {"1": -1.5}, "seed": 1, "n": 2, "reasoning_effort": "low", "max_tokens": null});
    let schema = json!({"messages": user("Hi"), "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}});
    let completion =
        json!({"prompt": [[1, 2], "x"], "logprobs": 1, "top_k": 3, "min_p": 0.1, "json_schema": {}, "user": "u"});
    let bodies = [chat, schema, completion].map(|body| body.to_string().into_bytes());
    let pieces: [&[u8]; 12] =
        [b"null", b"{}", b"[]", b"-1", b"1e999", b"\"\"", b",", b":", b"\\ud800", b"\xff", b"[[[[", b"\"stop\":7,"];
    let mut random = StdRng::seed_from_u64(0);
    for i in 0..60_000 {
        let mut body = bodies[i % bodies.len()].clone();
        for _ in 0..random.random_range(0..4) {
            let start = random.random_range(0..=body.len());
            let end = random.random_range(start..=body.len().min(start + 12));
            let piece = match random.random_range(0..3) {
                0 => pieces[random.random_range(0..pieces.len())].to_vec(),
                1 => vec![random.random()],
                _ => Vec::new(),
            };
            body.splice(start..end, piece);
        }
        let bytes: &[u8] = &body;
        include!("../../../fuzz/exercise_requests.rs")
    }
}
