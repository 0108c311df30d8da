//! How an answer is shown while it comes.

use std::io::{self, IsTerminal, Write};

use console::{Style, Term};

use super::markdown;
use crate::cli::terminal::printable;

/// Empties the line.
const ERASE: &str = "\r\x1b[K";

/// What the flags say of it.
#[derive(Clone, Copy)]
pub struct Screen {
    /// A person reads it in a terminal, which obeys control characters.
    is_terminal: bool,
    /// Reasoning is dim, or hidden behind a word.
    dims: bool,
    /// Markdown is rendered.
    renders: bool,
    shows_reasoning: bool,
}

impl Screen {
    /// Of standard output; a script of turns is plain.
    pub fn new(is_script: bool, plain: bool, hide_reasoning: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let is_dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        let dims = is_terminal && !is_script && !is_dumb;
        Screen { is_terminal, dims, renders: dims && !plain, shows_reasoning: !hide_reasoning }
    }

    pub fn answer(self) -> Answer {
        Answer { screen: self, out: io::stdout(), part: Part::None, markdown: None, at_line_start: true }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    None,
    Reasoning,
    Content,
}

/// One answer under way.
pub struct Answer {
    screen: Screen,
    out: io::Stdout,
    part: Part,
    markdown: Option<markdown::Stream>,
    at_line_start: bool,
}

impl Answer {
    pub fn reasoning(&mut self, text: &str) -> io::Result<()> {
        let text = self.shown(text);
        self.begin(Part::Reasoning)?;
        match (self.screen.shows_reasoning, self.screen.dims) {
            (false, _) => Ok(()),
            (true, false) => self.write(&text),
            (true, true) => self.write(&Style::new().dim().apply_to(text).to_string()),
        }
    }

    pub fn content(&mut self, text: &str) -> io::Result<()> {
        let text = self.shown(text);
        self.begin(Part::Content)?;
        let text = match &mut self.markdown {
            Some(markdown) => markdown.push(&text),
            None => text,
        };
        self.write(&text)
    }

    /// The end of the answer, and of its last line. One that was broken off stays as it is.
    pub fn end(mut self, is_broken_off: bool) -> io::Result<()> {
        match self.markdown.take() {
            Some(markdown) if !is_broken_off => {
                let text = markdown.finish();
                self.write(&text)?;
            }
            _ if self.part == Part::Reasoning => self.close_reasoning()?,
            _ => {}
        }
        if !self.at_line_start {
            self.write("\n")?;
        }
        if self.screen.dims { self.write("\n") } else { Ok(()) } // between turns
    }

    fn begin(&mut self, part: Part) -> io::Result<()> {
        if self.part == part {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.part, part);
        match part {
            Part::Reasoning if self.screen.dims && !self.screen.shows_reasoning => {
                self.write(&Style::new().dim().apply_to("thinking …").to_string())
            }
            Part::Reasoning if self.screen.shows_reasoning && !self.screen.dims => self.write("<think>\n"),
            Part::Content => {
                if before == Part::Reasoning {
                    self.close_reasoning()?;
                }
                if self.screen.renders {
                    let (rows, columns) = Term::stdout().size();
                    self.markdown = Some(markdown::Stream::new(rows.into(), columns.into()));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn close_reasoning(&mut self) -> io::Result<()> {
        match (self.screen.shows_reasoning, self.screen.dims) {
            (true, true) => self.write("\n\n"),
            (true, false) => self.write("\n</think>\n\n"),
            (false, true) => self.write(ERASE),
            (false, false) => Ok(()),
        }
    }

    /// Text as it may reach standard output.
    fn shown(&self, text: &str) -> String {
        if self.screen.is_terminal { printable(text) } else { text.to_owned() }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if let Some(last) = text.chars().next_back() {
            self.at_line_start = last == '\n' || [ERASE, markdown::CLEAR].iter().any(|end| text.ends_with(end));
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}
