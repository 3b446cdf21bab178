//! Where the replicas of a node go that is to have none. Pure.
//!
//! Each goes, in its place, to the broker that keeps the partition spread over the most racks, and among those to the one
//! with the fewest replicas so far.

use std::collections::BTreeMap;

use kittiwake_raft::{Broker, BrokerId, ClusterImage, Partition};

use super::partitions::{Move, PartitionName};
use super::{Refusal, reassignment};
use crate::api::ErrorCode;

/// The moves that leave no replica on `node`. Moves that are under way and end without it are left alone.
///
/// # Errors
/// BROKER_ID_NOT_REGISTERED; INVALID_REPLICATION_FACTOR where every other broker that could take a replica has one.
pub fn evacuate(image: &ClusterImage, node: BrokerId) -> Result<Vec<Move>, Refusal> {
    if image.broker(node).is_none() {
        return Err(Refusal::new(
            ErrorCode::BrokerIdNotRegistered,
            format!("Node {node} is not registered."),
        ));
    }
    let mut replicas: BTreeMap<BrokerId, usize> = BTreeMap::new();
    for partition in image.topics().flat_map(|topic| &topic.partitions) {
        for broker in reassignment::target(partition) {
            *replicas.entry(broker).or_default() += 1;
        }
    }
    let mut moves = Vec::new();
    for topic in image.topics() {
        for (index, partition) in (0..).zip(&topic.partitions) {
            let mut target = reassignment::target(partition);
            let Some(place) = target.iter().position(|broker| *broker == node) else {
                continue;
            };
            let Some(taker) = taker(image, partition, &target, node, &replicas) else {
                return Err(Refusal::new(
                    ErrorCode::InvalidReplicationFactor,
                    format!(
                        "No other node can take the replica of {}-{index}: all that are neither fenced nor draining \
                         have one.",
                        topic.name
                    ),
                ));
            };
            *replicas.entry(taker).or_default() += 1;
            target[place] = taker;
            moves.push(Move {
                partition: PartitionName {
                    topic: topic.name.clone(),
                    partition: index,
                },
                replicas: Some(target),
            });
        }
    }
    Ok(moves)
}

fn taker(
    image: &ClusterImage,
    partition: &Partition,
    target: &[BrokerId],
    node: BrokerId,
    replicas: &BTreeMap<BrokerId, usize>,
) -> Option<BrokerId> {
    let staying = target.iter().filter(|broker| **broker != node);
    let racks: Vec<Option<&str>> = staying.map(|broker| rack(image, *broker)).collect();
    let free = image.brokers.values().filter(|broker| {
        let Broker {
            id,
            fenced,
            draining,
            ..
        } = ***broker;
        !fenced && !draining && id != node && !target.contains(&id)
    });
    free.min_by_key(|broker| {
        let rack = broker.rack.as_deref();
        (
            rack.is_some() && racks.contains(&rack),
            // One that leaves has the records already.
            !partition.removing.contains(&broker.id),
            replicas.get(&broker.id).copied().unwrap_or_default(),
        )
    })
    .map(|broker| broker.id)
}

fn rack(image: &ClusterImage, broker: BrokerId) -> Option<&str> {
    image.broker(broker)?.rack.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::tests_support::{create, image_of};

    fn on(ids: &[i32]) -> Vec<BrokerId> {
        ids.iter().copied().map(BrokerId).collect()
    }

    #[test]
    fn replicas_go_evenly_to_those_that_have_none() {
        let mut image = image_of(4);
        create(
            &mut image,
            "t",
            &[],
            vec![on(&[0, 1]), on(&[1, 0]), on(&[2, 0]), on(&[1, 2])],
        );
        let moves = evacuate(&image, BrokerId(0)).unwrap();
        let targets: Vec<_> = moves
            .iter()
            .map(|one| (one.partition.partition, one.replicas.clone().unwrap()))
            .collect();
        assert_eq!(
            targets,
            [(0, on(&[3, 1])), (1, on(&[1, 3])), (2, on(&[2, 3])),]
        );
    }

    #[test]
    fn nothing_moves_where_one_replica_has_nowhere_to_go() {
        let mut image = image_of(2);
        create(&mut image, "t", &[], vec![on(&[0]), on(&[0, 1])]);
        let code = |node| evacuate(&image, BrokerId(node)).unwrap_err().code;
        assert_eq!(code(0), ErrorCode::InvalidReplicationFactor);
        assert_eq!(code(7), ErrorCode::BrokerIdNotRegistered);
    }
}
