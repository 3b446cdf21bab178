//! ListPartitionReassignments 0 (KIP-455): the partitions that move, of all topics (null) or of those named. Those that do
//! not move, or do not exist, are left out.

use std::collections::BTreeSet;

use kafka_wire::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use kafka_wire::{ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse};
use kafka_wire_core::StrBytes;
use kittiwake_raft::{BrokerId, ClusterImage, Topic};

use super::RequestContext;
use crate::controller::reassignment::in_progress;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: ListPartitionReassignmentsRequest,
    _version: i16,
) -> ListPartitionReassignmentsResponse {
    list(&ctx.broker.image(), &request)
}

fn list(
    image: &ClusterImage,
    request: &ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let mut response = ListPartitionReassignmentsResponse::default();
    response.error_message = None;
    match &request.topics {
        None => {
            let ongoing = image.topics().filter_map(|topic| moving(topic, |_| true));
            response.topics = ongoing.collect();
        }
        Some(named) => {
            for asked in named {
                let indexes: BTreeSet<i32> = asked.partition_indexes.iter().copied().collect();
                let topic = image.topic_by_name(&asked.name);
                let ongoing =
                    topic.and_then(|topic| moving(topic, |index| indexes.contains(&index)));
                response.topics.extend(ongoing);
            }
        }
    }
    response
}

/// The moving partitions of a topic, those that are wanted; none if there are none.
fn moving(topic: &Topic, wanted: impl Fn(i32) -> bool) -> Option<OngoingTopicReassignment> {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.0).collect();
    let mut answer = OngoingTopicReassignment::default();
    for (index, partition) in (0..).zip(&topic.partitions) {
        if in_progress(partition) && wanted(index) {
            let mut ongoing = OngoingPartitionReassignment::default();
            ongoing.partition_index = index;
            ongoing.replicas = ids(&partition.replicas);
            ongoing.adding_replicas = ids(&partition.adding);
            ongoing.removing_replicas = ids(&partition.removing);
            answer.partitions.push(ongoing);
        }
    }
    answer.name = StrBytes::from(topic.name.as_str());
    (!answer.partitions.is_empty()).then_some(answer)
}

#[cfg(test)]
mod tests {
    use kafka_wire::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
    use kittiwake_raft::{Command, PartitionChange};

    use super::*;
    use crate::controller::partitions::unchanged;
    use crate::controller::reassignment::start;
    use crate::controller::tests_support::{apply, create, image_of};

    #[test]
    fn only_what_moves_is_listed() {
        let mut image = image_of(3);
        let on = |ids: &[i32]| ids.iter().copied().map(BrokerId).collect::<Vec<_>>();
        create(&mut image, "still", &[], vec![on(&[0])]);
        create(&mut image, "moving", &[], vec![on(&[0]), on(&[0, 1])]);
        let topic = Topic::clone(image.topic_by_name("moving").unwrap());
        let partition = &topic.partitions[1];
        let replicas = start(&image, partition, &on(&[2, 1]), true).unwrap();
        let change = PartitionChange {
            replicas,
            ..unchanged(&topic, 1, partition)
        };
        apply(&mut image, Command::AlterPartitions(vec![change]));

        let named = |name: &str, indexes: &[i32]| {
            let mut topic = ListPartitionReassignmentsTopics::default();
            topic.name = StrBytes::from(name);
            topic.partition_indexes = indexes.to_vec();
            let mut request = ListPartitionReassignmentsRequest::default();
            request.topics = Some(vec![topic]);
            request
        };
        let mut all = ListPartitionReassignmentsRequest::default();
        all.topics = None;
        for request in [all, named("moving", &[0, 1, 7])] {
            let listed = list(&image, &request);
            let ongoing = &listed.topics[0].partitions[0];
            assert_eq!(
                (listed.topics.len(), listed.topics[0].partitions.len()),
                (1, 1)
            );
            assert_eq!(&*listed.topics[0].name, "moving");
            assert_eq!(ongoing.partition_index, 1);
            assert_eq!(ongoing.replicas, [2, 0, 1]);
            assert_eq!(ongoing.adding_replicas, [2]);
            assert_eq!(ongoing.removing_replicas, [0]);
        }
        for request in [
            named("moving", &[0]),
            named("still", &[0]),
            named("no", &[0]),
        ] {
            assert_eq!(list(&image, &request).topics, []);
        }
    }
}
