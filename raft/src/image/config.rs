//! Dynamic configuration of topics and brokers.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::command::{Applied, CommandError, ConfigChange, ConfigResource};
use crate::ids::{BrokerId, TopicId};
use crate::image::{ClusterImage, Topic};

/// The one configuration key the image itself acts on.
pub const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";

/// `min.insync.replicas` where neither topic nor cluster sets it; capped by the number of replicas
/// wherever it is used, so that one replica is enough for a partition that has only one.
pub const DEFAULT_MIN_INSYNC_REPLICAS: usize = 2;

/// Configuration keys and values of one resource.
pub type Configs = BTreeMap<String, String>;

impl ClusterImage {
    /// `min.insync.replicas` that holds for a topic: its own, else the cluster-wide one, else
    /// [`DEFAULT_MIN_INSYNC_REPLICAS`]. A node's configuration file does not count: every node must
    /// see the same value, or the eligible leaders would be other ones on each. Compare with
    /// `min(this, replicas)`.
    #[must_use]
    pub fn min_insync_replicas(&self, topic: &Topic) -> usize {
        let cluster = || self.broker_configs.get(&None)?.get(MIN_INSYNC_REPLICAS);
        topic
            .configs
            .get(MIN_INSYNC_REPLICAS)
            .or_else(cluster)
            .and_then(|value| parse_min_insync_replicas(value))
            .unwrap_or(DEFAULT_MIN_INSYNC_REPLICAS)
    }

    /// Dynamic configuration of one broker, or with `None` of every broker.
    #[must_use]
    pub fn broker_configs(&self, broker: Option<BrokerId>) -> Option<&Configs> {
        self.broker_configs.get(&broker).map(Arc::as_ref)
    }

    pub(super) fn alter_config(&mut self, change: &ConfigChange) -> Result<Applied, CommandError> {
        for (position, (key, value)) in change.set.iter().enumerate() {
            validate_config(key, value)?;
            if change.set[..position].iter().any(|(other, _)| other == key)
                || change.remove.contains(key)
            {
                return Err(CommandError::InvalidConfig {
                    key: key.clone(),
                    reason: "the key appears twice in one change".into(),
                });
            }
        }
        if let Some(key) = self.changed_since(change)? {
            return Err(CommandError::ConfigChanged(key.to_owned()));
        }
        match &change.resource {
            ConfigResource::Topic(name) => self.alter_topic_config(name, change),
            ConfigResource::Broker(broker) => self.alter_broker_config(*broker, change),
        }
    }

    /// The first key that is not as the change expects it.
    fn changed_since<'a>(&self, change: &'a ConfigChange) -> Result<Option<&'a str>, CommandError> {
        let configs = match &change.resource {
            ConfigResource::Topic(name) => {
                let topic = self.topics.by_name(name);
                Some(&topic.ok_or(CommandError::UnknownTopic)?.configs)
            }
            ConfigResource::Broker(broker) => self.broker_configs(*broker),
        };
        let is = |key: &str| configs.and_then(|configs| configs.get(key));
        let mut expected = change.expected.iter();
        let changed = expected.find(|(key, value)| is(key) != value.as_ref());
        Ok(changed.map(|(key, _)| key.as_str()))
    }

    fn alter_topic_config(
        &mut self,
        name: &str,
        change: &ConfigChange,
    ) -> Result<Applied, CommandError> {
        let before = Arc::clone(
            self.topics
                .by_name(name)
                .ok_or(CommandError::UnknownTopic)?,
        );
        let mut topic = Topic::clone(&before);
        change_configs(&mut topic.configs, change);
        let min_insync_replicas_changed = differ(&before.configs, &topic.configs);
        self.topics.insert(Arc::new(topic));
        if min_insync_replicas_changed {
            self.min_insync_replicas_set(&[before.id]);
        }
        Ok(Applied::Done)
    }

    fn alter_broker_config(
        &mut self,
        broker: Option<BrokerId>,
        change: &ConfigChange,
    ) -> Result<Applied, CommandError> {
        if let Some(broker) = broker {
            if !self.brokers.contains_key(&broker) {
                return Err(CommandError::UnknownBroker(broker));
            }
            if touches_min_insync_replicas(change) {
                return Err(CommandError::InvalidConfig {
                    key: MIN_INSYNC_REPLICAS.into(),
                    reason: "it is set for a topic or for all brokers, not for one".into(),
                });
            }
        }
        let configs = self.broker_configs.entry(broker).or_default();
        let before = Arc::clone(configs);
        change_configs(Arc::make_mut(configs), change);
        let min_insync_replicas_changed = differ(&before, configs);
        if configs.is_empty() {
            self.broker_configs.remove(&broker);
        }
        if min_insync_replicas_changed {
            let inheriting: Vec<TopicId> = self
                .topics
                .iter()
                .filter(|topic| !topic.configs.contains_key(MIN_INSYNC_REPLICAS))
                .map(|topic| topic.id)
                .collect();
            self.min_insync_replicas_set(&inheriting);
        }
        Ok(Applied::Done)
    }

    fn min_insync_replicas_set(&mut self, topics: &[TopicId]) {
        self.alter_partitions_where(
            topics,
            |partition, context| partition.min_insync_replicas_set(context),
            |_| true,
        );
    }
}

/// Checks a value the image depends on; every other key is the proposer's to check.
pub(super) fn validate_config(key: &str, value: &str) -> Result<(), CommandError> {
    if key == MIN_INSYNC_REPLICAS && parse_min_insync_replicas(value).is_none() {
        return Err(CommandError::InvalidConfig {
            key: key.into(),
            reason: format!("'{value}' is not a number from 1 to {}", i32::MAX),
        });
    }
    Ok(())
}

fn parse_min_insync_replicas(value: &str) -> Option<usize> {
    let number: i32 = value.trim().parse().ok()?;
    usize::try_from(number).ok().filter(|number| *number >= 1)
}

fn touches_min_insync_replicas(change: &ConfigChange) -> bool {
    change
        .set
        .iter()
        .map(|(key, _)| key)
        .chain(&change.remove)
        .any(|key| key == MIN_INSYNC_REPLICAS)
}

/// Whether `min.insync.replicas` is another one. Set to what it was, it says nothing new of who may lead (Kafka writes no
/// record then).
fn differ(before: &Configs, after: &Configs) -> bool {
    before.get(MIN_INSYNC_REPLICAS) != after.get(MIN_INSYNC_REPLICAS)
}

fn change_configs(configs: &mut Configs, change: &ConfigChange) {
    for (key, value) in &change.set {
        configs.insert(key.clone(), value.clone());
    }
    for key in &change.remove {
        configs.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "cleanup.policy";

    fn change(to: &str, expected: Option<&str>) -> ConfigChange {
        ConfigChange {
            resource: ConfigResource::Broker(None),
            set: vec![(KEY.into(), to.into())],
            remove: Vec::new(),
            expected: vec![(KEY.into(), expected.map(str::to_owned))],
        }
    }

    #[test]
    fn what_was_computed_from_another_value_is_refused() {
        let mut image = ClusterImage::new("test");
        let stale = Err(CommandError::ConfigChanged(KEY.into()));
        assert_eq!(image.alter_config(&change("a", Some("b"))), stale);
        assert_eq!(image.alter_config(&change("a", None)), Ok(Applied::Done));
        assert_eq!(image.alter_config(&change("a,b", None)), stale);
        assert_eq!(
            image.alter_config(&change("a,b", Some("a"))),
            Ok(Applied::Done)
        );
        let configs = image.broker_configs(None).unwrap();
        assert_eq!(configs.get(KEY).map(String::as_str), Some("a,b"));
    }
}
