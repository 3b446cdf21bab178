//! `kill -9` of all three nodes at once, under load: what was acknowledged is still there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{DEADLINE, three_nodes_at_work};
use crate::workload::Load;

const TOPIC: &str = "all-at-once";

/// What a run showed; one element per time that all were killed.
#[derive(Debug, Default)]
pub struct Report {
    /// From the first exec to the first acknowledgement.
    pub first_acknowledgement: Vec<Duration>,
    /// From the first exec until every partition had acknowledged something.
    pub every_partition: Vec<Duration>,
}

/// Kills and restarts three nodes together `count` times and prints how long the first acknowledgement took.
pub fn kill_all(count: usize, binary: Option<PathBuf>) -> Result<Report> {
    let load = Load {
        partitions: 6,
        records_per_second: 2_000,
        ..Load::of(TOPIC)
    };
    let (mut cluster, clients) = three_nodes_at_work(binary.as_ref(), load)?;
    let mut report = Report::default();
    for number in 1..=count {
        clients.wait_at_work()?;
        cluster.kill_all()?;
        let started = clients.recorder.now();
        cluster.start_all()?;
        clients.workload.progress_everywhere(DEADLINE)?;
        let everywhere = clients.recorder.now() - started;
        let first = clients
            .recorder
            .snapshot()
            .sends
            .iter()
            .filter_map(|send| send.acknowledged_at())
            .filter(|&at| at > started)
            .min()
            .context("nothing was acknowledged")?
            - started;
        println!(
            "all killed, {number}: first acknowledgement {first:.3?} after the start, every partition after {everywhere:.3?}"
        );
        report.first_acknowledgement.push(first);
        report.every_partition.push(everywhere);
        cluster.wait_in_sync(DEADLINE)?;
    }
    clients.finish()?;
    cluster.conclude(&[TOPIC], DEADLINE)?;
    Ok(report)
}
