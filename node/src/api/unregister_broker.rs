//! UnregisterBroker 0 (KIP-500): forgets a broker that has stopped and has no replicas.
//!
//! Errors: BROKER_ID_NOT_REGISTERED; POLICY_VIOLATION where it still has replicas or runs. (Kafka forgets also those, and
//! leaves partitions with replicas on brokers that are none.)

use kafka_wire::{UnregisterBrokerRequest, UnregisterBrokerResponse};
use kafka_wire_core::StrBytes;
use kittiwake_raft::BrokerId;

use super::RequestContext;
use crate::controller::nodes::unregister;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: UnregisterBrokerRequest,
    _version: i16,
) -> UnregisterBrokerResponse {
    let mut response = UnregisterBrokerResponse::default();
    response.error_message = None;
    if let Err(refusal) = unregister(&ctx.broker, BrokerId(request.broker_id)).await {
        response.error_code = refusal.code.code();
        response.error_message = Some(StrBytes::from(refusal.message));
    }
    response
}
