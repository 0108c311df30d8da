//! Texts that follow a schema, an expression or a grammar, whatever the model; judged by libraries that had no part in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlx_lm::generate::sampler::SamplerOptions;
use mlx_lm::generate::{Engine, EngineOptions, FinishReason, Grammar, Request};
use mlx_lm::{Checkpoint, GenerateOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{compute_on_cpu, fixture};

/// A folder with a small Llama, of random weights, and one of the fixtures' tokenizers.
pub fn random_checkpoint(tokenizer: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture("tokenizers").join(tokenizer)).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), root.path().join(file.file_name())).unwrap();
    }
    write_random_weights(root.path());
    root
}

pub fn random_model(tokenizer: &str) -> Engine {
    compute_on_cpu();
    let root = random_checkpoint(tokenizer);
    Engine::load(Checkpoint::open(root.path()).unwrap(), EngineOptions::default()).unwrap()
}

fn write_random_weights(root: &Path) {
    let (vocab_size, width, inner) = (600, 32, 64);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
        "vocab_size": vocab_size, "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    fs::write(root.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![vocab_size, width]),
        ("lm_head.weight".to_owned(), vec![vocab_size, width]),
        ("model.norm.weight".to_owned(), vec![width]),
        (layer("input_layernorm"), vec![width]),
        (layer("post_attention_layernorm"), vec![width]),
        (layer("self_attn.q_proj"), vec![width, width]),
        (layer("self_attn.k_proj"), vec![width / 2, width]),
        (layer("self_attn.v_proj"), vec![width / 2, width]),
        (layer("self_attn.o_proj"), vec![width, width]),
        (layer("mlp.gate_proj"), vec![inner, width]),
        (layer("mlp.up_proj"), vec![inner, width]),
        (layer("mlp.down_proj"), vec![width, inner]),
    ];
    let mut rng = StdRng::seed_from_u64(7);
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values =
                (0..shape.iter().product()).flat_map(|_| rng.random_range(-0.3f32..0.3).to_le_bytes()).collect();
            (name, (shape, values))
        })
        .collect();
    let views =
        tensors.iter().map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &root.join("model.safetensors")).unwrap();
}

fn demo() -> Engine {
    compute_on_cpu();
    Engine::load(Checkpoint::demo().unwrap(), EngineOptions::default()).unwrap()
}

pub fn request(grammar: Grammar, temp: f32, seed: u64, max_tokens: usize) -> Request {
    let sampler = SamplerOptions { temp, seed, ..SamplerOptions::default() };
    let options = GenerateOptions { grammar: Some(grammar), sampler, max_tokens, ..GenerateOptions::default() };
    Request { prompt: vec![10 + seed as u32 % 90, 60, 33], options, prompt_cache: None }
}

/// The text, and why it ended.
pub fn finish(mut generation: mlx_lm::generate::Generation) -> (String, FinishReason) {
    let text = generation.by_ref().map(|delta| delta.unwrap().text).collect();
    (text, generation.finish_reason().unwrap())
}

/// A schema at random, of keywords that JSON Schema's own test suite covers. Sizes are bounded, so that also a model that knows
/// nothing comes to an end.
struct Schemas(StdRng);

impl Schemas {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.random_range(0..of.len())].clone()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn value(&mut self) -> Value {
        self.pick(&[
            json!(null),
            json!(true),
            json!(-3),
            json!(2.5),
            json!("é \"q\" \\ 🙂"),
            json!("<|end|>"),
            json!([1, []]),
            json!({"a": {}}),
        ])
    }

    fn schema(&mut self, depth: u32) -> Value {
        let simple = depth == 0 || self.chance(45);
        match self.0.random_range(0..if simple { 7 } else { 14 }) {
            0 => json!({"type": self.pick(&["boolean", "null"])}),
            1 => json!({"const": self.value()}),
            2 => json!({"enum": [self.value(), self.value(), "other"]}),
            3 => self.integer(),
            4 => self.number(),
            5 | 6 => self.string(),
            7 | 8 => self.array(depth - 1),
            9..=11 => self.object(depth - 1),
            12 => {
                let of = self.pick(&["anyOf", "oneOf"]);
                json!({of: [self.schema(depth - 1), self.schema(depth - 1)]})
            }
            _ => {
                let object = self.object(depth - 1);
                json!({"allOf": [object, {"type": "object", "required": [self.pick(&["a", "b"])]}]})
            }
        }
    }

    fn integer(&mut self) -> Value {
        let low = self.0.random_range(-200..200);
        let mut schema = json!({"type": "integer", "minimum": low, "maximum": low + self.0.random_range(0..300)});
        if self.chance(20) {
            schema["multipleOf"] = self.pick(&[2, 3, 5]).into();
        }
        if self.chance(20) {
            schema["exclusiveMaximum"] = (low + 40).into();
        }
        schema
    }

    fn number(&mut self) -> Value {
        let low = f64::from(self.0.random_range(-40..40)) / 4.0;
        json!({"type": "number", "minimum": low, "exclusiveMaximum": low + f64::from(self.0.random_range(1..40)) / 8.0})
    }

    fn string(&mut self) -> Value {
        match self.0.random_range(0..5) {
            0 => {
                json!({"type": "string", "pattern": self.pick(&["^[a-z]{2,4}-[0-9]{1,3}$", "^(yes|no)\\.$", "^\\p{Lu}é?[^\"]{0,3}$"])})
            }
            1 => {
                json!({"type": "string", "format": self.pick(&["date", "time", "date-time", "uuid", "ipv4", "ipv6", "duration", "email", "hostname", "uri"])})
            }
            _ => {
                let least = self.0.random_range(0..4);
                json!({"type": "string", "minLength": least, "maxLength": least + self.0.random_range(0..8)})
            }
        }
    }

    fn array(&mut self, depth: u32) -> Value {
        let least = self.0.random_range(0..2);
        let mut schema =
            json!({"type": "array", "items": self.schema(depth), "minItems": least, "maxItems": least + 2});
        if self.chance(40) {
            schema["prefixItems"] = json!([self.schema(depth), self.schema(0)]);
        }
        if self.chance(10) {
            schema["items"] = false.into();
        }
        schema
    }

    fn object(&mut self, depth: u32) -> Value {
        let names = ["a", "b", "c\"d", "é", "a long name", "$ref"];
        let mut properties = Map::new();
        for name in names {
            if self.chance(45) {
                properties.insert(name.into(), self.schema(depth));
            }
        }
        let required: Vec<&str> = names.into_iter().filter(|_| self.chance(35)).collect();
        let mut schema =
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
        match self.0.random_range(0..6) {
            0 => schema["patternProperties"] = json!({"^x[0-9]$": self.schema(0)}),
            1 => {
                schema["additionalProperties"] = self.schema(0);
                schema["maxProperties"] = (required.len() + 2).into();
            }
            2 => schema["minProperties"] = (required.len() + self.0.random_range(0..2)).into(),
            _ => {}
        }
        schema
    }

    /// One that may refer to definitions.
    fn next(&mut self) -> Value {
        let mut schema = self.schema(3);
        if self.chance(15) {
            let item = self.schema(1);
            schema = json!({
                "$defs": {"item": item, "list/of": {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 2}},
                "type": "object", "required": ["one"], "additionalProperties": false,
                "properties": {"one": {"$ref": "#/$defs/item"}, "more": {"$ref": "#/$defs/list~1of"}, "rest": schema},
            });
        }
        schema
    }
}

/// How many texts were judged; the rest were cut off by `max_tokens`.
fn judge_schemas(engine: &Engine, wanted: usize, seed: u64) -> usize {
    let mut schemas = Schemas(StdRng::seed_from_u64(seed));
    let (mut accepted, mut refused, mut judged) = (0, 0, 0);
    while accepted < wanted {
        let mut together = Vec::new();
        while together.len() < 8 {
            let schema = schemas.next();
            let temp = [1.0, 1.0, 0.0, 1.5][accepted % 4];
            match engine.submit(request(Grammar::JsonSchema(schema.clone()), temp, accepted as u64, 400)) {
                Ok(generation) => {
                    accepted += 1;
                    together.push((schema, generation));
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.starts_with("the JSON schema cannot be followed: ") && !error.contains('\n'),
                        "{error}"
                    );
                    refused += 1;
                }
            }
        }
        for (schema, generation) in together {
            let (text, reason) = finish(generation);
            if reason == FinishReason::Length {
                continue;
            }
            assert_eq!(reason, FinishReason::Stop);
            let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}\n{text}: {e}"));
            if let Err(error) = validator.validate(&value) {
                panic!("{schema}\n{text}\n{error}");
            }
            judged += 1;
        }
    }
    assert!(refused * 2 < accepted, "{refused} of {} schemas were refused", refused + accepted);
    judged
}

/// Catches: a token whose bytes are others than its text's, a mask for another row, a text that ends too early.
#[test]
fn a_thousand_schemas_are_followed_by_a_model_that_knows_nothing() {
    let judged: usize = ["sentencepiece", "byte_level_qwen3", "metaspace", "byte_level_llama3"]
        .iter()
        .zip(0..)
        .map(|(tokenizer, seed)| judge_schemas(&random_model(tokenizer), 256, seed))
        .sum();
    assert!(judged >= 1000, "{judged} of 1024 came to an end");
}

#[test]
fn and_by_the_demo_model() {
    let judged = judge_schemas(&demo(), 96, 9);
    assert!(judged >= 80, "{judged} of 96 came to an end");
}

#[test]
fn expressions_are_matched_as_a_whole() {
    let expressions = [
        "[a-z]{3,5} [0-9]{2}",
        "(yes|no|maybe), (it|he|she) (is|was)\\.",
        "\\p{Lu}\\w{0,6}( \\p{Lu}\\w{0,6}){0,2}",
        "\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d",
        "(?i)abc[^x]{1,4}é🙂?",
        " [a-z]{2} end",
        "a*b{2,3}|\"[^\"\\\\]{0,9}\"",
    ];
    for (engine, temp) in
        [(demo(), 0.0), (demo(), 1.0), (random_model("sentencepiece"), 1.0), (random_model("byte_level_llama3"), 1.0)]
    {
        for (expression, seed) in expressions.iter().cycle().take(21).zip(0..) {
            let (text, reason) =
                finish(engine.submit(request(Grammar::Regex(expression.to_string()), temp, seed, 200)).unwrap());
            if reason == FinishReason::Length {
                continue; // `a*` may go on
            }
            let judge = onig::Regex::new(&format!("\\A(?:{expression})\\z")).unwrap();
            assert!(judge.is_match(&text), "{expression}: {text:?}");
        }
    }
}

/// `true` for a sum of products of numbers and sums in parentheses.
fn is_sum(text: &str) -> bool {
    fn factor(text: &[u8]) -> Option<&[u8]> {
        match text {
            [b'(', rest @ ..] => sum(rest)?.strip_prefix(b")"),
            _ => match text.iter().take_while(|c| c.is_ascii_digit()).count() {
                0 => None,
                n => Some(&text[n..]),
            },
        }
    }
    fn list<'a>(mut text: &'a [u8], of: fn(&[u8]) -> Option<&[u8]>, operators: &[u8]) -> Option<&'a [u8]> {
        loop {
            text = of(text)?;
            match text {
                [operator, rest @ ..] if operators.contains(operator) => text = rest,
                _ => return Some(text),
            }
        }
    }
    fn sum(text: &[u8]) -> Option<&[u8]> {
        list(text, |text| list(text, factor, b"*/"), b"+-")
    }
    sum(text.as_bytes()).is_some_and(<[u8]>::is_empty)
}

#[test]
fn grammars_are_followed() {
    let grammar = r#"
        start: sum
        sum: product (("+" | "-") product)*
        product: factor (("*" | "/") factor)*
        factor: NUMBER | "(" sum ")"
        NUMBER: /[0-9]{1,3}/
    "#;
    let mut whole = 0;
    for engine in [demo(), random_model("metaspace")] {
        for seed in 0..24 {
            let (text, reason) = finish(engine.submit(request(Grammar::Lark(grammar.into()), 1.0, seed, 120)).unwrap());
            assert!(reason == FinishReason::Length || is_sum(&text), "{text}");
            whole += usize::from(reason == FinishReason::Stop);
        }
    }
    assert!(whole >= 24, "{whole} came to an end");
    assert!(is_sum("1+(2*3-4)/5") && !is_sum("1+") && !is_sum("(1") && !is_sum("1)"));
}

const SONG: &str =
    "One two, buckle my shoe; three four, open the door. \u{201c}Grün\u{201d} 🙂 <|end|>, and so on and on.";

fn song() -> Grammar {
    Grammar::Lark(format!("start: {} /[0-9]/", Value::from(SONG)))
}

/// Catches: forced tokens that are told but not read, read twice, or read beyond the end; a count of tokens that is off by one.
#[test]
fn what_must_follow_is_told_and_ends_where_it_should() {
    for engine in [demo(), random_model("sentencepiece"), random_model("metaspace")] {
        let run = |change: &dyn Fn(&mut GenerateOptions)| {
            let mut request = request(song(), 0.0, 3, 500);
            change(&mut request.options);
            let mut generation = engine.submit(request).unwrap();
            let (mut text, mut ids) = (String::new(), Vec::new());
            for delta in generation.by_ref() {
                let delta = delta.unwrap();
                text += &delta.text;
                assert!(delta.token.logprob.is_none_or(|logprob| logprob <= 0.0));
                ids.push(delta.token.id);
            }
            (text, ids, generation.finish_reason().unwrap(), generation.stats().unwrap().generated_tokens)
        };
        let (text, ids, reason, generated) = run(&|options| options.logprobs = Some(2));
        assert!(text.starts_with(SONG) && text.len() == SONG.len() + 1, "{text:?}");
        assert_eq!((reason, generated), (FinishReason::Stop, ids.len()));
        for n in 0..ids.len() {
            let (part, some, reason, generated) = run(&|options| options.max_tokens = n);
            assert!(text.starts_with(part.trim_end_matches('\u{fffd}')), "{part:?}");
            assert_eq!((&some[..], generated, reason), (&ids[..n], n, FinishReason::Length));
        }
        // What comes after was chosen as if all before were the prompt.
        let last = |prompt: Vec<u32>, grammar: Grammar| {
            let mut request = Request { prompt, ..request(grammar, 0.0, 3, 500) };
            request.options.logprobs = Some(0);
            engine.submit(request).unwrap().map(|delta| delta.unwrap().token).last().unwrap()
        };
        let prompt = request(song(), 0.0, 3, 1).prompt;
        let read = last([&prompt, &ids[..ids.len() - 1]].concat(), Grammar::Regex("[0-9]".into()));
        let found = last(prompt, song());
        let difference = found.logprob.unwrap() - read.logprob.unwrap();
        assert!(found.id == read.id && difference.abs() < 0.02, "{found:?} {read:?}");
        // A stop string, penalties, and a context that is much too small.
        assert_eq!(run(&|options| options.stop = vec!["my shoe".into()]).0, "One two, buckle ");
        assert_eq!(run(&|options| options.sampler.frequency_penalty = 1.0).0[..SONG.len()], *SONG);
        for context_size in [2, 8, 19] {
            let (text, ..) = run(&|options| (options.context_size, options.num_sink_tokens) = (Some(context_size), 0));
            assert!(text.starts_with(SONG) && text.len() == SONG.len() + 1, "{text:?}");
        }
    }
}

/// Catches: a mask for the wrong row, a step that is mixed up where some sequences skip it, a draw that is shared.
#[test]
fn neighbours_change_nothing_bit_for_bit() {
    let kernels = compute_on_cpu();
    let start = |parallel, prefill_budget| {
        let options = EngineOptions { parallel, prefill_budget, deterministic: true, ..EngineOptions::default() };
        Engine::load(Checkpoint::demo().unwrap(), options).unwrap()
    };
    let grammars = [
        None,
        Some(song()),
        Some(Grammar::JsonSchema(
            json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}),
        )),
        None,
        Some(Grammar::Regex("[a-z ]{3,30}\\.".into())),
    ];
    let requests: Vec<Request> = (0..20)
        .map(|i| {
            let mut request = request(Grammar::JsonObject, [0.0, 0.9][i % 2], i as u64, [25, 1, 40][i % 3]);
            request.prompt =
                (0..[3, 70, 1][i % 3]).map(|k| 10 + ((k * k * 7 + k * 13 + i * 31) % 113) as u32).collect();
            request.options.grammar = grammars[i % grammars.len()].clone();
            request.options.logprobs = (i % 4 != 3).then_some(i % 3);
            request.options.sampler.repetition_penalty = (i % 3 == 1).then_some(1.2);
            request
        })
        .collect();
    let tokens = |generation: mlx_lm::generate::Generation| -> Vec<(u32, Option<u32>)> {
        generation.map(|delta| delta.unwrap().token).map(|token| (token.id, token.logprob.map(f32::to_bits))).collect()
    };
    let alone: Vec<_> = {
        let engine = start(1, 1);
        requests.iter().map(|request| tokens(engine.submit(request.clone()).unwrap())).collect()
    };
    for (parallel, budget) in [(3, 16), (20, 7)] {
        let engine = start(parallel, budget);
        let all: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        for (i, (generation, alone)) in all.into_iter().zip(&alone).enumerate() {
            let found = tokens(generation);
            // MLX's own operations promise no such thing for the last bits.
            assert!(
                if kernels { found == *alone } else { found.len() == alone.len() },
                "request {i} of {parallel} together"
            );
        }
    }
}

#[test]
fn what_cannot_be_followed_is_refused_before_a_token_is_made() {
    let engine = demo();
    let refused = |grammar: Grammar| match engine.submit(request(grammar.clone(), 0.0, 0, 5)) {
        Ok(_) => panic!("{grammar:?} was taken"),
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains('\n') && error.len() < 400, "{error}");
            error
        }
    };
    let schema = |schema: Value| refused(Grammar::JsonSchema(schema));
    assert!(schema(json!(7)).contains("a schema is an object, not 7"));
    assert!(schema(json!(false)).contains("nothing fits"));
    assert!(schema(json!({"type": "strange"})).contains("strange"));
    assert!(schema(json!({"type": "string", "minLength": 3, "maxLength": 2})).contains("minLength"));
    assert!(schema(json!({"type": "array", "uniqueItems": true})).contains("not supported: [\"uniqueItems\"]"));
    assert!(schema(json!({"items": {"minProperties": 2}})).contains("minProperties"));
    assert!(schema(json!({"multipleOf": 0.01, "allOf": [{"multipleOf": 99_999_999}]})).contains("multipleOf"));
    assert!(
        schema(json!({"$ref": "https://example.com/schema.json"})).starts_with("the JSON schema cannot be followed")
    );
    assert!(schema(json!({"$ref": "#/$defs/none"})).contains("none"));
    assert!(schema(json!({"type": "string", "pattern": "(?=a)b"})).starts_with("the JSON schema cannot be followed"));
    assert!(schema(json!({"type": "string", "format": "colour"})).contains("colour"));
    assert!(schema(json!({"type": "object", "x-guidance": {"lenient": true}})).contains("x-guidance"));
    // Beyond 2^53 llguidance's numbers are not exact, and from 2^63 on some do not come to an end.
    for number in ["9007199254740993", "-9223372036854775808", "1e25", "-1e300"] {
        let number: Value = serde_json::from_str(number).unwrap();
        for keyword in ["const", "minimum", "exclusiveMaximum"] {
            let bounded = json!({"items": {"type": "number", keyword: number}});
            assert!(schema(bounded).contains(&format!("`{keyword}` has a number beyond 2^53")));
        }
        assert!(schema(json!({"enum": [1, {"a": [number]}]})).contains("`enum`"));
        let lark = format!("start: x\nx: %json {{\"type\": \"integer\", \"const\": {number}}}");
        assert!(refused(Grammar::Lark(lark)).contains("`const`"));
    }
    let chain: String = (0..20_000).map(|i| format!("r{i}: r{} \"a\"\n", i + 1)).collect();
    assert!(refused(Grammar::Lark(format!("start: r0\n{chain}r20000: \"b\"\n"))).contains("20002 rules"));
    assert!(refused(Grammar::Regex("a(b".into())).contains("unclosed group"));
    assert!(refused(Grammar::Regex("(a)\\1".into())).contains("regular expression cannot be followed"));
    assert!(refused(Grammar::Lark("start: nowhere".into())).contains("nowhere"));
    assert!(refused(Grammar::Lark("start: <[99999]>".into())).starts_with("the grammar cannot be followed"));
    assert!(refused(Grammar::Lark(String::new())).starts_with("the grammar cannot be followed"));
    assert!(refused(Grammar::Regex("a".repeat(2 << 20))).contains("bytes"));
}

/// Whatever is asked for, it ends, as a refusal or as an ordinary generation.
#[test]
fn hostile_grammars_cost_no_more_than_a_refusal() {
    let engine = demo();
    let nested = |n: usize, open: &str, middle: &str, close: &str| open.repeat(n) + middle + &close.repeat(n);
    let deep = (0..100).fold(json!({"type": "string"}), |schema, _| json!({"type": "array", "items": schema}));
    let wide: Map<String, Value> =
        (0..5000).map(|i| (format!("p{i}"), json!({"type": "string", "pattern": format!("^a{i}.*b$")}))).collect();
    let product = (0..20).map(|i| json!({"anyOf": [{"properties": {format!("a{i}"): {"type": "null"}}}, {"properties": {format!("b{i}"): {}}}]}));
    let grammars = [
        Grammar::Regex("((a{0,1000}){0,1000}){0,1000}".into()),
        Grammar::Regex("(.*a){30}".into()),
        Grammar::Regex(".{0,1000000}x".into()),
        Grammar::Regex("(a|b|ab)*c{1000000}".into()),
        Grammar::Regex(nested(20_000, "(", "a", ")")),
        Grammar::Regex("\\p{L}{1,200}.{0,300}(\\w|\\W){100,2000}".into()),
        Grammar::Lark(format!("start: {}", nested(20_000, "(", "\"a\"", ")"))),
        Grammar::Lark("start: start start | \"a\" | \"\"".into()),
        Grammar::Lark("start: a a a a a a a a\na: b | b b | \"x\"\nb: a | a a | \"\"".into()),
        Grammar::Lark(format!(
            "start: {}",
            (0..20_000).map(|i| format!("\"k{i}\" a")).collect::<Vec<_>>().join(" | ") + "\na: \"z\""
        )),
        Grammar::Lark(
            (0..64).map(|i| format!("r{i}: r{} r{}\n", i + 1, i + 1)).collect::<String>() + "r64: \"a\"\nstart: r0",
        ),
        Grammar::JsonSchema(deep),
        Grammar::JsonSchema(json!({"type": "object", "properties": wide})),
        Grammar::JsonSchema(json!({"allOf": product.collect::<Vec<_>>()})),
        Grammar::JsonSchema(json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "null"}})),
        Grammar::JsonSchema(json!({"type": "array", "maxItems": 1_000_000_000, "items": {"type": "null"}})),
        Grammar::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000})),
        Grammar::JsonSchema(json!({"type": "string", "maxLength": 1_000_000_000})),
        Grammar::JsonSchema(json!({"type": "object", "minProperties": 1_000_000_000})),
        Grammar::JsonSchema(json!({"type": "integer", "multipleOf": 4_294_967_291u32})),
        Grammar::JsonSchema(json!({"type": "number", "multipleOf": 1e-320, "minimum": 1e300})),
        Grammar::JsonSchema(json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        Grammar::JsonSchema(
            json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"}),
        ),
        Grammar::JsonSchema(json!({"enum": (0..50_000).map(|i| format!("value {i}")).collect::<Vec<_>>()})),
    ];
    for grammar in grammars {
        let outcome = match engine.submit(request(grammar.clone(), 1.0, 1, 20)) {
            Err(error) => error.to_string(),
            Ok(mut generation) => {
                let error = generation.by_ref().find_map(Result::err);
                error.map_or_else(|| format!("{:?}", generation.finish_reason().unwrap()), |error| error.to_string())
            }
        };
        let name: String = format!("{grammar:?}").chars().take(70).collect();
        println!("{name}: {}", outcome.chars().take(200).collect::<String>());
        assert!(!outcome.contains("internal error") && !outcome.contains("panic"), "{name}: {outcome}");
    }
    let (text, _) = finish(engine.submit(request(Grammar::Regex("fine".into()), 0.0, 0, 20)).unwrap());
    assert_eq!(text, "fine");
}

/// Catches: a text that is cut off and passes for a whole one, since what must follow is known.
#[test]
fn a_text_that_is_cut_off_has_the_length_for_a_reason() {
    let engine = demo();
    let regex = || Grammar::Regex("abcdefghi jklmnop".into());
    let (whole, reason) = finish(engine.submit(request(regex(), 0.0, 1, 100)).unwrap());
    assert_eq!((&*whole, reason), ("abcdefghi jklmnop", FinishReason::Stop));
    let most = (1..).find(|n| finish(engine.submit(request(regex(), 0.0, 1, *n)).unwrap()).0 == whole).unwrap();
    for n in 1..most {
        let (text, reason) = finish(engine.submit(request(regex(), 0.0, 1, n)).unwrap());
        assert!(whole.starts_with(&text) && reason == FinishReason::Length, "{n}: {text}, {reason:?}");
    }
    assert_eq!(finish(engine.submit(request(regex(), 0.0, 1, most)).unwrap()).1, FinishReason::Stop);
}
