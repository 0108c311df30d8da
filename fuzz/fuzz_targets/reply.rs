//! The parser of replies, on any text: cut into pieces it gives what the whole gives, every call that begins ends, and where
//! nothing is marked nothing is lost. The first two bytes choose the format and the pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_lm::reply::{Calls, Event, Format, Parser, Reasoning};

/// Kinds of events and their texts, neighbours of one kind joined.
fn read<'a>(format: Format, prompt: &str, pieces: impl Iterator<Item = &'a str>) -> Vec<(u8, String)> {
    let mut parser = Parser::new(format, prompt);
    let mut events: Vec<Event> = pieces.flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    let mut all: Vec<(u8, String)> = Vec::new();
    for event in events {
        let (kind, text) = match event {
            Event::Content(text) => (0, text),
            Event::Reasoning(text) => (1, text),
            Event::CallArguments(text) => (2, text),
            Event::CallBegin { name } => (3, name),
            Event::CallEnd { is_whole } => (4, is_whole.to_string()),
        };
        match all.last_mut() {
            Some((last, joined)) if *last == kind && kind < 3 => joined.push_str(&text),
            _ => all.push((kind, text)),
        }
    }
    all
}

fuzz_target!(|bytes: &[u8]| {
    let [choice, step, rest @ ..] = bytes else { return };
    let text = String::from_utf8_lossy(rest);
    let calls = [None, Some(Calls::Llama), Some(Calls::MistralList), Some(Calls::Hermes)][usize::from(choice % 4)];
    let reasoning = [None, Some(Reasoning::Think), Some(Reasoning::Brackets)][usize::from(choice / 4 % 3)];
    let format = Format { reasoning, calls };
    let prompt = if choice / 12 % 2 == 0 { "" } else { reasoning.map_or("", |reasoning| reasoning.markers().0) };
    let whole = read(format, prompt, [&*text].into_iter());
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).step_by(usize::from(step % 16) + 1).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let pieces = starts.iter().zip(ends).map(|(from, to)| &text[*from..to]);
    assert_eq!(read(format, prompt, pieces), whole);
    assert_eq!(
        whole.iter().filter(|(kind, _)| *kind == 3).count(),
        whole.iter().filter(|(kind, _)| *kind == 4).count()
    );
    if !format.markers().any(|marker| text.contains(marker)) && calls != Some(Calls::Llama) && prompt.is_empty() {
        assert_eq!(whole.iter().map(|(_, text)| text.as_str()).collect::<String>(), text);
    }
});
