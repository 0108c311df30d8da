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
use mlx_lm::Checkpoint;

use args::{Cli, Command};

/// Run the command and end the process.
pub fn main() -> ! {
    process::main(run)
}

fn run(cli: Cli) -> Result<u8> {
    let verbose = cli.command.is_none() && cli.generate.verbose;
    process::log_from(if verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn });
    if let Some(threads) = cli.threads {
        mlx_lm::kernels::set_threads(threads.get());
    }
    match cli.command {
        None => generate::generate(cli.generate),
        Some(Command::Tokenize(args)) => tokenize::tokenize(args),
        Some(Command::CachePrompt(args)) => cache_prompt::cache_prompt(args),
        Some(Command::Perplexity(args)) => perplexity::perplexity(args),
        Some(Command::Bench(args)) => bench::bench(args),
        Some(Command::Completions { shell }) => process::completions::<Cli>("mlx_lm", shell),
        Some(Command::Man { output }) => process::man::<Cli>(&output),
    }
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
