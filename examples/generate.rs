//! Load a model and print what it generates: `cargo run --release --example generate -- MODEL_DIR "Once upon a time"`.

use std::io::Write;

use mlx_lm::{Checkpoint, GenerateOptions, Model, Tokenizer, Watch, generate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let checkpoint = args.next().map_or_else(Checkpoint::demo, Checkpoint::open)?;
    let model = Model::load(&checkpoint, &mut Watch::none())?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let prompt = tokenizer.encode(&args.next().unwrap_or("Once upon a time".into()), true)?;
    for piece in generate(&model, &tokenizer, &prompt, &GenerateOptions::default())? {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    Ok(())
}
