//! A consumer that names its rack (`client.rack`) reads from the in-sync replica there, not from the leader (KIP-392), and
//! goes on elsewhere when that replica dies. A follower does not deny that there is what it lacks.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::history::Value;
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Connection, Fields, fetch_body};
use cluster_tests::workload::{client, create_topic_on, produce_all};
use cluster_tests::{Cluster, Node, Options};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const TOPIC: &str = "near";
const LEADER: usize = 0;
/// The follower in the consumer's rack.
const NEAR: usize = 2;
const RECORDS: u64 = 5_000;
const RECORD_BYTES: usize = 1_000;
const OFFSET_OUT_OF_RANGE: i16 = 1;
const OFFSET_NOT_AVAILABLE: i16 = 78;
const ALL_BYTES: f64 = RECORDS as f64 * RECORD_BYTES as f64;

fn rack(node: usize) -> String {
    format!("rack-{node}")
}

/// What a node answers a consumer in `rack` that fetches from `offset` on (Fetch v11): the partition's error, and which
/// replica it is sent to.
fn fetch(node: &Node, offset: i64, rack: &str) -> Result<(i16, i32)> {
    const FETCH: i16 = 1;
    const VERSION: i16 = 11;
    let body = fetch_body(-1, TOPIC, offset, 1 << 20, rack);
    let answer = Connection::open(node.kafka())?.call(FETCH, VERSION, &body)?;
    let answer = answer.context("Fetch was not answered")?;
    let mut fields = Fields::of(&answer);
    let (_throttle, error, _session) = (fields.i32()?, fields.i16()?, fields.i32()?);
    let (_topics, _name, _partitions) = (fields.i32()?, fields.string()?, fields.i32()?);
    let (_index, partition_error) = (fields.i32()?, fields.i16()?);
    ensure!(error == 0, "Fetch: error {error}");
    let (_high_watermark, _last_stable, _log_start) = (fields.i64()?, fields.i64()?, fields.i64()?);
    let _aborted = fields.i32()?;
    Ok((partition_error, fields.i32()?))
}

fn consumer(bootstrap: &str) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = client(bootstrap)
        .set("group.id", "near-reader")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("client.rack", rack(NEAR))
        .create()?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(TOPIC, 0, Offset::Offset(0))?;
    consumer.assign(&assignment)?;
    Ok(consumer)
}

/// Reads `RECORDS` records from `first` on: all of them, in order.
fn consume(consumer: &BaseConsumer, first: u64) -> Result<()> {
    let began = Instant::now();
    let mut next = first;
    while next < first + RECORDS {
        ensure!(began.elapsed() < DEADLINE, "nothing after offset {next}");
        // Errors are of connections, and the client gets over them.
        let Some(Ok(message)) = consumer.poll(std::time::Duration::from_millis(100)) else {
            continue;
        };
        let wanted = Value {
            producer: 0,
            sequence: next,
        };
        if message.offset() != next as i64
            || message.payload().and_then(Value::parse) != Some(wanted)
        {
            bail!("at offset {}, {next} expected", message.offset());
        }
        next += 1;
    }
    Ok(())
}

/// Record bytes sent by a node so far, to followers and consumers alike.
fn sent(node: &Node) -> Result<f64> {
    let metrics = node.metrics()?;
    let sent = metrics.sum("kittiwake_bytes_out_total", &[("path", "sendfile")]);
    sent.with_context(|| format!("{:?}", metrics.names()))
}

#[test]
fn a_consumer_reads_from_the_replica_in_its_rack() -> Result<()> {
    let mut cluster = Cluster::prepare(Options::nodes(3))?;
    for (index, node) in cluster.nodes().enumerate() {
        node.configure("broker.rack", rack(index))?;
    }
    cluster.start_all()?;
    cluster.wait_in_sync(DEADLINE)?;
    let bootstrap = cluster.bootstrap();
    create_topic_on(&bootstrap, TOPIC, &[vec![LEADER, 1, NEAR]], &[])?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == LEADER);
    produce_all(&bootstrap, TOPIC, 0..RECORDS, RECORD_BYTES)?;
    cluster.compare_replicas(TOPIC, DEADLINE)?;

    for (rack, node) in [
        (rack(NEAR), NEAR as i32),
        (rack(LEADER), -1),
        ("elsewhere".into(), -1),
        (String::new(), -1),
    ] {
        let answer = fetch(cluster.node(LEADER), 0, &rack)?;
        ensure!(
            answer == (0, node),
            "a consumer in rack {rack:?} is answered {answer:?}"
        );
    }
    // To the follower an offset beyond its end may be one that only the leader has; a consumer that was told
    // OFFSET_OUT_OF_RANGE might give its position up.
    let beyond = RECORDS as i64 + 1;
    for (node, error) in [(NEAR, OFFSET_NOT_AVAILABLE), (LEADER, OFFSET_OUT_OF_RANGE)] {
        let answer = fetch(cluster.node(node), beyond, "")?;
        ensure!(
            answer.0 == error,
            "beyond the end node {node} answers {answer:?}"
        );
    }

    // The followers have it all, so what is sent from here on goes to the consumer.
    let (by_leader, by_near) = (sent(cluster.node(LEADER))?, sent(cluster.node(NEAR))?);
    let consumer = consumer(&bootstrap)?;
    consume(&consumer, 0)?;
    let by_leader = sent(cluster.node(LEADER))? - by_leader;
    let by_near = sent(cluster.node(NEAR))? - by_near;
    ensure!(
        by_near >= ALL_BYTES,
        "the replica in the rack sent {by_near} bytes of {ALL_BYTES}"
    );
    ensure!(
        by_leader < ALL_BYTES / 10.0,
        "the leader sent {by_leader} bytes to a consumer of another rack"
    );

    cluster.node(NEAR).kill()?;
    produce_all(&bootstrap, TOPIC, RECORDS..2 * RECORDS, RECORD_BYTES)?;
    consume(&consumer, RECORDS)?;
    cluster.node(NEAR).start()?;
    cluster.conclude(&[TOPIC], DEADLINE)
}
