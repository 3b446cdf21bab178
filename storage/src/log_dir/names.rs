//! Names of partition directories: in use, deleted and stray.

use uuid::Uuid;

use crate::checkpoint::TopicPartition;

pub(super) const DELETE_SUFFIX: &str = "-delete";
pub(super) const STRAY_SUFFIX: &str = "-stray";
/// Longest name of a directory entry on Linux, bytes.
const NAME_MAX: usize = 255;
/// Longest topic name, as Kafka's.
const TOPIC_MAX: usize = 249;

/// `orders-7` is partition 7 of `orders`; `a-1-2` is partition 2 of `a-1`.
pub(super) fn parse_directory_name(name: &str) -> Option<TopicPartition> {
    let (topic, partition) = name.rsplit_once('-')?;
    let number: i32 = partition.parse().ok()?;
    let canonical = number >= 0 && number.to_string() == partition;
    (canonical && is_topic_name(topic)).then(|| TopicPartition {
        topic: topic.to_owned(),
        partition: number,
    })
}

/// Kafka's rule: a name can then be part of a path.
pub(super) fn is_topic_name(name: &str) -> bool {
    (1..=TOPIC_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A name of its own for a directory on its way out, cut to what a filesystem takes.
pub(super) fn renamed_directory(partition: &TopicPartition, suffix: &str) -> String {
    let suffix = format!(".{}{suffix}", Uuid::new_v4().simple());
    let mut name = partition.to_string();
    name.truncate(NAME_MAX - suffix.len());
    name + &suffix
}
