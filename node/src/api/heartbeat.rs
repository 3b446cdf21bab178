//! Heartbeat 0–4: a member of a classic group is alive (v3+: static members, KIP-345).
//!
//! REBALANCE_IN_PROGRESS tells it to join again; UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION and
//! FENCED_INSTANCE_ID that it is no longer who it thinks it is. While the coordinator loads the group
//! the answer is "fine": the session starts when the load is done.

use kafka_wire::{HeartbeatRequest, HeartbeatResponse};

use super::RequestContext;
use crate::coordinator::GroupError;
use crate::coordinator::code_of;
use crate::coordinator::group::{Answer, Event};

pub(crate) async fn handle(
    ctx: RequestContext,
    request: HeartbeatRequest,
    _version: i16,
) -> HeartbeatResponse {
    let answer = ctx
        .broker
        .groups
        .ask(&request.group_id, |reply| Event::Heartbeat {
            reply,
            member_id: request.member_id.as_str().into(),
            instance_id: request.group_instance_id.as_deref().map(Into::into),
            generation: request.generation_id,
        })
        .await;
    let result = match answer {
        Ok(Answer::Heartbeat(result)) => result,
        Ok(_) => Err(GroupError::UnknownServerError),
        Err(GroupError::CoordinatorLoadInProgress) => Ok(()),
        Err(error) => Err(error),
    };
    let mut response = HeartbeatResponse::default();
    response.error_code = code_of(result);
    response
}
