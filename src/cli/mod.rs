//! The command line of `mlx_lm`. stdout carries the result alone; everything else goes to stderr.
//!
//! Exit codes: 0 success, 1 failure, 2 usage, 130 interrupted.

/// A line on stderr; when nobody can read it, nobody misses it.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod args;
mod batch;
mod generate;
mod output;
mod prompt;
mod terminal;
mod tokenize;

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use mlx_lm::Checkpoint;

use args::{Cli, Command};

const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const INTERRUPTED: u8 = 130;

/// Run the command and end the process.
pub fn main() -> ! {
    let code = guarded();
    let flushed = io::stdout().flush().or_else(|e| if is_closed_pipe(&e) { Ok(()) } else { Err(e) });
    // Not `exit`, which would run the destructors of MLX's statics while its threads may still be at work.
    signal_hook::low_level::exit(if flushed.is_ok() { code } else { code.max(FAILURE) }.into())
}

/// The command's exit code, whatever happens.
fn guarded() -> u8 {
    // A panic is a defect of ours; whoever meets one gets a line like for any other error.
    std::panic::set_hook(Box::new(|panic| log::debug!("{panic}")));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        note!("error: internal error: {}; please report it", one_line(message.unwrap_or("no message")));
        FAILURE
    })
}

fn run() -> u8 {
    let cli = Cli::parse();
    let verbose = cli.command.is_none() && cli.generate.verbose;
    env_logger::Builder::new()
        .filter_level(if verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn })
        .parse_default_env()
        .format(|out, record| writeln!(out, "[{}] {}", record.level(), one_line(&record.args().to_string())))
        .init();
    let done = match cli.command {
        None => generate::generate(cli.generate),
        Some(Command::Tokenize(args)) => tokenize::tokenize(args),
        Some(Command::Completions { shell }) => completions(shell),
        Some(Command::Man { output }) => clap_mangen::generate_to(Cli::command(), &output)
            .with_context(|| output.display().to_string())
            .map(|()| SUCCESS),
    };
    done.unwrap_or_else(|error| {
        if error.downcast_ref().is_some_and(is_closed_pipe) {
            return SUCCESS;
        }
        if let Some(mlx_lm::Error::Setting { setting, found, expected }) = error.downcast_ref() {
            let flag = setting.replace('_', "-");
            note!("error: --{flag} is {found}, expected {expected}\n\nFor more information, try '--help'.");
            return USAGE;
        }
        note!("error: {}", one_line(&format!("{error:#}")));
        FAILURE
    })
}

/// Whoever read our output has seen enough.
fn is_closed_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Text from files may hold line ends and terminal escapes; messages show them escaped.
fn one_line(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn completions(shell: clap_complete::Shell) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mlx_lm", &mut script);
    io::stdout().write_all(&script)?;
    Ok(SUCCESS)
}

/// The checkpoint that the user named, or the demo model inside this program.
fn open(model: &args::ModelArgs) -> Result<Checkpoint> {
    match &model.model_root {
        Some(root) => Ok(Checkpoint::open(root)?),
        None => {
            note!("using the demo model inside this program; --model-root PATH runs another");
            Ok(Checkpoint::demo()?)
        }
    }
}
