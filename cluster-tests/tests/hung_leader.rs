//! A leader that hangs (SIGSTOP) is replaced meanwhile. When it wakes up it acknowledges nothing that it
//! was asked meanwhile, denies no record, cuts off what nobody else has, and rejoins.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::trials::lost_leader::{
    LostLeader, PROBE, TOPIC, ask, ask_for_more, nothing_denied, refused,
};
use cluster_tests::wire::{ACKS_ALL, ACKS_LEADER};
use cluster_tests::{Cluster, wait};

/// At least this long: several sessions.
const HANG: Duration = Duration::from_secs(10);

fn hang(is_controller: bool) -> Result<()> {
    let cluster = Cluster::start(3)?;
    let controller = cluster.controller(DEADLINE)?;
    let leader = match is_controller {
        true => controller,
        false => (controller + 1) % 3,
    };
    let mut scene = LostLeader::at_work(cluster, leader)?;
    let mut probes = [(ACKS_LEADER, scene.probe()?), (ACKS_ALL, scene.probe()?)];
    let mut reader = scene.probe()?;
    scene.lose(|cluster, leader| cluster.node(leader).pause())?;
    for (acks, probe) in &mut probes {
        // It lies in the hung node's socket until it wakes up.
        ask(probe, *acks)?;
    }
    ask_for_more(&mut reader)?;
    for topic in [TOPIC, PROBE] {
        let replaced = scene.cluster.leader(topic, 0, DEADLINE)?;
        ensure!(replaced != leader, "the hung node leads {topic}");
    }
    scene.goes_on()?;
    wait::pass(HANG.saturating_sub(scene.lost_for()));
    scene.cluster.node(leader).resume()?;
    for (_, probe) in &mut probes {
        refused(probe)?;
    }
    nothing_denied(&mut reader)?;
    scene.conclude()
}

#[test]
fn a_hung_leader_is_replaced() -> Result<()> {
    hang(false)
}

#[test]
fn a_hung_leader_that_is_the_controller_is_replaced() -> Result<()> {
    hang(true)
}
