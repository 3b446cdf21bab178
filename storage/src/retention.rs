//! Which segments go, and how: by age, by size, or because the log start has passed them.
//!
//! Removal has three steps, so that no crash leaves a log that claims records it does not have:
//!
//! 1. The log start moves up and the segments leave the list; readers that hold slices keep them.
//! 2. The log start is checkpointed (`LogDir::write_checkpoints`).
//! 3. The files are renamed to `*.deleted`, and removed in the background after a delay.
//!
//! Nothing at or above the high watermark is ever removed, nor anything that is not durable: a flush
//! would look for its files, and a log start above what survives a power loss would leave a gap in
//! front of the next batch, which a later start takes for the end of the log.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Offset;
use crate::config::LogConfig;
use crate::flush::FlushError;
use crate::log::{AppendError, Log};
use crate::read::ReadError;
use crate::segment::Segment;

/// What retention took out of the log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Retained {
    /// Segments removed; their files go after the next checkpoint.
    pub segments: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Start of the log now.
    pub log_start: Offset,
}

/// Why retention, or a request to delete records, was refused.
#[derive(Debug, thiserror::Error)]
pub enum RetainError {
    /// Records above the high watermark cannot be deleted.
    #[error("offset {offset} is above the high watermark {high_watermark}")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// Everything below this is committed.
        high_watermark: Offset,
    },
    /// The log directory has failed.
    #[error("log directory is offline: {0}")]
    Offline(String),
    /// A time index could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The active segment had expired and could not be rolled.
    #[error(transparent)]
    Roll(#[from] AppendError),
    /// What precedes the new log start could not be made durable.
    #[error(transparent)]
    Flush(#[from] FlushError),
}

/// A segment as far as retention looks at it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Candidate {
    next_base: Offset,
    bytes: u64,
    /// Newest record, ms; only asked for where age counts.
    newest_ms: Option<i64>,
}

/// Whether the oldest segment goes, when the log holds `total` bytes.
fn is_expired(
    oldest: Candidate,
    total: u64,
    config: &LogConfig,
    now_ms: i64,
    log_start: Offset,
    high_watermark: Offset,
) -> bool {
    if oldest.next_base > high_watermark {
        return false;
    }
    if oldest.next_base <= log_start {
        return true;
    }
    if !config.delete_enabled {
        return false;
    }
    let by_size = config
        .retention_bytes
        .is_some_and(|kept| total.saturating_sub(oldest.bytes) >= kept);
    let by_age = config
        .retention_ms
        .zip(oldest.newest_ms)
        .is_some_and(|(kept, newest)| now_ms.saturating_sub(newest) > kept);
    by_size || by_age
}

impl Log {
    /// Applies retention as of `now_ms`, below `high_watermark`. Reads time indexes and flushes, so it
    /// may wait for the disk.
    ///
    /// # Errors
    /// [`RetainError`].
    pub fn retain(&self, now_ms: i64, high_watermark: Offset) -> Result<Retained, RetainError> {
        self.check_retainable()?;
        let config = self.config();
        let mut retained = Retained::default();
        while let Some(oldest) = self.oldest_expired(&config, now_ms, high_watermark)? {
            if oldest.next_base() > Some(self.flushed_offset()) {
                self.flush_sealed()?;
            }
            let bytes = oldest.size();
            if self.take_oldest(&oldest)? {
                retained.segments += 1;
                retained.bytes += bytes;
            }
        }
        retained.log_start = self.log_start_offset();
        Ok(retained)
    }

    /// Moves the log start up to `offset` and returns where it is now; it never moves back. Whole segments
    /// below it go as in [`Self::retain`]. Waits for the disk where what precedes it is not durable.
    ///
    /// For DeleteRecords on a leader, which then has [`Log::checkpoint_log_start`] make it last; and for a
    /// follower, with the smallest of its leader's log start, its own log end and its high watermark.
    ///
    /// # Errors
    /// [`RetainError::OffsetOutOfRange`] when `offset` is above `high_watermark`.
    pub fn advance_log_start(
        &self,
        offset: Offset,
        high_watermark: Offset,
    ) -> Result<Offset, RetainError> {
        self.check_retainable()?;
        if offset > high_watermark || offset > self.log_end_offset() {
            return Err(RetainError::OffsetOutOfRange {
                offset,
                high_watermark,
            });
        }
        if offset > self.log_start_offset() {
            if offset > self.flushed_offset() {
                self.flush()?;
            }
            let _writer = self.writer.lock();
            // The log may have been truncated since, and appended to.
            self.move_log_start(offset.min(self.flushed_offset()));
        }
        loop {
            let oldest = Arc::clone(&self.segments.read()[0]);
            if oldest
                .next_base()
                .is_none_or(|next| next > self.log_start_offset())
            {
                return Ok(self.log_start_offset());
            }
            self.take_oldest(&oldest)?;
        }
    }

    /// Forgets producers that have been silent for `producer.id.expiration.ms`; says how many.
    pub fn expire_producers(&self, now_ms: i64) -> usize {
        let expiration_ms = self.config().producer_id_expiration_ms;
        self.writer.lock().producers.expire(now_ms, expiration_ms)
    }

    /// Renames away the files of removed segments, now that `checkpointed` is on disk as the log start.
    pub(crate) fn remove_doomed(&self, checkpointed: Offset) -> io::Result<()> {
        let covered =
            |segment: &Arc<Segment>| segment.next_base().is_some_and(|next| next <= checkpointed);
        // They stay in the list until they are renamed: a restart of the log must find them.
        let mut doomed = self.doomed.lock().clone();
        doomed.retain(covered);
        if doomed.is_empty() {
            return Ok(());
        }
        for segment in &doomed {
            self.delete_files(segment)?;
        }
        self.doomed
            .lock()
            .retain(|segment| !doomed.iter().any(|gone| Arc::ptr_eq(gone, segment)));
        self.sync_directory()
    }

    fn check_retainable(&self) -> Result<(), RetainError> {
        match self.disk.offline() {
            Some(reason) => Err(RetainError::Offline(reason.to_owned())),
            None => Ok(()),
        }
    }

    /// The oldest segment, if it goes. An active one that is to go is rolled first.
    fn oldest_expired(
        &self,
        config: &LogConfig,
        now_ms: i64,
        high_watermark: Offset,
    ) -> Result<Option<Arc<Segment>>, RetainError> {
        let oldest = Arc::clone(&self.segments.read()[0]);
        let candidate = self.candidate(&oldest, config)?;
        let (total, start) = (self.size_bytes(), self.log_start_offset());
        if candidate.bytes == 0 && oldest.next_base().is_none() {
            return Ok(None);
        }
        if !is_expired(candidate, total, config, now_ms, start, high_watermark) {
            return Ok(None);
        }
        let is_active = oldest.next_base().is_none();
        if is_active && !self.roll_expired(&oldest, candidate.next_base)? {
            return Ok(None);
        }
        Ok(Some(oldest))
    }

    /// Rolls `active`, which ended at `end` when it was looked at; says whether it did.
    fn roll_expired(&self, active: &Arc<Segment>, end: Offset) -> Result<bool, RetainError> {
        let mut writer = self.writer.lock();
        // It may have been rolled since, or have taken batches, which are newer than what was looked at.
        let is_as_seen = Arc::ptr_eq(&writer.active, active) && self.log_end_offset() == end;
        if !is_as_seen || writer.closed {
            return Ok(false);
        }
        self.roll(&mut writer, end).map_err(AppendError::from)?;
        Ok(true)
    }

    fn candidate(&self, segment: &Segment, config: &LogConfig) -> Result<Candidate, RetainError> {
        let next_base = segment.next_base().unwrap_or_else(|| self.log_end_offset());
        let newest_ms = match config.retention_ms {
            Some(_) if config.delete_enabled => Some(self.newest_ms(segment)?),
            _ => None,
        };
        Ok(Candidate {
            next_base,
            bytes: segment.size(),
            newest_ms,
        })
    }

    /// Age of a segment's newest record; of its file where records have no timestamps.
    fn newest_ms(&self, segment: &Segment) -> Result<i64, ReadError> {
        match self.largest_timestamp(segment)? {
            Some(entry) => Ok(entry.timestamp),
            None => Ok(segment.modified_ms()?),
        }
    }

    /// Takes `oldest` out of the log, unless another thread has; says whether it did. Under the writer
    /// lock, as everything that changes the list: a truncation is not to see it change.
    fn take_oldest(&self, oldest: &Arc<Segment>) -> Result<bool, RetainError> {
        let _writer = self.writer.lock();
        let mut segments = self.segments.write();
        let Some(next) = oldest.next_base() else {
            return Ok(false);
        };
        if !Arc::ptr_eq(&segments[0], oldest) {
            return Ok(false);
        }
        self.move_log_start(next);
        segments.remove(0);
        self.doomed.lock().push(Arc::clone(oldest));
        drop(segments);
        self.unreclaimed
            .lock()
            .retain(|segment| !Arc::ptr_eq(segment, oldest));
        Ok(true)
    }

    fn move_log_start(&self, offset: Offset) {
        if self.log_start.fetch_max(offset.0, Ordering::AcqRel) < offset.0 {
            let mut epochs = self.epochs.lock();
            epochs.dirty |= epochs.cache.truncate_from_start(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::*;

    /// Another roll at the same offset would make the same file once more: the first of the two segments
    /// that have it then goes, as empty, and takes the file with it.
    #[test]
    fn an_expired_segment_that_was_rolled_meanwhile_is_not_rolled_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path());
        let log = create(&dir, small_segments());
        append(&log, &batch(1, &[b"old"]));
        let looked_at = Arc::clone(&log.all_segments()[0]);
        let end = log.log_end_offset();
        assert!(log.roll_if_due(i64::MAX).unwrap());
        assert!(!log.roll_expired(&looked_at, end).unwrap());
        log.advance_log_start(end, end).unwrap();
        dir.write_checkpoints(&[]).unwrap();
        append(&log, &batch(2, &[b"new"]));
        log.close().unwrap();
        drop((log, dir));
        let loaded = load_one(&open_dir(root.path()), small_segments());
        assert_eq!(loaded.log.log_end_offset(), end + 1);
    }
}
