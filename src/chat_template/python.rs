//! Python's methods, operators and printed forms, where MiniJinja's differ. The reference for filters is Jinja2.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value, context, filters};

use super::Jinja;
use super::json::{MAX_DEPTH, float, python_float};

fn wrong(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// `a % b`: formats where `a` is a string.
pub(super) fn percent(state: &mut State, a: Value, b: Value) -> Jinja<Value> {
    let Some(format) = a.as_str() else {
        let remainder = state.env().compile_expression("a % b")?.eval(context! { a, b });
        // The place is that of the template, not of this expression.
        return remainder.map_err(|e| Error::new(e.kind(), e.detail().unwrap_or_default().to_owned()));
    };
    let args = match b.downcast_object_ref::<Tuple>() {
        Some(tuple) => tuple.clone().into_vec(),
        None => vec![b.clone()],
    };
    let mut args = args.into_iter();
    // MiniJinja lacks the conversions `r`, `i` and `u`.
    let (mut known, mut values) = (String::new(), vec![a.clone()]);
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        let end = after.find(|c: char| c.is_ascii_alphabetic() || c == '%').filter(|_| !after.starts_with('('));
        let (options, conversion) = end.map_or((after, ""), |end| (&after[..end], &after[end..end + 1]));
        known.extend([before, "%", options]);
        rest = &after[options.len() + conversion.len()..];
        if matches!(conversion, "" | "%") {
            known.push_str(conversion);
            continue;
        }
        known.push_str(match conversion {
            "r" => "s",
            "i" | "u" => "d",
            other => other,
        });
        values.extend(args.next().map(|arg| formatted(state, conversion, arg)).transpose()?);
    }
    known.push_str(rest);
    if format.contains("%(") {
        values.push(b.clone());
    } else if args.len() > 0 && b.kind() != ValueKind::Map && !is_list(&b) {
        return Err(wrong("not all arguments converted during string formatting"));
    }
    values[0] = known.into();
    state.apply_filter("format", &values)
}

/// What `format` is given for a value and its conversion.
fn formatted(state: &State, conversion: &str, value: Value) -> Jinja<Value> {
    Ok(match conversion {
        "r" => repr(state, &value)?.into(),
        "s" if is_container(&value) => repr(state, &value)?.into(),
        "d" | "i" | "u" if value.kind() == ValueKind::Number => int(state, &value, None, None, no_options())?,
        _ => value,
    })
}

/// Without arguments by name.
fn no_options() -> Kwargs {
    Kwargs::from_iter::<[(&str, Value); 0]>([])
}

fn is_list(value: &Value) -> bool {
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

/// Python's methods of strings, lists and mappings.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Jinja<Value> {
    if name == "index" && value.kind() == ValueKind::Seq {
        let (item,): (Value,) = from_args(args)?;
        let at = value.try_iter()?.position(|other| other == item);
        let at = at.ok_or_else(|| repr(state, &item).map(|item| wrong(format!("{item} is not in list"))));
        return at.map(Value::from).or_else(|error| Err(error?));
    }
    let beyond = value.as_str().map(|text| string_method(text, name, args));
    match beyond.transpose()?.flatten() {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Methods of strings that `minijinja_contrib` lacks, or has differently.
fn string_method(text: &str, name: &str, args: &[Value]) -> Jinja<Option<Value>> {
    let result = match name {
        "removeprefix" => from_args(args).map(|(p,): (&str,)| text.strip_prefix(p).unwrap_or(text).into())?,
        "removesuffix" => from_args(args).map(|(s,): (&str,)| text.strip_suffix(s).unwrap_or(text).into())?,
        // Of three parts, of which the last two, or the first two, are empty without the separator.
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let parts = match (name, text.split_once(separator), text.rsplit_once(separator)) {
                ("partition", Some((before, after)), _) | (_, _, Some((before, after))) => [before, separator, after],
                ("partition", None, _) => [text, "", ""],
                _ => ["", "", text],
            };
            Value::from_object(Tuple::new(parts.map(Value::from).to_vec()))
        }
        "rsplit" => {
            let (separator, limit): (&str, Option<usize>) = from_args(args)?;
            let parts = text.rsplitn(limit.map_or(usize::MAX, |n| n.saturating_add(1)), separator);
            let mut parts: Vec<Value> = parts.map(Value::from).collect();
            parts.reverse();
            parts.into()
        }
        "title" => {
            let () = from_args(args)?;
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
            out.into()
        }
        "casefold" => {
            let () = from_args(args)?;
            text.to_lowercase().into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swapped).collect::<String>().into()
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if name == "index" { text.find(part) } else { text.rfind(part) };
            text[..at.ok_or_else(|| wrong("substring not found"))?].chars().count().into()
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
            let (size,): (Option<usize>,) = from_args(args)?;
            let size = size.unwrap_or(8);
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
            out.into()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// How many characters `text` is short of `width`.
fn missing(text: &str, width: usize) -> Jinja<usize> {
    bounded(width.saturating_sub(text.chars().count()))
}

/// What padding writes costs no fuel, so there is a limit.
fn bounded(count: usize) -> Jinja<usize> {
    if count > 1 << 16 { Err(wrong("padding is at most 65536 characters")) } else { Ok(count) }
}

fn pad(text: &str, place: &str, width: usize, fill: char) -> Jinja<String> {
    let missing = missing(text, width)?;
    let before = match place {
        "ljust" => 0,
        "rjust" => missing,
        // The odd one stands before where the width is odd too.
        _ => missing / 2 + (missing & width & 1),
    };
    let of = |count| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(of(before) + text + &of(missing - before))
}

/// Whether Python iterates over the value; templates ask this of a message's `content`. Slices and concatenations are
/// lazy here and lists in Python, so what Python cannot index (`keys()`) is not told from a sequence.
pub(super) fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Seq | Map | Iterable)
}

/// Jinja2's `default`, whose second argument templates also give by name.
pub(super) fn default(value: Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    // None is a value to fall back on.
    let option = |i: usize, name: &str| match positional.get(i) {
        None if named.has(name) => named.get(name).map(Some),
        given => Ok(given.cloned()),
    };
    let other: Option<Value> = option(0, "default_value")?;
    let falsy_too = option(1, "boolean")?.is_some_and(|falsy_too| falsy_too.is_true());
    named.assert_all_used()?;
    let keep = !value.is_undefined() && (!falsy_too || value.is_true());
    Ok(if keep { value } else { other.unwrap_or_else(|| "".into()) })
}

/// Jinja2's `int`: the default, or 0, for what is no number.
pub(super) fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    named: Kwargs,
) -> Jinja<Value> {
    let default = default.or(named.get("default")?).unwrap_or_else(|| 0.into());
    let base = base.or(named.get("base")?);
    named.assert_all_used()?;
    let trimmed = value.as_str().map(|text| text.trim().into());
    let number = filters::int(state, trimmed.as_ref().unwrap_or(value), None, base, no_options());
    Ok(number.unwrap_or(default))
}

/// Jinja2's `float`: the default, or 0.0, for what is no number.
pub(super) fn to_float(state: &State, value: &Value, default: Option<Value>, named: Kwargs) -> Jinja<Value> {
    let default = default.or(named.get("default")?).unwrap_or_else(|| 0.0.into());
    named.assert_all_used()?;
    Ok(filters::float(state, value, None, no_options()).unwrap_or(default))
}

/// Jinja2's `string`.
pub(super) fn string(state: &State, value: &Value) -> Jinja<Value> {
    match float(value) {
        Some(number) => Ok(python_float(number).into()),
        None if is_container(value) => repr(state, value).map(Value::from),
        None => filters::string(state, value),
    }
}

/// Jinja2's `join`.
pub(super) fn join(
    state: &State,
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    named: Kwargs,
) -> Jinja<String> {
    let separator = separator.or(named.get("d")?).map_or_else(String::new, |separator| separator.to_string());
    let attribute = attribute.or(named.get("attribute")?);
    named.assert_all_used()?;
    let letters = |text: &str| text.chars().map(Value::from).collect::<Vec<_>>();
    let items = value.as_str().map_or_else(|| Ok(value.try_iter()?.collect()), |text| Jinja::Ok(letters(text)))?;
    let mut out = String::new();
    for (i, item) in items.into_iter().enumerate() {
        let item = match &attribute {
            Some(attribute) => at_path(&item, attribute)?,
            None => item,
        };
        let text = string(state, &item)?.to_string();
        state.consume_fuel(1 + (separator.len() + text.len()) as u64 / 64)?;
        out.push_str(if i > 0 { &separator } else { "" });
        out.push_str(&text);
    }
    Ok(out)
}

/// What an `attribute` of Jinja2's filters names: a number, or names and numbers with dots between them.
fn at_path(item: &Value, path: &Value) -> Jinja<Value> {
    let Some(path) = path.as_str() else { return item.get_item(path) };
    let step = |item: Value, name: &str| match name.parse::<usize>() {
        Ok(index) => item.get_item(&index.into()),
        Err(_) => item.get_item(&name.into()),
    };
    path.split('.').try_fold(item.clone(), step)
}

/// Jinja2's `callable`.
pub(super) fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain && value.as_object().is_some()
}

/// Jinja2's `center`.
pub(super) fn center(text: &str, width: Option<usize>) -> Jinja<String> {
    pad(text, "center", width.unwrap_or(80), ' ')
}

/// Jinja2's `wordcount`.
pub(super) fn wordcount(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// Jinja2's `truncate`, with `length`, `killwords`, `end` and `leeway` in this order or by name.
pub(super) fn truncate(text: &str, positional: Rest<Value>, named: Kwargs) -> Jinja<String> {
    let option = |i: usize, name| match positional.get(i) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(name),
    };
    let length = option(0, "length")?.map_or(Ok(255), usize::try_from)?;
    let kill_words = option(1, "killwords")?.is_some_and(|value| value.is_true());
    let end = option(2, "end")?.map_or_else(|| "...".to_owned(), |value| value.to_string());
    let leeway = option(3, "leeway")?.map_or(Ok(5), usize::try_from)?;
    named.assert_all_used()?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(wrong(format!("truncate: expected a length of at least {}, got {length}", end.chars().count())));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(kept).collect();
    let whole_words =
        if kill_words { &kept } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(before, _)| before) };
    Ok(whole_words.to_owned() + &end)
}
