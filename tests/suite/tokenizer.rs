//! The tokenizer agrees with Hugging Face's, and the stream of text with the text as a whole.

use std::fs;
use std::sync::LazyLock;

use mlx_lm::Tokenizer;
use mlx_lm::chat_template::Conversation;
use mlx_lm::checkpoint::Checkpoint;
use mlx_lm::error::Error;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture;

/// The fixtures, each also as the `tokenizers` crate has it.
static LOADED: LazyLock<[(&str, Tokenizer, tokenizers::Tokenizer); 4]> = LazyLock::new(|| {
    ["byte_level_llama3", "byte_level_qwen3", "metaspace", "sentencepiece"].map(|name| {
        let root = fixture("tokenizers").join(name);
        let reference = tokenizers::Tokenizer::from_file(root.join("tokenizer.json")).unwrap();
        (name, Tokenizer::load(&Checkpoint::open(root).unwrap()).unwrap(), reference)
    })
});

fn cases(tokenizer: &str, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(fixture("tokenizers").join(tokenizer).join(file)).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 5, "{tokenizer}/{file}");
    cases
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A model directory with these files.
fn directory(files: &[(&str, Value)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

/// A tokenizer whose words are `pieces`, with ids from 0; those like `<s>` are special.
fn words(pieces: &[&str], decoder: Value) -> Value {
    let vocab: serde_json::Map<_, _> =
        pieces.iter().zip(0..).map(|(piece, id)| (piece.to_string(), id.into())).collect();
    let special = |(id, piece)| {
        json!({"id": id, "content": piece, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let is_special = |piece: &&str| ["<s>", "</s>"].contains(piece);
    let added: Vec<Value> =
        pieces.iter().copied().enumerate().filter(|(_, piece)| is_special(piece)).map(special).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": pieces[0]},
    })
}

fn tokenizer(files: &[(&str, Value)]) -> Result<Tokenizer, Error> {
    Tokenizer::load(&Checkpoint::open(directory(files).path()).unwrap())
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut detokenizer = tokenizer.detokenizer();
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn ids_and_text_are_those_of_transformers() {
    for (name, tokenizer, _) in &*LOADED {
        for case in cases(name, "cases.json") {
            let text = case["text"].as_str().unwrap();
            let raw = ids(&case["ids_raw"]);
            assert_eq!(tokenizer.encode(text, false).unwrap(), raw, "{name}: {text:?}");
            let mut expected = ids(&case["ids"]);
            let bos = tokenizer.bos_token_id();
            if expected.len() > 1 && bos.is_some() && [Some(expected[0]), Some(expected[1])] == [bos, bos] {
                expected.remove(0); // where transformers has two, we have one
            }
            assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected).unwrap(), case["decoded"].as_str().unwrap(), "{name}: {text:?}");
        }
        for case in cases(name, "decode_cases.json") {
            let ids = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap(), "{name}: {ids:?}");
        }
    }
}

/// Catches: a space that a token has or has not by its place, a byte that is told as its name.
#[test]
fn the_bytes_of_tokens_make_the_text() {
    for (name, tokenizer, _) in &*LOADED {
        let ordinary = |id: &u32| !tokenizer.is_special(*id);
        for case in cases(name, "cases.json") {
            let ids: Vec<u32> = ids(&case["ids_raw"]).into_iter().filter(ordinary).collect();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id).unwrap()).collect();
            let mut detokenizer = tokenizer.detokenizer().amid_text();
            let text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
            assert_eq!(text.as_bytes(), bytes, "{name}: {ids:?}");
            // SentencePiece's texts lose the space that they begin with.
            let decoded = tokenizer.decode(&ids).unwrap();
            assert_eq!(text.strip_prefix(' ').filter(|_| text != decoded).unwrap_or(&text), decoded, "{name}: {ids:?}");
        }
        assert_eq!(tokenizer.bytes(u32::MAX).unwrap(), b"");
    }
}

#[test]
fn text_never_begins_with_two_bos() {
    for (name, tokenizer, _) in &*LOADED {
        let Some(bos) = tokenizer.bos_token_id() else { continue };
        let text = format!("{}once", tokenizer.bos_token().unwrap());
        for ids in [tokenizer.encode(&text, true).unwrap(), tokenizer.encode("once", true).unwrap()] {
            assert_eq!(ids.iter().filter(|&&id| id == bos).count(), 1, "{name}: {ids:?}");
            assert_eq!(ids[0], bos, "{name}");
        }
        assert!(!tokenizer.encode("once", false).unwrap().contains(&bos), "{name}");
    }
}

#[test]
fn every_id_up_to_the_highest_has_a_piece() {
    for (name, tokenizer, _) in &*LOADED {
        let max = tokenizer.max_id().unwrap();
        assert!((0..=max).all(|id| tokenizer.piece(id).is_some()), "{name}");
        assert_eq!(tokenizer.piece(max + 1), None, "{name}");
        assert_eq!(tokenizer.piece(u32::MAX), None, "{name}");
    }
}

/// Ids of all kinds: of words, of bytes and special tokens, and those that no vocabulary has.
fn any_ids() -> impl Strategy<Value = Vec<u32>> {
    vec(prop_oneof![4 => 0..600u32, 2 => 0..300u32, 1 => 460..480u32, 1 => any::<u32>()], 0..40)
}

proptest! {
    /// Whatever comes, the pieces of the stream are the text, and only an unfinished character is held back.
    #[test]
    fn the_stream_is_the_text(ids in any_ids()) {
        for (name, tokenizer, _) in &*LOADED {
            let mut detokenizer = tokenizer.detokenizer();
            let mut text = String::new();
            for (i, &id) in ids.iter().enumerate() {
                text.push_str(&detokenizer.push(id).unwrap());
                let so_far = tokenizer.decode(&ids[..=i]).unwrap();
                let held_back = so_far.strip_prefix(&text);
                prop_assert!(
                    held_back.is_some_and(|rest| rest.chars().count() <= 3 && rest.chars().all(|c| c == '\u{FFFD}')),
                    "{name}: {text:?} of {so_far:?}"
                );
            }
            text.push_str(&detokenizer.finish());
            prop_assert_eq!(&text, &tokenizer.decode(&ids).unwrap(), "{}", name);
        }
    }

    /// A byte-level text is that of `tokenizers` for any ids. With byte fallback it is for texts of whole characters.
    #[test]
    fn text_is_that_of_the_tokenizers_crate(ids in any_ids(), texts in vec("\\PC{0,6}|[ \u{2581}]{1,3}|</?s>", 0..8)) {
        for (name, tokenizer, reference) in &*LOADED {
            let of_texts: Vec<u32> = texts.iter().flat_map(|text| tokenizer.encode(text, false).unwrap()).collect();
            let expected = reference.decode(&of_texts, true).unwrap();
            prop_assert_eq!(streamed(tokenizer, &of_texts), expected, "{}: {:?}", name, of_texts);
            let expected = reference.decode(&ids, true).unwrap();
            if name.starts_with("byte_level") {
                prop_assert_eq!(streamed(tokenizer, &ids), expected, "{}", name);
            } else {
                let is_byte = |id: &&u32| tokenizer.piece(**id).is_some_and(|piece| piece.starts_with("<0x"));
                let texts: Vec<u32> = ids.iter().filter(|id| !is_byte(id)).copied().collect();
                prop_assert_eq!(streamed(tokenizer, &texts), reference.decode(&texts, true).unwrap(), "{}", name);
            }
        }
    }

    /// A byte-level vocabulary spells every text.
    #[test]
    fn byte_level_text_survives_the_round_trip(text in "\\PC{0,20}") {
        let (_, tokenizer, _) = &LOADED[0];
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()).unwrap(), text);
    }

    /// Every supported decoder, on pieces chosen to be awkward for it.
    #[test]
    fn every_decoder_is_that_of_the_tokenizers_crate(ids in vec(0..24u32, 0..12)) {
        for (decoder, tokenizer, reference) in &*DECODERS {
            prop_assert_eq!(streamed(tokenizer, &ids), reference.decode(&ids, true).unwrap(), "{}", decoder);
        }
    }
}

static DECODERS: LazyLock<Vec<(Value, Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
    const PIECES: [&str; 22] = [
        "a", "b c", "", " ", "  ", "▁", "▁▁", "▁d", "x▁y", "##e", "##", "Ġf", "Ã", "©", "âĤ", "¬", " .", "é",
        "\u{FFFD}", "n't", "<s>", "</s>",
    ];
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let strip = |n| json!({"type": "Strip", "content": " ", "start": n, "stop": 0});
    let metaspace = |scheme| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let (byte_fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
    let decoders = vec![
        Value::Null,
        byte_level.clone(),
        metaspace("always"),
        metaspace("never"),
        replace.clone(),
        strip(1),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        sequence(&[&replace, &byte_fallback, &fuse, &strip(1)]),
        sequence(&[&replace, &byte_fallback, &fuse]),
        sequence(&[&replace, &fuse, &strip(3)]),
        sequence(&[&replace, &strip(2), &fuse]),
        sequence(&[&byte_level, &strip(1)]),
        sequence(&[&metaspace("first"), &fuse]),
    ];
    let load = |decoder: Value| {
        let json = words(&PIECES, decoder.clone());
        let reference = json.to_string().parse().unwrap();
        (decoder, tokenizer(&[("tokenizer.json", json)]).unwrap(), reference)
    };
    decoders.into_iter().map(load).collect()
});

#[test]
fn malformed_bytes_are_replaced_one_by_one_and_harm_no_neighbour() {
    let decoder = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
    let pieces = ["<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "<0x41>", "é", "<s>"];
    let tokenizer = tokenizer(&[("tokenizer.json", words(&pieces, decoder))]).unwrap();
    for (ids, expected) in [
        (&[0, 1, 2][..], "€"),
        (&[0, 6, 1, 6, 2], "€"),
        (&[0, 1], "\u{FFFD}\u{FFFD}"),
        (&[0, 1, 5], "\u{FFFD}\u{FFFD}é"),
        (&[0, 1, 2, 3, 4], "€\u{FFFD}A"),
        (&[0, 0, 1, 2, 1], "\u{FFFD}€\u{FFFD}"),
    ] {
        assert_eq!(streamed(&tokenizer, ids), expected, "{ids:?}");
    }
    // A character is text as soon as its last byte is there, however long the run of bytes.
    let mut detokenizer = tokenizer.detokenizer();
    for _ in 0..3 {
        assert_eq!([0, 1, 2].map(|id| detokenizer.push(id).unwrap()), ["", "", "€"]);
    }
}

#[test]
fn eos_ids_come_from_every_file_that_names_one() {
    let vocabulary = ("tokenizer.json", words(&["a", "b", "c", "d", "e"], Value::Null));
    const NO_IDS: [u32; 0] = [];
    let eos = |files: &[(&str, Value)]| -> Vec<u32> {
        let files: Vec<_> = files.iter().cloned().chain([vocabulary.clone()]).collect();
        tokenizer(&files).unwrap().eos_token_ids().iter().copied().collect()
    };
    assert_eq!(eos(&[]), NO_IDS);
    assert_eq!(eos(&[("config.json", json!({"eos_token_id": null})), ("generation_config.json", json!({}))]), NO_IDS);
    assert_eq!(eos(&[("config.json", json!({"eos_token_id": 3}))]), [3]);
    assert_eq!(eos(&[("tokenizer_config.json", json!({"eos_token": "b"}))]), [1]);
    assert_eq!(eos(&[("special_tokens_map.json", json!({"eos_token": {"content": "c"}}))]), [2]);
    assert_eq!(eos(&[("tokenizer_config.json", json!({"eos_token": "not in the vocabulary"}))]), NO_IDS);
    let all = [
        ("config.json", json!({"eos_token_id": 900})),
        ("generation_config.json", json!({"eos_token_id": [4, 3]})),
        ("tokenizer_config.json", json!({"eos_token": {"__type": "AddedToken", "content": "b"}})),
    ];
    assert_eq!(eos(&all), [1, 3, 4, 900]);

    for wrong in [json!("b"), json!(-1), json!([1, "b"]), json!(4294967296u64)] {
        let files = [vocabulary.clone(), ("generation_config.json", json!({"eos_token_id": wrong}))];
        let message = tokenizer(&files).unwrap_err().to_string();
        assert!(message.contains("generation_config.json: `eos_token_id` is "), "{message}");
    }
}

#[test]
fn a_token_that_a_configuration_calls_special_is_not_printed() {
    let vocabulary = ("tokenizer.json", words(&["a", "<|im_end|>"], Value::Null));
    assert_eq!(tokenizer(std::slice::from_ref(&vocabulary)).unwrap().decode(&[0, 1]).unwrap(), "a <|im_end|>");
    for tokens in [json!({"eos_token": "<|im_end|>"}), json!({"extra_special_tokens": {"boi": "<|im_end|>"}})] {
        let config = ("tokenizer_config.json", tokens);
        assert_eq!(tokenizer(&[vocabulary.clone(), config]).unwrap().decode(&[0, 1]).unwrap(), "a");
    }
    let config = json!({"extra_special_tokens": {"boi": "<|im_end|>"}, "chat_template": "{{ boi }}"});
    let named = tokenizer(&[vocabulary, ("tokenizer_config.json", config)]).unwrap();
    let conversation =
        Conversation { messages: vec![json!({"role": "user", "content": "a"})], ..Conversation::default() };
    assert_eq!(named.render(&conversation).unwrap(), "<|im_end|>");
}

#[test]
fn tokens_that_only_the_configuration_lists_are_added_in_the_order_of_their_ids() {
    let mut vocabulary = words(&["<unk>", "a", "b"], Value::Null);
    vocabulary["pre_tokenizer"] = Value::Null;
    let token = |content: &str, special: bool, rstrip: bool| {
        json!({"content": content, "single_word": false, "lstrip": false, "rstrip": rstrip, "normalized": false,
               "special": special})
    };
    let listed =
        json!({"10": token("<two>", false, false), "3": token("<one>", true, true), "1": token("a", true, false)});
    let config = ("tokenizer_config.json", json!({"added_tokens_decoder": listed}));
    let tokenizer = tokenizer(&[("tokenizer.json", vocabulary), config]).unwrap();
    assert_eq!(tokenizer.encode("a<one> b<two>", true).unwrap(), [1, 3, 2, 4]);
    assert_eq!(tokenizer.decode(&[1, 3, 2, 4]).unwrap(), "b <two>");
}

#[test]
fn lengths_that_the_tokenizer_was_trained_with_do_not_count() {
    let mut json = words(&["a", "b", "c", "[PAD]"], Value::Null);
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 3,
                             "pad_type_id": 0, "pad_token": "[PAD]"});
    assert_eq!(tokenizer(&[("tokenizer.json", json)]).unwrap().encode("a b c", true).unwrap(), [0, 1, 2]);
}

#[test]
fn chat_templates_are_found_wherever_transformers_keeps_them() {
    let vocabulary = ("tokenizer.json", words(&["a"], Value::Null));
    let load = |files: &[(&str, Value)]| {
        let files: Vec<_> = files.iter().cloned().chain([vocabulary.clone()]).collect();
        tokenizer(&files)
    };
    let conversation =
        Conversation { messages: vec![json!({"role": "user", "content": "Hi"})], ..Conversation::default() };
    let with_tools = Conversation { tools: Some(json!([])), ..conversation.clone() };

    let none = load(&[]).unwrap();
    assert!(!none.has_chat_template());
    assert!(matches!(none.render(&conversation), Err(Error::Input(message)) if message.contains("no chat template")));

    let config = |template| {
        let tokens =
            json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null, "chat_template": template});
        ("tokenizer_config.json", tokens)
    };
    let one = config(json!("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token is defined }}"));
    let tokenizer = load(std::slice::from_ref(&one)).unwrap();
    assert!(tokenizer.has_chat_template());
    assert_eq!(tokenizer.render(&conversation).unwrap(), "<s>Hi</s>False");

    let file = ("chat_template.jinja", json!("the file"));
    assert_eq!(load(&[one, file.clone()]).unwrap().render(&conversation).unwrap(), "the file");

    // As transformers and mlx-lm save several.
    let more = ("additional_chat_templates/tool_use.jinja", json!("for tools"));
    let both = load(&[file.clone(), more.clone()]).unwrap();
    assert_eq!([&conversation, &with_tools].map(|it| both.render(it).unwrap()), ["the file", "for tools"]);
    let alone = load(&[more]).unwrap();
    assert_eq!(alone.render(&with_tools).unwrap(), "for tools");
    let object = load(&[config(json!({"default": "default!", "tool_use": "tool_use!"}))]).unwrap();
    assert_eq!([&conversation, &with_tools].map(|it| object.render(it).unwrap()), ["default!", "tool_use!"]);

    let named = |names: &[&str]| {
        config(
            names.iter().map(|name| json!({"name": name, "template": format!("{name}!")})).collect::<Vec<_>>().into(),
        )
    };
    let several = load(&[named(&["rag", "tool_use", "default"])]).unwrap();
    assert_eq!(several.render(&conversation).unwrap(), "default!");
    assert_eq!(several.render(&with_tools).unwrap(), "tool_use!");
    let no_default = load(&[named(&["rag"])]).unwrap();
    assert!(no_default.has_chat_template());
    assert!(matches!(no_default.render(&conversation), Err(Error::Input(message)) if message.contains("rag")));

    let message = load(&[config(json!(7))]).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json: `chat_template` is 7"), "{message}");
}

#[test]
fn a_tokenizer_that_cannot_be_used_is_an_error_that_names_the_file() {
    let whole = fs::read_to_string(fixture("tokenizers/sentencepiece/tokenizer.json")).unwrap();
    let cut =
        (0..whole.len() - 2).step_by(97).filter(|&end| whole.is_char_boundary(end)).map(|end| whole[..end].to_owned());
    // A decoder nested this deep makes the `tokenizers` crate panic.
    let deep = format!(r#"{{"version": "1.0", "decoder": {}{}}}"#, "[".repeat(500), "]".repeat(500));
    let others = ["{}", "[]", "7", "null", "{\"version\": \"9\"}", "\u{0}", &deep].map(str::to_owned);
    let problem = |text: String| match tokenizer(&[("tokenizer.json", text.clone().into())]) {
        Err(Error::Malformed { path, problem }) if path.ends_with("tokenizer.json") => problem,
        other => panic!("{text}: {other:?}"),
    };
    for text in cut {
        let problem = problem(text);
        assert!(problem.contains("at line"), "{problem}");
    }
    for text in others {
        assert!(!problem(text).is_empty());
    }
    assert!(matches!(tokenizer(&[]), Err(Error::Missing { path, .. }) if path.ends_with("tokenizer.json")));
    for decoder in [
        json!({"type": "CTC", "pad_token": "p", "word_delimiter_token": "|", "cleanup": true}),
        json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
    ] {
        let kind = decoder["type"].as_str().unwrap().to_owned();
        let error = tokenizer(&[("tokenizer.json", words(&["a"], decoder))]).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains(&kind)), "{error}");
    }
}

/// The same step over and over.
fn sequence(list: &str, step: Value, times: usize) -> Value {
    json!({"type": "Sequence", list: vec![step; times]})
}

/// What a tokenizer.json with one stage of its own says of a text, at load or later.
fn complaint(stage: &str, json: Value, text: &str) -> String {
    let mut file = words(&["a", "b"], Value::Null);
    file[stage] = json;
    let result = tokenizer(&[("tokenizer.json", file)]).and_then(|tokenizer| {
        let ids = tokenizer.encode(text, true)?;
        tokenizer.decode(&ids)
    });
    match result {
        Err(Error::Malformed { path, problem }) if path.ends_with("tokenizer.json") => problem,
        other => panic!("{stage}: {other:?}"),
    }
}

/// Each of these took gigabytes, or did not end, for a letter or a line.
#[test]
fn a_tokenizer_that_multiplies_its_text_is_refused() {
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let twice = replace("a", "aa");
    let long = json!({"type": "Prepend", "prepend": "x".repeat(1000)});
    let metaspace = |replacement| json!({"type": "Metaspace", "replacement": replacement, "prepend_scheme": "always"});
    let metaspaces: Vec<Value> = ["▁", "▂"].repeat(30).into_iter().map(metaspace).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let piece = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template = |single: Vec<Value>| {
        json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {
            "t": {"id": "t", "ids": vec![0; 100], "tokens": vec!["a"; 100]}}})
    };
    let special = json!({"SpecialToken": {"id": "t", "type_id": 0}});
    // Its tree is empty, so it changes nothing; its text is long.
    let table = |size: u32| base64::encode([&size.to_le_bytes()[..], &[b'x'; 100]].concat());
    let precompiled = |size| json!({"type": "Precompiled", "precompiled_charsmap": table(size)});
    let cases = [
        (
            "normalizer",
            sequence("normalizers", twice.clone(), 40),
            "the normalizer's step 11: Replace of \"a\" makes 2048",
        ),
        ("normalizer", replace("a", &"x".repeat(1 << 24)), "limit of 1040"),
        ("normalizer", sequence("normalizers", long.clone(), 60), "the normalizer's step 2: Prepend makes 2001 bytes"),
        (
            "normalizer",
            sequence("normalizers", long, 10_000),
            "the normalizer has 10000 steps, more than the limit of 64",
        ),
        ("normalizer", precompiled(0), "the normalizer's step 1: it makes 100 bytes of a character"),
        ("normalizer", precompiled(u32::MAX), "the normalizer's step 1: its table is cut off"),
        ("pre_tokenizer", sequence("pretokenizers", byte_level, 40), "the pre-tokenizer's step "),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": metaspaces}), "the pre-tokenizer's step "),
        ("decoder", sequence("decoders", twice, 40), "the decoder's step 11: Replace of \"a\" makes 2048"),
        (
            "post_processor",
            template(vec![piece.clone(); 2]),
            "the post-processor's step 1: a template that repeats the text",
        ),
        (
            "post_processor",
            template(vec![special; 20]),
            "the post-processor adds 2000 tokens, more than the limit of 1024",
        ),
    ];
    for (stage, json, expected) in cases {
        let text = if stage == "pre_tokenizer" { "aé" } else { "a" };
        let problem = complaint(stage, json, text);
        assert!(problem.contains(expected) && problem.len() < 300, "{stage}: {problem}");
    }
}

#[test]
fn a_pattern_that_never_ends_is_refused_by_its_name() {
    let text = format!("{}!", "a".repeat(60));
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let replace = |pattern: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""});
    let lower = json!({"type": "Lowercase"});
    let slow = r"(a+)+$";
    for (stage, json, expected) in [
        ("pre_tokenizer", split(slow), "the pre-tokenizer's step 1: Split at \"(a+)+$\" reached the limit on matching"),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [lower, replace(slow)]}),
            "the normalizer's step 2: Replace of \"(a+)+$\" reached the limit on matching",
        ),
        ("normalizer", replace(&r"\p{L}".repeat(10_000)), "patterns have 50000 bytes, more than the limit of 16384"),
        ("normalizer", replace(r"(?<x>a)\g<x>"), r"the normalizer's step 1: a pattern with \g< is not supported"),
        ("pre_tokenizer", split("a{1000000}"), "the pre-tokenizer's step 1: Oniguruma error: too big number"),
    ] {
        let problem = complaint(stage, json, &text);
        assert!(problem.contains(expected), "{stage}: {problem}");
    }
    let mut file = words(&[&text], Value::Null);
    file["decoder"] = replace(slow);
    let problem = tokenizer(&[("tokenizer.json", file)]).unwrap().decode(&[0]).unwrap_err().to_string();
    assert!(problem.contains("the decoder's step 1: Replace of \"(a+)+$\" reached the limit on matching"), "{problem}");
}

#[test]
fn a_model_that_is_slow_for_a_short_word_is_refused() {
    let bpe = |field: &str| json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], field: "x".repeat(100)});
    let word_piece = |prefix: &str, longest: usize| {
        json!({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": prefix,
               "max_input_chars_per_word": longest})
    };
    for (model, expected) in [
        (bpe("continuing_subword_prefix"), "is 100, more than the limit of 64"),
        (bpe("end_of_word_suffix"), "is 100, more than the limit of 64"),
        (word_piece(&"#".repeat(100), 100), "is 100, more than the limit of 64"),
        (word_piece("##", 100_000), "`model.max_input_chars_per_word` is 100000, more than the limit of 1000"),
        (
            json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["a".repeat(3000), 0.0]], "byte_fallback": false}),
            "the longest entry of `model.vocab` is 3000, more than the limit of 1000",
        ),
    ] {
        let problem = complaint("model", model, "a");
        assert!(problem.contains(expected), "{problem}");
    }
}

/// A step is the same however deep it is, and depth costs no stack.
#[test]
fn nested_sequences_are_their_steps() {
    let lower = json!({"type": "Lowercase"});
    let nested = (0..55).fold(lower, |step, _| sequence("normalizers", step, 1));
    let mut file = words(&["?", "a"], Value::Null);
    file["normalizer"] = nested;
    assert_eq!(tokenizer(&[("tokenizer.json", file)]).unwrap().encode("A", false).unwrap(), [1]);
}
