//! `mlxpack`: a model directory as one file, and back. What it does is in `mlx_lm::mlxpack`.

#[macro_use]
#[path = "../cli/process.rs"]
mod process;
#[cfg(feature = "hub")]
#[path = "../cli/downloads.rs"]
mod downloads;
#[cfg_attr(feature = "hub", path = "../cli/hub.rs")]
#[cfg_attr(not(feature = "hub"), path = "../cli/no_hub.rs")]
mod hub;
#[path = "../cli/progress.rs"]
mod progress;

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, anyhow};
use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use mlx_lm::mlxpack::{Bytes, Info, Pack, Plan, inspect};
use mlx_lm::{Checkpoint, Error, Watch};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use hub::HubArgs;
use process::{FAILURE, INTERRUPTED, SUCCESS};
use progress::Progress;

/// A line on stdout. The work goes on when its reader has gone.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Pack a model directory into one file, look into it, check it, unpack it.
///
/// A pack runs as it is: mlx_lm --model-root FILE.
///
/// Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "mlxpack", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a pack from a model directory, after checking the model.
    ///
    /// Packed are the config, the tokenizer, the weights with their index, and licence and README files.
    #[command(group = either("from"), group = either("to"))]
    Pack {
        /// Model directory, as Hugging Face and mlx_lm.convert write it
        #[cfg_attr(feature = "hub", doc = "(or ORG/NAME[@REVISION] of the Hugging Face hub)")]
        #[arg(value_name = "DIR", group = "from")]
        directory: Option<PathBuf>,
        /// The pack to write
        #[arg(value_name = "FILE", group = "to")]
        pack: Option<PathBuf>,
        /// The directory, as a flag
        #[arg(long, short, value_name = "DIR", group = "from")]
        input: Option<PathBuf>,
        /// The pack, as a flag
        #[arg(long, short, value_name = "FILE", group = "to")]
        output: Option<PathBuf>,
        #[command(flatten)]
        hub: HubArgs,
        /// Pack these files too; `*` stays within a folder, `**` does not (repeatable)
        #[arg(long, value_name = "GLOB")]
        include: Vec<String>,
        /// Pack without checking that the model would run
        #[arg(long)]
        no_validate: bool,
        /// Replace the output if it exists
        #[arg(long, short)]
        force: bool,
    },
    /// Show what a pack or a model directory holds.
    #[command(group = either("from"))]
    Info {
        /// Pack or model directory
        #[cfg_attr(feature = "hub", doc = "(or ORG/NAME[@REVISION] of the Hugging Face hub)")]
        #[arg(value_name = "PATH", group = "from")]
        path: Option<PathBuf>,
        /// The same, as a flag
        #[arg(long, short, value_name = "PATH", group = "from")]
        input: Option<PathBuf>,
        #[command(flatten)]
        hub: HubArgs,
        /// How to show it
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// List every tensor
        #[arg(long)]
        tensors: bool,
    },
    /// Write the files of a pack into a directory, each checked against its hash; all of them or none.
    #[command(group = either("from"), group = either("to"))]
    Extract {
        /// The pack
        #[arg(value_name = "FILE", group = "from")]
        pack: Option<PathBuf>,
        /// The directory to write into; made if it is not there
        #[arg(value_name = "DIR", group = "to")]
        directory: Option<PathBuf>,
        /// The pack, as a flag
        #[arg(long, short, value_name = "FILE", group = "from")]
        input: Option<PathBuf>,
        /// The directory, as a flag
        #[arg(long, short, value_name = "DIR", group = "to")]
        output: Option<PathBuf>,
        /// Extract only this file
        #[arg(long, value_name = "NAME")]
        file: Option<String>,
        /// Replace files that exist
        #[arg(long, short)]
        force: bool,
    },
    /// Read a whole pack and report every damaged file.
    #[command(group = either("from"))]
    Verify {
        /// The pack
        #[arg(value_name = "FILE", group = "from")]
        pack: Option<PathBuf>,
        /// The same, as a flag
        #[arg(long, short, value_name = "FILE", group = "from")]
        input: Option<PathBuf>,
    },
    /// Print a completion script for a shell.
    Completions { shell: clap_complete::Shell },
    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man { output: PathBuf },
}

/// A path that is needed, by its place or by its flag.
fn either(id: &'static str) -> ArgGroup {
    ArgGroup::new(id).required(true)
}

fn one(place: Option<PathBuf>, flag: Option<PathBuf>) -> PathBuf {
    place.or(flag).expect("their group needs one")
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() {
    process::main(run)
}

fn run(cli: Cli) -> Result<u8> {
    process::log_from(log::LevelFilter::Warn);
    catch_signals().context("signals")?;
    let done = match cli.command {
        Command::Pack { directory, pack: file, input, output, hub, include, no_validate, force } => {
            let input = hub::locate(&one(directory, input), &hub, &STOP)?;
            pack(input, one(file, output), &include, !no_validate, force)
        }
        Command::Info { path, input, hub, format, tensors } => {
            info(hub::locate(&one(path, input), &hub, &STOP)?, format, tensors)
        }
        Command::Extract { pack, directory, input, output, file, force } => {
            extract(one(pack, input), one(directory, output), file, force)
        }
        Command::Verify { pack, input } => verify(one(pack, input)),
        Command::Completions { shell } => process::completions::<Cli>("mlxpack", shell),
        Command::Man { output } => process::man::<Cli>(&output),
    };
    done.or_else(|error| match error.downcast_ref() {
        Some(Error::Interrupted) => {
            note!("interrupted; nothing unfinished was left behind");
            Ok(INTERRUPTED)
        }
        Some(Error::Exists(_)) => Err(anyhow!("{error}; --force replaces it")),
        _ => Err(error),
    })
}

fn pack(input: PathBuf, output: PathBuf, include: &[String], validate: bool, force: bool) -> Result<u8> {
    say!("[INFO] Packing model from: {input:?}");
    let checkpoint = Checkpoint::open(input)?;
    let plan = Plan::new(&checkpoint, inspect(&checkpoint, validate)?, include)?;
    let architecture = plan.summary().architecture.as_deref().unwrap_or("unknown");
    say!("[INFO] Model architecture: {}", architecture.escape_debug());
    say!("[INFO] Safetensors files to pack:");
    for (name, bytes) in plan.files().filter(|(name, _)| name.ends_with(".safetensors")) {
        say!("  - {name} ({bytes} bytes)");
    }
    let length = with_bar("packing", |watch| plan.write(&output, force, watch))?;
    say!("[INFO] ✓ Packed successfully!");
    say!("[INFO] Output size: {}", Bytes(length));
    Ok(SUCCESS)
}

fn info(input: PathBuf, format: Format, tensors: bool) -> Result<u8> {
    let info = Info::read(&input, tensors)?;
    let mut out = std::io::stdout().lock();
    match format {
        Format::Text => write!(out, "{info}")?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&info)?)?,
    }
    Ok(SUCCESS)
}

fn extract(input: PathBuf, output: PathBuf, file: Option<String>, force: bool) -> Result<u8> {
    let pack = Pack::open(input)?;
    with_bar("extracting", |watch| pack.extract(&output, file.as_deref(), force, watch))?;
    let count = if file.is_some() { 1 } else { pack.entries().len() };
    say!("[INFO] ✓ Extracted {count} file{} to {output:?}", if count == 1 { "" } else { "s" });
    Ok(SUCCESS)
}

fn verify(input: PathBuf) -> Result<u8> {
    let pack = Pack::open(input)?;
    let damages = with_bar("verifying", |watch| pack.verify(watch))?;
    for damage in &damages {
        say!("{damage}");
    }
    if damages.is_empty() {
        say!("[INFO] ✓ {} files, {}: all as packed", pack.entries().len(), Bytes(pack.length()));
        return Ok(SUCCESS);
    }
    note!("error: {}: damaged in {} of {} files", pack.path().display(), damages.len(), pack.entries().len());
    Ok(FAILURE)
}

/// Run `work` with a progress bar, until a signal asks it to stop.
fn with_bar<T>(label: &'static str, work: impl FnOnce(&mut Watch) -> mlx_lm::Result<T>) -> Result<T> {
    let mut bar = Progress::new(label, "{bytes}/{total_bytes}");
    Ok(work(&mut Watch { on_progress: &mut |done, total| bar.update(done, total), stop: &STOP })?)
}

/// A signal has asked the work to stop.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The first signal stops the work, which then removes what is unfinished; the second ends the program.
fn catch_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), STOP.clone())?;
        flag::register(signal, STOP.clone())?;
    }
    Ok(())
}
