//! From the events of generations to an answer: whole, or piece by piece as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::StatusCode;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::openai::{
    self, ChatChoice, ChatChunk, ChatLogprobs, ChatMessage, CompletionChoice, CompletionLogprobs, Head, Scored,
    StreamOptions, TokenLogprob, Usage,
};
use super::registry::Lease;
use super::{ApiError, Shared};
use crate::error::Result;
use crate::generate::{Delta, Event, FinishReason, Finished, Generation, Stats};

/// Comments in a stream in which nothing else is sent for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a stream waits for a sign that the request can be served, before its status is sent.
const FIRST_EVENT: Duration = Duration::from_secs(2);
/// The least time between two comments about a prompt that is read.
const READING_COMMENTS: Duration = Duration::from_secs(1);

/// What kind of answer a client expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Completion,
}

/// Generations under way that are one answer. Dropped, it aborts them.
pub struct Answer {
    shared: Arc<Shared>,
    lease: Lease,
    kind: Kind,
    head: Head,
    choices: Vec<Choice>,
    /// Which choice is asked first for its next event.
    next: usize,
    usage: Usage,
    asked: Instant,
    _places: OwnedSemaphorePermit,
}

struct Choice {
    generation: Generation,
    /// Whether its prompt counts, which further answers to the same share.
    counts_prompt: bool,
    has_logprobs: bool,
    has_begun: bool,
    /// Characters so far.
    length: usize,
}

/// What is new.
enum Update {
    Reading { done: usize, total: usize },
    Piece { index: usize, text: String, tokens: Vec<TokenLogprob> },
    Ended { index: usize, reason: FinishReason },
}

impl Answer {
    /// `generations` are `n` for each prompt in turn.
    pub fn new(
        shared: Arc<Shared>,
        lease: Lease,
        kind: Kind,
        generations: Vec<Generation>,
        n: usize,
        has_logprobs: bool,
        asked: Instant,
        places: OwnedSemaphorePermit,
    ) -> Self {
        let choice = |(i, generation): (usize, Generation)| Choice {
            generation,
            counts_prompt: i.is_multiple_of(n),
            has_logprobs,
            has_begun: false,
            length: 0,
        };
        let (id, object) = match kind {
            Kind::Chat => (shared.id("chatcmpl"), "chat.completion"),
            Kind::Completion => (shared.id("cmpl"), "text_completion"),
        };
        let head = Head {
            id,
            object,
            created: super::unix_seconds(std::time::SystemTime::now()),
            model: lease.name.clone(),
            system_fingerprint: lease.fingerprint.clone(),
        };
        let choices = generations.into_iter().enumerate().map(choice).collect();
        let usage = Usage::default();
        Answer { shared, lease, kind, head, choices, next: 0, usage, asked, _places: places }
    }

    /// The response, when it is complete or, streamed, has begun.
    pub async fn respond(self, stream: Option<StreamOptions>) -> Result<Response, ApiError> {
        match stream {
            None => self.whole().await,
            Some(options) => Streaming::begin(self, options).await,
        }
    }

    /// `None` when all have ended.
    async fn update(&mut self) -> Option<Result<Update, ApiError>> {
        loop {
            let (index, event) = poll_fn(|context| self.poll(context)).await?;
            let update = match event {
                Event::Reading { done, total } => Ok(Update::Reading { done, total }),
                Event::Read { .. } => continue,
                Event::Delta(delta) => self.piece(index, delta),
                Event::Finished(finished) => self.ended(index, finished),
            };
            return Some(update);
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let n = self.choices.len();
        let mut is_pending = false;
        for index in (0..n).map(|i| (self.next + i) % n) {
            match self.choices[index].generation.poll_event(context) {
                Poll::Ready(Some(event)) => {
                    self.next = (index + 1) % n;
                    return Poll::Ready(Some((index, event)));
                }
                Poll::Ready(None) => {}
                Poll::Pending => is_pending = true,
            }
        }
        if is_pending { Poll::Pending } else { Poll::Ready(None) }
    }

    fn piece(&mut self, index: usize, Delta { token, text }: Delta) -> Result<Update, ApiError> {
        let choice = &mut self.choices[index];
        if !std::mem::replace(&mut choice.has_begun, true) {
            self.shared.metrics.first_token(self.asked.elapsed().as_secs_f64());
        }
        self.lease.token_made();
        let tokenizer = self.lease.engine.tokenizer();
        let mut tokens = Vec::new();
        if let Some(logprob) = token.logprob.filter(|_| choice.has_logprobs)
            && !tokenizer.eos_token_ids().contains(&token.id)
        {
            let scored = |id, logprob| -> Result<Scored> {
                let bytes = tokenizer.token_bytes(id)?;
                Ok(Scored { token: String::from_utf8_lossy(&bytes).into_owned(), logprob, bytes })
            };
            let top_logprobs = token.top_logprobs.iter().map(|&(id, logprob)| scored(id, logprob));
            tokens.push(TokenLogprob {
                token: scored(token.id, logprob)?,
                top_logprobs: top_logprobs.collect::<Result<_>>()?,
            });
        }
        Ok(Update::Piece { index, text, tokens })
    }

    fn ended(&mut self, index: usize, Finished { reason, error, stats, .. }: Finished) -> Result<Update, ApiError> {
        let name = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "aborted",
            FinishReason::Error => "error",
        };
        self.shared.metrics.sequence(name, &stats);
        if self.choices[index].counts_prompt {
            self.usage.prompt_tokens += stats.prompt_tokens;
            self.usage.prompt_tokens_details.cached_tokens += stats.cached_tokens;
        }
        self.usage.completion_tokens += stats.generated_tokens;
        self.usage.total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens;
        match error {
            Some(error) => Err(error.into()),
            None if reason == FinishReason::Abort => {
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending"))
            }
            None => Ok(Update::Ended { index, reason }),
        }
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        #[derive(Default)]
        struct Whole {
            text: String,
            tokens: Vec<TokenLogprob>,
            reason: &'static str,
        }
        let mut answers: Vec<Whole> = self.choices.iter().map(|_| Whole::default()).collect();
        while let Some(update) = self.update().await {
            match update? {
                Update::Reading { .. } => {}
                Update::Piece { index, text, tokens } => {
                    answers[index].text += &text;
                    answers[index].tokens.extend(tokens);
                }
                Update::Ended { index, reason } => answers[index].reason = openai::finish_reason(reason),
            }
        }
        let (head, usage) = (&self.head, Some(Some(self.usage)));
        let has_logprobs = self.choices[0].has_logprobs;
        let answers = answers.into_iter().enumerate();
        Ok(match self.kind {
            Kind::Chat => {
                let choice = |(index, Whole { text, tokens, reason })| ChatChoice {
                    index,
                    message: ChatMessage { role: Some("assistant"), content: Some(text) },
                    logprobs: has_logprobs.then_some(ChatLogprobs { content: tokens }),
                    finish_reason: reason,
                };
                Json(openai::Answer { head, choices: answers.map(choice).collect(), usage }).into_response()
            }
            Kind::Completion => {
                let choice = |(index, Whole { text, tokens, reason })| CompletionChoice {
                    index,
                    text,
                    logprobs: has_logprobs.then(|| CompletionLogprobs::new(&tokens, 0)),
                    finish_reason: Some(reason),
                };
                Json(openai::Answer { head, choices: answers.map(choice).collect(), usage }).into_response()
            }
        })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        for _ in self.choices.iter().filter(|choice| choice.generation.finish_reason().is_none()) {
            self.shared.metrics.sequence("abandoned", &Stats::default());
        }
    }
}

/// An answer that is sent piece by piece.
struct Streaming {
    answer: Answer,
    options: StreamOptions,
    /// What is to be sent.
    ready: VecDeque<Sent>,
    told_reading: Option<Instant>,
    is_over: bool,
}

impl Streaming {
    async fn begin(mut answer: Answer, options: StreamOptions) -> Result<Response, ApiError> {
        if answer.kind == Kind::Chat {
            answer.head.object = "chat.completion.chunk";
        }
        // What cannot be served has a status of its own if that shows soon, and is an event of the stream otherwise.
        let first = timeout(FIRST_EVENT, answer.update()).await.ok().flatten().transpose()?;
        let mut streaming = Streaming { answer, options, ready: VecDeque::new(), told_reading: None, is_over: false };
        if streaming.answer.kind == Kind::Chat {
            for index in 0..streaming.answer.choices.len() {
                let delta = ChatMessage { role: Some("assistant"), content: Some(String::new()) };
                streaming.send(ChatChunk { index, delta, logprobs: None, finish_reason: None });
            }
        }
        if let Some(update) = first {
            streaming.take(update);
        }
        let events = unfold(streaming, |mut streaming| async {
            let event = streaming.next().await?;
            Some((Ok::<_, Infallible>(event), streaming))
        });
        Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
    }

    async fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match self.answer.update().await {
                Some(Ok(update)) => self.take(update),
                Some(Err(error)) => {
                    self.ready.push_back(Sent::default().data(error.to_json().to_string()));
                    self.is_over = true;
                }
                None => {
                    if self.options.include_usage {
                        let Answer { head, usage, .. } = &self.answer;
                        let last = openai::Answer::<()> { head, choices: Vec::new(), usage: Some(Some(*usage)) };
                        self.ready.push_back(data(&last));
                    }
                    self.ready.push_back(Sent::default().data("[DONE]"));
                    self.is_over = true;
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Reading { done, total } => {
                if self.told_reading.is_none_or(|told| told.elapsed() >= READING_COMMENTS) {
                    self.told_reading = Some(Instant::now());
                    self.ready.push_back(Sent::default().comment(format!("reading {done}/{total}")));
                }
            }
            Update::Piece { text, tokens, .. } if text.is_empty() && tokens.is_empty() => {}
            Update::Piece { index, text, tokens } => self.piece(index, text, tokens, None),
            Update::Ended { index, reason } => {
                self.piece(index, String::new(), Vec::new(), Some(openai::finish_reason(reason)));
            }
        }
    }

    fn piece(&mut self, index: usize, text: String, tokens: Vec<TokenLogprob>, finish_reason: Option<&'static str>) {
        let choice = &mut self.answer.choices[index];
        let offset = choice.length;
        choice.length += text.chars().count();
        match self.answer.kind {
            Kind::Chat => {
                let content = Some(text).filter(|_| finish_reason.is_none());
                let logprobs = (!tokens.is_empty()).then_some(ChatLogprobs { content: tokens });
                self.send(ChatChunk { index, delta: ChatMessage { role: None, content }, logprobs, finish_reason });
            }
            Kind::Completion => {
                let logprobs = (!tokens.is_empty()).then(|| CompletionLogprobs::new(&tokens, offset));
                self.send(CompletionChoice { index, text, logprobs, finish_reason });
            }
        }
    }

    fn send(&mut self, choice: impl serde::Serialize) {
        let usage = self.options.include_usage.then_some(None);
        self.ready.push_back(data(&openai::Answer { head: &self.answer.head, choices: vec![choice], usage }));
    }
}

fn data(body: &impl serde::Serialize) -> Sent {
    Sent::default().json_data(body).expect("the wire types are JSON")
}
