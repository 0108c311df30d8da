//! What a text is held to: a JSON schema, a regular expression or a grammar, as it is asked for.

use serde_json::Value;

/// What a generated text must be. It ends where nothing more may follow, or the model ends it where it may end.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that fits this schema (draft 2020-12).
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// The whole text matches, in the syntax of Rust's `regex` crate, without look-around and back-references.
    Regex(String),
    /// A context-free grammar in [llguidance's kind of Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    Lark(String),
}

impl Grammar {
    /// What it is called in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) | Grammar::JsonObject => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) => "grammar",
        }
    }
}
