//! A replica's log as the simulation keeps it: one record per batch, offsets, epochs, and what is on disk.

use kittiwake_storage::{LeaderEpoch, LeaderEpochCache, Offset};

use crate::partition::follower::View;

/// A record; no two that were ever appended have the same id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) epoch: LeaderEpoch,
    pub(super) id: u32,
}

/// Survives the process that wrote it; what is not flushed does not survive the machine.
/// Invariant: `base <= start <= flushed <= end`.
#[derive(Debug, Default)]
pub(super) struct SimulatedLog {
    /// Offset of the first record that is kept, readable or not.
    base: i64,
    start: i64,
    flushed: i64,
    records: Vec<Record>,
    epochs: LeaderEpochCache,
}

impl SimulatedLog {
    pub(super) fn view(&self) -> View {
        View {
            log_start: self.start(),
            log_end: self.end(),
        }
    }

    pub(super) fn start(&self) -> Offset {
        Offset(self.start)
    }

    pub(super) fn end(&self) -> Offset {
        Offset(self.base + self.records.len() as i64)
    }

    pub(super) fn flushed(&self) -> Offset {
        Offset(self.flushed)
    }

    pub(super) fn get(&self, offset: Offset) -> Option<Record> {
        let at = usize::try_from(offset.0 - self.base).ok()?;
        self.records.get(at).copied()
    }

    /// At most `count` records from `from` on.
    pub(super) fn read(&self, from: Offset, count: usize) -> Vec<Record> {
        let offsets = from.0..self.end().0;
        offsets
            .take(count)
            .filter_map(|offset| self.get(Offset(offset)))
            .collect()
    }

    pub(super) fn latest_epoch(&self) -> LeaderEpoch {
        self.epochs
            .latest()
            .map_or(LeaderEpoch::NONE, |entry| entry.epoch)
    }

    pub(super) fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        self.epochs.end_offset_for(epoch, self.end())
    }

    pub(super) fn assign_epoch(&mut self, epoch: LeaderEpoch) {
        self.epochs.assign(epoch, self.end());
    }

    pub(super) fn append(&mut self, record: Record) {
        self.records.push(record);
    }

    /// As `Log::append_as_follower`; refuses records of an epoch older than that of the last record.
    pub(super) fn append_as_follower(&mut self, records: &[Record]) -> Result<(), String> {
        for record in records {
            let end = self.end();
            if let Some(last) = self.get(end + -1)
                && record.epoch < last.epoch
            {
                return Err(format!("epoch {} after {}", record.epoch, last.epoch));
            }
            self.epochs.truncate_from_end(end);
            let is_newer = |latest: LeaderEpoch| record.epoch > latest;
            if self
                .epochs
                .latest()
                .is_none_or(|latest| is_newer(latest.epoch))
            {
                self.epochs.assign(record.epoch, end);
            }
            self.records.push(*record);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        self.flushed = self.end().0;
    }

    pub(super) fn truncate_to(&mut self, offset: Offset) {
        let end = offset.0.clamp(self.start, self.end().0);
        self.records.truncate((end - self.base) as usize);
        self.flushed = self.flushed.min(end);
        self.epochs.truncate_from_end(Offset(end));
    }

    pub(super) fn restart_at(&mut self, offset: Offset) {
        *self = Self {
            base: offset.0,
            start: offset.0,
            flushed: offset.0,
            ..Self::default()
        };
    }

    /// What becomes unreadable is flushed before.
    pub(super) fn advance_start(&mut self, to: Offset) {
        if to.0 > self.flushed {
            self.flush();
        }
        self.start = self.start.max(to.0);
        self.epochs.truncate_from_start(self.start());
    }

    /// The machine stops: what was not flushed is there up to `survives`.
    pub(super) fn lose_unflushed(&mut self, survives: Offset) {
        let end = survives.0.clamp(self.flushed, self.end().0);
        self.records.truncate((end - self.base) as usize);
    }

    /// A start finds the epochs of the records that there are.
    pub(super) fn recover(&mut self) {
        self.epochs.truncate_from_end(self.end());
        self.epochs.truncate_from_start(self.start());
    }

    /// What is wrong with the epoch cache, looking at records from `from` on.
    pub(super) fn fault_of_epochs(&self, from: Offset) -> Option<String> {
        let entries = self.epochs.entries();
        let grows = entries.windows(2).all(|pair| {
            pair[0].epoch < pair[1].epoch && pair[0].start_offset < pair[1].start_offset
        });
        if !grows
            || entries
                .last()
                .is_some_and(|last| last.start_offset > self.end())
        {
            return Some(format!("epochs {entries:?}, log end {}", self.end()));
        }
        (from.0.max(self.start)..self.end().0)
            .map(Offset)
            .find(|offset| {
                self.epochs.epoch_for(*offset) != self.get(*offset).map(|record| record.epoch)
            })
            .map(|offset| format!("{:?} at {offset}, but {entries:?}", self.get(offset)))
    }
}
