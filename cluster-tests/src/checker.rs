//! Judges a [`History`]: a compact form of Jepsen's Kafka workload.
//!
//! [`check`] returns every anomaly it finds; a good history has none. Each kind of anomaly is proved to be found by the
//! tests below, which spoil a good history in one way at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use crate::history::{History, Outcome, Read, Send, Value};

/// What the system promised the clients of a history.
#[derive(Debug, Clone, Copy)]
pub struct Guarantees {
    /// The producers were idempotent: no duplicates, and one producer's records keep their order in a partition.
    pub idempotent: bool,
}

/// A partition and an offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anomaly {
    /// Two values were acknowledged or read at one offset.
    InconsistentOffsets {
        /// Where.
        place: Place,
        /// The values.
        values: Vec<Value>,
    },
    /// A record's bytes are none that any producer sent.
    Changed {
        /// Where it was read.
        place: Place,
    },
    /// One value stands at several offsets although its producer was idempotent, and did not take a new epoch while it
    /// waited for the answer.
    Duplicate {
        /// The value.
        value: Value,
        /// Where it stands.
        places: Vec<Place>,
    },
    /// An acknowledged value below the highest offset read at the end is not there.
    LostWrite {
        /// The value.
        value: Value,
        /// Where it was acknowledged.
        place: Place,
    },
    /// An acknowledged value above everything read at the end never appeared.
    Unseen {
        /// The value.
        value: Value,
        /// Where it was acknowledged.
        place: Place,
    },
    /// A value acknowledged at an offset unknown to its producer is not there.
    LostSomewhere {
        /// The value.
        value: Value,
        /// The partition it was sent to.
        partition: i32,
    },
    /// A value was read whose send had provably failed.
    AbortedRead {
        /// The value.
        value: Value,
        /// Where it was read.
        place: Place,
    },
    /// A value was read during the run that the final reading did not find there.
    Vanished {
        /// The value.
        value: Value,
        /// Where it was read.
        place: Place,
    },
    /// Two values of one idempotent producer stand in the wrong order; such as may be duplicates do not count.
    Reordered {
        /// The value with the lower offset although it was sent later.
        first: Value,
        /// The value sent earlier.
        second: Value,
        /// The partition.
        partition: i32,
    },
    /// A record sent after another one of its partition had been acknowledged got a lower offset than that one.
    WentBack {
        /// The value sent later.
        value: Value,
        /// Where it stands.
        place: Place,
        /// The higher offset that had been acknowledged before.
        acknowledged: i64,
    },
    /// Within one assignment a consumer was given an offset not above the one before.
    PollBackwards {
        /// The assignment.
        assignment: u32,
        /// The offset given.
        place: Place,
    },
    /// Within one assignment a consumer was not given an offset that is known to hold a value.
    PollSkip {
        /// The assignment.
        assignment: u32,
        /// The first offset left out.
        place: Place,
    },
}

/// Every anomaly of `history`.
pub fn check(history: &History, guarantees: Guarantees) -> Vec<Anomaly> {
    let seen = Seen::new(history);
    let mut anomalies = Vec::new();
    inconsistent_offsets(&seen, &mut anomalies);
    changed(history, &mut anomalies);
    missing(history, &mut anomalies);
    aborted_reads(history, &mut anomalies);
    vanished(history, &mut anomalies);
    polls(history, &seen, &mut anomalies);
    went_back(history, &mut anomalies);
    if guarantees.idempotent {
        let resent = resent(history);
        duplicates(&seen, &resent, &mut anomalies);
        reordered(history, &resent, &mut anomalies);
    }
    anomalies
}

/// Every (place, value) that anyone acknowledged or read.
struct Seen {
    at: BTreeMap<Place, BTreeSet<Value>>,
}

impl Seen {
    fn new(history: &History) -> Self {
        let mut at: BTreeMap<Place, BTreeSet<Value>> = BTreeMap::new();
        for (place, value) in acknowledged(history).chain(all_reads(history).filter_map(identified))
        {
            at.entry(place).or_default().insert(value);
        }
        Self { at }
    }
}

fn acknowledged(history: &History) -> impl Iterator<Item = (Place, Value)> {
    history.sends.iter().filter_map(|send| match send.outcome {
        Outcome::Ok(offset) => Some((
            Place {
                partition: send.partition,
                offset,
            },
            send.value,
        )),
        Outcome::Implied | Outcome::Fail | Outcome::Info => None,
    })
}

fn all_reads(history: &History) -> impl Iterator<Item = &Read> {
    history.reads.iter().chain(&history.final_reads)
}

fn place(read: &Read) -> Place {
    Place {
        partition: read.partition,
        offset: read.offset,
    }
}

fn identified(read: &Read) -> Option<(Place, Value)> {
    read.value.map(|value| (place(read), value))
}

fn inconsistent_offsets(seen: &Seen, anomalies: &mut Vec<Anomaly>) {
    for (&place, values) in seen.at.iter().filter(|(_, values)| values.len() > 1) {
        anomalies.push(Anomaly::InconsistentOffsets {
            place,
            values: values.iter().copied().collect(),
        });
    }
}

/// Bodies nobody could have made, and well-formed ones that nobody sent to that partition.
fn changed(history: &History, anomalies: &mut Vec<Anomaly>) {
    let sent: HashSet<(i32, Value)> = history
        .sends
        .iter()
        .map(|send| (send.partition, send.value))
        .collect();
    let mut places: BTreeSet<Place> = BTreeSet::new();
    for read in all_reads(history) {
        if read
            .value
            .is_none_or(|value| !sent.contains(&(read.partition, value)))
        {
            places.insert(place(read));
        }
    }
    anomalies.extend(places.into_iter().map(|place| Anomaly::Changed { place }));
}

fn missing(history: &History, anomalies: &mut Vec<Anomaly>) {
    let found: HashSet<(Place, Value)> =
        history.final_reads.iter().filter_map(identified).collect();
    let mut highest: HashMap<i32, i64> = HashMap::new();
    for read in &history.final_reads {
        let offset = highest.entry(read.partition).or_insert(read.offset);
        *offset = read.offset.max(*offset);
    }
    for (place, value) in acknowledged(history).filter(|item| !found.contains(item)) {
        let below = highest
            .get(&place.partition)
            .is_some_and(|&highest| place.offset <= highest);
        anomalies.push(if below {
            Anomaly::LostWrite { value, place }
        } else {
            Anomaly::Unseen { value, place }
        });
    }
    let found: HashSet<(i32, Value)> = found
        .into_iter()
        .map(|(place, value)| (place.partition, value))
        .collect();
    let implied = |send: &&Send| send.outcome == Outcome::Implied;
    for &Send {
        value, partition, ..
    } in history.sends.iter().filter(implied)
    {
        if !found.contains(&(partition, value)) {
            anomalies.push(Anomaly::LostSomewhere { value, partition });
        }
    }
}

fn aborted_reads(history: &History, anomalies: &mut Vec<Anomaly>) {
    let failed: HashSet<Value> = history
        .sends
        .iter()
        .filter(|send| send.outcome == Outcome::Fail)
        .map(|send| send.value)
        .collect();
    let mut reported = HashSet::new();
    for (place, value) in all_reads(history).filter_map(identified) {
        if failed.contains(&value) && reported.insert(value) {
            anomalies.push(Anomaly::AbortedRead { value, place });
        }
    }
}

fn vanished(history: &History, anomalies: &mut Vec<Anomaly>) {
    let last: HashSet<(Place, Value)> = history.final_reads.iter().filter_map(identified).collect();
    let read: BTreeSet<(Place, Value)> = history.reads.iter().filter_map(identified).collect();
    anomalies.extend(
        read.into_iter()
            .filter(|item| !last.contains(item))
            .map(|(place, value)| Anomaly::Vanished { value, place }),
    );
}

/// Values that were in flight when their producer took a new epoch: it sends them again under that one, so they may stand
/// there twice, whatever the broker does.
fn resent(history: &History) -> HashSet<Value> {
    let is_resent = |send: &&Send| {
        history.new_epochs.iter().any(|new| {
            new.producer == send.value.producer
                && send.invoked <= new.at
                && send.ended.is_none_or(|ended| ended >= new.at)
        })
    };
    let sends = history.sends.iter().filter(is_resent);
    sends.map(|send| send.value).collect()
}

fn duplicates(seen: &Seen, resent: &HashSet<Value>, anomalies: &mut Vec<Anomaly>) {
    let mut places: BTreeMap<Value, Vec<Place>> = BTreeMap::new();
    for (&place, values) in &seen.at {
        for &value in values {
            places.entry(value).or_default().push(place);
        }
    }
    places.retain(|value, places| places.len() > 1 && !resent.contains(value));
    for (value, places) in places {
        anomalies.push(Anomaly::Duplicate { value, places });
    }
}

fn reordered(history: &History, resent: &HashSet<Value>, anomalies: &mut Vec<Anomaly>) {
    let mut by_producer: BTreeMap<(i32, u32), BTreeMap<i64, Value>> = BTreeMap::new();
    let places = acknowledged(history).chain(all_reads(history).filter_map(identified));
    for (place, value) in places.filter(|(_, value)| !resent.contains(value)) {
        by_producer
            .entry((place.partition, value.producer))
            .or_default()
            .insert(place.offset, value);
    }
    for ((partition, _), values) in by_producer {
        for pair in values.values().collect::<Vec<_>>().windows(2) {
            if pair[0].sequence > pair[1].sequence {
                anomalies.push(Anomaly::Reordered {
                    first: *pair[0],
                    second: *pair[1],
                    partition,
                });
            }
        }
    }
}

/// Offsets follow real time, whoever leads: what is sent after an acknowledgement stands behind it.
fn went_back(history: &History, anomalies: &mut Vec<Anomaly>) {
    #[derive(Default)]
    struct Partition {
        /// (when, offset) of every acknowledgement.
        ends: Vec<(Duration, i64)>,
        /// (when, value, offset) of every acknowledged send.
        begins: Vec<(Duration, Value, i64)>,
    }
    let mut partitions: BTreeMap<i32, Partition> = BTreeMap::new();
    for send in &history.sends {
        if let (Outcome::Ok(offset), Some(ended)) = (send.outcome, send.ended) {
            let partition = partitions.entry(send.partition).or_default();
            partition.ends.push((ended, offset));
            partition.begins.push((send.invoked, send.value, offset));
        }
    }
    for (partition, mut sends) in partitions {
        sends.ends.sort_unstable();
        sends.begins.sort_unstable();
        let mut ends = sends.ends.iter().peekable();
        let mut highest = None;
        for (invoked, value, offset) in sends.begins {
            while let Some((_, end)) = ends.next_if(|(ended, _)| *ended < invoked) {
                highest = highest.max(Some(*end));
            }
            if let Some(acknowledged) = highest.filter(|&highest| highest > offset) {
                anomalies.push(Anomaly::WentBack {
                    value,
                    place: Place { partition, offset },
                    acknowledged,
                });
            }
        }
    }
}

fn polls(history: &History, seen: &Seen, anomalies: &mut Vec<Anomaly>) {
    for reads in [&history.reads, &history.final_reads] {
        let mut last: HashMap<(u32, i32), i64> = HashMap::new();
        for read in reads {
            let Some(before) = last.insert((read.assignment, read.partition), read.offset) else {
                continue;
            };
            if read.offset <= before {
                anomalies.push(Anomaly::PollBackwards {
                    assignment: read.assignment,
                    place: place(read),
                });
                continue;
            }
            let from = Place {
                partition: read.partition,
                offset: before + 1,
            };
            if let Some((&place, _)) = seen.at.range(from..place(read)).next() {
                anomalies.push(Anomaly::PollSkip {
                    assignment: read.assignment,
                    place,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::NewEpoch;

    const IDEMPOTENT: Guarantees = Guarantees { idempotent: true };

    fn value(sequence: u64) -> Value {
        Value {
            producer: 1,
            sequence,
        }
    }

    fn read(assignment: u32, offset: i64) -> Read {
        Read {
            assignment,
            partition: 0,
            offset,
            value: u64::try_from(offset).ok().map(value),
        }
    }

    /// The send of a value, a second after the one before and acknowledged at once.
    fn send(sequence: u64, outcome: Outcome) -> Send {
        let invoked = Duration::from_secs(sequence);
        Send {
            value: value(sequence),
            partition: 0,
            invoked,
            ended: Some(invoked + Duration::from_millis(1)),
            outcome,
        }
    }

    /// Ten acknowledged values, an unanswered one that was written and one that was not; all read twice.
    fn good() -> History {
        let mut history = History::default();
        for sequence in 0..10 {
            history
                .sends
                .push(send(sequence, Outcome::Ok(sequence as i64)));
        }
        history.sends.push(send(10, Outcome::Info));
        history.sends.push(send(11, Outcome::Info));
        history.reads = (0..11).map(|offset| read(1, offset)).collect();
        history.final_reads = (0..11).map(|offset| read(2, offset)).collect();
        history
    }

    /// What is found in a good history after `spoil`.
    fn spoiled(spoil: impl FnOnce(&mut History)) -> Vec<Anomaly> {
        let mut history = good();
        spoil(&mut history);
        check(&history, IDEMPOTENT)
    }

    #[test]
    fn a_good_history_has_no_anomaly() {
        assert_eq!(check(&good(), IDEMPOTENT), []);
        assert_eq!(check(&History::default(), IDEMPOTENT), []);
    }

    #[test]
    fn two_values_at_one_offset() {
        let found = spoiled(|history| history.reads[3].value = Some(value(4)));
        assert!(found.iter().any(|anomaly| matches!(anomaly, Anomaly::InconsistentOffsets { place, .. } if place.offset == 3)), "{found:?}");
    }

    #[test]
    fn a_changed_record() {
        let found = spoiled(|history| history.reads[3].value = None);
        assert_eq!(
            found,
            [Anomaly::Changed {
                place: Place {
                    partition: 0,
                    offset: 3
                }
            }]
        );
    }

    #[test]
    fn a_value_nobody_sent() {
        let found = spoiled(|history| {
            history.final_reads.push(Read {
                assignment: 2,
                partition: 0,
                offset: 11,
                value: Some(value(99)),
            });
        });
        assert_eq!(
            found,
            [Anomaly::Changed {
                place: Place {
                    partition: 0,
                    offset: 11
                }
            }]
        );
    }

    #[test]
    fn a_duplicate_is_an_anomaly_only_under_idempotence() {
        let mut history = good();
        history.final_reads.push(Read {
            assignment: 2,
            partition: 0,
            offset: 11,
            value: Some(value(10)),
        });
        let found = check(&history, IDEMPOTENT);
        assert!(
            matches!(&found[..], [Anomaly::Duplicate { places, .. }] if places.len() == 2),
            "{found:?}"
        );
        assert_eq!(check(&history, Guarantees { idempotent: false }), []);
    }

    #[test]
    fn a_duplicate_is_excused_while_its_producer_takes_a_new_epoch() {
        let mut history = good();
        // 4 stands there once more, behind all others.
        for (assignment, reads) in [(1, &mut history.reads), (2, &mut history.final_reads)] {
            reads.push(Read {
                value: Some(value(4)),
                ..read(assignment, 11)
            });
        }
        let sent = history.sends[4];
        let with_epoch = |producer, at| {
            let mut history = history.clone();
            history.new_epochs.push(NewEpoch {
                producer,
                at,
                why: "skipped sequence numbers".to_owned(),
            });
            check(&history, IDEMPOTENT)
        };
        let ended = sent.ended.unwrap();
        assert_eq!(with_epoch(1, sent.invoked), []);
        assert_eq!(with_epoch(1, ended), []);
        let instant = Duration::from_nanos(1);
        for (producer, at) in [
            (1, sent.invoked - instant),
            (1, ended + instant),
            (2, ended),
        ] {
            let found = with_epoch(producer, at);
            assert!(
                matches!(
                    &found[..],
                    [Anomaly::Duplicate { .. }, Anomaly::Reordered { .. }]
                ),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_lost_write() {
        let found = spoiled(|history| {
            history.reads.truncate(3);
            history.final_reads.remove(5);
        });
        assert!(
            found.contains(&Anomaly::LostWrite {
                value: value(5),
                place: Place {
                    partition: 0,
                    offset: 5
                }
            }),
            "{found:?}"
        );
    }

    #[test]
    fn a_write_acknowledged_without_an_offset() {
        let mut history = good();
        history.sends[5].outcome = Outcome::Implied;
        assert_eq!(check(&history, IDEMPOTENT), [], "it is there");
        history.reads.truncate(3);
        history.final_reads.remove(5);
        let found = check(&history, IDEMPOTENT);
        let (value, partition) = (value(5), 0);
        assert!(
            found.contains(&Anomaly::LostSomewhere { value, partition }),
            "{found:?}"
        );
    }

    #[test]
    fn a_write_that_is_never_seen() {
        let found = spoiled(|history| {
            history.reads.truncate(8);
            history.final_reads.truncate(9);
        });
        assert_eq!(
            found,
            [Anomaly::Unseen {
                value: value(9),
                place: Place {
                    partition: 0,
                    offset: 9
                }
            }]
        );
    }

    #[test]
    fn an_aborted_read() {
        let found = spoiled(|history| history.sends[10].outcome = Outcome::Fail);
        assert_eq!(
            found,
            [Anomaly::AbortedRead {
                value: value(10),
                place: Place {
                    partition: 0,
                    offset: 10
                }
            }]
        );
    }

    #[test]
    fn a_read_that_vanished() {
        // Never acknowledged, but a consumer was given it: it may not go away any more.
        let found = spoiled(|history| history.final_reads.truncate(10));
        assert_eq!(
            found,
            [Anomaly::Vanished {
                value: value(10),
                place: Place {
                    partition: 0,
                    offset: 10
                }
            }]
        );
    }

    #[test]
    fn two_records_in_the_wrong_order() {
        let swap = |history: &mut History| {
            for (offset, sequence) in [(4, 5), (5, 4)] {
                history.reads[offset].value = Some(value(sequence));
                history.final_reads[offset].value = Some(value(sequence));
                history.sends[sequence as usize].outcome = Outcome::Ok(offset as i64);
            }
        };
        let reordered = Anomaly::Reordered {
            first: value(5),
            second: value(4),
            partition: 0,
        };
        let went_back = Anomaly::WentBack {
            value: value(5),
            place: Place {
                partition: 0,
                offset: 4,
            },
            acknowledged: 5,
        };
        assert_eq!(spoiled(swap), [went_back, reordered.clone()]);
        // Sent while the other was under way, only the producer's own order is broken.
        let together = |history: &mut History| {
            swap(history);
            history.sends[5].invoked = history.sends[4].invoked;
        };
        assert_eq!(spoiled(together), [reordered]);
    }

    #[test]
    fn an_offset_below_one_acknowledged_before() {
        // Another producer's record, sent last and given the first offset of a log that was cut and filled again.
        let other = Value {
            producer: 2,
            sequence: 0,
        };
        let found = spoiled(|history| {
            history.sends.push(Send {
                value: other,
                ..send(12, Outcome::Ok(3))
            });
        });
        assert!(
            found.contains(&Anomaly::WentBack {
                value: other,
                place: Place {
                    partition: 0,
                    offset: 3
                },
                acknowledged: 9
            }),
            "{found:?}"
        );
    }

    #[test]
    fn an_acknowledgement_that_replicas_disagree_with() {
        // Two consumers, two leaders or two moments: the same offset must always show the same value.
        let found = spoiled(|history| {
            let other = Read {
                value: Some(value(11)),
                ..read(7, 4)
            };
            history.reads.push(other);
        });
        assert!(
            found
                .iter()
                .any(|anomaly| matches!(anomaly, Anomaly::InconsistentOffsets { place, values } if place.offset == 4 && values.len() == 2)),
            "{found:?}"
        );
    }

    #[test]
    fn a_poll_that_goes_back() {
        let found = spoiled(|history| history.reads.push(read(1, 4)));
        assert_eq!(
            found,
            [Anomaly::PollBackwards {
                assignment: 1,
                place: Place {
                    partition: 0,
                    offset: 4
                }
            }]
        );
        assert_eq!(
            spoiled(|history| history.reads.push(read(7, 4))),
            [],
            "a new assignment may start anywhere"
        );
    }

    #[test]
    fn a_poll_that_skips() {
        let found = spoiled(|history| {
            history.reads.remove(6);
        });
        assert_eq!(
            found,
            [Anomaly::PollSkip {
                assignment: 1,
                place: Place {
                    partition: 0,
                    offset: 6
                }
            }]
        );
    }
}
