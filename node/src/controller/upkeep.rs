//! What the controller does on its own: completes reassignments, moves leaderships. [`Upkeep`] decides, [`run`] proposes.
//!
//! A partition that needs nothing gets no command, and a command changes what called for it: an image that stands still
//! is left alone.

use std::future::pending;
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
                let leader = match &replicas {
                    Some(arrived) => self.homecoming.on_arrival(image, partition, arrived),
                    None => urgent(image, partition, || unclean_allowed(topic))
                        .or_else(|| homeward(image, partition, &due)),
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

/// Does the controller's part whenever this node is the controller, until `shutdown`.
pub async fn run(broker: Arc<Broker>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep_up(&broker) => {}
    }
}

/// Ends when the quorum has stopped.
async fn keep_up(broker: &Broker) {
    let mut controllers = broker.quorum.watch_controller();
    loop {
        let reigns = controllers
            .borrow_and_update()
            .is_some_and(|controller| controller.broker == broker.node_id);
        tokio::select! {
            // A proposal that is cut short may still be carried out, by a controller that compares and sets as well.
            changed = controllers.changed() => if changed.is_err() { return },
            () = reign(broker), if reigns => return,
        }
    }
}

/// Ends when the quorum has stopped.
async fn reign(broker: &Broker) {
    let mut images = broker.quorum.watch();
    let options = RebalanceOptions::new(&broker.config);
    let mut upkeep = Upkeep::new(options, Instant::now());
    loop {
        let image = Arc::clone(&images.borrow_and_update());
        let now = Instant::now();
        let changes = upkeep.step(now, &image, |topic| {
            TopicConfig::of_topic(&broker.config, &image, topic).unclean_leader_election
        });
        drop(image);
        if !changes.is_empty() && !propose(broker, changes).await {
            // The image has not changed, so what it calls for has not either.
            sleep(PAUSE_AFTER_REFUSAL).await;
            continue;
        }
        sleep(PAUSE).await;
        let next_look = async {
            match upkeep.wake_at(now) {
                Some(at) => sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = images.changed() => if changed.is_err() { return },
            () = next_look => {}
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

#[cfg(test)]
mod tests {
    use kittiwake_raft::{BrokerId, Election};

    use super::*;
    use crate::controller::tests_support::{apply, create, image_of, partition_of};

    #[test]
    fn a_move_that_ends_brings_its_preferred_leader_with_it() {
        let on = |ids: &[i32]| ids.iter().copied().map(BrokerId).collect::<Vec<_>>();
        for (enabled, leader) in [(true, 2), (false, 1)] {
            let mut image = image_of(3);
            create(&mut image, "t", &[], vec![on(&[1, 0, 2])]);
            let topic = Topic::clone(image.topic_by_name("t").unwrap());
            let partition = &topic.partitions[0];
            let replicas = reassignment::start(&image, partition, &on(&[2, 1]), true).unwrap();
            let change = PartitionChange {
                replicas,
                ..unchanged(&topic, 0, partition)
            };
            apply(&mut image, Command::AlterPartitions(vec![change]));

            let now = Instant::now();
            let options = RebalanceOptions {
                enabled,
                check_interval: Duration::from_secs(300),
                imbalance_percentage: 10,
            };
            let mut upkeep = Upkeep::new(options, now);
            let changes = upkeep.step(now, &image, |_| false);
            assert_eq!(
                changes[0].leader,
                enabled.then_some(Election::Clean(BrokerId(2)))
            );
            apply(&mut image, Command::AlterPartitions(changes));
            let partition = partition_of(&image, "t", 0);
            assert_eq!(partition.replicas, on(&[2, 1]));
            assert_eq!(partition.leader, Some(BrokerId(leader)));
        }
    }
}
