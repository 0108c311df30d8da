//! What is written to stdout, and the JSON forms of results.

use std::fs;
use std::io::{self, IsTerminal, Write};

use mlx_lm::generate::generator::Token;
use mlx_lm::generate::{Delta, Finished, Stats};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Format;
use super::reply::Reply;
use super::terminal::printable;

/// The fields that every JSON form of a result has.
pub fn result_json(finished: &Finished, text: &str) -> Value {
    let stats = &finished.stats;
    let mut json = json!({
        "finish_reason": finished.reason,
        "text": text,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "evicted_tokens": stats.evicted_tokens,
        "prompt_tps": stats.prompt_tps(),
        "generation_tps": stats.generation_tps(),
        "peak_memory_bytes": peak_memory_bytes(),
    });
    if let Some(error) = &finished.error {
        json["error"] = error.to_string().into();
    }
    json
}

/// Writes one generation to stdout in the chosen format, flushed token by token. Text that is printed is not kept, so
/// that a text may go on without end.
pub struct Printer {
    format: Format,
    out: io::StdoutLock<'static>,
    /// For the JSON forms, which repeat it at the end.
    text: String,
    /// For `--format json`, those whose log-probabilities were asked for.
    tokens: Vec<Value>,
    /// For the JSON forms, where the model has tools.
    reply: Option<Reply>,
}

impl Printer {
    pub fn new(format: Format, reply: Option<Reply>) -> Self {
        Printer { format, out: io::stdout().lock(), text: String::new(), tokens: Vec::new(), reply }
    }

    pub fn prefill(&mut self, prompt_tokens: usize) -> io::Result<()> {
        match self.format {
            Format::Jsonl => write_line(&mut self.out, &json!({"event": "prefill", "prompt_tokens": prompt_tokens})),
            Format::Text | Format::Json => Ok(()),
        }
    }

    pub fn delta(&mut self, delta: &Delta) -> io::Result<()> {
        match self.format {
            Format::Text => {
                self.show(&delta.text)?;
                self.out.flush()
            }
            Format::Jsonl => {
                self.text.push_str(&delta.text);
                write_line(&mut self.out, &with_event("token", token_json(delta)))?;
                let calls = self.reply.as_mut().map_or(&[][..], |reply| reply.push(&delta.text));
                calls.iter().try_for_each(|call| write_line(&mut self.out, &with_event("tool_call", call.clone())))
            }
            Format::Json => {
                self.text.push_str(&delta.text);
                if let Some(reply) = &mut self.reply {
                    reply.push(&delta.text);
                }
                self.tokens.extend(delta.token.logprob.map(|_| token_json(delta)));
                Ok(())
            }
        }
    }

    /// A terminal would obey control characters; a file or pipe gets the text as it is.
    fn show(&mut self, text: &str) -> io::Result<()> {
        match self.out.is_terminal() {
            true => self.out.write_all(printable(text).as_bytes()),
            false => self.out.write_all(text.as_bytes()),
        }
    }

    pub fn done(&mut self, finished: &Finished) -> io::Result<()> {
        self.text.push_str(&finished.held_back);
        let mut json = result_json(finished, &self.text);
        let mut calls = Vec::new();
        if let Some(mut reply) = self.reply.take() {
            calls.extend_from_slice(reply.push(&finished.held_back));
            calls.extend_from_slice(reply.finish());
            reply.add_to(&mut json);
        }
        match self.format {
            Format::Jsonl => {
                if !finished.held_back.is_empty() {
                    write_line(&mut self.out, &json!({"event": "text", "text": finished.held_back}))?;
                }
                for call in calls {
                    write_line(&mut self.out, &with_event("tool_call", call))?;
                }
                write_line(&mut self.out, &with_event("done", json))
            }
            Format::Json => {
                if !self.tokens.is_empty() {
                    json["tokens"] = std::mem::take(&mut self.tokens).into();
                }
                write_line(&mut self.out, &json)
            }
            Format::Text => {
                self.show(&finished.held_back)?;
                // A shell prompt should not stick to the text; a file or pipe gets the text alone.
                if self.out.is_terminal() { writeln!(self.out) } else { Ok(()) }
            }
        }
    }
}

/// `{"id", "text", "logprob", "top_logprobs"}`, the last two when they were asked for.
pub fn token_json(delta: &Delta) -> Value {
    let Token { id, logprob, top_logprobs } = &delta.token;
    let mut json = json!({"id": id, "text": delta.text});
    if let Some(logprob) = logprob {
        json["logprob"] = json!(logprob);
    }
    if !top_logprobs.is_empty() {
        json["top_logprobs"] = top_logprobs.iter().map(|(id, logprob)| json!({"id": id, "logprob": logprob})).collect();
    }
    json
}

fn with_event(event: &str, fields: Value) -> Value {
    let mut json = json!({"event": event});
    if let (Value::Object(json), Value::Object(fields)) = (&mut json, fields) {
        json.extend(fields);
    }
    json
}

/// One JSON value on one line, flushed.
pub fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// `--verbose`'s summary, on stderr.
pub fn print_stats(stats: &Stats) {
    let Stats { prompt_tokens, read_tokens, generated_tokens, .. } = stats;
    let read = if read_tokens < prompt_tokens { format!(", {read_tokens} of them read") } else { String::new() };
    note!("prompt: {prompt_tokens} tokens{read}, {:.1} tokens/s", stats.prompt_tps());
    note!("generation: {generated_tokens} tokens, {:.1} tokens/s", stats.generation_tps());
    if stats.evicted_tokens > 0 {
        note!("evicted: {} tokens", stats.evicted_tokens);
    }
    note!("peak memory: {:.3} GB", peak_memory_bytes() as f64 / 1e9);
}

/// The larger of the process' peak resident memory and the most that MLX had allocated (which may be on a GPU).
pub fn peak_memory_bytes() -> u64 {
    let mlx = mlx_rs::memory::peak_memory().unwrap_or(0) as u64;
    mlx.max(peak_resident_bytes())
}

fn peak_resident_bytes() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default(); // Linux has it
    let kilobytes = |line: &str| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
    let usage = || {
        // On Linux this begins with the size of the process that started this one.
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss() as u64 * unit)
    };
    status.lines().find_map(kilobytes).map_or_else(usage, |kilobytes| kilobytes * 1024)
}
