//! A topic name that Kafka forbids is refused, and nothing appears on disk for it, inside the data directory or outside.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::wire::{Bytes, Connection};

const METADATA: i16 = 3;
const CREATE_TOPICS: i16 = 19;
const INVALID_TOPIC_EXCEPTION: i16 = 17;

/// Every path under `root`.
fn paths(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    Ok(found)
}

/// Metadata v4 naming one topic, auto-creation allowed: the topic's error code.
fn metadata(connection: &mut Connection, name: &str) -> Result<i16> {
    let answer = connection
        .call(METADATA, 4, &Bytes::new().i32(1).string(name).i8(1).0)?
        .context("Metadata is answered")?;
    // throttle i32 | brokers i32 | node i32, host string, port i32, rack string or null | cluster id string or null |
    // controller i32 | topics i32 | error i16 | …
    let int = |at: usize| -> Result<i32> {
        let bytes = answer.get(at..at + 4).context("a short Metadata answer")?;
        Ok(i32::from_be_bytes(bytes.try_into()?))
    };
    let short = |at: usize| -> Result<i16> {
        let bytes = answer.get(at..at + 2).context("a short Metadata answer")?;
        Ok(i16::from_be_bytes(bytes.try_into()?))
    };
    let after_string =
        |at: usize| -> Result<usize> { Ok(at + 2 + usize::try_from(short(at)?.max(0))?) };
    let mut at = 8;
    for _ in 0..int(4)? {
        at = after_string(after_string(at + 4)? + 4)?;
    }
    at = after_string(at)? + 4;
    ensure!(
        int(at)? == 1,
        "{} topics instead of the one asked for",
        int(at)?
    );
    short(at + 4)
}

/// CreateTopics v2 of one topic: its error code.
fn create(connection: &mut Connection, name: &str) -> Result<i16> {
    let body = Bytes::new()
        .i32(1)
        .string(name)
        .i32(1)
        .i16(1)
        .i32(0)
        .i32(0)
        .i32(20_000)
        .i8(0);
    let answer = connection
        .call(CREATE_TOPICS, 2, &body.0)?
        .context("CreateTopics is answered")?;
    // throttle i32 | topics i32 | name string | error i16
    let at = 4 + 4 + 2 + name.len();
    Ok(i16::from_be_bytes(answer[at..at + 2].try_into()?))
}

#[test]
fn invalid_names_create_nothing() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    let mut connection = Connection::open(cluster.node(0).kafka())?;
    let data = cluster.node(0).data_directory();
    let home = data.parent().context("the data directory has a parent")?;
    let before = paths(home)?;
    let long = "x".repeat(250);
    let names = [
        "",
        ".",
        "..",
        "../escape",
        "/tmp/escape",
        "a/b",
        "a b",
        "a\0b",
        "a\nb",
        "tøpic",
        "a:b",
        "-\u{202e}",
        "%2e%2e",
        "a\\b",
        &long,
    ];
    for name in names {
        ensure!(
            create(&mut connection, name)? == INVALID_TOPIC_EXCEPTION,
            "CreateTopics {name:?}"
        );
        ensure!(
            metadata(&mut connection, name)? == INVALID_TOPIC_EXCEPTION,
            "Metadata {name:?}"
        );
    }
    let after = paths(home)?;
    let appeared: Vec<_> = after.difference(&before).collect();
    ensure!(appeared.is_empty(), "appeared on disk: {appeared:?}");
    ensure!(
        create(&mut connection, &long[..249])? == 0,
        "249 characters are allowed"
    );
    Ok(())
}
