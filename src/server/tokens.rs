//! `/v1/tokenize` and `/v1/detokenize`, in vLLM's form: OpenAI has none.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::openai::{Effort, Message, Turns, read_body};
use super::routes::body;
use super::{ApiError, Shared};
use crate::fields;

/// A prompt or a conversation.
struct TokenizeRequest {
    model: Option<String>,
    input: TokenizeInput,
    return_token_strs: bool,
}

enum TokenizeInput {
    /// A text, with or without the special tokens that begin and end one.
    Prompt { text: String, add_special_tokens: bool },
    /// What the chat template writes.
    Conversation(Turns),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizeFields {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(default, deserialize_with = "fields::word")]
    reasoning_effort: Option<Effort>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

impl TokenizeRequest {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields: TokenizeFields = read_body(body)?;
        let for_messages = [
            ("reasoning_effort", fields.reasoning_effort.is_some()),
            ("chat_template_kwargs", fields.chat_template_kwargs.is_some()),
        ];
        let input = match (fields.prompt, fields.messages) {
            (Some(text), None) => {
                if let Some((name, _)) = for_messages.iter().find(|(_, is_there)| *is_there) {
                    return Err(ApiError::field(name, "goes with `messages`"));
                }
                TokenizeInput::Prompt { text, add_special_tokens: fields.add_special_tokens.unwrap_or(true) }
            }
            (None, Some(_)) if fields.add_special_tokens.is_some() => {
                return Err(ApiError::field(
                    "add_special_tokens",
                    "goes with `prompt`; a chat template writes its own",
                ));
            }
            (None, Some(messages)) => {
                let turns = Turns::new(messages, fields.reasoning_effort, fields.chat_template_kwargs)?;
                TokenizeInput::Conversation(turns)
            }
            _ => return Err(ApiError::field("prompt", "expected either `prompt` or `messages`")),
        };
        let return_token_strs = fields.return_token_strs.unwrap_or(false);
        Ok(TokenizeRequest { model: fields.model, input, return_token_strs })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let body = body(&shared, request).await?;
    let _place = shared.admit(1)?;
    let TokenizeRequest { model, input, return_token_strs } =
        shared.prepare(move || TokenizeRequest::parse(&body)).await?;
    let lease = shared.registry.lease(model.as_deref()).await?;
    let tokenize = move || {
        let tokenizer = lease.engine.tokenizer();
        let ids = match input {
            TokenizeInput::Prompt { text, add_special_tokens } => tokenizer.encode(&text, add_special_tokens)?,
            TokenizeInput::Conversation(turns) => {
                let conversation = turns.conversation(None, |variable| tokenizer.template_reads(variable))?;
                tokenizer.encode(&tokenizer.render(&conversation)?, false)?
            }
        };
        let most = lease.engine.config().max_position_embeddings;
        let mut told = json!({"count": ids.len(), "max_model_len": most, "tokens": ids});
        if return_token_strs {
            told["token_strs"] = ids.iter().map(|&id| tokenizer.piece(id)).collect();
        }
        Ok(Json(told).into_response())
    };
    shared.prepare(tokenize).await
}

pub async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let body = body(&shared, request).await?;
    let _place = shared.admit(1)?;
    let DetokenizeRequest { model, tokens } = shared.prepare(move || read_body(&body)).await?;
    let lease = shared.registry.lease(model.as_deref()).await?;
    let detokenize = move || {
        let n = lease.engine.config().vocab_size as u32;
        if let Some(id) = tokens.iter().find(|&&id| id >= n) {
            return Err(ApiError::field("tokens", format!("{id}, expected ids below {n}")));
        }
        Ok(Json(json!({"prompt": lease.engine.tokenizer().decode(&tokens)?})).into_response())
    };
    shared.prepare(detokenize).await
}
