//! Packs: what goes in comes out, damage is found, and no pack does harm. Made packs are read by `Pack`; packs that no
//! writer of ours would make come from [`raw_pack`], which follows the specification on its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlx_lm::mlxpack::{Damage, Pack, Plan, Summary, inspect};
use mlx_lm::{Checkpoint, Error, Model, Watch};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::loading::logits;
use crate::{fixture, unpack_demo};

const ALL: &[&str] = &["**"];

/// Pack a directory without asking whether it is a model.
fn pack_any(input: &Path, include: &[&str], output: &Path) -> mlx_lm::Result<u64> {
    let include: Vec<String> = include.iter().map(|&glob| glob.to_owned()).collect();
    Plan::new(&Checkpoint::open(input)?, Summary::default(), &include)?.write(output, true, &mut Watch::none())
}

fn write_files<'a>(root: &Path, files: impl IntoIterator<Item = (&'a String, &'a Vec<u8>)>) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// All files below `root`, by relative path.
fn read_files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

fn header_of(pack: &[u8]) -> Value {
    let length = u64::from_le_bytes(pack[16..24].try_into().unwrap()) as usize;
    serde_json::from_slice(&pack[56..56 + length]).unwrap()
}

/// A pack with this header, right hash included, and `rest` after it.
pub fn raw_pack(json: &[u8], rest: &[u8]) -> Vec<u8> {
    let start = [&b"\x89MLXP\r\n\x1a"[..], &1u64.to_le_bytes(), &(json.len() as u64).to_le_bytes()].concat();
    let hash = Sha256::new().chain_update(&start).chain_update(json).finalize();
    [&start, &hash[..], json, rest].concat()
}

/// A small good pack: three files, one of them empty, `safetensors` in a folder.
fn small_pack() -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let input = scratch.path().join("in");
    let tensor = json!({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).to_string();
    let weights = [&(tensor.len() as u64).to_le_bytes()[..], tensor.as_bytes(), &[7; 8]].concat();
    let files = [("config.json", b"{}".to_vec()), ("empty", vec![]), ("more/x.safetensors", weights)];
    write_files(&input, &BTreeMap::from(files.map(|(name, bytes)| (name.to_owned(), bytes))));
    let output = scratch.path().join("x.mlxpack");
    pack_any(&input, ALL, &output).unwrap();
    fs::read(output).unwrap()
}

fn open(bytes: Vec<u8>) -> mlx_lm::Result<Pack> {
    Pack::from_bytes("x.mlxpack", bytes)
}

fn part() -> impl Strategy<Value = String> {
    "f[a-zA-Z0-9_ .+=-]{0,6}[a-z0-9]"
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let sizes = prop_oneof![Just(0), Just(1), Just(4095), Just(4096), Just(4097), 2usize..10_000];
    (sizes, any::<u8>()).prop_map(|(size, salt)| (0..size).map(|i| (i / 7) as u8 ^ salt).collect())
}

/// Files of which none is the folder of another.
fn files() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
    let name = prop_oneof![part(), (part(), part()).prop_map(|(folder, name)| format!("{folder}.d/{name}"))];
    proptest::collection::btree_map(name, contents(), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out_and_the_same_files_give_the_same_bytes(files in files()) {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        write_files(&path("in"), &files);
        write_files(&path("again"), files.iter().rev());
        let length = pack_any(&path("in"), ALL, &path("a.mlxpack")).unwrap();
        pack_any(&path("again"), ALL, &path("b.mlxpack")).unwrap();
        let bytes = fs::read(path("a.mlxpack")).unwrap();
        prop_assert_eq!(bytes.len() as u64, length);
        prop_assert!(bytes == fs::read(path("b.mlxpack")).unwrap());
        let pack = Pack::open(path("a.mlxpack")).unwrap();
        prop_assert_eq!(pack.verify(&mut Watch::none()).unwrap(), &[]);
        pack.extract(&path("out"), None, false, &mut Watch::none()).unwrap();
        prop_assert_eq!(read_files(&path("out")), files);
    }

    /// A header that hashes right and says anything: it is refused, or all it says lies within the pack.
    #[test]
    fn no_header_leads_out_of_the_pack(
        edits in proptest::collection::vec((0usize..10_000, prop_oneof![Just("9"), Just("-"), Just("\""), Just("../"), Just("1e9"), Just(","), Just("")]), 1..4),
    ) {
        let good = small_pack();
        let length = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
        let mut json = String::from_utf8(good[56..56 + length].to_vec()).unwrap().trim_end().to_owned();
        for (at, text) in edits {
            let at = at % json.len();
            if json.is_char_boundary(at) && json.is_char_boundary(at + 1) {
                json.replace_range(at..at + 1, text);
            }
        }
        json.push_str(&" ".repeat(length - json.len().min(length)));
        exercise(&raw_pack(json.as_bytes(), &good[56 + length..]));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), keep in 0usize..64) {
        let good = small_pack();
        let keep = keep.min(bytes.len());
        bytes[..keep].copy_from_slice(&good[..keep]);
        exercise(&bytes);
    }
}

/// What holds for any bytes at all. The fuzz target runs it too.
fn exercise(bytes: &[u8]) {
    include!("../../fuzz/exercise.rs")
}

/// What the fuzzer found interesting, and by hand: each is refused with a message, or is a pack like any other.
#[test]
fn seeds_of_the_fuzzer() {
    let seeds: Vec<_> = fs::read_dir(fixture("mlxpack")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(seeds.len() >= 10, "{seeds:?}");
    for seed in seeds {
        exercise(&fs::read(seed).unwrap());
    }
}

#[test]
fn a_reader_written_from_the_specification_agrees() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    unpack_demo(&path("in"));
    // A file of several pieces, one with a header of odd length, one that is empty, and odd names.
    let long: Vec<u8> = (0..(33 << 20) + 5u32).map(|i| (i ^ (i >> 11)) as u8).collect();
    fs::write(path("in/long"), long).unwrap();
    fs::copy(fixture("checkpoints/llama-bf16/model.safetensors"), path("in/odd.safetensors")).unwrap();
    fs::create_dir(path("in/a {b} [c]")).unwrap();
    fs::write(path("in/a {b} [c]/~!@#$%^&()_+`-=;',.x"), "").unwrap();
    pack_any(&path("in"), ALL, &path("x.mlxpack")).unwrap();
    let read = || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mlxpack_reader.py");
        let output = Command::new("python3").arg(script).args([path("x.mlxpack"), path("in")]).output();
        let output = output.expect("python3 runs; `make setup` needs it too");
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (agrees, said) = read();
    assert!(agrees, "{said}");
    assert_eq!(said.lines().count(), read_files(&path("in")).len(), "{said}");

    let mut bytes = fs::read(path("x.mlxpack")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path("x.mlxpack"), bytes).unwrap();
    let (agrees, said) = read();
    assert!(!agrees && said.contains("model.safetensors differs"), "{said}");
}

#[test]
fn tensor_data_and_other_files_begin_at_pages() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("x.mlxpack");
    for model in ["llama-bf16", "llama-sharded", "llama-chat"] {
        pack_any(&fixture("checkpoints").join(model), &[], &output).unwrap();
        let bytes = fs::read(&output).unwrap();
        let pack = Pack::open(&output).unwrap();
        for entry in pack.entries() {
            let header = match entry.name.ends_with(".safetensors") {
                true => 8 + u64::from_le_bytes(bytes[entry.offset as usize..][..8].try_into().unwrap()),
                false => 0,
            };
            assert_eq!((entry.offset + header) % 4096, 0, "{model}: {}", entry.name);
        }
    }
}

/// Name, what is changed in the header of [`small_pack`], what the message must contain.
type Lie = (&'static str, fn(&mut Value), &'static str);

const LIES: &[Lie] = &[
    ("parent folder", |h| h["files"][0]["name"] = json!("../config.json"), "not a name"),
    ("parent folder within", |h| h["files"][0]["name"] = json!("a/../../b"), "not a name"),
    ("this folder", |h| h["files"][0]["name"] = json!("./b"), "not a name"),
    ("absolute", |h| h["files"][0]["name"] = json!("/etc/passwd"), "not a name"),
    ("backslash", |h| h["files"][0]["name"] = json!("..\\b"), "not a name"),
    ("drive letter", |h| h["files"][0]["name"] = json!("C:b"), "not a name"),
    ("NUL", |h| h["files"][0]["name"] = json!("a\0b"), "not a name"),
    ("terminal escape", |h| h["files"][0]["name"] = json!("a\u{1b}[2Jb"), "not a name"),
    ("line end", |h| h["files"][0]["name"] = json!("a\nb"), "not a name"),
    ("empty name", |h| h["files"][0]["name"] = json!(""), "not a name"),
    ("empty part", |h| h["files"][0]["name"] = json!("a//b"), "not a name"),
    ("folder only", |h| h["files"][0]["name"] = json!("a/"), "not a name"),
    ("dot at the end", |h| h["files"][0]["name"] = json!("a."), "not a name"),
    ("space at the end", |h| h["files"][0]["name"] = json!("a "), "not a name"),
    ("unfinished file", |h| h["files"][0]["name"] = json!(".empty.mlxpack-partial"), "not a name"),
    ("long part", |h| h["files"][0]["name"] = json!("x".repeat(201)), "not a name"),
    ("long name", |h| h["files"][0]["name"] = json!(["x"; 600].join("/")), "not a name"),
    ("twice", |h| h["files"][0]["name"] = json!("empty"), "one name"),
    ("twice but for case", |h| h["files"][0]["name"] = json!("EMPTY"), "one name"),
    ("not ASCII", |h| h["files"][0]["name"] = json!("é"), "not a name"),
    ("pattern", |h| h["files"][0]["name"] = json!("a*"), "not a name"),
    ("device", |h| h["files"][0]["name"] = json!("a/Nul.txt"), "not a name"),
    ("unfinished file, loudly", |h| h["files"][0]["name"] = json!(".EMPTY.MLXPACK-PARTIAL"), "not a name"),
    ("file and folder", |h| h["files"][0]["name"] = json!("MORE"), "folder of"),
    ("name not a string", |h| h["files"][0]["name"] = json!(7), "expected a string"),
    ("no name", |h| drop(h["files"][0].as_object_mut().unwrap().remove("name")), "name"),
    ("no hash", |h| h["files"][0]["sha256"] = json!([]), "0 hashes"),
    ("too many hashes", |h| h["files"][1]["sha256"] = h["files"][0]["sha256"].clone(), "1 hashes"),
    ("short hash", |h| h["files"][0]["sha256"] = json!(["abcd"]), "header"),
    ("hash not hexadecimal", |h| h["files"][0]["sha256"] = json!(["z".repeat(64)]), "header"),
    ("negative offset", |h| h["files"][0]["offset"] = json!(-4096), "header"),
    ("fractional offset", |h| h["files"][0]["offset"] = json!(0.5), "header"),
    ("offset in the header", |h| h["files"][0]["offset"] = json!(0), "within what lies before"),
    (
        "offset in another file",
        |h| h["files"][2]["offset"] = h["files"][0]["offset"].clone(),
        "within what lies before",
    ),
    ("offset past the end", |h| h["files"][2]["offset"] = json!(1u64 << 40), "beyond the end"),
    ("offset overflows", |h| h["files"][2]["offset"] = json!(u64::MAX), "beyond the end"),
    ("length past the end", |h| h["files"][0]["length"] = json!(1u64 << 40), "beyond the end"),
    ("length overflows", |h| h["files"][0]["length"] = json!(u64::MAX), "beyond the end"),
    ("bytes that nobody owns", |h| drop(h["files"].as_array_mut().unwrap().remove(2)), "header describes"),
    ("a page that nobody owns", |h| drop(h["files"].as_array_mut().unwrap().remove(0)), "unused bytes"),
    ("files out of order", |h| h["files"].as_array_mut().unwrap().reverse(), "unused bytes"),
    ("no files", |h| drop(h.as_object_mut().unwrap().remove("files")), "files"),
    ("files an object", |h| h["files"] = json!({}), "header"),
    ("too many files", |h| h["files"] = json!(vec![h["files"][1].clone(); 10_001]), "at most 10000"),
    ("file a list", |h| h["files"][0] = json!(["a", 4096, 2, []]), "an object"),
    ("hash in capitals", |h| h["files"][0]["sha256"] = json!(["AB".repeat(32)]), "lower-case"),
];

#[test]
fn a_header_that_lies_is_refused() {
    let good = small_pack();
    let length = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    let mut wrong = Vec::new();
    for (name, change, expected) in LIES {
        let mut header = header_of(&good);
        change(&mut header);
        let mut json = header.to_string();
        json += &" ".repeat(length.saturating_sub(json.len()));
        let refused = open(raw_pack(json.as_bytes(), &good[56 + length..]));
        let said = refused.err().map_or("nothing".to_owned(), |error| error.to_string());
        if !said.contains(expected) || !said.starts_with("x.mlxpack: not a valid .mlxpack: ") {
            wrong.push(format!("{name}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_header_that_says_more_is_read() {
    let good = small_pack();
    let length = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    let mut header = header_of(&good);
    header["licence"] = json!("MIT");
    header["files"][0]["mode"] = json!(0o644);
    header["summary"] = json!({"hidden_size": "large", "experts": {"of": [8]}});
    let mut json = header.to_string();
    json += &" ".repeat(length - json.len());
    let pack = open(raw_pack(json.as_bytes(), &good[56 + length..])).unwrap();
    assert_eq!(pack.verify(&mut Watch::none()).unwrap(), &[]);
}

#[test]
fn the_start_is_checked_before_anything_is_allocated() {
    let good = small_pack();
    let with = |at: usize, bytes: &[u8]| {
        let mut pack = good.clone();
        pack[at..at + bytes.len()].copy_from_slice(bytes);
        open(pack).unwrap_err().to_string()
    };
    for (said, expected) in [
        (with(0, b"GGUF"), "does not begin like one"),
        (
            with(8, &2u64.to_le_bytes()),
            "version 2 of the .mlxpack format is not supported; this program reads version 1",
        ),
        (with(16, &(1u64 << 63).to_le_bytes()), "claims 9223372036854775808 bytes, at most 100000000"),
        (with(16, &100_000_001u64.to_le_bytes()), "at most 100000000"),
        (with(16, &99_999_999u64.to_le_bytes()), "cut off within its header"),
        (with(24, &[0; 32]), "its header is damaged"),
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(open(vec![]).is_err());
}

#[test]
fn a_pack_cut_off_or_lengthened_is_refused() {
    let good = small_pack();
    for length in 0..good.len() {
        assert!(open(good[..length].to_vec()).is_err(), "cut off after {length} of {} bytes", good.len());
    }
    let said = open([&good[..], &[0]].concat()).unwrap_err().to_string();
    assert!(said.contains("header describes"), "{said}");
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let good = small_pack();
    let header_end = 56 + u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        match open(bad) {
            Err(_) => assert!(at < header_end, "byte {at} is no part of the header"),
            Ok(pack) => {
                assert!(at >= header_end, "byte {at} of the header");
                let found = pack.verify(&mut Watch::none()).unwrap();
                assert_eq!(found.len(), 1, "byte {at}: {found:?}");
                assert!(pack.entry(&found[0].name).is_some());
            }
        }
    }
}

#[test]
fn damage_is_told_by_file_and_piece_and_not_extracted() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let files = [("README", vec![1; 10]), ("a", vec![2; 40 << 20]), ("b", vec![3; 10])];
    write_files(&path("in"), &BTreeMap::from(files.map(|(name, bytes)| (name.to_owned(), bytes))));
    pack_any(&path("in"), ALL, &path("x.mlxpack")).unwrap();
    let mut bytes = fs::read(path("x.mlxpack")).unwrap();
    let at = |name: &str, i: u64| (open(bytes.clone()).unwrap().entry(name).unwrap().offset + i) as usize;
    let spots = [at("a", 17 << 20), at("b", 9)];
    for spot in spots {
        bytes[spot] ^= 0x10;
    }
    let pack = open(bytes).unwrap();
    let damage = |name: &str, place: &str| Damage {
        name: name.into(),
        problem: format!("damaged (SHA-256 differs): bytes {place}"),
    };
    let expected = [damage("a", "16777216 to 33554432 of 41943040"), damage("b", "0 to 10 of 10")];
    assert_eq!(pack.verify(&mut Watch::none()).unwrap(), expected);
    let refused = pack.extract(&path("out"), Some("a"), false, &mut Watch::none()).unwrap_err().to_string();
    assert!(refused.contains("x.mlxpack/a: damaged"), "{refused}");
    assert!(pack.extract(&path("out"), None, false, &mut Watch::none()).is_err());
    assert!(!path("out").exists(), "nor are the good files before it");
    pack.extract(&path("out"), Some("README"), false, &mut Watch::none()).unwrap();
    assert!(pack.read(pack.entry("b").unwrap()).is_err());
}

#[test]
fn extraction_replaces_nothing_unasked_and_follows_no_link_out() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let pack = open(small_pack()).unwrap();
    fs::create_dir(path("out")).unwrap();
    fs::write(path("out/empty"), "mine").unwrap();
    assert!(
        matches!(pack.extract(&path("out"), None, false, &mut Watch::none()), Err(Error::Exists(at)) if at == path("out/empty"))
    );
    assert_eq!(read_files(&path("out")).len(), 1, "nothing is written when something is in the way");
    fs::create_dir(path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(path("elsewhere"), path("out/more")).unwrap();
    let refused = pack.extract(&path("out"), None, true, &mut Watch::none()).unwrap_err().to_string();
    assert!(refused.contains("out/more: exists and is not a directory"), "{refused}");
    assert_eq!(fs::read_dir(path("elsewhere")).unwrap().count(), 0);
    assert_eq!(fs::read(path("out/empty")).unwrap(), b"mine", "nothing is replaced when not all can be");
    pack.extract(&path("out"), Some("empty"), true, &mut Watch::none()).unwrap();
    assert_eq!(fs::read(path("out/empty")).unwrap(), b"");

    // The pack does not replace itself.
    fs::write(path("out/empty"), small_pack()).unwrap();
    let itself = Pack::open(path("out/empty")).unwrap();
    assert!(itself.extract(&path("out"), Some("empty"), true, &mut Watch::none()).is_err());
    let refused = pack.extract(&path("out/empty"), None, true, &mut Watch::none()).unwrap_err().to_string();
    assert!(refused.contains("out/empty: exists and is not a directory"), "{refused}");

    // A file that is a link is replaced itself; what it points to stays.
    fs::write(path("target"), "precious").unwrap();
    fs::remove_file(path("out/empty")).unwrap();
    std::os::unix::fs::symlink(path("target"), path("out/empty")).unwrap();
    pack.extract(&path("out"), Some("empty"), true, &mut Watch::none()).unwrap();
    assert_eq!(fs::read(path("target")).unwrap(), b"precious");
    assert!(!path("out/empty").is_symlink());
}

#[test]
fn a_file_that_changes_meanwhile_is_an_error_and_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    for length in [10_000, 30_000] {
        write_files(&path("in"), [(&"config.json".to_owned(), &vec![b' '; 20_000])]);
        let plan = Plan::new(&Checkpoint::open(path("in")).unwrap(), Summary::default(), &[]).unwrap();
        fs::OpenOptions::new().write(true).open(path("in/config.json")).unwrap().set_len(length).unwrap();
        let said = plan.write(&path("x.mlxpack"), false, &mut Watch::none()).unwrap_err().to_string();
        assert!(said.contains("config.json: changed while it was being packed"), "{said}");
    }
    assert_eq!(read_files(scratch.path()).len(), 1, "the input alone");

    fs::write(path("x.mlxpack"), small_pack()).unwrap();
    let pack = Pack::open(path("x.mlxpack")).unwrap();
    fs::OpenOptions::new().write(true).open(path("x.mlxpack")).unwrap().set_len(5000).unwrap();
    assert!(matches!(
        pack.extract(&path("out"), Some("more/x.safetensors"), false, &mut Watch::none()),
        Err(Error::Io { .. })
    ));
    assert!(!path("out").exists());
    assert!(!pack.verify(&mut Watch::none()).unwrap().is_empty());
}

/// Do `work` until `when` holds of the bytes done and in all.
fn stopped<T>(when: impl Fn(u64, u64) -> bool, work: impl FnOnce(&mut Watch) -> T) -> T {
    let stop = Arc::new(AtomicBool::new(false));
    let mut last = 0;
    let on_progress = &mut |done, total| {
        assert!((last..=total).contains(&done), "{last}, {done} of {total}");
        last = done;
        stop.fetch_or(when(done, total), Ordering::Relaxed);
    };
    work(&mut Watch { on_progress, stop: &stop })
}

#[test]
fn stopping_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    write_files(&path("in"), [(&"config.json".to_owned(), &vec![b' '; 3 << 20])]);
    let plan = Plan::new(&Checkpoint::open(path("in")).unwrap(), Summary::default(), &[]).unwrap();
    let at_half = |done, total| done * 2 > total;
    let written = stopped(at_half, |watch| plan.write(&path("x.mlxpack"), false, watch));
    assert!(matches!(written, Err(Error::Interrupted)));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    plan.write(&path("x.mlxpack"), false, &mut Watch::none()).unwrap();
    let pack = Pack::open(path("x.mlxpack")).unwrap();
    let extracted = stopped(at_half, |watch| pack.extract(&path("out"), None, false, watch));
    assert!(matches!(extracted, Err(Error::Interrupted)));
    assert!(!path("out").exists());
    assert!(matches!(stopped(at_half, |watch| pack.verify(watch)), Err(Error::Interrupted)));
}

/// The last file cannot be given its name, since one has appeared there while the others were written.
#[test]
fn extraction_is_of_all_files_or_none() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("new/out");
    let pack = open(small_pack()).unwrap();
    let in_the_way = |done, total| {
        if done == total {
            fs::write(out.join("more/x.safetensors"), "mine").unwrap();
        }
        false
    };
    let refused = stopped(in_the_way, |watch| pack.extract(&out, None, false, watch));
    assert!(matches!(refused, Err(Error::Exists(at)) if at == out.join("more/x.safetensors")));
    assert_eq!(read_files(&out), BTreeMap::from([("more/x.safetensors".to_owned(), b"mine".to_vec())]));

    // What was there before stays, folders too; what was made goes.
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(&out).unwrap();
    let extracted = stopped(|done, total| done == total, |watch| pack.extract(&out, None, false, watch));
    assert!(matches!(extracted, Err(Error::Interrupted)));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    pack.extract(&out, None, false, &mut Watch::none()).unwrap();
    assert_eq!(read_files(&out).len(), 3);
}

#[test]
fn two_do_not_extract_into_one_directory_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let pack = open(small_pack()).unwrap();
    let meanwhile = |_, _| {
        let refused = pack.extract(&out, Some("config.json"), true, &mut Watch::none()).unwrap_err().to_string();
        assert!(refused.ends_with("/out: another process is extracting into it"), "{refused}");
        false
    };
    stopped(meanwhile, |watch| pack.extract(&out, None, false, watch)).unwrap();
    assert_eq!(read_files(&out).len(), 3);
    pack.extract(&out, Some("config.json"), true, &mut Watch::none()).unwrap();
}

/// The unfinished file of another writer is left alone while that writer lives, and taken over afterwards.
#[test]
fn an_unfinished_file_is_taken_over_only_from_the_dead() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    write_files(&path("in"), [(&"config.json".to_owned(), &b"{}".to_vec())]);
    let stale = path(".x.mlxpack.mlxpack-partial");
    fs::write(&stale, "left by a killed process, longer than what is written now".repeat(1000)).unwrap();
    fs::hard_link(&stale, path("same file")).unwrap();
    let other = fs::File::open(&stale).unwrap();
    other.lock().unwrap();
    let said = pack_any(&path("in"), &[], &path("x.mlxpack")).unwrap_err().to_string();
    assert!(said.contains("another process is writing it"), "{said}");
    drop(other);
    let length = pack_any(&path("in"), &[], &path("x.mlxpack")).unwrap();
    assert_eq!(fs::metadata(path("x.mlxpack")).unwrap().len(), length);
    assert!(!stale.exists());
    assert!(fs::read(path("same file")).unwrap().starts_with(b"left by"), "the stale file is not written to");

    // A link planted under that name is not followed.
    fs::write(path("victim"), "precious").unwrap();
    std::os::unix::fs::symlink(path("victim"), &stale).unwrap();
    assert!(pack_any(&path("in"), &[], &path("x.mlxpack")).is_err());
    assert_eq!(fs::read(path("victim")).unwrap(), b"precious");
}

#[test]
fn a_pack_runs_as_its_directory_does() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("no extension");
    for model in ["llama-bf16", "llama-sharded", "llama-mixed", "mistral-q4", "qwen3-q4-tied"] {
        let directory = fixture("checkpoints").join(model);
        pack_any(&directory, &[], &output).unwrap();
        let (a, b) = (logits(&directory), logits(&output));
        assert!(a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())), "{model}");
    }
}

#[test]
fn a_damaged_text_is_not_loaded() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("x.mlxpack");
    pack_any(&fixture("checkpoints/llama-bf16"), &[], &output).unwrap();
    let mut bytes = fs::read(&output).unwrap();
    let config = Pack::open(&output).unwrap().entry("config.json").unwrap().offset as usize;
    // Still JSON, with another number in it.
    let digit = (config..).find(|&at| bytes[at].is_ascii_digit()).unwrap();
    bytes[digit] ^= 1;
    fs::write(&output, bytes).unwrap();
    let said = Model::load(&Checkpoint::open(&output).unwrap(), &mut Watch::none()).unwrap_err().to_string();
    assert!(said.contains("x.mlxpack/config.json: damaged"), "{said}");
}

/// Strict inspection finds what loading would find, and an index that is wrong.
#[test]
fn a_model_is_checked_before_it_is_packed() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    let check = || inspect(&Checkpoint::open(scratch.path()).unwrap(), true);
    let summary = check().unwrap();
    assert_eq!((summary.tensor_count, summary.parameter_count), (165, 6_033_152)); // as demo/evaluation.json has it
    let index = scratch.path().join("model.safetensors.index.json");
    for (map, expected) in [
        (json!({"model.norm.weight": "model.safetensors"}), None),
        (json!({"model.nrom.weight": "model.safetensors"}), Some("`model.nrom.weight` is not in model.safetensors")),
        (json!({"model.norm.weight": "model-00001-of-00002.safetensors"}), Some("is not in model-00001-of-00002")),
    ] {
        fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
        match (check(), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (result, expected) => panic!("{map}: {result:?}, expected {expected:?}"),
        }
    }
    fs::remove_file(index).unwrap();
    let config = fs::read_to_string(scratch.path().join("config.json")).unwrap();
    fs::write(scratch.path().join("config.json"), config.replace("\"vocab_size\":2048", "\"vocab_size\":2049"))
        .unwrap();
    assert!(check().unwrap_err().to_string().contains("embed_tokens"));
    fs::write(scratch.path().join("config.json"), config).unwrap();
    fs::remove_file(scratch.path().join("tokenizer.json")).unwrap();
    assert!(check().unwrap_err().to_string().contains("tokenizer.json"));
}
