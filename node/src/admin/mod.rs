//! The gRPC listener: administration, health and, where it is enabled, reflection.
//!
//! `proto/kittiwake/admin/v1/admin.proto` is the contract.

mod connections;
mod service;
mod status;

use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::FILE_DESCRIPTOR_SET;
use kittiwake_proto::kittiwake::admin::v1::admin_server::AdminServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::error;

use crate::broker::Broker;
use service::AdminService;

/// Requests at once on one connection.
const REQUESTS_PER_CONNECTION_MAX: usize = 32;
/// Streams open at once on one connection; those beyond [`REQUESTS_PER_CONNECTION_MAX`] wait.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Nothing that administers takes longer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// Silent connections are asked whether they are alive.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// A connection that did not answer twice is closed.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// Headers of a request, in bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// The largest request: a topic with all its configuration.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Serves until `shutdown`.
pub async fn serve(socket: TcpListener, broker: Arc<Broker>, shutdown: CancellationToken) {
    let reflection = broker.config.grpc_reflection_enable.then(|| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .build_v1()
    });
    let reflection = match reflection.transpose() {
        Ok(reflection) => reflection,
        Err(error) => {
            error!(%error, "gRPC reflection is not available");
            None
        }
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AdminServer<AdminService>>().await;
    let admin =
        AdminServer::new(AdminService::new(broker)).max_decoding_message_size(REQUEST_BYTES_MAX);
    let incoming = connections::accept(socket, SILENCE_MAX, shutdown.clone());
    let served = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
        .timeout(REQUEST_DEADLINE)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(admin)
        .add_optional_service(reflection)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await;
    if let Err(error) = served {
        error!(%error, "the gRPC listener has failed");
    }
}
