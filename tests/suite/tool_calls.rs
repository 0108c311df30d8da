//! Calls of tools from end to end: what the grammar enforces, the parser reads, and the programs print.

use std::fs;
use std::process::Output;

use assert_cmd::Command;
use mlx_lm::generate::FinishReason;
use mlx_lm::generate::tools::{ToolChoice, tool_grammar};
use mlx_lm::reply::{Calls, Event, Format, Parser};
use serde_json::{Value, json};

use crate::structured::{finish, random_checkpoint, random_model, request};

fn tools() -> Vec<Value> {
    let weather = json!({
        "type": "object", "additionalProperties": false, "required": ["city", "days"],
        "properties": {
            "city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "units": {"enum": ["metric", "imperial"]},
        },
    });
    vec![
        json!({"type": "function", "function": {"name": "get_weather", "parameters": weather}}),
        json!({"type": "function", "function": {"name": "now"}}),
    ]
}

/// The calls of a reply, which has nothing else.
fn calls(format: Format, text: &str) -> Vec<(String, Value)> {
    let mut parser = Parser::new(format, "");
    let mut events = parser.push(text);
    events.extend(parser.finish());
    let (mut calls, mut arguments) = (Vec::new(), String::new());
    for event in events {
        match event {
            Event::CallBegin { name } => calls.push((name, Value::Null)),
            Event::CallArguments(more) => arguments += &more,
            Event::CallEnd { is_whole } => {
                assert!(is_whole, "{text}");
                calls.last_mut().unwrap().1 = serde_json::from_str(&std::mem::take(&mut arguments)).unwrap();
            }
            other => panic!("{other:?} in {text}"),
        }
    }
    calls
}

/// Catches: a grammar in another format than the parser's, a marker that is text where it should be a token, a marker that
/// cannot be seen.
#[test]
fn a_model_that_knows_nothing_calls_as_it_must() {
    for (tokenizer, kind) in [
        ("byte_level_qwen3", Calls::Hermes),
        ("byte_level_llama3", Calls::Llama),
        ("metaspace", Calls::MistralList),
        ("sentencepiece", Calls::MistralNamed),
    ] {
        let engine = random_model(tokenizer);
        let format = Format { reasoning: None, calls: Some(kind) };
        let schema = tools()[0]["function"]["parameters"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let mut several = 0;
        for seed in 0..24 {
            let choice = match seed % 3 {
                0 => ToolChoice::Function("get_weather".into()),
                _ => ToolChoice::Required,
            };
            let parallel = seed % 2 == 0;
            let grammar = tool_grammar(engine.tokenizer(), format, "", &tools(), &choice, parallel).unwrap();
            let mut request = request(grammar, 1.0, seed, 300);
            request.options.shown = engine.tokenizer().special_ids(format.markers());
            let (text, reason) = finish(engine.submit(request).unwrap());
            if reason == FinishReason::Length {
                continue; // so many calls
            }
            let calls = calls(format, &text);
            assert!(!calls.is_empty() && (parallel || calls.len() == 1), "{tokenizer}: {text:?}");
            several += usize::from(calls.len() > 1);
            for (name, arguments) in calls {
                match name.as_str() {
                    "get_weather" => assert!(validator.is_valid(&arguments), "{tokenizer}: {arguments}"),
                    "now" => assert!(seed % 3 != 0 && arguments == json!({}), "{tokenizer}: {text:?}"),
                    other => panic!("{tokenizer}: {other}"),
                }
            }
        }
        assert!(several > 0, "{tokenizer}: never two calls");
    }
}

fn mlx_lm(args: &[&str], input: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mlx_lm")).args(args).write_stdin(input).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

const CALL: &str =
    r#"start: "I look.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\": " /[1-9]/ "}}\n</tool_call>""#;

#[test]
fn with_tools_the_json_forms_tell_the_calls() {
    let model = random_checkpoint("byte_level_qwen3");
    let path = |name: &str| model.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("tools.json"), Value::from(tools()).to_string()).unwrap();
    fs::write(path("call.lark"), CALL).unwrap();
    let root = model.path().to_str().unwrap();
    let (tools_file, grammar) = (path("tools.json"), path("call.lark"));
    let args = ["-m", root, "-p", "What time is it?", "--tools", &tools_file, "--grammar", &grammar];
    let run = |format| mlx_lm(&[&args[..], &["--format", format]].concat(), "");
    let is_call = |call: &Value| call["name"] == "now" && call["arguments"]["zone"].is_u64();

    let json = &lines(&run("json"))[0];
    assert!(json["tool_calls"].as_array().is_some_and(|calls| calls.len() == 1 && is_call(&calls[0])), "{json}");
    assert_eq!((&json["content"], &json["finish_reason"]), (&json!("I look."), &json!("stop")));
    assert!(json["text"].as_str().unwrap().contains("<tool_call>"));

    let events = lines(&run("jsonl"));
    let found: Vec<&Value> = events.iter().filter(|event| event["event"] == "tool_call").collect();
    assert!(found.len() == 1 && is_call(found[0]), "{events:?}");
    assert_eq!(events.last().unwrap()["tool_calls"], json["tool_calls"]);
    // Text is text.
    let text = String::from_utf8(run("text").stdout).unwrap();
    assert_eq!(text, json["text"].as_str().unwrap());

    let line = json!({"prompt": "What time is it?", "tools": tools(), "grammar": CALL}).to_string();
    let results = lines(&mlx_lm(&["-m", root, "--batch", "-"], &line));
    assert_eq!(results[0]["tool_calls"], json["tool_calls"], "{results:?}");
}

#[test]
fn what_a_text_must_be_is_a_flag_and_a_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("schema.json"), r#"{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}"#)
        .unwrap();
    fs::write(path("broken.json"), "{").unwrap();
    let schema = path("schema.json");
    let is_pair = |text: &str| serde_json::from_str::<[bool; 2]>(text).is_ok();
    let output = mlx_lm(&["-p", "Hi", "--json-schema", &schema], "");
    assert!(is_pair(std::str::from_utf8(&output.stdout).unwrap()), "{output:?}");

    let batch = [
        json!({"prompt": "Hi"}),
        json!({"prompt": "Hi", "regex": "x[0-9]y"}),
        json!({"prompt": "Hi", "grammar": "start: \"lark\""}),
        json!({"prompt": "Hi", "json_schema": {"const": null}}),
        json!({"prompt": "Hi", "json_schema": {"const": null}, "regex": "a"}),
        json!({"prompt": "Hi", "json_schema": {"type": "nonsense"}}),
    ];
    let input: String = batch.iter().map(|line| format!("{line}\n")).collect();
    let output = mlx_lm(&["--batch", "-", "--json-schema", &schema], &input);
    let results = lines(&output);
    let text = |i: usize| results[i]["text"].as_str().unwrap_or_else(|| panic!("{}", results[i]));
    assert!(is_pair(text(0)) && text(1).starts_with('x') && text(1).len() == 3, "{results:?}");
    assert_eq!((text(2), text(3)), ("lark", "null"));
    assert!(results[4]["error"].as_str().unwrap().contains("exclude each other"));
    assert!(results[5]["error"].as_str().unwrap().starts_with("the JSON schema cannot be followed"));
    assert_eq!(output.status.code(), Some(1));

    let fails = |args: &[&str], code: i32, message: &str| {
        let output = mlx_lm(args, "");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && error.contains(message), "{error}");
        assert!(output.stdout.is_empty());
    };
    fails(&["-p", "Hi", "--json-schema", &schema, "--regex", "a"], 2, "cannot be used with");
    fails(&["-p", "Hi", "--json-schema", &path("broken.json")], 1, "broken.json");
    fails(&["-p", "Hi", "--grammar", &path("none.lark")], 1, "none.lark");
    fails(&["-p", "Hi", "--regex", "("], 1, "unclosed group");
}
