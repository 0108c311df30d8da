//! Grammars of replies: calls of tools in a model's own format, and reasoning before what is asked for.
//!
//! Written in llguidance's kind of Lark, in which `<[7]>` is the token 7 and a rule's `suffix` ends the shortest text before it.

use serde_json::{Map, Value, json};

use super::grammar::{Grammar, json_schema};
use crate::error::{Error, Result};
use crate::reply::{Calls, Format};
use crate::tokenizer::Tokenizer;

/// Whether a reply calls tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// It may. The arguments of a function with `"strict": true` fit its parameters.
    Auto,
    /// It does, with arguments that fit.
    Required,
    /// It calls this function, with arguments that fit.
    Function(String),
}

/// Replies to `prompt` that call `tools` (`{"type": "function", "function": {"name", "parameters", "strict"}}`), as often as they
/// like where they may call in `parallel`, and once otherwise.
///
/// # Errors
/// When the model has no format for calls, when there is no such function, or when one is not described as it should be. Parameters
/// that cannot be followed are found when the grammar is compiled.
pub fn tool_grammar(
    tokenizer: &Tokenizer,
    format: Format,
    prompt: &str,
    tools: &[Value],
    choice: &ToolChoice,
    parallel: bool,
) -> Result<Grammar> {
    let Some(calls) = format.calls else {
        return Err(Error::Input("the model has no format for calls of tools; leave the tools out".into()));
    };
    let functions = tools.iter().map(Function::new).collect::<Result<Vec<_>>>()?;
    let chosen: Vec<&Function> = match choice {
        ToolChoice::Function(name) => functions.iter().filter(|function| function.name == name).collect(),
        ToolChoice::Auto | ToolChoice::Required => functions.iter().collect(),
    };
    if chosen.is_empty() {
        return Err(Error::Input(match choice {
            ToolChoice::Function(name) => format!("there is no function {name:?} among the tools"),
            _ => "there are no tools to call".into(),
        }));
    }
    let token = |text: &str| literal(tokenizer, text);
    let (before, between, after) = match calls {
        Calls::Llama => ("{\"name\": ", ", \"parameters\": ", "}"),
        Calls::MistralList => ("{\"name\": ", ", \"arguments\": ", "}"),
        Calls::MistralNamed => ("", "", ""),
        Calls::Hermes => ("\n{\"name\": ", ", \"arguments\": ", "}\n"),
    };
    let mut rules = Vec::new();
    for (i, function) in chosen.iter().enumerate() {
        let name = match calls {
            Calls::MistralNamed => format!("{} {}", text(function.name), token("[ARGS]")),
            _ => text(&format!("{before}{}{between}", Value::from(function.name))),
        };
        let arguments = json_schema(&function.arguments(*choice != ToolChoice::Auto)?)
            .map_err(|problem| Error::Input(format!("the parameters of {:?}: {problem}", function.name)))?;
        rules.push(format!("call_{i}: {name} arguments_{i} {}", text(after)));
        rules.push(format!("arguments_{i}: %json {arguments}"));
    }
    let all: Vec<String> = (0..chosen.len()).map(|i| format!("call_{i}")).collect();
    rules.push(format!("call: {}", all.join(" | ")));
    let more = |more: String| if parallel { format!(" ({more})*") } else { String::new() };
    // What stands behind the first marker.
    let rest = match calls {
        Calls::Llama => format!("call{}", more("\"; \" call".into())),
        Calls::MistralList => format!("\" [\" call{} \"]\"", more("\", \" call".into())),
        Calls::MistralNamed => format!("call{}", more(format!("{} call", token("[TOOL_CALLS]")))),
        Calls::Hermes => {
            let (open, close) = (token("<tool_call>"), token("</tool_call>"));
            format!("call {close}{}", more(format!("\"\\n\" {open} call {close}")))
        }
    };
    let marker = calls.marker();
    let marked = match calls {
        Calls::Llama => "calls".to_owned(),
        _ => format!("{} calls", token(marker)),
    };
    rules.push(format!("calls: {rest}"));
    let is_special = !tokenizer.special_ids([marker]).is_empty();
    let body = match (choice, calls) {
        (ToolChoice::Required | ToolChoice::Function(_), _) => marked,
        // A call is the whole reply.
        (ToolChoice::Auto, Calls::Llama) => {
            rules.push("TEXT: /[ \\n]*([^ \\n{](?s:.*))?/".into());
            "calls | TEXT".to_owned()
        }
        (ToolChoice::Auto, _) if is_special => {
            rules.push("TEXT: /(?s:.*)/".into());
            format!("TEXT ({marked})?")
        }
        (ToolChoice::Auto, _) => {
            rules.push(format!("TEXT: /(?s:.*)/ & ~/(?s:.*{marker}.*)/"));
            rules.push(format!("before[suffix={}]: /(?s:.*)/", text(marker)));
            "before calls | TEXT".to_owned()
        }
    };
    rules.push(format!("body: {body}"));
    Ok(Grammar::Lark(reasoned(tokenizer, format, prompt, &rules.join("\n"))))
}

impl Grammar {
    /// The same for a reply to `prompt` that may reason before its JSON, or, where the prompt has opened the model's reasoning, does.
    pub fn after_reasoning(self, tokenizer: &Tokenizer, format: Format, prompt: &str) -> Self {
        if format.reasoning.is_none() {
            return self;
        }
        let schema = match &self {
            Grammar::JsonSchema(schema) => json_schema(schema),
            Grammar::JsonObject => json_schema(&json!({"type": "object"})),
            Grammar::Regex(_) | Grammar::Lark(_) => return self,
        };
        match schema {
            Ok(schema) => Grammar::Lark(reasoned(tokenizer, format, prompt, &format!("body: %json {schema}"))),
            Err(_) => self, // which is told when it is compiled
        }
    }
}

/// Rules for a reply to `prompt`, whose `body` comes after the model's reasoning.
fn reasoned(tokenizer: &Tokenizer, format: Format, prompt: &str, rules: &str) -> String {
    let Some(reasoning) = format.reasoning else {
        return format!("start: body\n{rules}\n");
    };
    let (open, close) = reasoning.markers();
    let (start, open) = match format.opens_reasoning(prompt) {
        true => ("reasoning body", String::new()),
        // A template that has closed it as well wants none.
        false if prompt.trim_end().ends_with(close) => return format!("start: body\n{rules}\n"),
        false => ("reasoning? body", literal(tokenizer, open)),
    };
    let thought = match tokenizer.special_ids([close]).is_empty() {
        true => format!("thought[suffix={}]: /(?s:.*)/", text(close)),
        false => format!("thought: /(?s:.*)/ {}", literal(tokenizer, close)),
    };
    format!("start: {start}\nreasoning: {open} thought /\\n{{0,2}}/\n{thought}\n{rules}\n")
}

/// A text as Lark writes it.
fn text(text: &str) -> String {
    Value::from(text).to_string()
}

/// A marker: the token, where it is a special one that texts do not have.
fn literal(tokenizer: &Tokenizer, marker: &str) -> String {
    match tokenizer.special_ids([marker]).first() {
        Some(id) => format!("<[{id}]>"),
        None => text(marker),
    }
}

struct Function<'a> {
    name: &'a str,
    parameters: Option<&'a Map<String, Value>>,
    is_strict: bool,
}

impl<'a> Function<'a> {
    fn new(tool: &'a Value) -> Result<Self> {
        let function = tool.get("function").unwrap_or(tool);
        let name = function.get("name").and_then(Value::as_str);
        let parameters = match function.get("parameters") {
            None | Some(Value::Null) => Some(None),
            Some(parameters) => parameters.as_object().map(Some),
        };
        match (name, parameters) {
            (Some(name), Some(parameters)) if !name.is_empty() => {
                let is_strict = function.get("strict").and_then(Value::as_bool).unwrap_or(false);
                Ok(Function { name, parameters, is_strict })
            }
            _ => Err(Error::Input(format!(
                "a tool is {{\"type\": \"function\", \"function\": {{\"name\": …, \"parameters\": a JSON schema}}}}, not {tool}"
            ))),
        }
    }

    /// The schema of its arguments.
    fn arguments(&self, fit: bool) -> Result<Value> {
        let Some(parameters) = self.parameters else {
            return Ok(json!({"type": "object", "properties": {}, "additionalProperties": false}));
        };
        if !fit && !self.is_strict {
            return Ok(json!({"type": "object"}));
        }
        let mut schema = parameters.clone();
        match schema.entry("type").or_insert("object".into()) {
            kind if kind == "object" => Ok(Value::Object(schema)),
            kind => Err(Error::Input(format!("the parameters of {:?} are an object, not {kind}", self.name))),
        }
    }
}
