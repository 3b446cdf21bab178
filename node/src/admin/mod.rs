//! Administration by gRPC.
//!
//! `proto/kittiwake/admin/v1/admin.proto` is the contract.

mod cluster;
mod partitions;
pub(crate) mod quorum;
mod service;
mod status;

use std::sync::Arc;

use kittiwake_proto::kittiwake::admin::v1::admin_server;

use crate::broker::Broker;
use service::AdminService;

/// The largest request: a topic with all its configuration.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The service, as the gRPC listener serves it.
pub(crate) type AdminServer = admin_server::AdminServer<AdminService>;

/// Administration by way of `broker`.
pub(crate) fn server(broker: Arc<Broker>) -> AdminServer {
    AdminServer::new(AdminService::new(broker)).max_decoding_message_size(REQUEST_BYTES_MAX)
}
