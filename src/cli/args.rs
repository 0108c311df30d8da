//! The flags, as clap reads them. Defaults and ranges are the library's.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use bytesize::ByteSize;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mlx_lm::backend::cpu::MAX_THREADS;
use mlx_lm::convert::{FloatType, Recipe};
use mlx_lm::generate::sampler::SamplerOptions;
use mlx_lm::generate::{GenerateOptions, Overrides};
use mlx_lm::models::Architecture;
use serde_json::Value;

use super::hub::HubArgs;
use super::launch::LaunchArgs;
use super::prompt::{read_json, read_text};

/// Generate text from a Hugging Face or MLX checkpoint.
///
#[cfg_attr(feature = "demo", doc = "Without --model-root, a tiny demo model inside this program answers.\n")]
/// Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "mlx_lm", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub generate: GenerateArgs,
    /// CPU threads to compute with [default: one for each physical core]
    #[arg(long, value_name = "N", global = true, value_parser = threads, env = "MLX_LM_THREADS", hide_env_values = true)]
    pub threads: Option<usize>,
    /// What computes on a CPU: mlx (MLX itself), portable, avx2, avx512 or amx [default: the fastest that the machine has]
    #[arg(long, value_name = "SET", global = true, env = "MLX_LM_KERNELS", hide_env_values = true)]
    pub kernels: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk to a model in the terminal; lines on standard input are turns of a conversation.
    Chat(Box<ChatArgs>),
    /// Show how a prompt becomes tokens: rendered text, ids and pieces. Needs the tokenizer's files only.
    Tokenize(TokenizeArgs),
    /// Read a prompt once and keep what it left in a file, for --prompt-cache.
    CachePrompt(CachePromptArgs),
    /// Write a model anew: quantized, as floats again, or in another type. The result is that of mlx_lm.convert.
    Convert(ConvertArgs),
    /// Measure how well a model predicts a text, through the same cache that generation uses.
    Perplexity(PerplexityArgs),
    /// Measure how fast a model reads a prompt and generates on this machine.
    Bench(BenchArgs),
    /// Answer requests over HTTP, as OpenAI's interface has them, and show a page to talk to.
    #[cfg(feature = "server")]
    Serve(ServeArgs),
    /// Download a model from the Hugging Face hub, or what is new of it, and print where it is.
    #[cfg(feature = "hub")]
    Pull(PullArgs),
    /// List the models of the Hugging Face cache: size, type, bits, whether this program runs them and if not why.
    #[cfg(feature = "hub")]
    List(ListArgs),
    /// Remove models from the Hugging Face cache.
    #[cfg(feature = "hub")]
    Rm(RmArgs),
    /// Run a command as several ranks that compute one model together, here or on several machines.
    Launch(LaunchArgs),
    /// Print a completion script for a shell.
    Completions { shell: clap_complete::Shell },
    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man { output: PathBuf },
    /// Render chat templates for another process of this program.
    #[command(hide = true)]
    RenderTemplates,
}

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Model directory, as Hugging Face and mlx_lm.convert write it, or .mlxpack file
    #[cfg_attr(feature = "hub", doc = "(or ORG/NAME[@REVISION] of the Hugging Face hub, which is downloaded once)")]
    #[cfg_attr(feature = "demo", doc = "[default: the demo model]")]
    #[arg(long, short, visible_alias = "model", value_name = "PATH")]
    pub model_root: Option<PathBuf>,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[cfg(feature = "hub")]
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Models of the hub; without a revision their newest one
    #[arg(value_name = "ORG/NAME[@REVISION]", required = true)]
    pub names: Vec<String>,
}

#[cfg(feature = "hub")]
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to show them
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub format: ListFormat,
}

#[cfg(feature = "hub")]
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ListFormat {
    Text,
    Json,
}

#[cfg(feature = "hub")]
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Models of the cache, whole or at one revision
    #[arg(value_name = "ORG/NAME[@REVISION]", required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PromptArgs {
    /// The prompt, as by --prompt
    #[arg(value_name = "PROMPT", help_heading = "Prompt")]
    pub text: Option<String>,
    /// The prompt; `-` reads it from standard input [default: standard input where that is not a terminal, else "In the
    /// beginning the Universe was created."]
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    pub prompt: Option<String>,
    /// Read the prompt from a file, byte for byte
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", help_heading = "Prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Read a whole conversation, a JSON list of {"role": …, "content": …}, from a file or `-`; an assistant's message at its
    /// end is continued
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "system", "raw", "prefill_response"], help_heading = "Prompt")]
    pub messages: Option<PathBuf>,
    /// Hand the chat template the tools in this JSON file
    #[arg(long, value_name = "FILE", conflicts_with = "raw", help_heading = "Prompt")]
    pub tools: Option<PathBuf>,
    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true, help_heading = "Prompt")]
    pub system: Option<String>,
    /// What the answer begins with; it is continued, not repeated
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true, help_heading = "Prompt")]
    pub prefill_response: Option<String>,
    /// Take the prompt as it is, without the model's chat template
    #[arg(long, help_heading = "Prompt")]
    pub raw: bool,
    /// Set a variable of the chat template, such as enable_thinking=false (repeatable)
    #[arg(long, value_name = "KEY=JSON", value_parser = template_arg, conflicts_with = "raw", help_heading = "Prompt")]
    pub template_arg: Vec<(String, Value)>,
    /// The date that the chat template prints, instead of today's
    #[arg(long, value_name = "YYYY-MM-DD", conflicts_with = "raw", help_heading = "Prompt")]
    pub date: Option<jiff::civil::Date>,
}

#[derive(Debug, Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// How to show the tokens
    #[arg(long, value_enum, default_value_t = TokenFormat::Text)]
    pub format: TokenFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TokenFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub struct CachePromptArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace the output if it exists
    #[arg(long, short)]
    pub force: bool,
    /// Where to compute [default: the GPU when MLX has one]
    #[arg(long, value_enum)]
    pub device: Option<DeviceArg>,
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What to write: an .mlxpack file by its ending, else a directory
    #[arg(long, short, value_name = "PATH")]
    pub output: PathBuf,
    /// Quantize linear layers and embeddings
    #[arg(long, short, conflicts_with = "dequantize")]
    pub quantize: bool,
    /// Bits of a value: 2, 3, 4, 5, 6 or 8 [default: 4]
    #[arg(long, value_name = "BITS", requires = "quantize")]
    pub q_bits: Option<i32>,
    /// Values that share a scale and a bias: 32, 64 or 128 [default: 64]
    #[arg(long, value_name = "N", requires = "quantize")]
    pub q_group_size: Option<i32>,
    /// Fewer bits for most layers, more for those that suffer most
    #[arg(long, value_name = "RECIPE", requires = "quantize", value_parser = PossibleValuesParser::new(Recipe::names()))]
    pub quant_predicate: Option<String>,
    /// Other bits for layers whose path the regular expression matches, as BITS:GROUP, or none (repeatable; the first that
    /// matches decides)
    #[arg(long, value_name = "REGEX=BITS:GROUP|none", requires = "quantize")]
    pub q_override: Vec<String>,
    /// The type of all floats [default: torch_dtype of config.json, else as they are]
    #[arg(long, value_name = "TYPE", value_parser = PossibleValuesParser::new(FloatType::NAMES))]
    pub dtype: Option<String>,
    /// Make floats of quantized layers
    #[arg(long, short)]
    pub dequantize: bool,
    /// The most bytes of tensors in a file
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub shard_size: ByteSize,
    /// Replace a model that is there already
    #[arg(long, short)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text; `-` is standard input. The tokenizer adds its own special tokens, and knows those in the text
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Instead of a cache, read the last --context-size tokens again for each token: slow, the reference for streaming
    #[arg(long, conflicts_with_all = ["num_sink_tokens", "eviction_batch_percent"])]
    pub recompute: bool,
    /// Tokens that share one line of the output
    #[arg(long, value_name = "N", default_value = "1024")]
    pub bucket: NonZeroUsize,
    /// How to show the losses
    #[arg(long, value_enum, default_value_t = PerplexityFormat::Text)]
    pub format: PerplexityFormat,
    /// Where to compute [default: the GPU when MLX has one]
    #[arg(long, value_enum)]
    pub device: Option<DeviceArg>,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Make a model of these shapes with random weights in memory; speed does not depend on the weights
    #[arg(long, value_name = "NAME", value_parser = architecture_names(), conflicts_with = "model_root")]
    pub synthetic: Option<String>,
    /// Bits of the synthetic model's weights: 4 or 8 in groups of 64, or 16 for bf16 [default: 4]
    #[arg(long, value_name = "BITS", value_parser = bits)]
    pub bits: Option<u32>,
    /// Tokens of the prompt
    #[arg(long, short, value_name = "N", default_value = "512", value_parser = positive)]
    pub prompt: usize,
    /// Tokens to generate
    #[arg(long = "gen", short, value_name = "N", default_value = "128", value_parser = positive)]
    pub gen_tokens: usize,
    /// Measurements, after one that warms up
    #[arg(long, short = 'n', value_name = "N", default_value = "5", value_parser = positive)]
    pub repetitions: usize,
    /// Also decode so many sequences together, each after the prompt (a list: 1,2,4,8)
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = parallel)]
    pub batch_size: Vec<usize>,
    /// Tokens in the cache before the prompt
    #[arg(long, short, value_name = "N", default_value = "0")]
    pub depth: usize,
    /// Temperature
    #[arg(long, value_name = "T", default_value_t = SamplerOptions::default().temp)]
    pub temp: f32,
    /// Keep the most likely tokens that together have this probability (0-1)
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().top_p)]
    pub top_p: f32,
    /// How to show the result
    #[arg(long, value_enum, default_value_t = BenchFormat::Text)]
    pub format: BenchFormat,
    /// Where to compute [default: the GPU when MLX has one]
    #[arg(long, value_enum)]
    pub device: Option<DeviceArg>,
}

impl BenchArgs {
    pub fn sampling(&self) -> SamplerOptions {
        SamplerOptions { temp: self.temp, top_p: self.top_p, ..SamplerOptions::default() }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum BenchFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PerplexityFormat {
    Text,
    Jsonl,
}

#[cfg(feature = "server")]
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A model directory or .mlxpack file, under the name of its folder or pack, or NAME=PATH (repeatable). The first is loaded
    /// at the start, the others when they are asked for
    #[cfg_attr(
        feature = "hub",
        doc = "(ORG/NAME[@REVISION], of the Hugging Face hub, is downloaded before the start)"
    )]
    #[cfg_attr(feature = "demo", doc = "[default: the demo model]")]
    #[arg(long, short, visible_alias = "model", value_name = "[NAME=]PATH")]
    pub model_root: Vec<String>,
    #[command(flatten)]
    pub hub: HubArgs,
    /// The address to listen at
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// The port; 0 takes one that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// A file of API keys, one a line, of which requests must bring one
    #[arg(long, value_name = "FILE", help_heading = "Security", conflicts_with = "no_api_key")]
    pub api_key_file: Option<PathBuf>,
    /// Let anybody ask who can reach an address that is not this machine's alone
    #[arg(long, help_heading = "Security")]
    pub no_api_key: bool,
    /// Let web pages of this origin ask, such as https://example.com, or `*` (repeatable)
    #[arg(long, value_name = "ORIGIN", help_heading = "Security")]
    pub cors: Vec<String>,
    /// Compute up to so many sequences of a model together; answers do not depend on it
    #[arg(long, value_name = "N", default_value = "16", value_parser = parallel, help_heading = "Limits")]
    pub parallel: usize,
    /// Let so many more wait; beyond that, requests are refused with status 429
    #[arg(long, value_name = "N", default_value = "256", value_parser = queue, help_heading = "Limits")]
    pub queue: usize,
    /// Memory for the keys and values of all that a model computes together, such as 2GB [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub cache_memory: Option<ByteSize>,
    /// Let a model go that nobody has asked for so long
    #[arg(long, value_name = "SECONDS", help_heading = "Limits")]
    pub idle_unload: Option<u64>,
    /// How long requests under way may take to end after SIGTERM or Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value = "30", help_heading = "Limits")]
    pub drain_seconds: u64,
    /// Keep the most used beginnings of prompts in this directory, over restarts
    #[arg(long, value_name = "DIR")]
    pub prompt_cache_dir: Option<PathBuf>,
    /// What requests leave out: an option of --batch lines, such as temp=0.7 max_tokens=1000
    #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
    pub default: Vec<String>,
    /// Where to compute [default: the GPU when MLX has one]
    #[arg(long, value_enum)]
    pub device: Option<DeviceArg>,
}

/// How much of the past a model sees.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// The most tokens that the model looks back at [default: the model's max_position_embeddings]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Limits")]
    pub context_size: Option<i64>,
    /// Attention sinks: first tokens that stay in the context
    #[arg(long, value_name = "N", default_value_t = GenerateOptions::default().num_sink_tokens, allow_negative_numbers = true, help_heading = "Limits")]
    pub num_sink_tokens: i64,
    /// Share of the other tokens that leave a full context at once, in percent (1-50)
    #[arg(long, value_name = "PERCENT", default_value_t = GenerateOptions::default().eviction_batch_percent, allow_negative_numbers = true, help_heading = "Limits")]
    pub eviction_batch_percent: i64,
}

impl CacheArgs {
    /// The library's options, the rest by default, their ranges checked.
    pub fn options(&self) -> mlx_lm::Result<GenerateOptions> {
        self.overrides(Overrides::default()).apply(&GenerateOptions::default())
    }

    fn overrides(&self, others: Overrides) -> Overrides {
        Overrides {
            context_size: self.context_size,
            num_sink_tokens: Some(self.num_sink_tokens),
            eviction_batch_percent: Some(self.eviction_batch_percent),
            ..others
        }
    }
}

/// What the text must be.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct GrammarArgs {
    /// Generate JSON that fits the JSON schema in this file
    #[arg(long, value_name = "FILE", help_heading = "Structure")]
    pub json_schema: Option<PathBuf>,
    /// Generate a text that matches this regular expression as a whole
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true, help_heading = "Structure")]
    pub regex: Option<String>,
    /// Generate a text that follows the Lark grammar in this file
    #[arg(long, value_name = "FILE", help_heading = "Structure")]
    pub grammar: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Begin from a file of `mlx_lm cache-prompt`: what it shares with the beginning of the prompt is not read again
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    pub prompt_cache: Option<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub overrides: Overrides,
    #[command(flatten)]
    pub grammar: GrammarArgs,
    /// Generate for each line {"prompt": …, "id": …, options …} of a file or `-`; one JSON line per result
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "messages", "format"], help_heading = "Output")]
    pub batch: Option<PathBuf>,
    /// Compute up to so many lines of the batch together; their results do not depend on it [default: 8]
    #[arg(long, value_name = "N", value_parser = parallel, help_heading = "Output")]
    pub parallel: Option<usize>,
    /// Write each result of the batch as soon as it is ready, not in the order of the lines
    #[arg(long, help_heading = "Output")]
    pub unordered: bool,
    /// Memory for the keys and values of all that is computed together, such as 2GB [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub cache_memory: Option<ByteSize>,
    /// What to print: the text, one JSON object, or a JSON object per event
    #[arg(long, value_enum, default_value_t = Format::Text, help_heading = "Output")]
    pub format: Format,
    /// Show timings and memory on stderr
    #[arg(long, help_heading = "Output")]
    pub verbose: bool,
    /// Where to compute [default: the GPU when MLX has one]
    #[arg(long, value_enum)]
    pub device: Option<DeviceArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
    Jsonl,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DeviceArg {
    Cpu,
    Gpu,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A system message before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Conversation")]
    pub system: Option<String>,
    /// Go on from a conversation, a JSON list of messages as /save writes it
    #[arg(long, value_name = "FILE", conflicts_with = "system", help_heading = "Conversation")]
    pub messages: Option<PathBuf>,
    /// Set a variable of the chat template, such as enable_thinking=false (repeatable)
    #[arg(long, value_name = "KEY=JSON", value_parser = template_arg, help_heading = "Conversation")]
    pub template_arg: Vec<(String, Value)>,
    /// The date that the chat template prints, instead of today's
    #[arg(long, value_name = "YYYY-MM-DD", help_heading = "Conversation")]
    pub date: Option<jiff::civil::Date>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub overrides: Overrides,
    /// Memory for keys and values, such as 2GB [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub cache_memory: Option<ByteSize>,
    /// Do not render Markdown in a terminal
    #[arg(long, help_heading = "Output")]
    pub plain: bool,
    /// Do not show what the model thinks before it answers
    #[arg(long, help_heading = "Output")]
    pub hide_reasoning: bool,
    /// Show timings and memory of each answer on stderr
    #[arg(long, help_heading = "Output")]
    pub verbose: bool,
    /// Where to compute [default: the GPU when MLX has one]
    #[arg(long, value_enum)]
    pub device: Option<DeviceArg>,
}

impl ChatArgs {
    /// The library's options, their ranges checked.
    pub fn options(&self) -> mlx_lm::Result<GenerateOptions> {
        self.cache.overrides(self.overrides.clone()).apply(&GenerateOptions::default())
    }
}

impl GenerateArgs {
    /// The library's options, their ranges checked.
    pub fn options(&self) -> Result<GenerateOptions> {
        let mut overrides = self.cache.overrides(self.overrides.clone());
        let GrammarArgs { json_schema, regex, grammar } = &self.grammar;
        overrides.json_schema = json_schema.as_deref().map(read_json).transpose()?;
        overrides.regex = regex.clone();
        overrides.grammar = grammar.as_deref().map(read_text).transpose()?;
        // An event per token tells its log-probability; text alone does not need it.
        overrides.logprobs = overrides.logprobs.or((self.format == Format::Jsonl).then_some(0));
        Ok(overrides.apply(&GenerateOptions::default())?)
    }
}

fn threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n));
    threads.ok_or_else(|| format!("expected a whole number from 1 to {MAX_THREADS}"))
}

fn parallel(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=1024).contains(n))
        .ok_or_else(|| "expected a whole number from 1 to 1024".to_owned())
}

#[cfg(feature = "server")]
fn queue(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&n: &usize| n <= 1 << 16)
        .ok_or_else(|| "expected a whole number from 0 to 65536".to_owned())
}

fn bits(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|bits| [4, 8, 16].contains(bits)).ok_or_else(|| "expected 4, 8 or 16".to_owned())
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| (1..1 << 24).contains(&n)).ok_or_else(|| "expected a whole number from 1".to_owned())
}

fn template_arg(text: &str) -> Result<(String, Value), String> {
    let (key, json) = text.split_once('=').ok_or("expected KEY=JSON, such as enable_thinking=false")?;
    let value = serde_json::from_str(json)
        .map_err(|e| format!("{json:?} is not JSON ({e}); strings need quotes: {key}='\"text\"'"))?;
    Ok((key.to_owned(), value))
}

fn architecture_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Architecture::all().map(Architecture::name))
}
