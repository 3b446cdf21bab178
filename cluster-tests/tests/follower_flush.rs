//! A follower that finds no room for a flush tries again: what waits for its disk (`kittiwake.durability=persisted`) is
//! acknowledged once there is room, without a restart and without another write that would bring it about.

use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{ACKS_ALL, Batch, Connection};
use cluster_tests::workload::create_topic_on;
use cluster_tests::{Cluster, wait};

const TOPIC: &str = "persisted";
const FOLLOWER: usize = 2;
/// Several attempts of the follower, which are a second apart.
const FULL: Duration = Duration::from_secs(3);

#[test]
fn a_flush_that_found_no_room_is_tried_again() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let config = [("kittiwake.durability", "persisted")];
    create_topic_on(
        &cluster.bootstrap(),
        TOPIC,
        &[vec![0, 1, FOLLOWER]],
        &config,
    )?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == 0);
    // The first flush writes the epoch of the first record into a new file. Writing to this one fails with ENOSPC.
    let directory = cluster.node(FOLLOWER).partition_directory(TOPIC, 0);
    let full = directory.join("leader-epoch-checkpoint.tmp");
    symlink("/dev/full", &full)?;

    let mut connection = Connection::open(cluster.node(0).kafka())?;
    connection.ask_produce(ACKS_ALL, TOPIC, 0, &Batch::of(&[b"a record"]).encode())?;
    wait::pass(FULL);
    ensure!(
        connection.is_silent()?,
        "acknowledged before every in-sync replica had it on disk"
    );
    std::fs::remove_file(&full)?;
    let answer = connection.produced()?;
    ensure!(answer == Some((0, 0)), "with room again: {answer:?}");
    let online = cluster
        .node(FOLLOWER)
        .metrics()?
        .sum("kittiwake_log_dir_online", &[]);
    ensure!(
        online == Some(1.0),
        "want of room took the directory offline"
    );
    cluster.conclude(&[TOPIC], DEADLINE)
}
