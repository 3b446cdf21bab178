//! What a partition's leader decides: how far records are committed.
//!
//! Pure: events in, actions out, no log, clock or task inside. [`super::replica`] feeds it and carries its actions out.
//!
//! **Invariants.** `high_watermark <= log_end`; the high watermark never goes back within an epoch; it advances only
//! while |committed ISR| ≥ min(`min.insync.replicas`, replicas), and to the smallest *acknowledged end* over the maximal
//! ISR (KIP-497, KIP-966), the leader included. What acknowledges an offset depends on the topic's durability: being in
//! the log (`replicated`), or being flushed (`persisted`).

use kittiwake_raft::BrokerId;
use kittiwake_storage::{LeaderEpoch, Offset};
use std::collections::BTreeMap;

use crate::config::topic::Durability;

/// How far one replica has come. Invariant: `flushed <= log_end`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Progress {
    log_end: Offset,
    flushed: Offset,
}

/// Something that happened to the partition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The leader's log now ends here.
    Appended(Offset),
    /// The leader's log is on disk up to here.
    Flushed(Offset),
    /// The topic's configuration changed.
    Configured {
        /// `min.insync.replicas`.
        min_insync_replicas: usize,
        /// `kittiwake.durability`.
        durability: Durability,
    },
}

/// Something to be done about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Publish a higher high watermark and wake what waits for it.
    AdvanceHighWatermark(Offset),
    /// Bring the log to disk up to its end: acknowledgements wait for it.
    Flush,
}

/// The leader's view of one partition during one leader epoch.
#[derive(Clone, Debug)]
pub struct Leader {
    epoch: LeaderEpoch,
    replica_count: usize,
    isr: BTreeMap<BrokerId, Progress>,
    this_node: BrokerId,
    min_insync_replicas: usize,
    durability: Durability,
    high_watermark: Offset,
}

/// What a node knows when it becomes leader.
#[derive(Clone, Debug)]
pub struct Reign {
    /// The epoch it leads in.
    pub epoch: LeaderEpoch,
    /// Itself.
    pub this_node: BrokerId,
    /// All replicas of the partition.
    pub replica_count: usize,
    /// The committed in-sync replicas, the leader among them.
    pub isr: Vec<BrokerId>,
    /// `min.insync.replicas` of the topic.
    pub min_insync_replicas: usize,
    /// `kittiwake.durability` of the topic.
    pub durability: Durability,
    /// End of its log.
    pub log_end: Offset,
    /// End of what is on its disk.
    pub flushed: Offset,
    /// The last high watermark it knew; it may lag what the previous leader had.
    pub high_watermark: Offset,
}

impl Leader {
    /// Begins a reign; the actions are those that its state calls for at once.
    pub fn new(reign: Reign) -> (Self, Vec<Action>) {
        let own = Progress {
            log_end: reign.log_end,
            flushed: reign.flushed.min(reign.log_end),
        };
        let mut isr: BTreeMap<_, _> = reign
            .isr
            .into_iter()
            .map(|id| (id, Progress::default()))
            .collect();
        isr.insert(reign.this_node, own);
        let mut leader = Self {
            epoch: reign.epoch,
            replica_count: reign.replica_count,
            isr,
            this_node: reign.this_node,
            min_insync_replicas: reign.min_insync_replicas,
            durability: reign.durability,
            high_watermark: reign.high_watermark.min(reign.log_end),
        };
        let actions = leader.advance();
        (leader, actions)
    }

    /// The epoch of this reign.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// End of what is committed.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether enough replicas are in sync for acks=all to be accepted.
    pub fn has_enough_replicas(&self) -> bool {
        self.isr.len() >= self.min_insync_replicas.min(self.replica_count)
    }

    /// Takes an event in and says what follows.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Appended(end) => {
                let own = self.own();
                own.log_end = own.log_end.max(end);
            }
            Event::Flushed(end) => {
                let own = self.own();
                own.flushed = own.flushed.max(end).min(own.log_end);
            }
            Event::Configured {
                min_insync_replicas,
                durability,
            } => {
                self.min_insync_replicas = min_insync_replicas;
                self.durability = durability;
            }
        }
        self.advance()
    }

    fn own(&mut self) -> &mut Progress {
        self.isr.entry(self.this_node).or_default()
    }

    fn advance(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let own = *self.own();
        if self.has_enough_replicas() {
            let acknowledged = |progress: &Progress| match self.durability {
                Durability::Replicated => progress.log_end,
                Durability::Persisted => progress.flushed,
            };
            let committed = self
                .isr
                .values()
                .map(acknowledged)
                .min()
                .unwrap_or_default();
            if committed > self.high_watermark {
                self.high_watermark = committed;
                actions.push(Action::AdvanceHighWatermark(committed));
            }
        }
        if self.durability == Durability::Persisted && own.flushed < own.log_end {
            actions.push(Action::Flush);
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn reign() -> Reign {
        Reign {
            epoch: LeaderEpoch(3),
            this_node: BrokerId(1),
            replica_count: 1,
            isr: vec![BrokerId(1)],
            min_insync_replicas: 1,
            durability: Durability::Replicated,
            log_end: Offset(10),
            flushed: Offset(4),
            high_watermark: Offset(7),
        }
    }

    #[test]
    fn a_leader_alone_commits_what_it_appends() {
        let (mut leader, actions) = Leader::new(reign());
        assert_eq!(actions, [Action::AdvanceHighWatermark(Offset(10))]);
        assert_eq!(
            leader.step(Event::Appended(Offset(12))),
            [Action::AdvanceHighWatermark(Offset(12))]
        );
    }

    #[test]
    fn a_persisted_topic_commits_what_is_flushed() {
        let (mut leader, actions) = Leader::new(Reign {
            durability: Durability::Persisted,
            ..reign()
        });
        assert_eq!(actions, [Action::Flush]);
        assert_eq!(leader.high_watermark(), Offset(7));
        assert_eq!(
            leader.step(Event::Flushed(Offset(10))),
            [Action::AdvanceHighWatermark(Offset(10))]
        );
        assert_eq!(leader.step(Event::Appended(Offset(11))), [Action::Flush]);
        assert_eq!(leader.high_watermark(), Offset(10));
    }

    #[test]
    fn too_few_replicas_commit_nothing() {
        let missing = Reign {
            replica_count: 3,
            min_insync_replicas: 2,
            ..reign()
        };
        let (mut leader, actions) = Leader::new(missing);
        assert_eq!(actions, []);
        assert!(!leader.has_enough_replicas());
        assert_eq!(leader.step(Event::Appended(Offset(99))), []);
        assert_eq!(leader.high_watermark(), Offset(7));
    }

    #[test]
    fn min_insync_replicas_above_the_replica_count_does_not_stop_the_partition() {
        let (leader, _) = Leader::new(Reign {
            min_insync_replicas: 2,
            ..reign()
        });
        assert!(leader.has_enough_replicas());
    }

    /// Random appends, flushes and configuration changes; the invariants of the module hold after every step.
    #[test]
    fn random_steps_keep_the_watermark_order() {
        let seed = std::env::var("KITTIWAKE_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or(0x6b69_7474);
        println!("KITTIWAKE_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let (mut leader, _) = Leader::new(reign());
        let (mut log_end, mut flushed, mut durability) =
            (Offset(10), Offset(4), Durability::Replicated);
        for _ in 0..100_000 {
            let before = leader.high_watermark();
            let event = match random.random_range(0..4) {
                0 | 1 => {
                    log_end = log_end + random.random_range(0..5);
                    Event::Appended(log_end)
                }
                2 => {
                    // A flush that answers late reports an offset already passed.
                    flushed =
                        Offset(random.random_range(flushed.0.saturating_sub(3).max(0)..=log_end.0))
                            .max(flushed);
                    Event::Flushed(flushed)
                }
                _ => {
                    durability = if random.random() {
                        Durability::Replicated
                    } else {
                        Durability::Persisted
                    };
                    Event::Configured {
                        min_insync_replicas: random.random_range(1..4),
                        durability,
                    }
                }
            };
            let actions = leader.step(event);
            let after = leader.high_watermark();
            assert!(before <= after && after <= log_end);
            let advanced = actions.contains(&Action::AdvanceHighWatermark(after));
            assert_eq!(advanced, after > before, "an advance is an action, once");
            match durability {
                Durability::Replicated => assert_eq!(after, log_end),
                Durability::Persisted => {
                    assert!(after == before || after == flushed);
                    assert_eq!(actions.contains(&Action::Flush), flushed < log_end);
                }
            }
        }
    }
}
