//! The line that is typed into a terminal: history, several lines, completion.

use std::fs::DirBuilder;
use std::io::{self, IsTerminal};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use console::style;
use etcetera::BaseStrategy;
use etcetera::base_strategy::Xdg;
use mlx_lm::generate::Overrides;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Cmd, CompletionType, Config, Context, Editor, Helper, KeyCode, KeyEvent, Modifiers};

use super::super::args::CacheArgs;
use super::command::COMMANDS;

const PROMPT: &str = "> ";

/// What was typed.
pub enum Typed {
    Line(String),
    /// Ctrl-C, which empties the line.
    Nothing,
    /// Ctrl-D.
    End,
}

/// Reads what is typed.
pub struct Lines {
    editor: Editor<Typing, DefaultHistory>,
    history: Option<PathBuf>,
}

impl Lines {
    /// With the history of earlier conversations, where there is one.
    pub fn new() -> Result<Self> {
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().completion_type(CompletionType::List).behavior(behavior).build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Typing { files: FilenameCompleter::new(), options: options() }));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let history = history_file();
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(error) = editor.load_history(path)
        {
            log::warn!("{}: {error}", path.display());
        }
        Ok(Lines { editor, history })
    }

    pub fn read(&mut self) -> Result<Typed> {
        match self.editor.readline(&(PROMPT, style(PROMPT).bold().to_string().as_str())) {
            Ok(line) => {
                if !line.trim().is_empty() {
                    self.remember(&line);
                }
                Ok(Typed::Line(joined(&line)))
            }
            Err(ReadlineError::Interrupted) => Ok(Typed::Nothing),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            Err(error) => Err(error.into()),
        }
    }

    /// Each line at once, so that nothing is lost whatever ends the program.
    fn remember(&mut self, line: &str) {
        let added = self.editor.add_history_entry(line);
        let Some(path) = self.history.as_ref().filter(|_| added.unwrap_or(false)) else { return };
        if let Err(error) = self.editor.append_history(path) {
            log::warn!("{}: {error}; what is typed is not kept", path.display());
            self.history = None;
        }
    }
}

/// `\` at the end of a line was typed to begin another.
pub fn joined(text: &str) -> String {
    text.replace("\\\n", "\n")
}

/// Whether a text goes on in the next line.
pub fn goes_on(text: &[u8]) -> bool {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    line.strip_suffix(b"\r").unwrap_or(line).ends_with(b"\\")
}

/// Where the history is, in a directory that is there; the user's alone.
fn history_file() -> Option<PathBuf> {
    let directory = Xdg::new().ok()?.state_dir()?.join("mlx_lm");
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&directory) {
        log::warn!("{}: {error}; what is typed is not kept", directory.display());
        return None;
    }
    Some(directory.join("chat_history"))
}

/// The names that `/set` takes.
pub fn options() -> Vec<String> {
    let command = CacheArgs::augment_args(Overrides::augment_args(clap::Command::new("set")));
    let names = command.get_arguments().map(|arg| arg.get_id().to_string()).filter(|name| name != "logprobs");
    names.chain(["json_schema", "regex", "grammar"].map(str::to_owned)).collect()
}

/// What rustyline asks while a line is typed.
struct Typing {
    files: FilenameCompleter,
    options: Vec<String>,
}

impl Completer for Typing {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, context: &Context) -> rustyline::Result<(usize, Vec<Pair>)> {
        let Some(typed) = line[..position].strip_prefix('/') else { return Ok((position, Vec::new())) };
        let pair = |name: &str, end: &str| Pair { display: name.to_owned(), replacement: format!("{name}{end}") };
        match typed.split_once(' ') {
            None => {
                let known = COMMANDS.iter().filter(|(name, ..)| name.starts_with(typed));
                let end = |argument: &str| if argument.is_empty() { "" } else { " " };
                Ok((1, known.map(|(name, argument, _)| pair(name, end(argument))).collect()))
            }
            Some(("set", name)) => {
                let known = self.options.iter().filter(|option| option.starts_with(name));
                Ok((position - name.len(), known.map(|option| pair(option, " ")).collect()))
            }
            Some(("save" | "load", _)) => self.files.complete(line, position, context),
            Some(_) => Ok((position, Vec::new())),
        }
    }
}

impl Validator for Typing {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if goes_on(context.input().as_bytes()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Hinter for Typing {
    type Hint = String;
}

impl Highlighter for Typing {}
impl Helper for Typing {}
