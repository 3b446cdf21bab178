//! ListGroups 0–5: the groups this node coordinates.
//!
//! v4+ filters by state (KIP-518), v5+ by type (KIP-848); names count without regard to case, an empty
//! filter takes everything, a name that does not exist matches nothing.

use kafka_wire::list_groups_response::ListedGroup;
use kafka_wire::{ListGroupsRequest, ListGroupsResponse};
use kafka_wire_core::StrBytes;

use super::RequestContext;
use crate::coordinator::GroupListing;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: ListGroupsRequest,
    _version: i16,
) -> ListGroupsResponse {
    let mut response = ListGroupsResponse::default();
    match ctx.broker.groups.list() {
        Ok(groups) => {
            response.groups = groups
                .into_iter()
                .filter(|group| matches(&request.states_filter, group.state.name()))
                .filter(|_| matches(&request.types_filter, GroupListing::GROUP_TYPE))
                .map(list)
                .collect();
        }
        Err(error) => response.error_code = error.code().code(),
    }
    response
}

fn matches(filter: &[StrBytes], name: &str) -> bool {
    filter.is_empty()
        || filter
            .iter()
            .any(|wanted| wanted.eq_ignore_ascii_case(name))
}

fn list(group: GroupListing) -> ListedGroup {
    let mut listed = ListedGroup::default();
    listed.group_id = (&*group.group_id).into();
    listed.protocol_type = (&*group.protocol_type).into();
    listed.group_state = group.state.name().into();
    listed.group_type = GroupListing::GROUP_TYPE.into();
    listed
}
