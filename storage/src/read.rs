//! Reading a log: ranges as file slices, and offsets by time and by epoch.
//!
//! A range is found by offset: segment, index, then the headers of the batches between the index
//! entry and the offset, at most `index.interval.bytes` and one batch. Bodies are never read. At the
//! tail even that is saved by [`crate::tail`].

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::batch::{BatchHeader, HEADER_LEN};
use crate::file_slice::FileSlice;
use crate::log::Log;
use crate::records;
use crate::segment::{Located, Segment, SegmentError, SegmentFiles};
use crate::time_index::{NO_TIMESTAMP, TimeEntry};
use crate::{LeaderEpoch, Offset};

/// What the records of one batch may expand to while a timestamp is looked up in them.
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// Why a range could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset is not in the log.
    #[error("offset {offset} is outside the log ({start} to {end})")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// First offset of the log.
        start: Offset,
        /// Offset after the last one.
        end: Offset,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes on disk are no batches.
    #[error("{0}")]
    Corrupt(String),
}

impl From<SegmentError> for ReadError {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::Io(error) => Self::Io(error),
            corrupt @ SegmentError::Corrupt { .. } => Self::Corrupt(corrupt.to_string()),
        }
    }
}

/// A record found by time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TimestampOffset {
    /// Its timestamp, ms.
    pub timestamp: i64,
    /// Its offset.
    pub offset: Offset,
    /// Epoch of the leader that wrote it.
    pub leader_epoch: LeaderEpoch,
}

impl Log {
    /// The batches from `from` (the batch that holds it is returned whole) up to `upto`, a batch
    /// boundary, as file ranges of at most `bytes_max` bytes together; over as many segments as
    /// that covers. With `one_batch_at_least` the first batch comes whole even if it is larger.
    /// Empty when there is nothing between the two.
    ///
    /// Opens files and reads headers; record bodies stay where they are.
    ///
    /// # Errors
    /// [`ReadError::OffsetOutOfRange`] when `from` is below the start or above the *end* of the log.
    pub fn read(
        &self,
        from: Offset,
        upto: Offset,
        bytes_max: u32,
        one_batch_at_least: bool,
    ) -> Result<Vec<FileSlice>, ReadError> {
        self.read_within(
            (from, upto),
            Budget {
                bytes: bytes_max.into(),
                one_batch_at_least,
                whole_batches: false,
            },
        )
    }

    /// As [`Self::read`], but ends with a whole batch: for followers, which would throw a cut one away and
    /// ask for it again. Without `one_batch_at_least` it is empty when the first batch is larger than
    /// `bytes_max`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_whole_batches(
        &self,
        from: Offset,
        upto: Offset,
        bytes_max: u32,
        one_batch_at_least: bool,
    ) -> Result<Vec<FileSlice>, ReadError> {
        self.read_within(
            (from, upto),
            Budget {
                bytes: bytes_max.into(),
                one_batch_at_least,
                whole_batches: true,
            },
        )
    }

    fn read_within(
        &self,
        (from, upto): (Offset, Offset),
        budget: Budget,
    ) -> Result<Vec<FileSlice>, ReadError> {
        self.undisturbed(|(start, end)| {
            if from < start || from > end {
                return Err(ReadError::OffsetOutOfRange {
                    offset: from,
                    start,
                    end,
                });
            }
            self.slices(from, upto.min(end), budget)
        })
    }

    /// Looks at the log from its start to its end, and again when it was truncated meanwhile: what was
    /// found may then be of both logs, segments and positions of the old one and offsets of the new. Also
    /// when nothing could be found because retention took a segment meanwhile, whose files are gone.
    ///
    /// Invariant: a truncation changes the list of segments, the tail, the epochs and the ends of the log
    /// under the lock of the list, and counts up under it too.
    pub(crate) fn undisturbed<T>(
        &self,
        look: impl Fn((Offset, Offset)) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        loop {
            let (truncations, ends) = {
                let _list = self.segments.read();
                let ends = (self.log_start_offset(), self.log_end_offset());
                (self.truncations.load(Ordering::Acquire), ends)
            };
            let found = look(ends);
            let is_one_log = self.truncations.load(Ordering::Acquire) == truncations;
            if is_one_log && (found.is_ok() || self.log_start_offset() == ends.0) {
                return found;
            }
        }
    }

    fn slices(
        &self,
        from: Offset,
        upto: Offset,
        Budget {
            bytes: mut budget,
            one_batch_at_least,
            whole_batches,
        }: Budget,
    ) -> Result<Vec<FileSlice>, ReadError> {
        let mut slices = Vec::new();
        let mut next = from;
        while next < upto && (budget > 0 || (slices.is_empty() && one_batch_at_least)) {
            let Some(segment) = self.segment_of(next) else {
                break;
            };
            let files = segment.files(&self.disk)?;
            let range = self.range(&segment, &files, next, upto, budget)?;
            if let Some(Range { start, first, end }) = range {
                let mut length = (end - start).min(budget);
                if whole_batches && start + length < end {
                    length = segment.boundary(&files, (start, start + length), end)? - start;
                }
                if slices.is_empty() && one_batch_at_least {
                    length = length.max(first);
                }
                if length > 0 {
                    let bytes = u32::try_from(length).map_err(io::Error::other)?;
                    let is_active = segment.next_base().is_none();
                    slices.push(FileSlice::new(
                        Arc::clone(&files.log),
                        start,
                        bytes,
                        is_active,
                    ));
                }
                budget = budget.saturating_sub(length);
                // Never the next segment's first batch after a gap.
                if start + length < end {
                    break;
                }
            }
            match segment.next_base() {
                Some(base) => next = base,
                None => break,
            }
        }
        Ok(slices)
    }

    /// Where the segment being appended to begins. Offsets from here on are found without the disk, as
    /// a rule; those before it may need an index or a header that is not in memory.
    #[must_use]
    pub fn active_base_offset(&self) -> Offset {
        self.segments
            .read()
            .last()
            .map_or_else(|| self.log_start_offset(), |segment| segment.base())
    }

    /// The segment that holds `offset`, or would.
    fn segment_of(&self, offset: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.base() <= offset);
        segments.get(after.checked_sub(1)?).map(Arc::clone)
    }

    /// The bytes from the batch that holds `from` to the batch boundary `upto`, or at least
    /// `budget` of them.
    fn range(
        &self,
        segment: &Segment,
        files: &SegmentFiles,
        from: Offset,
        upto: Offset,
        budget: u64,
    ) -> Result<Option<Range>, SegmentError> {
        let size = segment.size();
        let Some(first) = self.locate(segment, files, from, size)? else {
            return Ok(None);
        };
        if first.base_offset >= upto {
            return Ok(None);
        }
        let start = first.position;
        let end = if segment.next_base().is_some_and(|next| next <= upto) {
            size
        } else if let Some(end) = self.tail.lock().position_before(segment.base(), upto) {
            end
        } else {
            // An index entry below the bound may already be more than the budget asks for.
            let floor = files
                .index
                .lookup(upto + -1)?
                .map_or(0, |entry| u64::from(entry.position))
                .min(size);
            if floor >= start + budget.max(first.size) {
                floor
            } else {
                self.locate(segment, files, upto, size)?
                    .map_or(size, |batch| batch.position)
            }
        };
        if end < start {
            // A new segment has taken the place of `segment`, whose end is not its end: the log was cut
            // meanwhile, and is looked at again.
            return Ok(None);
        }
        Ok(Some(Range {
            start,
            first: first.size,
            end,
        }))
    }

    fn locate(
        &self,
        segment: &Segment,
        files: &SegmentFiles,
        offset: Offset,
        size: u64,
    ) -> Result<Option<Located>, SegmentError> {
        if let Some(found) = self.tail.lock().find(segment.base(), offset) {
            return Ok(Some(found));
        }
        if offset <= segment.base() && size > 0 {
            let header = segment.header_at(&files.log, 0, size)?;
            return Ok(Some(Located {
                base_offset: header.base_offset,
                last_offset: header.last_offset(),
                position: 0,
                size: header.size() as u64,
            }));
        }
        segment.locate(files, offset, size)
    }

    /// The first record below `upto` whose timestamp is `timestamp` or later. Reads the disk.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn offset_for_timestamp(
        &self,
        timestamp: i64,
        upto: Offset,
    ) -> Result<Option<TimestampOffset>, ReadError> {
        self.undisturbed(|(start, end)| self.find_timestamp(timestamp, start, upto.min(end)))
    }

    fn find_timestamp(
        &self,
        timestamp: i64,
        start: Offset,
        upto: Offset,
    ) -> Result<Option<TimestampOffset>, ReadError> {
        for segment in self.all_segments() {
            if segment.base() >= upto || segment.next_base().is_some_and(|next| next <= start) {
                continue;
            }
            let largest = self.largest_timestamp(&segment)?;
            if largest.is_none_or(|largest| largest.timestamp < timestamp) {
                continue;
            }
            let from = segment.times()?.lookup(timestamp.saturating_sub(1))?;
            let from = from.map_or(segment.base(), |entry| entry.offset).max(start);
            let found = self.search(&segment, from, upto, |record| {
                record.timestamp >= timestamp && record.offset >= start
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The record below `upto`, a batch boundary, with the largest timestamp, the first of several
    /// (KIP-734). Reads the disk.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn max_timestamp(&self, upto: Offset) -> Result<Option<TimestampOffset>, ReadError> {
        self.undisturbed(|(_, end)| self.find_max_timestamp(upto.min(end)))
    }

    fn find_max_timestamp(&self, upto: Offset) -> Result<Option<TimestampOffset>, ReadError> {
        let mut best: Option<(Arc<Segment>, TimeEntry)> = None;
        for segment in self.all_segments() {
            if segment.base() >= upto {
                break;
            }
            if let Some(entry) = self.largest_timestamp_below(&segment, upto)?
                && best
                    .as_ref()
                    .is_none_or(|(_, best)| entry.timestamp > best.timestamp)
            {
                best = Some((segment, entry));
            }
        }
        let Some((segment, entry)) = best else {
            return Ok(None);
        };
        self.search(&segment, entry.offset, upto, |record| {
            record.timestamp >= entry.timestamp
        })
    }

    /// Largest timestamp of the batches of `segment` below `upto`.
    fn largest_timestamp_below(
        &self,
        segment: &Arc<Segment>,
        upto: Offset,
    ) -> Result<Option<TimeEntry>, ReadError> {
        let largest = self.largest_timestamp(segment)?;
        if largest.is_none_or(|largest| largest.offset < upto) {
            return Ok(largest);
        }
        // The time index knows the largest up to every batch that the offset index knows.
        let files = segment.files(&self.disk)?;
        let mut largest = segment.times()?.lookup_below(upto)?;
        let indexed = files.index.lookup(upto + -1)?;
        let from = indexed.map_or(segment.base(), |entry| entry.offset);
        let size = segment.size();
        let Some(first) = self.locate(segment, &files, from, size)? else {
            return Ok(largest);
        };
        let mut position = first.position;
        while position < size {
            let header = segment.header_at(&files.log, position, size)?;
            if header.base_offset >= upto {
                break;
            }
            let so_far = largest.map_or(NO_TIMESTAMP, |entry| entry.timestamp);
            if header.max_timestamp > so_far {
                largest = Some(TimeEntry {
                    timestamp: header.max_timestamp,
                    offset: header.last_offset(),
                });
            }
            position += header.size() as u64;
        }
        Ok(largest)
    }

    /// Largest epoch of this log up to `epoch`, and the offset it ended at (KIP-101).
    #[must_use]
    pub fn end_offset_for_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        // A truncation changes both under the lock of the list.
        let _list = self.segments.read();
        let end = self.log_end_offset();
        self.epochs.lock().cache.end_offset_for(epoch, end)
    }

    /// The newest leader epoch of this log.
    #[must_use]
    pub fn latest_epoch(&self) -> Option<LeaderEpoch> {
        self.epochs.lock().cache.latest().map(|entry| entry.epoch)
    }

    /// Epoch of the leader that wrote `offset`.
    #[must_use]
    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.epochs.lock().cache.epoch_for(offset)
    }

    /// Notes that `epoch` begins at `start`. Its file is written with the next flush, before
    /// anything of the epoch counts as durable.
    pub fn assign_epoch(&self, epoch: LeaderEpoch, start: Offset) {
        let mut epochs = self.epochs.lock();
        epochs.dirty |= epochs.cache.assign(epoch, start);
    }

    pub(crate) fn all_segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().clone()
    }

    /// Largest timestamp of any segment, the active one included.
    pub(crate) fn largest_timestamp(
        &self,
        segment: &Segment,
    ) -> Result<Option<TimeEntry>, SegmentError> {
        if let Some(largest) = self.tail.lock().largest(segment.base()) {
            return Ok(largest);
        }
        segment.largest_timestamp()
    }

    /// The first record from `from` on that is `wanted`, in one segment. Decodes the batches whose
    /// largest timestamp says that it may be there.
    fn search(
        &self,
        segment: &Arc<Segment>,
        from: Offset,
        upto: Offset,
        wanted: impl Fn(&records::Record<'_>) -> bool,
    ) -> Result<Option<TimestampOffset>, ReadError> {
        let files = segment.files(&self.disk)?;
        let size = segment.size();
        let Some(first) = self.locate(segment, &files, from, size)? else {
            return Ok(None);
        };
        let mut position = first.position;
        while position < size {
            let header = segment.header_at(&files.log, position, size)?;
            if header.base_offset >= upto {
                break;
            }
            if let Some(found) = find_record(&files, &header, position, upto, &wanted)? {
                return Ok(Some(found));
            }
            position += header.size() as u64;
        }
        Ok(None)
    }
}

/// How much a read may return.
#[derive(Clone, Copy, Debug)]
struct Budget {
    bytes: u64,
    /// The first batch comes whole even if it is larger.
    one_batch_at_least: bool,
    /// The last batch is not cut.
    whole_batches: bool,
}

struct Range {
    start: u64,
    /// Bytes of the first batch.
    first: u64,
    end: u64,
}

fn find_record(
    files: &SegmentFiles,
    header: &BatchHeader,
    position: u64,
    upto: Offset,
    wanted: &impl Fn(&records::Record<'_>) -> bool,
) -> Result<Option<TimestampOffset>, ReadError> {
    let mut body = vec![0; header.size() - HEADER_LEN];
    files
        .log
        .read_exact_at(&mut body, position + HEADER_LEN as u64)?;
    let corrupt = |error: records::RecordsError| ReadError::Corrupt(error.to_string());
    let plain = records::plain_records(header, &body, DECOMPRESSED_BYTES_MAX).map_err(corrupt)?;
    for record in records::decode(header, &plain) {
        let record = record.map_err(corrupt)?;
        if record.offset >= upto {
            break;
        }
        if wanted(&record) {
            return Ok(Some(TimestampOffset {
                timestamp: record.timestamp,
                offset: record.offset,
                leader_epoch: header.leader_epoch,
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use crate::Offset;
    use crate::test_support::*;

    #[test]
    fn a_segment_that_was_replaced_has_no_range_that_ends_before_it_begins() {
        let root = tempfile::tempdir().unwrap();
        let log = create(&open_dir(root.path()), small_segments());
        let append_batches_of = |bytes| {
            for _ in 0..40 {
                append(&log, &sized_batch(1, 1, bytes));
            }
        };
        append_batches_of(300);
        // What a reader has at hand when the log is cut.
        let segment = log.segment_of(Offset(7)).unwrap();
        let files = segment.files(&log.disk).unwrap();
        log.truncate_to(Offset(0)).unwrap();
        append_batches_of(20);
        // The tail has forgotten the first of the two, so that one is found in each log.
        let found = log.range(&segment, &files, Offset(7), Offset(9), 1 << 20);
        assert!(found.unwrap().is_none());
    }
}
