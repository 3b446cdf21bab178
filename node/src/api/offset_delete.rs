//! OffsetDelete 0: delete single offsets of a group (KIP-496).
//!
//! GROUP_SUBSCRIBED_TO_TOPIC where a member reads the topic; NON_EMPTY_GROUP for a group with members
//! whose subscriptions the coordinator cannot read; UNKNOWN_TOPIC_OR_PARTITION for what does not exist.

use std::sync::Arc;

use kafka_wire::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_wire::{OffsetDeleteRequest, OffsetDeleteResponse};

use super::RequestContext;
use crate::coordinator::{GroupError, code_of};

pub(crate) async fn handle(
    ctx: RequestContext,
    request: OffsetDeleteRequest,
    _version: i16,
) -> OffsetDeleteResponse {
    let image = ctx.broker.quorum.image();
    let mut response = OffsetDeleteResponse::default();
    let mut existing: Vec<(Arc<str>, i32)> = Vec::new();
    let mut exists = Vec::new();
    for topic in &request.topics {
        let count = image
            .topic_by_name(&topic.name)
            .map_or(0, |topic| topic.partitions.len());
        let name: Arc<str> = topic.name.as_str().into();
        for partition in &topic.partitions {
            let index = partition.partition_index;
            let is_there = usize::try_from(index).is_ok_and(|at| at < count);
            exists.push(is_there);
            if is_there {
                existing.push((Arc::clone(&name), index));
            }
        }
    }
    let deleted = if request.group_id.is_empty() {
        Err(GroupError::InvalidGroupId)
    } else {
        let groups = &ctx.broker.groups;
        groups.delete_offsets(&request.group_id, &existing).await
    };
    let mut deleted = match deleted {
        Ok(results) => results.into_iter(),
        Err(error) => {
            response.error_code = error.code().code();
            return response;
        }
    };
    let mut exists = exists.into_iter();
    for topic in request.topics {
        let mut answer = OffsetDeleteResponseTopic::default();
        answer.name = topic.name;
        for partition in topic.partitions {
            let result = match exists.next() {
                Some(true) => deleted.next().unwrap_or(Ok(())),
                _ => Err(GroupError::UnknownTopicOrPartition),
            };
            let mut partition_answer = OffsetDeleteResponsePartition::default();
            partition_answer.partition_index = partition.partition_index;
            partition_answer.error_code = code_of(result);
            answer.partitions.push(partition_answer);
        }
        response.topics.push(answer);
    }
    response
}
