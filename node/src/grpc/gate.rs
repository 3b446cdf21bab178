//! Keeps the administration service shut until the node serves.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::admin::AdminServer;

/// A gate, shut; what it keeps; and the health service that says whether it is open.
pub(crate) async fn gate() -> (AdminGate, Gated, HealthServer<impl Health>) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_not_serving::<AdminServer>().await;
    let admin = Gated(Arc::default());
    let gate = AdminGate {
        admin: admin.clone(),
        health,
    };
    (gate, admin, health_service)
}

/// Opens the administration service.
pub(crate) struct AdminGate {
    admin: Gated,
    health: HealthReporter,
}

impl AdminGate {
    /// From now on `admin` answers.
    pub(crate) async fn open(self, admin: AdminServer) {
        // The gate is gone with this call, so it is set once.
        let _ = self.admin.0.set(admin);
        self.health.set_serving::<AdminServer>().await;
    }
}

/// The administration service: UNAVAILABLE until its gate is opened.
#[derive(Clone)]
pub(crate) struct Gated(Arc<OnceLock<AdminServer>>);

impl NamedService for Gated {
    const NAME: &'static str = AdminServer::NAME;
}

impl Service<http::Request<Body>> for Gated {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // As generated services are: always.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.0.get() {
            Some(admin) => admin.clone().call(request),
            None => {
                let starting = Status::unavailable("the node is starting").into_http();
                Box::pin(async { Ok(starting) })
            }
        }
    }
}
