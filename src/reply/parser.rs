//! The parser: an automaton over the characters of a reply. Each is looked at a bounded number of times, and how the text is
//! cut into pieces makes no difference.
//!
//! What may still become a marker or a call is held. If it becomes none it is content, as it was written, and what it holds is
//! not searched again. White space next to what is marked is dropped.

use std::ops::Range;

use super::json::Scanner;
use super::{ARGS, CALL_ID, Calls, Event, Format};

/// Reads one reply.
#[derive(Debug, Clone)]
pub struct Parser {
    format: Format,
    /// The functions that there are, where that is known.
    functions: Option<Vec<String>>,
    state: State,
    /// What is not told yet.
    held: String,
    /// Of the call under way: whether it is an element of a list.
    in_list: bool,
    events: Vec<Event>,
}

#[derive(Debug, Clone)]
enum State {
    /// The answer; so many bytes at the end of what is held begin a marker.
    Content { place: Place, matched: usize },
    /// The same, of reasoning, which has begun or not.
    Reasoning { has_begun: bool, matched: usize },
    /// After the marker of a call.
    Marker,
    /// In a list, before a call or after one.
    List { is_empty: bool },
    /// `name[ARGS]`
    Header(Header),
    /// The object that may be a call, until its name is known and its arguments begin.
    Object(Object),
    /// Arguments, until the scanner is as deep as this again.
    Arguments { scanner: Scanner, depth: usize },
    /// The rest of the object, after the arguments.
    Rest(Scanner),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// There was nothing but white space.
    Start,
    AfterReasoning,
    AfterCall,
    Amid,
}

#[derive(Debug, Clone)]
struct Header {
    name: String,
    part: HeaderPart,
    /// Whether a marker stands before the name.
    is_marked: bool,
}

#[derive(Debug, Clone, Copy)]
enum HeaderPart {
    Name,
    /// After the name, and after an id.
    Gap,
    /// So many bytes of `[ARGS]` or `[CALL_ID]`.
    Marker(usize),
    Id,
    Arguments,
}

#[derive(Debug, Clone)]
struct Object {
    scanner: Scanner,
    /// Where in what is held the last key, and then its value, begins.
    begin: usize,
    key: Key,
    name: Option<String>,
    /// Arguments that came before the name.
    arguments: Option<Range<usize>>,
    /// Whether nothing but its form says that this is a call.
    is_bare: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// What becomes of the character that was looked at.
enum Next {
    Taken,
    /// It is looked at again, in another state.
    Again,
}

impl Parser {
    /// Read a reply to `prompt`, which may have opened the model's reasoning; its end suffices.
    pub fn new(format: Format, prompt: &str) -> Self {
        let state = match format.opens_reasoning(prompt) {
            true => State::Reasoning { has_begun: false, matched: 0 },
            false => State::Content { place: Place::Start, matched: 0 },
        };
        Parser { format, functions: None, state, held: String::new(), in_list: false, events: Vec::new() }
    }

    /// What only its form makes a call is one of these functions, or none.
    pub fn of_functions(self, functions: Vec<String>) -> Self {
        Parser { functions: Some(functions), ..self }
    }

    /// What more of the reply makes certain.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        for c in text.chars() {
            while let Next::Again = self.step(c) {}
        }
        std::mem::take(&mut self.events)
    }

    /// What was held, once the reply has ended.
    pub fn finish(&mut self) -> Vec<Event> {
        match self.state {
            State::Reasoning { .. } => self.release(Event::Reasoning),
            State::Arguments { .. } => self.events.push(Event::CallEnd { is_whole: false }),
            // What a call has besides its name and arguments is not told.
            State::Rest(_) | State::List { is_empty: false } => self.held.clear(),
            _ => self.release(Event::Content),
        }
        self.state = State::Content { place: Place::Amid, matched: 0 };
        std::mem::take(&mut self.events)
    }

    fn step(&mut self, c: char) -> Next {
        match &mut self.state {
            State::Content { place, matched } => {
                let (place, matched) = (*place, *matched);
                self.content(c, place, matched)
            }
            State::Reasoning { has_begun, matched } => {
                let (has_begun, matched) = (*has_begun, *matched);
                self.reasoning(c, has_begun, matched)
            }
            State::Marker => self.after_marker(c),
            State::List { is_empty } => {
                let is_empty = *is_empty;
                self.list(c, is_empty)
            }
            State::Header(_) => self.header(c),
            State::Object(_) => self.object(c),
            State::Arguments { .. } => self.arguments(c),
            State::Rest(scanner) => match scanner.push(c) {
                Ok(()) => {
                    let is_done = scanner.depth() == 0;
                    self.held.push(c);
                    if is_done {
                        self.held.clear();
                        self.after_call();
                    }
                    Next::Taken
                }
                Err(_) => {
                    let place = if self.held.trim().is_empty() { Place::AfterCall } else { Place::Amid };
                    match place {
                        Place::AfterCall => self.held.clear(),
                        _ => self.release(Event::Content),
                    }
                    self.state = State::Content { place, matched: 0 };
                    Next::Again
                }
            },
        }
    }

    /// Tell what is held.
    fn release(&mut self, of: fn(String) -> Event) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.tell(of(held));
        }
    }

    fn tell(&mut self, event: Event) {
        use Event::{CallArguments, Content, Reasoning};
        match (self.events.last_mut(), &event) {
            (Some(Content(text)), Content(more))
            | (Some(Reasoning(text)), Reasoning(more))
            | (Some(CallArguments(text)), CallArguments(more)) => text.push_str(more),
            _ => self.events.push(event),
        }
    }

    /// It is no call: what is held is content.
    fn reject(&mut self) -> Next {
        self.release(Event::Content);
        self.state = State::Content { place: Place::Amid, matched: 0 };
        Next::Again
    }

    /// Whether what is held ends with the beginning of a marker and `c` goes on with it; and with the whole of which.
    fn extends(&self, matched: usize, c: char, markers: &[&'static str]) -> (bool, Option<&'static str>) {
        let begun = &self.held[self.held.len() - matched..];
        let next = |marker: &&&str| marker.strip_prefix(begun).is_some_and(|rest| rest.starts_with(c));
        match markers.iter().find(next) {
            None => (false, None),
            Some(marker) => (true, (marker.len() == matched + c.len_utf8()).then_some(*marker)),
        }
    }

    fn content(&mut self, c: char, place: Place, matched: usize) -> Next {
        let Format { reasoning, calls } = self.format;
        let opening = reasoning.filter(|_| matches!(place, Place::Start | Place::AfterReasoning));
        let opening = opening.map_or("", |reasoning| reasoning.markers().0);
        let ending = calls.and_then(Calls::ending).filter(|_| place == Place::AfterCall).unwrap_or("");
        let (goes_on, whole) = self.extends(matched, c, &[opening, calls.map_or("", Calls::marker), ending]);
        if goes_on {
            self.held.push(c);
            self.state = match whole {
                None => State::Content { place, matched: matched + c.len_utf8() },
                Some(marker) if marker == opening => {
                    self.held.clear();
                    State::Reasoning { has_begun: false, matched: 0 }
                }
                Some(marker) if marker == ending => {
                    self.held.clear();
                    State::Content { place, matched: 0 }
                }
                Some(_) => State::Marker,
            };
            return Next::Taken;
        }
        if matched > 0 {
            return self.reject();
        }
        match (c, calls) {
            _ if c.is_whitespace() => {
                if !(self.held.is_empty() && matches!(place, Place::AfterReasoning | Place::AfterCall)) {
                    self.held.push(c);
                }
            }
            ('{', Some(Calls::Llama)) if place != Place::Amid => self.begin_object(true),
            (';', Some(Calls::Llama)) if place == Place::AfterCall && self.held.is_empty() => self.held.push(c),
            (_, Some(Calls::MistralList | Calls::MistralNamed)) if place == Place::AfterCall && is_of_name(c) => {
                self.begin_header(false);
                return Next::Again;
            }
            _ => {
                self.held.push(c);
                self.release(Event::Content);
                self.state = State::Content { place: Place::Amid, matched: 0 };
            }
        }
        Next::Taken
    }

    fn reasoning(&mut self, c: char, has_begun: bool, matched: usize) -> Next {
        let (open, close) = self.format.reasoning.expect("it has begun").markers();
        // A model may open what its template has opened.
        let (goes_on, whole) = self.extends(matched, c, &[close, if has_begun { "" } else { open }]);
        if goes_on {
            self.held.push(c);
            self.state = match whole {
                None => State::Reasoning { has_begun, matched: matched + c.len_utf8() },
                Some(marker) => {
                    self.held.clear();
                    match marker == close {
                        true => State::Content { place: Place::AfterReasoning, matched: 0 },
                        false => State::Reasoning { has_begun, matched: 0 },
                    }
                }
            };
            return Next::Taken;
        }
        if matched > 0 {
            self.release(Event::Reasoning);
            self.state = State::Reasoning { has_begun: true, matched: 0 };
            return Next::Again;
        }
        if !c.is_whitespace() {
            self.held.push(c);
            self.release(Event::Reasoning);
            self.state = State::Reasoning { has_begun: true, matched: 0 };
        } else if has_begun {
            self.held.push(c);
        }
        Next::Taken
    }

    fn after_marker(&mut self, c: char) -> Next {
        self.in_list = false;
        let is_mistral = matches!(self.format.calls, Some(Calls::MistralList | Calls::MistralNamed));
        match c {
            _ if c.is_whitespace() => self.held.push(c),
            '{' if !is_mistral => self.begin_object(false),
            '[' if is_mistral || self.format.calls == Some(Calls::TaggedList) => {
                self.held.push(c);
                self.in_list = true;
                self.state = State::List { is_empty: true };
            }
            _ if is_mistral && is_of_name(c) => {
                self.begin_header(true);
                return Next::Again;
            }
            _ => return self.reject(),
        }
        Next::Taken
    }

    fn list(&mut self, c: char, is_empty: bool) -> Next {
        let has_comma = !is_empty && !self.held.is_empty();
        match c {
            _ if c.is_whitespace() => {
                if is_empty || has_comma {
                    self.held.push(c);
                }
            }
            ',' if !is_empty && !has_comma => self.held.push(c),
            '{' if is_empty || has_comma => self.begin_object(false),
            ']' if !is_empty && !has_comma => {
                self.in_list = false;
                self.after_call();
            }
            _ => return self.reject(),
        }
        Next::Taken
    }

    fn begin_header(&mut self, is_marked: bool) {
        self.state = State::Header(Header { name: String::new(), part: HeaderPart::Name, is_marked });
    }

    fn header(&mut self, c: char) -> Next {
        let State::Header(header) = &mut self.state else { unreachable!("it is a header") };
        header.part = match (header.part, c) {
            (HeaderPart::Name, _) if is_of_name(c) => {
                header.name.push(c);
                HeaderPart::Name
            }
            (HeaderPart::Id, _) if is_of_name(c) => HeaderPart::Id,
            (part @ (HeaderPart::Gap | HeaderPart::Arguments), _) if c.is_whitespace() => part,
            (HeaderPart::Name | HeaderPart::Id, _) if c.is_whitespace() => HeaderPart::Gap,
            (HeaderPart::Name | HeaderPart::Id | HeaderPart::Gap, '[') => HeaderPart::Marker(1),
            (HeaderPart::Marker(n), _) => {
                let begun = &self.held[self.held.len() - n..];
                let next = |marker: &&&str| marker.strip_prefix(begun).is_some_and(|rest| rest.starts_with(c));
                match [ARGS, CALL_ID].iter().find(next) {
                    None => return self.reject(),
                    Some(marker) if marker.len() > n + 1 => HeaderPart::Marker(n + 1),
                    Some(&ARGS) => HeaderPart::Arguments,
                    Some(_) => HeaderPart::Id,
                }
            }
            (HeaderPart::Arguments, '{') => return self.begin_arguments_of_header(c),
            (HeaderPart::Name | HeaderPart::Gap, '{') if header.is_marked => return self.begin_arguments_of_header(c),
            _ => return self.reject(),
        };
        self.held.push(c);
        Next::Taken
    }

    fn begin_arguments_of_header(&mut self, c: char) -> Next {
        let State::Header(header) = &mut self.state else { unreachable!("it is a header") };
        let name = std::mem::take(&mut header.name);
        let mut scanner = Scanner::new();
        scanner.push(c).expect("a value begins");
        self.begin_call(name, c);
        self.state = State::Arguments { scanner, depth: 0 };
        Next::Taken
    }

    fn begin_call(&mut self, name: String, first: char) {
        self.held.clear();
        self.tell(Event::CallBegin { name });
        self.tell(Event::CallArguments(first.into()));
    }

    fn whole_call(&mut self, name: String, arguments: String) {
        self.tell(Event::CallBegin { name });
        self.tell(Event::CallArguments(arguments));
        self.tell(Event::CallEnd { is_whole: true });
    }

    /// A call has ended, with all that belongs to it.
    fn after_call(&mut self) {
        self.state = match self.in_list {
            true => State::List { is_empty: false },
            false => State::Content { place: Place::AfterCall, matched: 0 },
        };
    }

    fn arguments(&mut self, c: char) -> Next {
        let State::Arguments { scanner, depth } = &mut self.state else { unreachable!("it is in arguments") };
        if scanner.push(c).is_err() {
            self.tell(Event::CallEnd { is_whole: false });
            return self.reject();
        }
        let (is_whole, depth) = (scanner.depth() == *depth, *depth);
        self.tell(Event::CallArguments(c.into()));
        if is_whole {
            self.tell(Event::CallEnd { is_whole: true });
            if depth == 0 {
                self.after_call();
            } else if let State::Arguments { scanner, .. } = &mut self.state {
                self.state = State::Rest(std::mem::replace(scanner, Scanner::new()));
            }
        }
        Next::Taken
    }

    /// `{` begins what may be a call.
    fn begin_object(&mut self, is_bare: bool) {
        let mut scanner = Scanner::new();
        scanner.push('{').expect("a value begins");
        self.held.push('{');
        let (key, name, arguments) = (Key::Other, None, None);
        self.state = State::Object(Object { scanner, begin: 0, key, name, arguments, is_bare });
    }

    fn object(&mut self, c: char) -> Next {
        let State::Object(object) = &mut self.state else { unreachable!("it is in an object") };
        let is_outer = object.scanner.depth() == 1;
        let begins_key = is_outer && object.scanner.expects_key();
        let begins_value = is_outer && object.scanner.expects_value();
        let ends_key = is_outer && !object.scanner.expects_colon();
        let ends_value = !object.scanner.is_after_value() || !is_outer;
        if object.scanner.push(c).is_err() {
            return self.reject();
        }
        let at = self.held.len();
        self.held.push(c);
        let is_call = match object.scanner.depth() {
            0 => return self.end_object(),
            _ if begins_key && c == '"' => {
                object.begin = at;
                true
            }
            1 if ends_key && object.scanner.expects_colon() => {
                object.key = match &self.held[object.begin..] {
                    "\"name\"" => Key::Name,
                    "\"arguments\"" | "\"parameters\"" => Key::Arguments,
                    "\"type\"" | "\"id\"" => Key::Other,
                    _ if object.is_bare => return self.not_a_call(),
                    _ => Key::Other,
                };
                // Either is told once.
                let (has_name, has_arguments) = (object.name.is_some(), object.arguments.is_some());
                !(object.key == Key::Name && has_name || object.key == Key::Arguments && has_arguments)
            }
            _ if begins_value && !c.is_whitespace() => {
                object.begin = at;
                match (object.key, c, &object.name) {
                    (Key::Arguments, '{', Some(name)) => {
                        let (name, scanner) = (name.clone(), std::mem::replace(&mut object.scanner, Scanner::new()));
                        self.begin_call(name, c);
                        self.state = State::Arguments { scanner, depth: 1 };
                        return Next::Taken;
                    }
                    (Key::Arguments, '{' | '"', _) | (Key::Name, '"', _) | (Key::Other, ..) => true,
                    _ => false,
                }
            }
            1 if ends_value && object.scanner.is_after_value() => return self.end_value(),
            _ => true,
        };
        if is_call { Next::Taken } else { self.not_a_call() }
    }

    /// As [`Parser::reject`], where the last character is held as well.
    fn not_a_call(&mut self) -> Next {
        let _ = self.reject();
        Next::Taken
    }

    /// A string or an object of a member of the outer object has ended.
    fn end_value(&mut self) -> Next {
        let State::Object(object) = &mut self.state else { unreachable!("it is in an object") };
        let value = object.begin..self.held.len();
        match object.key {
            Key::Name => match serde_json::from_str(&self.held[value]) {
                Ok(name) if object.is_bare && self.functions.as_ref().is_some_and(|known| !known.contains(&name)) => {
                    return self.not_a_call();
                }
                Ok(name) => object.name = Some(name).filter(|name: &String| !name.is_empty()),
                Err(_) => return self.not_a_call(),
            },
            Key::Arguments => object.arguments = Some(value),
            Key::Other => return Next::Taken,
        }
        match (&object.name, &object.arguments) {
            (None, _) if object.key == Key::Name => self.not_a_call(),
            (Some(name), Some(arguments)) => {
                let Some(arguments) = object_text(&self.held[arguments.clone()]) else { return self.not_a_call() };
                let (name, scanner) = (name.clone(), std::mem::replace(&mut object.scanner, Scanner::new()));
                self.whole_call(name, arguments);
                self.held.clear();
                self.state = State::Rest(scanner);
                Next::Taken
            }
            _ => Next::Taken,
        }
    }

    /// The outer object has ended, without arguments or without a name.
    fn end_object(&mut self) -> Next {
        let State::Object(object) = &mut self.state else { unreachable!("it is in an object") };
        match object.name.take() {
            Some(name) if !object.is_bare => {
                self.whole_call(name, "{}".into());
                self.held.clear();
                self.after_call();
                Next::Taken
            }
            _ => self.not_a_call(),
        }
    }
}

/// An object as it is written, or as a string that holds it has it.
fn object_text(json: &str) -> Option<String> {
    let text = match json.starts_with('"') {
        true => serde_json::from_str(json).ok()?,
        false => json.to_owned(),
    };
    let mut scanner = Scanner::new();
    let is_object = text.trim_start().starts_with('{') && text.chars().all(|c| scanner.push(c).is_ok());
    (is_object && scanner.depth() == 0).then_some(text)
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}
