//! The tokenizer: text to ids, ids to text (all at once or as they are generated), and which ids end a generation.
//!
//! The references are `tokenizer.json` as the `tokenizers` crate reads it, and the special tokens and chat templates
//! that transformers' `AutoTokenizer` takes from the files next to it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Decoder as _, DecoderWrapper};

use crate::chat_template::{ChatTemplate, Conversation};
use crate::checkpoint::{Checkpoint, TEMPLATES, template_name};
use crate::error::{Error, Result};
use crate::reply::Format;

mod bounded;
mod pattern;

use bounded::{Decoder, Inner, Replacement, guard, in_step, longest};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// A checkpoint's tokenizer, with its special tokens and chat templates.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    decoding: Decoding,
    bos_token: Option<String>,
    eos_token_ids: BTreeSet<u32>,
    templates: BTreeMap<String, ChatTemplate>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja`, the folder `additional_chat_templates`, `config.json` and `generation_config.json`.
    ///
    /// # Errors
    /// When there is no `tokenizer.json`, when one of the files is malformed, or when ids become text in a way that
    /// [`Detokenizer`] does not know.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let path = checkpoint.path(TOKENIZER);
        let Some(text) = checkpoint.text(TOKENIZER)? else {
            let expected = "a checkpoint needs a fast tokenizer; transformers' `save_pretrained` writes one".into();
            return Err(Error::Missing { path, expected });
        };
        // Some readers inside `tokenizers` panic on JSON that ends early, so it is checked before.
        serde_json::from_str::<IgnoredAny>(&text).map_err(|e| Error::malformed(&path, e))?;
        let mut inner = bounded::read(&path, &text)?;
        // What the training run last truncated and padded to; transformers turns both off as well.
        inner.with_padding(None).with_truncation(None).map_err(|e| Error::malformed(&path, e))?;
        let decoding = Decoding::new(&path, inner.get_decoder())?;

        let mut config: Map<String, Value> = checkpoint.json(CONFIG)?.unwrap_or_default();
        let mut templates = match checkpoint.text("chat_template.jinja")? {
            Some(template) => BTreeMap::from([(DEFAULT.into(), template)]),
            None => templates(&checkpoint.path(CONFIG), config.remove("chat_template").unwrap_or_default())?,
        };
        for path in checkpoint.names_in(TEMPLATES)? {
            if let (Some(name), Some(template)) = (template_name(&path), checkpoint.text(&path)?) {
                templates.insert(name.to_owned(), template);
            }
        }
        if let Some(listed) = config.remove("added_tokens_decoder") {
            add_listed(&mut inner, &checkpoint.path(CONFIG), listed)?;
        }
        let special_tokens = special_tokens([checkpoint.json("special_tokens_map.json")?.unwrap_or_default(), config]);
        mark_special(&mut inner, special_tokens.values()).map_err(|e| Error::malformed(&path, e))?;

        let mut eos_token_ids = BTreeSet::new();
        for name in ["config.json", "generation_config.json"] {
            eos_token_ids.extend(eos_ids(checkpoint, name)?);
        }
        if let Some(eos) = special_tokens.get("eos_token") {
            match inner.token_to_id(eos) {
                Some(id) => {
                    eos_token_ids.insert(id);
                }
                None => log::warn!("{}: the end-of-text token {eos:?} is not in the vocabulary", path.display()),
            }
        }
        let bos_token = special_tokens.get("bos_token").cloned();
        let variables: Map<_, _> = special_tokens.into_iter().map(|(name, text)| (name, text.into())).collect();
        let compile = |(name, source): (_, String)| (name, ChatTemplate::new(&source, variables.clone()));
        let templates = templates.into_iter().map(compile).collect();
        Ok(Tokenizer { path, inner, decoding, bos_token, eos_token_ids, templates })
    }

    /// The ids of `text`. `add_special_tokens` is for raw text: it adds what the tokenizer puts around a text, but
    /// never a second BOS. Text from [`Tokenizer::render`] has its special tokens already.
    ///
    /// # Errors
    /// When the tokenizer has no token for a part of the text, not even an unknown one.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = guard(&self.path, || self.inner.encode_fast(text, add_special_tokens))?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos_token_id()
            && add_special_tokens
        {
            while ids.starts_with(&[bos, bos]) {
                ids.remove(0);
            }
        }
        Ok(ids)
    }

    /// The text of `ids`. Special tokens and ids that are not in the vocabulary are nothing, spaces stay as they are,
    /// and bytes that are not UTF-8 are U+FFFD. It is what a [`Detokenizer`] makes of the ids one by one.
    ///
    /// # Errors
    /// When a pattern in the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut detokenizer = self.detokenizer();
        let mut text = String::new();
        for &id in ids {
            text += &detokenizer.push(id)?;
        }
        Ok(text + &detokenizer.finish())
    }

    /// The decoder of one generation's ids, as they come.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer {
            tokenizer: self,
            shown: BTreeSet::new(),
            first: true,
            strip: self.decoding.strip.1,
            pending: Vec::new(),
        }
    }

    /// How the model writes reasoning and calls of tools, as its chat template and vocabulary say.
    pub fn reply_format(&self) -> Format {
        let template = self.templates.get("tool_use").or_else(|| self.templates.get(DEFAULT));
        let has_token = |token: &str| self.inner.token_to_id(token).is_some();
        Format::detect(template.map_or("", ChatTemplate::source), has_token)
    }

    /// Of `texts`, the ids of those that are special tokens, which [`Detokenizer::showing`] makes part of the text.
    pub fn special_ids<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<u32> {
        let is_special = |text: &&str| self.inner.get_added_vocabulary().is_special_token(text);
        texts.into_iter().filter(is_special).filter_map(|text| self.inner.token_to_id(text)).collect()
    }

    /// How the vocabulary spells `id` (`Ġthe`, `▁the`, `<0x0A>`, `<|im_end|>`).
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `id` is no part of a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.piece(id).is_some_and(|piece| self.inner.get_added_vocabulary().is_special_token(&piece))
    }

    /// The bytes that `id` adds to a text that has begun: none for one that is not in the vocabulary.
    ///
    /// # Errors
    /// When a pattern in the tokenizer's decoder fails.
    pub fn bytes(&self, id: u32) -> Result<Vec<u8>> {
        self.piece(id).map_or(Ok(Vec::new()), |piece| guard(&self.path, || self.decoding.bytes(piece, false)))
    }

    /// The highest id; a model must have an embedding for it.
    pub fn max_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }

    /// The ids that end a generation: all that `config.json`, `generation_config.json` and the tokenizer's own files
    /// name, because checkpoints of chat models often list the end of a turn in only one of them.
    pub fn eos_token_ids(&self) -> &BTreeSet<u32> {
        &self.eos_token_ids
    }

    /// The token that texts begin with, if the model has one.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// The id of [`Tokenizer::bos_token`].
    pub fn bos_token_id(&self) -> Option<u32> {
        self.inner.token_to_id(self.bos_token()?)
    }

    /// Whether the checkpoint says how to write a conversation.
    pub fn has_chat_template(&self) -> bool {
        !self.templates.is_empty()
    }

    /// The conversation as text for the model, to be encoded without adding special tokens. A checkpoint with several
    /// templates is asked for `tool_use` when there are tools, and for `default`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such template; otherwise as [`ChatTemplate::render`].
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        let for_tools = conversation.tools.as_ref().and_then(|_| self.templates.get("tool_use"));
        let Some(template) = for_tools.or_else(|| self.templates.get(DEFAULT)) else {
            let there = match Vec::from_iter(self.templates.keys()).as_slice() {
                [] => "no chat template; give a raw prompt instead of a conversation".into(),
                names => format!("no chat template named `default`, only {names:?}"),
            };
            return Err(Error::Input(format!("{} has {there}", self.path.with_file_name(CONFIG).display())));
        };
        template.render(conversation)
    }

    /// Whether a chat template reads this variable.
    pub fn template_reads(&self, variable: &str) -> bool {
        self.templates.values().any(|template| template.mentions(variable))
    }

    /// The bytes that `id` stands for within a text: of a special token its name, of one that is not in the vocabulary none.
    ///
    /// # Errors
    /// When a pattern in the tokenizer's decoder fails.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        let Some(piece) = self.inner.id_to_token(id) else { return Ok(Vec::new()) };
        if self.inner.get_added_vocabulary().is_special_token(&piece) {
            return Ok(piece.into());
        }
        guard(&self.path, || self.decoding.bytes(piece, false))
    }
}

/// The name of the template that is used when no other is asked for.
const DEFAULT: &str = "default";

/// The templates of `tokenizer_config.json` by name: one text, a list of `{"name", "template"}`, or an object of them.
fn templates(path: &Path, found: Value) -> Result<BTreeMap<String, String>> {
    let named = |entry: &Value| {
        let text = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        Some((text("name")?, text("template")?))
    };
    let templates = match &found {
        Value::Null => Some(BTreeMap::new()),
        Value::String(template) => Some([(DEFAULT.to_owned(), template.clone())].into()),
        Value::Array(entries) => entries.iter().map(named).collect(),
        Value::Object(entries) => {
            entries.iter().map(|(name, template)| Some((name.clone(), template.as_str()?.to_owned()))).collect()
        }
        _ => None,
    };
    let expected = "a template, a list of {\"name\": …, \"template\": …}, or an object of templates by name";
    templates.ok_or_else(|| Error::field(path, "chat_template", found, expected))
}

/// `bos_token`, `eos_token`, …, and those of a model that `extra_special_tokens` names, of several files; what a later one says counts.
fn special_tokens<const N: usize>(files: [Map<String, Value>; N]) -> BTreeMap<String, String> {
    let text = |token: &Value| token.get("content").unwrap_or(token).as_str().map(str::to_owned);
    let named = |(name, token): (String, Value)| match token {
        Value::Object(tokens) if name == "extra_special_tokens" => tokens,
        token if name.ends_with("_token") => Map::from_iter([(name, token)]),
        _ => Map::new(),
    };
    let entries = files.into_iter().flatten().flat_map(named);
    entries.filter_map(|(name, token)| Some((name, text(&token)?))).collect()
}

/// Tokens that `added_tokens_decoder` lists and `tokenizer.json` lacks, or has with other properties: they get the next ids, in
/// the order of those listed, as in transformers.
fn add_listed(inner: &mut Inner, path: &Path, listed: Value) -> Result<()> {
    let expected = "an object of added tokens by their ids";
    let tokens = serde_json::from_value::<BTreeMap<u32, AddedToken>>(listed.clone());
    let tokens = tokens.map_err(|_| Error::field(path, "added_tokens_decoder", listed, expected))?;
    // Tokens compare by their content alone.
    let all_of = |t: &AddedToken| (t.content.clone(), [t.single_word, t.lstrip, t.rstrip, t.normalized, t.special]);
    let known: HashSet<_> = inner.get_added_vocabulary().get_added_tokens_decoder().values().map(all_of).collect();
    let is_new = |token: &AddedToken| !known.contains(&all_of(token));
    let tokens: Vec<AddedToken> = tokens.into_values().filter(is_new).collect();
    inner.add_tokens(tokens).map(drop).map_err(|e| Error::malformed(path, e))
}

/// A token that a configuration calls special is one, even where `tokenizer.json` does not say so.
fn mark_special<'a>(inner: &mut Inner, tokens: impl Iterator<Item = &'a String>) -> tokenizers::Result<usize> {
    let unmarked =
        |token: &&String| inner.token_to_id(token).is_some() && !inner.get_added_vocabulary().is_special_token(token);
    let known = inner.get_added_vocabulary().get_added_tokens_decoder();
    let known = |text: &String| known.values().find(|token| token.content == *text).cloned();
    let special =
        |text: &String| AddedToken { special: true, ..known(text).unwrap_or_else(|| AddedToken::from(text, true)) };
    let unmarked: Vec<_> = tokens.filter(unmarked).map(special).collect();
    inner.add_special_tokens(unmarked)
}

/// `eos_token_id` of a configuration: an id, a list of ids or nothing.
fn eos_ids(checkpoint: &Checkpoint, name: &str) -> Result<Vec<u32>> {
    let config: Map<String, Value> = checkpoint.json(name)?.unwrap_or_default();
    let ids = match config.get("eos_token_id") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
    };
    let id = |found: &Value| {
        let id = found.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Error::field(&checkpoint.path(name), "eos_token_id", found, "an id or a list of ids"))
    };
    ids.iter().map(id).collect()
}

/// How pieces become text: each piece on its own, then bytes joined into characters, then the start of the text.
///
/// Every step needs a bounded part of the stream, which is what makes decoding in a stream exact. A decoder with a
/// step that needs more (CTC, for instance) is refused rather than approximated.
#[derive(Debug, Default)]
struct Decoding {
    /// Steps that map each piece, knowing only whether it is the first.
    pieces: Vec<PieceStep>,
    /// Without any decoder, pieces are words.
    spaced: bool,
    bytes: Bytes,
    /// A character, and how many of it the text loses at its start.
    strip: (char, usize),
}

#[derive(Debug)]
enum PieceStep {
    Replace(Replacement),
    /// One that adds no more than a space.
    Other(DecoderWrapper),
}

#[derive(Debug, Default, PartialEq)]
enum Bytes {
    /// Pieces are text.
    #[default]
    None,
    /// Each character of a piece is a byte, in GPT-2's alphabet.
    Level,
    /// A piece `<0xE2>` is a byte, others are text.
    Fallback,
}

impl Decoding {
    fn new(path: &Path, decoder: Option<&Decoder>) -> Result<Self> {
        use DecoderWrapper::*;
        let Some(Decoder(steps)) = decoder else {
            return Ok(Decoding { spaced: true, ..Decoding::default() });
        };
        let mut decoding = Decoding::default();
        let mut fused = false;
        for (step, json) in steps {
            let separate = !fused && decoding.bytes == Bytes::None;
            match step {
                Replace(_) if separate => {
                    let step = Replacement::new(json).map_err(|e| Error::malformed(path, e))?;
                    decoding.pieces.push(PieceStep::Replace(step));
                }
                Metaspace(_) | WordPiece(_) if separate => decoding.pieces.push(PieceStep::Other(step.clone())),
                Strip(strip) if separate && strip.stop == 0 => decoding.pieces.push(PieceStep::Other(step.clone())),
                ByteFallback(_) if separate => decoding.bytes = Bytes::Fallback,
                ByteLevel(_) if separate => (decoding.bytes, fused) = (Bytes::Level, true),
                Fuse(_) => fused = true,
                Strip(strip) if fused && strip.stop == 0 && decoding.strip.1 == 0 => {
                    decoding.strip = (strip.content, strip.start);
                }
                _ => {
                    let supported = "those of byte-level, SentencePiece and WordPiece tokenizers are";
                    return Err(Error::unsupported(path, format!("a decoder with {json} in this place"), supported));
                }
            }
        }
        Ok(decoding)
    }

    /// The bytes that `piece` adds to the text.
    fn bytes(&self, piece: String, first: bool) -> tokenizers::Result<Vec<u8>> {
        let most = longest(piece.len());
        // The steps tell the first piece by its place in the list.
        let mut pieces = if first { vec![piece] } else { vec![String::new(), piece] };
        for (step, number) in self.pieces.iter().zip(1..) {
            pieces = match step {
                PieceStep::Replace(step) => {
                    let replaced: tokenizers::Result<_> = pieces.iter().map(|piece| step.apply(piece, most)).collect();
                    replaced.map_err(|e| in_step("decoder", number, format!("Replace of {} {e}", step.pattern)))?
                }
                PieceStep::Other(step) => step.decode_chain(pieces)?,
            };
        }
        let piece = pieces.pop().unwrap_or_default();
        Ok(match self.bytes {
            Bytes::None if self.spaced && !first => format!(" {piece}").into(),
            Bytes::None => piece.into(),
            Bytes::Level => piece.chars().map(gpt2_byte).collect::<Option<_>>().unwrap_or_else(|| piece.into()),
            Bytes::Fallback => {
                let hex = piece.strip_prefix("<0x").and_then(|p| p.strip_suffix('>')).filter(|hex| hex.len() == 2);
                match hex.map(|hex| u8::from_str_radix(hex, 16)) {
                    Some(Ok(byte)) => vec![byte],
                    _ => piece.into(),
                }
            }
        })
    }
}

/// The byte of a character in GPT-2's alphabet: printable Latin-1 is itself, and the 68 other bytes are numbered from
/// U+0100 on.
fn gpt2_byte(c: char) -> Option<u8> {
    let byte = match c {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => c as u32,
        '\u{100}'..='\u{120}' => c as u32 - 0x100,
        '\u{121}'..='\u{142}' => c as u32 - 0x121 + 127,
        '\u{143}' => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Decodes ids as they come. The pieces of text, joined, are exactly [`Tokenizer::decode`] of all ids.
///
/// Text is handed out as soon as it is certain: at most the three bytes of an unfinished character are held back, so
/// the cost of a token does not depend on how many came before.
///
/// For byte-level tokenizers, bytes that are no UTF-8 become what `String::from_utf8_lossy` makes of the whole. For
/// byte fallback each such byte is one U+FFFD, as in SentencePiece. (`tokenizers` also replaces the valid characters
/// of the byte tokens around it, which cannot be known before the last of them; its `DecodeStream` is not exact.)
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// Special tokens that are text.
    shown: BTreeSet<u32>,
    first: bool,
    /// How many characters may still be lost at the start of the text.
    strip: usize,
    /// The unfinished character.
    pending: Vec<u8>,
}

impl Detokenizer<'_> {
    /// The same, where these special tokens are part of the text, as the vocabulary spells them.
    pub fn showing(mut self, ids: BTreeSet<u32>) -> Self {
        self.shown = ids;
        self
    }

    /// The same, of a text that has begun: each id is the [bytes](Tokenizer::bytes) that it always is, and no space is lost.
    pub fn amid_text(mut self) -> Self {
        (self.first, self.strip) = (false, 0);
        self
    }

    /// The text that `id` completes, often empty.
    ///
    /// # Errors
    /// When a pattern in the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Tokenizer { path, inner, decoding, .. } = self.tokenizer;
        let Some(piece) = inner.id_to_token(id) else { return Ok(String::new()) };
        if inner.get_added_vocabulary().is_special_token(&piece) {
            if !self.shown.contains(&id) {
                return Ok(String::new());
            }
            (self.first, self.strip) = (false, 0);
            return Ok(self.text(true) + &piece);
        }
        let first = std::mem::replace(&mut self.first, false);
        self.pending.extend(guard(path, || decoding.bytes(piece, first))?);
        Ok(self.text(false))
    }

    /// What was held back: U+FFFD for a character that never got its last byte.
    pub fn finish(&mut self) -> String {
        self.text(true)
    }

    /// Moves what is certain of the pending bytes into text; all of it at the end.
    fn text(&mut self, end: bool) -> String {
        let bytes = std::mem::take(&mut self.pending);
        let mut text = String::new();
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text += chunk.valid();
            let invalid = chunk.invalid();
            let unfinished =
                chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if unfinished && !end {
                self.pending = invalid.to_vec();
            } else if self.tokenizer.decoding.bytes == Bytes::Fallback {
                text.extend(invalid.iter().map(|_| char::REPLACEMENT_CHARACTER));
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        let (unwanted, _) = self.tokenizer.decoding.strip;
        let lost = text.chars().take(self.strip).take_while(|&c| c == unwanted).count();
        text.drain(..lost * unwanted.len_utf8());
        // Once anything else has come, the start of the text is over.
        self.strip = if text.is_empty() { self.strip - lost } else { 0 };
        text
    }
}
