//! One segment: the files `<base offset>.log`, `.index` and `.timeindex`.
//!
//! A segment is *active* (the last of its log, appended to), then *sealed*. Its files are opened at
//! the first append or read and not before: a log of 10,000 sealed segments opens none of them at a
//! start. An active segment stays open once it is appended to; a sealed one is *settled* (closing
//! time index entry written, files cut to their contents and flushed) in the background, and from
//! then on closes when others need its place (see [`crate::open_segments`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::Offset;
use crate::append_file::AppendFile;
use crate::batch::{BatchHeader, HEADER_LEN};
use crate::disk::Disk;
use crate::offset_index::OffsetIndex;
use crate::recovery;
use crate::time_index::{NO_TIMESTAMP, TimeEntry, TimeIndex};

/// Suffixes of a segment's files.
pub(crate) const LOG: &str = "log";
pub(crate) const INDEX: &str = "index";
pub(crate) const TIME_INDEX: &str = "timeindex";
pub(crate) const SNAPSHOT: &str = "snapshot";
/// A file that waits to be removed.
pub(crate) const DELETED: &str = "deleted";

/// Directory of a partition; changes when the topic is deleted.
pub(crate) type Directory = Arc<RwLock<PathBuf>>;

/// `00000000000000000042.log`
pub(crate) fn file_name(base: Offset, suffix: &str) -> String {
    format!("{:020}.{suffix}", base.0)
}

/// What a segment's bytes turned out to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SegmentError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{path}: no batch at position {position}: {reason}")]
    Corrupt {
        path: PathBuf,
        position: u64,
        reason: String,
    },
}

/// A batch that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located {
    pub(crate) base_offset: Offset,
    pub(crate) last_offset: Offset,
    pub(crate) position: u64,
    pub(crate) size: u64,
}

/// One segment of a log.
#[derive(Debug)]
pub(crate) struct Segment {
    directory: Directory,
    base: Offset,
    /// Bytes of batches. Stored with Release after the bytes are in the file.
    size: AtomicU64,
    /// Base offset of the segment after this one; `i64::MAX` while this one is active.
    next_base: AtomicI64,
    /// Largest timestamp, once sealed and asked for.
    largest: OnceLock<Option<TimeEntry>>,
    files: Mutex<Option<Arc<SegmentFiles>>>,
    /// The log has let go of it, and its paths may be another segment's by now. Set under `files`.
    retired: AtomicBool,
    used: AtomicBool,
}

/// The open files of a segment.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    pub(crate) log: Arc<File>,
    pub(crate) index: OffsetIndex,
    pub(crate) appending: Option<Appending>,
}

/// What only the active segment has open.
#[derive(Debug)]
pub(crate) struct Appending {
    pub(crate) log: Arc<AppendFile>,
    pub(crate) times: Arc<TimeIndex>,
}

/// Decides which batches get index entries, as Kafka does: the first batch after more than
/// `interval` bytes without one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indexing {
    bytes_since_entry: u64,
    largest: Option<TimeEntry>,
}

impl Indexing {
    /// At the start of a segment, or after `largest` where appending goes on in one.
    pub(crate) fn new(largest: Option<TimeEntry>) -> Self {
        Self {
            bytes_since_entry: 0,
            largest,
        }
    }

    /// Largest timestamp so far.
    pub(crate) fn largest(&self) -> Option<TimeEntry> {
        self.largest
    }

    /// Notes a batch that has been written at `position`.
    ///
    /// # Errors
    /// As `IndexFile::push`: the entry is then left out, and the next batch tries again.
    pub(crate) fn note(
        &mut self,
        (index, times): (&OffsetIndex, &TimeIndex),
        header: &BatchHeader,
        position: u64,
        interval: u32,
    ) -> io::Result<()> {
        let so_far = self.largest.map_or(NO_TIMESTAMP, |entry| entry.timestamp);
        if header.max_timestamp > so_far {
            self.largest = Some(TimeEntry {
                timestamp: header.max_timestamp,
                offset: header.last_offset(),
            });
        }
        let due = self.bytes_since_entry > u64::from(interval);
        self.bytes_since_entry += header.size() as u64;
        if due {
            let position = u32::try_from(position).map_err(io::Error::other)?;
            index.append(header.last_offset(), position)?;
            if let Some(largest) = self.largest {
                times.append_if_later(largest)?;
            }
            self.bytes_since_entry = header.size() as u64;
        }
        Ok(())
    }
}

/// Sizes an active segment is opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentLimits {
    pub(crate) segment_bytes: u32,
    pub(crate) index_bytes: u32,
}

impl Segment {
    /// A segment of `size` bytes that are on disk; `next_base` is where its successor starts.
    pub(crate) fn new(
        directory: Directory,
        base: Offset,
        size: u64,
        next_base: Option<Offset>,
    ) -> Self {
        Self {
            directory,
            base,
            size: AtomicU64::new(size),
            next_base: AtomicI64::new(next_base.map_or(i64::MAX, |offset| offset.0)),
            largest: OnceLock::new(),
            files: Mutex::default(),
            retired: AtomicBool::new(false),
            used: AtomicBool::new(false),
        }
    }

    /// Creates the empty `.log` of a segment. Its directory entry is durable after the next fsync
    /// of the directory.
    ///
    /// # Errors
    /// open(2); a file that exists with bytes in it is `AlreadyExists`, and its indexes stay.
    pub(crate) fn create(directory: Directory, base: Offset) -> io::Result<Self> {
        let segment = Self::new(directory, base, 0, None);
        let path = segment.path(LOG);
        match fs::metadata(&path) {
            Ok(there) if there.len() != 0 => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{} exists and is not empty", path.display()),
                ));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Indexes that outlived their log would send readers to batches that are not there.
        for leftover in [INDEX, TIME_INDEX] {
            match fs::remove_file(segment.path(leftover)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // Last: where this file is, a start takes the segment before it to end.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        Ok(segment)
    }

    /// First offset it may hold.
    pub(crate) fn base(&self) -> Offset {
        self.base
    }

    /// Bytes of batches.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Publishes `size` bytes.
    pub(crate) fn publish(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Base offset of its successor; `None` while it is active.
    pub(crate) fn next_base(&self) -> Option<Offset> {
        let next = self.next_base.load(Ordering::Acquire);
        (next != i64::MAX).then_some(Offset(next))
    }

    /// Its directory, which keeps its name until the guard is dropped.
    pub(crate) fn directory(&self) -> RwLockReadGuard<'_, PathBuf> {
        self.directory.read()
    }

    /// Uses the path of one of its files, which is good until `act` is done; it must not wait for the disk.
    fn at<T>(&self, suffix: &str, act: impl FnOnce(&Path) -> T) -> T {
        let directory = self.directory();
        act(&directory.join(file_name(self.base, suffix)))
    }

    /// Path of one of its files, for messages and for where the directory cannot be renamed: under the
    /// writer lock of a log that is not closed, or at a start.
    pub(crate) fn path(&self, suffix: &str) -> PathBuf {
        self.directory.read().join(file_name(self.base, suffix))
    }

    /// Ends the segment: `next_base` starts its successor, `largest` is its largest timestamp.
    pub(crate) fn seal(&self, next_base: Offset, largest: Option<TimeEntry>) {
        self.next_base.store(next_base.0, Ordering::Release);
        // Set once: a segment is sealed once.
        let _ = self.largest.set(largest);
    }

    /// The files, opened for reading if they are not open.
    ///
    /// # Errors
    /// open(2); rebuilding a missing index.
    pub(crate) fn files(self: &Arc<Self>, disk: &Disk) -> Result<Arc<SegmentFiles>, SegmentError> {
        let mut files = self.files.lock();
        if let Some(files) = &*files {
            if files.appending.is_none() {
                self.used.store(true, Ordering::Relaxed);
            }
            return Ok(Arc::clone(files));
        }
        self.check_in_use()?;
        let log = Arc::new(self.at(LOG, |path| File::open(path))?);
        let open_index = || self.at(INDEX, |path| OffsetIndex::open_sealed(path, self.base));
        let index = match open_index() {
            Ok(index) => index,
            Err(error) if is_missing_or_wrong(&error) => {
                self.rebuild(&log, &error.to_string())?;
                open_index()?
            }
            Err(error) => return Err(error.into()),
        };
        let opened = Arc::new(SegmentFiles {
            log,
            index,
            appending: None,
        });
        *files = Some(Arc::clone(&opened));
        drop(files);
        disk.open_segments().opened(self);
        Ok(opened)
    }

    /// The files, opened for appending if they are not.
    ///
    /// # Errors
    /// open(2), fstat(2).
    pub(crate) fn open_appending(
        &self,
        limits: SegmentLimits,
        disk: &Arc<Disk>,
    ) -> Result<Arc<SegmentFiles>, SegmentError> {
        let mut files = self.files.lock();
        if let Some(files) = files.as_ref().filter(|files| files.appending.is_some()) {
            return Ok(Arc::clone(files));
        }
        let log = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(LOG))?;
        let log = Arc::new(log);
        let reserved = u64::from(limits.segment_bytes);
        let append = AppendFile::new(Arc::clone(&log), self.size(), reserved, Arc::clone(disk))?;
        let index_bytes = limits.index_bytes as usize;
        let index = OffsetIndex::open_appending(&self.path(INDEX), self.base, index_bytes)?;
        let times = TimeIndex::open_appending(&self.path(TIME_INDEX), self.base, index_bytes)?;
        let opened = Arc::new(SegmentFiles {
            log,
            index,
            appending: Some(Appending {
                log: Arc::new(append),
                times: Arc::new(times),
            }),
        });
        *files = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Cuts the files to their contents, flushes them and gives up the map; nothing is appended
    /// afterwards. `closing` is the largest timestamp, which ends the time index.
    ///
    /// # Errors
    /// ftruncate(2), fdatasync(2); `NotFound` once the directory was renamed. After an error the segment must
    /// not count as durable.
    pub(crate) fn settle(&self, closing: Option<TimeEntry>) -> io::Result<()> {
        // Held while names are used: a truncation may give them to another segment meanwhile, see `Self::retire`.
        let files = self.files.lock();
        if let Some(files) = &*files
            && let Some(Appending { log, times }) = &files.appending
        {
            log.trim(self.size())?;
            let directory = self.directory.read();
            if files.index.path() != directory.join(file_name(self.base, INDEX)) {
                // What the indexes are called may be another log's by now.
                return Err(io::ErrorKind::NotFound.into());
            }
            if let Some(entry) = closing
                && let Err(error) = times.append_if_later(entry)
            {
                tracing::warn!(directory = %directory.display(), %error, "no closing time index entry");
            }
            files.index.trim()?;
            times.trim()?;
        }
        drop(files);
        self.sync()?;
        *self.files.lock() = None;
        Ok(())
    }

    /// Flushes the files, whoever has them open.
    ///
    /// # Errors
    /// open(2), fdatasync(2).
    pub(crate) fn sync(&self) -> io::Result<()> {
        for suffix in [LOG, INDEX, TIME_INDEX] {
            let opened = {
                // Held while names are used: a truncation may be half way through renaming them.
                let _files = self.files.lock();
                if self.is_retired() {
                    // What the log has let go of need not be durable.
                    return Ok(());
                }
                self.at(suffix, |path| File::open(path))
            };
            match opened {
                Ok(file) => file.sync_data()?,
                // The indexes of a segment that was never appended to do not exist.
                Err(error) if error.kind() == io::ErrorKind::NotFound && suffix != LOG => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The first batch whose last offset is at least `target`, among the first `end` bytes.
    ///
    /// # Errors
    /// pread(2); `Corrupt` when the walk meets something that is no batch of this segment.
    pub(crate) fn locate(
        &self,
        files: &SegmentFiles,
        target: Offset,
        end: u64,
    ) -> Result<Option<Located>, SegmentError> {
        let entry = files
            .index
            .lookup(target)?
            .filter(|entry| u64::from(entry.position) < end);
        if let Some(entry) = entry {
            let position = u64::from(entry.position);
            match self.header_at(&files.log, position, end) {
                Ok(header) if header.last_offset() == entry.offset => {
                    return self.walk(&files.log, position, target, end);
                }
                _ if files.appending.is_some() => {
                    tracing::error!(path = %self.path(INDEX).display(), "a wrong entry in an active index");
                }
                _ => self.replace_indexes(files, "an entry does not point to its batch")?,
            }
        }
        self.walk(&files.log, 0, target, end)
    }

    /// Where the last batch ends that lies between `from` and `limit`: `from`, if there is none. Both `from`
    /// and `end`, which is at or beyond `limit`, are batch boundaries.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub(crate) fn boundary(
        &self,
        files: &SegmentFiles,
        (from, limit): (u64, u64),
        end: u64,
    ) -> Result<u64, SegmentError> {
        let mut position = from;
        if let Some(entry) = files.index.lookup_position(limit)?
            && u64::from(entry.position) > from
            && let Ok(header) = self.header_at(&files.log, entry.position.into(), end)
            && header.last_offset() == entry.offset
        {
            position = entry.position.into();
        }
        while position < limit {
            let next = position + self.header_at(&files.log, position, end)?.size() as u64;
            if next > limit {
                break;
            }
            position = next;
        }
        Ok(position)
    }

    /// The header of the batch that starts at `position` and ends by `end`.
    ///
    /// # Errors
    /// pread(2); `Corrupt`.
    pub(crate) fn header_at(
        &self,
        log: &File,
        position: u64,
        end: u64,
    ) -> Result<BatchHeader, SegmentError> {
        let mut bytes = [0; HEADER_LEN];
        log.read_exact_at(&mut bytes, position)?;
        let header = BatchHeader::parse(&bytes)
            .map_err(|error| self.corrupt(position, error.to_string()))?;
        if position + header.size() as u64 > end {
            return Err(self.corrupt(position, "it ends after the segment does".into()));
        }
        let past = self
            .next_base()
            .is_some_and(|next| header.last_offset() >= next);
        if header.base_offset < self.base || past {
            return Err(self.corrupt(position, format!("its offset is {}", header.base_offset)));
        }
        Ok(header)
    }

    fn walk(
        &self,
        log: &File,
        from: u64,
        target: Offset,
        end: u64,
    ) -> Result<Option<Located>, SegmentError> {
        let mut position = from;
        while position < end {
            let header = self.header_at(log, position, end)?;
            let size = header.size() as u64;
            if header.last_offset() >= target {
                return Ok(Some(Located {
                    base_offset: header.base_offset,
                    last_offset: header.last_offset(),
                    position,
                    size,
                }));
            }
            position += size;
        }
        Ok(None)
    }

    /// Largest timestamp of a sealed segment, ms; `None` when no record has one.
    ///
    /// # Errors
    /// Opening or reading the time index.
    pub(crate) fn largest_timestamp(&self) -> Result<Option<TimeEntry>, SegmentError> {
        if let Some(largest) = self.largest.get() {
            return Ok(*largest);
        }
        let last = self.times()?.last()?;
        Ok(*self.largest.get_or_init(|| last))
    }

    /// The time index: the appender's, or opened for this call.
    ///
    /// # Errors
    /// open(2); rebuilding a missing index.
    pub(crate) fn times(&self) -> Result<Arc<TimeIndex>, SegmentError> {
        // Held while the indexes are rebuilt, which `Self::files` may want to do as well, to the same files.
        let files = self.files.lock();
        if let Some(appending) = files.as_ref().and_then(|files| files.appending.as_ref()) {
            return Ok(Arc::clone(&appending.times));
        }
        let open = || self.at(TIME_INDEX, |path| TimeIndex::open_sealed(path, self.base));
        let times = match open() {
            Err(error) if is_missing_or_wrong(&error) && self.size() > 0 => {
                self.rebuild(&self.at(LOG, |path| File::open(path))?, &error.to_string())?;
                open()?
            }
            result => result?,
        };
        Ok(Arc::new(times))
    }

    /// When the `.log` was last written, ms since the epoch: stands in for missing timestamps.
    ///
    /// # Errors
    /// stat(2).
    pub(crate) fn modified_ms(&self) -> io::Result<i64> {
        let modified = self.at(LOG, |path| fs::metadata(path))?.modified()?;
        let since = modified
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Renames the files out of the way, unless that was done, and returns the new paths. The `.log`
    /// goes first: without it the others are leftovers that a start removes.
    ///
    /// # Errors
    /// rename(2).
    pub(crate) fn rename_deleted(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = self.files.lock();
        let mut renamed = Vec::new();
        if self.is_retired() {
            return Ok(renamed);
        }
        let directory = self.directory.read();
        for suffix in [LOG, INDEX, TIME_INDEX, SNAPSHOT] {
            let from = directory.join(file_name(self.base, suffix));
            let to = with_suffix(&from, DELETED);
            match fs::rename(&from, &to) {
                Ok(()) => renamed.push(to),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.retired.store(true, Ordering::Release);
        *files = None;
        Ok(renamed)
    }

    /// The first `size` bytes of this segment, which `next_base` follows, as a segment that takes its
    /// place: see [`Self::retire`]. The file stays as it is.
    pub(crate) fn cut(&self, size: u64, next_base: Offset) -> Self {
        let directory = Arc::clone(&self.directory);
        Self::new(directory, self.base, size, Some(next_base))
    }

    /// Lets go of the paths, which another segment has from now on. The indexes go: what they know
    /// of batches that were cut off is wrong for it.
    pub(crate) fn retire(&self) {
        let mut files = self.files.lock();
        self.retired.store(true, Ordering::Release);
        *files = None;
        for suffix in [INDEX, TIME_INDEX] {
            let path = self.path(suffix);
            // One that stays sends no reader astray, see `Self::locate`.
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove an index");
            }
        }
    }

    /// Replaces a `.log` that goes on after the segment's last batch by a copy that does not, unless
    /// the log has let go of the segment meanwhile. Says how many bytes that gave back. It is durable
    /// after the next fsync of the directory.
    ///
    /// # Errors
    /// `StorageFull` without room for the copy; read(2), write(2), fsync(2), rename(2).
    pub(crate) fn shrink(&self, disk: &Disk) -> io::Result<Option<u64>> {
        // Held while names are used, not while bytes are copied: the partition may be deleted meanwhile.
        let names = |directory: &Path| {
            let path = directory.join(file_name(self.base, LOG));
            (with_suffix(&path, "tmp"), path)
        };
        let (source, mut copy) = {
            let directory = self.directory.read();
            let (copy, path) = names(&directory);
            if self.is_retired() {
                return Ok(None);
            }
            (File::open(path)?, File::create(copy)?)
        };
        let before = source.metadata()?.len();
        if let Err(error) = self.copy_batches(source, &mut copy, disk) {
            // It would take the room that is missing.
            let (copy, _) = names(&self.directory.read());
            let _ = fs::remove_file(copy);
            return Err(error);
        }
        disk.step();
        let mut files = self.files.lock();
        let directory = self.directory.read();
        let (copy, path) = names(&directory);
        if self.is_retired() {
            fs::remove_file(copy)?;
            return Ok(None);
        }
        fs::rename(copy, path)?;
        // Who reads next opens the copy.
        *files = None;
        Ok(Some(before - self.size()))
    }

    fn copy_batches(&self, source: File, copy: &mut File, disk: &Disk) -> io::Result<()> {
        disk.reserve(copy, self.size())?;
        let copied = io::copy(&mut source.take(self.size()), copy)?;
        if copied < self.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        copy.sync_all()
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// # Errors
    /// `NotFound` when the log has let go of the segment.
    fn check_in_use(&self) -> io::Result<()> {
        match self.is_retired() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(()),
        }
    }

    /// Whether it was read since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Closes the files, unless the segment is being appended to.
    pub(crate) fn close_unless_appending(&self) {
        let mut files = self.files.lock();
        if files
            .as_ref()
            .is_some_and(|files| files.appending.is_none())
        {
            *files = None;
        }
    }

    /// Rebuilds the indexes that have sent a reader astray who has `wrong` open; the next one opens the new.
    fn replace_indexes(&self, wrong: &SegmentFiles, reason: &str) -> Result<(), SegmentError> {
        let mut files = self.files.lock();
        // Otherwise another reader was faster, or an appender has taken them over.
        if files.as_deref().is_some_and(|open| ptr::eq(open, wrong)) {
            self.rebuild(&wrong.log, reason)?;
            *files = None;
        }
        Ok(())
    }

    /// Under the lock of `files`: one at a time, and not once the names are another segment's.
    fn rebuild(&self, log: &File, reason: &str) -> Result<(), SegmentError> {
        self.check_in_use()?;
        let path = self.path(INDEX);
        tracing::warn!(path = %path.display(), reason, "rebuilding the indexes of a segment");
        recovery::rebuild_indexes(self, log)
    }

    fn corrupt(&self, position: u64, reason: String) -> SegmentError {
        SegmentError::Corrupt {
            path: self.path(LOG),
            position,
            reason,
        }
    }
}

/// `path` with `.suffix` added.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn is_missing_or_wrong(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData
    )
}
