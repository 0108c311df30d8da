//! Files into a cache: several at once, each resumed where it was broken off, and given its name when it is what the hub says.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;
use ureq::http::header::CONTENT_RANGE;

use super::client::{Client, Retry, reason};
use super::folder::Folder;
use super::listing::HubFile;
use super::{Event, Events};
use crate::error::{Error, HubProblem, Result};
use crate::watch::go_on;

/// Files at once.
const WORKERS: usize = 4;
/// What is read, hashed and written at once.
const CHUNK: usize = 1 << 18;
/// How often a server may send a file from its beginning in place of the rest.
const MAX_RESTARTS: usize = 3;
/// How soon a download ends that was asked to, whatever its connections do.
const TICK: Duration = Duration::from_millis(100);

/// A snapshot's files that are to come.
struct Job {
    client: Client,
    folder: Folder,
    commit: String,
    files: Vec<HubFile>,
    /// Which are not begun.
    queue: Mutex<VecDeque<usize>>,
    /// One of them failed.
    failed: AtomicBool,
}

/// What a worker tells of a file.
enum Message {
    /// So many bytes are here.
    Bytes(u64),
    /// Another process has its lock.
    Waiting,
    Finished(Result<()>),
}

/// Fetch files that the snapshot lacks.
pub(super) fn fetch(
    client: &Client,
    folder: &Folder,
    commit: &str,
    files: Vec<HubFile>,
    events: &mut Events,
) -> Result<()> {
    let mut missing = Vec::new();
    for file in files {
        if folder.has_file(commit, &file.name, file.size) {
            continue;
        }
        match folder.has_blob(&file.etag, file.size) {
            true => folder.link(commit, &file.name, &file.etag)?,
            false => missing.push(file),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    check_space(client, folder, &missing)?;
    (events.on_event)(Event::Begin { files: &missing });
    let queue = Mutex::new((0..missing.len()).collect());
    let job = Job {
        client: client.clone(),
        folder: folder.clone(),
        commit: commit.to_owned(),
        files: missing,
        queue,
        failed: AtomicBool::new(false),
    };
    run(Arc::new(job), events)
}

/// Until every file is here, one fails or it is stopped. Workers that wait for the network then end when they get something.
fn run(job: Arc<Job>, events: &mut Events) -> Result<()> {
    let (sender, messages) = channel();
    let path = job.folder.path();
    for _ in 0..WORKERS.min(job.files.len()) {
        let (job, sender) = (Arc::clone(&job), sender.clone());
        let work = move || {
            while let Some(index) = job.next() {
                let done = job.fetch(index, &sender);
                let _ = sender.send((index, Message::Finished(done)));
            }
        };
        thread::Builder::new().spawn(work).map_err(Error::io(&path))?;
    }
    drop(sender);
    let mut left = job.files.len();
    while left > 0 {
        go_on(events.stop)?;
        match messages.recv_timeout(TICK) {
            Ok((file, Message::Bytes(bytes))) => (events.on_event)(Event::Progress { file, bytes }),
            Ok((file, Message::Waiting)) => (events.on_event)(Event::Waiting { file }),
            Ok((file, Message::Finished(Ok(())))) => {
                left -= 1;
                (events.on_event)(Event::Finished { file });
            }
            Ok((_, Message::Finished(Err(error)))) => {
                job.failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::Internal("a download ended without a result".into()));
            }
        }
    }
    Ok(())
}

/// Before anything is downloaded: is there room for it?
fn check_space(client: &Client, folder: &Folder, files: &[HubFile]) -> Result<()> {
    let path = folder.blobs();
    let Some(free) = free_space(&path) else { return Ok(()) }; // it may still fit
    let left = |file: &HubFile| {
        let here = fs::metadata(folder.partial(&file.etag)).map_or(0, |found| found.len());
        file.size.saturating_sub(here)
    };
    let needed = files.iter().map(left).fold(0, u64::saturating_add);
    match needed > free {
        true => Err(client.error(HubProblem::NoSpace { path, needed, free })),
        false => Ok(()),
    }
}

/// In bytes, of the disk that this is on.
fn free_space(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    #[allow(clippy::useless_conversion)] // not on macOS
    Some(u64::from(found.blocks_available()).saturating_mul(found.fragment_size()))
}

impl Job {
    fn next(&self) -> Option<usize> {
        if self.go_on().is_err() {
            return None;
        }
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn go_on(&self) -> Result<()> {
        go_on(&self.client.stop)?;
        go_on(&self.failed)
    }

    fn fetch(&self, index: usize, sender: &Sender<(usize, Message)>) -> Result<()> {
        let file = &self.files[index];
        let tell = |message| drop(sender.send((index, message)));
        let mut waits = false;
        let _lock = self.folder.lock(&file.etag, || {
            if !std::mem::replace(&mut waits, true) {
                tell(Message::Waiting);
            }
            self.go_on()
        })?;
        // Whoever had the lock may have fetched it.
        if !self.folder.has_blob(&file.etag, file.size) {
            Download { job: self, file, on_bytes: &|bytes| tell(Message::Bytes(bytes)) }.run()?;
        }
        tell(Message::Bytes(file.size));
        self.folder.link(&self.commit, &file.name, &file.etag)
    }
}

/// One file.
struct Download<'j> {
    job: &'j Job,
    file: &'j HubFile,
    on_bytes: &'j dyn Fn(u64),
}

/// The bytes that are here, and their hash so far.
struct Part {
    file: File,
    hash: Hash,
    length: u64,
}

impl Download<'_> {
    fn run(&self) -> Result<()> {
        let path = self.job.folder.partial(&self.file.etag);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(&path).map_err(Error::io(&path))?;
        let mut part = Part { file, hash: Hash::new(self.file), length: 0 };
        self.take_over(&mut part).map_err(|error| self.io(&path, error))?;
        let had = part.length;
        let mut problem = self.complete(&mut part, &path)?;
        if problem.is_some() && had > 0 {
            // What was here already may be the damaged part.
            self.restart(&mut part, &path)?;
            problem = self.complete(&mut part, &path)?;
        }
        if let Some(problem) = problem {
            let _ = fs::remove_file(&path);
            return Err(self.job.client.error(problem));
        }
        part.file.sync_all().map_err(|error| self.io(&path, error))?;
        let blob = self.job.folder.blob(&self.file.etag);
        fs::rename(&path, &blob).map_err(|error| self.io(&blob, error))
    }

    /// Hash what an earlier attempt left.
    fn take_over(&self, part: &mut Part) -> io::Result<()> {
        if part.file.metadata()?.len() > self.file.size {
            part.file.set_len(0)?;
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            match part.file.read(&mut buffer)? {
                0 => return Ok(()),
                bytes => part.add(&buffer[..bytes]),
            }
            (self.on_bytes)(part.length);
            if self.job.go_on().is_err() {
                return Ok(()); // the next request is not made
            }
        }
    }

    fn restart(&self, part: &mut Part, path: &Path) -> Result<()> {
        part.hash = Hash::new(self.file);
        part.length = 0;
        (self.on_bytes)(0);
        let rewound = part.file.set_len(0).and_then(|()| part.file.seek(SeekFrom::Start(0)));
        rewound.map(drop).map_err(|error| self.io(path, error))
    }

    /// Fetch the rest, and say what is wrong with the whole.
    fn complete(&self, part: &mut Part, path: &Path) -> Result<Option<HubProblem>> {
        let (mut retry, mut restarts) = (self.job.client.retry(), 0);
        while part.length < self.file.size {
            let before = part.length;
            let lost = match self.append(part, path) {
                Ok(()) => "it was closed".to_owned(),
                Err(Lost::Connection(reason)) => reason,
                Err(Lost::All(error)) => return Err(error),
            };
            if part.length < before {
                restarts += 1;
            }
            if part.length != before && restarts <= MAX_RESTARTS {
                retry = self.job.client.retry();
            } else if restarts > MAX_RESTARTS || !self.again(&mut retry)? {
                let (file, size) = (self.file.name.clone(), self.file.size);
                let problem = HubProblem::CutOff { file, bytes: part.length, size, reason: lost };
                return Err(self.job.client.error(problem));
            }
        }
        let found = part.hash.finish();
        Ok((found != self.file.etag).then(|| HubProblem::WrongHash {
            file: self.file.name.clone(),
            kind: part.hash.kind(),
            found,
            expected: self.file.etag.clone(),
        }))
    }

    fn again(&self, retry: &mut Retry) -> Result<bool> {
        self.job.go_on()?;
        retry.wait()
    }

    /// One request, for what is not here yet.
    fn append(&self, part: &mut Part, path: &Path) -> Result<(), Lost> {
        self.job.go_on()?;
        let answer = self.job.client.get(&self.job.commit, &self.file.name, part.length);
        let mut response = answer.map_err(|error| match error {
            Error::Hub { problem: HubProblem::Unreachable { reason, .. }, .. } => Lost::Connection(reason),
            error => Lost::All(error),
        })?;
        let begins = || {
            response
                .headers()
                .get(CONTENT_RANGE)?
                .to_str()
                .ok()?
                .strip_prefix("bytes ")?
                .split('-')
                .next()?
                .parse()
                .ok()
        };
        // A server need not know of ranges.
        if part.length > 0 && (response.status() != StatusCode::PARTIAL_CONTENT || begins() != Some(part.length)) {
            self.restart(part, path)?;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Ok(());
            }
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            let left = (self.file.size - part.length).min(CHUNK as u64) as usize;
            let bytes = match body.read(&mut buffer[..left]) {
                Ok(0) => return Ok(()),
                Ok(bytes) => bytes,
                Err(error) => return Err(Lost::Connection(reason(&error.into()))),
            };
            part.file.write_all(&buffer[..bytes]).map_err(|error| self.io(path, error))?;
            part.add(&buffer[..bytes]);
            (self.on_bytes)(part.length);
            self.job.go_on()?;
        }
    }

    fn io(&self, path: &Path, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::StorageFull {
            let path = self.job.folder.blobs();
            let free = free_space(&path).unwrap_or(0);
            return self.job.client.error(HubProblem::NoSpace { path, needed: self.file.size, free });
        }
        Error::Io { path: path.to_owned(), error }
    }
}

/// Why a request did not bring the rest of a file.
enum Lost {
    /// Another one may.
    Connection(String),
    All(Error),
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Lost::All(error)
    }
}

impl Part {
    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
    }
}

/// What the hub calls a file by.
enum Hash {
    Sha256(Sha256),
    /// As git names a blob: with its length before it.
    Git(Sha1),
}

impl Hash {
    fn new(file: &HubFile) -> Self {
        match file.etag.len() {
            64 => Hash::Sha256(Sha256::new()),
            _ => Hash::Git(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Git(hash) => hash.update(bytes),
        }
    }

    fn finish(&mut self) -> String {
        match self {
            Hash::Sha256(hash) => hex::encode(hash.finalize_reset()),
            Hash::Git(hash) => hex::encode(hash.finalize_reset()),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Hash::Sha256(_) => "SHA-256",
            Hash::Git(_) => "git SHA-1",
        }
    }
}
