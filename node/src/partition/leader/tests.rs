use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn replicated(epoch: i32, replicas: &[i32], isr: &[i32]) -> Committed {
    let ids = |ids: &[i32]| ids.iter().map(|id| BrokerId(*id)).collect();
    Committed {
        partition_epoch: PartitionEpoch(epoch),
        replicas: ids(replicas),
        isr: ids(isr),
    }
}

fn appended(log_end: i64, now_ms: i64) -> Event {
    Event::Appended {
        log_end: Offset(log_end),
        now_ms,
    }
}

fn fetched(replica: i32, log_end: i64, now_ms: i64) -> Event {
    Event::Fetched {
        replica: BrokerId(replica),
        broker_epoch: BrokerEpoch(100 + i64::from(replica)),
        log_end: Offset(log_end),
        flushed: Offset(log_end),
        log_start: Offset::ZERO,
        now_ms,
    }
}

/// Brokers 1 (the leader), 2 and 3, all in sync, log end 10.
fn three() -> Leader {
    let (leader, actions) = Leader::new(Reign {
        committed: replicated(5, &[1, 2, 3], &[1, 2, 3]),
        min_insync_replicas: 2,
        ..reign()
    });
    assert_eq!(actions, []);
    leader
}

fn proposed(leader: &Leader) -> Vec<i32> {
    let proposal = leader.proposal().expect("a proposal is under way");
    proposal.isr.iter().map(|member| member.broker.0).collect()
}

fn reign() -> Reign {
    Reign {
        epoch: LeaderEpoch(3),
        this_node: BrokerId(1),
        committed: replicated(0, &[1], &[1]),
        min_insync_replicas: 1,
        durability: Durability::Replicated,
        lag_max_ms: 1_000,
        log_end: Offset(10),
        flushed: Offset(4),
        high_watermark: Offset(7),
        now_ms: 0,
    }
}

#[test]
fn a_leader_alone_commits_what_it_appends() {
    let (mut leader, actions) = Leader::new(reign());
    assert_eq!(actions, [Action::AdvanceHighWatermark(Offset(10))]);
    assert_eq!(
        leader.step(appended(12, 1)),
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
    assert_eq!(leader.step(appended(11, 1)), [Action::Flush]);
    assert_eq!(leader.high_watermark(), Offset(10));
}

#[test]
fn too_few_replicas_commit_nothing() {
    let missing = Reign {
        committed: replicated(0, &[1, 2, 3], &[1]),
        min_insync_replicas: 2,
        ..reign()
    };
    let (mut leader, actions) = Leader::new(missing);
    assert_eq!(actions, []);
    assert!(!leader.has_enough_replicas());
    assert_eq!(leader.step(appended(99, 1)), []);
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

#[test]
fn the_slowest_in_sync_replica_decides() {
    let mut leader = three();
    assert_eq!(leader.step(fetched(2, 10, 1)), []);
    assert_eq!(
        leader.step(fetched(3, 9, 1)),
        [Action::AdvanceHighWatermark(Offset(9))]
    );
    assert!(!leader.high_watermark_is_current());
    leader.step(appended(20, 2));
    leader.step(fetched(3, 20, 3));
    assert_eq!(leader.high_watermark(), Offset(10));
    assert!(leader.high_watermark_is_current());
    assert_eq!(
        leader.step(fetched(2, 15, 3)),
        [Action::AdvanceHighWatermark(Offset(15))]
    );
}

#[test]
fn a_persisted_topic_waits_for_the_disks_of_all() {
    let (mut leader, _) = Leader::new(Reign {
        committed: replicated(0, &[1, 2], &[1, 2]),
        durability: Durability::Persisted,
        flushed: Offset(10),
        ..reign()
    });
    let unflushed = Event::Fetched {
        replica: BrokerId(2),
        broker_epoch: BrokerEpoch(1),
        log_end: Offset(10),
        flushed: Offset(8),
        log_start: Offset::ZERO,
        now_ms: 0,
    };
    assert_eq!(
        leader.step(unflushed),
        [Action::AdvanceHighWatermark(Offset(8))]
    );
}

#[test]
fn who_lags_too_long_leaves_and_comes_back() {
    let mut leader = three();
    leader.step(fetched(2, 10, 100));
    leader.step(fetched(3, 10, 100));
    assert_eq!(leader.step(Event::Tick(50_000)), [], "both have everything");
    leader.step(appended(11, 50_000));
    leader.step(fetched(2, 11, 50_001));
    assert_eq!(leader.step(Event::Tick(51_000)), [], "not for long enough");
    assert_eq!(leader.step(Event::Tick(51_001)), [Action::ProposeIsr]);
    assert_eq!(proposed(&leader), [1, 2]);
    assert_eq!(leader.step(Event::Tick(60_000)), [], "one at a time");
    assert_eq!(leader.high_watermark(), Offset(10), "it still counts");
    assert_eq!(
        leader.step(Event::Committed(replicated(6, &[1, 2, 3], &[1, 2]))),
        [Action::AdvanceHighWatermark(Offset(11))]
    );
    assert_eq!(leader.step(fetched(3, 10, 61_000)), [], "it lacks 10");
    assert_eq!(leader.step(fetched(3, 11, 61_001)), [Action::ProposeIsr]);
    assert_eq!(proposed(&leader), [1, 2, 3]);
    let joining = leader.proposal().unwrap().isr[2];
    assert_eq!(joining.broker_epoch, Some(BrokerEpoch(103)));
    // Its addition may have been applied already: from now on it counts.
    leader.step(appended(12, 61_002));
    assert_eq!(leader.step(fetched(2, 12, 61_003)), []);
    assert_eq!(
        leader.step(fetched(3, 12, 61_003)),
        [Action::AdvanceHighWatermark(Offset(12))]
    );
}

#[test]
fn what_was_refused_is_proposed_again_later() {
    let mut leader = three();
    leader.step(fetched(2, 10, 0));
    leader.step(Event::Committed(replicated(6, &[1, 2, 3], &[1, 2])));
    assert_eq!(leader.step(fetched(3, 10, 5)), [Action::ProposeIsr]);
    let refused = Event::Refused {
        partition_epoch: PartitionEpoch(6),
        now_ms: 10,
    };
    assert_eq!(leader.step(refused), []);
    assert_eq!(leader.step(fetched(3, 10, 11)), []);
    // It has everything, so it may never fetch this partition again.
    assert_eq!(
        leader.step(Event::Tick(10 + JOIN_RETRY_MS)),
        [Action::ProposeIsr]
    );
    assert_eq!(proposed(&leader), [1, 2, 3]);
}

#[test]
fn an_earlier_life_of_a_follower_counts_for_nothing() {
    let mut leader = three();
    leader.step(fetched(2, 10, 0));
    let late = Event::Fetched {
        replica: BrokerId(2),
        broker_epoch: BrokerEpoch(7),
        log_end: Offset(3),
        flushed: Offset(3),
        log_start: Offset::ZERO,
        now_ms: 1,
    };
    leader.step(late);
    assert_eq!(
        leader.step(fetched(3, 10, 2)),
        [Action::AdvanceHighWatermark(Offset(10))]
    );
}

#[test]
fn a_new_leader_waits_for_its_followers_before_it_commits() {
    let mut leader = three();
    assert_eq!(leader.step(appended(30, 1)), []);
    assert_eq!(leader.high_watermark(), Offset(7));
}

#[test]
fn falling_below_min_insync_replicas_fails_what_waits() {
    let mut leader = three();
    let alone = Event::Committed(replicated(6, &[1, 2, 3], &[1]));
    assert_eq!(leader.step(alone), [Action::FailWaiting]);
    assert!(!leader.has_enough_replicas());
}

#[test]
fn an_older_state_of_the_partition_changes_nothing() {
    let mut leader = three();
    leader.step(Event::Committed(replicated(8, &[1, 2, 3], &[1, 2])));
    leader.step(Event::Committed(replicated(7, &[1, 2, 3], &[1])));
    assert!(leader.has_enough_replicas());
    assert_eq!(leader.partition_epoch(), PartitionEpoch(8));
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
                appended(log_end.0, 1)
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
