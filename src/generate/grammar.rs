//! What a text is held to: a JSON schema, a regular expression or a grammar, as it is asked for.

use serde_json::{Value, json};

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

/// Where llguidance takes settings from.
const SETTINGS: &str = "x-guidance";
/// What may stand between the parts of JSON. A model that may write more of it may write nothing else.
const WHITE_SPACE: &str = r"\x20";

/// The schema as llguidance reads it; or what is wrong with it.
pub(super) fn json_schema(schema: &Value) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Object(fields) if fields.contains_key(SETTINGS) => return Err(format!("`{SETTINGS}` is no keyword")),
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("nothing fits `false`".into()),
        _ => return Err(format!("a schema is an object, not {schema}")),
    };
    schema[SETTINGS] = json!({"whitespace_pattern": WHITE_SPACE});
    Ok(schema)
}
