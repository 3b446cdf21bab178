//! Figures, not promises: how long a controller's death and a planned hand-over take, and what an
//! idle member costs. `cargo test -p kittiwake-raft --test figures -- --ignored --nocapture`
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Cluster, Node, PATIENCE, controller, eventually, insist, set};
use tokio::time::{Instant, sleep};

const ROUNDS: u32 = 10;

async fn split(nodes: &mut Vec<Node>) -> Node {
    let all: Vec<_> = nodes.iter().collect();
    let leading = controller(&all).await;
    let position = nodes.iter().position(|node| node.broker() == leading);
    nodes.remove(position.unwrap())
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let median = took[took.len() / 2];
    println!(
        "{what}: median {median:?}, longest {:?}",
        took.last().unwrap()
    );
}

#[ignore = "a measurement"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_to_a_new_controller() {
    let mut cluster = Cluster::new(3, 3);
    let mut nodes = cluster.start_all().await;
    let (mut elected, mut accepted) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        insist(&nodes[0], set("a", round)).await;
        let leading = split(&mut nodes).await;
        let victim = leading.broker();
        let died = Instant::now();
        leading.kill();
        eventually("another controller", || {
            let known = nodes[0].quorum.controller();
            known.is_some_and(|known| known != victim)
        })
        .await;
        elected.push(died.elapsed());
        insist(&nodes[0], set("a", round)).await;
        accepted.push(died.elapsed());
        nodes.push(cluster.start(victim.0).await);
    }
    print("another controller known", elected);
    print("a proposal accepted", accepted);
}

#[ignore = "a measurement"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_to_hand_over() {
    let mut cluster = Cluster::new(3, 3);
    let mut nodes = cluster.start_all().await;
    let mut handed_over = Vec::new();
    let mut accepted = Vec::new();
    for round in 0..ROUNDS {
        insist(&nodes[0], set("a", round)).await;
        let leading = split(&mut nodes).await;
        let asked = Instant::now();
        leading.quorum.hand_over(asked + PATIENCE).await.unwrap();
        handed_over.push(asked.elapsed());
        insist(&nodes[0], set("a", round)).await;
        accepted.push(asked.elapsed());
        nodes.push(leading);
    }
    print("handed over", handed_over);
    print("a proposal accepted", accepted);
}

/// CPU time of this process's threads, as the scheduler counts it.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let spent = tasks.filter_map(|task| {
        let statistics = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        statistics.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

#[ignore = "a measurement"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cpu_of_an_idle_member() {
    let measured = Duration::from_secs(10);
    let per_cent = |nodes: usize, before: Duration| {
        let spent = cpu_time() - before;
        100.0 * spent.as_secs_f64() / measured.as_secs_f64() / nodes as f64
    };
    let mut cluster = Cluster::new(3, 3);
    let nodes = cluster.start_all().await;
    let all: Vec<_> = nodes.iter().collect();
    controller(&all).await;
    insist(&nodes[0], set("a", 1)).await;
    sleep(Duration::from_secs(1)).await;
    let before = cpu_time();
    sleep(measured).await;
    println!("voter of three: {:.3} % of a core", per_cent(3, before));
}
