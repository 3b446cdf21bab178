//! SyncGroup 0–5: ask for one's assignment; the leader brings everybody's.
//!
//! Answered once the leader's assignment is in `__consumer_offsets`, or with REBALANCE_IN_PROGRESS when
//! the group starts over. v3+ knows static members (KIP-345); in v5 protocol type and name are mandatory
//! and must be the group's, else INCONSISTENT_GROUP_PROTOCOL (KIP-559).

use bytes::Bytes;
use kafka_wire::{SyncGroupRequest, SyncGroupResponse};

use super::RequestContext;
use crate::coordinator::GroupError;
use crate::coordinator::group::{Answer, Event, ReplyId, SyncGroup};

const PROTOCOL_REQUIRED_FROM: i16 = 5;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: SyncGroupRequest,
    version: i16,
) -> SyncGroupResponse {
    let names_protocol = request.protocol_type.is_some() && request.protocol_name.is_some();
    let answer = if version >= PROTOCOL_REQUIRED_FROM && !names_protocol {
        Err(GroupError::InconsistentGroupProtocol)
    } else {
        let sync = |reply| Event::Sync(sync(&request, reply));
        ctx.broker.groups.ask(&request.group_id, sync).await
    };
    let mut response = SyncGroupResponse::default();
    match answer {
        Ok(Answer::Sync(Ok(synced))) => {
            response.protocol_type = synced.protocol_type.as_deref().map(Into::into);
            response.protocol_name = synced.protocol.as_deref().map(Into::into);
            response.assignment = synced.assignment;
        }
        Ok(Answer::Sync(Err(error))) | Err(error) => response.error_code = error.code().code(),
        Ok(_) => response.error_code = GroupError::UnknownServerError.code().code(),
    }
    response
}

/// The request as the group takes it: copied, because it outlives the frame it came in.
fn sync(request: &SyncGroupRequest, reply: ReplyId) -> SyncGroup {
    SyncGroup {
        reply,
        member_id: request.member_id.as_str().into(),
        instance_id: request.group_instance_id.as_deref().map(Into::into),
        generation: request.generation_id,
        protocol_type: request.protocol_type.as_deref().map(Into::into),
        protocol: request.protocol_name.as_deref().map(Into::into),
        assignments: request
            .assignments
            .iter()
            .map(|assigned| {
                let bytes = Bytes::copy_from_slice(&assigned.assignment);
                (assigned.member_id.as_str().into(), bytes)
            })
            .collect(),
    }
}
