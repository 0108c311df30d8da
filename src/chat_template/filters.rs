//! Jinja2's filters, tests and functions, where MiniJinja's differ or lack arguments.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions};

use super::Jinja;
use super::arguments::{bind, whole_or_none, wrong};
use super::json::{self, float, python_float};
use super::methods::{bounded, lines, pad};
use super::python::{is_container, repr};

/// Let templates of `env` have them.
pub(super) fn add_to(env: &mut Environment) {
    env.add_test("callable", is_callable);
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_iterable);
    env.add_filter("center", center);
    env.add_filter("d", default);
    env.add_filter("default", default);
    env.add_filter("dictsort", dictsort);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    env.add_filter("float", to_float);
    env.add_filter("forceescape", force_escape);
    env.add_filter("indent", indent);
    env.add_filter("int", int);
    env.add_filter("join", join);
    env.add_filter("max", max);
    env.add_filter("min", min);
    env.add_filter("sort", sort);
    env.add_filter("string", string);
    env.add_filter("striptags", minijinja_contrib::filters::striptags);
    env.add_filter("tojson", json::tojson);
    env.add_filter("truncate", truncate);
    env.add_filter("unique", unique);
    env.add_filter("urlencode", urlencode);
    env.add_filter("wordcount", wordcount);
    env.add_filter("xmlattr", xmlattr);
    env.add_function("cycler", cycler);
    env.add_function("dict", dict);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("namespace", namespace);
}

/// Whether Python iterates over the value; templates ask this of a message's `content`. Slices and concatenations are
/// lazy here and lists in Python, so what Python cannot index (`keys()`) is not told from a sequence.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Seq | Map | Iterable)
}

fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain && value.as_object().is_some()
}

fn default(value: Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    // None is a value to fall back on.
    let [other, falsy_too] = bind(&positional, &named, ["default_value", "boolean"])?;
    let falsy_too = falsy_too.is_some_and(|falsy_too| falsy_too.is_true());
    let keep = !value.is_undefined() && (!falsy_too || value.is_true());
    Ok(if keep { value } else { other.unwrap_or_else(|| "".into()) })
}

/// The default, or 0, for what is no number.
pub(super) fn int(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    let [default, base] = bind(&positional, &named, ["default", "base"])?;
    let base = base.map(u32::try_from).transpose()?;
    let text = value.as_str().map(number_text);
    let number = filters::int(state, text.as_ref().unwrap_or(value), None, base, no_options());
    Ok(number.unwrap_or_else(|_| default.unwrap_or_else(|| 0.into())))
}

/// The default, or 0.0, for what is no number.
fn to_float(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    let [default] = bind(&positional, &named, ["default"])?;
    let text = value.as_str().map(number_text);
    let number = filters::float(state, text.as_ref().unwrap_or(value), None, no_options());
    Ok(number.unwrap_or_else(|_| default.unwrap_or_else(|| 0.0.into())))
}

/// Without what Python ignores in a number: white space around it, and single underscores between digits.
fn number_text(text: &str) -> Value {
    let text = text.trim();
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_hexdigit());
    let is_between =
        |(at, _): (usize, &str)| is_digit(text[..at].chars().next_back()) && is_digit(text[at + 1..].chars().next());
    if text.match_indices('_').all(is_between) { text.replace('_', "").into() } else { text.into() }
}

/// Without arguments by name.
pub(super) fn no_options() -> Kwargs {
    Kwargs::from_iter::<[(&str, Value); 0]>([])
}

/// As Python's `str`.
pub(super) fn string(state: &State, value: &Value) -> Jinja<Value> {
    match float(value) {
        Some(number) => Ok(python_float(number).into()),
        None if is_container(value) => repr(state, value).map(Value::from),
        None => filters::string(state, value),
    }
}

fn join(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<String> {
    let [separator, attribute] = bind(&positional, &named, ["d", "attribute"])?;
    let separator = separator.map_or_else(String::new, |separator| separator.to_string());
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

/// The arguments by name alone, as MiniJinja's filters take them; `attribute` as a path.
fn by_name<const N: usize>(positional: &[Value], named: &Kwargs, names: [&str; N]) -> Jinja<Kwargs> {
    let bound = names.into_iter().zip(bind(positional, named, names)?);
    let path = |name: &str, value: Value| {
        if name == "attribute" && value.is_integer() { value.to_string().into() } else { value }
    };
    Ok(bound.filter_map(|(name, value)| value.map(|value| (name, path(name, value)))).collect())
}

fn sort(state: &State, value: Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    filters::sort(state, value, by_name(&positional, &named, ["reverse", "case_sensitive", "attribute"])?)
}

fn dictsort(value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    filters::dictsort(value, by_name(&positional, &named, ["case_sensitive", "by", "reverse"])?)
}

fn unique(state: &State, value: Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    filters::unique(state, value, by_name(&positional, &named, ["case_sensitive", "attribute"])?)
}

fn min(state: &State, value: Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    filters::min(state, value, by_name(&positional, &named, ["case_sensitive", "attribute"])?)
}

fn max(state: &State, value: Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    filters::max(state, value, by_name(&positional, &named, ["case_sensitive", "attribute"])?)
}

/// Lines behind the first begin with `width` spaces, or with `width` itself where that is a string.
fn indent(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<String> {
    let [width, first, blank] = bind(&positional, &named, ["width", "first", "blank"])?;
    let is_on = |option: Option<Value>| option.is_some_and(|option| option.is_true());
    let (first, blank) = (is_on(first), is_on(blank));
    let indent = match width.as_ref().and_then(Value::as_str) {
        Some(indent) => indent.to_owned(),
        None => " ".repeat(bounded(usize::try_from(whole_or_none(width)?.unwrap_or(4)).unwrap_or(0))?),
    };
    let text = string(state, value)?.to_string();
    // A last line end begins a line that is empty.
    let text = text + "\n";
    let mut out = String::new();
    for (i, line) in lines(&text, false).enumerate() {
        state.consume_fuel(1 + (indent.len() + line.len()) as u64 / 64)?;
        out.push_str(if i > 0 { "\n" } else { "" });
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// As HTML, unless it is that already.
fn escape(state: &State, value: &Value) -> Jinja<Value> {
    if value.is_safe() { Ok(value.clone()) } else { force_escape(state, value) }
}

fn force_escape(state: &State, value: &Value) -> Jinja<Value> {
    let text = string(state, value)?.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// The attributes of a tag, a space before them unless told otherwise.
fn xmlattr(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Jinja<Value> {
    let [space] = bind(&positional, &named, ["autospace"])?;
    let mut out = Vec::new();
    for key in value.try_iter()? {
        let value = value.get_item(&key)?;
        if value.is_none() || value.is_undefined() {
            continue;
        }
        if key.to_string().contains(|c: char| c.is_whitespace() || "/>=".contains(c)) {
            return Err(wrong(format!("{key:?} is not the name of an attribute")));
        }
        out.push(format!("{}=\"{}\"", escape(state, &key)?, escape(state, &value)?));
    }
    let space = if space.is_none_or(|space| space.is_true()) && !out.is_empty() { " " } else { "" };
    Ok(Value::from_safe_string(space.to_owned() + &out.join(" ")))
}

/// A text for a URL's path, or pairs for its query.
fn urlencode(state: &State, value: &Value) -> Jinja<String> {
    let quoted = |value: &Value| Jinja::Ok(filters::urlencode(&string(state, value)?)?.replace("%7E", "~"));
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => {
            value.try_iter()?.map(|key| Ok((key.clone(), value.get_item(&key)?))).collect::<Jinja<_>>()?
        }
        ValueKind::Seq => value.try_iter()?.map(|pair| pair_of(&pair)).collect::<Jinja<_>>()?,
        _ => return quoted(value),
    };
    let in_query = |value: &Value| Jinja::Ok(quoted(value)?.replace("%20", "+").replace('/', "%2F"));
    let pairs = pairs.iter().map(|(key, value)| Ok(format!("{}={}", in_query(key)?, in_query(value)?)));
    Ok(pairs.collect::<Jinja<Vec<_>>>()?.join("&"))
}

fn pair_of(pair: &Value) -> Jinja<(Value, Value)> {
    match pair.try_iter()?.collect::<Vec<_>>().as_slice() {
        [key, value] => Ok((key.clone(), value.clone())),
        other => Err(wrong(format!("expected pairs, found {} values", other.len()))),
    }
}

fn center(text: &str, width: Option<usize>) -> Jinja<String> {
    pad(text, "center", width.unwrap_or(80), ' ')
}

fn wordcount(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

fn truncate(text: &str, positional: Rest<Value>, named: Kwargs) -> Jinja<String> {
    let [length, kill_words, end, leeway] = bind(&positional, &named, ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), usize::try_from)?;
    let end = end.map_or_else(|| "...".to_owned(), |value| value.to_string());
    let leeway = leeway.filter(|leeway| !leeway.is_none()).map_or(Ok(5), usize::try_from)?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(wrong(format!("truncate: expected a length of at least {}, got {length}", end.chars().count())));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(kept).collect();
    let kill_words = kill_words.is_some_and(|value| value.is_true());
    let whole_words =
        if kill_words { &kept } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(before, _)| before) };
    Ok(whole_words.to_owned() + &end)
}

/// `cycler(…)`, whose `next()` gives one item after the other, and begins again.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

fn cycler(items: Rest<Value>) -> Jinja<Value> {
    match items.to_vec() {
        items if items.is_empty() => Err(wrong("cycler: expected at least one item")),
        items => Ok(Value::from_object(Cycler { items, at: AtomicUsize::new(0) })),
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.items[self.at.load(Ordering::Relaxed)].clone())
    }

    fn call_method(self: &Arc<Self>, _: &mut State, name: &str, args: &[Value]) -> Jinja<Value> {
        let () = from_args(args)?;
        let at = self.at.load(Ordering::Relaxed);
        let (next, result) = match name {
            "next" => ((at + 1) % self.items.len(), self.items[at].clone()),
            "reset" => (0, ().into()),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        self.at.store(next, Ordering::Relaxed);
        Ok(result)
    }
}

/// Of a mapping or of pairs whose keys are strings, and what is named.
fn dict(value: Option<Value>, named: Kwargs) -> Jinja<Value> {
    let Some(pairs) = value.as_ref().filter(|value| value.kind() == ValueKind::Seq) else {
        return functions::dict(value, named);
    };
    let pair = |pair: Value| {
        let (key, value) = pair_of(&pair)?;
        let name = key.as_str().map(str::to_owned);
        Ok((name.ok_or_else(|| wrong(format!("dict: a key is {}, expected a string", key.kind())))?, value))
    };
    let pairs = pairs.try_iter()?.map(pair).collect::<Jinja<Vec<_>>>()?;
    let pairs = functions::dict(None, pairs.iter().map(|(name, value)| (name.as_str(), value.clone())).collect())?;
    functions::dict(Some(pairs), named)
}

fn namespace(value: Option<Value>, named: Kwargs) -> Jinja<Value> {
    let values = [dict(value, named)?];
    let (values,): (ValueOrKwargs,) = from_args(&values)?;
    functions::namespace(Some(values))
}
