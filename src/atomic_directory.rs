//! A directory that appears under its name when all that belongs into it is there, or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic_file::{SUFFIX, directory_of, is_same, lock, sync_directory};
use crate::error::{Error, Result};

/// `.NAME.mlxpack-partial` next to its target, locked while it is filled. Dropped, it is removed with all that is in it; left
/// behind by a killed process, it is no longer locked, and the next one for the same target removes it.
pub(crate) struct AtomicDirectory {
    path: PathBuf,
    target: PathBuf,
    _lock: File,
}

impl AtomicDirectory {
    /// # Errors
    /// When `target` has no name, another process is filling it, or its parent cannot be written.
    pub fn create(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(Error::Io { path: target.to_owned(), error: io::ErrorKind::IsADirectory.into() });
        };
        let path = target.with_file_name(hidden(name, ""));
        let lock = claim(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Io { path: directory_of(target).to_owned(), error },
            _ => Error::Io { path: path.clone(), error },
        })?;
        Ok(AtomicDirectory { path, target: target.to_owned(), _lock: lock })
    }

    /// Where it is meanwhile.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Give it its name, in place of what [`refuse_existing`] lets go.
    ///
    /// # Errors
    /// When something stands there that may not be replaced, or renaming fails.
    pub fn commit(self, replaced: Option<Belongs>) -> Result<()> {
        let io = Error::io(&self.target);
        sync_directory(&self.path);
        refuse_existing(&self.target, replaced)?;
        let mut old = None;
        if fs::symlink_metadata(&self.target).is_ok() {
            let name = self.target.file_name().expect("it was created for a name");
            let aside = self.target.with_file_name(hidden(name, "-old"));
            fs::rename(&self.target, &aside).map_err(&io)?;
            old = Some(aside);
        }
        if let Err(error) = fs::rename(&self.path, &self.target) {
            if let Some(aside) = &old {
                let _ = fs::rename(aside, &self.target);
            }
            return Err(io(error));
        }
        sync_directory(directory_of(&self.target));
        if let Some(aside) = old {
            fs::remove_dir_all(&aside).map_err(Error::io(&aside))?;
        }
        Ok(())
    }
}

impl Drop for AtomicDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // it is there only where it got no name
    }
}

fn hidden(name: &std::ffi::OsStr, what: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(what);
    hidden.push(SUFFIX);
    hidden
}

/// What a directory is for.
#[derive(Clone, Copy)]
pub(crate) struct Belongs {
    /// Whether a file of this name belongs to it, or one `FOLDER/NAME`.
    pub belongs: fn(&str) -> bool,
    /// A file that each such directory has.
    pub needs: &'static str,
}

/// What stands at `target` may be replaced only where `replaced` is given, and it is empty, or a directory for that, of files that all
/// belong there.
///
/// # Errors
/// When something else stands there.
pub(crate) fn refuse_existing(target: &Path, replaced: Option<Belongs>) -> Result<()> {
    let found = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(Error::io(target))?,
    };
    let Some(Belongs { belongs, needs }) = replaced else { return Err(Error::Exists(target.to_owned())) };
    if !found.is_dir() {
        return Err(Error::malformed(target, "exists and is not a directory"));
    }
    let held = files(target)?;
    if let Some(name) = held.iter().find(|name| !belongs(name)) {
        return Err(would_be_lost(target, name));
    }
    if !held.is_empty() && !target.join(needs).is_file() {
        let problem = format!("has no {needs}, so what it holds would be lost; remove the directory yourself");
        return Err(Error::malformed(target, problem));
    }
    Ok(())
}

/// The names of a directory's files; of its folders those of theirs, `FOLDER/NAME`, and `FOLDER/` where there are none or folders.
fn files(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (name, is_folder) in entries(directory)? {
        if !is_folder {
            names.push(name);
            continue;
        }
        let inner = entries(&directory.join(&name))?;
        if inner.is_empty() || inner.iter().any(|(_, is_folder)| *is_folder) {
            names.push(format!("{name}/"));
        } else {
            names.extend(inner.iter().map(|(inner, _)| format!("{name}/{inner}")));
        }
    }
    Ok(names)
}

/// What a directory holds by name, and whether it is a folder.
///
/// # Errors
/// When a name is no text, so that it cannot be one that belongs there.
fn entries(directory: &Path) -> Result<Vec<(String, bool)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io(directory))? {
        let entry = entry.map_err(Error::io(directory))?;
        let is_folder = entry.file_type().map_err(Error::io(directory))?.is_dir();
        let name = entry.file_name().into_string().map_err(|name| would_be_lost(directory, &name))?;
        entries.push((name, is_folder));
    }
    Ok(entries)
}

fn would_be_lost(directory: &Path, name: &dyn std::fmt::Debug) -> Error {
    Error::malformed(directory, format!("holds {name:?}, which would be lost; remove the directory yourself"))
}

/// A new directory at `path`, locked. A stale one is removed; of one that another process holds locked, keep off.
fn claim(path: &Path) -> io::Result<File> {
    let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it");
    loop {
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        let directory = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // another process was faster
            directory => directory?,
        };
        if !directory.metadata()?.is_dir() {
            return Err(io::Error::other("exists and is not a directory"));
        }
        match (lock(&directory)?, made) {
            (false, _) => return Err(busy()),
            (true, true) if is_at(&directory, path) => return Ok(directory),
            (true, true) => {}
            (true, false) if is_at(&directory, path) => fs::remove_dir_all(path)?,
            (true, false) => {}
        }
    }
}

fn is_at(directory: &File, path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| directory.metadata().is_ok_and(|held| is_same(&found, &held)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn it_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let names = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let directory = AtomicDirectory::create(&target).unwrap();
        fs::write(directory.path().join("config.json"), "1").unwrap();
        assert!(!target.exists());
        let busy = AtomicDirectory::create(&target).err().unwrap().to_string();
        assert!(busy.contains("another process is writing it"), "{busy}");
        drop(directory);
        assert!(names().is_empty());

        // Left behind by a process that was killed.
        fs::create_dir(folder.path().join(".model.mlxpack-partial")).unwrap();
        fs::write(folder.path().join(".model.mlxpack-partial/stale"), "").unwrap();
        let directory = AtomicDirectory::create(&target).unwrap();
        fs::write(directory.path().join("config.json"), "2").unwrap();
        directory.commit(None).unwrap();
        assert_eq!(names(), ["model"]);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }

    #[test]
    fn only_what_belongs_there_is_replaced_and_only_if_asked() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let write = |replaced| {
            let directory = AtomicDirectory::create(&target).unwrap();
            fs::write(directory.path().join("new.json"), "").unwrap();
            directory.commit(replaced)
        };
        let json = Belongs { belongs: |name| name.ends_with(".json") && name != "inner/x.json", needs: "old.json" };
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old.json"), "").unwrap();
        fs::write(target.join("notes"), "mine").unwrap();
        assert!(matches!(write(None), Err(Error::Exists(_))));
        assert!(write(Some(json)).unwrap_err().to_string().contains("\"notes\""));
        fs::remove_file(target.join("notes")).unwrap();
        fs::create_dir(target.join("inner.json")).unwrap();
        assert!(write(Some(json)).unwrap_err().to_string().contains("\"inner.json/\""));
        fs::remove_dir(target.join("inner.json")).unwrap();
        let no_text = target.join(OsString::from_vec(b"\xff.json".to_vec()));
        if fs::write(&no_text, "").is_ok() {
            assert!(write(Some(json)).unwrap_err().to_string().contains("\"\\xFF.json\""));
            fs::remove_file(no_text).unwrap();
        }
        fs::create_dir(target.join("inner")).unwrap();
        fs::write(target.join("inner/x.json"), "").unwrap();
        assert!(write(Some(json)).unwrap_err().to_string().contains("\"inner/x.json\""));
        fs::rename(target.join("inner/x.json"), target.join("inner/y.json")).unwrap();
        fs::rename(target.join("old.json"), target.join("other.json")).unwrap();
        assert!(write(Some(json)).unwrap_err().to_string().contains("has no old.json"));
        fs::rename(target.join("other.json"), target.join("old.json")).unwrap();
        write(Some(json)).unwrap();
        assert!(target.join("new.json").exists() && !target.join("old.json").exists());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
