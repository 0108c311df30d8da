//! The command line of `mlx_lm`. stdout carries the result alone; everything else goes to stderr.
//!
//! Exit codes: 0 success, 1 failure, 2 usage, 130 interrupted.

mod args;
mod batch;
mod generate;
mod output;
mod prompt;
mod terminal;
mod tokenize;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use mlx_lm::Checkpoint;

use args::{Cli, Command};

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const INTERRUPTED: u8 = 130;

pub fn main() -> ExitCode {
    // A panic is a defect of ours; whoever meets one gets a line like for any other error.
    std::panic::set_hook(Box::new(|panic| log::debug!("{panic}")));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        eprintln!("error: internal error: {}; please report it", message.unwrap_or("no message").replace('\n', " "));
        ExitCode::from(FAILURE)
    })
}

fn run() -> ExitCode {
    let cli = Cli::parse();
    let verbose = cli.command.is_none() && cli.generate.verbose;
    env_logger::Builder::new()
        .filter_level(if verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn })
        .parse_default_env()
        .format(|out, record| writeln!(out, "[{}] {}", record.level(), record.args()))
        .init();
    let done = match cli.command {
        None => generate::generate(cli.generate),
        Some(Command::Tokenize(args)) => tokenize::tokenize(args),
        Some(Command::Completions { shell }) => completions(shell),
        Some(Command::Man { output }) => clap_mangen::generate_to(Cli::command(), &output)
            .with_context(|| output.display().to_string())
            .map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS; // whoever read our output has seen enough
        }
        if let Some(mlx_lm::Error::Setting { setting, .. }) = error.downcast_ref() {
            let flag = setting.replace('_', "-");
            eprintln!("error: --{flag}: {error}\n\nFor more information, try '--help'.");
            return ExitCode::from(USAGE);
        }
        eprintln!("error: {error:#}");
        ExitCode::from(FAILURE)
    })
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mlx_lm", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// The checkpoint that the user named, or the demo model inside this program.
fn open(model: &args::ModelArgs) -> Result<Checkpoint> {
    match &model.model_root {
        Some(root) => Ok(Checkpoint::open(root)?),
        None => {
            eprintln!("using the demo model inside this program; --model-root PATH runs another");
            Ok(Checkpoint::demo()?)
        }
    }
}
