//! DescribeCluster 0–2 (KIP-700): the brokers a client of this listener can reach, and the controller among them.
//!
//! From v1 a client says whether it means brokers or controllers (KIP-919): here brokers, or MISMATCHED_ENDPOINT_TYPE.
//! From v2 fenced brokers are shown if asked for (KIP-1073).

use kafka_wire::describe_cluster_response::DescribeClusterBroker;
use kafka_wire::{DescribeClusterRequest, DescribeClusterResponse};
use kafka_wire_core::StrBytes;

use super::metadata::{CLUSTER_OPERATIONS, NO_BROKER};
use super::{ErrorCode, RequestContext};

const BROKERS: i8 = 1;
const CONTROLLERS: i8 = 2;
const FENCED_FROM: i16 = 2;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DescribeClusterRequest,
    version: i16,
) -> DescribeClusterResponse {
    let mut response = DescribeClusterResponse::default();
    if request.endpoint_type != BROKERS {
        let (code, message) = match request.endpoint_type {
            CONTROLLERS => (
                ErrorCode::MismatchedEndpointType,
                "This is a broker's listener, not a controller's.",
            ),
            _ => (
                ErrorCode::UnsupportedEndpointType,
                "The endpoint type must be 1, brokers.",
            ),
        };
        response.error_code = code.code();
        response.error_message = Some(StrBytes::from(message));
        return response;
    }
    let image = ctx.broker.quorum.image();
    let with_fenced = request.include_fenced_brokers && version >= FENCED_FROM;
    for broker in image
        .brokers
        .values()
        .filter(|broker| with_fenced || !broker.fenced)
    {
        let Some(endpoint) = broker.endpoint(&ctx.peer.listener) else {
            continue;
        };
        let mut answer = DescribeClusterBroker::default();
        answer.broker_id = broker.id.0;
        answer.host = StrBytes::from(endpoint.host.as_str());
        answer.port = i32::from(endpoint.port);
        answer.rack = broker.rack.as_deref().map(StrBytes::from);
        answer.is_fenced = broker.fenced;
        response.brokers.push(answer);
    }
    let live = |id: i32| {
        response
            .brokers
            .iter()
            .any(|broker| broker.broker_id == id && !broker.is_fenced)
    };
    response.controller_id = ctx
        .broker
        .quorum
        .controller()
        .map(|id| id.0)
        .filter(|id| live(*id))
        .unwrap_or(NO_BROKER);
    response.cluster_id = StrBytes::from(&*image.cluster_id);
    if request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    response
}
