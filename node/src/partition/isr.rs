//! Takes the ISR changes that leaders propose to the metadata quorum, many in one entry.
//!
//! A partition is queued at most once, whatever happens to it meanwhile: what it proposes is asked of it when its turn
//! comes, so a proposal that became obsolete is not sent, and one without an answer is sent again as it is.

use kittiwake_raft::{
    Applied, BrokerEpoch, BrokerId, Command, CommandError, MetadataQuorum, ProposeError, TopicId,
};
use kittiwake_storage::LeaderEpoch;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::leader::Committed;
use super::replica::Partition;
use crate::broker::Broker;

/// Changes in one entry of the metadata log.
const CHANGES_MAX: usize = 5_000;

/// Pause before proposals without an answer are repeated.
const RETRY: Duration = Duration::from_millis(50);

/// How often leaders look for followers that lag, or that can be proposed again.
const TICK: Duration = Duration::from_millis(500);

/// Partitions of this node whose ISR change waits for the quorum.
#[derive(Debug, Default)]
pub struct IsrUpdates {
    waiting: Mutex<HashMap<(TopicId, i32), Arc<Partition>>>,
    added: Notify,
}

impl IsrUpdates {
    /// Queues `partition`, which has an ISR change to propose.
    pub(super) fn add(&self, partition: &Arc<Partition>) {
        let key = (partition.topic_id(), partition.index());
        self.waiting.lock().insert(key, Arc::clone(partition));
        self.added.notify_one();
    }

    fn take(&self) -> Vec<Arc<Partition>> {
        let mut waiting = self.waiting.lock();
        let keys: Vec<_> = waiting.keys().take(CHANGES_MAX).copied().collect();
        keys.iter().filter_map(|key| waiting.remove(key)).collect()
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    async fn propose(&self, quorum: &MetadataQuorum, broker: BrokerId, epoch: BrokerEpoch) {
        let partitions = self.take();
        let (partitions, changes): (Vec<_>, Vec<_>) = partitions
            .into_iter()
            .filter_map(|partition| {
                let change = partition.isr_change(broker, epoch)?;
                Some((partition, change))
            })
            .unzip();
        if changes.is_empty() {
            return;
        }
        let epochs: Vec<_> = changes
            .iter()
            .map(|change| {
                let leader_epoch = change.requester.map_or(-1, |asks| asks.leader_epoch);
                (change.partition_epoch, LeaderEpoch(leader_epoch))
            })
            .collect();
        match quorum.propose(Command::AlterPartitions(changes)).await {
            Ok(outcome) => {
                for ((partition, (proposed_at, epoch)), result) in
                    partitions.iter().zip(epochs).zip(outcome.results)
                {
                    match result {
                        Ok(Applied::PartitionAltered(altered)) => {
                            info!(topic = partition.topic(), partition = partition.index(),
                                isr = ?altered.isr.iter().map(|id| id.0).collect::<Vec<_>>(), "ISR changed");
                            if LeaderEpoch(altered.leader_epoch) == epoch {
                                partition.isr_changed(epoch, committed(&altered));
                            }
                        }
                        // The image has moved on, and is about to say so here.
                        Err(
                            CommandError::StalePartitionEpoch { .. }
                            | CommandError::StaleLeaderEpoch { .. }
                            | CommandError::UnknownTopic
                            | CommandError::UnknownPartition,
                        ) => {}
                        other => {
                            debug!(
                                topic = partition.topic(),
                                partition = partition.index(),
                                ?other,
                                "ISR change refused"
                            );
                            partition.isr_change_refused(proposed_at);
                        }
                    }
                }
            }
            Err(error @ ProposeError::Rejected(_)) => {
                debug!(%error, "ISR changes refused");
                for (partition, (proposed_at, _)) in partitions.iter().zip(epochs) {
                    partition.isr_change_refused(proposed_at);
                }
            }
            Err(error) => {
                debug!(%error, "ISR changes are proposed again");
                self.later(&partitions).await;
            }
        }
    }

    async fn later(&self, partitions: &[Arc<Partition>]) {
        for partition in partitions {
            self.add(partition);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What the cluster image says of a partition, as its leader takes it in.
pub(super) fn committed(partition: &kittiwake_raft::Partition) -> Committed {
    Committed {
        partition_epoch: partition.partition_epoch,
        replicas: partition.replicas.clone(),
        isr: partition.isr.clone(),
    }
}

/// Proposes the ISR changes of the partitions that `broker` leads, and lets them notice that time passes, until
/// `shutdown`.
pub async fn run(broker: Arc<Broker>, shutdown: CancellationToken) {
    let updates = Arc::clone(broker.partitions.isr_updates());
    let proposing = async {
        loop {
            if updates.is_empty() {
                updates.added.notified().await;
            }
            // Never the image's: this node's may be that of a process which has taken its place.
            match broker.epoch.get() {
                Some(epoch) => {
                    updates
                        .propose(&broker.quorum, broker.node_id, *epoch)
                        .await
                }
                None => tokio::time::sleep(RETRY).await,
            }
        }
    };
    let ticking = async {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for partition in broker.partitions.led_and_waiting() {
                partition.tick();
            }
            broker.replica_sessions.retain(&broker.image());
        }
    };
    tokio::select! {
        () = proposing => {}
        () = ticking => {}
        () = shutdown.cancelled() => {}
    }
}
