//! What both programs do around their work: messages on stderr, exit codes, the end of the process.
//!
//! Exit codes: 0 success, 1 failure, 2 usage, 130 interrupted.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::CommandFactory;

/// A line on stderr; when nobody can read it, nobody misses it.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

#[path = "memory.rs"]
mod memory;

pub const SUCCESS: u8 = 0;
pub const FAILURE: u8 = 1;
pub const USAGE: u8 = 2;
pub const INTERRUPTED: u8 = 130;

/// The command line asks for what cannot be, which clap does not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Run the command and end the process.
pub fn main(run: fn() -> Result<u8>) -> ! {
    let code = guarded(run);
    let flushed = io::stdout().flush().or_else(|e| if is_closed_pipe(&e) { Ok(()) } else { Err(e) });
    if let Err(error) = &flushed {
        note!("error: standard output: {error}");
    }
    // Not `exit`, which would run the destructors of MLX's statics while its threads may still be at work.
    signal_hook::low_level::exit(if flushed.is_ok() { code } else { code.max(FAILURE) }.into())
}

/// The command's exit code, whatever happens.
fn guarded(run: fn() -> Result<u8>) -> u8 {
    // A panic is a defect of ours; whoever meets one gets a line like for any other error.
    std::panic::set_hook(Box::new(|panic| log::debug!("{panic}")));
    let done = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        note!("error: internal error: {}; please report it", one_line(message.unwrap_or("no message")));
        Ok(FAILURE)
    });
    done.unwrap_or_else(|error| {
        if error.downcast_ref().is_some_and(is_closed_pipe) {
            return SUCCESS;
        }
        if let Some(mlx_lm::Error::Setting { setting, found, expected }) = error.downcast_ref() {
            let is_variable = setting.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            let name = if is_variable { (*setting).to_owned() } else { format!("--{}", setting.replace('_', "-")) };
            note!("error: {name} is {found}, expected {expected}\n\nFor more information, try '--help'.");
            return USAGE;
        }
        if let Some(Usage(problem)) = error.downcast_ref() {
            note!("error: {}\n\nFor more information, try '--help'.", one_line(problem));
            return USAGE;
        }
        note!("error: {}", one_line(&format!("{error:#}")));
        FAILURE
    })
}

/// Show log records from `level` up on stderr.
pub fn log_from(level: log::LevelFilter) {
    env_logger::Builder::new()
        .filter_level(level)
        .parse_default_env()
        .format(|out, record| writeln!(out, "[{}] {}", record.level(), one_line(&record.args().to_string())))
        .init();
}

/// Print a completion script for the program `name`.
pub fn completions<C: CommandFactory>(name: &str, shell: clap_complete::Shell) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut C::command(), name, &mut script);
    io::stdout().write_all(&script)?;
    Ok(SUCCESS)
}

/// Write the program's man pages into the directory `output`.
pub fn man<C: CommandFactory>(output: &std::path::Path) -> Result<u8> {
    clap_mangen::generate_to(C::command(), output).with_context(|| output.display().to_string())?;
    Ok(SUCCESS)
}

/// Whoever read our output has seen enough.
fn is_closed_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Text from files may hold line ends, terminal escapes and marks that reorder it; messages show them escaped.
fn one_line(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        _ => c.escape_debug().to_string(),
    };
    text.chars().map(escape).collect()
}
