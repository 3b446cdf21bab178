//! Which brokers get the replicas of new partitions. Pure: where to start is an argument.
//!
//! Kafka's algorithm (KIP-36). Brokers are listed rack by turns: with racks a: 0, 1, b: 2, 3, c: 4, 5 the list is
//! 0, 2, 4, 1, 3, 5. The first replica of partition *p* goes to the broker at *start + p*, so that leaders spread evenly;
//! the others go to brokers further on, shifted by one more each time the list is exhausted, so that the followers of one
//! broker's partitions are not all on the same second one. Within a partition no rack gets a second replica before
//! every rack has one. Where a broker has no rack, racks do not count: each broker is its own.
//!
//! Brokers that are draining or fenced get replicas only where the others are too few, and never the first one while
//! another is left: a topic can be created while a node restarts (the metadata quorum takes fenced brokers as replicas
//! that are not in sync yet).

use std::collections::BTreeSet;

use kittiwake_raft::{Broker, BrokerId};

/// A broker that may get replicas.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Candidate<'a> {
    /// Which one.
    pub id: BrokerId,
    /// Its `broker.rack`.
    pub rack: Option<&'a str>,
    /// Neither fenced nor draining.
    pub willing: bool,
    /// Not fenced.
    pub live: bool,
}

impl<'a> From<&'a Broker> for Candidate<'a> {
    fn from(broker: &'a Broker) -> Self {
        Self {
            id: broker.id,
            rack: broker.rack.as_deref(),
            willing: !broker.fenced && !broker.draining,
            live: !broker.fenced,
        }
    }
}

/// Where the first of the new partitions goes, and how far its followers are from it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Start {
    /// Position in the list of brokers; any number.
    pub broker: usize,
    /// Further shift of the followers; any number.
    pub shift: usize,
    /// Index of the first partition that is placed; above 0 when a topic grows.
    pub partition: usize,
}

/// The replicas asked for cannot be placed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlacementError {
    /// More replicas than brokers.
    #[error("the replication factor {wanted} is larger than the number of brokers, {brokers}")]
    TooFewBrokers {
        /// Replicas per partition.
        wanted: usize,
        /// Registered brokers.
        brokers: usize,
    },
    /// Nobody could lead.
    #[error("all brokers are fenced")]
    AllFenced,
}

/// Replicas of `partitions` partitions, the preferred leader first, `replicas` each (at least 1).
///
/// # Errors
/// See [`PlacementError`].
pub fn place(
    brokers: &[Candidate<'_>],
    partitions: usize,
    replicas: usize,
    start: Start,
) -> Result<Vec<Vec<BrokerId>>, PlacementError> {
    if replicas > brokers.len() {
        return Err(PlacementError::TooFewBrokers {
            wanted: replicas,
            brokers: brokers.len(),
        });
    }
    if !brokers.iter().any(|broker| broker.live) {
        return Err(PlacementError::AllFenced);
    }
    // The willing, then the draining, then the fenced; each set in turns of its own.
    let tiers = [
        by_turns(brokers, |broker| broker.willing),
        by_turns(brokers, |broker| broker.live && !broker.willing),
        by_turns(brokers, |broker| !broker.live),
    ];
    Ok((0..partitions)
        .map(|nth| place_one(&tiers, nth, replicas, start))
        .collect())
}

/// A broker and the number of its rack.
#[derive(Clone, Copy)]
struct Seat {
    id: BrokerId,
    rack: usize,
}

/// The wanted brokers, rack by turns.
fn by_turns(brokers: &[Candidate<'_>], wanted: impl Fn(&Candidate<'_>) -> bool) -> Vec<Seat> {
    let mut sorted: Vec<&Candidate<'_>> = brokers.iter().collect();
    sorted.sort_unstable_by_key(|broker| broker.id);
    let racks_count = brokers.iter().all(|broker| broker.rack.is_some());
    let mut names: Vec<&str> = brokers.iter().filter_map(|broker| broker.rack).collect();
    names.sort_unstable();
    names.dedup();
    let rack_of = |position: usize, broker: &Candidate<'_>| {
        let named = broker
            .rack
            .filter(|_| racks_count)
            .and_then(|rack| names.binary_search(&rack).ok());
        named.unwrap_or(position)
    };

    let mut turns = vec![0; names.len().max(brokers.len())];
    let mut seats: Vec<(usize, Seat)> = Vec::with_capacity(brokers.len());
    for (position, broker) in sorted
        .into_iter()
        .enumerate()
        .filter(|(_, broker)| wanted(broker))
    {
        let rack = rack_of(position, broker);
        turns[rack] += 1;
        seats.push((
            turns[rack],
            Seat {
                id: broker.id,
                rack,
            },
        ));
    }
    seats.sort_by_key(|(turn, seat)| (*turn, seat.rack));
    seats.into_iter().map(|(_, seat)| seat).collect()
}

fn place_one(tiers: &[Vec<Seat>; 3], nth: usize, replicas: usize, start: Start) -> Vec<BrokerId> {
    let mut placed: Vec<Seat> = Vec::with_capacity(replicas);
    for tier in tiers {
        while placed.len() < replicas {
            let Some(next) = next_seat(tier, &placed, nth, start) else {
                break;
            };
            placed.push(next);
        }
    }
    placed.into_iter().map(|seat| seat.id).collect()
}

/// The next broker of `tier` for partition `nth` that has no replica of it yet, in a rack without one if there is any.
fn next_seat(tier: &[Seat], placed: &[Seat], nth: usize, start: Start) -> Option<Seat> {
    let count = tier.len();
    if count == 0 {
        return None;
    }
    let partition = start.partition.wrapping_add(nth);
    let first = partition.wrapping_add(start.broker) % count;
    // Once round the list, every follower moves one further from its leader: one turn of the racks.
    let racks = tier
        .iter()
        .map(|seat| seat.rack)
        .collect::<BTreeSet<_>>()
        .len();
    let shift = start
        .shift
        .wrapping_add(partition / count)
        .wrapping_mul(racks);
    let in_order = (0..count).map(|step| match step {
        0 => tier[first],
        _ => tier[(first + 1 + shift.wrapping_add(step - 1) % (count - 1)) % count],
    });
    let free = in_order.filter(|seat| placed.iter().all(|other| other.id != seat.id));
    let new_rack = |seat: &Seat| placed.iter().all(|other| other.rack != seat.rack);
    free.clone().find(new_rack).or_else(|| free.clone().next())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn broker(id: i32, rack: Option<&str>) -> Candidate<'_> {
        Candidate {
            id: BrokerId(id),
            rack,
            willing: true,
            live: true,
        }
    }

    fn ids(placed: &[Vec<BrokerId>]) -> Vec<Vec<i32>> {
        placed
            .iter()
            .map(|replicas| replicas.iter().map(|id| id.0).collect())
            .collect()
    }

    #[test]
    fn without_racks_leaders_go_round_and_followers_shift() {
        let brokers: Vec<_> = (0..5).map(|id| broker(id, None)).collect();
        let placed = place(&brokers, 10, 3, Start::default()).unwrap();
        // The example of Kafka's AdminUtils.
        assert_eq!(
            ids(&placed),
            [
                [0, 1, 2],
                [1, 2, 3],
                [2, 3, 4],
                [3, 4, 0],
                [4, 0, 1],
                [0, 2, 3],
                [1, 3, 4],
                [2, 4, 0],
                [3, 0, 1],
                [4, 1, 2],
            ]
        );
    }

    #[test]
    fn racks_take_turns() {
        let brokers: Vec<_> = [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "c"), (5, "c")]
            .map(|(id, rack)| broker(id, Some(rack)))
            .into();
        let placed = place(&brokers, 6, 3, Start::default()).unwrap();
        assert_eq!(
            ids(&placed)
                .iter()
                .map(|replicas| replicas[0])
                .collect::<Vec<_>>(),
            [0, 2, 4, 1, 3, 5]
        );
        for replicas in ids(&placed) {
            let racks: BTreeSet<i32> = replicas.iter().map(|id| id / 2).collect();
            assert_eq!(racks.len(), 3, "{replicas:?}");
        }
    }

    #[test]
    fn the_fenced_and_draining_come_last() {
        let mut brokers: Vec<_> = (0..3).map(|id| broker(id, None)).collect();
        brokers[0].willing = false;
        brokers[0].live = false;
        brokers[1].willing = false;
        let placed = place(&brokers, 4, 3, Start::default()).unwrap();
        assert!(
            ids(&placed).iter().all(|replicas| *replicas == [2, 1, 0]),
            "{placed:?}"
        );
        assert!(
            ids(&place(&brokers, 4, 1, Start::default()).unwrap())
                .iter()
                .all(|replicas| *replicas == [2])
        );
        brokers[1].live = false;
        brokers[2].live = false;
        assert_eq!(
            place(&brokers, 1, 1, Start::default()),
            Err(PlacementError::AllFenced)
        );
    }

    #[test]
    fn more_replicas_than_brokers_are_refused() {
        let brokers = [broker(0, None)];
        assert_eq!(
            place(&brokers, 1, 2, Start::default()),
            Err(PlacementError::TooFewBrokers {
                wanted: 2,
                brokers: 1
            })
        );
    }

    #[test]
    fn growing_a_topic_continues_its_round() {
        let brokers: Vec<_> = (0..4).map(|id| broker(id, None)).collect();
        let start = Start {
            broker: 3,
            shift: 1,
            partition: 0,
        };
        let whole = place(&brokers, 9, 2, start).unwrap();
        let rest = place(
            &brokers,
            4,
            2,
            Start {
                partition: 5,
                ..start
            },
        )
        .unwrap();
        assert_eq!(whole[5..], rest);
    }

    /// Any number of brokers, racks and replicas: no broker twice in a partition, racks before repetition, and leaders
    /// as even as they can be.
    #[test]
    fn random_clusters_are_balanced() {
        let seed = std::env::var("KITTIWAKE_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or(36);
        println!("KITTIWAKE_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let names = ["a", "b", "c", "d"];
        for round in 0..2000 {
            let rack_count = random.random_range(1..=names.len());
            let per_rack = random.random_range(1..=4usize);
            let brokers: Vec<_> = (0..rack_count * per_rack)
                .map(|nth| broker(i32::try_from(nth).unwrap(), Some(names[nth % rack_count])))
                .collect();
            let replicas = random.random_range(1..=brokers.len());
            let partitions = brokers.len() * random.random_range(1..=6);
            let start = Start {
                broker: random.random_range(0..1 << 20),
                shift: random.random_range(0..1 << 20),
                partition: 0,
            };
            let placed = place(&brokers, partitions, replicas, start).unwrap();
            let context = format!(
                "round {round}: {rack_count} racks of {per_rack}, {replicas} replicas, {start:?}"
            );

            let mut leaders: BTreeMap<BrokerId, usize> = BTreeMap::new();
            let mut total: BTreeMap<BrokerId, usize> = BTreeMap::new();
            for assignment in &placed {
                assert_eq!(
                    assignment.iter().collect::<BTreeSet<_>>().len(),
                    replicas,
                    "{context}"
                );
                let racks: BTreeSet<_> = assignment
                    .iter()
                    .map(|id| id.0 as usize % rack_count)
                    .collect();
                assert_eq!(racks.len(), replicas.min(rack_count), "{context}");
                *leaders.entry(assignment[0]).or_default() += 1;
                for id in assignment {
                    *total.entry(*id).or_default() += 1;
                }
            }
            let even = partitions / brokers.len();
            assert!(
                brokers
                    .iter()
                    .all(|broker| leaders.get(&broker.id) == Some(&even)),
                "{context} {leaders:?}"
            );
            let most = total.values().max().unwrap();
            let least = total.values().min().unwrap();
            assert_eq!(total.len(), brokers.len(), "{context}");
            if per_rack == 1 || rack_count == 1 {
                assert_eq!(most, least, "{context} {total:?}");
            }
        }
    }
}
