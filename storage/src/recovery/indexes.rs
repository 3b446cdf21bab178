//! Indexes as hints: how far the old ones hold, and new ones from the batches.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::Offset;
use crate::offset_index::{OffsetEntry, OffsetIndex};
use crate::segment::{INDEX, Indexing, Segment, SegmentError, TIME_INDEX, file_name, with_suffix};
use crate::time_index::{TimeEntry, TimeIndex};

/// Interval of rebuilt indexes, bytes: Kafka's default.
pub(super) const REBUILT_INTERVAL: u32 = 4096;
/// Index files of a recovered segment may grow to this at most while they are rebuilt.
pub(super) const INDEX_BYTES_MAX: usize = 1 << 30;

/// The entries of a segment's indexes that can be trusted: those of batches before a snapshot.
pub(super) struct TrustedPrefix {
    pub(super) entries: u64,
    pub(super) last: OffsetEntry,
    pub(super) times: u64,
    pub(super) largest: Option<TimeEntry>,
}

impl TrustedPrefix {
    /// Up to the last entry that is at least `back` bytes before the last batch before `before`, or
    /// the first. `None` when there is none, or an entry is out of order.
    pub(super) fn find(
        segment: &Segment,
        before: Offset,
        size: u64,
        back: u32,
    ) -> io::Result<Option<Self>> {
        let index = OffsetIndex::open_sealed(&segment.path(INDEX), segment.base())?;
        let times = TimeIndex::open_sealed(&segment.path(TIME_INDEX), segment.base())?;
        let mut entries: Vec<OffsetEntry> = Vec::new();
        for entry in index.entries() {
            let entry = entry?;
            if entries
                .last()
                .is_some_and(|last| entry.offset <= last.offset || entry.position <= last.position)
            {
                return Ok(None);
            }
            if entry.offset >= before || u64::from(entry.position) >= size {
                break;
            }
            entries.push(entry);
        }
        let from = entries
            .last()
            .map_or(0, |last| last.position.saturating_sub(back));
        let kept_entries = entries
            .partition_point(|entry| entry.position <= from)
            .max(1);
        let Some(&last) = entries.get(kept_entries - 1) else {
            return Ok(None);
        };
        let mut largest: Option<TimeEntry> = None;
        let mut kept = 0;
        for entry in times.entries() {
            let entry = entry?;
            if largest.is_some_and(|last| {
                entry.timestamp <= last.timestamp || entry.offset <= last.offset
            }) {
                return Ok(None);
            }
            if entry.offset > last.offset {
                break;
            }
            largest = Some(entry);
            kept += 1;
        }
        Ok(Some(Self {
            entries: kept_entries as u64,
            last,
            times: kept,
            largest,
        }))
    }
}

/// Writes both indexes of a sealed segment anew, from its batches. For one caller at a time: they share the
/// temporary files. The directory may be renamed meanwhile.
///
/// # Errors
/// `Corrupt` when a batch is unsound; open(2), pwrite(2), fdatasync(2), rename(2). The old indexes stay then.
pub(crate) fn rebuild_indexes(segment: &Segment, log: &File) -> Result<(), SegmentError> {
    let paths = |directory: &Path, suffix| {
        let path = directory.join(file_name(segment.base(), suffix));
        (with_suffix(&path, "tmp"), path)
    };
    let (index, times) = {
        let directory = segment.directory();
        let temporary = |suffix| paths(&directory, suffix).0;
        (
            OffsetIndex::create(&temporary(INDEX), segment.base())?,
            TimeIndex::create(&temporary(TIME_INDEX), segment.base())?,
        )
    };
    let mut indexing = Indexing::new(None);
    let (mut position, end) = (0, segment.size());
    while position < end {
        let header = segment.header_at(log, position, end)?;
        indexing.note((&index, &times), &header, position, REBUILT_INTERVAL)?;
        position += header.size() as u64;
    }
    if let Some(largest) = indexing.largest() {
        times.append_if_later(largest)?;
    }
    // A start does not look at them again: empty after a power loss, they would pass for those of a
    // segment without timestamps.
    index.sync()?;
    times.sync()?;
    let directory = segment.directory();
    for suffix in [INDEX, TIME_INDEX] {
        let (temporary, path) = paths(&directory, suffix);
        fs::rename(temporary, path)?;
    }
    Ok(())
}
