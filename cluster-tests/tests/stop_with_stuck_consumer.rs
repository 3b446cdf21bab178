//! SIGTERM of a leader while a consumer takes nothing of what it has asked for: leadership moves at once, the stop is a clean
//! one, and it ends within `kittiwake.shutdown.timeout.ms`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::view::View;
use cluster_tests::wire::{Batch, Connection, fetch_body};
use cluster_tests::workload::{create_topic_on, produce_all};
use cluster_tests::{Cluster, Options, wait};

const TOPIC: &str = "stuck";
const LEADER: usize = 0;
/// Half of it is the consumer's; the rest must do for a flush of a debug build on a busy machine.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(16);
/// More than the sockets of both sides hold.
const BACKLOG_BYTES: usize = 64 << 20;
const RECORD_BYTES: usize = 64 << 10;

/// Asks for everything (Fetch v11).
fn ask_for_everything(connection: &mut Connection) -> Result<()> {
    const FETCH: i16 = 1;
    let bytes_max = i32::try_from(BACKLOG_BYTES)?;
    let body = fetch_body(-1, TOPIC, 0, bytes_max, "");
    connection.ask(FETCH, 11, &body)
}

#[test]
fn a_consumer_that_takes_nothing_does_not_hold_a_stop_up() -> Result<()> {
    let timeout_ms = i64::try_from(SHUTDOWN_TIMEOUT.as_millis())?;
    let options = Options::nodes(3).config("kittiwake.shutdown.timeout.ms", timeout_ms);
    let mut cluster = Cluster::with(options)?;
    create_topic_on(&cluster.bootstrap(), TOPIC, &[vec![LEADER, 1, 2]], &[])?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == LEADER);
    let records = (BACKLOG_BYTES / RECORD_BYTES) as u64;
    produce_all(&cluster.bootstrap(), TOPIC, 0..records, RECORD_BYTES)?;
    let mut stuck = Connection::open(cluster.node(LEADER).kafka())?;
    ask_for_everything(&mut stuck)?;
    wait::until("the answer to begin", DEADLINE, || {
        stuck.is_silent().is_ok_and(|silent| !silent).then_some(())
    })?;

    let asked = Instant::now();
    cluster.node(LEADER).ask_to_stop()?;
    // The others do not wait for that consumer.
    let batch = Batch::of(&[b"meanwhile"]).encode();
    wait::until(
        "another leader to acknowledge",
        SHUTDOWN_TIMEOUT / 2,
        || {
            let view = View::of(cluster.node(1).kafka()).ok()?;
            let leader = view.partition(TOPIC, 0)?.leader? as usize;
            if leader == LEADER {
                return None;
            }
            // It may have to hear of it yet.
            let mut connection = Connection::open(cluster.node(leader).kafka()).ok()?;
            let answer = connection.produce(TOPIC, 0, &batch).ok()??;
            (answer.0 == 0).then_some(())
        },
    )?;
    ensure!(
        cluster.node(LEADER).is_running(),
        "nothing was shown: the node has stopped already"
    );
    cluster.node(LEADER).wait_stopped()?;
    let took = asked.elapsed();
    println!("stopped in {took:.2?}");
    ensure!(took < SHUTDOWN_TIMEOUT, "the stop took {took:.2?}");
    ensure!(
        cluster
            .node(LEADER)
            .log()
            .contains("connections are still open"),
        "nothing was shown: the consumer had taken it all"
    );
    drop(stuck);
    cluster.node(LEADER).start()?;
    cluster.conclude(&[TOPIC], DEADLINE)
}
