//! A leader that hangs for ten seconds (SIGSTOP) is replaced within five. When it wakes up it acknowledges nothing that it
//! was asked meanwhile, cuts off what nobody else has, and rejoins.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::history::{Recorder, Value};
use cluster_tests::pauses;
use cluster_tests::trials::{Clients, DEADLINE};
use cluster_tests::wait;
use cluster_tests::wire::{ACKS_ALL, ACKS_LEADER, Batch, Connection};
use cluster_tests::workload::{Load, create_topic_on, read_to_end};

const TOPIC: &str = "hang";
/// Clients that wait longer for a node that says nothing go on later, whatever the cluster does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Written to by the test itself, through the hung leader only.
const PROBE: &str = "probe";
const HANG: Duration = Duration::from_secs(10);
const NEW_LEADER_WITHIN: Duration = Duration::from_secs(5);

fn hang(is_controller: bool) -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let bootstrap = cluster.bootstrap();
    let controller = cluster.controller(DEADLINE)?;
    let leader = match is_controller {
        true => controller,
        false => (controller + 1) % 3,
    };
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
    let mut probes = Vec::new();
    for acks in [ACKS_LEADER, ACKS_ALL] {
        probes.push((acks, Connection::open(cluster.node(leader).kafka())?));
    }

    let (from, began) = (clients.recorder.now(), Instant::now());
    cluster.node(leader).pause()?;
    let unwanted = Value {
        producer: 99,
        sequence: 0,
    };
    for (acks, probe) in &mut probes {
        // It lies in the hung node's socket until it wakes up.
        let batch = Batch::of(&[&unwanted.payload(100)]).encode();
        probe.ask_produce(*acks, PROBE, 0, &batch)?;
    }
    let left = || NEW_LEADER_WITHIN.saturating_sub(began.elapsed());
    for topic in [TOPIC, PROBE] {
        let replaced = cluster.leader(topic, 0, left())?;
        ensure!(replaced != leader, "the hung node leads {topic}");
    }
    clients.workload.progress_everywhere(left())?;
    let resumed = clients.recorder.now();
    wait::pass(HANG.saturating_sub(began.elapsed()));
    cluster.node(leader).resume()?;

    for (acks, probe) in &mut probes {
        let answer = probe.produced()?;
        ensure!(
            answer.is_none_or(|(error, _)| error != 0),
            "a leader that had been replaced acknowledged a write of acks={acks}: {answer:?}"
        );
    }
    cluster.wait_in_sync(DEADLINE)?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let history = clients.finish()?;
    let pause = pauses::longest(&history, from, resumed).context("nothing was acknowledged")?;
    println!("no acknowledgements for {:.2?}", pause.length);
    let probed = Recorder::default();
    read_to_end(&bootstrap, PROBE, 1, &probed)?;
    ensure!(
        probed.snapshot().final_reads.is_empty(),
        "what the hung leader was asked to write was written"
    );
    cluster.conclude(&[TOPIC, PROBE], DEADLINE)
}

#[test]
fn a_hung_leader_is_replaced() -> Result<()> {
    hang(false)
}

#[test]
fn a_hung_leader_that_is_the_controller_is_replaced() -> Result<()> {
    hang(true)
}
