//! JSON that comes character by character: whether what has come can still become JSON, and how deep in it one is.
//!
//! Reference: RFC 8259. A parser that needs the whole text would have to read all of it again with each piece.

/// What comes next, or is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    ElementOrEnd,
    KeyOrEnd,
    Key,
    Colon,
    String {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    Hex {
        is_key: bool,
        left: u8,
    },
    Number(Number),
    /// What is left of `true`, `false` or `null`.
    Word(&'static str),
    /// A comma, or the end of what the value is in.
    After,
}

/// The last thing of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

impl Number {
    /// With one more character; `None` when it does not belong to the number.
    fn next(self, c: char) -> Option<Self> {
        use Number::*;
        Some(match (self, c) {
            (Minus, '0') => Zero,
            (Minus, '1'..='9') | (Integer, '0'..='9') => Integer,
            (Zero | Integer, '.') => Point,
            (Point | Fraction, '0'..='9') => Fraction,
            (Zero | Integer | Fraction, 'e' | 'E') => E,
            (E, '+' | '-') => Sign,
            (E | Sign | Exponent, '0'..='9') => Exponent,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Number::Zero | Number::Integer | Number::Fraction | Number::Exponent)
    }
}

/// It cannot become JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotJson;

/// Reads one JSON value.
#[derive(Debug, Clone)]
pub(super) struct Scanner {
    state: State,
    /// The objects (true) and lists that are open.
    open: Vec<bool>,
}

impl Scanner {
    pub fn new() -> Self {
        Scanner { state: State::Value, open: Vec::new() }
    }

    /// How many objects and lists are open.
    pub fn depth(&self) -> usize {
        self.open.len()
    }

    /// Whether a key may begin here.
    pub fn expects_key(&self) -> bool {
        matches!(self.state, State::Key | State::KeyOrEnd)
    }

    /// Whether a key has ended just now.
    pub fn expects_colon(&self) -> bool {
        self.state == State::Colon
    }

    /// Whether a member's value begins here.
    pub fn expects_value(&self) -> bool {
        self.state == State::Value
    }

    /// Whether a value has ended.
    pub fn is_after_value(&self) -> bool {
        self.state == State::After
    }

    /// One more character. After an error nothing has changed.
    pub fn push(&mut self, c: char) -> Result<(), NotJson> {
        use State::*;
        let is_space = matches!(c, ' ' | '\t' | '\n' | '\r');
        self.state = match (self.state, c) {
            (String { is_key: true }, '"') => Colon,
            (String { is_key: false }, '"') => After,
            (String { is_key }, '\\') => Escape { is_key },
            (string @ String { .. }, _) if c >= ' ' => string,
            (Escape { is_key }, 'u') => Hex { is_key, left: 4 },
            (Escape { is_key }, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => String { is_key },
            (Hex { is_key, left: 1 }, _) if c.is_ascii_hexdigit() => String { is_key },
            (Hex { is_key, left }, _) if c.is_ascii_hexdigit() => Hex { is_key, left: left - 1 },
            (Word(rest), _) => match rest.strip_prefix(c).ok_or(NotJson)? {
                "" => After,
                rest => Word(rest),
            },
            (Number(number), _) => match number.next(c) {
                Some(number) => Number(number),
                None if number.may_end() => return self.after(c),
                None => return Err(NotJson),
            },
            (state @ (Value | ElementOrEnd | KeyOrEnd | Key | Colon | After), _) if is_space => state,
            (KeyOrEnd | Key, '"') => String { is_key: true },
            (Colon, ':') => Value,
            (Value | ElementOrEnd, '"') => String { is_key: false },
            (Value | ElementOrEnd, 't') => Word("rue"),
            (Value | ElementOrEnd, 'f') => Word("alse"),
            (Value | ElementOrEnd, 'n') => Word("ull"),
            (Value | ElementOrEnd, '-') => Number(self::Number::Minus),
            (Value | ElementOrEnd, '0') => Number(self::Number::Zero),
            (Value | ElementOrEnd, '1'..='9') => Number(self::Number::Integer),
            (Value | ElementOrEnd, '{' | '[') => {
                self.open.push(c == '{');
                if c == '{' { KeyOrEnd } else { ElementOrEnd }
            }
            (ElementOrEnd, ']') | (KeyOrEnd, '}') | (After, _) => return self.after(c),
            _ => return Err(NotJson),
        };
        Ok(())
    }

    /// What may follow a value, or an empty list or object.
    fn after(&mut self, c: char) -> Result<(), NotJson> {
        self.state = match (c, self.open.last()) {
            (' ' | '\t' | '\n' | '\r', _) => State::After,
            (',', Some(true)) => State::Key,
            (',', Some(false)) => State::Value,
            ('}', Some(true)) | (']', Some(false)) => {
                self.open.pop();
                State::After
            }
            _ => return Err(NotJson),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::Scanner;

    /// Whether `text` is one object or list.
    fn accepts(text: &str) -> bool {
        let mut scanner = Scanner::new();
        text.trim_matches([' ', '\t', '\n', '\r']).starts_with(['{', '['])
            && text.chars().all(|c| scanner.push(c).is_ok())
            && scanner.depth() == 0
            && scanner.is_after_value()
    }

    fn is_json(text: &str) -> bool {
        serde_json::from_str::<IgnoredAny>(text).is_ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_accepted_is_what_serde_json_reads(text in r#"[\[{]([\[\]{},:"\\ 0-9.eE+-]|true|null|"a":|"b"|1|\n){0,12}[\]}]"#) {
            prop_assert_eq!(accepts(&text), is_json(&text), "{:?}", text);
        }

        #[test]
        fn nor_does_it_differ_in_strings_and_numbers(
            string in r#"([a\\/"bnu0-9\u{1}é]|\\n|\\u00e9){0,8}"#, number in "-?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?"
        ) {
            for text in [format!("[\"{string}\"]"), format!("{{\"{string}\": {number} }}"), format!("[{number}]"), format!("[{number},-{number}]")] {
                prop_assert_eq!(accepts(&text), is_json(&text), "{:?}", text);
            }
        }
    }
}
