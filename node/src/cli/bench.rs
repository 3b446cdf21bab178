//! `kittiwake bench ...`: load and measurement against any Kafka-compatible broker, and of the
//! kernel's ways to move a file.

use std::fmt;

pub mod consume;
mod figures;
pub mod latency;
mod load;
mod pacer;
pub mod produce;
pub mod transfer;

/// Measure a broker, or this machine.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Write as fast as the broker takes it
    Produce(produce::Args),
    /// Read a topic from its beginning as fast as the broker sends it
    Consume(consume::Args),
    /// Measure how long records take
    Latency(latency::Args),
    /// Compare ways to send and receive a file over TCP
    Transfer(transfer::Args),
}

/// Arguments of `kittiwake bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Runs the chosen bench.
///
/// # Errors
/// One sentence: what could not be measured and why.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Produce(args) => produce::run(args).await,
        Command::Consume(args) => consume::run(args).await,
        Command::Latency(args) => latency::run(args).await,
        Command::Transfer(args) => transfer::run(args).await,
    }
}

/// How figures are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Columns that line up.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|&name| name.to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell_width = |row: &Vec<String>, column: usize| {
            row.get(column).map_or(0, |cell| cell.chars().count())
        };
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .map(|row| cell_width(row, column))
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// `1073741824` as `1GiB`: the largest unit that divides it.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let (name, unit) = UNITS
        .into_iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .unwrap_or(("B", 1));
    format!("{}{name}", bytes / unit)
}

/// Reads `64KiB`, `1MiB`, `2GiB`, `100B` or `100`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = UNITS
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .unwrap_or((text, 1));
    digits
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .ok_or_else(|| "expected a number of bytes, such as 65536, 64KiB, 1MiB or 2GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_printed() {
        for (text, bytes) in [
            ("0B", 0),
            ("1023B", 1023),
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("3GiB", 3 << 30),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes));
            assert_eq!(bytes_text(bytes), text);
        }
        assert_eq!(parse_bytes("100"), Ok(100));
        for bad in ["", "KiB", "-1", "1.5MiB", "1kb", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn tables_line_up_and_do_not_trail_blanks() {
        let mut table = Table::new(&["a", "bcd"]);
        table.row(["long".to_owned(), "x".to_owned()]);
        assert_eq!(table.to_string(), "a     bcd\nlong  x\n");
    }
}
