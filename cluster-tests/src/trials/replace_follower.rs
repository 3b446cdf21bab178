//! A follower comes back with an empty data directory, under load: it catches up, rejoins, and producers hardly notice.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Clients, DEADLINE};
use crate::history::History;
use crate::wait;
use crate::workload::{Load, create_topic_on};
use crate::{Cluster, Options};

const TOPIC: &str = "replaced";
/// Until an empty node has all of a big log.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(300);

/// What is measured, and against how much.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Records in the topic before the follower is replaced, 1 KiB each.
    pub backlog: usize,
    /// Records per second of the producer; what it cannot send is left out, so a high number is a closed loop.
    pub records_per_second: u32,
    /// How long the undisturbed cluster is measured.
    pub before: Duration,
}

/// Throughput and latency of a stretch of time.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    /// Acknowledged records per second.
    pub records_per_second: f64,
    /// Median from send to acknowledgement.
    pub p50: Duration,
    /// 99th percentile of the same.
    pub p99: Duration,
}

/// What a run showed.
#[derive(Debug)]
pub struct Report {
    /// With three replicas in sync.
    pub before: Stretch,
    /// From the start of the empty node until it was in the ISR of every partition again.
    pub during: Stretch,
    /// How long that took.
    pub took: Duration,
}

/// Replaces a follower's data directory by an empty one under load and prints what that did to a producer.
pub fn replace_follower(plan: &Plan, binary: Option<PathBuf>) -> Result<Report> {
    let options = Options::nodes(3).binary(binary.as_deref());
    let mut cluster = Cluster::with(options)?;
    // Led by nodes 0 and 1; node 2 only follows.
    let replicas = [vec![0, 1, 2], vec![1, 0, 2], vec![0, 2, 1]];
    create_topic_on(&cluster.bootstrap(), TOPIC, &replicas, &[])?;
    let clients = Clients::start(
        &cluster,
        Load {
            record_bytes: 1024,
            producers: 1,
            records_per_second: plan.records_per_second,
            ..Load::of(TOPIC)
        },
    )?;
    clients.workload.progress(plan.backlog, CATCH_UP_DEADLINE)?;
    let from = clients.recorder.now();
    wait::pass(plan.before);
    let undisturbed = clients.recorder.now();
    cluster.node(2).kill()?;
    cluster.node(2).wipe()?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let started = clients.recorder.now();
    cluster.node(2).start()?;
    cluster.wait_in_sync(CATCH_UP_DEADLINE)?;
    let caught_up = clients.recorder.now();
    let history = clients.finish()?;
    let report = Report {
        before: stretch(&history, from, undisturbed)?,
        during: stretch(&history, started, caught_up)?,
        took: caught_up - started,
    };
    for (title, stretch) in [("before", report.before), ("during", report.during)] {
        println!(
            "{title}: {:.0} records/s, p50 {:.2?}, p99 {:.2?}",
            stretch.records_per_second, stretch.p50, stretch.p99
        );
    }
    println!("back in every ISR after {:.1?}", report.took);
    cluster.conclude(&[TOPIC], DEADLINE)?;
    Ok(report)
}

fn stretch(history: &History, from: Duration, to: Duration) -> Result<Stretch> {
    let mut took: Vec<Duration> = history
        .sends
        .iter()
        .filter_map(|send| {
            let at = send.acknowledged_at()?;
            (from..to).contains(&at).then(|| at - send.invoked)
        })
        .collect();
    took.sort_unstable();
    let at = |percent: usize| {
        took.get(took.len() * percent / 100)
            .copied()
            .context("nothing was acknowledged")
    };
    Ok(Stretch {
        records_per_second: took.len() as f64 / (to - from).as_secs_f64(),
        p50: at(50)?,
        p99: at(99)?,
    })
}
