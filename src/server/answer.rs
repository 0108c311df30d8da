//! From the events of generations to an answer: whole, or piece by piece as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::http::StatusCode;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::openai::{
    self, Call, CalledFunction, ChatChoice, ChatChunk, ChatDelta, ChatLogprobs, ChatMessage, CompletionChoice,
    CompletionLogprobs, Head, Scored, StreamOptions, TokenLogprob, Usage,
};
use super::registry::Lease;
use super::{ApiError, Shared};
use crate::error::Result;
use crate::generate::{Delta, Event, FinishReason, Finished, Generation, Stats};
use crate::reply::{Event as Part, Parser};

/// Comments in a stream in which nothing else is sent for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a stream waits for a sign that the request can be served, before its status is sent.
const FIRST_EVENT: Duration = Duration::from_secs(2);
/// The least time between two comments about a prompt that is read.
const READING_COMMENTS: Duration = Duration::from_secs(1);

/// How the texts of an answer are told.
pub enum Reply {
    /// As messages, which are read so.
    Chat(Parser),
    Completion,
}

/// Generations under way that are one answer. Dropped, it aborts them.
pub struct Answer {
    shared: Arc<Shared>,
    lease: Lease,
    is_chat: bool,
    has_logprobs: bool,
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
    /// Tells reasoning and calls from the rest; of a message alone.
    parser: Option<Parser>,
    /// Whether its prompt counts, which further answers to the same share.
    counts_prompt: bool,
    has_begun: bool,
    /// Calls so far.
    calls: usize,
    /// Whether one of them is not whole.
    is_cut: bool,
}

fn has_cut_call(parts: &[Part]) -> bool {
    parts.iter().any(|part| matches!(part, Part::CallEnd { is_whole: false }))
}

/// What is new.
enum Update {
    Reading { done: usize, total: usize },
    Delta(ChoiceDelta),
}

/// What is new of a choice.
struct ChoiceDelta {
    index: usize,
    parts: Vec<Part>,
    tokens: Vec<TokenLogprob>,
    finish_reason: Option<&'static str>,
}

impl Answer {
    /// `generations` are `n` for each prompt in turn.
    #[allow(clippy::too_many_arguments)] // they become its fields
    pub fn new(
        shared: Arc<Shared>,
        lease: Lease,
        places: OwnedSemaphorePermit,
        asked: Instant,
        reply: Reply,
        has_logprobs: bool,
        n: usize,
        generations: Vec<Generation>,
    ) -> Self {
        let choice = |(i, generation): (usize, Generation)| Choice {
            generation,
            parser: match &reply {
                Reply::Chat(parser) => Some(parser.clone()),
                Reply::Completion => None,
            },
            counts_prompt: i.is_multiple_of(n),
            has_begun: false,
            calls: 0,
            is_cut: false,
        };
        let choices = generations.into_iter().enumerate().map(choice).collect();
        let (is_chat, id, object) = match reply {
            Reply::Chat(_) => (true, shared.id("chatcmpl"), "chat.completion"),
            Reply::Completion => (false, shared.id("cmpl"), "text_completion"),
        };
        let head = Head {
            id,
            object,
            created: super::unix_seconds(SystemTime::now()),
            model: lease.name.clone(),
            system_fingerprint: lease.fingerprint.clone(),
        };
        let usage = Usage::default();
        Answer { shared, lease, is_chat, has_logprobs, head, choices, next: 0, usage, asked, _places: places }
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

    fn piece(&mut self, index: usize, delta: Delta) -> Result<Update, ApiError> {
        let Delta { token, text, offset, is_eos } = delta;
        let choice = &mut self.choices[index];
        if !std::mem::replace(&mut choice.has_begun, true) {
            self.shared.metrics.first_token(self.asked.elapsed().as_secs_f64());
        }
        self.lease.token_made();
        let tokenizer = self.lease.engine.tokenizer();
        let mut tokens = Vec::new();
        if let Some(logprob) = token.logprob.filter(|_| self.has_logprobs && !is_eos) {
            let scored = |id, logprob| -> Result<Scored> {
                let bytes = tokenizer.token_bytes(id)?;
                Ok(Scored { token: String::from_utf8_lossy(&bytes).into_owned(), logprob, bytes })
            };
            let top = token.top_logprobs.iter().map(|&(id, logprob)| scored(id, logprob));
            let top_logprobs = top.collect::<Result<_>>()?;
            tokens.push(TokenLogprob { token: scored(token.id, logprob)?, top_logprobs, offset });
        }
        let parts = match &mut choice.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Part::Content(text)],
        };
        choice.is_cut |= has_cut_call(&parts);
        Ok(Update::Delta(ChoiceDelta { index, parts, tokens, finish_reason: None }))
    }

    fn ended(&mut self, index: usize, Finished { reason, error, stats, .. }: Finished) -> Result<Update, ApiError> {
        let choice = &mut self.choices[index];
        let (name, finish_reason) = match reason {
            FinishReason::Stop => ("stop", "stop"),
            FinishReason::Length => ("length", "length"),
            FinishReason::Abort => ("aborted", "stop"),
            FinishReason::Error => ("error", "stop"),
        };
        self.shared.metrics.sequence(name, &stats);
        if choice.counts_prompt {
            self.usage.prompt_tokens += stats.prompt_tokens;
            self.usage.prompt_tokens_details.cached_tokens += stats.cached_tokens;
        }
        self.usage.completion_tokens += stats.generated_tokens;
        self.usage.total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens;
        if let Some(error) = error {
            return Err(error.into());
        }
        if reason == FinishReason::Abort {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending"));
        }
        let parts = choice.parser.as_mut().map(Parser::finish).unwrap_or_default();
        let begins_call = |part: &Part| matches!(part, Part::CallBegin { .. });
        let has_called = choice.calls > 0 || parts.iter().any(begins_call);
        choice.is_cut |= has_cut_call(&parts);
        let is_of_calls = reason == FinishReason::Stop && has_called && !choice.is_cut;
        let finish_reason = if is_of_calls { "tool_calls" } else { finish_reason };
        Ok(Update::Delta(ChoiceDelta { index, parts, tokens: Vec::new(), finish_reason: Some(finish_reason) }))
    }

    /// A call's name, or more of its arguments.
    fn call(&mut self, index: usize, part: Part) -> Option<Call> {
        let choice = &mut self.choices[index];
        match part {
            Part::CallBegin { name } => {
                choice.calls += 1;
                let function = CalledFunction { name: Some(name), arguments: String::new() };
                let id = Some(self.shared.call_id());
                Some(Call { index: Some(choice.calls - 1), id, kind: Some("function"), function })
            }
            Part::CallArguments(arguments) => {
                let function = CalledFunction { name: None, arguments };
                Some(Call { index: Some(choice.calls.saturating_sub(1)), function, ..Call::default() })
            }
            Part::CallEnd { .. } | Part::Reasoning(_) | Part::Content(_) => None,
        }
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        #[derive(Default)]
        struct Whole {
            text: String,
            reasoning: Option<String>,
            calls: Vec<Call>,
            tokens: Vec<TokenLogprob>,
            reason: &'static str,
        }
        let mut answers: Vec<Whole> = self.choices.iter().map(|_| Whole::default()).collect();
        while let Some(update) = self.update().await {
            let Update::Delta(ChoiceDelta { index, parts, tokens, finish_reason }) = update? else { continue };
            let answer = &mut answers[index];
            answer.tokens.extend(tokens);
            answer.reason = finish_reason.unwrap_or_default();
            for part in parts {
                match part {
                    Part::Content(text) => answer.text += &text,
                    Part::Reasoning(text) => *answer.reasoning.get_or_insert_default() += &text,
                    part => match self.call(index, part) {
                        Some(call) if call.id.is_some() => answer.calls.push(Call { index: None, ..call }),
                        Some(more) => {
                            let call = answer.calls.last_mut().expect("a call begins before its arguments");
                            call.function.arguments += &more.function.arguments;
                        }
                        None => {}
                    },
                }
            }
        }
        let (head, usage) = (&self.head, Some(Some(self.usage)));
        let has_logprobs = self.has_logprobs;
        let answers = answers.into_iter().enumerate();
        Ok(match self.is_chat {
            true => {
                let choice = |(index, Whole { text, reasoning, calls, tokens, reason })| ChatChoice {
                    index,
                    message: ChatMessage {
                        role: "assistant",
                        content: Some(text).filter(|text| !text.is_empty() || Vec::is_empty(&calls)),
                        reasoning_content: reasoning,
                        tool_calls: calls,
                    },
                    logprobs: has_logprobs.then_some(ChatLogprobs { content: tokens }),
                    finish_reason: reason,
                };
                Json(openai::Answer { head, choices: answers.map(choice).collect(), usage }).into_response()
            }
            false => {
                let choice = |(index, Whole { text, tokens, reason, .. })| CompletionChoice {
                    index,
                    text,
                    logprobs: has_logprobs.then(|| CompletionLogprobs::new(&tokens)),
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
        if answer.is_chat {
            answer.head.object = "chat.completion.chunk";
        }
        // What cannot be served has a status of its own if that shows soon, and is an event of the stream otherwise.
        let first = timeout(FIRST_EVENT, answer.update()).await.ok().flatten().transpose()?;
        let mut streaming = Streaming { answer, options, ready: VecDeque::new(), told_reading: None, is_over: false };
        if streaming.answer.is_chat {
            for index in 0..streaming.answer.choices.len() {
                let role = Some("assistant");
                let delta = ChatDelta { role, content: Some(String::new()), ..ChatDelta::default() };
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
            Update::Delta(piece) if self.answer.is_chat => self.message(piece),
            Update::Delta(ChoiceDelta { index, parts, tokens, finish_reason }) => {
                let text = |part| if let Part::Content(text) = part { Some(text) } else { None };
                let text: String = parts.into_iter().filter_map(text).collect();
                let logprobs = (!tokens.is_empty()).then(|| CompletionLogprobs::new(&tokens));
                if !text.is_empty() || logprobs.is_some() || finish_reason.is_some() {
                    self.send(CompletionChoice { index, text, logprobs, finish_reason });
                }
            }
        }
    }

    /// A chunk for each part, the first with the tokens; and one where there is none.
    fn message(&mut self, ChoiceDelta { index, parts, tokens, finish_reason }: ChoiceDelta) {
        let delta = |part| match part {
            Part::Content(text) => Some(ChatDelta { content: Some(text), ..ChatDelta::default() }),
            Part::Reasoning(text) => Some(ChatDelta { reasoning_content: Some(text), ..ChatDelta::default() }),
            part => {
                let call = self.answer.call(index, part)?;
                Some(ChatDelta { tool_calls: vec![call], ..ChatDelta::default() })
            }
        };
        let mut deltas: Vec<ChatDelta> = parts.into_iter().filter_map(delta).collect();
        if deltas.is_empty() && !tokens.is_empty() {
            deltas.push(ChatDelta::default());
        }
        let mut logprobs = Some(tokens).filter(|tokens| !tokens.is_empty()).map(|content| ChatLogprobs { content });
        for delta in deltas {
            self.send(ChatChunk { index, delta, logprobs: logprobs.take(), finish_reason: None });
        }
        if finish_reason.is_some() {
            self.send(ChatChunk { index, delta: ChatDelta::default(), logprobs: None, finish_reason });
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
