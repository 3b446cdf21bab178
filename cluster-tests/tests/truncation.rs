//! A leader dies with records that no follower has; its successor writes others at the same offsets. When it comes back it
//! cuts its own off and takes the successor's (KIP-101, KIP-279): replicas are byte-identical again, and nobody ever reads
//! what was cut.

use anyhow::{Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::history::{Recorder, Value};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wait;
use cluster_tests::wire::{ACKS_LEADER, Batch, Connection};
use cluster_tests::workload::{create_topic_on, read_to_end};

const TOPIC: &str = "diverging";
const LEADER: usize = 0;

fn batch(value: Value) -> Vec<u8> {
    Batch::of(&[&value.payload(100)]).encode()
}

#[test]
fn what_only_a_dead_leader_had_is_cut_off() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    // The records' timestamps are 0: they are older than any retention.
    let config = [("retention.ms", "-1")];
    create_topic_on(&cluster.bootstrap(), TOPIC, &[vec![0, 1, 2]], &config)?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == LEADER);
    // Several rounds, so that epochs pile up in the same log.
    for round in 0..3 {
        diverge(&mut cluster, round)?;
    }
    cluster.conclude(&[TOPIC], DEADLINE)
}

fn diverge(cluster: &mut Cluster, round: u32) -> Result<()> {
    let value = |kind, sequence| Value {
        producer: 10 * round + kind,
        sequence,
    };
    let leader = cluster.leader(TOPIC, 0, DEADLINE)?;
    let followers: Vec<usize> = (0..3).filter(|&node| node != leader).collect();
    let mut connection = Connection::open(cluster.node(leader).kafka())?;
    let common = connection.produce(TOPIC, 0, &batch(value(0, 0)))?;
    ensure!(common.is_some_and(|(error, _)| error == 0), "{common:?}");

    for &node in &followers {
        cluster.node(node).pause()?;
    }
    // The first of these answers the fetches that wait at the leader, so the followers' sockets have it; the rest is the
    // leader's alone.
    let mut alone = -1;
    for sequence in 0..5 {
        connection.ask_produce(ACKS_LEADER, TOPIC, 0, &batch(value(1, sequence)))?;
        let answer = connection.produced()?;
        let Some((0, offset)) = answer else {
            anyhow::bail!("acks=1 at a leader whose followers hang: {answer:?}");
        };
        alone = offset;
    }
    cluster.node(leader).kill()?;
    for &node in &followers {
        cluster.node(node).resume()?;
    }
    let successor = cluster.leader(TOPIC, 0, DEADLINE)?;
    let mut connection = Connection::open(cluster.node(successor).kafka())?;
    let written = wait::until(
        "the successor to acknowledge",
        DEADLINE,
        || match connection.produce(TOPIC, 0, &batch(value(2, 0))) {
            Ok(Some((0, offset))) => Some(offset),
            _ => None,
        },
    )?;
    ensure!(
        written <= alone,
        "the logs did not diverge, so nothing was shown: {written} is above {alone}"
    );
    cluster.node(leader).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    cluster.compare_replicas(TOPIC, DEADLINE)?;

    let recorder = Recorder::default();
    read_to_end(&cluster.bootstrap(), TOPIC, 1, &recorder)?;
    let reads = recorder.snapshot().final_reads;
    let read = |offset| reads.iter().find(|read| read.offset == offset);
    ensure!(read(written).is_some_and(|read| read.value == Some(value(2, 0))));
    let cut = |read: &&cluster_tests::history::Read| read.value == Some(value(1, 4));
    ensure!(
        reads.iter().find(cut).is_none(),
        "a record of the dead leader alone was read"
    );
    Ok(())
}
