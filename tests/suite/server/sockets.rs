//! Clients that go away, servers that end, bytes that are no requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Server, until, user};
use crate::compute_on_cpu;

/// A stream that does not end by itself, after its first tokens.
fn endless(server: &Server) -> BufReader<TcpStream> {
    let body = json!({"prompt": "Once", "max_tokens": 100_000_000, "ignore_eos": true, "stream": true});
    let mut stream = server.send("POST", "/v1/completions", &[], &body.to_string());
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "it ended");
    }
    stream
}

/// Catches: sequences of clients that went away, places in the queue that are never given back.
#[test]
fn a_client_that_goes_away_makes_room_and_a_full_queue_is_told() {
    compute_on_cpu();
    let server = Server::start(&["--parallel", "1", "--queue", "0"]);
    let short = json!({"prompt": "Once", "max_tokens": 1});
    for _ in 0..3 {
        let stream = endless(&server);
        let full = server.post("/v1/completions", &short);
        assert!(full.error().0 == 429 && full.headers.contains("retry-after: 1"), "{full:?}");
        assert_eq!(server.get("/health").status, 200);
        drop(stream);
        server.wait_for("mlx_lm_running_sequences", 0.0);
        until("there is room again", || server.post("/v1/completions", &short).status == 200);
    }
    assert_eq!(server.metric(r#"mlx_lm_sequences_total{reason="abandoned"}"#), 3.0);
    // So does one that has not sent all, or waits for an answer that is not streamed.
    let mut half = server.connect();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{").unwrap();
    let whole = json!({"prompt": "Once", "max_tokens": 100_000_000, "ignore_eos": true});
    drop(half);
    // The place of the one before is free soon.
    let waiting = std::cell::RefCell::new(None);
    until("it begins", || {
        let stream = server.send("POST", "/v1/completions", &[], &whole.to_string());
        *waiting.borrow_mut() = Some(stream);
        server.metric("mlx_lm_running_sequences") == 1.0
    });
    drop(waiting);
    server.wait_for("mlx_lm_running_sequences", 0.0);
}

#[test]
fn an_end_lets_requests_under_way_finish_and_takes_no_others() {
    // MLX's own operations are slow on a CPU.
    let tokens = if compute_on_cpu() { 3000 } else { 40 };
    let server = Server::start(&["--drain-seconds", "600"]);
    let body = json!({"prompt": "Once", "max_tokens": tokens, "ignore_eos": true, "stream": true, "temperature": 1});
    let mut stream = server.send("POST", "/v1/completions", &[], &body.to_string());
    let mut head = String::new();
    while !head.contains("data: ") {
        assert!(stream.read_line(&mut head).unwrap() > 0);
    }
    server.signal(Signal::SIGTERM);
    until("it ends", || server.get("/health").status == 503);
    let refused = server.post("/v1/completions", &body);
    assert!(refused.error().0 == 503 && refused.headers.contains("retry-after"), "{refused:?}");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""finish_reason":"length""#) && rest.ends_with("data: [DONE]\n\n"), "{rest}");
    let (code, said) = server.end();
    assert!(code == Some(0) && said.contains("ending"), "{code:?}: {said}");

    let server = Server::start(&["--drain-seconds", "0"]);
    let mut stream = endless(&server);
    server.signal(Signal::SIGINT);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    let last = rest.trim().lines().last().unwrap().strip_prefix("data: ").unwrap();
    assert_eq!(serde_json::from_str::<Value>(last).unwrap()["error"]["type"], "server_error", "{last}");
    assert_eq!(server.end().0, Some(0));
}

/// Whatever comes over a socket, the server goes on.
#[test]
fn bytes_that_are_no_request_do_no_harm() {
    compute_on_cpu();
    let server = Server::start(&["--default", "max_tokens=2"]);
    let chat = json!({"messages": user("Hi")}).to_string();
    let header = format!("X: {}\r\n", "y".repeat(100_000));
    let many: String = (0..1000).map(|i| format!("X-{i}: y\r\n")).collect();
    let post = |headers: &str, body: &str| {
        format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{body}")
    };
    let bad: Vec<Vec<u8>> = vec![
        b"\0\x01\x02\xff\xfe".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        b"GET".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(100_000)).into(),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n").into(),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n").into(),
        b"GET /v1/models/%00%ff%0d%0aX:%20y HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: example.com\r\nConnection: close\r\n\r\n".to_vec(),
        post("Content-Length: 99999999999999999999\r\n", &chat).into(),
        post("Content-Length: -1\r\n", &chat).into(),
        post("Content-Length: 10\r\nContent-Length: 20\r\n", &chat).into(),
        post("Content-Length: 10\r\nTransfer-Encoding: chunked\r\n", &chat).into(),
        post("Transfer-Encoding: chunked\r\n", "zz\r\n").into(),
        post("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\n").into(),
        [post("Content-Length: 20\r\n", "").as_bytes(), &[0xff; 20]].concat(),
    ];
    for bytes in &bad {
        for half in [false, true] {
            let mut stream = server.connect();
            let _ = stream.write_all(bytes);
            if half {
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    }
    // Pipelined requests are answered in turn.
    let mut stream = server.connect();
    let one = post(&format!("Content-Length: {}\r\n", chat.len()), &chat);
    let last = post(&format!("Content-Length: {}\r\nConnection: close\r\n", chat.len()), &chat);
    stream.write_all(format!("{one}{one}{last}").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    // Idle connections keep nobody out.
    let idle: Vec<TcpStream> = (0..300).map(|_| server.connect()).collect();
    assert_eq!(server.ask("POST", "/v1/chat/completions", &[], &chat).status, 200);
    drop(idle);
    assert_eq!(server.get("/health").ok()["status"], "ok");
    server.wait_for("mlx_lm_running_sequences", 0.0);
}
