//! `/v1/chat/completions` and `/v1/completions`: from a request to generations under way.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{Answer, Reply};
use super::openai::{ChatRequest, CompletionRequest, Prompt, Settings, StreamOptions, Tools};
use super::registry::Lease;
use super::routes::body;
use super::{ApiError, Shared};
use crate::generate::tools::{ToolChoice, tool_grammar};
use crate::generate::{self, Engine, GenerateOptions, Generation, Grammar};

pub async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let asked = Instant::now();
    let body = body(&shared, request).await?;
    let place = shared.admit(1)?;
    let ChatRequest { settings, turns, tools, grammar } = shared.prepare(move || ChatRequest::parse(&body)).await?;
    let request = Accepted::new(&shared, place, settings, 1, asked).await?;
    request
        .answer(move |engine, options| {
            let tokenizer = engine.tokenizer();
            let given = tools.as_ref().map(|tools| tools.tools.as_slice());
            let conversation = turns.conversation(given, |variable| tokenizer.template_reads(variable))?;
            let prompt = tokenizer.render(&conversation)?;
            let mut format = tokenizer.reply_format();
            format.calls = format.calls.filter(|_| tools.is_some());
            options.shown = tokenizer.special_ids(format.markers());
            if let Some(grammar) = grammar {
                hold(engine, options, grammar.after_reasoning(tokenizer, format, &prompt), "response_format")?;
            }
            if let Some(Tools { tools, choice, parallel }) = tools {
                // A function that is asked for by name is called once.
                let parallel = parallel && !matches!(choice, ToolChoice::Function(_));
                let is_strict = |tool: &serde_json::Value| tool["function"]["strict"] == true;
                // Otherwise the model may say, and call, what it likes.
                let is_held = choice != ToolChoice::Auto || !parallel || tools.iter().any(is_strict);
                let grammar = tool_grammar(tokenizer, format, &prompt, &tools, &choice, parallel);
                let grammar = grammar.map_err(|error| ApiError::field("tools", error))?;
                if is_held {
                    hold(engine, options, grammar, "tools")?;
                }
            }
            let ids = tokenizer.encode(&prompt, false)?;
            Ok((vec![ids], Reply::Chat { format, prompt }))
        })
        .await
}

/// Hold the text to what a field asks for.
fn hold(engine: &Engine, options: &mut GenerateOptions, grammar: Grammar, field: &str) -> Result<(), ApiError> {
    engine.compile(&grammar).map_err(|error| ApiError::field(field, error))?;
    match options.grammar.replace(grammar) {
        None => Ok(()),
        Some(_) => Err(ApiError::field(field, "goes without another grammar")),
    }
}

pub async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let asked = Instant::now();
    let body = body(&shared, request).await?;
    let place = shared.admit(1)?;
    let CompletionRequest { settings, prompts } = shared.prepare(move || CompletionRequest::parse(&body)).await?;
    let request = Accepted::new(&shared, place, settings, prompts.len(), asked).await?;
    request
        .answer(move |engine, _| {
            let ids = |prompt| match prompt {
                Prompt::Text(text) => Ok(engine.tokenizer().encode(&text, true)?),
                Prompt::Ids(ids) => Ok(ids),
            };
            Ok((prompts.into_iter().map(ids).collect::<Result<_, ApiError>>()?, Reply::Completion))
        })
        .await
}

/// A request that has its model, and places for its sequences.
struct Accepted {
    shared: Arc<Shared>,
    lease: Lease,
    places: OwnedSemaphorePermit,
    options: GenerateOptions,
    /// Answers to each prompt.
    n: usize,
    stream: Option<StreamOptions>,
    asked: Instant,
}

impl Accepted {
    /// With `place` for one sequence, and `prompts` prompts.
    async fn new(
        shared: &Arc<Shared>,
        mut place: OwnedSemaphorePermit,
        settings: Settings,
        prompts: usize,
        asked: Instant,
    ) -> Result<Self, ApiError> {
        let Settings { model, n, stream, user, overrides } = settings;
        if let Some(user) = user {
            log::debug!("a request of {user:?}");
        }
        let options = overrides.apply(&shared.defaults)?;
        place.merge(shared.admit(prompts.saturating_mul(n).saturating_sub(1))?);
        let lease = shared.registry.lease(model.as_deref()).await?;
        Ok(Accepted { shared: Arc::clone(shared), lease, places: place, options, n, stream, asked })
    }

    /// The response to what `read` makes of the prompts: their ids, and how replies to them are told.
    async fn answer<F>(self, read: F) -> Result<Response, ApiError>
    where
        F: FnOnce(&Engine, &mut GenerateOptions) -> Result<(Vec<Vec<u32>>, Reply), ApiError> + Send + 'static,
    {
        let Accepted { shared, lease, places, mut options, n, stream, asked } = self;
        let has_logprobs = options.logprobs.is_some();
        let submit = {
            let lease = lease.clone();
            move || {
                let (prompts, reply) = read(&lease.engine, &mut options)?;
                let requests = prompts.iter().flat_map(|prompt| (0..n as u64).map(move |i| (prompt, i)));
                let generations = requests.map(|(prompt, i)| {
                    let mut options = options.clone();
                    options.sampler.seed = options.sampler.seed.wrapping_add(i);
                    Ok(lease.engine.submit(generate::Request {
                        prompt: prompt.clone(),
                        options,
                        prompt_cache: None,
                    })?)
                });
                Ok((generations.collect::<Result<Vec<Generation>, ApiError>>()?, reply))
            }
        };
        let (generations, reply) = shared.prepare(submit).await?;
        Answer::new(shared, lease, places, asked, reply, has_logprobs, n, generations).respond(stream).await
    }
}
