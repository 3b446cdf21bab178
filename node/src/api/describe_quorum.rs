//! DescribeQuorum 0–2 (KIP-595, KIP-836, KIP-853): the metadata quorum, under the name of Kafka's metadata log,
//! `__cluster_metadata` with its one partition. Anything else is UNKNOWN_TOPIC_OR_PARTITION.
//!
//! Offsets are those of the metadata log; how far the others are the controller knows, which is asked. Followers do not
//! fetch here: the times of their last fetch are -1, unknown.

use kafka_wire::describe_quorum_response::{
    Listener, Node, PartitionData, ReplicaState, TopicData,
};
use kafka_wire::{DescribeQuorumRequest, DescribeQuorumResponse};
use kafka_wire_core::{StrBytes, Uuid};
use kittiwake_proto::kittiwake::admin::v1 as admin;
use kittiwake_raft::DirectoryId;

use super::metadata::NO_BROKER;
use super::{ErrorCode, RequestContext};
use crate::admin::quorum::ask_controller;
use crate::config::address::HostPort;

const METADATA_TOPIC: &str = "__cluster_metadata";
const METADATA_PARTITION: i32 = 0;

/// What a member's gRPC address is called among listeners.
const LISTENER: &str = "GRPC";

/// First version that knows directories and listeners (KIP-853).
const DIRECTORIES_FROM: i16 = 2;

const UNKNOWN: i64 = -1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DescribeQuorumRequest,
    version: i16,
) -> DescribeQuorumResponse {
    answer(request, &ask_controller(&ctx.broker).await, version)
}

fn answer(
    request: DescribeQuorumRequest,
    quorum: &admin::GetQuorumResponse,
    version: i16,
) -> DescribeQuorumResponse {
    let mut response = DescribeQuorumResponse::default();
    response.error_message = None;
    for asked in request.topics {
        let mut topic = TopicData::default();
        for index in asked.partitions.iter().map(|one| one.partition_index) {
            let known = *asked.topic_name == *METADATA_TOPIC && index == METADATA_PARTITION;
            let mut partition = PartitionData::default();
            partition.error_message = None;
            if known {
                describe(&mut partition, quorum, version);
            } else {
                partition.error_code = ErrorCode::UnknownTopicOrPartition.code();
            }
            partition.partition_index = index;
            topic.partitions.push(partition);
        }
        topic.topic_name = asked.topic_name;
        response.topics.push(topic);
    }
    if version >= DIRECTORIES_FROM {
        response.nodes = quorum.members.iter().map(node).collect();
    }
    response
}

fn describe(partition: &mut PartitionData, quorum: &admin::GetQuorumResponse, version: i16) {
    partition.leader_id = quorum.controller.unwrap_or(NO_BROKER);
    partition.leader_epoch = i32::try_from(quorum.term).unwrap_or(i32::MAX);
    partition.high_watermark = offset(quorum.committed);
    for member in &quorum.members {
        let mut state = ReplicaState::default();
        state.replica_id = member.node_id;
        if version >= DIRECTORIES_FROM
            && let Ok(directory) = member.directory_id.parse::<DirectoryId>()
        {
            state.replica_directory_id = Uuid::from_bytes(directory.to_bytes());
        }
        state.log_end_offset = offset(member.log_end);
        state.last_fetch_timestamp = UNKNOWN;
        state.last_caught_up_timestamp = UNKNOWN;
        if member.voter {
            partition.current_voters.push(state);
        } else {
            partition.observers.push(state);
        }
    }
}

fn offset(offset: Option<u64>) -> i64 {
    offset
        .and_then(|offset| i64::try_from(offset).ok())
        .unwrap_or(UNKNOWN)
}

fn node(member: &admin::QuorumMember) -> Node {
    let mut node = Node::default();
    node.node_id = member.node_id;
    if let Ok(address) = member.address.parse::<HostPort>() {
        let mut listener = Listener::default();
        listener.name = StrBytes::from(LISTENER);
        listener.host = StrBytes::from(address.host);
        listener.port = address.port;
        node.listeners.push(listener);
    }
    node
}

#[cfg(test)]
mod tests {
    use kafka_wire::describe_quorum_request as asked;

    use super::*;

    #[test]
    fn the_quorum_is_described_under_kafkas_name_for_it_alone() {
        let member = |node_id, voter, log_end| admin::QuorumMember {
            node_id,
            directory_id: DirectoryId::random().to_string(),
            address: format!("host-{node_id}:9192"),
            voter,
            log_end,
        };
        let quorum = admin::GetQuorumResponse {
            controller: Some(1),
            term: 7,
            committed: Some(40),
            members: vec![member(1, true, Some(41)), member(2, false, None)],
        };
        let mut request = DescribeQuorumRequest::default();
        for (name, index) in [(METADATA_TOPIC, 0), (METADATA_TOPIC, 1), ("t", 0)] {
            let mut topic = asked::TopicData::default();
            topic.topic_name = StrBytes::from(name);
            let mut partition = asked::PartitionData::default();
            partition.partition_index = index;
            topic.partitions = vec![partition];
            request.topics.push(topic);
        }
        let response = answer(request, &quorum, DIRECTORIES_FROM);
        let codes: Vec<i16> = response
            .topics
            .iter()
            .map(|topic| topic.partitions[0].error_code)
            .collect();
        assert_eq!(codes, [0, 3, 3]);
        let partition = &response.topics[0].partitions[0];
        assert_eq!((partition.leader_id, partition.leader_epoch), (1, 7));
        assert_eq!(partition.high_watermark, 40);
        assert_eq!(partition.current_voters[0].log_end_offset, 41);
        assert_eq!(partition.observers[0].log_end_offset, -1);
        assert_eq!(response.nodes[0].listeners[0].port, 9192);
    }
}
