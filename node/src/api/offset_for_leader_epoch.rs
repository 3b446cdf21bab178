//! OffsetForLeaderEpoch 2–4 (KIP-101, KIP-279, KIP-320): where an epoch ended in our history.
//!
//! The answer is the largest epoch not above the one asked for, and the offset where it ended: the start of the next
//! epoch, or the log end for the current one. A client whose position is beyond it has records that were cut away.
//! Epoch and offset are −1 for an epoch older than everything we know. A leader without a lease may have been replaced, and
//! does not answer: the epoch may go on elsewhere.

use kafka_wire::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_wire::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};
use kittiwake_storage::{LeaderEpoch, Offset};

use super::{ErrorCode, RequestContext};

const UNKNOWN_OFFSET: Offset = Offset(-1);

pub(crate) async fn handle(
    ctx: RequestContext,
    request: OffsetForLeaderEpochRequest,
    _version: i16,
) -> OffsetForLeaderEpochResponse {
    let mut response = OffsetForLeaderEpochResponse::default();
    for topic in request.topics {
        let mut answer = OffsetForLeaderTopicResult::default();
        for asked in &topic.partitions {
            let epoch = LeaderEpoch(asked.leader_epoch);
            let mut slot = EpochEndOffset::default();
            slot.partition = asked.partition;
            match end_of(
                &ctx,
                &topic.topic,
                asked.partition,
                asked.current_leader_epoch,
                epoch,
            ) {
                Ok((epoch, end)) => {
                    slot.leader_epoch = epoch.0;
                    slot.end_offset = end.0;
                }
                Err(error) => slot.error_code = error.code(),
            }
            answer.partitions.push(slot);
        }
        answer.topic = topic.topic;
        response.topics.push(answer);
    }
    response
}

fn end_of(
    ctx: &RequestContext,
    topic: &str,
    partition: i32,
    current_leader_epoch: i32,
    epoch: LeaderEpoch,
) -> Result<(LeaderEpoch, Offset), ErrorCode> {
    let partition = ctx.broker.partitions.get(topic, partition)?;
    let asked_in = partition.check_leader_epoch(current_leader_epoch)?;
    let end = partition.log().end_offset_for_epoch(epoch);
    partition.check_denial(asked_in)?;
    Ok(end.unwrap_or((LeaderEpoch::NONE, UNKNOWN_OFFSET)))
}
