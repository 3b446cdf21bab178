//! What the keys of a topic come to.
//!
//! A key's value comes from the first of these that has one (KIP-226's order):
//!
//! 1. the topic's own configuration, under the topic's key (`retention.ms`);
//! 2. this broker's dynamic configuration, under the broker's key (`log.retention.ms`);
//! 3. the cluster-wide dynamic configuration, under the broker's key;
//! 4. the configuration file, under the broker's key or one of its coarser synonyms (`log.retention.hours`);
//! 5. the default.
//!
//! `min.insync.replicas` skips 2 and 4: the metadata quorum derives eligible leaders from it, so every node must see the
//! same value. What the configuration file says is proposed as the cluster-wide value when the cluster is formed.

use std::borrow::Cow;

use kittiwake_raft::image::MIN_INSYNC_REPLICAS;
use kittiwake_raft::{ClusterImage, Topic};
use kittiwake_storage::{BatchOrigin, BatchRules, LogConfig, TimestampType};

use super::broker::BrokerConfig;
use super::kind::{list, parse_bool};
use super::topic::{
    BATCH_VALIDATION, CLEANUP_POLICY, Configs, DURABILITY, FILE_DELETE_DELAY_MS,
    INDEX_INTERVAL_BYTES, MAX_COMPACTION_LAG_MS, MAX_MESSAGE_BYTES, MESSAGE_TIMESTAMP_AFTER_MAX_MS,
    MESSAGE_TIMESTAMP_BEFORE_MAX_MS, MESSAGE_TIMESTAMP_TYPE, MIN_COMPACTION_LAG_MS,
    RETENTION_BYTES, RETENTION_MS, SEGMENT_BYTES, SEGMENT_INDEX_BYTES, SEGMENT_MS, TopicDefaults,
    TopicKey, UNCLEAN_LEADER_ELECTION_ENABLE, topic_key, validate,
};

/// What the records of one batch may expand to where they are decoded.
const DECOMPRESSED_BYTES_MAX: usize = 128 << 20;

/// Where a value comes from; the numbers of DescribeConfigs v1 and later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i8)]
pub enum Source {
    /// `DYNAMIC_TOPIC_CONFIG`
    Topic = 1,
    /// `DYNAMIC_BROKER_CONFIG`
    Broker = 2,
    /// `DYNAMIC_DEFAULT_BROKER_CONFIG`
    Cluster = 3,
    /// `STATIC_BROKER_CONFIG`
    File = 4,
    /// `DEFAULT_CONFIG`
    Default = 5,
}

impl Source {
    /// The number on the wire.
    pub const fn code(self) -> i8 {
        self as i8
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sourced<'a> {
    /// The key it was set under.
    pub name: &'static str,
    /// The value, in the topic key's unit.
    pub value: Cow<'a, str>,
    /// Who set it.
    pub source: Source,
}

/// The places a topic's configuration comes from; see the module's head.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    topic: Option<&'a Configs>,
    broker: Option<&'a Configs>,
    cluster: Option<&'a Configs>,
    file: &'a TopicDefaults,
}

impl<'a> Layers<'a> {
    /// The layers of `topic` on this broker. Without a topic, its defaults for all topics.
    pub fn new(
        image: &'a ClusterImage,
        broker: &'a BrokerConfig,
        topic: Option<&'a Topic>,
    ) -> Self {
        Self {
            topic: topic.map(|topic| &topic.configs),
            broker: image.broker_configs(Some(broker.node_id)),
            cluster: image.broker_configs(None),
            file: &broker.topic_defaults,
        }
    }

    /// Every value the key has somewhere, the one that holds first. Never empty: the default is the last.
    pub fn synonyms(&self, row: &'static TopicKey) -> Vec<Sourced<'a>> {
        let from = |configs: Option<&'a Configs>, name: Option<&'static str>, source| {
            let name = name?;
            let value = configs?.get(name)?;
            Some(Sourced {
                name,
                value: Cow::Borrowed(value.as_str()),
                source,
            })
        };
        let per_cluster = row.name == MIN_INSYNC_REPLICAS;
        let file = || {
            let (name, value) = self.file.get(row)?;
            Some(Sourced {
                name,
                value,
                source: Source::File,
            })
        };
        let default = Sourced {
            name: row.broker_key.unwrap_or(row.name),
            value: Cow::Borrowed(row.default),
            source: Source::Default,
        };
        [
            from(self.topic, Some(row.name), Source::Topic),
            from(
                self.broker.filter(|_| !per_cluster),
                row.broker_key,
                Source::Broker,
            ),
            from(self.cluster, row.broker_key, Source::Cluster),
            Some(()).filter(|()| !per_cluster).and_then(|()| file()),
            Some(default),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The value that holds.
    pub fn value(&self, row: &'static TopicKey) -> Sourced<'a> {
        // The default ends the list.
        self.synonyms(row).swap_remove(0)
    }

    /// The text of `name`, which must be in the table.
    fn text(&self, name: &'static str) -> Cow<'a, str> {
        topic_key(name)
            .map(|row| self.value(row).value)
            .unwrap_or_default()
    }

    /// The number `name` stands for. A value of the metadata log that this version cannot read counts as the default:
    /// values are checked before they are proposed, so only another version can have written it.
    fn number(&self, name: &'static str) -> i64 {
        let parse = |text: &str| text.trim().parse().ok();
        let default = || topic_key(name).and_then(|row| parse(row.default));
        parse(&self.text(name)).or_else(default).unwrap_or_default()
    }

    fn number_u32(&self, name: &'static str) -> u32 {
        u32::try_from(self.number(name)).unwrap_or(u32::MAX)
    }
}

/// When an acks=all write is acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// Every in-sync replica has it in memory.
    Replicated,
    /// Every in-sync replica has it on disk.
    Persisted,
}

/// A topic's configuration, read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TopicConfig {
    /// `cleanup.policy` has `delete`.
    pub delete: bool,
    /// `cleanup.policy` has `compact`: records need keys.
    pub compact: bool,
    /// `retention.ms`, if limited.
    pub retention_ms: Option<i64>,
    /// `retention.bytes`, if limited.
    pub retention_bytes: Option<u64>,
    /// `segment.bytes`
    pub segment_bytes: u32,
    /// `segment.ms`
    pub segment_ms: i64,
    /// `segment.index.bytes`
    pub segment_index_bytes: u32,
    /// `index.interval.bytes`
    pub index_interval_bytes: u32,
    /// `file.delete.delay.ms`
    pub file_delete_delay_ms: i64,
    /// `max.message.bytes`
    pub max_message_bytes: u32,
    /// `message.timestamp.type`
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`
    pub timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`
    pub timestamp_after_max_ms: i64,
    /// `batch.validation` is `strict`.
    pub strict_validation: bool,
    /// `kittiwake.durability`
    pub durability: Durability,
    /// `unclean.leader.election.enable`
    pub unclean_leader_election: bool,
    /// `producer.id.expiration.ms`, a broker's setting.
    pub producer_id_expiration_ms: i64,
}

impl TopicConfig {
    /// The configuration of a topic with these configs of its own, without dynamic defaults: what a broker starts from.
    pub fn resolve(broker: &BrokerConfig, topic: &Configs) -> Self {
        let file = &broker.topic_defaults;
        let layers = Layers {
            topic: Some(topic),
            broker: None,
            cluster: None,
            file,
        };
        Self::of(&layers, broker.producer_id_expiration_ms)
    }

    /// The configuration of `topic` on this broker, as of `image`.
    pub fn of_topic(broker: &BrokerConfig, image: &ClusterImage, topic: &Topic) -> Self {
        let layers = Layers::new(image, broker, Some(topic));
        Self::of(&layers, broker.producer_id_expiration_ms)
    }

    fn of(layers: &Layers<'_>, producer_id_expiration_ms: i64) -> Self {
        let policy = layers.text(CLEANUP_POLICY);
        let unless_negative = |name| Some(layers.number(name)).filter(|number| *number >= 0);
        Self {
            delete: list(&policy).any(|word| word == "delete"),
            compact: list(&policy).any(|word| word == "compact"),
            retention_ms: unless_negative(RETENTION_MS),
            retention_bytes: unless_negative(RETENTION_BYTES).map(i64::unsigned_abs),
            segment_bytes: layers.number_u32(SEGMENT_BYTES),
            segment_ms: layers.number(SEGMENT_MS),
            segment_index_bytes: layers.number_u32(SEGMENT_INDEX_BYTES),
            index_interval_bytes: layers.number_u32(INDEX_INTERVAL_BYTES),
            file_delete_delay_ms: layers.number(FILE_DELETE_DELAY_MS),
            max_message_bytes: layers.number_u32(MAX_MESSAGE_BYTES),
            timestamp_type: match &*layers.text(MESSAGE_TIMESTAMP_TYPE) {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            timestamp_before_max_ms: layers.number(MESSAGE_TIMESTAMP_BEFORE_MAX_MS),
            timestamp_after_max_ms: layers.number(MESSAGE_TIMESTAMP_AFTER_MAX_MS),
            strict_validation: layers.text(BATCH_VALIDATION) == "strict",
            durability: match &*layers.text(DURABILITY) {
                "persisted" => Durability::Persisted,
                _ => Durability::Replicated,
            },
            unclean_leader_election: parse_bool(&layers.text(UNCLEAN_LEADER_ELECTION_ENABLE))
                .unwrap_or(false),
            producer_id_expiration_ms,
        }
    }

    /// How the logs of its partitions are kept.
    pub fn log_config(&self) -> LogConfig {
        LogConfig {
            segment_bytes: self.segment_bytes,
            segment_ms: self.segment_ms,
            segment_index_bytes: self.segment_index_bytes,
            index_interval_bytes: self.index_interval_bytes,
            retention_bytes: self.retention_bytes,
            retention_ms: self.retention_ms,
            delete_enabled: self.delete,
            file_delete_delay_ms: self.file_delete_delay_ms.unsigned_abs(),
            producer_id_expiration_ms: self.producer_id_expiration_ms,
            ..LogConfig::default()
        }
    }

    /// What the topic demands of a batch.
    pub fn batch_rules(&self) -> BatchRules {
        BatchRules {
            max_message_bytes: self.max_message_bytes,
            keys_required: self.compact,
            strict: self.strict_validation,
            timestamp_type: self.timestamp_type,
            timestamp_before_max_ms: self.timestamp_before_max_ms,
            timestamp_after_max_ms: self.timestamp_after_max_ms,
            allow_zstd: true,
            decompressed_bytes_max: DECOMPRESSED_BYTES_MAX,
            origin: BatchOrigin::Client,
        }
    }
}

/// Checks the configuration a topic would have: every key by itself, and those that depend on each other.
///
/// # Errors
/// A sentence for the operator.
pub fn validate_all(configs: &Configs, file: &TopicDefaults) -> Result<(), String> {
    for (name, value) in configs {
        validate(name, value)?;
    }
    let layers = Layers {
        topic: Some(configs),
        broker: None,
        cluster: None,
        file,
    };
    let (min, max) = (
        layers.number(MIN_COMPACTION_LAG_MS),
        layers.number(MAX_COMPACTION_LAG_MS),
    );
    if min > max {
        return Err(format!(
            "{MIN_COMPACTION_LAG_MS} ({min}) is greater than {MAX_COMPACTION_LAG_MS} ({max})"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::topic::{HOUR_MS, MINUTE_MS};

    fn configs(pairs: &[(&str, &str)]) -> Configs {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn layers<'a>(topic: &'a Configs, cluster: &'a Configs, file: &'a TopicDefaults) -> Layers<'a> {
        Layers {
            topic: Some(topic),
            broker: None,
            cluster: Some(cluster),
            file,
        }
    }

    #[test]
    fn defaults_are_kafkas() {
        let file = TopicDefaults::default();
        let config = TopicConfig::of(&layers(&configs(&[]), &configs(&[]), &file), 1);
        assert_eq!(config.retention_ms, Some(604_800_000));
        assert_eq!(config.retention_bytes, None);
        assert_eq!(config.segment_bytes, 1 << 30);
        assert_eq!(config.max_message_bytes, 1_048_588);
        assert_eq!((config.delete, config.compact), (true, false));
        assert_eq!(config.durability, Durability::Replicated);
        assert_eq!(config.timestamp_type, TimestampType::CreateTime);
        assert!(!config.strict_validation && !config.unclean_leader_election);
    }

    #[test]
    fn the_nearest_layer_wins_and_all_are_listed() {
        let topic = configs(&[("retention.ms", "1")]);
        let cluster = configs(&[("log.retention.ms", "2")]);
        let mut file = TopicDefaults::default();
        assert_eq!(file.set("log.retention.hours", "3"), Some(Ok(())));
        let row = topic_key(RETENTION_MS).unwrap();
        let found: Vec<_> = layers(&topic, &cluster, &file)
            .synonyms(row)
            .into_iter()
            .map(|found| (found.name, found.value.into_owned(), found.source))
            .collect();
        assert_eq!(
            found,
            [
                ("retention.ms", "1".to_owned(), Source::Topic),
                ("log.retention.ms", "2".to_owned(), Source::Cluster),
                (
                    "log.retention.hours",
                    (3 * HOUR_MS).to_string(),
                    Source::File
                ),
                ("log.retention.ms", "604800000".to_owned(), Source::Default),
            ]
        );
    }

    #[test]
    fn the_finer_broker_key_wins() {
        let mut file = TopicDefaults::default();
        for (name, value) in [
            ("log.retention.hours", "1"),
            ("log.retention.minutes", "2"),
            ("log.roll.hours", "4"),
        ] {
            assert_eq!(file.set(name, value), Some(Ok(())), "{name}");
        }
        let none = configs(&[]);
        let config = TopicConfig::of(&layers(&none, &none, &file), 1);
        assert_eq!(
            (config.retention_ms, config.segment_ms),
            (Some(2 * MINUTE_MS), 4 * HOUR_MS)
        );
        assert_eq!(file.set("log.retention.ms", "-1"), Some(Ok(())));
        assert_eq!(
            TopicConfig::of(&layers(&none, &none, &file), 1).retention_ms,
            None
        );
    }

    #[test]
    fn min_insync_replicas_is_the_clusters() {
        let mut file = TopicDefaults::default();
        assert_eq!(file.set(MIN_INSYNC_REPLICAS, "3"), Some(Ok(())));
        let none = configs(&[]);
        let row = topic_key(MIN_INSYNC_REPLICAS).unwrap();
        assert_eq!(
            layers(&none, &none, &file).value(row).source,
            Source::Default
        );
        let cluster = configs(&[(MIN_INSYNC_REPLICAS, "1")]);
        assert_eq!(layers(&none, &cluster, &file).value(row).value, "1");
    }

    #[test]
    fn refusals_name_key_and_reason() {
        assert_eq!(
            validate("cleanup.polciy", "delete"),
            Err("Unknown topic config name: cleanup.polciy".into())
        );
        let refused = validate("compression.type", "zstd").unwrap_err();
        assert!(
            refused.contains("compression.type") && refused.contains("on the producer"),
            "{refused}"
        );
        let file = TopicDefaults::default();
        let lags = configs(&[(MIN_COMPACTION_LAG_MS, "2"), (MAX_COMPACTION_LAG_MS, "1")]);
        assert!(validate_all(&lags, &file).is_err());
        assert_eq!(
            validate_all(&configs(&[("cleanup.policy", "compact,delete")]), &file),
            Ok(())
        );
    }

    #[test]
    fn a_stored_value_of_another_version_reads_as_the_default() {
        let topic = configs(&[("segment.bytes", "a lot")]);
        let none = configs(&[]);
        let file = TopicDefaults::default();
        assert_eq!(
            TopicConfig::of(&layers(&topic, &none, &file), 1).segment_bytes,
            1 << 30
        );
    }
}
