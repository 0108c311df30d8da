//! A file that appears under its name when it is whole, or not at all.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tempfile::TempPath;

use crate::error::{Error, Result};

/// What the names of unfinished files end with.
pub(crate) const SUFFIX: &str = ".mlxpack-partial";

/// `.NAME.mlxpack-partial` next to its target, locked while it is written. Dropped, it is removed; left behind by a killed
/// process, it is no longer locked, and the next write to the same target removes it.
pub(crate) struct AtomicFile {
    // Before `file`, which holds the lock: whoever gets the lock finds the name gone, and not later.
    whole: Whole,
    file: File,
}

/// What was a [`AtomicFile`]: its bytes are on disk, its name is not yet the final one. It is closed, so that any number can
/// wait for the last of them, and no longer locked: only a lock on their directory keeps others from taking it for stale.
pub(crate) struct Whole {
    path: TempPath,
    target: PathBuf,
    overwrite: bool,
}

/// Write a whole file.
///
/// # Errors
/// When `target` exists and `overwrite` is not set, when it exists and is not a file, when another process is writing it, or when
/// its directory cannot be written.
pub fn write(target: &Path, bytes: &[u8], overwrite: bool) -> Result<()> {
    let file = AtomicFile::create(target, overwrite)?;
    file.write_at(bytes, 0)?;
    file.commit(|| Ok(()))
}

impl AtomicFile {
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
        let file = claim(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Io { path: directory_of(target).to_owned(), error },
            _ => Error::Io { path: path.clone(), error },
        })?;
        let path = TempPath::try_from_path(path).map_err(Error::io(target))?;
        Ok(AtomicFile { whole: Whole { path, target: target.to_owned(), overwrite }, file })
    }

    pub fn set_len(&self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(Error::io(&self.whole.target))
    }

    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(Error::io(&self.whole.target))?;
        // Linux takes this as a hint to start putting the bytes on disk, so that little is left to wait for at the end.
        #[cfg(target_os = "linux")]
        let _ = posix_fadvise(&self.file, at as i64, bytes.len() as i64, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    /// Put the bytes on disk and give the file its name.
    pub fn commit(self, cancelled: impl FnOnce() -> Result<()>) -> Result<()> {
        self.sync()?;
        cancelled()?;
        let AtomicFile { whole, file } = self;
        let target = whole.rename()?;
        drop(file);
        sync_directory(directory_of(&target));
        Ok(())
    }

    /// Put the bytes on disk, for a name that is given later.
    pub fn close(self) -> Result<Whole> {
        self.sync()?;
        Ok(self.whole)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.whole.target))
    }
}

impl Whole {
    /// Give the file its name, and tell that. The name is on disk when its directory is.
    pub fn rename(self) -> Result<PathBuf> {
        let Whole { path, target, overwrite } = self;
        let persisted = match overwrite {
            true => path.persist(&target),
            // Where a file system cannot rename without replacing, looking first must do.
            false => path.persist_noclobber(&target).or_else(|e| match refuse_existing(&target, false) {
                Ok(()) => e.path.persist(&target),
                Err(_) => Err(e),
            }),
        };
        match persisted {
            Ok(()) => Ok(target),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists(target)),
            Err(e) => Err(Error::Io { path: target, error: e.error }),
        }
    }
}

/// Put the names in a directory on disk; some file systems cannot promise that.
pub(crate) fn sync_directory(directory: &Path) {
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
}

/// The directory that a file is in.
pub(crate) fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whatever stands at `target` may be replaced only if it is a file and `overwrite` says so.
pub(crate) fn refuse_existing(target: &Path, overwrite: bool) -> Result<()> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::Io { path: target.to_owned(), error }),
        // A link is replaced, not followed; but not one to a device, such as /dev/stdout.
        Ok(_) if fs::metadata(target).is_ok_and(|found| !found.is_file()) => {
            Err(Error::malformed(target, "exists and is not a file"))
        }
        Ok(_) if overwrite => Ok(()),
        Ok(_) => Err(Error::Exists(target.to_owned())),
    }
}

/// A new file at `path`, locked. A stale one is removed; of one that another process holds locked, keep off.
fn claim(path: &Path) -> io::Result<File> {
    let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it");
    loop {
        match File::options().write(true).create_new(true).open(path) {
            // A process that looks for stale files may have been faster than this lock.
            Ok(file) if lock(&file)? && is_at(&file, path)? => return Ok(file),
            Ok(_) => continue,
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
        }
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK; // a link or a fifo is no file of ours
        match File::options().read(true).custom_flags(flags.bits()).open(path) {
            Ok(stale) if !stale.metadata()?.is_file() => return Err(io::Error::other("exists and is not a file")),
            Ok(stale) if !lock(&stale)? => return Err(busy()),
            // While it was opened, its writer may have finished, and given it its final name.
            Ok(stale) if is_at(&stale, path)? => fs::remove_file(path)?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the lock was free. Where a file system has no locks, it always is.
pub(crate) fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the name is still this file's.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(is_same(&found, &file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether two names are of one file.
pub(crate) fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}
