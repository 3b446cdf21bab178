//! A leader cut off from the other nodes acknowledges nothing more, clients go on elsewhere, and after the heal all replicas
//! are byte-identical.
//!
//! Needs root, for network namespaces. An ordinary user's run skips it and says so; in CI (`CI` is set) a run as root that
//! cannot have them fails.

use std::time::Duration;

use anyhow::Result;
use cluster_tests::trials::DEADLINE;
use cluster_tests::trials::lost_leader::{LostLeader, ask, ask_for_more, nothing_denied, refused};
use cluster_tests::wire::{ACKS_ALL, ACKS_LEADER};
use cluster_tests::{Cluster, CutFrom, Options, privileges, wait};

/// `broker.session.timeout.ms`, and some more: from then on the leader knows that it may have been replaced.
const SESSION: Duration = Duration::from_millis(3_500);
/// How long the node stays cut off at least.
const CUT: Duration = Duration::from_secs(12);

fn isolate(from: CutFrom) -> Result<()> {
    let started = Cluster::with(Options::nodes(3).own_hosts());
    let Some(cluster) = privileges::or_skip(started)? else {
        return Ok(());
    };
    let leader = (cluster.controller(DEADLINE)? + 1) % 3;
    let mut scene = LostLeader::at_work(cluster, leader)?;
    let mut waiting = scene.probe()?;
    scene.lose(|cluster, leader| cluster.cut(leader, from))?;
    // Appended at once, but it must not be acknowledged: no other replica has it.
    ask(&mut waiting, ACKS_ALL)?;
    scene.goes_on()?;
    if from == CutFrom::Peers {
        wait::pass(SESSION.saturating_sub(scene.lost_for()));
        // A leader whose heartbeats have gone unanswered for a session refuses even acks=1.
        let mut late = scene.probe()?;
        ask(&mut late, ACKS_LEADER)?;
        refused(&mut late)?;
        // What it does not have its successor may have.
        ask_for_more(&mut late)?;
        nothing_denied(&mut late)?;
    }
    wait::pass(CUT.saturating_sub(scene.lost_for()));
    scene.cluster.heal(leader)?;
    refused(&mut waiting)?;
    scene.conclude()
}

#[test]
fn a_leader_cut_off_from_its_peers() -> Result<()> {
    isolate(CutFrom::Peers)
}

#[test]
fn a_leader_cut_off_from_everybody() -> Result<()> {
    isolate(CutFrom::All)
}
