//! `mlx_lm chat`: a conversation keeps what was said, and reads only what is new.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::wait::WaitStatus;
use rexpect::session::{PtySession, spawn_command};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::unpack_demo;

const NOTICE: &str = "using the demo model inside this program; --model-root PATH runs another\n";
/// For what a test waits for: far more than it takes.
const PATIENCE_MS: u64 = 60_000;
/// What a terminal is sent when a line may be typed.
const READY: &str = "\x1b[?2004h";

fn mlx_lm(args: &[&str], home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
    command.args(args).current_dir(home).env("XDG_STATE_HOME", home);
    command
}

/// Exit code, stdout and stderr of a piped conversation.
fn chat(args: &[&str], turns: &str, home: &Path) -> (Option<i32>, String, String) {
    let mut command = mlx_lm(&[&["chat"], args].concat(), home);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(turns.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap().replace(NOTICE, "");
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), stderr)
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Prompt tokens, of these read, generated tokens: of each `/stats`.
fn stats(stderr: &str) -> Vec<(usize, usize, usize)> {
    let number = |line: &str, before: &str| -> Option<usize> {
        let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        words.windows(1 + before.split(' ').count()).find(|w| w[1..].join(" ") == before)?[0].parse().ok()
    };
    let prompts = stderr.lines().filter(|line| line.starts_with("prompt: "));
    let generated = stderr.lines().filter_map(|line| number(line.strip_prefix("generation: ")?, "tokens"));
    let prompts = prompts.map(|line| {
        let all = number(line, "tokens").unwrap();
        (all, number(line, "of them read").unwrap_or(all))
    });
    prompts.zip(generated).map(|((all, read), generated)| (all, read, generated)).collect()
}

#[test]
fn each_line_is_a_turn_of_one_conversation_and_its_answer_a_line() {
    let home = home();
    let turns = "What colour is the sky?\n\nWhy is it \\\nblue?\n/save talk.json\n";
    let (code, stdout, stderr) = chat(&[], turns, home.path());
    assert_eq!((code, stderr.as_str()), (Some(0), "saved to talk.json\n"));
    assert!(stdout.starts_with("The sky is blue.\n") && stdout.lines().count() == 2, "{stdout}");

    // What is saved is what `--messages` reads, and gives the same answer again.
    let saved: Value = serde_json::from_str(&fs::read_to_string(home.path().join("talk.json")).unwrap()).unwrap();
    let said: Vec<&str> = saved.as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap()).collect();
    let answers: Vec<&str> = stdout.lines().collect();
    assert_eq!(said, ["What colour is the sky?", answers[0], "Why is it \nblue?", answers[1]]);
    let question = json!(saved.as_array().unwrap()[..3]).to_string();
    fs::write(home.path().join("question.json"), question).unwrap();
    let again = mlx_lm(&["--messages", "question.json"], home.path()).output().unwrap();
    assert_eq!(String::from_utf8(again.stdout).unwrap(), answers[1]);
}

/// Catches: answers that are tokenized anew, a transcript that ignores the template, a cache that is dropped.
#[test]
fn a_turn_reads_only_what_is_new() {
    let turns = "Tell me a story.\n/stats\nWhat colour is the sky?\n/stats\nTell me another.\n/stats\n/undo\nTell me more.\n/stats\n";
    // At a high temperature, the ids of an answer are not those that its text has.
    for args in [&["--temp", "1.4", "--seed", "3", "-n", "40"][..], &["-n", "40"]] {
        let (code, _, stderr) = chat(args, turns, home().path());
        let stats = stats(&stderr);
        assert_eq!((code, stats.len()), (Some(0), 4), "{stderr}");
        assert_eq!(stats[0].0, stats[0].1, "the first reads all");
        for (before, after) in [(0, 1), (1, 2), (1, 3)] {
            let kept = stats[before].0 + stats[before].2;
            let new = stats[after].0 - kept;
            // The last token of an answer that was cut short was never fed back.
            assert!(stats[after].1 <= new + 1 && new < 16, "{args:?}: {before} to {after}: {stats:?}");
        }
    }
}

/// Catches: a cache that is dropped once tokens were evicted, a warning for each turn.
#[test]
fn a_full_context_streams_and_says_so_once() {
    let turns = "Tell me a story.\n/stats\n".repeat(6);
    let (code, stdout, stderr) = chat(&["--context-size", "64", "-n", "30", "--ignore-eos"], &turns, home().path());
    assert_eq!((code, stderr.matches("the context is full").count()), (Some(0), 1), "{stderr}");
    assert_eq!(stderr.matches("the answer ends here after 30 tokens").count(), 6, "{stderr}");
    let stats = stats(&stderr);
    assert!(stats.iter().skip(1).all(|(_, read, _)| *read < 16) && stats[5].0 > 128, "{stats:?}");
    assert!(stdout.lines().count() >= 6);
    // Without streaming, a question that does not fit is taken back, and the rest goes on.
    let turns = "Tell me a story.\nTell me another.\nTell me yet another.\n/save talk.json\n";
    let home = home();
    let args = ["--context-size", "30", "-n", "30", "--ignore-eos", "--overflow", "error"];
    let (code, stdout, stderr) = chat(&args, turns, home.path());
    assert_eq!((code, stdout.is_empty()), (Some(1), false));
    assert!(stderr.contains("because the context is full") && stderr.contains("error: line 2: "), "{stderr}");
    let saved: Value = serde_json::from_str(&fs::read_to_string(home.path().join("talk.json")).unwrap()).unwrap();
    assert_eq!(saved.as_array().unwrap().len(), 2);
}

#[test]
fn commands_change_the_conversation_and_bad_ones_change_nothing() {
    let home = home();
    let ask = "What colour is the sky?\n";
    let (code, stdout, stderr) = chat(
        &["--system", "Be brief."],
        &format!(
            "{ask}/system\n/save a.json\n/save a.json\n/reset\n/save\n/save b.json\n/system off\n/undo\n/load a.json\n/regenerate\n/set temp 3 4\n\
             /set temp -1\n/set top-p 0.5\n/set\n/set top_p default\n/set\n/load nowhere.json\n/frobnicate\n/save\n{ask}/save a.json\n"
        ),
        home.path(),
    );
    assert_eq!((code, stdout.as_str()), (Some(1), "The sky is blue.\n".repeat(3).as_str()));
    let said: Vec<&str> = stderr.lines().collect();
    let expected = [
        "system: Be brief.",
        "saved to a.json",
        "saved to a.json",
        "error: line 6: /save needs the name of a file",
        "saved to b.json",
        "error: line 9: there is nothing to take back",
        "3 messages",
        "error: line 12: `temp`: ",
        "error: line 13: temp is -1, expected",
        "top_p 0.5",
        "nothing is set; the options are max_tokens, ",
        "error: line 18: nowhere.json: No such file",
        "error: line 19: there is no command /frobnicate; ",
        "saved to a.json",
        "saved to a.json",
    ];
    assert_eq!(said.len(), expected.len(), "{stderr}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said}\n{expected}");
    }
    // The system message outlives /reset, but not /system off.
    let b: Value = serde_json::from_str(&fs::read_to_string(home.path().join("b.json")).unwrap()).unwrap();
    assert_eq!(b, json!([{"role": "system", "content": "Be brief."}]));
    let a: Value = serde_json::from_str(&fs::read_to_string(home.path().join("a.json")).unwrap()).unwrap();
    assert_eq!(a.as_array().unwrap().len(), 5);

    // A file of something else is not replaced.
    let (code, _, stderr) = chat(&[], &format!("{ask}/save a.json\n/save --force a.json\n"), home.path());
    assert_eq!(code, Some(1));
    assert_eq!(stderr, "error: line 2: a.json: exists already; /save --force FILE replaces it\nsaved to a.json\n");
}

/// The demo model with another end of its chat template, which begins each answer.
fn demo_that_begins_with(opening: &str, home: &Path) -> String {
    let root = home.join("demo");
    unpack_demo(&root);
    let path = root.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let template = config["chat_template"].as_str().unwrap().to_owned();
    let opened = "{% if add_generation_prompt %}".to_owned() + opening + "{% endif %}";
    config["chat_template"] = (template + &opened).into();
    fs::write(&path, config.to_string()).unwrap();
    root.to_str().unwrap().to_owned()
}

#[test]
fn reasoning_is_told_apart_hidden_and_left_to_the_template() {
    let home = home();
    let root = demo_that_begins_with("<think>\n{# </think> #}", home.path());
    let turns = "What colour is the sky?\n/save talk.json\n";
    let (code, shown, _) = chat(&["-m", &root, "-n", "12"], turns, home.path());
    assert!(code == Some(0) && shown.starts_with("<think>\n") && shown.ends_with("\n</think>\n\n"), "{shown:?}");
    let saved: Value = serde_json::from_str(&fs::read_to_string(home.path().join("talk.json")).unwrap()).unwrap();
    let reasoning = saved[1]["reasoning_content"].as_str().unwrap();
    assert_eq!(shown, format!("<think>\n{reasoning}\n</think>\n\n"));
    assert_eq!(saved[1]["content"], "");
    let (code, hidden, _) =
        chat(&["-m", &root, "-n", "12", "--hide-reasoning"], "What colour is the sky?\n", home.path());
    assert_eq!((code, hidden.as_str()), (Some(0), ""));
}

/// What the template writes of an earlier answer is not what was generated: the prompt must be the template's all the same.
#[test]
fn a_template_that_rewrites_earlier_turns_has_its_way() {
    let home = home();
    let root = demo_that_begins_with("Well. ", home.path());
    let turns = "What colour is the sky?\nWhy is the sky blue?\nTell me a story.\n/save talk.json\n/stats\n";
    let (_, stdout, stderr) = chat(&["-m", &root, "-n", "20"], turns, home.path());
    let saved: Value = serde_json::from_str(&fs::read_to_string(home.path().join("talk.json")).unwrap()).unwrap();
    fs::write(home.path().join("question.json"), json!(saved.as_array().unwrap()[..5]).to_string()).unwrap();
    let args = ["-m", &root, "-n", "20", "--messages", "question.json", "--format", "json"];
    let again: Value = serde_json::from_slice(&mlx_lm(&args, home.path()).output().unwrap().stdout).unwrap();
    assert_eq!(again["text"].as_str().unwrap(), stdout.lines().last().unwrap());
    assert_eq!(again["prompt_tokens"], stats(&stderr)[0].0);
}

/// A terminal with the program in it, at its first prompt.
fn terminal(args: &[&str], home: &Path) -> PtySession {
    let mut session = spawn_command(mlx_lm(&[&["chat"], args].concat(), home), Some(PATIENCE_MS)).unwrap();
    session.exp_string("Ctrl-D ends the conversation").unwrap();
    session.exp_string(READY).unwrap();
    session
}

/// Type a line.
fn say(session: &mut PtySession, line: &str) {
    session.send(line).unwrap();
    session.send("\r").unwrap();
    session.flush().unwrap();
}

fn end(mut session: PtySession) {
    session.send_control('d').unwrap();
    session.exp_eof().unwrap();
    assert!(matches!(session.process().wait(), Ok(WaitStatus::Exited(_, 0))));
}

/// Catches: Ctrl-C that ends the program, that loses what was said, or the cache.
#[test]
fn ctrl_c_stops_the_answer_and_keeps_what_was_said() {
    let home = home();
    let mut session = terminal(&["--ignore-eos", "-n", "1000000"], home.path());
    for _ in 0..3 {
        say(&mut session, "Tell me a story.");
        session.exp_string(". ").unwrap();
        session.send_control('c').unwrap();
        session.exp_string(READY).unwrap();
    }
    // On an empty line it does nothing but tell the way out.
    session.send_control('c').unwrap();
    session.exp_string("Ctrl-D ends the conversation").unwrap();
    session.exp_string(READY).unwrap();
    say(&mut session, "/set max_tokens 3");
    session.exp_string(READY).unwrap();
    say(&mut session, "Go on.");
    session.exp_string("ends here after 3 tokens").unwrap();
    say(&mut session, "/stats");
    session.exp_string("prompt: ").unwrap();
    let read = session.exp_string(" of them read").unwrap();
    assert!(read.rsplit(' ').next().unwrap().parse::<usize>().unwrap() < 16, "{read}");
    say(&mut session, "/save talk.json");
    session.exp_string("saved to talk.json").unwrap();
    end(session);
    let saved: Value = serde_json::from_str(&fs::read_to_string(home.path().join("talk.json")).unwrap()).unwrap();
    let answers: Vec<usize> = (0..4).map(|i| saved[2 * i + 1]["content"].as_str().unwrap().len()).collect();
    assert!(saved.as_array().unwrap().len() == 8 && answers.iter().all(|n| *n > 2), "{answers:?}");
}

#[test]
fn what_is_typed_is_remembered_completed_and_may_have_lines() {
    let home = home();
    let mut session = terminal(&[], home.path());
    say(&mut session, "What colour is the sky?");
    session.exp_string("The sky is blue.").unwrap();
    say(&mut session, "/sav\tone.json"); // completed
    session.exp_string("saved to one.json").unwrap();
    session.send("/set top\t").unwrap(); // listed, since there are two
    session.flush().unwrap();
    session.exp_string("top_").unwrap();
    session.send_control('c').unwrap();
    session.exp_string(READY).unwrap();
    session.send("Why\x1b\ris it \\\rblue?\r").unwrap();
    session.flush().unwrap();
    session.exp_string(READY).unwrap();
    say(&mut session, "/save one.json");
    session.exp_string("saved to one.json").unwrap();
    end(session);
    let saved: Value = serde_json::from_str(&fs::read_to_string(home.path().join("one.json")).unwrap()).unwrap();
    assert_eq!(saved[2]["content"], "Why\nis it \nblue?");

    let history = home.path().join("mlx_lm/chat_history");
    assert!(fs::read_to_string(&history).unwrap().contains("What colour is the sky?"));
    let mut session = terminal(&[], home.path());
    session.send("\x1b[A\x1b[A\x03").unwrap(); // up, up, and never mind
    session.flush().unwrap();
    session.exp_string("is it").unwrap();
    session.exp_string(READY).unwrap();
    session.send("\x12colour\r").unwrap(); // searched backward
    session.flush().unwrap();
    session.exp_string("The sky is blue.").unwrap();
    end(session);
}

/// Without a chat template there is no conversation; without a question none that could be answered.
#[test]
fn what_cannot_be_talked_to_says_so() {
    let home = home();
    let root = demo_that_begins_with("", home.path());
    let path = Path::new(&root).join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("chat_template");
    fs::write(&path, config.to_string()).unwrap();
    let (code, stdout, stderr) = chat(&["-m", &root], "Hello\n", home.path());
    assert!(code == Some(1) && stdout.is_empty() && stderr.contains("no chat template"), "{stderr}");
    let (code, stdout, stderr) = chat(&["--temp", "-1"], "Hello\n", home.path());
    assert!(code == Some(2) && stdout.is_empty() && stderr.starts_with("error: --temp is -1"), "{stderr}");
    let (code, _, stderr) = chat(&[], "/regenerate\n", home.path());
    assert_eq!((code, stderr.as_str()), (Some(1), "error: line 1: there is no question to answer\n"));
}

/// Catches: a model that moves the cursor, colours or reorders what a terminal shows; a pipe that gets another text.
#[test]
fn a_terminal_gets_no_control_characters_of_an_answer() {
    let home = home();
    let args = ["-p", "Hi", "--regex", r"a\x1b\[31mb\u{9b}c\u{202e}d"];
    let piped = mlx_lm(&args, home.path()).output().unwrap();
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), "a\x1b[31mb\u{9b}c\u{202e}d");
    let mut session = spawn_command(mlx_lm(&args, home.path()), Some(PATIENCE_MS)).unwrap();
    // rexpect takes each byte for a character.
    let shown = String::from_utf8(session.exp_eof().unwrap().chars().map(|c| c as u8).collect()).unwrap();
    assert!(shown.ends_with("a\u{fffd}[31mb\u{fffd}c\u{fffd}d\r\n"), "{shown:?}");
}
