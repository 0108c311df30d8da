//! Python's `%`, its `format` and its printed forms.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, Tuple, ValueKind};
use minijinja::{Error, State, Value, context};

use super::Jinja;
use super::arguments::wrong;
use super::filters::{int, no_options, string};
use super::json::{MAX_DEPTH, float, python_float};
use super::methods::{bounded, filled};

/// `a % b`: formats where `a` is a string.
pub(super) fn percent(state: &mut State, a: Value, b: Value) -> Jinja<Value> {
    let Some(text) = a.as_str() else {
        let remainder = state.env().compile_expression("a % b")?.eval(context! { a, b });
        // The place is that of the template, not of this expression.
        return remainder.map_err(|e| Error::new(e.kind(), e.detail().unwrap_or_default().to_owned()));
    };
    let args = match b.downcast_object_ref::<Tuple>() {
        Some(tuple) => tuple.clone().into_vec(),
        None => vec![b.clone()],
    };
    let (mut args, mut by_name) = (args.into_iter(), false);
    // MiniJinja's format lacks the conversions `r`, `i` and `u`.
    let (mut known, mut values) = (String::new(), vec![]);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        let (name, after) = match after.strip_prefix('(') {
            Some(named) => {
                named.split_once(')').map(|(name, after)| (Some(name), after)).ok_or("incomplete format key")
            }
            None => Ok((None, after)),
        }
        .map_err(wrong)?;
        let end = after.find(|c: char| c.is_ascii_alphabetic() || c == '%');
        let (options, conversion) = end.map_or((after, ""), |end| (&after[..end], &after[end..end + 1]));
        known.extend([before, "%"]);
        rest = &after[options.len() + conversion.len()..];
        if matches!(conversion, "" | "%") {
            known.extend([options, conversion]);
            continue;
        }
        let value = match name {
            None => args.next(),
            Some(_) if b.kind() != ValueKind::Map => return Err(wrong("format requires a mapping")),
            Some(name) => {
                by_name = true;
                Some(existing(b.get_item(&name.into())?, name)?)
            }
        };
        let is_text = matches!(conversion, "s" | "r");
        known.extend([
            if is_text { "" } else { options },
            match conversion {
                "r" => "s",
                "i" | "u" => "d",
                other => other,
            },
        ]);
        values.extend(value.map(|value| formatted(state, options, conversion, value)).transpose()?);
    }
    known.push_str(rest);
    if !by_name && args.len() > 0 && b.kind() != ValueKind::Map && !is_list(&b) {
        return Err(wrong("not all arguments converted during string formatting"));
    }
    Ok(format(FormatStyle::Printf, &known, &values)?.into())
}

fn existing(value: Value, name: &str) -> Jinja<Value> {
    if value.is_undefined() { Err(wrong(format!("there is no {name:?} to format"))) } else { Ok(value) }
}

/// What `format` is given for a value, its options and its conversion. Texts are complete already.
fn formatted(state: &State, options: &str, conversion: &str, value: Value) -> Jinja<Value> {
    let text = match conversion {
        "r" => repr(state, &value)?,
        "s" => string(state, &value)?.to_string(),
        "d" | "i" | "u" if value.kind() == ValueKind::Number => return int(state, &value, Rest(vec![]), no_options()),
        _ => return Ok(value),
    };
    let size = options.trim_start_matches(['-', '+', '0', '#', ' ']);
    let align = if options[..options.len() - size.len()].contains('-') { '<' } else { '>' };
    let text = format_text(&text, &format!("{align}{size}"))?;
    text.map(Value::from).ok_or_else(|| wrong(format!("unsupported format {options:?}")))
}

/// A text as `[[fill]align][width][.precision][s]` says; `None` for another format.
fn format_text(text: &str, spec: &str) -> Jinja<Option<String>> {
    let spec = spec.strip_suffix('s').unwrap_or(spec);
    let is_align = |c: &char| "<>^".contains(*c);
    let mut chars = spec.chars();
    let (fill, align, size) = match (chars.next(), chars.next()) {
        (Some(fill), Some(align)) if is_align(&align) => (fill, align, chars.as_str()),
        (Some(align), _) if is_align(&align) => (' ', align, &spec[1..]),
        _ => (' ', '<', spec),
    };
    let (width, precision) = size.split_once('.').map_or((size, None), |(width, precision)| (width, Some(precision)));
    let number = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<usize>().ok() };
    let (Some(width), Some(precision)) = (number(width), precision.map_or(Some(usize::MAX), number)) else {
        return Ok(None);
    };
    let text: String = text.chars().take(precision).collect();
    let missing = bounded(width.saturating_sub(text.chars().count()))?;
    let before = match align {
        '<' => 0,
        '>' => missing,
        _ => missing / 2,
    };
    Ok(Some(filled(&text, before, missing - before, fill)))
}

/// `text.format(…)` with arguments by position and, in a mapping, by name.
pub(super) fn format_fields(state: &State, text: &str, positional: &[Value], named: &Value) -> Jinja<String> {
    Fields { state, positional, named, next: None }.format(text, 0)
}

/// What replacement fields are filled with.
struct Fields<'a> {
    state: &'a State<'a, 'a>,
    positional: &'a [Value],
    named: &'a Value,
    /// The argument of the next field without a number, unless fields have numbers.
    next: Option<Numbering>,
}

#[derive(Clone, Copy)]
enum Numbering {
    Automatic(usize),
    Manual,
}

impl Fields<'_> {
    /// Fields stand in the format of another one at most.
    fn format(&mut self, text: &str, depth: usize) -> Jinja<String> {
        if depth > 1 && text.contains(['{', '}']) {
            return Err(wrong("fields within fields within fields"));
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            let end = if brace == "{" { field_length(rest) } else { None };
            let Some(end) = end else { return Err(wrong(format!("single '{brace}' in a format"))) };
            out.push_str(&self.field(&rest[..end], depth)?);
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// `name!conversion:format`.
    fn field(&mut self, field: &str, depth: usize) -> Jinja<String> {
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = head.split_once('!').map_or((head, None), |(name, c)| (name, Some(c)));
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some("s") => string(self.state, &value)?,
            Some("r") => repr(self.state, &value)?.into(),
            Some(other) => return Err(wrong(format!("unknown conversion {other:?} in a format"))),
        };
        let spec = self.format(spec, depth + 1)?;
        if spec.is_empty() {
            return Ok(string(self.state, &value)?.to_string());
        }
        if let Some(text) = value.as_str()
            && let Some(text) = format_text(text, &spec)?
        {
            return Ok(text);
        }
        let apply = |spec: &str, value| format(FormatStyle::StrFormat, &format!("{{:{spec}}}"), &[value]);
        let Some(spec) = spec.strip_suffix('%') else { return apply(&spec, value) };
        // The sign of percent counts for the width.
        let (place, precision) = spec.split_at(spec.find('.').unwrap_or(spec.len()));
        let number = f64::try_from(value)? * 100.0;
        let (place, sign) =
            place.split_once('+').map_or((place.to_owned(), ""), |(place, rest)| (place.to_owned() + rest, "+"));
        let digits = apply(&format!("{sign}{precision}f"), number.into())? + "%";
        let place = match place.strip_prefix('0') {
            Some(width) => format!("0>{width}"),
            None if place.starts_with(|c: char| c.is_ascii_digit()) => format!(">{place}"),
            None => place,
        };
        format_text(&digits, &place)?.ok_or_else(|| wrong(format!("unsupported format {spec:?}")))
    }

    /// The argument that a field names, and what it names of that: `0`, `name.key`, `name[key]`.
    fn value(&mut self, name: &str) -> Jinja<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let mut value = match (first.parse::<usize>(), self.next) {
            (Err(_), _) if !name.is_empty() => existing(self.named.get_item(&first.into())?, first)?,
            (Ok(_), Some(Numbering::Automatic(_))) | (Err(_), Some(Numbering::Manual)) => {
                return Err(wrong("some fields of a format have numbers, and some have none"));
            }
            (number, next) => {
                let automatic = if let Some(Numbering::Automatic(next)) = next { next } else { 0 };
                let is_manual = number.is_ok();
                let at = number.unwrap_or(automatic);
                self.next = Some(if is_manual { Numbering::Manual } else { Numbering::Automatic(at + 1) });
                self.positional.get(at).cloned().ok_or_else(|| wrong(format!("there is no argument {at} to format")))?
            }
        };
        while !rest.is_empty() {
            let (key, after) = match rest.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
                Some(found) => found,
                None => {
                    let name = rest.trim_start_matches('.');
                    name.split_at(name.find(['.', '[']).unwrap_or(name.len()))
                }
            };
            if key.is_empty() {
                return Err(wrong(format!("cannot read the field {name:?} of a format")));
            }
            let item =
                key.parse::<usize>().map_or_else(|_| value.get_item(&key.into()), |at| value.get_item(&at.into()));
            value = existing(item?, key)?;
            rest = after;
        }
        Ok(value)
    }
}

/// How many bytes of `text` are a field, whose `}` follows.
fn field_length(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Whether Python has a list there, and not a tuple.
pub(super) fn is_list(value: &Value) -> bool {
    value.kind() == ValueKind::Seq && value.downcast_object_ref::<Tuple>().is_none()
}

/// Whether Python prints what the value holds as `repr` does.
pub(super) fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map)
}

/// Python's `repr` of a value, of which only strings and floats differ from what MiniJinja writes.
pub(super) fn repr(state: &State, value: &Value) -> Jinja<String> {
    let mut out = String::new();
    write_repr(state, value, 0, &mut out)?;
    Ok(out)
}

fn write_repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Jinja<()> {
    if depth > MAX_DEPTH {
        return Err(wrong(format!("nested deeper than {MAX_DEPTH}")));
    }
    state.consume_fuel(4 + value.as_str().map_or(0, str::len) as u64 / 64)?;
    let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
    match value.kind() {
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.push(if is_tuple { '(' } else { '[' });
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(state, &item, depth + 1, out)?;
            }
            out.push_str(match (is_tuple, value.len()) {
                (true, Some(1)) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                write_repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => match float(value) {
            Some(number) => out.push_str(&python_float(number)),
            None => out.push_str(&value.to_string()),
        },
    }
    Ok(())
}

fn write_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&match c as u32 {
                code @ ..=0xff => format!("\\x{code:02x}"),
                code @ ..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// Rust escapes what Python does. A mark that joins the character before it is printed as it is.
fn is_printable(c: char) -> bool {
    !c.is_control() && format!("x{c}").escape_debug().nth(1) != Some('\\')
}
