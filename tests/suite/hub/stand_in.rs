//! A small stand-in for the Hugging Face hub, and for the host that its large files come from: as much of the interface as a client
//! of models uses, and every way to fail.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::unpack_demo;

/// A commit of the repositories here.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Of the files that are not in git itself.
const LARGE: usize = 100_000;

pub struct Hub {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    repositories: Mutex<HashMap<String, Repository>>,
    faults: Mutex<Vec<Fault>>,
    requests: Mutex<Vec<Request>>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    held: usize,
    is_open: bool,
}

#[derive(Clone, Default)]
pub struct Repository {
    pub files: Vec<(String, Vec<u8>)>,
    /// Branches and tags, and their commits.
    pub revisions: Vec<(String, String)>,
    /// Who may read it; everybody where there is none.
    pub token: Option<String>,
    /// Those with a token too must accept terms.
    pub is_gated: bool,
    pub moved_to: Option<String>,
    /// The listing has names alone.
    pub is_terse: bool,
    /// Files that the listing has besides, with made-up sizes and hashes.
    pub pretended: Vec<Value>,
}

/// What goes wrong with the next request, or the next few, whose path contains `path`.
#[derive(Clone)]
pub struct Fault {
    pub path: String,
    pub times: usize,
    pub kind: Kind,
}

#[derive(Clone)]
pub enum Kind {
    /// This status and these headers in place of the answer.
    Status(u16, Vec<(&'static str, String)>),
    /// This body in place of the answer's.
    Body(String),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// So many bytes, and the others once the gate is open.
    Hold(usize),
    /// One bit is another one.
    Damage,
    /// The whole file, whatever part was asked for.
    NoRange,
    /// A part that was not asked for.
    WrongRange,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub is_cdn: bool,
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Hub {
    pub fn start() -> Self {
        let state = Arc::new(State::default());
        let [hub, cdn] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = (hub.local_addr().unwrap(), cdn.local_addr().unwrap());
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    thread::spawn(move || state.answer(stream, is_cdn, addresses.1));
                }
            });
        }
        Hub { address: addresses.0, state }
    }

    /// With the demo model as `org/demo`.
    pub fn with_demo() -> Self {
        let hub = Hub::start();
        hub.put("org/demo", demo());
        hub
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn put(&self, name: &str, repository: Repository) {
        self.state.repositories.lock().unwrap().insert(name.to_owned(), repository);
    }

    pub fn fault(&self, path: &str, times: usize, kind: Kind) {
        self.state.faults.lock().unwrap().push(Fault { path: path.to_owned(), times, kind });
    }

    /// All that were made so far.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Those for the bytes of this file.
    pub fn downloads(&self, file: &[u8]) -> Vec<Request> {
        let path = format!("/{}", sha256(file));
        self.requests().into_iter().filter(|request| request.is_cdn && request.path.starts_with(&path)).collect()
    }

    /// Until so many streams are held.
    pub fn wait_held(&self, count: usize) {
        let gate = self.state.gate.lock().unwrap();
        drop(self.state.changed.wait_while(gate, |gate| gate.held < count).unwrap());
    }

    /// Let all held streams go on.
    pub fn open_gate(&self) {
        self.state.gate.lock().unwrap().is_open = true;
        self.state.changed.notify_all();
    }
}

/// Those of the demo model, a licence, and what a model does not need.
pub fn demo() -> Repository {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    let mut files = files_of(scratch.path());
    for (name, text) in [
        ("LICENSE", "Do what you like.\n"),
        ("README.md", "# A demo model\n"),
        (".gitattributes", "*.safetensors filter=lfs\n"),
        ("pytorch_model.bin", "a pickle"),
        ("original/params.json", "{}"),
        ("consolidated.safetensors", "other weights"),
        ("modeling_demo.py", "import os\n"),
    ] {
        files.retain(|(found, _)| found != name);
        files.push((name.to_owned(), text.into()));
    }
    let revisions = vec![("main".to_owned(), COMMIT.to_owned()), ("v1".to_owned(), COMMIT.to_owned())];
    Repository { files, revisions, ..Repository::default() }
}

pub fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

impl Repository {
    pub fn file(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|(found, _)| found == name).unwrap().1
    }

    pub fn set(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.files.retain(|(found, _)| found != name);
        self.files.push((name.to_owned(), bytes.into()));
    }

    fn commit_of(&self, revision: &str) -> Option<String> {
        let named = self.revisions.iter().find(|(name, commit)| name == revision || commit == revision);
        named.map(|(_, commit)| commit.clone())
    }

    fn listing(&self, name: &str, commit: &str) -> Value {
        let sibling = |(name, bytes): &(String, Vec<u8>)| match (self.is_terse, is_large(name, bytes)) {
            (true, _) => json!({"rfilename": name}),
            (_, false) => json!({"rfilename": name, "size": bytes.len(), "blobId": git_sha1(bytes)}),
            (_, true) => json!({
                "rfilename": name, "size": bytes.len(), "blobId": git_sha1(b"version https://git-lfs.github.com/spec/v1"),
                "lfs": {"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134},
            }),
        };
        let siblings: Vec<Value> = self.files.iter().map(sibling).chain(self.pretended.clone()).collect();
        json!({"_id": "0", "id": name, "sha": commit, "private": false, "gated": self.is_gated, "siblings": siblings})
    }
}

pub fn is_large(name: &str, bytes: &[u8]) -> bool {
    bytes.len() > LARGE || name.ends_with(".safetensors")
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub fn git_sha1(bytes: &[u8]) -> String {
    hex::encode(Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

pub fn etag(name: &str, bytes: &[u8]) -> String {
    if is_large(name, bytes) { sha256(bytes) } else { git_sha1(bytes) }
}

/// Status, headers, body.
type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

impl State {
    fn answer(&self, mut stream: TcpStream, is_cdn: bool, cdn: SocketAddr) {
        let Some(request) = read(&stream, is_cdn) else { return };
        self.requests.lock().unwrap().push(request.clone());
        let fault = self.fault(&request);
        let (mut status, mut headers, mut body) = match &fault {
            Some(Kind::Status(status, headers)) => (*status, headers.clone(), b"{\"error\": \"no\"}".to_vec()),
            Some(Kind::Body(body)) => (200, Vec::new(), body.clone().into()),
            _ if is_cdn => self.large(&request),
            _ => self.hub(&request, cdn),
        };
        let whole = body.len();
        if let Some(Kind::Damage) = fault {
            body[whole / 2] ^= 1;
        }
        if let (200, Some(from)) = (status, range(&request)) {
            match fault {
                Some(Kind::NoRange) => {}
                Some(Kind::WrongRange) => {
                    (status, headers) = (206, vec![("Content-Range", format!("bytes 0-{}/{whole}", whole - 1))])
                }
                _ => {
                    status = 206;
                    headers.push(("Content-Range", format!("bytes {from}-{}/{whole}", whole - 1)));
                    body.drain(..from.min(whole));
                }
            }
        }
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
        let body = if request.method == "HEAD" { Vec::new() } else { body };
        let (now, later) = body.split_at(match fault {
            Some(Kind::Cut(bytes) | Kind::Hold(bytes)) => bytes.min(body.len()),
            _ => body.len(),
        });
        // A client that has gone needs no answer.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(now)).and_then(|()| stream.flush());
        if let Some(Kind::Hold(_)) = fault {
            let mut gate = self.gate.lock().unwrap();
            gate.held += 1;
            self.changed.notify_all();
            drop(self.changed.wait_while(gate, |gate| !gate.is_open).unwrap());
            let _ = stream.write_all(later);
        }
    }

    fn fault(&self, request: &Request) -> Option<Kind> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.iter_mut().find(|fault| fault.times > 0 && request.path.contains(&fault.path))?;
        fault.times -= 1;
        Some(fault.kind.clone())
    }

    fn large(&self, request: &Request) -> Answer {
        let repositories = self.repositories.lock().unwrap();
        let files = repositories.values().flat_map(|repository| &repository.files);
        let wanted = request.path.trim_start_matches('/').split('?').next().unwrap();
        match files.into_iter().find(|(_, bytes)| sha256(bytes) == wanted) {
            Some((_, bytes)) => (200, vec![("ETag", "\"other\"".to_owned())], bytes.clone()),
            None => (404, Vec::new(), Vec::new()),
        }
    }

    fn hub(&self, request: &Request, cdn: SocketAddr) -> Answer {
        let path = request.path.split('?').next().unwrap();
        let parts: Vec<String> = path.trim_start_matches('/').split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (organisation, name, rest) = match &parts[..] {
            ["api", "models", organisation, name, rest @ ..] => (organisation, name, [&["info"], rest].concat()),
            ["api", "resolve-cache", "models", organisation, name, commit, file] => {
                (organisation, name, vec!["cached", commit, file])
            }
            [organisation, name, rest @ ..] => (organisation, name, rest.to_vec()),
            _ => return refusal(404, ""),
        };
        let name = format!("{organisation}/{name}");
        let repositories = self.repositories.lock().unwrap();
        let who = request.headers.get("authorization").map(String::as_str);
        let Some(repository) = repositories.get(&name) else {
            return if who.is_some() { refusal(404, "RepoNotFound") } else { refusal(401, "RepoNotFound") };
        };
        if let Some(new) = &repository.moved_to {
            return (307, vec![("Location", request.path.replace(&name, new))], Vec::new());
        }
        let may_read = repository.token.as_ref().is_none_or(|token| who == Some(&format!("Bearer {token}")));
        if !may_read && !repository.is_gated {
            return if who.is_some() { refusal(404, "RepoNotFound") } else { refusal(401, "RepoNotFound") };
        }
        let commit = match rest[..] {
            ["info"] => repository.commit_of("main"),
            ["info", "revision", revision] | [_, revision, _] => repository.commit_of(revision),
            _ => return refusal(404, ""),
        };
        let Some(commit) = commit else { return refusal(404, "RevisionNotFound") };
        if rest[0] == "info" {
            return (
                200,
                vec![("Content-Type", "application/json".to_owned())],
                repository.listing(&name, &commit).to_string().into(),
            );
        }
        if !may_read {
            return refusal(if who.is_some() { 403 } else { 401 }, "GatedRepo");
        }
        let Some((file, bytes)) = repository.files.iter().find(|(file, _)| *file == rest[2]) else {
            let (status, mut headers, body) = refusal(404, "EntryNotFound");
            headers.push(("X-Repo-Commit", commit));
            return (status, headers, body);
        };
        let mut headers = vec![("X-Repo-Commit", commit.clone())];
        let hash = etag(file, bytes);
        if rest[0] == "cached" {
            headers.push(("ETag", format!("\"{hash}\"")));
            return (200, headers, bytes.clone());
        }
        headers.extend([("X-Linked-Etag", format!("\"{hash}\"")), ("X-Linked-Size", bytes.len().to_string())]);
        if is_large(file, bytes) {
            headers.push(("Location", format!("http://localhost:{}/{hash}?signature=x", cdn.port())));
            return (302, headers, Vec::new());
        }
        headers.push(("Location", format!("/api/resolve-cache/models/{name}/{commit}/{file}?etag=x")));
        (307, headers, Vec::new())
    }
}

fn refusal(status: u16, code: &str) -> Answer {
    let message = if code == "RepoNotFound" { "Repository not found" } else { "no" };
    let headers = vec![("X-Error-Code", code.to_owned()), ("X-Error-Message", message.to_owned())];
    let headers = headers.into_iter().filter(|_| !code.is_empty()).collect();
    (status, headers, b"{\"error\": \"no\"}".to_vec())
}

fn read(stream: &TcpStream, is_cdn: bool) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines.take_while(|line| !line.is_empty());
    let headers =
        headers.filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())));
    Some(Request { is_cdn, method, path, headers: headers.collect() })
}

fn range(request: &Request) -> Option<usize> {
    request.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// `%2F` and its like.
fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

/// The demo model with its weights in so many files.
pub fn sharded(count: usize) -> Repository {
    let mut repository = demo();
    let weights = repository.file("model.safetensors").to_vec();
    repository.files.retain(|(name, _)| name != "model.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let mut shards: Vec<Vec<_>> = vec![Vec::new(); count];
    for (index, tensor) in tensors.tensors().into_iter().enumerate() {
        shards[index % count].push(tensor);
    }
    let mut map = serde_json::Map::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        repository.set(&name, safetensors::serialize(shard, None).unwrap());
    }
    repository.set("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
    repository
}
