//! What commands print: aligned tables for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde::Serialize;

/// `--output`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// Rows under headings, aligned when printed.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

/// Blanks between columns.
const GAP: usize = 2;

impl Table {
    /// A table of these columns.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self {
            rows: vec![headings.map(str::to_owned).to_vec()],
        }
    }

    /// Adds a row of as many cells as there are headings.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells.to_vec());
    }

    /// The table as text, a line per row, nothing after the last cell.
    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string does not fail.
                let _ = write!(line, "{}{:gap$}", pad(cell, *width), "", gap = GAP);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Control characters of names that came from others must not reach the terminal.
fn pad(cell: &str, width: usize) -> String {
    let cell: String = cell
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    format!("{cell:width$}")
}

/// Prints `value` as JSON, or the table made by `text`.
///
/// # Errors
/// Standard output cannot be written. That its reader has gone is none.
pub fn print<T: Serialize>(
    output: Output,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match output {
        Output::Text => text(value),
        Output::Json => serde_json::to_string_pretty(value)? + "\n",
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ids, separated by commas, or a dash where there are none.
pub fn ids(ids: &[i32]) -> String {
    let ids: Vec<String> = ids.iter().map(i32::to_string).collect();
    or_dash((!ids.is_empty()).then(|| ids.join(",")))
}

/// A value, or a dash where there is none.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_do_not_trail() {
        let mut table = Table::new(["NAME", "PARTITIONS", "ID"]);
        table.row(["a".into(), "1".into(), String::new()]);
        table.row(["möwe-topic".into(), "100000".into(), "x".into()]);
        let expected = "NAME        PARTITIONS  ID\na           1\nmöwe-topic  100000      x\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let mut table = Table::new(["NAME"]);
        table.row(["\u{1b}[2J\n".into()]);
        assert_eq!(table.render(), "NAME\n\u{fffd}[2J\u{fffd}\n");
    }

    #[test]
    fn nothing_is_a_dash() {
        assert_eq!(or_dash(None::<i32>), "-");
        assert_eq!(or_dash(Some(3)), "3");
        assert_eq!(ids(&[1, 2]), "1,2");
        assert_eq!(ids(&[]), "-");
    }
}
