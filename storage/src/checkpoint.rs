//! Small text files that are replaced whole: Kafka's checkpoints and property files.
//!
//! ```text
//! 0                       version
//! 2                       number of entries
//! orders 0 4711           topic, partition, offset
//! orders 1 0
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use crate::Offset;

/// Version of the format above; there has been no other.
const VERSION: &str = "0";

/// A partition as its directory is named.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TopicPartition {
    /// Name of the topic.
    pub topic: String,
    /// Index of the partition, from 0.
    pub partition: i32,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Offsets by partition: the contents of a checkpoint.
pub(crate) type Checkpoint = BTreeMap<TopicPartition, Offset>;

/// Replaces `path` so that after a crash it has the old contents or the new, never a mixture:
/// temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// The first step that failed. The old contents are still in place unless it was the last step,
/// after which it is not known which of the two a crash would leave.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// The same for the file `name` of a directory that may be renamed meanwhile: names are used under its lock,
/// and the disk is waited for outside.
///
/// # Errors
/// As [`replace`].
pub(crate) fn replace_in(
    directory: &RwLock<PathBuf>,
    name: &str,
    contents: &[u8],
) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    let mut file = {
        let directory = directory.read();
        File::create(directory.join(&temporary))?
    };
    file.write_all(contents)?;
    file.sync_all()?;
    {
        let directory = directory.read();
        fs::rename(directory.join(&temporary), directory.join(name))?;
    }
    sync_entries(directory)
}

/// Makes the entries of a directory durable that may be renamed meanwhile.
///
/// # Errors
/// open(2), fsync(2).
pub(crate) fn sync_entries(directory: &RwLock<PathBuf>) -> io::Result<()> {
    let opened = File::open(&*directory.read())?;
    opened.sync_all()
}

/// Makes the directory entry of `path` durable.
///
/// # Errors
/// open(2), fsync(2).
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(path.parent().ok_or(io::ErrorKind::InvalidInput)?)
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// open(2), fsync(2).
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a checkpoint.
///
/// # Errors
/// As [`replace`].
pub(crate) fn write(path: &Path, offsets: &Checkpoint) -> io::Result<()> {
    let mut text = format!("{VERSION}\n{}\n", offsets.len());
    for (TopicPartition { topic, partition }, offset) in offsets {
        text.push_str(&format!("{topic} {partition} {offset}\n"));
    }
    replace(path, text.as_bytes())
}

/// Reads a checkpoint; a missing one is empty.
///
/// # Errors
/// `InvalidData` with the line that is wrong; read(2).
pub(crate) fn read(path: &Path) -> io::Result<Checkpoint> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Checkpoint::new()),
        result => result?,
    };
    parse(&text).map_err(|what| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {what}", path.display()),
        )
    })
}

fn parse(text: &str) -> Result<Checkpoint, String> {
    let mut lines = text.lines();
    let version = lines.next().unwrap_or_default();
    if version != VERSION {
        return Err(format!("unknown checkpoint version {version:?}"));
    }
    let count = lines.next().unwrap_or_default();
    let count: usize = count
        .parse()
        .map_err(|_| format!("{count:?} is no number of entries"))?;
    let mut offsets = Checkpoint::new();
    for line in lines {
        let (key, offset) = parse_entry(line).ok_or_else(|| format!("bad entry {line:?}"))?;
        if offsets.insert(key, offset).is_some() {
            return Err(format!("two entries like {line:?}"));
        }
    }
    if offsets.len() != count {
        return Err(format!(
            "{count} entries announced, {} found",
            offsets.len()
        ));
    }
    Ok(offsets)
}

fn parse_entry(line: &str) -> Option<(TopicPartition, Offset)> {
    let mut fields = line.split(' ');
    let topic = fields.next()?.to_owned();
    let partition = fields.next()?.parse().ok()?;
    let offset = fields.next()?.parse().ok().filter(|offset| *offset >= 0)?;
    match fields.next() {
        None => Some((TopicPartition { topic, partition }, Offset(offset))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_written_and_in_kafkas_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recovery-point-offset-checkpoint");
        assert_eq!(read(&path).unwrap(), Checkpoint::new());
        let key = |topic: &str, partition| TopicPartition {
            topic: topic.into(),
            partition,
        };
        let offsets = Checkpoint::from([
            (key("orders", 0), Offset(4711)),
            (key("orders", 1), Offset(0)),
        ]);
        write(&path, &offsets).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "0\n2\norders 0 4711\norders 1 0\n"
        );
        assert_eq!(read(&path).unwrap(), offsets);
    }

    #[test]
    fn damage_is_named_and_never_read_as_empty() {
        for (text, what) in [
            ("", "version"),
            ("1\n0\n", "version"),
            ("0\n", "number of entries"),
            ("0\n2\na 0 1\n", "2 entries announced, 1 found"),
            ("0\n1\na 0\n", "bad entry"),
            ("0\n1\na 0 -1\n", "bad entry"),
            ("0\n1\na 0 1 2\n", "bad entry"),
            ("0\n2\na 0 1\na 0 2\n", "two entries"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text:?}: {error}");
        }
    }
}
