//! Replies as models write them: text, reasoning and calls of tools, told apart while they stream.
//!
//! The formats are those of the model families' own chat templates: Llama 3.1 to 3.3 (a JSON object with `name` and
//! `parameters`, alone or after `<|python_tag|>`), Mistral (`[TOOL_CALLS]` and a list of objects, or `name[ARGS]{…}`), Hermes
//! and Qwen3 (`<tool_call>{…}</tool_call>`), Granite 3 and Phi-4-mini (`<|tool_call|>` and a list of objects); reasoning is `<think>…</think>`, or Mistral's `[THINK]…[/THINK]`. Which one a model
//! writes, its template and its vocabulary say ([`Format::detect`]).
//!
//! ```
//! use mlx_lm::reply::{Calls, Event, Format, Parser, Reasoning};
//!
//! let format = Format { reasoning: Some(Reasoning::Think), calls: Some(Calls::Hermes) };
//! let mut parser = Parser::new(format, "<|im_start|>assistant\n");
//! let mut events = parser.push("<think>\nSeven?\n</think>\n\n<tool_call>\n{\"name\": \"add\", \"argu");
//! events.extend(parser.push("ments\": {\"a\": 3}}\n</tool_call>"));
//! events.extend(parser.finish());
//! assert_eq!(events, [
//!     Event::Reasoning("Seven?".into()),
//!     Event::CallBegin { name: "add".into() },
//!     Event::CallArguments("{\"a\": 3}".into()),
//!     Event::CallEnd { is_whole: true },
//! ]);
//! ```

mod json;
mod parser;

pub use parser::Parser;
use serde_json::Value;

/// The names of functions, as a chat template is given them: `{"function": {"name": …}}` or `{"name": …}` each.
pub fn function_names(tools: &[Value]) -> Vec<String> {
    let name = |tool: &Value| tool["function"]["name"].as_str().or(tool["name"].as_str()).map(str::to_owned);
    tools.iter().filter_map(name).collect()
}

/// A piece of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More of what the model thinks before it answers.
    Reasoning(String),
    /// More of the answer.
    Content(String),
    /// A tool is called.
    CallBegin {
        /// The function.
        name: String,
    },
    /// More of the call's arguments, a JSON object as the model wrote it.
    CallArguments(String),
    /// The call's arguments end.
    CallEnd {
        /// Whether they are a whole JSON object. The text may end within it, or go on in another way; what follows is content.
        is_whole: bool,
    },
}

/// How a model marks its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    /// `<think>…</think>`
    Think,
    /// `[THINK]…[/THINK]`
    Brackets,
}

impl Reasoning {
    /// The markers before and after.
    pub fn markers(self) -> (&'static str, &'static str) {
        match self {
            Reasoning::Think => ("<think>", "</think>"),
            Reasoning::Brackets => ("[THINK]", "[/THINK]"),
        }
    }
}

/// How a model calls tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// `{"name": "f", "parameters": {…}}` as the whole reply, or after `<|python_tag|>`; several with `;` between them.
    Llama,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {…}}, …]`
    MistralList,
    /// `[TOOL_CALLS]f[ARGS]{…}`, once for each call. What reads this reads [`Calls::MistralList`] too, and the other way round.
    MistralNamed,
    /// `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`, once for each call.
    Hermes,
    /// `<|tool_call|>[{"name": "f", "arguments": {…}}, …]`, and perhaps `<|/tool_call|>`.
    TaggedList,
}

const PYTHON_TAG: &str = "<|python_tag|>";
const TOOL_CALLS: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
const TOOL_CALL: &str = "<tool_call>";
const TOOL_CALL_END: &str = "</tool_call>";
const TAG: &str = "<|tool_call|>";
const TAG_END: &str = "<|/tool_call|>";

impl Calls {
    /// What stands before a call.
    pub fn marker(self) -> &'static str {
        match self {
            Calls::Llama => PYTHON_TAG,
            Calls::MistralList | Calls::MistralNamed => TOOL_CALLS,
            Calls::Hermes => TOOL_CALL,
            Calls::TaggedList => TAG,
        }
    }

    /// What stands after a call, or after a list of them.
    pub fn ending(self) -> Option<&'static str> {
        match self {
            Calls::Hermes => Some(TOOL_CALL_END),
            Calls::TaggedList => Some(TAG_END),
            Calls::Llama | Calls::MistralList | Calls::MistralNamed => None,
        }
    }

    fn markers(self) -> &'static [&'static str] {
        match self {
            Calls::Llama => &[PYTHON_TAG],
            Calls::MistralList | Calls::MistralNamed => &[TOOL_CALLS, ARGS, CALL_ID],
            Calls::Hermes => &[TOOL_CALL, TOOL_CALL_END],
            Calls::TaggedList => &[TAG, TAG_END],
        }
    }
}

/// How a model writes its replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Format {
    /// `None`: reasoning is not told from the answer.
    pub reasoning: Option<Reasoning>,
    /// `None`: there are no calls.
    pub calls: Option<Calls>,
}

impl Format {
    /// What the source of a chat template says, or is empty, and what the vocabulary has. The template counts more: of models that
    /// were trained from one another, it tells which format was taught last.
    pub fn detect(template: &str, has_token: impl Fn(&str) -> bool) -> Self {
        let writes = |marker: &str| template.contains(marker);
        let has = |marker: &str| writes(marker) || has_token(marker);
        let mistral = || if has(ARGS) { Calls::MistralNamed } else { Calls::MistralList };
        // Qwen3-Coder's calls are XML within the same tags.
        let is_json = !writes("<function=");
        let calls = match () {
            () if writes(TOOL_CALL) => is_json.then_some(Calls::Hermes),
            () if writes(TAG) => Some(Calls::TaggedList),
            () if writes(TOOL_CALLS) => Some(mistral()),
            () if writes(PYTHON_TAG) || writes("Environment: ipython") => Some(Calls::Llama),
            () if has_token(TOOL_CALL) && has_token(TOOL_CALL_END) => Some(Calls::Hermes),
            () if has_token(TAG) => Some(Calls::TaggedList),
            () if has_token(TOOL_CALLS) => Some(mistral()),
            () if has_token(PYTHON_TAG) => Some(Calls::Llama),
            () => None,
        };
        let reasons = |reasoning: &Reasoning| has(reasoning.markers().1);
        let reasoning = [Reasoning::Think, Reasoning::Brackets].into_iter().find(reasons);
        Format { reasoning, calls }
    }

    /// The texts that a [`Parser`] looks for. Those that are special tokens must be made visible to it.
    pub fn markers(&self) -> impl Iterator<Item = &'static str> {
        let reasoning = self.reasoning.map(|reasoning| <[_; 2]>::from(reasoning.markers()));
        let calls = self.calls.map(Calls::markers).unwrap_or_default();
        reasoning.into_iter().flatten().chain(calls.iter().copied())
    }

    /// Whether a text that is gone on with ends within reasoning.
    pub fn is_within_reasoning(&self, text: &str) -> bool {
        self.reasoning.map(Reasoning::markers).is_some_and(|(open, close)| text.rfind(open) > text.rfind(close))
    }

    /// Whether a reply to this prompt begins within reasoning that the template has opened.
    pub fn opens_reasoning(&self, prompt: &str) -> bool {
        self.reasoning.is_some_and(|reasoning| prompt.trim_end().ends_with(reasoning.markers().0))
    }
}
