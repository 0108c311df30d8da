//! The same ids and logits as the reference implementations, for every checkpoint under tests/fixtures/checkpoints.

use std::fs;
use std::path::Path;

use mlx_lm::chat_template::Conversation;
use mlx_lm::generate::generator::Tokens;
use mlx_lm::generate::kv_cache::CacheLimits;
use mlx_lm::generate::sampler::SamplerOptions;
use mlx_lm::generate::sequence::Sequence;
use mlx_lm::generate::{Delta, Engine, EngineOptions};
use mlx_lm::{Checkpoint, GenerateOptions, Model, Watch, generate, ops};
use mlx_rs::Array;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis};
use serde::Deserialize;

use crate::{compute_on_cpu, decode, fixture, prefill};

#[derive(Deserialize)]
struct Reference {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    decode_steps: Vec<usize>,
    /// How far the reference's own arithmetic in the file's type takes its logits.
    f64_deviation: f32,
}

struct Case {
    name: String,
    model: Model,
    reference: Reference,
    /// `[L, V]` and `[decode_steps, V]`, row after row.
    prompt_logits: Vec<f32>,
    decode_logits: Vec<f32>,
}

impl Case {
    fn all() -> Vec<Case> {
        let mut names: Vec<String> = fs::read_dir(fixture("checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert!(names.len() >= 20, "fixtures are missing: {names:?}");
        names.into_iter().map(Case::load).collect()
    }

    fn load(name: String) -> Case {
        compute_on_cpu();
        let root = fixture("checkpoints").join(&name);
        let reference = serde_json::from_slice(&fs::read(root.join("reference.json")).unwrap()).unwrap();
        let stored = Array::load_safetensors(root.join("reference.safetensors")).unwrap();
        // For 16-bit checkpoints the reference's own 16-bit arithmetic is stored too, as `native_…`; it is MLX's.
        let native = |name: &str| stored.get(&format!("native_{name}")).filter(|_| on_mlx());
        let tensor = |name: &str| floats(native(name).unwrap_or_else(|| &stored[name]));
        Case {
            model: load(&root),
            reference,
            prompt_logits: tensor("prompt_logits"),
            decode_logits: tensor("decode_logits"),
            name,
        }
    }

    /// How far logits may be from the reference's, as a share of the largest one.
    ///
    /// In f32, 1e-4: rounding of another order of summation, amplified over two layers, is below 2e-6 here.
    /// With 16-bit activations, MLX's backend does the same operations in the same order as the reference, so the difference
    /// is no more than one unit in the last place of bf16 (2^-8). The kernels round less often, and elsewhere: they must be
    /// about as near to the reference in f32 as its own 16-bit arithmetic is.
    fn tolerance(&self) -> f32 {
        let config = fs::read_to_string(fixture("checkpoints").join(&self.name).join("config.json")).unwrap();
        match config.contains("\"float32\"") {
            true => 1e-4,
            false if on_mlx() => 1.0 / 256.0,
            false => 1.5 * self.reference.f64_deviation,
        }
    }
}

/// Whether MLX's own backend computes, and not the kernels.
fn on_mlx() -> bool {
    !compute_on_cpu()
}

fn load(root: &Path) -> Model {
    Model::load(&Checkpoint::open(root).unwrap(), &mut Watch::none())
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
}

/// `n` ids after the prompt.
fn generated(model: &Model, options: SamplerOptions, prompt: &[u32], n: usize, prefill_step: usize) -> Vec<u32> {
    let cache = model.new_cache(CacheLimits::new((prompt.len() + n) as i32));
    let vocab_size = model.config().vocab_size;
    let sequence = Sequence::new(prompt.to_vec(), cache, &options, vocab_size, None, prefill_step).unwrap();
    Tokens::prefill(model, sequence, n, &mut Watch::none()).unwrap().map(|token| token.unwrap().id).collect()
}

fn floats(a: &Array) -> Vec<f32> {
    a.to_vec_cast::<f32>().unwrap()
}

/// The largest difference as a share of the largest expected value.
fn deviation(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    difference.fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }) / largest
}

#[test]
fn logits_are_those_of_the_reference() {
    for case in Case::all() {
        let (model, reference) = (&case.model, &case.reference);
        let vocab = model.config().vocab_size as usize;
        let mut cache = model.new_cache(CacheLimits::new(256));
        let found = floats(&prefill(model, &reference.prompt, &mut cache));
        let off = deviation(&found, &case.prompt_logits);
        assert!(off <= case.tolerance(), "{}: prompt logits are off by {off:e}", case.name);

        // Step i feeds the i-th generated id and sees the logits for the one after it.
        for (i, ids) in reference.greedy.windows(2).enumerate() {
            let logits = decode(model, ids[0], &mut cache);
            let next: u32 = argmax_axis(&logits, -1, false).unwrap().try_index(0).unwrap().item_cast();
            assert_eq!(next, ids[1], "{}: generated token {}", case.name, i + 1);
            if let Some(stored) = reference.decode_steps.iter().position(|&step| step == i + 1) {
                let expected = &case.decode_logits[stored * vocab..][..vocab];
                let off = deviation(&floats(&logits), expected);
                assert!(off <= case.tolerance(), "{}: logits of step {i} are off by {off:e}", case.name);
            }
        }
    }
}

#[test]
fn greedy_ids_are_those_of_the_reference_however_the_prompt_is_chunked() {
    let mut wrong = Vec::new();
    for case in Case::all() {
        for prefill_step in [2048, 5, 1] {
            let Reference { prompt, greedy, .. } = &case.reference;
            let ids = generated(&case.model, SamplerOptions::default(), prompt, greedy.len(), prefill_step);
            let first = (0..greedy.len()).find(|&i| ids.get(i) != greedy.get(i));
            if let Some(first) = first.filter(|&first| !is_near(&case, &ids, first)) {
                wrong.push(format!("{} in chunks of {prefill_step}, from token {first} on", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// On a GPU, whether the id that differs is as likely as the reference's, within what logits may be off by.
fn is_near(case: &Case, ids: &[u32], first: usize) -> bool {
    if ops::kernels() != "cuda" || ids.len() <= first {
        return false;
    }
    let Reference { prompt, greedy, .. } = &case.reference;
    let mut cache = case.model.new_cache(CacheLimits::new(256));
    let seen = [prompt, &greedy[..first]].concat();
    let logits = floats(&prefill(&case.model, &seen, &mut cache));
    let last = &logits[logits.len() - case.model.config().vocab_size as usize..];
    let largest = last.iter().fold(0f32, |most, x| most.max(x.abs()));
    (last[ids[first] as usize] - last[greedy[first] as usize]).abs() <= 2.0 * case.tolerance() * largest
}

#[derive(Deserialize)]
struct SampleCase {
    checkpoint: String,
    seed: u64,
    settings: serde_json::Map<String, serde_json::Value>,
    ids: Vec<u32>,
}

/// With the same seed, the same draws as mlx-lm, whatever filters and penalties act.
#[test]
fn sampled_ids_are_those_of_the_reference() {
    let cases: Vec<SampleCase> = serde_json::from_slice(&fs::read(fixture("samples.json")).unwrap()).unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let Case { model, reference, .. } = Case::load(case.checkpoint.clone());
        let number = |key| case.settings.get(key).and_then(serde_json::Value::as_f64).map(|x| x as f32);
        let bias = case.settings.get("logit_bias").and_then(serde_json::Value::as_object).into_iter().flatten();
        let options = SamplerOptions {
            temp: number("temp").unwrap(),
            top_p: number("top_p").unwrap_or(1.0),
            top_k: number("top_k").unwrap_or(0.0) as usize,
            min_p: number("min_p").unwrap_or(0.0),
            repetition_penalty: number("repetition_penalty"),
            repetition_context: number("repetition_context_size").unwrap_or(20.0) as usize,
            presence_penalty: number("presence_penalty").unwrap_or(0.0),
            frequency_penalty: number("frequency_penalty").unwrap_or(0.0),
            logit_bias: bias.map(|(id, value)| (id.parse().unwrap(), value.as_f64().unwrap() as f32)).collect(),
            seed: case.seed,
        };
        let ids = generated(&model, options.clone(), &reference.prompt, case.ids.len(), 2048);
        assert_eq!(ids, case.ids, "{} with {options:?}", case.checkpoint);
    }
}

#[derive(Deserialize)]
struct TextCase {
    prompt: Option<String>,
    #[serde(default)]
    messages: Vec<serde_json::Value>,
    prompt_ids: Vec<u32>,
    max_tokens: usize,
    ids: Vec<u32>,
    text: String,
    finish_reason: String,
}

/// From prompt or conversation to text: the ids and the text that `mlx_lm.generate` gives.
#[test]
fn text_is_that_of_the_reference() {
    compute_on_cpu();
    let root = fixture("checkpoints/llama-chat");
    let checkpoint = Checkpoint::open(&root).unwrap();
    let engine = Engine::load(checkpoint, EngineOptions::default()).unwrap();
    let tokenizer = engine.tokenizer();
    let cases: Vec<TextCase> = serde_json::from_slice(&fs::read(root.join("text.json")).unwrap()).unwrap();
    for case in cases {
        let prompt = match case.prompt {
            Some(prompt) => tokenizer.encode(&prompt, true).unwrap(),
            None => {
                let conversation =
                    Conversation { messages: case.messages, add_generation_prompt: true, ..Default::default() };
                tokenizer.encode(&tokenizer.render(&conversation).unwrap(), false).unwrap()
            }
        };
        assert_eq!(prompt, case.prompt_ids);
        let options = GenerateOptions { max_tokens: case.max_tokens, ..Default::default() };
        let mut generation = generate(&engine, &prompt, &options).unwrap();
        let deltas: Vec<Delta> = generation.by_ref().map(Result::unwrap).collect();
        let mut ids: Vec<u32> = deltas.iter().map(|p| p.token.id).collect();
        if case.finish_reason == "stop" && ids.len() == case.ids.len() + 1 {
            ids.pop(); // the end-of-sequence token, which the reference does not list
        }
        assert_eq!(ids, case.ids);
        assert_eq!(deltas.iter().map(|p| p.text.as_str()).collect::<String>(), case.text);
        let reason = serde_json::to_value(generation.finish_reason()).unwrap();
        assert_eq!(reason, case.finish_reason);
    }
}
