//! `mlx_lm cache-prompt`: prefill a prompt once, for `--prompt-cache`.

use anyhow::{Result, bail};
use mlx_lm::Tokenizer;
use mlx_lm::generate::prompt_cache::PromptCache;
use mlx_lm::generate::warn_of_limits;

use super::args::CachePromptArgs;
use super::generate::{load_model, set_device};
use super::process::SUCCESS;
use super::prompt::Prompt;

pub fn cache_prompt(args: CachePromptArgs) -> Result<u8> {
    let options = args.cache.options()?;
    set_device(args.device)?;
    if args.output.exists() && !args.force {
        bail!("{}: exists already; --force replaces it", args.output.display());
    }
    let prompt = Prompt::read(&args.prompt)?;
    let checkpoint = super::open(&args.model)?;
    let (_, ids) = prompt.encode(&Tokenizer::load(&checkpoint)?)?;
    let model = load_model(&checkpoint)?;
    let limits = options.cache_limits(model.config())?;
    warn_of_limits(&model, limits, ids.len());
    let cached = PromptCache::new(&model, &ids, limits, options.prefill_step)?;
    cached.save(&args.output, checkpoint.identity()?, args.force)?;
    note!("cached {} tokens, {} of them evicted", cached.ids().len(), cached.evicted());
    Ok(SUCCESS)
}
