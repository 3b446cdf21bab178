//! The configuration of a broker, from its file.

use kittiwake_raft::BrokerId;

use super::topic::TopicDefaults;

/// A broker's configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BrokerConfig {
    /// `node.id`
    pub node_id: BrokerId,
    /// `num.partitions`: partitions of a topic whose creator does not say.
    pub num_partitions: i32,
    /// `default.replication.factor`: replicas of a topic whose creator does not say; where it is not set, three or as
    /// many as there are brokers.
    pub default_replication_factor: Option<i16>,
    /// `auto.create.topics.enable`: a Metadata request may create the topics it names.
    pub auto_create_topics_enable: bool,
    /// `delete.topic.enable`
    pub delete_topic_enable: bool,
    /// `producer.id.expiration.ms`: how long the sequence numbers of a silent producer are remembered.
    pub producer_id_expiration_ms: i64,
    /// Defaults of topic configuration, `log.*` and others.
    pub topic_defaults: TopicDefaults,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            node_id: BrokerId(0),
            num_partitions: 1,
            default_replication_factor: None,
            auto_create_topics_enable: true,
            delete_topic_enable: true,
            producer_id_expiration_ms: 86_400_000,
            topic_defaults: TopicDefaults::default(),
        }
    }
}
