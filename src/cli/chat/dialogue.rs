//! The messages of a conversation, and the files that they are kept in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mlx_lm::chat_template::Conversation;
use mlx_lm::{Tokenizer, atomic_file};
use serde_json::{Map, Value, json};

use super::super::prompt::{parse_messages, read_text};

/// What was said so far, as a chat template takes it.
#[derive(Clone)]
pub struct Dialogue {
    messages: Vec<Value>,
    template_args: Map<String, Value>,
    /// The same in every turn, so that a template that tells the time does not change what was read.
    date: jiff::civil::Date,
    /// The file that holds, or held, this conversation.
    file: Option<PathBuf>,
}

impl Dialogue {
    pub fn new(template_args: Map<String, Value>, date: Option<jiff::civil::Date>) -> Self {
        let date = date.unwrap_or_else(|| jiff::Zoned::now().date());
        Dialogue { messages: Vec::new(), template_args, date, file: None }
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    fn role(&self, i: usize) -> &str {
        self.messages[i]["role"].as_str().unwrap_or_default()
    }

    fn last_is(&self, role: &str) -> bool {
        self.messages.last().is_some_and(|message| message["role"] == role)
    }

    /// The system message at its beginning.
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|message| message["role"] == "system")?["content"].as_str()
    }

    pub fn set_system(&mut self, text: Option<&str>) {
        if self.messages.first().is_some_and(|message| message["role"] == "system") {
            self.messages.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, json!({"role": "system", "content": text}));
        }
    }

    pub fn ask(&mut self, text: &str) {
        self.messages.push(json!({"role": "user", "content": text}));
    }

    /// The reasoning is a field of its own, which templates that know of any leave out of earlier turns.
    pub fn answer(&mut self, content: &str, reasoning: &str) {
        let mut message = json!({"role": "assistant", "content": content});
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.into();
        }
        self.messages.push(message);
    }

    /// Take the last question back, with what followed it; gives the question.
    pub fn undo(&mut self) -> Option<String> {
        let at = (0..self.messages.len()).rev().find(|&i| self.role(i) == "user")?;
        let question = self.messages[at]["content"].as_str().unwrap_or_default().to_owned();
        self.messages.truncate(at);
        Some(question)
    }

    /// Take the last answer back, so that another can be given; whether there is a question.
    pub fn unanswer(&mut self) -> bool {
        while self.last_is("assistant") {
            self.messages.pop();
        }
        self.messages.iter().any(|message| message["role"] == "user")
    }

    /// Forget everything but the system message.
    pub fn reset(&mut self) {
        let system = self.system().map(str::to_owned);
        self.messages.clear();
        self.set_system(system.as_deref());
        self.file = None;
    }

    /// The conversation as the model reads it before it answers.
    pub fn render(&self, tokenizer: &Tokenizer) -> mlx_lm::Result<String> {
        tokenizer.render(&Conversation {
            messages: self.messages.clone(),
            args: self.template_args.clone(),
            date: Some(self.date),
            add_generation_prompt: true,
            ..Conversation::default()
        })
    }

    /// Write the messages as `--messages` reads them; gives the file. Another file than this conversation's own is replaced only
    /// with `force`.
    pub fn save(&mut self, path: Option<&Path>, force: bool) -> Result<PathBuf> {
        let Some(path) = path.map(Path::to_owned).or_else(|| self.file.clone()) else {
            bail!("/save needs the name of a file, such as /save talk.json");
        };
        if self.messages.is_empty() {
            bail!("nothing has been said yet");
        }
        let is_own = self.file.as_ref() == Some(&path);
        if path.exists() && !is_own && !force {
            bail!("{}: exists already; /save --force FILE replaces it", path.display());
        }
        let text = serde_json::to_string_pretty(&self.messages)? + "\n";
        atomic_file::write(&path, text.as_bytes(), is_own || force)?;
        self.file = Some(path.clone());
        Ok(path)
    }

    /// Go on from the messages in a file. Where they are none, nothing changes.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        self.messages = parse_messages(&read_text(path)?).with_context(|| path.display().to_string())?;
        self.file = Some(path.to_owned());
        Ok(())
    }
}
