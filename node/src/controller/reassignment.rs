//! Partitions that move to other brokers (KIP-455). Pure.
//!
//! While a partition moves, its replicas are those it had (the *original* ones) and those it shall have (the *target*):
//! `adding` are the target's that catch up, `removing` the original's that leave. Nothing else is stored, and both orders
//! can be read off: the target is the replicas without `removing`, the original the replicas without `adding`.
//!
//! ```text
//! 1,2,3 ──start──▶ 4,1,2,5,3 adding 4,5 removing 1,3 ──complete──▶ 4,2,5
//!                                                     └─cancel───▶ 1,2,3
//! ```

use kittiwake_raft::{BrokerId, ClusterImage, Partition, Reassignment};

use super::Refusal;
use crate::api::ErrorCode;

/// Whether the partition moves.
pub fn in_progress(partition: &Partition) -> bool {
    !partition.adding.is_empty() || !partition.removing.is_empty()
}

/// The replicas it has when the move is complete.
pub fn target(partition: &Partition) -> Vec<BrokerId> {
    without(&partition.replicas, &partition.removing)
}

/// The replicas it had before the move.
pub fn original(partition: &Partition) -> Vec<BrokerId> {
    without(&partition.replicas, &partition.adding)
}

fn without(replicas: &[BrokerId], taken: &[BrokerId]) -> Vec<BrokerId> {
    let kept = replicas.iter().filter(|broker| !taken.contains(broker));
    kept.copied().collect()
}

/// Begins to move a partition to `wanted`, preferred leader first; `None` if it is there. A move that is under way gives
/// way: what it was adding and is not wanted goes at once, what it was removing and is wanted stays.
///
/// # Errors
/// INVALID_REPLICA_ASSIGNMENT, or INVALID_REPLICATION_FACTOR if the number of replicas must not change (KIP-860).
pub fn start(
    image: &ClusterImage,
    partition: &Partition,
    wanted: &[BrokerId],
    allow_factor_change: bool,
) -> Result<Option<Reassignment>, Refusal> {
    validate(image, wanted)?;
    let (before, now) = (original(partition), target(partition));
    if !allow_factor_change && wanted.len() != now.len() {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicationFactor,
            format!(
                "The replication factor is {} and must not change to {}.",
                now.len(),
                wanted.len()
            ),
        ));
    }
    let reassignment = Reassignment {
        replicas: merged(wanted, &before),
        adding: without(wanted, &before),
        removing: without(&before, wanted),
    };
    let unchanged = reassignment.replicas == partition.replicas
        && reassignment.adding == partition.adding
        && reassignment.removing == partition.removing;
    if unchanged {
        return Ok(None);
    }
    keeps_in_sync_replica(partition, &reassignment)?;
    Ok(Some(reassignment))
}

/// Ends a move where it began.
///
/// # Errors
/// NO_REASSIGNMENT_IN_PROGRESS; INVALID_REPLICA_ASSIGNMENT if only replicas that would go are in sync (Kafka does it all
/// the same where unclean elections are allowed).
pub fn cancel(partition: &Partition) -> Result<Reassignment, Refusal> {
    if !in_progress(partition) {
        return Err(Refusal::new(
            ErrorCode::NoReassignmentInProgress,
            "The partition is not being reassigned.",
        ));
    }
    let reassignment = settled(original(partition));
    keeps_in_sync_replica(partition, &reassignment)?;
    Ok(reassignment)
}

/// The end of a move that can end now. Leadership leaves with the replica that leads in the same entry; the image gives it
/// to the first of the target that is in sync.
///
/// That needs every added replica in the ISR, and an ISR afterwards that still takes acks=all writes, unless it is as
/// large as before; where replicas become fewer all that stay must be in sync, as in Kafka: the move must not be what
/// reduces the copies of a record.
pub fn complete(partition: &Partition, min_insync_replicas: usize) -> Option<Reassignment> {
    if !in_progress(partition) {
        return None;
    }
    let Partition {
        isr,
        adding,
        removing,
        ..
    } = partition;
    let target = target(partition);
    let stays = |brokers: &[BrokerId]| brokers.iter().all(|broker| isr.contains(broker));
    let left = without(isr, removing).len();
    let writable = left >= min_insync_replicas.min(target.len()) || left == isr.len();
    let shrinks = adding.len() < removing.len();
    let complete = left > 0 && stays(adding) && writable && (!shrinks || stays(&target));
    complete.then(|| settled(target))
}

fn settled(replicas: Vec<BrokerId>) -> Reassignment {
    Reassignment {
        replicas,
        adding: Vec::new(),
        removing: Vec::new(),
    }
}

/// `wanted` in its order, and between them those of `before` that are not wanted, each before the ones it stood before.
fn merged(wanted: &[BrokerId], before: &[BrokerId]) -> Vec<BrokerId> {
    let mut merged = Vec::with_capacity(wanted.len() + before.len());
    let mut rest = before;
    for broker in wanted {
        if let Some(at) = rest.iter().position(|other| other == broker) {
            merged.extend(without(&rest[..at], wanted));
            rest = &rest[at + 1..];
        }
        merged.push(*broker);
    }
    merged.extend(without(rest, wanted));
    merged
}

fn validate(image: &ClusterImage, wanted: &[BrokerId]) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
    if wanted.is_empty() {
        return refuse("A partition needs at least one replica.".into());
    }
    for (position, broker) in wanted.iter().enumerate() {
        if wanted[..position].contains(broker) {
            return refuse(format!("Broker {broker} is named twice."));
        }
        if image.broker(*broker).is_none() {
            return refuse(format!("Broker {broker} is not registered."));
        }
    }
    Ok(())
}

fn keeps_in_sync_replica(partition: &Partition, after: &Reassignment) -> Result<(), Refusal> {
    let holders = match partition.isr.as_slice() {
        [] => &partition.elr,
        isr => isr,
    };
    if holders.iter().any(|broker| after.replicas.contains(broker)) {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::InvalidReplicaAssignment,
        "No in-sync replica would remain.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::tests_support::image_of;

    fn ids(ids: &[i32]) -> Vec<BrokerId> {
        ids.iter().copied().map(BrokerId).collect()
    }

    fn settled_on(replicas: &[i32]) -> Partition {
        Partition {
            replicas: ids(replicas),
            isr: ids(replicas),
            leader: replicas.first().copied().map(BrokerId),
            ..Partition::default()
        }
    }

    fn moving(replicas: &[i32], wanted: &[i32]) -> Partition {
        let mut partition = settled_on(replicas);
        begin(&mut partition, wanted);
        partition
    }

    fn begin(partition: &mut Partition, wanted: &[i32]) {
        let started = start(&image_of(8), partition, &ids(wanted), true);
        let Reassignment {
            replicas,
            adding,
            removing,
        } = started.unwrap().unwrap();
        partition.isr.retain(|broker| replicas.contains(broker));
        (partition.replicas, partition.adding, partition.removing) = (replicas, adding, removing);
    }

    #[test]
    fn both_ends_of_a_move_keep_their_order() {
        let partition = moving(&[1, 2, 3], &[4, 2, 5]);
        assert_eq!(partition.replicas, ids(&[4, 1, 2, 5, 3]));
        assert_eq!(partition.adding, ids(&[4, 5]));
        assert_eq!(partition.removing, ids(&[1, 3]));
        assert_eq!(target(&partition), ids(&[4, 2, 5]));
        assert_eq!(original(&partition), ids(&[1, 2, 3]));
        // Where the orders contradict each other the target's holds.
        assert_eq!(target(&moving(&[1, 2, 3], &[3, 1, 4])), ids(&[3, 1, 4]));
    }

    #[test]
    fn it_completes_when_all_that_are_added_are_in_sync() {
        let mut partition = moving(&[1, 2, 3], &[4, 2, 5]);
        assert_eq!(complete(&partition, 2), None);
        partition.isr.push(BrokerId(4));
        assert_eq!(complete(&partition, 2), None);
        partition.isr.push(BrokerId(5));
        assert_eq!(complete(&partition, 2).unwrap().replicas, ids(&[4, 2, 5]));
        assert_eq!(complete(&settled_on(&[1, 2, 3]), 2), None);
    }

    #[test]
    fn it_never_ends_with_fewer_copies_than_writes_need() {
        // The example of Kafka's sources: 1, 2, 3 are behind, and would be all that is left besides 5.
        let mut partition = moving(&[0, 1, 2, 3, 4], &[2, 3, 4, 5]);
        partition.isr = ids(&[0, 1, 5]);
        assert_eq!(complete(&partition, 1), None);
        partition.isr = ids(&[0, 2, 3, 4, 5]);
        assert!(complete(&partition, 1).is_some());

        let mut partition = moving(&[1, 2, 3], &[1, 2, 4]);
        partition.isr = ids(&[3, 4]);
        assert_eq!(complete(&partition, 2), None);
        partition.isr = ids(&[4]);
        assert!(complete(&partition, 2).is_some(), "nothing is lost by it");
        partition.isr = ids(&[2, 3, 4]);
        assert!(complete(&partition, 2).is_some());
    }

    #[test]
    fn a_cancelled_move_ends_where_it_began() {
        let partition = moving(&[1, 2, 3], &[4, 2, 5]);
        assert_eq!(cancel(&partition).unwrap(), settled(ids(&[1, 2, 3])));
        let code = |partition: &Partition| cancel(partition).unwrap_err().code;
        assert_eq!(
            code(&settled_on(&[1, 2])),
            ErrorCode::NoReassignmentInProgress
        );
        let mut only_new = moving(&[1], &[2]);
        only_new.isr = ids(&[2]);
        assert_eq!(code(&only_new), ErrorCode::InvalidReplicaAssignment);
    }

    #[test]
    fn a_new_target_replaces_the_last_one() {
        let mut partition = moving(&[1, 2], &[3, 4]);
        partition.isr.push(BrokerId(3));
        begin(&mut partition, &[3, 5]);
        assert_eq!(partition.adding, ids(&[3, 5]));
        assert_eq!(partition.removing, ids(&[1, 2]));
        assert_eq!(partition.isr, ids(&[1, 2, 3]));
        // Back to where it was is a cancellation.
        begin(&mut partition, &[1, 2]);
        assert!(!in_progress(&partition));
        let same = start(&image_of(8), &partition, &ids(&[1, 2]), true);
        assert_eq!(same, Ok(None));
    }

    #[test]
    fn an_order_can_change_alone() {
        let partition = moving(&[1, 2, 3], &[3, 2, 1]);
        assert!(!in_progress(&partition));
        assert_eq!(partition.replicas, ids(&[3, 2, 1]));
    }

    #[test]
    fn impossible_targets_are_refused_by_kafkas_codes() {
        let image = image_of(4);
        let partition = settled_on(&[1, 2]);
        let refused = |partition: &Partition, wanted: &[i32], allow| {
            let refusal = start(&image, partition, &ids(wanted), allow).unwrap_err();
            refusal.code
        };
        let invalid = ErrorCode::InvalidReplicaAssignment;
        for wanted in [&[][..], &[1, 1], &[1, 9], &[-1]] {
            assert_eq!(refused(&partition, wanted, true), invalid, "{wanted:?}");
        }
        assert_eq!(
            refused(&partition, &[1, 2, 3], false),
            ErrorCode::InvalidReplicationFactor
        );
        let mut only_new = moving(&[1], &[2]);
        only_new.isr = ids(&[2]);
        assert_eq!(refused(&only_new, &[3], true), invalid);
    }
}
