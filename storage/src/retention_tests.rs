//! What retention removes, and that nothing goes before the checkpoint that no longer needs it.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::test_support::*;
use crate::{Log, LogConfig, Offset, ReadError, RetainError};

/// 100 batches of one record with timestamps 0, 10, 20, …
fn fill(log: &Log) {
    for at in 0..100 {
        append(log, &sized_batch(at * 10, 1, 900));
    }
}

#[test]
fn size_keeps_at_least_what_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        retention_bytes: Some(40_000),
        ..small_segments()
    };
    let log = create(&dir, config);
    fill(&log);
    let before = log.size_bytes();
    let retained = log.retain(0, Offset(100)).unwrap();
    assert!(retained.segments > 0);
    assert_eq!(log.size_bytes(), before - retained.bytes);
    assert!((40_000..40_000 + 16_384).contains(&log.size_bytes()));
    assert_eq!(log.log_start_offset(), retained.log_start);
    let error = log.read(Offset(0), Offset(100), 1, true).unwrap_err();
    assert!(matches!(error, ReadError::OffsetOutOfRange { .. }));
}

#[test]
fn time_goes_by_the_newest_record_of_a_segment_and_takes_the_active_one_too() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        retention_ms: Some(500),
        ..small_segments()
    };
    let log = create(&dir, config);
    fill(&log);
    let retained = log.retain(900, Offset(100)).unwrap();
    let newest_gone = (retained.log_start.0 - 1) * 10;
    assert!(900 - newest_gone > 500);
    assert!(retained.segments > 0 && log.segment_count() > 1);
    log.retain(10_000, Offset(100)).unwrap();
    assert_eq!((log.segment_count(), log.size_bytes()), (1, 0));
    assert_eq!(log.log_start_offset(), Offset(100));
    assert_eq!(append(&log, &batch(1, &[b"x"])).base_offset, Offset(100));
}

#[test]
fn nothing_above_the_high_watermark_goes() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        retention_bytes: Some(0),
        ..small_segments()
    };
    let log = create(&dir, config);
    fill(&log);
    log.retain(0, Offset(40)).unwrap();
    assert!(log.log_start_offset() <= Offset(40));
    assert!(log.log_start_offset() > Offset(0));
    let error = log.advance_log_start(Offset(41), Offset(40)).unwrap_err();
    assert!(matches!(error, RetainError::OffsetOutOfRange { .. }));
}

#[test]
fn a_topic_that_is_not_deleted_from_loses_only_what_was_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        retention_bytes: Some(0),
        retention_ms: Some(0),
        delete_enabled: false,
        ..small_segments()
    };
    let log = create(&dir, config);
    fill(&log);
    assert_eq!(log.retain(1 << 40, Offset(100)).unwrap().segments, 0);
    assert_eq!(
        log.advance_log_start(Offset(55), Offset(100)).unwrap(),
        Offset(55)
    );
    assert_eq!(
        log.advance_log_start(Offset(20), Offset(100)).unwrap(),
        Offset(55),
        "never back"
    );
    assert!(log.read(Offset(54), Offset(100), 1, true).is_err());
    assert!(
        !log.read(Offset(55), Offset(100), 1, true)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn files_go_after_the_checkpoint_and_slices_outlive_them() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    fill(&log);
    log.flush().unwrap();
    let oldest = root.path().join("data/orders-0/00000000000000000000.log");
    let slices = log.read(Offset(0), Offset(3), 1 << 20, true).unwrap();
    let bytes = slices[0].read().unwrap();
    log.advance_log_start(Offset(60), Offset(100)).unwrap();
    assert!(oldest.exists(), "not before the log start is checkpointed");
    dir.write_checkpoints(&[]).unwrap();
    assert!(!oldest.exists());
    assert_eq!(slices[0].read().unwrap(), bytes);
    drop((dir, log));
    let left = fs::read_dir(root.path().join("data/orders-0")).unwrap();
    let names: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.iter().any(|name| name.ends_with(".deleted")),
        "{names:?}"
    );
    let dir = open_dir(root.path());
    let log = load_one(&dir, small_segments()).log;
    assert_eq!(log.log_start_offset(), Offset(60));
    assert_eq!(log.log_end_offset(), Offset(100));
}

#[test]
fn a_segment_goes_only_after_it_is_durable() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        retention_ms: Some(100),
        ..small_segments()
    };
    let log = create(&dir, config);
    append(&log, &batch(10, &[b"old"]));
    // Expired while it was active, and never flushed.
    assert_eq!(log.retain(1_000, Offset(1)).unwrap().segments, 1);
    dir.write_checkpoints(&[]).unwrap();
    append(&log, &batch(1_000, &[b"new"]));
    assert_eq!(
        log.flush().unwrap(),
        Offset(2),
        "no flush looks for files that are gone"
    );
    assert!(dir.offline().is_none());
}

/// A log that ended below its start would go on with a gap, which a later start takes for its end.
#[test]
fn no_log_start_is_checkpointed_that_a_power_loss_could_leave_above_the_log_end() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    for at in 0..10 {
        append(&log, &batch(at, &[b"x"]));
    }
    log.advance_log_start(Offset(10), Offset(10)).unwrap();
    dir.write_checkpoints(&[]).unwrap();
    assert!(
        log.flushed_offset() >= log.log_start_offset(),
        "the checkpointed start survives, so what precedes it must"
    );
}

#[test]
fn deleted_records_do_not_come_back_once_their_deletion_was_made_durable() {
    let root = tempfile::tempdir().unwrap();
    let home = root.path().join("home");
    fs::create_dir(&home).unwrap();
    let dir = open_dir(&home);
    let log = create(&dir, small_segments());
    fill(&log);
    log.advance_log_start(Offset(61), Offset(100)).unwrap();
    log.checkpoint_log_start().unwrap();
    let copy = root.path().join("killed");
    copy_tree(&home, &copy);
    let dir = open_dir(&copy);
    let log = load_one(&dir, small_segments()).log;
    assert_eq!(log.log_start_offset(), Offset(61));
    assert_eq!(log.log_end_offset(), Offset(100));
}

/// Files of segments that go meanwhile cannot be opened: that is no failure of what the log has now.
#[test]
fn who_looks_while_retention_takes_segments_looks_again() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    fill(&log);
    let looks = AtomicU32::new(0);
    let found = log.undisturbed(|(start, _)| {
        let segments = log.all_segments();
        if looks.fetch_add(1, Ordering::Relaxed) == 0 {
            log.advance_log_start(Offset(61), Offset(100)).unwrap();
            dir.write_checkpoints(&[]).unwrap();
        }
        for segment in segments {
            segment.times()?;
            segment.files(&log.disk)?;
        }
        Ok(start)
    });
    assert_eq!(found.unwrap(), Offset(61));
    assert_eq!(looks.into_inner(), 2);
}

/// What lies below it may have been cut off since it was flushed, and replaced.
#[test]
fn a_log_start_stays_at_what_is_durable_when_the_log_is_cut_meanwhile() {
    let root = tempfile::tempdir().unwrap();
    let log = create(&open_dir(root.path()), small_segments());
    let append_ten = || {
        for _ in 0..10 {
            append(&log, &batch(1, &[b"x"]));
        }
    };
    for _ in 0..100 {
        let start = log.log_end_offset();
        append_ten();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = Over(&over);
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    log.truncate_to(start).unwrap();
                    append_ten();
                }
            });
            match log.advance_log_start(start + 5, start + 10) {
                Ok(_) | Err(RetainError::OffsetOutOfRange { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        });
        assert!(log.log_start_offset() <= log.flushed_offset());
    }
}
