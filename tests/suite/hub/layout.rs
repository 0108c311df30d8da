//! The cache is Python's: `tests/fixtures/make_hub_cache.py` has recorded what its client makes of the stand-in, and checks that it
//! reads what is made here.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, stdin};
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;
use walkdir::WalkDir;

use super::stand_in::{COMMIT, Hub, Repository, demo, etag};
use super::{mlx_lm, options, pull, stdout};
use crate::fixture;

/// For the script.
#[test]
#[ignore = "serves until standard input ends"]
fn serve() {
    println!("endpoint: {}", Hub::with_demo().endpoint());
    stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn recorded(tree: &str) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(fixture("hub_cache.json")).unwrap();
    let mut recorded: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(recorded[tree].take()).unwrap()
}

/// As the script describes it.
fn tree(cache: &Path) -> BTreeMap<String, Value> {
    let describe = |entry: walkdir::DirEntry| {
        let name = entry.path().strip_prefix(cache).unwrap().to_str().unwrap().to_owned();
        let value = if entry.path_is_symlink() {
            serde_json::json!({"link": fs::read_link(entry.path()).unwrap()})
        } else if entry.file_type().is_dir() {
            serde_json::json!({"folder": true})
        } else if name.starts_with("models--org--demo/refs/") {
            serde_json::json!({"text": fs::read_to_string(entry.path()).unwrap()})
        } else {
            serde_json::json!({"size": entry.metadata().unwrap().len()})
        };
        (name, value)
    };
    WalkDir::new(cache).min_depth(1).into_iter().map(|entry| describe(entry.unwrap())).collect()
}

/// Make a cache as it was recorded; the bytes are the repository's.
fn make(tree: &BTreeMap<String, Value>, repository: &Repository, cache: &Path) {
    let mut blobs: BTreeMap<String, &[u8]> = BTreeMap::new();
    for (name, bytes) in &repository.files {
        blobs.insert(etag(name, bytes), bytes);
    }
    let weights = repository.file("model.safetensors");
    for (name, value) in tree {
        let path = cache.join(name);
        if value["folder"] == true {
            fs::create_dir_all(&path).unwrap();
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let last = path.file_name().unwrap().to_str().unwrap();
        match (value["link"].as_str(), value["text"].as_str()) {
            (Some(target), _) => symlink(target, &path).unwrap(),
            (_, Some(text)) => fs::write(&path, text).unwrap(),
            _ if value["size"] == 0 => fs::write(&path, "").unwrap(),
            _ => fs::write(&path, blobs.get(last).copied().unwrap_or(weights)).unwrap(),
        }
    }
}

#[test]
fn what_is_downloaded_lies_where_python_puts_it() {
    let (hub, scratch) = (Hub::with_demo(), tempfile::tempdir().unwrap());
    pull(options(&hub, scratch.path()), "org/demo").unwrap();
    pull(options(&hub, scratch.path()), "org/demo@v1").unwrap();
    let mut ours = tree(scratch.path());
    // It tells backups whose cache it is, in words of one's own.
    assert!(ours.remove("CACHEDIR.TAG").is_some());
    assert_eq!(ours, recorded("plain"));
    for (path, value) in &ours {
        if value.get("link").is_some() {
            assert!(fs::canonicalize(scratch.path().join(path)).unwrap().is_file(), "{path} leads nowhere");
        }
    }
}

#[test]
fn what_python_downloaded_is_found() {
    for layout in ["plain", "shared"] {
        let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
        make(&recorded(layout), &demo(), scratch.path());
        for model in ["org/demo", "org/demo@v1", &format!("org/demo@{COMMIT}")] {
            let args = ["-m", model, "--offline", "What colour is the sky?"];
            assert_eq!(stdout(mlx_lm(&hub, scratch.path(), &args)), "The sky is blue.", "{layout}: {model}");
        }
        assert!(hub.requests().is_empty());
    }
}

#[test]
fn what_python_downloaded_is_removed() {
    for layout in ["plain", "shared"] {
        let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
        let repository = demo();
        make(&recorded(layout), &repository, scratch.path());
        let said = stdout(mlx_lm(&hub, scratch.path(), &["rm", "org/demo"]));
        assert!(said.starts_with("removed org/demo: 3.") && said.ends_with(" MiB freed\n"), "{layout}: {said}");
        let mut left: Vec<String> = tree(scratch.path()).into_keys().collect();
        left.retain(|name| name != ".locks" && !name.ends_with(".lock"));
        let store: &[&str] =
            if layout == "shared" { &["blobs", "blobs/.huggingface-shared-blobs", "blobs/ab"] } else { &[] };
        assert_eq!(left, store, "{layout}");
    }
}

#[test]
fn what_other_models_share_stays() {
    let (hub, scratch) = (Hub::start(), tempfile::tempdir().unwrap());
    let repository = demo();
    make(&recorded("shared"), &repository, scratch.path());
    let shared = scratch.path().join("blobs/ab").join("ab".repeat(32));
    let other = scratch.path().join("models--org--other/blobs");
    fs::create_dir_all(&other).unwrap();
    let link = other.join(etag("model.safetensors", repository.file("model.safetensors")));
    symlink(format!("../../blobs/ab/{}", "ab".repeat(32)), &link).unwrap();
    let users = shared.with_extension("refs");
    let line = format!("models--org--other/blobs/{}\n", link.file_name().unwrap().to_str().unwrap());
    fs::write(&users, fs::read_to_string(&users).unwrap() + "../outside\n" + &line).unwrap();
    let said = stdout(mlx_lm(&hub, scratch.path(), &["rm", "org/demo"]));
    assert!(said.ends_with(" KiB freed\n"), "the weights are in use: {said}");
    assert!(fs::metadata(&link).unwrap().is_file());
    stdout(mlx_lm(&hub, scratch.path(), &["rm", "org/other"]));
    assert!(!shared.exists() && !users.exists());
}
