//! Models of the hub, from a stand-in on this machine: what is fetched and what is not, what breaks and goes on, and what the cache
//! looks like, which is what Python's client makes of it.

mod breaks;
mod commands;
mod layout;
mod refusals;
mod stand_in;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use mlx_lm::error::HubProblem;
use mlx_lm::hub::{Event, Events, Hub as Client, HubOptions, ModelName};
use mlx_lm::{Error, Result};

use stand_in::Hub;

/// What a command line sees of this stand-in, and of nothing else.
fn program(program: &str, hub: &Hub, cache: &Path) -> Command {
    let mut command = Command::new(program);
    for name in [
        "HF_HOME",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "HUGGINGFACE_HUB_CACHE",
        "RUST_LOG",
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "all_proxy",
        "https_proxy",
        "http_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("HF_HUB_CACHE", cache).env("HF_ENDPOINT", hub.endpoint()).env("HF_TOKEN_PATH", cache.join("no token"));
    command
}

fn mlx_lm(hub: &Hub, cache: &Path, args: &[&str]) -> Output {
    program(env!("CARGO_BIN_EXE_mlx_lm"), hub, cache).args(args).output().unwrap()
}

/// Standard output of a success.
fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a failure.
fn stderr(output: Output) -> String {
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

/// Of the stand-in, without patience for what does not come.
fn options(hub: &Hub, cache: &Path) -> HubOptions {
    HubOptions { endpoint: hub.endpoint(), patience: Duration::ZERO, ..HubOptions::new(cache) }
}

fn pull(options: HubOptions, model: &str) -> Result<PathBuf> {
    Client::new(options).pull(&name(model), &mut Events::none())
}

/// The same, telling what happens.
fn pull_watched(options: HubOptions, model: &str, on_event: &mut dyn FnMut(Event)) -> Result<PathBuf> {
    Client::new(options).pull(&name(model), &mut Events { on_event, stop: &Arc::default() })
}

fn problem(result: Result<PathBuf>) -> HubProblem {
    match result {
        Err(Error::Hub { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}
