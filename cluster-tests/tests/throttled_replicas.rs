//! A replica that catches up is held to the throttled rate of its leader's node, or of its own, if the topic names it
//! (KIP-73); others go on at full speed, and so do writes. Taking the throttle away lets it go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Batch, Bytes, Connection, Fields};
use cluster_tests::workload::create_topic_on;
use cluster_tests::{Cluster, wait};

const LEADER: usize = 0;
/// The node that is given replicas.
const NEW: usize = 2;
/// Several times what one answer brings of a partition (`replica.fetch.max.bytes`), and that is let through at any rate.
const BATCHES: usize = 10;
const BATCH_BYTES: usize = 500_000;
/// Bytes a second: as good as nothing.
const RATE: &str = "1";

const TOPIC_RESOURCE: i8 = 2;
const BROKER_RESOURCE: i8 = 4;
const SET: i8 = 0;
const DELETE: i8 = 1;

/// IncrementalAlterConfigs v0 of one key.
fn alter(
    cluster: &mut Cluster,
    resource: (i8, &str),
    key: &str,
    operation: (i8, &str),
) -> Result<()> {
    const INCREMENTAL_ALTER_CONFIGS: i16 = 44;
    let ((kind, name), (operation, value)) = (resource, operation);
    let body = Bytes::new()
        .i32(1)
        .i8(kind)
        .string(name)
        .i32(1)
        .string(key)
        .i8(operation)
        .string(value)
        .i8(0);
    let answer =
        Connection::open(cluster.node(1).kafka())?.call(INCREMENTAL_ALTER_CONFIGS, 0, &body.0)?;
    let answer = answer.context("IncrementalAlterConfigs was not answered")?;
    let mut fields = Fields::of(&answer);
    let (_throttle, _responses, error) = (fields.i32()?, fields.i32()?, fields.i16()?);
    ensure!(
        error == 0,
        "{name}: {key}={value}: error {error}, {:?}",
        fields.string()?
    );
    Ok(())
}

fn produce(cluster: &mut Cluster, topic: &str) -> Result<()> {
    let value = vec![b'v'; BATCH_BYTES];
    let batch = Batch::of(&[&value]).encode();
    let mut connection = Connection::open(cluster.node(LEADER).kafka())?;
    for _ in 0..BATCHES {
        let answer = connection.produce(topic, 0, &batch)?;
        ensure!(
            answer.is_some_and(|(error, _)| error == 0),
            "{topic}: {answer:?}"
        );
    }
    Ok(())
}

/// `side` is `leader` or `follower`; `broker` is whose rate counts on that side.
fn throttle_one_of_two(cluster: &mut Cluster, side: &str, broker: usize) -> Result<[String; 2]> {
    let (held, free) = (format!("{side}-held"), format!("{side}-free"));
    // The records' timestamps are 0: they are older than any retention.
    let config = [("retention.ms", "-1")];
    for topic in [&held, &free] {
        create_topic_on(&cluster.bootstrap(), topic, &[vec![LEADER, 1]], &config)?;
        produce(cluster, topic)?;
    }
    let (rate, replicas) = (
        format!("{side}.replication.throttled.rate"),
        format!("{side}.replication.throttled.replicas"),
    );
    let (node, replica) = (broker.to_string(), format!("0:{broker}"));
    alter(cluster, (TOPIC_RESOURCE, &held), &replicas, (SET, &replica))?;
    alter(cluster, (BROKER_RESOURCE, &node), &rate, (SET, RATE))?;

    for topic in [&held, &free] {
        let to = ["--topic", topic, "--partition", "0", "--replicas", "0,1,2"];
        cluster.administer(1, &[&["cluster", "reassign"][..], &to].concat())?;
    }
    let has_moved = |partition: &cluster_tests::view::Partition| {
        partition.replicas.len() == 3 && partition.in_sync()
    };
    cluster.wait_partition(&free, 0, "moved", DEADLINE, has_moved)?;
    // Time in which the other one would have moved, too: it is no longer.
    wait::pass(Duration::from_secs(2));
    let partition = cluster.view()?.partition(&held, 0).cloned();
    let partition = partition.with_context(|| format!("no topic {held}"))?;
    ensure!(
        !partition.isr.contains(&(NEW as u32)),
        "{held} has moved at {RATE} byte a second"
    );
    produce(cluster, &held)?;

    alter(cluster, (BROKER_RESOURCE, &node), &rate, (DELETE, ""))?;
    cluster.wait_partition(&held, 0, "moved", DEADLINE, has_moved)?;
    alter(cluster, (TOPIC_RESOURCE, &held), &replicas, (DELETE, ""))?;
    Ok([held, free])
}

#[test]
fn named_replicas_are_held_to_a_rate() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let mut topics = Vec::new();
    for (side, broker) in [("leader", LEADER), ("follower", NEW)] {
        topics.extend(throttle_one_of_two(&mut cluster, side, broker)?);
    }
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    cluster.conclude(&topics, DEADLINE)
}
