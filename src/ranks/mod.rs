//! The ranks that compute one model together: how they meet, and what rank 0 tells the others to compute.
//!
//! Numbers go over MLX's groups; everything else, a few bytes a step, over a TCP connection of each rank with rank 0. It
//! also tells at once when a rank is gone, for which MLX has no word: whoever then waits for its numbers would wait forever.

mod message;

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use mlx_rs::Array;
use serde::{Deserialize, Serialize};

pub use message::Source;
use message::{Hello, Reader, Reply};
pub(crate) use message::{Message, SpanOf};

use crate::error::{Error, Result};
use crate::mlx_rs_patch::distributed::Group;

/// How long ranks that MLX has connected may take to connect for messages.
const PATIENCE: Duration = Duration::from_secs(20);
/// A connection on which nothing arrives for about so long, though probes are sent, is lost.
const SILENCE: Duration = Duration::from_secs(4);
/// Ranks compare what they computed once in so many passes.
const CHECK_EVERY: u64 = 64;

static CURRENT: OnceLock<Ranks> = OnceLock::new();

/// Those that this process belongs to, once it has [joined](join) them.
pub fn current() -> Option<&'static Ranks> {
    CURRENT.get()
}

/// This process among those that compute together.
#[derive(Debug)]
pub struct Ranks {
    rank: i32,
    size: i32,
    /// Until this process [leaves](Ranks::leave).
    group: Mutex<Option<Group>>,
    role: Role,
    /// Called with what happened when a rank is lost or fails; this process is of no use then, and it should end it.
    on_loss: fn(&str),
}

#[derive(Debug)]
enum Role {
    First(First),
    Other(Other),
}

/// What rank 0 has of the others.
#[derive(Debug)]
struct First {
    /// One connection for each other rank.
    streams: Mutex<Vec<TcpStream>>,
    loaded: Mutex<Receiver<(i32, String)>>,
    next_model: AtomicU64,
    steps: Mutex<Steps>,
    /// Ranks that end from now on do as they are told.
    has_ended: AtomicBool,
}

/// What another rank has of rank 0.
#[derive(Debug)]
struct Other {
    stream: Mutex<TcpStream>,
    messages: Mutex<Receiver<Message>>,
}

/// What was computed until now.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    passes: u64,
    hash: u64,
    /// What other ranks should say after a pass.
    expected: HashMap<u64, u64>,
}

impl Steps {
    /// Another pass, over `spans` of which so many tokens were ever seen.
    pub fn add(&mut self, spans: &[SpanOf], seen: &[u64]) {
        let mut hasher = DefaultHasher::new();
        (self.hash, self.passes).hash(&mut hasher);
        for (span, seen) in spans.iter().zip(seen) {
            (span.cache, span.len, span.tokens, seen).hash(&mut hasher);
        }
        self.passes += 1;
        self.hash = hasher.finish();
    }
}

/// Where rank 0 listens, told to all over MLX's group.
#[derive(Debug, Serialize, Deserialize)]
struct Meeting {
    host: String,
    port: u16,
    secret: u64,
}

/// Words of a [`Meeting`].
const MEETING: usize = 512;

/// Meet the other ranks, as MLX's environment describes them. `host` is a name or address of rank 0's machine that the others
/// reach; `arguments` are what all ranks must have been started with alike.
///
/// # Errors
/// When they cannot meet within some seconds, or were started with another version or other arguments; rank 0 says which.
pub fn join(host: &str, arguments: &[String], on_loss: fn(&str)) -> Result<&'static Ranks> {
    let group = Group::join()?;
    let rank = group.rank();
    let lost = |error: io::Error| Error::Ranks(format!("rank {rank} cannot be reached by the others: {error}"));
    let (role, start): (Role, Box<dyn FnOnce(&'static Ranks)>) = if rank == 0 {
        let address = (host, 0).to_socket_addrs().map_err(lost)?.next().unwrap_or((IpAddr::from([0; 4]), 0).into());
        let listener = TcpListener::bind(address).or_else(|_| TcpListener::bind("0.0.0.0:0")).map_err(lost)?;
        let secret = RandomState::new().build_hasher().finish();
        let port = listener.local_addr().map_err(lost)?.port();
        meet(&group, Some(Meeting { host: host.to_owned(), port, secret }))?;
        let streams = welcome(&listener, group.size(), secret, arguments)?;
        let readers: Vec<_> = streams.iter().map(|(rank, stream)| (*rank, stream.try_clone())).collect();
        let (loaded, received) = channel();
        let first = First {
            streams: Mutex::new(streams.into_iter().map(|(_, stream)| stream).collect()),
            loaded: Mutex::new(received),
            next_model: AtomicU64::new(0),
            steps: Mutex::default(),
            has_ended: AtomicBool::new(false),
        };
        let start = move |ranks: &'static Ranks| {
            for (rank, stream) in readers {
                let loaded = loaded.clone();
                thread::spawn(move || match stream {
                    Ok(stream) => ranks.hear(rank, Reader::new(stream), &loaded),
                    Err(error) => ranks.lose(&format!("rank {rank} cannot be heard: {error}")),
                });
            }
        };
        (Role::First(first), Box::new(start))
    } else {
        let Meeting { host, port, secret } = meet(&group, None)?;
        let stream = connect(&host, port).map_err(|error| {
            Error::Ranks(format!("rank {rank} cannot reach rank 0 at {host}:{port} for messages: {error}"))
        })?;
        let hello = Hello { secret, rank, version: crate::VERSION.into(), arguments: arguments.to_vec() };
        message::write(&mut &stream, &hello).map_err(lost)?;
        let reader = stream.try_clone().map_err(lost)?;
        let (to, messages) = channel();
        let start = move |ranks: &'static Ranks| drop(thread::spawn(move || ranks.listen(Reader::new(reader), &to)));
        (Role::Other(Other { stream: Mutex::new(stream), messages: Mutex::new(messages) }), Box::new(start))
    };
    let ranks = Ranks { rank, size: group.size(), group: Some(group).into(), role, on_loss };
    CURRENT.set(ranks).map_err(|_| Error::Ranks("this process has joined already".into()))?;
    let ranks = CURRENT.get().expect("it was just set");
    start(ranks);
    Ok(ranks)
}

/// What rank 0 says about where to meet.
fn meet(group: &Group, meeting: Option<Meeting>) -> Result<Meeting> {
    let text = meeting.map(|meeting| serde_json::to_vec(&meeting).expect("it is plain data")).unwrap_or_default();
    let mut words: Vec<u32> = text.into_iter().map(u32::from).collect();
    words.resize(MEETING, b' '.into());
    let told = group.all_gather(&Array::from_slice(&words, &[MEETING as i32]))?;
    told.eval()?;
    let bytes: Vec<u8> = told.as_slice::<u32>()[..MEETING].iter().map(|&word| word as u8).collect();
    serde_json::from_slice(&bytes).map_err(|error| Error::Ranks(format!("rank 0 speaks another language: {error}")))
}

/// Connections of all other ranks, in order.
fn welcome(listener: &TcpListener, size: i32, secret: u64, arguments: &[String]) -> Result<Vec<(i32, TcpStream)>> {
    let failed = |error: io::Error| Error::Ranks(format!("rank 0 cannot be reached by the others: {error}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let (mut streams, mut refusal) = (Vec::new(), None);
    let begun = Instant::now();
    while streams.len() + 1 < size as usize {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if begun.elapsed() > PATIENCE {
                    let came: Vec<i32> = streams.iter().map(|(rank, _)| *rank).collect();
                    let missing: Vec<String> =
                        (1..size).filter(|rank| !came.contains(rank)).map(|rank| rank.to_string()).collect();
                    return Err(Error::Ranks(format!("no word from rank {}", missing.join(", "))));
                }
                thread::sleep(Duration::from_millis(2));
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let _ = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
        let hello = stream.try_clone().and_then(|stream| Reader::new(stream).next::<Hello>());
        // Whoever does not know the secret is none of us.
        let Ok(Some(hello)) = hello else { continue };
        if hello.secret != secret {
            continue;
        }
        refusal = refusal.or(difference(&hello, arguments));
        prepare(&stream).and_then(|()| stream.set_read_timeout(None)).map_err(failed)?;
        streams.push((hello.rank, stream));
    }
    streams.sort_by_key(|(rank, _)| *rank);
    match refusal {
        None => Ok(streams),
        Some(problem) => {
            for (_, stream) in &streams {
                let _ = message::write(&mut &*stream, &Message::Failed { problem: problem.clone() });
            }
            Err(Error::Ranks(problem))
        }
    }
}

/// Why a rank cannot compute with this one.
fn difference(hello: &Hello, arguments: &[String]) -> Option<String> {
    let Hello { rank, version, .. } = hello;
    if version != crate::VERSION {
        return Some(format!("rank {rank} runs version {version} of this program, rank 0 version {}", crate::VERSION));
    }
    (hello.arguments != arguments).then(|| {
        let other = hello.arguments.iter().find(|argument| !arguments.contains(argument));
        let own = arguments.iter().find(|argument| !hello.arguments.contains(argument));
        let said = |argument: Option<&String>| argument.map_or("nothing more".to_owned(), |text| format!("{text:?}"));
        format!(
            "rank {rank} was started with other options than rank 0: {}, where rank 0 has {}",
            said(other),
            said(own)
        )
    })
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return prepare(&stream).map(|()| stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Small messages go at once, and a machine that is gone is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    #[cfg(target_os = "linux")]
    {
        setsockopt(stream, sockopt::TcpKeepIdle, &1)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &1)?;
        setsockopt(stream, sockopt::TcpKeepCount, &(SILENCE.as_secs() as u32 - 1))?;
        setsockopt(stream, sockopt::TcpUserTimeout, &(SILENCE.as_millis() as u32))?;
    }
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Ranks {
    /// This process, from 0 on.
    pub fn rank(&self) -> i32 {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> i32 {
        self.size
    }

    /// Over which numbers are exchanged.
    pub(crate) fn group(&self) -> Option<Group> {
        locked(&self.group).clone()
    }

    /// Let go of MLX's group, for which nothing is to be computed any more. When all models are dropped too, MLX's destructors
    /// leave it properly.
    pub fn leave(&self) {
        locked(&self.group).take();
    }

    fn first(&self) -> &First {
        match &self.role {
            Role::First(first) => first,
            Role::Other(_) => unreachable!("rank 0 alone tells others"),
        }
    }

    fn other(&self) -> &Other {
        match &self.role {
            Role::Other(other) => other,
            Role::First(_) => unreachable!("rank 0 is told nothing"),
        }
    }

    /// A rank is lost: tell the others, as far as they can be told, and the one who joined.
    fn lose(&self, problem: &str) {
        match &self.role {
            Role::First(first) => {
                if first.has_ended.swap(true, Ordering::SeqCst) {
                    return;
                }
                if let Ok(streams) = first.streams.try_lock() {
                    for stream in &*streams {
                        let _ = message::write(&mut &*stream, &Message::Failed { problem: problem.to_owned() });
                    }
                }
                (self.on_loss)(problem);
            }
            Role::Other(_) => (self.on_loss)(problem),
        }
    }

    /// Rank 0 hears another rank.
    fn hear(&self, rank: i32, mut replies: Reader, loaded: &Sender<(i32, String)>) {
        loop {
            match replies.next::<Reply>() {
                Ok(Some(Reply::Loaded { identity })) => drop(loaded.send((rank, identity))),
                Ok(Some(Reply::Computed { pass, hash })) => {
                    if locked(&self.first().steps).expected.get(&pass).is_some_and(|expected| *expected != hash) {
                        return self.lose(&format!("rank {rank} does not compute what rank 0 does, at pass {pass}"));
                    }
                }
                Ok(Some(Reply::Failed { problem })) => return self.lose(&format!("rank {rank}: {problem}")),
                Ok(Some(Reply::Done)) => return,
                Ok(None) | Err(_) => return self.lose(&format!("rank {rank} is gone")),
            }
        }
    }

    /// Another rank listens to rank 0.
    fn listen(&self, mut messages: Reader, to: &Sender<Message>) {
        loop {
            match messages.next::<Message>() {
                Ok(Some(Message::Failed { .. })) => return self.lose(""), // which rank 0 says
                Ok(Some(message)) => {
                    let is_last = message == Message::End;
                    let _ = to.send(message);
                    if is_last {
                        return;
                    }
                }
                Ok(None) | Err(_) => return self.lose(""),
            }
        }
    }

    /// Rank 0: tell the others.
    pub(crate) fn send(&self, message: &Message) {
        let mut line = Vec::new();
        message::write(&mut line, message).expect("memory can be written");
        for stream in &mut *locked(&self.first().streams) {
            let _ = stream.write_all(&line); // whoever hears it tells that it is gone
        }
    }

    /// Rank 0: let the others load a model too; what messages call it.
    pub(crate) fn load(&self, source: Source) -> u64 {
        let model = self.first().next_model.fetch_add(1, Ordering::Relaxed);
        self.send(&Message::Load { model, source });
        model
    }

    /// Rank 0: wait until the others have loaded what is this model here.
    ///
    /// # Errors
    /// When it is another there.
    pub(crate) fn all_loaded(&self, identity: &str) -> Result<()> {
        let loaded = locked(&self.first().loaded);
        for _ in 1..self.size() {
            let gone = |_| Error::Ranks("all other ranks are gone".into());
            let (rank, theirs) = loaded.recv().map_err(gone)?;
            if theirs != identity {
                return Err(Error::Ranks(format!("rank {rank} has another model under this name than rank 0")));
            }
        }
        Ok(())
    }

    /// Rank 0: a pass over `spans`, of which so many tokens were ever seen, is about to be described. A GPU computes parts of it
    /// before all of it is described, so the others hear of it first.
    pub(crate) fn describe(&self, model: u64, spans: Vec<SpanOf>, seen: &[u64], released: Vec<u64>) {
        locked(&self.first().steps).add(&spans, seen);
        self.send(&Message::Pass { model, spans, released });
    }

    /// Rank 0: the others compute what was described.
    pub(crate) fn compute(&self) {
        let check = {
            let mut steps = locked(&self.first().steps);
            let (pass, hash) = (steps.passes, steps.hash);
            let is_due = pass.is_multiple_of(CHECK_EVERY);
            is_due.then(|| {
                steps.expected.retain(|old, _| pass - old < 16 * CHECK_EVERY);
                steps.expected.insert(pass, hash);
                pass
            })
        };
        self.send(&Message::Compute { check });
    }

    /// Rank 0: a pass failed here, so that the others wait in vain.
    pub(crate) fn fail(&self, problem: &str) {
        self.lose(problem);
    }

    /// All is done: let the others end.
    pub fn end(&self) {
        if let Role::First(first) = &self.role
            && !first.has_ended.swap(true, Ordering::SeqCst)
        {
            self.send(&Message::End);
        }
    }

    /// Another rank: the next message of rank 0. After [`Message::End`] there is none.
    pub(crate) fn next(&self) -> Message {
        // Where there is none any more, the connection is gone, and this process ends.
        locked(&self.other().messages).recv().unwrap_or(Message::End)
    }

    fn reply(&self, reply: &Reply) {
        let _ = message::write(&mut *locked(&self.other().stream), reply); // where rank 0 is gone, this process ends
    }

    /// Another rank: a model is loaded.
    pub(crate) fn reply_loaded(&self, identity: &str) {
        self.reply(&Reply::Loaded { identity: identity.to_owned() });
    }

    /// Another rank: what it has computed.
    pub(crate) fn reply_computed(&self, steps: &Steps) {
        self.reply(&Reply::Computed { pass: steps.passes, hash: steps.hash });
    }

    /// Another rank: something went wrong, which rank 0 says.
    pub fn reply_failed(&self, problem: &str) {
        self.reply(&Reply::Failed { problem: problem.to_owned() });
    }

    /// Another rank: it ends as it was told.
    pub(crate) fn reply_done(&self) {
        self.reply(&Reply::Done);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_version_is_told_by_name() {
        let hello = Hello { secret: 0, rank: 3, version: "0.0.0".into(), arguments: Vec::new() };
        let expected = format!("rank 3 runs version 0.0.0 of this program, rank 0 version {}", crate::VERSION);
        assert_eq!(difference(&hello, &[]), Some(expected));
    }

    #[test]
    fn whatever_differs_in_a_pass_is_seen_from_then_on() {
        let span = |cache: u64, len: i32, tokens: i32| -> SpanOf {
            let limits = json!({"context_size": 64, "num_sink_tokens": 4, "eviction_batch_percent": 10});
            let span = json!({"cache": cache, "copy_of": null, "len": len, "limits": limits, "tokens": tokens, "phase": "Decode"});
            serde_json::from_value(span).unwrap()
        };
        let after = |spans: &[SpanOf], seen: u64| {
            let mut steps = Steps::default();
            steps.add(spans, &vec![seen; spans.len()]);
            steps.add(&[span(9, 9, 1)], &[9]);
            steps.hash
        };
        let all = [
            after(&[span(1, 5, 2)], 5),
            after(&[span(2, 5, 2)], 5),
            after(&[span(1, 6, 2)], 5),
            after(&[span(1, 5, 3)], 5),
            after(&[span(1, 5, 2)], 6),
            after(&[span(1, 5, 2), span(2, 5, 2)], 5),
            after(&[], 5),
        ];
        assert_eq!(all[0], after(&[span(1, 5, 2)], 5));
        assert!((1..all.len()).all(|i| !all[..i].contains(&all[i])), "{all:?}");
    }
}
