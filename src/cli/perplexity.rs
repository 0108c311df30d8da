//! `mlx_lm perplexity`: how well a model predicts a text, by position and overall.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use mlx_lm::Tokenizer;
use mlx_lm::generate::perplexity::{Past, losses};
use mlx_lm::generate::warn_of_limits;
use serde_json::json;

use super::args::{PerplexityArgs, PerplexityFormat};
use super::generate::{load_model, set_device, with_prompt_bar};
use super::output::write_line;
use super::process::{INTERRUPTED, SUCCESS};
use super::prompt::read_text;
use super::terminal;

/// Losses added up.
#[derive(Default, Clone, Copy)]
struct Sum {
    tokens: usize,
    nats: f64,
}

impl Sum {
    fn add(&mut self, loss: f32) {
        self.tokens += 1;
        self.nats += f64::from(loss);
    }

    /// Nats per token.
    fn loss(self) -> f64 {
        self.nats / self.tokens as f64
    }
}

pub fn perplexity(mut args: PerplexityArgs) -> Result<u8> {
    if args.recompute {
        args.cache.num_sink_tokens = 0; // there is no cache
    }
    let options = args.cache.options()?;
    set_device(args.device)?;
    terminal::catch_interrupt();
    let text = read_text(&args.file)?;
    let checkpoint = super::open(&args.model)?;
    let ids = Tokenizer::load(&checkpoint)?.encode(&text, true)?;
    let model = load_model(&checkpoint)?;
    let past = if args.recompute {
        let trained = i64::from(model.config().max_position_embeddings);
        Past::Recomputed(options.context_size.unwrap_or(trained) as usize)
    } else {
        let limits = options.cache_limits(model.config())?;
        warn_of_limits(model.config(), model.dtype(), limits, ids.len().saturating_sub(1));
        Past::Cached(limits)
    };

    let mut out = io::stdout().lock();
    let (mut bucket, mut all) = (Sum::default(), Sum::default());
    let mut printed = Ok(());
    let mut print_bucket = |end: usize, bucket: Sum| match args.format {
        PerplexityFormat::Text => writeln!(
            out,
            "tokens {}-{end}: loss {:.4}, perplexity {:.3}",
            end + 1 - bucket.tokens,
            bucket.loss(),
            bucket.loss().exp()
        ),
        PerplexityFormat::Jsonl => write_line(
            &mut out,
            &json!({"event": "bucket", "first": end + 1 - bucket.tokens, "tokens": bucket.tokens, "loss": bucket.loss()}),
        ),
    };
    let started = Instant::now();
    let _interruptible = terminal::Generation::begin();
    let mut on_losses = |first, losses: &[f32]| {
        for (position, &loss) in (first..).zip(losses) {
            bucket.add(loss);
            all.add(loss);
            if bucket.tokens == args.bucket.get() || position + 1 == ids.len() {
                printed = print_bucket(position, std::mem::take(&mut bucket));
            }
        }
        if printed.is_ok() && !terminal::interrupted() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let evicted = with_prompt_bar(|watch| losses(&model, &ids, past, watch, &mut on_losses))?;
    let is_cut = all.tokens + 1 < ids.len();
    if is_cut && bucket.tokens > 0 && printed.is_ok() {
        printed = print_bucket(all.tokens, bucket);
    }
    let tps = all.tokens as f64 / started.elapsed().as_secs_f64();
    printed?;
    match args.format {
        PerplexityFormat::Text => writeln!(
            out,
            "all {} tokens: loss {:.4}, perplexity {:.3}; {evicted} evicted; {tps:.1} tokens/s",
            all.tokens,
            all.loss(),
            all.loss().exp()
        )?,
        PerplexityFormat::Jsonl => {
            let mut done = json!({
                "event": "done",
                "tokens": all.tokens,
                "loss": all.loss(),
                "perplexity": all.loss().exp(),
                "evicted_tokens": evicted,
                "tps": tps,
                "recompute": args.recompute,
            });
            match past {
                Past::Recomputed(window) => done["context_size"] = window.into(),
                Past::Cached(limits) => {
                    done["context_size"] = limits.context_size.into();
                    done["num_sink_tokens"] = limits.num_sink_tokens.into();
                    done["eviction_batch_percent"] = limits.eviction_batch_percent.into();
                }
            }
            write_line(&mut out, &done)?
        }
    }
    if is_cut {
        note!("interrupted after {} of {} tokens", all.tokens, ids.len() - 1);
        return Ok(INTERRUPTED);
    }
    Ok(SUCCESS)
}
