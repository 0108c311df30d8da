//! `mlx_lm bench`: how fast a model reads and writes on this machine. Names and meanings follow `llama-bench` and
//! `mlx_lm.benchmark`.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use memmap2::MmapMut;
use mlx_lm::backend::cpu as kernels;
use mlx_lm::generate::generator::{Step, Tokens, submit};
use mlx_lm::generate::kv_cache::{CacheLimits, KvCache};
use mlx_lm::generate::sampler::SamplerOptions;
use mlx_lm::generate::sequence::Sequence;
use mlx_lm::models::Architecture;
use mlx_lm::ranks::{self, Ranks};
use mlx_lm::{Model, Watch};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{matmul, ones_dtype};
use mlx_rs::transforms::eval;
use mlx_rs::{Device, DeviceType, Dtype};
use serde_json::{Value, json};

use super::args::{BenchArgs, BenchFormat};
use super::generate::{load_model, set_device};
use super::output::{peak_memory_bytes, write_line};
use super::process::{SUCCESS, Usage};

/// What is read to measure the bandwidth: far more than caches hold.
const READ_BYTES: usize = 512 << 20;

/// Tokens of sequences together that are not timed, after the first.
const WARM_UP: usize = 2;

pub fn bench(args: BenchArgs) -> Result<u8> {
    set_device(args.device)?;
    let started = Instant::now();
    let (name, model) = load(&args)?;
    let load_s = started.elapsed().as_secs_f64();
    let vocab_size = model.config().vocab_size as u32;
    // Any ids do: what they are does not change the work.
    let ids = |n: usize| -> Vec<u32> { (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab_size).collect() };
    let (depth, prompt) = (ids(args.depth), ids(args.depth + args.prompt));
    // An eviction would take longer than all tokens after it.
    let room = i32::try_from(prompt.len() + 1 + WARM_UP + args.gen_tokens)?;

    let filled = match depth.len() {
        0 => None,
        _ => Some(read(&model, model.new_cache(CacheLimits::new(room)), &depth)?),
    };
    let mut trials = Vec::new();
    for _ in 0..args.repetitions + 1 {
        let cache = match &filled {
            Some(cache) => cache.clone(),
            None => model.new_cache(CacheLimits::new(room)),
        };
        trials.push(trial(&model, cache, &prompt, &args)?);
    }
    trials.remove(0); // warms up
    let mut batch = Vec::new();
    if !args.batch_size.is_empty() {
        let read = read(&model, model.new_cache(CacheLimits::new(room)), &prompt)?;
        for &n in &args.batch_size {
            let times = (0..args.repetitions).map(|_| decode_together(&model, &read, n, &args));
            let rates = times.map(|time| Ok((n * args.gen_tokens) as f64 / time?.as_secs_f64()));
            batch.push((n, spread(rates.collect::<Result<_>>()?)));
        }
    }
    let peak_memory_bytes = peak_memory_bytes();
    let rate = |n: usize, time: fn(&Trial) -> Duration| {
        spread(trials.iter().map(|trial| n as f64 / time(trial).as_secs_f64()).collect())
    };
    let (prefill_tps, decode_tps) = (rate(args.prompt, |t| t.prefill), rate(args.gen_tokens, |t| t.decode));
    let on_cpu = matches!(Device::try_default()?.get_type()?, DeviceType::Cpu);
    let bandwidth = if on_cpu { read_bandwidth_of_cpu()? } else { read_bandwidth_of_gpu()? };
    let median = |rates: &Value| rates["median"].as_f64().unwrap_or(0.0);
    let cached = prompt.len() + args.gen_tokens / 2;
    let step_bytes = model.step_bytes() as f64 + model.step_cache_bytes(cached) as f64;
    let result = json!({
        "model": name,
        "n_prompt": args.prompt,
        "n_gen": args.gen_tokens,
        "n_depth": args.depth,
        "prefill_tps": prefill_tps,
        "decode_tps": decode_tps,
        "load_s": load_s,
        "peak_memory_bytes": peak_memory_bytes,
        "read_bandwidth_gbps": bandwidth / 1e9,
        "decode_bandwidth_share": median(&decode_tps) * step_bytes / bandwidth,
        "prefill_tflops": median(&prefill_tps) * model.token_flops() / 1e12,
        "kernels": mlx_lm::ops::kernels(),
        "threads": on_cpu.then(kernels::threads),
        "device": if on_cpu { "cpu" } else { "gpu" },
        "ranks": ranks::current().map_or(1, Ranks::size),
        "batch": batch.iter().map(|(n, rate)| json!({
            "batch_size": n,
            "decode_tps": rate,
            "decode_tps_each": median(rate) / *n as f64,
        })).collect::<Vec<_>>(),
    });
    let mut out = io::stdout().lock();
    match args.format {
        BenchFormat::Json => write_line(&mut out, &result)?,
        BenchFormat::Text => print(&mut out, &result)?,
    }
    Ok(SUCCESS)
}

fn spread(mut rates: Vec<f64>) -> Value {
    rates.sort_by(f64::total_cmp);
    json!({"median": rates[rates.len() / 2], "min": rates[0], "max": rates[rates.len() - 1]})
}

fn load(args: &BenchArgs) -> Result<(String, Model)> {
    let Some(name) = &args.synthetic else {
        if args.bits.is_some() {
            return Err(Usage("--bits needs --synthetic; a model on disk has the bits it has".into()).into());
        }
        let name = args.model.model_root.as_ref().map_or("demo".into(), |root| root.display().to_string());
        return Ok((name, load_model(&super::open(&args.model)?)?));
    };
    let architecture = Architecture::named(name).expect("clap took it");
    let bits = args.bits.unwrap_or(4);
    Ok((format!("{name}, {bits} bits, random weights"), Model::synthetic(architecture, bits)?))
}

/// A cache that has read `ids`.
fn read(model: &Model, cache: KvCache, ids: &[u32]) -> Result<KvCache> {
    let last = [ids, &[0]].concat(); // the last token of a prompt stays out of the cache until it is decoded
    Ok(prefill(model, cache, &last, 0, &SamplerOptions::default())?.cache().clone())
}

fn prefill<'m>(
    model: &'m Model,
    cache: KvCache,
    ids: &[u32],
    max_tokens: usize,
    sampling: &SamplerOptions,
) -> Result<Tokens<'m>> {
    let sequence = Sequence::new(ids.to_vec(), cache, sampling, model.config().vocab_size, None, 2048)?;
    Ok(Tokens::prefill(model, sequence, max_tokens, &mut Watch::none())?)
}

struct Trial {
    prefill: Duration,
    decode: Duration,
}

/// Read the prompt to the first token, and decode the others.
fn trial(model: &Model, cache: KvCache, prompt: &[u32], args: &BenchArgs) -> Result<Trial> {
    let started = Instant::now();
    let mut tokens = prefill(model, cache, prompt, args.gen_tokens + 1, &args.sampling())?;
    tokens.next().transpose()?;
    let prefill = started.elapsed();
    let started = Instant::now();
    while tokens.next().transpose()?.is_some() {}
    Ok(Trial { prefill, decode: started.elapsed() })
}

/// Decode `n` sequences that have read a prompt, token by token, all in one pass; how long that takes.
fn decode_together(model: &Model, read: &KvCache, n: usize, args: &BenchArgs) -> Result<Duration> {
    let prompt = vec![0; read.seen() as usize + 1];
    let vocab_size = model.config().vocab_size;
    let sequence = |_| Sequence::new(prompt.clone(), read.clone(), &args.sampling(), vocab_size, None, 2048);
    let mut sequences = (0..n).map(sequence).collect::<mlx_lm::Result<Vec<_>>>()?;
    let mut pass = |last: Option<&Step>| {
        let mut decoding: Vec<_> = sequences.iter_mut().collect();
        let step = submit(model, &mut decoding, &mut [], last, &mut |_| ())?;
        Ok::<_, mlx_lm::Error>(step.expect("sequences decode"))
    };
    // The first copies the cache that all share.
    let mut step = pass(None)?;
    for warm_up in [true, false] {
        let started = Instant::now();
        for _ in 0..if warm_up { WARM_UP } else { args.gen_tokens } {
            let next = pass(Some(&step))?;
            step.read(model)?;
            step = next;
        }
        if !warm_up {
            let time = started.elapsed();
            step.read(model)?;
            return Ok(time);
        }
    }
    unreachable!("the second round returns")
}

/// Bytes per second, the median of seven readings.
fn read_bandwidth_of_cpu() -> Result<f64> {
    let mut map = MmapMut::map_anon(READ_BYTES)?;
    // As weights lie.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    map.fill(0x3f); // numbers near 1
    Ok(median_of_seven(|| kernels::read_bandwidth(&map)))
}

/// What MLX's product of a matrix with a vector reads, in bytes per second.
fn read_bandwidth_of_gpu() -> Result<f64> {
    const COLUMNS: i32 = 8192;
    const TIMES: i32 = 16;
    let matrix = ones_dtype(&[READ_BYTES as i32 / 2 / COLUMNS, COLUMNS], Dtype::Bfloat16)?;
    let vectors = ones_dtype(&[TIMES, COLUMNS, 1], Dtype::Bfloat16)?;
    let read = || -> Result<f64> {
        let products = (0..TIMES).map(|i| Ok(matmul(&matrix, vectors.try_index(i)?)?)).collect::<Result<Vec<_>>>()?;
        let started = Instant::now();
        eval(&products)?;
        Ok(f64::from(TIMES) * READ_BYTES as f64 / started.elapsed().as_secs_f64())
    };
    read()?; // makes the numbers, and warms up
    Ok(median_of_seven(|| read().unwrap_or(f64::NAN)))
}

fn median_of_seven(reading: impl FnMut() -> f64) -> f64 {
    let mut readings: Vec<f64> = std::iter::repeat_with(reading).take(7).collect();
    readings.sort_by(f64::total_cmp);
    readings[3]
}

fn print(out: &mut impl Write, result: &Value) -> io::Result<()> {
    let number = |key: &str| result[key].as_f64().unwrap_or(f64::NAN);
    let rate = |key: &str| {
        let of = |which: &str| result[key][which].as_f64().unwrap_or(f64::NAN);
        format!("{:.2} tokens/s (min {:.2}, max {:.2})", of("median"), of("min"), of("max"))
    };
    writeln!(out, "model:           {}", result["model"].as_str().unwrap_or_default())?;
    let threads = result["threads"].as_u64().map_or(String::new(), |n| format!(", {n} threads"));
    let ranks = result["ranks"].as_u64().filter(|&n| n > 1).map_or(String::new(), |n| format!(", {n} ranks"));
    writeln!(
        out,
        "device:          {}, kernels {}{threads}{ranks}",
        result["device"].as_str().unwrap_or_default(),
        result["kernels"].as_str().unwrap_or_default()
    )?;
    writeln!(out, "load:            {:.3} s", number("load_s"))?;
    let flops = number("prefill_tflops");
    writeln!(out, "prefill {:>6}:  {}, {flops:.3} TFLOP/s", number("n_prompt"), rate("prefill_tps"))?;
    writeln!(out, "decode {:>7}:  {}", number("n_gen"), rate("decode_tps"))?;
    for row in result["batch"].as_array().into_iter().flatten() {
        let n = row["batch_size"].as_u64().unwrap_or_default();
        let [median, min, max] =
            ["median", "min", "max"].map(|which| row["decode_tps"][which].as_f64().unwrap_or(f64::NAN));
        let each = row["decode_tps_each"].as_f64().unwrap_or(f64::NAN);
        writeln!(out, "{n:>4} together:   {median:.2} tokens/s in all (min {min:.2}, max {max:.2}), {each:.2} each")?;
    }
    writeln!(
        out,
        "memory read:     {:.1} GB/s, of which decoding reaches {:.0} %",
        number("read_bandwidth_gbps"),
        100.0 * number("decode_bandwidth_share")
    )?;
    writeln!(out, "peak memory:     {:.3} GB", number("peak_memory_bytes") / 1e9)
}
