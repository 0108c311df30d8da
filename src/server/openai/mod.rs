//! The wire types of OpenAI's interface. Reference: <https://platform.openai.com/docs/api-reference>.

mod answer;
mod request;

pub use answer::{
    Answer, Call, CalledFunction, ChatChoice, ChatChunk, ChatDelta, ChatLogprobs, ChatMessage, CompletionChoice,
    CompletionLogprobs, Head, PromptTokensDetails, Scored, TokenLogprob, Usage,
};
pub use request::{ChatRequest, CompletionRequest, Effort, Prompt, Settings, StreamOptions, Tools, Turns};
pub(super) use request::{Message, read_body};
