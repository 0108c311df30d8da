//! `mlx_lm serve`: what it answers is what `mlx_lm` prints, whoever else asks; what it cannot do it says; and whatever clients do, it
//! stays.

mod answers;
mod models;
mod refusals;
mod sockets;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::unpack_demo;

/// A server of its own, which is killed when this is dropped.
pub struct Server {
    pub process: Child,
    stderr: BufReader<ChildStderr>,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
        command.args(["serve", "--port", "0"]).args(args);
        Server::of(command)
    }

    /// Run this command, which ends up as a server.
    pub fn of(mut command: Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the server ended");
            if let Some((_, rest)) = line.split_once("listening at http://") {
                break rest.split(',').next().unwrap().parse().unwrap();
            }
        };
        Server { process, stderr, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        // A server that hangs fails the test.
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Send a request of HTTP/1.0, whose answer ends with the connection.
    fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> BufReader<TcpStream> {
        let mut stream = self.connect();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let head = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Length: {}\r\n", self.address, body.len());
        stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).unwrap();
        BufReader::new(stream)
    }

    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        Answer::read(self.send(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], &body.to_string())
    }

    pub fn chat(&self, body: &Value) -> Answer {
        self.post("/v1/chat/completions", body)
    }

    /// The value of a metric, with its labels if it has such; 0 where it was not counted yet.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0.0)
    }

    fn wait_for(&self, name: &str, value: f64) {
        until(name, || self.metric(name) == value);
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Exit code, and what else was said.
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.process.wait().unwrap().code();
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (code, said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: String,
    body: String,
}

impl Answer {
    fn read(mut stream: BufReader<TcpStream>) -> Self {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, headers: head.to_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The JSON of an answer that is good.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// The chunks of a stream, which is complete.
    fn chunks(&self) -> Vec<Value> {
        assert!(self.status == 200 && self.headers.contains("content-type: text/event-stream"), "{self:?}");
        let data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let (last, chunks) = data.split_last().unwrap();
        assert_eq!(*last, "[DONE]");
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }

    /// The status, and the field that the error is about.
    fn error(&self) -> (u16, Option<String>) {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        (self.status, error["param"].as_str().map(str::to_owned))
    }
}

/// Ask again and again.
fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !is() {
        assert!(Instant::now() < end, "{what}: not in two minutes");
        thread::yield_now();
    }
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// `{…}` with the fields of another.
fn with(mut body: Value, fields: &Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// What `mlx_lm` prints.
fn mlx_lm(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mlx_lm")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// Two models, of which the second has a template with calls and reasoning.
fn two_models(root: &Path) -> [String; 2] {
    let (first, second) = (root.join("first"), root.join("second"));
    unpack_demo(&first);
    unpack_demo(&second);
    fs::write(second.join("chat_template.jinja"), TEMPLATE).unwrap();
    [first.to_str().unwrap().to_owned(), format!("tools={}", second.display())]
}

const TEMPLATE: &str = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\
    {% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}\
    {% if tools %}{{ tools | tojson }}{% endif %}<|assistant|>\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}";
