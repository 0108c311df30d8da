//! `--batch`: a prompt per line in, a JSON result per line out, in order, each as soon as it is ready.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use mlx_lm::GenerateOptions;
use mlx_lm::generate::Overrides;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::args::GenerateArgs;
use super::generate::Session;
use super::output::{print_stats, token_json, write_line};
use super::process::{FAILURE, INTERRUPTED, SUCCESS};
use super::prompt::{Input, MAX_INPUT_BYTES, Prompt, check_messages};

/// What a line of the batch says of its prompt. Its other fields are [`Overrides`].
#[derive(Deserialize)]
struct LinePrompt {
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    system: Option<String>,
    prefill_response: Option<String>,
    tools: Option<Value>,
    raw: Option<bool>,
    template_args: Option<Map<String, Value>>,
    date: Option<jiff::civil::Date>,
}

/// The fields of [`LinePrompt`], and `id`, which the result repeats.
const PROMPT_FIELDS: [&str; 9] =
    ["id", "prompt", "messages", "system", "prefill_response", "tools", "raw", "template_args", "date"];

/// The prompt and options of a line; what it leaves out is the command line's.
fn read_line(value: Value, flags: &Prompt, base: &GenerateOptions) -> Result<(Prompt, GenerateOptions)> {
    let Value::Object(fields) = value else {
        bail!("expected an object, such as {{\"prompt\": \"Hello\"}}, not {value}");
    };
    let (of_prompt, of_options): (Map<_, _>, Map<_, _>) =
        fields.into_iter().partition(|(name, _)| PROMPT_FIELDS.contains(&name.as_str()));
    let options = read_fields::<Overrides>(of_options)?.apply(base)?;
    Ok((read_fields::<LinePrompt>(of_prompt)?.resolve(flags)?, options))
}

/// A struct from an object; errors name the field.
fn read_fields<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        // Rust's names of types are nobody's business.
        let names = [
            ("usize", "a whole number from 0"),
            ("i64", "a whole number"),
            ("f32", "a number"),
            ("a sequence", "a list"),
        ];
        let problem = error.inner().to_string().replace("invalid type: map", "invalid type: object");
        let problem = names
            .iter()
            .fold(problem, |text, (rust, json)| text.replace(&format!("expected {rust}"), &format!("expected {json}")));
        match error.path().to_string().as_str() {
            "." => anyhow!("{problem}"),
            field => anyhow!("`{field}`: {problem}"),
        }
    })
}

impl LinePrompt {
    fn resolve(self, flags: &Prompt) -> Result<Prompt> {
        let (flag_system, flag_response) = match &flags.input {
            Input::Text { system, response, .. } => (system.clone(), response.clone()),
            Input::Messages(_) => (None, None),
        };
        let raw = self.raw.unwrap_or(flags.raw);
        let extras = [("system", self.system.is_some()), ("prefill_response", self.prefill_response.is_some())];
        let extra = extras.into_iter().find(|(_, is_there)| *is_there).map(|(name, _)| name);
        if raw && (self.messages.is_some() || extra.is_some() || self.tools.is_some()) {
            bail!("\"raw\" goes with \"prompt\" alone");
        }
        let input = match (self.prompt, self.messages, extra) {
            (Some(text), None, _) if raw => Input::Text { text, system: None, response: None },
            (Some(text), None, _) => Input::Text {
                text,
                system: self.system.or(flag_system),
                response: self.prefill_response.or(flag_response),
            },
            (None, Some(_), Some(extra)) => bail!("\"{extra}\" goes with \"prompt\"; put it into \"messages\""),
            (None, Some(messages), None) => Input::Messages(check_messages(messages)?),
            _ => bail!("expected either \"prompt\" or \"messages\""),
        };
        let mut template_args = flags.template_args.clone();
        template_args.extend(self.template_args.unwrap_or_default());
        let tools = self.tools.or_else(|| flags.tools.clone());
        Ok(Prompt { input, raw, tools, template_args, date: self.date.or(flags.date) })
    }
}

pub fn run(
    path: &Path,
    args: &GenerateArgs,
    options: &GenerateOptions,
    load: impl FnOnce() -> Result<Session>,
) -> Result<u8> {
    let flags = Prompt::read(&args.prompt, Some(path))?;
    let mut input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| path.display().to_string())?))
    };
    let session = load()?;
    let mut out = io::stdout().lock();
    let mut failed = false;
    for i in 0.. {
        let mut line = Vec::new();
        input
            .by_ref()
            .take(MAX_INPUT_BYTES + 1)
            .read_until(b'\n', &mut line)
            .with_context(|| path.display().to_string())?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 > MAX_INPUT_BYTES {
            bail!(
                "{}: line {} has more than {MAX_INPUT_BYTES} bytes, which is the most that is read",
                path.display(),
                i + 1
            );
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        // The id of a line is repeated even when the rest of the line is no good.
        let value: Result<Value> = serde_json::from_slice(&line).map_err(|e| anyhow!("not valid JSON: {e}"));
        let id = value.as_ref().ok().and_then(|v| v.get("id")).cloned().unwrap_or(Value::Null);
        let outcome = value.and_then(|value| read_line(value, &flags, options)).and_then(|(prompt, options)| {
            let (_, ids) = prompt.encode(&session.tokenizer)?;
            let (mut text, mut tokens) = (String::new(), Vec::new());
            let outcome = session.run(&ids, &options, |piece| {
                text.push_str(&piece.text);
                tokens.extend(piece.token.logprob.map(|_| token_json(piece)));
                Ok(())
            })?;
            text.push_str(&outcome.held_back);
            Ok((outcome, text, tokens, options.logprobs.is_some()))
        });
        let mut result = json!({"line": i + 1});
        if !id.is_null() {
            result["id"] = id;
        }
        match &outcome {
            Ok((outcome, text, tokens, has_logprobs)) => {
                let Value::Object(fields) = outcome.json(text) else { unreachable!("an outcome is an object") };
                result.as_object_mut().expect("built as one").extend(fields);
                if *has_logprobs {
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
            failed |= outcome.error.is_some();
            if outcome.is_interrupted() {
                return Ok(INTERRUPTED);
            }
        }
    }
    Ok(if failed { FAILURE } else { SUCCESS })
}
