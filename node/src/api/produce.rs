//! Produce 3–13: appends one record batch per partition and answers when `acks` is met.
//!
//! Batches are checked and appended before [`begin`] returns, in request order, so that pipelined requests keep their
//! order. What remains is waiting: acks=all waits for the high watermark, all partitions of a request in parallel
//! (latency does not grow with their number), each keyed by leader epoch and offset. acks=0 is never answered; an error
//! closes the connection, which is the only way to tell. Records are never recompressed.
//!
//! A duplicate of an idempotent producer answers with its original offset. Topics are named by id from v13 on. Leaders
//! that moved are named with their endpoints from v10 on (KIP-951). zstd needs v7. Transactions are not served:
//! a transactional batch is INVALID_TXN_STATE. Internal topics take nothing from clients (INVALID_TOPIC_EXCEPTION): a
//! record that their coordinator cannot read would keep it from loading.

use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse,
    TopicProduceResponse,
};
use kafka_wire::{ProduceRequest, ProduceResponse};
use kafka_wire_core::{ApiVersion, StrBytes};
use kittiwake_storage::{BatchError, LeaderEpoch, Offset, validate};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

use super::answered::{FirstError as _, Stopwatch};
use super::{
    Admitted, ErrorCode, PRODUCE_EXPANSION_MAX, RequestContext, decode, respond, topic_id,
};
use crate::broker::now_ms;
use crate::controller::topics::is_internal;
use crate::partition::{Acks, AppendRefused, Partition, Written};
use crate::wire::frame::RequestHeader;
use crate::wire::{CloseReason, Reply};

const TOPIC_IDS_FROM: i16 = 13;
const CURRENT_LEADER_FROM: i16 = 10;
const ZSTD_FROM: i16 = 7;
const UNKNOWN: i64 = -1;

/// A partition whose acknowledgement waits for its high watermark.
struct Waiting {
    topic: usize,
    position: usize,
    partition: Arc<Partition>,
    epoch: LeaderEpoch,
    end: Offset,
}

pub(super) fn begin(ctx: RequestContext, admitted: Admitted) -> Reply {
    let request = match decode::<ProduceRequest>(&admitted, PRODUCE_EXPANSION_MAX) {
        Ok(request) => request,
        Err(reason) => return Reply::Close(reason),
    };
    let version = admitted.header.api_version;
    let Some(acks) = Acks::from_wire(request.acks) else {
        let response = answer_all(request, version, ErrorCode::InvalidRequiredAcks);
        let Admitted {
            header, stopwatch, ..
        } = admitted;
        return respond(&header, stopwatch, &response, ApiVersion::new(version));
    };
    let deadline =
        Instant::now() + Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let mut waiting = Vec::new();
    let mut response = ProduceResponse::default();
    for (index, topic) in request.topic_data.into_iter().enumerate() {
        response.responses.push(append_topic(
            &ctx,
            topic,
            version,
            acks,
            index,
            &mut waiting,
        ));
    }
    let Admitted {
        header, stopwatch, ..
    } = admitted;
    if acks == Acks::None {
        return without_answer(stopwatch, &response);
    }
    if waiting.is_empty() {
        return finish(&ctx, &header, stopwatch, response);
    }
    // While it waits it must not keep the frame: a megabyte of records for the sake of a few names.
    let header = RequestHeader {
        client_id: None,
        ..header
    };
    for topic in &mut response.responses {
        topic.name = StrBytes::from(topic.name.as_str());
    }
    let ctx = RequestContext {
        client_id: None,
        ..ctx
    };
    Reply::Later(Box::pin(async move {
        for waiter in waiting {
            let committed = timeout_at(
                deadline,
                waiter.partition.committed(waiter.epoch, waiter.end),
            )
            .await;
            let error = match committed {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => ErrorCode::RequestTimedOut,
            };
            let slot = &mut response.responses[waiter.topic].partition_responses[waiter.position];
            fail(slot, error);
        }
        match finish(&ctx, &header, stopwatch, response) {
            Reply::Ready(plan) => Ok(plan),
            Reply::Close(reason) => Err(reason),
            Reply::None | Reply::Later(_) => {
                Err(CloseReason("a produce response cannot wait twice".into()))
            }
        }
    }))
}

fn append_topic(
    ctx: &RequestContext,
    topic: TopicProduceData,
    version: i16,
    acks: Acks,
    topic_index: usize,
    waiting: &mut Vec<Waiting>,
) -> TopicProduceResponse {
    let mut answer = TopicProduceResponse::default();
    for (position, data) in topic.partition_data.into_iter().enumerate() {
        let partitions = &ctx.broker.partitions;
        let found = if version >= TOPIC_IDS_FROM {
            topic_id(topic.topic_id).and_then(|id| partitions.get_by_id(id, data.index))
        } else {
            partitions.get(&topic.name, data.index)
        };
        let found = found.and_then(|partition| match is_internal(partition.topic()) {
            true => Err(ErrorCode::InvalidTopicException),
            false => Ok(partition),
        });
        let mut slot = PartitionProduceResponse::default();
        slot.index = data.index;
        match found {
            Err(error) => fail(&mut slot, error),
            Ok(partition) => {
                let uncommitted = append(&partition, data, version, acks, &mut slot);
                if let Some((epoch, end)) = uncommitted {
                    waiting.push(Waiting {
                        topic: topic_index,
                        position,
                        partition,
                        epoch,
                        end,
                    });
                }
            }
        }
        answer.partition_responses.push(slot);
    }
    answer.name = topic.name;
    answer.topic_id = topic.topic_id;
    answer
}

/// Appends one partition's batch and fills its answer in; returns the epoch and offset that acks=all has still to wait for.
fn append(
    partition: &Arc<Partition>,
    data: PartitionProduceData,
    version: i16,
    acks: Acks,
    slot: &mut PartitionProduceResponse,
) -> Option<(LeaderEpoch, Offset)> {
    let now_ms = now_ms();
    let mut rules = partition.batch_rules();
    rules.allow_zstd = version >= ZSTD_FROM;
    let records = data.records.unwrap_or_default();
    let batch = match validate(&records, &rules, now_ms) {
        Ok(batch) => batch,
        Err(error) => {
            fail_invalid(slot, error);
            return None;
        }
    };
    if batch.header().is_transactional() {
        fail(slot, ErrorCode::InvalidTxnState);
        slot.error_message = Some("transactions are not supported".into());
        return None;
    }
    match partition.append(&batch, acks, None, now_ms) {
        Ok(Written {
            appended,
            epoch,
            is_committed,
        }) => {
            slot.base_offset = appended.base_offset.0;
            slot.log_append_time_ms = appended.log_append_time_ms.unwrap_or(UNKNOWN);
            slot.log_start_offset = appended.log_start.0;
            let end = appended.last_offset + 1;
            (acks == Acks::All && !is_committed).then_some((epoch, end))
        }
        Err(refused) => {
            fail(slot, ErrorCode::from(&refused));
            slot.error_message = refused_message(&refused);
            None
        }
    }
}

fn refused_message(refused: &AppendRefused) -> Option<kafka_wire_core::StrBytes> {
    match refused {
        AppendRefused::Log(error) => Some(error.to_string().into()),
        AppendRefused::NotLeader | AppendRefused::NotEnoughReplicas => None,
    }
}

fn fail(slot: &mut PartitionProduceResponse, error: ErrorCode) {
    slot.error_code = error.code();
    slot.base_offset = UNKNOWN;
    slot.log_append_time_ms = UNKNOWN;
    slot.log_start_offset = UNKNOWN;
}

fn fail_invalid(slot: &mut PartitionProduceResponse, error: BatchError) {
    fail(slot, ErrorCode::from(&error));
    slot.error_message = Some(error.to_string().into());
    if let BatchError::Invalid { record_errors, .. } = error {
        slot.record_errors = record_errors
            .into_iter()
            .map(|(index, message)| {
                let mut record = BatchIndexAndErrorMessage::default();
                record.batch_index = index;
                record.batch_index_error_message = Some(message.into());
                record
            })
            .collect();
    }
}

fn answer_all(request: ProduceRequest, version: i16, error: ErrorCode) -> ProduceResponse {
    let mut response = ProduceResponse::default();
    response.responses = request
        .topic_data
        .into_iter()
        .map(|topic| {
            let mut answer = TopicProduceResponse::default();
            answer.partition_responses = topic
                .partition_data
                .iter()
                .map(|data| {
                    let mut slot = PartitionProduceResponse::default();
                    slot.index = data.index;
                    fail(&mut slot, error);
                    slot
                })
                .collect();
            if version >= TOPIC_IDS_FROM {
                answer.topic_id = topic.topic_id;
            } else {
                answer.name = topic.name;
            }
            answer
        })
        .collect();
    response
}

/// acks=0: nothing is sent, but a producer whose records were refused must not go on believing. It is counted like any
/// other, or a node with such producers would look idle.
fn without_answer(stopwatch: Stopwatch, response: &ProduceResponse) -> Reply {
    let failed = response.first_error();
    stopwatch.answered(failed);
    match failed {
        None => Reply::None,
        Some(error) => Reply::Close(CloseReason(format!(
            "a produce with acks=0 was refused with error {error}"
        ))),
    }
}

/// Names the leaders of partitions that are led elsewhere, and encodes.
fn finish(
    ctx: &RequestContext,
    header: &RequestHeader,
    stopwatch: Stopwatch,
    mut response: ProduceResponse,
) -> Reply {
    if header.api_version >= CURRENT_LEADER_FROM {
        name_leaders(ctx, header.api_version, &mut response);
    }
    let version = ApiVersion::new(header.api_version);
    respond(header, stopwatch, &response, version)
}

fn name_leaders(ctx: &RequestContext, version: i16, response: &mut ProduceResponse) {
    let mut endpoints = BTreeMap::new();
    for topic in &mut response.responses {
        for partition in &mut topic.partition_responses {
            if partition.error_code != ErrorCode::NotLeaderOrFollower.code() {
                continue;
            }
            let leader = if version >= TOPIC_IDS_FROM {
                topic_id(topic.topic_id).ok().and_then(|id| {
                    ctx.broker
                        .leader_by_id(id, partition.index, &ctx.peer.listener)
                })
            } else {
                ctx.broker
                    .leader(&topic.name, partition.index, &ctx.peer.listener)
            };
            let Some(leader) = leader else { continue };
            let mut named = LeaderIdAndEpoch::default();
            named.leader_id = leader.id.0;
            named.leader_epoch = leader.epoch;
            partition.current_leader = named;
            let mut endpoint = NodeEndpoint::default();
            endpoint.node_id = leader.id.0;
            endpoint.host = leader.host.into();
            endpoint.port = i32::from(leader.port);
            endpoint.rack = leader.rack.map(Into::into);
            endpoints.insert(leader.id.0, endpoint);
        }
    }
    response.node_endpoints = endpoints.into_values().collect();
}
