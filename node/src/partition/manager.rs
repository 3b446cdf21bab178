//! The partitions of this node, kept in step with the cluster image.
//!
//! The image says which partitions this node holds, leads and follows; [`PartitionManager::reconcile`] carries the
//! difference out: logs are created, led, followed, resigned, configured and deleted. Directories are matched to topics by
//! topic id, never by name. A directory that no topic of the image claims is a *stray*: renamed and kept, never deleted.
//! Strays are judged by the first image only, which holds at least this life's registration.

mod logs;
mod reconciling;

use kittiwake_raft::image::Configs;
use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage, Topic, TopicId};
use kittiwake_storage::{FailedLog, LeaderEpoch, Loaded, LoadedLog, Log, LogDir, Offset};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::damage::DamageReports;
use super::isr::IsrUpdates;
use super::replica::{Following, Partition};
use crate::api::ErrorCode;
use crate::cluster::ControllerLease;
use crate::config::BrokerConfig;

/// Pause before logs that could not be created are tried again.
const CREATE_RETRY: Duration = Duration::from_secs(5);

/// What keeps the followed partitions fed.
pub trait Fetchers: std::fmt::Debug + Send + Sync {
    /// `partition` follows this leader from now on, and no other.
    fn follow(&self, partition: &Arc<Partition>, following: Following);

    /// `partition` follows nobody any more.
    fn stop(&self, partition: &Arc<Partition>);
}

/// Every partition this node holds.
#[derive(Debug)]
pub struct PartitionManager {
    node_id: BrokerId,
    /// This life's registration, once it has one.
    epoch: Arc<OnceLock<BrokerEpoch>>,
    config: Arc<BrokerConfig>,
    log_dir: Arc<LogDir>,
    registry: RwLock<Registry>,
    /// Logs found at start that no topic has claimed yet.
    unclaimed: Mutex<HashMap<(TopicId, i32), Found>>,
    reconciled: watch::Sender<u64>,
    lease: Arc<ControllerLease>,
    isr_updates: Arc<IsrUpdates>,
    damage_reports: DamageReports,
    fetchers: Arc<dyn Fetchers>,
}

/// A directory found at start.
#[derive(Debug)]
enum Found {
    Loaded(LoadedLog),
    Failed(FailedLog),
}

#[derive(Debug, Default)]
struct Registry {
    topics: HashMap<TopicId, LocalTopic>,
    ids: HashMap<String, TopicId>,
    /// The broker configurations that the topics' were derived from.
    broker_configs: [Option<Configs>; 2],
}

#[derive(Debug)]
struct LocalTopic {
    /// As of the image last reconciled.
    image: Arc<Topic>,
    partitions: BTreeMap<i32, LocalPartition>,
}

#[derive(Clone, Debug)]
enum LocalPartition {
    Open(Arc<Partition>),
    /// Its log is damaged, which the quorum is told. It is offline until another replica that has what was committed
    /// leads, and then begins anew from it, or until the operator has seen to it.
    Damaged(Option<FailedLog>),
    /// Its log could not be created, for want of space or descriptors; it is tried again.
    NotCreated,
}

impl LocalTopic {
    fn get(&self, index: i32) -> Result<Arc<Partition>, ErrorCode> {
        let replica = self.replica(index)?;
        if !replica.is_leader() {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        Ok(replica)
    }

    fn replica(&self, index: i32) -> Result<Arc<Partition>, ErrorCode> {
        match self.partitions.get(&index) {
            Some(LocalPartition::Open(partition)) => Ok(Arc::clone(partition)),
            Some(LocalPartition::Damaged(_) | LocalPartition::NotCreated) => {
                Err(ErrorCode::KafkaStorageError)
            }
            None if usize::try_from(index)
                .is_ok_and(|index| index < self.image.partitions.len()) =>
            {
                Err(ErrorCode::NotLeaderOrFollower)
            }
            None => Err(ErrorCode::UnknownTopicOrPartition),
        }
    }

    fn has_uncreated(&self) -> bool {
        self.partitions
            .values()
            .any(|partition| matches!(partition, LocalPartition::NotCreated))
    }

    fn open_partitions(&self) -> impl Iterator<Item = &Arc<Partition>> {
        self.partitions
            .values()
            .filter_map(|partition| match partition {
                LocalPartition::Open(partition) => Some(partition),
                LocalPartition::Damaged(_) | LocalPartition::NotCreated => None,
            })
    }
}

impl PartitionManager {
    /// A manager over the logs that `log_dir` has loaded; they are led once an image claims them.
    pub fn new(
        (node_id, epoch): (BrokerId, Arc<OnceLock<BrokerEpoch>>),
        config: Arc<BrokerConfig>,
        log_dir: Arc<LogDir>,
        loaded: Loaded,
        lease: Arc<ControllerLease>,
        fetchers: Arc<dyn Fetchers>,
    ) -> Self {
        let mut unclaimed = HashMap::new();
        for log in loaded.logs {
            // The zero id, which no topic has, claims nothing: such a log stays where it is.
            if let Some(id) = TopicId::from_bytes(log.log.topic_id().into_bytes()) {
                unclaimed.insert((id, log.log.partition().partition), Found::Loaded(log));
            }
        }
        for failed in loaded.failed {
            error!(partition = %failed.partition, path = %failed.path.display(), reason = %failed.reason,
                "the log is damaged and offline; its directory is left as it is");
            // Without a readable topic id nothing can claim it, and it stays where it is.
            if let Some(id) = failed
                .topic_id
                .and_then(|id| TopicId::from_bytes(id.into_bytes()))
            {
                unclaimed.insert((id, failed.partition.partition), Found::Failed(failed));
            }
        }
        Self {
            node_id,
            epoch,
            config,
            log_dir,
            registry: RwLock::default(),
            unclaimed: Mutex::new(unclaimed),
            reconciled: watch::Sender::new(0),
            lease,
            isr_updates: Arc::default(),
            damage_reports: DamageReports::default(),
            fetchers,
        }
    }

    /// The partition, where this node leads it.
    ///
    /// # Errors
    /// UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, or KAFKA_STORAGE_ERROR where its log is offline.
    pub fn get(&self, topic: &str, partition: i32) -> Result<Arc<Partition>, ErrorCode> {
        let registry = self.registry.read();
        let id = registry
            .ids
            .get(topic)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?;
        registry
            .topics
            .get(id)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?
            .get(partition)
    }

    /// The partition of the topic with this id, where this node leads it.
    ///
    /// # Errors
    /// As [`PartitionManager::get`], and UNKNOWN_TOPIC_ID.
    pub fn get_by_id(&self, topic: TopicId, partition: i32) -> Result<Arc<Partition>, ErrorCode> {
        self.registry
            .read()
            .topics
            .get(&topic)
            .ok_or(ErrorCode::UnknownTopicId)?
            .get(partition)
    }

    /// The partition that a consumer may read here: one that this node leads, or follows (KIP-392).
    ///
    /// # Errors
    /// As [`PartitionManager::get`].
    pub fn get_readable(&self, topic: &str, partition: i32) -> Result<Arc<Partition>, ErrorCode> {
        let registry = self.registry.read();
        let id = registry
            .ids
            .get(topic)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?;
        registry
            .topics
            .get(id)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?
            .replica(partition)
    }

    /// As [`PartitionManager::get_readable`], for a topic named by id.
    ///
    /// # Errors
    /// As [`PartitionManager::get_by_id`].
    pub fn get_readable_by_id(
        &self,
        topic: TopicId,
        partition: i32,
    ) -> Result<Arc<Partition>, ErrorCode> {
        self.registry
            .read()
            .topics
            .get(&topic)
            .ok_or(ErrorCode::UnknownTopicId)?
            .replica(partition)
    }

    /// Where leaders queue their ISR changes.
    pub fn isr_updates(&self) -> &Arc<IsrUpdates> {
        &self.isr_updates
    }

    /// What the quorum has yet to be told of damaged replicas.
    pub fn damage_reports(&self) -> &DamageReports {
        &self.damage_reports
    }

    /// The partitions that this node leads and whose high watermark waits for others or for the disk.
    pub fn led_and_waiting(&self) -> Vec<Arc<Partition>> {
        let registry = self.registry.read();
        let waits = |topic: &LocalTopic, partition: &Partition| {
            let image = usize::try_from(partition.index())
                .ok()
                .and_then(|index| topic.image.partitions.get(index));
            partition.is_persisted() || image.is_some_and(|image| image.replicas.len() > 1)
        };
        registry
            .topics
            .values()
            .flat_map(|topic| {
                let led = topic
                    .open_partitions()
                    .filter(|partition| partition.is_leader());
                led.filter(move |partition| waits(topic, partition))
            })
            .map(Arc::clone)
            .collect()
    }

    /// Every partition with an open log, led or not.
    pub fn all(&self) -> Vec<Arc<Partition>> {
        let registry = self.registry.read();
        registry
            .topics
            .values()
            .flat_map(LocalTopic::open_partitions)
            .map(Arc::clone)
            .collect()
    }

    /// The partitions of `topic` that this node leads, with their epochs.
    pub fn led(&self, topic: &str) -> Vec<(i32, LeaderEpoch)> {
        let registry = self.registry.read();
        let local = registry
            .ids
            .get(topic)
            .and_then(|id| registry.topics.get(id));
        local
            .into_iter()
            .flat_map(LocalTopic::open_partitions)
            .filter(|partition| partition.is_leader())
            .map(|partition| (partition.index(), partition.leader_epoch()))
            .collect()
    }

    /// Partitions whose logs could not be opened or created.
    pub fn failed_count(&self) -> usize {
        let registry = self.registry.read();
        let all = registry
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values());
        all.filter(|partition| !matches!(partition, LocalPartition::Open(_)))
            .count()
    }

    /// For how long this node may lead.
    pub fn lease(&self) -> &Arc<ControllerLease> {
        &self.lease
    }

    /// The directory the logs are in.
    pub fn log_dir(&self) -> &Arc<LogDir> {
        &self.log_dir
    }

    /// Up to which metadata offset the partitions here are as the image says.
    pub fn reconciled(&self) -> watch::Receiver<u64> {
        self.reconciled.subscribe()
    }

    /// Waits until what was committed at `metadata_offset` can be used here.
    pub async fn wait_reconciled(&self, metadata_offset: u64) {
        // The sender is a field of self, so the channel cannot close during this call.
        let _ = self
            .reconciled
            .subscribe()
            .wait_for(|offset| *offset >= metadata_offset)
            .await;
    }

    /// Follows the image until `shutdown`.
    pub async fn run(
        self: Arc<Self>,
        mut images: watch::Receiver<Arc<ClusterImage>>,
        shutdown: CancellationToken,
    ) {
        loop {
            let image = Arc::clone(&images.borrow_and_update());
            let manager = Arc::clone(&self);
            let reconciling = tokio::task::spawn_blocking(move || manager.reconcile(&image));
            if let Err(error) = reconciling.await {
                error!(%error, "cannot bring partitions in step with the cluster image");
            }
            let unfinished = self.has_uncreated();
            tokio::select! {
                changed = images.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(CREATE_RETRY), if unfinished => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn has_uncreated(&self) -> bool {
        let registry = self.registry.read();
        registry.topics.values().any(LocalTopic::has_uncreated)
    }

    /// The high watermarks of all partitions, each with its log, as they are checkpointed.
    pub fn high_watermarks(&self) -> Vec<(Arc<Log>, Offset)> {
        let of =
            |partition: &Arc<Partition>| (Arc::clone(partition.log()), partition.high_watermark());
        self.all().iter().map(of).collect()
    }
}
