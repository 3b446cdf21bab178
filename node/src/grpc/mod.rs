//! The gRPC listener: the metadata quorum, the heartbeats of the nodes, administration, health and, where it is enabled,
//! reflection.
//!
//! It is served from early in the start until the very end of a stop: nodes that start together must be able to answer
//! each other before any of them has a controller, and the quorum needs this node until it closes. Administration
//! answers UNAVAILABLE outside the time in which the node serves clients.

mod connections;
mod gate;
mod places;

use std::time::Duration;

use kittiwake_proto::FILE_DESCRIPTOR_SET;
use kittiwake_raft::MetadataQuorum;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};
use tracing::error;

use crate::cluster;
use connections::Patience;
use gate::Gated;
pub(crate) use gate::gate;
use places::{Peer, of};

/// Requests at once on one connection.
const REQUESTS_PER_CONNECTION_MAX: usize = 32;
/// Streams open at once on one connection; those beyond [`REQUESTS_PER_CONNECTION_MAX`] wait.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Nothing takes longer until its answer begins.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// Silent connections are asked whether they are alive.
const KEEPALIVE: Duration = Duration::from_secs(60);
const PATIENCE: Patience = Patience {
    // Clients connect when they have something to ask.
    first_request: Duration::from_secs(10),
    // It did not answer twice.
    silence: Duration::from_secs(150),
};
/// Headers of a request, in bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// What the listener serves.
pub(crate) struct Services<H: Health> {
    pub(crate) quorum: MetadataQuorum,
    pub(crate) cluster: cluster::Server,
    pub(crate) admin: Gated,
    pub(crate) health: HealthServer<H>,
    pub(crate) reflection: bool,
}

/// Serves until `shutdown`.
pub(crate) async fn serve<H: Health>(
    socket: TcpListener,
    services: Services<H>,
    shutdown: CancellationToken,
) {
    let reflection = services.reflection.then(|| {
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
    let incoming = connections::accept(socket, PATIENCE, shutdown.clone());
    let served = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
        .timeout(REQUEST_DEADLINE)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(InterceptedService::new(
            services.quorum.grpc_service(),
            of(Peer::Node),
        ))
        .add_service(InterceptedService::new(services.cluster, of(Peer::Node)))
        .add_service(InterceptedService::new(services.health, of(Peer::Operator)))
        .add_service(InterceptedService::new(services.admin, of(Peer::Operator)))
        .add_optional_service(
            reflection.map(|reflection| InterceptedService::new(reflection, of(Peer::Operator))),
        )
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await;
    if let Err(error) = served {
        error!(%error, "the gRPC listener has failed");
    }
}
