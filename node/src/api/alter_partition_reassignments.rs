//! AlterPartitionReassignments 0–1 (KIP-455): partitions move to other brokers, or, where the replicas are null, go back
//! to where they were. Whether the number of replicas may change is asked from v1 on (KIP-860); before it may.
//!
//! Errors, each of one partition: UNKNOWN_TOPIC_OR_PARTITION, INVALID_REPLICA_ASSIGNMENT, INVALID_REPLICATION_FACTOR,
//! NO_REASSIGNMENT_IN_PROGRESS. The others' moves begin all the same.

use kafka_wire::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_wire::{AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse};
use kafka_wire_core::StrBytes;
use kittiwake_raft::BrokerId;

use super::RequestContext;
use crate::controller::partitions::{Move, PartitionName, reassign};

const FACTOR_FROM: i16 = 1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: AlterPartitionReassignmentsRequest,
    version: i16,
) -> AlterPartitionReassignmentsResponse {
    let mut moves = Vec::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            let replicas = partition.replicas.as_ref();
            moves.push(Move {
                partition: PartitionName {
                    topic: topic.name.to_string(),
                    partition: partition.partition_index,
                },
                replicas: replicas.map(|ids| ids.iter().copied().map(BrokerId).collect()),
            });
        }
    }
    let factor_may_change = version < FACTOR_FROM || request.allow_replication_factor_change;
    let results = reassign(&ctx.broker, &moves, factor_may_change).await;
    let mut results = results.into_iter();

    let mut response = AlterPartitionReassignmentsResponse::default();
    response.allow_replication_factor_change = factor_may_change;
    response.error_message = None;
    for topic in request.topics {
        let mut answer = ReassignableTopicResponse::default();
        answer.name = topic.name;
        for (partition, result) in topic.partitions.iter().zip(results.by_ref()) {
            let mut told = ReassignablePartitionResponse::default();
            told.partition_index = partition.partition_index;
            told.error_message = None;
            if let Err(refusal) = result {
                told.error_code = refusal.code.code();
                told.error_message = Some(StrBytes::from(refusal.message));
            }
            answer.partitions.push(told);
        }
        response.responses.push(answer);
    }
    response
}
