//! SIGTERM under load: the node finishes or refuses what is in flight, exits with 0, and nothing is lost.

use std::time::Duration;

use anyhow::{Result, bail};
use cluster_tests::Cluster;
use cluster_tests::checker::{Guarantees, check};
use cluster_tests::history::Recorder;
use cluster_tests::workload::{Load, Workload, create_topic};

const STOPS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_planned_stop_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    let load = Load {
        record_bytes: 300,
        ..Load::of("stops")
    };
    create_topic(&cluster.bootstrap(), &load.topic, load.partitions, &[])?;
    let recorder = Recorder::default();
    let clients = Workload::start(&cluster.bootstrap(), load, recorder.clone())?;
    for _ in 0..STOPS {
        clients.progress(500, DEADLINE)?;
        cluster.node(0).terminate()?;
        cluster.node(0).start()?;
    }
    clients.progress(500, DEADLINE)?;
    clients.finish()?;
    match check(&recorder.snapshot(), Guarantees { idempotent: true }).first() {
        None => Ok(()),
        Some(anomaly) => bail!("{anomaly:?}"),
    }
}
