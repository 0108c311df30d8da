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

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::json;

use super::grammar::{Grammar, json_schema, lark};
use crate::error::{Error, Result, panic_message};
use crate::tokenizer::Tokenizer;

/// Grammars that stay compiled.
const KEPT: usize = 32;
/// Grammars are read by recursion, and followed by less of it. Pages of a stack that are not touched cost nothing.
const STACK_BYTES: usize = 256 << 20;
const STACK_BYTES_OF_SEQUENCE: usize = 16 << 20;
/// The longest grammar, in bytes.
const MAX_SOURCE: usize = 1 << 20;
/// The longest token that is ever allowed, in bytes; a trie of them is as deep as that.
const MAX_TOKEN: usize = 1 << 10;
/// Each state takes up to 2 kB.
const MAX_LEXER_STATES: usize = 50_000;
/// Alternatives that are followed at a time, of which each optional property of an object takes four.
const MAX_ALTERNATIVES: usize = 20_000;

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
    // Nor are its own settings of use to anyone.
    let first = lines.next().unwrap_or_default().split(". Enable '").next().unwrap_or_default();
    let first = &first.replace("Unimplemented keys", "keywords that are not supported");
    let end = first.floor_char_boundary(200);
    let (first, dots) = (&first[..end], if end < first.len() { "…" } else { "" });
    match lines.find_map(|line| line.strip_prefix("error: ")) {
        Some(error) => format!("{first}{dots} {error}"),
        None => format!("{first}{dots}"),
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
        Grammar::Lark(source) => (GrammarWithLexer::from_lark(lark(source)?.to_owned()), source.len()),
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
    limits.max_lexer_states = MAX_LEXER_STATES;
    limits.max_items_in_row = MAX_ALTERNATIVES;
    limits.verbose_errors = false;
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
        let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES_OF_SEQUENCE).spawn(run);
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

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::checkpoint::Checkpoint;

    pub const TOKENIZERS: [&str; 4] = ["byte_level_llama3", "byte_level_qwen3", "metaspace", "sentencepiece"];
    const VOCAB_SIZE: i32 = 600;

    pub fn compiler(tokenizer: &str) -> Compiler {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(tokenizer);
        Compiler::new(Tokenizer::load(&Checkpoint::open(root).unwrap()).unwrap().into(), VOCAB_SIZE)
    }

    pub fn begin(compiler: &Compiler, grammar: &Grammar) -> Constraint {
        Constraint::begin(&compiler.compile(grammar).unwrap(), VOCAB_SIZE).unwrap()
    }

    impl Compiler {
        pub fn tokenizer(&self) -> &Tokenizer {
            &self.tokenizer
        }
    }

    /// Whether `ids` are allowed one after another, and whether the text may end there. What is forced must be what comes.
    pub fn allows(compiler: &Compiler, grammar: &Grammar, ids: &[u32]) -> (usize, bool) {
        let mut constraint = begin(compiler, grammar);
        let mut forced = VecDeque::new();
        let mut is_over = false;
        for (n, &id) in ids.iter().enumerate() {
            if let Some(next) = forced.pop_front() {
                if next != id {
                    return (n, false);
                }
                continue;
            }
            if is_over || !constraint.mask().unwrap()[id as usize] {
                return (n, false);
            }
            let accepted = constraint.accept(id).unwrap();
            forced = accepted.forced.into();
            is_over = accepted.is_over;
        }
        let ends = &compiler.tokenizer.eos_token_ids();
        let may_end =
            forced.is_empty() && (is_over || ends.iter().any(|end| constraint.mask().unwrap()[*end as usize]));
        (ids.len(), may_end)
    }

    /// Tokens that a model which knows nothing may write, how many of them were forced, and whether they are a whole text.
    fn walk(compiler: &Compiler, grammar: &Grammar, seed: u64) -> (Vec<u32>, usize, bool) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut constraint = begin(compiler, grammar);
        let (mut ids, mut forced) = (Vec::new(), 0);
        while ids.len() < 200 {
            let mask = constraint.mask().unwrap();
            let allowed: Vec<u32> = (0..VOCAB_SIZE as u32).filter(|id| mask[*id as usize]).collect();
            let id = allowed[rng.random_range(0..allowed.len())];
            if compiler.tokenizer.eos_token_ids().contains(&id) {
                return (ids, forced, true);
            }
            let accepted = constraint.accept(id).unwrap();
            ids.push(id);
            forced += accepted.forced.len();
            ids.extend(accepted.forced);
            if accepted.is_over {
                return (ids, forced, true);
            }
        }
        (ids, forced, false)
    }

    /// Catches: forced tokens that spell something else, or in another way than the tokenizer does where that matters; bytes of
    /// tokens that are not their text's.
    #[test]
    fn forced_tokens_are_ones_that_could_have_been_chosen() {
        let rules = r#"start: "{\"grün\": " NUMBER ", \"and more of it\": " ("true" | "false") ", \"<|im_end|> é\": [" /[a-c ]{0,4}/ "]}"
            NUMBER: /-?[0-9]{1,3}/"#;
        let expected = onig::Regex::new(
            r#"\A\{"grün": -?[0-9]{1,3}, "and more of it": (true|false), "<\|im_end\|> é": \[[a-c ]{0,4}\]\}\z"#,
        );
        let expected = expected.unwrap();
        for tokenizer in TOKENIZERS {
            let compiler = compiler(tokenizer);
            let forcing = Grammar::Lark(rules.into());
            let choosing = Grammar::Lark(format!("%llguidance {{\"no_forcing\": true}}\n{rules}"));
            let mut all_forced = 0;
            for seed in 0..40 {
                for grammar in [&forcing, &choosing] {
                    let (ids, forced, is_whole) = walk(&compiler, grammar, seed);
                    let mut detokenizer = compiler.tokenizer.detokenizer().amid_text();
                    let text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
                    assert!(is_whole && expected.is_match(&text), "{tokenizer}: {text:?}");
                    assert_eq!(allows(&compiler, &choosing, &ids), (ids.len(), true), "{tokenizer}: {text:?}");
                    assert!(forced == 0 || grammar == &forcing);
                    all_forced += forced;
                }
            }
            assert!(all_forced > 400, "{tokenizer}: {all_forced} tokens were forced");
        }
    }

    #[test]
    fn what_is_compiled_is_kept_and_sequences_do_not_share_their_place() {
        let compiler = compiler("byte_level_qwen3");
        let grammar = Grammar::Regex("ab|cd".into());
        let (first, second) = (compiler.compile(&grammar).unwrap(), compiler.compile(&grammar).unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        let id = |text: &str| compiler.tokenizer.encode(text, false).unwrap()[0];
        let (mut one, mut other) = (begin(&compiler, &grammar), begin(&compiler, &grammar));
        assert!(one.mask().unwrap()[id("a") as usize]);
        one.accept(id("a")).unwrap();
        assert!(other.mask().unwrap()[id("c") as usize]);
        for i in 0..KEPT {
            compiler.compile(&Grammar::Regex(format!("x{i}"))).unwrap();
        }
        assert!(!Arc::ptr_eq(&first, &compiler.compile(&grammar).unwrap()));
    }
}
