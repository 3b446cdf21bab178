//! `docs/configuration.md`, from the tables of keys.

use std::fmt::Write as _;

use super::broker::{BROKER_KEYS, BrokerKey};
use super::dynamic::DYNAMIC_KEYS;
use super::topic::TOPIC_KEYS;

const HEAD: &str = "\
# Configuration

`kittiwake serve --config FILE` reads TOML with Kafka's property names. `log.retention.ms = 5`,
`\"log.retention.ms\" = 5` and `[log.retention]` with `ms = 5` are the same; quotes are needed where one key is the
beginning of another (`max.connections` and `\"max.connections.per.ip\"`). An unknown key is an error.
`kittiwake serve --config FILE --check` reports every fault at once and starts nothing.

An environment variable overrides the file: `KITTIWAKE_` and the key in capitals with `_` for `.`
(`KITTIWAKE_LOG_RETENTION_MS`); a key that begins with `kittiwake.` is not prefixed twice (`KITTIWAKE_DURABILITY`).

This page is written by `kittiwake serve --print-config-docs`.

";

/// The documentation of every key, as Markdown.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("## The broker\n\n| key | type | default | |\n|---|---|---|---|\n");
    for key in BROKER_KEYS {
        row(
            &mut page,
            key.name,
            &type_of(key),
            &default_of(key),
            key.doc,
        );
    }
    page.push_str(
        "\n## Defaults of topics\n\nA topic's own configuration, under the name in brackets, goes before these.\n\n\
         | key | type | default | |\n|---|---|---|---|\n",
    );
    for key in TOPIC_KEYS {
        let mut names = key.broker_keys();
        let Some(name) = names.next() else { continue };
        let coarser: Vec<String> = names.map(|name| format!("`{name}`")).collect();
        let mut doc = format!("({}) {}", key.name, key.doc);
        if !coarser.is_empty() {
            let _ = write!(doc, " Also as {}.", coarser.join(", "));
        }
        row(
            &mut page,
            name,
            &format!("{:?}", key.kind.wire_type()).to_lowercase(),
            &code(key.default),
            &doc,
        );
    }
    page.push_str(
        "\n## Set while the cluster runs\n\nNever in the file: by Kafka's configuration tools, for one broker or for all.\n\n\
         | key | type | default | |\n|---|---|---|---|\n",
    );
    for key in DYNAMIC_KEYS {
        let kind = format!("{:?}", key.kind.wire_type()).to_lowercase();
        row(&mut page, key.name, &kind, &code(key.default), key.doc);
    }
    page
}

fn row(page: &mut String, name: &str, kind: &str, default: &str, doc: &str) {
    let _ = writeln!(
        page,
        "| `{name}` | {kind} | {default} | {} |",
        doc.replace('|', "\\|")
    );
}

fn type_of(key: &BrokerKey) -> String {
    match key.range {
        None => key.type_name.to_owned(),
        Some((min, i128::MAX)) => format!("{} ≥ {min}", key.type_name),
        Some((min, max)) => format!("{} {min}–{max}", key.type_name),
    }
}

fn default_of(key: &BrokerKey) -> String {
    key.default.map_or_else(|| "**required**".to_owned(), code)
}

fn code(value: &str) -> String {
    if value.is_empty() {
        String::new()
    } else {
        format!("`{value}`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_page_is_in_step() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let committed = std::fs::read_to_string(path).unwrap();
        let write_it = "run: kittiwake serve --print-config-docs > docs/configuration.md";
        assert!(
            committed == markdown(),
            "docs/configuration.md is out of step; {write_it}"
        );
    }
}
