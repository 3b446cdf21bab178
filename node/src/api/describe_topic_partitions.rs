//! DescribeTopicPartitions 0 (KIP-966): topics with their eligible leader replicas, in pages.
//!
//! Topics come by name, all of them where none is named. A page ends after `response_partition_limit` partitions, at most
//! [`PARTITIONS_PER_PAGE_MAX`], and says where the next begins; a cursor at a topic that is gone goes on with the one
//! after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_wire::describe_topic_partitions_request::Cursor as From;
use kafka_wire::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_wire::{DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse};
use kafka_wire_core::{StrBytes, Uuid};
use kittiwake_raft::Partition;
use kittiwake_raft::image::validate_topic_name;

use super::metadata::{NO_BROKER, TOPIC_OPERATIONS, View, ids};
use super::{ErrorCode, RequestContext};
use crate::controller::topics::is_internal;

/// Kafka's `max.request.partition.size.limit`.
const PARTITIONS_PER_PAGE_MAX: usize = 2_000;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DescribeTopicPartitionsRequest,
    _version: i16,
) -> DescribeTopicPartitionsResponse {
    ctx.broker.voter.settled().await;
    let image = ctx.broker.quorum.image();
    let view = View {
        image: Arc::clone(&image),
        listener: &ctx.peer.listener,
        operations: true,
    };
    let names: BTreeSet<&str> = if request.topics.is_empty() {
        image.topics().map(|topic| topic.name.as_str()).collect()
    } else {
        request
            .topics
            .iter()
            .map(|topic| topic.name.as_str())
            .collect()
    };
    let limit = usize::try_from(request.response_partition_limit)
        .unwrap_or(1)
        .clamp(1, PARTITIONS_PER_PAGE_MAX);
    page(&view, &names, request.cursor.as_ref(), limit)
}

fn page(
    view: &View<'_>,
    names: &BTreeSet<&str>,
    from: Option<&From>,
    limit: usize,
) -> DescribeTopicPartitionsResponse {
    let mut response = DescribeTopicPartitionsResponse::default();
    let first_name = from.map_or("", |cursor| cursor.topic_name.as_str());
    let mut left = limit;
    for name in names.range(first_name..) {
        let first = match from {
            Some(cursor) if cursor.topic_name.as_str() == *name => {
                usize::try_from(cursor.partition_index).unwrap_or(0)
            }
            _ => 0,
        };
        if left == 0 {
            response.next_cursor = Some(cursor(name, first));
            break;
        }
        let (topic, next) = topic(view, name, first, left);
        left -= topic.partitions.len();
        response.topics.push(topic);
        if let Some(next) = next {
            response.next_cursor = Some(cursor(name, next));
            break;
        }
    }
    response
}

fn cursor(name: &str, partition: usize) -> Cursor {
    let mut cursor = Cursor::default();
    cursor.topic_name = StrBytes::from(name);
    cursor.partition_index = i32::try_from(partition).unwrap_or(i32::MAX);
    cursor
}

/// At most `limit` partitions of a topic, and which comes next if that was not all.
fn topic(
    view: &View<'_>,
    name: &str,
    first: usize,
    limit: usize,
) -> (DescribeTopicPartitionsResponseTopic, Option<usize>) {
    let mut answer = DescribeTopicPartitionsResponseTopic::default();
    answer.name = Some(StrBytes::from(name));
    answer.is_internal = is_internal(name);
    answer.topic_authorized_operations = TOPIC_OPERATIONS;
    let Some(topic) = view.image.topic_by_name(name) else {
        let invalid = validate_topic_name(name).is_err();
        let error = if invalid {
            ErrorCode::InvalidTopicException
        } else {
            ErrorCode::UnknownTopicOrPartition
        };
        answer.error_code = error.code();
        return (answer, None);
    };
    answer.topic_id = Uuid::from_bytes(topic.id.to_bytes());
    let wanted = (0..).zip(&topic.partitions).skip(first).take(limit);
    answer.partitions = wanted
        .map(|(index, of)| partition(view, index, of))
        .collect();
    let next = first.saturating_add(limit);
    (
        answer,
        Some(next).filter(|next| *next < topic.partitions.len()),
    )
}

fn partition(
    view: &View<'_>,
    index: i32,
    partition: &Partition,
) -> DescribeTopicPartitionsResponsePartition {
    let mut answer = DescribeTopicPartitionsResponsePartition::default();
    let leader = view.leader(partition);
    if leader.is_none() {
        answer.error_code = ErrorCode::LeaderNotAvailable.code();
    }
    answer.partition_index = index;
    answer.leader_id = leader.map_or(NO_BROKER, |id| id.0);
    answer.leader_epoch = partition.leader_epoch;
    answer.replica_nodes = ids(&partition.replicas);
    answer.isr_nodes = ids(&partition.isr);
    answer.eligible_leader_replicas = Some(ids(&partition.elr));
    answer.last_known_elr = Some(ids(partition.last_known_leader.as_slice()));
    answer.offline_replicas = view.offline(partition);
    answer
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::BrokerId;

    use super::*;
    use crate::controller::tests_support::{LISTENER, create, image_of};

    #[test]
    fn pages_of_any_size_cover_everything_once() {
        let mut image = image_of(1);
        for (name, partitions) in [("a", 3), ("b", 1), ("c", 4)] {
            create(&mut image, name, &[], vec![vec![BrokerId(0)]; partitions]);
        }
        let view = View {
            image: Arc::new(image),
            listener: LISTENER,
            operations: true,
        };
        let names = BTreeSet::from(["a", "b", "c", "gone"]);
        for limit in 1..=9 {
            let mut seen: Vec<(String, i32)> = Vec::new();
            let mut unknown = 0;
            let mut from: Option<From> = None;
            for _ in 0..20 {
                let answer = page(&view, &names, from.as_ref(), limit);
                for topic in answer.topics {
                    let name = topic.name.unwrap().to_string();
                    unknown += usize::from(topic.error_code != 0);
                    assert!(topic.partitions.len() <= limit);
                    seen.extend(
                        topic
                            .partitions
                            .iter()
                            .map(|partition| (name.clone(), partition.partition_index)),
                    );
                }
                let Some(next) = answer.next_cursor else {
                    break;
                };
                let mut cursor = From::default();
                cursor.topic_name = next.topic_name;
                cursor.partition_index = next.partition_index;
                from = Some(cursor);
            }
            let all = [("a", 3), ("b", 1), ("c", 4)];
            let expected: Vec<_> = all
                .iter()
                .flat_map(|(name, count)| (0..*count).map(|index| ((*name).to_owned(), index)))
                .collect();
            assert_eq!((seen, unknown), (expected, 1), "limit {limit}");
        }
    }

    #[test]
    fn a_cursor_at_a_topic_that_is_gone_goes_on_after_it() {
        let mut image = image_of(1);
        create(&mut image, "c", &[], vec![vec![BrokerId(0)]]);
        let view = View {
            image: Arc::new(image),
            listener: LISTENER,
            operations: true,
        };
        let mut from = From::default();
        from.topic_name = "b".into();
        from.partition_index = 7;
        let answer = page(&view, &BTreeSet::from(["c"]), Some(&from), 10);
        assert_eq!(answer.topics[0].partitions.len(), 1);
    }
}
