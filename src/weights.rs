//! A checkpoint's tensors by name, each taken exactly once with its shape and type checked.
//!
//! Models are built from these, never constructed and then overwritten, so a tensor that is missing, misshapen or
//! left over cannot go unnoticed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use mlx_rs::{Array, Dtype};
use safetensors::Dtype as FileDtype;

use crate::checkpoint::WeightFile;
use crate::error::{Error, Result};
use crate::mlx_rs_patch::distributed::Group;
use crate::ops;
use crate::tensor_index::TensorEntry;
use crate::watch::Watch;

/// All tensors of a checkpoint that no layer has taken yet.
pub struct Weights<'f> {
    tensors: RefCell<BTreeMap<&'f str, Tensor<'f>>>,
    taken: RefCell<Vec<Tensor<'f>>>,
    progress: RefCell<Progress<'f>>,
    /// Where missing tensors are reported against.
    origin: PathBuf,
    /// Where there are no files, what is asked for.
    record: Option<Record>,
    /// Those among whom split tensors are shared out.
    group: Option<Group>,
    /// Whether tensors are only checked.
    headers_only: bool,
}

/// What the ranks of a group have of a tensor, as `mlx.nn.layers.distributed.shard_linear` shares them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// All of it.
    Whole,
    /// Each its share of the first dimension: "all to sharded".
    Outputs,
    /// Each its share of the last dimension, so that what they compute must be summed: "sharded to all".
    Inputs,
}

impl Split {
    /// How many ranks can have so many units in equal shares, for messages.
    pub(crate) fn possible_sizes(units: i32) -> String {
        let sizes: Vec<String> = (1..=units).filter(|size| units % size == 0).map(|size| size.to_string()).collect();
        sizes.join(", ")
    }
}

/// What a model asks of its weights: the one description of its architecture.
struct Record {
    is_quantized: bool,
    asked: RefCell<Vec<TensorEntry>>,
}

struct Progress<'f> {
    taken_bytes: u64,
    total_bytes: u64,
    watch: Watch<'f>,
}

/// A tensor and the file that holds it.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Tensor<'f> {
    pub file: &'f WeightFile<'f>,
    pub entry: &'f TensorEntry,
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
    /// `watch` is told the bytes taken, as layers take tensors.
    ///
    /// # Errors
    /// When two files hold a tensor of one name, or `watch` stops it.
    pub fn new(files: &'f [WeightFile<'f>], watch: &'f mut Watch) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut total_bytes = 0;
        for file in files {
            for entry in &file.index.tensors {
                total_bytes += entry.bytes.end - entry.bytes.start;
                if let Some(Tensor { file: first, .. }) = tensors.insert(entry.name.as_str(), Tensor { file, entry }) {
                    let problem = format!("is also in {}", first.path.display());
                    return Err(Error::tensor(&file.path, &entry.name, problem));
                }
            }
        }
        watch.advance(0, total_bytes)?;
        Ok(Weights {
            tensors: tensors.into(),
            taken: RefCell::default(),
            progress: Progress { taken_bytes: 0, total_bytes, watch: watch.reborrow() }.into(),
            origin: files.first().map_or_else(PathBuf::new, |f| f.path.clone()),
            record: None,
            group: None,
            headers_only: false,
        })
    }

    /// Weights of no file, which have whatever is asked for and keep a record of it: built from them, a model is a description
    /// of its tensors. `is_quantized` says how linear layers and embeddings find themselves.
    pub fn recording(is_quantized: bool, watch: &'f mut Watch) -> Self {
        Weights {
            tensors: RefCell::default(),
            taken: RefCell::default(),
            progress: Progress { taken_bytes: 0, total_bytes: 0, watch: watch.reborrow() }.into(),
            origin: PathBuf::new(),
            record: Some(Record { is_quantized, asked: RefCell::default() }),
            group: None,
            headers_only: false,
        }
    }

    /// The same, of which layers take this rank's share.
    pub(crate) fn shared_out(self, group: Option<Group>) -> Self {
        Weights { group, ..self }
    }

    /// The same, whose tensors are checked and not read.
    pub(crate) fn headers_only(self) -> Self {
        Weights { headers_only: true, ..self }
    }

    /// What was asked for, one after another as in a file: 16-bit floats and packed values.
    pub fn into_record(self) -> Vec<TensorEntry> {
        self.record.map_or_else(Vec::new, |record| record.asked.into_inner())
    }

    /// The names below `name`: `weights.scope("model").get("norm.weight", …)`.
    pub fn scope(&self, name: &str) -> Scope<'_, 'f> {
        Scope { weights: self, prefix: name.to_owned() }
    }

    /// Declare tensors that a checkpoint may hold without a layer taking them.
    pub fn ignore(&self, unused: impl Fn(&str) -> bool) {
        self.tensors.borrow_mut().retain(|name, _| !unused(name));
    }

    /// The tensors that layers took, in their order.
    ///
    /// # Errors
    /// When a tensor was taken by no layer; the message names it. When the load is stopped.
    pub fn finish(self) -> Result<Vec<Tensor<'f>>> {
        let tensors = self.tensors.into_inner();
        match tensors.first_key_value() {
            // With those that no layer needs.
            None => {
                let Progress { total_bytes, mut watch, .. } = self.progress.into_inner();
                watch.advance(total_bytes, total_bytes)?;
                Ok(self.taken.into_inner())
            }
            Some((name, tensor)) => Err(Error::tensor(
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

    /// A tensor, as arrays of so many of its first dimension each, and of each the rank's share.
    fn take(&self, name: &str, shape: &[i32], parts: &[i32], split: Split, kind: Kind) -> Result<Vec<Array>> {
        assert_eq!(parts.iter().sum::<i32>(), shape[0]);
        if let Some(Record { asked, .. }) = &self.record {
            let mut asked = asked.borrow_mut();
            let start = asked.last().map_or(0, |last| last.bytes.end);
            let dtype = if matches!(kind, Kind::Packed) { FileDtype::U32 } else { FileDtype::BF16 };
            let shape: Vec<usize> = shape.iter().map(|&dim| dim as usize).collect();
            let bytes = (shape.iter().product::<usize>() * dtype.bitsize() / 8) as u64;
            asked.push(TensorEntry { name: name.to_owned(), dtype, shape, bytes: start..start + bytes });
            return Ok(vec![Array::from_int(0); parts.len()]);
        }
        let expected = match kind {
            Kind::Float => "F32, F16 or BF16",
            Kind::Packed => "U32 (packed quantized values)",
        };
        let Some(Tensor { file, entry }) = self.tensors.borrow_mut().remove(name) else {
            return Err(Error::tensor(&self.origin, name, format!("is missing, expected {shape:?} of {expected}")));
        };
        let dtype = match (kind, entry.dtype) {
            (Kind::Float, FileDtype::F32) => Dtype::Float32,
            (Kind::Float, FileDtype::F16) => Dtype::Float16,
            (Kind::Float, FileDtype::BF16) => Dtype::Bfloat16,
            (Kind::Packed, FileDtype::U32) => Dtype::Uint32,
            (_, found) => {
                return Err(Error::tensor(&file.path, name, format!("is of type {found:?}, expected {expected}")));
            }
        };
        if !entry.shape.iter().copied().eq(shape.iter().map(|&d| d as usize)) {
            return Err(Error::tensor(
                &file.path,
                name,
                format!("has shape {:?}, expected {shape:?} from config.json", entry.shape),
            ));
        }
        self.taken.borrow_mut().push(Tensor { file, entry });
        let Some(data) = file.data(entry).filter(|_| !self.headers_only) else {
            return Ok(vec![Array::from_int(0); parts.len()]);
        };
        let row = data.len() / shape[0] as usize;
        let mut arrays = Vec::with_capacity(parts.len());
        let mut rest = data;
        for &rows in parts {
            let (part, after) = rest.split_at(rows as usize * row);
            rest = after;
            let mut shape = [&[rows], &shape[1..]].concat();
            let mut own = Cow::Borrowed(part);
            if let Some(group) = &self.group {
                match split {
                    Split::Whole => {}
                    Split::Outputs => {
                        let rows = group.share(rows);
                        shape[0] = rows.len() as i32;
                        own = Cow::Borrowed(&part[rows.start as usize * row..rows.end as usize * row]);
                    }
                    Split::Inputs => {
                        let width = shape.last_mut().expect("matrices have columns");
                        let (columns, item) = (group.share(*width), row / *width as usize);
                        *width = columns.len() as i32;
                        let bytes = columns.start as usize * item..columns.end as usize * item;
                        own = part.chunks_exact(row).flat_map(|row| &row[bytes.clone()]).copied().collect();
                    }
                }
            }
            let borrowed = match &own {
                Cow::Borrowed(own) => file.map().and_then(|map| ops::borrow(map, own, &shape, dtype)),
                Cow::Owned(_) => None,
            };
            arrays.push(match borrowed {
                Some(array) => array,
                None => {
                    let array = ops::copy(&own, &shape, dtype)?;
                    if let Some(map) = file.map() {
                        map.release(part);
                    }
                    array
                }
            });
        }
        let Progress { taken_bytes, total_bytes, watch } = &mut *self.progress.borrow_mut();
        *taken_bytes += data.len() as u64;
        watch.advance(*taken_bytes, *total_bytes)?;
        Ok(arrays)
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
        match &self.weights.record {
            Some(record) => record.is_quantized && name == "scales",
            None => self.weights.tensors.borrow().contains_key(self.full(name).as_str()),
        }
    }

    /// The shape of `name` in its file, when it is there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.tensors.borrow().get(self.full(name).as_str()).map(|t| t.entry.shape.clone())
    }

    /// Take the tensor `name`, which must have this shape and hold this kind of number.
    ///
    /// # Errors
    /// When it is missing, or its shape or type is another; the message says both. When the load is stopped.
    pub fn get(&self, name: &str, shape: &[i32], kind: Kind) -> Result<Array> {
        self.get_split(name, shape, Split::Whole, kind)
    }

    /// [`Scope::get`], of which it is this rank's share where the weights are shared out; `shape` is that of the whole.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn get_split(&self, name: &str, shape: &[i32], split: Split, kind: Kind) -> Result<Array> {
        Ok(self.get_parts(name, shape, &shape[..1], split, kind)?.remove(0))
    }

    /// [`Scope::get_split`], as several arrays: `parts` of the tensor's first dimension each. Where weights are read in place,
    /// none of it is copied but shares of the last dimension.
    ///
    /// # Errors
    /// As [`Scope::get`].
    ///
    /// # Panics
    /// When the parts are not the whole.
    pub fn get_parts(&self, name: &str, shape: &[i32], parts: &[i32], split: Split, kind: Kind) -> Result<Vec<Array>> {
        self.weights.take(&self.full(name), shape, parts, split, kind)
    }

    /// Those among whom split tensors are shared out, if they are.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.weights.group.as_ref()
    }

    /// An error about the tensor `name` of this scope.
    pub fn error(&self, name: &str, problem: impl Into<String>) -> Error {
        let name = self.full(name);
        let tensors = self.weights.tensors.borrow();
        let path = tensors.get(name.as_str()).map_or(&self.weights.origin, |tensor| &tensor.file.path);
        Error::tensor(path, &name, problem)
    }

    fn full(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}
