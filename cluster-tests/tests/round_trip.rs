//! What librdkafka produces comes back identical and in order, with each of its codecs.
//!
//! zstd and the other client libraries are tried by `real_clients`.

use std::time::Duration;

use anyhow::{Result, bail};
use cluster_tests::Cluster;
use cluster_tests::checker::{Guarantees, check};
use cluster_tests::history::Recorder;
use cluster_tests::workload::{Load, Workload, create_topic};

const RECORDS: usize = 10_000;
const DEADLINE: Duration = Duration::from_secs(120);

fn come_back(compression: &'static str) -> Result<()> {
    let cluster = Cluster::start(1)?;
    let load = Load {
        record_bytes: 500,
        compression,
        ..Load::of("round-trip")
    };
    create_topic(&cluster.bootstrap(), &load.topic, load.partitions, &[])?;
    let recorder = Recorder::default();
    let clients = Workload::start(&cluster.bootstrap(), load, recorder.clone())?;
    clients.progress(RECORDS, DEADLINE)?;
    clients.finish()?;
    let history = recorder.snapshot();
    assert!(history.final_reads.len() >= RECORDS);
    assert!(
        !history.reads.is_empty(),
        "the consumer beside the producers was given nothing"
    );
    match check(&history, Guarantees { idempotent: true }).first() {
        None => Ok(()),
        Some(anomaly) => bail!("{anomaly:?}"),
    }
}

#[test]
fn uncompressed() -> Result<()> {
    come_back("none")
}

#[test]
fn gzip() -> Result<()> {
    come_back("gzip")
}

#[test]
fn snappy() -> Result<()> {
    come_back("snappy")
}

#[test]
fn lz4() -> Result<()> {
    come_back("lz4")
}
