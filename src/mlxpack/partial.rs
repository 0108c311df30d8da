//! A file that appears under its name when it is whole, or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::error::{Error, Result};

/// What the names of unfinished files end with.
pub(super) const SUFFIX: &str = ".mlxpack-partial";

/// `.NAME.mlxpack-partial` beside its target. Dropped, it is removed; left behind by a killed process, it is no longer
/// locked, and the next write to the same target takes it over.
pub(super) struct Partial {
    file: File,
    path: TempPath,
    target: PathBuf,
    overwrite: bool,
}

impl Partial {
    /// # Errors
    /// When `target` exists and `overwrite` is not set, when it exists and is not a file, when another process is
    /// writing it, or when its directory cannot be written.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        refuse_existing(target, overwrite)?;
        let Some(name) = target.file_name() else {
            return Err(Error::Io { path: target.to_owned(), error: io::ErrorKind::IsADirectory.into() });
        };
        let mut partial_name = OsString::from(".");
        partial_name.push(name);
        partial_name.push(SUFFIX);
        let path = target.with_file_name(partial_name);
        let (file, path) = claim(&path).map_err(Error::io(&path))?;
        file.set_len(0).map_err(Error::io(target))?;
        Ok(Partial { file, path, target: target.to_owned(), overwrite })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// For `map_err`: an I/O error about the target.
    pub fn io(&self) -> impl Fn(io::Error) -> Error {
        Error::io(&self.target)
    }

    /// Put the bytes on disk and give the file its name.
    pub fn commit(self, cancelled: impl FnOnce() -> Result<()>) -> Result<()> {
        self.file.sync_all().map_err(self.io())?;
        cancelled()?;
        let Partial { file, path, target, overwrite } = self;
        let persisted = match overwrite {
            true => path.persist(&target),
            // Where a file system cannot rename without replacing, looking first must do.
            false => path.persist_noclobber(&target).or_else(|e| match refuse_existing(&target, false) {
                Ok(()) => e.path.persist(&target),
                Err(_) => Err(e),
            }),
        };
        persisted.map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists(target.clone()),
            _ => Error::Io { path: target.clone(), error: e.error },
        })?;
        drop(file);
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The name is on disk when its directory is; some file systems cannot promise that.
        let _ = File::open(parent).and_then(|directory| directory.sync_all());
        Ok(())
    }
}

/// Whatever stands at `target` may be replaced only if it is a file and `overwrite` says so.
pub(super) fn refuse_existing(target: &Path, overwrite: bool) -> Result<()> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::Io { path: target.to_owned(), error }),
        Ok(_) if !overwrite => Err(Error::Exists(target.to_owned())),
        // A link is replaced, not followed; but not one to a device, such as /dev/stdout.
        Ok(_) if fs::metadata(target).is_ok_and(|found| !found.is_file()) => {
            Err(Error::malformed(target, "exists and is not a file, so it is not replaced"))
        }
        Ok(_) => Ok(()),
    }
}

/// Open `path`, new or stale, as the only process that does.
fn claim(path: &Path) -> io::Result<(File, TempPath)> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // it may still be another's
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it"));
            }
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let opened = file.metadata()?;
        if !opened.is_file() {
            return Err(io::Error::other("exists and is not a file"));
        }
        // Between opening and locking, whoever held the lock may have given the file its final name.
        match fs::symlink_metadata(path) {
            Ok(found) if (found.dev(), found.ino()) == (opened.dev(), opened.ino()) => {
                return Ok((file, TempPath::try_from_path(path)?));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}
