//! What was acknowledged is there, once, whoever dies: proposals on all members while controllers
//! and followers are killed again and again.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Cluster, Node, PATIENCE, eventually, insist, set};
use kittiwake_raft::{
    Applied, BrokerEpoch, BrokerId, Command, DirectoryId, Endpoint, IncarnationId, LastStop,
    MetadataQuorum, ProposeError, RegisterBroker,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Deaths per seed.
const DEATHS: usize = 8;

/// Proposals that must be acknowledged between two deaths.
const PROGRESS: u64 = 20;

/// Seeds of every run; `KITTIWAKE_SEED` replaces them.
const SEEDS: [u64; 2] = [1, 2];

/// What the proposers know.
#[derive(Default)]
struct History {
    /// Keys of settings that were acknowledged.
    settings: Mutex<Vec<String>>,
    /// Producer ids that were handed out.
    ids: Mutex<Vec<i64>>,
    /// Allocations that may have been made.
    unknown: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_done_twice() {
    let seeds = match std::env::var("KITTIWAKE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => SEEDS.to_vec(),
    };
    for seed in seeds {
        println!("KITTIWAKE_SEED={seed}");
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::new(4, 3);
    // The fourth is a learner: it proposes as well.
    let mut nodes = cluster.start_all().await;
    let epoch = register(&nodes[0]).await;

    let history = Arc::new(History::default());
    let slots: Vec<_> = nodes
        .iter()
        .map(|node| Arc::new(Mutex::new(Some(node.quorum.clone()))))
        .collect();
    let mut proposers = JoinSet::new();
    for (number, slot) in slots.iter().enumerate() {
        proposers.spawn(propose(
            number,
            epoch,
            Arc::clone(slot),
            Arc::clone(&history),
        ));
    }

    let mut longest = Duration::ZERO;
    for death in 0..DEATHS {
        progress(&history).await;
        let controller = nodes[0].quorum.controller();
        let brokers: Vec<i32> = nodes.iter().map(|node| node.broker().0).collect();
        // Mostly the controller, which is where it hurts.
        let victim = match controller {
            Some(controller) if random.random_bool(0.7) => controller.0,
            _ => *brokers.choose(&mut random).unwrap(),
        };
        let position = brokers.iter().position(|broker| *broker == victim).unwrap();
        let slot = &slots[usize::try_from(victim).unwrap() - 1];
        *slot.lock() = None;
        let died = Instant::now();
        nodes.remove(position).kill();
        progress(&history).await;
        longest = longest.max(died.elapsed());
        println!(
            "death {death}: broker {victim}, {PROGRESS} more after {:?}",
            died.elapsed()
        );
        let back = cluster.start(victim).await;
        *slot.lock() = Some(back.quorum.clone());
        nodes.push(back);
    }
    progress(&history).await;
    history.stop.store(true, Ordering::Relaxed);
    timeout(PATIENCE, proposers.join_all()).await.unwrap();
    println!("longest without {PROGRESS} acknowledgements: {longest:?}");

    let last = insist(&nodes[0], set("last", seed)).await.offset;
    for node in &nodes {
        node.wait_for_offset(last).await;
        let image = node.quorum.image();
        let settings = image.broker_configs(None).unwrap();
        for key in &*history.settings.lock() {
            assert!(settings.contains_key(key), "lost: {key}");
        }
    }
    for node in &nodes[1..] {
        eventually("one image", || {
            node.quorum.image() == nodes[0].quorum.image()
        })
        .await;
    }
    let ids = history.ids.lock();
    let distinct: BTreeSet<i64> = ids.iter().copied().collect();
    assert_eq!(distinct.len(), ids.len(), "an id was handed out twice");
    let known = i64::try_from(ids.len()).unwrap();
    let unknown = i64::try_from(history.unknown.load(Ordering::Relaxed)).unwrap();
    let allocated = nodes[0].quorum.image().next_producer_id;
    println!("{known} ids acknowledged, {unknown} perhaps, {allocated} allocated");
    assert!(
        (known..=known + unknown).contains(&allocated),
        "done twice, or lost"
    );
}

/// Waits until some more was acknowledged.
async fn progress(history: &History) {
    let reached = history.acknowledged.load(Ordering::Relaxed) + PROGRESS;
    eventually("proposals are acknowledged", || {
        history.acknowledged.load(Ordering::Relaxed) >= reached
    })
    .await;
}

async fn propose(
    number: usize,
    epoch: BrokerEpoch,
    slot: Arc<Mutex<Option<MetadataQuorum>>>,
    history: Arc<History>,
) {
    for round in 0.. {
        if history.stop.load(Ordering::Relaxed) {
            return;
        }
        let quorum = slot.lock().clone();
        let Some(quorum) = quorum else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let key = format!("{number}.{round}");
        if let Ok(outcome) = quorum.propose(set(&key, round)).await {
            let image = quorum.image();
            assert!(image.offset >= outcome.offset);
            assert!(image.broker_configs(None).unwrap().contains_key(&key));
            history.settings.lock().push(key);
            history.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        let allocate = Command::AllocateProducerIds {
            broker: BrokerId(1),
            epoch,
            count: 1,
        };
        match quorum.propose(allocate).await {
            Ok(outcome) => {
                let [Ok(Applied::ProducerIds { first, count: 1 })] = outcome.results[..] else {
                    panic!("{outcome:?}")
                };
                assert!(quorum.image().next_producer_id > first);
                history.ids.lock().push(first);
                history.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // Certainly not done.
            Err(ProposeError::NotController { .. }) => {}
            Err(ProposeError::Unavailable | ProposeError::Stopped(_)) => {
                history.unknown.fetch_add(1, Ordering::Relaxed);
            }
            Err(error @ ProposeError::Rejected(_)) => panic!("{error}"),
        }
    }
}

async fn register(node: &Node) -> BrokerEpoch {
    let registration = Command::RegisterBroker(RegisterBroker {
        broker: BrokerId(1),
        incarnation_id: IncarnationId::random(),
        directory_id: DirectoryId::random(),
        endpoints: vec![Endpoint {
            listener: "A".into(),
            host: "h".into(),
            port: 1,
        }],
        rack: None,
        last_stop: LastStop::Lossy,
    });
    let outcome = insist(node, registration).await;
    let [Ok(Applied::Registered(epoch))] = outcome.results[..] else {
        panic!("{outcome:?}")
    };
    epoch
}
