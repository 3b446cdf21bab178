//! Topics: names, creation, growth, deletion.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::command::{Applied, CommandError, NewPartitions, NewTopic, PartitionChange};
use crate::ids::{BrokerId, TopicId};
use crate::image::ClusterImage;
use crate::image::config::validate_config;
use crate::image::partition::{Context, Partition};
use crate::image::shared_map::{ShardKey, SharedMap};

/// A topic.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Topic {
    /// Its identity; never used again.
    pub id: TopicId,
    /// Its name; may be used again after deletion.
    pub name: String,
    /// Topic-level configuration as set; what is not here is the default.
    pub configs: BTreeMap<String, String>,
    /// Its partitions, by index.
    pub partitions: Vec<Arc<Partition>>,
}

/// Longest topic name; with `-` and a partition number it still fits a file name of 255 bytes.
pub const MAX_TOPIC_NAME_LEN: usize = 249;

/// Whether a topic may have this name.
///
/// # Errors
/// [`CommandError::InvalidTopicName`] with the reason.
pub fn validate_topic_name(name: &str) -> Result<(), CommandError> {
    let refuse = |reason: &str| Err(CommandError::InvalidTopicName(reason.into()));
    if name.is_empty() {
        return refuse("the name is empty");
    }
    if name == "." || name == ".." {
        return refuse("'.' and '..' are directories");
    }
    if name.len() > MAX_TOPIC_NAME_LEN {
        return refuse("the name is longer than 249 characters");
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    {
        return refuse("only ASCII letters, digits, '.', '_' and '-' are allowed");
    }
    Ok(())
}

/// All topics, by id and by name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Topics {
    by_id: SharedMap<TopicId, Arc<Topic>>,
    /// Keyed without the difference between `.` and `_`: there is at most one topic per such name.
    ids: SharedMap<FoldedName, TopicId>,
}

impl Topics {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn get(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.by_id.get(&id)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_folded_name(name).filter(|topic| topic.name == name)
    }

    fn by_folded_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_id.get(self.ids.get(&FoldedName::of(name))?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_id.iter().map(|(_, topic)| topic)
    }

    pub(super) fn insert(&mut self, topic: Arc<Topic>) {
        self.ids.insert(FoldedName::of(&topic.name), topic.id);
        self.by_id.insert(topic.id, topic);
    }

    fn remove(&mut self, id: TopicId) -> Option<Arc<Topic>> {
        let topic = self.by_id.remove(&id)?;
        self.ids.remove(&FoldedName::of(&topic.name));
        Some(topic)
    }
}

/// A topic name with `.` read as `_`: Kafka refuses names that differ in nothing else, because
/// metric names cannot tell them apart.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct FoldedName(String);

impl FoldedName {
    fn of(name: &str) -> Self {
        Self(name.replace('.', "_"))
    }
}

impl ShardKey for FoldedName {
    fn hash(&self) -> u8 {
        // FNV-1a, folded: spreads names that differ only at their end.
        let hash = self.0.bytes().fold(0x811c_9dc5u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        hash.to_le_bytes().iter().fold(0, |all, byte| all ^ byte)
    }
}

impl ShardKey for TopicId {
    fn hash(&self) -> u8 {
        self.as_bytes().iter().fold(0, |all, byte| all ^ byte)
    }
}

impl ClusterImage {
    pub(super) fn create_topic(&mut self, new: &NewTopic) -> Result<Applied, CommandError> {
        validate_topic_name(&new.name)?;
        if let Some(existing) = self.topics.by_folded_name(&new.name) {
            return Err(if existing.name == new.name {
                CommandError::TopicExists(existing.name.clone())
            } else {
                CommandError::TopicNameCollision(existing.name.clone())
            });
        }
        if let Some(existing) = self.topics.get(new.id) {
            return Err(CommandError::TopicExists(existing.name.clone()));
        }
        for (key, value) in &new.configs {
            validate_config(key, value)?;
        }
        if new.partitions.is_empty() {
            return Err(CommandError::InvalidPartitions(
                "a topic without partitions".into(),
            ));
        }
        let mut topic = Topic {
            id: new.id,
            name: new.name.clone(),
            configs: new.configs.clone(),
            partitions: Vec::new(),
        };
        self.grow(&mut topic, &new.partitions)?;
        self.topics.insert(Arc::new(topic));
        Ok(Applied::TopicCreated(new.id))
    }

    pub(super) fn delete_topic(&mut self, id: TopicId) -> Result<Applied, CommandError> {
        self.topics
            .remove(id)
            .map(|_| Applied::Done)
            .ok_or(CommandError::UnknownTopic)
    }

    pub(super) fn create_partitions(
        &mut self,
        new: &NewPartitions,
    ) -> Result<Applied, CommandError> {
        let mut topic = Topic::clone(
            self.topics
                .get(new.topic)
                .ok_or(CommandError::UnknownTopic)?,
        );
        if i32::try_from(topic.partitions.len()) != Ok(new.existing) {
            return Err(CommandError::InvalidPartitions(format!(
                "the topic has {} partitions, not {}",
                topic.partitions.len(),
                new.existing
            )));
        }
        if new.partitions.is_empty() {
            return Err(CommandError::InvalidPartitions(
                "no partitions to add".into(),
            ));
        }
        self.grow(&mut topic, &new.partitions)?;
        self.topics.insert(Arc::new(topic));
        Ok(Applied::Done)
    }

    fn grow(&self, topic: &mut Topic, partitions: &[Vec<BrokerId>]) -> Result<(), CommandError> {
        let total = topic.partitions.len() + partitions.len();
        if i32::try_from(total).is_err() {
            return Err(CommandError::InvalidPartitions(format!(
                "{total} partitions"
            )));
        }
        let context = self.context(topic);
        for replicas in partitions {
            topic
                .partitions
                .push(Arc::new(Partition::create(replicas, context)?));
        }
        Ok(())
    }

    pub(super) fn alter_partition(
        &mut self,
        change: &PartitionChange,
    ) -> Result<Applied, CommandError> {
        let topic = self
            .topics
            .get(change.topic)
            .ok_or(CommandError::UnknownTopic)?;
        let index =
            usize::try_from(change.partition).map_err(|_| CommandError::UnknownPartition)?;
        let current = topic
            .partitions
            .get(index)
            .ok_or(CommandError::UnknownPartition)?;
        let mut partition = Partition::clone(current);
        partition.alter(change, self.context(topic))?;
        if partition != **current {
            let mut topic = Topic::clone(topic);
            topic.partitions[index] = Arc::new(partition.clone());
            self.topics.insert(Arc::new(topic));
        }
        Ok(Applied::PartitionAltered(partition))
    }

    /// Lets every partition with a replica on `broker` react to a change of it.
    pub(super) fn alter_partitions_of(
        &mut self,
        broker: BrokerId,
        alter: impl Fn(&mut Partition, Context<'_>),
    ) {
        let everywhere: Vec<TopicId> = self.topics.iter().map(|topic| topic.id).collect();
        self.alter_partitions_where(&everywhere, alter, |partition| {
            partition.replicas.contains(&broker)
        });
    }

    pub(super) fn alter_partitions_where(
        &mut self,
        topics: &[TopicId],
        alter: impl Fn(&mut Partition, Context<'_>),
        concerned: impl Fn(&Partition) -> bool,
    ) {
        for id in topics {
            let Some(topic) = self.topics.get(*id) else {
                continue;
            };
            let context = self.context(topic);
            let mut changed: Option<Topic> = None;
            for (index, partition) in topic.partitions.iter().enumerate() {
                if !concerned(partition) {
                    continue;
                }
                let mut after = Partition::clone(partition);
                alter(&mut after, context);
                if after != **partition {
                    changed
                        .get_or_insert_with(|| Topic::clone(topic))
                        .partitions[index] = Arc::new(after);
                }
            }
            if let Some(topic) = changed {
                self.topics.insert(Arc::new(topic));
            }
        }
    }

    fn context(&self, topic: &Topic) -> Context<'_> {
        Context {
            brokers: &self.brokers,
            min_insync_replicas: self.min_insync_replicas(topic),
        }
    }
}
