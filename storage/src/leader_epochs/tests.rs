//! KIP-101 and KIP-279, case by case.

use super::*;

fn cache(entries: &[(i32, i64)]) -> LeaderEpochCache {
    LeaderEpochCache {
        entries: entries
            .iter()
            .map(|&(epoch, start)| EpochEntry {
                epoch: LeaderEpoch(epoch),
                start_offset: Offset(start),
            })
            .collect(),
    }
}

fn assigned(start: &[(i32, i64)], epoch: i32, offset: i64) -> (bool, LeaderEpochCache) {
    let mut cache = cache(start);
    let news = cache.assign(LeaderEpoch(epoch), Offset(offset));
    (news, cache)
}

#[test]
fn assigning() {
    assert_eq!(assigned(&[], 0, 0), (true, cache(&[(0, 0)])));
    assert_eq!(
        assigned(&[(0, 0)], 2, 10),
        (true, cache(&[(0, 0), (2, 10)]))
    );
    // The same reign goes on: nothing new.
    assert_eq!(
        assigned(&[(0, 0), (2, 10)], 2, 15),
        (false, cache(&[(0, 0), (2, 10)]))
    );
    // A reign that wrote nothing is replaced by the next at the same offset.
    assert_eq!(
        assigned(&[(0, 0), (2, 10)], 3, 10),
        (true, cache(&[(0, 0), (3, 10)]))
    );
    // The same reign begins earlier than thought.
    assert_eq!(
        assigned(&[(0, 0), (2, 10)], 2, 5),
        (true, cache(&[(0, 0), (2, 5)]))
    );
    // Contradicted entries go, from both sides of the contradiction.
    assert_eq!(
        assigned(&[(0, 0), (2, 10), (5, 20)], 3, 15),
        (true, cache(&[(0, 0), (2, 10), (3, 15)]))
    );
    assert_eq!(
        assigned(&[(0, 0), (2, 10), (5, 20)], 6, 8),
        (true, cache(&[(0, 0), (6, 8)]))
    );
    assert_eq!(assigned(&[(4, 7)], 1, 3), (true, cache(&[(1, 3)])));
    // Numbers that are none change nothing.
    assert_eq!(assigned(&[(4, 7)], -1, 9), (false, cache(&[(4, 7)])));
    assert_eq!(assigned(&[(4, 7)], 5, -1), (false, cache(&[(4, 7)])));
}

#[test]
fn end_of_an_epoch() {
    let end = |entries: &[(i32, i64)], epoch| {
        cache(entries)
            .end_offset_for(LeaderEpoch(epoch), Offset(100))
            .map(|(epoch, offset)| (epoch.0, offset.0))
    };
    let entries = [(2, 10), (4, 30), (7, 60)];
    assert_eq!(end(&[], 0), None, "nothing known");
    assert_eq!(end(&entries, -1), None, "no epoch asked for");
    assert_eq!(end(&entries, 8), None, "newer than all");
    assert_eq!(
        end(&entries, 7),
        Some((7, 100)),
        "the newest goes to the end of the log"
    );
    assert_eq!(end(&entries, 4), Some((4, 60)));
    assert_eq!(end(&entries, 2), Some((2, 30)));
    // KIP-279: an epoch this log never saw ends where the next one it did see begins, under the one before it.
    assert_eq!(end(&entries, 5), Some((4, 60)));
    assert_eq!(end(&entries, 3), Some((2, 30)));
    assert_eq!(end(&entries, 1), Some((1, 10)), "older than all");
}

#[test]
fn epoch_of_an_offset() {
    let cache = cache(&[(2, 10), (4, 30)]);
    assert_eq!(cache.epoch_for(Offset(9)), None);
    assert_eq!(cache.epoch_for(Offset(10)), Some(LeaderEpoch(2)));
    assert_eq!(cache.epoch_for(Offset(29)), Some(LeaderEpoch(2)));
    assert_eq!(cache.epoch_for(Offset(30)), Some(LeaderEpoch(4)));
    assert_eq!(cache.epoch_for(Offset(1000)), Some(LeaderEpoch(4)));
}

#[test]
fn truncation_from_the_end() {
    let cut = |end| {
        let mut cut = cache(&[(2, 10), (4, 30), (7, 60)]);
        (cut.truncate_from_end(Offset(end)), cut)
    };
    assert_eq!(cut(61), (false, cache(&[(2, 10), (4, 30), (7, 60)])));
    assert_eq!(
        cut(60),
        (true, cache(&[(2, 10), (4, 30)])),
        "a reign that begins at the end wrote nothing"
    );
    assert_eq!(cut(31), (true, cache(&[(2, 10), (4, 30)])));
    assert_eq!(cut(30), (true, cache(&[(2, 10)])));
    assert_eq!(cut(0), (true, cache(&[])));
}

#[test]
fn truncation_from_the_start() {
    let cut = |start| {
        let mut cut = cache(&[(2, 10), (4, 30), (7, 60)]);
        (cut.truncate_from_start(Offset(start)), cut)
    };
    assert_eq!(cut(5), (false, cache(&[(2, 10), (4, 30), (7, 60)])));
    assert_eq!(cut(10), (false, cache(&[(2, 10), (4, 30), (7, 60)])));
    assert_eq!(cut(20), (true, cache(&[(2, 20), (4, 30), (7, 60)])));
    assert_eq!(cut(30), (true, cache(&[(4, 30), (7, 60)])));
    assert_eq!(cut(45), (true, cache(&[(4, 45), (7, 60)])));
    assert_eq!(
        cut(90),
        (true, cache(&[(7, 90)])),
        "the newest reign outlives its records"
    );
    let mut empty = cache(&[]);
    assert!(!empty.truncate_from_start(Offset(3)));
}

#[test]
fn the_file_is_kafkas() {
    let text = "0\n2\n0 0\n3 1200\n";
    let epochs = cache(&[(0, 0), (3, 1200)]);
    assert_eq!(epochs.encode(), text);
    assert_eq!(LeaderEpochCache::decode(text), Ok(epochs));
    assert_eq!(LeaderEpochCache::decode("0\n0\n"), Ok(cache(&[])));
}

#[test]
fn a_damaged_file_is_refused_with_its_line() {
    for (text, line) in [
        ("", 1),
        ("1\n0\n", 1),
        ("0\n", 2),
        ("0\n-1\n", 2),
        ("0\n2\n0 0\n", 2),
        ("0\n1\n0 0\n1 5\n", 2),
        ("0\n99999999999999999999\n", 2),
        ("0\n1\n0\n", 3),
        ("0\n1\n0 0 0\n", 3),
        ("0\n1\n-1 0\n", 3),
        ("0\n1\n0 -1\n", 3),
        ("0\n1\n0 9223372036854775808\n", 3),
        ("0\n2\n1 5\n1 9\n", 4),
        ("0\n2\n1 5\n2 5\n", 4),
        ("0\n1\n\u{0}\u{0}\n", 3),
    ] {
        let error = LeaderEpochCache::decode(text).expect_err(text);
        assert_eq!(error.line, line, "{text:?}: {error}");
    }
}
