//! Markdown in a terminal: an answer is shown as it comes, and each of its blocks again, rendered, when it is finished.
//!
//! Where a block ends, [`Stream`] tells by its lines; how it looks, `render` tells by the events of pulldown-cmark. A block that
//! is taller than the terminal stays as it came, since what has scrolled away cannot be written over. Of fenced code each line is
//! finished by itself.

use std::mem::take;

use console::{Style, measure_text_width};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::table::Table;

/// The most columns of a rendered line; longer ones are hard to read.
const MEASURE: usize = 100;

/// Empties what is below the cursor.
pub const CLEAR: &str = "\x1b[J";

/// An answer on its way to a terminal. Its text has no control characters but line ends.
pub struct Stream {
    rows: usize,
    columns: usize,
    /// The complete lines of the block under way; all of them are shown as they came.
    block: Vec<String>,
    /// The line under way.
    line: String,
    /// What closes the fenced code under way.
    fence: Option<String>,
}

impl Stream {
    /// For a terminal of this size.
    pub fn new(rows: usize, columns: usize) -> Self {
        Stream { rows, columns: columns.max(1), block: Vec::new(), line: String::new(), fence: None }
    }

    /// What to write for more text.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for part in text.split_inclusive('\n') {
            out.push_str(part);
            match part.strip_suffix('\n') {
                None => self.line.push_str(part),
                Some(end) => {
                    let line = take(&mut self.line) + end;
                    self.end_line(line, &mut out);
                }
            }
        }
        out
    }

    /// What to write at the end of the answer, to the end of its last line.
    pub fn finish(mut self) -> String {
        let mut out = if self.line.is_empty() { String::new() } else { self.push("\n") };
        self.end_block(None, &mut out);
        out
    }

    fn end_line(&mut self, line: String, out: &mut String) {
        let is_blank = line.trim().is_empty();
        if let Some(fence) = &self.fence {
            let mark = &fence[..1];
            let closes = line.trim().starts_with(fence.as_str()) && line.trim().trim_start_matches(mark).is_empty();
            if closes {
                self.fence = None;
            }
            if self.block.is_empty() {
                let shown = if closes { String::new() } else { format!("{}\n", code(&line)) };
                self.replace(&[line], &shown, out);
            } else {
                self.block.push(line); // within a list
            }
            return;
        }
        let goes_on = match (self.block.first(), self.block.last()) {
            (Some(first), Some(last)) if is_item(first) => {
                // Behind a blank line, a list goes on with an item or with what belongs to one.
                let is_of_list = is_item(&line) || line.starts_with([' ', '\t']);
                is_blank || is_of_list || !last.trim().is_empty() && !begins_block(&line)
            }
            (Some(_), _) => !is_blank && !is_item(&line) && !begins_block(&line),
            _ => false,
        };
        let underlines =
            is_underline(&line) && self.block.last().is_some_and(|last| !is_item(last) && !last.trim().is_empty());
        let goes_on = goes_on || underlines;
        if !goes_on {
            self.end_block(Some(&line), out);
        }
        self.fence = fence(&line);
        match () {
            () if self.fence.is_some() && !goes_on => {
                let language = line.trim().trim_start_matches(['`', '~']).trim();
                let shown = if language.is_empty() { String::new() } else { format!("{}\n", dim(language)) };
                self.replace(std::slice::from_ref(&line), &shown, out);
            }
            () if is_blank && !goes_on => {}
            () => {
                self.block.push(line);
                if underlines || !goes_on && self.block.last().is_some_and(|line| is_heading(line) || is_rule(line)) {
                    self.end_block(None, out);
                }
            }
        }
    }

    /// Show the finished block rendered. `next` is the line that was shown after it.
    fn end_block(&mut self, next: Option<&str>, out: &mut String) {
        let mut lines = take(&mut self.block);
        let Some(last) = lines.iter().rposition(|line| !line.trim().is_empty()) else { return };
        let text = lines[..=last].join("\n");
        // What links refer to is written for whoever reads it, too.
        let mut shown = match lines[..=last].iter().any(|line| is_definition(line)) {
            true => text + "\n",
            false => render(&text, self.columns.min(MEASURE)),
        };
        shown += &"\n".repeat(lines.len() - 1 - last);
        if let Some(next) = next {
            shown += &format!("{next}\n");
            lines.push(next.to_owned());
        }
        self.replace(&lines, &shown, out);
    }

    /// Write over the last complete lines, if they are all still there.
    fn replace(&self, lines: &[String], shown: &str, out: &mut String) {
        let height: usize = lines.iter().map(|line| self.height(line)).sum();
        if height < self.rows {
            *out += &format!("\x1b[{height}A{CLEAR}{shown}");
        }
    }

    /// The rows that a line takes where the terminal breaks it.
    fn height(&self, line: &str) -> usize {
        let (mut rows, mut column) = (1, 0);
        for width in line.chars().map(|c| measure_text_width(c.encode_utf8(&mut [0; 4]))) {
            if column + width > self.columns {
                (rows, column) = (rows + 1, 0);
            }
            column += width;
        }
        rows
    }
}

fn is_heading(line: &str) -> bool {
    let rest = line.trim_start_matches('#');
    (1..=6).contains(&(line.len() - rest.len())) && rest.starts_with(' ')
}

fn is_rule(line: &str) -> bool {
    let marks: String = line.split_whitespace().collect();
    marks.len() >= 3 && ["-", "*", "_"].iter().any(|mark| marks.trim_start_matches(mark).is_empty())
}

/// Whether a line makes a heading of the paragraph before it.
fn is_underline(line: &str) -> bool {
    let marks = line.trim();
    !marks.is_empty() && ["-", "="].iter().any(|mark| marks.trim_start_matches(mark).is_empty())
}

/// `[1]: https://example.org`
fn is_definition(line: &str) -> bool {
    line.trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]:"))
        .is_some_and(|(name, _)| !name.contains(']'))
}

fn is_item(line: &str) -> bool {
    let text = line.trim_start();
    let number = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_numbered =
        (1..10).contains(&(text.len() - number.len())) && (number.starts_with(". ") || number.starts_with(") "));
    !is_rule(line) && (is_numbered || ["- ", "* ", "+ "].iter().any(|marker| text.starts_with(marker)))
}

/// What closes the code that this line opens.
fn fence(line: &str) -> Option<String> {
    let text = line.trim();
    let mark = text.chars().next().filter(|mark| ['`', '~'].contains(mark))?;
    let length = text.chars().take_while(|c| *c == mark).count();
    (length >= 3 && !text[length..].contains('`')).then(|| text[..length].to_owned())
}

/// Whether a line ends the paragraph before it.
fn begins_block(line: &str) -> bool {
    is_heading(line) || is_rule(line) || fence(line).is_some()
}

fn code(text: &str) -> String {
    let indented = if text.is_empty() { String::new() } else { format!("  {text}") };
    Style::new().cyan().apply_to(indented).to_string()
}

pub fn dim(text: &str) -> String {
    Style::new().dim().apply_to(text).to_string()
}

/// A block as lines of at most `width` columns, each with its end.
fn render(block: &str, width: usize) -> String {
    let mut writer = Writer { width, ..Writer::default() };
    for event in Parser::new_ext(block, Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TABLES) {
        writer.event(event);
    }
    writer.end_line();
    writer.out
}

/// Lines of words, broken where they are full.
#[derive(Default)]
struct Writer {
    width: usize,
    out: String,
    /// The columns of the line under way that are taken.
    column: usize,
    /// Pieces that no space parts, and their columns.
    word: (String, usize),
    is_spaced: bool,
    /// What each line begins with, a piece for each block around it; and the first line of an item with its marker.
    indents: Vec<String>,
    marker: Option<String>,
    styles: Vec<Style>,
    /// The next number of each list around; `None` for bullets.
    lists: Vec<Option<u64>>,
    in_code: bool,
    link: String,
    table: Option<Table>,
}

impl Writer {
    fn event(&mut self, event: Event) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.in_code => {
                for line in text.lines() {
                    self.begin_line();
                    self.out += &code(line);
                    self.column = 1;
                    self.end_line();
                }
            }
            Event::Text(text) => self.text(&text),
            // Its spaces are its own.
            Event::Code(text) if text.contains("  ") => self.whole(Style::new().cyan(), &text),
            Event::Code(text) => self.styled(Style::new().cyan(), &text),
            Event::Html(text) => {
                self.text(text.trim_end_matches('\n'));
                self.end_line();
            }
            Event::InlineHtml(text) => self.text(&text),
            Event::SoftBreak | Event::HardBreak => self.end_line(),
            Event::Rule => {
                self.begin_line();
                self.out += &dim(&"─".repeat(self.width.saturating_sub(self.column).min(40)));
                self.column = 1;
                self.end_line();
            }
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag) {
        match tag {
            // Paragraphs within a list are set apart, as they were written.
            Tag::Paragraph if !self.lists.is_empty() && !self.out.is_empty() => {
                self.end_line();
                self.out += "\n";
            }
            Tag::Heading { .. } => self.styles.push(Style::new().bold().underlined()),
            Tag::Strong => self.styles.push(Style::new().bold()),
            Tag::Emphasis => self.styles.push(Style::new().italic()),
            Tag::Strikethrough => self.styles.push(Style::new().strikethrough()),
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => {
                self.link = dest_url.into_string();
                self.styles.push(Style::new().underlined());
            }
            Tag::BlockQuote(_) => {
                self.end_line();
                self.indents.push(dim("│ "));
            }
            Tag::CodeBlock(_) => {
                self.end_line();
                self.in_code = true;
            }
            Tag::List(first) => {
                self.end_line();
                self.lists.push(first);
            }
            Tag::Item => {
                let marker = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}. ", *number - 1)
                    }
                    _ => "• ".to_owned(),
                };
                self.indents.push(" ".repeat(measure_text_width(&marker)));
                self.marker = Some(marker);
            }
            Tag::Table(alignments) => {
                self.end_line();
                self.table = Some(Table::new(alignments));
            }
            Tag::TableHead => {
                self.styles.push(Style::new().bold());
                self.row();
            }
            Tag::TableRow => self.row(),
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph => self.end_line(),
            TagEnd::Heading(_) => {
                self.end_line();
                self.styles.pop();
            }
            TagEnd::Strong | TagEnd::Emphasis | TagEnd::Strikethrough => drop(self.styles.pop()),
            TagEnd::Link | TagEnd::Image => {
                self.styles.pop();
                let link = take(&mut self.link);
                if !self.word.0.contains(&link) {
                    self.text(" ");
                    self.styled(Style::new().dim(), &format!("({link})"));
                }
            }
            TagEnd::BlockQuote(_) | TagEnd::Item => {
                self.end_line();
                self.indents.pop();
            }
            TagEnd::CodeBlock => self.in_code = false,
            TagEnd::List(_) => drop(self.lists.pop()),
            TagEnd::TableHead => drop(self.styles.pop()),
            TagEnd::TableCell => {
                self.end_word();
                if let Some(table) = &mut self.table {
                    table.end_cell();
                }
            }
            TagEnd::Table => {
                let indent: usize = self.indents.iter().map(|indent| measure_text_width(indent)).sum();
                for line in
                    self.table.take().map(|table| table.lines(self.width.saturating_sub(indent))).unwrap_or_default()
                {
                    self.begin_line();
                    self.out += &line;
                    self.column = 1;
                    self.end_line();
                }
            }
            _ => {}
        }
    }

    fn row(&mut self) {
        if let Some(table) = &mut self.table {
            table.begin_row();
        }
    }

    /// More of the word under way.
    fn word(&mut self, word: &str) {
        let styled = self.styles.iter().fold(word.to_owned(), |text, style| style.apply_to(text).to_string());
        self.word.0 += &styled;
        self.word.1 += measure_text_width(word);
    }

    /// A text that is not broken.
    fn whole(&mut self, style: Style, text: &str) {
        self.styles.push(style);
        self.word(text);
        self.styles.pop();
    }

    fn text(&mut self, text: &str) {
        for piece in text.split_inclusive(char::is_whitespace) {
            let word = piece.trim_end();
            if !word.is_empty() {
                self.word(word);
            }
            if word.len() < piece.len() {
                self.end_word();
                self.is_spaced = true;
            }
        }
    }

    fn styled(&mut self, style: Style, text: &str) {
        self.styles.push(style);
        self.text(text);
        self.styles.pop();
    }

    fn end_word(&mut self) {
        let (word, width) = take(&mut self.word);
        if width == 0 {
            return;
        }
        if let Some(table) = &mut self.table {
            return table.push((word, width));
        }
        let space = usize::from(self.is_spaced && self.column > 0);
        if self.column > 0 && self.column + space + width > self.width {
            self.out += "\n";
            self.column = 0;
        } else if space > 0 {
            self.out += " ";
            self.column += 1;
        }
        self.begin_line();
        self.out += &word;
        self.column += width;
        self.is_spaced = false;
    }

    /// Indent, if nothing stands in the line yet.
    fn begin_line(&mut self) {
        if self.column > 0 {
            return;
        }
        let marker = self.marker.take();
        for (i, indent) in self.indents.iter().enumerate() {
            let is_last = i + 1 == self.indents.len();
            self.out += marker.as_ref().filter(|_| is_last).unwrap_or(indent);
        }
        self.column = self.indents.iter().map(|indent| measure_text_width(indent)).sum();
    }

    fn end_line(&mut self) {
        self.end_word();
        if self.column > 0 {
            self.out += "\n";
        }
        self.column = 0;
        self.is_spaced = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "# A **plan**\n\nFirst, *look* at `x`, which is a long line that the terminal has to break somewhere.\n\
        1. one\n2. two\n   - deep\n\n3. three\n\n```python\ndef f():\n    return 1\n\n# no heading\n```\n> quoted\n\n---\nThe end: \
        [site](https://example.org) <b>\n| a | b |\n|---|---|\nlast";

    /// What a terminal of this size shows after the answer came in such pieces.
    fn shown(answer: &str, piece: usize, rows: u16, columns: u16) -> vt100::Parser {
        let mut terminal = vt100::Parser::new(rows.try_into().unwrap(), columns.try_into().unwrap(), 0);
        let mut stream = Stream::new(rows.into(), columns.into());
        let mut write = |text: String| terminal.process(text.replace('\n', "\r\n").as_bytes());
        write("> question\n".into());
        let characters: Vec<char> = answer.chars().collect();
        for piece in characters.chunks(piece) {
            write(stream.push(&piece.iter().collect::<String>()));
        }
        write(stream.finish());
        terminal
    }

    #[test]
    fn finished_blocks_are_rendered_however_they_come() {
        console::set_colors_enabled(true);
        let expected = "> question\nA plan\n\nFirst, look at x, which is a long line\nthat the terminal has to break\nsomewhere.\n\
            1. one\n\n2. two\n   • deep\n\n3. three\n\npython\n  def f():\n      return 1\n\n  # no heading\n│ quoted\n\n\
            ────────────────────────────────────────\nThe end: site (https://example.org) <b>\na    │ b\n─────┼──\nlast │ ";
        for piece in [1, 2, 7, 10_000] {
            let terminal = shown(ANSWER, piece, 40, 40);
            assert_eq!(terminal.screen().contents(), expected, "in pieces of {piece}");
            let is_bold = |row, column| terminal.screen().cell(row, column).unwrap().bold();
            assert!(is_bold(1, 0) && is_bold(1, 2) && !is_bold(3, 0));
            assert!(terminal.screen().cell(3, 7).unwrap().italic());
            assert_eq!(terminal.screen().cell(3, 15).unwrap().fgcolor(), vt100::Color::Idx(6));
        }
    }

    /// Catches: a table that is taken for a paragraph, or that is wider than the terminal.
    #[test]
    fn tables_are_aligned_and_fit() {
        console::set_colors_enabled(true);
        let table = "Before\n\n| Colour | Share | What it is |\n|:--|--:|:-:|\n| **blue** | 4.4 | the colour of a clear sky |\n\
            | `red` | 12 | a \\| b |\n| 漢字 | | \n\nAfter";
        let wide = "> question\nBefore\n\n\
            Colour │ Share │        What it is\n\
            ───────┼───────┼──────────────────────────\n\
            blue   │   4.4 │ the colour of a clear sky\n\
            red    │    12 │           a | b\n\
            漢字   │       │\n\nAfter";
        let narrow = "> question\nBefore\n\n\
            Colour │ Share │ What it is\n\
            ───────┼───────┼────────────\n\
            blue   │   4.4 │ the colour\n\
            \u{20}      │       │ of a clear\n\
            \u{20}      │       │     sky\n\
            red    │    12 │    a | b\n\
            漢字   │       │\n\nAfter";
        for (columns, expected) in [(60, wide), (28, narrow)] {
            for piece in [1, 7, 10_000] {
                let terminal = shown(table, piece, 40, columns);
                let found = terminal.screen().contents();
                let lines: Vec<&str> = found.lines().map(str::trim_end).collect();
                assert_eq!(lines.join("\n"), expected, "{columns} columns, in pieces of {piece}");
                assert!(terminal.screen().cell(3, 0).unwrap().bold() && terminal.screen().cell(5, 0).unwrap().bold());
            }
        }
    }

    /// Catches: text that vanishes, code that ends too early or late, lines that are joined, or wider than the terminal.
    #[test]
    fn nothing_is_lost() {
        console::set_colors_enabled(true);
        for (answer, expected) in [
            (
                "Sources:\n\n[1]: https://a.example\n[2]: https://b.example\n\nEnd",
                "Sources:\n\n[1]: https://a.example\n[2]: https://b.example\n\nEnd",
            ),
            ("a\n\n<div>\nfoo\n</div>\n\nb", "a\n\n<div>\nfoo\n</div>\n\nb"),
            ("```\ncode\n```python\nmore\n```\nafter", "  code\n  ```python\n  more\nafter"),
            ("`a    b` c", "a    b c"),
            ("Sub\n---\ntext", "Sub\ntext"),
            ("Top\n===\ntext", "Top\ntext"),
            ("11. eleven words of one two three four", "11. eleven words of one two\n    three four"),
        ] {
            for piece in [1, 7, 10_000] {
                let found = shown(answer, piece, 20, 30).screen().contents();
                assert_eq!(
                    found.lines().skip(1).collect::<Vec<_>>().join("\n"),
                    expected,
                    "{answer:?} in pieces of {piece}"
                );
            }
        }
    }

    /// What has scrolled away cannot be written over, and what stands above the answer must not be.
    #[test]
    fn a_block_that_is_taller_than_the_terminal_stays_as_it_came() {
        let tall = "*word* word word\n".repeat(9);
        let terminal = shown(&format!("{tall}\n*end*\n"), 3, 8, 20);
        let found = terminal.screen().contents();
        assert!(found.starts_with("*word* word word\n") && found.ends_with("\nend"), "{found}");
        // Wide characters do not fit into a last column.
        let wide = shown(&format!("{}\n\nx", "漢".repeat(7)), 1, 12, 5);
        assert_eq!(wide.screen().contents().replace('\n', ""), format!("> question{}x", "漢".repeat(7)));
    }
}
