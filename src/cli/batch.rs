//! `--batch`: a prompt per line in, a JSON result per line out, in order, each as soon as it is ready.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use mlx_lm::GenerateOptions;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::args::GenerateArgs;
use super::generate::Session;
use super::output::{print_stats, token_json, write_line};
use super::process::{FAILURE, INTERRUPTED, SUCCESS};
use super::prompt::{Input, Prompt, check_messages};

/// A line of the batch: a prompt or messages, an id to be repeated in the result, and options that differ from the
/// command line's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, rename = "id")]
    _id: Value,
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    system: Option<String>,
    tools: Option<Value>,
    raw: Option<bool>,
    template_args: Option<Map<String, Value>>,
    max_tokens: Option<usize>,
    stop: Option<Vec<String>>,
    ignore_eos: Option<bool>,
    temp: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    repetition_context: Option<usize>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<u64>,
}

impl Line {
    /// The prompt and options of this line; what it leaves out is the command line's.
    fn split(self, flags: &Prompt, base: &GenerateOptions) -> Result<(Prompt, GenerateOptions)> {
        let flag_system = match &flags.input {
            Input::Text { system, .. } => system.clone(),
            Input::Messages(_) => None,
        };
        let raw = self.raw.unwrap_or(flags.raw);
        let input = match (self.prompt, self.messages, self.system) {
            (_, Some(_), _) | (_, _, Some(_)) if raw => bail!("\"raw\" goes with \"prompt\" alone"),
            (Some(text), None, None) if raw => Input::Text { text, system: None },
            (Some(text), None, system) => Input::Text { text, system: system.or(flag_system) },
            (None, Some(_), Some(_)) => bail!("\"system\" goes with \"prompt\"; put it into \"messages\""),
            (None, Some(messages), None) => Input::Messages(check_messages(messages)?),
            _ => bail!("expected either \"prompt\" or \"messages\""),
        };
        let mut template_args = flags.template_args.clone();
        template_args.extend(self.template_args.unwrap_or_default());
        if raw && self.tools.is_some() {
            bail!("\"raw\" goes with \"prompt\" alone");
        }
        let tools = self.tools.or_else(|| flags.tools.clone());
        let prompt = Prompt { input, raw, tools, template_args, date: flags.date };
        let mut options = base.clone();
        let set = &mut options;
        override_with(&mut set.max_tokens, self.max_tokens);
        override_with(&mut set.stop, self.stop);
        override_with(&mut set.ignore_eos, self.ignore_eos);
        override_with(&mut set.sampler.temp, self.temp);
        override_with(&mut set.sampler.top_p, self.top_p);
        override_with(&mut set.sampler.top_k, self.top_k);
        override_with(&mut set.sampler.min_p, self.min_p);
        override_with(&mut set.sampler.repetition_penalty, self.repetition_penalty.map(Some));
        override_with(&mut set.sampler.repetition_context, self.repetition_context);
        override_with(&mut set.sampler.presence_penalty, self.presence_penalty);
        override_with(&mut set.sampler.frequency_penalty, self.frequency_penalty);
        override_with(&mut set.sampler.seed, self.seed);
        options.validate()?;
        Ok((prompt, options))
    }
}

fn override_with<T>(option: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *option = value;
    }
}

pub fn run(
    path: &Path,
    args: &GenerateArgs,
    options: &GenerateOptions,
    load: impl FnOnce() -> Result<Session>,
) -> Result<u8> {
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| path.display().to_string())?))
    };
    let flags = Prompt::read(&args.prompt)?;
    let session = load()?;
    let mut out = io::stdout().lock();
    let mut failed = false;
    for (i, line) in input.split(b'\n').enumerate() {
        let line = line.with_context(|| path.display().to_string())?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        // The id of a line is repeated even when the rest of the line is no good.
        let value: Result<Value, _> = serde_json::from_slice(&line);
        let id = value.as_ref().ok().and_then(|v| v.get("id")).cloned().unwrap_or(Value::Null);
        let outcome = value
            .map_err(|e| anyhow!("not valid JSON: {e}"))
            .and_then(|v| serde_json::from_value::<Line>(v).context("not a line of a batch"))
            .and_then(|line| {
                let (prompt, options) = line.split(&flags, options)?;
                let (_, ids) = prompt.encode(&session.tokenizer)?;
                let (mut text, mut tokens) = (String::new(), Vec::new());
                let outcome = session.run(&ids, &options, |piece| {
                    text.push_str(&piece.text);
                    tokens.extend(piece.token.logprob.map(|_| token_json(piece)));
                    Ok(())
                })?;
                text.push_str(&outcome.held_back);
                Ok((outcome, text, tokens))
            });
        let mut result = json!({"line": i + 1});
        if !id.is_null() {
            result["id"] = id;
        }
        match &outcome {
            Ok((outcome, text, tokens)) => {
                let Value::Object(fields) = outcome.json(text) else { unreachable!("an outcome is an object") };
                result.as_object_mut().expect("built as one").extend(fields);
                if args.logprobs.is_some() {
                    result["tokens"] = tokens.clone().into();
                }
            }
            Err(error) => {
                failed = true;
                result["error"] = format!("{error:#}").into();
            }
        }
        write_line(&mut out, &result)?;
        if let Ok((outcome, ..)) = outcome {
            if args.verbose {
                print_stats(&outcome.stats);
            }
            if outcome.finish_reason.is_none() {
                return Ok(INTERRUPTED);
            }
        }
    }
    Ok(if failed { FAILURE } else { SUCCESS })
}
