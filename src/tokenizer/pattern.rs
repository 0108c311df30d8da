//! The patterns of `Replace` and `Split`: matched as `tokenizers` does, but within a bound.
//!
//! Oniguruma backtracks, which may take a time exponential in the text, and `tokenizers` lets it try ten million ways at
//! every position and then panics.

use std::fmt;

use onig::{MatchParam, Regex, Region, SearchOptions};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Offsets;

/// How often matching may backtrack, for each byte of a text. The patterns of real tokenizers do so a few times; those
/// that look for the end of a run of spaces, as often as the run is long.
const RETRIES_PER_BYTE: usize = 1000;
/// What matching at a position may use before it is counted.
const FIRST_RETRIES: u32 = 128;
/// `ONIGERR_RETRY_LIMIT_IN_MATCH_OVER` of oniguruma.h.
const RETRY_LIMIT_REACHED: i32 = -17;

/// A text to look for, or a regular expression.
#[derive(Debug)]
pub(super) enum Pattern {
    Literal(String),
    Regex { source: String, regex: Regex },
}

/// A pattern's JSON.
#[derive(Deserialize)]
enum Source {
    String(String),
    Regex(String),
}

impl Pattern {
    pub fn new(json: &Value) -> tokenizers::Result<Self> {
        Ok(match Source::deserialize(json)? {
            Source::String(text) => Pattern::Literal(text),
            Source::Regex(source) => Pattern::Regex { regex: Regex::new(&source)?, source },
        })
    }

    /// The matches in `text` from left to right; none overlaps another, and an empty one never follows another match
    /// at its end. An empty text has none.
    pub fn find(&self, text: &str) -> tokenizers::Result<Vec<Offsets>> {
        match self {
            _ if text.is_empty() => Ok(Vec::new()),
            Pattern::Literal(literal) => {
                Ok(text.match_indices(literal).map(|(at, found)| (at, at + found.len())).collect())
            }
            Pattern::Regex { regex, .. } => find_all(regex, text),
        }
    }
}

fn find_all(regex: &Regex, text: &str) -> tokenizers::Result<Vec<Offsets>> {
    let mut region = Region::new();
    let mut found = Vec::new();
    let (mut at, mut last_end) = (0, None);
    // A search is quick, but does not tell how often it tried; so once one meets a hard place, the rest of the text is
    // matched position by position, and the tries are counted.
    let mut retries = None;
    while at <= text.len() {
        let next = match &mut retries {
            Some(retries) => match_at(regex, text, at, retries, &mut region)?,
            None => match attempt(regex, text, at, FIRST_RETRIES, true, &mut region) {
                Err(error) if error.code() == RETRY_LIMIT_REACHED => {
                    retries = Some(RETRIES_PER_BYTE * text.len());
                    continue;
                }
                Ok(None) => break,
                found => found?,
            },
        };
        match next {
            Some((start, end)) if last_end != Some(end) => {
                found.push((start, end));
                (at, last_end) = (end, Some(end));
            }
            _ => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    Ok(found)
}

/// The match that begins at a position, or the first from there on.
fn attempt(
    regex: &Regex,
    text: &str,
    at: usize,
    limit: u32,
    search: bool,
    region: &mut Region,
) -> Result<Option<Offsets>, onig::Error> {
    let mut param = MatchParam::default();
    param.set_retry_limit_in_match(limit);
    region.clear();
    let options = SearchOptions::SEARCH_OPTION_NONE;
    let matched = match search {
        true => regex.search_with_param(text, at, text.len(), options, Some(region), param)?,
        false => regex.match_with_param(text, at, options, Some(region), param)?,
    };
    Ok(matched.and_then(|_| region.pos(0)))
}

/// The match that begins at a position. Each try that reaches its limit is paid from `retries` and doubles the next.
fn match_at(
    regex: &Regex,
    text: &str,
    at: usize,
    retries: &mut usize,
    region: &mut Region,
) -> tokenizers::Result<Option<Offsets>> {
    let mut limit = FIRST_RETRIES;
    loop {
        match attempt(regex, text, at, limit, false, region) {
            Err(error) if error.code() == RETRY_LIMIT_REACHED => {
                *retries = retries.checked_sub(limit as usize).ok_or_else(|| {
                    let bytes = text.len();
                    format!(
                        "reached the limit on matching, {RETRIES_PER_BYTE} tries for each of the text's {bytes} bytes"
                    )
                })?;
                limit = limit.saturating_mul(2);
            }
            found => return Ok(found?),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (Pattern::Literal(source) | Pattern::Regex { source, .. }) = self;
        match source.char_indices().nth(80) {
            Some((end, _)) => write!(f, "{:?}…", &source[..end]),
            None => write!(f, "{source:?}"),
        }
    }
}

/// A text cut at matches, in the form in which `tokenizers` wants them.
pub(super) struct Cut(Vec<(Offsets, bool)>);

impl Cut {
    /// All of a text of `length` bytes: its parts, and whether they are matches.
    pub fn new(found: &[Offsets], length: usize) -> Self {
        let mut parts = Vec::with_capacity(2 * found.len() + 1);
        let mut rest = 0;
        for &(start, end) in found {
            if rest != start {
                parts.push(((rest, start), false));
            }
            parts.push(((start, end), true));
            rest = end;
        }
        if rest != length || length == 0 {
            parts.push(((rest, length), false));
        }
        Cut(parts)
    }
}

impl tokenizers::pattern::Pattern for Cut {
    fn find_matches(&self, _: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        Ok(self.0.clone())
    }
}
