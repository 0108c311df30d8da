//! `mlx_lm pull`, `list` and `rm`: the models of the Hugging Face cache.

use std::io::{self, Write};

use anyhow::Result;
use indicatif::HumanBytes;
use mlx_lm::hub::{self, ModelName, Stored};
use mlx_lm::models::read_config;
use mlx_lm::{Checkpoint, Model};
use serde::Serialize;
use serde_json::{Map, Value};

use super::args::{ListArgs, ListFormat, PullArgs, RmArgs};
use super::process::{SUCCESS, Usage, one_line};
use super::terminal;

/// As many digits of a commit as tell it from others.
const SHORT_COMMIT: usize = 8;

pub fn pull(args: PullArgs) -> Result<u8> {
    terminal::catch_interrupt();
    let _interruptible = terminal::Generation::begin();
    let names = args.names.iter().map(|name| parse(name)).collect::<Result<Vec<_>>>()?;
    let hub = super::hub::hub(false)?;
    for name in &names {
        let pull = |events: &mut hub::Events| Ok(hub.pull(name, events)?);
        let path = super::hub::watched(name, terminal::interrupt(), pull)?;
        writeln!(io::stdout(), "{}", path.display())?;
    }
    Ok(SUCCESS)
}

pub fn rm(args: RmArgs) -> Result<u8> {
    let hub = super::hub::hub(true)?;
    for name in &args.names {
        let (repository, revision) = match name.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (name.as_str(), None),
        };
        let freed = hub::remove(hub.cache(), repository, revision)?;
        writeln!(io::stdout(), "removed {name}: {} freed", HumanBytes(freed))?;
    }
    Ok(SUCCESS)
}

fn parse(name: &str) -> Result<ModelName> {
    let expected = || Usage(format!("{name:?} is no model's name; expected ORG/NAME or ORG/NAME@REVISION"));
    Ok(ModelName::parse(name).ok_or_else(expected)?)
}

/// A model of the cache, as `list` shows it.
#[derive(Serialize)]
struct Listed {
    name: String,
    commit: String,
    revisions: Vec<String>,
    path: String,
    bytes: u64,
    model_type: Option<String>,
    bits: Option<u64>,
    runs: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub fn list(args: ListArgs) -> Result<u8> {
    let hub = super::hub::hub(true)?;
    let models: Vec<Listed> = hub::stored(hub.cache())?.into_iter().map(Listed::new).collect();
    let mut out = io::stdout().lock();
    match args.format {
        ListFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&models)?)?,
        ListFormat::Text if models.is_empty() => note!("there are no models at {}", hub.cache().display()),
        ListFormat::Text => out.write_all(table(&models).as_bytes())?,
    }
    Ok(SUCCESS)
}

impl Listed {
    fn new(stored: Stored) -> Self {
        let checkpoint = Checkpoint::open(&stored.path);
        let config = checkpoint.as_ref().ok().and_then(|checkpoint| checkpoint.json("config.json").ok()?);
        let config: Map<String, Value> = config.unwrap_or_default();
        let problem = match (checkpoint, &stored.missing) {
            (Err(error), _) => Some(error),
            (Ok(checkpoint), Some(_)) => read_config(&checkpoint).err(),
            (Ok(checkpoint), None) => Model::check(&checkpoint).err(),
        };
        let problem = match (problem, stored.missing) {
            // What is not there is no reason where that is the reason.
            (Some(mlx_lm::Error::Missing { .. }) | None, Some(file)) => Some(format!("{file} is not here")),
            // Its place is in the table already.
            (problem, _) => problem.map(|error| error.to_string().replace(&format!("{}/", stored.path.display()), "")),
        };
        Listed {
            name: stored.repository,
            commit: stored.commit,
            revisions: stored.revisions,
            path: stored.path.display().to_string(),
            bytes: stored.bytes,
            model_type: config.get("model_type").and_then(Value::as_str).map(str::to_owned),
            bits: bits(&config),
            runs: problem.is_none(),
            problem,
        }
    }
}

/// Of a quantized model's packed weights; of another one, of its numbers.
fn bits(config: &Map<String, Value>) -> Option<u64> {
    let quantization = ["quantization", "quantization_config"].iter().find_map(|key| config.get(*key)?.as_object());
    match quantization {
        Some(quantization) => quantization.get("bits")?.as_u64(),
        None => match ["torch_dtype", "dtype"].iter().find_map(|key| config.get(*key)?.as_str())? {
            "float32" => Some(32),
            "bfloat16" | "float16" => Some(16),
            _ => None,
        },
    }
}

/// Columns as wide as their texts.
fn table(models: &[Listed]) -> String {
    let mut rows = vec![["NAME", "REVISION", "SIZE", "TYPE", "BITS", "RUNS"].map(str::to_owned)];
    rows.extend(models.iter().map(|model| {
        let revision = match &model.revisions[..] {
            [] => model.commit[..SHORT_COMMIT].to_owned(),
            revisions => one_line(&revisions.join(",")),
        };
        let problem = model.problem.as_ref().map(|problem| format!("no: {}", one_line(problem)));
        [
            one_line(&model.name),
            revision,
            HumanBytes(model.bytes).to_string(),
            model.model_type.as_deref().map_or("-".to_owned(), one_line),
            model.bits.map_or("-".to_owned(), |bits| bits.to_string()),
            problem.unwrap_or_else(|| "yes".to_owned()),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 6]| {
        let [name, revision, size, kind, bits, runs] = row;
        let [a, b, c, d, e] = widths[..] else { unreachable!("there are five") };
        format!("{name:a$}  {revision:b$}  {size:>c$}  {kind:d$}  {bits:>e$}  {runs}\n")
    };
    rows.iter().map(line).collect()
}
