//! A node from start to stop.
//!
//! Start: bind every socket, lock the data directory, open the metadata log and the partition logs side by side, answer the
//! other nodes (gRPC), wait for the controller, register, bring partitions in step with the image, be unfenced, serve
//! clients. Stop: the same backwards, the clean-shutdown marker and then the metadata quorum last.

use anyhow::{Context, Result, anyhow};
use kittiwake_raft::{
    BrokerEpoch, DirectoryId, Endpoint, IncarnationId, MetadataQuorum, QuorumOptions,
    RegisterBroker,
};
use kittiwake_storage::{Loaded, LogDir, LogDirOptions};
use parking_lot::Mutex;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::admin;
use crate::api;
use crate::api::fetch::SessionCache;
use crate::broker::{Broker, LOOKUPS_MAX, now_ms};
use crate::cluster::membership::{self, Joining};
use crate::cluster::{ClusterService, ControllerLease, Voter, leave};
use crate::config::BrokerConfig;
use crate::config::address::{GRPC_LISTENER, HostPort};
use crate::controller::producer_ids::ProducerIds;
use crate::controller::{fencing, registration, upkeep};
use crate::coordinator::{GroupConfig, GroupCoordinator};
use crate::grpc;
use crate::http::{self, Monitor};
use crate::listeners::{KafkaListeners, Sockets};
use crate::metrics::Metrics;
use crate::partition::PartitionManager;
use crate::partition::housekeeping::{self, Periods};
use crate::partition::{damage, isr};
use crate::replication::FetcherPool;
use crate::replication::sessions::ReplicaSessions;
use crate::replication::throttle::{Limit, Side};
use crate::wire::admission::{Admission, Limits};

/// How long a start waits for a majority of voters to agree on a controller before it says so, again and again.
const CONTROLLER_WAIT: Duration = Duration::from_secs(10);

/// Connections that followers may have here together: each node has one, two while it replaces a lost one.
const FOLLOWER_CONNECTIONS_MAX: usize = 1_000;

/// Of these from one address, which several nodes may share.
const FOLLOWER_CONNECTIONS_PER_ADDRESS_MAX: usize = 100;

/// How long gRPC connections may take to end once the quorum has closed.
const GRPC_GOODBYE: Duration = Duration::from_millis(500);

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Sealed segments open at a time; half of what an ordinary `ulimit -n` of 20,000 leaves beside connections.
const OPEN_SEGMENTS_MAX: usize = 4096;

/// Where a node can be reached, once it can.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Kafka listeners: name and address.
    pub kafka: Vec<(String, SocketAddr)>,
    /// The gRPC listener.
    pub grpc: SocketAddr,
    /// The HTTP listener.
    pub http: SocketAddr,
}

/// Runs a node until `shutdown`; `on_ready` is called once clients are served.
///
/// # Errors
/// Whatever keeps the node from starting, or from stopping cleanly: one clear sentence.
pub async fn run(
    config: BrokerConfig,
    shutdown: CancellationToken,
    on_ready: impl FnOnce(&Bound) + Send,
) -> Result<()> {
    let node = tokio::select! {
        started = Node::start(Arc::new(config)) => started?,
        // Nothing is served yet and nothing was appended: the next start recovers what this one found.
        () = shutdown.cancelled() => {
            info!("stopped before it had started");
            return Ok(());
        }
    };
    on_ready(&node.bound);
    info!(node = %node.broker.node_id, listeners = ?node.bound.kafka, "serving");
    let reason = tokio::select! {
        () = shutdown.cancelled() => return node.stop().await,
        reason = node.broker.quorum.failed() => {
            anyhow!("the metadata quorum has failed: {reason}")
        }
        expelled = membership::stay(&node.broker, node.epoch) => expelled.into(),
    };
    error!(%reason, "the node cannot go on and stops");
    node.stop().await?;
    Err(reason)
}

pub(crate) struct Node {
    broker: Arc<Broker>,
    bound: Bound,
    epoch: BrokerEpoch,
    /// Connections; they end by themselves after shutdown.
    connections: TaskTracker,
    /// Everything else.
    tasks: TaskTracker,
    /// Set when this node stops serving clients.
    shutdown: CancellationToken,
    /// Set when it has left the cluster: it is not heard any more, and hears nobody.
    left: CancellationToken,
    /// The gRPC listener, which outlasts everything else: the quorum needs it until it has closed.
    grpc: TaskTracker,
    grpc_shutdown: CancellationToken,
}

impl Node {
    async fn start(config: Arc<BrokerConfig>) -> Result<Self> {
        let sockets = Sockets::bind(&config).await?;
        let endpoints = sockets.endpoints(&config)?;
        let bound = Bound {
            kafka: sockets
                .kafka
                .iter()
                .map(|socket| (socket.name.to_string(), socket.address))
                .collect(),
            grpc: sockets.grpc.address,
            http: sockets.http.address,
        };
        let metrics = Arc::new(Metrics::new(api::served().map(|api| (api.key, api.name))));
        let (connections, tasks) = (TaskTracker::new(), TaskTracker::new());
        let (shutdown, left) = (CancellationToken::new(), CancellationToken::new());
        let grpc_shutdown = CancellationToken::new();
        // Of a start that fails nothing goes on.
        let guards = [&shutdown, &left, &grpc_shutdown].map(|token| token.clone().drop_guard());
        let monitor = Arc::new(Monitor::new(Arc::clone(&metrics)));
        tasks.spawn(http::serve(
            sockets.http.socket,
            Arc::clone(&monitor) as _,
            connections.clone(),
            shutdown.clone(),
        ));
        let log_dir = Arc::new(open_log_dir(&config).await?);
        // The logs are read while the nodes find each other.
        let loading = load_logs(&config, &log_dir, &metrics);
        let quorum = open_quorum(&config, &endpoints).await?;
        let incarnation_id = IncarnationId::random();
        let voter = Arc::new(Voter::new(&config, quorum.clone()));
        tasks.spawn(fencing::run(
            Arc::clone(&voter),
            metrics.brokers_fenced.clone(),
            left.clone(),
        ));
        let (admin, gated, health) = grpc::gate().await;
        let services = grpc::Services {
            quorum: quorum.clone(),
            cluster: ClusterService::server(
                Arc::clone(&voter),
                config.cluster_id.to_string(),
                incarnation_id,
                config.broker_session_timeout_ms,
                grpc_shutdown.clone(),
            ),
            admin: gated,
            health,
            reflection: config.grpc_reflection_enable,
        };
        let grpc = TaskTracker::new();
        grpc.spawn(grpc::serve(
            sockets.grpc.socket,
            services,
            grpc_shutdown.clone(),
        ));
        let known = async {
            controller_known(&quorum).await;
            Ok(())
        };
        let (loaded, ()) = tokio::try_join!(loading, known)?;
        let followers_shutdown = CancellationToken::new();
        let epoch = Arc::new(OnceLock::new());
        let fetchers = FetcherPool::new(
            (config.node_id, Arc::clone(&epoch)),
            Arc::clone(&config),
            quorum.clone(),
            metrics.fetching.clone(),
            tasks.clone(),
            followers_shutdown.clone(),
        );
        let lease = Arc::new(ControllerLease::new(config.broker_session_timeout_ms));
        let partitions = Arc::new(PartitionManager::new(
            (config.node_id, Arc::clone(&epoch)),
            Arc::clone(&config),
            Arc::clone(&log_dir),
            loaded,
            Arc::clone(&lease),
            Arc::new(fetchers),
        ));
        let slots = config.max_incremental_fetch_session_cache_slots;
        let broker = Arc::new(Broker {
            node_id: config.node_id,
            quorum: quorum.clone(),
            voter,
            partitions: Arc::clone(&partitions),
            groups: Arc::new(GroupCoordinator::new(
                GroupConfig::new(&config),
                quorum.watch(),
            )),
            producer_ids: ProducerIds::new(config.node_id, Arc::clone(&epoch), quorum.clone()),
            fetch_sessions: Mutex::new(SessionCache::new(slots)),
            replica_sessions: ReplicaSessions::new(Limit::new(
                config.node_id,
                Side::Leader,
                quorum.clone(),
            )),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            lease,
            expulsion: Arc::default(),
            epoch,
            shutdown: shutdown.clone(),
            followers_shutdown,
            admission: admission(&config, &metrics),
            metrics,
            config: Arc::clone(&config),
        });
        tasks.spawn(isr::run(
            Arc::clone(&broker),
            broker.followers_shutdown.clone(),
        ));
        tasks.spawn(damage::run(
            Arc::clone(&broker),
            broker.followers_shutdown.clone(),
        ));
        let listeners = KafkaListeners::new(&broker, &connections, &tasks)?;
        // Before this node can lead anything: its followers come at once.
        let replication = replication_admission(&config, &broker.metrics);
        listeners.serve(sockets.replication, replication, shutdown.clone());
        let joining = Joining {
            registration: registration(&broker, incarnation_id, endpoints)?,
            broker: Arc::clone(&broker),
            tasks: tasks.clone(),
            left: left.clone(),
        };
        let epoch = joining.join().await?;
        tasks.spawn(membership::watch_lease(
            Arc::clone(&broker),
            shutdown.clone(),
        ));
        tasks.spawn(membership::leave_when_offline(
            Arc::clone(&broker),
            epoch,
            shutdown.clone(),
        ));
        let periods = Periods {
            retention: config.log_retention_check_interval_ms,
            producer_expiry: config.producer_id_expiration_check_interval_ms,
            checkpoint: config.replica_high_watermark_checkpoint_interval_ms,
        };
        tasks.spawn(Arc::clone(&broker.groups).run(Arc::clone(&partitions), shutdown.clone()));
        tasks.spawn(housekeeping::run(partitions, periods, shutdown.clone()));
        tasks.spawn(upkeep::run(Arc::clone(&broker), shutdown.clone()));
        for socket in sockets.kafka {
            listeners.serve(socket, Arc::clone(&broker.admission), shutdown.clone());
        }
        admin.open(admin::server(Arc::clone(&broker))).await;
        monitor.serving(Arc::clone(&broker));
        for guard in guards {
            guard.disarm();
        }
        Ok(Self {
            broker,
            bound,
            epoch,
            connections,
            tasks,
            shutdown,
            left,
            grpc,
            grpc_shutdown,
        })
    }

    /// Moves leadership to the others, answers what is in flight, leaves the cluster, flushes, and leaves the
    /// clean-shutdown marker.
    async fn stop(self) -> Result<()> {
        info!("stopping");
        // What is left of the time is for flushing: the process ends as it is at the deadline.
        let answering = self.broker.config.kittiwake_shutdown_timeout_ms / 2;
        let deadline = Instant::now() + answering;
        // Writes that others acknowledge wait for every in-sync replica: while this node is one, its followers and the
        // task that tells them of new leaders run, until `followers_shutdown`. Where it leads nothing any more, writes in
        // flight here are answered already (NOT_LEADER_OR_FOLLOWER), nobody needs this replica, and it leaves the ISRs
        // before it waits for the slowest client. Where it still leads it answers first: fenced, it could not.
        let handed_over = leave::hand_over(&self.broker, self.epoch).await;
        let leads = leave::leads_something(&self.broker);
        if handed_over && !leads {
            leave::fence_oneself(&self.broker, self.epoch).await;
        }
        self.shutdown.cancel();
        self.connections.close();
        if timeout_at(deadline, self.connections.wait()).await.is_err() {
            warn!(
                open = self.connections.len(),
                "connections are still open after {answering:?}; they end with the process"
            );
        }
        if handed_over && leads {
            leave::fence_oneself(&self.broker, self.epoch).await;
        }
        self.broker.followers_shutdown.cancel();
        self.left.cancel();
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            warn!(
                running = self.tasks.len(),
                "tasks are still running after {answering:?}"
            );
        }
        let closed = self.close_logs().await;
        self.broker.quorum.shutdown().await;
        self.grpc_shutdown.cancel();
        self.grpc.close();
        if timeout(GRPC_GOODBYE, self.grpc.wait()).await.is_err() {
            info!("gRPC connections are still open; they end with the process");
        }
        closed.context("the logs could not be closed cleanly; the next start recovers them")?;
        info!("stopped");
        Ok(())
    }

    async fn close_logs(&self) -> Result<()> {
        let partitions = Arc::clone(&self.broker.partitions);
        let threads = self.broker.config.num_recovery_threads_per_data_dir;
        let epoch = self.epoch.0;
        let closing = spawn_blocking(move || {
            let high_watermarks = partitions.high_watermarks();
            partitions
                .log_dir()
                .shutdown_clean(epoch, &high_watermarks, threads)
        });
        Ok(closing.await.context("closing the logs")??)
    }
}

/// Locks the data directory and checks whose it is.
async fn open_log_dir(config: &Arc<BrokerConfig>) -> Result<LogDir> {
    let config = Arc::clone(config);
    let opened = spawn_blocking(move || {
        let options = LogDirOptions {
            cluster_id: config.cluster_id.to_string(),
            node_id: config.node_id.0,
            boot_id_path: BOOT_ID.into(),
            free_floor_bytes: config.kittiwake_disk_free_min_bytes,
            open_segments_max: OPEN_SEGMENTS_MAX,
        };
        LogDir::open(&config.log_dirs, &options)
    });
    Ok(opened.await.context("opening the data directory")??)
}

/// Opens every log; begun at once, whether or not somebody waits for it yet.
fn load_logs(
    config: &Arc<BrokerConfig>,
    log_dir: &Arc<LogDir>,
    metrics: &Arc<Metrics>,
) -> impl Future<Output = Result<Loaded>> + use<> {
    let (config, log_dir, metrics) = (Arc::clone(config), Arc::clone(log_dir), Arc::clone(metrics));
    let loading = spawn_blocking(move || {
        let begun = Instant::now();
        // Until the image is known every log has the broker's defaults; claiming it sets its topic's.
        let defaults =
            crate::config::TopicConfig::resolve(&config, &Default::default()).log_config();
        let loaded = log_dir
            .load(
                |_, _| defaults,
                config.num_recovery_threads_per_data_dir,
                now_ms(),
            )
            .with_context(|| format!("cannot read {}", log_dir.path().display()))?;
        report_recovery(&loaded, &metrics, begun.elapsed());
        anyhow::Ok(loaded)
    });
    async { loading.await.context("opening the logs")? }
}

fn report_recovery(loaded: &Loaded, metrics: &Metrics, took: Duration) {
    let recovered = || loaded.logs.iter().map(|log| &log.recovery);
    let checked: u64 = recovered().map(|recovery| recovery.checked_bytes).sum();
    let set_aside: usize = recovered().map(|recovery| recovery.set_aside.len()).sum();
    metrics.recovery.logs.set(loaded.logs.len() as i64);
    metrics.recovery.failed_logs.set(loaded.failed.len() as i64);
    metrics.recovery.scanned_bytes.set(checked as i64);
    metrics.recovery.set_aside_files.set(set_aside as i64);
    metrics.recovery.seconds.set(took.as_secs_f64());
    info!(
        logs = loaded.logs.len(),
        failed = loaded.failed.len(),
        checked,
        set_aside,
        ?took,
        "logs opened"
    );
}

async fn open_quorum(config: &BrokerConfig, endpoints: &[Endpoint]) -> Result<MetadataQuorum> {
    let voters = config
        .cluster_voters
        .0
        .iter()
        .map(|(id, address)| (*id, address.to_string()))
        .collect();
    let path: &Path = config.log_dirs.as_ref();
    let mut options =
        QuorumOptions::new(config.node_id, config.cluster_id.to_string(), path, voters);
    if let Some(grpc) = endpoints
        .iter()
        .find(|endpoint| endpoint.listener == GRPC_LISTENER)
    {
        let address = HostPort {
            host: grpc.host.clone(),
            port: grpc.port,
        };
        options.advertised_address = address.to_string();
    }
    MetadataQuorum::open(options)
        .await
        .context("cannot open the metadata log")
}

async fn controller_known(quorum: &MetadataQuorum) {
    while quorum
        .wait_for_leader(Instant::now() + CONTROLLER_WAIT)
        .await
        .is_err()
    {
        warn!("no controller yet: a majority of cluster.voters must be up");
    }
}

fn registration(
    broker: &Broker,
    incarnation_id: IncarnationId,
    endpoints: Vec<Endpoint>,
) -> Result<RegisterBroker> {
    let log_dir = broker.partitions.log_dir();
    let directory_id = DirectoryId::from_bytes(log_dir.directory_id().into_bytes())
        .context("meta.properties has the zero directory.id, which no directory has")?;
    Ok(RegisterBroker {
        broker: broker.node_id,
        incarnation_id,
        directory_id,
        endpoints,
        rack: broker.config.broker_rack.clone(),
        last_stop: registration::last_stop(log_dir.last_stop()),
    })
}

fn admission(config: &BrokerConfig, metrics: &Metrics) -> Arc<Admission> {
    admission_under(client_limits(config), metrics)
}

/// Followers have connections and request memory of their own: clients at their limits must not keep them out.
fn replication_admission(config: &BrokerConfig, metrics: &Metrics) -> Arc<Admission> {
    let limits = Limits {
        connections_max: FOLLOWER_CONNECTIONS_MAX,
        connections_per_address_max: FOLLOWER_CONNECTIONS_PER_ADDRESS_MAX,
        ..client_limits(config)
    };
    admission_under(limits, metrics)
}

fn client_limits(config: &BrokerConfig) -> Limits {
    Limits {
        frame_bytes_max: config.socket_request_max_bytes,
        request_memory_bytes: config.queued_max_request_bytes,
        connections_max: config.max_connections,
        connections_per_address_max: config.max_connections_per_ip,
        idle_max: config.connections_max_idle_ms,
        progress_max: config.request_progress_timeout_ms,
    }
}

fn admission_under(limits: Limits, metrics: &Metrics) -> Arc<Admission> {
    Admission::new(
        limits,
        metrics.connections_accepted.clone(),
        metrics.connections_refused.clone(),
    )
}

#[cfg(test)]
impl Node {
    /// A node of its own in `directory`, on any free port.
    pub(crate) async fn for_tests(directory: &Path) -> Self {
        let mut config = BrokerConfig::default();
        let data = directory.join("data");
        config.log_dirs = data.to_string_lossy().parse().expect("a path");
        config.listeners = "PLAINTEXT://127.0.0.1:0".parse().expect("a listener");
        let free = || "127.0.0.1:0".parse().expect("an address");
        config.replication_listener = free();
        config.grpc_listener = free();
        config.http_listener = free();
        Self::start(Arc::new(config))
            .await
            .expect("the node starts")
    }

    pub(crate) fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    pub(crate) async fn stop_for_tests(self) {
        self.stop().await.expect("the node stops cleanly");
    }
}
