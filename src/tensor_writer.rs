//! A safetensors file whose tensors come in parts, in any order, from any thread: what is written is never in memory whole.
//!
//! Format: see [`crate::tensor_index`]. The tensors' data begins at a multiple of 8 bytes, and those of wider types come first, so
//! that each tensor is aligned.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHead {
    /// Its name, such as `model.norm.weight`.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorHead {
    /// Bytes of its elements.
    pub fn nbytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

/// A file that is being written. Dropped before [`TensorWriter::finish`], it leaves nothing.
pub struct TensorWriter {
    file: AtomicFile,
    /// Where each tensor's bytes go in the file.
    places: Vec<Range<u64>>,
}

impl TensorWriter {
    /// Begin a file at `path` that will hold `tensors` and says `metadata` of itself.
    ///
    /// # Errors
    /// When `path` exists and `overwrite` is not set, or cannot be written, or two tensors have one name.
    pub fn create(
        path: &Path,
        tensors: &[TensorHead],
        metadata: HashMap<String, String>,
        overwrite: bool,
    ) -> Result<Self> {
        let mut names = HashSet::new();
        if let Some(head) = tensors.iter().find(|head| !names.insert(&head.name)) {
            return Err(Error::tensor(path, &head.name, "would be twice in this file"));
        }
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&i| Reverse(tensors[i].dtype.bitsize()));
        let mut places = vec![0..0; tensors.len()];
        let mut infos = Vec::with_capacity(tensors.len());
        let mut end = 0;
        for i in order {
            let start = end;
            end += tensors[i].nbytes();
            places[i] = start..end;
            let TensorHead { name, dtype, shape } = tensors[i].clone();
            infos.push((name, TensorInfo { dtype, shape, data_offsets: (start as usize, end as usize) }));
        }
        let header = Metadata::new(Some(metadata), infos).map_err(|e| Error::malformed(path, e))?;
        let mut header = serde_json::to_vec(&header).expect("it has only what JSON has");
        header.resize(header.len().next_multiple_of(8), b' ');

        let data_start = 8 + header.len() as u64;
        places.iter_mut().for_each(|place| *place = place.start + data_start..place.end + data_start);
        let file = AtomicFile::create(path, overwrite)?;
        file.set_len(data_start + end)?;
        file.write_at(&[&(header.len() as u64).to_le_bytes(), &header[..]].concat(), 0)?;
        Ok(TensorWriter { file, places })
    }

    /// Write `bytes` of the tensor that was given as number `tensor`, from its byte `at` on.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When they do not lie within the tensor.
    pub fn write(&self, tensor: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let place = &self.places[tensor];
        assert!(at + bytes.len() as u64 <= place.end - place.start);
        self.file.write_at(bytes, place.start + at)
    }

    /// Put it on disk and give it its name.
    ///
    /// # Errors
    /// When that fails.
    pub fn finish(self) -> Result<()> {
        self.file.commit(|| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn what_is_written_in_parts_is_read_whole_and_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let head = |name: &str, dtype, shape: &[usize]| TensorHead { name: name.into(), dtype, shape: shape.into() };
        let heads = [
            head("a", Dtype::BF16, &[3]),
            head("b", Dtype::U32, &[2, 2]),
            head("empty", Dtype::F16, &[0, 4]),
            head("c", Dtype::F32, &[]),
        ];
        let metadata = HashMap::from([("format".to_owned(), "mlx".to_owned())]);
        let writer = TensorWriter::create(&path, &heads, metadata.clone(), false).unwrap();
        writer.write(3, 0, &[9; 4]).unwrap();
        writer.write(1, 8, &[8; 8]).unwrap();
        writer.write(1, 0, &[7; 8]).unwrap();
        writer.write(0, 2, &[6; 4]).unwrap();
        writer.write(0, 0, &[5; 2]).unwrap();
        assert!(!path.exists());
        writer.finish().unwrap();

        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("a").unwrap().data(), [5, 5, 6, 6, 6, 6]);
        assert_eq!(file.tensor("b").unwrap().data(), [[7; 8], [8; 8]].concat());
        assert_eq!(file.tensor("b").unwrap().shape(), [2, 2]);
        assert_eq!(file.tensor("c").unwrap().data(), [9; 4]);
        assert_eq!(file.tensor("empty").unwrap().shape(), [0, 4]);
        let (length, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!((length % 8, header.metadata().as_ref()), (0, Some(&metadata)));
        assert!(header.tensors().values().all(|info| info.data_offsets.0 % (info.dtype.bitsize() / 8) == 0));
    }

    #[test]
    fn a_file_that_is_not_finished_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let head = TensorHead { name: "a".into(), dtype: Dtype::F32, shape: vec![2] };
        let path = folder.path().join("x.safetensors");
        let writer = TensorWriter::create(&path, std::slice::from_ref(&head), HashMap::new(), false).unwrap();
        writer.write(0, 0, &[1; 8]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let twice = TensorWriter::create(&path, &[head.clone(), head], HashMap::new(), false);
        assert!(twice.is_err() && fs::read_dir(&folder).unwrap().count() == 0);
    }
}
