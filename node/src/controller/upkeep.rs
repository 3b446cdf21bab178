//! What the controller does on its own: completes reassignments, moves leaderships. [`Upkeep`] decides, [`run`] proposes.
//!
//! A partition that needs nothing gets no command, and a command changes what called for it: an image that stands still
//! is left alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kittiwake_raft::{ClusterImage, Command, CommandError, PartitionChange, Topic};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::elections::{Homecoming, RebalanceOptions, homeward, urgent};
use super::partitions::{CHANGES_PER_ENTRY_MAX, unchanged};
use super::reassignment;
use crate::broker::Broker;
use crate::config::{BrokerConfig, TopicConfig};

/// Between two looks at an image that keeps changing, and after a proposal that failed: partitions that catch up one by one
/// share an entry, and a look costs time in a cluster of many partitions.
const PAUSE: Duration = Duration::from_millis(100);

/// After a proposal was refused for another reason than that the partition had moved on.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// How often a node looks whether it is the controller now.
const CONTROLLER_CHECK: Duration = Duration::from_millis(500);

/// The controller's decisions, from its election to its end.
#[derive(Debug)]
pub struct Upkeep {
    homecoming: Homecoming,
}

impl Upkeep {
    /// A reign begins.
    pub fn new(options: RebalanceOptions, now: Instant) -> Self {
        Self {
            homecoming: Homecoming::new(options, now),
        }
    }

    /// The changes that `image` calls for, one per partition at most. `unclean_allowed` says for a topic whether
    /// `unclean.leader.election.enable` holds.
    pub fn step(
        &mut self,
        now: Instant,
        image: &ClusterImage,
        unclean_allowed: impl Fn(&Topic) -> bool,
    ) -> Vec<PartitionChange> {
        let due = self.homecoming.due(now, image);
        let mut changes = Vec::new();
        for topic in image.topics() {
            let min_insync_replicas = image.min_insync_replicas(topic);
            for (index, partition) in (0..).zip(&topic.partitions) {
                let replicas = reassignment::complete(partition, min_insync_replicas);
                let election = || {
                    urgent(image, partition, || unclean_allowed(topic))
                        .or_else(|| homeward(image, partition, &due))
                };
                let leader = match replicas {
                    // The next look sees the partition where it then is.
                    Some(_) => None,
                    None => election(),
                };
                if replicas.is_some() || leader.is_some() {
                    changes.push(PartitionChange {
                        replicas,
                        leader,
                        ..unchanged(topic, index, partition)
                    });
                }
            }
        }
        changes
    }

    /// When to look again if the image does not change before.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        self.homecoming.wake_at(now)
    }
}

impl RebalanceOptions {
    /// As configured.
    pub fn new(config: &BrokerConfig) -> Self {
        Self {
            enabled: config.auto_leader_rebalance_enable,
            check_interval: Duration::from_secs(config.leader_imbalance_check_interval_seconds),
            imbalance_percentage: config.leader_imbalance_per_broker_percentage,
        }
    }
}

/// Does the controller's part while this node is the controller, until `shutdown`.
pub async fn run(broker: Arc<Broker>, shutdown: CancellationToken) {
    let stopped = shutdown.cancelled();
    tokio::select! {
        () = stopped => {}
        () = keep_up(&broker) => {}
    }
}

async fn keep_up(broker: &Broker) {
    let mut images = broker.quorum.watch();
    let mut reign: Option<Upkeep> = None;
    loop {
        let image = Arc::clone(&images.borrow_and_update());
        let mut wake_at = Instant::now() + CONTROLLER_CHECK;
        if broker.quorum.controller() == Some(broker.node_id) {
            let now = Instant::now();
            let options = RebalanceOptions::new(&broker.config);
            let upkeep = reign.get_or_insert_with(|| Upkeep::new(options, now));
            let unclean_allowed = |topic: &Topic| {
                TopicConfig::of_topic(&broker.config, &image, topic).unclean_leader_election
            };
            let changes = upkeep.step(now, &image, unclean_allowed);
            if !changes.is_empty() && !propose(broker, changes).await {
                sleep(PAUSE_AFTER_REFUSAL).await;
            }
            wake_at = upkeep.wake_at(now).map_or(wake_at, |at| at.min(wake_at));
        } else {
            reign = None;
        }
        sleep(PAUSE).await;
        tokio::select! {
            changed = images.changed() => if changed.is_err() { return },
            () = sleep_until(wake_at.into()) => {}
        }
    }
}

/// Whether every change was taken, or its partition had moved on.
async fn propose(broker: &Broker, mut changes: Vec<PartitionChange>) -> bool {
    let mut well = true;
    while !changes.is_empty() {
        let rest = changes.split_off(changes.len().min(CHANGES_PER_ENTRY_MAX));
        let batch = std::mem::replace(&mut changes, rest);
        let (elections, moves) = (
            batch
                .iter()
                .filter(|change| change.leader.is_some())
                .count(),
            batch
                .iter()
                .filter(|change| change.replicas.is_some())
                .count(),
        );
        match broker.quorum.propose(Command::AlterPartitions(batch)).await {
            Ok(outcome) => {
                info!(
                    elections,
                    moves,
                    offset = outcome.offset,
                    "partitions altered"
                );
                let refused = outcome.results.into_iter().filter_map(Result::err);
                let unexpected = |error: &CommandError| {
                    !matches!(error, CommandError::StalePartitionEpoch { .. })
                };
                if let Some(error) = refused.into_iter().find(unexpected) {
                    warn!(%error, "a change of a partition was refused");
                    well = false;
                }
            }
            Err(error) => {
                info!(%error, "partitions could not be altered; trying again");
                return false;
            }
        }
    }
    well
}
