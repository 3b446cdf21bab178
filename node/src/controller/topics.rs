//! Topics: creation, deletion, more partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use kittiwake_raft::image::validate_topic_name;
use kittiwake_raft::{BrokerId, ClusterImage, Command, NewPartitions, NewTopic, Topic, TopicId};

use super::placement::{Candidate, Start, place};
use super::{Refusal, carry_out, fill_in};
use crate::api::ErrorCode;
use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::config::topic::Configs;
use crate::config::topic_layers::validate_all;

/// Partitions one request may create, all topics together: one entry of the metadata log, one pause of its readers.
/// Kafka's limit.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 10_000;

/// Partitions of a cluster. Every node keeps all of them in memory and sends them in one Metadata response.
pub const PARTITIONS_PER_CLUSTER_MAX: usize = 200_000;

/// Replicas of a partition where the configuration does not say and there are as many brokers, or will be: voters that
/// have not registered yet count.
const DEFAULT_REPLICATION_FACTOR: usize = 3;

/// The topic of consumer offsets.
pub const CONSUMER_OFFSETS: &str = "__consumer_offsets";

/// Whether the topic belongs to a coordinator. Only that creates it: with other partitions than it expects, groups would
/// be looked for in the wrong place.
pub fn is_internal(name: &str) -> bool {
    matches!(name, CONSUMER_OFFSETS | "__transaction_state")
}

/// A topic to create, as asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions; `None`: the broker's default.
    pub partitions: Option<i32>,
    /// How many replicas each; `None`: the broker's default.
    pub replication_factor: Option<i16>,
    /// Replicas by partition, in place of the two numbers; empty: they are placed.
    pub assignment: Vec<(i32, Vec<BrokerId>)>,
    /// Configuration.
    pub configs: Configs,
}

/// A topic that was created, or would be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CreatedTopic {
    /// Its id; `None` if it was only validated.
    pub id: Option<TopicId>,
    /// Its partitions.
    pub partitions: i32,
    /// Replicas of the first.
    pub replication_factor: i16,
    /// Its own configuration.
    pub configs: Configs,
}

/// Creates topics, in one entry of the metadata log; one result each. Names are expected to be distinct.
pub async fn create_topics(
    broker: &Broker,
    specs: &[TopicSpec],
    validate_only: bool,
) -> Vec<Result<CreatedTopic, Refusal>> {
    let image = broker.quorum.image();
    let mut room = Room::of(&image);
    let planned: Vec<Result<NewTopic, Refusal>> = specs
        .iter()
        .map(|spec| {
            let new = plan_topic(&image, &broker.config, spec, random_start(), &room)?;
            room.take(new.partitions.len());
            Ok(new)
        })
        .collect();
    let accepted: Vec<NewTopic> = planned.iter().flatten().cloned().collect();
    if accepted.is_empty() {
        return fill_in(planned, Ok(Vec::new()), |new, _| {
            created(new, validate_only)
        });
    }
    let results = carry_out(broker, Command::CreateTopics(accepted), validate_only).await;
    fill_in(planned, results, |new, _| created(new, validate_only))
}

fn created(new: NewTopic, validate_only: bool) -> CreatedTopic {
    let replicas = new.partitions.first().map_or(0, Vec::len);
    CreatedTopic {
        id: Some(new.id).filter(|_| !validate_only),
        partitions: i32::try_from(new.partitions.len()).unwrap_or(i32::MAX),
        replication_factor: i16::try_from(replicas).unwrap_or(i16::MAX),
        configs: new.configs,
    }
}

/// How a topic is named in a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TopicRef {
    /// By name.
    Name(String),
    /// By id.
    Id(TopicId),
}

impl TopicRef {
    /// The topic.
    ///
    /// # Errors
    /// UNKNOWN_TOPIC_OR_PARTITION or UNKNOWN_TOPIC_ID.
    pub fn find<'a>(&self, image: &'a ClusterImage) -> Result<&'a Arc<Topic>, Refusal> {
        match self {
            Self::Name(name) => image
                .topic_by_name(name)
                .ok_or_else(|| Refusal::unknown_topic(name)),
            Self::Id(id) => image.topic(*id).ok_or_else(|| {
                Refusal::new(
                    ErrorCode::UnknownTopicId,
                    format!("No topic has the id {id}."),
                )
            }),
        }
    }
}

/// Deletes topics with their records, in one entry of the metadata log; the deleted topic or why not, for each.
pub async fn delete_topics(
    broker: &Broker,
    topics: &[TopicRef],
) -> Vec<Result<Arc<Topic>, Refusal>> {
    if !broker.config.delete_topic_enable {
        let refusal = Refusal::new(
            ErrorCode::TopicDeletionDisabled,
            "Topics cannot be deleted: delete.topic.enable is false.",
        );
        return topics.iter().map(|_| Err(refusal.clone())).collect();
    }
    let image = broker.quorum.image();
    let planned: Vec<Result<Arc<Topic>, Refusal>> = topics
        .iter()
        .map(|topic| topic.find(&image).cloned())
        .collect();
    let ids: Vec<TopicId> = planned.iter().flatten().map(|topic| topic.id).collect();
    if ids.is_empty() {
        return planned;
    }
    let results = carry_out(broker, Command::DeleteTopics(ids), false).await;
    fill_in(planned, results, |topic, _| topic)
}

/// A topic to grow, as asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GrowthSpec {
    /// Its name.
    pub topic: String,
    /// How many partitions it shall have.
    pub count: i32,
    /// Replicas of the new partitions; `None`: they are placed.
    pub assignment: Option<Vec<Vec<BrokerId>>>,
}

/// Adds partitions to topics, in one entry of the metadata log; one result each.
pub async fn create_partitions(
    broker: &Broker,
    specs: &[GrowthSpec],
    validate_only: bool,
) -> Vec<Result<(), Refusal>> {
    let image = broker.quorum.image();
    let mut room = Room::of(&image);
    let planned: Vec<Result<NewPartitions, Refusal>> = specs
        .iter()
        .map(|spec| {
            let new = plan_growth(&image, spec, random_start(), &room)?;
            room.take(new.partitions.len());
            Ok(new)
        })
        .collect();
    let accepted: Vec<NewPartitions> = planned.iter().flatten().cloned().collect();
    if accepted.is_empty() {
        return fill_in(planned, Ok(Vec::new()), |_, _| ());
    }
    let results = carry_out(broker, Command::CreatePartitions(accepted), validate_only).await;
    fill_in(planned, results, |_, _| ())
}

/// How many partitions may still be created, by this request and in this cluster.
#[derive(Debug)]
struct Room {
    request: usize,
    cluster: usize,
}

impl Room {
    fn of(image: &ClusterImage) -> Self {
        let existing: usize = image.topics().map(|topic| topic.partitions.len()).sum();
        Self {
            request: PARTITIONS_PER_REQUEST_MAX,
            cluster: PARTITIONS_PER_CLUSTER_MAX.saturating_sub(existing),
        }
    }

    fn check(&self, partitions: usize) -> Result<(), Refusal> {
        let refuse = |message: String| Err(Refusal::new(ErrorCode::PolicyViolation, message));
        if partitions > self.request {
            return refuse(format!(
                "One request may create at most {PARTITIONS_PER_REQUEST_MAX} partitions."
            ));
        }
        if partitions > self.cluster {
            return refuse(format!(
                "A cluster may have at most {PARTITIONS_PER_CLUSTER_MAX} partitions."
            ));
        }
        Ok(())
    }

    fn take(&mut self, partitions: usize) {
        self.request = self.request.saturating_sub(partitions);
        self.cluster = self.cluster.saturating_sub(partitions);
    }
}

fn random_start() -> Start {
    Start {
        broker: rand::random_range(0..1 << 16),
        shift: rand::random_range(0..1 << 16),
        partition: 0,
    }
}

fn plan_topic(
    image: &ClusterImage,
    config: &BrokerConfig,
    spec: &TopicSpec,
    start: Start,
    room: &Room,
) -> Result<NewTopic, Refusal> {
    validate_topic_name(&spec.name)?;
    if image.topic_by_name(&spec.name).is_some() {
        return Err(Refusal::new(
            ErrorCode::TopicAlreadyExists,
            format!("Topic '{}' already exists.", spec.name),
        ));
    }
    validate_all(&spec.configs, &config.topic_defaults)
        .map_err(|reason| Refusal::new(ErrorCode::InvalidConfig, reason))?;
    let partitions = if spec.assignment.is_empty() {
        let count = partition_count(spec.partitions, config)?;
        room.check(count)?;
        let replicas = replica_count(image, spec.replication_factor, config)?;
        place(&candidates(image), count, replicas, start)?
    } else {
        room.check(spec.assignment.len())?;
        assigned(image, spec)?
    };
    Ok(NewTopic {
        name: spec.name.clone(),
        id: TopicId::random(),
        configs: spec.configs.clone(),
        partitions,
    })
}

fn partition_count(asked: Option<i32>, config: &BrokerConfig) -> Result<usize, Refusal> {
    let count = asked.unwrap_or(config.num_partitions);
    usize::try_from(count)
        .ok()
        .filter(|count| *count >= 1)
        .ok_or_else(|| {
            Refusal::new(
                ErrorCode::InvalidPartitions,
                format!("The number of partitions must be at least 1, not {count}."),
            )
        })
}

fn replica_count(
    image: &ClusterImage,
    asked: Option<i16>,
    config: &BrokerConfig,
) -> Result<usize, Refusal> {
    let Some(factor) = asked.or(config.default_replication_factor) else {
        // A node that starts first must not leave topics with fewer replicas than the cluster will have nodes.
        let brokers = image.brokers.len().max(config.cluster_voters.0.len());
        return Ok(brokers.clamp(1, DEFAULT_REPLICATION_FACTOR));
    };
    usize::try_from(factor)
        .ok()
        .filter(|factor| *factor >= 1)
        .ok_or_else(|| {
            Refusal::new(
                ErrorCode::InvalidReplicationFactor,
                format!("The replication factor must be at least 1, not {factor}."),
            )
        })
}

fn candidates(image: &ClusterImage) -> Vec<Candidate<'_>> {
    image
        .brokers
        .values()
        .map(|broker| Candidate::from(&**broker))
        .collect()
}

fn assigned(image: &ClusterImage, spec: &TopicSpec) -> Result<Vec<Vec<BrokerId>>, Refusal> {
    if spec.partitions.is_some() || spec.replication_factor.is_some() {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            "Partitions and replication factor must be -1 where replicas are assigned to partitions.",
        ));
    }
    let by_index: BTreeMap<i32, &Vec<BrokerId>> = spec
        .assignment
        .iter()
        .map(|(index, of)| (*index, of))
        .collect();
    let numbered = by_index
        .keys()
        .copied()
        .zip(0..)
        .all(|(index, expected)| index == expected);
    if !numbered || by_index.len() != spec.assignment.len() {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicaAssignment,
            "Partitions must be numbered consecutively from 0, each assigned once.",
        ));
    }
    let partitions: Vec<Vec<BrokerId>> = by_index.into_values().cloned().collect();
    let replicas = partitions.first().map_or(0, Vec::len);
    validate_assignment(image, &partitions, replicas)?;
    Ok(partitions)
}

/// Manual assignments: distinct registered brokers, as many for each partition.
fn validate_assignment(
    image: &ClusterImage,
    partitions: &[Vec<BrokerId>],
    replicas: usize,
) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
    for assigned in partitions {
        if assigned.is_empty() || assigned.len() > image.brokers.len() {
            return refuse(format!(
                "A partition has 1 to {} replicas, one per broker.",
                image.brokers.len()
            ));
        }
        if assigned.len() != replicas {
            return refuse(format!(
                "Every partition must have {replicas} replicas, as the first has."
            ));
        }
        for (position, id) in assigned.iter().enumerate() {
            if assigned[..position].contains(id) {
                return refuse(format!("Broker {id} is assigned twice to one partition."));
            }
            if image.broker(*id).is_none() {
                return refuse(format!("Broker {id} is not registered."));
            }
        }
    }
    Ok(())
}

fn plan_growth(
    image: &ClusterImage,
    spec: &GrowthSpec,
    start: Start,
    room: &Room,
) -> Result<NewPartitions, Refusal> {
    let topic = image
        .topic_by_name(&spec.topic)
        .ok_or_else(|| Refusal::unknown_topic(&spec.topic))?;
    if is_internal(&topic.name) {
        return Err(Refusal::new(
            ErrorCode::InvalidTopicException,
            "An internal topic keeps its partitions: what its coordinators hold would be looked for in others.",
        ));
    }
    let existing = topic.partitions.len();
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    let added = match usize::try_from(spec.count) {
        Ok(count) if count > existing => count - existing,
        Ok(count) if count == existing => {
            return refuse(format!("Topic already has {existing} partitions."));
        }
        _ => {
            return refuse(format!(
                "The topic has {existing} partitions; {} would not be an increase.",
                spec.count
            ));
        }
    };
    room.check(added)?;
    let replicas = topic
        .partitions
        .first()
        .map_or(1, |partition| partition.replicas.len());
    let partitions = match &spec.assignment {
        None => place(
            &candidates(image),
            added,
            replicas,
            Start {
                partition: existing,
                ..start
            },
        )?,
        Some(assigned) if assigned.len() == added => {
            validate_assignment(image, assigned, replicas)?;
            assigned.clone()
        }
        Some(assigned) => {
            return Err(Refusal::new(
                ErrorCode::InvalidReplicaAssignment,
                format!(
                    "{added} partitions are added, but {} are assigned.",
                    assigned.len()
                ),
            ));
        }
    };
    let existing = i32::try_from(existing).unwrap_or(i32::MAX);
    Ok(NewPartitions {
        topic: topic.id,
        existing,
        partitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::rehearse;
    use crate::controller::tests_support::image_of;

    fn spec(name: &str) -> TopicSpec {
        TopicSpec {
            name: name.into(),
            ..TopicSpec::default()
        }
    }

    fn plan(image: &ClusterImage, spec: &TopicSpec) -> Result<NewTopic, ErrorCode> {
        let config = BrokerConfig::default();
        plan_topic(image, &config, spec, Start::default(), &Room::of(image))
            .map_err(|refusal| refusal.code)
    }

    fn with_topic(image: &mut ClusterImage, spec: &TopicSpec) {
        let new = plan(image, spec).unwrap();
        let results = image.apply(image.offset + 1, &Command::CreateTopics(vec![new]));
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    #[test]
    fn defaults_are_one_partition_and_up_to_three_replicas() {
        for (brokers, replicas) in [(1, 1), (2, 2), (3, 3), (5, 3)] {
            let new = plan(&image_of(brokers), &spec("t")).unwrap();
            assert_eq!(
                (new.partitions.len(), new.partitions[0].len()),
                (1, replicas),
                "{brokers} brokers"
            );
        }
    }

    #[test]
    fn a_cluster_that_forms_does_not_leave_topics_with_too_few_replicas() {
        let mut config = BrokerConfig::default();
        config.cluster_voters = "0@a:1,1@b:1,2@c:1".parse().unwrap();
        let planned = |brokers| {
            let image = image_of(brokers);
            let room = Room::of(&image);
            plan_topic(&image, &config, &spec("t"), Start::default(), &room)
                .map(|topic| topic.partitions[0].len())
                .map_err(|refusal| refusal.code)
        };
        assert_eq!(planned(2), Err(ErrorCode::InvalidReplicationFactor));
        assert_eq!(planned(3), Ok(3));
    }

    #[test]
    fn impossible_topics_are_refused_by_kafkas_codes() {
        let mut image = image_of(2);
        with_topic(&mut image, &spec("there"));
        let numbers = |partitions, replication_factor| TopicSpec {
            partitions: Some(partitions),
            replication_factor: Some(replication_factor),
            ..spec("t")
        };
        let assignment = |of: &[(i32, &[i32])]| TopicSpec {
            assignment: of
                .iter()
                .map(|(index, ids)| (*index, ids.iter().map(|id| BrokerId(*id)).collect()))
                .collect(),
            ..spec("t")
        };
        let config = |key: &str, value: &str| TopicSpec {
            configs: [(key.to_owned(), value.to_owned())].into(),
            ..spec("t")
        };
        for (spec, code) in [
            (spec("there"), ErrorCode::TopicAlreadyExists),
            (spec(".."), ErrorCode::InvalidTopicException),
            (spec("a b"), ErrorCode::InvalidTopicException),
            (numbers(0, 1), ErrorCode::InvalidPartitions),
            (numbers(-7, 1), ErrorCode::InvalidPartitions),
            (numbers(i32::MAX, 1), ErrorCode::PolicyViolation),
            (numbers(1, 0), ErrorCode::InvalidReplicationFactor),
            (numbers(1, 3), ErrorCode::InvalidReplicationFactor),
            (
                assignment(&[(1, &[0])]),
                ErrorCode::InvalidReplicaAssignment,
            ),
            (
                assignment(&[(0, &[0]), (0, &[1])]),
                ErrorCode::InvalidReplicaAssignment,
            ),
            (
                assignment(&[(0, &[0, 0])]),
                ErrorCode::InvalidReplicaAssignment,
            ),
            (
                assignment(&[(0, &[9])]),
                ErrorCode::InvalidReplicaAssignment,
            ),
            (assignment(&[(0, &[])]), ErrorCode::InvalidReplicaAssignment),
            (
                assignment(&[(0, &[0]), (1, &[0, 1])]),
                ErrorCode::InvalidReplicaAssignment,
            ),
            (
                TopicSpec {
                    partitions: Some(1),
                    ..assignment(&[(0, &[0])])
                },
                ErrorCode::InvalidRequest,
            ),
            (config("retention.ms", "soon"), ErrorCode::InvalidConfig),
            (config("retention", "1"), ErrorCode::InvalidConfig),
        ] {
            assert_eq!(
                plan(&image, &spec).map(|new| new.name),
                Err(code),
                "{spec:?}"
            );
        }
        assert!(plan(&image, &assignment(&[(1, &[1, 0]), (0, &[0, 1])])).is_ok());
    }

    #[test]
    fn validation_alone_finds_what_the_image_would_refuse() {
        let mut image = image_of(1);
        with_topic(&mut image, &spec("a.b"));
        let new = plan(&image, &spec("a_b")).unwrap();
        let results = rehearse(&image, &Command::CreateTopics(vec![new]));
        assert_eq!(
            results[0].as_ref().map_err(|refusal| refusal.code),
            Err(ErrorCode::InvalidTopicException)
        );
    }

    #[test]
    fn a_request_creates_ten_thousand_partitions_at_most() {
        let image = image_of(1);
        let mut room = Room::of(&image);
        assert!(room.check(PARTITIONS_PER_REQUEST_MAX).is_ok());
        room.take(1);
        assert!(room.check(PARTITIONS_PER_REQUEST_MAX).is_err());
    }

    #[test]
    fn topics_only_grow() {
        let mut image = image_of(3);
        with_topic(
            &mut image,
            &TopicSpec {
                partitions: Some(2),
                replication_factor: Some(2),
                ..spec("t")
            },
        );
        with_topic(&mut image, &spec(CONSUMER_OFFSETS));
        let grow = |topic: &str, count, assignment| {
            let spec = GrowthSpec {
                topic: topic.into(),
                count,
                assignment,
            };
            plan_growth(&image, &spec, Start::default(), &Room::of(&image))
                .map_err(|refusal| refusal.code)
        };
        let new = grow("t", 5, None).unwrap();
        assert_eq!((new.existing, new.partitions.len()), (2, 3));
        assert!(new.partitions.iter().all(|replicas| replicas.len() == 2));
        for count in [-1, 0, 1, 2] {
            assert_eq!(
                grow("t", count, None),
                Err(ErrorCode::InvalidPartitions),
                "{count}"
            );
        }
        assert_eq!(grow("u", 5, None), Err(ErrorCode::UnknownTopicOrPartition));
        assert_eq!(
            grow(CONSUMER_OFFSETS, 5, None),
            Err(ErrorCode::InvalidTopicException)
        );
        let on = |ids: [i32; 2]| Some(vec![ids.map(BrokerId).to_vec()]);
        assert!(grow("t", 3, on([0, 1])).is_ok());
        assert_eq!(
            grow("t", 4, on([0, 1])),
            Err(ErrorCode::InvalidReplicaAssignment)
        );
        assert_eq!(
            grow("t", 3, on([0, 0])),
            Err(ErrorCode::InvalidReplicaAssignment)
        );
    }
}
