//! DescribeGroups 0–6: state and members of groups.
//!
//! A group that does not exist is `Dead` without an error up to v5, and GROUP_ID_NOT_FOUND from v6
//! (KIP-1043). Member metadata and protocol are shown while the group is stable. v3+ may ask for the
//! operations the client is authorised for: all, since there are no ACLs.

use kafka_wire::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_wire::{DescribeGroupsRequest, DescribeGroupsResponse};
use kafka_wire_core::StrBytes;

use super::RequestContext;
use crate::coordinator::group::GroupState;
use crate::coordinator::{GroupDescription, GroupError, MemberDescription};

const GROUP_ID_NOT_FOUND_FROM: i16 = 6;

/// READ, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS: what Kafka knows to do to a group, as bits by
/// the operations' codes.
const ALL_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DescribeGroupsRequest,
    version: i16,
) -> DescribeGroupsResponse {
    let mut response = DescribeGroupsResponse::default();
    for group_id in request.groups {
        let described = ctx.broker.groups.describe(&group_id).await;
        let mut answer = match described {
            Ok(Some(group)) => describe(group),
            Ok(None) => missing(&group_id, version),
            Err(error) => {
                let mut answer = DescribedGroup::default();
                answer.error_code = error.code().code();
                answer
            }
        };
        answer.group_id = group_id;
        if request.include_authorized_operations && answer.error_code == 0 {
            answer.authorized_operations = ALL_OPERATIONS;
        }
        response.groups.push(answer);
    }
    response
}

fn missing(group_id: &StrBytes, version: i16) -> DescribedGroup {
    let mut answer = DescribedGroup::default();
    answer.group_state = GroupState::Dead.name().into();
    if version >= GROUP_ID_NOT_FOUND_FROM {
        answer.error_code = GroupError::GroupIdNotFound.code().code();
        answer.error_message = Some(format!("Group {group_id} not found.").into());
    }
    answer
}

fn describe(group: GroupDescription) -> DescribedGroup {
    let mut answer = DescribedGroup::default();
    answer.group_state = group.listing.state.name().into();
    answer.protocol_type = (&*group.listing.protocol_type).into();
    answer.protocol_data = group.protocol.as_deref().unwrap_or_default().into();
    answer.members = group.members.into_iter().map(describe_member).collect();
    answer
}

fn describe_member(member: MemberDescription) -> DescribedGroupMember {
    let mut answer = DescribedGroupMember::default();
    answer.member_id = (&*member.member_id).into();
    answer.group_instance_id = member.instance_id.as_deref().map(Into::into);
    answer.client_id = (&*member.client_id).into();
    answer.client_host = (&*member.client_host).into();
    answer.member_metadata = member.metadata;
    answer.member_assignment = member.assignment;
    answer
}
