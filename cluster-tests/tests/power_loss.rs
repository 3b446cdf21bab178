//! All nodes lose power at once, under load: what a `kittiwake.durability=persisted` topic has acknowledged is there.
//!
//! Needs root, for a file system that can lose power. An ordinary user's run skips it and says so.

use anyhow::{Result, ensure};
use cluster_tests::mount::Mount;
use cluster_tests::privileges;
use cluster_tests::trials::{Clients, DEADLINE};
use cluster_tests::workload::{Load, create_topic};
use cluster_tests::{Cluster, Options};

const TOPIC: &str = "persisted";
const SIZE_MIB: u64 = 512;
const TIMES: usize = 2;
const PROGRESS: usize = 500;

fn survives(nodes: u8) -> Result<()> {
    let Some(mount) = privileges::or_skip(Mount::losing_power(SIZE_MIB))? else {
        return Ok(());
    };
    // Segments so small that rolls are hit, too.
    let options = Options::nodes(nodes)
        .under(mount.point())
        .config("log.segment.bytes", 1 << 20);
    let mut cluster = Cluster::prepare(options)?;
    // The harness's own files are not what is tried.
    mount.sync()?;
    cluster.start_all()?;
    cluster.wait_in_sync(DEADLINE)?;
    let durability = [("kittiwake.durability", "persisted")];
    let load = Load {
        records_per_second: 2_000,
        ..Load::of(TOPIC)
    };
    create_topic(&cluster.bootstrap(), TOPIC, load.partitions, &durability)?;
    let clients = Clients::start(&cluster, load)?;
    for _ in 0..TIMES {
        clients.workload.progress(PROGRESS, DEADLINE)?;
        clients.workload.progress_everywhere(DEADLINE)?;
        cluster.kill_all()?;
        mount.lose_power()?;
        for node in cluster.nodes() {
            node.reboot()?;
        }
        cluster.start_all()?;
        clients.workload.progress_everywhere(DEADLINE)?;
        cluster.wait_in_sync(DEADLINE)?;
    }
    let history = clients.finish()?;
    ensure!(history.sends.len() >= TIMES * PROGRESS);
    cluster.conclude(&[TOPIC], DEADLINE)
}

#[test]
fn of_one_node() -> Result<()> {
    survives(1)
}

#[test]
fn of_all_three_nodes() -> Result<()> {
    survives(3)
}
