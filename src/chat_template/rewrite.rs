//! What MiniJinja does not read, written as what it does.

use std::mem;
use std::ops::Range;

use super::Place;

/// The name of the function that `%` is a call of. No template has a variable of this name.
pub(super) const PERCENT: &str = "__percent__";

/// A template as MiniJinja reads it.
///
/// - `{% generation %} … {% endgeneration %}`, transformers' own tag, marks the text to train on. MiniJinja takes no new
///   tags, but `with` renders the same: both are a scope of their own, and the tags stay in place for white space control.
/// - `a % b` formats where `a` is a string, and MiniJinja's operators cannot be changed: it becomes a call of [`PERCENT`].
/// - `+a` is `a`.
/// - A macro's default that names a parameter before it is evaluated before there are parameters: a statement in the macro
///   does it then.
pub(super) struct Rewritten {
    pub(super) source: String,
    /// What was written in place of other text: its bytes in `source`, and those of the other in the template.
    written: Vec<(Range<usize>, Range<usize>)>,
    original: String,
}

impl Rewritten {
    pub(super) fn new(original: &str) -> Self {
        let mut edits = Vec::new();
        let mut at = 0;
        while let Some(start) = original[at..].find('{').map(|i| at + i) {
            let tag = &original[start..start + tag_length(&original[start..])];
            at = start + tag.len();
            match keyword(tag) {
                word @ ("generation" | "endgeneration") => {
                    let from = start + tag.find(word).expect("it was found there");
                    let with = if word == "generation" { "with" } else { "endwith" };
                    edits.push((from..from + word.len(), with.to_owned()));
                }
                "raw" => {
                    let end =
                        original[at..].match_indices("{%").find(|&(i, _)| keyword(&original[at + i..]) == "endraw");
                    at = end.map_or(original.len(), |(i, _)| at + i);
                }
                "macro" if let Some(text) = with_late_defaults(tag) => {
                    edits.push((start..at, Rewritten::new(&text).source));
                }
                _ => operators(tag, start, &mut edits),
            }
        }
        // Stable, so what ends an operand stands before what follows it. What is put in stands before what is replaced.
        edits.sort_by_key(|(range, _)| (range.start, range.end));
        let (mut source, mut written, mut done) = (String::with_capacity(original.len()), Vec::new(), 0);
        for (range, text) in edits {
            source.push_str(&original[done..range.start]);
            let start = source.len();
            source.push_str(&text);
            done = range.end;
            written.push((start..source.len(), range));
        }
        source.push_str(&original[done..]);
        Rewritten { source, written, original: original.to_owned() }
    }

    /// The place in the template of a byte of `source`.
    pub(super) fn place(&self, byte: usize) -> Place {
        let before = self.written.partition_point(|(written, _)| written.start <= byte);
        let original = match before.checked_sub(1).map(|i| &self.written[i]) {
            None => byte,
            Some((written, original)) if byte < written.end => original.start,
            Some((written, original)) => original.end + (byte - written.end),
        };
        Place::of(&self.original, original.min(self.original.len()))
    }
}

/// What stands in these bytes of the template, and what is written there.
type Edit = (Range<usize>, String);

/// What a token does to the product that it stands in or before: `a * b % c`, of unary expressions with their filters and tests.
#[derive(Clone, Copy, PartialEq)]
enum Token {
    /// An opening bracket.
    Open,
    /// A closing one.
    Close,
    /// `%`.
    Percent,
    /// `*` and `/`, which bind as `%` does.
    Times,
    /// Names, literals and what binds closer: it goes on.
    Inner,
    /// What binds less: another product begins behind it.
    Outer,
}

/// Write each `a % b` of a tag, which stands at this byte of the template, as a call, and leave out each `+` before an operand.
fn operators(tag: &str, at: usize, edits: &mut Vec<Edit>) {
    let Some(inside) = tag.get(2..tag.len().max(4) - 2).filter(|_| !tag.starts_with("{#")) else { return };
    let at = at + 2 + usize::from(inside.starts_with(['-', '+']));
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    let inside = inside.strip_suffix(['-', '+']).unwrap_or(inside);
    if !inside.contains(['%', '+']) {
        return;
    }
    // For each open bracket, and for none: where a product began, and whether the right operand of a `%` is being read.
    let mut levels = vec![(0, false)];
    let mut words = Words { is_statement: tag.starts_with("{%"), ..Words::default() };
    let mut end = 0;
    while let Some(range) = next_token(inside, end) {
        end = range.end;
        if &inside[range.clone()] == "+" && !words.after_operand {
            edits.push((at + range.start..at + end, " ".to_owned()));
        }
        let token = words.token(&inside[range.clone()]);
        let depth = levels.len();
        let (product, in_operand) = levels.last_mut().expect("the outermost is not closed");
        if !matches!(token, Token::Inner | Token::Open) && mem::take(in_operand) {
            edits.push((at + range.start..at + range.start, "))".to_owned()));
        }
        match token {
            Token::Open => levels.push((end, false)),
            Token::Close if depth > 1 => drop(levels.pop()),
            Token::Percent => {
                edits.push((at + *product..at + *product, format!(" {PERCENT}((")));
                edits.push((at + range.start..at + end, "),(".to_owned()));
                *in_operand = true;
            }
            Token::Outer => *product = end,
            Token::Close | Token::Times | Token::Inner => {}
        }
    }
    if levels[0].1 {
        edits.push((at + inside.len()..at + inside.len(), "))".to_owned()));
    }
}

/// What the next token's meaning depends on.
#[derive(Default)]
struct Words {
    /// Whether the next word names the statement.
    is_statement: bool,
    /// Whether the next word names a test.
    is_test: bool,
    /// Whether an operand ended, so that `-` subtracts.
    after_operand: bool,
}

impl Words {
    fn token(&mut self, text: &str) -> Token {
        let is_statement = mem::take(&mut self.is_statement);
        let is_test = self.is_test;
        self.is_test = text == "is" || is_test && text == "not";
        let after_operand = mem::replace(&mut self.after_operand, true);
        let (token, ends_operand) = match text {
            "(" | "[" | "{" => (Token::Open, false),
            ")" | "]" | "}" => (Token::Close, true),
            "%" => (Token::Percent, false),
            "*" | "/" | "//" => (Token::Times, false),
            "**" | "." | "|" | "is" => (Token::Inner, false),
            "+" | "-" if !after_operand => (Token::Inner, false),
            "and" | "or" | "not" | "in" | "if" | "else" if !is_test => (Token::Outer, false),
            _ if is_statement => (Token::Outer, false),
            _ if text.starts_with(|c: char| c.is_alphanumeric() || "_'\"".contains(c)) => (Token::Inner, true),
            _ => (Token::Outer, false),
        };
        self.after_operand = ends_operand;
        token
    }
}

/// A name that no template sets.
const UNSET: &str = "__unset__";

/// The tag of a macro without the defaults that name parameters before them, and statements that set those; `None` where there
/// are none.
fn with_late_defaults(tag: &str) -> Option<String> {
    let inside = tag.strip_suffix("%}")?;
    let (mut names, mut late) = (Vec::new(), Vec::new());
    // Where the default begins that is being read, and whether it is a late one.
    let mut default: Option<(usize, bool)> = None;
    let (mut depth, mut end) = (0, 0);
    while let Some(range) = next_token(inside, end) {
        end = range.end;
        let token = &inside[range.clone()];
        if depth == 1 && matches!(token, "," | ")") {
            late.extend(
                default.take().filter(|(_, is_late)| *is_late).map(|(from, _)| (names.len() - 1, from..range.start)),
            );
        }
        match (token, &mut default) {
            ("(" | "[" | "{", _) if range.start > 1 => depth += 1,
            (")" | "]" | "}", _) => depth -= 1,
            ("=", default @ None) if depth == 1 && !names.is_empty() => *default = Some((end, false)),
            (name, None) if depth == 1 && name != "," => names.push(name),
            (name, Some((_, is_late))) => *is_late |= name != UNSET && names[..names.len() - 1].contains(&name),
            _ => {}
        }
    }
    let close = &tag[inside.trim_end_matches(['-', '+']).len()..];
    let (mut text, mut statements, mut done) = (String::new(), String::new(), 0);
    for (name, default) in late {
        let (name, value) = (names[name], &tag[default.clone()]);
        text.extend([&tag[done..default.start], UNSET]);
        done = default.end;
        statements.push_str(&format!("{{% set {name} = ({value}) if {name} is undefined else {name} {close}"));
    }
    (done > 0).then(|| text + &tag[done..] + &statements)
}

/// The bytes of the token that follows this byte: a word, a number, a string, an operator or a bracket.
fn next_token(text: &str, from: usize) -> Option<Range<usize>> {
    let rest = text[from..].trim_start();
    let start = text.len() - rest.len();
    let first = rest.chars().next()?;
    let length_while = |belongs: &dyn Fn(char) -> bool| rest.find(|c| !belongs(c)).unwrap_or(rest.len());
    let length = match first {
        '\'' | '"' => string_length(rest),
        '0'..='9' => {
            let digits = length_while(&|c| c.is_alphanumeric() || c == '_' || c == '.');
            // `1e-5`.
            let exponent = rest[..digits].ends_with(['e', 'E']) && rest[digits..].starts_with(['+', '-']);
            let exponent_digits = rest[digits..].char_indices().skip(1).find(|(_, c)| !c.is_ascii_digit());
            if exponent { digits + exponent_digits.map_or(rest.len() - digits, |(i, _)| i) } else { digits }
        }
        c if c.is_alphanumeric() || c == '_' => length_while(&|c| c.is_alphanumeric() || c == '_'),
        _ if rest.starts_with("**") || rest.starts_with("//") => 2,
        c => c.len_utf8(),
    };
    Some(start..start + length)
}

/// How many bytes a string has, which `text` starts with.
fn string_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut i = 1;
    while i < bytes.len() && bytes[i] != bytes[0] {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(bytes.len())
}

/// The statement of a `{% … %}` tag; empty for anything else.
fn keyword(tag: &str) -> &str {
    let Some(inside) = tag.strip_prefix("{%") else { return "" };
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    &inside[..inside.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(inside.len())]
}

/// How many bytes of `source`, which starts with `{`, are one tag, expression or comment; 1 when it starts none.
fn tag_length(source: &str) -> usize {
    let bytes = source.as_bytes();
    let end = match bytes.get(1) {
        Some(b'#') => return source[2..].find("#}").map_or(source.len(), |i| i + 4),
        Some(b'%') => "%}",
        Some(b'{') => "}}",
        _ => return 1,
    };
    let (mut depth, mut i) = (0, 2);
    while i < bytes.len() {
        match bytes[i] {
            b'\'' | b'"' => i += string_length(&source[i..]) - 1,
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            _ if bytes[i..].starts_with(end.as_bytes()) => return i + 2,
            _ => {}
        }
        i += 1;
    }
    source.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn every_text_is_rewritten_and_its_end_is_its_end() {
        let pieces = [
            "{{", "}}", "{%", "%}", "{#", "#}", "%", "-", "+", "'", "\"", "\\", "(", ")", "[", "}", "{", ",", "is",
            "not", " ", "\n",
        ]
        .into_iter()
        .chain([
            "generation",
            "endgeneration",
            "raw",
            "endraw",
            "macro",
            "{% macro m(x, y=",
            "if",
            "x",
            "é",
            "1e",
            "**",
            "//",
            "|",
            ".",
            "=",
            "~",
        ]);
        let pieces: Vec<&str> = pieces.collect();
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..20_000 {
            let text: String = (0..rng.random_range(0..30)).map(|_| *pieces.choose(&mut rng).unwrap()).collect();
            let rewritten = Rewritten::new(&text);
            let places = (0..=rewritten.source.len()).map(|byte| rewritten.place(byte));
            let places: Vec<(usize, usize)> = places.map(|place| (place.line, place.column)).collect();
            assert!(places.is_sorted(), "{text:?}");
            let end = Place::of(&text, text.len());
            assert_eq!(places.last(), Some(&(end.line, end.column)), "{text:?}");
        }
    }
}
