//! What `make dist` packs comes with the licences of all of it.

use std::process::Command;

/// The licences of the linked crates and these libraries.
fn third_party(libraries: &[&str]) -> (bool, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/setup/third_party.py");
    let output = Command::new("python3").arg(script).args(libraries).output();
    let output = output.expect("python3 runs; `make setup` needs it too");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn licences_are_of_all_that_is_packed() {
    let (complete, text) = third_party(&["dist/lib/libstdc++.so.6", "libquadmath-a962d038.so.0.0.0", "liblapack.so.3"]);
    assert!(complete, "{text}");
    for part in [
        "libstdc++.so.6: GPL-3.0-or-later WITH GCC-exception-3.1",
        "GCC RUNTIME LIBRARY EXCEPTION",
        "GNU LESSER GENERAL PUBLIC LICENSE",
        "University of Tennessee",
        "safetensors v",
        "K.Kosako", // Oniguruma, in the sources of a crate
    ] {
        assert!(text.contains(part), "{part}");
    }
    for tool in ["proptest v", "serde_derive v", "cc v"] {
        assert!(!text.contains(&format!("  {tool}")), "{tool} is in no program");
    }
    let (complete, text) = third_party(&["libstdc++.so.6", "libstdc++fs.so.6"]);
    assert!(!complete && text.contains("libstdc++fs.so.6: its licence is not known"), "{text}");
}

/// The crates that are linked with these features of the library.
fn crates(features: &[&str]) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["tree", "--locked", "--offline", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}"])
        .args(features);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_library_alone_needs_nothing_of_the_programs() {
    let (all, library) = (crates(&[]), crates(&["--no-default-features"]));
    for name in ["clap", "clap_complete", "clap_mangen", "indicatif", "env_logger", "signal-hook", "strsim", "anyhow"] {
        let line = format!("\n{name} v");
        assert!(all.contains(&line) && !library.contains(&line), "{name}");
    }
}
