//! Packing: which files of a model directory go into a pack, and how they get there.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use globset::GlobBuilder;
use walkdir::WalkDir;

use super::header::{self, Entry, Header};
use super::pieces::{self, Digest, Progress, stream};
use super::summary::Summary;
use crate::atomic_file::{self, AtomicFile};
use crate::checkpoint::{Checkpoint, TEMPLATES, WEIGHTS_INDEX, template_name};
use crate::error::{Error, Result};
use crate::watch::Watch;

/// The files besides the weights that running a model needs.
pub(crate) const TEXTS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    WEIGHTS_INDEX,
];
/// What the names of texts about a model begin with, in lower case.
const ABOUT: [&str; 6] = ["license", "licence", "notice", "copying", "use_policy", "readme"];

/// A model directory about to be packed.
#[derive(Debug)]
pub struct Plan {
    root: PathBuf,
    summary: Summary,
    /// Texts, then weights, each sorted by name.
    files: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    name: String,
    path: PathBuf,
    found: Metadata,
    /// The byte that goes to an aligned place in the pack.
    anchor: u64,
}

impl Plan {
    /// Choose the files: config, tokenizer, weights with their index, licence and README, and what the shell patterns
    /// in `include` match (`*` stays within a folder, `**` does not; names that begin with a dot match only where the
    /// pattern has that dot).
    ///
    /// # Errors
    /// When `checkpoint` is not a directory, a file cannot be read or is not one, a pattern is wrong or matches nothing,
    /// or a name may not be in a pack.
    pub fn new(checkpoint: &Checkpoint, summary: Summary, include: &[String]) -> Result<Self> {
        let root = checkpoint.directory()?.to_owned();
        let weights = checkpoint.weight_names().unwrap_or_else(|error| {
            log::warn!("packing no weights: {error}");
            BTreeSet::new()
        });
        let names = checkpoint.names()?.into_iter().chain(checkpoint.names_in(TEMPLATES)?);
        let mut texts: BTreeSet<String> = names.filter(|name| is_text(name)).collect();
        texts.retain(|name| match header::check_name(name) {
            Ok(()) => true,
            Err(problem) => {
                log::warn!("not packed: {problem}");
                false
            }
        });
        for pattern in include {
            texts.extend(matching(&root, pattern)?);
        }
        let names = texts.difference(&weights).chain(&weights);
        header::check_names(names.clone().map(String::as_str)).map_err(|e| Error::malformed(&root, e))?;
        let files = names.map(|name| Source::new(checkpoint, name)).collect::<Result<Vec<_>>>()?;
        if files.is_empty() {
            return Err(Error::malformed(&root, "holds no file of a model"));
        }
        Ok(Plan { root, summary, files })
    }

    /// What the pack will say of its model.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Name and length in bytes of each file.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|file| (file.name.as_str(), file.found.len()))
    }

    /// Write the pack and give its length in bytes. It appears at `output` when it is complete and on disk; until then
    /// its bytes are in `.NAME.mlxpack-partial` next to it, which goes away with any error, and which the next call
    /// for this `output` takes over should the process be killed.
    ///
    /// # Errors
    /// When `output` exists and `overwrite` is not set or it is not a file, when it is inside the model's directory, when
    /// a file changes meanwhile, when reading or writing fails, or when `watch`, which is told
    /// the bytes of the files, stops it.
    pub fn write(&self, output: &Path, overwrite: bool, watch: &mut Watch) -> Result<u64> {
        self.refuse_inside(output)?;
        atomic_file::refuse_existing(output, overwrite)?;
        let existing = fs::metadata(output).ok();
        if existing.is_some_and(|existing| self.files.iter().any(|file| atomic_file::is_same(&file.found, &existing))) {
            return Err(Error::malformed(output, "is one of the files that are packed"));
        }
        let blank = |file: &Source| Entry {
            name: file.name.clone(),
            offset: 0,
            length: file.found.len(),
            sha256: vec![Digest::default(); pieces::count(file.found.len()) as usize],
        };
        let mut header = Header { summary: self.summary.clone(), files: self.files.iter().map(blank).collect() };
        let anchors: Vec<u64> = self.files.iter().map(|file| file.anchor).collect();
        let header_end = header.place(&anchors).len() as u64;
        let length = header.files.last().map_or(header_end, Entry::end);

        let target = AtomicFile::create(output, overwrite)?;
        target.set_len(length)?;
        let mut progress = Progress::new(self.files.iter().map(|file| file.found.len()).sum(), watch);
        for (source, entry) in self.files.iter().zip(&mut header.files) {
            let file = source.open()?;
            let changed = || Error::malformed(&source.path, "changed while it was being packed");
            entry.sha256 = stream(
                entry.length,
                |buffer, at| {
                    file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => changed(),
                        _ => Error::Io { path: source.path.clone(), error },
                    })
                },
                |buffer, at| target.write_at(buffer, entry.offset + at),
                &mut progress,
            )?;
            if !source.is_unchanged(&file)? {
                return Err(changed());
            }
        }
        target.write_at(&header.to_bytes(header_end), 0)?;
        target.commit(|| progress.tell())?;
        Ok(length)
    }

    fn refuse_inside(&self, output: &Path) -> Result<()> {
        let parent = atomic_file::directory_of(output);
        let parent = fs::canonicalize(parent).map_err(Error::io(parent))?;
        let root = fs::canonicalize(&self.root).map_err(Error::io(&self.root))?;
        match parent.starts_with(&root) {
            true => Err(Error::malformed(output, "lies inside the directory that is packed; write it elsewhere")),
            false => Ok(()),
        }
    }
}

impl Source {
    fn new(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        let path = checkpoint.path(name);
        // Follows links, of which the Hugging Face cache is made.
        let found = fs::metadata(&path).map_err(Error::io(&path))?;
        if !found.is_file() {
            return Err(Error::malformed(&path, "not a regular file"));
        }
        let anchor = match name.ends_with(".safetensors") {
            // Only an unchecked pack gets this far with a file that is not safetensors inside.
            true => checkpoint.tensor_index(name).map_or(0, |index| index.data_start),
            false => 0,
        };
        Ok(Source { name: name.to_owned(), path, found, anchor })
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(Error::io(&self.path))
    }

    fn is_unchanged(&self, file: &File) -> Result<bool> {
        let now = file.metadata().map_err(Error::io(&self.path))?;
        Ok(now.is_file() && now.len() == self.found.len() && now.modified().ok() == self.found.modified().ok())
    }
}

/// Whether a file of this name, one without weights, belongs into a pack.
pub(crate) fn is_text(name: &str) -> bool {
    TEXTS.contains(&name) || is_about(name) || template_name(name).is_some()
}

/// Whether a file is a licence, a notice or a README.
pub(crate) fn is_about(name: &str) -> bool {
    let lower = name.to_lowercase();
    ABOUT.iter().any(|start| lower.starts_with(start))
}

/// The files below `root` that a shell pattern matches, as names of a pack.
fn matching(root: &Path, pattern: &str) -> Result<Vec<String>> {
    let problem = |problem: String| Error::Input(format!("pattern {pattern:?}: {problem}"));
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    let glob = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|e| problem(e.kind().to_string()))?;
    let matcher = glob.compile_matcher();
    let hidden = pattern.split('/').any(|part| part.starts_with('.'));
    let mut names = Vec::new();
    let walk = WalkDir::new(root).min_depth(1).follow_links(true).into_iter();
    for found in walk
        .filter_entry(|entry| hidden || entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b"."))
    {
        let below = |path: &Path| path.strip_prefix(root).expect("the walk stays below its root").to_owned();
        let path = match found {
            Ok(found) if found.file_type().is_dir() => continue,
            Ok(found) => below(found.path()),
            // A broken link or a loop of links counts only if it is asked for.
            Err(error) => match error.path().map(below) {
                Some(path) if !matcher.is_match(&path) => continue,
                _ => return Err(problem(error.to_string())),
            },
        };
        if !matcher.is_match(&path) {
            continue;
        }
        match path.to_str() {
            Some(name) => names.push(name.to_owned()),
            None => return Err(problem(format!("matches {}, whose name is not UTF-8", path.display()))),
        }
    }
    if names.is_empty() {
        return Err(problem(format!("matches no file below {}", root.display())));
    }
    Ok(names)
}
