//! A log as leader, follower and both in turn, against a model: appends, cuts, restarts, retention,
//! flushes, stops. Epochs, producers and time index must always be those of the batches that are left, and a
//! slice must keep its bytes whatever happens to the log it came from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::inspect::{PartitionDir, verify};
use crate::test_support::*;
use crate::{
    BatchHeader, Compression, FileSlice, LeaderEpoch, LeaderEpochCache, Log, LogDir, Offset,
    ProducerState, RecordsBuilder, validate,
};

/// Slices that are kept to be looked at again.
const HELD_MAX: usize = 60;

/// What should be in the log.
#[derive(Default)]
struct Model {
    /// All that has not been cut off, also below the start: a crash may bring the last of that back.
    batches: Vec<Vec<u8>>,
    start: Offset,
    end: Offset,
    /// Newest reign of any leader.
    epoch: i32,
}

impl Model {
    fn headers(&self) -> impl DoubleEndedIterator<Item = BatchHeader> {
        self.batches
            .iter()
            .map(|batch| BatchHeader::parse(batch).unwrap())
    }

    fn push(&mut self, batch: Vec<u8>) {
        self.end = BatchHeader::parse(&batch).unwrap().next_offset();
        self.batches.push(batch);
    }

    fn readable(&self) -> Vec<u8> {
        let readable =
            |batch: &&Vec<u8>| BatchHeader::parse(batch).unwrap().last_offset() >= self.start;
        self.batches
            .iter()
            .filter(readable)
            .flatten()
            .copied()
            .collect()
    }

    fn epochs(&self) -> LeaderEpochCache {
        let mut epochs = LeaderEpochCache::default();
        for header in self.headers() {
            epochs.assign(header.leader_epoch, header.base_offset);
        }
        epochs.truncate_from_start(self.start);
        epochs.truncate_from_end(self.end);
        epochs
    }

    fn producers(&self) -> ProducerState {
        let mut producers = ProducerState::default();
        for header in self.headers() {
            producers.record(&header, 0);
        }
        producers
    }

    fn truncate(&mut self, offset: Offset) {
        let offset = offset.max(self.start);
        if offset >= self.end {
            return;
        }
        while let Some(last) = self.batches.last()
            && BatchHeader::parse(last).unwrap().last_offset() >= offset
        {
            self.end = BatchHeader::parse(last).unwrap().base_offset;
            self.batches.pop();
        }
        if self.end < self.start {
            self.restart(self.start);
        }
    }

    fn restart(&mut self, offset: Offset) {
        self.batches.clear();
        (self.start, self.end) = (offset, offset);
    }
}

struct Run {
    random: StdRng,
    root: TempDir,
    home: PathBuf,
    dir: LogDir,
    log: Arc<Log>,
    model: Model,
    held: Vec<(FileSlice, Vec<u8>)>,
    homes: u32,
    clock: i64,
    /// A crash has brought back records whose deletion was not checkpointed, but not their epochs.
    moved_back: bool,
}

#[test]
fn random_steps_of_a_replica_agree_with_a_model() {
    let seed = seed(0x666f_6c6c);
    for round in 0..4 {
        let mut run = Run::new(seed + round);
        for step in 0..150 {
            let when = format!("round {round} step {step}");
            if run.step() || step % 20 == 0 {
                run.check_all(&when);
            }
            run.check_ends(&when);
        }
        run.check_all("at the end");
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("0");
        std::fs::create_dir(&home).unwrap();
        let dir = open_dir(&home);
        let log = create(&dir, small_segments());
        Self {
            random: StdRng::seed_from_u64(seed),
            root,
            home,
            dir,
            log,
            model: Model::default(),
            held: Vec::new(),
            homes: 0,
            clock: 0,
            moved_back: false,
        }
    }

    /// Takes a step; says whether it was one that may lose something.
    fn step(&mut self) -> bool {
        let step = self.random.random_range(0..100);
        match step {
            0..25 => self.append_as_leader(),
            25..55 => self.append_as_follower(),
            55..67 => self.hold_slices(),
            67..77 => self.truncate(),
            77..79 => self.restart(),
            79..84 => self.delete_records(),
            84..90 => {
                self.log.flush().unwrap();
            }
            90..94 => self.checkpoint(),
            94..96 => self.log.reclaim(),
            96..98 => self.reopen(true),
            _ => self.reopen(false),
        }
        (67..79).contains(&step) || step >= 94
    }

    /// A batch of a producer, who follows its sequence as the log knows it, or of nobody.
    fn batch(&mut self) -> Vec<u8> {
        self.clock += self.random.random_range(-20..40);
        let (records, bytes) = (
            self.random.random_range(1..5),
            self.random.random_range(10..2_500),
        );
        let mut builder = RecordsBuilder::new(Compression::None);
        let id = self.random.random_range(0..4);
        if id > 0 {
            let known = self.model.producers().producer(id);
            let sequence = known.map_or(0, |known| known.last_sequence + 1);
            builder = builder.producer(id, 0, sequence);
        }
        for _ in 0..records {
            builder.push(
                self.clock.max(0),
                None,
                Some(&vec![b'v'; bytes / records]),
                &[],
            );
        }
        builder.build().unwrap()
    }

    fn append_as_leader(&mut self) {
        self.model.epoch += i32::from(self.random.random_bool(0.2));
        let bytes = self.batch();
        let valid = validate(&bytes, &rules(), 0).unwrap();
        let appended = self
            .log
            .append(&valid, LeaderEpoch(self.model.epoch), 0)
            .unwrap();
        assert_eq!(
            (appended.base_offset, appended.duplicate),
            (self.model.end, false)
        );
        self.model
            .push(stamped(&bytes, appended.base_offset.0, self.model.epoch));
    }

    fn append_as_follower(&mut self) {
        let mut records = Vec::new();
        let base = self.model.end;
        self.model.epoch += i32::from(self.random.random_bool(0.3));
        for _ in 0..self.random.random_range(1..12) {
            let last = self.model.headers().next_back();
            let floor = last.map_or(0, |header| header.leader_epoch.0);
            let epoch = self.random.random_range(floor..=self.model.epoch);
            let bytes = self.batch();
            let batch = stamped(&bytes, self.model.end.0, epoch);
            records.extend_from_slice(&batch);
            self.model.push(batch);
        }
        let appended = self.log.append_as_follower(&records, 0).unwrap();
        assert_eq!(
            (appended.base_offset, appended.log_end),
            (base, self.model.end)
        );
    }

    fn hold_slices(&mut self) {
        let from = Offset(
            self.random
                .random_range(self.model.start.0..=self.model.end.0),
        );
        let budget = self.random.random_range(1..30_000);
        for slice in self.log.read(from, self.model.end, budget, true).unwrap() {
            let bytes = slice.read().unwrap();
            self.held.push((slice, bytes));
        }
        if self.held.len() > HELD_MAX {
            let some = self.random.random_range(0..HELD_MAX);
            self.held.drain(..some);
        }
    }

    fn truncate(&mut self) {
        let (start, end) = (self.model.start.0, self.model.end.0);
        let low = if self.random.random_bool(0.7) {
            (end - 40).max(start)
        } else {
            start
        };
        let mut offset = Offset(self.random.random_range(low - 5..=end + 5));
        if self.random.random_bool(0.2) {
            let segments = self.log.all_segments();
            offset = segments[self.random.random_range(0..segments.len())].base();
        }
        self.model.truncate(offset);
        assert_eq!(self.log.truncate_to(offset).unwrap(), self.model.end);
    }

    fn restart(&mut self) {
        let (start, end) = (self.model.start.0, self.model.end.0);
        let offset = Offset(self.random.random_range((start - 50).max(0)..end + 100));
        self.model.restart(offset);
        self.log.restart_at(offset).unwrap();
    }

    fn delete_records(&mut self) {
        let (start, end) = (self.model.start.0, self.model.end.0);
        self.model.start = Offset(self.random.random_range(start..=(start + 30).min(end)));
        let moved = self
            .log
            .advance_log_start(self.model.start, self.model.end)
            .unwrap();
        assert_eq!(moved, self.model.start);
        if self.random.random_bool(0.5) {
            self.log.checkpoint_log_start().unwrap();
        }
    }

    fn checkpoint(&mut self) {
        self.dir.write_checkpoints(&[]).unwrap();
    }

    /// Stops, cleanly or not, and starts on a copy of the files: what the process still held open, the
    /// background thread included, must not matter.
    fn reopen(&mut self, clean: bool) {
        self.homes += 1;
        let next = self.root.path().join(self.homes.to_string());
        if clean {
            self.dir.shutdown_clean(1, &[], 1).unwrap();
            let partition = self.home.join("data/orders-0");
            assert_sound(&partition, self.model.end);
        }
        copy_tree(&self.home, &next);
        self.dir = open_dir(&next);
        let loaded = load_one(&self.dir, small_segments());
        assert_eq!(
            (&loaded.recovery.ended_by, &loaded.recovery.set_aside),
            (&None, &vec![])
        );
        if clean {
            assert_eq!(
                loaded.recovery.superseded_bytes, 0,
                "given back at the close"
            );
        }
        self.log = loaded.log;
        self.home = next;
        let start = self.log.log_start_offset();
        assert!(start == self.model.start || (!clean && start < self.model.start));
        self.moved_back |= start < self.model.start;
        self.model.start = start;
    }

    fn check_ends(&self, when: &str) {
        let (log, model) = (&self.log, &self.model);
        let found = (log.log_start_offset(), log.log_end_offset());
        assert_eq!(found, (model.start, model.end), "{when}");
        assert!(log.flushed_offset() <= model.end && log.recovery_point() <= log.flushed_offset());
    }

    fn check_all(&self, when: &str) {
        let (log, model) = (&self.log, &self.model);
        let found = read(log, model.start, model.end);
        assert!(found == model.readable(), "{when}");
        let mut epochs = log.epochs.lock().cache.clone();
        let mut expected = model.epochs();
        // Of a log without records the last reign may be known or not.
        epochs.truncate_from_end(model.end);
        if let Some(first) = epochs.entries().first().filter(|_| self.moved_back) {
            expected.truncate_from_start(first.start_offset);
        }
        assert_eq!(epochs, expected, "{when}");
        let entries = |state: &ProducerState| state.producers().collect::<Vec<_>>();
        let producers = entries(&log.writer.lock().producers);
        assert_eq!(producers, entries(&model.producers()), "{when}");
        let target = self.clock - 60;
        let expected = model
            .headers()
            .find(|header| header.max_timestamp >= target && header.last_offset() >= model.start);
        let found = log.offset_for_timestamp(target, model.end).unwrap();
        assert_eq!(
            found.map(|found| found.offset),
            expected.map(|header| header.base_offset.max(model.start)),
            "{when}"
        );
        for (slice, bytes) in &self.held {
            assert!(
                &slice.read().unwrap() == bytes,
                "{when}: a slice has changed"
            );
        }
    }
}

fn assert_sound(partition: &Path, end: Offset) {
    let report = verify(&PartitionDir::open(partition).unwrap(), true).unwrap();
    assert_eq!((report.faults, report.end_offset), (vec![], end));
}
