//! The stages of tokenizer.json, so run that a short text takes a short time, and any text a memory in proportion to its length.
//! A pattern that looks ahead to the end of the text at every position still takes a time that grows with its square.
//!
//! A tokenizer is a file from somewhere, and what it says may multiply a text at every step. Each stage is read as a
//! flat list of steps, of which there may be only so many, and a text that grows beyond a limit on its way is refused.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::pattern::Invert;
use tokenizers::{
    DecoderWrapper, Encoding, ModelWrapper, NormalizedString, Normalizer as _, NormalizerWrapper, OffsetReferential,
    OffsetType, Offsets, PostProcessor as _, PostProcessorWrapper, PreTokenizedString, PreTokenizer as _,
    PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl,
};

use super::pattern::{Cut, Pattern};
use crate::error::{Error, Result};

/// Steps of a stage. Real tokenizers have up to a dozen.
const MAX_STEPS: usize = 64;
/// Bytes of the regular expressions of a stage, which compiled take up to three thousand times as much. Real ones have
/// a few hundred.
const MAX_PATTERNS: usize = 16 << 10;
/// Calls of a group, which Oniguruma may take exponential time to compile, and absence, whose work it does not count.
const UNBOUNDED: [&str; 3] = [r"\g<", r"\g'", "(?~"];
/// What one character may become by a `Precompiled` table, in bytes. Unicode's longest has 33.
const MAX_EXPANSION: usize = 64;
/// Tokens that a template puts around a text.
const MAX_ADDED: usize = 1024;
/// What BPE and WordPiece put before or after each piece of a word, in bytes.
const MAX_AFFIX: usize = 64;
/// Characters of a word that WordPiece splits, in a time that grows with the third power; BERT has 100. Bytes of a piece
/// of Unigram, which tries all that begin at a position, in a time that grows with the second; SentencePiece has 16.
const MAX_WORD: usize = 1000;

/// What `tokenizers` makes of tokenizer.json, with our stages.
pub(super) type Inner = TokenizerImpl<ModelWrapper, Normalizer, PreTokenizer, PostProcessor, Decoder>;

/// Reads tokenizer.json.
pub(super) fn read(path: &Path, text: &str) -> Result<Inner> {
    let inner: Inner = guard(path, || Ok(serde_json::from_str(text)?))?;
    check_model(inner.get_model()).map_err(|problem| Error::malformed(path, problem))?;
    Ok(inner)
}

/// Runs code of `tokenizers`, which panics on some contents of `tokenizer.json`.
pub(super) fn guard<T>(path: &Path, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| Error::malformed(path, e)),
        Err(panic) => Err(match panic.downcast::<Refusal>() {
            Ok(refusal) => Error::malformed(path, refusal.0),
            Err(_) => Error::malformed(path, "not a tokenizer that the `tokenizers` library can use"),
        }),
    }
}

/// Why a normalizer stopped. `tokenizers` ignores what a normalizer returns, so this unwinds past it, to [`guard`].
struct Refusal(String);

/// A stage's steps in their order, out of all nested sequences. `list` is the field that a sequence has them in.
fn steps<T: DeserializeOwned>(stage: &str, list: &str, stage_json: Value) -> tokenizers::Result<Vec<(T, Value)>> {
    let mut all = Vec::new();
    flatten(stage_json, list, &mut all);
    if all.len() > MAX_STEPS {
        return Err(format!("the {stage} has {} steps, more than the limit of {MAX_STEPS}", all.len()).into());
    }
    let patterns = all.iter().filter_map(|step| step.get("pattern")?.get("Regex")?.as_str());
    let bytes: usize = patterns.map(str::len).sum();
    if bytes > MAX_PATTERNS {
        return Err(format!("the {stage}'s patterns have {bytes} bytes, more than the limit of {MAX_PATTERNS}").into());
    }
    let read = |(step, number)| read_step(&step).map(|read| (read, step)).map_err(|e| in_step(stage, number, e).into());
    all.into_iter().zip(1..).map(read).collect()
}

fn flatten(mut step: Value, list: &str, all: &mut Vec<Value>) {
    match step.get_mut(list).and_then(Value::as_array_mut) {
        Some(steps) => steps.drain(..).for_each(|step| flatten(step, list, all)),
        None => all.push(step),
    }
}

fn read_step<T: DeserializeOwned>(step: &Value) -> tokenizers::Result<T> {
    // Of a list, `tokenizers` could make a sequence, with steps that are not counted.
    if !step.is_object() {
        return Err("a step is an object".into());
    }
    if let Some(pattern) = step.get("pattern").and_then(|pattern| pattern.get("Regex")?.as_str())
        && let Some(unbounded) = UNBOUNDED.into_iter().find(|&part| pattern.contains(part))
    {
        return Err(format!("a pattern with {unbounded} is not supported").into());
    }
    if let Some(table) = step.get("precompiled_charsmap").and_then(Value::as_str) {
        check_table(&base64::decode(table)?)?;
    }
    Ok(T::deserialize(step)?)
}

/// A `Precompiled` table: the size of its tree, the tree, and the texts that its leaves point into, ended by zeros.
fn check_table(table: &[u8]) -> tokenizers::Result<()> {
    let texts = table.split_first_chunk().and_then(|(size, rest)| rest.get(u32::from_le_bytes(*size) as usize..));
    let texts = texts.ok_or("its table is cut off")?;
    match texts.split(|&byte| byte == 0).map(<[u8]>::len).max() {
        Some(longest) if longest > MAX_EXPANSION => {
            Err(format!("it makes {longest} bytes of a character, more than the limit of {MAX_EXPANSION}").into())
        }
        _ => Ok(()),
    }
}

fn check_model(model: &ModelWrapper) -> Result<(), String> {
    let length = |affix: &Option<String>| affix.as_ref().map_or(0, String::len);
    let (prefix, suffix) =
        ("the length of `model.continuing_subword_prefix`", "the length of `model.end_of_word_suffix`");
    let numbers = match model {
        ModelWrapper::BPE(bpe) => vec![
            (prefix, length(&bpe.continuing_subword_prefix), MAX_AFFIX),
            (suffix, length(&bpe.end_of_word_suffix), MAX_AFFIX),
        ],
        ModelWrapper::WordPiece(model) => vec![
            (prefix, model.continuing_subword_prefix.len(), MAX_AFFIX),
            ("`model.max_input_chars_per_word`", model.max_input_chars_per_word, MAX_WORD),
        ],
        ModelWrapper::Unigram(model) => {
            let longest = model.iter().map(|(token, _)| token.len()).max().unwrap_or(0);
            vec![("the longest entry of `model.vocab`", longest, MAX_WORD)]
        }
        ModelWrapper::WordLevel(_) => vec![],
    };
    match numbers.into_iter().find(|(_, found, most)| found > most) {
        Some((what, found, most)) => Err(format!("{what} is {found}, more than the limit of {most}")),
        None => Ok(()),
    }
}

/// A problem, with the step that has it. `number` counts from 1.
pub(super) fn in_step(stage: &str, number: usize, problem: impl std::fmt::Display) -> String {
    format!("the {stage}'s step {number}: {problem}")
}

/// How long a text may get in a stage of the tokenizer that it enters with `bytes`. Unicode's longest decomposition
/// makes eleven bytes of one, and a space becomes three where it is spelled `▁`.
pub(super) fn longest(bytes: usize) -> usize {
    16 * bytes + 1024
}

pub(super) fn check_length(bytes: usize, most: usize) -> tokenizers::Result<()> {
    if bytes <= most {
        Ok(())
    } else {
        Err(format!("makes {bytes} bytes of the text, more than the limit of {most}").into())
    }
}

/// A `Replace`, of the normalizer or the decoder.
#[derive(Debug)]
pub(super) struct Replacement {
    pub pattern: Pattern,
    pub content: String,
}

impl Replacement {
    /// From the step's JSON.
    pub fn new(json: &Value) -> tokenizers::Result<Self> {
        Ok(Replacement { pattern: Pattern::new(&json["pattern"])?, content: String::deserialize(&json["content"])? })
    }

    /// What is replaced, unless that makes the text longer than `most`.
    pub fn find(&self, text: &str, most: usize) -> tokenizers::Result<Vec<Offsets>> {
        let found = self.pattern.find(text)?;
        let replaced: usize = found.iter().map(|(start, end)| end - start).sum();
        check_length(text.len() - replaced + found.len() * self.content.len(), most)?;
        Ok(found)
    }

    /// `text` with everything replaced, unless that makes it longer than `most`.
    pub fn apply(&self, text: &str, most: usize) -> tokenizers::Result<String> {
        let mut replaced = String::new();
        let mut rest = 0;
        for (start, end) in self.find(text, most)? {
            replaced += &text[rest..start];
            replaced += &self.content;
            rest = end;
        }
        Ok(replaced + &text[rest..])
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Normalizer(Vec<Normalization>);

#[derive(Debug)]
enum Normalization {
    Replace(Replacement),
    Prepend(String),
    /// One that makes a text at most a few dozen times as long.
    Other(NormalizerWrapper),
}

const NORMALIZER: &str = "normalizer";

impl TryFrom<Value> for Normalizer {
    type Error = tokenizers::Error;

    fn try_from(json: Value) -> tokenizers::Result<Self> {
        let bounded = |(step, json)| {
            Ok(match step {
                NormalizerWrapper::Replace(_) => Normalization::Replace(Replacement::new(&json)?),
                NormalizerWrapper::Prepend(step) => Normalization::Prepend(step.prepend),
                other => Normalization::Other(other),
            })
        };
        Ok(Normalizer(
            steps(NORMALIZER, "normalizers", json)?.into_iter().map(bounded).collect::<tokenizers::Result<_>>()?,
        ))
    }
}

impl Normalization {
    fn run(&self, text: &mut NormalizedString, most: usize) -> tokenizers::Result<()> {
        match self {
            Normalization::Replace(step) => {
                let found = step.find(text.get(), most).map_err(|e| format!("Replace of {} {e}", step.pattern))?;
                text.replace(Cut::new(&found, text.len()), &step.content)
            }
            Normalization::Prepend(start) => {
                if !text.is_empty() {
                    check_length(text.len() + start.len(), most).map_err(|e| format!("Prepend {e}"))?;
                    text.prepend(start);
                }
                Ok(())
            }
            Normalization::Other(step) => {
                step.normalize(text)?;
                check_length(text.len(), most)
            }
        }
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let most = longest(text.len());
        for (step, number) in self.0.iter().zip(1..) {
            if let Err(problem) = step.run(text, most) {
                resume_unwind(Box::new(Refusal(in_step(NORMALIZER, number, problem))));
            }
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct PreTokenizer(Vec<Splitting>);

#[derive(Debug)]
enum Splitting {
    Split { pattern: Pattern, behavior: SplitDelimiterBehavior, invert: bool },
    Other(PreTokenizerWrapper),
}

const PRE_TOKENIZER: &str = "pre-tokenizer";

impl TryFrom<Value> for PreTokenizer {
    type Error = tokenizers::Error;

    fn try_from(json: Value) -> tokenizers::Result<Self> {
        let bounded = |(step, json): (_, Value)| {
            Ok(match step {
                PreTokenizerWrapper::Split(step) => Splitting::Split {
                    pattern: Pattern::new(&json["pattern"])?,
                    behavior: step.behavior,
                    invert: step.invert,
                },
                other => Splitting::Other(other),
            })
        };
        let steps = steps(PRE_TOKENIZER, "pretokenizers", json)?;
        Ok(PreTokenizer(steps.into_iter().map(bounded).collect::<tokenizers::Result<_>>()?))
    }
}

impl Splitting {
    fn run(&self, text: &mut PreTokenizedString, most: usize) -> tokenizers::Result<()> {
        match self {
            Splitting::Split { pattern, behavior, invert } => text.split(|_, part| {
                let found = pattern.find(part.get()).map_err(|e| format!("Split at {pattern} {e}"))?;
                let cut = Cut::new(&found, part.len());
                if *invert { part.split(Invert(cut), *behavior) } else { part.split(cut, *behavior) }
            }),
            Splitting::Other(step) => {
                step.pre_tokenize(text)?;
                check_length(length(text), most)
            }
        }
    }
}

impl tokenizers::PreTokenizer for PreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        let most = longest(length(text));
        for (step, number) in self.0.iter().zip(1..) {
            step.run(text, most).map_err(|problem| in_step(PRE_TOKENIZER, number, problem))?;
        }
        Ok(())
    }
}

/// Bytes of all parts of a text.
fn length(text: &PreTokenizedString) -> usize {
    let parts = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
    parts.iter().map(|(part, ..)| part.len()).sum()
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct PostProcessor(Vec<PostProcessorWrapper>);

impl TryFrom<Value> for PostProcessor {
    type Error = tokenizers::Error;

    fn try_from(json: Value) -> tokenizers::Result<Self> {
        const STAGE: &str = "post-processor";
        let steps = steps(STAGE, "processors", json)?;
        for ((step, _), number) in steps.iter().zip(1..) {
            let json = serde_json::to_value(step)?;
            for template in ["single", "pair"] {
                let pieces = json.get(template).and_then(Value::as_array).into_iter().flatten();
                for text in ["A", "B"] {
                    let is_text = |piece: &&Value| piece.pointer("/Sequence/id").is_some_and(|id| id == text);
                    if pieces.clone().filter(is_text).count() > 1 {
                        return Err(in_step(STAGE, number, "a template that repeats the text is not supported").into());
                    }
                }
            }
        }
        let processor = PostProcessor(steps.into_iter().map(|(step, _)| step).collect());
        match processor.added_tokens(false).max(processor.added_tokens(true)) {
            added if added > MAX_ADDED => {
                Err(format!("the {STAGE} adds {added} tokens, more than the limit of {MAX_ADDED}").into())
            }
            _ => Ok(processor),
        }
    }
}

impl tokenizers::PostProcessor for PostProcessor {
    fn added_tokens(&self, is_pair: bool) -> usize {
        self.0.iter().map(|step| step.added_tokens(is_pair)).sum()
    }

    fn process_encodings(&self, encodings: Vec<Encoding>, special: bool) -> tokenizers::Result<Vec<Encoding>> {
        self.0.iter().try_fold(encodings, |encodings, step| step.process_encodings(encodings, special))
    }
}

/// The decoder as `tokenizers` has it; the steps in use are those that [`super::Decoding`] makes of it.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct Decoder(pub Vec<(DecoderWrapper, Value)>);

impl TryFrom<Value> for Decoder {
    type Error = tokenizers::Error;

    fn try_from(json: Value) -> tokenizers::Result<Self> {
        steps("decoder", "decoders", json).map(Decoder)
    }
}

impl tokenizers::Decoder for Decoder {
    fn decode_chain(&self, pieces: Vec<String>) -> tokenizers::Result<Vec<String>> {
        self.0.iter().try_fold(pieces, |pieces, (step, _)| step.decode_chain(pieces))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::{Normalizer as _, PreTokenizer as _};

    use super::*;

    const PATTERNS: [&str; 12] = [
        r"\s+",
        r"a*",
        r"(?=b)",
        r"^\s+|\s+$",
        r"\bé?",
        r"(a)(b)?",
        r"\s+(?!\S)|\s+",
        r"a\Kb",
        r"(?<=a)",
        r"",
        r"$",
        r"(?i)A|É",
    ];
    const LITERALS: [&str; 5] = ["a", " ", "ab", "é", ""];

    /// Some with a run that is hard for `\s+$`.
    const TEXT: &str = "[ab é\\n]{0,12}( {150})?[ab é\\n]{0,4}";

    fn patterns() -> impl Iterator<Item = Value> {
        let regexes = PATTERNS.into_iter().map(|pattern| json!({"Regex": pattern}));
        regexes.chain(LITERALS.into_iter().map(|pattern| json!({"String": pattern})))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Texts and alignments are those of `tokenizers`' own steps, one by one.
        #[test]
        fn a_bounded_normalizer_is_that_of_the_tokenizers_crate(text in TEXT) {
            let prepend = json!({"type": "Prepend", "prepend": "_é"});
            for pattern in patterns() {
                let replace = json!({"type": "Replace", "pattern": pattern, "content": "é-"});
                let nested = json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, prepend]});
                let json = json!({"type": "Sequence", "normalizers": [nested, replace, replace]});
                let (mut ours, mut theirs) = (NormalizedString::from(text.as_str()), NormalizedString::from(text.as_str()));
                Normalizer::try_from(json.clone()).unwrap().normalize(&mut ours).unwrap();
                NormalizerWrapper::deserialize(json).unwrap().normalize(&mut theirs).unwrap();
                prop_assert_eq!(ours, theirs, "{}", pattern);
            }
        }

        #[test]
        fn a_bounded_pre_tokenizer_is_that_of_the_tokenizers_crate(text in TEXT) {
            for pattern in patterns() {
                for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
                    for invert in [false, true] {
                        let split = json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
                        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
                        let json = json!({"type": "Sequence", "pretokenizers": [split, {"type": "Sequence", "pretokenizers": [bytes]}]});
                        let (mut ours, mut theirs) = (PreTokenizedString::from(text.as_str()), PreTokenizedString::from(text.as_str()));
                        PreTokenizer::try_from(json.clone()).unwrap().pre_tokenize(&mut ours).unwrap();
                        PreTokenizerWrapper::deserialize(json).unwrap().pre_tokenize(&mut theirs).unwrap();
                        prop_assert_eq!(ours, theirs, "{} {} {}", pattern, behavior, invert);
                    }
                }
            }
        }
    }
}
