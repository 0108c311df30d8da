//! A table of Markdown in a terminal.

use console::measure_text_width;
use pulldown_cmark::Alignment;

use super::markdown::dim;

/// Text with its style, and the columns that it takes.
type Word = (String, usize);

/// A table under way.
pub struct Table {
    alignments: Vec<Alignment>,
    /// The words of each cell; the first row is the head.
    rows: Vec<Vec<Vec<Word>>>,
    cell: Vec<Word>,
}

impl Table {
    pub fn new(alignments: Vec<Alignment>) -> Self {
        Table { alignments, rows: Vec::new(), cell: Vec::new() }
    }

    pub fn begin_row(&mut self) {
        self.rows.push(Vec::new());
    }

    pub fn push(&mut self, word: Word) {
        self.cell.push(word);
    }

    pub fn end_cell(&mut self) {
        let cell = std::mem::take(&mut self.cell);
        if let Some(row) = self.rows.last_mut() {
            row.push(cell);
        }
    }

    /// Its lines, of at most `width` columns unless its words are too long for that.
    pub fn lines(&self, width: usize) -> Vec<String> {
        let widths = self.widths(width);
        let mut lines = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            let cells: Vec<Vec<String>> = row.iter().zip(&widths).map(|(cell, &width)| wrapped(cell, width)).collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(0);
            for at in 0..height {
                let columns = cells.iter().zip(&widths).zip(&self.alignments);
                let columns = columns.map(|((cell, &width), alignment)| {
                    aligned(cell.get(at).map_or("", String::as_str), width, *alignment)
                });
                let line = columns.collect::<Vec<_>>().join(&dim(" │ "));
                lines.push(line.trim_end().to_owned());
            }
            if i == 0 {
                let rule = widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>().join("─┼─");
                lines.push(dim(&rule));
            }
        }
        lines
    }

    /// Of each column: the widest have their lines broken until all fit.
    fn widths(&self, width: usize) -> Vec<usize> {
        let n = self.alignments.len();
        let widest = |of: fn(&[Word]) -> usize, i: usize| {
            self.rows.iter().filter_map(|row| row.get(i)).map(|cell| of(cell)).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..n).map(|i| widest(line_width, i).max(1)).collect();
        let least: Vec<usize> = (0..n).map(|i| widest(longest_word, i).max(1)).collect();
        let available = width.saturating_sub(3 * n.saturating_sub(1));
        while widths.iter().sum::<usize>() > available {
            let broken = (0..n).filter(|&i| widths[i] > least[i]).max_by_key(|&i| widths[i]);
            let Some(i) = broken else { break };
            widths[i] -= 1;
        }
        widths
    }
}

fn line_width(words: &[Word]) -> usize {
    words.iter().map(|(_, width)| width + 1).sum::<usize>().saturating_sub(1)
}

fn longest_word(words: &[Word]) -> usize {
    words.iter().map(|(_, width)| *width).max().unwrap_or(0)
}

fn wrapped(words: &[Word], width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut column = 0;
    for (word, columns) in words {
        if column > 0 && column + 1 + columns > width {
            lines.push(String::new());
            column = 0;
        }
        let line = lines.last_mut().expect("there is a line");
        if column > 0 {
            line.push(' ');
            column += 1;
        }
        line.push_str(word);
        column += columns;
    }
    lines
}

fn aligned(text: &str, width: usize, alignment: Alignment) -> String {
    let free = width.saturating_sub(measure_text_width(text));
    let before = match alignment {
        Alignment::None | Alignment::Left => 0,
        Alignment::Center => free / 2,
        Alignment::Right => free,
    };
    format!("{}{text}{}", " ".repeat(before), " ".repeat(free - before))
}
