//! Carrying the difference between the cluster image and the partitions here out.

use kittiwake_raft::{ClusterImage, Topic};
use kittiwake_storage::LeaderEpoch;
use std::collections::BTreeMap;
use std::sync::Arc;
use tracing::{error, info};

use super::super::damage;
use super::super::isr::committed;
use super::super::replica::{Following, Partition, Settings, Throttled};
use super::{LocalPartition, LocalTopic, PartitionManager};
use crate::config::TopicConfig;
use crate::config::throttled_replicas::{
    FOLLOWER_THROTTLED_REPLICAS, LEADER_THROTTLED_REPLICAS, ThrottledReplicas,
};

/// What an image says of this life of the node.
enum Standing {
    /// It does not know it yet.
    Awaited,
    /// What it says of this node's partitions is meant for this process.
    Registered,
    /// Another process has its place, or nobody.
    Gone,
}

impl PartitionManager {
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
        // Before logs are created: a stray may have the name of a topic that was created since.
        self.set_strays_aside(image);
        for topic in changed {
            self.reconcile_topic(image, topic);
        }
        self.registry.write().broker_configs = broker_configs;
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
            self.damage_reports.set(topic.image.id, &[]);
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
        let is_damaged =
            |index: i32| matches!(partitions.get(&index), Some(LocalPartition::Damaged(_)));
        let due = damage::differences(topic, self.node_id, is_damaged);
        self.damage_reports.set(topic.id, &due);
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
}

fn settings(image: &ClusterImage, topic: &Topic, config: &TopicConfig) -> Settings {
    Settings {
        batch_rules: config.batch_rules(),
        min_insync_replicas: image.min_insync_replicas(topic),
        durability: config.durability,
        throttled: Throttled::default(),
    }
}
