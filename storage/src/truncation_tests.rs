//! One test per rule of truncations and restarts: what goes, what stays readable, what a crash leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::inspect::{PartitionDir, compare, verify};
use crate::segment::Segment;
use crate::test_support::*;
use crate::{
    Compression, LeaderEpoch, LoadedLog, Log, LogConfig, LogDir, Offset, ReadError, RecordsBuilder,
    TruncateError, validate,
};

/// A log of 100 batches of two records in a few segments, all of it flushed and checkpointed.
struct Fixture {
    root: TempDir,
    dir: LogDir,
    log: Arc<Log>,
    bytes: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        fs::create_dir(&home).unwrap();
        let dir = open_dir(&home);
        let log = create(&dir, config());
        for at in 0..100 {
            append(&log, &sized_batch(at, 2, 700));
        }
        log.flush().unwrap();
        dir.write_checkpoints(&[]).unwrap();
        let bytes = read(&log, Offset(0), Offset(200));
        Self {
            root,
            dir,
            log,
            bytes,
        }
    }

    /// All batches have the same size.
    fn upto(&self, offset: i64) -> &[u8] {
        &self.bytes[..self.bytes.len() / 100 * (offset as usize / 2)]
    }

    fn partition(&self) -> PathBuf {
        self.root.path().join("home/data/orders-0")
    }

    fn bases(&self) -> Vec<i64> {
        self.log
            .all_segments()
            .iter()
            .map(|segment| segment.base().0)
            .collect()
    }

    /// Keeps a copy of the files as they are at each step from now on: what a `kill -9` there leaves.
    fn copy_at_each_step(&self) -> Arc<Mutex<Vec<PathBuf>>> {
        let copies = Arc::new(Mutex::new(Vec::new()));
        let (kept, root) = (Arc::clone(&copies), self.root.path().to_owned());
        *self.log.disk.at_step.0.lock() = Some(Box::new(move || {
            let copy = root.join(format!("step-{}", kept.lock().len()));
            copy_tree(&root.join("home"), &copy);
            kept.lock().push(copy);
        }));
        copies
    }
}

/// Deleted files stay, so that nothing but the log itself removes what a copy is taken of.
fn config() -> LogConfig {
    LogConfig {
        file_delete_delay_ms: 3_600_000,
        ..small_segments()
    }
}

fn reopen(home: &Path) -> (LogDir, LoadedLog) {
    let dir = open_dir(home);
    let loaded = load_one(&dir, config());
    assert_eq!(
        (&loaded.recovery.ended_by, &loaded.recovery.set_aside),
        (&None, &vec![]),
        "a truncation is no damage"
    );
    (dir, loaded)
}

fn append_of(log: &Log, epoch: i32, bytes: &[u8]) -> Offset {
    let valid = validate(bytes, &rules(), 0).unwrap();
    log.append(&valid, LeaderEpoch(epoch), 0)
        .unwrap()
        .base_offset
}

#[test]
fn the_log_ends_at_the_offset_or_where_its_batch_begins_and_goes_on_from_there() {
    for (offset, end) in [(199, 198), (151, 150), (150, 150), (3, 2), (1, 0), (-7, 0)] {
        let at = Fixture::new();
        assert_eq!(at.log.truncate_to(Offset(offset)).unwrap(), Offset(end));
        assert_eq!(at.log.log_end_offset(), Offset(end));
        assert_eq!(at.log.flushed_offset(), Offset(end));
        assert!(read(&at.log, Offset(0), Offset(200)) == at.upto(end));
        assert_eq!(at.log.size_bytes(), at.upto(end).len() as u64);
        let error = at.log.read(Offset(end + 1), Offset(200), 1, true);
        assert!(matches!(error, Err(ReadError::OffsetOutOfRange { .. })));
        // Both roles go on in the same log.
        assert_eq!(append_of(&at.log, 9, &batch(1, &[b"led"])), Offset(end));
        let followed = stamped(&batch(1, &[b"followed"]), end + 1, 9);
        at.log.append_as_follower(&followed, 0).unwrap();
        assert_eq!(
            append_of(&at.log, 11, &batch(1, &[b"led"])),
            Offset(end + 2)
        );
        assert_eq!(at.log.epoch_of(Offset(end)), Some(LeaderEpoch(9)));
        assert!(read(&at.log, Offset(0), Offset(end)) == at.upto(end));
        assert!(read(&at.log, Offset(end + 1), Offset(end + 2)) == followed);
    }
}

#[test]
fn at_or_above_the_log_end_nothing_is_cut() {
    let at = Fixture::new();
    at.log.assign_epoch(LeaderEpoch(8), Offset(200));
    for offset in [200, 201, 9_999] {
        assert_eq!(at.log.truncate_to(Offset(offset)).unwrap(), Offset(200));
    }
    assert!(read(&at.log, Offset(0), Offset(200)) == at.bytes);
    assert_eq!(
        at.log.latest_epoch(),
        Some(EPOCH),
        "a reign without batches ends"
    );
}

#[test]
fn a_cut_at_a_segment_s_own_base_puts_an_empty_one_in_its_place() {
    let at = Fixture::new();
    let bases = at.bases();
    for base in [bases[3], bases[1], 0] {
        let slices = at
            .log
            .read(Offset(base), Offset(200), u32::MAX, true)
            .unwrap();
        let before: Vec<_> = slices.iter().map(|slice| slice.read().unwrap()).collect();
        assert_eq!(at.log.truncate_to(Offset(base)).unwrap(), Offset(base));
        assert_eq!(at.bases().last(), Some(&base));
        append_of(&at.log, 9, &sized_batch(1, 2, 700));
        let after: Vec<_> = slices.iter().map(|slice| slice.read().unwrap()).collect();
        assert!(before == after);
    }
    assert_eq!(at.log.log_end_offset(), Offset(2));
}

/// Also when the bytes have been cut off, others stand in their place, and the file has been given back.
#[test]
fn a_slice_shows_the_bytes_it_was_given_whatever_becomes_of_the_log() {
    let at = Fixture::new();
    let slices = at.log.read(Offset(0), Offset(200), u32::MAX, true).unwrap();
    let shown = || -> Vec<u8> {
        slices
            .iter()
            .flat_map(|slice| slice.read().unwrap())
            .collect()
    };
    at.log.truncate_to(Offset(190)).unwrap();
    assert!(shown() == at.bytes);
    for _ in 0..200 {
        append_of(&at.log, 9, &sized_batch(7, 2, 700));
    }
    at.log.truncate_to(Offset(41)).unwrap();
    at.log.reclaim();
    append_of(&at.log, 10, &sized_batch(7, 2, 700));
    assert!(shown() == at.bytes);
    at.log.restart_at(Offset(7)).unwrap();
    append_of(&at.log, 11, &sized_batch(7, 2, 700));
    at.log.close().unwrap();
    assert!(shown() == at.bytes);
}

#[test]
fn the_file_is_left_alone_and_given_back_by_a_copy() {
    let at = Fixture::new();
    let cut = at.bases()[2] + 4;
    let path = at.log.all_segments()[2].path("log");
    let before = fs::read(&path).unwrap();
    let reclaiming = at.log.reclaiming.lock();
    at.log.truncate_to(Offset(cut)).unwrap();
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(at.log.flush().unwrap(), Offset(cut));
    append_of(&at.log, 9, &sized_batch(1, 2, 700));
    assert_eq!(at.log.flush().unwrap(), Offset(cut + 2));
    assert_eq!(at.log.recovery_point(), Offset(cut), "held back until then");
    let report = verify(&PartitionDir::open(&at.partition()).unwrap(), false).unwrap();
    assert_eq!(
        (report.faults, report.end_offset),
        (vec![], Offset(cut + 2))
    );
    drop(reclaiming);
    at.log.reclaim();
    assert!(before.starts_with(&fs::read(&path).unwrap()));
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        at.log.all_segments()[2].size()
    );
    assert_eq!(at.log.recovery_point(), Offset(cut + 2));
    assert!(read(&at.log, Offset(0), Offset(cut)) == at.upto(cut));
}

#[test]
fn a_full_disk_puts_off_the_giving_back_and_nothing_else() {
    let at = Fixture::new();
    let cut = at.bases()[2] + 4;
    at.dir.set_free_floor_bytes(u64::MAX);
    at.log.truncate_to(Offset(cut)).unwrap();
    at.log.reclaim();
    assert_eq!(at.log.recovery_point(), Offset(cut));
    assert!(!at.dir.is_offline());
    let left = fs::read_dir(at.partition()).unwrap();
    let mut names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(
        !names.any(|name| name.ends_with(".tmp")),
        "no half copy takes room"
    );
    at.dir.set_free_floor_bytes(0);
    append_of(&at.log, 9, &sized_batch(1, 2, 700));
    at.log.flush().unwrap();
    at.log.reclaim();
    assert_eq!(at.log.recovery_point(), Offset(cut + 2));
}

#[test]
fn a_replica_with_a_superseded_end_compares_equal_to_one_without() {
    let at = Fixture::new();
    let cut = at.bases()[2] + 4;
    let reference = tempfile::tempdir().unwrap();
    let dir = open_dir(reference.path());
    let log = create(&dir, small_segments());
    log.append_as_follower(at.upto(cut), 0).unwrap();
    let reclaiming = at.log.reclaiming.lock();
    at.log.truncate_to(Offset(cut)).unwrap();
    for epoch in [9, 12] {
        let base = at.log.log_end_offset().0;
        let next = stamped(&sized_batch(1, 2, 300), base, epoch);
        at.log.append_as_follower(&next, 0).unwrap();
        log.append_as_follower(&next, 0).unwrap();
    }
    let open = |path: &Path| PartitionDir::open(path).unwrap();
    let replicas = [
        open(&at.partition()),
        open(&reference.path().join("data/orders-0")),
    ];
    assert_eq!(compare(&replicas).unwrap(), []);
    drop(reclaiming);
}

/// Every state of the files between two steps opens as a log that ends at the cut, or at a segment's end
/// above it; and takes what the new leader has.
#[test]
fn a_crash_at_any_step_of_a_truncation_leaves_a_sound_log() {
    let bases = Fixture::new().bases();
    for cut in [198, bases[4], bases[3] + 6, bases[1] + 2, 0] {
        let at = Fixture::new();
        let copies = at.copy_at_each_step();
        assert_eq!(at.log.truncate_to(Offset(cut)).unwrap(), Offset(cut));
        append_of(&at.log, 9, &sized_batch(1, 2, 700));
        at.log.flush().unwrap();
        at.log.reclaim();
        at.dir.write_checkpoints(&[]).unwrap();
        at.log.disk.step();
        at.log.disk.at_step.0.lock().take();
        let copies = copies.lock().clone();
        assert!(copies.len() > 2, "{copies:?}");
        for copy in copies {
            let (dir, loaded) = reopen(&copy);
            let end = loaded.log.log_end_offset();
            let kept = end.0.min(200);
            let is_boundary = [cut, cut + 2, 200].contains(&kept) || bases.contains(&kept);
            assert!(is_boundary && kept >= cut, "{copy:?}: {kept}");
            let same = read(&loaded.log, Offset(0), Offset(cut)) == at.upto(cut);
            assert!(same, "{copy:?}");
            assert_eq!(loaded.log.truncate_to(Offset(cut)).unwrap(), Offset(cut));
            append_of(&loaded.log, 12, &sized_batch(1, 2, 700));
            dir.shutdown_clean(1, &[], 1).unwrap();
            let partition = PartitionDir::open(&copy.join("data/orders-0")).unwrap();
            let report = verify(&partition, true).unwrap();
            assert_eq!(
                (report.faults, report.end_offset),
                (vec![], Offset(cut + 2))
            );
        }
    }
}

/// Either the old log or the new, empty one; where it was decided, the new one.
#[test]
fn a_crash_at_any_step_of_a_restart_leaves_the_old_log_or_the_new_one() {
    let bases = Fixture::new().bases();
    for start in [5_000, 10, bases[2]] {
        let at = Fixture::new();
        at.log.advance_log_start(Offset(90), Offset(200)).unwrap();
        let copies = at.copy_at_each_step();
        at.log.restart_at(Offset(start)).unwrap();
        append_of(&at.log, 9, &sized_batch(1, 2, 700));
        at.log.disk.step();
        at.log.disk.at_step.0.lock().take();
        let copies = copies.lock().clone();
        assert!(copies.len() > 4, "{copies:?}");
        for copy in copies {
            for again in 0..2 {
                let (_dir, loaded) = reopen(&copy);
                let (log, end) = (&loaded.log, loaded.log.log_end_offset());
                assert_eq!(log.log_start_offset(), Offset(start), "{copy:?} {again}");
                assert!(end == Offset(start) || end == Offset(start + 2), "{copy:?}");
                assert_eq!(
                    read(log, Offset(start), end).is_empty(),
                    end == Offset(start)
                );
            }
            let (_dir, loaded) = reopen(&copy);
            append_of(&loaded.log, 12, &sized_batch(1, 2, 700));
        }
    }
}

#[test]
fn a_restarted_log_is_empty_and_knows_nothing() {
    let at = Fixture::new();
    at.log.restart_at(Offset(1_000)).unwrap();
    assert_eq!(
        (
            at.log.log_start_offset(),
            at.log.log_end_offset(),
            at.log.flushed_offset()
        ),
        (Offset(1_000), Offset(1_000), Offset(1_000))
    );
    assert_eq!((at.log.segment_count(), at.log.size_bytes()), (1, 0));
    assert_eq!(
        (
            at.log.latest_epoch(),
            at.log.max_timestamp(Offset(i64::MAX)).unwrap()
        ),
        (None, None)
    );
    assert!(at.log.read(Offset(150), Offset(200), 1, true).is_err());
    at.dir.write_checkpoints(&[]).unwrap();
    at.log
        .append_as_follower(&stamped(&batch(1, &[b"x"]), 1_000, 3), 0)
        .unwrap();
    at.dir.shutdown_clean(1, &[], 1).unwrap();
    let report = verify(&PartitionDir::open(&at.partition()).unwrap(), true).unwrap();
    assert_eq!(
        (report.faults, report.start_offset),
        (vec![], Offset(1_000))
    );
}

/// A leader whose records were deleted up to the middle of a batch sends that batch whole.
#[test]
fn a_follower_takes_a_log_that_starts_inside_a_batch() {
    let at = Fixture::new();
    at.log.restart_at(Offset(501)).unwrap();
    let records = stamped(&batch(1, &[b"a", b"b", b"c"]), 500, 3);
    let error = at.log.append_as_follower(&records, 0).unwrap_err();
    let crate::FollowerAppendError::OffsetGap { found, .. } = error else {
        panic!("{error}");
    };
    at.log.restart_at(found).unwrap();
    at.log.append_as_follower(&records, 0).unwrap();
    assert_eq!(
        at.log.advance_log_start(Offset(501), Offset(503)).unwrap(),
        Offset(501)
    );
    // Cut back to its start, it cannot keep half a batch.
    assert_eq!(at.log.truncate_to(Offset(400)).unwrap(), Offset(501));
    assert_eq!(at.log.log_start_offset(), Offset(501));
}

#[test]
fn producers_go_back_to_what_the_kept_batches_say() {
    let at = Fixture::new();
    let from = |sequence| {
        let mut builder = RecordsBuilder::new(Compression::None).producer(9, 0, sequence);
        builder.push(5, None, Some(&[b'x'; 600]), &[]);
        builder.build().unwrap()
    };
    for sequence in 0..100 {
        append(&at.log, &from(sequence));
    }
    at.log.truncate_to(Offset(260)).unwrap();
    let again = append(&at.log, &from(59));
    assert!(again.duplicate);
    assert_eq!(again.base_offset, Offset(259));
    assert!(!append(&at.log, &from(60)).duplicate);
    at.log.truncate_to(Offset(100)).unwrap();
    assert!(
        !append(&at.log, &from(77)).duplicate,
        "without state it may go on anywhere"
    );
}

#[test]
fn a_transaction_is_open_again_when_its_marker_is_cut_off() {
    let at = Fixture::new();
    let placed = |offset, sequence, control: bool| {
        let builder = RecordsBuilder::new(Compression::None)
            .producer(9, 0, sequence)
            .transactional()
            .placed(Offset(offset), EPOCH);
        let mut builder = if control { builder.control() } else { builder };
        builder.push(5, Some(b"key"), Some(b"value"), &[]);
        builder.build().unwrap()
    };
    let records = [
        placed(200, 0, false),
        placed(201, 1, false),
        placed(202, -1, true),
        placed(203, 2, false),
    ];
    at.log.append_as_follower(&records.concat(), 0).unwrap();
    for (end, unstable) in [(204, Some(203)), (203, None), (202, Some(200)), (200, None)] {
        at.log.truncate_to(Offset(end)).unwrap();
        let found = at.log.first_unstable_offset();
        assert_eq!(found, unstable.map(Offset), "cut at {end}");
    }
}

/// Epochs of the old log must not hide those of the batches that came instead, when a crash kept their
/// file from being written.
#[test]
fn epochs_that_were_cut_off_do_not_come_back_after_a_crash() {
    let at = Fixture::new();
    append_of(&at.log, 5, &sized_batch(1, 2, 700));
    at.log.flush().unwrap();
    at.dir.write_checkpoints(&[]).unwrap();
    let stale = at.partition().join("leader-epoch-checkpoint");
    let before = fs::read(&stale).unwrap();
    at.log.truncate_to(Offset(180)).unwrap();
    let records = [
        stamped(&sized_batch(1, 2, 700), 180, 4),
        stamped(&sized_batch(1, 20, 700), 182, 6),
    ];
    at.log.append_as_follower(&records.concat(), 0).unwrap();
    let copy = at.root.path().join("crashed");
    copy_tree(&at.root.path().join("home"), &copy);
    fs::write(copy.join("data/orders-0/leader-epoch-checkpoint"), before).unwrap();
    let (_dir, loaded) = reopen(&copy);
    let epochs: Vec<_> = [179, 180, 182, 201]
        .map(|offset| loaded.log.epoch_of(Offset(offset)).unwrap().0)
        .to_vec();
    assert_eq!(epochs, [EPOCH.0, 4, 6, 6]);
    assert_eq!(
        loaded.log.end_offset_for_epoch(LeaderEpoch(5)),
        Some((LeaderEpoch(4), Offset(182)))
    );
}

/// What was cut off need not have reached the disk when the power went.
#[test]
fn a_superseded_end_may_be_anything_after_a_power_loss() {
    let damage: [fn(&mut [u8]); 3] = [
        |end| end.fill(0),
        |end| end[..100].fill(0),
        |end| end[200] ^= 0xff,
    ];
    for damage in damage {
        let at = Fixture::new();
        let cut = at.bases()[2] + 4;
        let reclaiming = at.log.reclaiming.lock();
        at.log.truncate_to(Offset(cut)).unwrap();
        let (path, size) = (
            at.log.all_segments()[2].path("log"),
            at.log.all_segments()[2].size(),
        );
        append_of(&at.log, 9, &sized_batch(1, 2, 700));
        let copy = at.root.path().join("crashed");
        copy_tree(&at.root.path().join("home"), &copy);
        let path = copy.join("data/orders-0").join(path.file_name().unwrap());
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes[size as usize..]);
        fs::write(&path, bytes).unwrap();
        let report = verify(
            &PartitionDir::open(&copy.join("data/orders-0")).unwrap(),
            false,
        )
        .unwrap();
        assert_eq!(report.faults, []);
        let (_dir, loaded) = reopen(&copy);
        assert_eq!(loaded.log.log_end_offset(), Offset(cut + 2));
        loaded.log.close().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), size);
        drop(reclaiming);
    }
}

#[test]
fn a_closed_or_failed_log_is_not_cut() {
    let at = Fixture::new();
    at.log.close().unwrap();
    assert!(matches!(
        at.log.truncate_to(Offset(1)),
        Err(TruncateError::Closed)
    ));
    assert!(matches!(
        at.log.restart_at(Offset(1)),
        Err(TruncateError::Closed)
    ));
    let at = Fixture::new();
    at.log
        .disk
        .take_offline(&at.partition(), &std::io::Error::other("gone"));
    assert!(matches!(
        at.log.truncate_to(Offset(1)),
        Err(TruncateError::Offline(_))
    ));
    assert_eq!(at.log.log_end_offset(), Offset(200));
}

#[test]
fn who_looks_while_the_log_is_cut_looks_again() {
    let at = Fixture::new();
    let looks = AtomicU32::new(0);
    let found = at.log.undisturbed(|(_, end)| {
        if looks.fetch_add(1, Ordering::Relaxed) == 0 {
            at.log.truncate_to(Offset(150)).unwrap();
        }
        Ok(end)
    });
    assert_eq!(found.unwrap(), Offset(150));
    assert_eq!(looks.into_inner(), 2);
}

/// A reader that is under way when the log is cut sees the log before or after, and never of both:
/// batches follow each other, and epochs do not go down.
#[test]
fn readers_see_one_log_or_the_other_while_it_is_cut() {
    let at = Fixture::new();
    let (over, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    let read_on = || {
        let _over = Over(&over);
        while !over.load(Ordering::Relaxed) {
            let slices = match at.log.read(Offset(40), Offset(i64::MAX), u32::MAX, true) {
                Ok(slices) => slices,
                // Between the cut on disk and in memory, what is cut off may be gone.
                Err(ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let bytes: Vec<u8> = slices
                .iter()
                .flat_map(|slice| slice.read().unwrap())
                .collect();
            let (mut next, mut epoch) = (Offset(40), LeaderEpoch(0));
            for found in crate::records::batches(&bytes) {
                let (header, _) = found.unwrap();
                assert_eq!(header.base_offset, next);
                assert!(header.leader_epoch >= epoch);
                (next, epoch) = (header.next_offset(), header.leader_epoch);
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..2 {
            scope.spawn(read_on);
        }
        let mut epoch = 10;
        let enough = |epoch| rounds.load(Ordering::Relaxed) >= 300 && epoch >= 60;
        while !over.load(Ordering::Relaxed) && !enough(epoch) {
            for _ in 0..60 {
                append_of(&at.log, epoch, &sized_batch(1, 2, 300 + epoch as usize));
            }
            epoch += 1;
            let cut = [50, 42, 40, 44 + i64::from(epoch)][epoch as usize % 4];
            at.log.truncate_to(Offset(cut)).unwrap();
        }
    });
}

/// A name that is taken, whatever went wrong: what has it loses nothing.
#[test]
fn no_segment_is_created_over_another_or_its_indexes() {
    let at = Fixture::new();
    let names = || -> Vec<_> {
        let entries = fs::read_dir(at.partition()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let taken = at.log.all_segments()[0].base();
    let refused = Segment::create(Arc::clone(&at.log.directory), taken).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(names(), before);
    assert!(read(&at.log, Offset(0), Offset(200)) == at.bytes);
}

/// A flush of a segment that a truncation is just removing finds its names half gone.
#[test]
fn a_segment_that_goes_while_it_is_flushed_is_no_failed_disk() {
    let root = tempfile::tempdir().unwrap();
    let log = create(&open_dir(root.path()), config());
    for _ in 0..200 {
        for _ in 0..30 {
            append(&log, &sized_batch(1, 2, 700));
        }
        let segments = log.all_segments();
        log.flush().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = Over(&over);
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    segments[0].sync().unwrap();
                }
            });
            log.truncate_to(Offset(0)).unwrap();
        });
    }
}

/// Flushes, checkpoints, retention and the giving back go on beside truncations; what the clean stop leaves
/// is sound, and what was committed is there.
#[test]
fn housekeeping_goes_on_while_the_log_is_cut() {
    let at = Fixture::new();
    let over = AtomicBool::new(false);
    let committed = Offset(90);
    let flush = || assert!(at.log.flush().unwrap() >= committed);
    let checkpoint = || at.dir.write_checkpoints(&[]).unwrap();
    let delete = || {
        let start = committed.min(at.log.log_start_offset() + 1);
        at.log.advance_log_start(start, committed).unwrap();
    };
    let housekeeping: [&(dyn Fn() + Sync); 3] = [&flush, &checkpoint, &delete];
    std::thread::scope(|scope| {
        let over = &over;
        let _over = Over(over);
        for work in housekeeping {
            scope.spawn(move || {
                let _over = Over(over);
                while !over.load(Ordering::Relaxed) {
                    work();
                }
            });
        }
        for epoch in 10..60 {
            for _ in 0..40 {
                append_of(&at.log, epoch, &sized_batch(1, 2, 700));
            }
            let cut = Offset(committed.0 + i64::from(epoch % 7) * 20);
            assert_eq!(at.log.truncate_to(cut).unwrap(), cut);
        }
    });
    let (start, end) = (at.log.log_start_offset(), at.log.log_end_offset());
    let kept = read(&at.log, start, committed);
    assert!(at.upto(committed.0).ends_with(&kept));
    at.dir.shutdown_clean(1, &[], 1).unwrap();
    let report = verify(&PartitionDir::open(&at.partition()).unwrap(), true).unwrap();
    assert_eq!((report.faults, report.end_offset), (vec![], end));
    assert_eq!(at.log.recovery_point(), end);
}
