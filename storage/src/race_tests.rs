//! All that happens to a log, at once: one thread appends and cuts, as a follower's fetcher; others flush,
//! checkpoint, delete and read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::test_support::*;
use crate::{
    LeaderEpoch, Log, LogConfig, LogDir, LogDirOptions, Offset, ReadError, RetainError, validate,
};

/// In whatever log it is, the batch at an offset has this timestamp.
const MS_PER_OFFSET: i64 = 10;
const STEPS: u32 = 600;
const EVERYTHING: Offset = Offset(i64::MAX);

fn config() -> LogConfig {
    LogConfig {
        retention_bytes: Some(100_000),
        ..small_segments()
    }
}

/// What was found, unless it has gone, or its files are just being replaced.
fn found<T>(result: Result<T, ReadError>) -> Option<T> {
    match result {
        Ok(found) => Some(found),
        Err(ReadError::OffsetOutOfRange { .. }) => None,
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

struct Race {
    dir: LogDir,
    log: Arc<Log>,
}

impl Race {
    /// A step of the thread that appends, as leader of `epoch`. After a cut another leads.
    fn write(&self, rng: &mut StdRng, epoch: &mut i32) {
        let end = self.log.log_end_offset();
        match rng.random_range(0..100) {
            0 => {
                let at = end.max(Offset(20)) + rng.random_range(-20..20);
                self.log.restart_at(at).unwrap();
                *epoch += 1;
            }
            1..5 => {
                let cut = end + -rng.random_range(0..120);
                self.log.truncate_to(cut).unwrap();
                *epoch += 1;
            }
            5..10 => drop(self.log.roll_if_due(i64::MAX).unwrap()),
            _ => {
                let records = rng.random_range(1..4);
                let ms = end.0 * MS_PER_OFFSET;
                let bytes = sized_batch(ms, records, rng.random_range(100..2000));
                let valid = validate(&bytes, &rules(), 0).unwrap();
                self.log.append(&valid, LeaderEpoch(*epoch), ms).unwrap();
            }
        }
        let (start, flushed, end) = (
            self.log.log_start_offset(),
            self.log.flushed_offset(),
            self.log.log_end_offset(),
        );
        assert!(
            start <= flushed && flushed <= end,
            "{start} {flushed} {end}"
        );
    }

    fn housekeep(&self, rng: &mut StdRng) {
        match rng.random_range(0..40) {
            0..10 => drop(self.log.flush().unwrap()),
            10..20 => drop(self.log.flush_sealed().unwrap()),
            20..30 => self.dir.write_checkpoints(&[]).unwrap(),
            30..38 => match self.log.retain(0, self.log.log_end_offset()) {
                Ok(_) | Err(RetainError::Read(_)) => {}
                Err(error) => panic!("{error}"),
            },
            38 => self.log.reclaim(),
            _ => {
                let start = self.log.log_start_offset() + rng.random_range(0..30);
                match self.log.advance_log_start(start, start) {
                    Ok(_) | Err(RetainError::OffsetOutOfRange { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                self.log.checkpoint_log_start().unwrap();
            }
        }
    }

    fn read(&self, rng: &mut StdRng) {
        let (start, end) = (self.log.log_start_offset(), self.log.log_end_offset());
        let at = start + rng.random_range(0..=(end - start).max(0));
        match rng.random_range(0..4) {
            0 => {
                let ms = at.0 * MS_PER_OFFSET;
                if let Some(Some(found)) = found(self.log.offset_for_timestamp(ms, EVERYTHING)) {
                    assert!(found.timestamp >= ms, "{found:?} for {ms}");
                }
            }
            1 => drop(found(self.log.max_timestamp(EVERYTHING))),
            _ => {
                let slices = found(self.log.read_whole_batches(at, EVERYTHING, 40_000, true));
                let bytes: Vec<u8> = slices
                    .iter()
                    .flatten()
                    .flat_map(|slice| slice.read().unwrap())
                    .collect();
                check_batches(&bytes);
            }
        }
    }
}

fn check_batches(bytes: &[u8]) {
    let headers: Vec<_> = crate::records::batches(bytes)
        .map(|batch| batch.unwrap().0)
        .collect();
    for header in &headers {
        let expected = header.base_offset.0 * MS_PER_OFFSET;
        assert_eq!(header.max_timestamp, expected, "{header:?}");
    }
    for pair in headers.windows(2) {
        let follows = pair[0].next_offset() == pair[1].base_offset
            && pair[0].leader_epoch <= pair[1].leader_epoch;
        assert!(follows, "{pair:?}");
    }
}

#[test]
fn a_log_stays_sound_whatever_happens_to_it_at_once() {
    let seed = seed(7);
    let root = tempfile::tempdir().unwrap();
    let options = LogDirOptions {
        open_segments_max: 3,
        ..options(root.path())
    };
    let dir = LogDir::open(&root.path().join("data"), &options).unwrap();
    let log = create(&dir, config());
    let (race, over) = (Race { dir, log }, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (race, over) = (&race, &over);
        let _over = Over(over);
        let beside = [Race::housekeep, Race::housekeep, Race::read, Race::read];
        for (thread, work) in (1..).zip(beside) {
            scope.spawn(move || {
                let _over = Over(over);
                let mut rng = StdRng::seed_from_u64(seed + thread);
                while !over.load(Ordering::Relaxed) {
                    work(race, &mut rng);
                }
            });
        }
        let (mut rng, mut epoch) = (StdRng::seed_from_u64(seed), 1);
        for _ in 0..STEPS {
            if !over.load(Ordering::Relaxed) {
                race.write(&mut rng, &mut epoch);
            }
        }
    });
    let Race { dir, log } = race;
    assert_eq!(dir.offline(), None);
    let (start, end) = (log.log_start_offset(), log.log_end_offset());
    let bytes = read(&log, start, end);
    check_batches(&bytes);
    dir.shutdown_clean(1, &[], 1).unwrap();
    drop((dir, log));
    let dir = open_dir(root.path());
    let loaded = load_one(&dir, config());
    let report = (&loaded.recovery.ended_by, &loaded.recovery.set_aside);
    assert_eq!(report, (&None, &vec![]));
    let ends = (loaded.log.log_start_offset(), loaded.log.log_end_offset());
    assert_eq!(ends, (start, end));
    assert!(read(&loaded.log, start, end) == bytes);
}
