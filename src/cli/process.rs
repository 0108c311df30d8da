//! What both programs do around their work: messages on stderr, exit codes, the end of the process.
//!
//! Exit codes: 0 success, 1 failure, 2 usage, 130 interrupted.

use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Error, Result};
use clap::{CommandFactory, Parser};
use signal_hook::consts::SIGXFSZ;

/// A line on stderr; one that cannot be written is dropped.
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

/// Wrong usage that clap does not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Run the command that the arguments ask for and end the process.
pub fn main<C: Parser>(run: fn(C) -> Result<u8>) -> ! {
    // Caught, it lets a write beyond `ulimit -f` fail, as one to a full disk does; it would kill the program.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let done = guarded(|| parse_and_run(run));
    let flushed = io::stdout().flush();
    // What an error left unwritten fails here once more.
    let told = done.as_ref().is_err_and(|error| of_stdout(error).is_some());
    let mut code = done.unwrap_or_else(|error| report(&error));
    if let Err(error) = flushed
        && !told
    {
        code = code.max(report(&error.into()));
    }
    if let Some(ranks) = mlx_lm::ranks::current().filter(|_| is_of_mpi()) {
        // MPI takes a process that just ends for a failed one; MLX leaves it in a destructor.
        ranks.leave();
        std::process::exit(code.into());
    }
    // Not `exit`, which would run the destructors of MLX's statics while its threads may still be at work.
    signal_hook::low_level::exit(code.into())
}

/// Whether `mpirun` started this process.
pub fn is_of_mpi() -> bool {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().any(|name| std::env::var_os(name).is_some())
}

fn parse_and_run<C: Parser>(run: fn(C) -> Result<u8>) -> Result<u8> {
    match C::try_parse() {
        Ok(arguments) => run(arguments),
        Err(text) => {
            let printed = text.print();
            // Help and version are what was asked for; wrong usage has its exit code, also where its message cannot be written.
            if text.use_stderr() { Ok(USAGE) } else { Ok(printed.map(|()| SUCCESS)?) }
        }
    }
}

/// What the command gives, even if it panics: a defect of ours, whose message and place [`report`] tells. Panics of other
/// libraries and of kernels are caught where they are called.
fn guarded(run: impl FnOnce() -> Result<u8>) -> Result<u8> {
    std::panic::set_hook(Box::new(|panic| {
        log::debug!("{panic}");
        *panicked_at() = panic.location().map(|at| at.to_string());
    }));
    std::panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(mlx_lm::Error::Internal(mlx_lm::error::panic_message(&*panic).to_owned()).into()))
}

/// Where the last panic was, which whoever catches it is not told.
fn panicked_at() -> MutexGuard<'static, Option<String>> {
    static PLACE: Mutex<Option<String>> = Mutex::new(None);
    PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Say what is wrong, and give the exit code for it.
fn report(error: &Error) -> u8 {
    if let Some(mlx_lm::Error::Setting { setting, found, expected }) = error.downcast_ref() {
        let name = setting.replace('_', "-");
        note!("error: --{name} is {found}, expected {expected}\n\nFor more information, try '--help'.");
        return USAGE;
    }
    if let Some(Usage(problem)) = error.downcast_ref() {
        note!("error: {}\n\nFor more information, try '--help'.", one_line(problem));
        return USAGE;
    }
    if let Some(mlx_lm::Error::Interrupted) = error.downcast_ref() {
        note!("interrupted");
        return INTERRUPTED;
    }
    if let Some(mlx_lm::Error::Internal(_)) = error.downcast_ref() {
        let place = panicked_at().take().map_or(String::new(), |place| format!(" (at {place})"));
        note!("error: {}{place}", one_line(&error.to_string()));
        return FAILURE;
    }
    match of_stdout(error) {
        // Whoever read our output has seen enough.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return SUCCESS,
        Some(error) => note!("error: standard output: {error}"),
        None => note!("error: {}", one_line(&format!("{error:#}"))),
    }
    FAILURE
}

/// The error of a write to standard output, if it is one. All other I/O errors come with what they are about.
pub fn of_stdout(error: &Error) -> Option<&io::Error> {
    error.downcast_ref().filter(|_| error.chain().count() == 1)
}

/// Show log records from `level` up on stderr.
pub fn log_from(level: log::LevelFilter) {
    env_logger::Builder::new()
        .filter_level(level)
        .parse_default_env()
        .format(|out, record| match record.level() {
            // The bytes of requests, with the token in them.
            log::Level::Trace if record.target().starts_with("ureq") => Ok(()),
            level => writeln!(out, "[{level}] {}", one_line(&record.args().to_string())),
        })
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
    let mut command = C::command().disable_help_subcommand(true);
    command.build();
    clap_mangen::generate_to(with_usage(command), output).with_context(|| output.display().to_string())?;
    Ok(SUCCESS)
}

/// The synopsis that clap_mangen makes itself has the flags without their values; clap's usage has them.
fn with_usage(mut command: clap::Command) -> clap::Command {
    let usage = command.render_usage().to_string();
    command.override_usage(usage.trim_start_matches("Usage: ").to_owned()).mut_subcommands(with_usage)
}

/// Text from files may hold line ends, terminal escapes and marks that reorder it; messages show them escaped.
pub fn one_line(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        _ => c.escape_debug().to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_message_and_place() {
        let error = guarded(|| panic!("the sky fell")).unwrap_err();
        assert_eq!(error.to_string(), "internal error: the sky fell; please report it");
        assert!(panicked_at().as_ref().is_some_and(|place| place.contains("process.rs:")));
        assert_eq!(report(&error), FAILURE);
    }
}
