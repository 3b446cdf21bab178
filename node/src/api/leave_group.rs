//! LeaveGroup 0–5: leave a classic group.
//!
//! Up to v2 one member leaves, and its result is the response's. v3+ takes several, static members by
//! their instance id alone too, which is how an administrator removes them (KIP-345); each has a result.
//! v5 carries reasons (KIP-800).

use kafka_wire::leave_group_request::MemberIdentity;
use kafka_wire::leave_group_response::MemberResponse;
use kafka_wire::{LeaveGroupRequest, LeaveGroupResponse};

use super::RequestContext;
use crate::coordinator::GroupError;
use crate::coordinator::code_of;
use crate::coordinator::group::{Answer, Event, LeaveGroup, LeavingMember};

const SEVERAL_FROM: i16 = 3;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: LeaveGroupRequest,
    version: i16,
) -> LeaveGroupResponse {
    let identities = if version >= SEVERAL_FROM {
        request.members
    } else {
        let mut member = MemberIdentity::default();
        member.member_id = request.member_id;
        vec![member]
    };
    let leave = |reply| {
        Event::Leave(LeaveGroup {
            reply,
            members: identities
                .iter()
                .map(|identity| LeavingMember {
                    member_id: identity.member_id.as_str().into(),
                    instance_id: identity.group_instance_id.as_deref().map(Into::into),
                    reason: identity.reason.as_deref().map(str::to_owned),
                })
                .collect(),
        })
    };
    let mut response = LeaveGroupResponse::default();
    let results = match ctx.broker.groups.ask(&request.group_id, leave).await {
        Ok(Answer::Leave(Ok(results))) => results,
        Ok(Answer::Leave(Err(error))) | Err(error) => {
            response.error_code = error.code().code();
            return response;
        }
        Ok(_) => {
            response.error_code = GroupError::UnknownServerError.code().code();
            return response;
        }
    };
    if version < SEVERAL_FROM {
        response.error_code = results.first().map_or(0, |result| code_of(*result));
        return response;
    }
    response.members = identities
        .into_iter()
        .zip(results)
        .map(|(identity, result)| {
            let mut member = MemberResponse::default();
            member.member_id = identity.member_id;
            member.group_instance_id = identity.group_instance_id;
            member.error_code = code_of(result);
            member
        })
        .collect();
    response
}
