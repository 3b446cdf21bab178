//! How long a partition acknowledged nothing, as a producer that never stopped sending saw it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::History;

/// A time without acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// The partition.
    pub partition: i32,
    /// The last acknowledgement before it, on the history's clock.
    pub from: Duration,
    /// How long none came.
    pub length: Duration,
}

/// The longest pause of any partition that reaches into `from..to`; a pause that does not end before `to` ends there.
/// `None` if nothing was acknowledged before `to`.
///
/// It is counted from the last acknowledgement before the fault, not from the fault itself, so it is never shorter than
/// what a client noticed. Every partition must have been sent to all the time, or its idleness counts as well.
pub fn longest(history: &History, from: Duration, to: Duration) -> Option<Pause> {
    let mut acknowledged: BTreeMap<i32, Vec<Duration>> = BTreeMap::new();
    for send in &history.sends {
        if let Some(at) = send.acknowledged_at().filter(|&at| at < to) {
            acknowledged.entry(send.partition).or_default().push(at);
        }
    }
    acknowledged
        .into_iter()
        .filter_map(|(partition, mut times)| {
            times.sort_unstable();
            times.push(to);
            times
                .windows(2)
                .filter(|pair| pair[1] > from)
                .map(|pair| Pause {
                    partition,
                    from: pair[0],
                    length: pair[1] - pair[0],
                })
                .max_by_key(|pause| pause.length)
        })
        .max_by_key(|pause| pause.length)
}

/// Median and maximum; zero for none.
pub fn median_and_longest(lengths: &[Duration]) -> (Duration, Duration) {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let (Some(&longest), middle) = (sorted.last(), sorted.len() / 2) else {
        return (Duration::ZERO, Duration::ZERO);
    };
    let median = match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2,
        _ => sorted[middle],
    };
    (median, longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Outcome, Send, Value};

    fn history(acknowledged: &[(i32, u64)]) -> History {
        let sends = (0..)
            .zip(acknowledged)
            .map(|(sequence, &(partition, ms))| Send {
                value: Value {
                    producer: 0,
                    sequence,
                },
                partition,
                invoked: Duration::ZERO,
                ended: Some(Duration::from_millis(ms)),
                outcome: Outcome::Ok(sequence as i64),
            })
            .collect();
        History {
            sends,
            ..History::default()
        }
    }

    fn found(history: &History, from: u64, to: u64) -> Option<(i32, u64, u64)> {
        longest(
            history,
            Duration::from_millis(from),
            Duration::from_millis(to),
        )
        .map(|pause| {
            let ms = |duration: Duration| duration.as_millis() as u64;
            (pause.partition, ms(pause.from), ms(pause.length))
        })
    }

    #[test]
    fn each_partition_counts_for_itself() {
        // Partition 1 goes on while partition 0 has no leader.
        let history = history(&[(0, 10), (1, 10), (1, 30), (1, 50), (0, 60), (1, 65)]);
        assert_eq!(found(&history, 20, 70), Some((0, 10, 50)));
        assert_eq!(found(&history, 61, 70), Some((1, 50, 15)));
    }

    #[test]
    fn a_pause_that_does_not_end_lasts_to_the_end() {
        assert_eq!(found(&history(&[(0, 10)]), 20, 100), Some((0, 10, 90)));
        assert_eq!(found(&history(&[]), 20, 100), None);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let lengths = [3, 1, 2].map(Duration::from_secs);
        assert_eq!(
            median_and_longest(&lengths),
            (Duration::from_secs(2), Duration::from_secs(3))
        );
        let lengths = [4, 1, 2, 8].map(Duration::from_secs);
        assert_eq!(
            median_and_longest(&lengths),
            (Duration::from_secs(3), Duration::from_secs(8))
        );
        assert_eq!(median_and_longest(&[]), (Duration::ZERO, Duration::ZERO));
    }
}
