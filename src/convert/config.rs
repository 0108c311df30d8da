//! config.json as mlx-lm reads it, changes it and writes it. Reference: `mlx_lm.utils` (`load_config`, `save_config`) and Python's
//! `json`, of whose text this is byte for byte.

use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};

use super::FloatType;
use crate::backend::Packing;
use crate::chat_template::python_float;
use crate::checkpoint::Checkpoint;
use crate::error::Result;

pub(super) const CONFIG: &str = "config.json";
const QUANTIZATION: &str = "quantization";
const QUANTIZATION_CONFIG: &str = "quantization_config";

/// The contents of config.json.
pub(super) struct Config(Map<String, Value>);

impl Config {
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let mut config: Map<String, Value> = checkpoint.required_json(CONFIG, "a model has one")?;
        // One that is not JSON is passed over.
        let generation = checkpoint.text("generation_config.json")?.and_then(|text| serde_json::from_str(&text).ok());
        let generation: Map<String, Value> = generation.unwrap_or_default();
        if let Some(eos) = generation.get("eos_token_id").filter(|eos| is_true(eos)) {
            config.insert("eos_token_id".into(), eos.clone());
        }
        if config.get("model_type").is_some_and(|model_type| model_type == "gemma3") {
            fill_in_gemma3(&mut config);
        }
        // Nothing is said by null.
        for key in [QUANTIZATION, QUANTIZATION_CONFIG] {
            if config.get(key).is_some_and(Value::is_null) {
                config.shift_remove(key);
            }
        }
        let nested = config.get("text_config").and_then(|text| text.get(QUANTIZATION_CONFIG)).cloned();
        let nested = nested.filter(|nested| !nested.is_null());
        if let (Some(nested), false) = (nested, config.contains_key(QUANTIZATION_CONFIG)) {
            config.insert(QUANTIZATION_CONFIG.into(), nested);
        }
        // Which this program takes for the other, where that is missing.
        if let (None, Some(found)) = (config.get(QUANTIZATION), config.get(QUANTIZATION_CONFIG)) {
            config.insert(QUANTIZATION.into(), found.clone());
        }
        Ok(Config(config))
    }

    /// What floats of the model are to be, where it says that.
    pub fn dtype(&self) -> Option<FloatType> {
        let of_text = || self.0.get("text_config").and_then(|text| text.get("dtype")).filter(|name| !name.is_null());
        let name = self.0.get("torch_dtype").filter(|name| !name.is_null()).or_else(of_text)?;
        FloatType::from_name(name.as_str()?)
    }

    pub fn model_type(&self) -> &str {
        self.0.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    pub fn is_quantized(&self) -> bool {
        self.0.contains_key(QUANTIZATION)
    }

    /// Say how layers are quantized where nothing else is said.
    pub fn set_quantization(&mut self, Packing { group_size, bits }: Packing) {
        self.0.insert(QUANTIZATION.into(), json!({"group_size": group_size, "bits": bits, "mode": "affine"}));
    }

    /// Say how `module` is quantized.
    pub fn set_module(&mut self, module: &str, settings: Value) {
        if let Some(Value::Object(quantization)) = self.0.get_mut(QUANTIZATION) {
            quantization.insert(module.into(), settings);
        }
    }

    pub fn remove_quantization(&mut self) {
        self.0.shift_remove(QUANTIZATION);
        self.0.shift_remove(QUANTIZATION_CONFIG);
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        let mut config = self.0.clone();
        for unused in ["_name_or_path", "vision_config"] {
            config.shift_remove(unused);
        }
        if let Some(quantization) = config.get(QUANTIZATION) {
            config.insert(QUANTIZATION_CONFIG.into(), quantization.clone());
        }
        config.sort_keys();
        to_python_json(&config)
    }
}

/// mlx-lm's `ModelArgs` of this family writes these into the configuration that it was made from.
fn fill_in_gemma3(config: &mut Map<String, Value>) {
    let vocab_size = config.get("vocab_size").cloned().unwrap_or_else(|| json!(262_208));
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        text.insert("vocab_size".into(), vocab_size);
        for (key, default) in [("num_attention_heads", 8), ("num_key_value_heads", 4)] {
            text.entry(key).or_insert_with(|| json!(default));
        }
    }
}

/// As Python sees it.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As `json.dumps(value, indent=4)` writes it.
pub(super) fn to_python_json(value: &impl Serialize) -> String {
    let mut text = Vec::new();
    let formatter = Python(PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut Serializer::with_formatter(&mut text, formatter)).expect("it has only what JSON has");
    String::from_utf8(text).expect("JSON is text")
}

/// ASCII alone, and floats as Python prints them.
struct Python<'a>(PrettyFormatter<'a>);

impl Formatter for Python<'_> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for c in fragment.chars() {
            if c <= '~' {
                writer.write_all(&[c as u8])?;
            } else {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        self.0.write_char_escape(writer, escape)
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3.11 prints for the same.
    #[test]
    fn text_is_pythons() {
        let value: Value = serde_json::from_str(
            r#"{"a": 1e-05, "b": 500000.0, "c": [], "d": {}, "e": [1, 1e16, 0.0001, -1.5e-7, 1e22], "f": "é\n\u007f\u0001😀/\"", "g": null,
                "h": {"i": true}, "j": 123456789.125}"#,
        )
        .unwrap();
        let expected = r#"{
    "a": 1e-05,
    "b": 500000.0,
    "c": [],
    "d": {},
    "e": [
        1,
        1e+16,
        0.0001,
        -1.5e-07,
        1e+22
    ],
    "f": "\u00e9\n\u007f\u0001\ud83d\ude00/\"",
    "g": null,
    "h": {
        "i": true
    },
    "j": 123456789.125
}"#;
        assert_eq!(to_python_json(&value), expected);
    }
}
