//! Broker configuration that is never in a file: it is set while the cluster runs, for one broker or, where it has none of
//! its own, for all (KIP-226).

use kittiwake_raft::image::Configs;
use kittiwake_raft::{BrokerId, ClusterImage};

use super::kind::Kind;
use super::topic_layers::Source;

/// A key that is only dynamic.
#[derive(Debug)]
pub struct DynamicKey {
    /// Its name.
    pub name: &'static str,
    /// What it may be set to.
    pub kind: Kind,
    /// Its value where nobody set it.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// `leader.replication.throttled.rate`
pub const LEADER_REPLICATION_THROTTLED_RATE: &str = "leader.replication.throttled.rate";
/// `follower.replication.throttled.rate`
pub const FOLLOWER_REPLICATION_THROTTLED_RATE: &str = "follower.replication.throttled.rate";

const UNLIMITED: &str = "9223372036854775807";

/// Every key that is only dynamic.
pub static DYNAMIC_KEYS: &[DynamicKey] = &[
    DynamicKey {
        name: LEADER_REPLICATION_THROTTLED_RATE,
        kind: Kind::Long { min: 0 },
        default: UNLIMITED,
        doc: "Bytes a second a node sends, where it leads a replica of leader.replication.throttled.replicas, to followers that \
              are not in sync.",
    },
    DynamicKey {
        name: FOLLOWER_REPLICATION_THROTTLED_RATE,
        kind: Kind::Long { min: 0 },
        default: UNLIMITED,
        doc: "Bytes a second a node fetches for its replicas of follower.replication.throttled.replicas that are not in sync.",
    },
];

/// The key of this name.
pub fn dynamic_key(name: &str) -> Option<&'static DynamicKey> {
    DYNAMIC_KEYS.iter().find(|key| key.name == name)
}

impl DynamicKey {
    /// Every value it has for `broker`, the one that holds first.
    pub fn synonyms<'a>(
        &self,
        image: &'a ClusterImage,
        broker: BrokerId,
    ) -> impl Iterator<Item = (Source, &'a str)> + use<'a> {
        let name = self.name;
        let set = move |configs: Option<&'a Configs>| Some(configs?.get(name)?.as_str());
        let own = set(image.broker_configs(Some(broker))).map(|value| (Source::Broker, value));
        let all = set(image.broker_configs(None)).map(|value| (Source::Cluster, value));
        own.into_iter()
            .chain(all)
            .chain([(Source::Default, self.default)])
    }
}

/// Limits of catch-up traffic, in bytes a second; `None` is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReplicationThrottle {
    /// What a node sends to throttled replicas that are not in sync.
    pub leader: Option<u64>,
    /// What a node fetches for throttled replicas that are not in sync.
    pub follower: Option<u64>,
}

impl ReplicationThrottle {
    /// The limits of `broker`.
    pub fn of(image: &ClusterImage, broker: BrokerId) -> Self {
        let rate = |name| {
            let (_, value) = dynamic_key(name)?.synonyms(image, broker).next()?;
            let rate: u64 = value.trim().parse().ok()?;
            (rate < i64::MAX.unsigned_abs()).then_some(rate)
        };
        Self {
            leader: rate(LEADER_REPLICATION_THROTTLED_RATE),
            follower: rate(FOLLOWER_REPLICATION_THROTTLED_RATE),
        }
    }
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::{Command, ConfigChange, ConfigResource};

    use super::*;
    use crate::controller::tests_support::{apply, image_of};

    #[test]
    fn defaults_are_values_of_their_keys() {
        for key in DYNAMIC_KEYS {
            assert_eq!(key.kind.validate(key.default), Ok(()), "{}", key.name);
        }
    }

    #[test]
    fn a_brokers_own_rate_goes_before_that_of_all() {
        let mut image = image_of(2);
        let mut set = |broker: Option<i32>, key: &str, rate: &str| {
            let change = ConfigChange {
                resource: ConfigResource::Broker(broker.map(BrokerId)),
                set: vec![(key.into(), rate.into())],
                remove: Vec::new(),
                expected: Vec::new(),
            };
            apply(&mut image, Command::AlterConfigs(vec![change]));
        };
        set(None, LEADER_REPLICATION_THROTTLED_RATE, "1000");
        set(Some(1), LEADER_REPLICATION_THROTTLED_RATE, "10");
        set(Some(1), FOLLOWER_REPLICATION_THROTTLED_RATE, UNLIMITED);
        let of = |broker| ReplicationThrottle::of(&image, BrokerId(broker));
        assert_eq!((of(0).leader, of(0).follower), (Some(1000), None));
        assert_eq!((of(1).leader, of(1).follower), (Some(10), None));
    }
}
