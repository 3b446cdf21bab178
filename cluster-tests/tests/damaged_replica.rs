//! A replica that is damaged below its recovery point while its node is down is set aside, whole, and replicated anew from
//! the others: the replicas are byte-identical again. Where no other replica has the records nothing is set aside, nothing of
//! them is served, and the files stay as they are. A damaged replica is never elected, though it be the only eligible one
//! that is there: the partition waits for one that is whole.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::view::Partition;
use cluster_tests::wire::{Batch, Connection};
use cluster_tests::workload::create_topic_on;
use cluster_tests::{Cluster, Options, wait};

const TOPIC: &str = "spread";
/// The partition whose log is cut, and the one whose log is overwritten.
const DAMAGES: [Damage; 2] = [Damage::Cut, Damage::Overwrite];
/// Held by the damaged node alone.
const ALONE: &str = "alone";
const VICTIM: usize = 2;
const BATCHES: i64 = 100;
const UNKNOWN_TOPIC: i16 = 3;
const NOT_LEADER: i16 = 6;
const KAFKA_STORAGE_ERROR: i16 = 56;

#[derive(Clone, Copy)]
enum Damage {
    /// The second half is gone.
    Cut,
    /// The second half is something else.
    Overwrite,
}

impl Damage {
    fn on(self, log: &Path) -> Result<()> {
        let file = OpenOptions::new().write(true).open(log)?;
        let (length, half) = (file.metadata()?.len(), file.metadata()?.len() / 2);
        match self {
            Self::Cut => file.set_len(half)?,
            Self::Overwrite => file.write_all_at(&vec![0xaa; (length - half) as usize], half)?,
        }
        Ok(())
    }
}

fn produce(cluster: &mut Cluster, topic: &str, partition: i32, leader: usize) -> Result<()> {
    produce_from(0, cluster, topic, partition, leader)
}

/// Writes [`BATCHES`] batches of one record, acknowledged by all in-sync replicas, which must come to be at `first` and up.
fn produce_from(
    first: i64,
    cluster: &mut Cluster,
    topic: &str,
    partition: i32,
    leader: usize,
) -> Result<()> {
    let mut connection = Connection::open(cluster.node(leader).kafka())?;
    for at in first..first + BATCHES {
        let value = format!("{topic}-{partition} {at} {}", "x".repeat(200));
        let batch = Batch::of(&[value.as_bytes()]).encode();
        let answer = wait::until("the leader to know that it leads", DEADLINE, || {
            let answer = connection.produce(topic, partition, &batch).transpose()?;
            let not_yet = |error| [UNKNOWN_TOPIC, NOT_LEADER].contains(&error);
            let waits = answer.as_ref().is_ok_and(|(error, _)| not_yet(*error));
            (!waits).then_some(answer)
        })??;
        ensure!(answer == (0, at), "{topic}-{partition}: {answer:?}");
    }
    Ok(())
}

/// The partition's newest segment.
fn newest_log(directory: &Path) -> Result<PathBuf> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let names = names.collect::<Result<Vec<_>>>()?;
    let logs = names.into_iter();
    logs.filter(|path| path.extension().is_some_and(|suffix| suffix == "log"))
        .max()
        .context("no segment")
}

/// What was kept of a partition's directory under other names.
fn kept(data: &Path, partition: &str) -> Result<Vec<PathBuf>> {
    let names = fs::read_dir(data)?.map(|entry| Ok(entry?.path()));
    let names = names.collect::<Result<Vec<_>>>()?;
    let is_kept = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("{partition}.")) && name.ends_with("-stray")
    };
    Ok(names.into_iter().filter(is_kept).collect())
}

/// So many nodes; whoever leads goes on doing so.
fn expecting_damage(nodes: u8) -> Options {
    Options::nodes(nodes)
        .config("auto.leader.rebalance.enable", false)
        .expect_errors("a log cannot be used")
        .expect_errors("the log is damaged and offline")
        .expect_errors("the partition is offline")
        .expect_errors("nobody can lead the partition")
        .expect_errors("a damaged log is replaced by what the other replicas have")
}

#[test]
fn a_damaged_replica_is_replicated_anew() -> Result<()> {
    let mut cluster = Cluster::with(expecting_damage(3))?;
    // The records' timestamps are 0: they are older than any retention.
    let config = [("retention.ms", "-1")];
    let replicas = vec![vec![0, 1, VICTIM]; DAMAGES.len()];
    create_topic_on(&cluster.bootstrap(), TOPIC, &replicas, &config)?;
    create_topic_on(&cluster.bootstrap(), ALONE, &[vec![VICTIM]], &config)?;
    for partition in [0, 1] {
        produce(&mut cluster, TOPIC, partition, 0)?;
    }
    produce(&mut cluster, ALONE, 0, VICTIM)?;
    cluster.compare_replicas(TOPIC, DEADLINE)?;

    // A clean stop: everything is flushed, and the recovery points say so.
    cluster.node(VICTIM).terminate()?;
    let mut damaged = Vec::new();
    for (partition, damage) in (0..).zip(DAMAGES) {
        let directory = cluster.node(VICTIM).partition_directory(TOPIC, partition);
        let log = newest_log(&directory)?;
        damage.on(&log)?;
        damaged.push((format!("{TOPIC}-{partition}"), log));
    }
    let lonely = newest_log(&cluster.node(VICTIM).partition_directory(ALONE, 0))?;
    Damage::Cut.on(&lonely)?;
    let lonely_bytes = fs::read(&lonely)?;
    let damaged_bytes: Vec<Vec<u8>> = damaged
        .iter()
        .map(|(_, log)| Ok(fs::read(log)?))
        .collect::<Result<_>>()?;

    cluster.node(VICTIM).start()?;
    for partition in [0, 1] {
        cluster.wait_partition(TOPIC, partition, "in sync", DEADLINE, Partition::in_sync)?;
    }
    cluster.compare_replicas(TOPIC, DEADLINE)?;
    let data = cluster.node(VICTIM).data_directory();
    for ((partition, log), bytes) in damaged.iter().zip(&damaged_bytes) {
        let kept = kept(&data, partition)?;
        ensure!(kept.len() == 1, "{partition} was kept as {kept:?}");
        let file = kept[0].join(log.file_name().context("a file without a name")?);
        ensure!(
            fs::read(&file)? == *bytes,
            "{} is not what was there",
            file.display()
        );
    }

    // What nobody else has is neither served nor touched.
    let mut connection = Connection::open(cluster.node(VICTIM).kafka())?;
    let answer = connection.produce(ALONE, 0, &Batch::of(&[b"more"]).encode())?;
    ensure!(
        answer.is_some_and(|(error, _)| error == KAFKA_STORAGE_ERROR),
        "the only replica is damaged: {answer:?}"
    );
    ensure!(kept(&data, &format!("{ALONE}-0"))?.is_empty());
    ensure!(
        fs::read(&lonely)? == lonely_bytes,
        "a damaged log was changed"
    );
    ensure!(
        cluster
            .node(VICTIM)
            .metrics()?
            .sum("kittiwake_partitions_failed", &[])
            == Some(1.0)
    );

    // The operator accepts its loss.
    cluster.wait_partition(ALONE, 0, "led by nobody", DEADLINE, |partition| {
        partition.leader.is_none()
    })?;
    cluster.node(VICTIM).terminate()?;
    let alone = cluster.node(VICTIM).partition_directory(ALONE, 0);
    fs::rename(&alone, cluster.directory().join("lost"))?;
    cluster.node(VICTIM).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    produce(&mut cluster, ALONE, 0, VICTIM)?;

    // The new replicas are replicas like any other: the leader dies, and they go on.
    cluster.node(0).kill()?;
    let successor = cluster.leader(TOPIC, 0, DEADLINE)?;
    let written = wait::until("a successor to acknowledge", DEADLINE, || {
        let mut connection = Connection::open(cluster.node(successor).kafka()).ok()?;
        let answer = connection.produce(TOPIC, 0, &Batch::of(&[b"later"]).encode());
        match answer {
            Ok(Some((0, offset))) => Some(offset),
            _ => None,
        }
    })?;
    ensure!(written >= BATCHES, "records are missing: {written}");
    cluster.node(0).start()?;
    cluster.conclude(&[TOPIC], DEADLINE)
}

/// The leader of what one follower lacks stops and is damaged; the only other replica that has everything is down when it
/// comes back. A node without replicas is all of the metadata quorum, so that it is known in time who is down.
#[test]
fn a_damaged_replica_does_not_lead() -> Result<()> {
    const DAMAGED: usize = 1;
    const WHOLE: usize = 2;
    const BEHIND: usize = 3;
    let mut cluster = Cluster::with(expecting_damage(4).voters(1))?;
    cluster.start_all()?;
    cluster.wait_in_sync(DEADLINE)?;
    let config = [("retention.ms", "-1"), ("min.insync.replicas", "2")];
    let replicas = vec![DAMAGED, WHOLE, BEHIND];
    create_topic_on(&cluster.bootstrap(), TOPIC, &[replicas], &config)?;
    produce(&mut cluster, TOPIC, 0, DAMAGED)?;
    cluster.compare_replicas(TOPIC, DEADLINE)?;
    cluster.node(BEHIND).terminate()?;
    produce_from(BATCHES, &mut cluster, TOPIC, 0, DAMAGED)?;
    cluster.node(DAMAGED).terminate()?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == WHOLE);
    cluster.node(WHOLE).kill()?;
    let nobody_leads = |partition: &Partition| partition.leader.is_none();
    cluster.wait_partition(TOPIC, 0, "led by nobody", DEADLINE, nobody_leads)?;
    let directory = cluster.node(DAMAGED).partition_directory(TOPIC, 0);
    Damage::Overwrite.on(&newest_log(&directory)?)?;

    // An eligible replica that is damaged, and one that is well and lacks what was acknowledged: neither leads.
    for node in [DAMAGED, BEHIND] {
        cluster.node(node).start()?;
    }
    cluster.wait_partition(TOPIC, 0, "led by nobody", DEADLINE, nobody_leads)?;
    let status = cluster.administer(0, &["cluster", "status"])?;
    let troubled = &status["troubled"][0];
    let mut eligible: Vec<usize> = serde_json::from_value(troubled["elr"].clone())?;
    eligible.sort_unstable();
    ensure!(
        troubled["damaged"] == serde_json::json!([DAMAGED]) && eligible == [DAMAGED, WHOLE],
        "{status:#}"
    );
    let errors = cluster.node(DAMAGED).error_lines().join("\n");
    ensure!(
        errors.contains("nobody can lead the partition")
            && errors.contains(&format!("start=[{WHOLE}]")),
        "the operator is not told what to start: {errors}"
    );

    // The whole one comes back and leads with everything that was acknowledged, and the damaged one has it from there.
    cluster.node(WHOLE).start()?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == WHOLE);
    cluster.wait_in_sync(DEADLINE)?;
    produce_from(2 * BATCHES, &mut cluster, TOPIC, 0, WHOLE)?;
    cluster.compare_replicas(TOPIC, DEADLINE)?;
    let data = cluster.node(DAMAGED).data_directory();
    ensure!(kept(&data, &format!("{TOPIC}-0"))?.len() == 1);
    cluster.conclude(&[TOPIC], DEADLINE)
}
