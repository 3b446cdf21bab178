//! Elections and reassignments, as the administration service is asked for them.

use kittiwake_proto::kittiwake::admin::v1 as proto;
use kittiwake_raft::{BrokerId, ClusterImage};
use tonic::Status;

use super::service::ids;
use super::status::status;
use crate::api::ErrorCode;
use crate::broker::Broker;
use crate::controller::Refusal;
use crate::controller::elections::ElectionType;
use crate::controller::partitions::{self, Move, PartitionName};
use crate::controller::reassignment::in_progress;

pub(super) async fn elect_leaders(
    broker: &Broker,
    request: proto::ElectLeadersRequest,
) -> Result<proto::ElectLeadersResponse, Status> {
    let kind = match request.unclean {
        true => ElectionType::Unclean,
        false => ElectionType::Preferred,
    };
    let names = selected(&broker.image(), request.partitions)?;
    let results = partitions::elect_leaders(broker, kind, &names).await;
    let results = names.into_iter().zip(results);
    let not_needed = |result: &Result<(), Refusal>| {
        result
            .as_ref()
            .is_err_and(|refusal| refusal.code == ErrorCode::ElectionNotNeeded)
    };
    Ok(proto::ElectLeadersResponse {
        results: results
            .filter(|(_, result)| !not_needed(result))
            .map(|(name, result)| told(name, result))
            .collect(),
    })
}

/// The partitions meant; all of them where none are named.
fn selected(
    image: &ClusterImage,
    selectors: Vec<proto::PartitionSelector>,
) -> Result<Vec<PartitionName>, Status> {
    if selectors.is_empty() {
        return Ok(partitions::all(image));
    }
    let mut names = Vec::new();
    for proto::PartitionSelector { topic, partition } in selectors {
        if let Some(partition) = partition {
            names.push(PartitionName { topic, partition });
            continue;
        }
        let found = image.topic_by_name(&topic).ok_or_else(|| {
            let refusal = Refusal::unknown_topic(&topic);
            status(refusal.code, refusal.message)
        })?;
        let every = (0..).zip(&found.partitions);
        names.extend(every.map(|(partition, _)| PartitionName {
            topic: topic.clone(),
            partition,
        }));
    }
    Ok(names)
}

pub(super) async fn alter_reassignments(
    broker: &Broker,
    request: proto::AlterReassignmentsRequest,
) -> proto::AlterReassignmentsResponse {
    let moves: Vec<Move> = request
        .moves
        .into_iter()
        .map(|one| Move {
            partition: PartitionName {
                topic: one.topic,
                partition: one.partition,
            },
            replicas: (!one.replicas.is_empty())
                .then(|| one.replicas.into_iter().map(BrokerId).collect()),
        })
        .collect();
    let results = partitions::reassign(broker, &moves, true).await;
    let results = moves.into_iter().zip(results);
    proto::AlterReassignmentsResponse {
        results: results
            .map(|(one, result)| told(one.partition, result))
            .collect(),
    }
}

fn told(name: PartitionName, result: Result<(), Refusal>) -> proto::PartitionResult {
    proto::PartitionResult {
        topic: name.topic,
        partition: name.partition,
        error: result.err().map(|refusal| refusal.message),
    }
}

pub(super) fn list_reassignments(image: &ClusterImage) -> proto::ListReassignmentsResponse {
    let mut reassignments = Vec::new();
    for topic in image.topics() {
        for (index, partition) in (0..).zip(&topic.partitions) {
            if in_progress(partition) {
                reassignments.push(proto::OngoingReassignment {
                    topic: topic.name.clone(),
                    partition: index,
                    replicas: ids(&partition.replicas),
                    adding: ids(&partition.adding),
                    removing: ids(&partition.removing),
                    isr: ids(&partition.isr),
                });
            }
        }
    }
    reassignments.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    proto::ListReassignmentsResponse { reassignments }
}
