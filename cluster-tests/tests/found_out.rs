//! The history checker against a real cluster that breaks its promise: half of a log is cut away behind a dead node's back.
//! What was acknowledged there is missed, although everything goes on as if nothing had happened.

use std::fs::OpenOptions;

use anyhow::{Context, Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::checker::{Anomaly, Guarantees, check};
use cluster_tests::trials::{Clients, DEADLINE};
use cluster_tests::workload::{Load, create_topic};

const TOPIC: &str = "betrayed";

#[test]
fn a_log_that_lost_its_end_is_found_out() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
    let load = Load {
        partitions: 1,
        producers: 1,
        records_per_second: 1_000,
        // Sequence numbers, or a consumer that stands beyond the end, would give it away sooner.
        idempotent: false,
        consumers: 0,
        ..Load::of(TOPIC)
    };
    let clients = Clients::start(&cluster, load)?;
    clients.workload.progress(500, DEADLINE)?;
    cluster.node(0).kill()?;
    let directory = cluster.node(0).partition_directory(TOPIC, 0);
    let log = directory.join("00000000000000000000.log");
    let written = std::fs::read(&log)?
        .iter()
        .rposition(|&byte| byte != 0)
        .context("an empty log")?;
    OpenOptions::new()
        .write(true)
        .open(&log)?
        .set_len(written as u64 / 2)?;
    cluster.node(0).start()?;
    clients.workload.progress(500, DEADLINE)?;
    clients.workload.finish()?;
    let history = clients.recorder.snapshot();
    let found = check(&history, Guarantees { idempotent: false });
    let is = |wanted: fn(&Anomaly) -> bool| found.iter().any(wanted);
    ensure!(
        is(|anomaly| matches!(anomaly, Anomaly::LostWrite { .. }))
            && is(|anomaly| matches!(anomaly, Anomaly::InconsistentOffsets { .. }))
            && is(|anomaly| matches!(anomaly, Anomaly::WentBack { .. })),
        "of {} sends only this was found: {:?}",
        history.sends.len(),
        found.iter().take(5).collect::<Vec<_>>()
    );
    Ok(())
}
