//! Metadata 0–13: brokers, and the topics a client asks for with their leaders.
//!
//! - v0: an empty list is all topics; from v1 that is null, and an empty list is none. From v10 topics come with their
//!   ids; from v12 they can be asked for by id: UNKNOWN_TOPIC_ID.
//! - A name that cannot be a topic's is INVALID_TOPIC_EXCEPTION, an unknown one UNKNOWN_TOPIC_OR_PARTITION, unless the
//!   request (from v4) and `auto.create.topics.enable` allow to create it. "All topics" creates nothing; nobody but its
//!   coordinator creates an internal topic.
//! - A partition without a leader is LEADER_NOT_AVAILABLE. Replicas on fenced brokers are offline, fenced brokers are left
//!   out, except for some seconds after they were lost (see `FAREWELL`), and so is a broker that has no listener of the name the client came in by.
//! - While a broker has just been lost the answer waits, a second at most, for what becomes of it: a client that asks
//!   because its leader died would otherwise be told of the dead one, and not ask again for long.
//! - A topic named several times is answered once: the response grows with the cluster, not with the request.
//! - Authorized operations (v8+; of the cluster up to v10): there are no ACLs, so who asks is told that all is allowed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use kafka_wire::metadata_request::MetadataRequestTopic;
use kafka_wire::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_wire::{MetadataRequest, MetadataResponse};
use kafka_wire_core::{StrBytes, Uuid};
use kittiwake_raft::image::validate_topic_name;
use kittiwake_raft::{BrokerId, ClusterImage, Partition, Topic, TopicId};
use tracing::info;

use super::{ErrorCode, RequestContext};
use crate::broker::Broker;
use crate::controller::topics::{TopicSpec, create_topics, is_internal};

/// What clients see where there is no broker.
pub(super) const NO_BROKER: i32 = -1;

/// READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS: bits by `AclOperation` code.
pub(super) const TOPIC_OPERATIONS: i32 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;

/// CREATE, ALTER, DESCRIBE, CLUSTER_ACTION, DESCRIBE_CONFIGS, ALTER_CONFIGS, IDEMPOTENT_WRITE.
pub(super) const CLUSTER_OPERATIONS: i32 =
    1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;

const AUTO_CREATE_FLAG_FROM: i16 = 4;
const TOPIC_OPERATIONS_FROM: i16 = 8;
const CLUSTER_OPERATIONS_UP_TO: i16 = 10;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: MetadataRequest,
    version: i16,
) -> MetadataResponse {
    let topics = wanted(request.topics, version);
    let may_create = version < AUTO_CREATE_FLAG_FROM || request.allow_auto_topic_creation;
    let mut refused = BTreeMap::new();
    if let Some(topics) = &topics
        && may_create
        && ctx.broker.config.auto_create_topics_enable
    {
        refused = auto_create(&ctx.broker, topics).await;
    }
    ctx.broker.voter.settled().await;
    let operations =
        request.include_topic_authorized_operations && version >= TOPIC_OPERATIONS_FROM;
    let view = View {
        image: ctx.broker.quorum.image(),
        listener: &ctx.peer.listener,
        operations,
    };

    let mut response = MetadataResponse::default();
    response.brokers = view.brokers(|broker| ctx.broker.voter.is_lost_lately(broker));
    response.cluster_id = Some(StrBytes::from(&*view.image.cluster_id));
    response.controller_id = ctx
        .broker
        .quorum
        .controller()
        .filter(|id| view.endpoint(*id).is_some())
        .map_or(NO_BROKER, |id| id.0);
    response.topics = match topics {
        None => view.image.topics().map(|topic| view.topic(topic)).collect(),
        Some(topics) => topics
            .into_iter()
            .map(|topic| view.wanted(topic, &refused))
            .collect(),
    };
    if request.include_cluster_authorized_operations
        && (TOPIC_OPERATIONS_FROM..=CLUSTER_OPERATIONS_UP_TO).contains(&version)
    {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    response
}

/// A topic as the client names it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Wanted {
    Name(StrBytes),
    Id(Uuid),
}

/// The topics asked for, each once; `None` is all.
fn wanted(topics: Option<Vec<MetadataRequestTopic>>, version: i16) -> Option<Vec<Wanted>> {
    let topics = topics.filter(|topics| version > 0 || !topics.is_empty())?;
    let mut seen = HashSet::new();
    let named = topics.into_iter().map(|topic| match topic.name {
        Some(name) if topic.topic_id.is_zero() || version < 12 => Wanted::Name(name),
        _ => Wanted::Id(topic.topic_id),
    });
    Some(named.filter(|topic| seen.insert(topic.clone())).collect())
}

/// Creates the topics among `topics` that can be and are missing; says why not, for those that were refused.
async fn auto_create(broker: &Broker, topics: &[Wanted]) -> BTreeMap<StrBytes, ErrorCode> {
    let image = broker.quorum.image();
    let missing: Vec<&StrBytes> = topics
        .iter()
        .filter_map(|topic| match topic {
            Wanted::Name(name) => Some(name),
            Wanted::Id(_) => None,
        })
        .filter(|name| validate_topic_name(name).is_ok() && !is_internal(name))
        .filter(|name| image.topic_by_name(name).is_none())
        .collect();
    if missing.is_empty() {
        return BTreeMap::new();
    }
    let specs: Vec<TopicSpec> = missing
        .iter()
        .map(|name| TopicSpec {
            name: name.to_string(),
            ..TopicSpec::default()
        })
        .collect();
    let results = create_topics(broker, &specs, false).await;
    missing
        .into_iter()
        .zip(results)
        .filter_map(|(name, result)| match result {
            Ok(created) => {
                info!(topic = %name, partitions = created.partitions, "topic created for a client that asked for it");
                None
            }
            Err(refusal) => {
                let placed_by_default = broker.config.default_replication_factor.is_none();
                Some((
                    name.clone(),
                    auto_create_error(refusal.code, placed_by_default)?,
                ))
            }
        })
        .collect()
}

/// What a client is told when its topic was not created; `None`: another client was faster.
fn auto_create_error(code: ErrorCode, placed_by_default: bool) -> Option<ErrorCode> {
    match code {
        ErrorCode::TopicAlreadyExists => None,
        // Retried: the other nodes of a cluster that forms are about to register.
        ErrorCode::InvalidReplicationFactor if placed_by_default => {
            Some(ErrorCode::LeaderNotAvailable)
        }
        // Retried: the quorum will be back.
        ErrorCode::RequestTimedOut | ErrorCode::NotController => {
            Some(ErrorCode::LeaderNotAvailable)
        }
        code => Some(code),
    }
}

/// The cluster as a client of one listener sees it.
pub(super) struct View<'a> {
    pub(super) image: Arc<ClusterImage>,
    pub(super) listener: &'a str,
    /// Fill in the authorized operations of topics.
    pub(super) operations: bool,
}

impl View<'_> {
    /// Those that are not fenced, or that were `lost_lately`.
    fn brokers(&self, lost_lately: impl Fn(BrokerId) -> bool) -> Vec<MetadataResponseBroker> {
        self.image
            .brokers
            .values()
            .filter(|broker| !broker.fenced || lost_lately(broker.id))
            .filter_map(|broker| {
                let endpoint = broker.endpoint(self.listener)?;
                let mut answer = MetadataResponseBroker::default();
                answer.node_id = broker.id.0;
                answer.host = StrBytes::from(endpoint.host.as_str());
                answer.port = i32::from(endpoint.port);
                answer.rack = broker.rack.as_deref().map(StrBytes::from);
                Some(answer)
            })
            .collect()
    }

    fn endpoint(&self, id: BrokerId) -> Option<&kittiwake_raft::Endpoint> {
        self.image
            .broker(id)
            .filter(|broker| !broker.fenced)?
            .endpoint(self.listener)
    }

    fn wanted(
        &self,
        topic: Wanted,
        refused: &BTreeMap<StrBytes, ErrorCode>,
    ) -> MetadataResponseTopic {
        let mut answer = MetadataResponseTopic::default();
        match topic {
            Wanted::Name(name) => {
                if let Some(topic) = self.image.topic_by_name(&name) {
                    return self.topic(topic);
                }
                let error = match validate_topic_name(&name) {
                    Err(_) => ErrorCode::InvalidTopicException,
                    Ok(()) => refused
                        .get(&name)
                        .copied()
                        .unwrap_or(ErrorCode::UnknownTopicOrPartition),
                };
                answer.error_code = error.code();
                answer.is_internal = is_internal(&name);
                answer.name = Some(name);
            }
            Wanted::Id(id) => {
                if let Some(topic) =
                    TopicId::from_bytes(id.to_bytes()).and_then(|id| self.image.topic(id))
                {
                    return self.topic(topic);
                }
                answer.error_code = ErrorCode::UnknownTopicId.code();
                answer.name = None;
                answer.topic_id = id;
            }
        }
        answer
    }

    fn topic(&self, topic: &Topic) -> MetadataResponseTopic {
        let mut answer = MetadataResponseTopic::default();
        answer.name = Some(StrBytes::from(topic.name.as_str()));
        answer.topic_id = Uuid::from_bytes(topic.id.to_bytes());
        answer.is_internal = is_internal(&topic.name);
        answer.partitions = (0..)
            .zip(&topic.partitions)
            .map(|(index, partition)| self.partition(index, partition))
            .collect();
        if self.operations {
            answer.topic_authorized_operations = TOPIC_OPERATIONS;
        }
        answer
    }

    fn partition(&self, index: i32, partition: &Partition) -> MetadataResponsePartition {
        let mut answer = MetadataResponsePartition::default();
        let leader = self.leader(partition);
        if leader.is_none() {
            answer.error_code = ErrorCode::LeaderNotAvailable.code();
        }
        answer.partition_index = index;
        answer.leader_id = leader.map_or(NO_BROKER, |id| id.0);
        answer.leader_epoch = partition.leader_epoch;
        answer.replica_nodes = ids(&partition.replicas);
        answer.isr_nodes = ids(&partition.isr);
        answer.offline_replicas = self.offline(partition);
        answer
    }

    /// The leader, if clients of this listener can reach it.
    pub(super) fn leader(&self, partition: &Partition) -> Option<BrokerId> {
        partition.leader.filter(|id| self.endpoint(*id).is_some())
    }

    /// Replicas whose broker is fenced or gone, and damaged ones.
    pub(super) fn offline(&self, partition: &Partition) -> Vec<i32> {
        let live = |id: &BrokerId| self.image.broker(*id).is_some_and(|broker| !broker.fenced);
        partition
            .replicas
            .iter()
            .filter(|id| !live(id) || partition.damaged.contains(id))
            .map(|id| id.0)
            .collect()
    }
}

pub(super) fn ids(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|id| id.0).collect()
}

#[cfg(test)]
mod tests {
    use kafka_wire_core::{ApiVersion, KafkaEncode};
    use kittiwake_raft::Command;

    use super::*;
    use crate::controller::tests_support::{LISTENER, apply, create, image_of};

    fn asked(name: Option<&str>, id: [u8; 16]) -> MetadataRequestTopic {
        let mut topic = MetadataRequestTopic::default();
        topic.name = name.map(StrBytes::from);
        topic.topic_id = Uuid::from_bytes(id);
        topic
    }

    fn view(image: ClusterImage) -> View<'static> {
        View {
            image: Arc::new(image),
            listener: LISTENER,
            operations: false,
        }
    }

    #[test]
    fn all_is_empty_in_v0_and_null_later() {
        assert_eq!(wanted(Some(vec![]), 0), None);
        assert_eq!(wanted(None, 1), None);
        assert_eq!(wanted(Some(vec![]), 1), Some(vec![]));
    }

    #[test]
    fn a_topic_is_answered_once() {
        let topics = vec![
            asked(Some("a"), [0; 16]),
            asked(Some("a"), [0; 16]),
            asked(None, [1; 16]),
        ];
        let expected = vec![
            Wanted::Name("a".into()),
            Wanted::Id(Uuid::from_bytes([1; 16])),
        ];
        assert_eq!(wanted(Some(topics), 12), Some(expected));
    }

    #[test]
    fn errors_say_what_is_wrong_with_the_name() {
        let view = view(image_of(1));
        let none = BTreeMap::new();
        let code = |topic| view.wanted(topic, &none).error_code;
        assert_eq!(
            code(Wanted::Name("a b".into())),
            ErrorCode::InvalidTopicException.code()
        );
        assert_eq!(
            code(Wanted::Name("a".into())),
            ErrorCode::UnknownTopicOrPartition.code()
        );
        assert_eq!(
            code(Wanted::Id(Uuid::from_bytes([1; 16]))),
            ErrorCode::UnknownTopicId.code()
        );
        assert_eq!(
            code(Wanted::Id(Uuid::from_bytes([0; 16]))),
            ErrorCode::UnknownTopicId.code()
        );
        let refused = BTreeMap::from([("a".into(), ErrorCode::PolicyViolation)]);
        assert_eq!(
            view.wanted(Wanted::Name("a".into()), &refused).error_code,
            ErrorCode::PolicyViolation.code()
        );
    }

    #[test]
    fn fenced_brokers_are_left_out_and_their_replicas_offline() {
        let mut image = image_of(2);
        create(
            &mut image,
            "both",
            &[],
            vec![vec![BrokerId(0), BrokerId(1)]],
        );
        create(&mut image, "lost", &[], vec![vec![BrokerId(0)]]);
        let epoch = image.broker(BrokerId(0)).unwrap().epoch;
        apply(
            &mut image,
            Command::FenceBroker {
                broker: BrokerId(0),
                epoch,
            },
        );
        let view = view(image);
        assert_eq!(
            view.brokers(|_| false)
                .iter()
                .map(|broker| broker.node_id)
                .collect::<Vec<_>>(),
            [1]
        );
        let both = view.wanted(Wanted::Name("both".into()), &BTreeMap::new());
        assert_eq!(
            (
                both.partitions[0].leader_id,
                &both.partitions[0].offline_replicas
            ),
            (1, &vec![0])
        );
        assert_eq!(both.partitions[0].error_code, 0);
        let lost = view.wanted(Wanted::Name("lost".into()), &BTreeMap::new());
        assert_eq!(
            (lost.partitions[0].leader_id, lost.partitions[0].error_code),
            (NO_BROKER, 5)
        );
    }

    #[test]
    fn a_listener_without_endpoints_sees_no_brokers() {
        let mut image = image_of(1);
        create(&mut image, "t", &[], vec![vec![BrokerId(0)]]);
        let view = View {
            image: Arc::new(image),
            listener: "OTHER",
            operations: false,
        };
        assert!(view.brokers(|_| true).is_empty());
        assert_eq!(
            view.wanted(Wanted::Name("t".into()), &BTreeMap::new())
                .partitions[0]
                .leader_id,
            NO_BROKER
        );
    }

    #[test]
    fn every_version_can_be_encoded() {
        let mut image = image_of(2);
        create(&mut image, "t", &[], vec![vec![BrokerId(1)]]);
        let view = view(image);
        for version in 0..=13 {
            let mut response = MetadataResponse::default();
            response.brokers = view.brokers(|_| false);
            response.topics = vec![view.wanted(Wanted::Name("t".into()), &BTreeMap::new())];
            assert!(
                response.encoded_len(ApiVersion::new(version)).is_ok(),
                "v{version}"
            );
        }
    }

    /// `AclOperation` and `AclEntry.supportedOperations` of Apache Kafka; 3576 and 8096 are what its tools show.
    #[test]
    fn operations_are_kafkas() {
        assert_eq!((TOPIC_OPERATIONS, CLUSTER_OPERATIONS), (3576, 8096));
    }
}
