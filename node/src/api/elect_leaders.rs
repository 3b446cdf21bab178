//! ElectLeaders 0–2 (KIP-183, KIP-460): preferred leaders, from v1 also unclean elections. No topics (null) means every
//! partition; those that need no election are then left out of the answer, as in Kafka.
//!
//! Errors, each of one partition: UNKNOWN_TOPIC_OR_PARTITION, ELECTION_NOT_NEEDED, PREFERRED_LEADER_NOT_AVAILABLE,
//! ELIGIBLE_LEADERS_NOT_AVAILABLE; INVALID_REQUEST for an unknown type of election.

use kafka_wire::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_wire::{ElectLeadersRequest, ElectLeadersResponse};
use kafka_wire_core::StrBytes;

use super::{ErrorCode, RequestContext};
use crate::controller::Refusal;
use crate::controller::elections::ElectionType;
use crate::controller::partitions::{self, PartitionName, elect_leaders};

const TYPES_FROM: i16 = 1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: ElectLeadersRequest,
    version: i16,
) -> ElectLeadersResponse {
    let kind = match version {
        ..TYPES_FROM => Some(ElectionType::Preferred),
        _ => ElectionType::from_wire(request.election_type),
    };
    let asked_for_all = request.topic_partitions.is_none();
    let names = match request.topic_partitions {
        None => partitions::all(&ctx.broker.image()),
        Some(topics) => topics
            .into_iter()
            .flat_map(|topic| {
                let name = move |partition| PartitionName {
                    topic: topic.topic.to_string(),
                    partition,
                };
                topic.partitions.into_iter().map(name)
            })
            .collect(),
    };
    let Some(kind) = kind else {
        let message = format!("Unknown election type {}.", request.election_type);
        let refusal = Refusal::new(ErrorCode::InvalidRequest, message);
        return answer(names.into_iter().map(|name| (name, Err(refusal.clone()))));
    };
    let results = elect_leaders(&ctx.broker, kind, &names).await;
    let needed = |result: &Result<(), Refusal>| {
        let not_needed = |refusal: &Refusal| refusal.code == ErrorCode::ElectionNotNeeded;
        !(asked_for_all && result.as_ref().is_err_and(not_needed))
    };
    let results = names.into_iter().zip(results);
    answer(results.filter(|(_, result)| needed(result)))
}

/// The results, those of one topic together where they were asked for together.
fn answer(
    results: impl Iterator<Item = (PartitionName, Result<(), Refusal>)>,
) -> ElectLeadersResponse {
    let mut response = ElectLeadersResponse::default();
    for (name, result) in results {
        let mut partition = PartitionResult::default();
        partition.partition_id = name.partition;
        partition.error_message = None;
        if let Err(refusal) = result {
            partition.error_code = refusal.code.code();
            partition.error_message = Some(StrBytes::from(refusal.message));
        }
        let topics = &mut response.replica_election_results;
        match topics.last_mut() {
            Some(topic) if *topic.topic == *name.topic => topic.partition_result.push(partition),
            _ => {
                let mut topic = ReplicaElectionResult::default();
                topic.topic = StrBytes::from(name.topic);
                topic.partition_result.push(partition);
                topics.push(topic);
            }
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_by_topic_each_with_its_error() {
        let name = |topic: &str, partition| PartitionName {
            topic: topic.into(),
            partition,
        };
        let refused = || Err(Refusal::new(ErrorCode::ElectionNotNeeded, "led already"));
        let response = answer(
            [
                (name("a", 0), Ok(())),
                (name("a", 1), refused()),
                (name("b", 0), Ok(())),
            ]
            .into_iter(),
        );
        let told: Vec<(&str, Vec<(i32, i16)>)> = response
            .replica_election_results
            .iter()
            .map(|topic| {
                let of = |one: &PartitionResult| (one.partition_id, one.error_code);
                (
                    &*topic.topic,
                    topic.partition_result.iter().map(of).collect(),
                )
            })
            .collect();
        assert_eq!(told, [("a", vec![(0, 0), (1, 84)]), ("b", vec![(0, 0)])]);
    }
}
