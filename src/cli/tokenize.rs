//! `mlx_lm tokenize`: how a prompt becomes tokens.

use std::io::{self, Write};

use anyhow::Result;
use mlx_lm::Tokenizer;
use serde_json::json;

use super::args::{TokenFormat, TokenizeArgs};
use super::process::SUCCESS;
use super::prompt::Prompt;

pub fn tokenize(args: TokenizeArgs) -> Result<u8> {
    let tokenizer = Tokenizer::load(&super::open(&args.model)?)?;
    let (text, ids) = Prompt::read(&args.prompt, None)?.encode(&tokenizer)?;
    let pieces: Vec<String> = ids.iter().map(|&id| tokenizer.piece(id).unwrap_or_default()).collect();
    let mut out = Vec::new();
    match args.format {
        TokenFormat::Json => writeln!(out, "{}", json!({"text": text, "ids": ids, "pieces": pieces}))?,
        TokenFormat::Text => {
            writeln!(out, "{text}\n")?;
            for (id, piece) in ids.iter().zip(&pieces) {
                writeln!(out, "{id:>8}  {piece:?}")?;
            }
            writeln!(out, "\n{} tokens", ids.len())?;
        }
    }
    io::stdout().write_all(&out)?;
    Ok(SUCCESS)
}
