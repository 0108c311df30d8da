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

    /// The machine has so much other work that this was not done in time.
    #[error("the machine is too busy: {0}")]
    Busy(String),

    /// The input cannot be generated from: no tokens, too many, or an id outside the vocabulary.
    #[error("{0}")]
    Input(String),

    /// An option of a generation is out of its range.
    #[error("{setting} is {found}, expected {expected}")]
    Setting { setting: &'static str, found: String, expected: Cow<'static, str> },

    /// A file is in the way of one that was to be written.
    #[error("{path}: exists already", path = .0.display())]
    Exists(PathBuf),

    /// A model of the hub could not be had; `name` is what was asked for.
    #[cfg(feature = "hub")]
    #[error("{name}: {problem}")]
    Hub { name: String, problem: HubProblem },

    /// A [`Watch`](crate::Watch) asked to stop.
    #[error("interrupted")]
    Interrupted,

    /// Ranks that compute one model together could not meet, do not agree, or one of them is gone.
    #[error("{0}")]
    Ranks(String),

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

/// Why a model of the hub could not be had.
#[cfg(feature = "hub")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum HubProblem {
    /// It would have to be downloaded, which was not allowed.
    #[error("not in the cache at {cache}, and --offline or HF_HUB_OFFLINE keeps from the network; with one, `mlx_lm pull {name}` fetches it", cache = cache.display())]
    Offline { cache: PathBuf, name: String },

    /// Only a part is here, and the rest would have to be downloaded, which was not allowed.
    #[error(
        "the cache holds a part of it, without {file}, and --offline or HF_HUB_OFFLINE keeps from the network; with one, `mlx_lm pull {name}` fetches the rest"
    )]
    OfflineInPart { file: String, name: String },

    /// The hub did not answer at all.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },

    /// The hub has no such model, or does not tell this user of it.
    #[error("there is no such model at {host}{token}", token = if *has_token { ", or your token may not read it" } else { "" })]
    Missing { host: String, has_token: bool },

    /// To those without a token the hub says the same of a private model and of none.
    #[error(
        "not a public model of {host}: the name is wrong, or it is private and needs a token that may read it, in HF_TOKEN or by `hf auth login`"
    )]
    NeedsToken { host: String },

    /// Its owners let only those read it who ask for it.
    #[error("gated: its owners ask you to accept their terms at {page}{token}", token = if *has_token { ", as the user whose token you gave" } else { ", and HF_TOKEN or `hf auth login` then says who you are" })]
    Gated { page: String, has_token: bool },

    /// The hub does not know the token.
    #[error("{host} does not accept the token of HF_TOKEN or of `hf auth login`: it is wrong or has expired")]
    WrongToken { host: String },

    /// The model is there, the revision is not.
    #[error("it has no revision {revision:?}")]
    NoRevision { revision: String },

    /// The hub limits how often one may ask.
    #[error(
        "{host} lets nobody ask so often (429) and says to come back in {seconds} s; with a token (HF_TOKEN) one may ask more"
    )]
    RateLimited { host: String, seconds: u64 },

    /// Another refusal.
    #[error("{host} refuses it with status {status}{message}")]
    Refused { host: String, status: u16, message: String },

    /// The hub's answer is not what its interface promises.
    #[error("{host} does not answer as a hub does: {problem}; does HF_ENDPOINT name one?")]
    NoHub { host: String, problem: String },

    /// A connection was lost, and could not be had again.
    #[error(
        "{file}: the connection was lost after {bytes} of {size} bytes ({reason}); they are kept, and the same command goes on from there"
    )]
    CutOff { file: String, bytes: u64, size: u64, reason: String },

    /// What came is not what the hub's hash says.
    #[error("{file}: what was downloaded is damaged: its {kind} is {found}, expected {expected}; it was thrown away")]
    WrongHash { file: String, kind: &'static str, found: String, expected: String },

    /// The disk is full, or would be.
    #[error("there is no room for it: {needed} bytes are needed and {free} are free at {path}; `mlx_lm list` shows what is there, and HF_HUB_CACHE names another place", path = path.display())]
    NoSpace { path: PathBuf, needed: u64, free: u64 },

    /// It has weights in no form that is read here.
    #[error("its weights are {what}; {advice}")]
    NoSafetensors { what: String, advice: &'static str },

    /// It lacks a file that every model has.
    #[error("it has no {file}, which a model needs")]
    NoModel { file: &'static str },

    /// Another process downloads it.
    #[error("another process is downloading it")]
    Busy,

    /// The cache does not hold it; names that are like it.
    #[error("not in the cache at {cache}{nearest}", cache = cache.display(), nearest = in_words(nearest))]
    NotCached { cache: PathBuf, nearest: Vec<String> },
}

#[cfg(feature = "hub")]
fn in_words(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; did you mean {}?", nearest.join(" or ")) }
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
