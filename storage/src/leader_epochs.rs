//! Which offset each leader's reign began at: how a follower finds where its log parts from the leader's (KIP-101,
//! KIP-279), and what a consumer's truncation check asks for (KIP-320).
//!
//! Kept in memory and in `leader-epoch-checkpoint`, Kafka's text format:
//!
//! ```text
//! 0                version
//! 2                entries
//! 0 0              epoch, start offset
//! 3 1200
//! ```
//!
//! Invariant: epochs and start offsets both grow strictly from entry to entry.

use std::fmt::Write;

use thiserror::Error;

use crate::{LeaderEpoch, Offset};

const VERSION: &str = "0";

/// One reign: its epoch and the first offset it wrote.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EpochEntry {
    /// The reign.
    pub epoch: LeaderEpoch,
    /// Offset of its first record; the reign before it ends here.
    pub start_offset: Offset,
}

/// A `leader-epoch-checkpoint` that is not one.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("leader-epoch-checkpoint line {line}: {reason}")]
pub struct EpochFileError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// The reigns of one log, oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LeaderEpochCache {
    entries: Vec<EpochEntry>,
}

impl LeaderEpochCache {
    /// All reigns, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[EpochEntry] {
        &self.entries
    }

    /// The newest reign.
    #[must_use]
    pub fn latest(&self) -> Option<EpochEntry> {
        self.entries.last().copied()
    }

    /// Notes that `epoch` began at `start_offset`; says whether that was news.
    ///
    /// Entries it contradicts, of this epoch or a later one, or that begin at or after `start_offset`, go: they
    /// describe a tail that was never committed and has been replaced.
    pub fn assign(&mut self, epoch: LeaderEpoch, start_offset: Offset) -> bool {
        if epoch.0 < 0 || start_offset.0 < 0 {
            return false;
        }
        if let Some(latest) = self.latest()
            && latest.epoch == epoch
            && latest.start_offset <= start_offset
        {
            return false;
        }
        let kept = self
            .entries
            .partition_point(|entry| entry.epoch < epoch && entry.start_offset < start_offset);
        self.entries.truncate(kept);
        self.entries.push(EpochEntry {
            epoch,
            start_offset,
        });
        true
    }

    /// The largest reign up to `epoch` and where it ends; `log_end` is the end of the newest one.
    ///
    /// None where this log cannot tell: it has no entries, or `epoch` is newer than all of them. An `epoch` older than
    /// all of them ends where the oldest begins: whatever it wrote lies before that.
    #[must_use]
    pub fn end_offset_for(
        &self,
        epoch: LeaderEpoch,
        log_end: Offset,
    ) -> Option<(LeaderEpoch, Offset)> {
        let latest = self.latest()?;
        if epoch.0 < 0 || epoch > latest.epoch {
            return None;
        }
        if epoch == latest.epoch {
            return Some((epoch, log_end));
        }
        // An entry newer than `epoch` exists, because `epoch` is older than the latest.
        let newer = self.entries.partition_point(|entry| entry.epoch <= epoch);
        let floor = newer
            .checked_sub(1)
            .map_or(epoch, |at| self.entries[at].epoch);
        Some((floor, self.entries[newer].start_offset))
    }

    /// The reign that wrote `offset` (which the log must hold).
    #[must_use]
    pub fn epoch_for(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self
            .entries
            .partition_point(|entry| entry.start_offset <= offset);
        Some(self.entries[after.checked_sub(1)?].epoch)
    }

    /// The log now ends at `end_offset`: forgets reigns that begin there or later. Says whether anything changed.
    pub fn truncate_from_end(&mut self, end_offset: Offset) -> bool {
        let before = self.entries.len();
        let kept = self
            .entries
            .partition_point(|entry| entry.start_offset < end_offset);
        self.entries.truncate(kept);
        kept != before
    }

    /// The log now starts at `start_offset`: forgets reigns that ended before it, and lets the one that wrote it begin
    /// there. Says whether anything changed.
    pub fn truncate_from_start(&mut self, start_offset: Offset) -> bool {
        let after = self
            .entries
            .partition_point(|entry| entry.start_offset <= start_offset);
        let Some(floor) = after.checked_sub(1) else {
            return false;
        };
        if floor == 0 && self.entries[0].start_offset == start_offset {
            return false;
        }
        self.entries.drain(..floor);
        self.entries[0].start_offset = start_offset;
        true
    }

    /// Forgets everything: the log restarts elsewhere.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// The text of `leader-epoch-checkpoint`.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = format!("{VERSION}\n{}\n", self.entries.len());
        for entry in &self.entries {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {}", entry.epoch, entry.start_offset);
        }
        text
    }

    /// Reads the text of `leader-epoch-checkpoint`; accepts only what keeps the invariant.
    pub fn decode(text: &str) -> Result<Self, EpochFileError> {
        let mut lines = text.lines();
        let version = lines.next().unwrap_or_default();
        if version != VERSION {
            return Err(fault(
                1,
                format!("version {version:?}; only {VERSION} is known"),
            ));
        }
        let count = lines.next().unwrap_or_default();
        let count: usize = count
            .parse()
            .map_err(|_| fault(2, format!("{count:?} is no number of entries")))?;
        let mut entries: Vec<EpochEntry> = Vec::new();
        for (index, text) in lines.enumerate() {
            let line = index + 3;
            let entry = decode_entry(text)
                .ok_or_else(|| fault(line, format!("{text:?} is no epoch and offset")))?;
            if let Some(previous) = entries.last()
                && (entry.epoch <= previous.epoch || entry.start_offset <= previous.start_offset)
            {
                return Err(fault(
                    line,
                    format!("{text:?} does not grow from the line before"),
                ));
            }
            entries.push(entry);
        }
        if entries.len() != count {
            return Err(fault(
                2,
                format!("{count} entries announced, {} found", entries.len()),
            ));
        }
        Ok(Self { entries })
    }
}

fn decode_entry(line: &str) -> Option<EpochEntry> {
    let (epoch, start_offset) = line.split_once(' ')?;
    let entry = EpochEntry {
        epoch: LeaderEpoch(epoch.parse().ok()?),
        start_offset: Offset(start_offset.parse().ok()?),
    };
    (entry.epoch.0 >= 0 && entry.start_offset.0 >= 0).then_some(entry)
}

fn fault(line: usize, reason: String) -> EpochFileError {
    EpochFileError { line, reason }
}

#[cfg(test)]
mod tests;
