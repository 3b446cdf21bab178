//! DeleteRecords 0–2 (KIP-107): the log start moves up to an offset, −1 being the high watermark; what lies below is gone
//! for consumers at once and from the disk by segments.
//!
//! Answered when the new log start is durable; the low watermark is the new log start. Above the high watermark:
//! OFFSET_OUT_OF_RANGE. Not up to retention but to the operator, so it does not ask for `cleanup.policy`; internal topics
//! are refused (INVALID_TOPIC_EXCEPTION), because their coordinators would lose state.

use kafka_wire::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_wire::{DeleteRecordsRequest, DeleteRecordsResponse};
use kittiwake_storage::Offset;
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
    let deleting = tokio::task::spawn_blocking(move || partition.delete_records(before));
    deleting.await.unwrap_or_else(|fault| {
        error!(%topic, partition = index, %fault, "cannot delete records");
        Err(ErrorCode::UnknownServerError)
    })
}
