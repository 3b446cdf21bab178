//! The one table of topic configuration keys, and their defaults from a broker's configuration file. What the keys come to
//! for a topic is [`topic_layers`](super::topic_layers)'s subject.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kittiwake_raft::image::MIN_INSYNC_REPLICAS;

use super::kind::{Kind, WireType};
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
/// `min.compaction.lag.ms`
pub const MIN_COMPACTION_LAG_MS: &str = "min.compaction.lag.ms";
/// `max.compaction.lag.ms`
pub const MAX_COMPACTION_LAG_MS: &str = "max.compaction.lag.ms";

/// The smallest segment: below one page of memory, files and indexes cost more than records.
const SEGMENT_BYTES_MIN: i32 = 4096;

pub(super) const MINUTE_MS: i64 = 60_000;
pub(super) const HOUR_MS: i64 = 60 * MINUTE_MS;

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

#[cfg(test)]
mod tests {
    use kittiwake_raft::image::DEFAULT_MIN_INSYNC_REPLICAS;

    use super::*;

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
}
