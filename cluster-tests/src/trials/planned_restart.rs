//! SIGTERM and restart of each node in turn, under load: leadership moves first, so clients hardly notice.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{DEADLINE, three_nodes_at_work};
use crate::pauses;
use crate::workload::Load;

const TOPIC: &str = "restarts";

/// What a run showed; one element per restart.
#[derive(Debug, Default)]
pub struct Report {
    /// The longest time without acknowledgements in any partition while the node stopped.
    pub stops: Vec<Duration>,
    /// The same until it was back in every ISR.
    pub returns: Vec<Duration>,
}

/// Restarts each of three nodes in turn, `rounds` times, and prints the pauses.
pub fn planned_restart(rounds: usize, binary: Option<PathBuf>) -> Result<Report> {
    let load = Load {
        partitions: 6,
        records_per_second: 1_000,
        ..Load::of(TOPIC)
    };
    let (mut cluster, clients) = three_nodes_at_work(binary.as_ref(), load)?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        for node in 0..cluster.size() {
            clients.wait_at_work()?;
            let asked = clients.recorder.now();
            cluster.node(node).terminate()?;
            clients.workload.progress_everywhere(DEADLINE)?;
            let stopped = clients.recorder.now();
            cluster.node(node).start()?;
            cluster.wait_in_sync(DEADLINE)?;
            clients.workload.progress_everywhere(DEADLINE)?;
            times.push((node, asked, stopped, clients.recorder.now()));
        }
    }
    let history = clients.finish()?;
    let mut report = Report::default();
    for (node, asked, stopped, back) in times {
        let longest =
            |from, to| pauses::longest(&history, from, to).context("nothing was acknowledged");
        let (stop, back) = (longest(asked, stopped)?, longest(stopped, back)?);
        println!(
            "node {node}: no acknowledgements for {:.3?} while it stopped ({:.2?} in all), {:.3?} while it came back",
            stop.length,
            stopped - asked,
            back.length
        );
        report.stops.push(stop.length);
        report.returns.push(back.length);
    }
    cluster.conclude(&[TOPIC], DEADLINE)?;
    Ok(report)
}
