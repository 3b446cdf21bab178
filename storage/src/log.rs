//! One partition's log: what it is, and how a batch gets into it. A leader's batches are in
//! [`crate::follower_append`], reading in [`crate::read`], durability in [`crate::flush`], removal from
//! the front in [`crate::retention`] and from the end in [`crate::truncation`].
//!
//! Three locks, taken in this order and never held across a wait for the disk, with two exceptions:
//! `flushing` is held across fdatasync, and taken by nobody who holds another; a truncation holds it and
//! `writer` until it is durable, when there is nothing to append.
//!
//! - `writer`: one appender at a time. Under it a batch is given its offset, copied and published. Who
//!   changes the list of segments or the log start holds it too.
//! - `segments`: the list of segments; readers hold it to clone an `Arc`.
//! - `tail`, `epochs`: the newest batches, the reigns; held for a few instructions.
//!
//! Watermarks: `log_start <= high_watermark <= log_end; log_start <= flushed <= log_end`. The high
//! watermark is the replica's and comes in as an argument.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::append_file::is_full;
use crate::background::Job;
use crate::batch::{BatchHeader, TimestampType, ValidBatch};
use crate::checkpoint::TopicPartition;
use crate::config::LogConfig;
use crate::disk::Disk;
use crate::leader_epochs::LeaderEpochCache;
use crate::log_dir::CheckpointFiles;
use crate::producer_state::{ProducerError, ProducerState, Sequence};
use crate::recovery::{self, Known, OpenError, Recovered, Recovery};
use crate::segment::{Directory, Indexing, Segment, SegmentError, SegmentFiles, SegmentLimits};
use crate::tail::Tail;
use crate::{LeaderEpoch, Offset};

/// Where a batch has landed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Appended {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset of its last record.
    pub last_offset: Offset,
    /// The timestamp of all its records where the topic's is LogAppendTime, ms.
    pub log_append_time_ms: Option<i64>,
    /// Start of the log.
    pub log_start: Offset,
    /// It had been appended before, at these offsets; nothing was written now.
    pub duplicate: bool,
}

/// Why a batch was not appended. Nothing of it is in the log then.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The producer's sequence or epoch is wrong.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The disk is full, or down to the space kept free. Goes away when space returns.
    #[error("no space left in the log directory")]
    DiskFull,
    /// The log directory has failed and stays so until it is repaired.
    #[error("log directory is offline: {0}")]
    Offline(String),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The partition has run out of offsets.
    #[error("no offsets left after {0}")]
    OffsetOverflow(Offset),
    /// The batch does not fit a segment of this topic.
    #[error("a batch of {size} bytes does not fit a segment of {segment_bytes}")]
    BatchTooLargeForSegment {
        /// Bytes of the batch.
        size: usize,
        /// Bytes a segment may hold.
        segment_bytes: u64,
    },
    /// A leader of this epoch has been superseded in this log.
    #[error("leader epoch {epoch} is older than the log's {latest}")]
    StaleEpoch {
        /// The caller's.
        epoch: LeaderEpoch,
        /// The log's.
        latest: LeaderEpoch,
    },
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
}

/// No transaction is open.
const NONE_UNSTABLE: i64 = i64::MAX;

pub(crate) fn first_unstable(producers: &ProducerState) -> i64 {
    producers
        .first_unstable_offset()
        .map_or(NONE_UNSTABLE, |offset| offset.0)
}

/// One partition's log. All methods may be called from any thread; those that may wait for the disk
/// say so.
#[derive(Debug)]
pub struct Log {
    this: Weak<Log>,
    pub(crate) partition: TopicPartition,
    topic_id: Uuid,
    pub(crate) directory: Directory,
    pub(crate) disk: Arc<Disk>,
    pub(crate) checkpoints: Arc<CheckpointFiles>,
    pub(crate) config: ArcSwap<LogConfig>,
    pub(crate) log_start: AtomicI64,
    pub(crate) log_end: AtomicI64,
    /// How often the log was cut: a reader that sees it change has seen two logs, and looks again.
    pub(crate) truncations: AtomicU64,
    /// First offset of the oldest open transaction, or [`NONE_UNSTABLE`]: read for every fetch, so without the lock.
    pub(crate) first_unstable: AtomicI64,
    pub(crate) flushed: AtomicI64,
    pub(crate) segments: RwLock<Vec<Arc<Segment>>>,
    pub(crate) tail: Mutex<Tail>,
    pub(crate) epochs: Mutex<Epochs>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) flushing: Mutex<()>,
    flush_queued: AtomicBool,
    /// It was deleted or set aside. Set under `writer`, before its directory is renamed.
    pub(crate) abandoned: AtomicBool,
    /// Segments that retention took out of the log and whose files wait for the checkpoint.
    pub(crate) doomed: Mutex<Vec<Arc<Segment>>>,
    /// Sealed segments whose files go on, after their last batch, with what a truncation cut off.
    pub(crate) unreclaimed: Mutex<Vec<Arc<Segment>>>,
    /// One at a time reclaims.
    pub(crate) reclaiming: Mutex<()>,
}

/// What the appender knows.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) active: Arc<Segment>,
    /// Its files, from the first append on.
    pub(crate) files: Option<Arc<SegmentFiles>>,
    pub(crate) indexing: Indexing,
    /// Largest timestamp of its first batch, ms: what `segment.ms` counts from.
    first_timestamp: Option<i64>,
    /// When the first batch came, where it has no timestamp.
    first_append_ms: Option<i64>,
    pub(crate) producers: ProducerState,
    /// Log end at the last snapshot of `producers`.
    pub(crate) snapshot_at: Option<Offset>,
    /// What the next flush has to do besides the active segment.
    pub(crate) unflushed: Unflushed,
    pub(crate) closed: bool,
}

/// Made since the last flush.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    pub(crate) sealed: Vec<Arc<Segment>>,
    pub(crate) snapshots: Vec<(Offset, Vec<u8>)>,
    /// A file was created.
    pub(crate) directory: bool,
}

/// The leader epochs, and whether their file is behind.
#[derive(Debug)]
pub(crate) struct Epochs {
    pub(crate) cache: LeaderEpochCache,
    pub(crate) dirty: bool,
}

impl Log {
    /// Opens the log in `directory`, recovering what was not flushed. Blocks on the disk.
    pub(crate) fn open(
        partition: TopicPartition,
        topic_id: Uuid,
        directory: PathBuf,
        (disk, checkpoints): (&Arc<Disk>, &Arc<CheckpointFiles>),
        config: LogConfig,
        known: Known,
    ) -> Result<(Arc<Self>, Recovery), OpenError> {
        let directory: Directory = Arc::new(RwLock::new(directory));
        let recovered = recovery::recover(&directory, known)?;
        let report = recovered.report.clone();
        // What lies below the start is gone, and that is durable.
        let flushed = known
            .recovery_point
            .min(recovered.log_end)
            .max(recovered.log_start);
        let restarted_at = recovered.restarted_at;
        let background = recovered.unflushed > 1 || !recovered.unreclaimed.is_empty();
        let log = Arc::new_cyclic(|this| {
            let this = Weak::clone(this);
            let shared = (Arc::clone(disk), Arc::clone(checkpoints));
            Self::new(
                this, partition, topic_id, directory, shared, config, flushed, recovered,
            )
        });
        if let Some(start) = restarted_at {
            log.finish_restart(start)?;
        }
        if background {
            // Or the start after the next crash would check them once more, and with every crash more of them.
            log.request_flush();
        }
        Ok((log, report))
    }

    #[expect(clippy::too_many_arguments, reason = "called once, right above")]
    fn new(
        this: Weak<Self>,
        partition: TopicPartition,
        topic_id: Uuid,
        directory: Directory,
        (disk, checkpoints): (Arc<Disk>, Arc<CheckpointFiles>),
        config: LogConfig,
        flushed: Offset,
        recovered: Recovered,
    ) -> Self {
        let Recovered {
            segments,
            indexing,
            log_end,
            ..
        } = recovered;
        let active = Arc::clone(&segments[segments.len() - 1]);
        let sealed = segments[segments.len() - recovered.unflushed..segments.len() - 1].to_vec();
        Self {
            this,
            partition,
            topic_id,
            directory,
            disk,
            checkpoints,
            truncations: AtomicU64::new(0),
            config: ArcSwap::from_pointee(config),
            log_start: AtomicI64::new(recovered.log_start.0),
            log_end: AtomicI64::new(log_end.0),
            first_unstable: AtomicI64::new(first_unstable(&recovered.producers)),
            flushed: AtomicI64::new(flushed.0),
            tail: Mutex::new(Tail::new(
                active.base(),
                log_end,
                active.size(),
                indexing.largest(),
            )),
            segments: RwLock::new(segments),
            epochs: Mutex::new(Epochs {
                cache: recovered.epochs,
                dirty: recovered.epochs_changed,
            }),
            writer: Mutex::new(Writer {
                active,
                files: None,
                indexing,
                first_timestamp: recovered.first_timestamp,
                first_append_ms: None,
                producers: recovered.producers,
                snapshot_at: recovered.snapshot_at,
                unflushed: Unflushed {
                    sealed,
                    snapshots: Vec::new(),
                    directory: false,
                },
                closed: false,
            }),
            flushing: Mutex::new(()),
            flush_queued: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            doomed: Mutex::default(),
            unreclaimed: Mutex::new(recovered.unreclaimed),
            reclaiming: Mutex::new(()),
        }
    }

    /// Topic and partition, as the directory is named.
    #[must_use]
    pub fn partition(&self) -> &TopicPartition {
        &self.partition
    }

    /// The topic's id, which the directory belongs to whatever its name.
    #[must_use]
    pub fn topic_id(&self) -> Uuid {
        self.topic_id
    }

    /// First offset that can be read.
    #[must_use]
    pub fn log_start_offset(&self) -> Offset {
        Offset(self.log_start.load(Ordering::Acquire))
    }

    /// Offset the next record gets. Everything below it can be read.
    #[must_use]
    pub fn log_end_offset(&self) -> Offset {
        Offset(self.log_end.load(Ordering::Acquire))
    }

    /// Everything below this survives a power loss.
    #[must_use]
    pub fn flushed_offset(&self) -> Offset {
        Offset(self.flushed.load(Ordering::Acquire))
    }

    /// Bytes of batches, in all segments.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.segments
            .read()
            .iter()
            .map(|segment| segment.size())
            .sum()
    }

    /// Number of segments; at least 1.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.segments.read().len()
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> LogConfig {
        **self.config.load()
    }

    /// Changes the settings. A smaller segment size takes effect at the next append.
    pub fn set_config(&self, config: LogConfig) {
        self.config.store(Arc::new(config));
    }

    /// Where the oldest open transaction begins, if there is one: the last stable offset is the
    /// smaller of this and the high watermark.
    #[must_use]
    pub fn first_unstable_offset(&self) -> Option<Offset> {
        let unstable = self.first_unstable.load(Ordering::Acquire);
        (unstable != NONE_UNSTABLE).then_some(Offset(unstable))
    }

    // ---- append ------------------------------------------------------------------------------

    /// Appends a batch as the leader of `epoch`, at wall-clock time `now_ms`.
    ///
    /// Does not wait for the disk in the ordinary path: it copies into the page cache. A roll
    /// creates a file; flushing what it sealed is left to the background.
    ///
    /// # Errors
    /// [`AppendError`]; nothing of the batch is in the log then.
    pub fn append(
        &self,
        batch: &ValidBatch<'_>,
        epoch: LeaderEpoch,
        now_ms: i64,
    ) -> Result<Appended, AppendError> {
        self.check_online()?;
        let mut writer = self.writer.lock();
        if writer.closed {
            return Err(AppendError::Closed);
        }
        if let Sequence::Duplicate {
            base_offset,
            last_offset,
            timestamp,
        } = writer.producers.check(batch.header())?
        {
            return Ok(self.appended(batch, base_offset, last_offset, timestamp, true));
        }
        let base_offset = self.log_end_offset();
        let delta = i64::from(batch.header().last_offset_delta);
        if base_offset
            .0
            .checked_add(delta)
            .is_none_or(|last| last == i64::MAX)
        {
            return Err(AppendError::OffsetOverflow(base_offset));
        }
        let config = self.config.load();
        if batch.size() as u64 > config.segment_limit() {
            return Err(AppendError::BatchTooLargeForSegment {
                size: batch.size(),
                segment_bytes: config.segment_limit(),
            });
        }
        self.begin_epoch(epoch, base_offset)?;
        let (header, head) = batch.stamped(base_offset, epoch);
        let batches = std::slice::from_ref(&header);
        self.roll_for(&mut writer, &header, &config, now_ms)?;
        let position = self.write(&mut writer, [&head, batch.body()], batches, &config)?;
        writer.producers.record(&header, now_ms);
        self.publish(&writer, batches, position);
        drop(writer);
        if position == 0 && base_offset > self.log_start_offset() {
            self.request_flush();
        }
        Ok(self.appended(
            batch,
            base_offset,
            header.last_offset(),
            header.max_timestamp,
            false,
        ))
    }

    fn appended(
        &self,
        batch: &ValidBatch<'_>,
        base_offset: Offset,
        last_offset: Offset,
        timestamp: i64,
        duplicate: bool,
    ) -> Appended {
        let by_leader = batch.header().timestamp_type() == TimestampType::LogAppendTime;
        Appended {
            base_offset,
            last_offset,
            log_append_time_ms: by_leader.then_some(timestamp),
            log_start: self.log_start_offset(),
            duplicate,
        }
    }

    /// Copies `batches`, whose bytes are `parts` together, into the active segment and indexes them;
    /// returns the position of the first.
    pub(crate) fn write(
        &self,
        writer: &mut Writer,
        parts: [&[u8]; 2],
        batches: &[BatchHeader],
        config: &LogConfig,
    ) -> Result<u64, AppendError> {
        let files = match &writer.files {
            Some(files) => Arc::clone(files),
            None => {
                let limits = SegmentLimits {
                    segment_bytes: config.segment_bytes,
                    index_bytes: config.segment_index_bytes,
                };
                let opened = writer
                    .active
                    .open_appending(limits, &self.disk)
                    .map_err(io_error)?;
                writer.files = Some(Arc::clone(&opened));
                writer.unflushed.directory = true;
                opened
            }
        };
        let Some(appending) = &files.appending else {
            return Err(io::Error::other("the active segment is open for reading only").into());
        };
        let position = writer.active.size();
        appending
            .log
            .append(parts, config.bulk_append_bytes)
            .map_err(append_error)?;
        let mut at = position;
        for header in batches {
            let indexes = (&files.index, &*appending.times);
            let noted = writer
                .indexing
                .note(indexes, header, at, config.index_interval_bytes);
            if let Err(error) = noted {
                // An index is a hint: without the entry a look-up walks a little further.
                tracing::warn!(partition = %self.partition, %error, "left out an index entry");
            }
            at += header.size() as u64;
        }
        Ok(position)
    }

    /// Makes batches that have been written from `position` on visible, all at once. Runs under the
    /// writer lock, so in offset order.
    pub(crate) fn publish(&self, writer: &Writer, batches: &[BatchHeader], position: u64) {
        let Some(last) = batches.last() else {
            return;
        };
        self.first_unstable
            .store(first_unstable(&writer.producers), Ordering::Release);
        let size: u64 = batches.iter().map(|header| header.size() as u64).sum();
        writer.active.publish(position + size);
        self.tail
            .lock()
            .push(batches, position, writer.indexing.largest());
        self.log_end.store(last.next_offset().0, Ordering::Release);
    }

    fn begin_epoch(&self, epoch: LeaderEpoch, base_offset: Offset) -> Result<(), AppendError> {
        let mut epochs = self.epochs.lock();
        let latest = epochs
            .cache
            .latest()
            .map_or(LeaderEpoch::NONE, |entry| entry.epoch);
        if epoch < latest {
            return Err(AppendError::StaleEpoch { epoch, latest });
        }
        if epoch > latest {
            epochs.cache.assign(epoch, base_offset);
            epochs.dirty = true;
        }
        Ok(())
    }

    pub(crate) fn check_online(&self) -> Result<(), AppendError> {
        match self.disk.offline() {
            Some(reason) => Err(AppendError::Offline(reason.to_owned())),
            None => Ok(()),
        }
    }

    /// Has the background flush what was sealed.
    pub(crate) fn request_flush(&self) {
        if !self.flush_queued.swap(true, Ordering::AcqRel) {
            self.disk
                .background()
                .submit(Job::Flush(Weak::clone(&self.this)));
        }
    }

    /// What the background does for [`Self::request_flush`].
    pub(crate) fn flush_in_background(&self) {
        self.flush_queued.store(false, Ordering::Release);
        // A failure has been reported where the directory went offline.
        let _ = self.flush_sealed();
        self.reclaim();
    }

    // ---- roll --------------------------------------------------------------------------------

    /// Rolls the active segment if the batch may not go into it. The first batch of a segment, which
    /// may always, starts the clock of `segment.ms`.
    pub(crate) fn roll_for(
        &self,
        writer: &mut Writer,
        header: &BatchHeader,
        config: &LogConfig,
        now_ms: i64,
    ) -> Result<(), AppendError> {
        let held = writer.active.size();
        if held > 0 && writer.is_full_for(header, held, config, now_ms) {
            self.roll(writer, header.base_offset)
                .map_err(append_error)?;
        }
        if writer.active.size() == 0 {
            writer.first_timestamp = Some(header.max_timestamp).filter(|timestamp| *timestamp >= 0);
            writer.first_append_ms = Some(now_ms);
        }
        Ok(())
    }

    /// Seals the active segment and starts one at `base`. Nothing changes on an error.
    pub(crate) fn roll(&self, writer: &mut Writer, base: Offset) -> io::Result<()> {
        let next = Arc::new(Segment::create(Arc::clone(&self.directory), base)?);
        let largest = writer.indexing.largest();
        let (sealed, files) = writer.begin(Arc::clone(&next));
        if let Some(files) = files
            && let Some(appending) = &files.appending
            && let Some(entry) = largest
            && let Err(error) = appending.times.append_if_later(entry)
        {
            tracing::warn!(partition = %self.partition, %error, "no closing time index entry");
        }
        sealed.seal(base, largest);
        writer.unflushed.sealed.push(sealed);
        writer
            .unflushed
            .snapshots
            .push((base, writer.producers.encode_snapshot()));
        writer.unflushed.directory = true;
        writer.snapshot_at = Some(base);
        self.segments.write().push(next);
        self.tail.lock().rolled(base);
        Ok(())
    }

    /// Rolls a segment whose time has come although nothing is appended; says whether it did.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn roll_if_due(&self, now_ms: i64) -> Result<bool, AppendError> {
        self.check_online()?;
        let mut writer = self.writer.lock();
        let segment_ms = self.config.load().segment_ms;
        let due = !writer.closed
            && writer.active.size() > 0
            && writer.age_ms(now_ms, now_ms) > segment_ms;
        if due {
            self.roll(&mut writer, self.log_end_offset())
                .map_err(append_error)?;
        }
        drop(writer);
        if due {
            self.request_flush();
        }
        Ok(due)
    }
}

impl Writer {
    /// Appends to the empty segment `next` from now on; returns what was appended to before.
    pub(crate) fn begin(
        &mut self,
        next: Arc<Segment>,
    ) -> (Arc<Segment>, Option<Arc<SegmentFiles>>) {
        self.indexing = Indexing::new(None);
        self.first_timestamp = None;
        self.first_append_ms = None;
        (std::mem::replace(&mut self.active, next), self.files.take())
    }

    /// Whether a batch has to go to the next segment when the active one holds `held` bytes.
    pub(crate) fn is_full_for(
        &self,
        header: &BatchHeader,
        held: u64,
        config: &LogConfig,
        now_ms: i64,
    ) -> bool {
        held + header.size() as u64 > config.segment_limit()
            || header.last_offset() - self.active.base() > i64::from(i32::MAX)
            || self.index_room() == Some(0)
            || self.age_ms(header.max_timestamp, now_ms) > config.segment_ms
    }

    /// How many entries both indexes take before the segment has to be rolled; `None` before the
    /// first append.
    pub(crate) fn index_room(&self) -> Option<usize> {
        let files = self.files.as_ref()?;
        let times = files.appending.as_ref()?.times.room();
        Some(files.index.room().min(times))
    }

    /// How long the active segment has been filling, ms: by the records' time where they have one.
    fn age_ms(&self, timestamp: i64, now_ms: i64) -> i64 {
        match (self.first_timestamp, self.first_append_ms) {
            (Some(first), _) => timestamp.saturating_sub(first),
            (None, Some(first)) => now_ms.saturating_sub(first),
            (None, None) => 0,
        }
    }
}

pub(crate) fn append_error(error: io::Error) -> AppendError {
    if is_full(&error) {
        AppendError::DiskFull
    } else {
        AppendError::Io(error)
    }
}

fn io_error(error: SegmentError) -> AppendError {
    match error {
        SegmentError::Io(error) => append_error(error),
        corrupt @ SegmentError::Corrupt { .. } => {
            AppendError::Io(io::Error::new(io::ErrorKind::InvalidData, corrupt))
        }
    }
}
