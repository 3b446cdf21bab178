//! A cluster of one broker and one topic, `t` with one partition, that answers Produce as a test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kafka_wire::api_versions_response::ApiVersion as ApiRange;
use kafka_wire::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_wire::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_wire::{ApiVersionsResponse, MetadataResponse, ProduceResponse};
use kafka_wire_core::{ApiVersion, KafkaEncode as _, StrBytes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of one Produce request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// This error code; 0 is success.
    Code(i16),
    /// The connection closes.
    HangUp,
    /// Nothing is said: acks=0.
    Silence,
}

/// Starts the broker. Its n-th Produce gets the n-th answer, later ones the last.
pub(super) async fn start(answers: &'static [Answer]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, address.port(), answers, Arc::clone(&asked)));
        }
    });
    address.to_string()
}

async fn serve(mut stream: TcpStream, port: u16, answers: &[Answer], asked: Arc<AtomicUsize>) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).await.is_ok() {
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut request).await.unwrap();
        let version = ApiVersion::new(i16::from_be_bytes([request[2], request[3]]));
        // Non-flexible versions only, so that no response header has tagged fields.
        let body = match i16::from_be_bytes([request[0], request[1]]) {
            18 => versions().encode_to_bytes(version),
            3 => metadata(port).encode_to_bytes(version),
            0 => match answers[asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)] {
                Answer::Code(code) => produced(code).encode_to_bytes(version),
                Answer::HangUp => return,
                Answer::Silence => continue,
            },
            other => panic!("API {other} was not expected"),
        }
        .unwrap();
        let mut frame = ((body.len() + 4) as u32).to_be_bytes().to_vec();
        frame.extend(&request[4..8]);
        frame.extend(body);
        stream.write_all(&frame).await.unwrap();
    }
}

fn versions() -> ApiVersionsResponse {
    let mut response = ApiVersionsResponse::default();
    response.api_keys = [(0, 3, 8), (3, 0, 8), (18, 0, 3)]
        .map(|(api_key, min_version, max_version)| {
            let mut range = ApiRange::default();
            range.api_key = api_key;
            range.min_version = min_version;
            range.max_version = max_version;
            range
        })
        .into();
    response
}

fn metadata(port: u16) -> MetadataResponse {
    let mut broker = MetadataResponseBroker::default();
    broker.node_id = 1;
    broker.host = StrBytes::from("127.0.0.1");
    broker.port = i32::from(port);
    let mut partition = MetadataResponsePartition::default();
    partition.leader_id = 1;
    let mut topic = MetadataResponseTopic::default();
    topic.name = Some(StrBytes::from("t"));
    topic.partitions = vec![partition];
    let mut response = MetadataResponse::default();
    response.brokers = vec![broker];
    response.topics = vec![topic];
    response
}

fn produced(code: i16) -> ProduceResponse {
    let mut partition = PartitionProduceResponse::default();
    partition.error_code = code;
    let mut topic = TopicProduceResponse::default();
    topic.name = StrBytes::from("t");
    topic.partition_responses = vec![partition];
    let mut response = ProduceResponse::default();
    response.responses = vec![topic];
    response
}
