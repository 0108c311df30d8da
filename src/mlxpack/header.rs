//! The header of a pack: read with every check that does not need the files' bytes, and written.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::pieces::{self, Digest};
use super::summary::Summary;
use crate::atomic_file;
use crate::error::{Error, Result};

pub(super) const MAGIC: [u8; 8] = *b"\x89MLXP\r\n\x1A";
const VERSION: u64 = 1;
pub(super) const ALIGNMENT: u64 = 4096;
/// Where the header's JSON begins.
const JSON_START: u64 = 56;
const MAX_JSON: u64 = 100_000_000;
const MAX_FILES: usize = 10_000;

/// What the JSON says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "read_summary")]
    pub summary: Summary,
    #[serde(deserialize_with = "read_entries")]
    pub files: Vec<Entry>,
}

/// One file of a pack.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Relative path, `/` between its parts.
    pub name: String,
    /// Its first byte, from the pack's start.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// SHA-256 of each piece of 16 MiB.
    pub(super) sha256: Vec<Digest>,
}

/// A struct from a JSON object; serde's derived code would take a list as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

fn read_entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Entry>, D::Error> {
    let entries: Vec<Object<Entry>> = Vec::deserialize(deserializer)?;
    Ok(entries.into_iter().map(|Object(entry)| entry).collect())
}

/// A summary of another shape than this program's is as good as none.
fn read_summary<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Summary, D::Error> {
    let raw: Box<RawValue> = Box::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).map_or_else(|_| Summary::default(), |Object(summary)| summary))
}

impl Entry {
    /// The first byte after it, from the pack's start.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

impl Header {
    /// Read and check the header of a pack of `length` bytes; the second value is where it ends.
    ///
    /// # Errors
    /// When it is not a pack of this version, damaged, or not as specified.
    pub fn read(path: &Path, length: u64, read_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> Result<(Self, u64)> {
        let invalid = |problem: String| Error::malformed(path, format!("not a valid .mlxpack: {problem}"));
        let mut start = [0; JSON_START as usize];
        let found = length.min(JSON_START) as usize;
        read_at(&mut start[..found], 0).map_err(Error::io(path))?;
        if start[..8] != MAGIC {
            return Err(invalid("it does not begin like one".into()));
        }
        if length < JSON_START {
            return Err(invalid(format!("it is cut off after {length} bytes")));
        }
        let number = |at: usize| u64::from_le_bytes(start[at..at + 8].try_into().expect("eight bytes"));
        if number(8) != VERSION {
            let what = format!("version {} of the .mlxpack format", number(8));
            return Err(Error::unsupported(path, what, format!("this program reads version {VERSION}")));
        }
        let json_length = number(16);
        if json_length > MAX_JSON {
            return Err(invalid(format!("its header claims {json_length} bytes, at most {MAX_JSON} are allowed")));
        }
        if json_length > length - JSON_START {
            return Err(invalid(format!("it is cut off within its header, after {length} bytes")));
        }
        let mut json = vec![0; json_length as usize];
        read_at(&mut json, JSON_START).map_err(Error::io(path))?;
        if start[24..] != digest(&start[..24], &json)[..] {
            return Err(invalid("its header is damaged (SHA-256 differs)".into()));
        }
        let Object(header): Object<Header> =
            serde_json::from_slice(&json).map_err(|e| invalid(format!("its header: {e}")))?;
        let end = JSON_START + json_length;
        header.check(end, length).map_err(invalid)?;
        Ok((header, end))
    }

    fn check(&self, header_end: u64, length: u64) -> Result<(), String> {
        if self.files.len() > MAX_FILES {
            return Err(format!("{} files, at most {MAX_FILES} are allowed", self.files.len()));
        }
        check_names(self.files.iter().map(|entry| entry.name.as_str()))?;
        let mut end = header_end;
        for Entry { name, offset, length: file_length, sha256 } in &self.files {
            let next = offset.checked_add(*file_length).filter(|&next| next <= length);
            let Some(next) = next else {
                return Err(format!("{name:?} reaches beyond the end, at {length} bytes; is the pack cut off?"));
            };
            if *offset < end {
                return Err(format!("{name:?} begins at {offset}, within what lies before it"));
            }
            if offset - end >= ALIGNMENT {
                return Err(format!("{} unused bytes lie before {name:?}", offset - end));
            }
            if sha256.len() as u64 != pieces::count(*file_length) {
                return Err(format!("{name:?} has {} hashes for {file_length} bytes", sha256.len()));
            }
            end = next;
        }
        if end != length {
            return Err(format!("it has {length} bytes, its header describes {end}"));
        }
        Ok(())
    }

    /// Place the files one after another and give the bytes of the header, whose end is where the first one may begin.
    /// `anchors` has the byte of each file that goes to a multiple of [`ALIGNMENT`].
    pub fn place(&mut self, anchors: &[u64]) -> Vec<u8> {
        let mut end = ALIGNMENT;
        loop {
            let mut at = end;
            for (entry, anchor) in self.files.iter_mut().zip(anchors) {
                entry.offset = (at + anchor).next_multiple_of(ALIGNMENT) - anchor;
                at = entry.end();
            }
            let bytes = self.to_bytes(end);
            // Later offsets may have more digits, so the header may grow once more; it never shrinks.
            if bytes.len() as u64 == end {
                return bytes;
            }
            end = (bytes.len() as u64).next_multiple_of(ALIGNMENT);
        }
    }

    /// The header's bytes, padded with spaces to `end` where they are fewer.
    pub fn to_bytes(&self, end: u64) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("a header has only what JSON has");
        json.resize(json.len().max((end - JSON_START) as usize), b' ');
        let mut bytes = [MAGIC, VERSION.to_le_bytes(), (json.len() as u64).to_le_bytes()].concat();
        let digest = digest(&bytes, &json);
        bytes.extend(digest);
        bytes.extend(json);
        bytes
    }
}

fn digest(start: &[u8], json: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(start).chain_update(json).finalize().into()
}

/// Refuse what any system could read as another path, or as the same one twice.
pub(super) fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut folded: HashMap<String, &str> = HashMap::new();
    let mut folders: HashMap<String, &str> = HashMap::new();
    for name in names {
        check_name(name)?;
        let lower = name.to_ascii_lowercase();
        for (slash, _) in lower.match_indices('/') {
            folders.insert(lower[..slash].to_owned(), name);
        }
        if let Some(other) = folded.insert(lower, name) {
            return Err(format!("{name:?} and {other:?} are one name where case does not count"));
        }
    }
    match folded.iter().find_map(|(lower, name)| Some((name, folders.get(lower)?))) {
        Some((name, inner)) => Err(format!("{name:?} is both a file and the folder of {inner:?}")),
        None => Ok(()),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    let bad_part = |part: &str| {
        let lower = part.to_ascii_lowercase();
        let stem = lower.split('.').next().unwrap_or_default();
        // The dot at the end also stands for `.` and `..`.
        part.is_empty()
            || part.len() > 200
            || part.ends_with(['.', ' '])
            || lower.ends_with(atomic_file::SUFFIX)
            || DEVICES.contains(&stem)
    };
    let bad_char = |c: char| !matches!(c, ' '..='~') || "\\:*?\"<>|".contains(c);
    if name.len() > 1024 || name.contains(bad_char) || name.split('/').any(bad_part) {
        let shown: String = name.chars().take(100).collect();
        return Err(format!("{shown:?} is not a name that a pack may hold"));
    }
    Ok(())
}

/// What Windows reads as a device, with any extension and in any case.
const DEVICES: [&str; 22] = [
    "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "lpt1", "lpt2",
    "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];
