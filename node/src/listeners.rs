//! The sockets of a node: bound before anything else, so that a start that cannot succeed fails at once, and served as
//! the start proceeds.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use kittiwake_raft::Endpoint;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::KafkaService;
use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::config::address::{GRPC_LISTENER, HostPort, REPLICATION_LISTENER};
use crate::wire::admission::Admission;
use crate::wire::listener::Listener;
use crate::wire::sendfile::{Sender, WireCounters};

/// A bound socket and the name of its listener.
pub(crate) struct Socket {
    pub(crate) name: Arc<str>,
    pub(crate) socket: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Socket {
    async fn bind(name: &str, what: &str, address: &HostPort) -> Result<Self> {
        let socket = TcpListener::bind(address.bind_address())
            .await
            .with_context(|| format!("{what} cannot listen on {address}"))?;
        Ok(Self {
            name: name.into(),
            address: socket.local_addr()?,
            socket,
        })
    }
}

/// Every socket of a node.
pub(crate) struct Sockets {
    /// Of Kafka clients.
    pub(crate) kafka: Vec<Socket>,
    /// Of the followers on other nodes.
    pub(crate) replication: Socket,
    pub(crate) grpc: Socket,
    pub(crate) http: Socket,
}

impl Sockets {
    /// Binds all of them.
    ///
    /// # Errors
    /// The first that cannot be bound.
    pub(crate) async fn bind(config: &BrokerConfig) -> Result<Self> {
        let mut kafka = Vec::new();
        for listener in &config.listeners.0 {
            let what = format!("listener {}", listener.name);
            kafka.push(Socket::bind(&listener.name, &what, &listener.address).await?);
        }
        Ok(Self {
            kafka,
            replication: Socket::bind(
                REPLICATION_LISTENER,
                "replication.listener",
                &config.replication_listener,
            )
            .await?,
            grpc: Socket::bind(GRPC_LISTENER, "grpc.listener", &config.grpc_listener).await?,
            http: Socket::bind("HTTP", "http.listener", &config.http_listener).await?,
        })
    }

    /// Where this node tells others to find it: the listeners of clients, and the two between nodes under their reserved
    /// names, which no client can have come in by and is therefore never told of.
    pub(crate) fn endpoints(&self, config: &BrokerConfig) -> Result<Vec<Endpoint>> {
        let hostname = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        let port = |name: &str| {
            let socket = self.kafka.iter().find(|socket| &*socket.name == name);
            socket.map_or(0, |socket| socket.address.port())
        };
        let endpoint = |listener: &str, address: HostPort| Endpoint {
            listener: listener.to_owned(),
            host: address.host,
            port: address.port,
        };
        let clients = config.advertised(port, &hostname);
        let replication = config.advertised_replication(self.replication.address.port(), &hostname);
        let grpc = config.advertised_grpc(self.grpc.address.port(), &hostname);
        let mut endpoints: Vec<Endpoint> = clients
            .into_iter()
            .map(|listener| endpoint(&listener.name, listener.address))
            .collect();
        endpoints.push(endpoint(REPLICATION_LISTENER, replication));
        endpoints.push(endpoint(GRPC_LISTENER, grpc));
        Ok(endpoints)
    }
}

/// Serves Kafka's protocol on sockets; all of them share threads for cold reads, and counters.
pub(crate) struct KafkaListeners {
    service: Arc<KafkaService>,
    sender: Sender,
    connections: TaskTracker,
    tasks: TaskTracker,
}

impl KafkaListeners {
    /// Listeners of `broker`; they run in `tasks`, their connections in `connections`.
    ///
    /// # Errors
    /// `/dev/null` cannot be opened.
    pub(crate) fn new(
        broker: &Arc<Broker>,
        connections: &TaskTracker,
        tasks: &TaskTracker,
    ) -> Result<Self> {
        let metrics = &broker.metrics;
        let counters = WireCounters {
            received_bytes: metrics.bytes_in.clone(),
            sendfile_bytes: metrics.bytes_out.sendfile.clone(),
            encoded_bytes: metrics.bytes_out.copy.clone(),
            hot_turns: metrics.fetch_slices.hot.clone(),
            cold_turns: metrics.fetch_slices.cold.clone(),
        };
        let sender = Sender::new(
            counters,
            broker.config.request_progress_timeout_ms,
            broker.config.kittiwake_cold_read_threads,
        )
        .context("cannot open /dev/null")?;
        Ok(Self {
            service: Arc::new(KafkaService::new(Arc::clone(broker))),
            sender,
            connections: connections.clone(),
            tasks: tasks.clone(),
        })
    }

    /// Serves `socket` until `shutdown`, to whom `admission` lets in.
    pub(crate) fn serve(
        &self,
        socket: Socket,
        admission: Arc<Admission>,
        shutdown: CancellationToken,
    ) {
        let listener = Listener {
            socket: socket.socket,
            name: socket.name,
            service: Arc::clone(&self.service),
            sender: self.sender.clone(),
            admission,
        };
        self.tasks
            .spawn(listener.run(self.connections.clone(), shutdown));
    }
}
