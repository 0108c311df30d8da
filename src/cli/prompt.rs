//! Where the prompt comes from, and how it becomes ids.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use mlx_lm::Tokenizer;
use mlx_lm::chat_template::Conversation;
use serde_json::{Map, Value, json};

use super::args::PromptArgs;

/// A prompt before the tokenizer has seen it.
pub struct Prompt {
    pub input: Input,
    pub raw: bool,
    pub tools: Option<Value>,
    pub template_args: Map<String, Value>,
    pub date: Option<jiff::civil::Date>,
}

pub enum Input {
    Text { text: String, system: Option<String> },
    Messages(Vec<Value>),
}

impl Prompt {
    /// Read what the flags name.
    pub fn read(args: &PromptArgs) -> Result<Self> {
        let input = if let Some(path) = &args.messages {
            Input::Messages(parse_messages(&read_text(path)?).with_context(|| path.display().to_string())?)
        } else {
            let text = match &args.prompt_file {
                Some(path) => read_text(path)?,
                None if args.prompt == "-" => read_text(Path::new("-"))?,
                None => args.prompt.clone(),
            };
            Input::Text { text, system: args.system.clone() }
        };
        let tools = match &args.tools {
            Some(path) => Some(parse_json(&read_text(path)?).with_context(|| path.display().to_string())?),
            None => None,
        };
        Ok(Prompt {
            input,
            raw: args.raw,
            tools,
            template_args: args.template_arg.iter().cloned().collect(),
            date: args.date,
        })
    }

    /// The text that the model sees and its ids. Templated text gets no special tokens beyond the template's own;
    /// raw text gets the tokenizer's.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<(String, Vec<u32>)> {
        let plain = match &self.input {
            Input::Text { text, .. } if self.raw => Some(text),
            Input::Text { text, system: None } if !tokenizer.has_chat_template() && self.tools.is_none() => Some(text),
            _ => None,
        };
        if let Some(text) = plain {
            return Ok((text.clone(), tokenizer.encode(text, true)?));
        }
        let messages = match &self.input {
            Input::Messages(messages) => messages.clone(),
            Input::Text { text, system } => {
                let system = system.iter().map(|s| json!({"role": "system", "content": s}));
                system.chain([json!({"role": "user", "content": text})]).collect()
            }
        };
        let text = tokenizer.render(&Conversation {
            messages,
            tools: self.tools.clone(),
            args: self.template_args.clone(),
            date: self.date,
            add_generation_prompt: true,
        })?;
        let ids = tokenizer.encode(&text, false)?;
        Ok((text, ids))
    }
}

/// A file's whole text, or standard input's for `-`, byte for byte.
pub fn read_text(path: &Path) -> Result<String> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).context("standard input")?;
        ("standard input".to_owned(), bytes)
    } else {
        (path.display().to_string(), fs::read(path).with_context(|| path.display().to_string())?)
    };
    String::from_utf8(bytes)
        .map_err(|e| anyhow!("{name}: not UTF-8 text: invalid byte at offset {}", e.utf8_error().valid_up_to()))
}

fn parse_json(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("not valid JSON")
}

fn parse_messages(text: &str) -> Result<Vec<Value>> {
    match parse_json(text)? {
        Value::Array(messages) => check_messages(messages),
        _ => bail!("expected a JSON list of messages, such as [{{\"role\": \"user\", \"content\": \"Hello\"}}]"),
    }
}

/// Each message is an object with a role, and there is at least one.
pub fn check_messages(messages: Vec<Value>) -> Result<Vec<Value>> {
    if messages.is_empty() {
        bail!("the list of messages is empty");
    }
    for (i, message) in messages.iter().enumerate() {
        if !message.get("role").is_some_and(Value::is_string) {
            bail!(
                "message {} has no \"role\"; expected an object such as {{\"role\": \"user\", \"content\": …}}",
                i + 1
            );
        }
    }
    Ok(messages)
}
