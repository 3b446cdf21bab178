//! A partition's directory seen from outside: what `kittiwake log dump` and `log verify` are made of.
//!
//! Nothing here writes, and nothing here shares code with the log that wrote the files beyond the formats themselves:
//! what the writer guarantees this reader checks. It works on the directory of a running node, whose last segment
//! grows, ends in zeros and may hold a batch that is being copied in right now.

mod compare;
mod indexes;
mod segment;
mod verify;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::checkpoint::{self, TopicPartition};
use crate::log_dir::{CLEAN_SHUTDOWN, RECOVERY_POINTS};
use crate::{LeaderEpochCache, Offset, ProducerState};

pub use compare::{Difference, compare};
pub use segment::{FoundBatch, SegmentEnd, SegmentReader, Step};
pub use verify::{Finding, Report, verify};

const EPOCHS_FILE: &str = "leader-epoch-checkpoint";
/// Digits of the base offset in a file's name.
const NAME_DIGITS: usize = 20;

/// A directory that cannot be inspected at all; anything less is a [`Finding`].
#[derive(Debug, Error)]
pub enum InspectError {
    /// No segment in it.
    #[error("{} holds no segment (…{:020}.log): is it the directory of a partition?", .0.display(), 0)]
    NotAPartition(PathBuf),
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl InspectError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |error| Self::Io { path, error }
    }
}

/// The files of one partition, as listed when it was opened.
#[derive(Clone, Debug)]
pub struct PartitionDir {
    path: PathBuf,
    segments: Vec<Offset>,
    snapshots: Vec<Offset>,
    /// Files no part of the log: set aside by recovery, waiting for deletion, or foreign.
    others: Vec<String>,
}

impl PartitionDir {
    /// Lists the directory of a partition.
    pub fn open(path: &Path) -> Result<Self, InspectError> {
        let mut segments = BTreeSet::new();
        let mut snapshots = BTreeSet::new();
        let mut others = BTreeSet::new();
        for entry in fs::read_dir(path).map_err(InspectError::at(path))? {
            let name = entry.map_err(InspectError::at(path))?.file_name();
            let name = name.to_string_lossy();
            match numbered(&name) {
                Some((base, "log")) => drop(segments.insert(base)),
                Some((offset, "snapshot")) => drop(snapshots.insert(offset)),
                Some((_, "index" | "timeindex" | "txnindex")) => {}
                _ if name == EPOCHS_FILE || name == "partition.metadata" => {}
                _ => drop(others.insert(name.into_owned())),
            }
        }
        if segments.is_empty() {
            return Err(InspectError::NotAPartition(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            segments: segments.into_iter().collect(),
            snapshots: snapshots.into_iter().collect(),
            others: others.into_iter().collect(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the node that has this directory in its data directory stopped cleanly and has not started since.
    #[must_use]
    pub fn stopped_cleanly(&self) -> bool {
        self.beside(CLEAN_SHUTDOWN)
            .is_some_and(|marker| marker.exists())
    }

    /// Up to where the data directory says this log is on disk, if it says so.
    pub fn recovery_point(&self) -> Result<Option<Offset>, InspectError> {
        let Some((path, name)) = self.beside(RECOVERY_POINTS).zip(self.partition()) else {
            return Ok(None);
        };
        let points = checkpoint::read(&path).map_err(InspectError::at(&path))?;
        Ok(points.get(&name).copied())
    }

    /// Where a file of the data directory around this one would be.
    fn beside(&self, name: &str) -> Option<PathBuf> {
        Some(self.path.canonicalize().ok()?.parent()?.join(name))
    }

    /// The partition this directory is named after.
    fn partition(&self) -> Option<TopicPartition> {
        let path = self.path.canonicalize().ok()?;
        let (topic, partition) = path.file_name()?.to_str()?.rsplit_once('-')?;
        Some(TopicPartition {
            topic: topic.to_owned(),
            partition: partition.parse().ok()?,
        })
    }

    /// Base offsets of the segments, in order.
    #[must_use]
    pub fn segments(&self) -> &[Offset] {
        &self.segments
    }

    /// Offsets of the producer snapshots, in order: each is the state before the batch at that offset.
    #[must_use]
    pub fn snapshots(&self) -> &[Offset] {
        &self.snapshots
    }

    /// Opens the segment that starts at `base`, one of [`PartitionDir::segments`].
    ///
    /// It ends where its successor begins: what it holds beyond was cut off by a truncation.
    pub fn segment(&self, base: Offset) -> Result<SegmentReader, InspectError> {
        let after = self.segments.partition_point(|&other| other <= base);
        let path = self.path.join(file_name(base, "log"));
        SegmentReader::open(&path, self.segments.get(after).copied())
            .map_err(InspectError::at(&path))
    }

    /// The segment that holds `offset`, or the first one if the log starts later.
    #[must_use]
    pub fn segment_of(&self, offset: Offset) -> Offset {
        let after = self.segments.partition_point(|&base| base <= offset);
        self.segments[after.saturating_sub(1)]
    }

    /// Reads `leader-epoch-checkpoint`; None if there is none. The inner error is its contents'.
    pub fn leader_epochs(&self) -> Result<Option<Result<LeaderEpochCache, String>>, InspectError> {
        let path = self.path.join(EPOCHS_FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(InspectError::at(&path))?,
        };
        let epochs = String::from_utf8(bytes)
            .map_err(|_| "not text".to_owned())
            .and_then(|text| LeaderEpochCache::decode(&text).map_err(|error| error.to_string()));
        Ok(Some(epochs))
    }

    /// Reads the producer snapshot at `offset`, one of [`PartitionDir::snapshots`]. The inner error is its contents'.
    pub fn snapshot(&self, offset: Offset) -> Result<Result<ProducerState, String>, InspectError> {
        let path = self.path.join(file_name(offset, "snapshot"));
        let bytes = fs::read(&path).map_err(InspectError::at(&path))?;
        Ok(ProducerState::decode_snapshot(&bytes).map_err(|error| error.to_string()))
    }
}

/// Name of the file of this kind that belongs to `offset`.
fn file_name(offset: Offset, extension: &str) -> String {
    format!(
        "{offset:0width$}.{extension}",
        offset = offset.0,
        width = NAME_DIGITS
    )
}

/// The offset and the extension of a name made by [`file_name`].
fn numbered(name: &str) -> Option<(Offset, &str)> {
    let (digits, extension) = name.split_once('.')?;
    if digits.len() != NAME_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((Offset(digits.parse().ok()?), extension))
}

#[cfg(test)]
mod tests;
