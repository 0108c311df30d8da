//! The command line of `mlx_lm`. stdout carries the result alone; everything else goes to stderr.

#[macro_use]
mod process;

mod args;
mod batch;
mod bench;
mod cache_prompt;
mod generate;
mod output;
mod perplexity;
mod progress;
mod prompt;
mod terminal;
mod tokenize;

use anyhow::Result;
use clap::Parser;
use mlx_lm::{Checkpoint, chat_template};

use args::{Cli, Command};

/// Run the command and end the process.
pub fn main() -> ! {
    process::main(run)
}

fn run() -> Result<u8> {
    let cli = Cli::parse();
    let verbose = cli.command.is_none() && cli.generate.verbose;
    process::log_from(if verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn });
    if let Some(threads) = cli.threads {
        mlx_lm::kernels::set_threads(threads.get());
    }
    chat_template::set_worker(worker);
    match cli.command {
        None => generate::generate(cli.generate),
        Some(Command::Tokenize(args)) => tokenize::tokenize(args),
        Some(Command::CachePrompt(args)) => cache_prompt::cache_prompt(args),
        Some(Command::Perplexity(args)) => perplexity::perplexity(args),
        Some(Command::Bench(args)) => bench::bench(args),
        Some(Command::Completions { shell }) => process::completions::<Cli>("mlx_lm", shell),
        Some(Command::Man { output }) => process::man::<Cli>(&output),
        Some(Command::RenderTemplates) => {
            chat_template::serve()?;
            Ok(process::SUCCESS)
        }
    }
}

/// This program as the worker that renders chat templates.
fn worker() -> std::io::Result<std::process::Command> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("render-templates");
    Ok(command)
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
