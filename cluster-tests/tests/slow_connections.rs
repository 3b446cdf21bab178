//! Connections that say nothing, or stop in the middle, are closed at their deadline, and nobody else notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::wire::{Batch, Connection, request};
use cluster_tests::workload::create_topic;
use cluster_tests::{Cluster, Options};

const TOPIC: &str = "busy";
/// Far below the seconds a test waits for an answer, so that a connection that ends was closed by its deadline.
const IDLE_MS: i64 = 400;

#[test]
fn silent_and_stalled_connections_are_closed() -> Result<()> {
    let options = Options::nodes(1)
        .config("connections.max.idle.ms", IDLE_MS)
        .config("request.progress.timeout.ms", IDLE_MS);
    let mut cluster = Cluster::with(options)?;
    create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
    let address = cluster.node(0).kafka();

    let mut silent = Connection::open(address)?;
    let mut half_length = Connection::open(address)?;
    half_length.send(&[0, 0])?;
    let mut half_frame = Connection::open(address)?;
    let frame = request(3, 1, 1, false, &[0, 0, 0, 0]);
    half_frame.send(&frame[..frame.len() - 1])?;
    let mut slow = Connection::open(address)?;
    slow.send(&(1_i32 << 20).to_be_bytes())?;

    // A client at work all the while keeps its one connection.
    let mut busy = Connection::open(address)?;
    let batch = Batch::of(&[b"still here"]).encode();
    for expected in 0..20 {
        ensure!(
            busy.produce(TOPIC, 0, &batch)? == Some((0, expected)),
            "the busy client's connection stays"
        );
        std::thread::park_timeout(Duration::from_millis(IDLE_MS.unsigned_abs() / 4));
    }
    for (what, connection) in [
        ("silent", &mut silent),
        ("half a length", &mut half_length),
        ("half a frame", &mut half_frame),
        ("no body", &mut slow),
    ] {
        ensure!(
            connection.answer()?.is_none(),
            "{what}: got an answer instead of being closed"
        );
    }
    Ok(())
}
