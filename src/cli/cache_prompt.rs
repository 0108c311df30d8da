//! `mlx_lm cache-prompt`: prefill a prompt once, for `--prompt-cache`.

use anyhow::{Result, bail};
use mlx_lm::Tokenizer;
use mlx_lm::generate::prompt_cache::PromptCache;
use mlx_lm::generate::warn_of_limits;

use super::args::CachePromptArgs;
use super::generate::{load_model, set_device, with_prompt_bar};
use super::process::{INTERRUPTED, SUCCESS};
use super::prompt::Prompt;
use super::terminal;

/// Tokens read at once: an interruption loses at most so many.
const CHUNK: usize = 512;

pub fn cache_prompt(args: CachePromptArgs) -> Result<u8> {
    let options = args.cache.options()?;
    set_device(args.device)?;
    terminal::catch_interrupt();
    if args.output.exists() && !args.force {
        bail!("{}: exists already; --force replaces it", args.output.display());
    }
    let prompt = Prompt::read(&args.prompt, None)?;
    let checkpoint = super::open(&args.model)?;
    let (_, ids) = prompt.encode(&Tokenizer::load(&checkpoint)?)?;
    let model = load_model(&checkpoint)?;
    let limits = options.cache_limits(model.config())?;
    warn_of_limits(model.config(), model.dtype(), limits, ids.len());
    let _interruptible = terminal::Generation::begin();
    let cached = with_prompt_bar(|watch| PromptCache::new(&model, &ids, limits, CHUNK, watch));
    let cached = match cached {
        Err(mlx_lm::Error::Interrupted) => {
            note!("interrupted; nothing was cached");
            return Ok(INTERRUPTED);
        }
        cached => cached?,
    };
    cached.save(&args.output, args.force)?;
    note!("cached {} tokens, {} of them evicted", cached.ids().len(), cached.evicted());
    if cached.ids().len() < ids.len() {
        note!("interrupted; the prompt has {} tokens, of which the file has the first", ids.len());
        return Ok(INTERRUPTED);
    }
    Ok(SUCCESS)
}
