//! Finding the end of a log after a stop, clean or not.
//!
//! Everything below the *recovery point* was flushed, and is not read again, so that the time this
//! takes grows with the unflushed tail and not with the bytes stored. From there on:
//!
//! - A batch counts when its header is sound, its offset is the next one, its leader epoch is not
//!   lower than the one before (leftovers of an overwritten tail can be valid batches) and its CRC
//!   matches. The first that does not ends the log, in whichever segment.
//! - Zeros are the space that was allocated ahead, and are cut. Whatever else follows the end is
//!   moved aside to `*.cut` files and reported, later segments included.
//! - A segment ends where its successor starts. What its file holds beyond are allocated zeros (the cut
//!   was not durable yet), or what a truncation has cut off, whole or not: no part of the log, and given
//!   back in the background ([`crate::reclaim`]).
//! - `<offset>.restart` voids all else: the log is empty and starts there.
//! - Leader epochs from the recovery point on are those of the batches. Their file may be behind, or still
//!   tell of batches that were cut off.
//! - A bad batch *below* the recovery point means that flushed bytes have changed: the log is
//!   reported as damaged, and nothing of it is cut, rewritten or served.
//! - Indexes are hints. Where a producer snapshot lies at or before the recovery point in the same
//!   segment, they are trusted up to it after a check of their order and of the batch they point to;
//!   otherwise they are rebuilt from the segment.
//! - Producer snapshots are hints too. A damaged one that was wanted, or that lies past the recovery
//!   point (a stop may have torn it), is moved aside and reported like a torn tail; the producers
//!   come from the log. Older ones are not read.

mod finish;
mod indexes;
mod scan;

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::indexes::rebuild_indexes;
pub(crate) use self::scan::HeaderReader;
use self::scan::Scan;
use crate::Offset;
use crate::checkpoint;
use crate::leader_epochs::LeaderEpochCache;
use crate::producer_state::ProducerState;
use crate::restart::{RESTART, void_small_files};
use crate::segment::{
    DELETED, Directory, INDEX, Indexing, LOG, SNAPSHOT, Segment, SegmentError, TIME_INDEX,
    file_name,
};

/// Name of the leader epoch checkpoint.
pub(crate) const LEADER_EPOCHS: &str = "leader-epoch-checkpoint";
/// Piece in which bodies and tails are read.
const PIECE_READ: usize = 256 << 10;

/// What a start found and did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Recovery {
    /// Bytes whose CRC was checked.
    pub checked_bytes: u64,
    /// Bytes of headers that were walked without a CRC.
    pub walked_bytes: u64,
    /// Allocated zeros cut off the end.
    pub zeros_cut: u64,
    /// Files with what followed the end of the log, and damaged producer snapshots.
    pub set_aside: Vec<PathBuf>,
    /// Why the log ended before its files did, if it did.
    pub ended_by: Option<String>,
    /// Bytes that truncations had cut off and that were not given back yet.
    pub superseded_bytes: u64,
}

/// Why a log cannot be opened. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Flushed bytes are missing or have changed: re-replicate, or have an operator accept the loss.
    #[error("damaged below the recovery point {recovery_point}: {what}")]
    Damaged {
        /// Up to here the log had been flushed.
        recovery_point: Offset,
        /// What was found.
        what: String,
    },
}

impl From<SegmentError> for OpenError {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::Io(error) => Self::Io(error),
            corrupt @ SegmentError::Corrupt { .. } => {
                Self::Io(io::Error::new(io::ErrorKind::InvalidData, corrupt))
            }
        }
    }
}

/// What is known about a log before its files are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Everything below was flushed.
    pub(crate) recovery_point: Offset,
    /// Where the log starts.
    pub(crate) log_start: Offset,
    pub(crate) now_ms: i64,
}

/// A log as recovered.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// All segments, in order; the last is active. Never empty.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// How many of them, from the end, hold bytes past the recovery point.
    pub(crate) unflushed: usize,
    /// Those whose files go on after their last batch with what a truncation cut off.
    pub(crate) unreclaimed: Vec<Arc<Segment>>,
    /// The log was to start over here, and does now: this is to be checkpointed.
    pub(crate) restarted_at: Option<Offset>,
    pub(crate) log_start: Offset,
    pub(crate) log_end: Offset,
    pub(crate) epochs: LeaderEpochCache,
    /// They differ from their file.
    pub(crate) epochs_changed: bool,
    pub(crate) producers: ProducerState,
    pub(crate) snapshot_at: Option<Offset>,
    /// Of the active segment.
    pub(crate) indexing: Indexing,
    /// Largest timestamp of the first batch of the active segment, ms.
    pub(crate) first_timestamp: Option<i64>,
    pub(crate) report: Recovery,
}

/// Recovers the log in `directory`.
///
/// # Errors
/// [`OpenError`]; the directory is as it was then, but for indexes, which are rebuilt, and leftovers of
/// removed files.
pub(crate) fn recover(directory: &Directory, known: Known) -> Result<Recovered, OpenError> {
    let path = directory.read().clone();
    let listing = Listing::read(&path)?;
    if let Some(at) = listing.restart {
        return restart(directory, &path, &listing, at, known);
    }
    let Some(&(first, _)) = listing.segments.first() else {
        return recover_empty(directory, &path, known);
    };
    let damaged = |what: String| OpenError::Damaged {
        recovery_point: known.recovery_point,
        what,
    };
    // The segment of the last flushed record: flushed while it was active, it may have been sealed
    // since and still carry its allocated zeros.
    let from = listing
        .segments
        .partition_point(|(base, _)| *base < known.recovery_point)
        .saturating_sub(1);
    // Files go only after the log start that no longer needs them is checkpointed.
    if first > known.log_start {
        return Err(damaged(format!(
            "the first segment starts at {first}, the log at {}",
            known.log_start
        )));
    }
    let mut scan = Scan::start(directory, &path, &listing, from, known)?;
    let mut ends_at = listing.segments.len();
    for (slot, &(base, size)) in listing.segments.iter().enumerate().skip(from) {
        let next = listing.segments.get(slot + 1).map(|(next, _)| *next);
        let end = scan.segment(directory, base, size, next)?;
        if scan.expected < known.recovery_point && next.is_none_or(|next| scan.expected != next) {
            return Err(damaged(format!(
                "the log ends at {} in {}: {}",
                scan.expected,
                file_name(base, LOG),
                end.reason.as_deref().unwrap_or("end of file"),
            )));
        }
        if next.is_some_and(|next| next != scan.expected) {
            scan.report.ended_by = Some(format!(
                "{} ends at {}, before the next segment: {}",
                file_name(base, LOG),
                scan.expected,
                end.reason.as_deref().unwrap_or("end of file"),
            ));
            ends_at = slot + 1;
            break;
        }
        if next.is_none() {
            scan.report.ended_by = end.reason;
        }
    }
    scan.finish(directory, &path, &listing, from, ends_at, known)
}

fn recover_empty(directory: &Directory, path: &Path, known: Known) -> Result<Recovered, OpenError> {
    if known.recovery_point > known.log_start {
        return Err(OpenError::Damaged {
            recovery_point: known.recovery_point,
            what: "there is no segment at all".into(),
        });
    }
    let segment = Segment::create(Arc::clone(directory), known.log_start)?;
    Ok(Recovered {
        segments: vec![Arc::new(segment)],
        unflushed: 1,
        unreclaimed: Vec::new(),
        restarted_at: None,
        log_start: known.log_start,
        log_end: known.log_start,
        epochs: read_epochs(path)?,
        epochs_changed: false,
        producers: ProducerState::default(),
        snapshot_at: None,
        indexing: Indexing::new(None),
        first_timestamp: None,
        report: Recovery::default(),
    })
}

/// Goes on where [`Log::restart_at`](crate::Log::restart_at) was interrupted: the log is empty.
fn restart(
    directory: &Directory,
    path: &Path,
    listing: &Listing,
    at: Offset,
    known: Known,
) -> Result<Recovered, OpenError> {
    for &(base, _) in &listing.segments {
        for suffix in [LOG, INDEX, TIME_INDEX] {
            remove_if_there(&path.join(file_name(base, suffix)))?;
        }
    }
    void_small_files(path)?;
    let known = Known {
        recovery_point: at,
        log_start: at,
        ..known
    };
    let empty = recover_empty(directory, path, known)?;
    // The new segment is there before the decision for it goes.
    checkpoint::sync_directory(path)?;
    Ok(Recovered {
        restarted_at: Some(at),
        ..empty
    })
}

/// Offsets of the producer snapshots in `directory`, ascending.
pub(crate) fn snapshots_in(directory: &Path) -> io::Result<Vec<Offset>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        if let Some((offset, SNAPSHOT)) = entry?.file_name().to_str().and_then(numbered) {
            found.push(offset);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The offset and the suffix of a name that [`file_name`] made.
fn numbered(name: &str) -> Option<(Offset, &str)> {
    let (stem, suffix) = name.split_once('.')?;
    let offset = stem.parse().ok().filter(|_| stem.len() == 20)?;
    Some((Offset(offset), suffix))
}

/// The names in a partition directory that mean something.
struct Listing {
    /// Base offset and bytes of each `.log`, ascending.
    segments: Vec<(Offset, u64)>,
    /// Offsets of the producer snapshots, ascending.
    snapshots: Vec<Offset>,
    /// Where the log is to start over.
    restart: Option<Offset>,
}

impl Listing {
    /// Lists, and removes what a stop left of files that were on their way out.
    fn read(path: &Path) -> io::Result<Self> {
        let mut listing = Self {
            segments: Vec::new(),
            snapshots: Vec::new(),
            restart: None,
        };
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                continue;
            };
            match numbered(name) {
                Some((base, LOG)) => listing.segments.push((base, entry.metadata()?.len())),
                Some((at, SNAPSHOT)) => listing.snapshots.push(at),
                Some((at, RESTART)) => listing.restart = Some(at),
                _ if name.ends_with(&format!(".{DELETED}")) || name.ends_with(".tmp") => {
                    fs::remove_file(entry.path())?;
                }
                _ => {}
            }
        }
        listing.segments.sort_unstable();
        listing.snapshots.sort_unstable();
        Ok(listing)
    }
}

fn read_epochs(path: &Path) -> io::Result<LeaderEpochCache> {
    let path = path.join(LEADER_EPOCHS);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LeaderEpochCache::default()),
        Err(error) => Err(error),
        Ok(text) => LeaderEpochCache::decode(&text).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {error}", path.display()),
            )
        }),
    }
}

fn cut_file(path: &Path, len: u64) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(len)
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
