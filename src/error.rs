//! The library's error: every variant names the file, field or tensor that it is about and what would be right.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// What can go wrong between a path on the command line and generated text. One line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Error {
    /// A file or directory could not be read.
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: std::io::Error },

    /// A file is missing from a checkpoint.
    #[error("{path}: not found; {expected}", path = path.display())]
    Missing { path: PathBuf, expected: String },

    /// A file's content is not of its format.
    #[error("{path}: {problem}", path = path.display())]
    Malformed { path: PathBuf, problem: String },

    /// A field of a configuration file has a value that cannot be used.
    #[error("{path}: `{field}` is {found}, expected {expected}", path = path.display())]
    Field { path: PathBuf, field: String, found: String, expected: String },

    /// A well-formed checkpoint asks for something this library does not implement.
    #[error("{path}: {what} is not supported; {supported}", path = path.display())]
    Unsupported { path: PathBuf, what: String, supported: String },

    /// A tensor is missing, misshapen, of the wrong type, present twice or unused.
    #[error("{path}: tensor `{tensor}` {problem}", path = path.display())]
    Tensor { path: PathBuf, tensor: String, problem: String },

    /// A chat template did not compile, or refused the conversation.
    #[error("chat template: {0}")]
    Template(String),

    /// The input cannot be generated from: no tokens, too many, or an id outside the vocabulary.
    #[error("{0}")]
    Input(String),

    /// An option of a generation is out of its range.
    #[error("{setting} is {found}, expected {expected}")]
    Setting { setting: &'static str, found: String, expected: Cow<'static, str> },

    /// A file is in the way of one that was to be written.
    #[error("{path}: exists already", path = .0.display())]
    Exists(PathBuf),

    /// A [`Watch`](crate::Watch) asked to stop.
    #[error("interrupted")]
    Interrupted,

    /// Memory ran out; how much was wanted, and what for.
    #[error("out of memory: {0}")]
    OutOfMemory(String),

    /// The model's logits are not numbers: its weights are damaged, or its numbers left the range of their type.
    #[error("{0}")]
    NotANumber(String),

    /// A computation failed where it should not have, which is a defect of this library.
    #[error("internal error: {0}; please report it")]
    Internal(String),

    /// MLX refused an operation.
    #[error("MLX: {0}")]
    Mlx(String),
}

/// What a panic says.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    message.unwrap_or("no message")
}

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<mlx_rs::error::Exception> for Error {
    fn from(exception: mlx_rs::error::Exception) -> Self {
        let message = first_line(exception.what());
        match message.strip_prefix(OUT_OF_MEMORY) {
            Some(wanted) => Error::OutOfMemory(wanted.to_owned()),
            // What C++ says of a thread that it could not start.
            None if message == "Resource temporarily unavailable" => {
                Error::OutOfMemory("a thread to compute on could not be started".into())
            }
            None => Error::Mlx(message.to_owned()),
        }
    }
}

/// How a message of `primitive.cpp` begins that becomes [`Error::OutOfMemory`].
const OUT_OF_MEMORY: &str = "out of memory: ";

/// MLX's message without the place in its C++ sources, and without a compiler's log.
fn first_line(what: &str) -> &str {
    let line = what.lines().next().unwrap_or_default();
    line.rsplit_once(" at ").filter(|(_, place)| place.contains(".cpp:")).map_or(line, |(message, _)| message)
}

impl Error {
    /// For `map_err`: an I/O error about `path`.
    /// The same, for another whom it concerns.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Error::Io { path, error } => {
                Error::Io { path: path.clone(), error: std::io::Error::new(error.kind(), error.to_string()) }
            }
            Error::Malformed { path, problem } => Error::Malformed { path: path.clone(), problem: problem.clone() },
            Error::Input(problem) => Error::Input(problem.clone()),
            Error::Interrupted => Error::Interrupted,
            Error::OutOfMemory(wanted) => Error::OutOfMemory(wanted.clone()),
            Error::NotANumber(problem) => Error::NotANumber(problem.clone()),
            Error::Internal(problem) => Error::Internal(problem.clone()),
            other => Error::Mlx(other.to_string()),
        }
    }

    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |error| Error::Io { path: path.to_owned(), error }
    }

    pub(crate) fn malformed(path: &Path, problem: impl ToString) -> Self {
        Error::Malformed { path: path.to_owned(), problem: problem.to_string() }
    }

    pub(crate) fn field(
        path: &Path,
        field: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Error::Field { path: path.to_owned(), field: field.into(), found: found.to_string(), expected: expected.into() }
    }

    pub(crate) fn setting(setting: &'static str, found: impl ToString, expected: impl Into<Cow<'static, str>>) -> Self {
        Error::Setting { setting, found: found.to_string(), expected: expected.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Error::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), problem: problem.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, supported: impl Into<String>) -> Self {
        Error::Unsupported { path: path.to_owned(), what: what.into(), supported: supported.into() }
    }
}
