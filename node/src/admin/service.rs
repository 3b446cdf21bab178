//! What `kittiwake.admin.v1` does.

use std::collections::BTreeMap;
use std::sync::Arc;

use kittiwake_proto::kittiwake::admin::v1 as proto;
use kittiwake_proto::kittiwake::admin::v1::admin_server::Admin;
use kittiwake_raft::image::{self, ClusterImage};
use kittiwake_raft::{BrokerId, Topic};
use tonic::{Request, Response, Status};

use super::status::status;
use crate::api::ErrorCode;
use crate::broker::Broker;
use crate::coordinator::OFFSETS_TOPIC;

/// Administration of the cluster by way of this node.
#[derive(Debug)]
pub(super) struct AdminService {
    broker: Arc<Broker>,
}

type Answer<T> = Result<Response<T>, Status>;

impl AdminService {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
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
        _: Request<proto::CreateTopicRequest>,
    ) -> Answer<proto::CreateTopicResponse> {
        Err(not_served())
    }

    async fn alter_topic_config(
        &self,
        _: Request<proto::AlterTopicConfigRequest>,
    ) -> Answer<proto::AlterTopicConfigResponse> {
        Err(not_served())
    }

    async fn add_partitions(
        &self,
        _: Request<proto::AddPartitionsRequest>,
    ) -> Answer<proto::AddPartitionsResponse> {
        Err(not_served())
    }

    async fn delete_topic(
        &self,
        _: Request<proto::DeleteTopicRequest>,
    ) -> Answer<proto::DeleteTopicResponse> {
        Err(not_served())
    }

    async fn list_groups(
        &self,
        _: Request<proto::ListGroupsRequest>,
    ) -> Answer<proto::ListGroupsResponse> {
        Err(not_served())
    }

    async fn describe_group(
        &self,
        _: Request<proto::DescribeGroupRequest>,
    ) -> Answer<proto::DescribeGroupResponse> {
        Err(not_served())
    }

    async fn delete_group(
        &self,
        _: Request<proto::DeleteGroupRequest>,
    ) -> Answer<proto::DeleteGroupResponse> {
        Err(not_served())
    }
}

/// Of a call that is in the contract but not in this version.
fn not_served() -> Status {
    Status::unimplemented("this version does not serve this call")
}

/// Whether the topic belongs to the cluster itself.
fn is_internal(name: &str) -> bool {
    name == OFFSETS_TOPIC
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
