//! Record bytes leave by `sendfile` only: by the node's own count, and by the system calls it makes.

use anyhow::{Context, Result, ensure};
use cluster_tests::checker::{Guarantees, check};
use cluster_tests::history::{Outcome, Recorder, Value};
use cluster_tests::strace::{self, Sent};
use cluster_tests::workload::{client, create_topic, read_to_end};
use cluster_tests::{Cluster, Options};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const TOPIC: &str = "bulk";
const RECORDS: u64 = 20_000;
const RECORD_BYTES: usize = 1_000;
const PAYLOAD_BYTES: u64 = RECORDS * RECORD_BYTES as u64;
/// Response headers, metadata and what else is not records; far below one copy of the records.
const OTHER_BYTES_MAX: u64 = PAYLOAD_BYTES / 20;

/// Produces the records, one acknowledged history, and reads them all once.
fn produce_and_consume(bootstrap: &str) -> Result<()> {
    create_topic(bootstrap, TOPIC, 1, &[])?;
    let recorder = Recorder::default();
    let producer: BaseProducer = client(bootstrap)
        .set("enable.idempotence", "true")
        .create()?;
    for sequence in 0..RECORDS {
        let value = Value {
            producer: 0,
            sequence,
        };
        let payload = value.payload(RECORD_BYTES);
        producer
            .send(
                BaseRecord::<(), _>::to(TOPIC)
                    .partition(0)
                    .payload(&payload),
            )
            .map_err(|(error, _)| error)?;
        let id = recorder.invoke(value, 0);
        recorder.complete(id, Outcome::Info);
        producer.poll(std::time::Duration::ZERO);
    }
    producer.flush(std::time::Duration::from_secs(60))?;
    read_to_end(bootstrap, TOPIC, 1, &recorder)?;
    let history = recorder.snapshot();
    ensure!(history.final_reads.len() as u64 == RECORDS);
    let anomalies = check(&history, Guarantees { idempotent: true });
    ensure!(anomalies.is_empty(), "{anomalies:?}");
    Ok(())
}

#[test]
fn by_the_nodes_own_count() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    produce_and_consume(&cluster.bootstrap())?;
    let metrics = cluster.node(0).metrics()?;
    let bytes = |path| {
        metrics
            .sum("kittiwake_bytes_out_total", &[("path", path)])
            .with_context(|| format!("{:?}", metrics.names()))
    };
    ensure!(
        bytes("sendfile")? >= PAYLOAD_BYTES as f64,
        "by sendfile: {}",
        bytes("sendfile")?
    );
    ensure!(
        bytes("copy")? < OTHER_BYTES_MAX as f64,
        "by copying: {}",
        bytes("copy")?
    );
    Ok(())
}

#[test]
fn by_its_system_calls() -> Result<()> {
    if !strace::is_installed() {
        println!("skipped: strace is not installed");
        return Ok(());
    }
    let mut cluster = Cluster::prepare(Options::nodes(1))?;
    let node = cluster.node(0);
    let (trace, began) = strace::spawn_for_sends(node)?;
    node.wait_ready(began)?;
    let port = node.kafka().port();
    produce_and_consume(&cluster.bootstrap())?;
    cluster.node(0).terminate()?;
    let sent = Sent::read(&trace, port)?;
    ensure!(
        sent.sendfile >= PAYLOAD_BYTES,
        "by sendfile: {} of {PAYLOAD_BYTES}",
        sent.sendfile
    );
    ensure!(
        sent.other < OTHER_BYTES_MAX,
        "by other calls: {}",
        sent.other
    );
    Ok(())
}
