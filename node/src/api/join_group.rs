//! JoinGroup 0–9: become a member of a classic group, answered when the join phase ends.
//!
//! v1+ has a rebalance timeout (KIP-62; before, the session timeout is both). v4+ gives a dynamic member
//! its id first, with MEMBER_ID_REQUIRED (KIP-394). v5+ knows static members (KIP-345), v7+ answers the
//! protocol type (KIP-559), v8+ carries a reason (KIP-800), v9+ lets a static leader that comes back skip
//! the assignment (KIP-814). The session timeout must lie within `group.min.session.timeout.ms` and
//! `group.max.session.timeout.ms`. Only the leader gets the members.

use std::sync::Arc;

use bytes::Bytes;
use kafka_wire::join_group_response::JoinGroupResponseMember;
use kafka_wire::{JoinGroupRequest, JoinGroupResponse};
use uuid::Uuid;

use super::RequestContext;
use crate::coordinator::GroupError;
use crate::coordinator::group::{Answer, Event, JoinGroup, JoinRefused, Joined, Protocol, ReplyId};
use crate::coordinator::offsets_log::STRING_BYTES_MAX;

const REBALANCE_TIMEOUT_FROM: i16 = 1;
const ID_REQUIRED_FROM: i16 = 4;
const NULL_PROTOCOL_FROM: i16 = 7;
const SKIP_ASSIGNMENT_FROM: i16 = 9;

/// How much of a client id goes into the member id it is given.
const MEMBER_ID_PREFIX_CHARS: usize = 255;

/// Longest group instance id, Kafka's limit of a topic name.
const INSTANCE_ID_BYTES_MAX: usize = 249;

/// No generation.
const UNKNOWN_GENERATION: i32 = -1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: JoinGroupRequest,
    version: i16,
) -> JoinGroupResponse {
    let member_id: Arc<str> = request.member_id.as_str().into();
    let answer = match check(&ctx, &request) {
        Ok(()) => {
            let join = |reply| Event::Join(Box::new(join(&ctx, &request, version, reply)));
            ctx.broker.groups.ask(&request.group_id, join).await
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(Answer::Join(Ok(joined))) => joined_response(&joined, version),
        Ok(Answer::Join(Err(refused))) => refused_response(&refused, version),
        Ok(_) => {
            let error = GroupError::UnknownServerError;
            refused_response(&JoinRefused { error, member_id }, version)
        }
        Err(error) => refused_response(&JoinRefused { error, member_id }, version),
    }
}

fn check(ctx: &RequestContext, request: &JoinGroupRequest) -> Result<(), GroupError> {
    let limits = ctx.broker.groups.config().limits;
    let timeouts = limits.session_timeout_ms_min..=limits.session_timeout_ms_max;
    if request.group_id.is_empty() {
        return Err(GroupError::InvalidGroupId);
    }
    if !timeouts.contains(&request.session_timeout_ms) {
        return Err(GroupError::InvalidSessionTimeout);
    }
    // What cannot be stored must not become part of a group.
    let names = request.protocols.iter().map(|protocol| &protocol.name);
    if names
        .chain([&request.protocol_type])
        .any(|name| name.len() > STRING_BYTES_MAX)
    {
        return Err(GroupError::InconsistentGroupProtocol);
    }
    match &request.group_instance_id {
        Some(id) if id.is_empty() || id.len() > INSTANCE_ID_BYTES_MAX => {
            Err(GroupError::InvalidRequest)
        }
        _ => Ok(()),
    }
}

/// The request as the group takes it: copied, because it outlives the frame it came in.
fn join(
    ctx: &RequestContext,
    request: &JoinGroupRequest,
    version: i16,
    reply: ReplyId,
) -> JoinGroup {
    let client_id = ctx.client_id.as_deref().unwrap_or_default();
    let instance_id = request.group_instance_id.as_deref();
    let prefix: String = instance_id
        .unwrap_or(client_id)
        .chars()
        .take(MEMBER_ID_PREFIX_CHARS)
        .collect();
    JoinGroup {
        reply,
        member_id: request.member_id.as_str().into(),
        fresh_member_id: format!("{prefix}-{}", Uuid::new_v4()).into(),
        id_required: version >= ID_REQUIRED_FROM,
        may_skip_assignment: version >= SKIP_ASSIGNMENT_FROM,
        instance_id: instance_id.map(Into::into),
        client_id: client_id.into(),
        client_host: format!("/{}", ctx.peer.address.ip()).into(),
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms: if version >= REBALANCE_TIMEOUT_FROM {
            request.rebalance_timeout_ms
        } else {
            request.session_timeout_ms
        },
        protocol_type: request.protocol_type.as_str().into(),
        protocols: request
            .protocols
            .iter()
            .map(|protocol| Protocol {
                name: protocol.name.as_str().into(),
                metadata: Bytes::copy_from_slice(&protocol.metadata),
            })
            .collect(),
        reason: request.reason.as_deref().map(str::to_owned),
    }
}

fn joined_response(joined: &Joined, version: i16) -> JoinGroupResponse {
    let mut response = JoinGroupResponse::default();
    response.generation_id = joined.generation;
    response.protocol_type = joined.protocol_type.as_deref().map(Into::into);
    response.protocol_name = Some(joined.protocol.as_deref().unwrap_or_default().into());
    response.leader = (&*joined.leader).into();
    response.skip_assignment = joined.skip_assignment && version >= SKIP_ASSIGNMENT_FROM;
    response.member_id = (&*joined.member_id).into();
    response.members = joined
        .members
        .iter()
        .map(|member| {
            let mut listed = JoinGroupResponseMember::default();
            listed.member_id = (&*member.member_id).into();
            listed.group_instance_id = member.instance_id.as_deref().map(Into::into);
            listed.metadata = member.metadata.clone();
            listed
        })
        .collect();
    response
}

fn refused_response(refused: &JoinRefused, version: i16) -> JoinGroupResponse {
    let mut response = JoinGroupResponse::default();
    response.error_code = refused.error.code().code();
    response.generation_id = UNKNOWN_GENERATION;
    response.protocol_name = (version < NULL_PROTOCOL_FROM).then(Default::default);
    response.member_id = (&*refused.member_id).into();
    response
}

#[cfg(test)]
mod tests {
    use kafka_wire_core::{ApiVersion, KafkaEncode};

    use super::*;
    use crate::coordinator::group::JoinedMember;

    #[test]
    fn every_version_can_say_yes_and_no() {
        let joined = Joined {
            member_id: "m".into(),
            generation: 3,
            protocol_type: Some("consumer".into()),
            protocol: Some("range".into()),
            leader: "m".into(),
            skip_assignment: true,
            members: vec![JoinedMember {
                member_id: "m".into(),
                instance_id: Some("i".into()),
                metadata: Bytes::from_static(b"x"),
            }],
        };
        let refused = JoinRefused {
            error: GroupError::MemberIdRequired,
            member_id: "m".into(),
        };
        for version in 0..=9 {
            for response in [
                joined_response(&joined, version),
                refused_response(&refused, version),
            ] {
                response.encoded_len(ApiVersion::new(version)).unwrap();
            }
        }
        assert_eq!(refused_response(&refused, 9).error_code, 79);
    }
}
