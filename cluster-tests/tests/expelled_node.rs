//! A node that was removed from the cluster, or whose id another process has taken, while it hung stops by itself when it
//! wakes up: with one clear sentence and an exit status, and without having led or written anything.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{ACKS_LEADER, Batch, Connection};
use cluster_tests::workload::create_topic_on;
use cluster_tests::{Cluster, Node, Options, wait};

/// The default of `broker.session.timeout.ms` is 3 s.
const FENCED_WITHIN: Duration = Duration::from_secs(30);
const REMOVED: &str = "this node was removed from the cluster";
const SUPERSEDED: &str = "another process has registered as node";

/// What the cluster says of node `id`, asked of node 0; none where it does not know it.
fn registration(cluster: &mut Cluster, id: u32) -> Result<Option<serde_json::Value>> {
    let status = cluster.node(0).status()?;
    let nodes = status["nodes"].as_array().context("no nodes")?;
    Ok(nodes.iter().find(|node| node["id"] == id).cloned())
}

fn wait_fenced(cluster: &mut Cluster, id: u32) -> Result<()> {
    wait::until("the hung node to be fenced", FENCED_WITHIN, || {
        let found = registration(cluster, id).ok()??;
        (found["state"] == "fenced").then_some(())
    })
}

/// Wakes the node up; it must end by itself, with a failure, and say `why` last.
fn stops_saying(node: &mut Node, why: &str) -> Result<()> {
    node.resume()?;
    let status = node.wait_exit(DEADLINE).with_context(|| node.log_tail())?;
    let log = node.log();
    let last = log.trim_end().lines().last().unwrap_or_default();
    println!("{status}: {last}");
    ensure!(
        status.code() == Some(1) && last.contains(why),
        "the node ended with {status}\n{}",
        node.log_tail()
    );
    Ok(())
}

#[test]
fn a_node_that_was_removed_stops() -> Result<()> {
    const NODE: usize = 3;
    let options = Options::nodes(4).voters(3).expect_errors(REMOVED);
    let mut cluster = Cluster::with(options)?;
    cluster.node(NODE).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    cluster.node(NODE).pause()?;
    wait_fenced(&mut cluster, NODE as u32)?;
    cluster.administer(0, &["cluster", "remove", "3"])?;
    ensure!(registration(&mut cluster, NODE as u32)?.is_none());
    stops_saying(cluster.node(NODE), REMOVED)?;
    cluster.terminate_all()?;
    cluster.check_logs()
}

#[test]
fn a_node_whose_id_another_process_has_taken_stops() -> Result<()> {
    const TOPIC: &str = "led-by-both";
    const NODE: usize = 2;
    /// Another process with another data directory and the same id.
    const TWIN: usize = 3;
    let options = Options::nodes(4).voters(3).expect_errors(SUPERSEDED);
    let mut cluster = Cluster::with(options)?;
    create_topic_on(&cluster.bootstrap(), TOPIC, &[vec![NODE, 0, 1]], &[])?;
    let batch = Batch::of(&[b"a record"]).encode();
    let mut connection = Connection::open(cluster.node(NODE).kafka())?;
    ensure!(connection.produce(TOPIC, 0, &batch)? == Some((0, 0)));
    let epoch_of = |cluster: &mut Cluster| {
        let found = registration(cluster, NODE as u32)?.context("node 2 is not registered")?;
        found["epoch"].as_i64().context("no epoch")
    };
    let epoch = epoch_of(&mut cluster)?;

    cluster.node(NODE).pause()?;
    wait_fenced(&mut cluster, NODE as u32)?;
    let voters: Vec<toml::Value> = [(0, 0), (1, 1), (NODE, TWIN)]
        .map(|(id, node)| format!("{id}@{}", cluster.node(node).grpc()).into())
        .into();
    cluster.node(TWIN).configure("node.id", NODE as i64)?;
    cluster.node(TWIN).configure("cluster.voters", voters)?;
    cluster.node(TWIN).start()?;
    ensure!(
        epoch_of(&mut cluster)? > epoch,
        "the twin is not registered"
    );
    // It lies in the first one's socket until it wakes up.
    connection.ask_produce(ACKS_LEADER, TOPIC, 0, &batch)?;
    stops_saying(cluster.node(NODE), SUPERSEDED)?;
    let answer = connection.produced().unwrap_or(None);
    ensure!(
        answer.is_none_or(|(error, _)| error != 0),
        "a superseded leader took a write: {answer:?}"
    );
    cluster.terminate_all()?;
    cluster.check_logs()
}
