//! ListOffsets 1–11: the offset at a point in time.
//!
//! A timestamp is a time, or one of Kafka's special values: −1 latest (the last stable offset for read_committed), −2
//! earliest, −3 (v7+) the record with the largest timestamp (KIP-734), −4 (v8+) earliest local, −5 (v9+) latest tiered,
//! −6 (v11+) earliest pending upload. Nothing is tiered here: −4 is the log start, −5 and −6 find nothing. A special
//! value in a version too old for it is UNSUPPORTED_VERSION. No match is offset −1 without an error.
//!
//! Only what is below the high watermark is answered. A new leader that does not know yet how far the one before it had
//! committed answers OFFSET_NOT_AVAILABLE (v5+, else LEADER_NOT_AVAILABLE) rather than an offset that goes back (KIP-207);
//! its start it knows. Nor does a leader without a lease, which may have been replaced: NOT_LEADER_OR_FOLLOWER. A lookup by
//! time reads indexes and headers from disk, on the blocking pool.

use kafka_wire::list_offsets_request::ListOffsetsPartition;
use kafka_wire::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_wire::{ListOffsetsRequest, ListOffsetsResponse};
use kittiwake_storage::{LeaderEpoch, Offset, TimestampOffset};
use std::sync::Arc;
use tracing::error;

use super::{ErrorCode, RequestContext};
use crate::broker::Broker;
use crate::partition::Partition;

const READ_COMMITTED: i8 = 1;
const LEADER_EPOCH_FROM: i16 = 4;
const OFFSET_NOT_AVAILABLE_FROM: i16 = 5;
const UNKNOWN: i64 = -1;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: ListOffsetsRequest,
    version: i16,
) -> ListOffsetsResponse {
    let read_committed = request.isolation_level == READ_COMMITTED;
    let mut response = ListOffsetsResponse::default();
    for topic in request.topics {
        let mut answer = ListOffsetsTopicResponse::default();
        for wanted in topic.partitions {
            let found = match ctx
                .broker
                .partitions
                .get(&topic.name, wanted.partition_index)
            {
                Ok(partition) => {
                    look_up(&ctx.broker, partition, &wanted, version, read_committed).await
                }
                Err(error) => Err(error),
            };
            answer
                .partitions
                .push(partition_response(wanted.partition_index, found, version));
        }
        answer.name = topic.name;
        response.topics.push(answer);
    }
    response
}

fn partition_response(
    index: i32,
    found: Result<Option<TimestampOffset>, ErrorCode>,
    version: i16,
) -> ListOffsetsPartitionResponse {
    let mut answer = ListOffsetsPartitionResponse::default();
    answer.partition_index = index;
    answer.timestamp = UNKNOWN;
    answer.offset = UNKNOWN;
    match found {
        Ok(Some(found)) => {
            answer.timestamp = found.timestamp;
            answer.offset = found.offset.0;
            if version >= LEADER_EPOCH_FROM {
                answer.leader_epoch = found.leader_epoch.0;
            }
        }
        Ok(None) => {}
        Err(error) => answer.error_code = error.code(),
    }
    answer
}

async fn look_up(
    broker: &Broker,
    partition: Arc<Partition>,
    wanted: &ListOffsetsPartition,
    version: i16,
    read_committed: bool,
) -> Result<Option<TimestampOffset>, ErrorCode> {
    let epoch = partition.check_leader_epoch(wanted.current_leader_epoch)?;
    if version < first_version_with(wanted.timestamp) {
        return Err(ErrorCode::UnsupportedVersion);
    }
    let needs_end = !matches!(
        wanted.timestamp,
        EARLIEST | EARLIEST_LOCAL | LATEST_TIERED | EARLIEST_PENDING_UPLOAD
    );
    if needs_end && !partition.high_watermark_is_current() {
        return Err(if version >= OFFSET_NOT_AVAILABLE_FROM {
            ErrorCode::OffsetNotAvailable
        } else {
            ErrorCode::LeaderNotAvailable
        });
    }
    let upto = if read_committed {
        partition.last_stable_offset()
    } else {
        partition.high_watermark()
    };
    let at = |offset: Offset, leader_epoch: LeaderEpoch| TimestampOffset {
        timestamp: UNKNOWN,
        offset,
        leader_epoch,
    };
    let found = match wanted.timestamp {
        LATEST => Some(at(upto, epoch)),
        EARLIEST | EARLIEST_LOCAL => {
            let start = partition.log_start_offset();
            let epoch = partition.log().epoch_of(start).unwrap_or(LeaderEpoch::NONE);
            Some(at(start, epoch))
        }
        LATEST_TIERED | EARLIEST_PENDING_UPLOAD => None,
        timestamp => look_up_time(broker, &partition, timestamp, upto).await?,
    };
    if needs_end {
        partition.check_denial(epoch)?;
    }
    Ok(found)
}

async fn look_up_time(
    broker: &Broker,
    partition: &Arc<Partition>,
    timestamp: i64,
    upto: Offset,
) -> Result<Option<TimestampOffset>, ErrorCode> {
    let partition = Arc::clone(partition);
    let found = broker.look_up(move || {
        let log = partition.log();
        let found = match timestamp {
            MAX_TIMESTAMP => log.max_timestamp(upto),
            _ => log.offset_for_timestamp(timestamp, upto),
        };
        found.map(|found| found.filter(|found| found.offset < upto)).map_err(|error| {
            error!(topic = partition.topic(), partition = partition.index(), %error, "cannot look a time up");
            ErrorCode::KafkaStorageError
        })
    });
    found.await.unwrap_or(Err(ErrorCode::UnknownServerError))
}

/// The first version in which a timestamp has its meaning.
fn first_version_with(timestamp: i64) -> i16 {
    match timestamp {
        MAX_TIMESTAMP => 7,
        EARLIEST_LOCAL => 8,
        LATEST_TIERED => 9,
        EARLIEST_PENDING_UPLOAD => 11,
        // Values below these have no meaning in any version.
        ..EARLIEST_PENDING_UPLOAD => i16::MAX,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_timestamps_need_their_version() {
        let table = [
            (-1, 1),
            (-2, 1),
            (-3, 7),
            (-4, 8),
            (-5, 9),
            (-6, 11),
            (-7, i16::MAX),
            (0, 1),
        ];
        for (timestamp, version) in table {
            assert_eq!(first_version_with(timestamp), version, "{timestamp}");
        }
    }

    #[test]
    fn no_match_is_no_error() {
        let answer = partition_response(3, Ok(None), 5);
        assert_eq!(
            (answer.offset, answer.timestamp, answer.error_code),
            (-1, -1, 0)
        );
    }
}
