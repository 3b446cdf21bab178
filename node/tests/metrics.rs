//! What `/metrics` says of a node that has just done something.

#![allow(clippy::unwrap_used)] // Clippy sees the helpers of an integration test as ordinary code.

use bytes::Bytes;
use kittiwake::client::{Client, ConnectionConfig, NewTopic, Producer, ProducerConfig, RecordData};
use kittiwake::config;
use std::net::SocketAddr;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PARTITIONS: i32 = 3;

struct Node {
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    kafka: SocketAddr,
    http: SocketAddr,
}

impl Node {
    async fn start(directory: &Path) -> Self {
        let text = format!(
            "\"node.id\" = 0\n\"cluster.id\" = \"metrics-test\"\n\"cluster.voters\" = \"0@127.0.0.1:1\"\n\
             \"log.dirs\" = \"{}\"\n\"listeners\" = \"PLAINTEXT://127.0.0.1:0\"\n\
             \"replication.listener\" = \"127.0.0.1:0\"\n\"grpc.listener\" = \"127.0.0.1:0\"\n\"http.listener\" = \"127.0.0.1:0\"\n",
            directory.display()
        );
        let config = config::load("test", &text, []).unwrap().config;
        let shutdown = CancellationToken::new();
        let (ready, bound) = oneshot::channel();
        let running = tokio::spawn(kittiwake::run(config, shutdown.clone(), move |bound| {
            ready.send((bound.kafka[0].1, bound.http)).unwrap();
        }));
        let (kafka, http) = bound.await.unwrap();
        Self {
            shutdown,
            running,
            kafka,
            http,
        }
    }

    async fn scrape(&self) -> Metrics {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        Metrics(text)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

struct Metrics(String);

impl Metrics {
    /// The value of one series, named as in the text but for `kittiwake_`.
    fn get(&self, series: &str) -> u64 {
        let line = format!("kittiwake_{series} ");
        let value = self.0.lines().find_map(|text| text.strip_prefix(&line));
        let value = value.unwrap_or_else(|| panic!("{series} is not in\n{}", self.0));
        value
            .parse()
            .unwrap_or_else(|_| panic!("{series} is {value}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_shows_the_node_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let mut client = Client::connect(&node.kafka.to_string(), ConnectionConfig::default())
        .await
        .unwrap();
    let topic = NewTopic {
        name: "gulls".into(),
        partitions: PARTITIONS,
        replication_factor: -1,
        configs: Vec::new(),
    };
    client.ensure_topic(&topic).await.unwrap();
    client.topic("nobody-made-this", false).await.unwrap_err();
    let producer = Producer::new(client, &topic.name, ProducerConfig::default()).await;
    let mut producer = producer.unwrap();
    let record = RecordData {
        value: Some(Bytes::from_static(b"tern")),
        ..RecordData::default()
    };
    producer.send(None, record).await.unwrap();
    producer.finish().await.unwrap();

    let metrics = node.scrape().await;
    let partitions = u64::try_from(PARTITIONS).unwrap();
    for (series, value) in [
        ("partitions", partitions),
        ("partitions_led", partitions),
        ("partitions_offline", 0),
        ("partitions_failed", 0),
        ("partitions_under_replicated", 0),
        ("log_dir_online", 1),
        ("is_controller", 1),
        ("request_memory_bytes", 0),
        ("connections_refused_total", 0),
        ("recovery_failed_logs", 0),
        ("requests_total{api=\"produce\",error=\"NONE\"}", 1),
        ("request_seconds_count{api=\"produce\"}", 1),
        (
            "requests_total{api=\"metadata\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"}",
            1,
        ),
    ] {
        assert_eq!(metrics.get(series), value, "{series}");
    }
    for series in [
        "connections",
        "connections_accepted_total",
        "disk_free_bytes",
        "log_bytes",
        "metadata_offset",
        "bytes_in_total",
        "bytes_out_total{path=\"copy\"}",
    ] {
        assert!(metrics.get(series) > 0, "{series}");
    }
    let appended = metrics.get("append_bytes_total{path=\"map\"}")
        + metrics.get("append_bytes_total{path=\"pwrite\"}");
    assert_eq!(appended, metrics.get("log_bytes"));
    assert_eq!(
        metrics.get("metadata_reconciled_offset"),
        metrics.get("metadata_offset")
    );
    node.stop().await;
}
