//! What is answered, whole and streamed.

use std::thread;

use serde_json::{Value, json};

use super::{Server, content, mlx_lm, two_models, user, with};
use crate::compute_on_cpu;

/// Requests, and the flags that ask the same of `mlx_lm`.
fn questions() -> Vec<(Value, Vec<&'static str>)> {
    vec![
        (json!({"messages": user("Why is the sky blue?")}), vec!["--prompt", "Why is the sky blue?"]),
        (
            json!({"messages": user("Tell me a story."), "temperature": 0.9, "seed": 7, "max_tokens": 40}),
            vec!["--prompt", "Tell me a story.", "--temp", "0.9", "--seed", "7", "--max-tokens", "40"],
        ),
        (
            json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
                {"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story."}]}],
                "temperature": 1.2, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 3, "max_completion_tokens": 30,
                "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {"100": -3}, "stop": [".", "!"]}),
            vec![
                "--system",
                "Be brief.",
                "--prompt",
                "Tell me a story.",
                "--temp",
                "1.2",
                "--top-p",
                "0.9",
                "--top-k",
                "50",
                "--min-p",
                "0.01",
                "--seed",
                "3",
                "--max-tokens",
                "30",
                "--presence-penalty",
                "0.5",
                "--frequency-penalty",
                "0.25",
                "--logit-bias",
                "100=-3",
                "--stop",
                ".",
                "--stop",
                "!",
            ],
        ),
    ]
}

/// Catches: options that get lost, a template or special tokens of another kind, stop strings that show, results that depend on
/// what is computed with them.
#[test]
fn answers_are_those_of_the_command_line_however_many_ask() {
    let kernels = compute_on_cpu();
    let server = Server::start(&[]);
    let expected: Vec<(Value, String)> = questions().into_iter().map(|(body, args)| (body, mlx_lm(&args))).collect();
    let check = |body: &Value, expected: &str| {
        assert_eq!(content(&server.chat(body).ok()), expected, "{body}");
        let streamed = server.chat(&with(body.clone(), &json!({"stream": true})));
        assert!(streamed.body.lines().any(|line| line.starts_with(": reading ")), "{}", streamed.body);
        let streamed = streamed.chunks();
        let text = streamed.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
        assert_eq!(text.collect::<String>(), expected, "{body}");
        assert_eq!(streamed[0]["choices"][0]["delta"]["role"], "assistant");
    };
    for (body, expected) in &expected {
        check(body, expected);
    }
    if kernels {
        // MLX's own operations promise nothing about the last bits, and are slow on a CPU.
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..3).for_each(|_| expected.iter().for_each(|(body, expected)| check(body, expected))));
            }
        });
    }
    let raw = mlx_lm(&["--raw", "--prompt", "Once upon a time", "--max-tokens", "12"]);
    let ids = server.post("/v1/tokenize", &json!({"prompt": "Once upon a time"})).ok()["tokens"].clone();
    let prompts = json!({"prompt": ["Once upon a time", "The"], "max_tokens": 12});
    let answer = server.post("/v1/completions", &prompts).ok();
    assert_eq!((answer["choices"][0]["text"].as_str(), answer["choices"].as_array().unwrap().len()), (Some(&*raw), 2));
    for prompt in [json!("Once upon a time"), ids.clone(), json!([ids])] {
        let body = json!({"prompt": prompt, "max_tokens": 12, "stream": true});
        let chunks = server.post("/v1/completions", &body).chunks();
        let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
        assert_eq!(text, raw);
    }
    // What might have begun a stop string is text where nothing comes of it.
    let stop = format!("{}!", &raw[raw.len() - 1..]);
    for stream in [false, true] {
        let body = json!({"prompt": "Once upon a time", "max_tokens": 12, "stop": stop, "stream": stream});
        let answer = server.post("/v1/completions", &body);
        let chunks = if stream { answer.chunks() } else { vec![answer.ok()] };
        let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
        assert_eq!(text, raw);
    }
    // An answer that was begun is continued.
    let body = json!({"messages": [{"role": "user", "content": "What colour is the sky?"}, {"role": "assistant", "content": "The sky"}]});
    assert_eq!(content(&server.chat(&body).ok()), " is blue.");
    server.wait_for("mlx_lm_running_sequences", 0.0);
}

#[test]
fn several_answers_have_seeds_of_their_own_and_usage_counts_them() {
    compute_on_cpu();
    let server = Server::start(&["--default", "temp=1", "max_tokens=8", "--default", "ignore_eos=true"]);
    let body = |fields: Value| with(json!({"messages": user("Tell me a story.")}), &fields);
    // A default that draws anew does so for each request.
    let random = Server::start(&["--default", "temp=1", "seed=random", "max_tokens=24"]);
    let drawn: Vec<Value> = (0..4).map(|_| random.chat(&body(json!({}))).ok()["choices"].clone()).collect();
    assert!(drawn.iter().any(|choices| *choices != drawn[0]), "{drawn:?}");
    let three = server.chat(&body(json!({"n": 3, "seed": 5}))).ok();
    let texts = |answer: &Value| -> Vec<Value> {
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["message"]["content"].clone()).collect()
    };
    let alone: Vec<Value> = (5..8).flat_map(|seed| texts(&server.chat(&body(json!({"seed": seed}))).ok())).collect();
    assert_eq!(texts(&three), alone);
    assert!(alone[0] != alone[1] && alone[1] != alone[2]);
    let usage = &three["usage"];
    assert_eq!((usage["completion_tokens"].as_u64(), usage["prompt_tokens"].as_u64()), (Some(24), Some(9)), "{usage}");
    assert_eq!((&three["choices"][2]["index"], &three["choices"][2]["finish_reason"]), (&json!(2), &json!("length")));
    let stream = body(json!({"n": 3, "seed": 5, "stream": true, "stream_options": {"include_usage": true}}));
    let chunks = server.chat(&stream).chunks();
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (usage, &json!([])));
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"]));
    let text = |index| -> String {
        let choices = others.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        choices.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
    };
    assert_eq!((0..3).map(|i| json!(text(i))).collect::<Vec<_>>(), alone);
}

#[test]
fn log_probabilities_are_those_of_the_command_line() {
    compute_on_cpu();
    let server = Server::start(&["--default", "max_tokens=6"]);
    let text = mlx_lm(&["--prompt", "Hello", "--max-tokens", "6", "--logprobs", "2", "--format", "json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    let expected = told["tokens"].as_array().unwrap();
    let body = json!({"messages": user("Hello"), "logprobs": true, "top_logprobs": 2});
    let whole = server.chat(&body).ok()["choices"][0]["logprobs"]["content"].clone();
    let chunks = server.chat(&with(body, &json!({"stream": true}))).chunks();
    let streamed = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(Value::Array(streamed.cloned().collect()), whole);
    assert_eq!(whole.as_array().unwrap().len(), expected.len());
    for (token, expected) in whole.as_array().unwrap().iter().zip(expected) {
        let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-6;
        assert!(near(&token["logprob"], &expected["logprob"]), "{token}, {expected}");
        assert!(near(&token["top_logprobs"][1]["logprob"], &expected["top_logprobs"][1]["logprob"]));
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), token["token"].as_str().unwrap());
    }
    // The token that ends a text is none of it.
    let body = json!({"messages": user("What colour is the sky?"), "max_tokens": 50, "logprobs": true});
    let answer = server.chat(&body).ok();
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|token| token["token"].as_str().unwrap()).collect::<String>(), content(&answer));
    // Unless the text goes on behind it.
    let body =
        json!({"messages": user("What colour is the sky?"), "max_tokens": 12, "logprobs": true, "ignore_eos": true});
    let answer = server.chat(&body).ok();
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 12, "{answer}");
    // Where a token begins in the text does not depend on when it is certain.
    let body = json!({"prompt": "The sky", "max_tokens": 6, "stop": [" grey, the grassX", " was grey, the zz"], "logprobs": 0});
    let offsets = |chunks: &[Value]| -> Vec<u64> {
        let offsets = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array());
        offsets.flatten().map(|offset| offset.as_u64().unwrap()).collect()
    };
    let whole = server.post("/v1/completions", &body).ok();
    let tokens: Vec<&str> = whole["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    let expected: Vec<u64> = (0..tokens.len()).map(|i| tokens[..i].concat().chars().count() as u64).collect();
    assert_eq!(offsets(&[whole]), expected);
    assert_eq!(offsets(&server.post("/v1/completions", &with(body, &json!({"stream": true}))).chunks()), expected);
    // Bytes that are no text by themselves are told all the same.
    let body = json!({"prompt": "é".repeat(3), "logprobs": 1, "max_tokens": 1, "logit_bias": {"0": 0}});
    let legacy = server.post("/v1/completions", &body).ok()["choices"][0]["logprobs"].clone();
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(legacy[field].as_array().unwrap().len(), 1, "{legacy}");
    }
}

/// Catches: calls that are told as text, arguments in pieces that do not join, schemas that are not followed.
#[test]
fn functions_are_called_and_schemas_followed_whole_and_streamed() {
    compute_on_cpu();
    let scratch = tempfile::tempdir().unwrap();
    let [_, second] = two_models(scratch.path());
    let server = Server::start(&["--model-root", &second]);
    let unit = json!({"type": "object", "properties": {"unit": {"enum": ["celsius", "kelvin"]}}, "required": ["unit"], "additionalProperties": false});
    let function = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": unit}});
    let named = json!({"type": "function", "function": {"name": "humidity"}});
    for (choice, names) in [(json!("required"), &["weather", "humidity"][..]), (named, &["humidity"])] {
        let body = json!({"messages": user("How warm is it?"), "tools": [function("weather"), function("humidity")],
            "tool_choice": choice, "parallel_tool_calls": false, "temperature": 1, "seed": 4});
        let answer = server.chat(&body).ok();
        let message = &answer["choices"][0]["message"];
        let call = &message["tool_calls"][0];
        assert!(names.contains(&call["function"]["name"].as_str().unwrap()), "{answer}");
        // Mistral's templates take no other ids.
        let id = call["id"].as_str().unwrap();
        assert!(id.len() == 9 && id.bytes().all(|c| c.is_ascii_alphanumeric()), "{answer}");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(["celsius", "kelvin"].contains(&arguments["unit"].as_str().unwrap()), "{arguments}");
        assert_eq!((&answer["choices"][0]["finish_reason"], &message["content"]), (&json!("tool_calls"), &Value::Null));
        let chunks = server.chat(&with(body, &json!({"stream": true}))).chunks();
        let calls: Vec<&Value> =
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
        let streamed: String = calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
        assert_eq!(streamed, call["function"]["arguments"].as_str().unwrap());
        assert_eq!((&calls[0]["index"], &calls[0]["function"]["name"]), (&json!(0), &call["function"]["name"]));
        // What came of it goes back.
        let turns = json!([{"role": "user", "content": "How warm is it?"}, message,
            {"role": "tool", "tool_call_id": call["id"], "content": "20"}]);
        assert_eq!(server.chat(&json!({"messages": turns, "max_tokens": 2})).status, 200);
    }
    let schema = json!({"type": "json_schema", "json_schema": {"name": "unit", "schema": unit, "strict": true}});
    let body = json!({"messages": user("How warm is it?"), "response_format": schema, "chat_template_kwargs": {"enable_thinking": false}});
    let unit: Value = serde_json::from_str(&content(&server.chat(&body).ok())).unwrap();
    assert!(unit["unit"].is_string() && unit.as_object().unwrap().len() == 1, "{unit}");
    let refused = json!({"messages": user("x"), "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": false}}});
    assert_eq!(server.chat(&refused).error().0, 400);
    // With no effort the template closes the reasoning, and what follows is the answer.
    let body = json!({"messages": user("What colour is the sky?"), "reasoning_effort": "none", "max_tokens": 5});
    assert_eq!(server.chat(&body).ok()["choices"][0]["message"].get("reasoning_content"), None);
}

/// Catches: calls where no function was given, several of a function that is asked for by name.
#[test]
fn a_function_is_called_where_there_is_one_and_once_where_it_is_named() {
    compute_on_cpu();
    let scratch = tempfile::tempdir().unwrap();
    let [_, second] = two_models(scratch.path());
    let server = Server::start(&["--model-root", &second]);
    let call = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    let answer =
        server.chat(&json!({"messages": user("Hi"), "regex": call.replace('{', r"\{").replace('}', r"\}")})).ok();
    assert_eq!(content(&answer), call);
    assert!(answer["choices"][0]["message"]["tool_calls"].is_null(), "{answer}");

    // Arguments that are no JSON are no call that could be made.
    let function = json!({"type": "function", "function": {"name": "f"}});
    let bad =
        r#"<tool_call>{"name": "f", "arguments": {"a": bad}}</tool_call>"#.replace('{', r"\{").replace('}', r"\}");
    let answer = server.chat(&json!({"messages": user("Hi"), "regex": bad, "tools": [function]})).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    // What continues reasoning is reasoning.
    let turns = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nabc"}]);
    let answer = server.chat(&json!({"messages": turns, "regex": "de</think>\\n\\nfg"})).ok();
    let message = &answer["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("de"), &json!("fg")), "{answer}");

    let parameters = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
    let function = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
    let named = json!({"type": "function", "function": {"name": "f"}});
    let body = json!({"messages": user("Hi"), "tools": [function], "tool_choice": named, "temperature": 1.5, "max_tokens": 200});
    let calls = (3..7).map(|seed| {
        let answer = server.chat(&with(body.clone(), &json!({"seed": seed}))).ok();
        answer["choices"][0]["message"]["tool_calls"].as_array().map_or(0, Vec::len)
    });
    assert_eq!(calls.collect::<Vec<_>>(), [1; 4]);
}
