//! Bodies of requests, read strictly: a field that is not here, and is no option of a generation ([`Overrides`]) either, is an
//! error that names it.

use std::collections::HashSet;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::super::ApiError;
use crate::chat_template::Conversation;
use crate::fields;
use crate::generate::tools::ToolChoice;
use crate::generate::{Grammar, Overrides};

/// The most answers to one prompt, and alternatives to one token.
const MAX_N: usize = 128;
const MAX_LOGPROBS: usize = 20;
/// The most stop strings, and bytes of one.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// What both kinds of requests say of how to generate.
#[derive(Debug, PartialEq)]
pub struct Settings {
    /// The model's name; without one, the server's first.
    pub model: Option<String>,
    /// How many answers to give to each prompt.
    pub n: usize,
    /// Whether to send the answer piece by piece, and how.
    pub stream: Option<StreamOptions>,
    /// Who asks.
    pub user: Option<String>,
    /// What is set of the generation itself.
    pub overrides: Overrides,
}

/// How to send an answer piece by piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamOptions {
    /// End with what the answer took.
    #[serde(deserialize_with = "or_default")]
    pub include_usage: bool,
}

#[derive(Deserialize)]
struct SettingsFields {
    model: Option<String>,
    n: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    user: Option<String>,
    #[serde(flatten)]
    overrides: Map<String, Value>,
}

/// What null stands for is left out.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Settings {
    fn read(fields: Map<String, Value>) -> Result<Self, ApiError> {
        let SettingsFields { model, n, stream, stream_options, user, overrides } = fields::read(Value::Object(fields))?;
        if stream_options.is_some() && stream != Some(true) {
            return Err(ApiError::field("stream_options", "goes with `stream`: true"));
        }
        let n = n.unwrap_or(1);
        if !(1..=MAX_N).contains(&n) {
            return Err(ApiError::field("n", format!("{n}, expected a whole number from 1 to {MAX_N}")));
        }
        // What a pass over a prompt may take of the server's memory is not a client's to say.
        if overrides.contains_key("prefill_step") {
            return Err(ApiError::unknown_field("prefill_step"));
        }
        let overrides = overrides.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let overrides: Overrides = fields::read(Value::Object(overrides))?;
        let stops = overrides.stop.as_deref().unwrap_or_default();
        if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            let most = format!("expected at most {MAX_STOPS} texts of at most {MAX_STOP_BYTES} bytes");
            return Err(ApiError::field("stop", most));
        }
        let stream = (stream == Some(true)).then(|| stream_options.unwrap_or_default());
        Ok(Settings { model, n, stream, user, overrides })
    }
}

/// `POST /v1/chat/completions`.
#[derive(Debug)]
pub struct ChatRequest {
    /// How to generate.
    pub settings: Settings,
    /// What the chat template is to write.
    pub turns: Turns,
    /// Whether and how functions may be called.
    pub tools: Option<Tools>,
    /// What the answer must be.
    pub grammar: Option<Grammar>,
}

/// Functions that may be called.
#[derive(Debug)]
pub struct Tools {
    /// As they were given.
    pub tools: Vec<Value>,
    /// Whether they must be.
    pub choice: ToolChoice,
    /// Whether more than one may.
    pub parallel: bool,
}

#[derive(Deserialize)]
struct ChatFields {
    messages: Vec<Message>,
    #[serde(default, deserialize_with = "fields::word")]
    reasoning_effort: Option<Effort>,
    chat_template_kwargs: Option<Map<String, Value>>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

impl ChatRequest {
    /// # Errors
    /// When it is not one; the error names the field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields: ChatFields = read_body(body)?;
        let mut settings = Settings::read(fields.settings)?;
        settings.overrides.logprobs = match (fields.logprobs, fields.top_logprobs) {
            (Some(true), n) => Some(n.unwrap_or(0)),
            (_, Some(1..)) => return Err(ApiError::field("top_logprobs", "goes with `logprobs`: true")),
            _ => None,
        };
        check_logprobs("top_logprobs", fields.top_logprobs)?;
        let tools = Tools::read(fields.tools, fields.tool_choice, fields.parallel_tool_calls)?;
        let grammar = fields.response_format.map(ResponseFormat::grammar).transpose()?.flatten();
        if grammar.is_some() && tools.is_some() {
            return Err(ApiError::field("response_format", "goes without `tools`, or with `tool_choice`: \"none\""));
        }
        let turns = Turns::new(fields.messages, fields.reasoning_effort, fields.chat_template_kwargs)?;
        Ok(ChatRequest { settings, turns, tools, grammar })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResponseFormat {
    #[serde(deserialize_with = "fields::word")]
    r#type: FormatType,
    json_schema: Option<JsonSchema>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FormatType {
    Text,
    JsonObject,
    JsonSchema,
}

impl ResponseFormat {
    /// What the answer must be, if it must be something.
    fn grammar(self) -> Result<Option<Grammar>, ApiError> {
        let field = "response_format.json_schema";
        match (self.r#type, self.json_schema) {
            (FormatType::JsonSchema, Some(json_schema)) => Ok(Some(Grammar::JsonSchema(json_schema.schema))),
            (FormatType::JsonSchema, None) => Err(ApiError::field(field, "missing")),
            (_, Some(_)) => Err(ApiError::field(field, "goes with `type`: \"json_schema\"")),
            (FormatType::JsonObject, None) => Ok(Some(Grammar::JsonObject)),
            (FormatType::Text, None) => Ok(None),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // some fields are checked alone
struct JsonSchema {
    name: String,
    description: Option<String>,
    schema: Value,
    /// It is followed in any case.
    strict: Option<bool>,
}

/// What a tool is; templates are given it as it was sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // some fields are checked alone
struct Tool {
    #[serde(deserialize_with = "fields::word")]
    r#type: FunctionType,
    function: Function,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // some fields are checked alone
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // some fields are checked alone
struct NamedTool {
    #[serde(deserialize_with = "fields::word")]
    r#type: FunctionType,
    function: Named,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

impl Tools {
    /// `None` when none may be called.
    fn read(
        tools: Option<Vec<Value>>,
        choice: Option<Value>,
        parallel: Option<bool>,
    ) -> Result<Option<Self>, ApiError> {
        let Some(tools) = tools.filter(|tools| !tools.is_empty()) else {
            let others = [("tool_choice", choice.is_some()), ("parallel_tool_calls", parallel.is_some())];
            return match others.into_iter().find(|(_, is_there)| *is_there) {
                Some((name, _)) => Err(ApiError::field(name, "goes with `tools`")),
                None => Ok(None),
            };
        };
        let mut names = HashSet::new();
        for (i, tool) in tools.iter().enumerate() {
            let field = format!("tools[{i}]");
            let tool: Tool = fields::read(tool).map_err(|error| error.within(&field))?;
            if let Some(name) = names.replace(tool.function.name) {
                let problem = format!("there is another function {name:?}");
                return Err(ApiError::field(&format!("{field}.function.name"), problem));
            }
        }
        let choice = match choice {
            None => ToolChoice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => ToolChoice::Auto,
                "required" => ToolChoice::Required,
                _ => {
                    let problem = format!("{word:?}, expected none, auto, required or a function");
                    return Err(ApiError::field("tool_choice", problem));
                }
            },
            Some(named @ Value::Array(_)) => {
                return Err(ApiError::field("tool_choice", format!("{named}, expected a text or an object")));
            }
            Some(named) => {
                let named: NamedTool = fields::read(named).map_err(|error| error.within("tool_choice"))?;
                let name = named.function.name;
                if !tools.iter().any(|tool| tool["function"]["name"] == name.as_str()) {
                    let problem = format!("there is no function {name:?} in `tools`");
                    return Err(ApiError::field("tool_choice.function.name", problem));
                }
                ToolChoice::Function(name)
            }
        };
        Ok(Some(Tools { tools, choice, parallel: parallel.unwrap_or(true) }))
    }
}

/// How long to think, which is a variable of chat templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Not at all.
    None,
    #[allow(missing_docs)]
    Minimal,
    #[allow(missing_docs)]
    Low,
    #[allow(missing_docs)]
    Medium,
    #[allow(missing_docs)]
    High,
    #[allow(missing_docs)]
    Xhigh,
}

/// A conversation, and variables of the chat template.
#[derive(Debug)]
pub struct Turns {
    messages: Vec<Value>,
    effort: Option<Effort>,
    variables: Map<String, Value>,
}

impl Turns {
    pub(in crate::server) fn new(
        messages: Vec<Message>,
        effort: Option<Effort>,
        variables: Option<Map<String, Value>>,
    ) -> Result<Self, ApiError> {
        if messages.is_empty() {
            return Err(ApiError::field("messages", "the list is empty"));
        }
        let messages = messages.into_iter().enumerate().map(|(i, message)| message.for_template(i));
        Ok(Turns { messages: messages.collect::<Result<_, _>>()?, effort, variables: variables.unwrap_or_default() })
    }

    /// What the chat template is given; `reads` tells whether it reads a variable.
    ///
    /// # Errors
    /// When it does not read one, which would be ignored.
    pub fn conversation(self, tools: Option<&[Value]>, reads: impl Fn(&str) -> bool) -> Result<Conversation, ApiError> {
        let mut conversation = Conversation::to_answer(self.messages);
        if let Some(tools) = tools {
            if !reads("tools") {
                return Err(ApiError::field("tools", "the model's chat template does not know them"));
            }
            conversation.tools = Some(tools.into());
        }
        let reserved = ["messages", "tools", "add_generation_prompt"];
        let twice = ["reasoning_effort", "enable_thinking"].into_iter().filter(|_| self.effort.is_some());
        if let Some(name) = reserved.into_iter().chain(twice).find(|name| self.variables.contains_key(*name)) {
            return Err(ApiError::field(&format!("chat_template_kwargs.{name}"), "another field says this"));
        }
        if let Some(effort) = self.effort {
            let variables = [("reasoning_effort", json!(effort)), ("enable_thinking", json!(effort != Effort::None))];
            let read = variables.into_iter().filter(|(name, _)| reads(name));
            conversation.args.extend(read.map(|(name, value)| (name.to_owned(), value)));
            if conversation.args.is_empty() {
                return Err(ApiError::field("reasoning_effort", "the model's chat template does not know it"));
            }
        }
        if let Some((name, _)) = self.variables.iter().find(|(name, _)| !reads(name)) {
            let field = format!("chat_template_kwargs.{name}");
            return Err(ApiError::field(&field, "the model's chat template does not know it"));
        }
        conversation.args.extend(self.variables);
        Ok(conversation)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Message {
    #[serde(deserialize_with = "fields::word")]
    role: Role,
    #[serde(default, deserialize_with = "text")]
    content: Option<String>,
    name: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    /// What OpenAI's packages make of the content, and send back with it.
    #[serde(rename = "parsed")]
    _parsed: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    /// What OpenAI calls `developer` of late; templates know the older name.
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
    Tool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // some fields are checked alone
struct ToolCall {
    id: Option<String>,
    #[serde(default, deserialize_with = "fields::word")]
    r#type: Option<FunctionType>,
    function: FunctionCall,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FunctionType {
    Function,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionCall {
    name: String,
    arguments: String,
    /// As `parsed`.
    #[serde(rename = "parsed_arguments")]
    _parsed_arguments: Option<IgnoredAny>,
}

impl Message {
    /// As templates expect it: without what is not there, and with a call's arguments as an object.
    fn for_template(self, index: usize) -> Result<Value, ApiError> {
        let Message { role, content, name, reasoning_content, tool_calls, tool_call_id, .. } = self;
        let of_assistant = [("reasoning_content", reasoning_content.is_some()), ("tool_calls", tool_calls.is_some())];
        if let Some((name, _)) = of_assistant.iter().find(|(_, is_there)| *is_there && role != Role::Assistant) {
            return Err(ApiError::field(&format!("messages[{index}].{name}"), "is of an assistant's message"));
        }
        let tool_calls = tool_calls.filter(|calls| !calls.is_empty());
        if content.is_none() && tool_calls.is_none() {
            return Err(ApiError::field(&format!("messages[{index}].content"), "missing"));
        }
        // Some templates tell calls by content that is none.
        let mut message = json!({"role": role, "content": content});
        let texts = [("name", name), ("reasoning_content", reasoning_content), ("tool_call_id", tool_call_id)];
        for (key, text) in texts.into_iter().filter_map(|(key, text)| Some((key, text?))) {
            message[key] = text.into();
        }
        if let Some(calls) = tool_calls {
            let calls = calls.into_iter().enumerate().map(|(call, ToolCall { id, function, .. })| {
                let arguments: Map<String, Value> = serde_json::from_str(&function.arguments).map_err(|e| {
                    let field = format!("messages[{index}].tool_calls[{call}].function.arguments");
                    ApiError::field(&field, format!("the text is not a JSON object: {e}"))
                })?;
                let function = json!({"name": function.name, "arguments": arguments});
                let mut call = json!({"type": "function", "function": function});
                if let Some(id) = id {
                    call["id"] = id.into();
                }
                Ok(call)
            });
            message["tool_calls"] = calls.collect::<Result<Vec<_>, ApiError>>()?.into();
        }
        Ok(message)
    }
}

/// A text, or a list of parts that are text.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let wrong = |found: &dyn std::fmt::Display| {
        D::Error::custom(format!("{found}, expected a text or a list of {{\"type\": \"text\", \"text\": …}}"))
    };
    let parts = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(text)),
        Value::Array(parts) => parts,
        other => return Err(wrong(&other)),
    };
    let mut joined = String::new();
    for part in &parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) if part.as_object().is_some_and(|part| part.len() == 2) => joined += text,
            (Some(kind), _) if kind != "text" => return Err(wrong(&format!("a part of type `{kind}`"))),
            _ => return Err(wrong(part)),
        }
    }
    Ok(Some(joined))
}

/// `POST /v1/completions`.
#[derive(Debug, PartialEq)]
pub struct CompletionRequest {
    /// How to generate.
    pub settings: Settings,
    /// What to go on from, each for itself.
    pub prompts: Vec<Prompt>,
}

/// What to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

#[derive(Deserialize)]
struct CompletionFields {
    #[serde(deserialize_with = "prompts")]
    prompt: Vec<Prompt>,
    logprobs: Option<usize>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

impl CompletionRequest {
    /// # Errors
    /// When it is not one; the error names the field.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let CompletionFields { prompt: prompts, logprobs, settings } = read_body(body)?;
        let mut settings = Settings::read(settings)?;
        check_logprobs("logprobs", logprobs)?;
        settings.overrides.logprobs = logprobs;
        Ok(CompletionRequest { settings, prompts })
    }
}

fn prompts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Prompt>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(Prompt),
        Many(Vec<Prompt>),
    }
    let expected = "expected a text, a list of token ids, or a list of these";
    match OneOrMany::deserialize(deserializer).map_err(|_| D::Error::custom(expected))? {
        OneOrMany::One(Prompt::Ids(ids)) if ids.is_empty() => {
            Err(D::Error::custom(format!("an empty list, {expected}")))
        }
        OneOrMany::One(prompt) => Ok(vec![prompt]),
        OneOrMany::Many(prompts) => Ok(prompts),
    }
}

fn check_logprobs(name: &str, n: Option<usize>) -> Result<(), ApiError> {
    match n {
        Some(n) if n > MAX_LOGPROBS => {
            Err(ApiError::field(name, format!("{n}, expected a whole number from 0 to {MAX_LOGPROBS}")))
        }
        _ => Ok(()),
    }
}

/// Where a body has objects, which serde would also take as lists of their members.
const OBJECTS: [&[&str]; 9] = [
    &["response_format"],
    &["response_format", "json_schema"],
    &["stream_options"],
    &["messages", "*"],
    &["messages", "*", "tool_calls", "*"],
    &["messages", "*", "tool_calls", "*", "function"],
    &["tools", "*"],
    &["tools", "*", "function"],
    &["tool_choice", "function"],
];

/// Whether there is no list at the end of a path, of which `*` is each item of a list, below `at`.
fn check_objects(value: &Value, path: &[&str], at: &str) -> Result<(), ApiError> {
    match path {
        [] if value.is_array() => Err(ApiError::field(at, "a list, expected an object")),
        [] => Ok(()),
        ["*", rest @ ..] => {
            let mut items = value.as_array().into_iter().flatten().enumerate();
            items.try_for_each(|(i, item)| check_objects(item, rest, &format!("{at}[{i}]")))
        }
        [name, rest @ ..] => match value.get(name) {
            None => Ok(()),
            Some(value) if at.is_empty() => check_objects(value, rest, name),
            Some(value) => check_objects(value, rest, &format!("{at}.{name}")),
        },
    }
}

/// A body as `T`, whose errors name the field.
pub(in crate::server) fn read_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut body = fields::parse(body, "the body")?;
    OBJECTS.iter().try_for_each(|path| check_objects(&body, path, ""))?;
    // What OpenAI's packages made of an answer has all fields, also those that it has not.
    let messages = body.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten();
    messages.filter_map(Value::as_object_mut).for_each(|message| message.retain(|_, value| !value.is_null()));
    Ok(fields::read(body)?)
}
