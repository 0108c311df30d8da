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
        Calls::MistralList | Calls::TaggedList => ("{\"name\": ", ", \"arguments\": ", "}"),
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
        Calls::TaggedList => {
            let ending = calls.ending().filter(|ending| !tokenizer.special_ids([*ending]).is_empty());
            format!("\"[\" call{} \"]\" {}", more("\", \" call".into()), ending.map(token).unwrap_or_default())
        }
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

#[cfg(all(test, feature = "structured"))]
mod tests {
    use super::super::constraint::tests::{allows, compiler};
    use super::*;
    use crate::reply::Reasoning;

    fn tools() -> Vec<Value> {
        let city = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"],
                          "additionalProperties": false});
        vec![
            json!({"type": "function", "function": {"name": "weather", "parameters": city, "strict": true}}),
            json!({"type": "function", "function": {"name": "now"}}),
        ]
    }

    /// Asserts that `text` is, or is not, a reply that the grammar of these settings allows.
    fn check(
        tokenizer: &str,
        format: Format,
        prompt: &str,
        choice: &ToolChoice,
        parallel: bool,
        text: &str,
        expected: bool,
    ) {
        let compiler = compiler(tokenizer);
        let grammar = tool_grammar(compiler.tokenizer(), format, prompt, &tools(), choice, parallel).unwrap();
        let ids = compiler.tokenizer().encode(text, false).unwrap();
        // SentencePiece's own space at the beginning is part of a constrained text.
        let ids =
            if tokenizer == "metaspace" && ids.len() > 1 && compiler.tokenizer().piece(ids[0]).as_deref() == Some("▁")
            {
                &ids[1..]
            } else {
                &ids[..]
            };
        let found = allows(&compiler, &grammar, ids);
        let pieces: Vec<_> = ids.iter().map(|id| compiler.tokenizer().piece(*id).unwrap()).collect();
        assert_eq!(
            found == (ids.len(), true),
            expected,
            "{tokenizer}, {choice:?}, {text:?}: {found:?} of {pieces:?}\n{grammar:?}"
        );
    }

    #[test]
    fn what_is_required_is_a_call_in_the_models_own_format() {
        let hermes = Format { reasoning: None, calls: Some(Calls::Hermes) };
        let weather = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
        let now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let (required, named) = (ToolChoice::Required, ToolChoice::Function("now".into()));
        let check_hermes = |choice: &ToolChoice, parallel, text: &str, expected| {
            check("byte_level_qwen3", hermes, "", choice, parallel, text, expected)
        };
        check_hermes(&required, true, weather, true);
        check_hermes(&required, false, now, true);
        check_hermes(&required, true, &format!("{weather}\n{now}\n{now}"), true);
        check_hermes(&required, false, &format!("{weather}\n{now}"), false);
        check_hermes(&named, true, now, true);
        check_hermes(&named, true, weather, false);
        check_hermes(&required, true, "It is sunny.", false);
        check_hermes(&required, true, &weather.replace("\"Rome\"", "7"), false);
        check_hermes(&required, true, &weather.replace("weather", "whether"), false);

        let mistral = Format { reasoning: None, calls: Some(Calls::MistralList) };
        let calls = "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}, {\"name\": \"now\", \"arguments\": {}}]";
        check("metaspace", mistral, "", &required, true, calls, true);
        check("metaspace", mistral, "", &required, false, calls, false);
        let named = Format { reasoning: None, calls: Some(Calls::MistralNamed) };
        let calls = "[TOOL_CALLS]weather[ARGS]{\"city\": \"Rome\"}[TOOL_CALLS]now[ARGS]{}";
        check("metaspace", named, "", &required, true, calls, true);
        check("metaspace", named, "", &required, false, calls, false);

        let tagged = Format { reasoning: None, calls: Some(Calls::TaggedList) };
        let calls = "<|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}, {\"name\": \"now\", \"arguments\": {}}]";
        check("metaspace", tagged, "", &required, true, calls, true);
        check("metaspace", tagged, "", &required, false, calls, false);

        let llama = Format { reasoning: None, calls: Some(Calls::Llama) };
        let call = "{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}";
        check("byte_level_llama3", llama, "", &required, true, call, true);
        check("byte_level_llama3", llama, "", &required, true, &format!("{call}; {call}"), true);
        check("byte_level_llama3", llama, "", &required, true, &format!("<|python_tag|>{call}"), false);
    }

    #[test]
    fn a_reply_that_may_call_is_a_text_or_a_call_that_fits() {
        let auto = ToolChoice::Auto;
        for (tokenizer, calls, marker, end) in [
            ("byte_level_qwen3", Calls::Hermes, "<tool_call>\n", "}\n</tool_call>"),
            ("metaspace", Calls::MistralList, "[TOOL_CALLS] [", "}]"),
        ] {
            let format = Format { reasoning: None, calls: Some(calls) };
            let call = |arguments: &str| format!("{marker}{{\"name\": \"weather\", \"arguments\": {arguments}{end}");
            check(tokenizer, format, "", &auto, true, "It is < 7 {and} sunny.\n", true);
            check(tokenizer, format, "", &auto, true, &call("{\"city\": \"Rome\"}"), true);
            check(tokenizer, format, "", &auto, true, &format!("I look.\n{}", call("{\"city\": \"Rome\"}")), true);
            check(tokenizer, format, "", &auto, true, &format!("I look.\n{}", call("{\"town\": \"Rome\"}")), false);
            check(tokenizer, format, "", &auto, true, &format!("{marker}and so on"), false);
        }
        let llama = Format { reasoning: None, calls: Some(Calls::Llama) };
        check("byte_level_llama3", llama, "", &auto, true, "It is {sunny}.", true);
        check("byte_level_llama3", llama, "", &auto, true, "{\"name\": \"weather\", \"parameters\": {}}", false);
        check(
            "byte_level_llama3",
            llama,
            "",
            &auto,
            true,
            "{\"name\": \"weather\", \"parameters\": {\"city\": \"\"}}",
            true,
        );
    }

    #[test]
    fn reasoning_comes_before_and_where_it_is_open_it_ends_first() {
        let format = Format { reasoning: Some(Reasoning::Think), calls: Some(Calls::Hermes) };
        let now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let thought = format!("\nNo {now} < </thin\n</think>\n\n");
        let check = |prompt: &str, text: String, expected| {
            check("byte_level_qwen3", format, prompt, &ToolChoice::Required, true, &text, expected)
        };
        check("<|im_start|>assistant\n", format!("<think>{thought}{now}"), true);
        check("<|im_start|>assistant\n", now.into(), true);
        check("<think>\n", format!("{thought}{now}"), true);
        check("<think>\n", now.into(), false);
        check("<think>\n\n</think>\n\n", now.into(), true);
        check("<think>\n\n</think>\n\n", format!("<think>{thought}{now}"), false);

        let compiler = compiler("byte_level_qwen3");
        for grammar in [Grammar::JsonObject, Grammar::JsonSchema(json!({"type": "object"}))] {
            let grammar = grammar.after_reasoning(compiler.tokenizer(), format, "<think>\n");
            for (text, expected) in
                [("So.\n</think>\n\n{\"a\": 1}", true), ("{\"a\": 1}", false), ("So.</think>[]", false)]
            {
                let ids = compiler.tokenizer().encode(text, false).unwrap();
                assert_eq!(allows(&compiler, &grammar, &ids) == (ids.len(), true), expected, "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_tool_is_refused() {
        let compiler = compiler("byte_level_qwen3");
        let format = Format { reasoning: None, calls: Some(Calls::Hermes) };
        let refused = |format, tools: &[Value], choice: &ToolChoice| {
            tool_grammar(compiler.tokenizer(), format, "", tools, choice, true).unwrap_err().to_string()
        };
        assert!(refused(Format::default(), &tools(), &ToolChoice::Required).contains("no format for calls"));
        assert!(refused(format, &[], &ToolChoice::Auto).contains("no tools"));
        assert!(refused(format, &tools(), &ToolChoice::Function("f".into())).contains("\"f\""));
        assert!(refused(format, &[json!({"type": "function"})], &ToolChoice::Required).contains("a tool is"));
        let list = json!({"name": "f", "parameters": {"type": "array"}});
        assert!(refused(format, &[list], &ToolChoice::Required).contains("are an object"));
    }
}
