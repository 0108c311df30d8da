//! Python's methods of strings, lists and mappings, where MiniJinja's differ or lack arguments.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{State, Value};

use super::Jinja;
use super::arguments::{bind_all, required, string_or_none, whole_or_none, wrong};
use super::python::{format_fields, is_list, repr};

/// Python's methods of strings, lists and mappings.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Jinja<Value> {
    let known = match value.as_str() {
        Some(text) => string_method(state, text, name, args)?,
        None => container_method(state, value, name, args)?,
    };
    match known {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn container_method(state: &State, value: &Value, name: &str, args: &[Value]) -> Jinja<Option<Value>> {
    match (name, value.kind()) {
        ("index", ValueKind::Seq) => {
            let [item, start, end] = bind_all(args, ["", "", ""])?;
            let (item, length) = (required(item)?, value.len().unwrap_or(0));
            let range = range(length, whole_or_none(start)?, whole_or_none(end)?).unwrap_or(0..0);
            let found = value.try_iter()?.take(range.end).skip(range.start).position(|other| other == item);
            match found {
                Some(at) => Ok(Some((range.start + at).into())),
                None => Err(wrong(format!("{} is not in list", repr(state, &item)?))),
            }
        }
        ("copy", ValueKind::Map) => from_args(args).map(|()| Some(value.clone())),
        ("copy", ValueKind::Seq) if is_list(value) => from_args(args).map(|()| Some(value.clone())),
        _ => Ok(None),
    }
}

fn string_method(state: &State, text: &str, name: &str, args: &[Value]) -> Jinja<Option<Value>> {
    let result = match name {
        "removeprefix" => from_args(args).map(|(p,): (&str,)| text.strip_prefix(p).unwrap_or(text).into())?,
        "removesuffix" => from_args(args).map(|(s,): (&str,)| text.strip_suffix(s).unwrap_or(text).into())?,
        "partition" | "rpartition" => partition(text, name, from_args(args).map(|(separator,)| separator)?)?,
        "split" | "rsplit" => {
            let [separator, limit] = bind_all(args, ["sep", "maxsplit"])?;
            let limit = usize::try_from(whole_or_none(limit)?.unwrap_or(-1)).unwrap_or(usize::MAX);
            let parts = split(text, string_or_none(&separator)?, limit, name == "rsplit")?;
            parts.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let [keep_ends] = bind_all(args, ["keepends"])?;
            lines(text, keep_ends.is_some_and(|keep| keep.is_true())).map(Value::from).collect()
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            join(text, items)?.into()
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => search(text, name, args)?,
        "format" => {
            let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
            format_fields(state, text, &positional, &named.into())?.into()
        }
        "format_map" => {
            let (named,): (&Value,) = from_args(args)?;
            format_fields(state, text, &[], named)?.into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "casefold" => {
            let () = from_args(args)?;
            casefold(text).into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swapped).collect::<String>().into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let sign = &text[..text.starts_with(['+', '-']).into()];
            let zeros = missing(text, width)?;
            format!("{sign}{}{}", "0".repeat(zeros), &text[sign.len()..]).into()
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            pad(text, name, width, fill.unwrap_or(' '))?.into()
        }
        "expandtabs" => {
            let [size] = bind_all(args, ["tabsize"])?;
            let size = usize::try_from(whole_or_none(size)?.unwrap_or(8)).unwrap_or(0);
            expand_tabs(text, size)?.into()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// Three parts, of which the last two, or the first two, are empty without the separator.
fn partition(text: &str, name: &str, separator: &str) -> Jinja<Value> {
    if separator.is_empty() {
        return Err(wrong("empty separator"));
    }
    let parts = match (name, text.split_once(separator), text.rsplit_once(separator)) {
        ("partition", Some((before, after)), _) | (_, _, Some((before, after))) => [before, separator, after],
        ("partition", None, _) => [text, "", ""],
        _ => ["", "", text],
    };
    Ok(Value::from_object(Tuple::new(parts.map(Value::from).to_vec())))
}

/// `split` with at most `limit` cuts, or `rsplit`, which counts them from the end.
fn split<'a>(text: &'a str, separator: Option<&str>, limit: usize, from_end: bool) -> Jinja<Vec<&'a str>> {
    let mut parts = Vec::new();
    let mut rest = text;
    match separator {
        Some("") => return Err(wrong("empty separator")),
        Some(separator) => {
            let cut = |rest: &'a str| if from_end { rest.rsplit_once(separator) } else { rest.split_once(separator) };
            while let Some((before, after)) = cut(rest).filter(|_| parts.len() < limit) {
                let (part, other) = if from_end { (after, before) } else { (before, after) };
                parts.push(part);
                rest = other;
            }
            parts.push(rest);
        }
        // Runs of white space cut, and those at the ends are nothing.
        None => loop {
            rest = if from_end { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
            if rest.is_empty() {
                break;
            }
            let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
            let Some(at) = cut.filter(|_| parts.len() < limit) else {
                parts.push(rest);
                break;
            };
            if from_end {
                let space = rest[at..].chars().next().map_or(0, char::len_utf8);
                parts.push(&rest[at + space..]);
                rest = &rest[..at];
            } else {
                parts.push(&rest[..at]);
                rest = &rest[at..];
            }
        },
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts)
}

/// White space, to which Python adds four separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Lines as Python ends them: also at separators of records, and those of Unicode.
pub(super) fn lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    const ENDS: [char; 10] = ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = text;
    std::iter::from_fn(move || {
        let at = match rest.find(ENDS) {
            None if rest.is_empty() => return None,
            None => return Some(std::mem::take(&mut rest)),
            Some(at) => at,
        };
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        let line = &rest[..if keep_ends { at + end } else { at }];
        rest = &rest[at + end..];
        Some(line)
    })
}

fn join(separator: &str, items: &Value) -> Jinja<String> {
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        let Some(text) = item.as_str() else {
            return Err(wrong(format!("sequence item {i}: expected a string, found {}", item.kind())));
        };
        out.push_str(if i > 0 { separator } else { "" });
        out.push_str(text);
    }
    Ok(out)
}

/// What `[start:end]` names of `length` items; `None` where it begins behind its end.
fn range(length: usize, start: Option<i64>, end: Option<i64>) -> Option<std::ops::Range<usize>> {
    let length = length as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)).min(length));
    (start <= end).then_some(start as usize..end as usize)
}

/// The methods that look for a string within `[start:end]`. Positions are counted in characters.
fn search(text: &str, name: &str, args: &[Value]) -> Jinja<Value> {
    let [what, start, end] = bind_all(args, ["", "", ""])?;
    let what = required(what)?;
    let range = range(text.chars().count(), whole_or_none(start)?, whole_or_none(end)?);
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    let part = range.clone().map(|range| &text[byte(range.start)..byte(range.end)]);
    if matches!(name, "startswith" | "endswith") {
        let is_there = |what: &Value| match (what.as_str(), part) {
            (None, _) => Err(wrong(format!("{name}: expected a string or a tuple of strings, found {}", what.kind()))),
            (Some(what), Some(part)) if name == "startswith" => Ok(part.starts_with(what)),
            (Some(what), part) => Ok(part.is_some_and(|part| part.ends_with(what))),
        };
        let any = match what.downcast_object_ref::<Tuple>() {
            Some(tuple) => tuple.iter().map(is_there).collect::<Jinja<Vec<_>>>()?.contains(&true),
            None => is_there(&what)?,
        };
        return Ok(any.into());
    }
    let Some(what) = what.as_str() else {
        return Err(wrong(format!("{name}: expected a string, found {}", what.kind())));
    };
    let part = part.unwrap_or("");
    let within = range.is_some();
    if name == "count" {
        return Ok(if within { part.matches(what).count() } else { 0 }.into());
    }
    let found = if name.starts_with('r') { part.rfind(what) } else { part.find(what) }.filter(|_| within);
    let found = found.map(|at| range.map_or(0, |range| range.start) + part[..at].chars().count());
    match found {
        Some(at) => Ok(at.into()),
        None if name.ends_with("find") => Ok((-1).into()),
        None => Err(wrong("substring not found")),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// What folds is what upper case does not tell apart, but for the dotless i.
fn casefold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ı' => out.push(c),
            c => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
        }
    }
    out
}

fn expand_tabs(text: &str, size: usize) -> Jinja<String> {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = bounded(size - column % size)?;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out)
}

/// How many characters `text` is short of `width`.
fn missing(text: &str, width: usize) -> Jinja<usize> {
    bounded(width.saturating_sub(text.chars().count()))
}

/// What padding writes costs no fuel, so there is a limit.
pub(super) fn bounded(count: usize) -> Jinja<usize> {
    if count > 1 << 16 { Err(wrong("padding is at most 65536 characters")) } else { Ok(count) }
}

/// `text` in so many characters, by one of `center`, `ljust` and `rjust`.
pub(super) fn pad(text: &str, place: &str, width: usize, fill: char) -> Jinja<String> {
    let missing = missing(text, width)?;
    let before = match place {
        "ljust" => 0,
        "rjust" => missing,
        // The odd one stands before where the width is odd too.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(filled(text, before, missing - before, fill))
}

/// `text` between so many of a character.
pub(super) fn filled(text: &str, before: usize, after: usize, fill: char) -> String {
    let of = |count| std::iter::repeat_n(fill, count).collect::<String>();
    of(before) + text + &of(after)
}
