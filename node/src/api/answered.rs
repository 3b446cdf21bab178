//! What `/metrics` is told of an answered request: how long it took, and the first error in its response.
//!
//! A request is timed from when it is whole until its response is ready, so long polls and acks=all count with their
//! wait. Most responses carry their errors in a list of lists; the table below says where. A request that gets no
//! response but a closed connection is not an answered one.

use kafka_wire::{
    AlterConfigsResponse, AlterPartitionReassignmentsResponse, ApiVersionsResponse,
    CreatePartitionsResponse, CreateTopicsResponse, DeleteGroupsResponse, DeleteRecordsResponse,
    DeleteTopicsResponse, DescribeClusterResponse, DescribeConfigsResponse, DescribeGroupsResponse,
    DescribeLogDirsResponse, DescribeQuorumResponse, DescribeTopicPartitionsResponse,
    ElectLeadersResponse, FindCoordinatorResponse, HeartbeatResponse,
    IncrementalAlterConfigsResponse, InitProducerIdResponse, JoinGroupResponse, LeaveGroupResponse,
    ListConfigResourcesResponse, ListGroupsResponse, ListOffsetsResponse,
    ListPartitionReassignmentsResponse, MetadataResponse, OffsetCommitResponse,
    OffsetDeleteResponse, OffsetFetchResponse, OffsetForLeaderEpochResponse, ProduceResponse,
    SyncGroupResponse, UnregisterBrokerResponse,
};
use std::sync::Arc;
use std::time::Instant;

use super::ErrorCode;
use crate::metrics::Metrics;

/// Times one request.
pub(super) struct Stopwatch {
    metrics: Arc<Metrics>,
    api_key: i16,
    started: Instant,
}

impl Stopwatch {
    /// Starts now.
    pub(super) fn start(metrics: &Arc<Metrics>, api_key: i16) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            api_key,
            started: Instant::now(),
        }
    }

    /// Counts the request: its response is ready, and this is the first error in it.
    pub(super) fn answered(self, error: Option<ErrorCode>) {
        if let Some(api) = self.metrics.api(self.api_key) {
            api.answered(self.started.elapsed(), error.map(ErrorCode::name));
        }
    }
}

/// A response that may say that something went wrong.
pub(super) trait FirstError {
    /// The first error in it: of the whole, else of the first part that has one.
    fn first_error(&self) -> Option<ErrorCode>;
}

/// The error that a code stands for, if it stands for one.
fn error(code: i16) -> Option<ErrorCode> {
    let known = ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError);
    known.is_error().then_some(known)
}

/// `first_error!(response, a b)` looks at the `error_code` of each element of each `a`'s `b`.
macro_rules! first_error {
    ($value:expr,) => {
        error($value.error_code)
    };
    ($value:expr, $list:ident $($inner:ident)*) => {
        $value.$list.iter().find_map(|element| first_error!(element, $($inner)*))
    };
}

/// Where each response has its error codes; `()` is the response itself.
macro_rules! error_codes {
    ($($response:ident: $(($($list:ident)*)),+;)+) => {
        $(impl FirstError for $response {
            fn first_error(&self) -> Option<ErrorCode> {
                None$(.or_else(|| first_error!(self, $($list)*)))+
            }
        })+
    };
}

error_codes! {
    ProduceResponse: (responses partition_responses);
    ListOffsetsResponse: (topics partitions);
    MetadataResponse: (), (topics), (topics partitions);
    OffsetCommitResponse: (topics partitions);
    OffsetFetchResponse: (), (topics partitions), (groups), (groups topics partitions);
    FindCoordinatorResponse: (), (coordinators);
    JoinGroupResponse: ();
    HeartbeatResponse: ();
    LeaveGroupResponse: (), (members);
    SyncGroupResponse: ();
    DescribeGroupsResponse: (groups);
    ListGroupsResponse: ();
    ApiVersionsResponse: ();
    CreateTopicsResponse: (topics);
    DeleteTopicsResponse: (responses);
    DeleteRecordsResponse: (topics partitions);
    InitProducerIdResponse: ();
    OffsetForLeaderEpochResponse: (topics partitions);
    DescribeConfigsResponse: (results);
    AlterConfigsResponse: (responses);
    DescribeLogDirsResponse: (), (results);
    CreatePartitionsResponse: (results);
    DeleteGroupsResponse: (results);
    ElectLeadersResponse: (), (replica_election_results partition_result);
    IncrementalAlterConfigsResponse: (responses);
    AlterPartitionReassignmentsResponse: (), (responses partitions);
    ListPartitionReassignmentsResponse: ();
    OffsetDeleteResponse: (), (topics partitions);
    DescribeQuorumResponse: (), (topics partitions);
    DescribeClusterResponse: ();
    UnregisterBrokerResponse: ();
    ListConfigResourcesResponse: ();
    DescribeTopicPartitionsResponse: (topics), (topics partitions);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_wire::produce_response::{PartitionProduceResponse, TopicProduceResponse};

    fn produced(codes: &[&[i16]]) -> ProduceResponse {
        let partition = |&code: &i16| {
            let mut partition = PartitionProduceResponse::default();
            partition.error_code = code;
            partition
        };
        let topic = |codes: &&[i16]| {
            let mut topic = TopicProduceResponse::default();
            topic.partition_responses = codes.iter().map(partition).collect();
            topic
        };
        let mut response = ProduceResponse::default();
        response.responses = codes.iter().map(topic).collect();
        response
    }

    #[test]
    fn the_first_error_of_any_part_is_found() {
        assert_eq!(produced(&[]).first_error(), None);
        assert_eq!(produced(&[&[0, 0], &[0]]).first_error(), None);
        assert_eq!(
            produced(&[&[0], &[0, 19, 6]]).first_error(),
            Some(ErrorCode::NotEnoughReplicas)
        );
    }

    #[test]
    fn an_error_of_the_whole_goes_before_those_of_its_parts() {
        let mut response = MetadataResponse::default();
        response.topics = vec![Default::default()];
        response.topics[0].error_code = ErrorCode::UnknownTopicOrPartition.code();
        assert_eq!(
            response.first_error(),
            Some(ErrorCode::UnknownTopicOrPartition)
        );
        response.error_code = ErrorCode::RequestTimedOut.code();
        assert_eq!(response.first_error(), Some(ErrorCode::RequestTimedOut));
    }

    #[test]
    fn a_code_without_a_name_is_an_unknown_error_not_none() {
        assert_eq!(
            produced(&[&[999]]).first_error(),
            Some(ErrorCode::UnknownServerError)
        );
    }
}
