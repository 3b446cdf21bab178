//! Faults at random, one after the other, under load: nobody chose the moment, the node or the order.
//!
//! At most one node is away at a time, but for the times when all are killed together, so everything acknowledged must
//! survive and writes must always go on.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Clients, DEADLINE, PROGRESS, three_nodes_at_work};
use crate::workload::Load;
use crate::{Cluster, wait};

const TOPIC: &str = "soak";
const PARTITIONS: i32 = 6;
/// Some hangs are shorter than a session, some longer.
const HANG_MAX: Duration = Duration::from_secs(6);
/// A node is away for at most this, beside what it takes to start.
const AWAY_MAX: Duration = Duration::from_secs(3);

/// Something that happens to a node, or to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9`, and a start some time later.
    Kill(usize),
    /// A planned stop, and a start some time later.
    Stop(usize),
    /// SIGSTOP, and SIGCONT some time later.
    Hang(usize),
    /// `kill -9`, and a start with an empty data directory.
    Replace(usize),
    /// `kill -9` of all, and a start of all.
    KillAll,
}

impl Fault {
    fn draw(random: &mut StdRng) -> Self {
        let node = random.random_range(0..3);
        match random.random_range(0..10) {
            0..=3 => Self::Kill(node),
            4..=5 => Self::Stop(node),
            6..=7 => Self::Hang(node),
            8 => Self::Replace(node),
            _ => Self::KillAll,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node) => write!(f, "node {node} killed"),
            Self::Stop(node) => write!(f, "node {node} stopped"),
            Self::Hang(node) => write!(f, "node {node} hung"),
            Self::Replace(node) => write!(f, "node {node} replaced by an empty one"),
            Self::KillAll => write!(f, "all killed"),
        }
    }
}

/// Lets `count` random faults happen to three nodes and checks what the clients saw; returns how many sends were
/// acknowledged.
pub fn soak(count: usize, seed: u64, binary: Option<PathBuf>) -> Result<usize> {
    println!("{count} random faults, KITTIWAKE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let load = Load {
        partitions: PARTITIONS,
        records_per_second: 500,
        consumers: 2,
        ..Load::of(TOPIC)
    };
    let (mut cluster, clients) = three_nodes_at_work(binary.as_ref(), load)?;
    for number in 1..=count {
        clients.workload.progress(PROGRESS, DEADLINE)?;
        let fault = Fault::draw(&mut random);
        happen(&mut cluster, &clients, fault, &mut random)
            .with_context(|| format!("fault {number}, {fault}"))?;
        println!(
            "fault {number}: {fault}; {} acknowledged so far",
            clients.recorder.acknowledged()
        );
    }
    clients.workload.progress_everywhere(DEADLINE)?;
    let acknowledged = clients.recorder.acknowledged();
    clients.finish()?;
    cluster.conclude(&[TOPIC], DEADLINE)?;
    Ok(acknowledged)
}

/// From the fault until everybody is in sync again.
fn happen(
    cluster: &mut Cluster,
    clients: &Clients,
    fault: Fault,
    random: &mut StdRng,
) -> Result<()> {
    match fault {
        Fault::Kill(node) => {
            cluster.node(node).kill()?;
            wait::pass(random.random_range(Duration::ZERO..AWAY_MAX));
            cluster.node(node).start()?;
        }
        Fault::Stop(node) => {
            cluster.node(node).terminate()?;
            wait::pass(random.random_range(Duration::ZERO..AWAY_MAX));
            cluster.node(node).start()?;
        }
        Fault::Hang(node) => {
            cluster.node(node).pause()?;
            wait::pass(random.random_range(Duration::ZERO..HANG_MAX));
            cluster.node(node).resume()?;
        }
        Fault::Replace(node) => {
            cluster.node(node).kill()?;
            // The others go on first: while its old self is in an ISR alone, an empty node is the loss of a disk.
            clients.workload.progress_everywhere(DEADLINE)?;
            cluster.node(node).wipe()?;
            cluster.node(node).start()?;
        }
        Fault::KillAll => {
            cluster.kill_all()?;
            cluster.start_all()?;
        }
    }
    clients.workload.progress_everywhere(DEADLINE)?;
    cluster.wait_in_sync(DEADLINE)
}
