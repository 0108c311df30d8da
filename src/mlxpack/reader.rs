//! Opening and verifying packs. A pack is untrusted: nothing here believes a name, a number or a byte that
//! was not checked.

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::header::{self, Entry, Header};
use super::pieces::{self, PIECE, Progress, stream};
use super::summary::Summary;
use crate::error::{Error, Result};
use crate::watch::Watch;

/// An open pack whose header has been checked.
#[derive(Debug)]
pub struct Pack {
    path: PathBuf,
    storage: Storage,
    length: u64,
    header_end: u64,
    header: Header,
}

#[derive(Debug)]
pub(super) enum Storage {
    File(File),
    Memory(Cow<'static, [u8]>),
}

/// Where a file of a pack can be had without a copy.
pub(crate) enum Place<'p> {
    /// These bytes of the file.
    File(&'p File, Range<u64>),
    /// These bytes, in memory already.
    Memory(&'p [u8]),
}

/// What [`Pack::verify`] found wrong in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file's name.
    pub name: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.problem)
    }
}

impl Pack {
    /// Open the pack at `path`, by reading its header alone.
    ///
    /// # Errors
    /// When it is not a pack, its version is another, its header is damaged, or its length is not what the header
    /// describes.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        // Asked before opening, since opening a fifo waits for its writer.
        let regular = |found: fs::Metadata| match found.is_file() {
            true => Ok(found.len()),
            false => Err(Error::malformed(&path, "not a regular file")),
        };
        regular(fs::metadata(&path).map_err(Error::io(&path))?)?;
        let file = File::open(&path).map_err(Error::io(&path))?;
        let length = regular(file.metadata().map_err(Error::io(&path))?)?;
        Pack::new(path, Storage::File(file), length)
    }

    /// A pack in memory; messages call it `path`.
    ///
    /// # Errors
    /// As [`Pack::open`].
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        Pack::new(path.into(), Storage::Memory(bytes), length)
    }

    fn new(path: PathBuf, storage: Storage, length: u64) -> Result<Self> {
        let (header, header_end) = Header::read(&path, length, |buffer, at| storage.read_at(buffer, at))?;
        Ok(Pack { path, storage, length, header_end, header })
    }

    /// Whether the file at `path` begins as a pack does, whatever its name.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn has_magic(path: &Path) -> Result<bool> {
        let mut start = [0; header::MAGIC.len()];
        let read = File::open(path).map_err(Error::io(path))?.read_exact_at(&mut start, 0);
        Ok(read.is_ok() && start == header::MAGIC)
    }

    /// The pack's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The length of the whole pack in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What the pack says of its model.
    pub fn summary(&self) -> &Summary {
        &self.header.summary
    }

    /// The files, in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.header.files
    }

    /// The file of this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.header.files.iter().find(|entry| entry.name == name)
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Where the weights in `entry` lie.
    pub(crate) fn place(&self, entry: &Entry) -> Place<'_> {
        let range = entry.offset..entry.end(); // within the pack, or the header was refused
        match &self.storage {
            Storage::File(file) => Place::File(file, range),
            Storage::Memory(bytes) => Place::Memory(&bytes[range.start as usize..range.end as usize]),
        }
    }

    /// What messages call a file of the pack.
    pub(super) fn path_of(&self, entry: &Entry) -> PathBuf {
        self.path.join(&entry.name)
    }

    /// Fill `buffer` from byte `at` of a file.
    pub(crate) fn read_at(&self, entry: &Entry, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if at.checked_add(buffer.len() as u64).is_none_or(|end| end > entry.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.storage.read_at(buffer, entry.offset + at)
    }

    /// A whole file, checked against its hash. For files that fit into memory.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was packed.
    pub fn read(&self, entry: &Entry) -> Result<Vec<u8>> {
        let path = self.path_of(entry);
        let mut bytes = vec![0; usize::try_from(entry.length).map_err(|e| Error::malformed(&path, e))?];
        self.read_at(entry, &mut bytes, 0).map_err(Error::io(&path))?;
        match damage(entry, &pieces::digests(&bytes)) {
            Some(Damage { problem, .. }) => Err(Error::malformed(&path, problem)),
            None => Ok(bytes),
        }
    }

    /// Read everything and report each file that is not what was packed; the header was checked when the pack was
    /// opened. Works on all cores.
    ///
    /// # Errors
    /// When `watch` stops it. A file that cannot be read is damage.
    pub fn verify(&self, watch: &mut Watch) -> Result<Vec<Damage>> {
        let mut progress = Progress::new(self.header.files.iter().map(|f| f.length).sum(), watch);
        let mut found = Vec::new();
        let mut end = self.header_end;
        for entry in &self.header.files {
            if !self.is_zero(end..entry.offset) {
                let problem = format!("the bytes before it, {end} to {}, are not zero", entry.offset);
                found.push(Damage { name: entry.name.clone(), problem });
            }
            end = entry.end();
            let path = self.path_of(entry);
            let read = |buffer: &mut [u8], at| self.read_at(entry, buffer, at).map_err(Error::io(&path));
            match stream(entry.length, read, |_, _| Ok(()), &mut progress) {
                Ok(digests) => found.extend(damage(entry, &digests)),
                Err(Error::Io { error, .. }) => {
                    found.push(Damage { name: entry.name.clone(), problem: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn is_zero(&self, range: Range<u64>) -> bool {
        let mut gap = vec![0xFF; (range.end - range.start) as usize]; // under 4096, or the header was refused
        self.storage.read_at(&mut gap, range.start).is_ok() && gap.iter().all(|&byte| byte == 0)
    }
}

impl Storage {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Storage::File(file) => file.read_exact_at(buffer, at),
            Storage::Memory(bytes) => {
                let at = usize::try_from(at).ok();
                let part = at.and_then(|at| bytes.get(at..)?.get(..buffer.len()));
                buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// How these pieces of a file differ from those that were packed.
pub(super) fn damage(entry: &Entry, found: &[pieces::Digest]) -> Option<Damage> {
    let bad: Vec<usize> = (0..found.len()).filter(|&i| found[i] != entry.sha256[i]).collect();
    let (first, count) = (*bad.first()? as u64, bad.len());
    let (start, end) = (first * PIECE, entry.length.min((first + 1) * PIECE));
    let more = if count > 1 { format!(" and {} other pieces", count - 1) } else { String::new() };
    let problem = format!("damaged (SHA-256 differs): bytes {start} to {end} of {}{more}", entry.length);
    Some(Damage { name: entry.name.clone(), problem })
}
