//! Whose a data directory is, and how its last user left it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::names::parse_directory_name;
use super::{LogDirError, LogDirOptions};
use crate::checkpoint;
use crate::partition_metadata::encode_id;
use crate::properties::{self, Properties};

const LOCK: &str = ".lock";
const META: &str = "meta.properties";
const BOOT_ID: &str = ".kittiwake_boot_id";
pub(crate) const CLEAN_SHUTDOWN: &str = ".kittiwake_clean_shutdown";

/// How the process that used the directory before has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LastStop {
    /// The directory is new.
    New,
    /// Everything was flushed. `broker_epoch` is the one it was registered with.
    Clean {
        /// From the marker.
        broker_epoch: i64,
    },
    /// Without a goodbye, but the machine has not restarted: what was appended is in the page cache.
    Killed,
    /// The machine restarted too: what was not flushed may be gone.
    Lossy,
}

pub(super) fn lock(path: &Path) -> Result<File, LogDirError> {
    let failed = |source| LogDirError::Io {
        path: path.to_owned(),
        source,
    };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK))
        .map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LogDirError::InUse(path.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Checks whose directory it is; an empty one becomes the caller's.
pub(super) fn claim(path: &Path, options: &LogDirOptions) -> Result<Properties, LogDirError> {
    let failed = |source| LogDirError::Io {
        path: path.to_owned(),
        source,
    };
    let file = path.join(META);
    let Some(meta) = Properties::read(&file).map_err(failed)? else {
        if holds_partitions(path).map_err(failed)? {
            return Err(LogDirError::Unclaimed(path.to_owned()));
        }
        let meta = Properties::new()
            .with("cluster.id", &options.cluster_id)
            .with("node.id", options.node_id)
            .with("directory.id", encode_id(Uuid::new_v4()));
        meta.write(&file).map_err(failed)?;
        return Ok(meta);
    };
    if meta
        .number::<i32>("version")
        .is_none_or(|version| version > properties::VERSION)
    {
        return Err(LogDirError::NewerFormat {
            path: path.to_owned(),
            found: meta.get("version").unwrap_or("unknown").to_owned(),
            known: properties::VERSION,
        });
    }
    for (key, expected) in [
        ("cluster.id", options.cluster_id.clone()),
        ("node.id", options.node_id.to_string()),
    ] {
        if meta.get(key) != Some(&expected) {
            return Err(LogDirError::Foreign {
                path: path.to_owned(),
                key,
                found: meta.get(key).unwrap_or("nobody").to_owned(),
                expected,
            });
        }
    }
    Ok(meta)
}

/// Reads how the last process ended and removes the marker, durably, before anything is appended. The boot it was seen in
/// stays on record until [`begin_life`]: whoever starts again before that must find the same.
pub(super) fn last_stop(path: &Path, boot_id: &str) -> io::Result<LastStop> {
    let marker = path.join(CLEAN_SHUTDOWN);
    let boot_file = path.join(BOOT_ID);
    let clean = Properties::read(&marker)?.and_then(|marker| marker.number("broker.epoch"));
    let last_boot = match fs::read_to_string(&boot_file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result?),
    };
    if marker.exists() {
        fs::remove_file(&marker)?;
        checkpoint::sync_directory(path)?;
    }
    Ok(match (clean, last_boot) {
        (Some(broker_epoch), _) => LastStop::Clean { broker_epoch },
        (None, None) => LastStop::New,
        (None, Some(last)) if last.trim() == boot_id => LastStop::Killed,
        (None, Some(_)) => LastStop::Lossy,
    })
}

/// Puts on record that the directory is used in this boot of the machine, from here on.
pub(super) fn begin_life(path: &Path, boot_id: &str) -> io::Result<()> {
    checkpoint::replace(&path.join(BOOT_ID), format!("{boot_id}\n").as_bytes())
}

fn holds_partitions(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.path().is_dir()
            && name
                .to_str()
                .is_some_and(|name| parse_directory_name(name).is_some())
        {
            return Ok(true);
        }
    }
    Ok(false)
}
