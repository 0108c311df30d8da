//! `/v1/chat/completions` and `/v1/completions`: from a request to generations under way.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{Answer, Reply};
use super::openai::{ChatRequest, CompletionRequest, Prompt, Settings, StreamOptions, Tools};
use super::registry::Lease;
use super::routes::body;
use super::{ApiError, Shared};
use crate::chat_template::Conversation;
use crate::error::Error;
use crate::generate::tools::{ToolChoice, tool_grammar};
use crate::generate::{self, Engine, GenerateOptions, Generation, Grammar};
use crate::reply::{Parser, function_names};

pub async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let asked = Instant::now();
    let body = body(&shared, request).await?;
    let place = shared.admit(1)?;
    let ChatRequest { settings, turns, tools, grammar } = shared.prepare(move || ChatRequest::parse(&body)).await?;
    let request = Accepted::new(&shared, place, settings, 1, asked).await?;
    request
        .answer("messages", move |engine, options| {
            let tokenizer = engine.tokenizer();
            let given = tools.as_ref().map(|tools| tools.tools.as_slice());
            let functions = function_names(given.unwrap_or_default());
            let conversation = turns.conversation(given, |variable| tokenizer.template_reads(variable))?;
            let prompt = tokenizer.render(&conversation)?;
            if let Some((field, nameless)) = without_names(&conversation)
                && tokenizer.render(&nameless)? == prompt
            {
                return Err(ApiError::field(&field, "the model's chat template does not know it"));
            }
            let mut format = tokenizer.reply_format();
            // What the reply goes on from, as far as it matters to whoever reads it.
            let before = match continued(&conversation).filter(|text| format.is_within_reasoning(text)) {
                Some(_) => format.reasoning.map_or("", |reasoning| reasoning.markers().0).to_owned(),
                None => prompt.clone(),
            };
            format.calls = format.calls.filter(|_| tools.is_some());
            options.shown = tokenizer.special_ids(format.markers());
            if let Some(grammar) = grammar {
                hold(engine, options, grammar.after_reasoning(tokenizer, format, &before), "response_format")?;
            }
            if let Some(Tools { tools, choice, parallel }) = tools {
                // A function that is asked for by name is called once.
                let parallel = parallel && !matches!(choice, ToolChoice::Function(_));
                let is_strict = |tool: &Value| tool["function"]["strict"] == true;
                // Otherwise the model may say, and call, what it likes.
                let is_held = choice != ToolChoice::Auto || !parallel || tools.iter().any(is_strict);
                let grammar = tool_grammar(tokenizer, format, &before, &tools, &choice, parallel);
                let grammar = grammar.map_err(|error| ApiError::field("tools", error))?;
                if is_held {
                    hold(engine, options, grammar, "tools")?;
                }
            }
            let ids = tokenizer.encode(&prompt, false)?;
            Ok((vec![ids], Reply::Chat(Parser::new(format, &before).of_functions(functions))))
        })
        .await
}

/// The last message, if it is gone on with.
fn continued(conversation: &Conversation) -> Option<&str> {
    let last = conversation.messages.last().filter(|_| conversation.continue_final_message)?;
    last["content"].as_str()
}

/// A conversation whose participants have no names, if it has such, and the first name's field. Those of functions do not count: what
/// they return follows the call, or has its id.
fn without_names(conversation: &Conversation) -> Option<(String, Conversation)> {
    let has_name = |message: &Value| message["role"] != "tool" && message.get("name").is_some();
    let first = conversation.messages.iter().position(has_name)?;
    let mut nameless = conversation.clone();
    for message in nameless.messages.iter_mut().filter(|message| has_name(message)) {
        message.as_object_mut().expect("a message is an object").remove("name");
    }
    Some((format!("messages[{first}].name"), nameless))
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
        .answer("prompt", move |engine, _| {
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
        let defaults = shared.defaults.apply(&GenerateOptions::default())?;
        let options = overrides.apply(&defaults)?;
        let sequences = prompts.saturating_mul(n);
        shared.check_room(sequences)?;
        place.merge(shared.admit(sequences - 1)?);
        let lease = shared.registry.lease(model.as_deref()).await?;
        Ok(Accepted { shared: Arc::clone(shared), lease, places: place, options, n, stream, asked })
    }

    /// The response to what `read` makes of the prompts in `field`: their ids, and how replies to them are told.
    async fn answer<F>(self, field: &'static str, read: F) -> Result<Response, ApiError>
    where
        F: FnOnce(&Engine, &mut GenerateOptions) -> Result<(Vec<Vec<u32>>, Reply), ApiError> + Send + 'static,
    {
        let Accepted { shared, lease, places, mut options, n, stream, asked } = self;
        let has_logprobs = options.logprobs.is_some();
        let submit = {
            let lease = lease.clone();
            move || {
                if let Some(grammar) = &options.grammar {
                    lease.engine.compile(grammar).map_err(|error| ApiError::field(grammar.field(), error))?;
                }
                let (prompts, reply) = read(&lease.engine, &mut options)?;
                let requests = prompts.iter().flat_map(|prompt| (0..n as u64).map(move |i| (prompt, i)));
                let generations = requests.map(|(prompt, i)| {
                    let mut options = options.clone();
                    options.sampler.seed = options.sampler.seed.wrapping_add(i);
                    let request = generate::Request { prompt: prompt.clone(), options, prompt_cache: None };
                    lease.engine.submit(request).map_err(|error| match error {
                        // Grammars were looked at before.
                        Error::Input(problem) => ApiError::field(field, problem),
                        error => error.into(),
                    })
                });
                Ok((generations.collect::<Result<Vec<Generation>, ApiError>>()?, reply))
            }
        };
        let (generations, reply) = shared.prepare(submit).await?;
        Answer::new(shared, lease, places, asked, reply, has_logprobs, n, generations).respond(stream).await
    }
}
