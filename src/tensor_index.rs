//! What a safetensors file holds, from its header alone: names, types, shapes and places of the tensors.
//!
//! Format: <https://huggingface.co/docs/safetensors>. A file is the header's length (u64, little-endian), the header
//! (JSON), and the tensors' data one after another.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

/// The longest header that is read, as in the `safetensors` crate.
const MAX_HEADER: u64 = 100_000_000;

/// The tensors of one safetensors file, in the order of their data.
#[derive(Debug, Clone)]
pub struct TensorIndex {
    /// Where the tensors' data begins, in bytes from the file's start.
    pub data_start: u64,
    /// They lie one after another and fill the file to its end.
    pub tensors: Vec<TensorEntry>,
}

/// One tensor of a safetensors file.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Its name, such as `model.norm.weight`.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub bytes: Range<u64>,
}

impl TensorIndex {
    /// Read the header of a file of `length` bytes through `read_at`, which fills a buffer from an offset in bytes.
    /// `path` is only for messages.
    ///
    /// # Errors
    /// When reading fails, or the header is not one of safetensors or does not describe exactly `length` bytes.
    pub fn read(path: &Path, length: u64, read_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> Result<Self> {
        let io = |error| Error::Io { path: path.to_owned(), error };
        let invalid =
            |problem: &dyn fmt::Display| Error::malformed(path, format!("not a valid safetensors file: {problem}"));
        let Some(most) = length.checked_sub(8) else {
            return Err(invalid(&format!("{length} bytes cannot hold a header")));
        };
        let mut prefix = [0; 8];
        read_at(&mut prefix, 0).map_err(io)?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > most.min(MAX_HEADER) {
            return Err(invalid(&format!("a header of {header_length} bytes in a file of {length}")));
        }
        let mut header = vec![0; header_length as usize];
        read_at(&mut header, 8).map_err(io)?;
        let mut tensors = parse(&header).map_err(|e| invalid(&e))?;

        let mut seen = HashSet::new();
        if let Some((name, _)) = tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            return Err(Error::tensor(path, name, "is twice in this file"));
        }
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        // `Metadata` checks that the data has no gap and no overlap, and that each length fits its shape and type.
        Metadata::new(None, tensors.clone()).map_err(|e| invalid(&e))?;
        let data_start = 8 + header_length;
        let data = tensors.last().map_or(0, |(_, info)| info.data_offsets.1 as u64);
        if data != length - data_start {
            return Err(invalid(&format!("{data} bytes of tensors described, {} found", length - data_start)));
        }
        let entry = |(name, TensorInfo { dtype, shape, data_offsets: (start, end) })| TensorEntry {
            name,
            dtype,
            shape,
            bytes: data_start + start as u64..data_start + end as u64,
        };
        Ok(TensorIndex { data_start, tensors: tensors.into_iter().map(entry).collect() })
    }
}

/// The header's entries but `__metadata__`, repeated names included.
fn parse(header: &[u8]) -> serde_json::Result<Vec<(String, TensorInfo)>> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, TensorInfo)>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut tensors = Vec::new();
            while let Some(name) = map.next_key::<String>()? {
                if name == "__metadata__" {
                    map.next_value::<IgnoredAny>()?;
                } else {
                    tensors.push((name, map.next_value()?));
                }
            }
            Ok(tensors)
        }
    }
    let mut json = serde_json::Deserializer::from_slice(header);
    let tensors = json.deserialize_map(Entries)?;
    json.end()?;
    Ok(tensors)
}
