//! The partitions of this node, kept in step with the cluster image.
//!
//! The image says which partitions this node holds, leads and follows; [`PartitionManager::reconcile`] carries the
//! difference out: logs are created, led, followed, resigned, configured and deleted. Directories are matched to topics by
//! topic id, never by name. A directory that no topic of the image claims is a *stray*: renamed and kept, never deleted.
//! Strays are judged by the first image only, which holds at least this life's registration.

use kittiwake_raft::image::Configs;
use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage, Topic, TopicId};
use kittiwake_storage::{
    Checkpoint, CreateError, FailedLog, LeaderEpoch, Loaded, LoadedLog, Log, LogDir, Offset,
};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::isr::{IsrUpdates, committed};
use super::replica::{Following, Partition, Settings, Throttled};
use crate::api::ErrorCode;
use crate::cluster::ControllerLease;
use crate::config::throttled_replicas::{
    FOLLOWER_THROTTLED_REPLICAS, LEADER_THROTTLED_REPLICAS, ThrottledReplicas,
};
use crate::config::{BrokerConfig, TopicConfig};

/// Threads that create logs together: creation waits for fsync, which the file system commits in groups.
const CREATE_THREADS: usize = 16;

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
    /// Its log is damaged. It is offline until the others have what was committed, and then begins anew from them, or
    /// until the operator has seen to it.
    Damaged(Option<FailedLog>),
    /// Its log could not be created, for want of space or descriptors; it is tried again.
    NotCreated,
}

/// Why a partition has no log.
enum Unopened {
    Damaged(Option<Box<FailedLog>>, String),
    NotCreated(CreateError),
}

/// What an image says of this life of the node.
enum Standing {
    /// It does not know it yet.
    Awaited,
    /// What it says of this node's partitions is meant for this process.
    Registered,
    /// Another process has its place, or nobody.
    Gone,
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

    /// Carries the difference between the image and what is here out. Blocks on the disk.
    ///
    /// Leaderships first: creating and deleting logs can take its time, and elections must not wait for it.
    pub fn reconcile(&self, image: &ClusterImage) {
        match self.standing(image) {
            Standing::Awaited => return,
            Standing::Gone => {
                self.resign_all();
                self.reconciled.send_replace(image.offset);
                return;
            }
            Standing::Registered => {}
        }
        let broker_configs =
            [None, Some(self.node_id)].map(|broker| image.broker_configs(broker).cloned());
        let same_defaults = self.registry.read().broker_configs == broker_configs;
        let changed: Vec<&Arc<Topic>> = {
            let registry = self.registry.read();
            let unchanged = |topic: &Arc<Topic>| {
                let local = registry.topics.get(&topic.id);
                local
                    .is_some_and(|local| Arc::ptr_eq(&local.image, topic) && !local.has_uncreated())
            };
            let topics = image.topics();
            topics
                .filter(|topic| !(same_defaults && unchanged(topic)))
                .collect()
        };
        for topic in &changed {
            let partitions = self.local_partitions(topic);
            self.follow(image, topic, &partitions);
        }
        self.drop_deleted(image);
        for topic in changed {
            self.reconcile_topic(image, topic);
        }
        self.registry.write().broker_configs = broker_configs;
        self.set_strays_aside();
        self.reconciled.send_replace(image.offset);
    }

    fn standing(&self, image: &ClusterImage) -> Standing {
        let Some(epoch) = self.epoch.get() else {
            return Standing::Awaited;
        };
        let registered = image.broker(self.node_id).map(|broker| broker.epoch);
        // An epoch is the metadata offset of the registration.
        let reached = u64::try_from(epoch.0).is_ok_and(|registration| image.offset >= registration);
        match registered {
            Some(registered) if registered == *epoch => Standing::Registered,
            _ if reached => Standing::Gone,
            _ => Standing::Awaited,
        }
    }

    fn resign_all(&self) {
        for partition in self.all() {
            partition.resign();
            self.fetchers.stop(&partition);
        }
    }

    /// The high watermarks of all partitions, as they are checkpointed.
    pub fn high_watermarks(&self) -> Checkpoint {
        let of = |partition: &Arc<Partition>| {
            (
                partition.log().partition().clone(),
                partition.high_watermark(),
            )
        };
        self.all().iter().map(of).collect()
    }

    fn drop_deleted(&self, image: &ClusterImage) {
        let deleted: Vec<LocalTopic> = {
            let mut registry = self.registry.write();
            let gone: Vec<_> = registry
                .topics
                .keys()
                .filter(|id| image.topic(**id).is_none())
                .copied()
                .collect();
            gone.into_iter()
                .filter_map(|id| {
                    let topic = registry.topics.remove(&id)?;
                    if registry.ids.get(&topic.image.name) == Some(&id) {
                        registry.ids.remove(&topic.image.name);
                    }
                    Some(topic)
                })
                .collect()
        };
        let mut gone = Vec::new();
        for topic in &deleted {
            info!(topic = %topic.image.name, id = %topic.image.id, "topic deleted");
            gone.extend(topic.open_partitions().map(Arc::clone));
        }
        self.delete(&gone);
    }

    /// Deletes the logs of partitions that this node has no replica of any more.
    fn delete(&self, partitions: &[Arc<Partition>]) {
        if partitions.is_empty() {
            return;
        }
        for partition in partitions {
            partition.resign();
            self.fetchers.stop(partition);
        }
        let names: Vec<_> = partitions
            .iter()
            .map(|partition| partition.log().partition().clone())
            .collect();
        for (partition, error) in self.log_dir.delete_logs(&names) {
            error!(%partition, %error, "cannot delete the log");
        }
    }

    fn local_partitions(&self, topic: &Topic) -> BTreeMap<i32, LocalPartition> {
        let registry = self.registry.read();
        let local = registry.topics.get(&topic.id);
        local
            .map(|local| local.partitions.clone())
            .unwrap_or_default()
    }

    /// Brings the open ones of `partitions` in step with the topic's configuration and their leaders.
    fn follow(
        &self,
        image: &ClusterImage,
        topic: &Topic,
        partitions: &BTreeMap<i32, LocalPartition>,
    ) {
        let config = TopicConfig::of_topic(&self.config, image, topic);
        let settings = settings(image, topic, &config);
        let as_leader = ThrottledReplicas::of(&topic.configs, LEADER_THROTTLED_REPLICAS);
        let as_follower = ThrottledReplicas::of(&topic.configs, FOLLOWER_THROTTLED_REPLICAS);
        for (index, at) in (0i32..).zip(&topic.partitions) {
            if let Some(LocalPartition::Open(partition)) = partitions.get(&index)
                && at.replicas.contains(&self.node_id)
            {
                partition.log().set_config(config.log_config());
                let led_in =
                    (at.leader == Some(self.node_id)).then_some(LeaderEpoch(at.leader_epoch));
                let throttled = Throttled {
                    as_leader: as_leader.contains(index, self.node_id.0),
                    as_follower: as_follower.contains(index, self.node_id.0),
                };
                partition.configure(
                    Settings {
                        throttled,
                        ..settings
                    },
                    led_in,
                );
                self.follow_leadership(partition, at);
            }
        }
    }

    fn reconcile_topic(&self, image: &ClusterImage, topic: &Arc<Topic>) {
        let config = TopicConfig::of_topic(&self.config, image, topic);
        let settings = settings(image, topic, &config);
        let mut partitions = self.local_partitions(topic);
        let mut moved = Vec::new();
        partitions.retain(|index, local| {
            let is_replica = usize::try_from(*index)
                .ok()
                .and_then(|index| topic.partitions.get(index))
                .is_some_and(|image| image.replicas.contains(&self.node_id));
            if !is_replica && let LocalPartition::Open(partition) = local {
                info!(topic = %topic.name, partition = index, "the partition has moved to other nodes");
                moved.push(Arc::clone(partition));
            }
            is_replica
        });
        self.delete(&moved);
        let is_missing = |index: &i32| {
            matches!(
                partitions.get(index),
                None | Some(LocalPartition::NotCreated)
            )
        };
        let missing: Vec<i32> = (0i32..)
            .zip(&topic.partitions)
            .filter(|(index, image)| image.replicas.contains(&self.node_id) && is_missing(index))
            .map(|(index, _)| index)
            .collect();
        partitions.extend(self.open_logs(topic, &config, settings, &missing));
        let anew: Vec<i32> = partitions
            .iter()
            .filter(|(index, local)| match local {
                LocalPartition::Damaged(Some(failed)) => {
                    self.may_begin_anew(topic, **index, failed)
                }
                _ => false,
            })
            .map(|(index, _)| *index)
            .collect();
        partitions.extend(self.open_logs(topic, &config, settings, &anew));
        self.follow(image, topic, &partitions);
        let mut registry = self.registry.write();
        registry.ids.insert(topic.name.clone(), topic.id);
        registry.topics.insert(
            topic.id,
            LocalTopic {
                image: Arc::clone(topic),
                partitions,
            },
        );
    }

    fn follow_leadership(&self, partition: &Arc<Partition>, image: &kittiwake_raft::Partition) {
        let epoch = LeaderEpoch(image.leader_epoch);
        match image.leader {
            Some(leader) if leader != self.node_id => {
                let following = Following { leader, epoch };
                if partition.follow(following) {
                    self.fetchers.follow(partition, following);
                }
            }
            Some(_) if partition.leader_epoch() == epoch => {
                partition.isr_changed(epoch, committed(image));
            }
            // Nothing could be written: others are about to lead.
            Some(_) if self.log_dir.is_offline() => partition.resign(),
            Some(_) => {
                let lag_max = self.config.replica_lag_time_max_ms.as_millis();
                let lag_max_ms = i64::try_from(lag_max).unwrap_or(i64::MAX);
                partition.lead(epoch, self.node_id, committed(image), lag_max_ms);
                self.fetchers.stop(partition);
            }
            None => {
                partition.resign();
                self.fetchers.stop(partition);
            }
        }
    }

    /// Sets a damaged log aside if the cluster does not need it: others are in sync, and this replica is not one of those
    /// that may hold what they lack. It is then replicated anew.
    fn may_begin_anew(&self, topic: &Topic, index: i32, failed: &FailedLog) -> bool {
        let needed = usize::try_from(index)
            .ok()
            .and_then(|index| topic.partitions.get(index))
            .is_none_or(|image| {
                image.leader.is_none_or(|leader| leader == self.node_id)
                    || image.isr.contains(&self.node_id)
                    || image.elr.contains(&self.node_id)
            });
        if needed {
            return false;
        }
        match self.log_dir.set_damaged_aside(failed) {
            Ok(kept) => {
                error!(topic = %topic.name, partition = index, kept = %kept.display(), reason = %failed.reason,
                    "a damaged log is replaced by what the other replicas have; look at the disk");
                true
            }
            Err(error) => {
                error!(topic = %topic.name, partition = index, %error, "cannot set a damaged log aside");
                false
            }
        }
    }

    /// Claims or creates the logs of `missing` partitions, several at a time.
    fn open_logs(
        &self,
        topic: &Topic,
        config: &TopicConfig,
        settings: Settings,
        missing: &[i32],
    ) -> Vec<(i32, LocalPartition)> {
        let name: Arc<str> = topic.name.as_str().into();
        let open = |index: i32| {
            let opened = match self.open_log(topic, config, index) {
                Ok(opened) => {
                    let partition = Partition::new(
                        Arc::clone(&name),
                        topic.id,
                        index,
                        opened,
                        settings,
                        (Arc::clone(&self.lease), Arc::clone(&self.isr_updates)),
                    );
                    LocalPartition::Open(Arc::new(partition))
                }
                Err(Unopened::Damaged(failed, reason)) => {
                    error!(topic = %name, partition = index, reason, "the partition is offline");
                    LocalPartition::Damaged(failed.map(|failed| *failed))
                }
                Err(Unopened::NotCreated(error)) => {
                    error!(topic = %name, partition = index, %error, "cannot create the log; trying again");
                    LocalPartition::NotCreated
                }
            };
            (index, opened)
        };
        let share = missing.len().div_ceil(CREATE_THREADS).max(1);
        if missing.len() <= 1 {
            return missing.iter().map(|&index| open(index)).collect();
        }
        std::thread::scope(|scope| {
            let open = &open;
            let workers: Vec<_> = missing
                .chunks(share)
                .map(|indexes| {
                    scope
                        .spawn(move || indexes.iter().map(|&index| open(index)).collect::<Vec<_>>())
                })
                .collect();
            // A worker that panics takes the reconciliation with it, which `run` reports.
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap_or_default())
                .collect()
        })
    }

    fn open_log(
        &self,
        topic: &Topic,
        config: &TopicConfig,
        index: i32,
    ) -> Result<(Arc<Log>, Offset), Unopened> {
        let claimed = self.unclaimed.lock().remove(&(topic.id, index));
        match claimed {
            Some(Found::Loaded(loaded)) => {
                loaded.log.set_config(config.log_config());
                Ok((loaded.log, loaded.high_watermark))
            }
            Some(Found::Failed(failed)) => {
                let reason = failed.reason.clone();
                Err(Unopened::Damaged(Some(Box::new(failed)), reason))
            }
            None => {
                let id = Uuid::from_bytes(*topic.id.as_bytes());
                let created = self
                    .log_dir
                    .create_log(&topic.name, id, index, config.log_config());
                created
                    .map(|log| (log, Offset::ZERO))
                    .map_err(|error| match error {
                        CreateError::Exists(_) | CreateError::InvalidName(_) => {
                            Unopened::Damaged(None, error.to_string())
                        }
                        CreateError::Offline(_) | CreateError::Io(_) => Unopened::NotCreated(error),
                    })
            }
        }
    }

    /// Renames the directories that the image does not know. Only what was found at start can be one.
    fn set_strays_aside(&self) {
        let strays = std::mem::take(&mut *self.unclaimed.lock());
        for ((id, _), found) in strays {
            let Found::Loaded(loaded) = found else {
                continue;
            };
            let partition = loaded.log.partition();
            warn!(%partition, topic_id = %id, "no topic of the cluster claims this directory; it is kept as a stray");
            if let Err(error) = self.log_dir.set_stray(partition) {
                error!(%partition, %error, "cannot rename a stray directory");
            }
        }
    }
}

fn settings(image: &ClusterImage, topic: &Topic, config: &TopicConfig) -> Settings {
    Settings {
        batch_rules: config.batch_rules(),
        min_insync_replicas: image.min_insync_replicas(topic),
        durability: config.durability,
        throttled: Throttled::default(),
    }
}
