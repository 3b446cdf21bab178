//! Making a log durable: group commit, the flush of sealed segments, and the clean close.
//!
//! A flush makes durable, in this order, and only then moves `flushed`: the sealed segments (cut to
//! their contents, with their indexes), the producer snapshots taken at their rolls, the active
//! segment's bytes, the leader epochs, the directory entries of all of these. It runs off every
//! lock an appender takes.
//!
//! The directory may be renamed meanwhile, when the partition is deleted, and its name may soon be another
//! log's: names are used under the lock of the directory only, and the disk is waited for outside of it.
//!
//! The first failure takes the whole log directory offline, for ever: after a failed fsync the
//! kernel marks the pages clean, so a second one succeeds without having written them.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::Offset;
use crate::append_file::is_full;
use crate::checkpoint;
use crate::log::{Log, Unflushed};
use crate::recovery::LEADER_EPOCHS;
use crate::segment::{SNAPSHOT, Segment, SegmentFiles, file_name};

/// Why a log could not be made durable, or closed.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The log directory has failed, now or before; it is never asked again.
    #[error("log directory is offline: {0}")]
    Offline(String),
    /// No room for a checkpoint or a snapshot. What was durable stays so; it goes away when space
    /// returns.
    #[error("no space left in the log directory")]
    DiskFull,
    /// The log has been deleted or set aside: nothing of it has to be durable any more.
    #[error("the log has been taken out of use")]
    Gone,
    /// No descriptor was left to open a file with (`ulimit -n`): nothing was asked of the disk, and it
    /// is tried again.
    #[error("too many open files")]
    TooManyOpenFiles,
}

/// What failed, which decides whether it may be tried again.
#[derive(Debug)]
enum Failure {
    /// Bytes of a segment: never again, the kernel has marked their pages clean.
    Segment(io::Error),
    /// A small file that is written anew each time: again, if only room was missing.
    SmallFile(io::Error),
}

/// What a flush has to do, taken under the writer lock.
struct Pending {
    unflushed: Unflushed,
    active: Arc<Segment>,
    active_files: Option<Arc<SegmentFiles>>,
    log_end: Offset,
}

impl Log {
    /// Makes everything appended so far durable and returns the offset up to which it is. Waits for
    /// the disk; callers that come while one is flushing share the next flush.
    ///
    /// # Errors
    /// [`FlushError::Offline`].
    pub fn flush(&self) -> Result<Offset, FlushError> {
        let wanted = self.log_end_offset();
        let _flushing = self.flushing.lock();
        if self.flushed_offset() >= wanted {
            return Ok(self.flushed_offset());
        }
        self.guarded(|| self.flush_pending(true))
    }

    /// Makes the sealed segments durable; the active one may go on filling.
    pub(crate) fn flush_sealed(&self) -> Result<Offset, FlushError> {
        let _flushing = self.flushing.lock();
        self.guarded(|| self.flush_pending(false))
    }

    /// Refuses appends from now on, makes the log durable and leaves its files as Kafka's tools
    /// expect them: cut to their contents, the time index closed, a producer snapshot at the end.
    /// Waits for the disk. Reads go on.
    ///
    /// # Errors
    /// [`FlushError::Offline`]: the next start recovers what was not durable.
    pub fn close(&self) -> Result<(), FlushError> {
        let _flushing = self.flushing.lock();
        self.writer.lock().closed = true;
        self.guarded(|| {
            let end = self.log_end_offset();
            let mut writer = self.writer.lock();
            if writer.snapshot_at != Some(end) && writer.active.size() > 0 {
                let snapshot = writer.producers.encode_snapshot();
                writer.unflushed.snapshots.push((end, snapshot));
                writer.snapshot_at = Some(end);
            }
            let active = Arc::clone(&writer.active);
            let largest = writer.indexing.largest();
            let appended_to = writer.files.take().is_some();
            drop(writer);
            if appended_to {
                active.settle(largest).map_err(Failure::Segment)?;
            }
            self.flush_pending(true)
        })?;
        self.reclaim();
        Ok(())
    }

    /// Makes durable that the file of `segment` has been replaced, and its indexes.
    ///
    /// # Errors
    /// [`FlushError`].
    pub(crate) fn flush_replaced(&self, segment: &Segment) -> Result<(), FlushError> {
        self.guarded(|| {
            segment.sync().map_err(Failure::Segment)?;
            self.sync_directory().map_err(Failure::Segment)
        })
    }

    /// Makes durable that the log starts where it does: no record below comes back after a crash
    /// (DeleteRecords). Waits for the disk; what else is to be removed waits for the next checkpoint.
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn checkpoint_log_start(&self) -> Result<(), FlushError> {
        self.guarded(|| {
            self.checkpoints
                .set_log_start(&self.partition, || {
                    (!self.is_abandoned()).then(|| self.durable_log_start())
                })
                .map_err(Failure::SmallFile)
        })
    }

    /// The log start as it may be checkpointed: what precedes it is durable, or a power loss would leave
    /// the log ending below its start.
    pub(crate) fn durable_log_start(&self) -> Offset {
        self.log_start_offset().min(self.flushed_offset())
    }

    /// Stops appends without touching the disk: the directory is about to be renamed, and may be removed.
    pub(crate) fn abandon(&self) {
        let mut writer = self.writer.lock();
        writer.closed = true;
        self.abandoned.store(true, Ordering::Release);
    }

    /// Whether the log has been deleted or set aside. A file that is missing says nothing of the disk then.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Runs `work` unless the log is gone or the directory offline, and takes the directory offline when
    /// `work` fails for good.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, FlushError> {
        if let Some(reason) = self.disk.offline() {
            return Err(FlushError::Offline(reason.to_owned()));
        }
        if self.is_abandoned() {
            return Err(FlushError::Gone);
        }
        work().map_err(|failure| match failure {
            Failure::SmallFile(error) if is_full(&error) => FlushError::DiskFull,
            Failure::SmallFile(error) | Failure::Segment(error) if is_out_of_files(&error) => {
                FlushError::TooManyOpenFiles
            }
            Failure::SmallFile(error) | Failure::Segment(error)
                if error.kind() == io::ErrorKind::NotFound && self.is_abandoned() =>
            {
                FlushError::Gone
            }
            Failure::SmallFile(error) | Failure::Segment(error) => {
                self.disk.take_offline(&self.directory.read(), &error);
                FlushError::Offline(error.to_string())
            }
        })
    }

    fn flush_pending(&self, active_too: bool) -> Result<Offset, Failure> {
        let pending = self.take_pending();
        if let Err(failure) = self.write_pending(&pending, active_too) {
            self.put_back(pending);
            return Err(failure);
        }
        let upto = if active_too {
            pending.log_end
        } else {
            pending.active.base()
        };
        self.flushed.fetch_max(upto.0, Ordering::AcqRel);
        Ok(self.flushed_offset())
    }

    fn write_pending(&self, pending: &Pending, active_too: bool) -> Result<(), Failure> {
        for segment in &pending.unflushed.sealed {
            segment.settle(None).map_err(Failure::Segment)?;
            self.disk.step();
        }
        for (at, snapshot) in &pending.unflushed.snapshots {
            self.write_snapshot(*at, snapshot)
                .map_err(Failure::SmallFile)?;
        }
        if active_too && self.flushed_offset() < pending.log_end {
            let synced = match &pending.active_files {
                Some(files) => sync_active(files),
                // Recovered or closed, and not appended to since.
                None => pending.active.sync(),
            };
            synced.map_err(Failure::Segment)?;
        }
        self.write_epochs().map_err(Failure::SmallFile)?;
        if pending.unflushed.directory || !pending.unflushed.snapshots.is_empty() {
            self.sync_directory().map_err(Failure::Segment)?;
        }
        Ok(())
    }

    /// Leaves what was taken to the next flush.
    fn put_back(&self, pending: Pending) {
        let mut writer = self.writer.lock();
        let mut unflushed = pending.unflushed;
        unflushed.sealed.append(&mut writer.unflushed.sealed);
        unflushed.snapshots.append(&mut writer.unflushed.snapshots);
        unflushed.directory |= writer.unflushed.directory;
        writer.unflushed = unflushed;
    }

    fn take_pending(&self) -> Pending {
        let mut writer = self.writer.lock();
        Pending {
            unflushed: std::mem::take(&mut writer.unflushed),
            active: Arc::clone(&writer.active),
            active_files: writer.files.clone(),
            log_end: self.log_end_offset(),
        }
    }

    fn write_epochs(&self) -> io::Result<()> {
        let text = {
            let mut epochs = self.epochs.lock();
            if !std::mem::take(&mut epochs.dirty) {
                return Ok(());
            }
            epochs.cache.encode()
        };
        let written = checkpoint::replace_in(&self.directory, LEADER_EPOCHS, text.as_bytes());
        if written.is_err() {
            self.epochs.lock().dirty = true;
        }
        written
    }

    fn write_snapshot(&self, at: Offset, snapshot: &[u8]) -> io::Result<()> {
        let mut file = {
            let directory = self.directory.read();
            File::create(directory.join(file_name(at, SNAPSHOT)))?
        };
        file.write_all(snapshot)?;
        file.sync_data()
    }
}

fn sync_active(files: &SegmentFiles) -> io::Result<()> {
    let append = files.appending.as_ref().map(|appending| &appending.log);
    // Write-back protects the mapped pages: appends go by pwrite meanwhile, and until the
    // window has been populated anew.
    if let Some(append) = append {
        append.forget_populated();
    }
    files.log.sync_data()?;
    if let Some(append) = append {
        append.forget_populated();
    }
    Ok(())
}

/// Whether `error` is open(2)'s for want of descriptors; fsync(2) never fails so.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{EPOCH, append, create, open_dir, rules, sized_batch};
    use crate::{AppendError, LogConfig, validate};

    #[test]
    fn want_of_descriptors_does_not_take_the_directory_offline() {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path());
        let log = create(&dir, LogConfig::default());
        for errno in [Errno::MFILE, Errno::NFILE] {
            let failed = log.guarded(|| Err::<(), _>(Failure::Segment(errno.into())));
            assert!(matches!(failed, Err(FlushError::TooManyOpenFiles)));
        }
        assert!(!dir.is_offline());
        let failed = log.guarded(|| Err::<(), _>(Failure::Segment(Errno::IO.into())));
        assert!(matches!(failed, Err(FlushError::Offline(_))));
        assert!(dir.is_offline());
    }

    #[test]
    fn a_flush_without_room_leaves_everything_to_the_next_one() {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path());
        let log = create(&dir, LogConfig::default());
        append(&log, &sized_batch(1, 2, 700));
        // Writing to it fails with ENOSPC.
        let full = log.directory.read().join(format!("{LEADER_EPOCHS}.tmp"));
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        for _ in 0..2 {
            assert!(matches!(log.flush(), Err(FlushError::DiskFull)));
            assert_eq!(log.flushed_offset(), Offset(0), "not durable yet");
        }
        assert!(!dir.is_offline());
        append(&log, &sized_batch(2, 2, 700));
        std::fs::remove_file(&full).unwrap();
        assert_eq!(log.flush().unwrap(), Offset(4));
        let epochs = log.directory.read().join(LEADER_EPOCHS);
        let epochs = std::fs::read_to_string(epochs).unwrap();
        assert!(epochs.contains(&EPOCH.0.to_string()), "{epochs}");
    }

    #[test]
    fn after_a_failed_fsync_nothing_is_flushed_or_appended_any_more() {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path());
        let log = create(&dir, LogConfig::default());
        append(&log, &sized_batch(1, 2, 700));
        let failed = log.guarded(|| Err::<(), _>(Failure::Segment(Errno::IO.into())));
        assert!(matches!(failed, Err(FlushError::Offline(_))));
        // The disk would say that all is well now.
        assert!(matches!(log.flush(), Err(FlushError::Offline(_))));
        assert_eq!(log.flushed_offset(), Offset(0));
        let bytes = sized_batch(2, 2, 700);
        let appended = log.append(&validate(&bytes, &rules(), 0).unwrap(), EPOCH, 0);
        assert!(
            matches!(appended, Err(AppendError::Offline(_))),
            "{appended:?}"
        );
        assert!(matches!(log.close(), Err(FlushError::Offline(_))));
    }
}
