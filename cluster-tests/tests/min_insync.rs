//! With fewer in-sync replicas than `min.insync.replicas` an acks=all write is refused and nothing new becomes visible
//! (KIP-966): the high watermark stands still until enough replicas are back.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{ACKS_LEADER, Batch, Bytes, Connection, Fields};
use cluster_tests::workload::create_topic_on;
use cluster_tests::{Cluster, wait};

const TOPIC: &str = "strict";
const LEADER: usize = 0;
const FOLLOWER: usize = 1;
const NOT_ENOUGH_REPLICAS: i16 = 19;
const NOT_ENOUGH_REPLICAS_AFTER_APPEND: i16 = 20;

/// What a consumer is told is the end (ListOffsets v1, latest): the high watermark.
fn high_watermark(leader: SocketAddr) -> Result<i64> {
    const LIST_OFFSETS: i16 = 2;
    const LATEST: i64 = -1;
    let body = Bytes::new()
        .i32(-1)
        .i32(1)
        .string(TOPIC)
        .i32(1)
        .i32(0)
        .i64(LATEST);
    let answer = Connection::open(leader)?.call(LIST_OFFSETS, 1, &body.0)?;
    let answer = answer.unwrap_or_default();
    let mut fields = Fields::of(&answer);
    let (_topics, _name, _partitions, _index) = (
        fields.i32()?,
        fields.string()?,
        fields.i32()?,
        fields.i32()?,
    );
    let (error, _timestamp) = (fields.i16()?, fields.i64()?);
    ensure!(error == 0, "ListOffsets: error {error}");
    fields.i64()
}

#[test]
fn too_few_replicas_acknowledge_nothing() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    create_topic_on(
        &cluster.bootstrap(),
        TOPIC,
        &[vec![LEADER, FOLLOWER, 2]],
        &[("min.insync.replicas", "3")],
    )?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == LEADER);
    let leader = cluster.node(LEADER).kafka();
    let batch = Batch::of(&[b"a record"]).encode();
    let mut connection = Connection::open(leader)?;
    ensure!(connection.produce(TOPIC, 0, &batch)? == Some((0, 0)));

    cluster.node(FOLLOWER).kill()?;
    // On its way when the ISR shrinks, it is refused afterwards; later ones are refused before anything is written.
    let answer = connection.produce(TOPIC, 0, &batch)?;
    ensure!(
        answer.is_some_and(|(error, _)| {
            [NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS_AFTER_APPEND].contains(&error)
        }),
        "acks=all while the follower died: {answer:?}"
    );
    cluster.wait_partition(TOPIC, 0, "without the dead", DEADLINE, |partition| {
        !partition.isr.contains(&(FOLLOWER as u32))
    })?;
    let answer = connection.produce(TOPIC, 0, &batch)?;
    ensure!(
        answer.is_some_and(|(error, _)| error == NOT_ENOUGH_REPLICAS),
        "acks=all with two replicas of three: {answer:?}"
    );
    // The leader alone is still asked to write, but what it writes is not committed.
    connection.ask_produce(ACKS_LEADER, TOPIC, 0, &batch)?;
    let answer = connection.produced()?;
    let Some((0, offset)) = answer else {
        anyhow::bail!("acks=1 with two replicas of three: {answer:?}");
    };
    ensure!(
        high_watermark(leader)? <= offset,
        "a record became visible with too few replicas"
    );

    cluster.node(FOLLOWER).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    wait::until("the record to become visible", DEADLINE, || {
        high_watermark(leader)
            .is_ok_and(|end| end > offset)
            .then_some(())
    })?;
    let answer = connection.produce(TOPIC, 0, &batch)?;
    ensure!(
        answer.is_some_and(|(error, _)| error == 0),
        "acks=all with three replicas again: {answer:?}"
    );
    cluster.conclude(&[TOPIC], DEADLINE)
}
