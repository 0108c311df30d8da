//! Structs from JSON, with errors that name the field and speak JSON rather than Rust: for the lines of a batch and for requests.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer};

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

/// A struct from an object.
///
/// # Errors
/// When a field is unknown or missing, or is not what the struct expects.
pub fn read<'de, T: DeserializeOwned, D: Deserializer<'de>>(object: D) -> Result<T, FieldError>
where
    D::Error: fmt::Display,
{
    serde_path_to_error::deserialize(object).map_err(|error| {
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
        let problem =
            problem.replace("invalid type: map", "invalid type: object").replace("type: sequence", "type: list");
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
    })
}
