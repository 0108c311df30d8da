//! Structs from JSON, with errors that name the field and speak JSON rather than Rust: for the lines of a batch and for requests.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What is wrong, and with which field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// A path such as `messages[0].role`; `None` where it is the whole.
    pub field: Option<String>,
    /// What is wrong with it.
    pub problem: String,
}

impl FieldError {
    /// The same, of an object that is itself a field.
    pub fn within(self, parent: &str) -> Self {
        let field = match self.field {
            Some(field) => format!("{parent}.{field}"),
            None => parent.to_owned(),
        };
        FieldError { field: Some(field), ..self }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "`{field}`: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl std::error::Error for FieldError {}

/// The JSON of `text`, which messages call `name`.
///
/// # Errors
/// When it is not JSON, or an object in it has a field twice.
pub fn parse(text: &[u8], name: &str) -> Result<Value, FieldError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let not_json = |e: &serde_json::Error| FieldError { field: None, problem: format!("{name} is not JSON: {e}") };
    let Unique(value) = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| if error.inner().is_data() { field_error(&error) } else { not_json(error.inner()) })?;
    deserializer.end().map_err(|e| not_json(&e))?;
    Ok(value)
}

/// A field that is one of some words, or null where it may be left out.
///
/// # Errors
/// When it is no text or null, or no such word.
pub fn word<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    match Value::deserialize(deserializer)? {
        value @ (Value::String(_) | Value::Null) => T::deserialize(value).map_err(D::Error::custom),
        other => Err(D::Error::custom(format!("{other}, expected a text"))),
    }
}

/// A struct from an object.
///
/// # Errors
/// When a field is unknown or missing, or is not what the struct expects.
pub fn read<'de, T: DeserializeOwned, D: Deserializer<'de>>(object: D) -> Result<T, FieldError>
where
    D::Error: fmt::Display,
{
    serde_path_to_error::deserialize(object).map_err(|error| field_error(&error))
}

fn field_error<E: fmt::Display>(error: &serde_path_to_error::Error<E>) -> FieldError {
    // Rust's names of types are nobody's business.
    let names = [
        ("usize", "a whole number from 0"),
        ("u32", "a whole number from 0"),
        ("i64", "a whole number"),
        ("f32", "a number"),
        ("a sequence", "a list"),
        ("a map", "an object"),
        ("struct", "an object"),
    ];
    let problem = error.inner().to_string();
    let problem = problem.replace("invalid type: map", "invalid type: object").replace("type: sequence", "type: list");
    let mut problem = names
        .iter()
        .fold(problem, |text, (rust, json)| text.replace(&format!("expected {rust}"), &format!("expected {json}")));
    if let Some((rest, _)) = problem.split_once("expected an object ") {
        problem = format!("{rest}expected an object");
    }
    // The place is of no use beside the field.
    if let Some((rest, place)) = problem.rsplit_once(" at line ")
        && place.split(" column ").all(|number| number.bytes().all(|c| c.is_ascii_digit()))
    {
        problem = rest.to_owned();
    }
    let path = error.path().to_string();
    FieldError { field: Some(path).filter(|path| path != "."), problem }
}

/// JSON whose objects have no field twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((name, Unique(value))) = members.next_entry::<String, Unique>()? {
            if all.contains_key(&name) {
                return Err(A::Error::custom(format!("duplicate field `{name}`")));
            }
            all.insert(name, value);
        }
        Ok(all.into())
    }
}
