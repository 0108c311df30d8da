//! The command line of `mlx_lm`. stdout carries the result alone; everything else goes to stderr.

#[macro_use]
mod process;

mod args;
mod batch;
mod bench;
#[cfg(feature = "hub")]
mod cache;
mod cache_prompt;
mod chat;
mod convert;
#[cfg(feature = "hub")]
mod downloads;
mod generate;
#[cfg_attr(not(feature = "hub"), path = "no_hub.rs")]
mod hub;
mod launch;
mod output;
mod perplexity;
mod progress;
mod prompt;
mod ranks;
mod reply;
#[cfg(feature = "server")]
mod serve;
mod terminal;
mod tokenize;

use anyhow::Result;
use clap::CommandFactory;
use mlx_lm::backend::cpu::InstructionSet;
use mlx_lm::{Checkpoint, chat_template};

use args::{Cli, Command};

/// Run the command and end the process.
pub fn main() -> ! {
    process::main(run)
}

fn run(cli: Cli) -> Result<u8> {
    let verbose = cli.command.is_none() && cli.generate.verbose;
    process::log_from(if verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn });
    if let Some(threads) = cli.threads {
        mlx_lm::backend::cpu::set_threads(threads);
    }
    match cli.kernels.as_deref() {
        None => {}
        Some("mlx") => {
            mlx_lm::ops::set_cpu_backend(None);
            mlx_lm::ops::set_gpu_backend(false);
        }
        Some(name) => mlx_lm::ops::set_cpu_backend(Some(InstructionSet::from_name(name)?)),
    }
    #[cfg(cuda_kernels)]
    if let Ok(folders) = etcetera::choose_base_strategy() {
        mlx_lm::backend::cuda::keep_kernels_in(etcetera::BaseStrategy::cache_dir(&folders).join("mlx_lm/kernels"));
    }
    keep_freed_memory();
    chat_template::set_worker(worker);
    let Some(ranks) = ranks::join(&cli)? else { return run_command(cli) };
    if ranks.rank() > 0 {
        return ranks::follow_rank_0(ranks);
    }
    let done = run_command(cli);
    ranks.end();
    done
}

fn run_command(cli: Cli) -> Result<u8> {
    match cli.command {
        None => {
            refuse_mistyped_command(&cli.generate.prompt)?;
            generate::generate(cli.generate)
        }
        Some(Command::Chat(args)) => chat::chat(*args),
        Some(Command::Tokenize(args)) => tokenize::tokenize(args),
        Some(Command::CachePrompt(args)) => cache_prompt::cache_prompt(args),
        Some(Command::Convert(args)) => convert::convert(args),
        Some(Command::Perplexity(args)) => perplexity::perplexity(args),
        Some(Command::Bench(args)) => bench::bench(args),
        #[cfg(feature = "server")]
        Some(Command::Serve(args)) => serve::serve(args),
        #[cfg(feature = "hub")]
        Some(Command::Pull(args)) => cache::pull(args),
        #[cfg(feature = "hub")]
        Some(Command::List(args)) => cache::list(args),
        #[cfg(feature = "hub")]
        Some(Command::Rm(args)) => cache::rm(args),
        Some(Command::Launch(args)) => launch::launch(args),
        Some(Command::Completions { shell }) => process::completions::<Cli>("mlx_lm", shell),
        Some(Command::Man { output }) => process::man::<Cli>(&output),
        Some(Command::RenderTemplates) => {
            chat_template::serve()?;
            Ok(process::SUCCESS)
        }
    }
}

/// MLX takes memory for every operation's output and frees it soon. glibc would give larger pieces back to the system each
/// time, and clearing and mapping their pages anew takes some percent of a prefill.
fn keep_freed_memory() {
    #[cfg(all(cpu_kernels, target_env = "gnu"))]
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, 256 << 20)] {
        // SAFETY: the call changes settings of the allocator alone. Where it refuses, memory is given back as before.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(parameter, bytes)
        };
    }
}

/// A prompt of one word that is nearly a subcommand was meant as one.
fn refuse_mistyped_command(prompt: &args::PromptArgs) -> Result<()> {
    let Some(word) = prompt.text.as_deref().filter(|text| !text.contains(char::is_whitespace)) else { return Ok(()) };
    let commands = Cli::command();
    let near = commands.get_subcommands().filter(|command| !command.is_hide_set()).map(|command| command.get_name());
    match near.max_by(|a, b| strsim::jaro(word, a).total_cmp(&strsim::jaro(word, b))) {
        Some(near) if strsim::jaro(word, near) > 0.85 => {
            if word == near {
                return Err(process::Usage(format!("the subcommand goes first: mlx_lm {near} …")).into());
            }
            let problem =
                format!("there is no subcommand {word:?}; {near:?} is one. A prompt of this word is given by --prompt");
            Err(process::Usage(problem).into())
        }
        _ => Ok(()),
    }
}

/// This program as the worker that renders chat templates.
fn worker() -> std::io::Result<std::process::Command> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("render-templates");
    Ok(command)
}

/// The checkpoint that the user named, or the demo model where it is inside this program.
fn open(model: &args::ModelArgs) -> Result<Checkpoint> {
    match &model.model_root {
        Some(root) => {
            let root = {
                let _interruptible = terminal::Generation::begin();
                hub::locate(root, &model.hub, terminal::interrupt())?
            };
            let checkpoint = Checkpoint::open(root)?;
            checkpoint.require_model()?;
            Ok(checkpoint)
        }
        None => demo(),
    }
}

#[cfg(feature = "demo")]
fn demo() -> Result<Checkpoint> {
    note!("using the demo model inside this program; --model-root PATH runs another");
    Ok(Checkpoint::demo()?)
}

#[cfg(not(feature = "demo"))]
fn demo() -> Result<Checkpoint> {
    Err(process::Usage("--model-root PATH is needed: this program was built without the demo model".into()).into())
}
