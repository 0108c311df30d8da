{
    // `bytes: &[u8]` is the body of a request. Included by the fuzz target and by the test suite.
    use mlx_lm::GenerateOptions;
    use mlx_lm::server::ApiError;
    use mlx_lm::server::openai::{ChatRequest, CompletionRequest, Settings};

    let apply = |settings: &Settings| drop(settings.overrides.apply(&GenerateOptions::default()));
    let refused = |error: ApiError| {
        assert_eq!(error.status, 400);
        assert!(!error.message.is_empty() && error.to_json()["error"]["message"].is_string());
    };
    match ChatRequest::parse(bytes) {
        Ok(request) => {
            apply(&request.settings);
            let tools = request.tools.map(|tools| tools.tools);
            request.turns.conversation(tools.as_deref(), |_| true).expect("a template that reads all takes all");
        }
        Err(error) => refused(error),
    }
    match CompletionRequest::parse(bytes) {
        Ok(request) => apply(&request.settings),
        Err(error) => refused(error),
    }
}
