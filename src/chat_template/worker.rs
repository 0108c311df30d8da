//! The process that renders templates, and the half in this process that asks it, kills it and finds out why.
//!
//! A request is a line of JSON: a [`Job`] and how to attempt it. The worker answers each [`Attempt`] with a line, until
//! one is [`Reply::Done`]. It is kept for the next request.
//!
//! A worker that had to be killed, or that has died, cannot tell where in the template that happened. But MiniJinja
//! spends fuel the same way each time, and a template that runs out of it fails at a known place. So the guilty place is
//! that of the attempt with the most fuel that still ends.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use minijinja::value::Serde;
use minijinja::{ErrorKind, Value};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Compiled, FUEL, Failure, Job, Place, render as render_in_thread};
use crate::error::{Error, Result};

/// The address space that a template has, in bytes: a stack and all that it makes.
const MEMORY_BYTES: u64 = 512 << 20;

/// The part of it that is the stack.
const STACK_BYTES: usize = 64 << 20;

/// A template writes the conversation and little else. So many times the bytes of the request are much, beyond some for
/// templates with a long text of their own. Longer texts would take their time and memory in the tokenizer.
const MAX_GROWTH: usize = 8;
const MAX_OWN_BYTES: usize = 1 << 20;

/// After how much time of a processor the first attempt is given up, and after how much the search for the place: the rest of
/// 2 s is for killing.
const FIRST_ATTEMPT: Duration = Duration::from_millis(1000);
const ALL_ATTEMPTS: Duration = Duration::from_millis(1800);

/// How long to wait for a worker that others keep from the processor.
const PATIENCE: Duration = Duration::from_secs(30);

static COMMAND: OnceLock<fn() -> io::Result<Command>> = OnceLock::new();

/// Workers that wait for a request: as many as there ever were threads that rendered at the same time.
static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

/// From now on, render templates in workers. `command` starts a program that calls [`serve`]; this program itself, for
/// instance, with an argument that makes it do so. The first call counts.
pub fn set_worker(command: fn() -> io::Result<Command>) {
    let _ = COMMAND.set(command);
}

pub(super) fn command() -> Option<fn() -> io::Result<Command>> {
    COMMAND.get().copied()
}

/// Be a worker: render what standard input asks for, until it ends. Answers go to standard output, to which
/// nothing else may write from now on.
///
/// # Errors
/// When the system refuses the limits or standard input or output fails; the process cannot be a worker then.
pub fn serve() -> io::Result<()> {
    let (sender, requests) = mpsc::channel::<String>();
    if !cfg!(target_os = "macos") {
        limit(Resource::RLIMIT_AS, mapped_bytes() + MEMORY_BYTES)?;
    }
    limit(Resource::RLIMIT_CORE, 0)?;
    // This thread goes on reading, so that the process ends with the one that it works for, whatever a template does.
    let answer_all = move || {
        let mut kept = None;
        requests.iter().try_for_each(|line| answer(&line, &mut kept))
    };
    thread::Builder::new().stack_size(STACK_BYTES).spawn(answer_all)?;
    for line in io::stdin().lines() {
        sender.send(line?).map_err(io::Error::other)?;
    }
    Ok(())
}

/// What the program and its libraries take of the address space before they do anything: with NVIDIA's, many times what a
/// template may.
fn mapped_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size =
        status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    size.unwrap_or(0u64) << 10
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(resource)?;
    Ok(setrlimit(resource, most.min(hard), most.min(hard))?)
}

/// How much of the template to render, in bytes, and with how much fuel.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Attempt {
    source: usize,
    fuel: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// What comes of the template.
    Done(Result<String, Failure>),
    /// The attempt has come so far, for want of fuel or of the rest of the template.
    Short(Place),
    TooLong,
}

/// Answer a request, with the template of the one before where it is the same.
fn answer(line: &str, kept: &mut Option<Compiled>) -> io::Result<()> {
    let _watched = cfg!(target_os = "macos").then(watch_memory);
    let (job, attempts): (Job, Vec<Attempt>) = serde_json::from_str(line)?;
    let variables = Value::from(Serde(&job.variables));
    let max_bytes = MAX_OWN_BYTES + MAX_GROWTH * line.len();
    for Attempt { source, fuel } in attempts {
        let part = &job.source[..job.source.floor_char_boundary(source)];
        let reply = match render_in_thread(part, variables.clone(), job.date, fuel, kept) {
            _ if part.len() < job.source.len() => Reply::Short(Place::of(&job.source, part.len())),
            Err((ErrorKind::OutOfFuel, failure)) if fuel < FUEL => Reply::Short(failure.place.unwrap_or_default()),
            Ok(text) if text.len() > max_bytes => Reply::TooLong,
            Err((_, Failure { problem, .. })) if problem.len() > max_bytes => Reply::TooLong,
            rendered => Reply::Done(rendered.map_err(|(_, failure)| failure)),
        };
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        io::stdout().lock().write_all(&line)?;
        if matches!(reply, Reply::Done(_)) {
            break;
        }
    }
    Ok(())
}

/// Ends the process when it takes too much memory, until what this returns is dropped. macOS does not enforce limits of
/// memory.
fn watch_memory() -> mpsc::Sender<()> {
    let (watched, dropped) = mpsc::channel();
    thread::spawn(move || {
        while dropped.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
            if getrusage(UsageWho::RUSAGE_SELF).is_ok_and(|usage| usage.max_rss() as u64 > MEMORY_BYTES) {
                std::process::abort();
            }
        }
    });
    watched
}

/// Why a worker did not answer an attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stopped {
    Late,
    Died,
    TooLong,
    /// It had no time on a processor.
    Kept,
}

impl Stopped {
    fn at(self, place: Place) -> Failure {
        let problem = match self {
            Stopped::Late | Stopped::Kept => "stopped because it takes too long",
            Stopped::Died => "stopped because it needs more than 512 MB or nests too deep",
            Stopped::TooLong => "stopped because it writes too much",
        };
        Failure { place: Some(place), problem: problem.to_owned() }
    }
}

/// What ends a worker's answers before the last attempt.
enum End {
    Done(Result<String, Failure>),
    Stopped(Stopped),
}

/// What a process has computed since then; where the system does not tell, the time that has passed.
struct Stopwatch {
    process: Pid,
    computed: Option<Duration>,
    started: Instant,
}

impl Stopwatch {
    fn start(process: &Child) -> Self {
        let process = Pid::from_raw(process.id() as i32);
        Stopwatch { process, computed: computed(process), started: Instant::now() }
    }

    fn elapsed(&self) -> Duration {
        match (self.computed, computed(self.process)) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => self.started.elapsed(),
        }
    }
}

/// The time that a process has had on processors.
#[cfg(not(target_os = "macos"))]
fn computed(process: Pid) -> Option<Duration> {
    let clock = nix::time::clock_getcpuclockid(process).ok()?;
    nix::time::clock_gettime(clock).ok().map(Duration::from)
}

#[cfg(target_os = "macos")]
fn computed(_: Pid) -> Option<Duration> {
    None
}

struct Worker {
    process: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Worker {
    fn start(command: fn() -> io::Result<Command>) -> Result<Self> {
        let start = || {
            let mut command = command()?;
            // In a process group of its own, Ctrl-C does not reach it.
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn()
        };
        let mut process = start().map_err(|e| Error::Template(format!("the worker that renders it: {e}")))?;
        let (requests, replies) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        Ok(Worker { process, requests, replies: BufReader::new(replies) })
    }

    /// How far each attempt came, what ended them early, and how much was computed for them: at most `budget`, and `until` then.
    fn ask(
        &mut self,
        job: &Job,
        attempts: &[Attempt],
        budget: Duration,
        until: Instant,
    ) -> (Vec<Place>, Option<End>, Duration) {
        let Worker { process, requests, replies } = self;
        let (sender, answers) = mpsc::channel();
        thread::scope(|scope| {
            // Both directions can block; this thread is the one that does not.
            scope.spawn(move || -> io::Result<()> {
                let mut request = serde_json::to_vec(&(job, attempts))?;
                request.push(b'\n');
                requests.write_all(&request)?;
                for line in replies.lines().take(attempts.len()) {
                    let reply: Reply = serde_json::from_str(&line?)?;
                    let last = matches!(reply, Reply::Done(_));
                    if sender.send(reply).is_err() || last {
                        break;
                    }
                }
                Ok(())
            });
            let (mut places, mut last) = (Vec::new(), None::<Duration>);
            let all = Stopwatch::start(process);
            let end = loop {
                if places.len() == attempts.len() {
                    break None;
                }
                let asked = Stopwatch::start(process);
                let left = budget.saturating_sub(all.elapsed());
                // An attempt with a little more fuel than one that ended takes a little more time. What takes much more
                // is taken for one that does not end; a search meets some three of these.
                let most = match last {
                    None => left / attempts.len().min(2) as u32,
                    Some(last) => left.min(left / 6 + 4 * last),
                };
                let answer = loop {
                    // A processor computes no faster than time passes.
                    let rest = most.saturating_sub(asked.elapsed()).max(Duration::from_millis(1));
                    match answers.recv_timeout(rest.min(until.saturating_duration_since(Instant::now()))) {
                        Err(RecvTimeoutError::Timeout) if asked.elapsed() >= most => break Err(Stopped::Late),
                        Err(RecvTimeoutError::Timeout) if Instant::now() >= until => break Err(Stopped::Kept),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => break Err(Stopped::Died),
                        Ok(reply) => break Ok(reply),
                    }
                };
                match answer {
                    Ok(Reply::Short(place)) => places.push(place),
                    Ok(Reply::Done(rendered)) => break Some(End::Done(rendered)),
                    Ok(Reply::TooLong) => break Some(End::Stopped(Stopped::TooLong)),
                    Err(stopped) => break Some(End::Stopped(stopped)),
                }
                last = Some(asked.elapsed());
            };
            let computed = all.elapsed();
            if let Some(End::Stopped(_)) = end {
                let _ = process.kill(); // which ends the other thread
            }
            (places, end, computed)
        })
    }
}

/// Render in a worker.
pub(super) fn render(command: fn() -> io::Result<Command>, job: &Job) -> Result<String> {
    let until = Instant::now() + PATIENCE;
    let busy = || Error::Busy(format!("the chat template had too little of a processor for {} s", PATIENCE.as_secs()));
    let idle = IDLE.lock().expect("nothing panics with it").pop();
    let mut worker = idle.map_or_else(|| Worker::start(command), Ok)?;
    let whole = job.source.len();
    let (_, end, computed) = worker.ask(job, &[Attempt { source: whole, fuel: FUEL }], FIRST_ATTEMPT, until);
    let stopped = match end {
        Some(End::Stopped(Stopped::Kept)) => return Err(busy()),
        Some(End::Stopped(stopped)) => stopped,
        Some(End::Done(rendered)) => {
            IDLE.lock().expect("nothing panics with it").push(worker);
            return rendered.map_err(Error::from);
        }
        None => unreachable!("with all its fuel, a template is done or stopped"),
    };
    let mut budget = ALL_ATTEMPTS.saturating_sub(computed);
    drop(worker);
    let mut found = search(command, job, &mut budget, until, FUEL, |fuel| Attempt { source: whole, fuel })?;
    if let Found::Nothing = found {
        // It does not get as far as the first instruction: the compiler stumbles over it.
        let attempt = |bytes| Attempt { source: bytes as usize, fuel: 0 };
        found = search(command, job, &mut budget, until, whole as u64, attempt)?;
    }
    match found {
        // What earlier requests had left behind in the worker was in the way.
        Found::Done(rendered) => rendered.map_err(Error::from),
        Found::Place(place) => Err(stopped.at(place).into()),
        Found::Nothing if Instant::now() >= until => Err(busy()),
        Found::Nothing => Err(Error::Template(
            "its worker did not get as far as the template: no memory to start, or a conversation too long for its 512 MB".into(),
        )),
    }
}

enum Found {
    Done(Result<String, Failure>),
    /// How far the last attempt came that ends.
    Place(Place),
    Nothing,
}

/// Find the largest number whose attempt ends, from 0 to `most`, or the nearest that can be found within `budget`, of which it takes what
/// it computes, and `until` then.
///
/// One that does not end costs a worker and much more time than one that does. So a worker gets ascending numbers until
/// it fails.
fn search(
    command: fn() -> io::Result<Command>,
    job: &Job,
    budget: &mut Duration,
    until: Instant,
    most: u64,
    attempt: impl Fn(u64) -> Attempt,
) -> Result<Found> {
    const STEPS: u64 = 32;
    let (mut found, mut high) = (Found::Nothing, most);
    let doubling = (0..u64::BITS).map(|bit| 1 << bit).take_while(|&n| n < most);
    let mut numbers: Vec<u64> = [0].into_iter().chain(doubling).chain([most]).collect();
    while !budget.is_zero() && Instant::now() < until {
        let attempts: Vec<_> = numbers.iter().map(|&n| attempt(n)).collect();
        let (places, end, computed) = Worker::start(command)?.ask(job, &attempts, *budget, until);
        *budget = budget.saturating_sub(computed);
        if let Some(End::Done(rendered)) = end {
            return Ok(Found::Done(rendered));
        }
        let Some(&place) = places.last() else { break };
        found = Found::Place(place);
        let low = numbers[places.len() - 1];
        high = numbers.get(places.len()).copied().unwrap_or(high);
        if high - low <= 1 {
            break;
        }
        // The first, which is known to end, tells how long the others may take.
        numbers = (0..STEPS).map(|i| low + (high - low) * i / STEPS).collect();
        numbers.dedup();
    }
    Ok(found)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn shell(script: &str) -> io::Result<Command> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Ok(command)
    }

    /// Catches: a template that is blamed because others have the processor.
    #[test]
    fn a_worker_is_late_by_what_it_computes() {
        let job = Job { source: String::new(), variables: Default::default(), date: None };
        let ask = |command: fn() -> io::Result<Command>, patience| {
            let until = Instant::now() + patience;
            Worker::start(command)
                .unwrap()
                .ask(&job, &[Attempt { source: 0, fuel: 0 }], Duration::from_millis(20), until)
                .1
        };
        let computes = ask(|| shell("while :; do :; done"), Duration::from_secs(60));
        assert!(matches!(computes, Some(End::Stopped(Stopped::Late))));
        let waits = ask(|| shell("read request; read more"), Duration::from_millis(200));
        assert!(matches!(waits, Some(End::Stopped(Stopped::Kept))));
    }
}
