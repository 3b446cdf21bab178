//! What a follower takes from its leader: all of a response or nothing of it, byte for byte.

use crate::batch::HEADER_LEN;
use crate::test_support::*;
use crate::{
    AppendError, Compression, FollowerAppendError, LeaderEpoch, Log, LogConfig, Offset,
    RecordsBuilder,
};

/// `count` batches of two records from `base` on, of `epoch`.
fn response(base: i64, count: i64, epoch: i32) -> Vec<u8> {
    (0..count)
        .flat_map(|at| stamped(&sized_batch(at, 2, 500), base + 2 * at, epoch))
        .collect()
}

fn refused(log: &Log, records: &[u8]) -> FollowerAppendError {
    let (end, size) = (log.log_end_offset(), log.size_bytes());
    let error = log.append_as_follower(records, 0).unwrap_err();
    assert_eq!((log.log_end_offset(), log.size_bytes()), (end, size));
    error
}

#[test]
fn a_response_is_appended_verbatim_over_as_many_segments_as_it_takes() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    let records = [response(0, 40, 1), response(80, 60, 4)].concat();
    let appended = log.append_as_follower(&records, 0).unwrap();
    assert_eq!(
        (appended.base_offset, appended.log_end),
        (Offset(0), Offset(200))
    );
    assert_eq!(appended.batches, 100);
    assert!(log.segment_count() > 3, "rolled by the same rules");
    assert!(read(&log, Offset(0), Offset(200)) == records);
    for at in 0..200 {
        let tail = read(&log, Offset(at), Offset(200));
        assert!(records.ends_with(&tail) && !tail.is_empty());
    }
    assert_eq!(log.epoch_of(Offset(79)), Some(LeaderEpoch(1)));
    assert_eq!(log.epoch_of(Offset(80)), Some(LeaderEpoch(4)));
    assert_eq!(log.append_as_follower(&[], 0).unwrap().log_end, Offset(200));
}

#[test]
fn followers_and_leaders_roll_at_the_same_offsets() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        segment_ms: 100,
        ..small_segments()
    };
    let leader = create(&dir, config);
    for at in 0..200 {
        append(&leader, &sized_batch(at * 7, 3, 40));
    }
    let follower_root = tempfile::tempdir().unwrap();
    let follower_dir = open_dir(follower_root.path());
    let follower = create(&follower_dir, config);
    let records = read(&leader, Offset(0), Offset(600));
    follower.append_as_follower(&records, 0).unwrap();
    let bases = |log: &Log| {
        log.all_segments()
            .iter()
            .map(|segment| segment.base())
            .collect::<Vec<_>>()
    };
    assert!(leader.segment_count() > 10);
    assert_eq!(bases(&leader), bases(&follower));
}

#[test]
fn one_megabyte_of_small_batches_is_one_write() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    let records = response(0, 2_000, 1);
    assert!(records.len() > 1 << 20);
    log.append_as_follower(&records, 0).unwrap();
    let appended = dir.appended_bytes();
    assert_eq!(
        (appended.map, appended.pwrite),
        (0, records.len() as u64),
        "as bulk, though each is small"
    );
    assert!(read(&log, Offset(1_000), Offset(4_000)) == records[records.len() / 4..]);
}

#[test]
fn nothing_of_a_response_is_appended_when_any_of_it_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    log.append_as_follower(&response(0, 3, 5), 0).unwrap();
    let good = response(6, 3, 5);
    let size = good.len() / 3;

    let mut flipped = good.clone();
    flipped[size + 200] ^= 1;
    let error = refused(&log, &flipped);
    assert!(
        matches!(error, FollowerAppendError::Batch { position, .. } if position == size),
        "{error}"
    );

    for cut in [
        1,
        HEADER_LEN - 1,
        HEADER_LEN,
        size - 1,
        2 * size + 1,
        3 * size - 1,
    ] {
        let error = refused(&log, &good[..cut]);
        assert!(
            matches!(error, FollowerAppendError::Batch { .. }),
            "{cut}: {error}"
        );
    }

    let mut old_magic = good.clone();
    old_magic[2 * size + 16] = 1;
    assert!(matches!(
        refused(&log, &old_magic),
        FollowerAppendError::Batch { .. }
    ));

    for wrong in [
        response(5, 3, 5),
        response(7, 3, 5),
        [response(6, 1, 5), response(9, 1, 5)].concat(),
    ] {
        assert!(matches!(
            refused(&log, &wrong),
            FollowerAppendError::OffsetGap { .. }
        ));
    }
    for wrong in [
        response(6, 1, 4),
        [response(6, 1, 6), response(8, 1, 5)].concat(),
    ] {
        assert!(matches!(
            refused(&log, &wrong),
            FollowerAppendError::StaleEpoch { .. }
        ));
    }
    log.append_as_follower(&good, 0).unwrap();
}

#[test]
fn a_batch_no_leader_has_stamped_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    assert!(matches!(
        refused(&log, &response(0, 1, -1)),
        FollowerAppendError::StaleEpoch { .. }
    ));
}

#[test]
fn sequences_are_recorded_and_never_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    let from = |sequence| {
        let mut builder = RecordsBuilder::new(Compression::None).producer(9, 0, sequence);
        builder.push(5, None, Some(b"x"), &[]);
        builder.build().unwrap()
    };
    let records = [
        stamped(&from(7), 0, 3),
        stamped(&from(3), 1, 3),
        stamped(&from(50), 2, 3),
    ]
    .concat();
    log.append_as_follower(&records, 0).unwrap();
    let again = append(&log, &from(50));
    assert!(again.duplicate, "a new leader knows what it has followed");
    assert_eq!(again.base_offset, Offset(2));
    assert_eq!(append(&log, &from(51)).base_offset, Offset(3));
}

/// A reign of this replica's own in which it wrote nothing does not refuse what the next leader has.
#[test]
fn a_reign_without_batches_binds_nobody() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    log.append_as_follower(&response(0, 1, 5), 0).unwrap();
    log.assign_epoch(LeaderEpoch(7), Offset(2));
    log.append_as_follower(&response(2, 1, 6), 0).unwrap();
    assert_eq!(log.latest_epoch(), Some(LeaderEpoch(6)));
    assert_eq!(
        log.end_offset_for_epoch(LeaderEpoch(5)),
        Some((LeaderEpoch(5), Offset(2)))
    );
}

#[test]
fn a_batch_larger_than_our_segments_gets_one_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    let mut records = response(0, 2, 1);
    records.extend(stamped(&sized_batch(1, 1, 40 << 10), 4, 1));
    records.extend(response(5, 2, 1));
    log.append_as_follower(&records, 0).unwrap();
    assert_eq!(log.segment_count(), 3);
    assert!(read(&log, Offset(0), Offset(9)) == records);
    dir.shutdown_clean(1, &[], 1).unwrap();
}

#[test]
fn what_was_written_before_the_disk_was_full_stays() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    log.append_as_follower(&response(0, 2, 1), 0).unwrap();
    let allocated = 64 << 10;
    dir.set_free_floor_bytes(u64::MAX);
    let records = response(4, 200, 1);
    assert!(records.len() > allocated);
    let error = log.append_as_follower(&records, 0).unwrap_err();
    let FollowerAppendError::Stopped {
        log_end,
        source: AppendError::DiskFull,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(log_end, log.log_end_offset());
    assert!(log_end > Offset(4), "the first segment had room");
    dir.set_free_floor_bytes(0);
    let left = &records[read(&log, Offset(4), log_end).len()..];
    log.append_as_follower(left, 0).unwrap();
    assert!(read(&log, Offset(4), Offset(404)) == records);
}

#[test]
fn a_closed_log_takes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    log.close().unwrap();
    assert!(matches!(
        refused(&log, &response(0, 1, 1)),
        FollowerAppendError::Stopped {
            source: AppendError::Closed,
            ..
        }
    ));
}
