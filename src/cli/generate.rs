//! One generation, from flags to text.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use mlx_lm::generate::prompt_cache::PromptCache;
use mlx_lm::generate::{FinishReason, Piece, Watch, generate_with_progress};
use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer};
use mlx_rs::{Device, DeviceType};

use super::args::{DeviceArg, Format, GenerateArgs};
use super::output::{Outcome, Printer, print_stats};
use super::process::{INTERRUPTED, SUCCESS, Usage};
use super::progress::Progress;
use super::prompt::Prompt;
use super::{batch, terminal};

/// A loaded model.
pub struct Session {
    pub model: Model,
    pub tokenizer: Tokenizer,
    prompt_cache: Option<PromptCache>,
}

impl Session {
    fn load(args: &GenerateArgs) -> Result<Self> {
        let started = Instant::now();
        let checkpoint = super::open(&args.model)?;
        let tokenizer = Tokenizer::load(&checkpoint)?;
        let model = load_model(&checkpoint)?;
        if args.verbose {
            note!("load: {:.2} s", started.elapsed().as_secs_f64());
            note!("kernels: {}", mlx_lm::ops::description());
        }
        let load_cache = |path: &PathBuf| PromptCache::load(path, &model);
        let prompt_cache = args.prompt_cache.as_ref().map(load_cache).transpose()?;
        Ok(Session { model, tokenizer, prompt_cache })
    }

    /// Generate from `ids`, telling `on_piece` each piece, until it ends or Ctrl-C stops it.
    pub fn run(
        &self,
        ids: &[u32],
        options: &GenerateOptions,
        mut on_piece: impl FnMut(&Piece) -> io::Result<()>,
    ) -> Result<Outcome> {
        let _interruptible = terminal::Generation::begin();
        let cached = self.prompt_cache.as_ref();
        let mut generation =
            with_prompt_bar(|watch| generate_with_progress(&self.model, &self.tokenizer, ids, options, cached, watch))?;
        let evicted = generation.stats().evicted_tokens;
        if evicted > 0 {
            note!("the prompt is longer than the context: {evicted} of its {} tokens were evicted", ids.len());
        }
        let mut error = None;
        while !terminal::interrupted()
            && let Some(piece) = generation.next()
        {
            match piece {
                Ok(piece) => on_piece(&piece)?,
                Err(failure) => {
                    error = Some(failure);
                    break;
                }
            }
        }
        let (finish_reason, stats) = (generation.finish_reason(), generation.stats());
        if finish_reason == Some(FinishReason::Length) && stats.generated_tokens < options.max_tokens {
            log::warn!("the text ends here because the context is full; --context-size sets its size");
        }
        let held_back = if finish_reason.is_none() { generation.interrupt() } else { String::new() };
        Ok(Outcome { held_back, finish_reason, error, stats })
    }
}

pub fn generate(args: GenerateArgs) -> Result<u8> {
    let options = args.options()?;
    if args.overrides.logprobs.is_some() && args.format == Format::Text && args.batch.is_none() {
        return Err(Usage("--logprobs needs --format json or jsonl, or --batch".into()).into());
    }
    set_device(args.device)?;
    terminal::catch_interrupt();
    if let Some(path) = &args.batch {
        return batch::run(path, &args, &options, || Session::load(&args));
    }
    let prompt = Prompt::read(&args.prompt, None)?;
    let session = Session::load(&args)?;
    let (_, ids) = prompt.encode(&session.tokenizer)?;

    let mut printer = Printer::new(args.format);
    printer.prefill(ids.len())?;
    let outcome = session.run(&ids, &options, |piece| printer.piece(piece))?;
    printer.done(&outcome)?;
    let interrupted = outcome.is_interrupted();
    if interrupted {
        note!("interrupted");
    }
    if args.verbose || interrupted {
        print_stats(&outcome.stats);
    }
    if let Some(error) = outcome.error {
        return Err(error.into());
    }
    Ok(if interrupted { INTERRUPTED } else { SUCCESS })
}

/// Read a text under a progress bar, until it is read or Ctrl-C stops it.
pub fn with_prompt_bar<T>(read: impl FnOnce(&mut Watch) -> T) -> T {
    let _last_resort = terminal::LastResort::begin();
    let mut progress = Progress::new("reading", "{pos}/{len} tokens");
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
