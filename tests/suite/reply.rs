//! Replies in the families' own formats: what mlx-lm's parsers read in them, however they stream; and what is no call is text.

use std::fs;

use mlx_lm::reply::{Calls, Event, Format, Parser, Reasoning};
use mlx_lm::{Checkpoint, Tokenizer};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixture;

const HERMES: Format = Format { reasoning: Some(Reasoning::Think), calls: Some(Calls::Hermes) };
const MISTRAL: Format = Format { reasoning: Some(Reasoning::Brackets), calls: Some(Calls::MistralList) };
const TAGGED: Format = Format { reasoning: Some(Reasoning::Think), calls: Some(Calls::TaggedList) };
const LLAMA: Format = Format { reasoning: Some(Reasoning::Think), calls: Some(Calls::Llama) };

/// Neighbours of one kind joined.
fn joined(events: Vec<Event>) -> Vec<Event> {
    use Event::{CallArguments, Content, Reasoning};
    let mut all: Vec<Event> = Vec::new();
    for event in events {
        match (all.last_mut(), event) {
            (Some(Content(text)), Content(more))
            | (Some(Reasoning(text)), Reasoning(more))
            | (Some(CallArguments(text)), CallArguments(more)) => text.push_str(&more),
            (_, event) => all.push(event),
        }
    }
    all
}

/// What becomes of `text`, cut after every so many characters.
fn parse_cut(format: Format, prompt: &str, text: &str, cuts: &[usize]) -> Vec<Event> {
    let mut parser = Parser::new(format, prompt);
    let (mut chars, mut events) = (text.chars(), Vec::new());
    for &cut in cuts.iter().chain([&usize::MAX]) {
        events.extend(parser.push(&chars.by_ref().take(cut).collect::<String>()));
    }
    events.extend(parser.finish());
    joined(events)
}

fn parse(format: Format, text: &str) -> Vec<Event> {
    let events = parse_cut(format, "", text, &[]);
    assert_eq!(parse_cut(format, "", text, &vec![1; text.chars().count()]), events, "{text:?}");
    events
}

/// Content, reasoning, and calls with whole arguments.
fn summary(events: Vec<Event>) -> (String, String, Vec<Value>) {
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    let (mut name, mut arguments) = (String::new(), String::new());
    for event in events {
        match event {
            Event::Content(text) => content += &text,
            Event::Reasoning(text) => reasoning += &text,
            Event::CallBegin { name: begun } => (name, arguments) = (begun, String::new()),
            Event::CallArguments(text) => arguments += &text,
            Event::CallEnd { is_whole } => {
                assert!(is_whole, "{arguments}");
                calls.push(json!({"name": name, "arguments": serde_json::from_str::<Value>(&arguments).unwrap()}));
            }
        }
    }
    (content, reasoning, calls)
}

#[test]
fn calls_are_those_that_mlx_lm_reads() {
    let cases: Vec<Value> = serde_json::from_str(&fs::read_to_string(fixture("replies.json")).unwrap()).unwrap();
    assert!(cases.len() > 150);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let format = match case["format"].as_str().unwrap() {
            "hermes" => HERMES,
            "mistral" => MISTRAL,
            "tagged" => TAGGED,
            _ => LLAMA,
        };
        let (content, reasoning, calls) = summary(parse(format, text));
        assert_eq!(Value::from(calls), case["calls"], "{text}");
        assert_eq!(content, case["content"], "{text}");
        assert_eq!(reasoning, case["reasoning"], "{text}");
    }
}

/// Pieces that make something of each other.
fn text() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "<tool",
        "[TOOL",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        ";",
        "\"",
        "\\",
        " ",
        "\n",
        "a",
        "é",
        "7",
        "{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}",
        "{\"parameters\": {}, \"name\": \"g\"}",
        "{\"name\": \"h\"",
        "f[ARGS]{\"b\": 2}",
        "<|tool_call|>",
        "<|/tool_call|>",
    ];
    vec(prop_oneof![4 => prop::sample::select(PIECES), 1 => Just("word")], 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Catches: a marker that is looked for within a piece alone, text that is held too long or told twice, an order that
    /// depends on the pieces.
    #[test]
    fn pieces_do_not_matter_and_nothing_is_lost(
        text in text(), cuts in vec(0usize..9, 0..40), which in 0usize..4, is_opened in any::<bool>()
    ) {
        let format = [HERMES, MISTRAL, LLAMA, TAGGED][which];
        let prompt = if is_opened { format.reasoning.unwrap().markers().0 } else { "" };
        let events = parse_cut(format, prompt, &text, &[]);
        prop_assert_eq!(&parse_cut(format, prompt, &text, &cuts), &events);
        prop_assert_eq!(&parse_cut(format, prompt, &text, &vec![1; text.len()]), &events);
        // What is told is in the text, in this order.
        let mut rest = text.chars();
        let told = events.iter().flat_map(|event| match event {
            Event::Content(text) | Event::Reasoning(text) | Event::CallArguments(text) => text.chars(),
            Event::CallBegin { name } => name.chars(),
            Event::CallEnd { .. } => "".chars(),
        });
        // The name may come after the arguments, and `{}` where there are none.
        let is_call = events.iter().any(|event| matches!(event, Event::CallBegin { .. }));
        for c in told.filter(|_| !is_call) {
            prop_assert!(rest.any(|other| other == c), "{:?} in {:?}", c, text);
        }
        if let [] | [Event::Content(_)] = &events[..] && !text.contains(format.reasoning.unwrap().markers().0) && !is_opened {
            let content = if let [Event::Content(content)] = &events[..] { content.as_str() } else { "" };
            prop_assert_eq!(content, text);
        }
        // Each call is begun, and ended, once.
        let mut is_open = false;
        for event in &events {
            match event {
                Event::CallBegin { .. } => prop_assert!(!std::mem::replace(&mut is_open, true)),
                Event::CallArguments(_) => prop_assert!(is_open),
                Event::CallEnd { .. } => prop_assert!(std::mem::replace(&mut is_open, false)),
                Event::Content(_) | Event::Reasoning(_) => prop_assert!(!is_open),
            }
        }
        prop_assert!(!is_open);
    }
}

#[test]
fn arguments_stream_as_they_come() {
    let mut parser = Parser::new(HERMES, "");
    assert_eq!(parser.push("I look.\n\n<tool_call>\n{\"name\": \"find\", \"arg"), [Event::Content("I look.".into())]);
    let begin = Event::CallBegin { name: "find".into() };
    assert_eq!(parser.push("uments\": {\"que"), [begin, Event::CallArguments("{\"que".into())]);
    assert_eq!(parser.push("ry\": 1"), [Event::CallArguments("ry\": 1".into())]);
    assert_eq!(parser.push("}"), [Event::CallArguments("}".into()), Event::CallEnd { is_whole: true }]);
    assert_eq!(parser.push("}\n</tool_call>\n"), []);
    assert_eq!(parser.push("So:"), [Event::Content("So:".into())]);
    assert_eq!(parser.finish(), []);
}

#[test]
fn arguments_that_break_off_are_not_whole_and_what_follows_is_text() {
    let begun = |arguments: &str| {
        vec![
            Event::CallBegin { name: "f".into() },
            Event::CallArguments(arguments.into()),
            Event::CallEnd { is_whole: false },
        ]
    };
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1, ";
    assert_eq!(parse(HERMES, call), begun("{\"a\": 1, "));
    let broken = parse(HERMES, &format!("{call}oops}}}}</tool_call>"));
    assert_eq!(broken, [begun("{\"a\": 1, "), vec![Event::Content("oops}}</tool_call>".into())]].concat());
    // One brace too few is forgiven.
    let short =
        "<tool_call>{\"name\": \"f\", \"arguments\": {}\n</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>";
    let (content, _, calls) = summary(parse(HERMES, short));
    assert_eq!((content.as_str(), calls.len()), ("", 2));
}

#[test]
fn reasoning_may_be_opened_by_the_template_and_end_with_the_text() {
    let reasoning = |text: &str| Event::Reasoning(text.into());
    let opened = "<|im_start|>assistant\n<think>\n";
    assert_eq!(
        parse_cut(HERMES, opened, "So\n\n so.\n</think>\n\nYes.", &[]),
        [reasoning("So\n\n so."), Event::Content("Yes.".into())]
    );
    assert_eq!(parse_cut(HERMES, opened, "<think>So", &[3, 4]), [reasoning("So")]);
    assert_eq!(parse_cut(HERMES, "<think>\n\n</think>\n\n", "Yes.", &[]), [Event::Content("Yes.".into())]);
    // A text about the marker is text, and white space before text is kept.
    let text = " \nThe tag <think> opens it.";
    assert_eq!(parse(HERMES, text), [Event::Content(text.into())]);
    let plain = Format::default();
    assert_eq!(parse(plain, "<think>a</think>"), [Event::Content("<think>a</think>".into())]);
}

/// Catches: a search that begins anew with each piece, or after each call that is none. Either would take hours here.
#[test]
fn megabytes_of_nonsense_are_read_once() {
    for (format, piece) in [
        (HERMES, "<tool_call>{\"a\":\""),
        (HERMES, "<tool_call>{\"a\":"),
        (HERMES, "<tool_call> "),
        (HERMES, " \n"),
        (HERMES, "</think><think>"),
        (MISTRAL, "[TOOL_CALLS][{\"name\":\"f\","),
        (MISTRAL, "[TOOL_CALLS]f"),
        (LLAMA, "{\"name\":"),
        (LLAMA, "{\"name\":\"f\",\"parameters\":["),
    ] {
        let text = piece.repeat((2 << 20) / piece.len());
        let mut parser = Parser::new(format, "");
        let mut told = 0;
        let lengths = |events: Vec<Event>| -> usize {
            events.iter().map(|event| if let Event::Content(text) = event { text.len() } else { 0 }).sum()
        };
        for at in (0..text.len()).step_by(3) {
            told += lengths(parser.push(&text[at..text.len().min(at + 3)]));
        }
        assert_eq!(told + lengths(parser.finish()), text.len(), "{piece}");
    }
}

#[test]
fn the_template_and_the_vocabulary_tell_the_format() {
    let detect = |template: &str, vocabulary: &[&str]| Format::detect(template, |token| vocabulary.contains(&token));
    let qwen3 = ["<tool_call>", "</tool_call>", "<think>", "</think>"];
    let template = "{{- '\\n<tool_call>\\n{\"name\": \"' }}{{ tool_call.name }}</tool_call>";
    assert_eq!(detect(template, &qwen3), HERMES);
    assert_eq!(detect("", &qwen3), HERMES);
    assert_eq!(detect("<tool_call>\n<function=", &qwen3).calls, None);
    assert_eq!(detect("{{ 'respond with <|tool_call|>' }}", &[]).calls, Some(Calls::TaggedList));
    assert_eq!(detect("{{ messages }}", &["<|tool_call|>"]).calls, Some(Calls::TaggedList));
    assert_eq!(detect("{{ '[TOOL_CALLS] [' }}", &["[TOOL_CALLS]"]), Format { reasoning: None, ..MISTRAL });
    let named = Format { reasoning: Some(Reasoning::Brackets), calls: Some(Calls::MistralNamed) };
    assert_eq!(detect("", &["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"]), named);
    // Hermes 3 has Llama's vocabulary.
    assert_eq!(detect(template, &["<|python_tag|>"]).calls, Some(Calls::Hermes));
    assert_eq!(detect("{{ '<|python_tag|>' }}", &["<|python_tag|>"]), Format { reasoning: None, ..LLAMA });
    assert_eq!(detect("{{ messages }}", &["a"]), Format::default());
}

#[test]
fn markers_that_are_special_can_be_seen() {
    let checkpoint = Checkpoint::demo().unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    assert_eq!(tokenizer.reply_format(), Format::default());
    let ids = tokenizer.encode("<|user|> é<|end|> b", false).unwrap();
    let shown = tokenizer.special_ids(["<|end|>", "b", "<|nonesuch|>"]);
    assert_eq!(shown.len(), 1);
    let mut detokenizer = tokenizer.detokenizer().showing(shown);
    let text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
    assert_eq!(text, " é<|end|> b");
}

/// Catches: JSON that is an answer and passes for a call.
#[test]
fn what_only_its_form_makes_a_call_names_a_function_that_there_is() {
    let events = |format, text: &str| {
        let mut parser = Parser::new(format, "").of_functions(vec!["add".into()]);
        let mut events = parser.push(text);
        events.extend(parser.finish());
        summary(joined(events))
    };
    let call = |name: &str| format!(r#"{{"name": "{name}", "parameters": {{"a": 1}}}}"#);
    assert_eq!(events(LLAMA, &call("add")).2.len(), 1);
    assert_eq!(events(LLAMA, &call("town")), (call("town"), String::new(), Vec::new()));
    let reversed = r#"{"parameters": {"a": 1}, "name": "town"}"#;
    assert_eq!(events(LLAMA, reversed).0, reversed);
    // What is marked is a call, whatever it names.
    assert_eq!(events(LLAMA, &format!("<|python_tag|>{}", call("town"))).2.len(), 1);
    assert_eq!(events(HERMES, r#"<tool_call>{"name": "town", "arguments": {}}</tool_call>"#).2.len(), 1);
}
