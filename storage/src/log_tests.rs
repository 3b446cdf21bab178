//! Append, read, roll and flush of one log.

use uuid::Uuid;

use crate::batch::{BatchHeader, HEADER_LEN};
use crate::records::batches;
use crate::test_support::*;
use crate::{
    AppendError, Compression, LeaderEpoch, LogConfig, Offset, ReadError, RecordsBuilder, validate,
};

fn headers(bytes: &[u8]) -> Vec<BatchHeader> {
    batches(bytes).map(|batch| batch.unwrap().0).collect()
}

#[test]
fn a_batch_is_stored_verbatim_but_for_its_offset_and_epoch() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    append(&log, &batch(10, &[b"a", b"b"]));
    let sent = batch(20, &[b"c"]);
    let appended = append(&log, &sent);
    assert_eq!(
        (appended.base_offset, appended.last_offset),
        (Offset(2), Offset(2))
    );
    assert_eq!(log.log_end_offset(), Offset(3));
    let stored = read(&log, Offset(2), Offset(3));
    assert_eq!(stored[HEADER_LEN..], sent[HEADER_LEN..]);
    let header = BatchHeader::parse(&stored).unwrap();
    assert_eq!(
        (header.base_offset, header.leader_epoch),
        (Offset(2), EPOCH)
    );
    crate::check_crc(&stored).unwrap();
}

#[test]
fn a_read_returns_the_whole_batch_that_holds_the_offset() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    for _ in 0..200 {
        append(&log, &sized_batch(1, 3, 300));
    }
    assert!(log.segment_count() > 3);
    for offset in 0..600 {
        let found = headers(&read(&log, Offset(offset), Offset(600)));
        assert_eq!(found[0].base_offset.0, offset / 3 * 3);
        assert_eq!(
            found.len() as i64,
            200 - offset / 3,
            "all segments to the end"
        );
    }
}

#[test]
fn the_bound_is_kept_wherever_it_lies() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    for _ in 0..200 {
        append(&log, &sized_batch(1, 3, 300));
    }
    for upto in (0..=600).step_by(3) {
        for from in [0, upto - 3, upto - 30, upto / 2] {
            let Ok(from) = u32::try_from(from) else {
                continue;
            };
            let found = headers(&read(&log, Offset(from.into()), Offset(upto)));
            let end = found.last().map_or(upto, |last| last.next_offset().0);
            assert_eq!(end, upto, "from {from}");
        }
    }
}

#[test]
fn a_budget_that_ends_inside_a_segment_stops_there() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    for _ in 0..200 {
        append(&log, &sized_batch(1, 3, 300));
    }
    let all = read(&log, Offset(0), Offset(600));
    for budget in [1, 61, 400, 16_000, 17_000, 40_000] {
        let slices = log.read(Offset(0), Offset(600), budget, true).unwrap();
        let bytes: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.read().unwrap())
            .collect();
        assert_eq!(bytes, all[..bytes.len()], "a prefix, with no gap");
        let first = headers(&all)[0].size();
        assert_eq!(bytes.len(), (budget as usize).max(first));
    }
    assert!(
        log.read(Offset(0), Offset(600), 0, false)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn whole_batches_end_at_the_last_boundary_within_the_budget() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    for i in 0..150 {
        append(&log, &sized_batch(1, 3, 100 + 97 * (i % 7)));
    }
    assert!(log.segment_count() > 3);
    let sizes: Vec<usize> = headers(&read(&log, Offset(0), Offset(450)))
        .iter()
        .map(BatchHeader::size)
        .collect();
    for first in (0..150).step_by(11).chain([149]) {
        let from = Offset(first as i64 * 3 + 1);
        for budget in (0..40_000).step_by(613) {
            for (upto, one) in [(150, true), (150, false), (120.max(first), true)] {
                let slices = log
                    .read_whole_batches(from, Offset(upto as i64 * 3), budget, one)
                    .unwrap();
                let bytes: Vec<u8> = slices
                    .iter()
                    .flat_map(|slice| slice.read().unwrap())
                    .collect();
                // The model: as many whole batches as fit, the first in any case.
                let (mut left, mut count) = (budget as usize, 0);
                for size in &sizes[first..upto] {
                    if *size > left && !(count == 0 && one) {
                        break;
                    }
                    left = left.saturating_sub(*size);
                    count += 1;
                }
                let found = headers(&bytes);
                assert_eq!(found.len(), count, "{budget} bytes from {from} to {upto}");
                assert_eq!(
                    bytes.len(),
                    found.iter().map(BatchHeader::size).sum::<usize>()
                );
                assert!(
                    found
                        .iter()
                        .zip(first as i64..)
                        .all(|(header, at)| header.base_offset.0 == at * 3)
                );
            }
        }
    }
}

#[test]
fn offsets_outside_the_log_are_refused_and_its_end_is_empty() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    append(&log, &batch(1, &[b"a", b"b"]));
    assert!(
        log.read(Offset(2), Offset(2), 1 << 20, true)
            .unwrap()
            .is_empty()
    );
    // Between the high watermark and the log end: empty, not an error.
    assert!(
        log.read(Offset(1), Offset(0), 1 << 20, true)
            .unwrap()
            .is_empty()
    );
    for offset in [Offset(-1), Offset(3)] {
        let error = log.read(offset, Offset(2), 1 << 20, true).unwrap_err();
        assert!(matches!(
            error,
            ReadError::OffsetOutOfRange {
                start: Offset(0),
                end: Offset(2),
                ..
            }
        ));
    }
}

#[test]
fn a_duplicate_is_answered_with_where_it_is() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    let from = |sequence| {
        let mut builder = RecordsBuilder::new(Compression::None).producer(9, 0, sequence);
        builder.push(5, None, Some(b"x"), &[]);
        builder.build().unwrap()
    };
    append(&log, &batch(1, &[b"someone else"]));
    let first = append(&log, &from(0));
    append(&log, &from(1));
    let again = append(&log, &from(0));
    assert!(again.duplicate);
    assert_eq!(again.base_offset, first.base_offset);
    assert_eq!(log.log_end_offset(), Offset(3));
    let gap = from(7);
    let gap = validate(&gap, &rules(), 0).unwrap();
    assert!(matches!(
        log.append(&gap, EPOCH, 0),
        Err(AppendError::Producer(_))
    ));
}

#[test]
fn an_older_leader_cannot_append() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    append(&log, &batch(1, &[b"a"]));
    let bytes = batch(1, &[b"b"]);
    let valid = validate(&bytes, &rules(), 0).unwrap();
    let older = LeaderEpoch(EPOCH.0 - 1);
    assert!(matches!(
        log.append(&valid, older, 0),
        Err(AppendError::StaleEpoch { .. })
    ));
    let newer = LeaderEpoch(EPOCH.0 + 4);
    log.append(&valid, newer, 0).unwrap();
    assert_eq!(log.end_offset_for_epoch(EPOCH), Some((EPOCH, Offset(1))));
    assert_eq!(log.end_offset_for_epoch(newer), Some((newer, Offset(2))));
    assert_eq!(log.epoch_of(Offset(0)), Some(EPOCH));
}

#[test]
fn a_batch_larger_than_a_segment_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    let bytes = sized_batch(1, 1, 20 << 10);
    let valid = validate(&bytes, &rules(), 0).unwrap();
    assert!(matches!(
        log.append(&valid, EPOCH, 0),
        Err(AppendError::BatchTooLargeForSegment { .. })
    ));
    assert_eq!(log.log_end_offset(), Offset(0));
}

#[test]
fn time_rolls_by_the_records_and_by_the_clock() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        segment_ms: 1000,
        ..LogConfig::default()
    };
    let log = create(&dir, config);
    append(&log, &batch(5_000, &[b"a"]));
    append(&log, &batch(6_000, &[b"b"]));
    assert_eq!(log.segment_count(), 1);
    append(&log, &batch(6_001, &[b"c"]));
    assert_eq!(log.segment_count(), 2);
    assert!(!log.roll_if_due(7_001).unwrap());
    assert!(log.roll_if_due(7_002).unwrap());
    assert!(
        !log.roll_if_due(99_999).unwrap(),
        "an empty segment is not rolled"
    );
    assert_eq!(log.segment_count(), 3);
}

#[test]
fn a_full_index_rolls_the_segment() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let config = LogConfig {
        segment_index_bytes: 48,
        index_interval_bytes: 1,
        ..LogConfig::default()
    };
    let log = create(&dir, config);
    for at in 0..40 {
        append(&log, &batch(at, &[b"a"]));
    }
    assert!(log.segment_count() >= 8, "{}", log.segment_count());
    assert_eq!(headers(&read(&log, Offset(0), Offset(40))).len(), 40);
}

#[test]
fn flushes_publish_what_is_durable() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    for _ in 0..100 {
        append(&log, &sized_batch(1, 1, 900));
    }
    assert_eq!(log.flush().unwrap(), Offset(100));
    assert_eq!(log.flushed_offset(), Offset(100));
    let path = root.path().join("data/orders-0");
    let first = std::fs::metadata(path.join("00000000000000000000.log"))
        .unwrap()
        .len();
    assert!(first < 16 << 10, "a sealed segment is cut to its contents");
    assert!(path.join("leader-epoch-checkpoint").exists());
}

#[test]
fn nothing_is_appended_after_the_close_and_reads_go_on() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, LogConfig::default());
    append(&log, &batch(1, &[b"a"]));
    log.close().unwrap();
    let bytes = batch(1, &[b"b"]);
    let valid = validate(&bytes, &rules(), 0).unwrap();
    assert!(matches!(
        log.append(&valid, EPOCH, 0),
        Err(AppendError::Closed)
    ));
    assert_eq!(headers(&read(&log, Offset(0), Offset(1))).len(), 1);
    let stored =
        std::fs::metadata(root.path().join("data/orders-0/00000000000000000000.log")).unwrap();
    assert_eq!(stored.len(), log.size_bytes(), "no zero tail");
}

#[test]
fn timestamps_are_found_in_any_segment() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    for at in 0..300_i64 {
        append(&log, &sized_batch(at * 10, 2, 300));
    }
    for at in [0, 1, 10, 1_555, 2_985, 2_990] {
        let found = log.offset_for_timestamp(at, Offset(600)).unwrap().unwrap();
        assert_eq!(
            (found.timestamp, found.offset),
            ((at + 9) / 10 * 10, Offset((at + 9) / 10 * 2))
        );
        assert_eq!(found.leader_epoch, EPOCH);
    }
    assert_eq!(log.offset_for_timestamp(2_991, Offset(600)).unwrap(), None);
    assert_eq!(
        log.offset_for_timestamp(1_000, Offset(200)).unwrap(),
        None,
        "above the bound"
    );
    let largest = log.max_timestamp(Offset(600)).unwrap().unwrap();
    assert_eq!((largest.timestamp, largest.offset), (2_990, Offset(598)));
}

#[test]
fn the_largest_timestamp_is_that_below_the_bound() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    let log = create(&dir, small_segments());
    // Rises, falls and stays: every batch of two records has one timestamp.
    let timestamps: Vec<i64> = (0..200).map(|i| i / 3 * 10 - i % 5 * 40 + 500).collect();
    for timestamp in &timestamps {
        append(&log, &sized_batch(*timestamp, 2, 300));
    }
    assert!(log.segment_count() > 2);
    assert_eq!(log.max_timestamp(Offset(0)).unwrap(), None);
    for upto in 1..=200 {
        let found = log.max_timestamp(Offset(upto as i64 * 2)).unwrap().unwrap();
        let largest = *timestamps[..upto].iter().max().unwrap();
        let first = timestamps.iter().position(|at| *at == largest).unwrap();
        assert_eq!(
            (found.timestamp, found.offset.0),
            (largest, first as i64 * 2),
            "below batch {upto}"
        );
    }
}

#[test]
fn topic_names_that_are_paths_create_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = open_dir(root.path());
    for name in ["", ".", "..", "../x", "a/b", "a b", "ä", &"x".repeat(250)] {
        assert!(
            dir.create_log(name, Uuid::from_u128(1), 0, LogConfig::default())
                .is_err()
        );
    }
    let entries = std::fs::read_dir(root.path().join("data")).unwrap();
    assert!(
        entries
            .into_iter()
            .all(|entry| !entry.unwrap().path().is_dir())
    );
}
