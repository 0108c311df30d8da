//! Bodies of requests, any bytes: what is no request is an error that can be told, and what is one has an answer's form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_lm::GenerateOptions;
use mlx_lm::reply::{Calls, Event, Format, Parser, Reasoning};
use mlx_lm::server::ApiError;
use mlx_lm::server::openai::{ChatRequest, CompletionRequest, Settings};

fn apply(settings: &Settings) {
    let _ = settings.overrides.apply(&GenerateOptions::default());
}

fn refused(error: &ApiError) {
    assert_eq!(error.status, 400);
    assert!(!error.message.is_empty() && error.to_json()["error"]["message"].is_string());
}

/// What a reply's parts say does not depend on the pieces that it comes in.
fn parts(format: Format, text: &str, piece: usize) -> (String, String, Vec<(String, String)>) {
    let mut parser = Parser::new(format, "");
    let mut events = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (first, last) = rest.split_at(rest.ceil_char_boundary(piece));
        events.extend(parser.push(first));
        rest = last;
    }
    events.extend(parser.finish());
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::<(String, String)>::new());
    for event in events {
        match event {
            Event::Content(text) => content += &text,
            Event::Reasoning(text) => reasoning += &text,
            Event::CallBegin { name } => calls.push((name, String::new())),
            Event::CallArguments(text) => calls.last_mut().expect("a call has begun").1 += &text,
            Event::CallEnd { .. } => {}
        }
    }
    (content, reasoning, calls)
}

fuzz_target!(|bytes: &[u8]| {
    match ChatRequest::parse(bytes) {
        Ok(request) => {
            apply(&request.settings);
            let tools = request.tools.map(|tools| tools.tools);
            request.turns.conversation(tools.as_deref(), |_| true).expect("a template that reads all takes all");
        }
        Err(error) => refused(&error),
    }
    match CompletionRequest::parse(bytes) {
        Ok(request) => apply(&request.settings),
        Err(error) => refused(&error),
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for calls in [Calls::Llama, Calls::MistralList, Calls::MistralNamed, Calls::Hermes] {
        let format = Format { reasoning: Some(Reasoning::Think), calls: Some(calls) };
        let whole = parts(format, text, usize::MAX);
        for piece in [1, 3] {
            assert_eq!(parts(format, text, piece), whole);
        }
    }
});
