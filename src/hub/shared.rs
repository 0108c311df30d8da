//! Bytes that several models of the cache share. Python's `huggingface_hub` (2.4) puts what it gets from the hub's Xet storage
//! there; here it is only read, and let go of with the last model that uses it.
//!
//! ```text
//! CACHE/blobs/.huggingface-shared-blobs    tells the folder from others: "1\n"
//!             AB/ABC…                      a file's bytes; the name is Xet's hash
//!             AB/ABC….refs                 which blobs of models are links to it, a line each
//!             AB/ABC….lock                 locked by whoever changes these
//! ```

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;

use super::name::is_hex;
use crate::atomic_file;

/// The shared file that a model's blob is a link to, if it is one.
pub(super) fn target(cache: &Path, blob: &Path) -> Option<PathBuf> {
    let store = cache.join("blobs");
    let is_store = fs::read_to_string(store.join(".huggingface-shared-blobs")).is_ok_and(|version| version == "1\n");
    let link = fs::read_link(blob).ok().filter(|_| is_store)?;
    let hash = link.file_name()?.to_str().filter(|name| is_hex(name, 64))?;
    let shared = store.join(&hash[..2]).join(hash);
    (fs::canonicalize(blob).ok()? == fs::canonicalize(&shared).ok()?).then_some(shared)
}

/// Remove a shared file if no model uses it any more; the bytes that this frees. What cannot be read is left.
pub(super) fn let_go(cache: &Path, shared: &Path) -> u64 {
    let refs = shared.with_extension("refs");
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o666).custom_flags(OFlag::O_NOFOLLOW.bits());
    let Ok(lock) = options.open(shared.with_extension("lock")) else { return 0 };
    if !lock.lock().is_ok_and(|()| atomic_file::is_at(&lock, &shared.with_extension("lock")).unwrap_or(false)) {
        return 0;
    }
    let Ok(users) = fs::read_to_string(&refs) else { return 0 };
    let uses = |line: &str| {
        let is_inside = Path::new(line).components().all(|part| matches!(part, Component::Normal(_)));
        is_inside && target(cache, &cache.join(line)).is_some_and(|found| found == shared)
    };
    let bytes = fs::metadata(shared).map_or(0, |found| found.len());
    if users.lines().any(uses) || fs::remove_file(shared).is_err() {
        return 0;
    }
    let _ = fs::remove_file(&refs);
    bytes
}
