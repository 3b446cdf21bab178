//! Trials: a cluster under load, a fault, and what must be true after it.
//!
//! Each file holds one; it is a function that a test calls with a small count and a program of the same name with a large
//! one ([`lost_leader`] is what two tests have in common instead). All of them print what they measure and fail if the
//! [checker] finds anything, if replicas differ
//! afterwards, or if a node logged an ERROR.

pub mod crashes;
pub mod failover;
pub mod kill_all;
pub mod lost_leader;
pub mod partition_counts;
pub mod planned_restart;
pub mod replace_follower;
pub mod soak;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::checker::{self, Guarantees};
use crate::history::{History, NewEpoch, Recorder};
use crate::workload::{Load, Workload, create_topic};
use crate::{Cluster, Options};

/// Generous: a debug build on two shared cores.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Sends that must be acknowledged before the next fault, so that each hits a system at work.
const PROGRESS: usize = 200;

/// The seed named by `KITTIWAKE_SEED`, else a fresh one. It is always printed, so that a run can be repeated.
pub fn seed() -> Result<u64> {
    match std::env::var("KITTIWAKE_SEED") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(rand::random()),
    }
}

/// Three nodes whose segments are so small that faults hit rolls too.
fn three_nodes(binary: Option<&PathBuf>) -> Options {
    Options::nodes(3)
        .binary(binary.map(PathBuf::as_path))
        .config("log.segment.bytes", 4 << 20)
}

/// [`three_nodes`], a topic as `load` wants it, and clients at work on it.
fn three_nodes_at_work(binary: Option<&PathBuf>, load: Load) -> Result<(Cluster, Clients)> {
    let cluster = Cluster::with(three_nodes(binary))?;
    create_topic(&cluster.bootstrap(), &load.topic, load.partitions, &[])?;
    let clients = Clients::start(&cluster, load)?;
    Ok((cluster, clients))
}

/// Clients at work on one topic of a cluster, and what they saw.
#[derive(Debug)]
pub struct Clients {
    /// What they do.
    pub load: Load,
    /// Where it is recorded.
    pub recorder: Recorder,
    /// The clients themselves.
    pub workload: Workload,
}

impl Clients {
    /// Starts them; the topic must exist.
    pub fn start(cluster: &Cluster, load: Load) -> Result<Self> {
        let recorder = Recorder::default();
        let workload = Workload::start(&cluster.bootstrap(), load.clone(), recorder.clone())?;
        Ok(Self {
            load,
            recorder,
            workload,
        })
    }

    /// Waits until writes go on everywhere, so that the next fault hits a system at work.
    pub fn wait_at_work(&self) -> Result<()> {
        self.workload.progress(PROGRESS, DEADLINE)?;
        self.workload.progress_everywhere(DEADLINE)
    }

    /// Lets them finish, reads everything with a fresh client, and judges the history.
    pub fn finish(self) -> Result<History> {
        self.workload.finish()?;
        let history = self.recorder.snapshot();
        let guarantees = Guarantees {
            idempotent: self.load.idempotent,
        };
        judge(&history, guarantees)?;
        Ok(history)
    }
}

/// Fails with the first few anomalies of a history.
pub fn judge(history: &History, guarantees: Guarantees) -> Result<()> {
    const SHOWN: usize = 10;
    for NewEpoch { producer, why, .. } in &history.new_epochs {
        println!("producer {producer} went on under a new epoch: {why}");
    }
    let anomalies = checker::check(history, guarantees);
    if anomalies.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = anomalies
        .iter()
        .take(SHOWN)
        .map(|anomaly| format!("{anomaly:?}"))
        .collect();
    bail!(
        "{} anomalies, the first:\n{}",
        anomalies.len(),
        shown.join("\n")
    );
}
