//! The node as its APIs see it: configuration, metadata, partitions, coordinators.

use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage, MetadataQuorum, Topic, TopicId};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::fetch::SessionCache;
use crate::cluster::{ControllerLease, Expulsion, Voter};
use crate::config::BrokerConfig;
use crate::controller::producer_ids::ProducerIds;
use crate::coordinator::GroupCoordinator;
use crate::metrics::Metrics;
use crate::partition::PartitionManager;
use crate::replication::sessions::ReplicaSessions;
use crate::wire::admission::Admission;

/// Milliseconds since 1970 by the wall clock, Kafka's time. Taken at the edge only: what decides is given the time.
pub fn now_ms() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since the node started, by a clock that only goes forward: what deadlines and lags are measured with.
pub fn uptime_ms() -> i64 {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let uptime = STARTED.get_or_init(Instant::now).elapsed();
    i64::try_from(uptime.as_millis()).unwrap_or(i64::MAX)
}

/// Look-ups on the blocking pool at once: each may unpack a batch, and the flushes of acknowledgements use the same pool.
pub(crate) const LOOKUPS_MAX: usize = 16;

/// What every API handler shares.
#[derive(Debug)]
pub struct Broker {
    /// The configuration of this node.
    pub config: Arc<BrokerConfig>,
    /// The id of this node.
    pub node_id: BrokerId,
    /// The metadata of the cluster.
    pub quorum: MetadataQuorum,
    /// What this node hears of the brokers, as a voter.
    pub(crate) voter: Arc<Voter>,
    /// The partitions of this node.
    pub partitions: Arc<PartitionManager>,
    /// The groups it coordinates.
    pub groups: Arc<GroupCoordinator>,
    /// The ids its producers get.
    pub producer_ids: ProducerIds,
    /// The fetch sessions of its clients.
    pub fetch_sessions: Mutex<SessionCache>,
    /// The fetch sessions of its followers.
    pub replica_sessions: ReplicaSessions,
    /// Turns at looking offsets up on the blocking pool, so that look-ups cannot take all of its threads and memory.
    pub lookups: Arc<Semaphore>,
    /// For how long it may accept writes; without a valid one it refuses them.
    pub lease: Arc<ControllerLease>,
    /// What the voters say of its place in the cluster.
    pub(crate) expulsion: Arc<Expulsion>,
    /// This life's registration, once it has one.
    pub epoch: Arc<OnceLock<BrokerEpoch>>,
    /// Set when the node stops serving clients.
    pub shutdown: CancellationToken,
    /// Set when the followers here are to stop: later in a stop than `shutdown`, when this node has left every ISR.
    pub followers_shutdown: CancellationToken,
    /// What it lets in.
    pub admission: Arc<Admission>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
}

/// Who leads a partition, and where clients reach it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaderEndpoint {
    /// The leader.
    pub id: BrokerId,
    /// The epoch it leads in.
    pub epoch: i32,
    /// Host of its listener.
    pub host: String,
    /// Port of its listener.
    pub port: u16,
    /// Its rack.
    pub rack: Option<String>,
}

impl Broker {
    /// The latest image of the cluster.
    pub fn image(&self) -> Arc<ClusterImage> {
        self.quorum.image()
    }

    /// Runs a look-up that may read the disk on the blocking pool, in its turn; none if it died.
    pub async fn look_up<T: Send + 'static>(
        &self,
        look_up: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        // Never closed. The turn lasts as long as the look-up, not only as long as somebody waits for it.
        let turn = Arc::clone(&self.lookups).acquire_owned().await.ok()?;
        let running = tokio::task::spawn_blocking(move || {
            let found = look_up();
            drop(turn);
            found
        });
        running.await.ok()
    }

    /// The most record bytes one fetch returns (`fetch.max.bytes`).
    pub fn fetch_bytes_max(&self) -> usize {
        self.config.fetch_max_bytes as usize
    }

    /// The leader of a partition, as reached by clients of `listener`; none where there is none or it is fenced.
    pub fn leader(&self, topic: &str, partition: i32, listener: &str) -> Option<LeaderEndpoint> {
        let image = self.image();
        leader_in(&image, image.topic_by_name(topic)?, partition, listener)
    }

    /// As [`Broker::leader`], for a topic named by id.
    pub fn leader_by_id(
        &self,
        topic: TopicId,
        partition: i32,
        listener: &str,
    ) -> Option<LeaderEndpoint> {
        let image = self.image();
        leader_in(&image, image.topic(topic)?, partition, listener)
    }
}

fn leader_in(
    image: &ClusterImage,
    topic: &Topic,
    partition: i32,
    listener: &str,
) -> Option<LeaderEndpoint> {
    let partition = topic.partitions.get(usize::try_from(partition).ok()?)?;
    let id = partition.leader?;
    let broker = image.broker(id).filter(|broker| !broker.fenced)?;
    let endpoint = broker.endpoint(listener)?;
    Some(LeaderEndpoint {
        id,
        epoch: partition.leader_epoch,
        host: endpoint.host.clone(),
        port: endpoint.port,
        rack: broker.rack.clone(),
    })
}
