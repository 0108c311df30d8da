//! What the cache holds, and letting go of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::folder::{Folder, INCOMPLETE, names};
use super::name::is_commit;
use super::shared;
use crate::error::{Error, HubProblem, Result};

/// The most names that an error offers.
const MAX_NEAREST: usize = 3;

/// A model in the cache, at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// `org/name`.
    pub repository: String,
    /// Its commit.
    pub commit: String,
    /// The branches and tags that were this commit when they were last asked for.
    pub revisions: Vec<String>,
    /// Where it is.
    pub path: PathBuf,
    /// What its files take; those that it shares with other commits too.
    pub bytes: u64,
    /// The first of a model's files that is not here; `None` when it is whole.
    pub missing: Option<String>,
}

/// All models in the cache, by name and commit.
///
/// # Errors
/// When the cache is there and cannot be read.
pub fn stored(cache: &Path) -> Result<Vec<Stored>> {
    let mut all = Vec::new();
    for (repository, folder) in Folder::all(cache)? {
        let mut revisions = revisions(&folder)?;
        for commit in folder.commits()? {
            let path = folder.snapshot(&commit);
            let blobs: BTreeSet<PathBuf> = files(&path).filter_map(|file| fs::canonicalize(file).ok()).collect();
            let bytes = blobs.iter().filter_map(|blob| Some(fs::metadata(blob).ok()?.len())).sum();
            let missing = Folder::missing(&path).unwrap_or(None); // what is malformed is there
            let revisions = revisions.remove(&commit).unwrap_or_default();
            all.push(Stored { repository: repository.clone(), commit, revisions, path, bytes, missing });
        }
    }
    Ok(all)
}

/// Remove a model from the cache, or of its commits only the one that a revision is. The bytes that this frees.
///
/// # Errors
/// [`HubProblem::NotCached`], with names that are like it; [`HubProblem::Busy`] while it is downloaded; when a file cannot be removed.
pub fn remove(cache: &Path, repository: &str, revision: Option<&str>) -> Result<u64> {
    let asked = revision.map_or_else(|| repository.to_owned(), |revision| format!("{repository}@{revision}"));
    let error = |problem| Error::Hub { name: asked.clone(), problem };
    let all = Folder::all(cache)?;
    let Some((_, folder)) = all.iter().find(|(found, _)| found == repository) else {
        let nearest = nearest(repository, all.iter().map(|(name, _)| name.clone()));
        return Err(error(HubProblem::NotCached { cache: cache.to_owned(), nearest }));
    };
    // While these are held, nobody writes a blob.
    let mut locks = Vec::new();
    for name in names(&folder.blobs())? {
        let etag = name.split('.').next().unwrap_or_default();
        if name.ends_with(INCOMPLETE) && folder.locks().is_dir() {
            locks.push(folder.try_lock(etag)?.ok_or_else(|| error(HubProblem::Busy))?);
        }
    }
    let commits = folder.commits()?;
    let Some(revision) = revision else { return remove_all(cache, folder) };
    let Some(commit) = folder.commit_of(revision)?.filter(|commit| commits.contains(commit)) else {
        let known = revisions(folder)?.into_values().flatten();
        let nearest = known.take(MAX_NEAREST).map(|revision| format!("{repository}@{revision}")).collect();
        return Err(error(HubProblem::NotCached { cache: cache.to_owned(), nearest }));
    };
    if commits.len() == 1 {
        return remove_all(cache, folder);
    }
    for revision in revisions(folder)?.remove(&commit).unwrap_or_default() {
        let path = folder.refs().join(revision);
        fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    let snapshot = folder.snapshot(&commit);
    let mut blobs = blobs_of(&snapshot);
    fs::remove_dir_all(&snapshot).map_err(Error::io(&snapshot))?;
    for other in commits.iter().filter(|other| **other != commit) {
        let used = blobs_of(&folder.snapshot(other));
        blobs.retain(|blob| !used.contains(blob));
    }
    blobs.iter().map(|name| remove_blob(cache, &folder.blob(name))).sum()
}

/// Blobs last: what is broken off leaves no name without its file.
fn remove_all(cache: &Path, folder: &Folder) -> Result<u64> {
    for path in [folder.refs(), folder.snapshots()] {
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
    }
    let mut freed = 0;
    for name in names(&folder.blobs())? {
        freed += remove_blob(cache, &folder.blob(&name))?;
    }
    fs::remove_dir_all(folder.path()).map_err(Error::io(&folder.path()))?;
    let _ = fs::remove_dir_all(folder.locks());
    Ok(freed)
}

fn remove_blob(cache: &Path, blob: &Path) -> Result<u64> {
    let shared = shared::target(cache, blob);
    let bytes = fs::symlink_metadata(blob).map_or(0, |found| if found.is_file() { found.len() } else { 0 });
    match fs::remove_file(blob) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::Io { path: blob.to_owned(), error });
        }
        _ => {}
    }
    Ok(bytes + shared.map_or(0, |shared| shared::let_go(cache, &shared)))
}

/// The names of the blobs that a snapshot's files are links to.
fn blobs_of(snapshot: &Path) -> BTreeSet<String> {
    let blob = |file: PathBuf| Some(fs::read_link(file).ok()?.file_name()?.to_str()?.to_owned());
    files(snapshot).filter_map(blob).collect()
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = WalkDir::new(folder).into_iter().filter_map(Result::ok);
    entries.filter(|entry| !entry.file_type().is_dir()).map(walkdir::DirEntry::into_path)
}

/// Branches and tags by their commits.
fn revisions(folder: &Folder) -> Result<BTreeMap<String, Vec<String>>> {
    let mut revisions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let refs = folder.refs();
    for path in files(&refs) {
        let commit = fs::read_to_string(&path).map_err(Error::io(&path))?;
        if let (true, Ok(name)) = (is_commit(commit.trim()), path.strip_prefix(&refs)) {
            revisions.entry(commit.trim().to_owned()).or_default().push(name.display().to_string());
        }
    }
    revisions.values_mut().for_each(|names| names.sort());
    Ok(revisions)
}

/// Those that are spelt nearly so.
fn nearest(name: &str, known: impl Iterator<Item = String>) -> Vec<String> {
    let alike = |other: &str| {
        let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_lowercase();
        strsim::jaro_winkler(&last(name), &last(other))
    };
    let mut near: Vec<(f64, String)> =
        known.map(|other| (alike(&other), other)).filter(|(alike, _)| *alike > 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(MAX_NEAREST).map(|(_, other)| other).collect()
}
