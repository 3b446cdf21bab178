//! FindCoordinator 0–6: which node coordinates a group.
//!
//! v0 asks for groups only, v1+ for a key type, v4+ for several keys (KIP-699); v6 adds share groups. The
//! first question creates `__consumer_offsets`; until its partition has a leader that can be reached, the
//! answer is COORDINATOR_NOT_AVAILABLE, which clients retry.
//!
//! Transactional ids and share groups have no coordinator here. A transactional id is
//! TRANSACTIONAL_ID_AUTHORIZATION_FAILED with a message, the one error at which both the Java client and
//! librdkafka fail at once; at INVALID_REQUEST librdkafka asks until `init_transactions` times out. Share
//! groups are INVALID_REQUEST with a message.

use kafka_wire::find_coordinator_response::Coordinator;
use kafka_wire::{FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_wire_core::StrBytes;

use super::{ErrorCode, RequestContext};
use crate::broker::LeaderEndpoint;
use crate::coordinator::{OFFSETS_TOPIC, internal_topic};

const SEVERAL_FROM: i16 = 4;
const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
const SHARE: i8 = 2;
const NO_NODE: i32 = -1;

type Found = Result<LeaderEndpoint, (ErrorCode, &'static str)>;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let mut response = FindCoordinatorResponse::default();
    if version >= SEVERAL_FROM {
        for key in request.coordinator_keys {
            let found = find(&ctx, request.key_type, &key).await;
            response.coordinators.push(coordinator(key, found));
        }
        return response;
    }
    let found = find(&ctx, request.key_type, &request.key).await;
    let only = coordinator(request.key, found);
    response.error_code = only.error_code;
    response.error_message = only.error_message;
    response.node_id = only.node_id;
    response.host = only.host;
    response.port = only.port;
    response
}

async fn find(ctx: &RequestContext, key_type: i8, key: &str) -> Found {
    match key_type {
        GROUP => {}
        TRANSACTION => {
            return Err((
                ErrorCode::TransactionalIdAuthorizationFailed,
                "transactions are not supported",
            ));
        }
        SHARE => return Err((ErrorCode::InvalidRequest, "share groups are not supported")),
        _ => return Err((ErrorCode::InvalidRequest, "unknown coordinator type")),
    }
    let broker = &ctx.broker;
    internal_topic::ensure_exists(broker)
        .await
        .map_err(|error| {
            tracing::warn!(%error, "{OFFSETS_TOPIC} cannot be created yet");
            (
                ErrorCode::CoordinatorNotAvailable,
                "the offsets topic does not exist yet",
            )
        })?;
    broker.voter.settled().await;
    let image = broker.quorum.image();
    let partitions = image
        .topic_by_name(OFFSETS_TOPIC)
        .map_or(0, |topic| topic.partitions.len());
    crate::coordinator::partition_for(key, partitions)
        .and_then(|partition| broker.leader(OFFSETS_TOPIC, partition, &ctx.peer.listener))
        .ok_or((
            ErrorCode::CoordinatorNotAvailable,
            "the coordinator's partition has no leader",
        ))
}

fn coordinator(key: StrBytes, found: Found) -> Coordinator {
    let mut answer = Coordinator::default();
    answer.key = key;
    match found {
        Ok(leader) => {
            answer.node_id = leader.id.0;
            answer.host = leader.host.into();
            answer.port = i32::from(leader.port);
        }
        Err((error, message)) => {
            answer.error_code = error.code();
            answer.error_message = Some(message.into());
            answer.node_id = NO_NODE;
            answer.port = NO_NODE;
        }
    }
    answer
}
