//! What a follower appends: its leader's batches, byte for byte.
//!
//! The record batches of one fetch response are checked as a whole before any byte of them is
//! published: framing, magic, counts and CRC32C of each, offsets that go on from the log end, leader
//! epochs that never go down. What the leader has accepted is not judged again: no sequence is refused
//! (the producers' state only records), no size, no timestamp. Nothing is patched, so that replicas
//! stay identical byte for byte.
//!
//! Batches that fit the active segment together are one *run*: one write, published together.

use crate::batch::{BatchError, BatchHeader, check_crc};
use crate::config::LogConfig;
use crate::log::{AppendError, Log, Writer};
use crate::{LeaderEpoch, Offset};

/// What a follower has appended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FollowerAppended {
    /// Log end before.
    pub base_offset: Offset,
    /// Log end now: what to fetch from next.
    pub log_end: Offset,
    /// Batches appended.
    pub batches: usize,
}

/// Why not all of a leader's batches were appended. Nothing was, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum FollowerAppendError {
    /// Bytes that are no whole, sound batch.
    #[error("at byte {position} of the response: {source}")]
    Batch {
        /// Where it starts, bytes from the start of the records.
        position: usize,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A batch does not begin where the one before it, or the log, ends.
    ///
    /// One that begins before an *empty* log and holds its start is what a leader answers whose records
    /// were deleted up to the middle of a batch: [`Log::restart_at`] its base offset, append again, then
    /// [`Log::advance_log_start`].
    #[error("a batch at offset {found} where {expected} is next")]
    OffsetGap {
        /// The next offset.
        expected: Offset,
        /// Base offset of the batch.
        found: Offset,
    },
    /// A batch of an older leader than the one before it.
    #[error("leader epoch {epoch} after {latest}")]
    StaleEpoch {
        /// The batch's.
        epoch: LeaderEpoch,
        /// The log's, or that of the batch before.
        latest: LeaderEpoch,
    },
    /// The batches are sound, but writing them failed. Those below `log_end` are in the log and
    /// published: fetch again from there.
    #[error("appended up to {log_end}: {source}")]
    Stopped {
        /// Log end now.
        log_end: Offset,
        /// What failed.
        source: AppendError,
    },
}

impl Log {
    /// Appends the record batches of a fetch response, whole and as the leader sent them, at wall-clock
    /// time `now_ms`. They may be spread over several segments. No records are no error.
    ///
    /// Does not wait for the disk in the ordinary path, as [`Log::append`].
    ///
    /// # Errors
    /// [`FollowerAppendError`].
    pub fn append_as_follower(
        &self,
        records: &[u8],
        now_ms: i64,
    ) -> Result<FollowerAppended, FollowerAppendError> {
        let batches = check_batches(records)?;
        let stopped = |source| FollowerAppendError::Stopped {
            log_end: self.log_end_offset(),
            source,
        };
        self.check_online().map_err(stopped)?;
        let mut writer = self.writer.lock();
        if writer.closed {
            return Err(stopped(AppendError::Closed));
        }
        let base_offset = self.log_end_offset();
        if let Some(first) = batches.first() {
            // Of the last batch: a reign of our own in which nothing was appended binds nobody.
            let latest = self.epoch_of(base_offset + -1);
            check_follows(first, base_offset, latest.unwrap_or(LeaderEpoch::NONE))?;
        }
        let segment = writer.active.base();
        let written = self.write_runs(&mut writer, &batches, records, now_ms);
        let rolled = writer.active.base() != segment;
        drop(writer);
        if rolled {
            self.request_flush();
        }
        written.map_err(stopped)?;
        Ok(FollowerAppended {
            base_offset,
            log_end: batches.last().map_or(base_offset, BatchHeader::next_offset),
            batches: batches.len(),
        })
    }

    fn write_runs(
        &self,
        writer: &mut Writer,
        mut batches: &[BatchHeader],
        mut records: &[u8],
        now_ms: i64,
    ) -> Result<(), AppendError> {
        let config = self.config.load();
        while let Some(first) = batches.first() {
            self.roll_for(writer, first, &config, now_ms)?;
            let (run, bytes) = run(writer, batches, &config, now_ms);
            let (now, later) = records.split_at(bytes);
            let (run, rest) = batches.split_at(run);
            let position = self.write(writer, [now, &[]], run, &config)?;
            for header in run {
                writer.producers.record(header, now_ms);
            }
            self.note_epochs(run);
            self.publish(writer, run, position);
            (batches, records) = (rest, later);
        }
        Ok(())
    }

    /// Notes the reigns that begin in `batches`; those noted to begin there or later had no batch.
    fn note_epochs(&self, batches: &[BatchHeader]) {
        let mut epochs = self.epochs.lock();
        if let Some(first) = batches.first() {
            epochs.dirty |= epochs.cache.truncate_from_end(first.base_offset);
        }
        for header in batches {
            if epochs
                .cache
                .latest()
                .is_none_or(|latest| header.leader_epoch > latest.epoch)
            {
                epochs.dirty |= epochs.cache.assign(header.leader_epoch, header.base_offset);
            }
        }
    }
}

/// How many of `batches`, at least the first, go into the active segment together, and their bytes.
fn run(
    writer: &Writer,
    batches: &[BatchHeader],
    config: &LogConfig,
    now_ms: i64,
) -> (usize, usize) {
    let held = writer.active.size();
    // Each may take an index entry; how many really do is known once they are written.
    let count_max = writer.index_room().unwrap_or(usize::MAX).max(1);
    let (mut count, mut bytes) = (0, 0);
    for header in batches.iter().take(count_max) {
        if count > 0 && writer.is_full_for(header, held + bytes as u64, config, now_ms) {
            break;
        }
        count += 1;
        bytes += header.size();
    }
    (count, bytes)
}

/// The headers of the whole, sound batches that `records` must be.
fn check_batches(records: &[u8]) -> Result<Vec<BatchHeader>, FollowerAppendError> {
    let mut batches: Vec<BatchHeader> = Vec::new();
    let mut position = 0;
    while position < records.len() {
        let header = sound_batch(&records[position..])
            .map_err(|source| FollowerAppendError::Batch { position, source })?;
        let (expected, latest) = match batches.last() {
            Some(before) => (before.next_offset(), before.leader_epoch),
            // A leader stamps what it appends: an epoch below 0 is a batch that no leader has seen.
            None => (header.base_offset, LeaderEpoch(0)),
        };
        check_follows(&header, expected, latest)?;
        position += header.size();
        batches.push(header);
    }
    Ok(batches)
}

/// The header of the batch that `records` begins with.
fn sound_batch(records: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(records)?;
    if i64::from(header.records_count) > i64::from(header.last_offset_delta) + 1 {
        return Err(BatchError::Corrupt(format!(
            "{} records with last offset delta {}",
            header.records_count, header.last_offset_delta
        )));
    }
    check_crc(records)?;
    Ok(header)
}

fn check_follows(
    header: &BatchHeader,
    expected: Offset,
    latest: LeaderEpoch,
) -> Result<(), FollowerAppendError> {
    if header.base_offset != expected {
        return Err(FollowerAppendError::OffsetGap {
            expected,
            found: header.base_offset,
        });
    }
    if header.leader_epoch < latest {
        return Err(FollowerAppendError::StaleEpoch {
            epoch: header.leader_epoch,
            latest,
        });
    }
    Ok(())
}
