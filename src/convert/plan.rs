//! Which tensors are written, what each is made of, and which file it goes to: all that is known before any of them is read.

use std::collections::HashMap;

use safetensors::Dtype;
use serde_json::json;

use super::config::Config;
use super::recipe::{Choice, QuantizeOptions};
use super::{Change, ConvertOptions, FloatType};
use crate::backend::Packing;
use crate::checkpoint::WeightFile;
use crate::error::{Error, Result};
use crate::models;
use crate::models::config::DecoderConfig;
use crate::tensor_index::TensorEntry;
use crate::tensor_writer::TensorHead;
use crate::watch::Watch;
use crate::weights::Tensor;

/// What is to be done.
pub(super) struct Plan<'f> {
    /// In mlx-lm's order.
    pub outputs: Vec<TensorHead>,
    pub steps: Vec<Step<'f>>,
    /// Numbers of the model, as mlx-lm counts them.
    pub parameters: u64,
    /// Linear layers and embeddings that stay dense since groups do not divide their rows.
    pub indivisible: Vec<String>,
}

/// How tensors of the source become some of the outputs, of which `output` is the first.
pub(super) struct Step<'f> {
    pub work: Work<'f>,
    pub output: usize,
}

/// See [`super::write`].
pub(super) enum Work<'f> {
    /// One tensor, of the same type or cast.
    Copy(Tensor<'f>),
    /// One to three: packed values, scales, biases.
    Quantize(Tensor<'f>, Packing),
    /// Three to one.
    Dequantize { packed: Tensor<'f>, scales: Tensor<'f>, biases: Tensor<'f>, packing: Packing },
}

impl<'f> Work<'f> {
    /// What is read.
    pub fn sources(&self) -> Vec<Tensor<'f>> {
        match *self {
            Work::Copy(tensor) | Work::Quantize(tensor, _) => vec![tensor],
            Work::Dequantize { packed, scales, biases, .. } => vec![packed, scales, biases],
        }
    }
}

/// The tensors of one module, in the order of [`Tensor`]s asked for.
struct Module<'f> {
    path: &'f str,
    tensors: Vec<(&'f str, Tensor<'f>)>,
}

impl<'f> Plan<'f> {
    /// `config` is the source's, and becomes that of the result.
    pub fn new(
        decoder: &DecoderConfig,
        config: &mut Config,
        files: &'f [WeightFile<'f>],
        options: &ConvertOptions,
        watch: &'f mut Watch,
    ) -> Result<Self> {
        let dtype = options.dtype.or_else(|| config.dtype());
        let mut plan = Plan { outputs: vec![], steps: vec![], parameters: 0, indivisible: vec![] };
        let mut quantizer = match &options.change {
            Change::Quantize(options) => Some(Quantizer::new(options, decoder, config)?),
            Change::Dequantize => {
                config.remove_quantization();
                None
            }
            Change::None => None,
        };
        for module in modules(models::tensors(decoder, files, watch)?) {
            let find = |leaf| module.tensors.iter().find(|(name, _)| *name == leaf).map(|(_, tensor)| *tensor);
            let packing = decoder.quantization.as_ref().and_then(|quantization| quantization.of(module.path));
            if let (Some(packed), Some(scales), Some(biases), Some(packing)) =
                (find("weight"), find("scales"), find("biases"), packing)
            {
                plan.parameters += size(packed) * 32 / packing.bits as u64;
                if matches!(options.change, Change::Dequantize) {
                    let shape = [packed.entry.shape[0], packed.entry.shape[1] * 32 / packing.bits as usize];
                    let dtype = cast(scales.entry, dtype);
                    plan.add(Work::Dequantize { packed, scales, biases, packing }, [(packed, dtype, &shape[..])]);
                } else {
                    for tensor in [packed, scales, biases] {
                        plan.copy(tensor, dtype);
                    }
                }
            } else if let Some(weight) = find("weight") {
                plan.parameters += size(weight);
                let chosen = match (&mut quantizer, &weight.entry.shape[..]) {
                    (Some(quantizer), &[rows, columns]) => {
                        quantizer.choose(module.path, columns)?.map(|p| (p, rows, columns))
                    }
                    _ => None,
                };
                match chosen {
                    Some((packing, rows, columns)) => plan.quantize(weight, packing, [rows, columns], dtype),
                    None => plan.copy(weight, dtype),
                }
            }
            for (_, other) in module.tensors.iter().filter(|(leaf, _)| !["weight", "scales", "biases"].contains(leaf)) {
                plan.parameters += size(*other);
                plan.copy(*other, dtype);
            }
        }
        if let Some(quantizer) = quantizer {
            plan.indivisible = quantizer.finish(config)?;
            if !plan.steps.iter().any(|step| matches!(step.work, Work::Quantize(..))) {
                log::warn!("no layer was quantized; those that are already can be made floats before");
            }
        }
        if matches!(options.change, Change::Dequantize) && decoder.quantization.is_none() {
            log::warn!("no layer is quantized, so none was made floats");
        }
        Ok(plan)
    }

    fn add<const N: usize>(&mut self, work: Work<'f>, outputs: [(Tensor, Dtype, &[usize]); N]) {
        self.steps.push(Step { work, output: self.outputs.len() });
        let head = |(named, dtype, shape): (Tensor, Dtype, &[usize])| TensorHead {
            name: named.entry.name.clone(),
            dtype,
            shape: shape.to_vec(),
        };
        self.outputs.extend(outputs.map(head));
    }

    fn copy(&mut self, tensor: Tensor<'f>, dtype: Option<FloatType>) {
        self.add(Work::Copy(tensor), [(tensor, cast(tensor.entry, dtype), &tensor.entry.shape)]);
    }

    fn quantize(
        &mut self,
        weight: Tensor<'f>,
        packing: Packing,
        [rows, columns]: [usize; 2],
        dtype: Option<FloatType>,
    ) {
        let dtype = cast(weight.entry, dtype);
        let groups = [rows, columns / packing.group_size as usize];
        let words = [rows, columns / 32 * packing.bits as usize];
        let first = self.outputs.len();
        self.add(
            Work::Quantize(weight, packing),
            [(weight, Dtype::U32, &words[..]), (weight, dtype, &groups[..]), (weight, dtype, &groups[..])],
        );
        for (output, leaf) in self.outputs[first + 1..].iter_mut().zip(["scales", "biases"]) {
            output.name = weight.entry.name.strip_suffix("weight").expect("it is one").to_owned() + leaf;
        }
    }

    /// Bytes that are read.
    pub fn source_bytes(&self) -> u64 {
        let bytes = |tensor: Tensor| tensor.entry.bytes.end - tensor.entry.bytes.start;
        self.steps.iter().flat_map(|step| step.work.sources()).map(bytes).sum()
    }

    /// The outputs of each file, none of more than `most` bytes unless one tensor has more.
    pub fn shards(&self, most: u64) -> Vec<Vec<usize>> {
        let mut shards: Vec<Vec<usize>> = Vec::new();
        let mut bytes = 0;
        for (i, output) in self.outputs.iter().enumerate() {
            match shards.last_mut() {
                Some(shard) if bytes + output.nbytes() <= most => shard.push(i),
                _ => {
                    shards.push(vec![i]);
                    bytes = 0;
                }
            }
            bytes += output.nbytes();
        }
        shards
    }
}

/// The type that a tensor is written in: floats are cast.
fn cast(entry: &TensorEntry, dtype: Option<FloatType>) -> Dtype {
    match dtype {
        Some(dtype) if matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) => dtype.dtype(),
        _ => entry.dtype,
    }
}

fn size(tensor: Tensor) -> u64 {
    tensor.entry.shape.iter().product::<usize>() as u64
}

/// The modules in mlx-lm's order, in which config.json lists them and files are filled: in a layer attention comes first, then
/// the MLP with `down_proj` before `up_proj`, then norms; otherwise as layers take them.
fn modules(tensors: Vec<Tensor>) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    for tensor in tensors {
        let (path, leaf) = tensor.entry.name.rsplit_once('.').unwrap_or(("", &tensor.entry.name));
        match modules.last_mut() {
            Some(module) if module.path == path => module.tensors.push((leaf, tensor)),
            _ => modules.push(Module { path, tensors: vec![(leaf, tensor)] }),
        }
    }
    let layer_of = |path: &str| path.split('.').find_map(|part| part.parse::<usize>().ok());
    let (mut places, mut place, mut last) = (HashMap::new(), 0, None);
    for module in &modules {
        let layer = layer_of(module.path);
        place += usize::from(layer.is_none() || layer != last);
        places.insert(module.path, place);
        last = layer;
    }
    let rank = |path: &str| match path {
        _ if path.contains(".self_attn.") => 0,
        _ if path.ends_with(".mlp.up_proj") => 2,
        _ if path.contains(".mlp.") => 1,
        _ => 3,
    };
    modules.sort_by_key(|module| (places[module.path], rank(module.path)));
    modules
}

/// Decides module by module, and keeps account.
struct Quantizer<'o> {
    options: &'o QuantizeOptions,
    default: Packing,
    layers: i32,
    /// config.json's `model_type`.
    family: String,
    /// The source is quantized in part: what is added gets entries of its own.
    fine_grained: bool,
    entries: Vec<(String, serde_json::Value)>,
    indivisible: Vec<String>,
    used: Vec<bool>,
}

impl<'o> Quantizer<'o> {
    fn new(options: &'o QuantizeOptions, decoder: &DecoderConfig, config: &mut Config) -> Result<Self> {
        let default = options.default_packing()?;
        let fine_grained = config.is_quantized();
        if !fine_grained {
            config.set_quantization(default);
        }
        Ok(Quantizer {
            options,
            default,
            layers: decoder.num_hidden_layers,
            family: config.model_type().to_owned(),
            fine_grained,
            entries: Vec::new(),
            indivisible: Vec::new(),
            used: vec![false; options.overrides.len()],
        })
    }

    /// How a module with rows of so many numbers is packed, if it is.
    fn choose(&mut self, module: &str, columns: usize) -> Result<Option<Packing>> {
        let (choice, by) = self.options.choose(module, self.layers, &self.family);
        if let Some(by) = by {
            self.used[by] = true;
        }
        let divides = |packing: Packing| columns.is_multiple_of(packing.group_size as usize);
        if !divides(self.default) && by.is_none() {
            self.indivisible.push(module.to_owned());
            return Ok(None);
        }
        let Packing { group_size, bits } = self.default;
        let (packing, entry) = match choice {
            Choice::Dense => return Ok(None),
            Choice::Default if self.fine_grained => {
                (self.default, Some(json!({"group_size": group_size, "bits": bits, "mode": "affine"})))
            }
            Choice::Default => (self.default, None),
            Choice::Own(packing, entry) => (packing, Some(entry)),
        };
        if !divides(packing) {
            let found = format!("groups of {} for {module}, whose rows have {columns} numbers", packing.group_size);
            return Err(Error::setting("q_override", found, "a group size that divides them, or none"));
        }
        self.entries.extend(entry.map(|entry| (module.to_owned(), entry)));
        Ok(Some(packing))
    }

    /// Write the entries into `config`, and tell what could not be quantized.
    fn finish(self, config: &mut Config) -> Result<Vec<String>> {
        if let Some(unused) = self.used.iter().position(|used| !used) {
            let found = format!("{:?}, which decides for no layer", self.options.pattern(unused));
            return Err(Error::setting(
                "q_override",
                found,
                "a regular expression that matches the path of a linear layer or an embedding, such as model.layers.0.mlp.down_proj",
            ));
        }
        for (module, entry) in self.entries {
            config.set_module(&module, entry);
        }
        Ok(self.indivisible)
    }
}
