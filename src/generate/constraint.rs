//! Which tokens a [`Grammar`] allows next.
//!
//! Reference: [llguidance](https://github.com/guidance-ai/llguidance), a parser of bytes that walks a trie of the vocabulary.
//! A grammar is compiled once; each sequence has a copy on a thread of its own, which computes the tokens that are allowed
//! next while the model computes their logits.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::json;

use super::grammar::{Grammar, json_schema};
use crate::error::{Error, Result, panic_message};
use crate::tokenizer::Tokenizer;

/// Grammars that stay compiled.
const KEPT: usize = 32;
/// Grammars are read, and followed, by recursion. Pages of a stack that are not touched cost nothing.
const STACK_BYTES: usize = 256 << 20;
/// The longest grammar, in bytes.
const MAX_SOURCE: usize = 1 << 20;
/// The longest token that is ever allowed, in bytes; a trie of them is as deep as that.
const MAX_TOKEN: usize = 1 << 10;
/// Each state takes up to 2 kB.
const MAX_LEXER_STATES: usize = 50_000;

/// Compiles grammars for one model's vocabulary.
pub(super) struct Compiler {
    tokenizer: Arc<Tokenizer>,
    vocab_size: usize,
    /// Made when the first grammar comes.
    vocabulary: OnceLock<Result<ParserFactory>>,
    /// Most recently used last.
    compiled: Mutex<VecDeque<(Grammar, Arc<Start>)>>,
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

/// A compiled grammar.
pub(super) struct Start(Mutex<Matcher>);

impl Compiler {
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: i32) -> Self {
        let vocab_size = vocab_size as usize;
        Compiler { tokenizer, vocab_size, vocabulary: OnceLock::new(), compiled: Mutex::default() }
    }

    /// # Errors
    /// [`Error::Input`] when there is no such grammar, when no text fits it, or when it is too large.
    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<Start>> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = compiled.iter().position(|(other, _)| other == grammar) {
            let entry = compiled.remove(at).expect("it is there");
            let start = Arc::clone(&entry.1);
            compiled.push_back(entry);
            return Ok(start);
        }
        drop(compiled); // others need not wait
        let start = Arc::new(on_a_large_stack(|| self.compile_here(grammar))?);
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.push_back((grammar.clone(), Arc::clone(&start)));
        if compiled.len() > KEPT {
            compiled.pop_front();
        }
        Ok(start)
    }

    fn compile_here(&self, grammar: &Grammar) -> Result<Start> {
        let refused = |problem: &dyn std::fmt::Display| {
            Error::Input(format!("the {} cannot be followed: {}", grammar.kind(), summary(&problem.to_string())))
        };
        let source = source(grammar).map_err(|problem| refused(&problem))?;
        let vocabulary = self.vocabulary.get_or_init(|| factory(&self.tokenizer, self.vocab_size));
        let factory = vocabulary.as_ref().map_err(Error::duplicate)?;
        let mut matcher = Matcher::new(factory.create_parser(source));
        // What allows nothing at all is found before a token is made.
        match matcher.compute_mask() {
            Ok(_) => Ok(Start(Mutex::new(matcher))),
            Err(e) => Err(refused(&e)),
        }
    }
}

/// One line of a message of llguidance: the first, and what a regular expression's own message ends with.
fn summary(problem: &str) -> String {
    let mut lines = problem.lines();
    let first = lines.next().unwrap_or_default();
    match lines.find_map(|line| line.strip_prefix("error: ")) {
        Some(error) => format!("{first} {error}"),
        None => first.to_owned(),
    }
}

fn on_a_large_stack<T: Send>(compute: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES).spawn_scoped(scope, compute);
        let thread = thread.map_err(|e| Error::OutOfMemory(format!("a thread could not be started: {e}")))?;
        thread.join().unwrap_or_else(|panic| Err(Error::Internal(panic_message(&*panic).to_owned())))
    })
}

fn source(grammar: &Grammar) -> Result<TopLevelGrammar, String> {
    let (source, length) = match grammar {
        Grammar::JsonObject => (GrammarWithLexer::from_json_schema(json_schema(&json!({"type": "object"}))?), 0),
        Grammar::JsonSchema(schema) => {
            (GrammarWithLexer::from_json_schema(json_schema(schema)?), schema.to_string().len())
        }
        Grammar::Regex(regex) => (GrammarWithLexer::from_regex(regex), regex.len()),
        Grammar::Lark(lark) => (GrammarWithLexer::from_lark(lark.clone()), lark.len()),
    };
    match length {
        0..=MAX_SOURCE => Ok(TopLevelGrammar::from_grammar(source)),
        _ => Err(format!("it has {length} bytes, expected at most {MAX_SOURCE}")),
    }
}

/// What compiles grammars for this vocabulary.
fn factory(tokenizer: &Arc<Tokenizer>, vocab_size: usize) -> Result<ParserFactory> {
    let is_end = |id: u32| tokenizer.eos_token_ids().contains(&id);
    let mut words = Vec::with_capacity(vocab_size);
    for id in 0..vocab_size as u32 {
        let mut bytes = match tokenizer.piece(id) {
            // What a grammar names, no text has.
            Some(piece) if is_end(id) || tokenizer.is_special(id) => {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], piece.as_bytes()].concat()
            }
            _ => tokenizer.bytes(id)?,
        };
        let is_special = tokenizer.is_special(id) || is_end(id);
        if bytes.len() > MAX_TOKEN || !is_special && bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            bytes.clear(); // it is never allowed
        }
        words.push(bytes);
    }
    let ends: Vec<u32> = tokenizer.eos_token_ids().iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, INVALID_TOKEN), &words);
    let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
    // Without a token for each byte, a text that must follow may be one that no tokens are.
    let spells_all =
        (0..=0xF4u8).filter(|byte| !matches!(byte, 0xC0 | 0xC1)).all(|byte| trie.token_id(&[byte]).is_some());
    let env: TokEnv = Arc::new(Spelling { tokenizer: Arc::clone(tokenizer), trie, spells_all });
    let capabilities = InferenceCapabilities { ff_tokens: spells_all, ..InferenceCapabilities::default() };
    let internal = |e| Error::Internal(format!("the vocabulary is of no use for grammars: {e}"));
    let mut factory =
        ParserFactory::new(&env, capabilities, &SlicedBiasComputer::general_slices()).map_err(internal)?;
    factory.quiet();
    let limits = factory.limits_mut();
    *limits = ParserLimits { max_lexer_states: MAX_LEXER_STATES, verbose_errors: false, ..limits.clone() };
    Ok(factory)
}

/// The vocabulary as llguidance sees it.
struct Spelling {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    spells_all: bool,
}

impl Spelling {
    fn spells(&self, ids: &[u32], bytes: &[u8]) -> bool {
        let mut rest = Some(bytes);
        for id in ids {
            rest = rest.and_then(|rest| rest.strip_prefix(self.trie.token(*id)));
        }
        rest == Some(&[]) && !ids.iter().any(|id| self.trie.token(*id).is_empty())
    }

    /// As the tokenizer writes a text that others precede: SentencePiece begins one with a space of its own.
    fn encode(&self, text: &str) -> Option<Vec<u32>> {
        let ids = self.tokenizer.encode(text, false).ok()?;
        if self.spells(&ids, text.as_bytes()) {
            return Some(ids);
        }
        let ids = self.tokenizer.encode(&format!("\u{2}{text}"), false).ok()?;
        (1..ids.len().min(6)).map(|n| &ids[n..]).find(|ids| self.spells(ids, text.as_bytes())).map(<[u32]>::to_vec)
    }
}

impl TokenizerEnv for Spelling {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let text = std::str::from_utf8(bytes).ok();
        text.and_then(|text| self.encode(text)).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.spells_all
    }
}

/// What follows a token.
#[derive(Debug)]
pub(super) struct Accepted {
    /// Tokens that alone may follow, and are taken to do so.
    pub forced: Vec<u32>,
    /// Whether nothing follows these.
    pub is_over: bool,
}

enum Answer {
    Accepted(Accepted),
    /// Which tokens are allowed next.
    Mask(Vec<bool>),
}

/// A sequence's place in its grammar.
#[derive(Debug)]
pub(super) struct Constraint {
    tokens: Sender<u32>,
    answers: Receiver<Result<Answer>>,
}

impl Constraint {
    /// The beginning.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn begin(start: &Start, vocab_size: i32) -> Result<Self> {
        // A shared one would fill up with what others do.
        let matcher = start.0.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        let (tokens, received) = channel();
        let (to, answers) = channel();
        let run = move || {
            let follow = AssertUnwindSafe(|| follow(matcher, vocab_size as usize, &received, &to));
            if let Err(panic) = catch_unwind(follow) {
                let _ = to.send(Err(Error::Internal(panic_message(&*panic).to_owned())));
            }
        };
        let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES).spawn(run);
        thread.map_err(|e| Error::OutOfMemory(format!("a thread could not be started: {e}")))?;
        Ok(Constraint { tokens, answers })
    }

    /// For each token, whether it may be the next. To be asked once before each token.
    ///
    /// # Errors
    /// When the grammar takes too much work here.
    pub fn mask(&mut self) -> Result<Vec<bool>> {
        match self.answer()? {
            Answer::Mask(mask) => Ok(mask),
            Answer::Accepted(_) => unreachable!("no token was accepted"),
        }
    }

    /// The next token, which the mask allowed, is this.
    ///
    /// # Errors
    /// As [`Constraint::mask`].
    pub fn accept(&mut self, token: u32) -> Result<Accepted> {
        let _ = self.tokens.send(token); // a thread that has ended has said why
        match self.answer()? {
            Answer::Accepted(accepted) => Ok(accepted),
            Answer::Mask(_) => unreachable!("the mask was asked for"),
        }
    }

    fn answer(&mut self) -> Result<Answer> {
        self.answers.recv().unwrap_or_else(|_| Err(Error::Internal("the grammar's thread has ended".into())))
    }
}

/// The thread of a [`Constraint`]: a mask, a token, a mask, …
fn follow(mut matcher: Matcher, vocab_size: usize, tokens: &Receiver<u32>, to: &Sender<Result<Answer>>) {
    let mut step = |token: Option<u32>| -> Result<Answer, String> {
        let Some(token) = token else {
            let allowed = matcher.compute_mask().map_err(|e| e.to_string())?;
            return Ok(Answer::Mask((0..vocab_size).map(|id| allowed.is_allowed(id as u32)).collect()));
        };
        matcher.consume_token(token).map_err(|e| e.to_string())?;
        let forced = if matcher.is_stopped() { Vec::new() } else { matcher.consume_ff_tokens() };
        match matcher.get_error() {
            Some(error) => Err(error),
            None => Ok(Answer::Accepted(Accepted { forced, is_over: matcher.is_stopped() })),
        }
    };
    let mut token = None;
    loop {
        let answer = step(token.take()).map_err(|problem| {
            Error::Input(format!("the grammar cannot be followed any further: {}", summary(&problem)))
        });
        let is_last = match &answer {
            Err(_) => true,
            Ok(Answer::Accepted(accepted)) => accepted.is_over,
            Ok(Answer::Mask(_)) => false,
        };
        let is_mask = matches!(answer, Ok(Answer::Mask(_)));
        if to.send(answer).is_err() || is_last {
            return;
        }
        if is_mask {
            match tokens.recv() {
                Ok(next) => token = Some(next),
                Err(_) => return,
            }
        }
    }
}
