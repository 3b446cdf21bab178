//! Where the log of a partition comes from: a directory found at start, or a new one.

use kittiwake_raft::{ClusterImage, Topic, TopicId};
use kittiwake_storage::{CreateError, FailedLog, Log, Offset};
use std::sync::Arc;
use tracing::{error, warn};
use uuid::Uuid;

use super::super::replica::{Partition, Settings};
use super::{Found, LocalPartition, PartitionManager};
use crate::config::TopicConfig;

/// Threads that create logs together: creation waits for fsync, which the file system commits in groups.
const CREATE_THREADS: usize = 16;

/// Why a partition has no log.
enum Unopened {
    Damaged(Option<Box<FailedLog>>, String),
    NotCreated(CreateError),
}

impl PartitionManager {
    /// Sets a damaged log aside if the cluster does not need it: others are in sync, and this replica is not one of those
    /// that may hold what they lack. It is then replicated anew.
    pub(super) fn may_begin_anew(&self, topic: &Topic, index: i32, failed: &FailedLog) -> bool {
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
    pub(super) fn open_logs(
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

    /// Renames the directories that no topic of the image claims. Only what was found at start can be one.
    pub(super) fn set_strays_aside(&self, image: &ClusterImage) {
        let is_claimed = |(id, index): &(TopicId, i32)| {
            let partition = image.partition(*id, *index);
            partition.is_some_and(|partition| partition.replicas.contains(&self.node_id))
        };
        let strays: Vec<_> = {
            let mut unclaimed = self.unclaimed.lock();
            unclaimed.extract_if(|key, _| !is_claimed(key)).collect()
        };
        for ((id, _), found) in strays {
            let (partition, renamed) = match &found {
                Found::Loaded(loaded) => {
                    let partition = loaded.log.partition();
                    (partition, self.log_dir.set_stray(partition).map(drop))
                }
                Found::Failed(failed) => (
                    &failed.partition,
                    self.log_dir.set_damaged_aside(failed).map(drop),
                ),
            };
            warn!(%partition, topic_id = %id, "no topic of the cluster claims this directory; it is kept as a stray");
            if let Err(error) = renamed {
                error!(%partition, %error, "cannot rename a stray directory");
            }
        }
    }
}
