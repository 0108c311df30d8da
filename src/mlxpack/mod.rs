//! `.mlxpack`: one file that holds a whole model. This is the specification of version 1.
//!
//! A pack is a table of files, then the files themselves, byte for byte. All integers outside of JSON are unsigned and
//! little-endian.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic: `89 4D 4C 58 50 0D 0A 1A` (`\x89MLXP\r\n\x1A`) |
//! | 8 | 8 | version: 1 |
//! | 16 | 8 | N, the header's length in bytes: at most 100,000,000 |
//! | 24 | 32 | SHA-256 of bytes 0 to 23 and the header, one after the other |
//! | 56 | N | header: JSON in UTF-8, spaces at its end allowed |
//! | 56 + N | | the files in the order of the header; the last one's end is the pack's end |
//!
//! The header is an object:
//!
//! ```json
//! {
//!   "summary": { "architecture": "LlamaForCausalLM", "hidden_size": 2048, "…": "…" },
//!   "files": [
//!     { "name": "config.json", "offset": 4096, "length": 804, "sha256": ["9f86d081…"] },
//!     { "name": "model.safetensors", "offset": 36828, "length": 695284124, "sha256": ["60303ae2…", "…"] }
//!   ]
//! }
//! ```
//!
//! - `name`: a relative path with `/` between its parts, at most 1024 bytes. It consists of ASCII characters from space
//!   to `~`, without `\ : * ? " < > |`. A part has 1 to 200 bytes, does not end in a dot or a space (so it is not `.` or
//!   `..`), does not end in `.mlxpack-partial`, and what comes before its first dot is not `con`, `prn`, `aux`, `nul`,
//!   `com1` to `com9` or `lpt1` to `lpt9`. In all of this, and when two names are compared, the case of ASCII letters
//!   does not count: no name may be there twice, and none may be a folder of another. At most 10,000 files.
//! - `offset`, `length`: the file's bytes in the pack. A file starts less than 4096 bytes after the end of the one
//!   before (the first: of the header); the bytes between are zero, which `verify` checks and other readers need not.
//! - `sha256`: the SHA-256 of each 16 MiB of the file (16,777,216 bytes; the last piece is what remains), in lower-case
//!   hexadecimal. An empty file has none; a file of at most 16 MiB has one, which is that of the file.
//! - `summary`: what `mlxpack info` shows without reading further; see [`Summary`]. Readers may ignore it, and take one
//!   that they do not understand for none.
//!
//! Numbers are written as decimal digits alone, below 2^64. Of the names that are explained here, an object has none
//! twice.
//!
//! **Alignment.** A writer places each file such that its first byte lies at a multiple of 4096; of a safetensors file
//! (one whose name ends in `.safetensors`) instead the first byte of tensor data, right after its own header, lies there.
//! So tensors can be used from a memory-map in place, even those of files that MLX wrote, whose headers have any length.
//! Readers check alignment where they need it and do not refuse a pack without.
//!
//! **Growth.** A reader of version 1 refuses every other version and ignores fields that it does not know.
//!
//! **Determinism.** The same files pack to the same bytes: a pack holds no time, path, owner or tool version, the
//! safetensors files that the model loads come last, both they and the files before them are sorted by the bytes of
//! their names, and the header is padded with spaces to end at a multiple of 4096.
//!
//! # What was learned from whom
//!
//! - **GGUF**: one file with the tokenizer inside, aligned and mapped, is what people want. It re-encodes configuration
//!   and tokenizer into its own types, so every new field waits for a converter; here the files stay what they are.
//!   It has no checksums.
//! - **safetensors**: length, JSON header, data; nothing to execute, a limit on the header before anything is allocated,
//!   no gaps and no overlaps. Its data is aligned only if its writer padded the header, and it too has no checksums.
//! - **zip**: names are input from a stranger, so `..`, absolute paths and twins are refused here when a pack is opened,
//!   not when it is unpacked. Its table stands both at the end and before each file, and readers disagree when the
//!   two do; here is one table, at the front. CRC-32 finds accidents, not intent.
//! - **squashfs**: page-aligned contents that are used in place, a version that is checked first, and no way to write
//!   into a finished image. It compresses; packed weights do not shrink, and could not be mapped.

mod extract;
mod header;
mod info;
mod inspect;
mod pieces;
mod reader;
mod summary;
mod writer;

pub use header::Entry;
pub use info::{Bytes, FileInfo, Info, TensorInfo};
pub use inspect::inspect;
pub(crate) use reader::Place;
pub use reader::{Damage, Pack};
pub use summary::{QuantizationSummary, Summary, TokenizerSummary};
pub use writer::Plan;
pub(crate) use writer::is_text;
#[cfg(feature = "hub")]
pub(crate) use writer::{TEXTS, is_about};
