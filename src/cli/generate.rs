//! One generation, from flags to text.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use mlx_lm::generate::prompt_cache::PromptCache;
use mlx_lm::generate::{Engine, EngineOptions, Event, FinishReason, Request, Watch};
use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer};
use mlx_rs::{Device, DeviceType};

use super::args::{DeviceArg, Format, GenerateArgs, ModelArgs};
use super::batch::{self, Batch};
use super::output::{Printer, print_stats};
use super::process::{INTERRUPTED, SUCCESS, Usage};
use super::progress::Progress;
use super::prompt::Prompt;
use super::reply::Reply;
use super::terminal;

/// A loaded model.
pub struct Session {
    pub engine: Engine,
    prompt_cache: Option<PromptCache>,
}

impl Session {
    pub fn load(
        model: &ModelArgs,
        prompt_cache: Option<&Path>,
        options: EngineOptions,
        is_verbose: bool,
    ) -> Result<Self> {
        let started = Instant::now();
        let checkpoint = Arc::new(super::open(model)?);
        let of_model = Arc::clone(&checkpoint);
        let engine = Engine::start(move || load_model(&of_model), || Tokenizer::load(&checkpoint), options)?;
        if is_verbose {
            note!("load: {:.2} s", started.elapsed().as_secs_f64());
            note!("kernels: {}", engine.call(|_| mlx_lm::ops::description())?);
        }
        let load_cache = |path: &Path| {
            let path = path.to_owned();
            engine.call(move |model| PromptCache::load(&path, model))?
        };
        let prompt_cache = prompt_cache.map(load_cache).transpose()?;
        Ok(Session { engine, prompt_cache })
    }

    /// Let requests that begin as the prompt cache does, or as others did, go on from there.
    fn sharing(mut self) -> Result<Self> {
        if let Some(cache) = self.prompt_cache.take() {
            self.engine.keep(cache)?;
        }
        Ok(self)
    }

    pub fn request(&self, prompt: Vec<u32>, options: GenerateOptions) -> Request {
        Request { prompt, options, prompt_cache: self.prompt_cache.clone() }
    }
}

pub fn generate(args: GenerateArgs) -> Result<u8> {
    let mut options = args.options()?;
    let engine = EngineOptions {
        cache_memory: args.cache_memory.map(|bytes| bytes.as_u64()),
        stop: Arc::clone(terminal::interrupt()),
        ..EngineOptions::default()
    };
    let GenerateArgs {
        model,
        prompt,
        prompt_cache,
        overrides,
        batch,
        parallel,
        unordered,
        format,
        verbose,
        device,
        ..
    } = args;
    if overrides.logprobs.is_some() && format == Format::Text && batch.is_none() {
        return Err(Usage("--logprobs needs --format json or jsonl, or --batch".into()).into());
    }
    // clap does not ask for a flag that excludes another one that is there.
    if batch.is_none() && (parallel.is_some() || unordered) {
        return Err(Usage("--parallel and --unordered go with --batch".into()).into());
    }
    set_device(device)?;
    terminal::catch_interrupt();
    let prompt = Prompt::read(&prompt, batch.as_deref())?;
    if let Some(path) = batch {
        let parallel = parallel.unwrap_or(engine.parallel);
        let batch = Batch::open(path, prompt, options, parallel, unordered)?;
        // A line's result must not depend on those before it, nor the memory on how many there were.
        let engine = EngineOptions { parallel, prefixes: 2 * parallel, deterministic: true, ..engine };
        let session = Session::load(&model, prompt_cache.as_deref(), engine, verbose)?.sharing()?;
        session.engine.check(batch.options())?;
        return batch::run(batch, &session, verbose);
    }
    let session = Session::load(&model, prompt_cache.as_deref(), engine, verbose)?;
    let (text, ids) = prompt.encode(session.engine.tokenizer())?;
    let tools = prompt.tools.as_ref().filter(|_| format != Format::Text);
    let reply = tools.map(|tools| Reply::new(session.engine.tokenizer(), &text, tools, &mut options));
    run(&session, ids, options, Printer::new(format, reply), verbose)
}

/// Generate from `ids` until it ends or Ctrl-C stops it.
fn run(
    session: &Session,
    ids: Vec<u32>,
    options: GenerateOptions,
    mut printer: Printer,
    is_verbose: bool,
) -> Result<u8> {
    printer.prefill(ids.len())?;
    let _interruptible = terminal::Generation::begin();
    let (prompt_tokens, max_tokens) = (ids.len(), options.max_tokens);
    let mut generation = session.engine.submit(session.request(ids, options))?;
    let mut reading = Some(Reading::begin());
    while let Some(event) = generation.next_event() {
        match event {
            Event::Reading { done, total } => {
                if let Some(Reading { progress, .. }) = &mut reading {
                    progress.update(done as u64, total as u64);
                }
            }
            Event::Read { evicted } => {
                reading = None;
                if evicted > 0 {
                    note!(
                        "the prompt is longer than the context: {evicted} of its {prompt_tokens} tokens were evicted"
                    );
                }
            }
            Event::Delta(delta) => printer.delta(&delta)?,
            Event::Finished(finished) => {
                drop(reading.take());
                if finished.reason == FinishReason::Length && finished.stats.generated_tokens < max_tokens {
                    log::warn!("the text ends here because the context is full; --context-size sets its size");
                }
                printer.done(&finished)?;
                let is_aborted = finished.reason == FinishReason::Abort;
                if is_aborted {
                    note!("interrupted");
                }
                if is_verbose || is_aborted {
                    print_stats(&finished.stats);
                }
                if let Some(error) = finished.error {
                    return Err(error.into());
                }
                return Ok(if is_aborted { INTERRUPTED } else { SUCCESS });
            }
        }
    }
    unreachable!("a generation finishes")
}

/// While a prompt is read: a bar, and a computation that does not stop soon after Ctrl-C ends with the program.
struct Reading {
    progress: Progress,
    _last_resort: terminal::LastResort,
}

impl Reading {
    fn begin() -> Self {
        Reading {
            progress: Progress::new("reading", "{pos}/{len} tokens"),
            _last_resort: terminal::LastResort::begin(),
        }
    }
}

/// Read a text under a progress bar, until it is read or Ctrl-C stops it.
pub fn with_prompt_bar<T>(read: impl FnOnce(&mut Watch) -> T) -> T {
    let Reading { mut progress, _last_resort } = Reading::begin();
    let on_progress = &mut |done, total| progress.update(done, total);
    read(&mut Watch { on_progress, stop: terminal::interrupt() })
}

/// Load the model under a progress bar, until it is there or Ctrl-C stops it.
pub fn load_model(checkpoint: &Checkpoint) -> mlx_lm::Result<Model> {
    let _interruptible = terminal::Generation::begin();
    let _last_resort = terminal::LastResort::begin();
    let mut progress = Progress::new("loading", "{bytes}/{total_bytes}");
    let on_progress = &mut |done, total| progress.update(done, total);
    Model::load(checkpoint, &mut Watch { on_progress, stop: terminal::interrupt() })
}

/// MLX's own default is the GPU when it has one.
pub fn set_device(device: Option<DeviceArg>) -> Result<()> {
    match device {
        None => {}
        Some(DeviceArg::Cpu) => Device::set_default(&Device::cpu()),
        Some(DeviceArg::Gpu) => match Device::try_default()?.get_type()? {
            DeviceType::Gpu => {}
            DeviceType::Cpu => bail!(
                "--device gpu: MLX sees no GPU here; --device cpu works, and on Linux `make setup MLX=cuda13` builds for NVIDIA GPUs"
            ),
        },
    }
    Ok(())
}
