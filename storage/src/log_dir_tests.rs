//! Whose a directory is, and what it does with the logs in it.

use std::sync::Arc;
use std::{fs, io};

use uuid::Uuid;

use crate::background::Job;
use crate::segment::SegmentError;
use crate::test_support::*;
use crate::{
    FlushError, LastStop, LogConfig, LogDir, LogDirError, LogDirOptions, Offset, validate,
};

#[test]
fn one_process_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let second = LogDir::open(dir.path(), &options(root.path()));
    assert!(matches!(second, Err(LogDirError::InUse(_))));
    let id = dir.directory_id();
    drop(dir);
    assert_eq!(open_dir(root.path()).directory_id(), id);
}

#[test]
fn a_directory_of_someone_else_or_of_the_future_is_refused_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    drop(open_dir(root.path()));
    let meta = root.path().join("data/meta.properties");
    let text = fs::read_to_string(&meta).unwrap();
    let open =
        |options: LogDirOptions| LogDir::open(&root.path().join("data"), &options).unwrap_err();
    let error = open(LogDirOptions {
        cluster_id: "other".into(),
        ..options(root.path())
    });
    assert!(
        error
            .to_string()
            .ends_with("belongs to cluster.id test-cluster, not other"),
        "{error}"
    );
    let error = open(LogDirOptions {
        node_id: 2,
        ..options(root.path())
    });
    assert!(
        error.to_string().ends_with("belongs to node.id 1, not 2"),
        "{error}"
    );
    fs::write(&meta, text.replace("version=1", "version=2")).unwrap();
    let error = open(options(root.path()));
    assert!(matches!(error, LogDirError::NewerFormat { .. }), "{error}");
    assert_eq!(
        fs::read_to_string(&meta).unwrap(),
        text.replace("version=1", "version=2")
    );
    fs::remove_file(&meta).unwrap();
    fs::create_dir(root.path().join("data/orders-0")).unwrap();
    assert!(matches!(
        open(options(root.path())),
        LogDirError::Unclaimed(_)
    ));
    assert!(!meta.exists());
}

/// A node that dies before the cluster knows of the power loss must not look like one whose process was killed.
#[test]
fn a_power_loss_is_told_until_a_life_has_begun() {
    let root = tempfile::tempdir().unwrap();
    drop(open_dir(root.path()));
    fs::write(root.path().join("boot_id"), "boot-2\n").unwrap();
    let path = root.path().join("data");
    for _ in 0..2 {
        let unregistered = LogDir::open(&path, &options(root.path())).unwrap();
        assert_eq!(unregistered.last_stop(), LastStop::Lossy);
    }
    assert_eq!(open_dir(root.path()).last_stop(), LastStop::Lossy);
    assert_eq!(open_dir(root.path()).last_stop(), LastStop::Killed);
}

#[test]
fn a_stop_is_told_by_marker_and_boot() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    assert_eq!(dir.last_stop(), LastStop::New);
    dir.shutdown_clean(41, &[], 1).unwrap();
    drop(dir);
    assert_eq!(
        open_dir(root.path()).last_stop(),
        LastStop::Clean { broker_epoch: 41 }
    );
    assert_eq!(open_dir(root.path()).last_stop(), LastStop::Killed);
    fs::write(root.path().join("boot_id"), "boot-2\n").unwrap();
    assert_eq!(open_dir(root.path()).last_stop(), LastStop::Lossy);
    assert_eq!(open_dir(root.path()).last_stop(), LastStop::Killed);
}

#[test]
fn high_watermarks_come_back_within_the_log() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    for _ in 0..9 {
        append(&log, &batch(1, &[b"x"]));
    }
    dir.write_checkpoints(&[(Arc::clone(&log), Offset(4))])
        .unwrap();
    // A log that is not mentioned keeps its last.
    dir.write_checkpoints(&[]).unwrap();
    drop((dir, log));
    let dir = open_dir(root.path());
    let loaded = load_one(&dir, LogConfig::default());
    assert_eq!(loaded.high_watermark, Offset(4));
    dir.write_checkpoints(&[(Arc::clone(&loaded.log), Offset(99))])
        .unwrap();
    drop((dir, loaded));
    let dir = open_dir(root.path());
    assert_eq!(
        load_one(&dir, LogConfig::default()).high_watermark,
        Offset(9)
    );
}

#[test]
fn a_topic_created_again_under_its_name_inherits_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(
        &dir,
        LogConfig {
            file_delete_delay_ms: 0,
            ..LogConfig::default()
        },
    );
    for _ in 0..9 {
        append(&log, &batch(1, &[b"x"]));
    }
    log.flush().unwrap();
    dir.write_checkpoints(&[(Arc::clone(&log), Offset(9))])
        .unwrap();
    let slice = log
        .read(Offset(0), Offset(9), 1 << 20, true)
        .unwrap()
        .remove(0);
    dir.delete_log(log.partition()).unwrap();
    let bytes = batch(1, &[b"x"]);
    assert!(
        log.append(&validate(&bytes, &rules(), 0).unwrap(), EPOCH, 0)
            .is_err()
    );
    assert_eq!(slice.read().unwrap().len(), slice.length() as usize);
    let again = dir
        .create_log(TOPIC, Uuid::from_u128(8), 0, LogConfig::default())
        .unwrap();
    assert_eq!(again.log_end_offset(), Offset(0));
    drop((dir, log, again));
    let dir = open_dir(root.path());
    let loaded = load_one(&dir, LogConfig::default());
    assert_eq!(loaded.log.topic_id(), Uuid::from_u128(8));
    assert_eq!(
        (loaded.log.log_end_offset(), loaded.high_watermark),
        (Offset(0), Offset(0))
    );
    let names = fs::read_dir(root.path().join("data")).unwrap();
    let deleted = names.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .ends_with("-delete")
    });
    assert_eq!(deleted.count(), 0);
}

/// A flush that has begun must not take what it no longer finds for a failed disk, nor write into a log that has
/// the name now.
#[test]
fn a_log_deleted_while_it_is_flushed_leaves_the_directory_online() {
    for created_again in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(open_dir(root.path()));
        let log = create(&dir, small_segments());
        dir.disk.background().submit(Job::Stop);
        for _ in 0..100 {
            append(&log, &sized_batch(1, 1, 1000));
        }
        let deleting = Arc::clone(&dir);
        let mut steps = 0;
        *dir.disk.at_step.0.lock() = Some(Box::new(move || {
            steps += 1;
            if steps == 1 {
                deleting
                    .delete_log(&deleting.logs()[0].partition().clone())
                    .unwrap();
                if created_again {
                    create(&deleting, small_segments());
                }
            }
        }));
        assert!(matches!(log.flush(), Err(FlushError::Gone)));
        dir.disk.at_step.0.lock().take();
        assert_eq!(dir.offline(), None);
        if created_again {
            let names = fs::read_dir(root.path().join("data/orders-0")).unwrap();
            assert_eq!(names.count(), 2, "a segment and its topic");
        }
    }
}

#[test]
fn logs_that_come_and_go_while_they_are_flushed_leave_the_directory_online() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    for round in 0..60 {
        let log = create(&dir, small_segments());
        std::thread::scope(|scope| {
            for _ in 0..100 {
                append(&log, &sized_batch(1, 1, 1000));
            }
            let flushing = scope.spawn(|| log.flush());
            let checkpoint = scope.spawn(|| dir.write_checkpoints(&[]));
            if round % 2 == 0 {
                dir.delete_log(log.partition()).unwrap();
            } else {
                dir.set_stray(log.partition()).unwrap();
            }
            let flushed = flushing.join().unwrap();
            assert!(
                matches!(flushed, Ok(_) | Err(FlushError::Gone)),
                "{flushed:?}"
            );
            checkpoint.join().unwrap().unwrap();
        });
        assert_eq!(dir.offline(), None);
    }
}

/// The checkpoint is late: it has the high watermark of a log that was deleted meanwhile and created again.
#[test]
fn a_high_watermark_goes_to_the_log_it_was_taken_of_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    let taken = [(Arc::clone(&log), Offset(9))];
    dir.delete_log(log.partition()).unwrap();
    let again = dir
        .create_log(TOPIC, Uuid::from_u128(8), 0, LogConfig::default())
        .unwrap();
    for _ in 0..9 {
        append(&again, &batch(1, &[b"x"]));
    }
    dir.write_checkpoints(&taken).unwrap();
    drop((dir, log, taken, again));
    let dir = open_dir(root.path());
    let loaded = load_one(&dir, LogConfig::default());
    assert_eq!(loaded.high_watermark, Offset(0));
}

#[test]
fn logs_are_deleted_together_and_one_that_fails_stops_no_other() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let logs: Vec<_> = (0..6)
        .map(|partition| {
            dir.create_log(TOPIC, Uuid::from_u128(7), partition, LogConfig::default())
                .unwrap()
        })
        .collect();
    let of = |range: std::ops::Range<usize>| -> Vec<_> {
        logs[range]
            .iter()
            .map(|log| log.partition().clone())
            .collect()
    };
    let offsets: Vec<_> = logs
        .iter()
        .map(|log| (Arc::clone(log), Offset(9)))
        .collect();
    dir.write_checkpoints(&offsets).unwrap();
    // Moved away by someone else.
    fs::rename(dir.path().join("orders-1"), root.path().join("taken")).unwrap();
    let failed = dir.delete_logs(&of(0..5));
    let failed: Vec<_> = failed.into_iter().map(|(partition, _)| partition).collect();
    assert_eq!(failed, of(1..2));
    assert_eq!(dir.logs().len(), 1);
    assert!(
        dir.delete_logs(&of(0..5)).is_empty(),
        "they have no log now"
    );
    let text = fs::read_to_string(dir.path().join("replication-offset-checkpoint")).unwrap();
    assert_eq!(text, "0\n2\norders 1 9\norders 5 9\n");
    assert_eq!(dir.offline(), None);
}

#[test]
fn a_log_that_was_never_checkpointed_is_created_without_writing_checkpoints() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    create(&dir, LogConfig::default());
    assert!(!dir.path().join("log-start-offset-checkpoint").exists());
    assert!(!dir.path().join("recovery-point-offset-checkpoint").exists());
}

#[test]
fn strays_are_kept_out_of_the_way() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    append(&log, &batch(1, &[b"x"]));
    let kept = dir.set_stray(log.partition()).unwrap().unwrap();
    assert!(
        kept.join("00000000000000000000.log")
            .metadata()
            .unwrap()
            .len()
            > 0
    );
    drop((dir, log));
    let dir = open_dir(root.path());
    let loaded = load(&dir, LogConfig::default());
    assert!(loaded.logs.is_empty() && loaded.failed.is_empty());
    assert!(kept.exists());
}

#[test]
fn below_the_free_space_floor_appends_fail_reads_go_on_and_it_recovers() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    append(&log, &batch(1, &[b"first"]));
    dir.set_free_floor_bytes(u64::MAX / 2);
    let bytes = sized_batch(1, 1, 1000);
    let valid = validate(&bytes, &rules(), 0).unwrap();
    let refused = (0..200).find_map(|_| log.append(&valid, EPOCH, 0).err());
    assert!(matches!(refused, Some(crate::AppendError::DiskFull)));
    let end = log.log_end_offset();
    assert!(!read(&log, Offset(0), end).is_empty());
    dir.set_free_floor_bytes(0);
    assert_eq!(append(&log, &bytes).base_offset, end);
    assert_eq!(
        crate::records::batches(&read(&log, Offset(0), end + 1)).count() as i64,
        end.0 + 1
    );
}

/// Whose name is another log's by the time that the index grows.
#[test]
fn a_log_deleted_while_a_reader_rebuilds_its_indexes_leaves_nothing_in_the_next_one() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        segment_bytes: 256 << 10,
        ..small_segments()
    };
    for _ in 0..10 {
        let log = create(&dir, config);
        while log.segment_count() < 2 {
            append(&log, &batch(1, &[b"x"]));
        }
        log.flush().unwrap();
        let sealed = Arc::clone(&log.all_segments()[0]);
        fs::remove_file(sealed.path("index")).unwrap();
        std::thread::scope(|scope| {
            let rebuilding = scope.spawn(|| sealed.files(&dir.disk).map(drop));
            while !sealed.path("index.tmp").exists() && !rebuilding.is_finished() {
                std::thread::yield_now();
            }
            dir.delete_log(log.partition()).unwrap();
            create(&dir, config);
            let rebuilt = rebuilding.join().unwrap();
            let is_gone = matches!(&rebuilt, Err(SegmentError::Io(error)) if error.kind() == io::ErrorKind::NotFound);
            assert!(rebuilt.is_ok() || is_gone, "{rebuilt:?}");
        });
        let names = fs::read_dir(root.path().join("data/orders-0")).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "a segment and its topic, not {names:?}");
        dir.delete_log(log.partition()).unwrap();
    }
}

#[test]
fn a_log_deleted_during_a_clean_stop_does_not_make_it_an_unclean_one() {
    let root = tempfile::tempdir().unwrap();
    let dir = Arc::new(open_dir(root.path()));
    let log = create(&dir, small_segments());
    for _ in 0..100 {
        append(&log, &sized_batch(1, 1, 1000));
    }
    dir.disk.background().submit(Job::Stop);
    let deleting = Arc::clone(&dir);
    *dir.disk.at_step.0.lock() = Some(Box::new(move || {
        deleting.delete_log(log.partition()).unwrap();
    }));
    dir.shutdown_clean(17, &[], 1).unwrap();
    dir.disk.at_step.0.lock().take();
    drop(dir);
    assert_eq!(
        open_dir(root.path()).last_stop(),
        LastStop::Clean { broker_epoch: 17 }
    );
}
