//! Record bytes go from the leader to its followers by `sendfile` only: by the node's own count, and by its system calls.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cluster_tests::strace::{self, Sent};
use cluster_tests::trials::DEADLINE;
use cluster_tests::workload::{create_topic_on, produce_all};
use cluster_tests::{Cluster, Options};

const TOPIC: &str = "bulk";
const RECORDS: u64 = 20_000;
const RECORD_BYTES: usize = 1_000;
/// Each of two followers gets all of it, and nobody else reads.
const REPLICATED_BYTES: u64 = 2 * RECORDS * RECORD_BYTES as u64;
/// Response headers, metadata and what else is not records; far below one copy of the records.
const OTHER_BYTES_MAX: u64 = REPLICATED_BYTES / 20;

#[test]
fn by_the_nodes_own_count() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    create_topic_on(&cluster.bootstrap(), TOPIC, &[vec![0, 1, 2]], &[])?;
    produce_all(&cluster.bootstrap(), TOPIC, 0..RECORDS, RECORD_BYTES)?;
    cluster.compare_replicas(TOPIC, DEADLINE)?;
    let metrics = cluster.node(0).metrics()?;
    let bytes = |path| {
        metrics
            .sum("kittiwake_bytes_out_total", &[("path", path)])
            .with_context(|| format!("{:?}", metrics.names()))
    };
    let (sendfile, copy) = (bytes("sendfile")?, bytes("copy")?);
    ensure!(
        sendfile >= REPLICATED_BYTES as f64,
        "by sendfile: {sendfile}"
    );
    ensure!(copy < OTHER_BYTES_MAX as f64, "by copying: {copy}");
    Ok(())
}

#[test]
fn by_its_system_calls() -> Result<()> {
    if !strace::is_installed() {
        println!("skipped: strace is not installed");
        return Ok(());
    }
    let mut cluster = Cluster::prepare(Options::nodes(3))?;
    let (trace, _) = strace::spawn_for_sends(cluster.node(0))?;
    for node in [1, 2] {
        cluster.node(node).spawn()?;
    }
    for node in cluster.nodes() {
        node.wait_ready(Instant::now())?;
    }
    cluster.wait_in_sync(DEADLINE)?;
    create_topic_on(&cluster.bootstrap(), TOPIC, &[vec![0, 1, 2]], &[])?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == 0);
    produce_all(&cluster.bootstrap(), TOPIC, 0..RECORDS, RECORD_BYTES)?;
    cluster.compare_replicas(TOPIC, DEADLINE)?;
    let port = cluster.node(0).replication().port();
    cluster.terminate_all()?;
    let sent = Sent::read(&trace, port)?;
    ensure!(
        sent.sendfile >= REPLICATED_BYTES && sent.other < OTHER_BYTES_MAX,
        "{sent:?} of {REPLICATED_BYTES} bytes to followers"
    );
    Ok(())
}
