//! The README and `docs/` say what the programs do: their `console` examples are run, in order, in a fresh folder.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const NOTICE: &str = "using the demo model inside this program; --model-root PATH runs another\n";

/// Commands and what they print, of all fenced blocks that are marked `console`.
fn examples(page: &str) -> Vec<(String, String)> {
    let mut examples: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = line == "```console",
            Some(command) if inside => examples.push((command.to_owned(), String::new())),
            None if inside => {
                examples.last_mut().expect("a block begins with a command").1.push_str(&format!("{line}\n"))
            }
            _ => {}
        }
    }
    examples
}

/// Whether `text` is `pattern`, in which `…` stands for anything.
fn matches(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// Those with examples.
const PAGES: [&str; 11] = [
    "README.md",
    "docs/chat.md",
    "docs/cli.md",
    "docs/convert.md",
    "docs/distributed.md",
    "docs/hub.md",
    "docs/structured.md",
    "docs/mlxpack.md",
    "docs/models.md",
    "docs/streaming.md",
    "docs/performance.md",
];

#[test]
fn examples_print_what_the_pages_say() {
    let bin = Path::new(env!("CARGO_BIN_EXE_mlx_lm")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap());
    let mut count = 0;
    for page in PAGES {
        let scratch = tempfile::tempdir().unwrap();
        symlink(Path::new(ROOT).join("demo"), scratch.path().join("demo")).unwrap();
        for (command, expected) in examples(&fs::read_to_string(Path::new(ROOT).join(page)).unwrap()) {
            // A terminal shows both streams.
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("exec 2>&1\n{command}")]).current_dir(&scratch).env("PATH", &path);
            let output = shell.stdin(Stdio::null()).output().unwrap();
            let found = String::from_utf8(output.stdout).unwrap().replace(NOTICE, "");
            // A text ends without a line end where it goes to no terminal.
            let found = if found.is_empty() || found.ends_with('\n') { found } else { found + "\n" };
            assert!(matches(&found, &expected), "{page}: $ {command}\n{found}--- but the page says\n{expected}");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} examples were found");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut count = 0;
    for page in PAGES.into_iter().chain(["docs/server.md", "docs/cuda.md", "demo/README.md"]) {
        let path = Path::new(ROOT).join(page);
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{page}: {link}");
            if !heading.is_empty() {
                let target = fs::read_to_string(target).unwrap();
                let mut headings = target.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(headings.any(|found| found == heading), "{page}: {link}");
            }
            count += 1;
        }
    }
    assert!(count > 20, "only {count} links were found");
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn an_ellipsis_stands_for_anything_and_nothing_else_does() {
    assert!(matches("a 12 b\n", "a … b\n") && matches("x\ny\nz\n", "x\n…\nz\n") && matches("", ""));
    assert!(!matches("a 12 c\n", "a … b\n") && !matches("ab", "a") && !matches("ac", "ab…"));
}
