//! A batch that is sent again after its leader was killed is not written again: the new leader knows it from its own log and
//! answers with the original offset. A gap in the sequence is refused there, too.

use anyhow::{Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Batch, Connection};
use cluster_tests::workload::create_topic;
use cluster_tests::{Cluster, wait};

const TOPIC: &str = "once";
const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
/// Answers that a client retries: not leader, not enough replicas, and other states of an election.
const PASSING: [i16; 6] = [5, 6, 7, 19, 20, 74];

fn batch(producer_id: i64, base_sequence: i32) -> Vec<u8> {
    Batch {
        producer_id,
        producer_epoch: 0,
        base_sequence,
        ..Batch::of(&[b"a", b"b", b"c"])
    }
    .encode()
}

/// Produces to whoever leads, as a client would: passing errors are tried again.
fn produce(cluster: &mut Cluster, records: &[u8]) -> Result<(i16, i64)> {
    wait::until("an answer that is not passing", DEADLINE, || {
        let leader = cluster.leader(TOPIC, 0, DEADLINE).ok()?;
        let answer = Connection::open(cluster.node(leader).kafka())
            .and_then(|mut connection| connection.produce(TOPIC, 0, records));
        let answer = answer.ok().flatten()?;
        (!PASSING.contains(&answer.0)).then_some(answer)
    })
}

#[test]
fn a_repeated_batch_keeps_its_offset_under_another_leader() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
    let id = Connection::open(cluster.node(0).kafka())?.init_producer_id()?;
    let mut sequence = 0;
    for kill in 0..2 {
        for _ in 0..2 {
            let answer = produce(&mut cluster, &batch(id, sequence))?;
            ensure!(answer == (0, i64::from(sequence)), "{answer:?}");
            sequence += 3;
        }
        let leader = cluster.leader(TOPIC, 0, DEADLINE)?;
        cluster.node(leader).kill()?;
        for again in [sequence - 3, sequence - 6] {
            let answer = produce(&mut cluster, &batch(id, again))?;
            ensure!(
                answer == (0, i64::from(again)),
                "sequence {again} again, after kill {kill}: {answer:?}"
            );
        }
        let (error, _) = produce(&mut cluster, &batch(id, sequence + 3))?;
        ensure!(
            error == OUT_OF_ORDER_SEQUENCE_NUMBER,
            "a gap was answered with {error}"
        );
        cluster.node(leader).start()?;
        cluster.wait_in_sync(DEADLINE)?;
    }
    let answer = produce(&mut cluster, &batch(id, sequence))?;
    ensure!(answer == (0, i64::from(sequence)), "and on: {answer:?}");
    cluster.conclude(&[TOPIC], DEADLINE)
}
