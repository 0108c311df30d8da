//! Extracting packs: all files that were asked for, or none.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::pieces::{Progress, stream};
use super::reader::{Damage, Pack, Storage, damage};
use crate::atomic_file::{self, AtomicFile, directory_of};
use crate::error::{Error, Result};
use crate::watch::Watch;

impl Pack {
    /// Write all files, or the one called `name`, below `output`, which is made if it is not there. Until all are whole,
    /// right and on disk, each is in `.NAME.mlxpack-partial` next to its place; then all get their names. With an error
    /// they go away, and so do the folders that were made for them. `output` is locked meanwhile.
    ///
    /// # Errors
    /// When a file exists and `overwrite` is not set, `name` is not in the pack, a file is damaged, another process is
    /// extracting into `output`, writing fails, or `watch` stops it. Should renaming itself fail midway, files that
    /// were replaced by then stay so.
    pub fn extract(&self, output: &Path, name: Option<&str>, overwrite: bool, watch: &mut Watch) -> Result<()> {
        let entries = match name {
            None => self.entries(),
            Some(name) => match self.entries().iter().position(|entry| entry.name == name) {
                Some(at) => &self.entries()[at..=at],
                None => {
                    let names: Vec<&str> = self.entries().iter().map(|entry| entry.name.as_str()).collect();
                    let expected = format!("the pack holds {}", names.join(", "));
                    return Err(Error::Missing { path: self.path().join(name), expected });
                }
            },
        };
        if fs::metadata(output).is_ok_and(|found| !found.is_dir()) {
            return Err(Error::malformed(output, "exists and is not a directory"));
        }
        let mut folders = Folders::default();
        folders.make(output)?;
        let _lock = lock(output)?;
        for entry in entries {
            let target = output.join(&entry.name);
            atomic_file::refuse_existing(&target, overwrite)?;
            if let (Storage::File(file), Ok(found)) = (self.storage(), fs::metadata(&target))
                && file.metadata().is_ok_and(|pack| atomic_file::is_same(&pack, &found))
            {
                return Err(Error::malformed(&target, "is the pack itself"));
            }
        }
        let mut progress = Progress::new(entries.iter().map(|entry| entry.length).sum(), watch);
        let mut files = Vec::new();
        for entry in entries {
            folders.make_below(output, &entry.name)?;
            let target = AtomicFile::create(&output.join(&entry.name), overwrite)?;
            let source = self.path_of(entry);
            let digests = stream(
                entry.length,
                |buffer, at| self.read_at(entry, buffer, at).map_err(Error::io(&source)),
                |buffer, at| target.write_at(buffer, at),
                &mut progress,
            )?;
            if let Some(Damage { problem, .. }) = damage(entry, &digests) {
                return Err(Error::malformed(&source, problem));
            }
            files.push(target.close()?);
        }
        progress.tell()?;
        let mut placed = Vec::new();
        for file in files {
            match file.rename() {
                Ok(target) => placed.push(target),
                Err(error) => {
                    // Of those that replaced another file, that one is gone already.
                    if !overwrite {
                        placed.iter().for_each(|target| drop(fs::remove_file(target)));
                    }
                    return Err(error);
                }
            }
        }
        let paths = placed.iter().chain(&folders.made);
        paths.map(|path| directory_of(path)).collect::<BTreeSet<_>>().into_iter().for_each(atomic_file::sync_directory);
        folders.made.clear();
        Ok(())
    }
}

/// Folders that were not there before. Dropped, those that are empty are removed.
#[derive(Default)]
struct Folders {
    /// Outer ones before inner ones.
    made: Vec<PathBuf>,
}

impl Folders {
    /// Make a folder and those that it is in.
    fn make(&mut self, folder: &Path) -> Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        self.make(directory_of(folder))?;
        match fs::create_dir(folder) {
            Ok(()) => self.made.push(folder.to_owned()),
            Err(_) if folder.is_dir() => {} // made by another process, or by way of `..`
            Err(error) => return Err(Error::Io { path: folder.to_owned(), error }),
        }
        Ok(())
    }

    /// Make the folders that lead to `name` below `output`, without following links out of it.
    fn make_below(&mut self, output: &Path, name: &str) -> Result<()> {
        for (slash, _) in name.match_indices('/') {
            let folder = output.join(&name[..slash]);
            match fs::symlink_metadata(&folder) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(Error::malformed(&folder, "exists and is not a directory")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(&folder).map_err(Error::io(&folder))?;
                    self.made.push(folder);
                }
                Err(error) => return Err(Error::Io { path: folder, error }),
            }
        }
        Ok(())
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        self.made.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

/// Locked as long as the result lives.
fn lock(output: &Path) -> Result<File> {
    let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another process is extracting into it");
    let directory = File::open(output).map_err(Error::io(output))?;
    match atomic_file::lock(&directory) {
        Ok(true) => Ok(directory),
        Ok(false) => Err(Error::Io { path: output.to_owned(), error: busy() }),
        Err(error) => Err(Error::Io { path: output.to_owned(), error }),
    }
}
