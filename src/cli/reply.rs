//! With `--tools`: the calls in what a model writes.

use mlx_lm::reply::{Event, Parser, function_names};
use mlx_lm::{GenerateOptions, Tokenizer};
use serde_json::{Value, json};

/// A reply, read as it comes.
pub struct Reply {
    parser: Parser,
    reasoning: String,
    content: String,
    calls: Vec<Value>,
    /// The name and arguments of the call under way.
    call: (String, String),
}

impl Reply {
    /// To `prompt` with these tools, a list; `options` are made to show the markers of calls, which may be special tokens.
    pub fn new(tokenizer: &Tokenizer, prompt: &str, tools: &Value, options: &mut GenerateOptions) -> Self {
        let format = tokenizer.reply_format();
        options.shown = tokenizer.special_ids(format.markers());
        Reply {
            parser: Parser::new(format, prompt)
                .of_functions(function_names(tools.as_array().map_or(&[], Vec::as_slice))),
            reasoning: String::new(),
            content: String::new(),
            calls: Vec::new(),
            call: Default::default(),
        }
    }

    /// More text; the calls that end with it.
    pub fn push(&mut self, text: &str) -> &[Value] {
        let events = self.parser.push(text);
        self.take(events)
    }

    /// There is no more; the call that ends thereby.
    pub fn finish(&mut self) -> &[Value] {
        let events = self.parser.finish();
        self.take(events)
    }

    fn take(&mut self, events: Vec<Event>) -> &[Value] {
        let before = self.calls.len();
        for event in events {
            match event {
                Event::Reasoning(text) => self.reasoning.push_str(&text),
                Event::Content(text) => self.content.push_str(&text),
                Event::CallBegin { name } => self.call = (name, String::new()),
                Event::CallArguments(text) => self.call.1.push_str(&text),
                Event::CallEnd { .. } => {
                    let (name, arguments) = std::mem::take(&mut self.call);
                    // What broke off is no JSON.
                    let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
                    self.calls.push(json!({"name": name, "arguments": arguments}));
                }
            }
        }
        &self.calls[before..]
    }

    /// Add `reasoning` where there is any, `content` and `tool_calls` to a result.
    pub fn add_to(self, result: &mut Value) {
        if !self.reasoning.is_empty() {
            result["reasoning"] = self.reasoning.into();
        }
        result["content"] = self.content.into();
        result["tool_calls"] = self.calls.into();
    }
}
