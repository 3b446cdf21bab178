//! Everything that must be true of a partition's files, checked against each other.

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::indexes::Indexes;
use super::{
    EPOCHS_FILE, FoundBatch, InspectError, PartitionDir, SegmentEnd, SegmentReader, Step, file_name,
};
use crate::log_dir::RECOVERY_POINTS;
use crate::{LeaderEpoch, LeaderEpochCache, Offset, ProducerState};

/// Findings kept per directory: a log with more is not better understood by more.
const FINDINGS_MAX: usize = 1000;
/// A batch that looks wrong at the end of the last segment may be in the middle of being written: looked at again this
/// often, this far apart.
const LOOKS: usize = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Something an operator should know about a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// File in the partition's directory.
    pub file: String,
    /// Where in it, in bytes.
    pub position: Option<u64>,
    /// What.
    pub what: String,
}

/// What [`verify`] found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The directory.
    pub dir: PathBuf,
    /// Segments in it.
    pub segments: usize,
    /// Batches read.
    pub batches: u64,
    /// Records their headers count.
    pub records: u64,
    /// Bytes of the batches.
    pub bytes: u64,
    /// Base offset of the first segment.
    pub start_offset: Offset,
    /// Offset after the last whole batch.
    pub end_offset: Offset,
    /// What must not be.
    pub faults: Vec<Finding>,
    /// What may be, but is worth knowing.
    pub notes: Vec<Finding>,
    /// Faults and notes beyond the thousand that are kept of each.
    pub omitted: u64,
}

/// Checks every batch's CRC, that offsets follow each other and epochs never go down, and that indexes, producer
/// snapshots and the epoch checkpoint say the same as the log.
///
/// `stopped_cleanly`: the node wrote these files to the end, so that an unfinished tail is a fault. Otherwise it may
/// be running or have crashed, and the tail of the last segment is only noted: recovery will judge it.
pub fn verify(dir: &PartitionDir, stopped_cleanly: bool) -> Result<Report, InspectError> {
    let flushed = dir.recovery_point()?;
    let mut verifier = Verifier::new(dir, stopped_cleanly, flushed.unwrap_or_default());
    for &base in dir.segments() {
        verifier.segment(base)?;
    }
    verifier.leader_epochs()?;
    verifier.snapshots_beyond();
    let end = verifier.report.end_offset;
    if let Some(flushed) = flushed
        && end < flushed
    {
        verifier.fault(
            RECOVERY_POINTS,
            None,
            format!("{flushed}, but the log ends at {end}"),
        );
    }
    for name in &dir.others {
        verifier.note(name, None, "not part of the log");
    }
    Ok(verifier.report)
}

struct Verifier<'a> {
    dir: &'a PartitionDir,
    stopped_cleanly: bool,
    /// What lies below has been flushed, and is as the log wants to leave it.
    flushed: Offset,
    report: Report,
    epochs: LeaderEpochCache,
    epoch: LeaderEpoch,
    producers: ProducerState,
    /// Snapshots not yet reached.
    snapshots: &'a [Offset],
}

impl<'a> Verifier<'a> {
    fn new(dir: &'a PartitionDir, stopped_cleanly: bool, flushed: Offset) -> Self {
        let start = dir.segments()[0];
        Self {
            dir,
            stopped_cleanly,
            flushed,
            report: Report {
                dir: dir.path().to_owned(),
                segments: dir.segments().len(),
                batches: 0,
                records: 0,
                bytes: 0,
                start_offset: start,
                end_offset: start,
                faults: Vec::new(),
                notes: Vec::new(),
                omitted: 0,
            },
            epochs: LeaderEpochCache::default(),
            epoch: LeaderEpoch::NONE,
            producers: ProducerState::default(),
            snapshots: dir.snapshots(),
        }
    }

    fn fault(&mut self, file: &str, position: Option<u64>, what: impl Into<String>) {
        self.find(file, position, what.into(), |report| &mut report.faults);
    }

    fn note(&mut self, file: &str, position: Option<u64>, what: impl Into<String>) {
        self.find(file, position, what.into(), |report| &mut report.notes);
    }

    fn find(
        &mut self,
        file: &str,
        position: Option<u64>,
        what: String,
        list: impl Fn(&mut Report) -> &mut Vec<Finding>,
    ) {
        let findings = list(&mut self.report);
        if findings.len() == FINDINGS_MAX {
            self.report.omitted += 1;
            return;
        }
        findings.push(Finding {
            file: file.to_owned(),
            position,
            what,
        });
    }

    fn is_last(&self, base: Offset) -> bool {
        self.dir.segments().last() == Some(&base)
    }

    /// Whether the files may still be as they are appended to, with space allocated ahead: a sealed segment is cut to
    /// its contents by the first flush after it was sealed, which moves `flushed` to its successor's base or beyond.
    fn is_unsettled(&self, base: Offset) -> bool {
        let successor = self.dir.segments().iter().find(|&&other| other > base);
        !self.stopped_cleanly && successor.is_none_or(|&next| next >= self.flushed)
    }

    fn segment(&mut self, base: Offset) -> Result<(), InspectError> {
        let name = file_name(base, "log");
        let mut reader = match self.dir.segment(base) {
            // Retention may have been faster, but only from the front.
            Err(InspectError::Io { error, .. })
                if error.kind() == io::ErrorKind::NotFound
                    && self.report.batches == 0
                    && !self.stopped_cleanly =>
            {
                self.note(&name, None, "deleted while reading");
                self.report.start_offset = base;
                return Ok(());
            }
            opened => opened?,
        };
        if self.report.batches == 0 {
            self.report.start_offset = base;
        } else if self.report.end_offset != base {
            let end = self.report.end_offset;
            self.fault(
                &name,
                None,
                format!("begins at {base} but the log before it ends at {end}"),
            );
        }
        self.report.end_offset = base;
        self.snapshots_up_to(base)?;
        let mut indexes = Indexes::open(self.dir, base)?;
        let (position, end) = loop {
            match self.step(&mut reader, base)? {
                Step::Batch(batch) if batch.crc.is_err() && self.is_tail(base, &mut reader)? => {
                    self.note(
                        &name,
                        Some(batch.position),
                        "the last batch is not whole: recovery cuts it off",
                    );
                    break (batch.position, SegmentEnd::File);
                }
                Step::Batch(batch) => {
                    self.batch(&name, base, &batch)?;
                    indexes.batch(base, &batch, |file, position, what| {
                        self.fault(file, Some(position), what)
                    });
                }
                Step::End(position, end) => break (position, end),
            }
        };
        self.segment_end(&name, base, position, end);
        self.index_ends(base, &indexes);
        // A snapshot at the very end belongs to a clean stop.
        let end = self.report.end_offset;
        self.snapshots_up_to(end)
    }

    /// Whether the log may be unfinished here and nothing follows.
    fn is_tail(&self, base: Offset, reader: &mut SegmentReader) -> Result<bool, InspectError> {
        let path = self.dir.path().join(file_name(base, "log"));
        let next = reader.step().map_err(InspectError::at(&path))?;
        if let Step::Batch(next) = &next {
            reader.back_to(next.position);
        }
        let nothing = matches!(
            next,
            Step::End(
                _,
                SegmentEnd::File
                    | SegmentEnd::Zeros {
                        nonzero_at: None,
                        ..
                    }
            )
        );
        Ok(nothing && self.is_last(base) && !self.stopped_cleanly)
    }

    /// Steps over what is whole; what is not, at the end of a log that may be growing, is given time to become so.
    fn step(&self, reader: &mut SegmentReader, base: Offset) -> Result<Step, InspectError> {
        let path = self.dir.path().join(file_name(base, "log"));
        let patient = !self.stopped_cleanly && self.is_last(base);
        let mut step = reader.step().map_err(InspectError::at(&path))?;
        for _ in 0..LOOKS {
            let whole = match &mut step {
                Step::Batch(batch) if batch.crc.is_err() => {
                    batch.crc = reader.again(batch).map_err(InspectError::at(&path))?;
                    batch.crc.is_ok()
                }
                Step::End(position, SegmentEnd::Damage { .. }) => {
                    reader.back_to(*position);
                    step = reader.step().map_err(InspectError::at(&path))?;
                    !matches!(step, Step::End(_, SegmentEnd::Damage { .. }))
                }
                Step::Batch(_) | Step::End(..) => true,
            };
            if whole || !patient {
                break;
            }
            thread::sleep(BETWEEN_LOOKS);
        }
        Ok(step)
    }

    fn batch(&mut self, name: &str, base: Offset, batch: &FoundBatch) -> Result<(), InspectError> {
        let header = &batch.header;
        let at = Some(batch.position);
        if let Err(error) = &batch.crc {
            self.fault(
                name,
                at,
                format!("batch at offset {}: {error}", header.base_offset),
            );
        }
        let expected = self.report.end_offset;
        if header.base_offset != expected {
            self.fault(
                name,
                at,
                format!(
                    "offset {} where {expected} should follow",
                    header.base_offset
                ),
            );
        }
        if header.last_offset() - base > i64::from(i32::MAX) {
            self.fault(
                name,
                at,
                format!(
                    "offset {} is too far from the segment's",
                    header.last_offset()
                ),
            );
        }
        if header.leader_epoch < self.epoch {
            self.fault(
                name,
                at,
                format!("leader epoch {} after {}", header.leader_epoch, self.epoch),
            );
        } else if header.leader_epoch > self.epoch {
            self.epoch = header.leader_epoch;
            self.epochs.assign(header.leader_epoch, header.base_offset);
        }
        if header.records_count > header.last_offset_delta.saturating_add(1) {
            let span = i64::from(header.last_offset_delta) + 1;
            self.fault(
                name,
                at,
                format!("{} records in {span} offsets", header.records_count),
            );
        }
        self.snapshots_up_to(header.base_offset)?;
        self.producers.record(header, header.max_timestamp);
        self.report.batches += 1;
        self.report.records += u64::from(header.records_count.unsigned_abs());
        self.report.bytes += header.size() as u64;
        self.report.end_offset = header.next_offset();
        Ok(())
    }

    fn segment_end(&mut self, name: &str, base: Offset, position: u64, end: SegmentEnd) {
        let at = Some(position);
        let unfinished = self.is_last(base) && !self.stopped_cleanly;
        match end {
            SegmentEnd::File => {}
            SegmentEnd::Successor { superseded } => {
                self.note(
                    name,
                    at,
                    format!("{superseded} bytes cut off by a truncation, not yet reclaimed"),
                );
            }
            SegmentEnd::Zeros {
                nonzero_at: Some(nonzero),
                ..
            } => {
                let what = format!("a zero header, but bytes at {nonzero}");
                if unfinished {
                    self.note(name, at, format!("{what}: recovery sets them aside"));
                } else {
                    self.fault(name, at, what);
                }
            }
            SegmentEnd::Zeros { bytes, .. } if !self.is_unsettled(base) => {
                self.fault(name, at, format!("{bytes} zero bytes after the last batch"));
            }
            SegmentEnd::Zeros { .. } => {}
            SegmentEnd::Damage { last: true, .. } if unfinished => {
                self.note(
                    name,
                    at,
                    "the last batch is not whole: recovery cuts it off",
                );
            }
            SegmentEnd::Damage { reason, bytes, .. } => {
                self.fault(
                    name,
                    at,
                    format!("{reason}; {bytes} bytes from here on cannot be read"),
                );
            }
        }
    }

    fn index_ends(&mut self, base: Offset, indexes: &Indexes) {
        let unfinished = self.is_last(base) && !self.stopped_cleanly;
        for index in [&indexes.offsets, &indexes.times] {
            let Some(index) = index else {
                continue;
            };
            if index.used < index.bytes.len() && !self.is_unsettled(base) {
                let what = format!(
                    "{} bytes after the last entry",
                    index.bytes.len() - index.used
                );
                self.fault(&index.name, Some(index.used as u64), what);
            }
            if index.next < index.used {
                let what = format!(
                    "{} entries point to no batch",
                    (index.used - index.next) / index.entry_len
                );
                // A running log goes on while it is read.
                if unfinished {
                    self.note(&index.name, Some(index.next as u64), what);
                } else {
                    self.fault(&index.name, Some(index.next as u64), what);
                }
            }
        }
        for (index, extension) in [(&indexes.offsets, "index"), (&indexes.times, "timeindex")] {
            if index.is_none() {
                self.note(
                    &file_name(base, extension),
                    None,
                    "missing; it will be rebuilt",
                );
            }
        }
    }

    /// Compares the snapshots up to `offset` with what the log says up to there.
    fn snapshots_up_to(&mut self, offset: Offset) -> Result<(), InspectError> {
        while let Some((&at, rest)) = self.snapshots.split_first()
            && at <= offset
        {
            self.snapshots = rest;
            let name = file_name(at, "snapshot");
            match self.dir.snapshot(at) {
                Err(InspectError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                    self.note(&name, None, "deleted while reading");
                }
                Err(error) => return Err(error),
                Ok(Err(reason)) => self.fault(&name, None, reason),
                Ok(Ok(_)) if at < self.report.start_offset => {
                    self.note(&name, None, "older than the log");
                }
                Ok(Ok(_)) if at < offset => {
                    self.fault(&name, None, format!("no batch begins at {at}"));
                }
                Ok(Ok(snapshot)) => self.snapshot(&name, &snapshot),
            }
        }
        Ok(())
    }

    fn snapshots_beyond(&mut self) {
        let end = self.report.end_offset;
        for &at in self.snapshots {
            let name = file_name(at, "snapshot");
            // A running log goes on while it is read.
            if self.stopped_cleanly {
                self.fault(&name, None, format!("the log ends at {end}"));
            } else {
                self.note(&name, None, format!("the log ended at {end}"));
            }
        }
    }

    fn snapshot(&mut self, name: &str, snapshot: &ProducerState) {
        let start = self.report.start_offset;
        for entry in snapshot.producers() {
            let logged = self.producers.producer(entry.producer_id);
            // What was deleted from the front of the log, the log cannot confirm.
            if entry.last_offset.is_some_and(|offset| offset < start) {
                continue;
            }
            let what = match logged {
                None if entry.last_offset.is_some() => {
                    format!("{entry}: no batch of it in the log")
                }
                Some(logged)
                    if (logged.epoch, logged.last_sequence, logged.last_offset)
                        != (entry.epoch, entry.last_sequence, entry.last_offset) =>
                {
                    format!("{entry}, but in the log {logged}")
                }
                _ => continue,
            };
            self.fault(name, None, what);
        }
    }

    /// The checkpoint is written before what it tells of counts as flushed: behind that it may be, as long as the node
    /// has not stopped cleanly.
    fn leader_epochs(&mut self) -> Result<(), InspectError> {
        let end = match self.stopped_cleanly {
            true => self.report.end_offset,
            false => self.report.end_offset.min(self.flushed),
        };
        let epochs = match self.dir.leader_epochs()? {
            None if end <= self.report.start_offset => return Ok(()),
            None => {
                self.fault(EPOCHS_FILE, None, "missing");
                return Ok(());
            }
            Some(Err(reason)) => {
                self.fault(EPOCHS_FILE, None, reason);
                return Ok(());
            }
            Some(Ok(epochs)) => epochs,
        };
        let start = self.report.start_offset;
        // The checkpoint may begin inside the first segment: records below the log start offset are deleted.
        let known_from = epochs
            .entries()
            .first()
            .map_or(end, |first| first.start_offset.max(start));
        let mut logged = self.epochs.clone();
        logged.truncate_from_start(known_from);
        logged.truncate_from_end(end);
        let mut noted = epochs;
        noted.truncate_from_start(known_from);
        // A leader that has written nothing yet has its entry already.
        noted.truncate_from_end(end);
        if known_from < end && logged != noted {
            let what = format!("says {:?} but the log {:?}", pairs(&noted), pairs(&logged));
            self.fault(EPOCHS_FILE, None, what);
        }
        Ok(())
    }
}

fn pairs(epochs: &LeaderEpochCache) -> Vec<(i32, i64)> {
    let pair = |entry: &crate::EpochEntry| (entry.epoch.0, entry.start_offset.0);
    epochs.entries().iter().map(pair).collect()
}
