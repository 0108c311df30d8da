//! Where the prompt comes from, and how it becomes ids.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use mlx_lm::Tokenizer;
use mlx_lm::chat_template::Conversation;
use serde_json::{Map, Value, json};

use super::args::PromptArgs;
use super::process::Usage;

/// The most that is read of a prompt, a conversation, a text or a line of a batch: some ten million tokens.
pub const MAX_INPUT_BYTES: u64 = 64 << 20;

const DEFAULT_PROMPT: &str = "In the beginning the Universe was created.";

/// A prompt before the tokenizer has seen it.
pub struct Prompt {
    pub input: Input,
    pub raw: bool,
    pub tools: Option<Value>,
    pub template_args: Map<String, Value>,
    pub date: Option<jiff::civil::Date>,
}

pub enum Input {
    Text {
        text: String,
        system: Option<String>,
        /// The beginning of the answer.
        response: Option<String>,
    },
    Messages(Vec<Value>),
}

impl Prompt {
    /// Read what the flags name. `batch` is where lines come from that bring prompts of their own.
    pub fn read(args: &PromptArgs, batch: Option<&Path>) -> Result<Self> {
        check(args, batch)?;
        let input = if let Some(path) = &args.messages {
            Input::Messages(parse_messages(&read_text(path)?).with_context(|| path.display().to_string())?)
        } else {
            let text = match (&args.prompt_file, args.text.as_ref().or(args.prompt.as_ref())) {
                (Some(path), _) => read_text(path)?,
                (None, Some(prompt)) if prompt == "-" => read_text(Path::new("-"))?,
                (None, Some(prompt)) => prompt.clone(),
                (None, None) if batch.is_some() => String::new(),
                (None, None) => piped_prompt(args)?.unwrap_or_else(|| DEFAULT_PROMPT.to_owned()),
            };
            Input::Text { text, system: args.system.clone(), response: args.prefill_response.clone() }
        };
        let tools = match &args.tools {
            Some(path) => Some(check_tools(read_json(path)?).with_context(|| path.display().to_string())?),
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
            Input::Text { text, system: None, response: None }
                if !tokenizer.has_chat_template() && self.tools.is_none() =>
            {
                Some(text)
            }
            _ => None,
        };
        if let Some(text) = plain {
            return Ok((text.clone(), tokenizer.encode(text, true)?));
        }
        let messages = match &self.input {
            Input::Messages(messages) => messages.clone(),
            Input::Text { text, system, response } => {
                let message = |role: &str, content: &String| json!({"role": role, "content": content});
                let system = system.iter().map(|text| message("system", text));
                let response = response.iter().map(|text| message("assistant", text));
                system.chain([message("user", text)]).chain(response).collect()
            }
        };
        let text = tokenizer.render(&Conversation {
            tools: self.tools.clone(),
            args: self.template_args.clone(),
            date: self.date,
            ..Conversation::to_answer(messages)
        })?;
        let ids = tokenizer.encode(&text, false)?;
        Ok((text, ids))
    }
}

/// There is one prompt, and standard input can be read once.
fn check(args: &PromptArgs, batch: Option<&Path>) -> Result<()> {
    let others = [
        ("--prompt", args.prompt.is_some()),
        ("--prompt-file", args.prompt_file.is_some()),
        ("--messages", args.messages.is_some()),
        ("--batch", batch.is_some()),
    ];
    if let (Some(text), Some((flag, _))) = (&args.text, others.into_iter().find(|(_, is_there)| *is_there)) {
        return Err(Usage(format!("{text:?} is a prompt, and so is what {flag} gives; leave one out")).into());
    }
    let is_stdin = |path: Option<&Path>| path == Some(Path::new("-"));
    let prompt = args.prompt.as_deref().map(Path::new);
    let text = args.text.as_deref().map(Path::new);
    let flags = [
        ("--batch", batch),
        ("--messages", args.messages.as_deref()),
        ("--prompt-file", args.prompt_file.as_deref()),
        ("--prompt", prompt),
        ("the prompt", text),
        ("--tools", args.tools.as_deref()),
    ];
    let readers: Vec<&str> = flags.into_iter().filter(|(_, path)| is_stdin(*path)).map(|(flag, _)| flag).collect();
    match readers.len() {
        0 | 1 => Ok(()),
        _ => {
            Err(Usage(format!("only one of {} can be `-`: standard input is read once", readers.join(" and "))).into())
        }
    }
}

/// What a pipe or a file on standard input holds, without the line end that `echo` adds; `None` where it is a terminal, has
/// nothing, or another flag reads it.
fn piped_prompt(args: &PromptArgs) -> Result<Option<String>> {
    if io::stdin().is_terminal() || args.tools.as_deref() == Some(Path::new("-")) {
        return Ok(None);
    }
    let (read, is_read) = channel::<()>();
    // Whoever started this program may have left a pipe open that nobody writes to.
    let _ = thread::Builder::new().spawn(move || {
        if is_read.recv_timeout(Duration::from_secs(2)) == Err(RecvTimeoutError::Timeout) {
            note!("reading the prompt from standard input; --prompt gives one");
        }
    });
    let mut text = read_text(Path::new("-"))?;
    drop(read);
    let end = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len());
    text.truncate(end.unwrap_or(text.len()));
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A file's whole text, or standard input's for `-`, byte for byte.
pub fn read_text(path: &Path) -> Result<String> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let mut bytes = Vec::new();
    let mut read = |source: &mut dyn Read| source.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes);
    let read = if path == Path::new("-") {
        if io::stdin().is_terminal() {
            note!("reading standard input; Ctrl-D on a line of its own ends it");
        }
        read(&mut io::stdin())
    } else {
        File::open(path).and_then(|mut file| read(&mut file))
    };
    read.with_context(|| name.clone())?;
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        bail!("{name}: more than {MAX_INPUT_BYTES} bytes, which is the most that is read");
    }
    String::from_utf8(bytes)
        .map_err(|e| anyhow!("{name}: not UTF-8 text: invalid byte at offset {}", e.utf8_error().valid_up_to()))
}

/// A JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    parse_json(&read_text(path)?).with_context(|| path.display().to_string())
}

fn parse_json(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("not valid JSON")
}

/// The messages of a conversation.
pub fn parse_messages(text: &str) -> Result<Vec<Value>> {
    match parse_json(text)? {
        Value::Array(messages) => check_messages(messages),
        _ => bail!("expected a JSON list of messages, such as [{{\"role\": \"user\", \"content\": \"Hello\"}}]"),
    }
}

/// Tools are a list.
pub fn check_tools(tools: Value) -> Result<Value> {
    match tools {
        Value::Array(_) => Ok(tools),
        _ => {
            bail!("expected a JSON list of tools, such as [{{\"type\": \"function\", \"function\": {{\"name\": …}}}}]")
        }
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
