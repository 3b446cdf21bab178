//! A cluster of one node grows to three, under load: nodes join, the partitions are given more replicas from the command
//! line, and then the first node may die.

use anyhow::{Result, ensure};
use cluster_tests::trials::{Clients, DEADLINE};
use cluster_tests::workload::{Load, create_topic};
use cluster_tests::{Cluster, Options};

const TOPIC: &str = "grown";
const PARTITIONS: i32 = 3;

#[test]
fn one_node_grows_to_three() -> Result<()> {
    let mut cluster = Cluster::with(Options::nodes(3).voters(1))?;
    create_topic(&cluster.bootstrap(), TOPIC, PARTITIONS, &[])?;
    let load = Load {
        records_per_second: 500,
        ..Load::of(TOPIC)
    };
    let clients = Clients::start(&cluster, load)?;
    clients.workload.progress_everywhere(DEADLINE)?;

    cluster.node(0).terminate()?;
    cluster.configure_voters(3)?;
    cluster.start_all()?;
    cluster.wait_in_sync(DEADLINE)?;
    clients.workload.progress_everywhere(DEADLINE)?;

    for partition in 0..PARTITIONS {
        let index = partition.to_string();
        let (topic, replicas) = (["--topic", TOPIC], ["--replicas", "0,1,2"]);
        let command = ["cluster", "reassign", "--partition", &index];
        cluster.administer(1, &[&command[..], &topic, &replicas].concat())?;
    }
    for partition in 0..PARTITIONS {
        cluster.wait_partition(TOPIC, partition, "on three nodes", DEADLINE, |partition| {
            partition.replicas.len() == 3 && partition.in_sync()
        })?;
    }
    clients.workload.progress_everywhere(DEADLINE)?;

    // The node that was the cluster is not needed any more.
    cluster.node(0).kill()?;
    clients.workload.progress_everywhere(DEADLINE)?;
    ensure!(cluster.controller(DEADLINE)? != 0);
    cluster.node(0).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    clients.finish()?;
    cluster.conclude(&[TOPIC], DEADLINE)
}
