//! A command that several ranks run together: rank 0 runs it, the others compute what rank 0 tells them.
//!
//! The environment is that of Python's `mlx.launch`; MLX reads most of it itself.

use std::env;
use std::fs;
use std::sync::Arc;

use anyhow::Result;
use mlx_lm::generate::follow;
use mlx_lm::models::Architecture;
use mlx_lm::ranks::{self, Ranks, Source};
use mlx_lm::{Checkpoint, Model, Watch};
use signal_hook::consts::SIGINT;

use super::args::{Cli, Command};
use super::generate::set_device;
use super::process::{FAILURE, SUCCESS, Usage, is_of_mpi};

/// Whether this process was started as one of several.
fn are_there() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let of_mlx =
        is_set("MLX_RANK") && (hostfile().is_some() || is_set("MLX_JACCL_COORDINATOR") || is_set("NCCL_HOST_IP"));
    of_mlx || is_of_mpi()
}

/// What `MLX_HOSTFILE` holds: of each rank the addresses that it listens at. Empty for a rank that is alone.
fn hostfile() -> Option<String> {
    let text = fs::read_to_string(env::var_os("MLX_HOSTFILE")?).ok()?;
    Some(text).filter(|text| !text.trim().is_empty())
}

/// A name or address at which the others reach rank 0.
fn host_of_rank_0() -> String {
    let first = |text: String| serde_json::from_str::<Vec<Vec<String>>>(&text).ok()?.into_iter().flatten().next();
    let address = hostfile().and_then(first).or_else(|| env::var("MLX_JACCL_COORDINATOR").ok());
    let of_address = |address: String| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let host = address.and_then(of_address).or_else(|| env::var("NCCL_HOST_IP").ok());
    let own_name = || fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    host.unwrap_or_else(|| own_name().unwrap_or_else(|_| "localhost".into()))
}

/// Names the process of `mlx_lm launch` for the ranks that it starts itself.
pub const LAUNCHER: &str = "MLX_LM_LAUNCHER";

/// A launcher that was killed takes its ranks along.
fn end_with_launcher() {
    #[cfg(target_os = "linux")]
    if let Some(launcher) = env::var(LAUNCHER).ok().and_then(|id| id.parse::<i32>().ok())
        && nix::unistd::getppid().as_raw() == launcher
    {
        let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::SIGKILL); // or they end with their work
    }
}

/// Meet the other ranks, if there are any.
pub fn join(cli: &Cli) -> Result<Option<&'static Ranks>> {
    end_with_launcher();
    if !are_there() {
        return Ok(None);
    }
    let device = match &cli.command {
        None => cli.generate.device,
        Some(Command::Chat(args)) => args.device,
        Some(Command::Perplexity(args)) => args.device,
        Some(Command::Bench(args)) => args.device,
        #[cfg(feature = "server")]
        Some(Command::Serve(args)) => args.device,
        // A part of another command, and what starts ranks itself.
        Some(Command::RenderTemplates | Command::Launch(_)) => return Ok(None),
        Some(_) => {
            let problem = "several ranks generate, chat, serve, bench or measure perplexity together, and nothing else";
            return Err(Usage(problem.into()).into());
        }
    };
    set_device(device)?;
    let arguments: Vec<String> = env::args_os().skip(1).map(|text| text.to_string_lossy().into_owned()).collect();
    Ok(Some(ranks::join(&host_of_rank_0(), &arguments, end)?))
}

/// What remains when a rank is lost. Rank 0 alone says why.
fn end(problem: &str) {
    if !problem.is_empty() {
        note!("error: {problem}; all ranks end");
    }
    signal_hook::low_level::exit(FAILURE.into())
}

/// Compute what rank 0 says, until it ends.
pub fn follow_rank_0(ranks: &Ranks) -> Result<u8> {
    // Ctrl-C is for rank 0.
    signal_hook::flag::register(SIGINT, Arc::default())?;
    match follow(ranks, load) {
        Ok(()) => Ok(SUCCESS),
        Err(error) => {
            ranks.reply_failed(&error.to_string());
            Ok(FAILURE)
        }
    }
}

fn load(source: &Source) -> mlx_lm::Result<Model> {
    let load = |checkpoint: Checkpoint| Model::load(&checkpoint, &mut Watch::none());
    match source {
        Source::Path(path) => load(Checkpoint::open(path)?),
        #[cfg(feature = "demo")]
        Source::Demo => load(Checkpoint::demo()?),
        Source::Synthetic(name, bits) if let Some(architecture) = Architecture::named(name) => {
            Model::synthetic(architecture, *bits)
        }
        other => Err(mlx_lm::Error::Input(format!("this program has no {other:?}"))),
    }
}
