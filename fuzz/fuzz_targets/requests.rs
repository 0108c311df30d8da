//! Bodies of requests, any bytes: what is no request is an error that can be told, and what is one has an answer's form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_lm::GenerateOptions;
use mlx_lm::server::ApiError;
use mlx_lm::server::openai::{ChatRequest, CompletionRequest, Settings};

fn apply(settings: &Settings) {
    let _ = settings.overrides.apply(&GenerateOptions::default());
}

fn refused(error: &ApiError) {
    assert_eq!(error.status, 400);
    assert!(!error.message.is_empty() && error.to_json()["error"]["message"].is_string());
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
});
