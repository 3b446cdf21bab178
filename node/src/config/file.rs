//! A configuration file: TOML, flattened to Kafka's dotted keys.
//!
//! `log.retention.ms = 5`, `"log.retention.ms" = 5` and `[log.retention]` with `ms = 5` are the same. Quotes are needed
//! where one key is the beginning of another: `max.connections` and `"max.connections.per.ip"`.

use toml::de::{DeTable, DeValue};

/// One value of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// The dotted key.
    pub(super) key: String,
    /// The value as text; a list is joined by commas, as Kafka writes lists.
    pub(super) value: String,
    /// The line it is on, from 1.
    pub(super) line: usize,
}

/// Something in a file that is not a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Flaw {
    /// The line, from 1, where known.
    pub(super) line: Option<usize>,
    /// What is wrong.
    pub(super) reason: String,
}

/// Reads a whole file; what can be read is, whatever else is wrong.
pub(super) fn parse(text: &str) -> (Vec<Entry>, Vec<Flaw>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut flat = Flat {
        text,
        entries: Vec::new(),
        flaws: Vec::new(),
    };
    for error in errors {
        let line = error.span().map(|span| flat.line(span.start));
        flat.flaws.push(Flaw {
            line,
            reason: explain(error.message()),
        });
    }
    flat.table("", table.get_ref());
    flat.entries.sort_by_key(|entry| entry.line);
    (flat.entries, flat.flaws)
}

/// TOML's complaint about `max.connections` beside `max.connections.per.ip` does not say what to do.
fn explain(message: &str) -> String {
    if message.contains("dotted key") {
        format!("{message} (put a key in quotes when another key begins with it)")
    } else {
        message.to_owned()
    }
}

struct Flat<'a> {
    text: &'a str,
    entries: Vec<Entry>,
    flaws: Vec<Flaw>,
}

impl Flat<'_> {
    fn line(&self, position: usize) -> usize {
        self.text
            .bytes()
            .take(position)
            .filter(|byte| *byte == b'\n')
            .count()
            + 1
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let line = self.line(key.span().start);
            let name = key.get_ref();
            let key = if prefix.is_empty() {
                name.to_string()
            } else {
                format!("{prefix}.{name}")
            };
            if let DeValue::Table(inner) = value.get_ref() {
                self.table(&key, inner);
                continue;
            }
            match text_of(value.get_ref()) {
                Ok(value) => self.entries.push(Entry { key, value, line }),
                Err(kind) => {
                    self.flaws.push(Flaw {
                        line: Some(line),
                        reason: format!("{key}: {kind} is not a value of any key"),
                    });
                }
            }
        }
    }
}

fn text_of(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        // Underscores are TOML's: 1_000_000. Other radixes stay as written and are refused by the key.
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().replace('_', "")),
        DeValue::Integer(_) => Err("a number that is not decimal"),
        DeValue::Float(number) => Ok(number.as_str().replace('_', "")),
        DeValue::Array(items) => {
            let items: Vec<String> = items
                .iter()
                .map(|item| text_of(item.get_ref()))
                .collect::<Result<_, _>>()?;
            Ok(items.join(","))
        }
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Table(_) => Err("a table"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(String, String, usize)> {
        let (entries, flaws) = parse(text);
        assert_eq!(flaws, []);
        entries
            .into_iter()
            .map(|entry| (entry.key, entry.value, entry.line))
            .collect()
    }

    #[test]
    fn every_way_to_write_a_key_is_the_same() {
        let expected = |line| vec![("log.retention.ms".to_owned(), "5".to_owned(), line)];
        assert_eq!(entries("log.retention.ms = 5"), expected(1));
        assert_eq!(entries("\n\"log.retention.ms\" = 5"), expected(2));
        assert_eq!(entries("[log.retention]\nms = 5"), expected(2));
        assert_eq!(entries("[log]\n\nretention.ms = '5'"), expected(3));
    }

    #[test]
    fn values_become_text() {
        let text = "a = 1_000\nb = true\nc = ['x', 'y']\nd = -0.5\ne = ''";
        let values: Vec<String> = entries(text)
            .into_iter()
            .map(|(_, value, _)| value)
            .collect();
        assert_eq!(values, ["1000", "true", "x,y", "-0.5", ""]);
    }

    #[test]
    fn flaws_do_not_hide_each_other_or_what_is_right() {
        let (entries, flaws) = parse("a = 1\nb = 1979-05-27\nc = = 2\nd = 0x10\ne = 5\n");
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        assert!(keys.contains(&"a") && keys.contains(&"e"), "{keys:?}");
        let lines: Vec<Option<usize>> = flaws.iter().map(|flaw| flaw.line).collect();
        for line in [2, 3, 4] {
            assert!(lines.contains(&Some(line)), "line {line}: {flaws:?}");
        }
    }

    #[test]
    fn a_key_that_begins_another_needs_quotes() {
        let (_, flaws) = parse("max.connections = 5\nmax.connections.per.ip = 3\n");
        assert!(
            flaws.iter().any(|flaw| flaw.reason.contains("quotes")),
            "{flaws:?}"
        );
        assert_eq!(
            entries("max.connections = 5\n\"max.connections.per.ip\" = 3\n").len(),
            2
        );
    }
}
