//! Bytes copied and hashed by all cores: files are cut into pieces, and each piece has a hash of its own.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::Result;
use crate::watch::{Watch, go_on};

/// Bytes of a file that share one hash.
pub(super) const PIECE: u64 = 16 << 20;
/// Bytes read and written at once; each worker holds one such buffer.
const BUFFER: usize = 1 << 20;
/// More workers than this find the disk busy.
const MAX_WORKERS: u64 = 16;

/// The SHA-256 of a piece.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Digest([u8; 32]);

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut digest = Digest::default();
        match hex::decode_to_slice(&text, &mut digest.0) {
            Ok(()) if !text.contains(|c: char| c.is_ascii_uppercase()) => Ok(digest),
            _ => Err(format!("{text:?} is not 64 lower-case hexadecimal digits")),
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        hex::encode(digest.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// How many pieces a file of `length` bytes has.
pub(super) fn count(length: u64) -> u64 {
    length.div_ceil(PIECE)
}

/// The hashes of bytes that are in memory.
pub(super) fn digests(bytes: &[u8]) -> Vec<Digest> {
    bytes.chunks(PIECE as usize).map(|piece| Digest(Sha256::digest(piece).into())).collect()
}

/// Bytes done of a task that may cover several files.
pub(super) struct Progress<'a> {
    done: u64,
    total: u64,
    watch: Watch<'a>,
}

impl<'a> Progress<'a> {
    pub fn new(total: u64, watch: &'a mut Watch) -> Self {
        Progress { done: 0, total, watch: watch.reborrow() }
    }

    /// Tell how far it is.
    ///
    /// # Errors
    /// When it is to stop.
    pub fn tell(&mut self) -> Result<()> {
        self.watch.advance(self.done, self.total)
    }
}

/// Take `length` bytes from `read` to `write` and give the hashes of their pieces. Both are told the offset, and are
/// called by several threads at once; progress is told by this one.
pub(super) fn stream(
    length: u64,
    read: impl Fn(&mut [u8], u64) -> Result<()> + Sync,
    write: impl Fn(&[u8], u64) -> Result<()> + Sync,
    progress: &mut Progress,
) -> Result<Vec<Digest>> {
    let pieces = count(length);
    let next = AtomicU64::new(0);
    let Progress { done: before, total, watch } = progress;
    let (stop, on_progress) = (watch.stop, &mut watch.on_progress);
    let done = AtomicU64::new(*before);
    let work = |on_progress: &mut dyn FnMut(u64)| -> Result<Vec<(u64, Digest)>> {
        let mut buffer = vec![0; BUFFER.min(length as usize)];
        let mut digests = Vec::new();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return Ok(digests);
            }
            let end = length.min((piece + 1) * PIECE);
            let mut at = piece * PIECE;
            let mut hash = Sha256::new();
            while at < end {
                let chunk = &mut buffer[..BUFFER.min((end - at) as usize)];
                let copied = read(chunk, at).and_then(|()| {
                    hash.update(&chunk);
                    write(chunk, at)?;
                    on_progress(done.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64);
                    go_on(stop)
                });
                if let Err(error) = copied {
                    next.store(pieces, Ordering::Relaxed); // the others stop after the piece they are at
                    return Err(error);
                }
                at += chunk.len() as u64;
            }
            digests.push((piece, Digest(hash.finalize().into())));
        }
    };
    let cores = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let digests = thread::scope(|scope| {
        let others: Vec<_> =
            (1..cores.min(pieces).min(MAX_WORKERS)).map(|_| scope.spawn(|| work(&mut |_| ()))).collect();
        let mut all = work(&mut |done| on_progress(done, *total));
        for other in others {
            let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all = all.and_then(|mut all| {
                all.extend(theirs?);
                Ok(all)
            });
        }
        all
    });
    *before = done.into_inner();
    let mut digests = digests?;
    digests.sort_by_key(|(piece, _)| *piece);
    Ok(digests.into_iter().map(|(_, digest)| digest).collect())
}
