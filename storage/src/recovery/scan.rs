//! Walking the batches from the recovery point on, and judging each.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::indexes::{INDEX_BYTES_MAX, REBUILT_INTERVAL, TrustedPrefix};
use super::{
    Known, Listing, OpenError, PIECE_READ, Recovery, cut_file, read_epochs, remove_if_there,
};
use crate::batch::{BatchHeader, CRC_COVERS_FROM, HEADER_LEN};
use crate::leader_epochs::LeaderEpochCache;
use crate::offset_index::{self, OffsetIndex};
use crate::producer_state::ProducerState;
use crate::segment::{Directory, INDEX, Indexing, LOG, SNAPSHOT, Segment, TIME_INDEX, file_name};
use crate::time_index::{self, TimeEntry, TimeIndex};
use crate::{LeaderEpoch, Offset};

/// Read-ahead of the scan: small batches share a read, the bodies of large ones are skipped.
const HEADERS_READ: usize = 16 << 10;
/// How far before a snapshot headers are read, bytes, for the batches that it does not keep.
const PRODUCERS_READ_BACK: u32 = 4 << 20;

/// Where the batches of a segment end.
#[derive(Clone, Default)]
pub(super) struct SegmentEnd {
    pub(super) position: u64,
    /// `None` when they end with the file or with zeros.
    pub(super) reason: Option<String>,
}

/// The state of the scan between batches.
pub(super) struct Scan {
    pub(super) known: Known,
    pub(super) expected: Offset,
    pub(super) epoch: LeaderEpoch,
    pub(super) epochs: LeaderEpochCache,
    /// As of the snapshot, and of the batches after it.
    pub(super) producers: ProducerState,
    pub(super) snapshot_at: Option<Offset>,
    /// Of the batches that were walked before the snapshot: it keeps one batch per producer, and
    /// five are needed to tell retries. `None` once they have been taken over.
    pub(super) before_snapshot: Option<ProducerState>,
    /// Start of the scan in its first segment: position, and the largest timestamp before it.
    pub(super) resume: Option<(u64, Option<TimeEntry>)>,
    /// Snapshots that cannot be read.
    pub(super) damaged_snapshots: Vec<PathBuf>,
    pub(super) ends: Vec<SegmentEnd>,
    pub(super) indexing: Indexing,
    pub(super) report: Recovery,
}

impl Scan {
    pub(super) fn start(
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
        // What the file says of batches that were not flushed with it may have been truncated since: their
        // own headers say it again.
        scan.epochs
            .truncate_from_end(known.recovery_point.max(scan.expected));
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

    pub(super) fn segment(
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
        let mut reader = HeaderReader::new(&log, position, size);
        let reason = loop {
            match self.next(&mut reader, next)? {
                Next::Batch(header) => {
                    self.indexing.note(
                        (&index, &times),
                        &header,
                        reader.position,
                        REBUILT_INTERVAL,
                    )?;
                    reader.skip(header.size() as u64);
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
    fn next(
        &mut self,
        reader: &mut HeaderReader<'_>,
        next: Option<Offset>,
    ) -> Result<Next, OpenError> {
        if next == Some(self.expected) {
            // A segment ends where its successor begins; what a truncation has cut off may follow.
            return Ok(Next::End(None));
        }
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
    pub(super) fn recall_producers(&mut self) {
        if let Some(before) = self.before_snapshot.take() {
            self.producers.recall(&before);
        }
    }
}

enum Next {
    Batch(BatchHeader),
    End(Option<String>),
}

/// Reads a segment from front to back.
pub(crate) struct HeaderReader<'a> {
    log: &'a File,
    position: u64,
    end: u64,
    headers: Vec<u8>,
    headers_at: u64,
    body: Vec<u8>,
}

impl<'a> HeaderReader<'a> {
    /// Reads the batches from `position` to `end`.
    pub(crate) fn new(log: &'a File, position: u64, end: u64) -> Self {
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
    pub(crate) fn header(&mut self) -> io::Result<Option<[u8; HEADER_LEN]>> {
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

    /// Steps over the batch of `size` bytes whose header was read.
    pub(crate) fn skip(&mut self, size: u64) {
        self.position = (self.position + size).min(self.end);
    }

    /// CRC of the batch of `size` bytes at the position, which lies within the file. Read in
    /// pieces: the size is as good as the header it comes from.
    fn crc(&mut self, size: u64) -> io::Result<u32> {
        self.body.resize(PIECE_READ, 0);
        let (mut at, end) = (self.position + CRC_COVERS_FROM as u64, self.position + size);
        let mut crc = 0;
        while at < end {
            let piece = &mut self.body[..(end - at).min(PIECE_READ as u64) as usize];
            self.log.read_exact_at(piece, at)?;
            crc = crc32c::crc32c_append(crc, piece);
            at += piece.len() as u64;
        }
        Ok(crc)
    }
}
