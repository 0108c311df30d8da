//! `mlx_lm convert` gives what mlx-lm's converter gives, to the bit; and gives it whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlx_lm::convert::{Change, ConvertOptions, Converted, FloatType, Override, QuantizeOptions, Recipe, convert};
use mlx_lm::tensor_writer::{TensorHead, TensorWriter};
use mlx_lm::{Checkpoint, Error, Watch};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::fixture;

/// `tests/fixtures/make_conversions.py` writes it.
#[derive(Deserialize)]
struct Conversions {
    sources: BTreeMap<String, Source>,
    cases: Map<String, Value>,
}

#[derive(Deserialize)]
struct Source {
    dtype: String,
    config: Map<String, Value>,
    #[serde(default = "one")]
    shards: usize,
    generation_config: Option<Value>,
    tensors: BTreeMap<String, Vec<usize>>,
}

fn one() -> usize {
    1
}

#[derive(Deserialize)]
struct Case {
    /// A source, or a case whose result is the source.
    source: String,
    asked: Asked,
    config: String,
    index: String,
    tensors: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    quantize: bool,
    bits: Option<i32>,
    group_size: Option<i32>,
    recipe: Option<String>,
    /// Regular expression, bits and group size.
    overrides: Vec<(String, Option<i32>, Option<i32>)>,
    dequantize: bool,
    dtype: Option<String>,
    shard_size: u64,
}

impl Default for Asked {
    fn default() -> Self {
        Asked {
            quantize: false,
            bits: None,
            group_size: None,
            recipe: None,
            overrides: Vec::new(),
            dequantize: false,
            dtype: None,
            shard_size: 5 << 30,
        }
    }
}

impl Asked {
    fn options(&self) -> ConvertOptions {
        let parse = |(regex, bits, group): &(String, Option<i32>, Option<i32>)| {
            let packing = bits.map_or("none".into(), |bits| format!("{bits}:{}", group.unwrap()));
            Override::parse(&format!("{regex}={packing}")).unwrap()
        };
        let change = match (self.quantize, self.dequantize) {
            (true, _) => Change::Quantize(QuantizeOptions {
                bits: self.bits,
                group_size: self.group_size,
                recipe: self.recipe.as_deref().map(|name| Recipe::from_name(name).unwrap()),
                overrides: self.overrides.iter().map(parse).collect(),
            }),
            (false, true) => Change::Dequantize,
            (false, false) => Change::None,
        };
        let dtype = self.dtype.as_deref().map(|name| FloatType::from_name(name).unwrap());
        ConvertOptions { change, dtype, shard_size: self.shard_size, overwrite: false }
    }
}

/// As `numbers` in `make_conversions.py`: SplitMix64 from the name's FNV-1a hash on.
fn numbers(name: &str) -> impl Iterator<Item = u64> {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (1u64..).map(move |i| {
        let x = hash.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    })
}

/// As `tensor` there.
fn bytes(name: &str, count: usize, dtype: Dtype) -> Vec<u8> {
    let (bits, fraction, lowest) = match dtype {
        Dtype::F32 => (32, 23, 118),
        Dtype::BF16 => (16, 7, 118),
        _ => (16, 10, 6),
    };
    let number = |x: u64| match (x >> 40) % 64 {
        0 => 0,
        _ => x & (1 << (bits - 1) | ((1 << fraction) - 1)) | ((x >> 48) % 6 + lowest) << fraction,
    };
    numbers(name).take(count).flat_map(|x| number(x).to_le_bytes().into_iter().take(bits / 8)).collect()
}

impl Source {
    fn write(&self, folder: &Path) {
        fs::create_dir(folder).unwrap();
        let dtype = match self.dtype.as_str() {
            "float32" => Dtype::F32,
            "float16" => Dtype::F16,
            _ => Dtype::BF16,
        };
        for shard in 0..self.shards {
            let part = || self.tensors.iter().skip(shard).step_by(self.shards);
            let head =
                |(name, shape): (&String, &Vec<usize>)| TensorHead { name: name.clone(), dtype, shape: shape.clone() };
            let heads: Vec<_> = part().map(head).collect();
            let name = match self.shards {
                1 => "model.safetensors".to_owned(),
                shards => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
            };
            let writer = TensorWriter::create(&folder.join(name), &heads, Default::default(), false).unwrap();
            for (i, (name, shape)) in part().enumerate() {
                writer.write(i, 0, &bytes(name, shape.iter().product(), dtype)).unwrap();
            }
            writer.finish().unwrap();
        }
        fs::write(folder.join("config.json"), serde_json::to_string(&self.config).unwrap()).unwrap();
        if let Some(generation) = &self.generation_config {
            fs::write(folder.join("generation_config.json"), generation.to_string()).unwrap();
        }
    }
}

fn run(source: &Path, target: &Path, options: &ConvertOptions) -> mlx_lm::Result<Converted> {
    convert(&Checkpoint::open(source)?, target, options, &mut Watch::none())
}

/// Type, shape and hash of each tensor, as the fixture has them.
fn hashes(folder: &Path) -> BTreeMap<String, String> {
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let file = fs::read(&entry).unwrap();
        for (name, view) in SafeTensors::deserialize(&file).unwrap().tensors() {
            let dtype = match view.dtype() {
                Dtype::F32 => "float32",
                Dtype::F16 => "float16",
                Dtype::BF16 => "bfloat16",
                Dtype::U32 => "uint32",
                other => panic!("{other:?}"),
            };
            let hash = hex::encode(Sha256::digest(view.data()));
            let hash = format!("{dtype} {:?} {}", view.shape(), &hash[..16]);
            assert!(hashes.insert(name, hash).is_none(), "it is twice");
        }
    }
    hashes
}

fn conversions() -> Conversions {
    serde_json::from_slice(&fs::read(fixture("conversions.json")).unwrap()).unwrap()
}

/// One of the fixture's sources, in a new folder.
fn source(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    conversions().sources[name].write(&folder.path().join("source"));
    folder
}

fn quantize(options: QuantizeOptions) -> ConvertOptions {
    ConvertOptions { change: Change::Quantize(options), ..ConvertOptions::default() }
}

#[test]
fn results_are_those_of_mlx_lm() {
    let Conversions { sources, cases } = conversions();
    let scratch = tempfile::tempdir().unwrap();
    for (name, source) in &sources {
        source.write(&scratch.path().join(name));
    }
    let mut compared = 0;
    for (name, case) in cases {
        let case: Case = serde_json::from_value(case).unwrap();
        let folder = scratch.path().join(&name);
        run(&scratch.path().join(&case.source), &folder, &case.asked.options())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        let differs = config.lines().zip(case.config.lines()).find(|(found, expected)| found != expected);
        assert!(config == case.config, "{name}: config.json is not mlx-lm's: {differs:?}");
        let found = hashes(&folder);
        for (tensor, hash) in &case.tensors {
            assert_eq!(found.get(tensor), Some(hash), "{name}: {tensor}");
        }
        assert_eq!(found.len(), case.tensors.len(), "{name}");
        let index = fs::read(folder.join("model.safetensors.index.json")).unwrap();
        assert_eq!(hex::encode(Sha256::digest(&index)), case.index, "{name}: {}", String::from_utf8_lossy(&index));
        compared += 1;
    }
    assert!(compared >= 64, "only {compared} cases");
}

#[test]
fn files_of_any_size_hold_the_same_tensors() {
    let folder = source("llama-bf16");
    let path = |name: &str| folder.path().join(name);
    let options = quantize(QuantizeOptions::default());
    run(&path("source"), &path("whole"), &options).unwrap();
    for (name, shard_size) in [("halves", 100_000), ("each", 1)] {
        run(&path("source"), &path(name), &ConvertOptions { shard_size, ..options.clone() }).unwrap();
        assert_eq!(hashes(&path(name)), hashes(&path("whole")));
        let files = fs::read_dir(path(name)).unwrap().map(|entry| entry.unwrap());
        let weights: Vec<_> =
            files.filter(|file| file.file_name().to_str().unwrap().ends_with(".safetensors")).collect();
        assert!(
            weights.len() >= 2 && weights.iter().all(|file| file.metadata().unwrap().len() < 110_000),
            "{weights:?}"
        );
        // It is found through its index, and is the same model.
        let back = ConvertOptions { change: Change::Dequantize, ..ConvertOptions::default() };
        run(&path(name), &path(&format!("{name}-back")), &back).unwrap();
        assert_eq!(hashes(&path(&format!("{name}-back"))).len(), hashes(&path("source")).len());
    }
}

#[test]
fn a_pack_is_the_directory_packed() {
    let folder = source("qwen3-tied");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("source/LICENSE"), "do as you like").unwrap();
    let options = quantize(QuantizeOptions { bits: Some(3), ..QuantizeOptions::default() });
    run(&path("source"), &path("small"), &options).unwrap();
    run(&path("source"), &path("small.mlxpack"), &options).unwrap();
    mlx_lm::mlxpack::Pack::open(path("small.mlxpack"))
        .unwrap()
        .extract(&path("extracted"), None, false, &mut Watch::none())
        .unwrap();
    let names = |folder: &str| {
        let entries = fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names("extracted"), names("small"));
    for name in names("small") {
        assert!(
            fs::read(path("small").join(&name)).unwrap() == fs::read(path("extracted").join(&name)).unwrap(),
            "{name:?}"
        );
    }
    assert_eq!(names(""), ["extracted", "small", "small.mlxpack", "source"].map(Into::into).into());
}

#[test]
fn a_stopped_conversion_leaves_nothing() {
    let folder = source("llama-bf16");
    let checkpoint = Checkpoint::open(folder.path().join("source")).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for name in ["model", "model.mlxpack"] {
        for share in [0, 2, 1] {
            stop.store(false, std::sync::atomic::Ordering::Relaxed);
            let mut seen = 0;
            let on_progress = &mut |done: u64, total: u64| {
                assert!(done >= seen && done <= total);
                seen = done;
                stop.store(share == 0 || done >= total / share, std::sync::atomic::Ordering::Relaxed);
            };
            let watch = &mut Watch { on_progress, stop: &stop };
            let converted = convert(&checkpoint, &folder.path().join(name), &ConvertOptions::default(), watch);
            assert!(matches!(converted, Err(Error::Interrupted)), "{name}, 1/{share}: {converted:?}");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "{name}, 1/{share}");
        }
    }
}

#[test]
fn what_stands_in_the_way_stays_unless_it_may_be_replaced() {
    let folder = source("llama-f32");
    let path = |name: &str| folder.path().join(name);
    let options = ConvertOptions::default();
    let force = ConvertOptions { overwrite: true, ..ConvertOptions::default() };
    run(&path("source"), &path("model"), &options).unwrap();
    assert!(matches!(run(&path("source"), &path("model"), &options), Err(Error::Exists(_))));
    fs::write(path("model/diary.odt"), "mine").unwrap();
    let problem = run(&path("source"), &path("model"), &force).unwrap_err().to_string();
    assert!(problem.contains("diary.odt"), "{problem}");
    fs::remove_file(path("model/diary.odt")).unwrap();
    fs::write(path("model/old.json"), "{}").unwrap();
    run(&path("source"), &path("model"), &force).unwrap();
    assert!(!path("model/old.json").exists() && path("model/config.json").exists());
    let problem = run(&path("source"), &path("source/../source"), &force).unwrap_err().to_string();
    assert!(problem.contains("is the model that is converted"), "{problem}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}

#[test]
fn options_that_do_not_fit_the_model_are_told() {
    let folder = source("llama-narrow"); // rows of 96, and of 64 for down_proj and o_proj
    let path = |name: &str| folder.path().join(name);
    let problem = |options| {
        let problem = run(&path("source"), &path("model"), &quantize(options)).unwrap_err().to_string();
        assert!(!path("model").exists());
        problem
    };
    let with =
        |text: &str| QuantizeOptions { overrides: vec![Override::parse(text).unwrap()], ..QuantizeOptions::default() };
    assert!(problem(with("no_such=8:64")).contains("decides for no layer"));
    assert!(problem(with("norm=8:64")).contains("decides for no layer"));
    assert!(
        problem(with("q_proj=8:64")).contains("groups of 64 for model.layers.0.self_attn.q_proj, whose rows have 96")
    );
    assert!(problem(QuantizeOptions { bits: Some(7), ..QuantizeOptions::default() }).contains("q_bits is 7"));
    assert!(
        problem(QuantizeOptions { group_size: Some(16), ..QuantizeOptions::default() }).contains("q_group_size is 16")
    );
    let converted = run(&path("source"), &path("model"), &quantize(with("q_proj=8:32"))).unwrap();
    assert!(converted.indivisible.contains(&"model.layers.0.self_attn.k_proj".to_owned()));
    assert!(!converted.indivisible.contains(&"model.layers.0.self_attn.q_proj".to_owned()));
}

#[test]
fn texts_come_along_and_what_is_not_the_models_does_not() {
    let folder = source("llama-f32");
    let path = |name: &str| folder.path().join("source").join(name);
    let texts = [
        "LICENSE",
        "USE_POLICY.md",
        "README.md",
        "chat_template.jinja",
        "tokenizer.json",
        "merges.txt",
        "x.py",
        "additional_chat_templates/tool_use.jinja",
    ];
    fs::create_dir(path("additional_chat_templates")).unwrap();
    for name in texts {
        fs::write(path(name), name).unwrap();
    }
    fs::write(path("tokenizer.model"), [0xff, 0, 1]).unwrap();
    for name in ["pytorch_model.bin", ".gitattributes", "consolidated.safetensors", "pytorch_model.bin.index.json"] {
        fs::write(path(name), name).unwrap();
    }
    let target = folder.path().join("model");
    run(&path(""), &target, &ConvertOptions::default()).unwrap();
    for name in texts {
        assert_eq!(fs::read_to_string(target.join(name)).unwrap(), name);
    }
    assert_eq!(fs::read(target.join("tokenizer.model")).unwrap(), [0xff, 0, 1]);
    let made = ["config.json", "model.safetensors", "model.safetensors.index.json"].len();
    assert_eq!(fs::read_dir(&target).unwrap().count(), texts.len() + 1 + made);

    let pack = folder.path().join("model.mlxpack");
    run(&path(""), &pack, &ConvertOptions::default()).unwrap();
    let pack = Checkpoint::open(&pack).unwrap();
    for name in ["LICENSE", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"] {
        assert_eq!(pack.text(name).unwrap().as_deref(), Some(name));
    }

    // It is replaced where nothing else is lost.
    let again = || run(&path(""), &target, &ConvertOptions { overwrite: true, ..ConvertOptions::default() });
    assert!(again().unwrap_err().to_string().contains("\"x.py\""));
    fs::remove_file(target.join("x.py")).unwrap();
    again().unwrap();
    fs::remove_file(target.join("x.py")).unwrap();
    for name in ["notes.txt", "additional_chat_templates/notes.txt"] {
        fs::write(target.join(name), "mine").unwrap();
        assert!(again().unwrap_err().to_string().contains(name));
        fs::remove_file(target.join(name)).unwrap();
    }
    fs::remove_file(target.join("config.json")).unwrap();
    assert!(again().unwrap_err().to_string().contains("has no config.json"));
}

/// 400 MB of weights, of which the largest has 205 MB, in less than a quarter of that.
#[test]
fn memory_holds_pieces_of_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut large = conversions().sources.remove("llama-f32").unwrap();
    large.config.insert("vocab_size".into(), 400_000.into());
    large.config.insert("torch_dtype".into(), "float16".into());
    let head = |(name, shape): (&String, &Vec<usize>)| {
        let shape = shape.iter().map(|&size| if size == 96 { 400_000 } else { size }).collect();
        TensorHead { name: name.clone(), dtype: Dtype::F32, shape }
    };
    let heads: Vec<_> = large.tensors.iter().map(head).collect();
    fs::create_dir(path("source")).unwrap();
    // A hole in the file, which is zeros and takes no place on the disk.
    let weights = path("source/model.safetensors");
    TensorWriter::create(&weights, &heads, Default::default(), false).unwrap().finish().unwrap();
    fs::write(path("source/config.json"), serde_json::to_string(&large.config).unwrap()).unwrap();
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
    program
        .args(["convert", "--model-root", "source", "--output", "model", "-q", "--q-bits", "2"])
        .current_dir(&folder);
    let output = program.env("RUST_LOG", "info").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let peak = stderr
        .split("peak memory: ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or_else(|| panic!("{stderr}"));
    let peak: u64 = peak.parse().unwrap();
    assert!(fs::metadata(weights).unwrap().len() > 400_000_000);
    assert!((1 << 20..100_000_000).contains(&peak), "{peak}");
}

#[test]
fn the_command_line_says_what_is_wrong() {
    let folder = source("llama-f32");
    let run = |args: &[&str]| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
        program.args(["convert", "--model-root", "source"]).args(args).current_dir(&folder);
        let output = program.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let refused = |args: &[&str], expected: &str| {
        let (code, said) = run(&[&["--output", "x"], args].concat());
        assert!(code == Some(2) && said.contains(expected), "{args:?}: {code:?} {said}");
    };
    refused(&["--q-bits", "4"], "--quantize");
    refused(&["-q", "--dequantize"], "cannot be used with");
    refused(&["-q", "--q-bits", "7"], "error: --q-bits is 7, expected one of 2, 3, 4, 5, 6, 8");
    refused(&["-q", "--quant-predicate", "mixed_1_2"], "mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6");
    refused(
        &["-q", "--q-override", "lm_(head=8:64"],
        "error: --q-override is \"lm_(head=8:64\", expected a regular expression",
    );
    refused(&["-q", "--q-override", "nothing=8:64"], "error: --q-override is \"nothing\", which decides for no layer");
    refused(&["--dtype", "int8"], "bfloat16, float16, float32");
    refused(&["--shard-size", "0"], "error: --shard-size is 0, expected at least one byte");
    let (code, said) = run(&["--output", "source"]);
    assert!(code == Some(1) && said.contains("source: is the model that is converted"), "{said}");
    let (code, said) = run(&["--output", "no/such/x"]);
    assert!(code == Some(1) && said.contains("no/such: No such file"), "{said}");

    let (code, said) = run(&["--output", "x", "-q", "--q-bits", "8", "--q-override", "lm_head=none"]);
    assert!(code == Some(0) && said.contains("bits each on average") && said.contains("Converted to \"x\""), "{said}");
    let (code, said) = run(&["--output", "x", "-q"]);
    assert!(code == Some(1) && said.contains("error: x: exists already; --force replaces it"), "{said}");
    assert_eq!(run(&["--output", "x", "-q", "--force"]).0, Some(0));
    let (code, said) = run(&["--output", "y", "--dequantize"]);
    assert!(code == Some(0) && said.contains("no layer is quantized"), "{said}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
}

/// Catches: null that passes for a quantization.
#[test]
fn null_is_no_quantization() {
    let folder = source("llama-f32");
    let path = |name: &str| folder.path().join(name);
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fs::read(path("source/config.json")).unwrap()).unwrap();
    config.insert("quantization".into(), Value::Null);
    config.insert("quantization_config".into(), Value::Null);
    fs::write(path("source/config.json"), Value::Object(config).to_string()).unwrap();
    run(&path("source"), &path("small"), &quantize(QuantizeOptions::default())).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(path("small/config.json")).unwrap()).unwrap();
    let expected = serde_json::json!({"group_size": 64, "bits": 4, "mode": "affine"});
    assert_eq!((&config["quantization"], &config["quantization_config"]), (&expected, &expected));
    Checkpoint::open(path("small")).unwrap().require_model().unwrap();
}
