//! A last message that the model continues: the text ends where the message does, and not with what closes a turn.
//!
//! Reference: `continue_final_message` of transformers' `render_jinja_template`.

use serde_json::Value;

use crate::error::{Error, Result};

/// At the end of the last message it shows where in the text that is, and its space whether the template trims.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Mark the end of the last message, and give its text.
pub(super) fn mark(messages: &mut [Value]) -> Result<String> {
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        content => content,
    };
    match text {
        Some(Value::String(text)) => {
            let unmarked = text.clone();
            text.push_str(MARK);
            Ok(unmarked)
        }
        _ => Err(Error::Input("the last message has no text that could be continued".into())),
    }
}

/// The rendered text up to the mark in its last message, which was `message`.
pub(super) fn cut(mut text: String, message: &str) -> Result<String> {
    let Some(at) = text.rfind(MARK.trim_end()).filter(|_| text.contains(message.trim())) else {
        return Err(Error::Template("it does not write the last message as it is, so that cannot be continued".into()));
    };
    let is_trimmed = !text[at..].starts_with(MARK);
    text.truncate(at);
    if is_trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}
