//! Bodies of answers, and chunks of streamed ones.

use serde::Serialize;
use serde_json::{Map, Value};

/// What an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct PromptTokensDetails {
    pub cached_tokens: usize,
}

/// A token, its log-probability, and the most likely tokens in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub token: Scored,
    pub top_logprobs: Vec<Scored>,
    /// Where it begins in the text, in characters.
    #[serde(skip)]
    pub offset: usize,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scored {
    /// Its text, in which bytes that are no UTF-8 are U+FFFD.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Scored {
    /// What the older interface calls the token.
    fn name(&self) -> String {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => self.bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
        }
    }
}

/// An answer, or a chunk of a streamed one.
#[derive(Debug, Serialize)]
pub struct Answer<'a, C> {
    /// What all answers of a request begin with.
    #[serde(flatten)]
    pub head: &'a Head,
    /// Answers to each prompt in turn, or what is new of one.
    pub choices: Vec<C>,
    /// `None`: not told; `Some(None)`: told by a later chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What all answers of a request, and all chunks of them, begin with.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Head {
    pub id: String,
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// Of the model's configuration and weights.
    pub system_fingerprint: String,
}

/// An answer of `/v1/chat/completions`.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct ChatChoice {
    pub index: usize,
    pub message: ChatMessage,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
}

/// What the assistant says.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct ChatMessage {
    pub role: &'static str,
    /// `None` where there are only calls.
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Call>,
}

/// A chunk of an answer.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct ChatChunk {
    pub index: usize,
    pub delta: ChatDelta,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// What is new of what the assistant says.
#[derive(Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Call>,
}

/// A function that is called, or more of its arguments.
#[derive(Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Call {
    /// In chunks: which call it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: CalledFunction,
}

#[derive(Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct CalledFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct ChatLogprobs {
    pub content: Vec<TokenLogprob>,
}

/// An answer of `/v1/completions`, or a chunk of one.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<f32>,
    pub top_logprobs: Vec<Map<String, Value>>,
    /// Where the tokens begin in the text, in characters.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    #[allow(missing_docs)]
    pub fn new(tokens: &[TokenLogprob]) -> Self {
        let top = |token: &TokenLogprob| {
            let mut named = Map::new();
            // Of tokens with one name, the likeliest, which comes first.
            for scored in &token.top_logprobs {
                named.entry(scored.name()).or_insert_with(|| scored.logprob.into());
            }
            named
        };
        CompletionLogprobs {
            tokens: tokens.iter().map(|token| token.token.name()).collect(),
            token_logprobs: tokens.iter().map(|token| token.token.logprob).collect(),
            top_logprobs: tokens.iter().map(top).collect(),
            text_offset: tokens.iter().map(|token| token.offset).collect(),
        }
    }
}
