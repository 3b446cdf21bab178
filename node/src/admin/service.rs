//! What `kittiwake.admin.v1` does.

use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;

use kittiwake_proto::kittiwake::admin::v1 as proto;
use kittiwake_proto::kittiwake::admin::v1::admin_server::Admin;
use kittiwake_raft::image::{self, ClusterImage};
use kittiwake_raft::{BrokerId, ConfigResource, Topic};
use tonic::{Request, Response, Status};

use super::status::status;
use crate::api::ErrorCode;
use crate::broker::Broker;
use crate::controller::Refusal;
use crate::controller::configs::{self, Alteration, KeyChange, Operation};
use crate::controller::topics::{self, GrowthSpec, TopicRef, TopicSpec, is_internal};
use crate::coordinator::{
    GroupError, GroupListing, MemberDescription, OFFSETS_TOPIC, OffsetDescription,
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

    fn partition(
        &self,
        topic: &Topic,
        index: i32,
        partition: &image::Partition,
    ) -> proto::Partition {
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
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_cluster_status(
        &self,
        _: Request<proto::GetClusterStatusRequest>,
    ) -> Answer<proto::GetClusterStatusResponse> {
        let image = self.broker.image();
        let controller = self.broker.quorum.controller().map(|id| id.0);
        Ok(Response::new(cluster_status(
            &image,
            self.broker.node_id.0,
            controller,
        )))
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
    result.map_err(|refusal| status(refusal.code, refusal.message))
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

fn ids(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|id| id.0).collect()
}

/// Counts fit: a cluster has far fewer of anything.
fn count(number: usize) -> u32 {
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

fn cluster_status(
    image: &ClusterImage,
    node_id: i32,
    controller: Option<i32>,
) -> proto::GetClusterStatusResponse {
    let (mut leads, mut replicas) = (
        BTreeMap::<BrokerId, u32>::new(),
        BTreeMap::<BrokerId, u32>::new(),
    );
    let (mut partitions, mut under_replicated, mut offline) = (0, 0, 0);
    for partition in image.topics().flat_map(|topic| &topic.partitions) {
        partitions += 1;
        under_replicated += u32::from(partition.isr.len() < partition.replicas.len());
        match partition.leader {
            Some(leader) => *leads.entry(leader).or_default() += 1,
            None => offline += 1,
        }
        for replica in &partition.replicas {
            *replicas.entry(*replica).or_default() += 1;
        }
    }
    let of = |counts: &BTreeMap<BrokerId, u32>, id| counts.get(&id).copied().unwrap_or_default();
    let node = |broker: &image::Broker| proto::Node {
        id: broker.id.0,
        epoch: broker.epoch.0,
        endpoints: broker.endpoints.iter().map(endpoint).collect(),
        rack: broker.rack.clone(),
        fenced: broker.fenced,
        draining: broker.draining,
        leads: of(&leads, broker.id),
        replicas: of(&replicas, broker.id),
    };
    proto::GetClusterStatusResponse {
        cluster_id: image.cluster_id.to_string(),
        node_id,
        controller,
        metadata_offset: image.offset,
        nodes: image.brokers.values().map(|broker| node(broker)).collect(),
        topics: count(image.topic_count()),
        partitions,
        under_replicated_partitions: under_replicated,
        offline_partitions: offline,
    }
}

fn endpoint(endpoint: &image::Endpoint) -> proto::Endpoint {
    proto::Endpoint {
        listener: endpoint.listener.clone(),
        host: endpoint.host.clone(),
        port: endpoint.port.into(),
    }
}
