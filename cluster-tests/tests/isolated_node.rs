//! A leader cut off from the other nodes acknowledges nothing more, clients go on elsewhere within five seconds, and after
//! the heal all replicas are byte-identical.
//!
//! Needs root, for network namespaces. An ordinary user's run skips it and says so; in CI (`CI` is set) a run as root that
//! cannot have them fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::history::{Recorder, Value};
use cluster_tests::trials::{Clients, DEADLINE};
use cluster_tests::wire::{ACKS_ALL, ACKS_LEADER, Batch, Connection};
use cluster_tests::workload::{Load, create_topic_on, read_to_end};
use cluster_tests::{Cluster, CutFrom, Options, pauses, privileges, wait};

const TOPIC: &str = "split";
/// Clients that wait longer for a node that says nothing go on later, whatever the cluster does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Written to by the test itself, through the isolated leader only.
const PROBE: &str = "probe";
const CLIENTS_GO_ON_WITHIN: Duration = Duration::from_secs(5);
/// `broker.session.timeout.ms`, and some more: from then on the leader knows that it may have been replaced.
const SESSION: Duration = Duration::from_millis(3_500);
/// How long the node stays cut off.
const CUT: Duration = Duration::from_secs(12);

fn isolate(from: CutFrom) -> Result<()> {
    let started = Cluster::with(Options::nodes(3).own_hosts());
    let Some(mut cluster) = privileges::or_skip(started)? else {
        return Ok(());
    };
    let bootstrap = cluster.bootstrap();
    let leader = (cluster.controller(DEADLINE)? + 1) % 3;
    let replicas = vec![leader, (leader + 1) % 3, (leader + 2) % 3];
    create_topic_on(&bootstrap, TOPIC, &vec![replicas.clone(); 3], &[])?;
    create_topic_on(&bootstrap, PROBE, &[replicas], &[])?;
    ensure!(cluster.leader(PROBE, 0, DEADLINE)? == leader);
    let load = Load {
        records_per_second: 500,
        answer_timeout: ANSWER_TIMEOUT,
        ..Load::of(TOPIC)
    };
    let clients = Clients::start(&cluster, load)?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let mut waiting = Connection::open(cluster.node(leader).kafka())?;

    let (at, began) = (clients.recorder.now(), Instant::now());
    cluster.cut(leader, from)?;
    // Appended at once, but it must not be acknowledged: no other replica has it.
    waiting.ask_produce(ACKS_ALL, PROBE, 0, &batch(0))?;
    clients.workload.progress_everywhere(CLIENTS_GO_ON_WITHIN)?;
    let resumed = clients.recorder.now();
    if from == CutFrom::Peers {
        wait::pass(SESSION.saturating_sub(began.elapsed()));
        refuses_every_write(&mut cluster, leader)?;
    }
    wait::pass(CUT.saturating_sub(began.elapsed()));
    cluster.heal(leader)?;

    let answer = waiting.produced()?;
    ensure!(
        answer.is_none_or(|(error, _)| error != 0),
        "an isolated leader acknowledged a write: {answer:?}"
    );
    cluster.wait_in_sync(DEADLINE)?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let history = clients.finish()?;
    let pause = pauses::longest(&history, at, resumed).context("nothing was acknowledged")?;
    println!("{from:?}: no acknowledgements for {:.2?}", pause.length);
    let probed = Recorder::default();
    read_to_end(&bootstrap, PROBE, 1, &probed)?;
    if let Some(read) = probed.snapshot().final_reads.first() {
        bail!("what only the isolated leader was asked to write is in the log: {read:?}");
    }
    cluster.conclude(&[TOPIC, PROBE], DEADLINE)
}

fn batch(sequence: u64) -> Vec<u8> {
    let value = Value {
        producer: 99,
        sequence,
    };
    Batch::of(&[&value.payload(100)]).encode()
}

/// A leader whose heartbeats have gone unanswered for a session refuses even acks=1.
fn refuses_every_write(cluster: &mut Cluster, leader: usize) -> Result<()> {
    let mut connection = Connection::open(cluster.node(leader).kafka())?;
    connection.ask_produce(ACKS_LEADER, PROBE, 0, &batch(1))?;
    let answer = connection.produced()?;
    ensure!(
        answer.is_none_or(|(error, _)| error != 0),
        "a leader cut off for {SESSION:?} took a write of acks=1: {answer:?}"
    );
    Ok(())
}

#[test]
fn a_leader_cut_off_from_its_peers() -> Result<()> {
    isolate(CutFrom::Peers)
}

#[test]
fn a_leader_cut_off_from_everybody() -> Result<()> {
    isolate(CutFrom::All)
}
