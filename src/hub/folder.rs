//! A model's folder in the Hugging Face cache, as Python's `huggingface_hub` lays it out:
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/ETAG                     a file's bytes; ETAG is its SHA-256, of small ones git's SHA-1
//!                         blobs/ETAG.incomplete          its first bytes
//!                         refs/REVISION                  which commit a branch or a tag is
//!                         snapshots/COMMIT/FILE          a link to ../../blobs/ETAG
//! CACHE/.locks/models--ORG--NAME/ETAG.lock               locked by whoever writes that blob
//! ```
//!
//! Reference: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;

use super::name::{is_commit, is_hex};
use crate::atomic_file;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// How the names of models' folders begin.
const PREFIX: &str = "models--";
/// What the name of a part of a file ends with.
pub(super) const INCOMPLETE: &str = ".incomplete";
/// Between two looks at a lock.
const TICK: Duration = Duration::from_millis(50);
/// The fewest digits that stand for a commit.
const MIN_COMMIT: usize = 7;

/// What tells backups to leave the cache out: <https://bford.info/cachedir/>.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # Files that can be downloaded again: a cache of models from the Hugging Face hub.\n";

/// A model's folder.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    cache: PathBuf,
    name: String,
}

/// A lock of one blob, until it is dropped.
pub(super) struct Lock(#[allow(dead_code)] File);

impl Folder {
    /// Of the model `org/name`; it need not be there.
    pub fn new(cache: &Path, repository: &str) -> Self {
        Folder { cache: cache.to_owned(), name: format!("{PREFIX}{}", repository.replace('/', "--")) }
    }

    /// All models' folders, and what the models are called.
    ///
    /// # Errors
    /// When the cache is there and cannot be read.
    pub fn all(cache: &Path) -> Result<Vec<(String, Self)>> {
        let mut folders = Vec::new();
        for name in names(cache)? {
            if let Some(repository) = name.strip_prefix(PREFIX) {
                folders.push((repository.replacen("--", "/", 1), Folder { cache: cache.to_owned(), name }));
            }
        }
        Ok(folders)
    }

    pub fn path(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    pub fn blobs(&self) -> PathBuf {
        self.path().join("blobs")
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.blobs().join(etag)
    }

    pub fn partial(&self, etag: &str) -> PathBuf {
        self.blobs().join(format!("{etag}{INCOMPLETE}"))
    }

    pub fn refs(&self) -> PathBuf {
        self.path().join("refs")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.path().join("snapshots")
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    pub fn locks(&self) -> PathBuf {
        self.cache.join(".locks").join(&self.name)
    }

    /// The commits that are here.
    pub fn commits(&self) -> Result<Vec<String>> {
        Ok(names(&self.snapshots())?.into_iter().filter(|name| is_commit(name)).collect())
    }

    /// The commit that a revision was when it was last asked for, or that it begins.
    pub fn commit_of(&self, revision: &str) -> Result<Option<String>> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        if let Ok(commit) = fs::read_to_string(self.refs().join(revision))
            && is_commit(commit.trim())
        {
            return Ok(Some(commit.trim().to_owned()));
        }
        let is_short = revision.len() >= MIN_COMMIT && is_hex(revision, revision.len());
        let mut begun = self.commits()?.into_iter().filter(|commit| is_short && commit.starts_with(revision));
        Ok(begun.next().filter(|_| begun.next().is_none()))
    }

    /// The folder of a revision, if it is here.
    pub fn find(&self, revision: &str) -> Result<Option<PathBuf>> {
        let snapshot = self.commit_of(revision)?.map(|commit| self.snapshot(&commit));
        Ok(snapshot.filter(|snapshot| snapshot.is_dir()))
    }

    /// Make what a snapshot and its blobs are put into.
    pub fn prepare(&self, commit: &str) -> Result<()> {
        for folder in [self.blobs(), self.snapshot(commit), self.locks()] {
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        let tag = self.cache.join("CACHEDIR.TAG");
        if let Ok(mut file) = File::create_new(tag) {
            let _ = file.write_all(TAG.as_bytes());
        }
        Ok(())
    }

    /// Whether the blob is here in whole. Python's client has some of them as links to what models share.
    pub fn has_blob(&self, etag: &str, size: u64) -> bool {
        is_whole(&self.blob(etag), size)
    }

    /// Whether the snapshot has this file.
    pub fn has_file(&self, commit: &str, file: &str, size: u64) -> bool {
        is_whole(&self.snapshot(commit).join(file), size)
    }

    /// Lock a blob against other processes, this program's and Python's; `None` while one of them has it.
    pub fn try_lock(&self, etag: &str) -> Result<Option<Lock>> {
        let path = self.locks().join(format!("{etag}.lock"));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o664).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(&path).map_err(Error::io(&path))?;
        let is_free = atomic_file::lock(&file).and_then(|free| Ok(free && atomic_file::is_at(&file, &path)?));
        Ok(is_free.map_err(Error::io(&path))?.then_some(Lock(file)))
    }

    /// The same, once it is free; `on_wait` is told again and again that it is not.
    pub fn lock(&self, etag: &str, mut on_wait: impl FnMut() -> Result<()>) -> Result<Lock> {
        loop {
            if let Some(lock) = self.try_lock(etag)? {
                return Ok(lock);
            }
            on_wait()?;
            thread::sleep(TICK);
        }
    }

    /// Give a blob, which is whole, its name in a snapshot.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let parent = atomic_file::directory_of(&path);
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let target = Path::new(&"../".repeat(file.matches('/').count())).join("../../blobs").join(etag);
        loop {
            match symlink(&target, &path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if fs::read_link(&path).is_ok_and(|found| found == target) {
                        return Ok(());
                    }
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::Io { path, error }),
                        _ => {}
                    }
                }
                // Where the file system has no links, the snapshot has the file itself, as with Python's client.
                Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
                    return fs::rename(self.blob(etag), &path).map_err(|_| Error::Io { path, error });
                }
                Err(error) => return Err(Error::Io { path, error }),
            }
        }
    }

    /// From now on this branch or tag is this commit.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.refs().join(revision);
        if is_commit(revision) || fs::read_to_string(&path).is_ok_and(|found| found == commit) {
            return Ok(());
        }
        let write = |path: &Path| {
            let parent = atomic_file::directory_of(path);
            fs::create_dir_all(parent)?;
            let mut file = tempfile::Builder::new().permissions(permissions(0o666)).tempfile_in(parent)?;
            file.write_all(commit.as_bytes())?;
            file.persist(path)?;
            Ok(())
        };
        write(&path).map_err(Error::io(&path))
    }

    /// What a snapshot lacks of what a model is made of; `None` when it is whole.
    pub fn missing(snapshot: &Path) -> Result<Option<String>> {
        let leads_nowhere = |name: &String| !snapshot.join(name).exists();
        match names(snapshot)?.into_iter().find(leads_nowhere) {
            Some(name) => Ok(Some(name)),
            None => Checkpoint::open(snapshot)?.missing_file(),
        }
    }
}

fn permissions(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

fn is_whole(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

/// What is in a folder, sorted; nothing where there is none.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::Io { path: folder.to_owned(), error }),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(Error::io(folder))?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
