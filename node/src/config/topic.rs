//! Topic configuration: the one table of keys, and what they come to for a topic.
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
use std::collections::BTreeMap;

use kittiwake_raft::image::MIN_INSYNC_REPLICAS;
use kittiwake_raft::{ClusterImage, Topic};
use kittiwake_storage::{BatchOrigin, BatchRules, LogConfig, TimestampType};

use super::broker::BrokerConfig;
use super::kind::{Kind, WireType, list, parse_bool};
use super::throttled_replicas::{FOLLOWER_THROTTLED_REPLICAS, LEADER_THROTTLED_REPLICAS};

/// Keys and values, as the metadata log keeps them.
pub type Configs = BTreeMap<String, String>;

/// A topic configuration key.
#[derive(Debug)]
pub struct TopicKey {
    /// Its name on a topic.
    pub name: &'static str,
    /// What it may be set to.
    pub kind: Kind,
    /// Its value where nobody set it.
    pub default: &'static str,
    /// The name of its default in a broker's configuration; none for keys that belong to single topics.
    pub broker_key: Option<&'static str>,
    /// Coarser broker keys and their unit in milliseconds, the finer first.
    coarser: &'static [(&'static str, i64)],
    /// What it does, for DescribeConfigs and the documentation.
    pub doc: &'static str,
}

/// `cleanup.policy`
pub const CLEANUP_POLICY: &str = "cleanup.policy";
/// `retention.ms`
pub const RETENTION_MS: &str = "retention.ms";
/// `retention.bytes`
pub const RETENTION_BYTES: &str = "retention.bytes";
/// `segment.bytes`
pub const SEGMENT_BYTES: &str = "segment.bytes";
/// `segment.ms`
pub const SEGMENT_MS: &str = "segment.ms";
/// `segment.index.bytes`
pub const SEGMENT_INDEX_BYTES: &str = "segment.index.bytes";
/// `index.interval.bytes`
pub const INDEX_INTERVAL_BYTES: &str = "index.interval.bytes";
/// `max.message.bytes`
pub const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
/// `message.timestamp.type`
pub const MESSAGE_TIMESTAMP_TYPE: &str = "message.timestamp.type";
/// `message.timestamp.before.max.ms`
pub const MESSAGE_TIMESTAMP_BEFORE_MAX_MS: &str = "message.timestamp.before.max.ms";
/// `message.timestamp.after.max.ms`
pub const MESSAGE_TIMESTAMP_AFTER_MAX_MS: &str = "message.timestamp.after.max.ms";
/// `file.delete.delay.ms`
pub const FILE_DELETE_DELAY_MS: &str = "file.delete.delay.ms";
/// `unclean.leader.election.enable`
pub const UNCLEAN_LEADER_ELECTION_ENABLE: &str = "unclean.leader.election.enable";
/// `kittiwake.durability`
pub const DURABILITY: &str = "kittiwake.durability";
/// `batch.validation`
pub const BATCH_VALIDATION: &str = "batch.validation";
const MIN_COMPACTION_LAG_MS: &str = "min.compaction.lag.ms";
const MAX_COMPACTION_LAG_MS: &str = "max.compaction.lag.ms";

/// The smallest segment: below one page of memory, files and indexes cost more than records.
const SEGMENT_BYTES_MIN: i32 = 4096;

/// What the records of one batch may expand to where they are decoded.
const DECOMPRESSED_BYTES_MAX: usize = 128 << 20;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

const ANY_INT: i32 = i32::MAX;
const FOREVER: &str = "9223372036854775807";
const FSYNC_INSTEAD: &str =
    "set kittiwake.durability=persisted to have acknowledged records on disk";

const fn key(
    name: &'static str,
    broker_key: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> TopicKey {
    TopicKey {
        name,
        kind,
        default,
        broker_key: Some(broker_key),
        coarser: &[],
        doc,
    }
}

const fn timed(mut row: TopicKey, coarser: &'static [(&'static str, i64)]) -> TopicKey {
    row.coarser = coarser;
    row
}

const fn topic_only(mut row: TopicKey) -> TopicKey {
    row.broker_key = None;
    row
}

/// Every topic configuration key, by name.
pub static TOPIC_KEYS: &[TopicKey] = &[
    key(
        BATCH_VALIDATION,
        BATCH_VALIDATION,
        Kind::OneOf(&["header", "strict"]),
        "header",
        "How much of a produced batch is checked. 'header': its header, counts and CRC, and the keys of compacted \
         topics. 'strict': every record is decoded, which costs CPU.",
    ),
    key(
        CLEANUP_POLICY,
        "log.cleanup.policy",
        Kind::SomeOf(&["compact", "delete"]),
        "delete",
        "What happens to old segments. 'delete' removes them when retention.ms or retention.bytes is exceeded; \
         'compact' is to keep the last record of each key. This version does not compact yet, and deletes nothing \
         where 'delete' is not set.",
    ),
    key(
        "compression.type",
        "compression.type",
        Kind::Only {
            value: "producer",
            wire_type: WireType::String,
            instead: "batches are stored as the producer compressed them; set compression.type on the producer",
        },
        "producer",
        "Batches are stored as the producer compressed them, never compressed again.",
    ),
    key(
        "delete.retention.ms",
        "log.cleaner.delete.retention.ms",
        Kind::Long { min: 0 },
        "86400000",
        "How long compaction keeps the tombstone of a deleted key.",
    ),
    key(
        FILE_DELETE_DELAY_MS,
        "log.segment.delete.delay.ms",
        Kind::Long { min: 0 },
        "60000",
        "How long the files of a deleted segment stay on disk.",
    ),
    key(
        "flush.messages",
        "log.flush.interval.messages",
        Kind::Only {
            value: FOREVER,
            wire_type: WireType::Long,
            instead: FSYNC_INSTEAD,
        },
        FOREVER,
        "Records are not flushed by number; kittiwake.durability decides what is on disk before it is acknowledged.",
    ),
    key(
        "flush.ms",
        "log.flush.interval.ms",
        Kind::Only {
            value: FOREVER,
            wire_type: WireType::Long,
            instead: FSYNC_INSTEAD,
        },
        FOREVER,
        "Records are not flushed by time; kittiwake.durability decides what is on disk before it is acknowledged.",
    ),
    topic_only(key(
        FOLLOWER_THROTTLED_REPLICAS,
        "",
        Kind::Replicas,
        "",
        "Replicas held to follower.replication.throttled.rate where they follow and are not in sync: * for all, or a list of \
         PARTITION:BROKER.",
    )),
    key(
        INDEX_INTERVAL_BYTES,
        "log.index.interval.bytes",
        Kind::Int {
            min: 0,
            max: ANY_INT,
        },
        "4096",
        "Bytes of records per index entry.",
    ),
    key(
        DURABILITY,
        DURABILITY,
        Kind::OneOf(&["replicated", "persisted"]),
        "replicated",
        "When an acks=all write is acknowledged. 'replicated': every in-sync replica has it in memory, as in Apache \
         Kafka. 'persisted': every in-sync replica has it on disk.",
    ),
    topic_only(key(
        LEADER_THROTTLED_REPLICAS,
        "",
        Kind::Replicas,
        "",
        "Replicas held to leader.replication.throttled.rate where they lead, in what they send to followers that are not in \
         sync: * for all, or a list of PARTITION:BROKER.",
    )),
    key(
        MAX_COMPACTION_LAG_MS,
        "log.cleaner.max.compaction.lag.ms",
        Kind::Long { min: 1 },
        FOREVER,
        "The longest a record stays out of reach of compaction.",
    ),
    key(
        MAX_MESSAGE_BYTES,
        "message.max.bytes",
        Kind::Int {
            min: 0,
            max: ANY_INT,
        },
        "1048588",
        "The largest batch a producer may send, compressed as it is, with its header.",
    ),
    key(
        MESSAGE_TIMESTAMP_AFTER_MAX_MS,
        "log.message.timestamp.after.max.ms",
        Kind::Long { min: 0 },
        "3600000",
        "How far in the future a record's timestamp may be. Not judged with LogAppendTime.",
    ),
    key(
        MESSAGE_TIMESTAMP_BEFORE_MAX_MS,
        "log.message.timestamp.before.max.ms",
        Kind::Long { min: 0 },
        FOREVER,
        "How far in the past a record's timestamp may be. Not judged with LogAppendTime.",
    ),
    key(
        MESSAGE_TIMESTAMP_TYPE,
        "log.message.timestamp.type",
        Kind::OneOf(&["CreateTime", "LogAppendTime"]),
        "CreateTime",
        "Whether records keep their producer's timestamp or get the leader's.",
    ),
    key(
        "min.cleanable.dirty.ratio",
        "log.cleaner.min.cleanable.ratio",
        Kind::Ratio,
        "0.5",
        "The share of a log that is not compacted yet from which compaction is worth while.",
    ),
    key(
        MIN_COMPACTION_LAG_MS,
        "log.cleaner.min.compaction.lag.ms",
        Kind::Long { min: 0 },
        "0",
        "The shortest time a record stays out of reach of compaction.",
    ),
    key(
        MIN_INSYNC_REPLICAS,
        MIN_INSYNC_REPLICAS,
        Kind::Int {
            min: 1,
            max: ANY_INT,
        },
        "2",
        "In-sync replicas an acks=all write needs; at most as many as the partition has replicas count. Set for a topic \
         or for the whole cluster; a broker's configuration file sets it for the cluster when that is formed.",
    ),
    key(
        "preallocate",
        "log.preallocate",
        Kind::Only {
            value: "false",
            wire_type: WireType::Boolean,
            instead: "the active segment is always allocated ahead of the writer, in steps",
        },
        "false",
        "Whole segments are not allocated at once: the active one is allocated ahead of the writer, in steps.",
    ),
    key(
        RETENTION_BYTES,
        "log.retention.bytes",
        Kind::Long { min: -1 },
        "-1",
        "The size of a partition beyond which its oldest segments are deleted; -1: no limit.",
    ),
    timed(
        key(
            RETENTION_MS,
            "log.retention.ms",
            Kind::Long { min: -1 },
            "604800000",
            "The age from which records are deleted, a segment at a time; -1: no limit.",
        ),
        &[
            ("log.retention.minutes", MINUTE_MS),
            ("log.retention.hours", HOUR_MS),
        ],
    ),
    key(
        SEGMENT_BYTES,
        "log.segment.bytes",
        Kind::Int {
            min: SEGMENT_BYTES_MIN,
            max: ANY_INT,
        },
        "1073741824",
        "The size from which a segment is sealed and the next one begun. Retention deletes whole segments.",
    ),
    key(
        SEGMENT_INDEX_BYTES,
        "log.index.size.max.bytes",
        Kind::Int {
            min: 4,
            max: ANY_INT,
        },
        "10485760",
        "The size of an index from which its segment is sealed.",
    ),
    key(
        "segment.jitter.ms",
        "log.roll.jitter.ms",
        Kind::Only {
            value: "0",
            wire_type: WireType::Long,
            instead: "a segment ages from its own first batch, so partitions do not roll together",
        },
        "0",
        "segment.ms is not varied: a segment ages from its own first batch, so partitions do not roll together.",
    ),
    timed(
        key(
            SEGMENT_MS,
            "log.roll.ms",
            Kind::Long { min: 1 },
            "604800000",
            "The age from which a segment is sealed even if it is not full, so that retention can delete it.",
        ),
        &[("log.roll.hours", HOUR_MS)],
    ),
    key(
        UNCLEAN_LEADER_ELECTION_ENABLE,
        UNCLEAN_LEADER_ELECTION_ENABLE,
        Kind::Bool,
        "false",
        "Whether a replica that may lack acknowledged records can become leader when no other is left. Records can be \
         lost.",
    ),
];

/// The row of a topic key.
pub fn topic_key(name: &str) -> Option<&'static TopicKey> {
    TOPIC_KEYS.iter().find(|row| row.name == name)
}

/// The row whose default a broker key sets.
pub fn by_broker_key(name: &str) -> Option<&'static TopicKey> {
    TOPIC_KEYS.iter().find(|row| row.broker_key == Some(name))
}

/// Checks one topic configuration.
///
/// # Errors
/// A sentence for the operator.
pub fn validate(name: &str, value: &str) -> Result<(), String> {
    let row = topic_key(name).ok_or_else(|| format!("Unknown topic config name: {name}"))?;
    row.kind
        .validate(value)
        .map_err(|reason| format!("Invalid value {value:?} for configuration {name}: {reason}"))
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

/// Defaults for topics from a broker's configuration file, by broker key, checked.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TopicDefaults {
    set: BTreeMap<&'static str, String>,
}

impl TopicKey {
    /// Every key of a broker's configuration file that sets its default, the finest first.
    pub fn broker_keys(&self) -> impl Iterator<Item = &'static str> {
        let coarser = self.coarser.iter().map(|(name, _)| *name);
        self.broker_key.into_iter().chain(coarser)
    }
}

impl TopicDefaults {
    /// Takes one line of the configuration file. `None` if the key is not about topics.
    pub fn set(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let (row, name, unit_ms) = TOPIC_KEYS.iter().find_map(|row| {
            let coarser = row
                .coarser
                .iter()
                .copied()
                .find(|(coarser, _)| *coarser == name);
            let exact = row
                .broker_key
                .filter(|exact| *exact == name)
                .map(|exact| (exact, 1));
            exact
                .or(coarser)
                .map(|(name, unit_ms)| (row, name, unit_ms))
        })?;
        let checked = in_ms(value, unit_ms).and_then(|value| row.kind.validate(&value));
        Some(match checked {
            Ok(()) => {
                self.set.insert(name, value.trim().to_owned());
                Ok(())
            }
            Err(reason) => Err(reason),
        })
    }

    /// What the file says for this key: the line's name, and the value in the topic key's unit.
    pub fn get(&self, row: &TopicKey) -> Option<(&'static str, Cow<'_, str>)> {
        let exact = || {
            let (name, value) = self.set.get_key_value(row.broker_key?)?;
            Some((*name, Cow::Borrowed(value.as_str())))
        };
        let coarser = || {
            row.coarser.iter().find_map(|(name, unit_ms)| {
                let value = self.set.get(name)?;
                Some((*name, Cow::Owned(in_ms(value, *unit_ms).ok()?)))
            })
        };
        exact().or_else(coarser)
    }
}

/// A number of `unit_ms` each, in milliseconds; −1 stays −1 (no limit).
fn in_ms(value: &str, unit_ms: i64) -> Result<String, String> {
    if unit_ms == 1 {
        return Ok(value.trim().to_owned());
    }
    let number: i64 = value
        .trim()
        .parse()
        .map_err(|_| "it must be a number".to_owned())?;
    match number {
        -1 => Ok("-1".into()),
        _ => number
            .checked_mul(unit_ms)
            .map(|ms| ms.to_string())
            .ok_or_else(|| "it is too large".into()),
    }
}

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

#[cfg(test)]
mod tests {
    use kittiwake_raft::image::DEFAULT_MIN_INSYNC_REPLICAS;

    use super::*;

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
    fn the_table_is_sorted_and_its_defaults_are_valid() {
        assert!(
            TOPIC_KEYS
                .windows(2)
                .all(|pair| pair[0].name < pair[1].name)
        );
        for row in TOPIC_KEYS {
            assert_eq!(row.kind.validate(row.default), Ok(()), "{}", row.name);
            assert!(!row.doc.is_empty(), "{}", row.name);
        }
        assert_eq!(
            topic_key(MIN_INSYNC_REPLICAS).map(|row| row.default.parse()),
            Some(Ok(DEFAULT_MIN_INSYNC_REPLICAS)),
            "the quorum and the table agree"
        );
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
    fn the_file_is_checked() {
        let mut file = TopicDefaults::default();
        assert_eq!(file.set("num.partitions", "1"), None, "not about topics");
        for (name, value) in [
            ("log.retention.hours", "x"),
            ("log.retention.hours", "9223372036854775807"),
            ("log.roll.hours", "0"),
            ("compression.type", "zstd"),
        ] {
            assert!(
                matches!(file.set(name, value), Some(Err(_))),
                "{name}={value}"
            );
        }
        assert_eq!(file, TopicDefaults::default());
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
