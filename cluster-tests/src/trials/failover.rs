//! `kill -9` of a node in a given role, under idempotent acks=all production, again and again.
//!
//! Each fault has a topic of its own whose partitions the wanted node leads, so that the roles are exactly the ones asked
//! for. A second topic lives through all faults, so that its partitions collect epochs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Clients, DEADLINE, PROGRESS, three_nodes};
use crate::Cluster;
use crate::pauses;
use crate::wait;
use crate::workload::{Load, create_topic, create_topic_on};

/// The topic that lives through all faults.
const VETERAN: &str = "veteran";
/// Before each kill the cluster serves for a random time of at most this.
const UPTIME_MAX: Duration = Duration::from_millis(500);
/// How often a fault is prepared again because the controller moved meanwhile.
const CASTINGS: usize = 10;

/// What the node that is killed was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Leader of the partitions produced to, but not the controller.
    Leader,
    /// The controller, which leads none of them.
    Controller,
    /// Leader and controller.
    Both,
    /// Neither.
    Follower,
}

impl Role {
    /// Who leads, and who is killed, of three nodes.
    fn cast(self, controller: usize) -> (usize, usize) {
        let (next, other) = ((controller + 1) % 3, (controller + 2) % 3);
        match self {
            Self::Leader => (next, next),
            Self::Controller => (next, controller),
            Self::Both => (controller, controller),
            Self::Follower => (next, other),
        }
    }
}

/// What a run of faults showed.
#[derive(Debug, Default)]
pub struct Report {
    /// For each fault the longest time without acknowledgements in any partition, until writes went on everywhere.
    pub pauses: Vec<Duration>,
    /// The same from then until the node was back in every ISR.
    pub rejoins: Vec<Duration>,
    /// Acknowledged sends.
    pub acknowledged: usize,
}

/// Kills a node in `role` `count` times, prints each pause, and fails if anything acknowledged was lost, duplicated,
/// changed or reordered.
pub fn failover(role: Role, count: usize, seed: u64, binary: Option<PathBuf>) -> Result<Report> {
    println!("{role:?}: {count} kills, KITTIWAKE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::with(three_nodes(binary.as_ref()))?;
    create_topic(&cluster.bootstrap(), VETERAN, 3, &[])?;
    let veteran = Clients::start(&cluster, steady(VETERAN))?;
    let mut report = Report::default();
    for number in 1..=count {
        fault(&mut cluster, role, number, &mut random, &mut report)
            .with_context(|| format!("fault {number}"))?;
    }
    veteran.workload.progress_everywhere(DEADLINE)?;
    let history = veteran.finish()?;
    report.acknowledged += history.final_reads.len();
    let last = subject(count);
    cluster.conclude(&[VETERAN, &last], DEADLINE)?;
    Ok(report)
}

fn subject(number: usize) -> String {
    format!("fault-{number}")
}

/// A record every few milliseconds, as `fo.py` sends: the pause is the matter, not the throughput.
fn steady(topic: &str) -> Load {
    Load {
        records_per_second: 500,
        ..Load::of(topic)
    }
}

fn fault(
    cluster: &mut Cluster,
    role: Role,
    number: usize,
    random: &mut StdRng,
    report: &mut Report,
) -> Result<()> {
    let mut cast = None;
    for casting in 0..CASTINGS {
        let topic = match casting {
            0 => subject(number),
            again => format!("{}-{again}", subject(number)),
        };
        let found = prepare(cluster, role, &topic, random)?;
        if found.is_some() {
            cast = found;
            break;
        }
    }
    let (victim, clients) = cast.context("the controller never stayed long enough")?;

    let killed = clients.recorder.now();
    cluster.node(victim).kill()?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let resumed = clients.recorder.now();
    cluster.node(victim).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let rejoined = clients.recorder.now();

    let history = clients.finish()?;
    let pause = pauses::longest(&history, killed, resumed).context("nothing was acknowledged")?;
    let rejoin = pauses::longest(&history, resumed, rejoined).context("nothing acknowledged")?;
    println!(
        "fault {number}: node {victim}; no acknowledgements for {:.3?} (partition {}), {:.3?} while it came back, which took {:.1?}",
        pause.length,
        pause.partition,
        rejoin.length,
        rejoined - resumed
    );
    report.pauses.push(pause.length);
    report.rejoins.push(rejoin.length);
    report.acknowledged += history
        .sends
        .iter()
        .filter(|send| send.acknowledged_at().is_some())
        .count();
    Ok(())
}

/// Clients at work on partitions led by the right node, and whom to kill; `None` if the roles changed meanwhile.
fn prepare(
    cluster: &Cluster,
    role: Role,
    topic: &str,
    random: &mut StdRng,
) -> Result<Option<(usize, Clients)>> {
    let controller = cluster.controller(DEADLINE)?;
    let (leader, victim) = role.cast(controller);
    let replicas = vec![vec![leader, (leader + 1) % 3, (leader + 2) % 3]; 3];
    create_topic_on(&cluster.bootstrap(), topic, &replicas, &[])?;
    let clients = Clients::start(cluster, steady(topic))?;
    clients.workload.progress(PROGRESS, DEADLINE)?;
    wait::pass(random.random_range(Duration::ZERO..UPTIME_MAX));
    let leads = cluster.leader(topic, 0, DEADLINE)? == leader;
    if leads && cluster.controller(DEADLINE)? == controller {
        return Ok(Some((victim, clients)));
    }
    clients.finish()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_what_its_name_says() {
        for controller in 0..3 {
            let (leader, victim) = Role::Leader.cast(controller);
            assert!(leader == victim && leader != controller);
            let (leader, victim) = Role::Controller.cast(controller);
            assert!(victim == controller && leader != controller);
            assert_eq!(Role::Both.cast(controller), (controller, controller));
            let (leader, victim) = Role::Follower.cast(controller);
            assert!(victim != leader && victim != controller && leader != controller);
        }
    }
}
