//! Load a model and print what it generates: `cargo run --release --example generate -- MODEL_DIR "Once upon a time"`.

use std::io::Write;

use mlx_lm::generate::{Engine, EngineOptions};
use mlx_lm::{Checkpoint, GenerateOptions, generate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let checkpoint = args.next().map_or_else(Checkpoint::demo, Checkpoint::open)?;
    let engine = Engine::load(checkpoint, EngineOptions::default())?;
    let prompt = engine.tokenizer().encode(&args.next().unwrap_or("Once upon a time".into()), true)?;
    for delta in generate(&engine, &prompt, &GenerateOptions::default())? {
        print!("{}", delta?.text);
        std::io::stdout().flush()?;
    }
    Ok(())
}
