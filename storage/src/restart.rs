//! Emptying a log and starting it elsewhere: what a follower does whose log ends below its leader's
//! start, or lies beyond its end.
//!
//! A crash leaves the old log or the new, empty one. What decides is one durable file,
//! `<offset>.restart`: while it exists, every other file of the log is void, and a start finishes what
//! was begun ([`crate::recovery`]). It goes once the log start is checkpointed, and nothing is appended
//! before that:
//!
//! 1. `<offset>.restart` is created.
//! 2. The segments are renamed to `*.deleted`; snapshots and leader epochs are removed.
//! 3. The empty segment is created.
//! 4. Log start and recovery point are checkpointed.
//! 5. `<offset>.restart` is removed.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Offset;
use crate::checkpoint;
use crate::log::{Log, Writer};
use crate::recovery::{LEADER_EPOCHS, remove_if_there, snapshots_in};
use crate::segment::{SNAPSHOT, Segment, file_name};
use crate::truncation::TruncateError;

/// Suffix of the file that says where the log starts over.
pub(crate) const RESTART: &str = "restart";

impl Log {
    /// Empties the log: it starts and ends at `offset`, with no leader epochs and no producers (Kafka's
    /// `truncateFullyAndStartAt`). Files are removed after `file.delete.delay.ms`; slices that were
    /// handed out keep their bytes. Waits for the disk, and for a flush that is under way.
    ///
    /// # Errors
    /// [`TruncateError`].
    pub fn restart_at(&self, offset: Offset) -> Result<(), TruncateError> {
        let _flushing = self.flushing.lock();
        let mut writer = self.writer.lock();
        self.check_truncatable(&writer)?;
        self.restart(&mut writer, offset)
    }

    /// The same, for who holds the locks.
    pub(crate) fn restart(&self, writer: &mut Writer, offset: Offset) -> Result<(), TruncateError> {
        let decision = self.directory.read().join(file_name(offset, RESTART));
        let decided = File::create(&decision).map_err(|error| self.unchanged(error))?;
        decided
            .sync_all()
            .and_then(|()| self.sync_directory())
            .map_err(|error| self.half_done(&error))?;
        self.disk.step();
        let (start, end) = (self.log_start_offset(), self.log_end_offset());
        self.replace_files(offset)
            .map_err(|error| self.half_done(&error))?;
        tracing::info!(
            partition = %self.partition,
            from = %start,
            upto = %end,
            bytes = self.size_bytes(),
            at = %offset,
            "emptied a log: it starts over"
        );
        // Checkpoints that are written from here on say where the new log starts.
        self.doomed.lock().clear();
        self.unreclaimed.lock().clear();
        writer.unflushed.sealed.clear();
        writer.unflushed.snapshots.clear();
        writer.producers.reset();
        self.epochs.lock().cache.clear();
        self.start_over(writer, Vec::new(), None, (offset, offset));
        self.flushed.store(offset.0, Ordering::Release);
        self.finish_restart(offset)
            .map_err(|error| self.half_done(&error))
    }

    fn replace_files(&self, offset: Offset) -> io::Result<()> {
        let doomed = self.doomed.lock().clone();
        for segment in doomed.iter().chain(&self.all_segments()) {
            self.delete_files(segment)?;
            self.disk.step();
        }
        void_small_files(&self.directory.read())?;
        self.sync_directory()?;
        self.disk.step();
        Segment::create(Arc::clone(&self.directory), offset)?.sync()?;
        self.sync_directory()?;
        self.disk.step();
        Ok(())
    }

    /// Checkpoints the start of a log that is empty now, and takes the decision back.
    pub(crate) fn finish_restart(&self, offset: Offset) -> io::Result<()> {
        self.checkpoints.restart(&self.partition, offset)?;
        self.disk.step();
        let directory = self.directory.read().clone();
        remove_if_there(&directory.join(file_name(offset, RESTART)))?;
        checkpoint::sync_directory(&directory)
    }
}

/// Removes what a log remembers beside its segments.
pub(crate) fn void_small_files(directory: &Path) -> io::Result<()> {
    for at in snapshots_in(directory)? {
        remove_if_there(&directory.join(file_name(at, SNAPSHOT)))?;
    }
    remove_if_there(&directory.join(LEADER_EPOCHS))
}
