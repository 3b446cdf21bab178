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
//! - A sealed segment may still carry its allocated zeros (the cut was not durable yet): if its
//!   batches end where its successor starts nothing is missing, and the log goes on.
//! - A bad batch *below* the recovery point means that flushed bytes have changed: the log is
//!   reported as damaged, and nothing of it is cut, rewritten or served.
//! - Indexes are hints. Where a producer snapshot lies at or before the recovery point in the same
//!   segment, they are trusted up to it after a check of their order and of the batch they point to;
//!   otherwise they are rebuilt from the segment.
//! - Producer snapshots are hints too. A damaged one that was wanted, or that lies past the recovery
//!   point (a stop may have torn it), is moved aside and reported like a torn tail; the producers
//!   come from the log. Older ones are not read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::batch::{BatchHeader, CRC_COVERS_FROM, HEADER_LEN};
use crate::checkpoint;
use crate::leader_epochs::LeaderEpochCache;
use crate::offset_index::{self, OffsetEntry, OffsetIndex};
use crate::producer_state::ProducerState;
use crate::segment::{
    DELETED, Directory, INDEX, Indexing, LOG, SNAPSHOT, Segment, SegmentError, TIME_INDEX,
    file_name, with_suffix,
};
use crate::time_index::{self, TimeEntry, TimeIndex};
use crate::{LeaderEpoch, Offset};

/// Name of the leader epoch checkpoint.
pub(crate) const LEADER_EPOCHS: &str = "leader-epoch-checkpoint";
/// Interval of rebuilt indexes, bytes: Kafka's default.
const REBUILT_INTERVAL: u32 = 4096;
/// Read-ahead of the scan: small batches share a read, the bodies of large ones are skipped.
const HEADERS_READ: usize = 16 << 10;
/// How far before a snapshot headers are read, bytes, for the batches that it does not keep.
const PRODUCERS_READ_BACK: u32 = 4 << 20;
/// Piece in which bodies are read for their CRC.
const BODY_READ: usize = 256 << 10;
/// Index files of a recovered segment may grow to this at most while they are rebuilt.
const INDEX_BYTES_MAX: usize = 1 << 30;

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

/// The names in a partition directory that mean something.
struct Listing {
    /// Base offset and bytes of each `.log`, ascending.
    segments: Vec<(Offset, u64)>,
    /// Offsets of the producer snapshots, ascending.
    snapshots: Vec<Offset>,
}

impl Listing {
    /// Lists, and removes what a stop left of files that were on their way out.
    fn read(path: &Path) -> io::Result<Self> {
        let mut listing = Self {
            segments: Vec::new(),
            snapshots: Vec::new(),
        };
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((stem, suffix)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let base = (stem.len() == 20)
                .then(|| stem.parse::<i64>().ok())
                .flatten()
                .map(Offset);
            match (base, suffix) {
                (Some(base), LOG) => listing.segments.push((base, entry.metadata()?.len())),
                (Some(base), SNAPSHOT) => listing.snapshots.push(base),
                (_, suffix) if suffix.ends_with(DELETED) || suffix.ends_with("tmp") => {
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

/// Where the batches of a segment end.
#[derive(Clone, Default)]
struct SegmentEnd {
    position: u64,
    /// `None` when they end with the file or with zeros.
    reason: Option<String>,
}

/// The state of the scan between batches.
struct Scan {
    known: Known,
    expected: Offset,
    epoch: LeaderEpoch,
    epochs: LeaderEpochCache,
    /// As of the snapshot, and of the batches after it.
    producers: ProducerState,
    snapshot_at: Option<Offset>,
    /// Of the batches that were walked before the snapshot: it keeps one batch per producer, and
    /// five are needed to tell retries. `None` once they have been taken over.
    before_snapshot: Option<ProducerState>,
    /// Start of the scan in its first segment: position, and the largest timestamp before it.
    resume: Option<(u64, Option<TimeEntry>)>,
    /// Snapshots that cannot be read.
    damaged_snapshots: Vec<PathBuf>,
    ends: Vec<SegmentEnd>,
    indexing: Indexing,
    report: Recovery,
}

impl Scan {
    fn start(
        directory: &Directory,
        path: &Path,
        listing: &Listing,
        from: usize,
        known: Known,
    ) -> Result<Self, OpenError> {
        let (base, size) = listing.segments[from];
        let mut scan = Self {
            known,
            expected: base,
            epoch: LeaderEpoch::NONE,
            epochs: read_epochs(path)?,
            producers: ProducerState::default(),
            snapshot_at: None,
            before_snapshot: None,
            resume: None,
            damaged_snapshots: Vec::new(),
            ends: Vec::new(),
            indexing: Indexing::new(None),
            report: Recovery::default(),
        };
        // One from before the segment would lack batches, and then refuse good sequences; without
        // state a producer may go on anywhere.
        let usable = base..=known.recovery_point.max(base);
        for &at in listing.snapshots.iter().rev() {
            if at > *usable.end() {
                scan.read_snapshot(path, at);
            } else if usable.contains(&at)
                && let Some(producers) = scan.read_snapshot(path, at)
            {
                scan.producers = producers;
                scan.snapshot_at = Some(at);
                scan.before_snapshot = Some(ProducerState::default());
                break;
            }
        }
        if scan.snapshot_at.is_some_and(|at| at > base) {
            scan.resume_from_index(directory, base, size)?;
        }
        if let Some(epoch) = scan.epochs.epoch_for(scan.expected) {
            scan.epoch = scan.epoch.max(epoch);
        }
        Ok(scan)
    }

    /// The snapshot at `at`, or `None` and a note of it when it is damaged.
    fn read_snapshot(&mut self, path: &Path, at: Offset) -> Option<ProducerState> {
        let path = path.join(file_name(at, SNAPSHOT));
        let decoded = match fs::read(&path) {
            Ok(bytes) => ProducerState::decode_snapshot(&bytes),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a producer snapshot");
                return None;
            }
        };
        decoded
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "a damaged producer snapshot: its producers are read from the log");
                self.damaged_snapshots.push(path);
            })
            .ok()
    }

    /// Skips what lies before the snapshot, if the indexes can be trusted that far.
    fn resume_from_index(
        &mut self,
        directory: &Directory,
        base: Offset,
        size: u64,
    ) -> Result<(), OpenError> {
        let Some(snapshot_at) = self.snapshot_at else {
            return Ok(());
        };
        let segment = Segment::new(Arc::clone(directory), base, size, None);
        let back = if self.producers.is_empty() {
            0
        } else {
            PRODUCERS_READ_BACK
        };
        let Ok(Some(prefix)) = TrustedPrefix::find(&segment, snapshot_at, size, back) else {
            return Ok(());
        };
        let log = File::open(segment.path(LOG))?;
        let position = u64::from(prefix.last.position);
        let header = match segment.header_at(&log, position, size) {
            Ok(header) if header.last_offset() == prefix.last.offset => header,
            _ => return Ok(()),
        };
        cut_file(
            &segment.path(INDEX),
            prefix.entries * offset_index::ENTRY_LEN as u64,
        )?;
        cut_file(
            &segment.path(TIME_INDEX),
            prefix.times * time_index::ENTRY_LEN as u64,
        )?;
        self.expected = header.base_offset;
        self.epoch = header.leader_epoch;
        self.resume = Some((position, prefix.largest));
        Ok(())
    }

    fn segment(
        &mut self,
        directory: &Directory,
        base: Offset,
        size: u64,
        next: Option<Offset>,
    ) -> Result<SegmentEnd, OpenError> {
        let segment = Segment::new(Arc::clone(directory), base, size, next);
        let resumed = self.resume.take();
        let (position, largest) = resumed.unwrap_or((0, None));
        self.indexing = Indexing::new(largest);
        if size == 0 {
            // An idle partition: nothing to open, and no indexes to create. Those of batches that
            // are gone would point to the ones that are appended next.
            remove_if_there(&segment.path(INDEX))?;
            remove_if_there(&segment.path(TIME_INDEX))?;
            self.ends.push(SegmentEnd::default());
            return Ok(SegmentEnd::default());
        }
        if resumed.is_none() {
            remove_if_there(&segment.path(INDEX))?;
            remove_if_there(&segment.path(TIME_INDEX))?;
        }
        let index = OffsetIndex::open_appending(&segment.path(INDEX), base, INDEX_BYTES_MAX)?;
        let times = TimeIndex::open_appending(&segment.path(TIME_INDEX), base, INDEX_BYTES_MAX)?;
        let log = File::open(segment.path(LOG))?;
        let mut reader = Reader::new(&log, position, size);
        let reason = loop {
            match self.next(&mut reader, next)? {
                Next::Batch(header) => {
                    self.indexing.note(
                        (&index, &times),
                        &header,
                        reader.position,
                        REBUILT_INTERVAL,
                    )?;
                    reader.position += header.size() as u64;
                }
                Next::End(reason) => break reason,
            }
        };
        if next.is_some()
            && let Some(largest) = self.indexing.largest()
        {
            times.append_if_later(largest)?;
        }
        index.trim()?;
        times.trim()?;
        let end = SegmentEnd {
            position: reader.position,
            reason,
        };
        self.ends.push(end.clone());
        Ok(end)
    }

    /// Reads and judges the batch at the reader's position.
    fn next(&mut self, reader: &mut Reader<'_>, next: Option<Offset>) -> Result<Next, OpenError> {
        let Some(bytes) = reader.header()? else {
            return Ok(Next::End(None));
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Next::End(None));
        }
        let position = reader.position;
        let ends =
            |reason: String| Ok(Next::End(Some(format!("at position {position}: {reason}"))));
        let header = match BatchHeader::parse(&bytes) {
            Ok(header) => header,
            Err(error) => return ends(error.to_string()),
        };
        if reader.position + header.size() as u64 > reader.end {
            return ends(format!("a batch of {} bytes is cut", header.size()));
        }
        if header.base_offset != self.expected
            || next.is_some_and(|next| header.last_offset() >= next)
        {
            return ends(format!(
                "offset {} where {} is next",
                header.base_offset, self.expected
            ));
        }
        if header.leader_epoch < self.epoch {
            return ends(format!(
                "leader epoch {} after {}",
                header.leader_epoch, self.epoch
            ));
        }
        let size = header.size() as u64;
        if header.last_offset() >= self.known.recovery_point {
            if reader.crc(size)? != header.crc {
                return ends("its CRC does not match".into());
            }
            self.report.checked_bytes += size;
        } else {
            self.report.walked_bytes += HEADER_LEN as u64;
        }
        self.accept(&header);
        Ok(Next::Batch(header))
    }

    fn accept(&mut self, header: &BatchHeader) {
        self.expected = header.next_offset();
        if header.leader_epoch > self.epoch {
            self.epoch = header.leader_epoch;
        }
        if self
            .epochs
            .latest()
            .is_none_or(|latest| header.leader_epoch > latest.epoch)
        {
            self.epochs.assign(header.leader_epoch, header.base_offset);
        }
        if self.snapshot_at.is_none_or(|at| header.base_offset >= at) {
            self.recall_producers();
            self.producers.record(header, self.known.now_ms);
        } else if let Some(before) = &mut self.before_snapshot {
            before.record(header, self.known.now_ms);
        }
    }

    /// Gives the producers of the snapshot the earlier batches that were read.
    fn recall_producers(&mut self) {
        if let Some(before) = self.before_snapshot.take() {
            self.producers.recall(&before);
        }
    }

    /// Cuts zeros, moves aside what follows the end and puts the log together.
    fn finish(
        mut self,
        directory: &Directory,
        path: &Path,
        listing: &Listing,
        from: usize,
        ends_at: usize,
        known: Known,
    ) -> Result<Recovered, OpenError> {
        for &(base, _) in &listing.segments[ends_at..] {
            for suffix in [LOG, INDEX, TIME_INDEX, SNAPSHOT] {
                let file = path.join(file_name(base, suffix));
                if file.exists() {
                    self.move_aside(&file)?;
                }
            }
        }
        for snapshot in std::mem::take(&mut self.damaged_snapshots) {
            // That of a segment past the end has gone with it.
            if snapshot.exists() {
                self.move_aside(&snapshot)?;
            }
        }
        for (slot, end) in (from..).zip(std::mem::take(&mut self.ends)) {
            let (base, size) = listing.segments[slot];
            if size > end.position {
                let file = path.join(file_name(base, LOG));
                self.set_aside(&file, end.position)?;
                cut_file(&file, end.position)?;
                File::open(&file)?.sync_data()?;
            }
        }
        if !self.report.set_aside.is_empty() {
            checkpoint::sync_directory(path)?;
        }
        for at in listing.snapshots.iter().filter(|at| **at > self.expected) {
            remove_if_there(&path.join(file_name(*at, SNAPSHOT)))?;
        }
        let kept = &listing.segments[..ends_at];
        let mut segments = Vec::with_capacity(kept.len());
        for (slot, &(base, size)) in kept.iter().enumerate() {
            let next = kept.get(slot + 1).map(|(next, _)| *next);
            let size = if slot < from {
                size
            } else {
                fs::metadata(path.join(file_name(base, LOG)))?.len()
            };
            segments.push(Arc::new(Segment::new(
                Arc::clone(directory),
                base,
                size,
                next,
            )));
        }
        self.recall_producers();
        let on_disk = read_epochs(path)?;
        self.epochs.truncate_from_end(self.expected);
        let log_start = known.log_start.max(kept[0].0);
        self.epochs.truncate_from_start(log_start);
        let first_timestamp = first_timestamp(&segments[segments.len() - 1])?;
        Ok(Recovered {
            unflushed: segments.len() - from,
            log_start,
            log_end: self.expected.max(log_start),
            epochs_changed: self.epochs != on_disk,
            epochs: self.epochs,
            producers: self.producers,
            snapshot_at: self.snapshot_at,
            indexing: self.indexing,
            first_timestamp,
            segments,
            report: self.report,
        })
    }

    /// Sets all of `file` aside and removes it.
    fn move_aside(&mut self, file: &Path) -> io::Result<()> {
        self.set_aside(file, 0)?;
        fs::remove_file(file)
    }

    /// Copies what `file` has from `position` on to a `*.cut` file beside it, unless it is zeros.
    fn set_aside(&mut self, file: &Path, position: u64) -> io::Result<()> {
        let source = File::open(file)?;
        let len = source.metadata()?.len();
        let Some(last) = last_nonzero(&source, position, len)? else {
            self.report.zeros_cut += len - position;
            return Ok(());
        };
        let (target_path, mut target) = create_cut(file, position)?;
        let mut buffer = vec![0; BODY_READ];
        let mut at = position;
        while at <= last {
            let piece = (last + 1 - at).min(BODY_READ as u64) as usize;
            source.read_exact_at(&mut buffer[..piece], at)?;
            target.write_all(&buffer[..piece])?;
            at += piece as u64;
        }
        // The zeros after it may be a record's: they are kept as a hole.
        target.set_len(len - position)?;
        target.sync_all()?;
        self.report.set_aside.push(target_path);
        Ok(())
    }
}

enum Next {
    Batch(BatchHeader),
    End(Option<String>),
}

/// The entries of a segment's indexes that can be trusted: those of batches before a snapshot.
struct TrustedPrefix {
    entries: u64,
    last: OffsetEntry,
    times: u64,
    largest: Option<TimeEntry>,
}

impl TrustedPrefix {
    /// Up to the last entry that is at least `back` bytes before the last batch before `before`, or
    /// the first. `None` when there is none, or an entry is out of order.
    fn find(segment: &Segment, before: Offset, size: u64, back: u32) -> io::Result<Option<Self>> {
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

/// Reads a segment from front to back.
struct Reader<'a> {
    log: &'a File,
    position: u64,
    end: u64,
    headers: Vec<u8>,
    headers_at: u64,
    body: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(log: &'a File, position: u64, end: u64) -> Self {
        Self {
            log,
            position,
            end,
            headers: Vec::new(),
            headers_at: 0,
            body: Vec::new(),
        }
    }

    /// The next header, filled up with zeros where the file ends first; `None` at the end.
    fn header(&mut self) -> io::Result<Option<[u8; HEADER_LEN]>> {
        let left = self.end - self.position;
        if left == 0 {
            return Ok(None);
        }
        let wanted = left.min(HEADER_LEN as u64);
        let buffered = self.headers_at..self.headers_at + self.headers.len() as u64;
        if self.position < buffered.start || self.position + wanted > buffered.end {
            self.headers
                .resize(left.min(HEADERS_READ as u64) as usize, 0);
            self.log.read_exact_at(&mut self.headers, self.position)?;
            self.headers_at = self.position;
        }
        let start = (self.position - self.headers_at) as usize;
        let mut header = [0; HEADER_LEN];
        header[..wanted as usize].copy_from_slice(&self.headers[start..start + wanted as usize]);
        Ok(Some(header))
    }

    /// CRC of the batch of `size` bytes at the position, which lies within the file. Read in
    /// pieces: the size is as good as the header it comes from.
    fn crc(&mut self, size: u64) -> io::Result<u32> {
        self.body.resize(BODY_READ, 0);
        let (mut at, end) = (self.position + CRC_COVERS_FROM as u64, self.position + size);
        let mut crc = 0;
        while at < end {
            let piece = &mut self.body[..(end - at).min(BODY_READ as u64) as usize];
            self.log.read_exact_at(piece, at)?;
            crc = crc32c::crc32c_append(crc, piece);
            at += piece.len() as u64;
        }
        Ok(crc)
    }
}

/// Writes both indexes of a sealed segment anew, from its batches.
///
/// # Errors
/// `Corrupt` when a batch is unsound; the old indexes stay then.
pub(crate) fn rebuild_indexes(segment: &Segment, log: &File) -> Result<(), SegmentError> {
    let paths = [INDEX, TIME_INDEX].map(|suffix| segment.path(suffix));
    let [index_path, times_path] = paths.clone().map(|path| with_suffix(&path, "tmp"));
    remove_if_there(&index_path)?;
    remove_if_there(&times_path)?;
    let index = OffsetIndex::open_appending(&index_path, segment.base(), INDEX_BYTES_MAX)?;
    let times = TimeIndex::open_appending(&times_path, segment.base(), INDEX_BYTES_MAX)?;
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
    index.trim()?;
    times.trim()?;
    fs::rename(index_path, &paths[0])?;
    fs::rename(times_path, &paths[1])?;
    Ok(())
}

fn first_timestamp(active: &Segment) -> Result<Option<i64>, OpenError> {
    if active.size() == 0 {
        return Ok(None);
    }
    let log = File::open(active.path(LOG))?;
    Ok(Some(
        active.header_at(&log, 0, active.size())?.max_timestamp,
    ))
}

fn last_nonzero(file: &File, from: u64, to: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; BODY_READ];
    let mut last = None;
    let mut at = from;
    while at < to {
        let piece = &mut buffer[..(to - at).min(BODY_READ as u64) as usize];
        file.read_exact_at(piece, at)?;
        if let Some(offset) = piece.iter().rposition(|byte| *byte != 0) {
            last = Some(at + offset as u64);
        }
        at += piece.len() as u64;
    }
    Ok(last)
}

/// Creates `<file>.<position>.cut`, or the first such name with a number that is free.
fn create_cut(file: &Path, position: u64) -> io::Result<(PathBuf, File)> {
    let mut attempt = 0_u32;
    loop {
        let suffix = match attempt {
            0 => format!("{position}.cut"),
            n => format!("{position}-{n}.cut"),
        };
        let path = with_suffix(file, &suffix);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            result => return result.map(|file| (path, file)),
        }
    }
}

fn cut_file(path: &Path, len: u64) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(len)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
