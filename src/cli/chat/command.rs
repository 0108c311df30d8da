//! What a line that begins with `/` asks for.

use std::path::PathBuf;

use anyhow::{Result, bail};
use etcetera::home_dir;

/// Name, argument, and what `/help` says.
pub const COMMANDS: [(&str, &str, &str); 9] = [
    ("system", "[TEXT|off]", "set, show or remove the system message"),
    ("reset", "", "forget what was said, but not the system message"),
    ("undo", "", "take the last question and its answer back"),
    ("regenerate", "", "answer the last question again, with another seed"),
    ("save", "[--force] [FILE]", "write the conversation as JSON messages, as --messages reads them"),
    ("load", "FILE", "go on from such a file"),
    (
        "set",
        "[OPTION VALUE]",
        "change an option, such as /set temp 0.7 (VALUE `default`: as at the start); alone, show what is set",
    ),
    ("stats", "", "what the last answer took"),
    ("help", "", "this list"),
];

/// A command and its argument.
#[derive(Debug, PartialEq)]
pub enum Command {
    System(Option<String>),
    Reset,
    Undo,
    Regenerate,
    Save { path: Option<PathBuf>, force: bool },
    Load(PathBuf),
    Set(Option<(String, String)>),
    Stats,
    Help,
}

impl Command {
    /// Read the line behind its `/`.
    ///
    /// # Errors
    /// When there is no such command, with the one that was probably meant, or its argument is missing or too much.
    pub fn parse(line: &str) -> Result<Self> {
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let Some(&(_, expected, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
            let near = COMMANDS.iter().map(|(known, ..)| (strsim::jaro_winkler(name, known), known));
            let hint = match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((likeness, near)) if likeness > 0.8 => format!("/{near} is one"),
                _ => "/help lists them, and Ctrl-D ends the conversation".to_owned(),
            };
            bail!("there is no command /{name}; {hint}. A message that begins with / is sent with a space before it");
        };
        if expected.is_empty() && !argument.is_empty() {
            bail!("/{name} takes no argument");
        }
        let text = (!argument.is_empty()).then(|| argument.to_owned());
        Ok(match name {
            "system" => Command::System(text),
            "reset" => Command::Reset,
            "undo" => Command::Undo,
            "regenerate" => Command::Regenerate,
            "save" => {
                let rest =
                    argument.strip_prefix("--force").filter(|rest| !rest.starts_with(|c: char| !c.is_whitespace()));
                let path = rest.unwrap_or(argument).trim();
                Command::Save { path: (!path.is_empty()).then(|| expand(path)), force: rest.is_some() }
            }
            "load" if text.is_none() => bail!("/load needs the name of a file"),
            "load" => Command::Load(expand(argument)),
            "set" => match argument.split_once(char::is_whitespace) {
                Some((name, value)) => Command::Set(Some((name.replace('-', "_"), value.trim().to_owned()))),
                None if text.is_none() => Command::Set(None),
                None => bail!("/set {argument} needs a value; `/set {argument} default` takes back what was set"),
            },
            "stats" => Command::Stats,
            _ => Command::Help,
        })
    }
}

/// The list that `/help` prints.
pub fn help() -> String {
    let usage = |name: &str, argument: &str| format!("/{name} {argument}");
    let lines = COMMANDS.map(|(name, argument, help)| format!("{:<24} {help}\n", usage(name, argument)));
    let keys = "Alt-Enter or \\ at the end of a line begins another line; Ctrl-C stops an answer; Ctrl-D ends the conversation.\n";
    lines.concat() + keys
}

/// As a shell does.
fn expand(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), home_dir()) {
        (Some(rest), Ok(home)) => home.join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_with_their_arguments() {
        let save = |path: Option<&str>, force| Command::Save { path: path.map(Into::into), force };
        for (line, expected) in [
            ("system Be brief. ", Command::System(Some("Be brief.".into()))),
            ("system", Command::System(None)),
            ("save", save(None, false)),
            ("save --force", save(None, true)),
            ("save --force a b.json", save(Some("a b.json"), true)),
            ("save --forced", save(Some("--forced"), false)),
            ("set top-p 0.5", Command::Set(Some(("top_p".into(), "0.5".into())))),
            ("set", Command::Set(None)),
            ("load x", Command::Load("x".into())),
        ] {
            assert_eq!(Command::parse(line).unwrap(), expected, "/{line}");
        }
        for (line, hint) in [
            ("sett temp 1", "/set is one"),
            ("regen", "/regenerate is one"),
            ("quit", "Ctrl-D ends"),
            ("", "/help lists them"),
            ("undo 2", "takes no argument"),
            ("load", "needs the name"),
            ("set temp", "needs a value"),
        ] {
            let error = Command::parse(line).unwrap_err().to_string();
            assert!(error.contains(hint), "/{line}: {error}");
        }
        for (name, ..) in COMMANDS {
            let known = Command::parse(&format!("{name} x")).or_else(|_| Command::parse(name));
            assert!(known.is_ok() || name == "set", "/{name}");
            assert!(help().contains(&format!("/{name} ")));
        }
    }
}
