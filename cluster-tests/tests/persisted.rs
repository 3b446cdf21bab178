//! `kittiwake.durability=persisted`: a record is acknowledged once it is on the disk, by the system calls that put it there.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use cluster_tests::strace::{self, Acknowledged};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Batch, Connection};
use cluster_tests::workload::create_topic;
use cluster_tests::{Cluster, Options, wait};

const PERSISTED: &str = "persisted";
/// The control: what is acknowledged from memory must be seen to be.
const REPLICATED: &str = "replicated";
/// Clients at a time, each with one request in flight: they share flushes.
const CLIENTS: usize = 4;
const RECORDS: usize = 50;

/// Lets the clients produce, and returns their ports.
fn produce(cluster: &mut Cluster, topic: &str) -> Result<BTreeSet<u16>> {
    let address = cluster.node(0).kafka();
    let mut clients = (0..CLIENTS)
        .map(|_| Connection::open(address))
        .collect::<Result<Vec<_>>>()?;
    let ports = clients
        .iter()
        .map(Connection::port)
        .collect::<Result<BTreeSet<_>>>()?;
    std::thread::scope(|scope| {
        let running: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(|| {
                    let batch = Batch::of(&[b"a record"]).encode();
                    (0..RECORDS).try_for_each(|_| {
                        let answer = client.produce(topic, 0, &batch)?;
                        ensure!(matches!(answer, Some((0, _))), "{topic}: {answer:?}");
                        Ok(())
                    })
                })
            })
            .collect();
        running
            .into_iter()
            .try_for_each(|client| client.join().expect("a client panicked"))
    })?;
    Ok(ports)
}

#[test]
fn an_acknowledgement_follows_the_flush() -> Result<()> {
    if !strace::is_installed() {
        println!("skipped: strace is not installed");
        return Ok(());
    }
    let mut cluster = Cluster::prepare(Options::nodes(1))?;
    let node = cluster.node(0);
    let (trace, began) = strace::spawn_for_flushes(node)?;
    node.wait_ready(began)?;
    let bootstrap = cluster.bootstrap();
    let durability = [("kittiwake.durability", "persisted")];
    create_topic(&bootstrap, PERSISTED, 1, &durability)?;
    create_topic(&bootstrap, REPLICATED, 1, &[])?;
    let persisted = produce(&mut cluster, PERSISTED)?;
    let replicated = produce(&mut cluster, REPLICATED)?;
    let port = cluster.node(0).kafka().port();
    cluster.node(0).terminate()?;

    let mut judge = |topic: &str, clients: &BTreeSet<u16>| {
        let directory = cluster.node(0).partition_directory(topic, 0);
        // strace may write its last lines after the node's end.
        let mut last = None;
        wait::until("the trace to be complete", DEADLINE, || {
            let found = Acknowledged::read(&trace, port, clients, &directory);
            let whole = matches!(found, Ok(found) if found.total == CLIENTS * RECORDS);
            last = Some(found);
            whole.then_some(())
        })
        .with_context(|| format!("{last:?}"))?;
        last.context("nothing was read")?
    };
    let found = judge(PERSISTED, &persisted)?;
    ensure!(found.unflushed == 0, "acknowledged from memory: {found:?}");
    let control = judge(REPLICATED, &replicated)?;
    ensure!(control.unflushed > 0, "the trace shows no difference");
    cluster.check_logs()
}
