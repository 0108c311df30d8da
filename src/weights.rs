//! A checkpoint's tensors by name, each taken exactly once with its shape and type checked.
//!
//! Models are built from these, never constructed and then overwritten, so a tensor that is missing, misshapen or
//! left over cannot go unnoticed. Format: <https://huggingface.co/docs/safetensors>.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use mlx_rs::{Array, Dtype};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, TensorView};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::checkpoint::WeightFile;
use crate::error::{Error, Result};
use crate::mlx_rs_patch::array_from_bytes;

/// All tensors of a checkpoint that no layer has taken yet.
pub struct Weights<'f> {
    tensors: RefCell<BTreeMap<String, Tensor<'f>>>,
    total_bytes: usize,
    taken_bytes: RefCell<usize>,
    on_progress: Box<dyn Fn(usize, usize) + 'f>,
    /// Where missing tensors are reported against.
    origin: PathBuf,
}

struct Tensor<'f> {
    file: &'f WeightFile,
    view: TensorView<'f>,
}

/// What a tensor may hold.
#[derive(Clone, Copy)]
pub enum Kind {
    /// f32, f16 or bf16.
    Float,
    /// Quantized values, packed into u32.
    Packed,
}

impl<'f> Weights<'f> {
    /// Read the headers of `files`. `on_progress` is told the bytes taken so far and in all, as layers take tensors.
    ///
    /// # Errors
    /// When a file is not valid safetensors, or two files hold a tensor of one name.
    pub fn new(files: &'f [WeightFile], on_progress: impl Fn(usize, usize) + 'f) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut total_bytes = 0;
        for file in files {
            let parsed = SafeTensors::deserialize(file.bytes())
                .map_err(|e| Error::malformed(&file.path, format!("not a valid safetensors file: {e}")))?;
            if let Some(name) = repeated_name(file.bytes()) {
                return Err(tensor_error(&file.path, &name, "is twice in this file".into()));
            }
            for (name, view) in parsed.tensors() {
                total_bytes += view.data().len();
                if let Some(first) = tensors.insert(name.clone(), Tensor { file, view }) {
                    return Err(tensor_error(&file.path, &name, format!("is also in {}", first.file.path.display())));
                }
            }
        }
        Ok(Weights {
            tensors: tensors.into(),
            total_bytes,
            taken_bytes: 0.into(),
            on_progress: Box::new(on_progress),
            origin: files.first().map_or_else(PathBuf::new, |f| f.path.clone()),
        })
    }

    /// The names below `name`: `weights.scope("model").get("norm.weight", …)`.
    pub fn scope(&self, name: &str) -> Scope<'_, 'f> {
        Scope { weights: self, prefix: name.to_owned() }
    }

    /// Declare tensors that a checkpoint may hold without a layer taking them.
    pub fn ignore(&self, unused: impl Fn(&str) -> bool) {
        self.tensors.borrow_mut().retain(|name, _| !unused(name));
    }

    /// # Errors
    /// When a tensor was taken by no layer; the message names it.
    pub fn finish(self) -> Result<()> {
        let tensors = self.tensors.into_inner();
        match tensors.first_key_value() {
            None => Ok(()),
            Some((name, tensor)) => Err(tensor_error(
                &tensor.file.path,
                name,
                format!(
                    "has no place in the model that config.json describes ({} such tensor{})",
                    tensors.len(),
                    if tensors.len() == 1 { "" } else { "s" }
                ),
            )),
        }
    }

    fn take(&self, name: &str, shape: &[i32], kind: Kind) -> Result<Array> {
        let expected = match kind {
            Kind::Float => "F32, F16 or BF16",
            Kind::Packed => "U32 (packed quantized values)",
        };
        let Some(Tensor { file, view }) = self.tensors.borrow_mut().remove(name) else {
            return Err(tensor_error(&self.origin, name, format!("is missing, expected {shape:?} of {expected}")));
        };
        let dtype = match (kind, view.dtype()) {
            (Kind::Float, FileDtype::F32) => Dtype::Float32,
            (Kind::Float, FileDtype::F16) => Dtype::Float16,
            (Kind::Float, FileDtype::BF16) => Dtype::Bfloat16,
            (Kind::Packed, FileDtype::U32) => Dtype::Uint32,
            (_, found) => {
                return Err(tensor_error(&file.path, name, format!("is of type {found:?}, expected {expected}")));
            }
        };
        if !view.shape().iter().copied().eq(shape.iter().map(|&d| d as usize)) {
            return Err(tensor_error(
                &file.path,
                name,
                format!("has shape {:?}, expected {shape:?} from config.json", view.shape()),
            ));
        }
        let array = array_from_bytes(view.data(), shape, dtype);
        file.release(view.data());
        let mut taken = self.taken_bytes.borrow_mut();
        *taken += view.data().len();
        (self.on_progress)(*taken, self.total_bytes);
        Ok(array)
    }
}

/// The tensors below one name, as a layer sees them.
#[derive(Clone)]
pub struct Scope<'w, 'f> {
    weights: &'w Weights<'f>,
    prefix: String,
}

impl<'w, 'f> Scope<'w, 'f> {
    /// The names below `name` within this scope.
    pub fn scope(&self, name: impl std::fmt::Display) -> Scope<'w, 'f> {
        Scope { weights: self.weights, prefix: self.full(name) }
    }

    /// The path of the module that this scope is about, as config.json's per-layer settings spell it.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    /// Whether the checkpoint holds `name` and no layer took it.
    pub fn has(&self, name: &str) -> bool {
        self.weights.tensors.borrow().contains_key(&self.full(name))
    }

    /// The shape of `name` in its file, when it is there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.tensors.borrow().get(&self.full(name)).map(|t| t.view.shape().to_vec())
    }

    /// Take the tensor `name`, which must have this shape and hold this kind of number.
    ///
    /// # Errors
    /// When it is missing, or its shape or type is another; the message says both.
    pub fn get(&self, name: &str, shape: &[i32], kind: Kind) -> Result<Array> {
        self.weights.take(&self.full(name), shape, kind)
    }

    /// An error about the tensor `name` of this scope.
    pub fn error(&self, name: &str, problem: impl Into<String>) -> Error {
        tensor_error(&self.weights.origin, &self.full(name), problem.into())
    }

    fn full(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

/// A name that a valid file's header holds twice; `safetensors` keeps one of the two.
fn repeated_name(file: &[u8]) -> Option<String> {
    let (length, rest) = file.split_first_chunk()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let Names(names) = serde_json::from_slice(header).ok()?;
    let mut seen = HashSet::new();
    names.into_iter().find(|name| !seen.insert(name.clone()))
}

/// The keys of a JSON object, repetitions included.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

fn tensor_error(path: &Path, tensor: &str, problem: String) -> Error {
    Error::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), problem }
}
