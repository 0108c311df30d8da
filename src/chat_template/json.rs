//! `tojson` as Python's `json.dumps` writes it, and numbers as Python prints them.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{ErrorKind, State, Value};

use super::Jinja;
use super::arguments::bind;

/// Python's default limit of recursion would let values nest deeper than a thread's stack holds.
pub(super) const MAX_DEPTH: usize = 128;

/// Python's `json.dumps`, with transformers' defaults: no HTML escapes, other characters than ASCII as they are.
pub(super) fn tojson(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<String> {
    let options = bind(&positional, &named, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let [ensure_ascii, indent, separators, sort_keys] = options.map(Option::unwrap_or_default);

    let indent = match indent.kind() {
        ValueKind::Undefined | ValueKind::None => None,
        ValueKind::String => Some(indent.to_string()),
        _ => Some(" ".repeat(i64::try_from(indent)?.clamp(0, 64) as usize)),
    };
    let (item, key) = if separators.is_true() {
        (separators.get_item_by_index(0)?.to_string(), separators.get_item_by_index(1)?.to_string())
    } else {
        (if indent.is_some() { "," } else { ", " }.into(), ": ".into())
    };
    let (ensure_ascii, sort_keys) = (ensure_ascii.is_true(), sort_keys.is_true());
    let mut json = Json { state, out: String::new(), ensure_ascii, indent, item, key, sort_keys };
    json.value(value, 0)?;
    Ok(json.out)
}

fn not_json(problem: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {problem}"))
}

struct Json<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Json<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Jinja<()> {
        if depth > MAX_DEPTH {
            return Err(not_json(format!("nested deeper than {MAX_DEPTH}")));
        }
        // A small value can be an exponentially large text, which the engine sees only when it is complete.
        self.state.consume_fuel(4 + value.as_str().map_or(0, str::len) as u64 / 64)?;
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Bool | ValueKind::None | ValueKind::Number => self.out.push_str(&scalar(value)),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], items, depth, |json, item| json.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.container(['{', '}'], keys, depth, |json, key| {
                    json.string(&if key.as_str().is_some() { key.to_string() } else { scalar(&key) });
                    json.out.push_str(&json.key.clone());
                    json.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => return Err(not_json(format!("an {kind} value is not JSON"))),
        }
        Ok(())
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Jinja<()>,
    ) -> Jinja<()> {
        self.out.push(open);
        let empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number, boolean or null as JSON, which Python also makes of a key that is one.
fn scalar(value: &Value) -> String {
    match (value.kind(), float(value)) {
        (ValueKind::None, _) => "null".into(),
        (_, Some(number)) if number.is_nan() => "NaN".into(),
        (_, Some(number)) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        (_, Some(number)) => python_float(number),
        _ => value.to_string().to_lowercase(), // `True` is `true`
    }
}

pub(super) fn float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()).ok())?
}

/// A float as Python prints it. Rust's shortest digits and its range without an exponent are the same; the exponent
/// has a sign and two digits in Python.
pub(crate) fn python_float(number: f64) -> String {
    let text = format!("{number:?}").to_lowercase(); // NaN is `nan`
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}
