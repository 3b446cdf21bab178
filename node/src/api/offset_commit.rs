//! OffsetCommit 2–10: remember how far a group has read.
//!
//! A member commits in its generation; anybody (generation −1, no member id) while the group has no
//! members, else UNKNOWN_MEMBER_ID. Up to v4 the client may say how long to keep the offsets, v6+ adds the
//! leader epoch (KIP-320), v7+ static members (KIP-345); v9+ answers GROUP_ID_NOT_FOUND where older ones
//! get ILLEGAL_GENERATION (KIP-848); v10 names topics by id (UNKNOWN_TOPIC_ID). Partitions that do not
//! exist are UNKNOWN_TOPIC_OR_PARTITION and stop no others. Answered when the offsets are committed to
//! `__consumer_offsets`.

use std::sync::Arc;

use kafka_wire::offset_commit_request::OffsetCommitRequestTopic;
use kafka_wire::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_wire::{OffsetCommitRequest, OffsetCommitResponse};
use kittiwake_raft::{ClusterImage, Topic, TopicId};

use super::RequestContext;
use crate::coordinator::{Commit, GroupError, NewOffset, code_of};

const GROUP_ID_NOT_FOUND_FROM: i16 = 9;
const TOPIC_IDS_FROM: i16 = 10;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: OffsetCommitRequest,
    version: i16,
) -> OffsetCommitResponse {
    let image = ctx.broker.quorum.image();
    let mut offsets = Vec::new();
    // Per partition: why it is not committed; what is committed learns its result below.
    let checked: Vec<Vec<Result<(), GroupError>>> = request
        .topics
        .iter()
        .map(|topic| check_topic(&image, topic, version, &mut offsets))
        .collect();
    let results = if offsets.is_empty() {
        Ok(Vec::new())
    } else {
        let commit = Commit {
            group_id: request.group_id.as_str().into(),
            member_id: request.member_id.as_str().into(),
            instance_id: request.group_instance_id.as_deref().map(Into::into),
            generation: request.generation_id_or_member_epoch,
            knows_group_id_not_found: version >= GROUP_ID_NOT_FOUND_FROM,
            retention_ms: request.retention_time_ms,
            offsets,
        };
        ctx.broker.groups.commit(commit).await
    };
    let mut next = {
        let mut results = results.map(Vec::into_iter);
        move || match &mut results {
            Ok(results) => results.next().unwrap_or(Ok(())),
            Err(error) => Err(*error),
        }
    };
    let mut response = OffsetCommitResponse::default();
    for (topic, checked) in request.topics.into_iter().zip(checked) {
        let mut answer = OffsetCommitResponseTopic::default();
        answer.name = topic.name;
        answer.topic_id = topic.topic_id;
        for (partition, checked) in topic.partitions.into_iter().zip(checked) {
            let mut committed = OffsetCommitResponsePartition::default();
            committed.partition_index = partition.partition_index;
            committed.error_code = code_of(checked.and_then(|()| next()));
            answer.partitions.push(committed);
        }
        response.topics.push(answer);
    }
    response
}

/// Adds the offsets of existing partitions to `offsets`; one result per partition of the request.
fn check_topic(
    image: &ClusterImage,
    wanted: &OffsetCommitRequestTopic,
    version: i16,
    offsets: &mut Vec<NewOffset>,
) -> Vec<Result<(), GroupError>> {
    let topic = find_topic(image, wanted, version);
    let named: Option<(Arc<str>, TopicId)> = topic
        .ok()
        .map(|topic| (topic.name.as_str().into(), topic.id));
    wanted
        .partitions
        .iter()
        .map(|partition| {
            let count = topic?.partitions.len();
            let exists = usize::try_from(partition.partition_index).is_ok_and(|at| at < count);
            let (true, Some((name, id))) = (exists, &named) else {
                return Err(GroupError::UnknownTopicOrPartition);
            };
            offsets.push(NewOffset {
                topic: Arc::clone(name),
                topic_id: *id,
                partition: partition.partition_index,
                offset: partition.committed_offset,
                leader_epoch: partition.committed_leader_epoch,
                metadata: partition
                    .committed_metadata
                    .as_deref()
                    .unwrap_or_default()
                    .into(),
            });
            Ok(())
        })
        .collect()
}

fn find_topic<'a>(
    image: &'a ClusterImage,
    wanted: &OffsetCommitRequestTopic,
    version: i16,
) -> Result<&'a Arc<Topic>, GroupError> {
    if version >= TOPIC_IDS_FROM {
        TopicId::from_bytes(wanted.topic_id.to_bytes())
            .and_then(|id| image.topic(id))
            .ok_or(GroupError::UnknownTopicId)
    } else {
        image
            .topic_by_name(&wanted.name)
            .ok_or(GroupError::UnknownTopicOrPartition)
    }
}
