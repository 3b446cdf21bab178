//! What `kittiwake.admin.v1` does.

use std::slice;
use std::sync::Arc;

use kittiwake_proto::kittiwake::admin::v1 as proto;
use kittiwake_proto::kittiwake::admin::v1::admin_server::Admin;
use kittiwake_raft::{BrokerId, ConfigResource, Partition, Topic};
use tonic::{Request, Response, Status};

use super::status::status;
use super::{cluster, partitions, quorum};
use crate::api::ErrorCode;
use crate::broker::Broker;
use crate::config::address::{GRPC_LISTENER, HostPort};
use crate::controller::Refusal;
use crate::controller::configs::{self, Alteration, KeyChange, Operation};
use crate::controller::nodes;
use crate::controller::partitions::evacuate_node;
use crate::controller::topics::{self, GrowthSpec, TopicRef, TopicSpec, is_internal};
use crate::coordinator::{
    GroupError, GroupListing, MemberDescription, OFFSETS_TOPIC, OffsetDescription, partition_for,
};

/// Administration of the cluster by way of this node.
#[derive(Debug)]
pub(crate) struct AdminService {
    broker: Arc<Broker>,
}

type Answer<T> = Result<Response<T>, Status>;

impl AdminService {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }

    /// The first group brings the offsets topic with it: before that there is no coordinator, and no group.
    fn group_refused(&self, id: &str, error: GroupError) -> Status {
        match error {
            GroupError::GroupIdNotFound => unknown_group(id),
            _ if self.broker.image().topic_by_name(OFFSETS_TOPIC).is_none() => unknown_group(id),
            error => refused(error),
        }
    }

    fn partition(&self, topic: &Topic, index: i32, partition: &Partition) -> proto::Partition {
        let local = self.broker.partitions.get(&topic.name, index).ok();
        proto::Partition {
            index,
            leader: partition.leader.map(|id| id.0),
            leader_epoch: partition.leader_epoch,
            replicas: ids(&partition.replicas),
            isr: ids(&partition.isr),
            log_start_offset: local.as_ref().map(|local| local.log_start_offset().0),
            high_watermark: local.as_ref().map(|local| local.high_watermark().0),
            size_bytes: local.as_ref().map(|local| local.log().size_bytes()),
            elr: ids(&partition.elr),
            damaged: ids(&partition.damaged),
            partition_epoch: partition.partition_epoch.0,
            last_known_leader: partition.last_known_leader.map(|id| id.0),
            adding: ids(&partition.adding),
            removing: ids(&partition.removing),
            followers: local.map(|local| followers(&local)).unwrap_or_default(),
        }
    }
}

/// How far the followers of a partition led here have come.
fn followers(led: &crate::partition::Partition) -> Vec<proto::partition::Follower> {
    let ends = led.follower_ends();
    let log_end = led.log_end_offset();
    ends.into_iter()
        .map(|(replica, end)| proto::partition::Follower {
            replica: replica.0,
            lag: end.map(|end| (log_end - end).max(0)),
        })
        .collect()
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_cluster_status(
        &self,
        _: Request<proto::GetClusterStatusRequest>,
    ) -> Answer<proto::GetClusterStatusResponse> {
        let mut status = cluster::status(&self.broker.image(), self.broker.node_id.0);
        status.controller = self.broker.quorum.controller().map(|id| id.0);
        status.quorum = Some(quorum::ask_controller(&self.broker).await);
        Ok(Response::new(status))
    }

    async fn get_quorum(
        &self,
        _: Request<proto::GetQuorumRequest>,
    ) -> Answer<proto::GetQuorumResponse> {
        Ok(Response::new(quorum::as_seen(&self.broker)))
    }

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Answer<proto::DrainNodeResponse> {
        let proto::DrainNodeRequest { node_id, undo } = request.into_inner();
        let leads = nodes::drain(&self.broker, BrokerId(node_id), !undo).await;
        let leads = count(leads.map_err(not_done)?);
        Ok(Response::new(proto::DrainNodeResponse { leads }))
    }

    async fn evacuate_node(
        &self,
        request: Request<proto::EvacuateNodeRequest>,
    ) -> Answer<proto::EvacuateNodeResponse> {
        let node = BrokerId(request.into_inner().node_id);
        let moving = evacuate_node(&self.broker, node).await;
        let moving = count(moving.map_err(not_done)?);
        Ok(Response::new(proto::EvacuateNodeResponse { moving }))
    }

    async fn add_voter(
        &self,
        request: Request<proto::AddVoterRequest>,
    ) -> Answer<proto::AddVoterResponse> {
        let node = BrokerId(request.into_inner().node_id);
        let added = nodes::add_voter(&self.broker, node).await;
        added.map_err(not_done)?;
        Ok(Response::new(proto::AddVoterResponse {}))
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Answer<proto::RemoveNodeResponse> {
        let node = BrokerId(request.into_inner().node_id);
        let removed = nodes::remove(&self.broker, node).await;
        removed.map_err(not_done)?;
        Ok(Response::new(proto::RemoveNodeResponse {}))
    }

    async fn elect_leaders(
        &self,
        request: Request<proto::ElectLeadersRequest>,
    ) -> Answer<proto::ElectLeadersResponse> {
        let elected = partitions::elect_leaders(&self.broker, request.into_inner()).await?;
        Ok(Response::new(elected))
    }

    async fn alter_reassignments(
        &self,
        request: Request<proto::AlterReassignmentsRequest>,
    ) -> Answer<proto::AlterReassignmentsResponse> {
        let altered = partitions::alter_reassignments(&self.broker, request.into_inner()).await;
        Ok(Response::new(altered))
    }

    async fn list_reassignments(
        &self,
        _: Request<proto::ListReassignmentsRequest>,
    ) -> Answer<proto::ListReassignmentsResponse> {
        let listed = partitions::list_reassignments(&self.broker.image());
        Ok(Response::new(listed))
    }

    async fn list_topics(
        &self,
        request: Request<proto::ListTopicsRequest>,
    ) -> Answer<proto::ListTopicsResponse> {
        let internal = request.into_inner().include_internal;
        let image = self.broker.image();
        let shown = image
            .topics()
            .filter(|topic| internal || !is_internal(&topic.name));
        let mut topics: Vec<proto::TopicSummary> = shown.map(|topic| summary(topic)).collect();
        topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(proto::ListTopicsResponse { topics }))
    }

    async fn describe_topic(
        &self,
        request: Request<proto::DescribeTopicRequest>,
    ) -> Answer<proto::DescribeTopicResponse> {
        let name = request.into_inner().name;
        let image = self.broker.image();
        let topic = image
            .topic_by_name(&name)
            .ok_or_else(|| unknown_topic(&name))?;
        let partitions = (0..).zip(&topic.partitions);
        Ok(Response::new(proto::DescribeTopicResponse {
            topic: Some(summary(topic)),
            partitions: partitions
                .map(|(index, partition)| self.partition(topic, index, partition))
                .collect(),
            configs: topic.configs.clone(),
        }))
    }

    async fn create_topic(
        &self,
        request: Request<proto::CreateTopicRequest>,
    ) -> Answer<proto::CreateTopicResponse> {
        let proto::CreateTopicRequest {
            name,
            partitions,
            replication_factor,
            configs,
        } = request.into_inner();
        let replication_factor = replication_factor.map(narrow).transpose()?;
        let spec = TopicSpec {
            name,
            partitions,
            replication_factor,
            configs,
            ..TopicSpec::default()
        };
        let created =
            only(topics::create_topics(&self.broker, slice::from_ref(&spec), false).await)?;
        Ok(Response::new(proto::CreateTopicResponse {
            topic: Some(proto::TopicSummary {
                internal: is_internal(&spec.name),
                name: spec.name,
                id: created.id.map(|id| id.to_string()).unwrap_or_default(),
                partitions: count(usize::try_from(created.partitions).unwrap_or_default()),
                replication_factor: count(
                    usize::try_from(created.replication_factor).unwrap_or_default(),
                ),
            }),
        }))
    }

    async fn alter_topic_config(
        &self,
        request: Request<proto::AlterTopicConfigRequest>,
    ) -> Answer<proto::AlterTopicConfigResponse> {
        let proto::AlterTopicConfigRequest { name, set, remove } = request.into_inner();
        let set = set.into_iter().map(|(name, value)| KeyChange {
            name,
            operation: Operation::Set,
            value: Some(value),
        });
        let remove = remove.into_iter().map(|name| KeyChange {
            name,
            operation: Operation::Delete,
            value: None,
        });
        let change = (
            ConfigResource::Topic(name),
            Alteration::Incremental(set.chain(remove).collect()),
        );
        only(configs::alter_configs(&self.broker, &[change], false).await)?;
        Ok(Response::new(proto::AlterTopicConfigResponse {}))
    }

    async fn add_partitions(
        &self,
        request: Request<proto::AddPartitionsRequest>,
    ) -> Answer<proto::AddPartitionsResponse> {
        let proto::AddPartitionsRequest { name, total } = request.into_inner();
        let spec = GrowthSpec {
            topic: name,
            count: total,
            assignment: None,
        };
        only(topics::create_partitions(&self.broker, &[spec], false).await)?;
        Ok(Response::new(proto::AddPartitionsResponse {}))
    }

    async fn delete_topic(
        &self,
        request: Request<proto::DeleteTopicRequest>,
    ) -> Answer<proto::DeleteTopicResponse> {
        let topic = TopicRef::Name(request.into_inner().name);
        only(topics::delete_topics(&self.broker, &[topic]).await)?;
        Ok(Response::new(proto::DeleteTopicResponse {}))
    }

    async fn list_groups(
        &self,
        _: Request<proto::ListGroupsRequest>,
    ) -> Answer<proto::ListGroupsResponse> {
        let groups = self.broker.groups.list().map_err(refused)?;
        let groups = groups.iter().map(group_summary).collect();
        Ok(Response::new(proto::ListGroupsResponse { groups }))
    }

    async fn find_group_coordinator(
        &self,
        request: Request<proto::FindGroupCoordinatorRequest>,
    ) -> Answer<proto::FindGroupCoordinatorResponse> {
        let id = request.into_inner().group_id;
        let image = self.broker.image();
        let partitions = image
            .topic_by_name(OFFSETS_TOPIC)
            .ok_or_else(|| unknown_group(&id))?
            .partitions
            .len();
        let coordinator = partition_for(&id, partitions)
            .and_then(|partition| self.broker.leader(OFFSETS_TOPIC, partition, GRPC_LISTENER))
            .ok_or_else(|| refused(GroupError::CoordinatorNotAvailable))?;
        Ok(Response::new(proto::FindGroupCoordinatorResponse {
            node_id: coordinator.id.0,
            address: HostPort {
                host: coordinator.host,
                port: coordinator.port,
            }
            .to_string(),
        }))
    }

    async fn describe_group(
        &self,
        request: Request<proto::DescribeGroupRequest>,
    ) -> Answer<proto::DescribeGroupResponse> {
        let id = request.into_inner().group_id;
        let described = self
            .broker
            .groups
            .describe(&id)
            .await
            .map_err(|error| self.group_refused(&id, error))?;
        let group = described.ok_or_else(|| unknown_group(&id))?;
        let member = |member: &MemberDescription| proto::GroupMember {
            member_id: member.member_id.to_string(),
            instance_id: member.instance_id.as_deref().map(str::to_owned),
            client_id: member.client_id.to_string(),
            client_host: member.client_host.to_string(),
        };
        let offset = |offset: &OffsetDescription| {
            let local = self
                .broker
                .partitions
                .get(&offset.topic, offset.partition)
                .ok();
            proto::GroupOffset {
                topic: offset.topic.to_string(),
                partition: offset.partition,
                committed_offset: offset.offset,
                high_watermark: local.map(|local| local.high_watermark().0),
            }
        };
        Ok(Response::new(proto::DescribeGroupResponse {
            group: Some(group_summary(&group.listing)),
            protocol: group.protocol.as_deref().unwrap_or_default().to_owned(),
            members: group.members.iter().map(member).collect(),
            offsets: group.offsets.iter().map(offset).collect(),
        }))
    }

    async fn delete_group(
        &self,
        request: Request<proto::DeleteGroupRequest>,
    ) -> Answer<proto::DeleteGroupResponse> {
        let id = request.into_inner().group_id;
        self.broker
            .groups
            .delete(&id)
            .await
            .map_err(|error| self.group_refused(&id, error))?;
        Ok(Response::new(proto::DeleteGroupResponse {}))
    }
}

/// The result of a command of one item.
fn only<T>(results: Vec<Result<T, Refusal>>) -> Result<T, Status> {
    let result = results.into_iter().next();
    let result =
        result.ok_or_else(|| status(ErrorCode::UnknownServerError, "the command had no result"))?;
    result.map_err(not_done)
}

fn not_done(refusal: Refusal) -> Status {
    status(refusal.code, refusal.message)
}

/// Kafka's replication factors are 16-bit numbers.
fn narrow(replication_factor: i32) -> Result<i16, Status> {
    i16::try_from(replication_factor).map_err(|_| {
        let message = format!("replication factor {replication_factor} is too large");
        status(ErrorCode::InvalidReplicationFactor, message)
    })
}

fn refused(error: GroupError) -> Status {
    status(error.code(), error.to_string())
}

fn unknown_group(id: &str) -> Status {
    let message = format!("group '{id}' does not exist");
    status(ErrorCode::GroupIdNotFound, message)
}

fn group_summary(group: &GroupListing) -> proto::GroupSummary {
    proto::GroupSummary {
        group_id: group.group_id.to_string(),
        state: group.state.name().to_owned(),
        protocol_type: group.protocol_type.to_string(),
    }
}

fn unknown_topic(name: &str) -> Status {
    status(
        ErrorCode::UnknownTopicOrPartition,
        format!("topic '{name}' does not exist"),
    )
}

pub(super) fn ids(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|id| id.0).collect()
}

/// Counts fit: a cluster has far fewer of anything.
pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn summary(topic: &Topic) -> proto::TopicSummary {
    proto::TopicSummary {
        name: topic.name.clone(),
        id: topic.id.to_string(),
        partitions: count(topic.partitions.len()),
        replication_factor: count(
            topic
                .partitions
                .first()
                .map_or(0, |first| first.replicas.len()),
        ),
        internal: is_internal(&topic.name),
    }
}
