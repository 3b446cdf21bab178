//! DeleteRecords 0–2 (KIP-107): the log start moves up to an offset, −1 being the high watermark; what lies below is gone
//! for consumers at once and from the disk by segments.
//!
//! Answered when the new log start is durable here and every in-sync follower has followed it: the low watermark is the
//! smallest log start of them all. Not within `timeout_ms`: REQUEST_TIMED_OUT. Above the high watermark:
//! OFFSET_OUT_OF_RANGE. Not up to retention but to the operator, so it does not ask for `cleanup.policy`; internal topics
//! are refused (INVALID_TOPIC_EXCEPTION), because their coordinators would lose state.

use kafka_wire::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_wire::{DeleteRecordsRequest, DeleteRecordsResponse};
use kittiwake_storage::Offset;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::error;

use super::{ErrorCode, RequestContext};
use crate::broker::Broker;
use crate::controller::topics::is_internal;

const HIGH_WATERMARK: i64 = -1;
const NO_LOW_WATERMARK: i64 = -1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DeleteRecordsRequest,
    _version: i16,
) -> DeleteRecordsResponse {
    let mut response = DeleteRecordsResponse::default();
    let wait = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let deadline = Instant::now() + wait;
    for topic in request.topics {
        let mut answer = DeleteRecordsTopicResult::default();
        for wanted in topic.partitions {
            let mut result = DeleteRecordsPartitionResult::default();
            result.partition_index = wanted.partition_index;
            match delete(
                &ctx.broker,
                &topic.name,
                wanted.partition_index,
                wanted.offset,
                deadline,
            )
            .await
            {
                Ok(low_watermark) => result.low_watermark = low_watermark.0,
                Err(error) => {
                    result.low_watermark = NO_LOW_WATERMARK;
                    result.error_code = error.code();
                }
            }
            answer.partitions.push(result);
        }
        answer.name = topic.name;
        response.topics.push(answer);
    }
    response
}

async fn delete(
    broker: &Broker,
    topic: &str,
    index: i32,
    before: i64,
    deadline: Instant,
) -> Result<Offset, ErrorCode> {
    if is_internal(topic) {
        return Err(ErrorCode::InvalidTopicException);
    }
    let partition = broker.partitions.get(topic, index)?;
    let before = if before == HIGH_WATERMARK {
        partition.high_watermark()
    } else {
        Offset(before)
    };
    let deleted = {
        let partition = Arc::clone(&partition);
        tokio::task::spawn_blocking(move || partition.delete_records(before)).await
    };
    let start = deleted.unwrap_or_else(|fault| {
        error!(%topic, partition = index, %fault, "cannot delete records");
        Err(ErrorCode::UnknownServerError)
    })?;
    let followed = partition.low_watermark_reaches(start);
    timeout_at(deadline, followed)
        .await
        .unwrap_or(Err(ErrorCode::RequestTimedOut))
}
