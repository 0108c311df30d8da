//! Chat templates: the checkpoint's own Jinja program that writes a conversation as the text the model was trained on.
//!
//! The reference is `apply_chat_template` of Hugging Face transformers, which renders with Python's Jinja2; every
//! setting here exists because it does the same there. A template is part of a downloaded checkpoint, so it is not
//! trusted: it can compute text and nothing else, and it runs on a budget.

use std::fmt::Write as _;
use std::thread;

use jiff::civil::{Date, DateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::globals::{cycler, joiner};
use serde_json::Map;

use crate::error::{Error, Result};

type Jinja<T> = std::result::Result<T, minijinja::Error>;

/// What one rendering may cost, in MiniJinja's fuel: one per instruction and per 64 bytes produced. 2000 messages of
/// 600 bytes cost less than a tenth of it; a loop without end is stopped after a second or so. It is no wall against a
/// template written to do harm: values nested deeply enough overflow the stack when MiniJinja prints or drops them.
const FUEL: u64 = 5_000_000;

/// MiniJinja reads expressions and prints values recursively. Pages of a stack that are not touched cost nothing.
const STACK_BYTES: usize = 512 << 20;

/// Python's default limit of recursion would let JSON nest deeper than a thread's stack holds.
const MAX_JSON_DEPTH: usize = 128;

/// What a chat template is given to write.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Objects with `role`, `content` and whatever else the template reads (`tool_calls`, `reasoning_content`, …).
    /// Keys whose value is null count as absent.
    pub messages: Vec<serde_json::Value>,
    /// JSON schemas of functions that the model may call.
    pub tools: Option<serde_json::Value>,
    /// Further variables of the template, such as Qwen3's `enable_thinking`.
    pub args: Map<String, serde_json::Value>,
    /// The day that `strftime_now` tells; now in local time when `None`.
    pub date: Option<Date>,
    /// Whether the text ends with the header of the assistant's turn, for the model to continue.
    pub add_generation_prompt: bool,
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
        // Jinja2 knows one kind of line end.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        ChatTemplate { source: generation_as_with(&source), special_tokens }
    }

    /// The conversation as text, special tokens included.
    ///
    /// # Errors
    /// [`Error::Template`] when the template does not compile, fails, raises an exception (the message is then the
    /// template's own) or runs out of its budget; [`Error::Input`] when the conversation is not one.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        let variables = self.variables(conversation)?;
        let render = || environment(conversation.date)?.template_from_str(&self.source)?.render(variables);
        thread::scope(|scope| {
            let worker = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, render);
            let worker = worker.map_err(|e| Error::Template(format!("no thread to render it: {e}")))?;
            let rendered = worker.join().map_err(|_| Error::Template("not one that MiniJinja can run".into()))?;
            rendered.map_err(describe)
        })
    }

    fn variables(&self, conversation: &Conversation) -> Result<Value> {
        let Conversation { messages, tools, args, add_generation_prompt, .. } = conversation;
        let mut plain = Vec::with_capacity(messages.len());
        for message in messages {
            let Some(message) = message.as_object() else {
                return Err(Error::Input(format!("a message is an object with `role` and `content`, not {message}")));
            };
            let given = message.iter().filter(|(_, value)| !value.is_null());
            plain.push(given.map(|(k, v)| (k.clone(), v.clone())).collect::<Map<_, _>>().into());
        }
        let own = [
            ("messages", serde_json::Value::Array(plain)),
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
        Ok(Serde(variables).into())
    }
}

/// Jinja as transformers sets it up.
fn environment(date: Option<Date>) -> Jinja<Environment<'static>> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_debug(true); // errors know their column
    env.set_unknown_method_callback(python_method);
    env.set_formatter(|out, state, value| match float(value) {
        Some(number) => Ok(out.write_str(&python_float(number))?),
        None => escape_formatter(out, state, value),
    });
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_iterable);
    env.add_filter("default", default);
    env.add_filter("tojson", tojson);
    env.add_function("cycler", |items: Rest<Value>| cycler(items.to_vec()));
    env.add_function("joiner", joiner);
    env.add_function("raise_exception", |message: String| -> Jinja<()> {
        Err(minijinja::Error::from(ErrorKind::InvalidOperation).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: &str| {
        let now =
            date.map_or_else(|| jiff::Zoned::now().datetime(), |date| DateTime::from_parts(date, Default::default()));
        jiff::fmt::strtime::format(format, now)
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
    });
    Ok(env)
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn describe(error: minijinja::Error) -> Error {
    if let Some(raised) = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<Raised>()) {
        return Error::Template(raised.0.clone());
    }
    let mut message = String::new();
    if let Some(line) = error.line() {
        let _ = write!(message, "line {line}");
        if let (Some(source), Some(range)) = (error.template_source(), error.range()) {
            let before = &source[..range.start];
            let _ = write!(message, ", column {}", before.chars().rev().take_while(|&c| c != '\n').count() + 1);
        }
        message.push_str(": ");
    }
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => message.push_str("stopped because it takes too long or writes too much"),
        (_, Some(detail)) => message.push_str(detail),
        (kind, None) => message.push_str(&kind.to_string()),
    }
    Error::Template(message)
}

/// The source with `{% generation %} … {% endgeneration %}` written as `with` blocks.
///
/// Transformers' own tag marks the text to train on. MiniJinja takes no new tags, but `with` renders the same: both
/// are a scope of their own, and the tags stay in place for white space control, padded so that columns stay right.
fn generation_as_with(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (text, from_tag) = rest.split_at(start);
        let (tag, after) = from_tag.split_at(tag_length(from_tag));
        out.push_str(text);
        rest = after;
        match keyword(tag) {
            "generation" => out.push_str(&tag.replacen("generation", "with      ", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith      ", 1)),
            "raw" => {
                let end = after.match_indices("{%").find(|&(i, _)| keyword(&after[i..]) == "endraw");
                let (raw, after) = after.split_at(end.map_or(after.len(), |(i, _)| i));
                out.push_str(tag);
                out.push_str(raw);
                rest = after;
            }
            _ => out.push_str(tag),
        }
    }
    out + rest
}

/// The statement of a `{% … %}` tag; empty for anything else.
fn keyword(tag: &str) -> &str {
    let Some(inside) = tag.strip_prefix("{%") else { return "" };
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    &inside[..inside.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(inside.len())]
}

/// How many bytes of `source`, which starts with `{`, are one tag, expression or comment; 1 when it starts none.
fn tag_length(source: &str) -> usize {
    let bytes = source.as_bytes();
    let end = match bytes.get(1) {
        Some(b'#') => return source[2..].find("#}").map_or(source.len(), |i| i + 4),
        Some(b'%') => "%}",
        Some(b'{') => "}}",
        _ => return 1,
    };
    let (mut quote, mut depth, mut i) = (None, 0, 2);
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, c @ (b'\'' | b'"')) => quote = Some(c),
            (None, b'{') => depth += 1,
            (None, b'}') if depth > 0 => depth -= 1,
            (None, _) if bytes[i..].starts_with(end.as_bytes()) => return i + 2,
            (None, _) => {}
        }
        i += 1;
    }
    source.len()
}

/// Python's methods of strings, lists and mappings.
fn python_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Jinja<Value> {
    match (value.as_str(), name) {
        (Some(text), "removeprefix") => {
            from_args(args).map(|(p,): (&str,)| text.strip_prefix(p).unwrap_or(text).into())
        }
        (Some(text), "removesuffix") => {
            from_args(args).map(|(s,): (&str,)| text.strip_suffix(s).unwrap_or(text).into())
        }
        (Some(text), "rsplit") => {
            let (separator, limit): (&str, Option<usize>) = from_args(args)?;
            let parts = text.rsplitn(limit.map_or(usize::MAX, |n| n.saturating_add(1)), separator);
            let mut parts: Vec<Value> = parts.map(Value::from).collect();
            parts.reverse();
            Ok(parts.into())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Whether Python iterates over the value; templates ask this of a message's `content`. Slices and concatenations are
/// lazy here and lists in Python, so what Python cannot index (`keys()`) is not told from a sequence.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Seq | Map | Iterable)
}

/// Jinja2's `default`, whose second argument templates also give by name.
fn default(value: Value, other: Option<Value>, positional: Option<bool>, named: Kwargs) -> Jinja<Value> {
    let falsy_too = positional.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    let keep = !value.is_undefined() && (!falsy_too || value.is_true());
    Ok(if keep { value } else { other.unwrap_or_else(|| "".into()) })
}

fn float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()).ok())?
}

/// A float as Python prints it. Rust's shortest digits and its range without an exponent are the same; the exponent
/// has a sign and two digits in Python.
fn python_float(number: f64) -> String {
    let text = format!("{number:?}").to_lowercase(); // NaN is `nan`
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

/// Python's `json.dumps`, with transformers' defaults: no HTML escapes, other characters than ASCII as they are.
fn tojson(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<String> {
    let option = |i: usize, name| match positional.get(i) {
        Some(value) => Ok(value.clone()),
        None => named.get::<Option<Value>>(name).map(Option::unwrap_or_default),
    };
    let (ensure_ascii, indent) = (option(0, "ensure_ascii")?, option(1, "indent")?);
    let (separators, sort_keys) = (option(2, "separators")?, option(3, "sort_keys")?);
    named.assert_all_used()?;

    let indent = match indent.kind() {
        ValueKind::Undefined | ValueKind::None => None,
        ValueKind::String => Some(indent.to_string()),
        _ => Some(" ".repeat(i64::try_from(indent)?.clamp(0, 64) as usize)),
    };
    let (item, key) = if separators.is_true() {
        (separators.get_item_by_index(0)?.to_string(), separators.get_item_by_index(1)?.to_string())
    } else {
        (if indent.is_some() { "," } else { ", " }.into(), ": ".into())
    };
    let (ensure_ascii, sort_keys) = (ensure_ascii.is_true(), sort_keys.is_true());
    let mut json = Json { state, out: String::new(), ensure_ascii, indent, item, key, sort_keys };
    json.value(value, 0)?;
    Ok(json.out)
}

fn not_json(problem: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {problem}"))
}

struct Json<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Json<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Jinja<()> {
        if depth > MAX_JSON_DEPTH {
            return Err(not_json(format!("nested deeper than {MAX_JSON_DEPTH}")));
        }
        // A small value can be an exponentially large text, which the engine sees only when it is complete.
        self.state.consume_fuel(4 + value.as_str().map_or(0, str::len) as u64 / 64)?;
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Bool | ValueKind::None | ValueKind::Number => self.out.push_str(&scalar(value)),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], items, depth, |json, item| json.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.container(['{', '}'], keys, depth, |json, key| {
                    json.string(&if key.as_str().is_some() { key.to_string() } else { scalar(&key) });
                    json.out.push_str(&json.key.clone());
                    json.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => return Err(not_json(format!("an {kind} value is not JSON"))),
        }
        Ok(())
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Jinja<()>,
    ) -> Jinja<()> {
        self.out.push(open);
        let empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number, boolean or null as JSON, which Python also makes of a key that is one.
fn scalar(value: &Value) -> String {
    match (value.kind(), float(value)) {
        (ValueKind::None, _) => "null".into(),
        (_, Some(number)) if number.is_nan() => "NaN".into(),
        (_, Some(number)) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        (_, Some(number)) => python_float(number),
        _ => value.to_string().to_lowercase(), // `True` is `true`
    }
}
