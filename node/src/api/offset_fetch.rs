//! OffsetFetch 1–10: how far groups have read.
//!
//! Nothing committed is offset −1 with empty metadata and no error, for an unknown group too. v2+ takes
//! null topics for "all" and has an error for the whole group, v8+ takes several groups (KIP-709), v10
//! names topics by id (UNKNOWN_TOPIC_ID). v7+ may ask for stable offsets only (KIP-447): there are no
//! transactions, so every offset is stable. While the coordinator loads the answer is
//! COORDINATOR_LOAD_IN_PROGRESS, never −1. What was committed for a deleted topic is not answered, also
//! while its tombstone is not written yet; nor for another topic of its name, where the record says which
//! topic it was.

use kafka_wire::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_wire::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_wire::{OffsetFetchRequest, OffsetFetchResponse};
use kafka_wire_core::Uuid;
use kittiwake_raft::{ClusterImage, TopicId};

use super::{ErrorCode, RequestContext};
use crate::coordinator::{GroupError, OffsetsOfGroup};

const GROUP_ERROR_FROM: i16 = 2;
const GROUPS_FROM: i16 = 8;
const TOPIC_IDS_FROM: i16 = 10;
const NO_OFFSET: i64 = -1;
const NO_EPOCH: i32 = -1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: OffsetFetchRequest,
    version: i16,
) -> OffsetFetchResponse {
    let mut response = OffsetFetchResponse::default();
    if version >= GROUPS_FROM {
        for group in request.groups {
            response.groups.push(fetch(&ctx, group, version).await);
        }
        return response;
    }
    let mut group = OffsetFetchRequestGroup::default();
    group.group_id = request.group_id;
    group.topics = request
        .topics
        .map(|topics| topics.into_iter().map(as_group_topic).collect());
    let fetched = fetch(&ctx, group, version).await;
    response.error_code = fetched.error_code;
    response.topics = fetched.topics.into_iter().map(as_single_topic).collect();
    response
}

async fn fetch(
    ctx: &RequestContext,
    group: OffsetFetchRequestGroup,
    version: i16,
) -> OffsetFetchResponseGroup {
    let found = ctx
        .broker
        .groups
        .offsets(&group.group_id, |offsets| {
            // Not before: offsets of topics it does not know yet would look like those of deleted ones.
            let image = ctx.broker.quorum.image();
            match &group.topics {
                Some(topics) => topics
                    .iter()
                    .map(|topic| some_offsets(&image, topic, offsets, version))
                    .collect(),
                None => all_offsets(&image, offsets),
            }
        })
        .await;
    let mut response = OffsetFetchResponseGroup::default();
    match found {
        Ok(topics) => response.topics = topics,
        Err(error) if version >= GROUP_ERROR_FROM => response.error_code = error.code().code(),
        Err(error) => {
            let topics = group.topics.iter().flatten();
            response.topics = topics.map(|topic| refused(topic, error.code())).collect();
        }
    }
    response.group_id = group.group_id;
    response
}

fn some_offsets(
    image: &ClusterImage,
    wanted: &OffsetFetchRequestTopics,
    offsets: Option<&OffsetsOfGroup>,
    version: i16,
) -> OffsetFetchResponseTopics {
    let (name, topic) = if version >= TOPIC_IDS_FROM {
        let topic = TopicId::from_bytes(wanted.topic_id.to_bytes()).and_then(|id| image.topic(id));
        match topic {
            Some(topic) => (topic.name.as_str(), Some(&**topic)),
            None => return refused(wanted, GroupError::UnknownTopicId.code()),
        }
    } else {
        let name = wanted.name.as_str();
        (name, image.topic_by_name(name).map(|topic| &**topic))
    };
    let committed = offsets.and_then(|offsets| offsets.get(name));
    let mut answer = OffsetFetchResponseTopics::default();
    answer.name = wanted.name.clone();
    answer.topic_id = wanted.topic_id;
    for &index in &wanted.partition_indexes {
        let mut partition = nothing_committed(index);
        if let Some(offset) = committed
            .and_then(|partitions| partitions.get(&index))
            .filter(|offset| offset.is_of(topic))
        {
            partition.committed_offset = offset.offset;
            partition.committed_leader_epoch = offset.leader_epoch;
            partition.metadata = Some((&*offset.metadata).into());
        }
        answer.partitions.push(partition);
    }
    answer
}

fn all_offsets(
    image: &ClusterImage,
    offsets: Option<&OffsetsOfGroup>,
) -> Vec<OffsetFetchResponseTopics> {
    let mut answers = Vec::new();
    for (name, partitions) in offsets.into_iter().flatten() {
        let mut answer = OffsetFetchResponseTopics::default();
        answer.name = (&**name).into();
        let Some(topic) = image.topic_by_name(name) else {
            continue;
        };
        answer.topic_id = Uuid::from_bytes(topic.id.to_bytes());
        for (&index, offset) in partitions {
            if !offset.is_of(Some(topic)) {
                continue;
            }
            let mut partition = nothing_committed(index);
            partition.committed_offset = offset.offset;
            partition.committed_leader_epoch = offset.leader_epoch;
            partition.metadata = Some((&*offset.metadata).into());
            answer.partitions.push(partition);
        }
        if !answer.partitions.is_empty() {
            answers.push(answer);
        }
    }
    answers
}

fn refused(wanted: &OffsetFetchRequestTopics, error: ErrorCode) -> OffsetFetchResponseTopics {
    let mut answer = OffsetFetchResponseTopics::default();
    answer.name = wanted.name.clone();
    answer.topic_id = wanted.topic_id;
    for &index in &wanted.partition_indexes {
        let mut partition = nothing_committed(index);
        partition.error_code = error.code();
        answer.partitions.push(partition);
    }
    answer
}

fn nothing_committed(index: i32) -> OffsetFetchResponsePartitions {
    let mut partition = OffsetFetchResponsePartitions::default();
    partition.partition_index = index;
    partition.committed_offset = NO_OFFSET;
    partition.committed_leader_epoch = NO_EPOCH;
    partition.metadata = Some(Default::default());
    partition
}

/// A topic of a request below v8 as one of v8.
fn as_group_topic(topic: OffsetFetchRequestTopic) -> OffsetFetchRequestTopics {
    let mut same = OffsetFetchRequestTopics::default();
    same.name = topic.name;
    same.partition_indexes = topic.partition_indexes;
    same
}

/// A topic of a response of v8 as one below.
fn as_single_topic(topic: OffsetFetchResponseTopics) -> OffsetFetchResponseTopic {
    let mut same = OffsetFetchResponseTopic::default();
    same.name = topic.name;
    for partition in topic.partitions {
        let mut copy = OffsetFetchResponsePartition::default();
        copy.partition_index = partition.partition_index;
        copy.committed_offset = partition.committed_offset;
        copy.committed_leader_epoch = partition.committed_leader_epoch;
        copy.metadata = partition.metadata;
        copy.error_code = partition.error_code;
        same.partitions.push(copy);
    }
    same
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::coordinator::offsets_log::CommittedOffset;
    use crate::coordinator::tests::{Topics, topic_id};

    fn committed(topic: Option<TopicId>) -> OffsetsOfGroup {
        let offset = CommittedOffset {
            offset: 7,
            leader_epoch: -1,
            metadata: "".into(),
            commit_timestamp_ms: 0,
            expire_timestamp_ms: -1,
            topic_id: topic,
        };
        BTreeMap::from([("t".into(), BTreeMap::from([(0, offset)]))])
    }

    #[test]
    fn what_was_committed_for_a_topic_is_not_answered_for_the_next_one_of_its_name() {
        let image = Topics::new().create("t", topic_id(2)).image();
        let mut wanted = OffsetFetchRequestTopics::default();
        wanted.name = "t".into();
        wanted.topic_id = Uuid::from_bytes(topic_id(2).to_bytes());
        wanted.partition_indexes = vec![0];
        for (topic, expected) in [
            (Some(topic_id(1)), NO_OFFSET),
            (Some(topic_id(2)), 7),
            (None, 7),
        ] {
            let offsets = committed(topic);
            for version in [TOPIC_IDS_FROM - 1, TOPIC_IDS_FROM] {
                let some = some_offsets(&image, &wanted, Some(&offsets), version);
                assert_eq!(some.partitions[0].committed_offset, expected);
            }
            let all = all_offsets(&image, Some(&offsets));
            assert_eq!(all.is_empty(), expected == NO_OFFSET);
        }
    }

    #[test]
    fn nothing_is_answered_for_a_topic_that_is_gone() {
        let gone = Topics::new()
            .create("t", topic_id(1))
            .delete(topic_id(1))
            .image();
        let mut wanted = OffsetFetchRequestTopics::default();
        wanted.name = "t".into();
        wanted.partition_indexes = vec![0];
        for topic in [Some(topic_id(1)), None] {
            let offsets = committed(topic);
            let some = some_offsets(&gone, &wanted, Some(&offsets), TOPIC_IDS_FROM - 1);
            assert_eq!(some.partitions[0].committed_offset, NO_OFFSET);
            assert_eq!(some.partitions[0].error_code, 0);
            assert!(all_offsets(&gone, Some(&offsets)).is_empty());
        }
    }
}
