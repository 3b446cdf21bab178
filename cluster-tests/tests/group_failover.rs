//! What a group committed is there after the node that coordinates it was killed: another node coordinates it, answers
//! either "loading" or the committed offset, never "none" (consumers would start over), and the group goes on there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Bytes, Connection, Fields};
use cluster_tests::workload::{client, create_topic};
use cluster_tests::{Cluster, wait};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const RECORDS: i64 = 200;
/// Committed before the first kill, and so much more before each further one.
const STEP: i64 = 50;
const KILLS: i64 = 2;

fn member(bootstrap: &str) -> Result<BaseConsumer> {
    Ok(client(bootstrap)
        .set("group.id", GROUP)
        .set("enable.auto.commit", "false")
        // A committed offset that is lost shows as a record read again.
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "6000")
        .create()?)
}

/// The next record of a member; errors while a coordinator moves are waited out.
fn next(member: &BaseConsumer) -> Result<i64> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if let Some(Ok(message)) = member.poll(Duration::from_millis(100)) {
            return Ok(message.offset());
        }
    }
    bail!("no record within {DEADLINE:?}")
}

fn commit(member: &BaseConsumer, offset: i64) -> Result<()> {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(TOPIC, 0, Offset::Offset(offset))?;
    wait::until("a commit", DEADLINE, || {
        member.commit(&offsets, CommitMode::Sync).ok()
    })
}

/// Which node coordinates the group (FindCoordinator v0).
fn coordinator(through: SocketAddr) -> Result<usize> {
    const FIND_COORDINATOR: i16 = 10;
    wait::until("a coordinator", DEADLINE, || {
        let answer = Connection::open(through)
            .ok()?
            .call(FIND_COORDINATOR, 0, &Bytes::new().string(GROUP).0)
            .ok()??;
        let mut fields = Fields::of(&answer);
        let (error, node) = (fields.i16().ok()?, fields.i32().ok()?);
        (error == 0).then_some(node as usize)
    })
}

/// What a fresh client is told of the committed offset, until it is told anything but an error.
fn committed(bootstrap: &str) -> Result<Offset> {
    let asker = member(bootstrap)?;
    let mut asked = TopicPartitionList::new();
    asked.add_partition(TOPIC, 0);
    let answer = wait::until("the group's coordinator", DEADLINE, || {
        asker
            .committed_offsets(asked.clone(), Duration::from_secs(5))
            .ok()
            .filter(|answer| {
                answer
                    .find_partition(TOPIC, 0)
                    .is_some_and(|partition| partition.error().is_ok())
            })
    })?;
    let partition = answer.find_partition(TOPIC, 0);
    Ok(partition.context("the partition is answered")?.offset())
}

#[test]
fn a_group_goes_on_after_its_coordinator_died() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let bootstrap = cluster.bootstrap();
    create_topic(&bootstrap, TOPIC, 1, &[])?;
    let producer: BaseProducer = client(&bootstrap).set("acks", "all").create()?;
    for i in 0..RECORDS {
        let payload = i.to_string();
        let record = BaseRecord::<(), _>::to(TOPIC).partition(0);
        producer
            .send(record.payload(&payload))
            .map_err(|(error, _)| error)?;
    }
    producer.flush(DEADLINE)?;
    // This one lives through everything; after it a fresh one takes over.
    let lasting = member(&bootstrap)?;
    lasting.subscribe(&[TOPIC])?;
    let mut expected = 0;
    for kill in 1..=KILLS {
        while expected < kill * STEP {
            let offset = next(&lasting)?;
            ensure!(
                offset == expected,
                "the member was given {offset} after {expected} had been read"
            );
            expected += 1;
        }
        commit(&lasting, expected)?;
        let dying = coordinator(cluster.node(0).kafka())?;
        cluster.node(dying).kill()?;
        let found = committed(&bootstrap)?;
        ensure!(
            found == Offset::Offset(expected),
            "committed {expected}, found {found:?} after node {dying} was killed"
        );
        let successor = coordinator(cluster.node((dying + 1) % 3).kafka())?;
        ensure!(successor != dying, "a dead node coordinates the group");
        cluster.node(dying).start()?;
        cluster.wait_in_sync(DEADLINE)?;
    }
    drop(lasting);
    let fresh = member(&bootstrap)?;
    fresh.subscribe(&[TOPIC])?;
    let offset = next(&fresh)?;
    ensure!(
        offset == expected,
        "the next member starts at {offset} instead of {expected}"
    );
    cluster.conclude(&[TOPIC], DEADLINE)
}
