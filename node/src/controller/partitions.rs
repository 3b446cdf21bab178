//! Partitions, changed on request: elections, reassignments, and a node emptied of its replicas.
//!
//! Any node may be asked. What a request comes to is computed from this node's image and compared-and-set on the partition
//! epoch; where the partition has moved on in the meantime it is computed again.

use kittiwake_raft::{BrokerId, ClusterImage, Command, Partition, PartitionChange, Topic};

use super::elections::{self, ElectionType};
use super::evacuation::evacuate;
use super::{Refusal, carry_out, reassignment};
use crate::api::ErrorCode;
use crate::broker::Broker;

/// Partitions in one entry of the metadata log: some hundred kilobytes, and a pause of its readers that nobody notices.
pub const CHANGES_PER_ENTRY_MAX: usize = 5_000;

/// How often a change is computed again before its caller is told that the partition does not hold still.
const ATTEMPTS: usize = 5;

/// A partition, as requests name it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PartitionName {
    /// Its topic's name.
    pub topic: String,
    /// Its index.
    pub partition: i32,
}

impl PartitionName {
    /// The partition, in its topic.
    ///
    /// # Errors
    /// UNKNOWN_TOPIC_OR_PARTITION.
    fn find<'a>(&self, image: &'a ClusterImage) -> Result<(&'a Topic, &'a Partition), Refusal> {
        let topic = image
            .topic_by_name(&self.topic)
            .ok_or_else(|| Refusal::unknown_topic(&self.topic))?;
        let index = usize::try_from(self.partition).ok();
        let partition = index.and_then(|index| topic.partitions.get(index));
        let partition = partition.ok_or_else(|| {
            let message = format!(
                "Topic '{}' has no partition {}.",
                self.topic, self.partition
            );
            Refusal::new(ErrorCode::UnknownTopicOrPartition, message)
        })?;
        Ok((topic, partition))
    }
}

/// A partition to move.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Move {
    /// Which.
    pub partition: PartitionName,
    /// Its replicas afterwards, the preferred leader first; `None` ends a move that is under way where it began.
    pub replicas: Option<Vec<BrokerId>>,
}

/// A change that changes nothing yet, of the partition as it is.
pub(crate) fn unchanged(topic: &Topic, index: i32, partition: &Partition) -> PartitionChange {
    PartitionChange {
        topic: topic.id,
        partition: index,
        partition_epoch: partition.partition_epoch,
        requester: None,
        isr: None,
        leader: None,
        replicas: None,
        damage: None,
    }
}

/// Every partition there is, by topic.
pub fn all(image: &ClusterImage) -> Vec<PartitionName> {
    let mut all: Vec<PartitionName> = image
        .topics()
        .flat_map(|topic| {
            (0..)
                .zip(&topic.partitions)
                .map(|(partition, _)| PartitionName {
                    topic: topic.name.clone(),
                    partition,
                })
        })
        .collect();
    all.sort_unstable();
    all
}

/// Elects leaders; one result each.
pub async fn elect_leaders(
    broker: &Broker,
    kind: ElectionType,
    partitions: &[PartitionName],
) -> Vec<Result<(), Refusal>> {
    alter(broker, partitions, |image, name| {
        let (topic, partition) = name.find(image)?;
        let election = elections::on_request(image, partition, kind)?;
        Ok(Some(PartitionChange {
            leader: Some(election),
            ..unchanged(topic, name.partition, partition)
        }))
    })
    .await
}

/// Begins, redirects and cancels moves of partitions; one result each. The controller completes them.
pub async fn reassign(
    broker: &Broker,
    moves: &[Move],
    allow_factor_change: bool,
) -> Vec<Result<(), Refusal>> {
    alter(broker, moves, |image, wanted| {
        let (topic, partition) = wanted.partition.find(image)?;
        let replicas = match &wanted.replicas {
            Some(replicas) => reassignment::start(image, partition, replicas, allow_factor_change)?,
            None => Some(reassignment::cancel(partition)?),
        };
        Ok(replicas.map(|replicas| PartitionChange {
            replicas: Some(replicas),
            ..unchanged(topic, wanted.partition.partition, partition)
        }))
    })
    .await
}

/// Moves every replica off a node; returns how many partitions move.
///
/// # Errors
/// The node is unknown, or there is nowhere to put a replica: then nothing moves.
pub async fn evacuate_node(broker: &Broker, node: BrokerId) -> Result<usize, Refusal> {
    let moves = evacuate(&broker.image(), node)?;
    let results = reassign(broker, &moves, false).await;
    results.into_iter().collect::<Result<Vec<()>, Refusal>>()?;
    Ok(moves.len())
}

/// Plans and proposes changes of partitions, `None` being a change that is not needed; one result per item.
async fn alter<T>(
    broker: &Broker,
    items: &[T],
    plan: impl Fn(&ClusterImage, &T) -> Result<Option<PartitionChange>, Refusal>,
) -> Vec<Result<(), Refusal>> {
    let mut results: Vec<Result<(), Refusal>> = vec![Ok(()); items.len()];
    let mut open: Vec<usize> = (0..items.len()).collect();
    for _ in 0..ATTEMPTS {
        let image = broker.image();
        let mut planned: Vec<(usize, PartitionChange)> = Vec::new();
        for at in open.drain(..) {
            results[at] = match plan(&image, &items[at]) {
                Ok(change) => {
                    planned.extend(change.map(|change| (at, change)));
                    Ok(())
                }
                Err(refusal) => Err(refusal),
            };
        }
        for chunk in planned.chunks(CHANGES_PER_ENTRY_MAX) {
            let changes = chunk.iter().map(|(_, change)| change.clone()).collect();
            let outcome = carry_out(broker, Command::AlterPartitions(changes), false).await;
            for (nth, (at, _)) in chunk.iter().enumerate() {
                results[*at] = match &outcome {
                    Ok(applied) => match applied.get(nth) {
                        Some(result) => result.clone().map(drop),
                        None => Err(Refusal::no_answer()),
                    },
                    Err(refusal) => Err(refusal.clone()),
                };
                let moved_on = |refusal: &Refusal| refusal.code == ErrorCode::InvalidUpdateVersion;
                if results[*at].as_ref().is_err_and(moved_on) {
                    open.push(*at);
                }
            }
        }
        if open.is_empty() {
            break;
        }
    }
    results
}
