//! Three nodes become a cluster in whatever order they start, notice each other's death and hanging, and take each other
//! back. Times are printed, not asserted: machines differ.

#![allow(clippy::unwrap_used)] // Clippy sees the helpers of an integration test as ordinary code.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use cluster_tests::{Cluster, Node, Options, wait};

/// Far more than any of this takes: a debug build on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// The default of `broker.session.timeout.ms`.
const SESSION_TIMEOUT: Duration = Duration::from_secs(3);

fn gauge(node: &Node, name: &str) -> Option<f64> {
    node.metrics().ok()?.sum(name, &[])
}

/// What the nodes have fenced, as controllers of their lives.
fn fenced(cluster: &mut Cluster, reason: &str) -> f64 {
    (0..3)
        .filter_map(|index| {
            let node = cluster.node(index);
            if node.is_paused() {
                return None;
            }
            let metrics = node.metrics().ok()?;
            metrics.sum("kittiwake_brokers_fenced_total", &[("reason", reason)])
        })
        .sum()
}

fn controller(cluster: &mut Cluster) -> Result<usize> {
    wait::until("a controller", DEADLINE, || {
        (0..3).find(|index| gauge(cluster.node(*index), "kittiwake_is_controller") == Some(1.0))
    })
}

/// Waits until somebody has fenced for this reason; prints how long it took since `began`.
fn wait_fenced(cluster: &mut Cluster, before: f64, reason: &str, what: &str, began: Instant) {
    wait::until(&format!("{what} to be fenced"), DEADLINE, || {
        (fenced(cluster, reason) > before).then_some(())
    })
    .expect("what must be fenced is");
    println!("{what}: fenced after {:?}", began.elapsed());
}

#[test]
fn nodes_form_a_cluster_in_any_order_with_one_late() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut cluster = Cluster::prepare(Options::nodes(3)).unwrap();
        let [first, second, late] = order;
        let mut began = [first, second].map(|index| (index, cluster.node(index).spawn().unwrap()));
        // Long enough for two of three to have found each other, which must not be enough to form a new cluster.
        sleep(Duration::from_millis(500));
        for (index, _) in began {
            assert!(!cluster.node(index).log().contains("serving"));
        }
        let started = cluster.node(late).spawn().unwrap();
        began.iter_mut().for_each(|(_, began)| *began = started);
        for (index, began) in began.into_iter().chain([(late, started)]) {
            cluster.node(index).wait_ready(began).unwrap();
        }
        println!(
            "order {order:?}: ready {:?} after the last one started",
            started.elapsed()
        );
    }
}

#[test]
fn a_killed_node_is_fenced_at_once_and_comes_back() {
    let mut cluster = Cluster::start(3).unwrap();
    for round in ["follower", "controller"] {
        let leader = controller(&mut cluster).unwrap();
        let victim = if round == "controller" {
            leader
        } else {
            (leader + 1) % 3
        };
        // A victim's own count dies with it.
        let own = fenced_by(cluster.node(victim), "dead");
        let before = fenced(&mut cluster, "dead") - own;
        cluster.node(victim).kill().unwrap();
        wait_fenced(
            &mut cluster,
            before,
            "dead",
            &format!("killed {round}"),
            Instant::now(),
        );
        let took = cluster.node(victim).start().unwrap();
        println!("killed {round}: ready again {took:?} after its start");
    }
}

fn fenced_by(node: &Node, reason: &str) -> f64 {
    let metrics = node.metrics().expect("a node that runs has metrics");
    metrics
        .sum("kittiwake_brokers_fenced_total", &[("reason", reason)])
        .unwrap_or_default()
}

#[test]
fn a_hung_node_is_fenced_after_the_session_timeout_and_unfences_itself() {
    let mut cluster = Cluster::start(3).unwrap();
    for round in ["follower", "controller"] {
        let leader = controller(&mut cluster).unwrap();
        let victim = if round == "controller" {
            leader
        } else {
            (leader + 1) % 3
        };
        let own = fenced_by(cluster.node(victim), "silent");
        let before = fenced(&mut cluster, "silent") - own;
        cluster.node(victim).pause().unwrap();
        let began = Instant::now();
        wait_fenced(
            &mut cluster,
            before,
            "silent",
            &format!("hung {round}"),
            began,
        );
        assert!(began.elapsed() > SESSION_TIMEOUT / 2, "fenced too early");
        cluster.node(victim).resume().unwrap();
        let resumed = Instant::now();
        wait::until("it to notice", DEADLINE, || {
            cluster
                .node(victim)
                .log()
                .contains("unfenced again")
                .then_some(())
        })
        .unwrap();
        cluster.node(victim).wait_ready(Instant::now()).unwrap();
        println!(
            "hung {round}: ready again {:?} after it went on",
            resumed.elapsed()
        );
        assert_eq!(
            fenced_by(cluster.node(victim), "silent"),
            own,
            "it fenced others for its own pause"
        );
    }
}
