//! The cluster image: what the metadata log says about the cluster, as of one offset.
//!
//! [`ClusterImage::apply`] is the state machine. It is a pure function of the image, the offset
//! and the command: no clock, no randomness, no node-local setting, so that every node that has
//! read the log to the same offset has the same image, whether it read it live, from its disk or
//! from a snapshot.

mod broker;
mod config;
mod partition;
mod shared_map;
mod topic;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use broker::{Broker, Endpoint};
pub use config::{Configs, DEFAULT_MIN_INSYNC_REPLICAS, MIN_INSYNC_REPLICAS};
pub use partition::Partition;
pub use topic::{MAX_TOPIC_NAME_LEN, Topic, validate_topic_name};

use crate::command::{Applied, Command, CommandError};
use crate::ids::{BrokerEpoch, BrokerId, TopicId};

/// The feature level of a new cluster, and the highest this version knows.
pub const FEATURE_LEVEL: u16 = 1;

/// State of the cluster at one metadata offset.
///
/// Cheap to clone: everything large is shared between an image and its successors.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClusterImage {
    /// The cluster this is.
    pub cluster_id: Arc<str>,
    /// Metadata offset of the last applied entry; 0 for a cluster that is not formed yet.
    pub offset: u64,
    /// No command of a higher level is proposed.
    pub feature_level: u16,
    /// Registered brokers, fenced ones among them.
    pub brokers: BTreeMap<BrokerId, Arc<Broker>>,
    /// The first producer id that no broker has been given.
    pub next_producer_id: i64,
    topics: topic::Topics,
    broker_configs: BTreeMap<Option<BrokerId>, Arc<Configs>>,
}

impl ClusterImage {
    /// The image of a cluster before its first command.
    #[must_use]
    pub fn new(cluster_id: &str) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            offset: 0,
            feature_level: FEATURE_LEVEL,
            brokers: BTreeMap::new(),
            next_producer_id: 0,
            topics: topic::Topics::default(),
            broker_configs: BTreeMap::new(),
        }
    }

    /// A registered broker.
    #[must_use]
    pub fn broker(&self, id: BrokerId) -> Option<&Arc<Broker>> {
        self.brokers.get(&id)
    }

    /// A topic, by id.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(id)
    }

    /// A topic, by its exact name.
    #[must_use]
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.by_name(name)
    }

    /// A partition, by topic id and index.
    #[must_use]
    pub fn partition(&self, topic: TopicId, partition: i32) -> Option<&Arc<Partition>> {
        self.topic(topic)?
            .partitions
            .get(usize::try_from(partition).ok()?)
    }

    /// All topics, in no particular order (the same on every node).
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.iter()
    }

    /// How many topics there are.
    #[must_use]
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Applies one command at its offset: one result per item, in order.
    pub fn apply(&mut self, offset: u64, command: &Command) -> Vec<Result<Applied, CommandError>> {
        self.offset = offset;
        match command {
            Command::RegisterBroker(request) => vec![self.register_broker(offset, request)],
            Command::FenceBroker { broker, epoch } => {
                vec![self.fence_broker(offset, *broker, *epoch)]
            }
            Command::UnfenceBroker {
                broker,
                epoch,
                reconciled,
            } => vec![self.unfence_broker(*broker, *epoch, *reconciled)],
            Command::DrainBroker {
                broker,
                epoch,
                draining,
            } => {
                vec![self.drain_broker(*broker, *epoch, *draining)]
            }
            Command::UnregisterBroker { broker } => vec![self.unregister_broker(*broker)],
            Command::CreateTopics(topics) => self.each(topics, Self::create_topic),
            Command::DeleteTopics(topics) => self.each(topics, |image, id| image.delete_topic(*id)),
            Command::CreatePartitions(topics) => self.each(topics, Self::create_partitions),
            Command::AlterPartitions(changes) => self.each(changes, Self::alter_partition),
            Command::AlterConfigs(changes) => self.each(changes, Self::alter_config),
            Command::AllocateProducerIds {
                broker,
                epoch,
                count,
            } => {
                vec![self.allocate_producer_ids(*broker, *epoch, *count)]
            }
        }
    }

    /// Dynamic configuration of all brokers that have any, for a snapshot.
    pub(crate) fn all_broker_configs(&self) -> &BTreeMap<Option<BrokerId>, Arc<Configs>> {
        &self.broker_configs
    }

    /// Puts back what a snapshot held.
    pub(crate) fn restore(
        &mut self,
        topics: Vec<Topic>,
        broker_configs: BTreeMap<Option<BrokerId>, Arc<Configs>>,
    ) {
        for topic in topics {
            self.topics.insert(Arc::new(topic));
        }
        self.broker_configs = broker_configs;
    }

    fn each<T>(
        &mut self,
        items: &[T],
        apply: impl Fn(&mut Self, &T) -> Result<Applied, CommandError>,
    ) -> Vec<Result<Applied, CommandError>> {
        items.iter().map(|item| apply(self, item)).collect()
    }

    fn allocate_producer_ids(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
        count: i32,
    ) -> Result<Applied, CommandError> {
        self.current_broker(broker, epoch)?;
        let first = self.next_producer_id;
        let next = first.checked_add(i64::from(count)).filter(|_| count >= 1);
        self.next_producer_id = next.ok_or(CommandError::InvalidProducerIds(count))?;
        Ok(Applied::ProducerIds { first, count })
    }
}
