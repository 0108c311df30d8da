//! `mlx_lm convert`: a model quantized, as floats again, or in another type. What it does is in `mlx_lm::convert`.

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use bytesize::ByteSize;
use mlx_lm::convert::{self, Change, ConvertOptions, Converted, FloatType, Override, QuantizeOptions, Recipe};
use mlx_lm::{Error, Watch};

use super::args::ConvertArgs;
use super::output::peak_memory_bytes;
use super::process::{INTERRUPTED, SUCCESS};
use super::progress::Progress;
use super::terminal;

pub fn convert(args: ConvertArgs) -> Result<u8> {
    let options = args.options()?;
    terminal::catch_interrupt();
    let checkpoint = super::open(&args.model)?;
    let _interruptible = terminal::Generation::begin();
    let mut bar = Progress::new("converting", "{bytes}/{total_bytes}");
    let watch = &mut Watch { on_progress: &mut |done, total| bar.update(done, total), stop: terminal::interrupt() };
    let converted = match convert::convert(&checkpoint, &args.output, &options, watch) {
        Err(Error::Interrupted) => {
            drop(bar);
            note!("interrupted; nothing unfinished was left behind");
            return Ok(INTERRUPTED);
        }
        Err(error @ Error::Exists(_)) => return Err(anyhow!("{error}; --force replaces it")),
        converted => converted?,
    };
    drop(bar);
    report(&args, &converted)?;
    Ok(SUCCESS)
}

impl ConvertArgs {
    fn options(&self) -> Result<ConvertOptions> {
        let change = match (self.quantize, self.dequantize) {
            (true, _) => Change::Quantize(QuantizeOptions {
                bits: self.q_bits,
                group_size: self.q_group_size,
                recipe: self.quant_predicate.as_deref().map(Recipe::from_name).transpose()?,
                overrides: self.q_override.iter().map(|text| Override::parse(text)).collect::<mlx_lm::Result<_>>()?,
            }),
            (false, true) => Change::Dequantize,
            (false, false) => Change::None,
        };
        let dtype = self.dtype.as_deref().and_then(FloatType::from_name);
        Ok(ConvertOptions { change, dtype, shard_size: self.shard_size.as_u64(), overwrite: self.force })
    }
}

fn report(args: &ConvertArgs, converted: &Converted) -> io::Result<()> {
    if let Some(first) = converted.indivisible.first() {
        let count = converted.indivisible.len();
        log::warn!("{count} layers stay as they are, such as {first}: their rows are not whole groups");
    }
    log::info!("peak memory: {} bytes", peak_memory_bytes());
    let mut out = io::stdout().lock();
    let bits = converted.bits_per_weight();
    writeln!(out, "[INFO] {} parameters, {bits:.3} bits each on average", converted.parameters)?;
    writeln!(out, "[INFO] ✓ Converted to {:?}: {} of weights", args.output, ByteSize(converted.bytes).display().si())
}
