//! A batch of an idempotent producer that is sent again is not written again: it gets its original offset, after a
//! `kill -9` too. A gap in the sequence is refused.

use anyhow::{Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::wire::{Batch, Connection};
use cluster_tests::workload::create_topic;

const TOPIC: &str = "once";
const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
const INVALID_PRODUCER_EPOCH: i16 = 47;

fn batch(producer_id: i64, producer_epoch: i16, base_sequence: i32) -> Vec<u8> {
    Batch {
        producer_id,
        producer_epoch,
        base_sequence,
        ..Batch::of(&[b"a", b"b", b"c"])
    }
    .encode()
}

#[test]
fn a_repeated_batch_keeps_its_offset() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
    let mut connection = Connection::open(cluster.node(0).kafka())?;
    let id = connection.init_producer_id()?;
    ensure!(connection.produce(TOPIC, 0, &batch(id, 0, 0))? == Some((0, 0)));
    ensure!(connection.produce(TOPIC, 0, &batch(id, 0, 3))? == Some((0, 3)));
    ensure!(
        connection.produce(TOPIC, 0, &batch(id, 0, 0))? == Some((0, 0)),
        "the first batch again"
    );
    ensure!(
        connection.produce(TOPIC, 0, &batch(id, 0, 3))? == Some((0, 3)),
        "the second batch again"
    );
    let gap = connection.produce(TOPIC, 0, &batch(id, 0, 9))?;
    ensure!(
        gap.is_some_and(|(error, _)| error == OUT_OF_ORDER_SEQUENCE_NUMBER),
        "a gap: {gap:?}"
    );

    cluster.node(0).kill()?;
    cluster.node(0).start()?;

    let mut connection = Connection::open(cluster.node(0).kafka())?;
    ensure!(
        connection.produce(TOPIC, 0, &batch(id, 0, 3))? == Some((0, 3)),
        "again after kill -9"
    );
    ensure!(
        connection.produce(TOPIC, 0, &batch(id, 0, 6))? == Some((0, 6)),
        "and on"
    );
    ensure!(
        connection.produce(TOPIC, 0, &batch(id, 1, 0))? == Some((0, 9)),
        "a new epoch starts at 0"
    );
    let old = connection.produce(TOPIC, 0, &batch(id, 0, 9))?;
    ensure!(
        old.is_some_and(|(error, _)| error == INVALID_PRODUCER_EPOCH),
        "the old epoch: {old:?}"
    );
    let other = connection.init_producer_id()?;
    ensure!(other != id, "producer ids are not given twice");
    Ok(())
}
