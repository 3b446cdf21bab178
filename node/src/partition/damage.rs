//! Tells the metadata quorum which replicas here are damaged, and which are no longer.
//!
//! A damaged replica serves nothing, so it must not be elected: the quorum keeps it out of the ISR and passes it over in
//! elections, as Kafka does with replicas in an offline log directory (KIP-858). Damage is found at a start, and reported
//! before the broker is unfenced ([`DamageReports::wait_none`]): what waits for this broker must not elect it first.
//!
//! What is due is the difference between an image and what is here, found with every image; a report is
//! compared-and-set on the partition epoch, so that one that was delayed takes nothing back.

use kittiwake_raft::{
    Applied, BrokerEpoch, BrokerId, ClusterImage, Command, CommandError, Damage, PartitionChange,
    Topic, TopicId,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::broker::Broker;
use crate::controller::partitions::{CHANGES_PER_ENTRY_MAX, unchanged};

/// Pause before what was not taken is reported again.
const RETRY: Duration = Duration::from_millis(50);

/// Whether a replica is damaged, by topic and index.
type Due = BTreeMap<(TopicId, i32), bool>;

/// What the quorum has yet to be told.
#[derive(Debug, Default)]
pub struct DamageReports {
    due: watch::Sender<Due>,
}

impl DamageReports {
    /// Takes note of what is due for a topic, instead of what was.
    pub(super) fn set(&self, topic: TopicId, due: &[(i32, bool)]) {
        self.due.send_if_modified(|reports| {
            let mut changed = false;
            reports.retain(|(of, index), _| {
                let stays = *of != topic || due.iter().any(|(other, _)| other == index);
                changed |= !stays;
                stays
            });
            for (index, damaged) in due {
                changed |= reports.insert((topic, *index), *damaged) != Some(*damaged);
            }
            changed
        });
    }

    /// Waits until the quorum knows everything.
    pub async fn wait_none(&self) {
        // The sender is a field of self, so the channel cannot close during this call.
        let _ = self.due.subscribe().wait_for(BTreeMap::is_empty).await;
    }
}

/// Whether the quorum has yet to be told that the replica on `node` is `damaged`, or no longer.
///
/// The latter only where another leads: the replica has begun anew, and must not be mistaken for one that is whole.
pub(super) fn is_due(partition: &kittiwake_raft::Partition, node: BrokerId, damaged: bool) -> bool {
    partition.replicas.contains(&node)
        && partition.damaged.contains(&node) != damaged
        && (damaged || partition.leader.is_some_and(|leader| leader != node))
}

/// What the image has yet to learn about the replicas of a topic on `node`; `damaged` says which of them are.
pub(super) fn differences(
    topic: &Topic,
    node: BrokerId,
    damaged: impl Fn(i32) -> bool,
) -> Vec<(i32, bool)> {
    (0..)
        .zip(&topic.partitions)
        .map(|(index, partition)| (index, partition, damaged(index)))
        .filter(|(_, partition, damaged)| is_due(partition, node, *damaged))
        .map(|(index, _, damaged)| (index, damaged))
        .collect()
}

fn changes(
    image: &ClusterImage,
    due: &Due,
    broker: BrokerId,
    epoch: BrokerEpoch,
) -> Vec<PartitionChange> {
    let change = |(&(id, index), &damaged): (&(TopicId, i32), &bool)| {
        // The image may be newer than the one by which it was due.
        let partition = image.partition(id, index)?;
        if !is_due(partition, broker, damaged) {
            return None;
        }
        Some(PartitionChange {
            damage: Some(Damage {
                broker,
                broker_epoch: epoch,
                damaged,
            }),
            ..unchanged(image.topic(id)?, index, partition)
        })
    };
    due.iter()
        .filter_map(change)
        .take(CHANGES_PER_ENTRY_MAX)
        .collect()
}

/// Reports what is due until `shutdown`.
pub async fn run(broker: Arc<Broker>, shutdown: CancellationToken) {
    let mut due = broker.partitions.damage_reports().due.subscribe();
    let reporting = async {
        // The sender lives as long as the partitions, and they as long as the broker.
        while due.wait_for(|due| !due.is_empty()).await.is_ok() {
            let now = due.borrow_and_update().clone();
            // Never the image's: this node's may be that of a process which has taken its place.
            if let Some(epoch) = broker.epoch.get() {
                report(&broker, &now, *epoch).await;
            }
            // What was taken is not due any more once the partitions are in step with it.
            let _ = tokio::time::timeout(RETRY, due.changed()).await;
        }
    };
    tokio::select! {
        () = reporting => {}
        () = shutdown.cancelled() => {}
    }
}

async fn report(broker: &Broker, due: &Due, epoch: BrokerEpoch) {
    let image = broker.image();
    let changes = changes(&image, due, broker.node_id, epoch);
    if changes.is_empty() {
        return;
    }
    let reported = changes.clone();
    let outcome = match broker
        .quorum
        .propose(Command::AlterPartitions(changes))
        .await
    {
        Ok(outcome) => outcome,
        Err(error) => {
            info!(%error, "damaged replicas could not be reported; trying again");
            return;
        }
    };
    for (change, result) in reported.iter().zip(outcome.results) {
        let name = image.topic(change.topic).map_or("", |topic| &topic.name);
        let damaged = change.damage.is_some_and(|damage| damage.damaged);
        match result {
            Ok(Applied::PartitionAltered(partition)) if damaged => {
                tell(name, change.partition, &partition);
            }
            Ok(_) => info!(
                topic = name,
                partition = change.partition,
                "a replica that was damaged is replicated anew"
            ),
            // The image has moved on, and is about to say so here.
            Err(
                CommandError::StalePartitionEpoch { .. }
                | CommandError::UnknownTopic
                | CommandError::UnknownPartition,
            ) => {}
            Err(error) => {
                warn!(topic = name, partition = change.partition, %error, "a damaged replica could not be reported");
            }
        }
    }
    broker.partitions.wait_reconciled(outcome.offset).await;
}

/// Says what became of a partition whose damaged replica here was reported.
fn tell(topic: &str, index: i32, partition: &kittiwake_raft::Partition) {
    match partition.leader {
        Some(leader) => warn!(topic, partition = index, %leader,
            "the replica here is damaged and not in sync any more; another leads"),
        None => {
            let (damaged, usable): (Vec<i32>, Vec<i32>) = partition
                .elr
                .iter()
                .map(|broker| broker.0)
                .partition(|broker| partition.damaged.contains(&BrokerId(*broker)));
            error!(
                topic,
                partition = index,
                start = ?usable,
                ?damaged,
                "nobody can lead the partition: the replica here is damaged, and only the nodes named hold every \
                 acknowledged record; start one that is not damaged, or accept the loss by an unclean election"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::tests_support::{apply, create, image_of, partition_of};

    fn fence(image: &mut ClusterImage, id: i32) {
        let broker = BrokerId(id);
        let epoch = image.broker(broker).unwrap().epoch;
        apply(image, Command::FenceBroker { broker, epoch });
    }

    #[test]
    fn what_differs_is_reported_and_then_differs_no_more() {
        let mut image = image_of(2);
        let (here, other) = (BrokerId(0), BrokerId(1));
        create(
            &mut image,
            "t",
            &[],
            vec![vec![here, other], vec![here], vec![other]],
        );
        let epoch = image.broker(here).unwrap().epoch;
        let topic = |image: &ClusterImage| Topic::clone(image.topic_by_name("t").unwrap());
        let id = topic(&image).id;
        let reports = DamageReports::default();
        let tell = |image: &mut ClusterImage, damaged: fn(i32) -> bool| {
            reports.set(id, &differences(&topic(image), here, damaged));
            let changes = changes(image, &reports.due.borrow(), here, epoch);
            let told = changes.len();
            apply(image, Command::AlterPartitions(changes));
            reports.set(id, &differences(&topic(image), here, damaged));
            told
        };
        assert_eq!(tell(&mut image, |_| false), 0);
        // Of partition 2 there is no replica here.
        assert_eq!(tell(&mut image, |_| true), 2);
        assert_eq!(reports.due.borrow().len(), 0);
        let leader = |image: &ClusterImage, index| partition_of(image, "t", index).leader;
        assert_eq!((leader(&image, 0), leader(&image, 1)), (Some(other), None));

        // Well again is one whose leader is another, and no other.
        assert_eq!(tell(&mut image, |_| false), 1);
        assert_eq!(partition_of(&image, "t", 0).damaged, []);
        assert_eq!(partition_of(&image, "t", 1).damaged, [here]);

        assert_eq!(tell(&mut image, |index| index == 0), 1);
        fence(&mut image, 1);
        assert_eq!(leader(&image, 0), None);
        assert_eq!(tell(&mut image, |_| false), 0);
    }

    #[tokio::test]
    async fn nothing_is_due_once_its_topic_is_gone() {
        let reports = DamageReports::default();
        let (one, other) = (TopicId::random(), TopicId::random());
        reports.set(one, &[(0, true), (3, true)]);
        reports.set(other, &[(0, false)]);
        assert_eq!(reports.due.borrow().len(), 3);
        reports.set(one, &[]);
        assert_eq!(*reports.due.borrow(), BTreeMap::from([((other, 0), false)]));
        reports.set(other, &[]);
        reports.wait_none().await;
    }
}
