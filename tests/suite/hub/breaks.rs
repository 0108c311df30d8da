//! Downloads that break off, and what comes damaged: the cache stays usable, and the next download goes on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mlx_lm::error::HubProblem;
use mlx_lm::hub::{Event, Events, Hub as Client, HubOptions};
use mlx_lm::{Checkpoint, Error, Model};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stand_in::{COMMIT, Hub, Kind, demo, etag, sha256, sharded};
use super::{mlx_lm, name, options, problem, program, pull, pull_watched, stdout};

const WEIGHTS: &str = "model.safetensors";

fn weights() -> Vec<u8> {
    demo().file(WEIGHTS).to_vec()
}

fn blobs(cache: &Path) -> std::path::PathBuf {
    cache.join("models--org--demo/blobs")
}

fn partial(cache: &Path) -> std::path::PathBuf {
    blobs(cache).join(format!("{}.incomplete", sha256(&weights())))
}

/// Where the requests for the weights began.
fn ranges(hub: &Hub) -> Vec<Option<String>> {
    hub.downloads(&weights()).into_iter().map(|request| request.headers.get("range").cloned()).collect()
}

fn is_whole(cache: &Path) {
    let snapshot = cache.join("models--org--demo/snapshots").join(COMMIT);
    assert_eq!(fs::read(snapshot.join(WEIGHTS)).unwrap(), weights());
    assert!(!partial(cache).exists());
    Model::check(&Checkpoint::open(snapshot).unwrap()).unwrap();
}

#[test]
fn a_lost_connection_is_taken_up_where_it_was_lost() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    hub.fault(&sha256(&weights()), 2, Kind::Cut(1_000_000));
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    assert_eq!(ranges(&hub), [None, Some("bytes=1000000-".to_owned()), Some("bytes=2000000-".to_owned())]);
    is_whole(scratch.path());
}

#[test]
fn where_it_stays_lost_what_came_is_kept() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    hub.fault(&sha256(&weights()), 1, Kind::Cut(1234));
    hub.fault(&sha256(&weights()), 1, Kind::Cut(0));
    let HubProblem::CutOff { file, bytes: 1234, size, .. } = problem(pull(options(&hub, scratch.path()), "org/demo"))
    else {
        panic!("another problem")
    };
    assert_eq!((file.as_str(), size), (WEIGHTS, weights().len() as u64));
    assert_eq!(fs::read(partial(scratch.path())).unwrap(), weights()[..1234]);
    let snapshot = scratch.path().join("models--org--demo/snapshots").join(COMMIT);
    assert!(!snapshot.join(WEIGHTS).exists() && !scratch.path().join("models--org--demo/refs").exists());

    let mut first = None;
    let mut on_event = |event: Event| match event {
        Event::Begin { files } => assert_eq!(files.iter().filter(|file| file.name == WEIGHTS).count(), 1),
        Event::Progress { bytes, .. } if first.is_none() => first = Some(bytes),
        _ => {}
    };
    pull_watched(options(&hub, scratch.path()), "org/demo", &mut on_event).unwrap();
    assert_eq!(first, Some(1234), "what is here counts as done");
    assert_eq!(ranges(&hub).last().unwrap().as_deref(), Some("bytes=1234-"));
    is_whole(scratch.path());
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole() {
    for kind in [Kind::NoRange, Kind::WrongRange] {
        let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
        hub.fault(&sha256(&weights()), 1, Kind::Cut(5000));
        hub.fault(&sha256(&weights()), 1, kind);
        pull(options(&hub, scratch.path()), "org/demo").unwrap();
        is_whole(scratch.path());
    }
}

#[test]
fn damage_gets_no_name() {
    for (file, path, kind) in [
        (WEIGHTS, sha256(&weights()), "SHA-256"),
        (
            "tokenizer.json",
            "resolve-cache/models/org/demo/0123456789abcdef0123456789abcdef01234567/tokenizer.json".to_owned(),
            "git SHA-1",
        ),
    ] {
        let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
        hub.fault(&path, 1, Kind::Damage);
        let found = problem(pull(options(&hub, scratch.path()), "org/demo"));
        let HubProblem::WrongHash { file: of, kind: of_kind, found, expected } = found else { panic!("{found}") };
        assert_eq!((of.as_str(), of_kind), (file, kind));
        assert_eq!(expected, etag(file, demo().file(file)));
        assert_ne!(found, expected);
        let snapshot = scratch.path().join("models--org--demo/snapshots").join(COMMIT);
        let left = [
            snapshot.join(file),
            blobs(scratch.path()).join(&expected),
            blobs(scratch.path()).join(format!("{expected}.incomplete")),
        ];
        assert!(left.iter().all(|path| path.symlink_metadata().is_err()), "{file}");
        pull(options(&hub, scratch.path()), "org/demo").unwrap();
        is_whole(scratch.path());
    }
}

#[test]
fn a_damaged_beginning_is_thrown_away() {
    for junk in [vec![7; 1000], vec![7; weights().len()], vec![7; weights().len() + 1]] {
        let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
        fs::create_dir_all(blobs(scratch.path())).unwrap();
        fs::write(partial(scratch.path()), junk).unwrap();
        pull(options(&hub, scratch.path()), "org/demo").unwrap();
        is_whole(scratch.path());
    }
}

#[test]
fn a_blob_that_is_cut_off_is_downloaded_again() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    fs::write(blobs(scratch.path()).join(sha256(&weights())), "short").unwrap();
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    is_whole(scratch.path());
}

#[test]
fn a_download_ends_when_it_is_asked_to() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    hub.fault(&sha256(&weights()), 1, Kind::Hold(3000));
    let stop = Arc::new(AtomicBool::new(false));
    let mut on_event =
        |event: Event| stop.store(matches!(event, Event::Progress { bytes: 3000, .. }), Ordering::Relaxed);
    let client = Client::new(options(&hub, scratch.path()));
    let pulled = client.pull(&name("org/demo"), &mut Events { on_event: &mut on_event, stop: &stop });
    assert!(matches!(pulled, Err(Error::Interrupted)), "{pulled:?}");
    assert_eq!(fs::read(partial(scratch.path())).unwrap(), weights()[..3000]);
    hub.open_gate();
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    is_whole(scratch.path());
}

#[test]
fn a_process_that_is_ended_leaves_a_beginning() {
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
        hub.fault(&sha256(&weights()), 1, Kind::Hold(300_000));
        let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, scratch.path());
        let mut process =
            command.args(["pull", "org/demo"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        hub.wait_held(1);
        while fs::metadata(partial(scratch.path())).map_or(0, |found| found.len()) < 300_000 {
            thread::yield_now();
        }
        kill(Pid::from_raw(process.id() as i32), signal).unwrap();
        assert_eq!(process.wait().unwrap().code(), code);
        let listed = stdout(mlx_lm(&hub, scratch.path(), &["list"]));
        assert!(
            listed.contains("org/demo  01234567") && listed.contains("no: model.safetensors is not here"),
            "{listed}"
        );
        stdout(mlx_lm(&hub, scratch.path(), &["pull", "org/demo"]));
        assert_eq!(ranges(&hub), [None, Some("bytes=300000-".to_owned())]);
        is_whole(scratch.path());
    }
}

#[test]
fn two_processes_download_a_file_once() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    hub.fault(&sha256(&weights()), 1, Kind::Hold(1000));
    let spawn = || {
        let mut command = program(env!("CARGO_BIN_EXE_mlx_lm"), &hub, scratch.path());
        command.args(["pull", "org/demo"]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let first = spawn();
    hub.wait_held(1);
    let mut second = spawn();
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "another process is downloading model.safetensors; waiting for it"));
    let refused = super::stderr(mlx_lm(&hub, scratch.path(), &["rm", "org/demo"]));
    assert_eq!(refused, "error: org/demo: another process is downloading it\n");
    hub.open_gate();
    assert_eq!(lines.last().unwrap(), "  model.safetensors 3.26 MiB");
    let paths = [first, second].map(|process| stdout(process.wait_with_output().unwrap()));
    assert_eq!(paths[0], paths[1]);
    assert_eq!(hub.downloads(&weights()).len(), 1);
    is_whole(scratch.path());
}

#[test]
fn several_files_come_at_once() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    let repository = sharded(3);
    for (_, bytes) in repository.files.iter().filter(|(name, _)| name.starts_with("model-")) {
        hub.fault(&sha256(bytes), 1, Kind::Hold(10));
    }
    hub.put("org/sharded", repository);
    thread::scope(|scope| {
        let pulling = scope.spawn(|| pull(options(&hub, scratch.path()), "org/sharded"));
        hub.wait_held(3);
        hub.open_gate();
        let snapshot = pulling.join().unwrap().unwrap();
        Model::check(&Checkpoint::open(snapshot).unwrap()).unwrap();
    });
}

#[test]
fn a_hub_that_is_busy_is_asked_again() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let later = |seconds: &str| Kind::Status(429, vec![("Retry-After", seconds.to_owned())]);
    hub.fault("/api/models", 2, later("0"));
    hub.fault("/resolve/", 3, Kind::Status(429, vec![("RateLimit", "\"resolvers\";r=0;t=0".to_owned())]));
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    is_whole(scratch.path());

    hub.fault("/api/models", 1, later("3600"));
    let host = "127.0.0.1".to_owned();
    assert_eq!(
        problem(pull(options(&hub, scratch.path()), "org/demo")),
        HubProblem::RateLimited { host, seconds: 3600 }
    );

    hub.fault("/api/models", 1, Kind::Status(503, Vec::new()));
    pull(HubOptions { patience: Duration::from_secs(60), ..options(&hub, scratch.path()) }, "org/demo").unwrap();
    hub.fault("/api/models", 1, Kind::Status(503, Vec::new()));
    let found = problem(pull(options(&hub, scratch.path()), "org/demo"));
    assert!(matches!(found, HubProblem::Refused { status: 503, .. }), "{found}");
}

/// As where the disk is full.
#[test]
fn a_file_that_cannot_be_written_is_an_error_and_leaves_the_cache_usable() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    let mut limited = program("sh", &hub, scratch.path());
    limited.args(["-c", r#"ulimit -f 1000; exec "$0" "$@""#, env!("CARGO_BIN_EXE_mlx_lm"), "pull", "org/demo"]);
    let said = super::stderr(limited.output().unwrap());
    assert!(said.contains(".incomplete: File too large"), "{said}");
    stdout(mlx_lm(&hub, scratch.path(), &["pull", "org/demo"]));
    is_whole(scratch.path());
    assert!(ranges(&hub)[1].is_some(), "what was written is used");
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_downloaded() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    let mut repository = demo();
    repository.files.retain(|(name, _)| name != WEIGHTS);
    let lfs = serde_json::json!({"sha256": "0".repeat(64), "size": 1u64 << 60, "pointerSize": 134});
    repository.pretended =
        vec![serde_json::json!({"rfilename": WEIGHTS, "size": 1u64 << 60, "blobId": "0".repeat(40), "lfs": lfs})];
    hub.put("org/demo", repository);
    let found = problem(pull(options(&hub, scratch.path()), "org/demo"));
    let HubProblem::NoSpace { needed, free, .. } = found else { panic!("{found}") };
    assert!(needed > 1 << 60 && free > 0 && free < 1 << 60);
    assert!(!hub.requests().iter().any(|request| request.is_cdn || request.path.contains("tokenizer")));
}
