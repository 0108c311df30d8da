//! Every bad input gets one line that says what is wrong, and exit code 1: corruptions of a good checkpoint, each run
//! through the program.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::unpack_demo;

/// A copy of the good checkpoint that a case may spoil.
struct Spoiled {
    root: PathBuf,
}

impl Spoiled {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut value);
        self.write(name, value.to_string());
    }

    /// Set a field of config.json; null removes it.
    fn config(&self, pointer: &str, value: Value) {
        self.json("config.json", |config| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            if value.is_null() { drop(parent.remove(key)) } else { drop(parent.insert(key.into(), value)) }
        });
    }

    /// Replace a text within config.json, for what is not JSON.
    fn config_text(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("config.json")).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        self.write("config.json", text.replacen(from, to, 1));
    }

    /// Change the header of model.safetensors, keeping its data.
    fn header(&self, change: impl FnOnce(&mut Value)) {
        let (mut header, data) = self.weights();
        change(&mut header);
        self.write("model.safetensors", safetensors_bytes(&header, &data));
    }

    fn weights(&self) -> (Value, Vec<u8>) {
        let bytes = fs::read(self.path("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
    }
}

fn safetensors_bytes(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

type Spoil = fn(&Spoiled);

/// What is spoiled, how, and what the message must contain.
const CASES: &[(&str, Spoil, &[&str])] = &[
    // The directory.
    ("no directory", |s| fs::remove_dir_all(&s.root).unwrap(), &["No such file"]),
    (
        "empty directory",
        |s| drop(fs::remove_dir_all(&s.root).and_then(|()| fs::create_dir(&s.root))),
        &["no model in this directory"],
    ),
    // config.json as a file.
    ("config missing", |s| s.remove("config.json"), &["config.json", "not found"]),
    ("config empty", |s| s.write("config.json", ""), &["config.json", "not valid JSON"]),
    ("config truncated", |s| s.write("config.json", "{\"model_type\": \"llama\","), &["config.json", "line 1"]),
    ("config not UTF-8", |s| s.write("config.json", b"{\"a\": \"\xff\"}"), &["config.json", "UTF-8"]),
    ("config a list", |s| s.write("config.json", "[1, 2]"), &["config.json", "expected a map"]),
    (
        "config a directory",
        |s| {
            s.remove("config.json");
            fs::create_dir(s.path("config.json")).unwrap()
        },
        &["config.json"],
    ),
    ("NaN", |s| s.config_text("\"rms_norm_eps\":", "\"rms_norm_eps\": NaN, \"x\":"), &["config.json", "line"]),
    (
        "Infinity as 1e999",
        |s| s.config_text("\"rope_theta\":", "\"rope_theta\": 1e999, \"x\":"),
        &["config.json", "out of range"],
    ),
    // config.json's fields.
    ("no model_type", |s| s.config("/model_type", json!(null)), &["model_type", "granite, llama, mistral, olmo2"]),
    ("unknown model_type", |s| s.config("/model_type", json!("gpt2")), &["\"gpt2\"", "granite, llama, mistral, olmo2"]),
    ("model_type a number", |s| s.config("/model_type", json!(7)), &["`model_type` is 7", "a string"]),
    ("no hidden_size", |s| s.config("/hidden_size", json!(null)), &["`hidden_size` is missing"]),
    ("zero hidden_size", |s| s.config("/hidden_size", json!(0)), &["`hidden_size` is 0", "from 1"]),
    ("negative vocab_size", |s| s.config("/vocab_size", json!(-5)), &["`vocab_size` is -5"]),
    ("fractional hidden_size", |s| s.config("/hidden_size", json!(256.5)), &["`hidden_size` is 256.5", "whole number"]),
    ("hidden_size a string", |s| s.config("/hidden_size", json!("256")), &["`hidden_size` is \"256\""]),
    ("absurd hidden_size", |s| s.config("/hidden_size", json!(1u64 << 62)), &["`hidden_size` is 4611686018427387904"]),
    ("absurd intermediate_size", |s| s.config("/intermediate_size", json!(1e300)), &["`intermediate_size`"]),
    (
        "absurd num_hidden_layers",
        |s| s.config("/num_hidden_layers", json!(16_000_000)),
        &["model.layers.", "is missing"],
    ),
    ("zero heads", |s| s.config("/num_attention_heads", json!(0)), &["`num_attention_heads` is 0"]),
    (
        "heads do not divide",
        |s| {
            s.config("/head_dim", json!(null));
            s.config("/num_attention_heads", json!(7));
            s.config("/num_key_value_heads", json!(7))
        },
        &["`num_attention_heads` is 7", "divisor of hidden_size"],
    ),
    (
        "kv heads do not divide",
        |s| s.config("/num_key_value_heads", json!(3)),
        &["`num_key_value_heads` is 3", "divisor"],
    ),
    ("odd head_dim", |s| s.config("/head_dim", json!(33)), &["`head_dim` is 33", "even"]),
    ("head_dim another", |s| s.config("/head_dim", json!(64)), &["q_proj.weight", "expected"]),
    ("zero rms_norm_eps", |s| s.config("/rms_norm_eps", json!(0)), &["`rms_norm_eps` is 0", "above 0"]),
    (
        "zero max_position_embeddings",
        |s| s.config("/max_position_embeddings", json!(0)),
        &["`max_position_embeddings` is 0"],
    ),
    ("negative rope_theta", |s| s.config("/rope_theta", json!(-1.0)), &["`rope_theta` is -1.0"]),
    ("rope_theta beyond f32", |s| s.config("/rope_theta", json!(1e300)), &["`rope_theta` is 1e", "to 3.4e38"]),
    (
        "rope_parameters by layer type",
        |s| s.config("/rope_parameters", json!({"full_attention": {"rope_type": "dynamic"}})),
        &["by layer type"],
    ),
    ("half-rotated heads", |s| s.config("/partial_rotary_factor", json!(0.5)), &["partial_rotary_factor"]),
    ("hidden_act", |s| s.config("/hidden_act", json!("gelu")), &["hidden_act \"gelu\"", "silu"]),
    (
        "attention_bias a string",
        |s| s.config("/attention_bias", json!("yes")),
        &["`attention_bias` is \"yes\"", "true or false"],
    ),
    ("attention_bias without biases", |s| s.config("/attention_bias", json!(true)), &["q_proj.bias", "is missing"]),
    (
        "rope dynamic",
        |s| s.config("/rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        &["\"dynamic\"", "default, linear, llama3, yarn"],
    ),
    ("rope dynamic", |s| s.config("/rope_scaling", json!({"rope_type": "dynamic", "factor": 2})), &["\"dynamic\""]),
    (
        "rope longrope without a length",
        |s| s.config("/rope_scaling", json!({"rope_type": "longrope", "short_factor": [1], "long_factor": [1]})),
        &["`rope_scaling.original_max_position_embeddings` is missing"],
    ),
    (
        "rope longrope of too few factors",
        |s| {
            let scaling = json!({"type": "su", "short_factor": [1.0, 1.0], "original_max_position_embeddings": 64});
            s.config("/rope_scaling", scaling)
        },
        &["`rope_scaling.short_factor` is a list of 2", "a list of 16 numbers above 0"],
    ),
    (
        "rope without factor",
        |s| s.config("/rope_scaling", json!({"rope_type": "linear"})),
        &["`rope_scaling.factor` is missing"],
    ),
    (
        "rope factor zero",
        |s| s.config("/rope_scaling", json!({"rope_type": "yarn", "factor": 0})),
        &["`rope_scaling.factor` is 0"],
    ),
    (
        "rope llama3 backwards",
        |s| {
            s.config(
                "/rope_scaling",
                json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}),
            )
        },
        &["high_freq_factor"],
    ),
    ("rope_scaling a number", |s| s.config("/rope_scaling", json!(2)), &["`rope_scaling` is 2", "an object"]),
    (
        "layer_types mixed",
        |s| s.config("/layer_types", json!(["full_attention", "sliding_attention"])),
        &["layer_types"],
    ),
    ("untied without lm_head", |s| s.config("/tie_word_embeddings", json!(false)), &["lm_head.weight", "is missing"]),
    // Quantization.
    (
        "no group_size",
        |s| s.config("/quantization/group_size", json!(null)),
        &["`quantization.group_size` is missing", "[32, 64, 128]"],
    ),
    ("bits 7", |s| s.config("/quantization/bits", json!(7)), &["`quantization.bits` is 7", "[2, 3, 4, 5, 6, 8]"]),
    ("group_size 48", |s| s.config("/quantization/group_size", json!(48)), &["`quantization.group_size` is 48"]),
    (
        "bits of another packing",
        |s| s.config("/quantization/bits", json!(8)),
        &["embed_tokens.weight", "packed with 4 bits", "expected 8"],
    ),
    (
        "group_size of another packing",
        |s| s.config("/quantization/group_size", json!(32)),
        &["groups of 64", "groups of 32"],
    ),
    ("mode mxfp4", |s| s.config("/quantization/mode", json!("mxfp4")), &["\"mxfp4\"", "affine"]),
    (
        "mode nvfp4 in an override",
        |s| s.config("/quantization/model.layers.0.mlp.up_proj", json!({"group_size": 32, "bits": 4, "mode": "nvfp4"})),
        &["\"nvfp4\""],
    ),
    (
        "AWQ",
        |s| s.config("/quantization", json!({"quant_method": "awq", "bits": 4, "group_size": 128})),
        &["\"awq\"", "mlx_lm.convert"],
    ),
    (
        "no quantization block",
        |s| {
            s.config("/quantization", json!(null));
            s.config("/quantization_config", json!(null))
        },
        &["embed_tokens.scales", "quantizes no such module"],
    ),
    (
        "override false for a packed module",
        |s| s.config("/quantization/model.layers.0.mlp.up_proj", json!(false)),
        &["layers.0.mlp.up_proj.scales"],
    ),
    // Weights.
    ("weights missing", |s| s.remove("model.safetensors"), &["model.safetensors", "not found"]),
    ("weights empty", |s| s.write("model.safetensors", ""), &["model.safetensors", "safetensors"]),
    (
        "weights a directory",
        |s| {
            s.remove("model.safetensors");
            fs::create_dir(s.path("model.safetensors")).unwrap()
        },
        &["model.safetensors"],
    ),
    ("header shorter than 8 bytes", |s| s.write("model.safetensors", [1, 2, 3]), &["safetensors"]),
    ("header of 2^63 bytes", |s| s.write("model.safetensors", [0, 0, 0, 0, 0, 0, 0, 0x80, b'{']), &["safetensors"]),
    ("header past the end", |s| s.write("model.safetensors", [200, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']), &["safetensors"]),
    ("header not JSON", |s| s.write("model.safetensors", b"\x04\0\0\0\0\0\0\0oops"), &["safetensors"]),
    (
        "data truncated",
        |s| {
            let bytes = fs::read(s.path("model.safetensors")).unwrap();
            s.write("model.safetensors", &bytes[..bytes.len() - 100])
        },
        &["model.safetensors"],
    ),
    (
        "offset past the end",
        |s| s.header(|h| h["model.norm.weight"]["data_offsets"] = json!([0, 1u64 << 40])),
        &["model.safetensors"],
    ),
    (
        "offsets overlap",
        |s| s.header(|h| h["model.norm.weight"]["data_offsets"] = json!([0, 512])),
        &["model.safetensors"],
    ),
    (
        "offsets backwards",
        |s| s.header(|h| h["model.norm.weight"]["data_offsets"] = json!([512, 0])),
        &["model.safetensors"],
    ),
    (
        "shape overflows",
        |s| s.header(|h| h["model.norm.weight"]["shape"] = json!([1u64 << 40, 1u64 << 40])),
        &["model.safetensors"],
    ),
    (
        "shape transposed",
        |s| s.header(|h| h["model.layers.0.self_attn.k_proj.scales"]["shape"] = json!([4, 128])),
        &["k_proj"],
    ),
    ("dtype unknown", |s| s.header(|h| h["model.norm.weight"]["dtype"] = json!("F7")), &["model.safetensors"]),
    (
        "dtype of another kind",
        |s| s.header(|h| h["model.norm.weight"]["dtype"] = json!("I16")),
        &["model.norm.weight", "I16", "F32, F16 or BF16"],
    ),
    (
        "packed weight as float",
        |s| s.header(|h| h["model.embed_tokens.weight"]["dtype"] = json!("F32")),
        &["model.embed_tokens.weight", "U32"],
    ),
    (
        "tensor renamed",
        |s| {
            s.header(|h| {
                let t = h["model.norm.weight"].take();
                h.as_object_mut().unwrap().remove("model.norm.weight");
                h["model.nrom.weight"] = t
            })
        },
        &["model.norm.weight", "is missing"],
    ),
    (
        "layer left over",
        |s| s.json("config.json", |c| c["num_hidden_layers"] = json!(c["num_hidden_layers"].as_u64().unwrap() - 1)),
        &["model.layers.", "has no place"],
    ),
    (
        "tensor in two shards",
        |s| {
            fs::copy(s.path("model.safetensors"), s.path("model-00001-of-00002.safetensors")).unwrap();
            fs::rename(s.path("model.safetensors"), s.path("model-00002-of-00002.safetensors")).unwrap()
        },
        &["is also in"],
    ),
    (
        "tensor twice in one header",
        |s| {
            let bytes = fs::read(s.path("model.safetensors")).unwrap();
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            let text = header.to_string();
            let twice = format!("{{\"model.norm.weight\":{},{}", header["model.norm.weight"], &text[1..]);
            s.write(
                "model.safetensors",
                [&(twice.len() as u64).to_le_bytes(), twice.as_bytes(), &bytes[8 + length..]].concat(),
            )
        },
        &["model.norm.weight", "twice"],
    ),
    ("index garbage", |s| s.write("model.safetensors.index.json", "{"), &["model.safetensors.index.json"]),
    (
        "index leaves the directory",
        |s| s.write("model.safetensors.index.json", r#"{"weight_map": {"a": "../a.safetensors"}}"#),
        &["weight_map", "../a.safetensors"],
    ),
    // Tokenizer and template.
    ("tokenizer missing", |s| s.remove("tokenizer.json"), &["tokenizer.json"]),
    ("tokenizer truncated", |s| s.write("tokenizer.json", "{\"version\": \"1.0\","), &["tokenizer.json"]),
    ("tokenizer of another format", |s| s.write("tokenizer.json", "{}"), &["tokenizer.json"]),
    ("tokenizer_config garbage", |s| s.write("tokenizer_config.json", "]"), &["tokenizer_config.json"]),
    (
        "generation_config eos a string",
        |s| s.write("generation_config.json", r#"{"eos_token_id": "end"}"#),
        &["generation_config.json", "eos_token_id"],
    ),
    ("template does not compile", |s| s.write("chat_template.jinja", "{% if %}"), &["chat template"]),
    (
        "template refuses",
        |s| s.write("chat_template.jinja", "{{ raise_exception('only poems, please') }}"),
        &["only poems, please"],
    ),
    (
        "template never ends",
        |s| {
            s.write("chat_template.jinja", "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}")
        },
        &["chat template"],
    ),
    ("template renders nothing", |s| s.write("chat_template.jinja", "{# #}"), &["no tokens"]),
    (
        "token beyond the vocabulary",
        |s| {
            s.json("tokenizer.json", |t| {
                let mut big = t["added_tokens"][0].clone();
                big["id"] = json!(70_000);
                big["content"] = json!("<|big|>");
                t["added_tokens"].as_array_mut().unwrap().push(big)
            });
            s.write("chat_template.jinja", "<|big|>")
        },
        &["vocabulary"],
    ),
];

/// Run the program on `root`; its exit code and its stderr.
fn run(root: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::cargo_bin("mlx_lm").unwrap();
    command.arg("--model-root").arg(root).args(["--max-tokens", "1", "--prompt", "Hello"]).args(args);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_unspoiled_checkpoint_runs() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    let (code, stderr) = run(scratch.path(), &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn every_corruption_is_one_clear_line() {
    assert!(CASES.len() >= 40);
    let good = tempfile::tempdir().unwrap();
    unpack_demo(good.path());
    let mut wrong = Vec::new();
    for (name, spoil, expected) in CASES {
        let scratch = tempfile::tempdir().unwrap();
        let spoiled = Spoiled { root: scratch.path().join("model") };
        fs::create_dir(&spoiled.root).unwrap();
        for file in fs::read_dir(good.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), spoiled.root.join(file.file_name())).unwrap();
        }
        spoil(&spoiled);
        let (code, stderr) = run(&spoiled.root, &[]);
        let errors: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("[WARN]")).collect();
        let [line] = errors[..] else {
            wrong.push(format!("{name}: not one line: {stderr}"));
            continue;
        };
        let message = line.strip_prefix("error: ").unwrap_or_default();
        if code != Some(1) || expected.iter().any(|part| !message.contains(part)) {
            wrong.push(format!("{name}: exit code {code:?}, expected {expected:?} in: {line}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

#[test]
fn bad_prompts_are_one_clear_line() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    let latin1 = scratch.path().join("latin1.txt");
    fs::write(&latin1, b"caf\xe9").unwrap();
    let missing = scratch.path().join("nowhere");
    let empty_list = scratch.path().join("empty.json");
    fs::write(&empty_list, "[]").unwrap();
    let no_role = scratch.path().join("no_role.json");
    fs::write(&no_role, r#"[{"content": "x"}]"#).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--prompt-file", &text(&latin1)], &["latin1.txt", "UTF-8", "offset 3"]),
        (&["--prompt-file", &text(&missing)], &["nowhere", "No such file"]),
        (&["--messages", &text(&empty_list)], &["empty.json", "empty"]),
        (&["--messages", &text(&no_role)], &["no_role.json", "message 1", "role"]),
        (&["--messages", &text(&latin1)], &["latin1.txt"]),
        (&["--tools", &text(&latin1), "--prompt", "x"], &["latin1.txt"]),
        (
            &["--prompt", "one two three four five", "--context-size", "6", "--overflow", "error"],
            &["tokens", "holds 6"],
        ),
    ];
    for (args, expected) in cases {
        let output =
            Command::cargo_bin("mlx_lm").unwrap().arg("--model-root").arg(scratch.path()).args(*args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(expected.iter().all(|part| stderr.contains(part)), "{args:?}: {stderr}");
    }
}
