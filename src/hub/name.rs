//! Names of models on the hub: `org/name`, and `org/name@revision`.
//!
//! The rules are those of Python's `huggingface_hub`, and of git for revisions. Names become parts of paths and of URLs, so nothing
//! else is one.

use std::fmt;
use std::path::Path;

/// The longest name that the hub has.
const MAX_NAME: usize = 96;

/// What `org/name` stands for where no revision is given.
const DEFAULT_REVISION: &str = "main";

/// A model of the hub at a revision: a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    repository: String,
    revision: Option<String>,
}

impl ModelName {
    /// `None` when the text is no name of a model, such as a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (organisation, name) = repository.split_once('/')?;
        let is_name = is_part(organisation) && is_part(name) && repository.len() <= MAX_NAME;
        let is_revision = revision.is_none_or(is_revision);
        (is_name && is_revision)
            .then(|| ModelName { repository: repository.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The same, of a path as it was typed.
    pub fn from_path(path: &Path) -> Option<Self> {
        Self::parse(path.to_str()?)
    }

    /// `org/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `main` where none was given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// Two hyphens stand for the slash in the names of folders.
fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
        && !part.ends_with(".git")
}

/// A name that git allows a branch or a tag; commits are such names too.
fn is_revision(revision: &str) -> bool {
    let is_char = |c: char| c.is_ascii_graphic() && !"~^:?*[\\\"<>|".contains(c);
    let is_component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    revision.len() <= 200
        && revision.chars().all(is_char)
        && revision.split('/').all(is_component)
        && !revision.contains("..")
        && !revision.contains("@{")
        && !revision.ends_with('.')
}

/// A whole commit's name.
pub(super) fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

/// So many digits, in lower case.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a repository's file of this name may be written into a snapshot's folder.
pub(super) fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && ![".", ".."].contains(&name)
        && !name.chars().any(|c| matches!(c, '/' | '\\') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for (text, repository, revision) in [
            ("mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-4B-4bit", "main"),
            ("a/b@v1.0", "a/b", "v1.0"),
            ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
            (
                "A_1/b.c-d@0123456789abcdef0123456789abcdef01234567",
                "A_1/b.c-d",
                "0123456789abcdef0123456789abcdef01234567",
            ),
        ] {
            let name = ModelName::parse(text).unwrap();
            assert_eq!((name.repository(), name.revision(), name.to_string().as_str()), (repository, revision, text));
        }
        for text in [
            "",
            "a",
            "a/",
            "/a",
            "/a/b",
            "a/b/c",
            "./a",
            "../a",
            "a/..",
            "a/b.",
            "-a/b",
            "a/b--c",
            "a--b/c",
            "a/b..c",
            "~/a",
            "a/b.git",
            "a b/c",
            "a/b@",
            "a/b@../c",
            "a/b@c..d",
            "a/b@/c",
            "a/b@c/",
            "a/b@c//d",
            "a/b@.c",
            "a/b@c.lock",
            "a/b@c\nd",
            "a/b@c d",
            "a/b@c\\d",
            "a/b@c?d",
            "ä/b",
            "a\0/b",
        ] {
            assert_eq!(ModelName::parse(text), None, "{text:?}");
        }
        assert_eq!(ModelName::parse(&format!("a/{}", "b".repeat(95))), None);
    }

    #[test]
    fn a_file_stays_in_its_folder() {
        assert!(["config.json", "a b", "..a", "LICENSE"].into_iter().all(is_file_name));
        assert!(!["", ".", "..", "../a", "a/b", "/a", "a\\b", "a\nb", "a\0"].into_iter().any(is_file_name));
        assert!(!is_file_name(&"a".repeat(256)));
    }
}
