//! `mlx_lm serve`: OpenAI's interface over HTTP.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mlx_lm::generate::Overrides;
use mlx_lm::server::{ApiKeys, ModelSource, Server, ServerOptions};
use mlx_lm::{Checkpoint, GenerateOptions, fields};
use serde_json::{Map, Value};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::ServeArgs;
use super::generate::set_device;
use super::process::{INTERRUPTED, SUCCESS, Usage};
use super::prompt::read_text;
use super::{hub, terminal};

pub fn serve(args: ServeArgs) -> Result<u8> {
    let addresses: Vec<SocketAddr> =
        (args.host.as_str(), args.port).to_socket_addrs().with_context(|| format!("--host {}", args.host))?.collect();
    let api_keys = args.api_key_file.as_deref().map(api_keys).transpose()?;
    let is_open = api_keys.is_none() && !addresses.iter().all(|address| address.ip().is_loopback());
    if is_open && !args.no_api_key {
        let problem = format!(
            "others can reach {}: --api-key-file FILE says who may ask, and --no-api-key lets anybody",
            args.host
        );
        return Err(Usage(problem).into());
    }
    if mlx_lm::ranks::current().is_some() && (args.model_root.len() > 1 || args.prompt_cache_dir.is_some()) {
        let problem =
            "several ranks serve one model together, without --prompt-cache-dir: files of prompts are of a whole model";
        return Err(Usage(problem.into()).into());
    }
    let defaults = defaults(&args.default)?;
    set_device(args.device)?;
    let models = models(&args)?;
    let names = models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
    let server = Server::bind(
        &addresses,
        ServerOptions {
            models,
            parallel: args.parallel,
            queue: args.queue,
            cache_memory: args.cache_memory.map(|bytes| bytes.as_u64()),
            prompt_cache_dir: args.prompt_cache_dir,
            defaults,
            idle_unload: args.idle_unload.map(Duration::from_secs),
            drain: Duration::from_secs(args.drain_seconds),
            api_keys,
            cors: args.cors,
        },
    )?;
    note!("listening at http://{}, models: {names}", server.address());
    server.run(until_told())?;
    Ok(SUCCESS)
}

/// Until SIGTERM or Ctrl-C. Another one ends the program at once.
async fn until_told() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        log::warn!("signals will not end the server cleanly");
        return std::future::pending().await;
    };
    told(&mut terminate, &mut interrupt).await;
    note!("ending; requests under way are finished");
    tokio::spawn(async move {
        told(&mut terminate, &mut interrupt).await;
        signal_hook::low_level::exit(INTERRUPTED.into());
    });
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn api_keys(path: &Path) -> Result<ApiKeys> {
    ApiKeys::parse(&read_text(path)?).with_context(|| format!("{}: there is no key in it, one a line", path.display()))
}

/// Options that a request which does not want them could not take back.
const OF_REQUESTS: [&str; 4] = ["logprobs", "json_schema", "regex", "grammar"];

/// What `--default` sets of a generation's options.
fn defaults(settings: &[String]) -> Result<Overrides> {
    let mut given = Map::new();
    for setting in settings {
        let Some((name, value)) = setting.split_once('=') else {
            return Err(Usage(format!("--default {setting}: expected NAME=VALUE, such as temp=0.7")).into());
        };
        // What is not JSON is a text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        let name = name.replace('-', "_");
        if OF_REQUESTS.contains(&name.as_str()) {
            return Err(Usage(format!("--default {setting}: only a request may ask for it")).into());
        }
        given.insert(name, value);
    }
    let overrides: Overrides =
        fields::read(Value::Object(given)).map_err(|error| Usage(format!("--default: {error}")))?;
    overrides.apply(&GenerateOptions::default())?;
    Ok(overrides)
}

/// The models by name. What cannot be one is refused now, not at the first request.
fn models(args: &ServeArgs) -> Result<Vec<ModelSource>> {
    let mut models: Vec<ModelSource> = Vec::new();
    for root in &args.model_root {
        let (name, path) = match root.split_once('=') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') => (name.to_owned(), PathBuf::from(path)),
            _ => (default_name(Path::new(root))?, PathBuf::from(root)),
        };
        if models.iter().any(|model| model.name == name) {
            return Err(
                Usage(format!("two models are called {name}; --model-root NAME={root} gives another name")).into()
            );
        }
        let path = hub::locate(&path, &args.hub, terminal::interrupt())?;
        let open = move || {
            let checkpoint = Checkpoint::open(&path)?;
            checkpoint.require_model()?;
            Ok(checkpoint)
        };
        open()?;
        models.push(ModelSource { name, open: Arc::new(open) });
    }
    if models.is_empty() {
        models.push(demo()?);
    }
    Ok(models)
}

/// The name on the hub, that of the folder, or that of the pack without its ending.
fn default_name(root: &Path) -> Result<String> {
    #[cfg(feature = "hub")]
    if let Some(name) = mlx_lm::hub::ModelName::from_path(root).filter(|_| !root.exists()) {
        return Ok(name.repository().to_owned());
    }
    let path = std::path::absolute(root).with_context(|| root.display().to_string())?;
    let name = match path.extension() {
        Some(ending) if ending == "mlxpack" => path.file_stem(),
        _ => path.file_name(),
    };
    match name.and_then(|name| name.to_str()) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("{}: its last part is no name; --model-root NAME=PATH gives one", root.display()),
    }
}

#[cfg(feature = "demo")]
fn demo() -> Result<ModelSource> {
    super::demo()?;
    Ok(ModelSource { name: "demo".into(), open: Arc::new(Checkpoint::demo) })
}

#[cfg(not(feature = "demo"))]
fn demo() -> Result<ModelSource> {
    super::demo().map(|_| unreachable!("it is an error"))
}
