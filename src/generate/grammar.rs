//! What a text is held to: a JSON schema, a regular expression or a grammar, as it is asked for.

use serde_json::{Value, json};

/// What a generated text must be. It ends where nothing more may follow, or the model ends it where it may end.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that fits this schema (draft 2020-12).
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// The whole text matches, in the syntax of Rust's `regex` crate, without look-around and back-references.
    Regex(String),
    /// A context-free grammar in [llguidance's kind of Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    Lark(String),
}

impl Grammar {
    /// What it is called in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) | Grammar::JsonObject => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) => "grammar",
        }
    }

    /// The field of [`Overrides`](super::Overrides) that asks for one.
    #[cfg(feature = "server")]
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) | Grammar::JsonObject => "json_schema",
            Grammar::Regex(_) => "regex",
            Grammar::Lark(_) => "grammar",
        }
    }
}

/// Where llguidance takes settings from.
const SETTINGS: &str = "x-guidance";
/// What may stand between the parts of JSON. A model that may write more of it may write nothing else.
const WHITE_SPACE: &str = r"\x20";

/// The schema as llguidance reads it; or what is wrong with it.
pub(super) fn json_schema(schema: &Value) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Object(fields) if fields.contains_key(SETTINGS) => return Err(format!("`{SETTINGS}` is no keyword")),
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("nothing fits `false`".into()),
        _ => return Err(format!("a schema is an object, not {schema}")),
    };
    let mut steps = Vec::new();
    tighten(&mut schema, &mut steps)?;
    check_steps(&steps)?;
    schema[SETTINGS] = json!({"whitespace_pattern": WHITE_SPACE});
    Ok(schema)
}

/// Keywords whose values are schemas by name.
const BY_NAME: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keywords whose values are no schemas, or ones that something must not fit.
const NO_SCHEMA: [&str; 5] = ["const", "enum", "default", "examples", "not"];
/// What a format must match besides llguidance's idea of it: no leap second, which not every minute has, nor a leap day; names no
/// longer than may be.
const FORMATS: [(&str, &str); 5] = [
    ("email", "^[^@]{1,60}@[^.]{1,40}([.][^.]{1,40}){0,3}$"),
    ("hostname", "^.{1,253}$"),
    ("time", "^.{6}[0-5]"),
    ("date", "^.{5}(0[13-9]|1|02-([01]|2[0-8]))"),
    ("date-time", "^.{5}(0[13-9]|1.|02-([01].|2[0-8])).*[tT].{6}[0-5]"),
];

/// Keywords whose values have numbers that are compared.
const COMPARED: [&str; 6] = ["const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
/// llguidance's numbers are whole up to here; from 2^63 on, it does not come to an end.
const MAX_WHOLE: f64 = (1_u64 << 53) as f64;

/// Whether all numbers within a value are ones that llguidance can hold.
fn has_small_numbers(value: &Value) -> bool {
    match value {
        Value::Number(number) => match number.as_i128() {
            Some(whole) => whole.unsigned_abs() <= MAX_WHOLE as u128,
            None => number.as_f64().is_some_and(|number| number.abs() <= MAX_WHOLE),
        },
        Value::Array(values) => values.iter().all(has_small_numbers),
        Value::Object(fields) => fields.values().all(has_small_numbers),
        _ => true,
    }
}

/// A grammar of llguidance's kind of Lark, unless it is one that cannot be followed, or not soon; or why it is.
#[cfg(feature = "structured")]
pub(super) fn lark(source: &str) -> Result<&str, String> {
    // Some pass over rules takes the square of their number.
    const MAX_RULES: usize = 2000;
    let rules = source.lines().filter(|line| line.contains(':')).count();
    if rules > MAX_RULES {
        return Err(format!("it has {rules} rules, expected at most {MAX_RULES}"));
    }
    let schemas = source.match_indices("%json").filter_map(|(at, found)| {
        serde_json::Deserializer::from_str(&source[at + found.len()..]).into_iter::<Value>().next()?.ok()
    });
    for mut schema in schemas {
        tighten(&mut schema, &mut Vec::new())?;
    }
    Ok(source)
}

/// Leave out the few values that llguidance takes for fitting and others do not: an exclusive bound itself, which it allows between
/// two neighbouring integers, and names and times that do not exist. `steps` gets each `multipleOf`.
fn tighten(schema: &mut Value, steps: &mut Vec<f64>) -> Result<(), String> {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Array(schemas) => return schemas.iter_mut().try_for_each(|schema| tighten(schema, steps)),
        _ => return Ok(()),
    };
    for (name, value) in fields.iter_mut().filter(|(name, _)| !NO_SCHEMA.contains(&name.as_str())) {
        match value {
            Value::Object(schemas) if BY_NAME.contains(&name.as_str()) => {
                schemas.values_mut().try_for_each(|schema| tighten(schema, steps))?;
            }
            value => tighten(value, steps)?,
        }
    }
    // A name that is not listed may come twice, which makes one member.
    let is_closed =
        fields.get("additionalProperties") == Some(&Value::Bool(false)) && !fields.contains_key("patternProperties");
    if !is_closed && fields.get("minProperties").and_then(Value::as_f64).is_some_and(|least| least > 1.0) {
        return Err(
            "`minProperties` of more than 1 needs `additionalProperties` to be false and no `patternProperties`".into(),
        );
    }
    if let Some(keyword) =
        COMPARED.iter().find(|name| fields.get(**name).is_some_and(|value| !has_small_numbers(value)))
    {
        return Err(format!("`{keyword}` has a number beyond 2^53"));
    }
    steps.extend(fields.get("multipleOf").and_then(Value::as_f64));
    for (exclusive, inclusive, sign) in [("exclusiveMinimum", "minimum", 1.0), ("exclusiveMaximum", "maximum", -1.0)] {
        let Some(bound) = fields.get(exclusive).and_then(Value::as_f64) else { continue };
        let within = sign * (bound + sign * 1e-9 * bound.abs().max(1.0));
        let other = fields.get(inclusive).and_then(Value::as_f64).map_or(within, |other| sign * other);
        fields.insert(inclusive.into(), (sign * within.max(other)).into());
        fields.shift_remove(exclusive);
    }
    let format = fields.get("format").and_then(Value::as_str);
    if let Some((_, pattern)) = FORMATS.iter().find(|(name, _)| Some(*name) == format)
        && let Value::Array(all) = fields.entry("allOf").or_insert_with(|| json!([]))
    {
        all.push(json!({"pattern": pattern}));
    }
    Ok(())
}

/// llguidance computes with `multipleOf` in whole numbers of 32 bits, two of which it multiplies where both are asked of a number, and
/// ten of each.
fn check_steps(steps: &[f64]) -> Result<(), String> {
    let mut whole: Vec<u64> = Vec::new();
    for digits in 0..=6 {
        let scaled = steps.iter().map(|step| step * 10f64.powi(digits));
        if scaled.clone().all(|step| step.fract() == 0.0) {
            whole = scaled.map(|step| step as u64).collect();
            break;
        }
    }
    whole.sort_unstable();
    whole.dedup();
    let fits = |n: Option<u64>| n.is_some_and(|n| n <= u64::from(u32::MAX));
    let is_small = match whole[..] {
        [] => steps.is_empty(),
        [one] => fits(one.checked_mul(10)),
        [.., one, other] => fits(one.checked_mul(other)) && fits(other.checked_mul(10)),
    };
    is_small.then_some(()).ok_or_else(|| "`multipleOf` is too large, or has more than six decimals".into())
}
