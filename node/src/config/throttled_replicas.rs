//! `leader.replication.throttled.replicas` and `follower.replication.throttled.replicas`: which replicas of a topic are held
//! to a node's throttled rate (KIP-73).

use std::collections::BTreeSet;

use super::kind::list;
use super::topic::Configs;

/// `leader.replication.throttled.replicas`
pub const LEADER_THROTTLED_REPLICAS: &str = "leader.replication.throttled.replicas";
/// `follower.replication.throttled.replicas`
pub const FOLLOWER_THROTTLED_REPLICAS: &str = "follower.replication.throttled.replicas";

/// Every replica, instead of a list.
const ALL: &str = "*";

/// Room for the replicas of 50,000 partitions; the value is kept in the metadata log, and no request may make that grow
/// without bounds.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// The replicas of one topic that are throttled on one side.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ThrottledReplicas {
    /// None: the default.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of these partitions on these brokers.
    These(BTreeSet<(i32, i32)>),
}

impl ThrottledReplicas {
    /// Reads `*`, or `PARTITION:BROKER` separated by commas; empty is none.
    pub fn parse(value: &str) -> Option<Self> {
        if value.trim() == ALL {
            return Some(Self::All);
        }
        if value.len() > VALUE_BYTES_MAX {
            return None;
        }
        let these: BTreeSet<_> = list(value).map(replica).collect::<Option<_>>()?;
        Some(match these.is_empty() {
            true => Self::None,
            false => Self::These(these),
        })
    }

    /// What a topic's own configuration says under `key`. A value that this version cannot read throttles nothing: values
    /// are checked before they are proposed, so only another version can have written it.
    pub fn of(topic: &Configs, key: &str) -> Self {
        let value = topic.get(key).map(String::as_str);
        value.and_then(Self::parse).unwrap_or_default()
    }

    /// Whether the replica of `partition` on `broker` is one of them.
    pub fn contains(&self, partition: i32, broker: i32) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(these) => these.contains(&(partition, broker)),
        }
    }
}

fn replica(word: &str) -> Option<(i32, i32)> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    let (partition, broker) = word.split_once(':')?;
    Some((number(partition)?, number(broker)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> ThrottledReplicas {
        ThrottledReplicas::parse(value).unwrap()
    }

    #[test]
    fn a_list_names_partitions_and_brokers() {
        let some = parsed("0:1, 0:2,12:101");
        for (partition, broker) in [(0, 1), (0, 2), (12, 101)] {
            assert!(some.contains(partition, broker));
        }
        for (partition, broker) in [(1, 0), (0, 0), (12, 1), (2, 0)] {
            assert!(!some.contains(partition, broker));
        }
        assert!(parsed(" * ").contains(7, 7));
        assert_eq!(parsed(""), ThrottledReplicas::None);
        assert_eq!(parsed(" , "), ThrottledReplicas::None);
    }

    #[test]
    fn what_is_no_list_of_replicas_is_refused() {
        for value in [
            "all",
            "0",
            "0:",
            ":1",
            "0:1:2",
            "0:-1",
            "+0:1",
            "0:1,*",
            "*,*",
            "0:99999999999",
            "0 :1",
        ] {
            assert_eq!(ThrottledReplicas::parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn a_list_has_an_end() {
        let one = "0:1,";
        assert!(ThrottledReplicas::parse(&one.repeat(VALUE_BYTES_MAX / one.len())).is_some());
        assert!(ThrottledReplicas::parse(&one.repeat(VALUE_BYTES_MAX / one.len() + 1)).is_none());
    }

    #[test]
    fn a_topic_that_says_nothing_throttles_nothing() {
        let mut topic = Configs::new();
        let of = |topic: &Configs| ThrottledReplicas::of(topic, LEADER_THROTTLED_REPLICAS);
        assert_eq!(of(&topic), ThrottledReplicas::None);
        topic.insert(LEADER_THROTTLED_REPLICAS.into(), "*".into());
        assert_eq!(of(&topic), ThrottledReplicas::All);
        topic.insert(LEADER_THROTTLED_REPLICAS.into(), "newer than this".into());
        assert_eq!(of(&topic), ThrottledReplicas::None);
    }
}
