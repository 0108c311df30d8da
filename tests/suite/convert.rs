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
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
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
            let head = |(name, shape): (&String, &Vec<usize>)| TensorHead { name: name.clone(), dtype, shape: shape.clone() };
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
        match run(&scratch.path().join(&case.source), &folder, &case.asked.options()) {
            Err(Error::Unsupported { what, .. }) if what.starts_with("model_type") => continue,
            converted => drop(converted.unwrap_or_else(|error| panic!("{name}: {error}"))),
        }
        assert_eq!(fs::read_to_string(folder.join("config.json")).unwrap(), case.config, "{name}");
        let found = hashes(&folder);
        for (tensor, hash) in &case.tensors {
            assert_eq!(found.get(tensor), Some(hash), "{name}: {tensor}");
        }
        assert_eq!(found.len(), case.tensors.len(), "{name}");
        let index = fs::read(folder.join("model.safetensors.index.json")).unwrap();
        assert_eq!(hex::encode(Sha256::digest(&index)), case.index, "{name}: {}", String::from_utf8_lossy(&index));
        compared += 1;
    }
    assert!(compared >= 44, "only {compared} cases");
}
