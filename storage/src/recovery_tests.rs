//! What a start makes of what a stop left: one test per rule of `recovery`, and random crashes
//! against a model.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use uuid::Uuid;

use crate::batch::HEADER_LEN;
use crate::inspect::{PartitionDir, verify};
use crate::records::batches;
use crate::test_support::*;
use crate::{
    Compression, LastStop, LeaderEpoch, Log, LogConfig, LogDir, Offset, RecordsBuilder, validate,
};

/// A data directory with the log `orders-0` of small segments.
struct Stopped {
    root: TempDir,
    /// All bytes of the log when it stopped.
    bytes: Vec<u8>,
    end: Offset,
}

impl Stopped {
    /// Appends `count` batches of two records, flushing (with checkpoints) after `flushed` of them,
    /// and stops without a goodbye.
    fn killed(count: i64, flushed: i64) -> Self {
        Self::stop(count, flushed, |_| {})
    }

    /// The same with a clean shutdown.
    fn cleanly(count: i64) -> Self {
        Self::stop(count, 0, |dir| dir.shutdown_clean(17, &[], 1).unwrap())
    }

    fn stop(count: i64, flushed: i64, how: impl FnOnce(&LogDir)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path());
        let log = create(&dir, small_segments());
        for at in 1..=count {
            append(&log, &sized_batch(at, 2, 700));
            if at == flushed {
                log.flush().unwrap();
                dir.write_checkpoints(&[]).unwrap();
            }
        }
        how(&dir);
        let end = log.log_end_offset();
        let bytes = read(&log, Offset(0), end);
        Self { root, bytes, end }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join("data/orders-0").join(name)
    }

    /// The `.log` files, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = files(&self.file("."), ".log");
        found.sort();
        found
    }

    fn open(&self) -> (LogDir, crate::LoadedLog) {
        let dir = open_dir(self.root.path());
        let loaded = load_one(&dir, small_segments());
        (dir, loaded)
    }

    /// Reopens, expects the log to be refused, and its `.log` files to be as they were.
    fn open_damaged(&self) -> String {
        let before: Vec<_> = self
            .segments()
            .iter()
            .map(|path| fs::read(path).unwrap())
            .collect();
        let dir = open_dir(self.root.path());
        let loaded = load(&dir, small_segments());
        assert!(loaded.logs.is_empty());
        let after: Vec<_> = self
            .segments()
            .iter()
            .map(|path| fs::read(path).unwrap())
            .collect();
        assert!(before == after, "a damaged log is left as it is");
        loaded.failed[0].reason.clone()
    }
}

fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.to_str().unwrap().ends_with(suffix))
        .collect()
}

fn flip(path: &Path, position: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 0xff], position).unwrap();
}

/// Where the batches of a file of batches start, and where they end.
fn boundaries(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let mut at = vec![0];
    for batch in batches(&bytes) {
        let Ok((header, _)) = batch else { break };
        at.push(at[at.len() - 1] + header.size() as u64);
    }
    at
}

#[test]
fn after_a_kill_the_allocated_zeros_are_cut_and_nothing_else() {
    let stopped = Stopped::killed(50, 20);
    let (dir, loaded) = stopped.open();
    assert_eq!(dir.last_stop(), LastStop::Killed);
    assert_eq!(loaded.log.log_end_offset(), stopped.end);
    assert!(loaded.recovery.zeros_cut > 0);
    assert_eq!(
        (loaded.recovery.ended_by, loaded.recovery.set_aside),
        (None, vec![])
    );
    assert!(read(&loaded.log, Offset(0), stopped.end) == stopped.bytes);
}

#[test]
fn after_a_clean_stop_nothing_is_checked_and_the_files_hold_no_zeros() {
    let stopped = Stopped::cleanly(50);
    let (dir, loaded) = stopped.open();
    assert_eq!(dir.last_stop(), LastStop::Clean { broker_epoch: 17 });
    assert_eq!(loaded.recovery.checked_bytes, 0);
    assert_eq!(loaded.recovery.zeros_cut, 0);
    assert!(read(&loaded.log, Offset(0), stopped.end) == stopped.bytes);
    let on_disk: u64 = stopped
        .segments()
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum();
    assert_eq!(on_disk, stopped.bytes.len() as u64);
    drop((dir, loaded));
    assert_eq!(
        open_dir(stopped.root.path()).last_stop(),
        LastStop::Killed,
        "the marker is gone"
    );
}

#[test]
fn appends_go_on_where_recovery_left_off() {
    let stopped = Stopped::killed(50, 20);
    let (_dir, loaded) = stopped.open();
    for at in 0..60 {
        let appended = append(&loaded.log, &sized_batch(at, 2, 700));
        assert_eq!(appended.base_offset, stopped.end + 2 * at);
    }
    let all = read(&loaded.log, Offset(0), loaded.log.log_end_offset());
    assert!(all.starts_with(&stopped.bytes));
    assert_eq!(batches(&all).count(), 110);
}

#[test]
fn the_first_bad_batch_past_the_recovery_point_ends_the_log_and_what_follows_is_kept_aside() {
    let stopped = Stopped::killed(10, 4);
    let path = &stopped.segments()[0];
    let at = boundaries(path);
    flip(path, at[7] + HEADER_LEN as u64 + 5);
    let (_dir, loaded) = stopped.open();
    assert_eq!(loaded.log.log_end_offset(), Offset(14));
    assert!(loaded.recovery.ended_by.unwrap().contains("CRC"));
    let cut = fs::read(&loaded.recovery.set_aside[0]).unwrap();
    let lost = &stopped.bytes[at[7] as usize..];
    assert!(cut[lost.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(cut.iter().zip(lost).filter(|(a, b)| a != b).count(), 1);
    assert!(read(&loaded.log, Offset(0), Offset(14)) == stopped.bytes[..at[7] as usize]);
}

#[test]
fn a_bad_batch_below_the_recovery_point_quarantines_the_log() {
    let stopped = Stopped::killed(50, 49);
    let path = stopped.segments().pop().unwrap();
    flip(&path, boundaries(&path)[1] + 16);
    assert!(stopped.open_damaged().contains("recovery point"));
}

#[test]
fn a_log_that_ends_below_the_recovery_point_is_quarantined() {
    let stopped = Stopped::cleanly(50);
    let path = stopped.segments().pop().unwrap();
    let at = boundaries(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(at[at.len() - 2]).unwrap();
    assert!(stopped.open_damaged().contains("recovery point"));
}

#[test]
fn missing_segments_are_damage_and_never_an_empty_log() {
    let stopped = Stopped::cleanly(50);
    fs::remove_file(&stopped.segments()[0]).unwrap();
    assert!(stopped.open_damaged().contains("first segment"));
    let stopped = Stopped::cleanly(50);
    for path in stopped.segments() {
        fs::remove_file(path).unwrap();
    }
    assert!(stopped.open_damaged().contains("no segment"));
}

#[test]
fn a_leader_epoch_that_goes_down_ends_the_log() {
    let stopped = Stopped::killed(10, 4);
    let path = &stopped.segments()[0];
    let at = boundaries(path);
    // A batch of an earlier leader, sound in itself, right where the next one is expected.
    let mut builder =
        RecordsBuilder::new(Compression::None).placed(Offset(20), LeaderEpoch(EPOCH.0 - 1));
    builder.push(1, None, Some(b"leftover"), &[]);
    let leftover = builder.build().unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&leftover, at[10]).unwrap();
    let (_dir, loaded) = stopped.open();
    assert_eq!(loaded.log.log_end_offset(), Offset(20));
    assert!(loaded.recovery.ended_by.unwrap().contains("leader epoch"));
    let cut = fs::read(&loaded.recovery.set_aside[0]).unwrap();
    assert!(cut.starts_with(&leftover));
}

#[test]
fn a_bad_batch_in_a_sealed_segment_sets_the_later_segments_aside() {
    let stopped = Stopped::killed(100, 4);
    let segments = stopped.segments();
    assert!(segments.len() > 3);
    let at = boundaries(&segments[1]);
    flip(&segments[1], at[3] + 70);
    let (_dir, loaded) = stopped.open();
    let kept = boundaries(&segments[0]).len() - 1 + 3;
    assert_eq!(loaded.log.log_end_offset(), Offset(2 * kept as i64));
    assert_eq!(loaded.log.segment_count(), 2);
    assert_eq!(
        loaded
            .recovery
            .set_aside
            .iter()
            .filter(|path| path.to_str().unwrap().contains(".log."))
            .count(),
        segments.len() - 1
    );
    assert_eq!(stopped.segments().len(), 2);
    let end = loaded.log.log_end_offset();
    append(&loaded.log, &sized_batch(1, 1, 10));
    assert_eq!(
        batches(&read(&loaded.log, Offset(0), end + 1)).count(),
        kept + 1
    );
}

#[test]
fn a_sealed_segment_that_kept_its_zeros_does_not_end_the_log() {
    let stopped = Stopped::killed(100, 4);
    let path = &stopped.segments()[1];
    let len = fs::metadata(path).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len + 8192)
        .unwrap();
    let (_dir, loaded) = stopped.open();
    assert_eq!(loaded.log.log_end_offset(), stopped.end);
    assert!(read(&loaded.log, Offset(0), stopped.end) == stopped.bytes);
    assert_eq!(loaded.recovery.set_aside, Vec::<PathBuf>::new());
}

/// The random steps below found this one: the flushed active segment was sealed, and the stop came
/// before the background had cut it.
#[test]
fn a_segment_sealed_after_its_flush_is_cut_too() {
    let stopped = Stopped::killed(10, 10);
    let next = stopped.segments()[0].with_file_name(format!("{:020}.log", stopped.end.0));
    fs::write(next, []).unwrap();
    let (_dir, loaded) = stopped.open();
    assert_eq!(
        (loaded.log.segment_count(), loaded.log.log_end_offset()),
        (2, stopped.end)
    );
    append(&loaded.log, &batch(1, &[b"next"]));
    let all = read(&loaded.log, Offset(0), stopped.end + 1);
    assert_eq!(batches(&all).map(Result::unwrap).count(), 11);
}

#[test]
fn indexes_come_back_byte_for_byte_when_they_are_missing_torn_or_wrong() {
    let damage: [fn(&Path); 4] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, [0xff; 40]).unwrap(),
        |path| fs::write(path, [0; 37]).unwrap(),
        |path| {
            OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(1 << 16)
                .unwrap()
        },
    ];
    for damage in damage {
        let stopped = Stopped::killed(100, 0);
        for suffix in [".index", ".timeindex"] {
            files(&stopped.file("."), suffix)
                .iter()
                .for_each(|path| damage(path));
        }
        let (dir, loaded) = stopped.open();
        assert!(read(&loaded.log, Offset(0), stopped.end) == stopped.bytes);
        for at in 1..=100 {
            let found = loaded
                .log
                .offset_for_timestamp(at, stopped.end)
                .unwrap()
                .unwrap();
            assert_eq!(found.offset, Offset(2 * (at - 1)));
            assert!(
                stopped
                    .bytes
                    .ends_with(&read(&loaded.log, found.offset, stopped.end))
            );
        }
        dir.shutdown_clean(1, &[], 1).unwrap();
    }
}

#[test]
fn wrong_indexes_of_flushed_segments_are_rebuilt_when_they_are_used() {
    for damage in [&[][..], &[0xff; 40], &[0, 0, 0, 3, 0, 0, 0, 9], &[1; 7]] {
        let stopped = Stopped::cleanly(100);
        let mut indexes = files(&stopped.file("."), "index");
        indexes.sort();
        let (sealed, _active) = indexes.split_at(4);
        for path in sealed {
            fs::write(path, damage).unwrap();
        }
        let (_dir, loaded) = stopped.open();
        for at in 0..100 {
            let tail = read(&loaded.log, Offset(2 * at), stopped.end);
            assert!(stopped.bytes.ends_with(&tail));
            assert_eq!(batches(&tail).count() as i64, 100 - at);
        }
    }
}

#[test]
fn an_index_past_the_end_of_a_torn_log_does_not_make_the_log_empty() {
    let stopped = Stopped::killed(18, 4);
    let path = &stopped.segments()[0];
    let at = boundaries(path);
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(at[6] + 100)
        .unwrap();
    let (_dir, loaded) = stopped.open();
    assert_eq!(loaded.log.log_end_offset(), Offset(12));
    assert!(read(&loaded.log, Offset(0), Offset(12)) == stopped.bytes[..at[6] as usize]);
}

#[test]
fn producers_are_remembered_over_any_stop() {
    let from = |sequence| {
        let mut builder = RecordsBuilder::new(Compression::None).producer(9, 0, sequence);
        builder.push(5, None, Some(&[b'x'; 600]), &[]);
        builder.build().unwrap()
    };
    for clean in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path());
        let log = create(&dir, small_segments());
        let offsets: Vec<_> = (0..80)
            .map(|at| append(&log, &from(at)).base_offset)
            .collect();
        if clean {
            dir.shutdown_clean(1, &[], 1).unwrap();
        } else {
            log.flush().unwrap();
            dir.write_checkpoints(&[]).unwrap();
        }
        drop((dir, log));
        let dir = open_dir(root.path());
        let log = load_one(&dir, small_segments()).log;
        for at in 75..80 {
            let again = append(&log, &from(at));
            assert!(again.duplicate, "clean: {clean}");
            assert_eq!(again.base_offset, offsets[at as usize]);
        }
        assert_eq!(append(&log, &from(80)).base_offset, Offset(80));
    }
}

/// One that is wanted, one past the recovery point that nobody reads, and one cut to nothing.
#[test]
fn a_damaged_producer_snapshot_is_moved_aside_and_the_producers_come_from_the_log() {
    let from = |sequence| {
        let mut builder = RecordsBuilder::new(Compression::None).producer(9, 0, sequence);
        builder.push(5, None, Some(&[b'x'; 600]), &[]);
        builder.build().unwrap()
    };
    let damage: [fn(&Path); 2] = [|path| flip(path, 3), |path| fs::write(path, []).unwrap()];
    for (flushed, damage) in [80, 0].into_iter().flat_map(|at| damage.map(|d| (at, d))) {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path());
        let log = create(&dir, small_segments());
        for at in 0..80 {
            append(&log, &from(at));
        }
        log.flush().unwrap();
        if flushed > 0 {
            dir.write_checkpoints(&[]).unwrap();
        }
        drop((dir, log));
        let partition = root.path().join("data/orders-0");
        let mut snapshots = files(&partition, ".snapshot");
        snapshots.sort();
        let damaged = snapshots.last().unwrap();
        damage(damaged);
        let bytes = fs::read(damaged).unwrap();

        let dir = open_dir(root.path());
        let loaded = load_one(&dir, small_segments());
        assert!(!damaged.exists());
        let aside = loaded.recovery.set_aside;
        let kept: Vec<_> = aside.iter().map(|path| fs::read(path).unwrap()).collect();
        match bytes.is_empty() {
            true => assert!(kept.is_empty(), "there is nothing to keep"),
            false => assert_eq!(kept, [bytes], "flushed up to {flushed}"),
        }
        assert!(append(&loaded.log, &from(79)).duplicate);
        assert!(!append(&loaded.log, &from(80)).duplicate);
        dir.shutdown_clean(1, &[], 1).unwrap();
        let report = verify(&PartitionDir::open(&partition).unwrap(), true).unwrap();
        assert_eq!(report.faults, []);
    }
}

#[test]
fn a_segment_whose_bytes_are_gone_loses_its_indexes_too() {
    let stopped = Stopped::killed(100, 0);
    let last = stopped.segments().pop().unwrap();
    assert!(
        fs::metadata(last.with_extension("timeindex"))
            .unwrap()
            .len()
            > 0
    );
    fs::write(&last, []).unwrap();
    let (dir, loaded) = stopped.open();
    append(&loaded.log, &sized_batch(1, 2, 700));
    dir.shutdown_clean(1, &[], 1).unwrap();
    let report = verify(&PartitionDir::open(&stopped.file(".")).unwrap(), true).unwrap();
    assert_eq!(report.faults, []);
}

#[test]
fn ten_thousand_sealed_segments_are_listed_and_not_opened() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        segment_bytes: 100,
        ..small_segments()
    };
    let log = create(&dir, config);
    append(&log, &batch(1, &[b"x"]));
    dir.shutdown_clean(1, &[], 1).unwrap();
    let first = root
        .path()
        .join("data/orders-0")
        .join("00000000000000000000.log");
    let bytes = fs::read(&first).unwrap();
    // Links to one batch, at offsets 1..: whoever opened one would find the wrong offset in it.
    for base in 1..10_000_i64 {
        fs::hard_link(&first, first.with_file_name(format!("{base:020}.log"))).unwrap();
    }
    let valid = validate(&bytes, &rules(), 0).unwrap();
    let (_, head) = valid.stamped(Offset(10_000), EPOCH);
    fs::write(
        first.with_file_name(format!("{:020}.log", 10_000)),
        [&head, valid.body()].concat(),
    )
    .unwrap();
    let key = log.partition().clone();
    let points = crate::checkpoint::Checkpoint::from([(key, Offset(10_001))]);
    crate::checkpoint::write(
        &root.path().join("data/recovery-point-offset-checkpoint"),
        &points,
    )
    .unwrap();
    drop((dir, log));
    let dir = open_dir(root.path());
    let loaded = load_one(&dir, config);
    assert_eq!(loaded.log.segment_count(), 10_001);
    assert_eq!(loaded.log.log_end_offset(), Offset(10_001));
    assert_eq!(dir.segments_opened_total(), 0);
}

#[test]
fn a_directory_without_topic_id_is_refused_if_it_holds_records_and_reused_if_not() {
    let stopped = Stopped::cleanly(10);
    fs::remove_file(stopped.file("partition.metadata")).unwrap();
    assert!(stopped.open_damaged().contains("partition.metadata"));

    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    fs::create_dir(root.path().join("data/orders-0")).unwrap();
    fs::write(
        root.path().join("data/orders-0/00000000000000000000.log"),
        [],
    )
    .unwrap();
    let loaded = load(&dir, small_segments());
    assert!(loaded.logs.is_empty() && loaded.failed.is_empty());
    append(&create(&dir, small_segments()), &batch(1, &[b"x"]));
    assert!(
        dir.create_log(TOPIC, Uuid::from_u128(8), 0, small_segments())
            .is_err()
    );
}

/// What is in a log, batch by batch.
struct Model {
    batches: Vec<Vec<u8>>,
    end: Offset,
}

/// Random appends, reads, flushes, rolls and crashes. A crash leaves a copy of the files, cut or
/// zeroed at a random point past what was flushed, with indexes torn at will.
#[test]
fn random_steps_and_crashes_agree_with_a_model() {
    let seed = seed(0x6b69_7474);
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..10 {
        random_round(&mut random, round);
    }
}

fn random_round(random: &mut StdRng, round: u32) {
    let root = tempfile::tempdir().unwrap();
    let mut home = root.path().join("0");
    fs::create_dir(&home).unwrap();
    let mut dir = open_dir(&home);
    let mut log = create(&dir, small_segments());
    let mut model = Model {
        batches: Vec::new(),
        end: Offset(0),
    };
    for step in 0..120 {
        match random.random_range(0..100) {
            0..70 => append_random(random, &log, &mut model, step),
            70..88 => check_random_read(random, &log, &model),
            88..92 => {
                log.flush().unwrap();
                dir.write_checkpoints(&[]).unwrap();
            }
            92..95 => {
                log.roll_if_due(i64::MAX).unwrap();
            }
            _ => {
                let next = root.path().join(format!("{}", step + 1));
                let clean = random.random_bool(0.3);
                if clean {
                    dir.shutdown_clean(1, &[], 1).unwrap();
                }
                copy_tree(&home, &next);
                drop((dir, log));
                let flushed = if clean {
                    model.end
                } else {
                    flushed_offset(&next)
                };
                if !clean {
                    damage_tail(random, &next.join("data/orders-0"), flushed);
                }
                dir = open_dir(&next);
                log = load_one(&dir, small_segments()).log;
                home = next;
                recover_model(&mut model, &log, flushed, round);
            }
        }
    }
    check_all(&log, &model);
}

fn append_random(random: &mut StdRng, log: &Arc<Log>, model: &mut Model, step: i64) {
    let records = random.random_range(1..5);
    let bytes = random.random_range(20..4_000);
    let appended = append(log, &sized_batch(step, records, bytes));
    assert_eq!(appended.base_offset, model.end);
    model.end = appended.last_offset + 1;
    model
        .batches
        .push(read(log, appended.base_offset, model.end));
    assert_eq!(log.log_end_offset(), model.end);
}

fn check_random_read(random: &mut StdRng, log: &Log, model: &Model) {
    let from = Offset(random.random_range(0..=model.end.0));
    let budget = random.random_range(1..40_000);
    let slices = log.read(from, model.end, budget, true).unwrap();
    let found: Vec<u8> = slices
        .iter()
        .flat_map(|slice| slice.read().unwrap())
        .collect();
    let mut expected = Vec::new();
    for batch in &model.batches {
        let header = crate::BatchHeader::parse(batch).unwrap();
        if header.last_offset() >= from {
            expected.extend_from_slice(batch);
        }
    }
    assert!(expected.starts_with(&found));
    assert!(found.len() >= expected.len().min(budget as usize));
}

fn check_all(log: &Log, model: &Model) {
    let found = read(log, Offset(0), log.log_end_offset());
    let offsets: Vec<_> = batches(&found)
        .map(|batch| batch.map(|(header, _)| header.base_offset))
        .collect();
    assert!(
        found == model.batches.concat(),
        "{offsets:?} up to {}",
        log.log_end_offset()
    );
}

fn flushed_offset(home: &Path) -> Offset {
    let points =
        crate::checkpoint::read(&home.join("data/recovery-point-offset-checkpoint")).unwrap();
    points.values().next().copied().unwrap_or_default()
}

/// Does to the last segment what a power loss may: everything from some point past the recovery
/// point on is zeros or gone, and any index may be.
fn damage_tail(random: &mut StdRng, directory: &Path, flushed: Offset) {
    let mut segments = files(directory, ".log");
    segments.sort();
    let last = segments.pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    let durable = batches(&bytes)
        .map_while(Result::ok)
        .take_while(|(header, _)| header.last_offset() < flushed)
        .map(|(header, _)| header.size())
        .sum::<usize>();
    let at = random.random_range(durable..=bytes.len());
    let mut torn = bytes[..at].to_vec();
    if random.random_bool(0.5) {
        torn.resize(bytes.len(), 0);
    }
    fs::write(&last, torn).unwrap();
    for path in files(directory, "index") {
        match random.random_range(0..4) {
            0 => fs::remove_file(path).unwrap(),
            1 => {
                let mut bytes = fs::read(&path).unwrap();
                bytes.truncate(random.random_range(0..=bytes.len()));
                fs::write(path, bytes).unwrap();
            }
            _ => {}
        }
    }
}

/// The log may have lost a suffix past the recovery point; nothing else may differ.
fn recover_model(model: &mut Model, log: &Log, flushed: Offset, round: u32) {
    let end = log.log_end_offset();
    assert!(
        end >= flushed,
        "round {round}: {end} is below the recovery point {flushed}"
    );
    assert!(end <= model.end);
    while model.end > end {
        let lost = model.batches.pop().unwrap();
        model.end = crate::BatchHeader::parse(&lost).unwrap().base_offset;
    }
    assert_eq!(model.end, end, "whole batches only");
    check_all(log, model);
}

/// A reader misses the offset index, a lookup by time the time index; both rebuild both, by the same temporary files.
#[test]
fn indexes_that_several_miss_at_once_are_rebuilt_by_one_after_the_other() {
    let stopped = Stopped::cleanly(200);
    let (_dir, loaded) = stopped.open();
    let segments = loaded.log.segments.read().clone();
    let sealed = &segments[0];
    let index = |suffix: &str| stopped.segments()[0].with_extension(suffix);
    let disk = crate::disk::Disk::for_tests();
    sealed.files(&disk).unwrap();
    let before = ["index", "timeindex"].map(|suffix| fs::read(index(suffix)).unwrap());
    for round in 0..100 {
        sealed.close_unless_appending();
        for suffix in ["index", "timeindex"] {
            fs::remove_file(index(suffix)).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| sealed.files(&disk).map(drop).unwrap());
                scope.spawn(|| sealed.times().map(drop).unwrap());
            }
        });
        for (suffix, before) in ["index", "timeindex"].into_iter().zip(&before) {
            let after = fs::read(index(suffix)).unwrap();
            assert!(
                after.iter().any(|byte| *byte != 0) && after.len() <= before.len(),
                "round {round}: {suffix} has {} bytes, {} of them not 0; it had {}",
                after.len(),
                after.iter().filter(|byte| **byte != 0).count(),
                before.len()
            );
        }
    }
    disk.stop();
}

/// Several readers are sent astray by the same entry at once.
#[test]
fn indexes_that_send_several_astray_at_once_are_rebuilt_by_one_of_them() {
    let stopped = Stopped::cleanly(200);
    let (_dir, loaded) = stopped.open();
    let sealed = loaded.log.all_segments()[0].clone();
    let index = |suffix: &str| stopped.segments()[0].with_extension(suffix);
    let disk = crate::disk::Disk::for_tests();
    let good = ["index", "timeindex"].map(|suffix| fs::read(index(suffix)).unwrap());
    let last = sealed.next_base().unwrap() + -1;
    for round in 0..200 {
        sealed.close_unless_appending();
        let mut wrong = good[0].clone();
        for entry in wrong.chunks_mut(8) {
            entry[7] ^= 1;
        }
        fs::write(index("index"), wrong).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let files = sealed.files(&disk).unwrap();
                    let found = sealed.locate(&files, last, sealed.size()).unwrap();
                    assert_eq!(found.unwrap().last_offset, last);
                });
            }
        });
        let files = sealed.files(&disk).unwrap();
        sealed.locate(&files, last, sealed.size()).unwrap();
        for (suffix, good) in ["index", "timeindex"].into_iter().zip(&good) {
            let after = fs::read(index(suffix)).unwrap();
            assert!(
                after.iter().any(|byte| *byte != 0) && after.len() <= good.len(),
                "round {round}: {suffix} has {} bytes, {} of them not 0; it had {}",
                after.len(),
                after.iter().filter(|byte| **byte != 0).count(),
                good.len()
            );
        }
    }
    disk.stop();
}

/// A stop takes a snapshot inside a segment, which goes without it.
#[test]
fn snapshots_of_stops_do_not_outlive_the_batches_before_them() {
    let stopped = Stopped::cleanly(30);
    for _ in 0..4 {
        let (dir, loaded) = stopped.open();
        let end = loaded.log.log_end_offset();
        loaded.log.advance_log_start(end, end).unwrap();
        dir.write_checkpoints(&[]).unwrap();
        for at in 0..30 {
            append(&loaded.log, &sized_batch(at, 2, 700));
        }
        dir.shutdown_clean(17, &[], 1).unwrap();
    }
    let (_dir, _loaded) = stopped.open();
    let oldest = |suffix| files(&stopped.file("."), suffix).into_iter().min().unwrap();
    assert!(oldest(".snapshot") >= oldest(".log"));
}
