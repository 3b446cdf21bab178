//! DeleteGroups 0–2: delete groups without members, with their offsets.
//!
//! GROUP_ID_NOT_FOUND, or NON_EMPTY_GROUP while there are members. A group named twice is answered once.

use std::collections::BTreeSet;

use kafka_wire::delete_groups_response::DeletableGroupResult;
use kafka_wire::{DeleteGroupsRequest, DeleteGroupsResponse};

use super::RequestContext;
use crate::coordinator::code_of;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DeleteGroupsRequest,
    _version: i16,
) -> DeleteGroupsResponse {
    let mut response = DeleteGroupsResponse::default();
    let mut seen = BTreeSet::new();
    for group_id in request.groups_names {
        if !seen.insert(group_id.clone()) {
            continue;
        }
        let mut result = DeletableGroupResult::default();
        result.error_code = code_of(ctx.broker.groups.delete(&group_id).await);
        result.group_id = group_id;
        response.results.push(result);
    }
    response
}
