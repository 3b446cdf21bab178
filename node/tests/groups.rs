//! Groups outlive the node: what was answered before a stop is there after the next start.

#![allow(clippy::unwrap_used)] // Clippy sees the helpers of an integration test as ordinary code.

use bytes::{Bytes, BytesMut};
use kafka_wire::join_group_request::JoinGroupRequestProtocol;
use kafka_wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_wire::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::sync_group_request::SyncGroupRequestAssignment;
use kafka_wire::{
    DescribeGroupsRequest, FindCoordinatorRequest, HeartbeatRequest, JoinGroupRequest,
    KafkaRequest, OffsetCommitRequest, OffsetFetchRequest, OutboundFrameLimits, ProduceRequest,
    RequestResponsePair, SyncGroupRequest, encode_request, response_header_version_for,
};
use kafka_wire_core::{ApiVersion, DecodeLimits, KafkaDecode, KafkaEncode};
use kittiwake::config;
use kittiwake_storage::{Compression, RecordsBuilder};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
const NOT_COORDINATOR: i16 = 16;
const INVALID_TOPIC_EXCEPTION: i16 = 17;
const MEMBER_ID_REQUIRED: i16 = 79;
const TOPIC: &str = "__consumer_offsets";

struct Node {
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    connection: TcpStream,
}

impl Node {
    async fn start(directory: &Path) -> Self {
        let text = format!(
            "\"node.id\" = 0\n\"cluster.id\" = \"groups-test\"\n\"cluster.voters\" = \"0@127.0.0.1:1\"\n\
             \"log.dirs\" = \"{}\"\n\"listeners\" = \"PLAINTEXT://127.0.0.1:0\"\n\
             \"replication.listener\" = \"127.0.0.1:0\"\n\"grpc.listener\" = \"127.0.0.1:0\"\n\
             \"http.listener\" = \"127.0.0.1:0\"\n\
             \"offsets.topic.num.partitions\" = 3\n\"group.initial.rebalance.delay.ms\" = 0\n",
            directory.display()
        );
        let config = config::load("test", &text, []).unwrap().config;
        let shutdown = CancellationToken::new();
        let (ready, bound) = oneshot::channel();
        let running = tokio::spawn(kittiwake::run(config, shutdown.clone(), move |bound| {
            ready.send(bound.kafka[0].1).unwrap();
        }));
        let connection = TcpStream::connect(bound.await.unwrap()).await.unwrap();
        Self {
            shutdown,
            running,
            connection,
        }
    }

    async fn stop(self) {
        drop(self.connection);
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }

    async fn call<R>(&mut self, version: i16, request: &R) -> R::Response
    where
        R: RequestResponsePair + KafkaRequest + KafkaEncode,
        R::Response: KafkaDecode,
    {
        let version = ApiVersion::new(version);
        let mut frame = BytesMut::new();
        let limits = OutboundFrameLimits::new(1 << 20);
        encode_request(&mut frame, 1, Some("test".into()), request, version, limits).unwrap();
        self.connection.write_all(&frame).await.unwrap();
        let length = self.connection.read_i32().await.unwrap();
        let mut answer = vec![0; usize::try_from(length).unwrap()];
        self.connection.read_exact(&mut answer).await.unwrap();
        let header_len = match response_header_version_for::<R>(version).unwrap() {
            0 => 4,
            _ => 5,
        };
        let body = Bytes::from(answer).slice(header_len..);
        R::Response::decode_from_bytes(body, version, DecodeLimits::default()).unwrap()
    }

    async fn commit(&mut self, member: &str, generation: i32, offset: i64) -> i16 {
        let mut partition = OffsetCommitRequestPartition::default();
        partition.committed_offset = offset;
        partition.committed_metadata = Some("kept".into());
        let mut topic = OffsetCommitRequestTopic::default();
        topic.name = TOPIC.into();
        topic.partitions = vec![partition];
        let mut request = OffsetCommitRequest::default();
        request.group_id = "g".into();
        request.member_id = member.into();
        request.generation_id_or_member_epoch = generation;
        request.topics = vec![topic];
        self.call(9, &request).await.topics[0].partitions[0].error_code
    }

    /// Offset and metadata of partition 0; asks again while the coordinator is not ready.
    async fn committed(&mut self) -> (i64, String) {
        let mut group = OffsetFetchRequestGroup::default();
        group.group_id = "g".into();
        group.topics = None;
        let mut request = OffsetFetchRequest::default();
        request.groups = vec![group];
        loop {
            let answer = self.call(9, &request).await.groups.remove(0);
            match answer.error_code {
                0 => {
                    let offset = &answer.topics[0].partitions[0];
                    return (
                        offset.committed_offset,
                        offset.metadata.as_deref().unwrap().to_owned(),
                    );
                }
                COORDINATOR_LOAD_IN_PROGRESS | NOT_COORDINATOR => tokio::task::yield_now().await,
                other => panic!("error {other}"),
            }
        }
    }

    async fn heartbeat(&mut self, member: &str, generation: i32) -> i16 {
        let mut request = HeartbeatRequest::default();
        request.group_id = "g".into();
        request.member_id = member.into();
        request.generation_id = generation;
        self.call(4, &request).await.error_code
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_and_members_are_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::start(directory.path()).await;

    let mut find = FindCoordinatorRequest::default();
    find.coordinator_keys = vec!["g".into()];
    let found = node.call(4, &find).await.coordinators.remove(0);
    assert_eq!((found.error_code, found.node_id), (0, 0));

    let mut join = JoinGroupRequest::default();
    join.group_id = "g".into();
    join.session_timeout_ms = 600_000;
    join.rebalance_timeout_ms = 600_000;
    join.protocol_type = "consumer".into();
    let mut protocol = JoinGroupRequestProtocol::default();
    protocol.name = "range".into();
    protocol.metadata = Bytes::from_static(b"\0\0\0\0\0\0");
    join.protocols = vec![protocol];
    let asked = node.call(9, &join).await;
    assert_eq!(asked.error_code, MEMBER_ID_REQUIRED);
    join.member_id = asked.member_id;
    let joined = node.call(9, &join).await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    assert_eq!(
        (&joined.leader, joined.members.len()),
        (&joined.member_id, 1)
    );

    let member = joined.member_id.to_string();
    let mut assigned = SyncGroupRequestAssignment::default();
    assigned.member_id = joined.member_id.clone();
    assigned.assignment = Bytes::from_static(b"all of it");
    let mut sync = SyncGroupRequest::default();
    sync.group_id = "g".into();
    sync.member_id = joined.member_id;
    sync.generation_id = 1;
    sync.protocol_type = joined.protocol_type;
    sync.protocol_name = joined.protocol_name;
    sync.assignments = vec![assigned];
    let synced = node.call(5, &sync).await;
    assert_eq!(
        (synced.error_code, &*synced.assignment),
        (0, &b"all of it"[..])
    );

    assert_eq!(node.commit(&member, 1, 41).await, 0);
    assert_eq!(node.commit(&member, 1, 42).await, 0);
    assert_eq!(node.committed().await, (42, "kept".to_owned()));
    node.stop().await;

    let mut node = Node::start(directory.path()).await;
    assert_eq!(node.committed().await, (42, "kept".to_owned()));
    assert_eq!(node.heartbeat(&member, 1).await, 0);
    assert_eq!(node.commit(&member, 1, 43).await, 0);
    let mut describe = DescribeGroupsRequest::default();
    describe.groups = vec!["g".into()];
    let described = node.call(5, &describe).await.groups.remove(0);
    assert_eq!(&*described.group_state, "Stable");
    assert_eq!(&*described.members[0].member_assignment, b"all of it");
    node.stop().await;
}

/// One record that the coordinator cannot read would keep it from loading, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_cannot_write_where_groups_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::start(directory.path()).await;
    let mut find = FindCoordinatorRequest::default();
    find.coordinator_keys = vec!["g".into()];
    node.call(4, &find).await;

    let mut records = RecordsBuilder::new(Compression::None);
    records.push(0, Some(b"no key of a group"), None, &[]);
    let records = records.build().unwrap();
    let mut produce = ProduceRequest::default();
    produce.acks = 1;
    let mut topic = TopicProduceData::default();
    topic.name = TOPIC.into();
    topic.partition_data = (0..3)
        .map(|index| {
            let mut partition = PartitionProduceData::default();
            partition.index = index;
            partition.records = Some(records.clone().into());
            partition
        })
        .collect();
    produce.topic_data = vec![topic];
    let answered = node.call(9, &produce).await.responses.remove(0);
    for partition in answered.partition_responses {
        assert_eq!(partition.error_code, INVALID_TOPIC_EXCEPTION);
    }
    node.stop().await;
}
