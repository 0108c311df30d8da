//! What ranks tell each other besides numbers: lines of JSON over TCP.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::Phase;
use crate::generate::kv_cache::CacheLimits;

/// From rank 0 to all others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Load a model and answer with [`Reply::Loaded`].
    Load {
        /// What later messages call it.
        model: u64,
        source: Source,
    },
    /// Let go of a model and its caches.
    Unload { model: u64 },
    /// Describe a forward pass over the next tokens of these sequences.
    Pass {
        model: u64,
        spans: Vec<SpanOf>,
        /// Caches that no pass will ask for again.
        released: Vec<u64>,
    },
    /// Describe the logits of these tokens of the last pass.
    Logits { model: u64, tokens: Range<i32>, phase: Phase },
    /// Compute what was described, and after the pass of this number say what it was.
    Compute { check: Option<u64> },
    /// All is done.
    End,
    /// Rank 0 ends, since something went wrong.
    Failed { problem: String },
}

/// Where a model comes from; paths are those of rank 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// A directory or a pack.
    Path(PathBuf),
    /// The demo model inside the program.
    Demo,
    /// Random weights of a named architecture, of so many bits.
    Synthetic(String, u32),
}

/// The next tokens of a sequence, and its cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SpanOf {
    pub cache: u64,
    /// The cache that it is a copy of, where it is new.
    pub copy_of: Option<u64>,
    /// How many tokens it holds; where it held more, the last ones are forgotten.
    pub len: i32,
    pub limits: CacheLimits,
    pub tokens: i32,
    pub phase: Phase,
}

/// What a rank says of itself when it comes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The secret that all ranks of a group were told.
    pub secret: u64,
    pub rank: i32,
    pub version: String,
    pub arguments: Vec<String>,
}

/// From another rank to rank 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// With [`crate::Model::identity`].
    Loaded { identity: String },
    /// What this rank has computed until a pass: a hash.
    Computed { pass: u64, hash: u64 },
    /// This rank ends, since something went wrong.
    Failed { problem: String },
    /// This rank ends as it should.
    Done,
}

/// One end's messages to the other.
pub(crate) fn write<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// The other end's messages, one after another.
pub(crate) struct Reader(BufReader<TcpStream>);

impl Reader {
    pub fn new(stream: TcpStream) -> Self {
        Reader(BufReader::new(stream))
    }

    /// The next, or `None` where the connection ends.
    pub fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }
}
