//! `mlx_lm chat`: a conversation, typed into a terminal or piped in, a turn or a command a line.

mod command;
mod dialogue;
mod editor;
mod markdown;
mod screen;
mod table;
mod transcript;

use std::io::{self, BufRead, IsTerminal, Read};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mlx_lm::generate::{EngineOptions, Event, FinishReason, Finished, Overrides, Stats};
use mlx_lm::reply::{self, Format, Parser};
use mlx_lm::{GenerateOptions, fields};
use serde_json::{Map, Value};

use super::args::ChatArgs;
use super::generate::{Session, set_device};
use super::output::print_stats;
use super::process::{FAILURE, INTERRUPTED, SUCCESS, Usage, of_stdout};
use super::progress::Progress;
use super::prompt::MAX_INPUT_BYTES;
use super::terminal::{self, printable};
use command::Command;
use dialogue::Dialogue;
use editor::{Lines, Typed};
use screen::Screen;
use transcript::Transcript;

/// How soon Ctrl-C is seen.
const TICK: Duration = Duration::from_millis(50);
/// For so many of these the end of a pass is waited for after it; what it computes further is the engine's own business.
const PATIENCE: usize = 10;

pub fn chat(args: ChatArgs) -> Result<u8> {
    let options = args.options()?;
    if options.logprobs.is_some() {
        bail!(Usage("a conversation shows no log-probabilities, which --logprobs asks for".into()));
    }
    let is_script = !io::stdin().is_terminal();
    if is_script {
        terminal::catch_interrupt();
    } else {
        terminal::only_catch_interrupt();
    }
    set_device(args.device)?;
    let mut dialogue = Dialogue::new(args.template_arg.into_iter().collect(), args.date);
    dialogue.set_system(args.system.as_deref());
    if let Some(path) = &args.messages {
        dialogue.load(path)?;
    }
    let stop = Arc::default();
    let engine = EngineOptions {
        parallel: 1,
        cache_memory: args.cache_memory.map(|bytes| bytes.as_u64()),
        stop: Arc::clone(&stop),
        ..EngineOptions::default()
    };
    let session = Session::load(&args.model, None, engine, args.verbose)?;
    if !session.engine.tokenizer().has_chat_template() {
        bail!(
            "this model has no chat template, so it was not made to talk; `mlx_lm --prompt TEXT` goes on from a text"
        );
    }
    let mut chat = Chat {
        session,
        dialogue,
        transcript: Transcript::default(),
        options,
        settings: Map::new(),
        screen: Screen::new(is_script, args.plain, args.hide_reasoning),
        is_verbose: args.verbose,
        retries: 0,
        stats: None,
        streams: false,
    };
    let code = if is_script { chat.script() } else { chat.talk() };
    stop.store(true, std::sync::atomic::Ordering::Relaxed); // a pass that nobody waits for
    code
}

struct Chat {
    session: Session,
    dialogue: Dialogue,
    transcript: Transcript,
    /// As the flags say.
    options: GenerateOptions,
    /// What `/set` has set, as fields of [`Overrides`].
    settings: Map<String, Value>,
    screen: Screen,
    is_verbose: bool,
    /// How often the last question was answered before.
    retries: u64,
    /// Of the last answer.
    stats: Option<Stats>,
    /// Whether it was said that the context is full.
    streams: bool,
}

/// What comes of a turn or a command.
#[derive(PartialEq, Eq)]
enum Turn {
    Done,
    Interrupted,
}

impl Chat {
    /// Until Ctrl-D.
    fn talk(&mut self) -> Result<u8> {
        let mut lines = Lines::new()?;
        note!("/help lists the commands, Ctrl-D ends the conversation");
        loop {
            terminal::forget_interrupt();
            match lines.read()? {
                Typed::Line(line) => match self.turn(&line) {
                    Ok(_) => {}
                    Err(error) if of_stdout(&error).is_some() => return Err(error),
                    Err(error) => note!("{}", printable(&format!("{error:#}"))),
                },
                Typed::Nothing => note!("Ctrl-D ends the conversation"),
                Typed::End => return Ok(SUCCESS),
            }
        }
    }

    /// Until the end of standard input; a line that fails does not keep the rest from running.
    fn script(&mut self) -> Result<u8> {
        let mut input = io::stdin().lock();
        let (mut code, mut number) = (SUCCESS, 0);
        loop {
            let mut text = Vec::new();
            let first = number + 1;
            while text.is_empty() || editor::goes_on(&text) {
                let read = input.by_ref().take(MAX_INPUT_BYTES).read_until(b'\n', &mut text);
                if read.context("standard input")? == 0 {
                    break;
                }
                number += 1;
                if text.len() as u64 >= MAX_INPUT_BYTES && !text.ends_with(b"\n") {
                    bail!("line {number} has {MAX_INPUT_BYTES} bytes or more, which is more than is read");
                }
            }
            if text.is_empty() {
                return Ok(code);
            }
            let turn = String::from_utf8(text).context("it is not UTF-8").and_then(|text| {
                let text = text.replace("\r\n", "\n");
                self.turn(&editor::joined(text.trim_end_matches('\n')))
            });
            match turn {
                Ok(Turn::Done) => {}
                Ok(Turn::Interrupted) => return Ok(INTERRUPTED),
                Err(error) if of_stdout(&error).is_some() => return Err(error),
                Err(error) => {
                    note!("error: line {first}: {}", printable(&format!("{error:#}")));
                    code = FAILURE;
                }
            }
        }
    }

    fn turn(&mut self, line: &str) -> Result<Turn> {
        if let Some(command) = line.strip_prefix('/') {
            return self.command(Command::parse(command)?);
        }
        let text = line.trim();
        if text.is_empty() {
            return Ok(Turn::Done);
        }
        let before = self.dialogue.clone();
        self.dialogue.ask(text);
        self.retries = 0;
        self.answer(before)
    }

    fn command(&mut self, command: Command) -> Result<Turn> {
        match command {
            Command::Help => note!("{}", command::help().trim_end()),
            Command::Stats => match &self.stats {
                Some(stats) => {
                    print_stats(stats);
                    let config = self.session.engine.config();
                    let size = self.current_options()?.cache_limits(config)?.context_size;
                    let held = (stats.prompt_tokens + stats.generated_tokens) as u64 - stats.evicted_tokens;
                    note!("context: {} of {size} tokens", held.min(size as u64)); // the last token goes there with the next
                }
                None => note!("nothing has been answered yet"),
            },
            Command::System(None) => match self.dialogue.system() {
                Some(text) => note!("system: {}", printable(text)),
                None => note!("there is no system message"),
            },
            Command::System(Some(text)) => self.dialogue.set_system(Some(text.as_str()).filter(|text| *text != "off")),
            Command::Reset => self.dialogue.reset(),
            Command::Undo => match self.dialogue.undo() {
                Some(question) => note!("taken back: {}", printable(question.lines().next().unwrap_or_default())),
                None => bail!("there is nothing to take back"),
            },
            Command::Regenerate => {
                let before = self.dialogue.clone();
                if !self.dialogue.unanswer() {
                    bail!("there is no question to answer");
                }
                self.retries += 1;
                return self.answer(before);
            }
            Command::Save { path, force } => {
                let path = self.dialogue.save(path.as_deref(), force)?;
                note!("saved to {}", printable(&path.display().to_string()));
            }
            Command::Load(path) => {
                self.dialogue.load(&path)?;
                note!("{} messages", self.dialogue.len());
            }
            Command::Set(None) => match self.settings.is_empty() {
                true => note!("nothing is set; the options are {}", editor::options().join(", ")),
                false => {
                    self.settings.iter().for_each(|(name, value)| note!("{name} {}", printable(&value.to_string())))
                }
            },
            Command::Set(Some((name, value))) => self.set(name, &value)?,
        }
        Ok(Turn::Done)
    }

    /// Nothing changes where the value cannot be.
    fn set(&mut self, name: String, value: &str) -> Result<()> {
        if !editor::options().contains(&name) {
            bail!("there is no option {name:?}; they are {}", editor::options().join(", "));
        }
        let before = self.settings.clone();
        match value {
            "default" => drop(self.settings.remove(&name)),
            _ => drop(self.settings.insert(name, serde_json::from_str(value).unwrap_or_else(|_| value.into()))),
        }
        let checked = self.current_options().and_then(|options| Ok(self.session.engine.check(&options)?));
        if checked.is_err() {
            self.settings = before;
        }
        checked
    }

    fn current_options(&self) -> Result<GenerateOptions> {
        let mut options = fields::read::<Overrides, _>(Value::Object(self.settings.clone()))?.apply(&self.options)?;
        options.sampler.seed = options.sampler.seed.wrapping_add(self.retries);
        Ok(options)
    }

    /// Let the model answer. Where nothing is said, the conversation is as it was `before`.
    fn answer(&mut self, before: Dialogue) -> Result<Turn> {
        let (mut content, mut reasoning) = (String::new(), String::new());
        let mut ids = Vec::new();
        let generated = self.generate(&mut ids, &mut content, &mut reasoning);
        if content.is_empty() && reasoning.is_empty() && !matches!(&generated, Ok(Turn::Done)) {
            self.dialogue = before;
        } else {
            self.dialogue.answer(&content, &reasoning);
            self.transcript.answer(&ids, self.session.engine.tokenizer())?;
        }
        generated
    }

    fn generate(&mut self, ids: &mut Vec<u32>, content: &mut String, reasoning: &mut String) -> Result<Turn> {
        let mut options = self.current_options()?;
        let tokenizer = self.session.engine.tokenizer();
        let text = self.dialogue.render(tokenizer)?;
        let format = Format { calls: None, ..tokenizer.reply_format() };
        options.shown = tokenizer.special_ids(format.markers());
        let mut parser = Parser::new(format, &text);
        let prompt = self.transcript.prompt(text, tokenizer)?;

        let max_tokens = options.max_tokens;
        let _interruptible = terminal::Generation::begin();
        let _quiet = terminal::Quiet::begin();
        let mut generation = self.session.engine.submit(self.session.request(prompt, options))?;
        let mut progress = Some(Progress::new("reading", "{pos}/{len} tokens"));
        let mut answer = self.screen.answer();
        let mut show = |events: Vec<reply::Event>| -> io::Result<()> {
            for event in events {
                match event {
                    reply::Event::Reasoning(text) => {
                        reasoning.push_str(&text);
                        answer.reasoning(&text)?;
                    }
                    reply::Event::Content(text) => {
                        content.push_str(&text);
                        answer.content(&text)?;
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        let mut patience = PATIENCE;
        let finished = loop {
            let event = generation.next_event_within(TICK);
            let is_interrupted = terminal::interrupted();
            if is_interrupted {
                generation.abort();
            }
            match event {
                Poll::Ready(Some(Event::Reading { done, total })) => {
                    if let Some(progress) = &mut progress {
                        progress.update(done as u64, total as u64);
                    }
                }
                Poll::Ready(Some(Event::Read { .. })) => progress = None,
                Poll::Ready(Some(Event::Delta(delta))) => {
                    ids.push(delta.token.id);
                    show(parser.push(&delta.text))?;
                }
                Poll::Ready(Some(Event::Finished(finished))) => break Some(finished),
                Poll::Ready(None) => break None,
                Poll::Pending if is_interrupted && patience == 0 => break None,
                Poll::Pending if is_interrupted => patience -= 1,
                Poll::Pending => {}
            }
        };
        drop(progress.take());
        if let Some(finished) = &finished {
            show(parser.push(&finished.held_back))?;
        }
        show(parser.finish())?;
        let is_broken_off =
            finished.as_ref().is_none_or(|finished| finished.error.is_some() || finished.reason == FinishReason::Abort);
        answer.end(is_broken_off)?;
        let Some(Finished { reason, error, stats, .. }) = finished else { return Ok(Turn::Interrupted) };
        self.stats = Some(stats);
        if stats.evicted_tokens > 0 && !self.streams {
            self.streams = true;
            note!("the context is full: from now on the oldest text but its very beginning is forgotten to make room");
        }
        if self.is_verbose {
            print_stats(&stats);
        }
        if let Some(error) = error {
            return Err(error.into());
        }
        match reason {
            FinishReason::Abort => Ok(Turn::Interrupted),
            FinishReason::Length if stats.generated_tokens < max_tokens => {
                note!("the answer ends here because the context is full; /set context_size sets its size");
                Ok(Turn::Done)
            }
            FinishReason::Length => {
                note!("the answer ends here after {max_tokens} tokens; /set max_tokens allows for more");
                Ok(Turn::Done)
            }
            _ => Ok(Turn::Done),
        }
    }
}
