//! Chat templates: the checkpoint's own Jinja program that writes a conversation as the text the model was trained on.
//!
//! The reference is `apply_chat_template` of Hugging Face transformers, which renders with Python's Jinja2; every
//! setting here exists because it does the same there. A template is part of a downloaded checkpoint, so it is not
//! trusted: it can compute text and nothing else, and it runs on a budget.
//!
//! The budget is kept by a process of its own, which is killed when it takes too long and which the system refuses more
//! memory than 512 MB. A library cannot start its host program again, so a program offers itself: it calls
//! [`set_worker`] with a command that starts a program that calls [`serve`]. Where none does, templates are rendered in
//! the program itself, as [`ChatTemplate::render_here`] does.

mod arguments;
mod continuation;
mod filters;
mod json;
mod methods;
mod python;
mod rewrite;
mod worker;

pub(crate) use json::python_float;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use jiff::civil::{Date, DateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, escape_formatter};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::error::{Error, Result};
use rewrite::Rewritten;

pub use worker::{serve, set_worker};

type Jinja<T> = std::result::Result<T, minijinja::Error>;

/// What one rendering may cost, in MiniJinja's fuel: one per instruction and per 64 bytes produced. 2000 messages of
/// 600 bytes cost less than a tenth of it; a loop without end is stopped after half a second or so. Some operations cost
/// next to nothing whatever they do, which is why a worker has other limits too.
const FUEL: u64 = 5_000_000;

/// MiniJinja reads expressions and prints values recursively. Pages of a stack that are not touched cost nothing.
const STACK_BYTES: usize = 512 << 20;

/// The longest template, in bytes. The longest known ones have some 30,000.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// What a chat template is given to write.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Objects with `role`, `content` and whatever else the template reads (`tool_calls`, `reasoning_content`, …).
    pub messages: Vec<serde_json::Value>,
    /// JSON schemas of functions that the model may call.
    pub tools: Option<serde_json::Value>,
    /// Further variables of the template, such as Qwen3's `enable_thinking`.
    pub args: Map<String, serde_json::Value>,
    /// The day that `strftime_now` tells; now in local time when `None`.
    pub date: Option<Date>,
    /// Whether the text ends with the header of the assistant's turn, for the model to continue.
    pub add_generation_prompt: bool,
    /// Whether the text ends where the last message does, for the model to continue that.
    pub continue_final_message: bool,
}

impl Conversation {
    /// One that the model is to answer; where the last message is the assistant's, and calls nothing, that is continued.
    pub fn to_answer(messages: Vec<serde_json::Value>) -> Self {
        let calls =
            |message: &serde_json::Value| message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
        let last = messages.last().filter(|message| message["role"] == "assistant" && !calls(message));
        let continues = last.is_some_and(|message| message["content"].is_string() || message["content"].is_array());
        Conversation {
            messages,
            add_generation_prompt: !continues,
            continue_final_message: continues,
            ..Conversation::default()
        }
    }
}

/// A checkpoint's chat template and the special tokens that it names.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    special_tokens: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// `special_tokens` are variables of the template: `bos_token`, `eos_token`, … Nothing is compiled yet, so that a
    /// checkpoint with a template this library cannot read still completes raw text.
    pub fn new(source: &str, special_tokens: Map<String, serde_json::Value>) -> Self {
        if source.len() > MAX_SOURCE_BYTES {
            // Its beginning, which is too long as well.
            let source = source[..source.floor_char_boundary(MAX_SOURCE_BYTES + 4)].to_owned();
            return ChatTemplate { source, special_tokens };
        }
        // Jinja2 knows one kind of line end.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        ChatTemplate { source, special_tokens }
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text, special tokens included: within 2 seconds of a processor and 512 MB in a worker, where
    /// the program has one ([`set_worker`]).
    ///
    /// # Errors
    /// [`Error::Template`] when the template does not compile, fails, raises an exception (the message is then the
    /// template's own), runs out of its budget or has no worker that starts; [`Error::Busy`] when others have the
    /// processor; [`Error::Input`] when the conversation is not one.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        self.render_by(conversation, |job| match worker::command() {
            Some(command) => worker::render(command, job),
            None => job.render_here(),
        })
    }

    /// The conversation as text, rendered in this process.
    ///
    /// Loops end here too, but a template that is written to do harm can take any time and memory, and can overflow
    /// the stack, which ends the program.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_here(&self, conversation: &Conversation) -> Result<String> {
        self.render_by(conversation, Job::render_here)
    }

    /// Whether the template's source has this word.
    pub fn mentions(&self, word: &str) -> bool {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let alone =
            |at: usize| !self.source[..at].ends_with(is_part) && !self.source[at + word.len()..].starts_with(is_part);
        self.source.match_indices(word).any(|(at, _)| alone(at))
    }

    fn render_by(&self, conversation: &Conversation, render: impl FnOnce(&Job) -> Result<String>) -> Result<String> {
        if !conversation.continue_final_message {
            return render(&self.job(conversation)?);
        }
        let mut marked = conversation.clone();
        let message = continuation::mark(&mut marked.messages)?;
        continuation::cut(render(&self.job(&marked)?)?, &message)
    }

    fn job(&self, conversation: &Conversation) -> Result<Job> {
        if self.source.len() > MAX_SOURCE_BYTES {
            let place = Some(Place::of(&self.source, MAX_SOURCE_BYTES));
            let problem = format!("it goes on, expected at most {MAX_SOURCE_BYTES} bytes");
            return Err(Failure { place, problem }.into());
        }
        let Conversation { messages, tools, args, add_generation_prompt, .. } = conversation;
        for message in messages {
            if !message.is_object() {
                return Err(Error::Input(format!("a message is an object with `role` and `content`, not {message}")));
            }
        }
        let own = [
            ("messages", serde_json::Value::Array(messages.clone())),
            ("tools", tools.clone().unwrap_or_default()),
            ("add_generation_prompt", (*add_generation_prompt).into()),
        ];
        if let Some((name, _)) = own.iter().find(|(name, _)| args.contains_key(*name)) {
            return Err(Error::Input(format!("`{name}` is not an argument of the chat template")));
        }
        let mut variables = self.special_tokens.clone();
        variables.insert("documents".into(), serde_json::Value::Null);
        variables.extend(args.clone());
        variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Ok(Job { source: self.source.clone(), variables, date: conversation.date })
    }
}

/// A template and what it is rendered with.
#[derive(Serialize, Deserialize)]
struct Job {
    source: String,
    variables: Map<String, serde_json::Value>,
    date: Option<Date>,
}

impl Job {
    fn render_here(&self) -> Result<String> {
        let render = || render(&self.source, Serde(&self.variables).into(), self.date, FUEL, &mut None);
        thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, render);
            let thread = thread.map_err(|e| Error::Template(format!("no thread to render it: {e}")))?;
            thread.join().expect("panics are caught").map_err(|(_, failure)| failure.into())
        })
    }
}

/// A template that was compiled, for renderings to come.
struct Compiled {
    source: String,
    date: Option<Date>,
    env: Environment<'static>,
}

impl Compiled {
    const NAME: &str = "chat";

    fn new(source: &str, date: Option<Date>) -> Jinja<Self> {
        let mut env = environment(date)?;
        env.add_template_owned(Self::NAME, Rewritten::new(source).source)?;
        Ok(Compiled { source: source.to_owned(), date, env })
    }
}

/// Render in this thread, with the template in `kept` if that is this one, which is left there. The place of a panic is not known.
fn render(
    source: &str,
    variables: Value,
    date: Option<Date>,
    fuel: u64,
    kept: &mut Option<Compiled>,
) -> std::result::Result<String, (ErrorKind, Failure)> {
    let same = kept.take().filter(|kept| kept.source == source && kept.date == date);
    let render = || {
        let mut compiled = same.map_or_else(|| Compiled::new(source, date), Ok)?;
        compiled.env.set_fuel(Some(fuel));
        let text = compiled.env.get_template(Compiled::NAME)?.render(variables);
        *kept = Some(compiled);
        text
    };
    let not_jinja = |_| Err(minijinja::Error::new(ErrorKind::InvalidOperation, "not one that MiniJinja can run"));
    let rendered = catch_unwind(AssertUnwindSafe(render)).unwrap_or_else(not_jinja);
    rendered.map_err(|error| (error.kind(), Failure::of(&error, &Rewritten::new(source))))
}

/// Jinja as transformers sets it up.
fn environment(date: Option<Date>) -> Jinja<Environment<'static>> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_debug(true); // errors know their column
    env.set_unknown_method_callback(methods::method);
    env.set_formatter(|out, state, value| match json::float(value) {
        Some(number) => Ok(out.write_str(&python_float(number))?),
        None if python::is_container(value) => Ok(out.write_str(&python::repr(state, value)?)?),
        None => escape_formatter(out, state, value),
    });
    filters::add_to(&mut env);
    env.add_function(rewrite::PERCENT, python::percent);
    env.add_function("raise_exception", |message: String| -> Jinja<()> {
        Err(minijinja::Error::from(ErrorKind::InvalidOperation).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: &str| {
        let now =
            date.map_or_else(|| jiff::Zoned::now().datetime(), |date| DateTime::from_parts(date, Default::default()));
        strftime(now, format).map_err(|e| arguments::wrong(format!("strftime_now({format:?}): {e}")))
    });
    Ok(env)
}

/// Python's `strftime`, in the C locale, of a time that knows no zone.
fn strftime(time: DateTime, format: &str) -> std::result::Result<String, jiff::Error> {
    let mut known = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        known.push_str(before);
        let conversion = &after[..after.chars().next().map_or(0, char::len_utf8)];
        rest = &after[conversion.len()..];
        match conversion {
            "c" => known.push_str("%a %b %e %H:%M:%S %Y"),
            "x" => known.push_str("%m/%d/%y"),
            "X" => known.push_str("%H:%M:%S"),
            "f" => known.push_str(&format!("{:06}", time.subsec_nanosecond() / 1000)),
            "z" | "Z" => {}
            other => known.extend(["%", other]),
        }
    }
    known.push_str(rest);
    jiff::fmt::strtime::format(&known, time)
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A place in a template, counted from 1.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Place {
    line: usize,
    column: usize,
}

impl Default for Place {
    fn default() -> Self {
        Place { line: 1, column: 1 }
    }
}

impl Place {
    /// The place of the character at this byte of the source.
    fn of(source: &str, byte: usize) -> Self {
        let before = &source[..source.floor_char_boundary(byte)];
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        Place { line: before.matches('\n').count() + 1, column }
    }

    /// Where rendering failed. MiniJinja knows only the line of some statements; their column is that of the line's
    /// first character.
    fn of_error(error: &minijinja::Error, template: &Rewritten) -> Option<Self> {
        let line = error.line()?;
        if let Some(range) = error.range() {
            return Some(Place { line, ..template.place(range.start) });
        }
        let text = template.source.split('\n').nth(line - 1)?;
        Some(Place { line, column: text.chars().take_while(|c| c.is_whitespace()).count() + 1 })
    }
}

/// Why there is no text.
#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    place: Option<Place>,
    problem: String,
}

impl Failure {
    fn of(error: &minijinja::Error, template: &Rewritten) -> Self {
        if let Some(raised) = std::error::Error::source(error).and_then(|e| e.downcast_ref::<Raised>()) {
            return Failure { place: None, problem: raised.0.clone() };
        }
        let problem = match (error.kind(), error.detail()) {
            (ErrorKind::OutOfFuel, _) => "stopped because it takes too long or writes too much".to_owned(),
            (_, Some(detail)) => detail.to_owned(),
            (kind, None) => kind.to_string(),
        };
        Failure { place: Place::of_error(error, template), problem }
    }
}

impl From<Failure> for Error {
    fn from(Failure { place, problem }: Failure) -> Self {
        Error::Template(match place {
            Some(Place { line, column }) => format!("line {line}, column {column}: {problem}"),
            None => problem,
        })
    }
}
