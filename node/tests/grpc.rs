//! The gRPC listener: health, reflection, and what an administrator is told.

#![allow(clippy::unwrap_used)] // Clippy sees the helpers of an integration test as ordinary code.

use kittiwake::config;
use kittiwake_proto::kittiwake::admin::v1::admin_client::AdminClient;
use kittiwake_proto::kittiwake::admin::v1::{
    AlterReassignmentsRequest, CreateTopicRequest, DeleteGroupRequest, DescribeGroupRequest,
    DrainNodeRequest, ElectLeadersRequest, EvacuateNodeRequest, GetQuorumRequest, PartitionMove,
    PartitionSelector, RemoveNodeRequest,
};
use kittiwake_proto::kittiwake::cluster::v1::IdentifyRequest;
use kittiwake_proto::kittiwake::cluster::v1::cluster_client::ClusterClient;
use std::path::Path;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const ADMIN: &str = "kittiwake.admin.v1.Admin";

struct Node {
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    address: String,
    channel: Channel,
}

impl Node {
    async fn start(directory: &Path, reflection: bool) -> Self {
        let text = format!(
            "node.id = 0\ncluster.id = \"grpc-test\"\ncluster.voters = \"0@127.0.0.1:1\"\nlog.dirs = \"{}\"\n\
             listeners = \"PLAINTEXT://127.0.0.1:0\"\nreplication.listener = \"127.0.0.1:0\"\ngrpc.listener = \"127.0.0.1:0\"\n\
             http.listener = \"127.0.0.1:0\"\ngrpc.reflection.enable = {reflection}\n",
            directory.display()
        );
        let config = config::load("test", &text, []).unwrap().config;
        let shutdown = CancellationToken::new();
        let (ready, bound) = oneshot::channel();
        let running = tokio::spawn(kittiwake::run(config, shutdown.clone(), move |bound| {
            ready.send(bound.grpc).unwrap();
        }));
        let address = format!("http://{}", bound.await.unwrap());
        let channel = connect(&address).await;
        Self {
            shutdown,
            running,
            address,
            channel,
        }
    }

    async fn services(&self) -> Result<Vec<String>, Status> {
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = client
            .server_reflection_info(tokio_stream::iter([request]))
            .await?;
        let answer = answers.into_inner().message().await?.unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            return Err(Status::internal("another answer"));
        };
        Ok(list.service.into_iter().map(|one| one.name).collect())
    }

    async fn stop(self) {
        drop(self.channel);
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

async fn connect(address: &str) -> Channel {
    let endpoint = Channel::from_shared(address.to_owned()).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_at_their_limit_do_not_keep_nodes_out() {
    const FAR_TOO_MANY: usize = 1_000;
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), false).await;
    let mut operators = Vec::new();
    let refused = loop {
        let mut operator = HealthClient::new(connect(&node.address).await);
        match operator.check(HealthCheckRequest::default()).await {
            Ok(_) => operators.push(operator),
            Err(status) => break status,
        }
        assert!(operators.len() < FAR_TOO_MANY);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let mut other_node = ClusterClient::new(connect(&node.address).await);
    let request = IdentifyRequest {
        cluster_id: "grpc-test".into(),
    };
    let answer = other_node.identify(request).await.unwrap().into_inner();
    assert_eq!(answer.broker_id, 0);
    operators.pop();
    // Its place is free once its end has got there.
    while let Err(status) = {
        let mut operator = HealthClient::new(connect(&node.address).await);
        operator.check(HealthCheckRequest::default()).await
    } {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    }
    drop((operators, other_node));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_know_the_administration() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), true).await;
    let mut health = HealthClient::new(node.channel.clone());
    for service in ["", ADMIN] {
        let service = service.to_owned();
        let request = HealthCheckRequest { service };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let service = "no.such.Service".to_owned();
    let unknown = health.check(HealthCheckRequest { service }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    let services = node.services().await.unwrap();
    assert!(services.iter().any(|name| name == ADMIN), "{services:?}");
    drop(health);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_is_off_unless_enabled() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), false).await;
    let refused = node.services().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_unknown_also_before_the_first_group_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), false).await;
    let mut admin = AdminClient::new(node.channel.clone());
    let group_id = "nobody".to_owned();
    let described = admin
        .describe_group(DescribeGroupRequest {
            group_id: group_id.clone(),
        })
        .await;
    let deleted = admin.delete_group(DeleteGroupRequest { group_id }).await;
    for refused in [described.unwrap_err(), deleted.unwrap_err()] {
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(refused.message(), "group 'nobody' does not exist");
    }
    drop(admin);
    node.stop().await;
}

/// What an operator's commands are refused with, where there is one node and one topic on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_cannot_do_is_refused_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), false).await;
    let mut admin = AdminClient::new(node.channel.clone());
    let created = CreateTopicRequest {
        name: "t".into(),
        ..Default::default()
    };
    admin.create_topic(created).await.unwrap();

    let drained = |node_id| DrainNodeRequest {
        node_id,
        undo: false,
    };
    let unknown = admin.drain_node(drained(7)).await.unwrap_err();
    assert_eq!(unknown.message(), "Node 7 is not registered.");
    let response = admin.drain_node(drained(0)).await.unwrap().into_inner();
    assert_eq!(response.leads, 1, "nobody else can lead");
    let evacuated = admin
        .evacuate_node(EvacuateNodeRequest { node_id: 0 })
        .await;
    assert_eq!(evacuated.unwrap_err().code(), Code::InvalidArgument);
    let removed = admin.remove_node(RemoveNodeRequest { node_id: 0 }).await;
    assert_eq!(removed.unwrap_err().code(), Code::FailedPrecondition);

    let elect = |topic: &str| ElectLeadersRequest {
        partitions: vec![PartitionSelector {
            topic: topic.into(),
            partition: None,
        }],
        unclean: true,
    };
    let unknown = admin.elect_leaders(elect("u")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let elected = admin.elect_leaders(elect("t")).await.unwrap().into_inner();
    assert_eq!(elected.results, [], "it has a leader");

    let moves = [
        ("t", vec![0]),
        ("t", vec![9]),
        ("u", vec![0]),
        ("t", vec![]),
    ];
    let moves = moves.map(|(topic, replicas)| PartitionMove {
        topic: topic.into(),
        partition: 0,
        replicas,
    });
    let request = AlterReassignmentsRequest {
        moves: moves.into(),
    };
    let results = admin.alter_reassignments(request).await.unwrap();
    let errors: Vec<Option<String>> = results
        .into_inner()
        .results
        .into_iter()
        .map(|result| result.error)
        .collect();
    assert_eq!(
        errors.iter().map(Option::as_deref).collect::<Vec<_>>(),
        [
            None,
            Some("Broker 9 is not registered."),
            Some("Topic 'u' does not exist."),
            Some("The partition is not being reassigned."),
        ]
    );
    let quorum = admin.get_quorum(GetQuorumRequest {}).await.unwrap();
    let members = quorum.into_inner().members;
    assert!(members[0].voter && members[0].log_end.is_some());
    drop(admin);
    node.stop().await;
}
