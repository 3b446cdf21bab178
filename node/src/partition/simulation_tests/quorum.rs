//! The metadata quorum, as brokers see it: one image after another, each of them late.

use kittiwake_raft::image::MIN_INSYNC_REPLICAS;
use kittiwake_raft::{
    Applied, Broker, BrokerEpoch, BrokerId, ClusterImage, Command, CommandError, ConfigChange,
    ConfigResource, NewTopic, Partition, PartitionChange, TopicId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

const TOPIC: &str = "simulated";

/// What an image says about the one partition there is.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) brokers: BTreeMap<BrokerId, Arc<Broker>>,
    pub(super) partition: Partition,
    pub(super) min_insync_replicas: usize,
}

impl View {
    pub(super) fn epoch_of(&self, broker: BrokerId) -> Option<BrokerEpoch> {
        self.brokers.get(&broker).map(|broker| broker.epoch)
    }

    /// What the ISR needs for the high watermark to advance.
    pub(super) fn needed(&self) -> usize {
        self.min_insync_replicas.min(self.partition.replicas.len())
    }

    /// Who may be elected: the ISR and the eligible leader replicas.
    pub(super) fn eligible(&self) -> impl Iterator<Item = BrokerId> {
        let Partition { isr, elr, .. } = &self.partition;
        isr.iter().chain(elr).copied()
    }
}

/// Applies commands one after another, to the real image.
#[derive(Debug)]
pub(super) struct Quorum {
    image: ClusterImage,
    pub(super) topic: TopicId,
    /// The view after every command since the partition was created.
    pub(super) views: Vec<View>,
}

impl Quorum {
    pub(super) fn new() -> Self {
        Self {
            image: ClusterImage::new("simulated"),
            topic: TopicId::random(),
            views: Vec::new(),
        }
    }

    pub(super) fn create_partition(&mut self, replicas: &[BrokerId], min_insync_replicas: usize) {
        let configs = [(MIN_INSYNC_REPLICAS.into(), min_insync_replicas.to_string())];
        let created = self.apply(&Command::CreateTopics(vec![NewTopic {
            name: TOPIC.into(),
            id: self.topic,
            configs: configs.into(),
            partitions: vec![replicas.to_vec()],
        }]));
        created.expect("live replicas and a legal name make a partition");
    }

    pub(super) fn set_min_insync_replicas(&mut self, to: usize) -> Result<Applied, CommandError> {
        self.apply(&Command::AlterConfigs(vec![ConfigChange {
            resource: ConfigResource::Topic(TOPIC.into()),
            set: vec![(MIN_INSYNC_REPLICAS.into(), to.to_string())],
            remove: Vec::new(),
            expected: Vec::new(),
        }]))
    }

    /// A change by the controller, which knows the newest state; the rest of it is up to `fill`.
    pub(super) fn alter(
        &mut self,
        fill: impl FnOnce(&mut PartitionChange),
    ) -> Result<Applied, CommandError> {
        let mut change = PartitionChange {
            topic: self.topic,
            partition: 0,
            partition_epoch: self.last().partition.partition_epoch,
            requester: None,
            isr: None,
            leader: None,
            replicas: None,
            damage: None,
        };
        fill(&mut change);
        self.apply(&Command::AlterPartitions(vec![change]))
    }

    pub(super) fn apply(&mut self, command: &Command) -> Result<Applied, CommandError> {
        let mut results = self.image.apply(self.image.offset + 1, command);
        if let (Some(topic), Some(partition)) = (
            self.image.topic(self.topic),
            self.image.partition(self.topic, 0),
        ) {
            self.views.push(View {
                brokers: self.image.brokers.clone(),
                partition: Partition::clone(partition),
                min_insync_replicas: self.image.min_insync_replicas(topic),
            });
        }
        results.pop().expect("a command of one item has one result")
    }

    pub(super) fn registered(&self, broker: BrokerId) -> Option<&Arc<Broker>> {
        self.image.broker(broker)
    }

    /// The state of the cluster now; nobody else knows it yet.
    pub(super) fn last(&self) -> &View {
        self.views.last().expect("the partition was created")
    }
}
