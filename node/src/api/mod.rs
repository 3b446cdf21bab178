//! The Kafka APIs this node serves: one table, one file per API.
//!
//! The table is the only place that says what is advertised. From it come ApiVersions, the decoding of requests, the
//! memory they are admitted with and the encoding of responses. A handler sees a decoded request and returns a response
//! struct; Produce and Fetch, whose records must not be copied, have their own path ([`produce`], [`fetch`]).

pub mod alter_configs;
pub mod alter_partition_reassignments;
mod answered;
pub mod api_versions;
pub mod create_partitions;
pub mod create_topics;
pub mod delete_groups;
pub mod delete_records;
pub mod delete_topics;
pub mod describe_cluster;
pub mod describe_configs;
pub mod describe_groups;
pub mod describe_log_dirs;
pub mod describe_quorum;
pub mod describe_topic_partitions;
pub mod elect_leaders;
pub mod error;
pub mod fetch;
pub mod find_coordinator;
pub mod heartbeat;
pub mod incremental_alter_configs;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_config_resources;
pub mod list_groups;
pub mod list_offsets;
pub mod list_partition_reassignments;
pub mod metadata;
pub mod offset_commit;
pub mod offset_delete;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod produce;
pub mod sync_group;
pub mod unregister_broker;

pub use error::ErrorCode;

use bytes::Bytes;
use kafka_wire::{KafkaMessage, KafkaRequest, RequestResponsePair, response_header_version};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, StrBytes, Uuid};
use kittiwake_raft::TopicId;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tracing::error;

use self::answered::{FirstError, Stopwatch};
use crate::broker::Broker;
use crate::config::address::REPLICATION_LISTENER;
use crate::wire::frame::RequestHeader;
use crate::wire::send_plan::SendPlan;
use crate::wire::{CloseReason, Peer, Reply, Request, Service};

/// What every handler is given beside its request.
#[derive(Clone)]
pub struct RequestContext {
    /// The node.
    pub broker: Arc<Broker>,
    /// Who asks.
    pub peer: Arc<Peer>,
    /// What the client calls itself.
    pub client_id: Option<StrBytes>,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Api {
    /// Kafka's number for it.
    pub key: i16,
    /// Kafka's name for it.
    pub name: &'static str,
    /// The versions we advertise and accept: implemented and tested, never the codec's ceiling.
    pub versions: RangeInclusive<i16>,
    /// First version with tagged fields.
    flexible_from: i16,
    check: fn(i16, Bytes, usize) -> Result<(), CloseReason>,
    begin: fn(RequestContext, Admitted) -> Reply,
    #[cfg(test)]
    codec: tests::Codec,
}

/// A request whose API and version are served.
struct Admitted {
    header: RequestHeader,
    body: Bytes,
    frame_len: usize,
    memory: Option<tokio::sync::OwnedSemaphorePermit>,
    stopwatch: Stopwatch,
}

const fn flexible_from<R: KafkaRequest>() -> i16 {
    match R::FLEXIBLE_VERSIONS {
        Some(range) => range.min().value(),
        None => i16::MAX,
    }
}

macro_rules! apis {
    ($($module:ident: $request:ident, $key:literal, $versions:expr;)+) => {
        &[$(Api {
            key: {
                assert!(<kafka_wire::$request as KafkaRequest>::API_KEY.value() == $key);
                $key
            },
            name: stringify!($module),
            versions: $versions,
            flexible_from: flexible_from::<kafka_wire::$request>(),
            check: |version, body, len| {
                decode_body::<kafka_wire::$request>(version, body, len, STRUCT_EXPANSION_MAX).map(drop)
            },
            begin: |ctx, request| answer(ctx, request, $module::handle),
            #[cfg(test)]
            codec: tests::Codec::of::<kafka_wire::$request>(),
        },)+]
    };
}

/// Every API that is decoded, handled and encoded in the common way.
static APIS: &[Api] = apis! {
    list_offsets: ListOffsetsRequest, 2, 1..=11;
    metadata: MetadataRequest, 3, 0..=13;
    offset_commit: OffsetCommitRequest, 8, 2..=10;
    offset_fetch: OffsetFetchRequest, 9, 1..=10;
    find_coordinator: FindCoordinatorRequest, 10, 0..=6;
    join_group: JoinGroupRequest, 11, 0..=9;
    heartbeat: HeartbeatRequest, 12, 0..=4;
    leave_group: LeaveGroupRequest, 13, 0..=5;
    sync_group: SyncGroupRequest, 14, 0..=5;
    describe_groups: DescribeGroupsRequest, 15, 0..=6;
    list_groups: ListGroupsRequest, 16, 0..=5;
    api_versions: ApiVersionsRequest, 18, 0..=4;
    create_topics: CreateTopicsRequest, 19, 2..=7;
    delete_topics: DeleteTopicsRequest, 20, 1..=6;
    delete_records: DeleteRecordsRequest, 21, 0..=2;
    init_producer_id: InitProducerIdRequest, 22, 0..=5;
    offset_for_leader_epoch: OffsetForLeaderEpochRequest, 23, 2..=4;
    describe_configs: DescribeConfigsRequest, 32, 1..=4;
    alter_configs: AlterConfigsRequest, 33, 0..=2;
    describe_log_dirs: DescribeLogDirsRequest, 35, 1..=5;
    create_partitions: CreatePartitionsRequest, 37, 0..=3;
    delete_groups: DeleteGroupsRequest, 42, 0..=2;
    elect_leaders: ElectLeadersRequest, 43, 0..=2;
    incremental_alter_configs: IncrementalAlterConfigsRequest, 44, 0..=1;
    alter_partition_reassignments: AlterPartitionReassignmentsRequest, 45, 0..=1;
    list_partition_reassignments: ListPartitionReassignmentsRequest, 46, 0..=0;
    offset_delete: OffsetDeleteRequest, 47, 0..=0;
    describe_quorum: DescribeQuorumRequest, 55, 0..=2;
    describe_cluster: DescribeClusterRequest, 60, 0..=2;
    unregister_broker: UnregisterBrokerRequest, 64, 0..=0;
    list_config_resources: ListConfigResourcesRequest, 74, 0..=1;
    describe_topic_partitions: DescribeTopicPartitionsRequest, 75, 0..=0;
};

/// The two whose records are not copied. Produce is advertised from 0, although versions below 3 are refused: librdkafka
/// stops compressing where it sees a higher minimum.
static RECORD_APIS: &[Api] = &[
    Api {
        key: 0,
        name: "produce",
        versions: 0..=13,
        flexible_from: flexible_from::<kafka_wire::ProduceRequest>(),
        check: |version, body, len| {
            decode_body::<kafka_wire::ProduceRequest>(version, body, len, PRODUCE_EXPANSION_MAX)
                .map(drop)
        },
        begin: produce::begin,
        #[cfg(test)]
        codec: tests::Codec::of::<kafka_wire::ProduceRequest>(),
    },
    Api {
        key: 1,
        name: "fetch",
        versions: 4..=18,
        flexible_from: flexible_from::<kafka_wire::FetchRequest>(),
        check: |version, body, len| {
            decode_body::<kafka_wire::FetchRequest>(version, body, len, STRUCT_EXPANSION_MAX)
                .map(drop)
        },
        begin: fetch::begin,
        #[cfg(test)]
        codec: tests::Codec::of::<kafka_wire::FetchRequest>(),
    },
];

const PRODUCE_KEY: i16 = 0;
const FETCH_KEY: i16 = 1;
const API_VERSIONS_KEY: i16 = 18;

/// All rows, by key.
pub fn served() -> impl Iterator<Item = &'static Api> {
    RECORD_APIS.iter().chain(APIS)
}

fn find(key: i16) -> Option<&'static Api> {
    served().find(|api| api.key == key)
}

/// Whether requests of this API and version have tagged fields in their header. Unknown APIs have none.
pub fn is_flexible(api_key: i16, api_version: i16) -> bool {
    find(api_key).is_some_and(|api| api_version >= api.flexible_from)
}

/// Decodes a request's body within the limits it is served with, and no more; `None` when no such version is served.
/// What fuzzing calls.
///
/// # Errors
/// What the connection would be closed with.
pub fn check(
    header: &RequestHeader,
    body: Bytes,
    frame_len: usize,
) -> Option<Result<(), CloseReason>> {
    let api = find(header.api_key).filter(|api| api.versions.contains(&header.api_version))?;
    Some((api.check)(header.api_version, body, frame_len))
}

/// Decoded structs take up to this many times the bytes they came in: a Metadata request of 2 MB retained 75 MB.
const STRUCT_EXPANSION_MAX: usize = 64;

/// A Produce request is nearly all records, which stay in the frame's memory.
const PRODUCE_EXPANSION_MAX: usize = 4;

/// The topic that a request names by id.
///
/// # Errors
/// UNKNOWN_TOPIC_ID for the zero id, which no topic has.
fn topic_id(uuid: Uuid) -> Result<TopicId, ErrorCode> {
    TopicId::from_bytes(uuid.to_bytes()).ok_or(ErrorCode::UnknownTopicId)
}

/// What a request may retain beyond its expansion, so that the smallest requests are not judged by rounding.
const RETAINED_SLACK: usize = 64 * 1024;

/// Kafka strings are at most this long on the wire before KIP-482, and nothing legitimate is longer after it.
const STRING_BYTES_MAX: usize = i16::MAX as usize;

/// Elements of one array; more partitions than a node can hold.
const ARRAY_ELEMENTS_MAX: usize = 200_000;

/// Answers the requests of clients.
pub struct KafkaService {
    broker: Arc<Broker>,
}

impl KafkaService {
    /// A service in front of `broker`.
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }
}

impl Service for KafkaService {
    fn is_flexible(&self, api_key: i16, api_version: i16) -> bool {
        is_flexible(api_key, api_version)
    }

    fn memory_for(&self, api_key: i16, frame_len: usize) -> usize {
        match api_key {
            PRODUCE_KEY => frame_len,
            _ => frame_len.saturating_mul(STRUCT_EXPANSION_MAX),
        }
    }

    fn may_overlap(&self, peer: &Peer, api_key: i16) -> bool {
        api_key == PRODUCE_KEY || (is_replication(peer) && api_key == FETCH_KEY)
    }

    fn call(&self, peer: &Arc<Peer>, request: Request) -> Reply {
        let Request {
            header,
            body,
            frame_len,
            memory,
        } = request;
        let Some(api) = find(header.api_key) else {
            return close(format!("unknown API key {}", header.api_key));
        };
        if is_replication(peer) && ![FETCH_KEY, API_VERSIONS_KEY].contains(&api.key) {
            return close(format!("{} on the replication listener", api.name));
        }
        let stopwatch = Stopwatch::start(&self.broker.metrics, api.key);
        if !api.versions.contains(&header.api_version) {
            return match header.api_key {
                API_VERSIONS_KEY => {
                    let response = api_versions::unsupported();
                    respond(&header, stopwatch, &response, ApiVersion::new(0))
                }
                _ => close(format!(
                    "unsupported version {} of {}",
                    header.api_version, api.name
                )),
            };
        }
        let ctx = RequestContext {
            broker: Arc::clone(&self.broker),
            peer: Arc::clone(peer),
            client_id: header.client_id.clone(),
        };
        (api.begin)(
            ctx,
            Admitted {
                header,
                body,
                frame_len,
                memory,
                stopwatch,
            },
        )
    }
}

/// Whether the peer came in by the listener for followers.
fn is_replication(peer: &Peer) -> bool {
    *peer.listener == *REPLICATION_LISTENER
}

fn close(reason: String) -> Reply {
    Reply::Close(CloseReason(reason))
}

fn decode<R: KafkaRequest>(request: &Admitted, expansion_max: usize) -> Result<R, CloseReason> {
    let version = request.header.api_version;
    decode_body(
        version,
        request.body.clone(),
        request.frame_len,
        expansion_max,
    )
}

/// Decodes a body within limits. What follows the request is ignored, as Apache Kafka does: librdkafka 2.16 leaves three
/// bytes behind a Metadata v13 for all topics.
fn decode_body<R: KafkaRequest>(
    version: i16,
    body: Bytes,
    frame_len: usize,
    expansion_max: usize,
) -> Result<R, CloseReason> {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = frame_len;
    limits.max_bytes_bytes = frame_len;
    limits.max_string_bytes = STRING_BYTES_MAX;
    limits.max_array_elements = ARRAY_ELEMENTS_MAX;
    let decoded = Decoder::new(body, limits)
        .and_then(|mut decoder| R::decode(&mut decoder, ApiVersion::new(version)))
        .map_err(|error| CloseReason(format!("{} v{version}: {error}", R::NAME)))?;
    let retained = decoded.retained_size().heap_bytes();
    if retained > frame_len.saturating_mul(expansion_max) + RETAINED_SLACK {
        return Err(CloseReason(format!(
            "{} of {frame_len} bytes decodes to {retained}",
            R::NAME
        )));
    }
    Ok(decoded)
}

/// Decodes, hands to `handler`, encodes: the way of every API but Produce and Fetch.
fn answer<R, F>(
    ctx: RequestContext,
    request: Admitted,
    handler: fn(RequestContext, R, i16) -> F,
) -> Reply
where
    R: RequestResponsePair + Send + 'static,
    R::Response: FirstError,
    F: Future<Output = R::Response> + Send + 'static,
{
    let decoded = match decode::<R>(&request, STRUCT_EXPANSION_MAX) {
        Ok(decoded) => decoded,
        Err(reason) => return Reply::Close(reason),
    };
    let Admitted {
        header,
        memory,
        stopwatch,
        ..
    } = request;
    let handling = handler(ctx, decoded, header.api_version);
    Reply::Later(Box::pin(async move {
        let response = handling.await;
        drop(memory);
        let version = ApiVersion::new(header.api_version);
        match respond(&header, stopwatch, &response, version) {
            Reply::Ready(plan) => Ok(plan),
            Reply::Close(reason) => Err(reason),
            Reply::None | Reply::Later(_) => Ok(SendPlan::default()),
        }
    }))
}

/// Encodes a response to the request with `header`, and counts it.
fn respond<M: KafkaMessage + FirstError>(
    header: &RequestHeader,
    stopwatch: Stopwatch,
    response: &M,
    version: ApiVersion,
) -> Reply {
    let key = kafka_wire_core::ApiKey::new(header.api_key);
    let header_version = response_header_version(key, version, M::is_flexible(version));
    match SendPlan::response(header.correlation_id, header_version, response, version) {
        Ok(plan) => {
            stopwatch.answered(response.first_error());
            Reply::Ready(plan)
        }
        Err(fault) => {
            error!(response = M::NAME, version = version.value(), %fault, "a response cannot be encoded");
            close(format!("{} v{version}: {fault}", M::NAME))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Node;
    use crate::wire::send_plan::flatten;
    use kafka_wire_core::{DecodeError, EncodeError, KafkaDecode};

    /// Encodes an API's default request and decodes its response, for any version.
    #[derive(Clone, Debug)]
    pub(super) struct Codec {
        request: fn(ApiVersion) -> Result<Bytes, EncodeError>,
        response: fn(Bytes, ApiVersion) -> Result<(), DecodeError>,
        response_header_version: fn(ApiVersion) -> i16,
    }

    impl Codec {
        pub(super) const fn of<R: RequestResponsePair + Default>() -> Self {
            Self {
                request: |version| R::default().encode_to_bytes(version),
                response: |body, version| {
                    R::Response::decode_from_bytes(body, version, DecodeLimits::default()).map(drop)
                },
                response_header_version: |version| {
                    response_header_version(R::API_KEY, version, R::Response::is_flexible(version))
                },
            }
        }
    }

    fn peer() -> Arc<Peer> {
        Arc::new(Peer {
            address: ([127, 0, 0, 1], 1).into(),
            listener: "PLAINTEXT".into(),
        })
    }

    fn request(api_key: i16, api_version: i16, body: Bytes) -> Request {
        let header = RequestHeader {
            api_key,
            api_version,
            correlation_id: 99,
            client_id: None,
        };
        Request {
            header,
            frame_len: body.len() + 10,
            body,
            memory: None,
        }
    }

    async fn settle(reply: Reply) -> Result<Option<Vec<u8>>, CloseReason> {
        match reply {
            Reply::None => Ok(None),
            Reply::Ready(plan) => Ok(Some(flatten(plan))),
            Reply::Later(later) => later.await.map(|plan| Some(flatten(plan))),
            Reply::Close(reason) => Err(reason),
        }
    }

    /// What we advertise we answer: every version of every API, in an encoding Kafka's schema reads.
    #[tokio::test(flavor = "multi_thread")]
    async fn every_advertised_version_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::for_tests(directory.path()).await;
        let service = KafkaService::new(Arc::clone(node.broker()));
        for api in served() {
            let mut answered = 0;
            for version in api.versions.clone() {
                let what = format!("{} v{version}", api.name);
                let version = ApiVersion::new(version);
                let Ok(body) = (api.codec.request)(version) else {
                    assert!(api.key == PRODUCE_KEY && version.value() < 3, "{what}");
                    continue;
                };
                let reply = service.call(&peer(), request(api.key, version.value(), body));
                answered += 1;
                let answer = settle(reply)
                    .await
                    .unwrap_or_else(|reason| panic!("{what}: {reason}"));
                let Some(answer) = answer else {
                    assert_eq!(api.key, PRODUCE_KEY, "{what}: only acks=0 is not answered");
                    continue;
                };
                assert_eq!(answer[4..8], 99i32.to_be_bytes(), "{what}");
                let header_len = match (api.codec.response_header_version)(version) {
                    0 => 8,
                    _ => 9,
                };
                let body = Bytes::copy_from_slice(&answer[header_len..]);
                (api.codec.response)(body, version)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            let counted = format!(
                "kittiwake_request_seconds_count{{api=\"{}\"}} {answered}\n",
                api.name
            );
            let metrics = node.broker().metrics.scrape().unwrap();
            assert!(metrics.contains(&counted), "{counted} is not in\n{metrics}");
        }
        node.stop_for_tests().await;
    }

    /// Nothing a stranger sends makes a handler panic: every request cut at every byte, and versions we do not know.
    #[tokio::test(flavor = "multi_thread")]
    async fn bodies_cut_short_and_unknown_versions_close_the_connection() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::for_tests(directory.path()).await;
        let service = KafkaService::new(Arc::clone(node.broker()));
        for api in served() {
            let version = *api.versions.end();
            let body = (api.codec.request)(ApiVersion::new(version)).unwrap();
            for cut in 0..body.len() {
                let reply = service.call(&peer(), request(api.key, version, body.slice(..cut)));
                assert!(
                    matches!(reply, Reply::Close(_)),
                    "{} cut at {cut}",
                    api.name
                );
            }
            for unknown in [version + 1, i16::MAX, -1] {
                let reply = service.call(&peer(), request(api.key, unknown, body.clone()));
                match api.key {
                    API_VERSIONS_KEY => assert!(matches!(reply, Reply::Ready(_))),
                    _ => assert!(matches!(reply, Reply::Close(_)), "{} v{unknown}", api.name),
                }
            }
        }
        let unknown = service.call(&peer(), request(9999, 0, Bytes::new()));
        assert!(matches!(unknown, Reply::Close(_)));
        node.stop_for_tests().await;
    }

    /// librdkafka 2.16 writes a null array of topics in one byte of the four it reserved, and sends the other three last.
    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_after_a_request_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::for_tests(directory.path()).await;
        let service = KafkaService::new(Arc::clone(node.broker()));
        // All topics, no auto-creation, no authorized operations, no tagged fields; then the same three again.
        let body = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0]);
        let answer = settle(service.call(&peer(), request(3, 13, body))).await;
        assert!(matches!(answer, Ok(Some(_))), "{answer:?}");
        node.stop_for_tests().await;
    }

    #[test]
    fn produce_is_advertised_from_zero_and_keys_are_unique() {
        assert_eq!(find(PRODUCE_KEY).map(|api| *api.versions.start()), Some(0));
        let mut keys: Vec<_> = served().map(|api| api.key).collect();
        keys.sort_unstable();
        let count = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }
}
