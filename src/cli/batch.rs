//! `--batch`: a prompt per line in, a JSON result per line out, several lines computed together.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mlx_lm::generate::{self, FinishReason, Finished, Generation, Overrides};
use mlx_lm::{GenerateOptions, fields};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::generate::Session;
use super::output::{print_stats, result_json, token_json, write_line};
use super::process::{FAILURE, INTERRUPTED, SUCCESS};
use super::prompt::{Input, MAX_INPUT_BYTES, Prompt, check_messages, check_tools};
use super::reply::Reply;
use super::terminal;

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
    let options = fields::read::<Overrides, _>(Value::Object(of_options))?.apply(base)?;
    Ok((fields::read::<LinePrompt, _>(Value::Object(of_prompt))?.resolve(flags)?, options))
}

impl LinePrompt {
    /// What the line leaves out is the flags'. Nothing of either is ignored.
    fn resolve(self, flags: &Prompt) -> Result<Prompt> {
        let (flag_system, flag_response) = match &flags.input {
            Input::Text { system, response, .. } => (system.clone(), response.clone()),
            Input::Messages(_) => (None, None),
        };
        let raw = self.raw.unwrap_or(flags.raw);
        let (system, response) = (self.system.or(flag_system), self.prefill_response.or(flag_response));
        let tools = self.tools.map(check_tools).transpose()?.or_else(|| flags.tools.clone());
        let mut template_args = flags.template_args.clone();
        template_args.extend(self.template_args.unwrap_or_default());
        let date = self.date.or(flags.date);
        let extras = [("system", system.is_some()), ("prefill_response", response.is_some())];
        let of_template =
            [("tools", tools.is_some()), ("template_args", !template_args.is_empty()), ("date", date.is_some())];
        let first =
            |given: &[(&'static str, bool)]| given.iter().find(|(_, is_there)| *is_there).map(|(name, _)| *name);
        let messages = [("messages", self.messages.is_some())];
        if let Some(name) = first(&[&messages[..], &extras, &of_template].concat()).filter(|_| raw) {
            bail!("\"{name}\", in the line or as a flag, goes without \"raw\"");
        }
        let input = match (self.prompt, self.messages, first(&extras)) {
            (Some(text), None, _) => Input::Text { text, system, response },
            (None, Some(_), Some(name)) => {
                bail!("\"{name}\", in the line or as a flag, goes with \"prompt\"; put it into \"messages\"")
            }
            (None, Some(messages), None) => Input::Messages(check_messages(messages)?),
            _ => bail!("expected either \"prompt\" or \"messages\""),
        };
        Ok(Prompt { input, raw, tools, template_args, date })
    }
}

/// A file of lines to generate from.
pub struct Batch {
    lines: Lines,
    /// What lines leave out.
    prompt: Prompt,
    options: GenerateOptions,
    /// How many lines are under way at once.
    window: usize,
    is_ordered: bool,
}

/// The lines of a file that are not empty, with their numbers.
struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    number: usize,
}

impl Batch {
    pub fn open(
        path: PathBuf,
        prompt: Prompt,
        options: GenerateOptions,
        parallel: usize,
        unordered: bool,
    ) -> Result<Self> {
        let input: Box<dyn BufRead + Send> = if path == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(&path).with_context(|| path.display().to_string())?))
        };
        // So many that there is always one to begin with when another ends, also behind one that takes long.
        let window = if parallel == 1 { 1 } else { 4 * parallel };
        Ok(Batch { lines: Lines { path, input, number: 0 }, prompt, options, window, is_ordered: !unordered })
    }

    /// What lines leave out.
    pub fn options(&self) -> &GenerateOptions {
        &self.options
    }
}

impl Lines {
    fn next(&mut self) -> Result<Option<(usize, Vec<u8>)>> {
        loop {
            let mut line = Vec::new();
            let mut input = self.input.by_ref().take(MAX_INPUT_BYTES + 1);
            input.read_until(b'\n', &mut line).with_context(|| self.path.display().to_string())?;
            if line.is_empty() {
                return Ok(None);
            }
            self.number += 1;
            if line.len() as u64 > MAX_INPUT_BYTES {
                bail!(
                    "{}: line {} has more than {MAX_INPUT_BYTES} bytes, which is the most that is read",
                    self.path.display(),
                    self.number
                );
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some((self.number, line)));
            }
        }
    }

    /// Read on a thread of its own, since a pipe may be silent for long: a line for each time that one is asked for.
    fn read(mut self, asked: Receiver<()>, to: Sender<Event>) -> io::Result<()> {
        let read = move || {
            while asked.recv().is_ok() && to.send(Event::Line(self.next())).is_ok() {}
        };
        thread::Builder::new().name("lines".into()).spawn(read).map(drop)
    }
}

/// What the batch waits for.
enum Event {
    /// The next line, or the end.
    Line(Result<Option<(usize, Vec<u8>)>>),
    /// The result of the line that was started as number so and so.
    Done(usize, Box<Done>),
}

/// A line's result.
struct Done {
    json: Value,
    /// `None` when it did not come to a generation.
    finished: Option<Finished>,
}

/// The beginning of a line's result. The id of a line is repeated even when the rest of the line is no good.
fn labelled(number: usize, line: &Result<Value>) -> Value {
    let mut result = json!({"line": number});
    if let Some(id) = line.as_ref().ok().and_then(|line| line.get("id")).filter(|id| !id.is_null()) {
        result["id"] = id.clone();
    }
    result
}

fn failed(mut label: Value, error: &anyhow::Error) -> Done {
    label["error"] = format!("{error:#}").into();
    Done { json: label, finished: None }
}

/// Wait for the end of a line's generation.
fn collect(mut label: Value, mut generation: Generation, has_logprobs: bool, reply: Option<Reply>) -> Done {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let finished = loop {
        match generation.next_event().expect("a generation finishes") {
            generate::Event::Delta(delta) => {
                text.push_str(&delta.text);
                tokens.extend(has_logprobs.then(|| token_json(&delta)));
            }
            generate::Event::Finished(finished) => break finished,
            generate::Event::Reading { .. } | generate::Event::Read { .. } => {}
        }
    };
    text.push_str(&finished.held_back);
    let mut result = result_json(&finished, &text);
    if let Some(mut reply) = reply {
        reply.push(&text);
        reply.finish();
        reply.add_to(&mut result);
    }
    let Value::Object(fields) = result else { unreachable!("a result is an object") };
    label.as_object_mut().expect("built as one").extend(fields);
    if has_logprobs {
        label["tokens"] = tokens.into();
    }
    Done { json: label, finished: Some(finished) }
}

/// Generate for each line, as many together as the window has room for.
pub fn run(batch: Batch, session: &Session, is_verbose: bool) -> Result<u8> {
    let Batch { lines, prompt, options, window, is_ordered } = batch;
    let _interruptible = terminal::Generation::begin();
    let (to_main, events) = channel();
    let (ask, asked) = channel();
    lines.read(asked, to_main.clone()).context("a thread could not be started")?;
    let mut writer = Writer { next: 0, ready: BTreeMap::new(), is_ordered, is_verbose, code: SUCCESS };
    let (mut started, mut written, mut is_asked, mut is_end) = (0, 0, false, false);
    while !is_end || written < started {
        if !is_end && !is_asked && started - written < window {
            let _ = ask.send(()); // without a reader, there is an error among the events
            is_asked = true;
        }
        // Ctrl-C ends the wait for lines; what is under way it ends in the engine.
        is_end |= terminal::interrupted();
        match events.recv_timeout(PATIENCE) {
            Err(_) => {}
            Ok(Event::Done(place, done)) => written += writer.take(place, *done)?,
            Ok(Event::Line(line)) => {
                is_asked = false;
                match line? {
                    Some((number, line)) if !is_end => {
                        let done = start(session, &prompt, &options, number, &line);
                        let (to_main, place) = (to_main.clone(), started);
                        let wait = move || drop(to_main.send(Event::Done(place, done().into())));
                        thread::Builder::new().spawn(wait).context("a thread could not be started")?;
                        started += 1;
                    }
                    _ => is_end = true,
                }
            }
        }
    }
    Ok(if terminal::interrupted() { INTERRUPTED } else { writer.code })
}

/// How long Ctrl-C may go unnoticed.
const PATIENCE: Duration = Duration::from_millis(50);

/// Begin a line; what this gives waits for its result.
fn start(
    session: &Session,
    prompt: &Prompt,
    options: &GenerateOptions,
    number: usize,
    line: &[u8],
) -> Box<dyn FnOnce() -> Done + Send> {
    let value: Result<Value> = fields::parse(line, "the line").map_err(Into::into);
    let label = labelled(number, &value);
    let submit = |value| -> Result<(Generation, bool, Option<Reply>)> {
        let (prompt, mut options) = read_line(value, prompt, options)?;
        let tokenizer = session.engine.tokenizer();
        let (text, ids) = prompt.encode(tokenizer)?;
        let has_logprobs = options.logprobs.is_some();
        let reply = prompt.tools.as_ref().map(|tools| Reply::new(tokenizer, &text, tools, &mut options));
        Ok((session.engine.submit(session.request(ids, options))?, has_logprobs, reply))
    };
    match value.and_then(submit) {
        Err(error) => Box::new(move || failed(label, &error)),
        Ok((generation, has_logprobs, reply)) => Box::new(move || collect(label, generation, has_logprobs, reply)),
    }
}

/// Writes results in order, or as they come.
struct Writer {
    next: usize,
    /// Those that came before their turn.
    ready: BTreeMap<usize, Done>,
    is_ordered: bool,
    is_verbose: bool,
    code: u8,
}

impl Writer {
    /// How many results are through with.
    fn take(&mut self, place: usize, done: Done) -> io::Result<usize> {
        if !self.is_ordered {
            self.write(done)?;
            return Ok(1);
        }
        self.ready.insert(place, done);
        let before = self.next;
        while let Some(done) = self.ready.remove(&self.next) {
            self.write(done)?;
            self.next += 1;
        }
        Ok(self.next - before)
    }

    fn write(&mut self, Done { json, finished }: Done) -> io::Result<()> {
        // A line that Ctrl-C found without a token has no result.
        if finished.as_ref().is_some_and(|f| f.reason == FinishReason::Abort && f.stats.generated_tokens == 0) {
            return Ok(());
        }
        write_line(&mut io::stdout().lock(), &json)?;
        let has_failed = finished.as_ref().is_none_or(|finished| finished.error.is_some());
        self.code = self.code.max(if has_failed { FAILURE } else { SUCCESS });
        if let Some(finished) = finished.filter(|_| self.is_verbose) {
            print_stats(&finished.stats);
        }
        Ok(())
    }
}
