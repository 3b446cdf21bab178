//! A planned stop, as far as the others notice it: leadership moves first, so that clients pause for one round trip and
//! not for an election.

use std::time::Duration;

use kittiwake_raft::{BrokerEpoch, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::broker::Broker;

/// How long each step may take before the stop goes on without it: the others then find out by themselves.
const STEP: Duration = Duration::from_secs(1);

/// For so long clients are still answered after leadership has moved: those that are in the middle of something learn
/// who leads now, instead of losing a connection and finding out.
const LINGER: Duration = Duration::from_millis(200);

/// Moves leadership of partitions and of the quorum to others, and lets clients notice. Whether there was anybody.
pub(crate) async fn hand_over(broker: &Broker, epoch: BrokerEpoch) -> bool {
    if !has_live_others(broker) || broker.quorum.controller().is_none() {
        return false;
    }
    let drain = Command::DrainBroker {
        broker: broker.node_id,
        epoch,
        draining: true,
    };
    let Some(offset) = propose(broker, drain).await else {
        return false;
    };
    let reconciled = broker.partitions.wait_reconciled(offset);
    if timeout(STEP, reconciled).await.is_err() {
        warn!("partitions are not in step with the image; the stop goes on");
    }
    if broker.quorum.is_controller() {
        match broker.quorum.hand_over(Instant::now() + STEP).await {
            Ok(controller) => info!(%controller, "handed the quorum over"),
            Err(error) => info!(%error, "the quorum was not handed over; the others will elect"),
        }
    }
    sleep(LINGER).await;
    true
}

/// Whether anybody else could take over.
pub(crate) fn has_live_others(broker: &Broker) -> bool {
    let image = broker.image();
    let mut brokers = image.brokers.values();
    brokers.any(|other| other.id != broker.node_id && !other.fenced)
}

/// Whether this node leads a partition, as far as it knows: for want of another replica in sync, it may keep some.
pub(crate) fn leads_something(broker: &Broker) -> bool {
    let image = broker.image();
    image
        .topics()
        .flat_map(|topic| &topic.partitions)
        .any(|partition| partition.leader == Some(broker.node_id))
}

/// Leaves every ISR, in one entry, while the followers here still fetch: no leader has to wait for one that is gone.
pub(crate) async fn fence_oneself(broker: &Broker, epoch: BrokerEpoch) {
    let fence = Command::FenceBroker {
        broker: broker.node_id,
        epoch,
    };
    propose(broker, fence).await;
}

/// Proposes a courtesy: nothing depends on it.
async fn propose(broker: &Broker, command: Command) -> Option<u64> {
    let name = command.name();
    let deadline = Instant::now() + STEP;
    let refusal = match timeout_at(deadline, broker.quorum.propose(command)).await {
        Err(_) => "no answer in time".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(outcome)) => match outcome.results.into_iter().next() {
            Some(Err(error)) => error.to_string(),
            _ => return Some(outcome.offset),
        },
    };
    info!(
        command = name,
        refusal, "the cluster was not told of the stop"
    );
    None
}
