//! A file system filled to the last byte under load: no signal, clear errors, reads go on, and writes resume by themselves
//! when space returns.
//!
//! Needs root, for a small file system of its own. An ordinary user's run skips it and says so; in CI (`CI` is set) a run
//! as root that cannot mount fails.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use cluster_tests::checker::{Guarantees, check};
use cluster_tests::history::Recorder;
use cluster_tests::mount::Mount;
use cluster_tests::privileges;
use cluster_tests::wait;
use cluster_tests::wire::{Batch, Connection};
use cluster_tests::workload::{Load, Workload, create_topic};
use cluster_tests::{Cluster, Options};

const DEADLINE: Duration = Duration::from_secs(60);
const SIZE_MIB: u64 = 192;
const TOPIC: &str = "full";
/// Where the test itself writes to see what a client is told.
const PROBE: &str = "probe";

/// Takes the last byte of the file system.
fn fill(path: &Path) -> Result<()> {
    let mut ballast = OpenOptions::new().create(true).append(true).open(path)?;
    for size in [1 << 20, 4096, 1] {
        let block = vec![0xba; size];
        loop {
            match ballast.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn survives(mount: Result<Mount>) -> Result<()> {
    let Some(mount) = privileges::or_skip(mount)? else {
        return Ok(());
    };
    // ERROR lines about the full disk are what an operator needs to see.
    let options = Options::nodes(1)
        .under(mount.point())
        .config("log.segment.bytes", 4 << 20)
        .config("kittiwake.disk.free.min.bytes", 8 << 20)
        .expect_errors("space");
    let mut cluster = Cluster::with(options)?;
    let bootstrap = cluster.bootstrap();
    let load = Load {
        producers: 1,
        record_bytes: 1_000,
        ..Load::of(TOPIC)
    };
    create_topic(&bootstrap, TOPIC, load.partitions, &[])?;
    create_topic(&bootstrap, PROBE, 1, &[])?;
    let recorder = Recorder::default();
    let clients = Workload::start(&bootstrap, load, recorder.clone())?;
    clients.progress(2_000, DEADLINE)?;

    let ballast = mount.point().join("ballast");
    fill(&ballast)?;
    // The load goes on against the full disk until the node refuses.
    let address = cluster.node(0).kafka();
    let batch = Batch::of(&[&vec![b'x'; 100_000]]).encode();
    refused(address, &batch, &ballast)?;
    ensure!(
        cluster.node(0).pid().is_some() && cluster.node(0).metrics().is_ok(),
        "the node lives"
    );

    // Reads go on: a fresh client reads from the beginning while nothing can be written.
    let reading = Recorder::default();
    cluster_tests::workload::read_to_end(&bootstrap, TOPIC, 3, &reading)?;
    ensure!(
        reading.snapshot().final_reads.len() >= 2_000,
        "a full disk can still be read"
    );

    std::fs::remove_file(&ballast)?;
    clients.progress(2_000, DEADLINE)?;
    clients.finish()?;
    let anomalies = check(&recorder.snapshot(), Guarantees { idempotent: true });
    if let Some(anomaly) = anomalies.first() {
        bail!("{} anomalies, the first: {anomaly:?}", anomalies.len());
    }
    cluster.node(0).terminate()?;
    cluster.check_logs()
}

/// Produces until an error comes back; what space the node itself frees meanwhile is taken again.
fn refused(address: std::net::SocketAddr, batch: &[u8], ballast: &Path) -> Result<()> {
    let mut connection = Connection::open(address)?;
    let error = wait::until("an append to be refused", DEADLINE, || {
        let _ = fill(ballast);
        match connection.produce(PROBE, 0, batch) {
            Ok(Some((0, _))) => None,
            Ok(Some((error, _))) => Some(Ok(error)),
            Ok(None) => Some(Err(anyhow::anyhow!("the connection was closed"))),
            Err(error) => Some(Err(error)),
        }
    })??;
    // Kafka's retriable storage error: clients keep the record and try again.
    const KAFKA_STORAGE_ERROR: i16 = 56;
    ensure!(
        error == KAFKA_STORAGE_ERROR,
        "a full disk gave error {error}"
    );
    Ok(())
}

#[test]
fn a_full_tmpfs() -> Result<()> {
    survives(Mount::tmpfs(SIZE_MIB))
}

#[test]
fn a_full_ext4() -> Result<()> {
    survives(Mount::ext4(SIZE_MIB))
}
