//! Five voters outlive two: `kill -9` of the controller and of another leader at once, and writes go on in every partition;
//! nothing acknowledged is lost.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cluster_tests::trials::{Clients, DEADLINE};
use cluster_tests::workload::{Load, create_topic_on};
use cluster_tests::{Cluster, Options, pauses};

const TOPIC: &str = "five";
const NODES: usize = 5;

#[test]
fn five_voters_outlive_two() -> Result<()> {
    let mut cluster = Cluster::with(Options::nodes(NODES as u8))?;
    // Every node leads one partition, and every node has all of them.
    let replicas: Vec<Vec<usize>> = (0..NODES)
        .map(|leader| (leader..leader + NODES).map(|node| node % NODES).collect())
        .collect();
    create_topic_on(&cluster.bootstrap(), TOPIC, &replicas, &[])?;
    let load = Load {
        partitions: NODES as i32,
        records_per_second: 300,
        ..Load::of(TOPIC)
    };
    let clients = Clients::start(&cluster, load)?;
    clients.workload.progress_everywhere(DEADLINE)?;

    let controller = cluster.controller(DEADLINE)?;
    let dead = [controller, (controller + 1) % NODES];
    let (killed, began) = (clients.recorder.now(), Instant::now());
    for node in dead {
        cluster.node(node).kill()?;
    }
    clients.workload.progress_everywhere(DEADLINE)?;
    let resumed = clients.recorder.now();
    println!(
        "writes went on everywhere {:.2?} after the kills",
        began.elapsed()
    );
    let successor = cluster.controller(DEADLINE)?;
    ensure!(
        !dead.contains(&successor),
        "a dead node is the controller: {successor}"
    );

    for node in dead {
        cluster.node(node).start()?;
    }
    cluster.wait_in_sync(DEADLINE)?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let history = clients.finish()?;
    let pause = pauses::longest(&history, killed, resumed).context("nothing was acknowledged")?;
    println!("no acknowledgements for {:.2?}", pause.length);
    cluster.conclude(&[TOPIC], DEADLINE)
}
