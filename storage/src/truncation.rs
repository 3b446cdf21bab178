//! Cutting a log that has parted from its leader's.
//!
//! What a reader was handed stays as it is: no published page is written again and no file is cut in
//! place, because pages given to `sendfile` are referenced, not copied, until the peer has them. So the
//! log does not go back into its segment; a new one starts at the cut, and *a segment ends where its
//! successor begins*, whatever its file holds beyond:
//!
//! ```text
//! before  |0.log ........|  |100.log ..........................|  |200.log ...|
//! cut at 160                                  v
//! after   |0.log ........|  |100.log .........|xxxx superseded x|  |160.log|
//! ```
//!
//! The superseded end is given back later ([`crate::reclaim`]). The steps on disk, each durable before
//! the next, so that a crash leaves a log that ends at the cut or later, and never a damaged one:
//!
//! 1. The recovery point, if it lies above the cut: else the next start would miss flushed bytes.
//! 2. Segments from the cut on are renamed to `*.deleted`, the last one first, and snapshots of
//!    producers above the cut removed: they would be taken for those of the batches that come instead.
//! 3. The new segment is created.
//!
//! Then it is published in memory, at once for readers: `Log::truncations` tells one that was looking
//! meanwhile to look again. A failure after step 2 has begun leaves files that the log in memory does
//! not match, and takes the directory offline; the next start goes on with what it finds.
//!
//! Locks: `flushing` keeps out flushes, which would move `flushed` past the cut, and `close`; `writer`
//! keeps out appends and retention. Both are held while the disk is waited for: there is nothing to
//! append before the cut is made.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::Offset;
use crate::append_file::is_full;
use crate::background::Job;
use crate::batch::BatchHeader;
use crate::checkpoint;
use crate::flush::is_out_of_files;
use crate::log::{Log, Writer, first_unstable};
use crate::producer_state::ProducerState;
use crate::read::ReadError;
use crate::recovery::{HeaderReader, remove_if_there, snapshots_in};
use crate::segment::{LOG, SNAPSHOT, Segment, SegmentError, file_name};
use crate::tail::Tail;

/// Why a log was not cut, or not restarted. It is as it was then, or the log directory is offline.
#[derive(Debug, thiserror::Error)]
pub enum TruncateError {
    /// The log directory has failed, now or before.
    #[error("log directory is offline: {0}")]
    Offline(String),
    /// No room for a file or a checkpoint; goes away when space returns.
    #[error("no space left in the log directory")]
    DiskFull,
    /// No descriptor was left to open a file with (`ulimit -n`).
    #[error("too many open files")]
    TooManyOpenFiles,
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
    /// What is kept could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<SegmentError> for TruncateError {
    fn from(error: SegmentError) -> Self {
        Self::Read(error.into())
    }
}

/// Where a log is cut.
struct Cut {
    /// The segments before it.
    segments: Vec<Arc<Segment>>,
    /// The first of them that does not stay as it is.
    slot: usize,
    /// A batch boundary: the log end to be.
    offset: Offset,
    /// Of the batch at `offset` in that segment.
    position: u64,
}

impl Cut {
    /// The segments that go as a whole.
    fn gone(&self) -> &[Arc<Segment>] {
        &self.segments[self.slot + usize::from(self.position > 0)..]
    }

    /// The segments that stay, and where the batches end in each that do.
    fn kept(&self) -> impl Iterator<Item = (&Arc<Segment>, u64)> {
        let whole = self.segments[..self.slot].iter();
        let last = (self.position > 0).then(|| (&self.segments[self.slot], self.position));
        whole.map(|segment| (segment, segment.size())).chain(last)
    }
}

impl Log {
    /// Cuts the log so that it ends at `offset`, or where the batch begins that holds it; never below
    /// the log start. At or above the log end nothing is cut. Returns the log end now.
    ///
    /// Leader epochs, producers, time index, `flushed` and the recovery point go back together. Slices
    /// that were handed out keep their bytes. Waits for the disk, and for a flush that is under way.
    ///
    /// # Errors
    /// [`TruncateError`].
    pub fn truncate_to(&self, offset: Offset) -> Result<Offset, TruncateError> {
        let _flushing = self.flushing.lock();
        let mut writer = self.writer.lock();
        self.check_truncatable(&writer)?;
        let (start, end) = (self.log_start_offset(), self.log_end_offset());
        let offset = offset.max(start);
        if offset >= end {
            // A reign of our own in which nothing was appended ends here too.
            let mut epochs = self.epochs.lock();
            epochs.dirty |= epochs.cache.truncate_from_end(end);
            return Ok(end);
        }
        let cut = self.cut_at(offset)?;
        if cut.offset < start {
            // The start lies inside a batch, which nobody may be given from its middle on.
            self.restart(&mut writer, start)?;
            return Ok(start);
        }
        let stale = self.snapshots_above(cut.offset)?;
        let producers = self.producers_at(&writer, &cut)?;
        self.recede(&cut, &stale)?;
        self.cut(&mut writer, &cut, producers);
        drop(writer);
        self.request_flush();
        Ok(cut.offset)
    }

    pub(crate) fn check_truncatable(&self, writer: &Writer) -> Result<(), TruncateError> {
        if let Some(reason) = self.disk.offline() {
            return Err(TruncateError::Offline(reason.to_owned()));
        }
        if writer.closed {
            return Err(TruncateError::Closed);
        }
        Ok(())
    }

    /// Finds the batch that holds `offset`, which lies in the log.
    fn cut_at(&self, offset: Offset) -> Result<Cut, TruncateError> {
        let segments = self.all_segments();
        let slot = segments
            .partition_point(|segment| segment.base() <= offset)
            .saturating_sub(1);
        let segment = &segments[slot];
        let files = segment.files(&self.disk)?;
        let Some(batch) = segment.locate(&files, offset, segment.size())? else {
            return Err(TruncateError::Read(ReadError::Corrupt(format!(
                "{}: no batch holds offset {offset}",
                segment.path(LOG).display()
            ))));
        };
        Ok(Cut {
            slot,
            offset: batch.base_offset,
            position: batch.position,
            segments,
        })
    }

    fn snapshots_above(&self, offset: Offset) -> Result<Vec<Offset>, TruncateError> {
        let mut found = snapshots_in(&self.directory.read()).map_err(ReadError::Io)?;
        found.retain(|at| *at > offset);
        Ok(found)
    }

    /// The producers as of the cut: from the newest snapshot before it and the batches after that. As a
    /// rule that is one of the segment that is cut; those of segments that a crash kept from being flushed
    /// are missing.
    fn producers_at(&self, writer: &Writer, cut: &Cut) -> Result<ProducerState, TruncateError> {
        let none = ProducerState::default();
        if writer.producers.is_empty() {
            return Ok(none);
        }
        let first = cut.segments[0].base();
        let (at, mut producers) = self
            .newest_snapshot(writer, |at| (first..=cut.offset).contains(&at))
            .map_err(ReadError::Io)?
            .unwrap_or((first, none));
        let now_ms = writer.producers.last_seen_ms();
        for (segment, end) in cut.kept() {
            if segment.next_base().is_some_and(|next| next <= at) {
                continue;
            }
            let files = segment.files(&self.disk)?;
            let Some(from) = segment.locate(&files, at, end)? else {
                continue;
            };
            let mut reader = HeaderReader::new(&files.log, from.position, end);
            while let Some(bytes) = reader.header().map_err(ReadError::Io)? {
                let header = BatchHeader::parse(&bytes)
                    .map_err(|error| ReadError::Corrupt(error.to_string()))?;
                producers.record(&header, now_ms);
                reader.skip(header.size() as u64);
            }
        }
        Ok(producers)
    }

    /// The newest usable snapshot, in a file or not written yet. A damaged one counts as missing.
    fn newest_snapshot(
        &self,
        writer: &Writer,
        usable: impl Fn(Offset) -> bool,
    ) -> io::Result<Option<(Offset, ProducerState)>> {
        let directory = self.directory.read().clone();
        let pending = &writer.unflushed.snapshots;
        let mut found = snapshots_in(&directory)?;
        found.extend(pending.iter().map(|(at, _)| *at));
        found.sort_unstable();
        for at in found.into_iter().rev().filter(|at| usable(*at)) {
            let bytes = match pending.iter().find(|(pending, _)| *pending == at) {
                Some((_, bytes)) => bytes.clone(),
                None => fs::read(directory.join(file_name(at, SNAPSHOT)))?,
            };
            match ProducerState::decode_snapshot(&bytes) {
                Ok(producers) => return Ok(Some((at, producers))),
                Err(error) => tracing::warn!(partition = %self.partition, %at, %error),
            }
        }
        Ok(None)
    }

    /// Makes the cut on disk.
    fn recede(&self, cut: &Cut, stale: &[Offset]) -> Result<(), TruncateError> {
        // In memory first: no checkpoint that is written meanwhile raises it again.
        self.flushed.fetch_min(cut.offset.0, Ordering::AcqRel);
        self.checkpoints
            .lower_recovery_point(&self.partition, cut.offset)
            .map_err(|error| self.unchanged(error))?;
        self.disk.step();
        for segment in cut.gone().iter().rev() {
            self.delete_files(segment)
                .map_err(|error| self.half_done(&error))?;
            self.disk.step();
        }
        for at in stale {
            let path = self.directory.read().join(file_name(*at, SNAPSHOT));
            remove_if_there(&path).map_err(|error| self.half_done(&error))?;
        }
        let changed = !cut.gone().is_empty() || !stale.is_empty();
        if changed {
            self.sync_directory()
                .map_err(|error| self.half_done(&error))?;
            self.disk.step();
        }
        let created = Segment::create(Arc::clone(&self.directory), cut.offset);
        let created = created.map_err(|error| match changed {
            true => self.half_done(&error),
            false => self.unchanged(error),
        })?;
        created
            .sync()
            .and_then(|()| self.sync_directory())
            .map_err(|error| self.half_done(&error))?;
        self.disk.step();
        Ok(())
    }

    /// Renames the files of a segment out of the way, and has them removed later.
    pub(crate) fn delete_files(&self, segment: &Segment) -> io::Result<()> {
        let delay = Duration::from_millis(self.config().file_delete_delay_ms);
        for path in segment.rename_deleted()? {
            self.disk.background().submit(Job::Remove { path, delay });
        }
        Ok(())
    }

    pub(crate) fn sync_directory(&self) -> io::Result<()> {
        checkpoint::sync_entries(&self.directory)
    }

    /// What `error` means where nothing has been changed yet: that of an fsync is for good.
    pub(crate) fn unchanged(&self, error: io::Error) -> TruncateError {
        if is_full(&error) {
            TruncateError::DiskFull
        } else if is_out_of_files(&error) {
            TruncateError::TooManyOpenFiles
        } else {
            self.half_done(&error)
        }
    }

    /// What `error` means where the files no longer match the log in memory.
    pub(crate) fn half_done(&self, error: &io::Error) -> TruncateError {
        self.disk.take_offline(&self.directory.read(), error);
        TruncateError::Offline(error.to_string())
    }

    /// Makes the cut in memory, now that it is on disk.
    fn cut(&self, writer: &mut Writer, cut: &Cut, producers: ProducerState) {
        let (start, end) = (self.log_start_offset(), self.log_end_offset());
        let mut segments = cut.segments[..cut.slot].to_vec();
        let mut replaced = None;
        // Held until all is published: who gives back what is cut off shortens a file that readers may be
        // about to open for the segment as it was.
        let mut unreclaimed = self.unreclaimed.lock();
        unreclaimed.retain(|segment| segments.iter().any(|kept| Arc::ptr_eq(kept, segment)));
        let sealed = &mut writer.unflushed.sealed;
        sealed.retain(|segment| segments.iter().any(|kept| Arc::ptr_eq(kept, segment)));
        if cut.position > 0 {
            let whole = &cut.segments[cut.slot];
            let kept = Arc::new(whole.cut(cut.position, cut.offset));
            unreclaimed.push(Arc::clone(&kept));
            sealed.push(Arc::clone(&kept));
            segments.push(kept);
            replaced = Some(&**whole);
        }
        let kept_bytes: u64 = segments.iter().map(|segment| segment.size()).sum();
        tracing::info!(
            partition = %self.partition,
            from = %cut.offset,
            upto = %end,
            bytes = self.size_bytes() - kept_bytes,
            "truncated a log: what it had and its leader has not"
        );
        writer.producers = producers;
        self.start_over(writer, segments, replaced, (start, cut.offset));
    }

    /// Publishes the log as `kept` and an empty segment at `end` after it; the last one kept may have
    /// `replaced` another.
    pub(crate) fn start_over(
        &self,
        writer: &mut Writer,
        mut kept: Vec<Arc<Segment>>,
        replaced: Option<&Segment>,
        (start, end): (Offset, Offset),
    ) {
        let active = Arc::new(Segment::new(Arc::clone(&self.directory), end, 0, None));
        let snapshot = writer.producers.encode_snapshot();
        let snapshots = &mut writer.unflushed.snapshots;
        snapshots.retain(|(at, _)| *at < end);
        snapshots.push((end, snapshot));
        writer.snapshot_at = Some(end);
        writer.unflushed.directory = true;
        writer.begin(Arc::clone(&active));
        kept.push(active);
        // One moment for readers: they take their view of the log under this lock.
        let mut segments = self.segments.write();
        self.truncations.fetch_add(1, Ordering::AcqRel);
        *segments = kept;
        if let Some(replaced) = replaced {
            replaced.retire();
        }
        *self.tail.lock() = Tail::new(end, end, 0, None);
        let mut epochs = self.epochs.lock();
        epochs.cache.truncate_from_end(end);
        epochs.dirty = true;
        self.first_unstable
            .store(first_unstable(&writer.producers), Ordering::Release);
        self.log_start.store(start.0, Ordering::Release);
        self.log_end.store(end.0, Ordering::Release);
    }
}
