//! `kill -9` under load, again and again, and what must be true after it.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::judge;
use crate::checker::Guarantees;
use crate::history::Recorder;
use crate::workload::{self, Load, Workload};
use crate::{Cluster, Options};

/// Before each kill the broker serves for a random time of at most this.
const UPTIME_MAX: Duration = Duration::from_millis(1_500);
/// After each restart this many sends must be acknowledged before the clock of the next kill starts.
const PROGRESS: usize = 50;
/// Generous: a debug build on two shared cores.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(60);

/// What a run of kills showed.
#[derive(Debug)]
pub struct Report {
    /// From exec to the first 200 of `/readyz`, for each restart.
    pub ready_after: Vec<Duration>,
    /// Acknowledged sends.
    pub acknowledged: usize,
    /// Records read at the end.
    pub read: usize,
}

/// Kills and restarts a one-node cluster `count` times at moments drawn from `seed` while idempotent producers and a
/// consumer are at work, prints the readiness after each restart, and fails if the checker finds anything in what the
/// clients saw.
pub fn kill_under_load(count: usize, seed: u64) -> Result<Report> {
    println!("{count} kills, KITTIWAKE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // Small segments, so that kills hit rolls too.
    let mut cluster = Cluster::with(Options::nodes(1).config("log.segment.bytes", 4 << 20))?;
    let load = Load::of("kills");
    workload::create_topic(&cluster.bootstrap(), &load.topic, load.partitions, &[])?;
    let recorder = Recorder::default();
    let clients = Workload::start(&cluster.bootstrap(), load, recorder.clone())?;
    let mut ready_after = Vec::with_capacity(count);
    for kill in 1..=count {
        clients.progress(PROGRESS, PROGRESS_DEADLINE)?;
        std::thread::park_timeout(random.random_range(Duration::ZERO..UPTIME_MAX));
        cluster.node(0).kill()?;
        let took = cluster.node(0).start()?;
        println!(
            "kill {kill}: ready after {took:.1?}, {} acknowledged so far",
            recorder.acknowledged()
        );
        ready_after.push(took);
    }
    clients.progress(PROGRESS, PROGRESS_DEADLINE)?;
    let began = Instant::now();
    clients.finish()?;
    let history = recorder.snapshot();
    println!(
        "read {} records to the end in {:.1?}",
        history.final_reads.len(),
        began.elapsed()
    );
    judge(&history, Guarantees { idempotent: true })?;
    cluster.node(0).terminate()?;
    cluster.check_logs()?;
    Ok(Report {
        ready_after,
        acknowledged: recorder.acknowledged(),
        read: history.final_reads.len(),
    })
}
