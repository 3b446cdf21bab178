//! Which leader each followed partition is fetched from.

use kittiwake_raft::{BrokerEpoch, BrokerId, MetadataQuorum};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fetcher::Fetcher;
use super::sessions::Key;
use super::throttle::{Limit, Side};
use crate::config::BrokerConfig;
use crate::partition::manager::Fetchers;
use crate::partition::{Following, Partition};

/// What is counted of this node's fetching.
#[derive(Clone, Debug, Default)]
pub struct FetchCounters {
    /// Fetch requests answered by leaders.
    pub fetches: Counter,
    /// Record bytes received from leaders.
    pub bytes: Counter,
}

/// What all fetchers of a node share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) node_id: BrokerId,
    /// This life's registration, once it has one.
    pub(super) epoch: Arc<OnceLock<BrokerEpoch>>,
    pub(super) config: Arc<BrokerConfig>,
    pub(super) quorum: MetadataQuorum,
    pub(super) counters: FetchCounters,
    /// Of everything this node fetches for throttled replicas that are out of sync.
    pub(super) limit: Limit,
    pub(super) stop: CancellationToken,
}

impl Shared {
    /// Whether a replica may be held back while it catches up: it is throttled, and not in sync.
    pub(super) fn may_hold_back(&self, (topic, index): Key, replica: &Partition) -> bool {
        replica.throttled().as_follower
            && self
                .quorum
                .image()
                .partition(topic, index)
                .is_none_or(|partition| !partition.isr.contains(&self.node_id))
    }
}

/// The fetchers of this node: one per leader, carrying all partitions that follow it.
pub struct FetcherPool {
    shared: Arc<Shared>,
    runtime: Handle,
    tasks: TaskTracker,
    assigned: Mutex<Assigned>,
}

#[derive(Default)]
struct Assigned {
    leaders: HashMap<Key, BrokerId>,
    inboxes: HashMap<BrokerId, Arc<Inbox>>,
}

impl fmt::Debug for FetcherPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetcherPool").finish_non_exhaustive()
    }
}

impl FetcherPool {
    /// A pool without fetchers; they run in `tasks`, on the runtime this is called from, until `stop`.
    pub fn new(
        (node_id, epoch): (BrokerId, Arc<OnceLock<BrokerEpoch>>),
        config: Arc<BrokerConfig>,
        quorum: MetadataQuorum,
        counters: FetchCounters,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                node_id,
                epoch,
                config,
                limit: Limit::new(node_id, Side::Follower, quorum.clone()),
                quorum,
                counters,
                stop,
            }),
            runtime: Handle::current(),
            tasks,
            assigned: Mutex::default(),
        }
    }

    fn inbox(&self, assigned: &mut Assigned, leader: BrokerId) -> Arc<Inbox> {
        let inbox = assigned.inboxes.entry(leader).or_insert_with(|| {
            let inbox = Arc::new(Inbox::default());
            let fetcher = Fetcher::new(Arc::clone(&self.shared), leader, Arc::clone(&inbox));
            self.tasks.spawn_on(fetcher.run(), &self.runtime);
            inbox
        });
        Arc::clone(inbox)
    }
}

impl Fetchers for FetcherPool {
    fn follow(&self, partition: &Arc<Partition>, following: Following) {
        let key = (partition.topic_id(), partition.index());
        let mut assigned = self.assigned.lock();
        let former = assigned.leaders.insert(key, following.leader);
        if let Some(former) = former.filter(|former| *former != following.leader) {
            self.inbox(&mut assigned, former).put(key, None);
        }
        let followed = Some((Arc::clone(partition), following));
        self.inbox(&mut assigned, following.leader)
            .put(key, followed);
    }

    fn stop(&self, partition: &Arc<Partition>) {
        let key = (partition.topic_id(), partition.index());
        let mut assigned = self.assigned.lock();
        if let Some(former) = assigned.leaders.remove(&key) {
            self.inbox(&mut assigned, former).put(key, None);
        }
    }
}

/// A partition to fetch, or none where it is to be fetched no more.
pub(super) type Assignment = Option<(Arc<Partition>, Following)>;

/// Changes of one fetcher's partitions; the latest of each counts.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    changes: Mutex<HashMap<Key, Assignment>>,
    changed: Notify,
}

impl Inbox {
    fn put(&self, key: Key, assignment: Assignment) {
        self.changes.lock().insert(key, assignment);
        self.changed.notify_one();
    }

    pub(super) fn take(&self) -> HashMap<Key, Assignment> {
        std::mem::take(&mut self.changes.lock())
    }

    /// Completes when something has come since the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
