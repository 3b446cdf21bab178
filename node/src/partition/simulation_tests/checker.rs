//! What must be true after every step, whatever the brokers believe.
//!
//! The checker keeps the one history that there may be: the record at every offset that any high watermark has passed,
//! and every record whose writer was told that all replicas have it. Numbers are those of the list in the module above.

use kittiwake_raft::BrokerId;
use kittiwake_storage::{LeaderEpoch, Offset};
use std::collections::BTreeMap;

use super::log::{Record, SimulatedLog};
use super::quorum::View;

#[derive(Debug, Default)]
pub(super) struct Checker {
    /// By offset.
    committed: Vec<Record>,
    /// Acknowledged records, by offset.
    acknowledged: BTreeMap<i64, Record>,
    /// Below, records may be gone: a leader has deleted them.
    deleted: Offset,
    /// Who led in each epoch.
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    pub(super) violation: Option<String>,
}

impl Checker {
    pub(super) fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            self.violation = Some(otherwise());
        }
    }

    pub(super) fn committed_end(&self) -> Offset {
        Offset(self.committed.len() as i64)
    }

    pub(super) fn acknowledged_count(&self) -> usize {
        self.acknowledged.len()
    }

    /// 3, 4, 5: a replica's high watermark moves from `from` to `to`. Only a leader's commits anything.
    pub(super) fn high_watermark_moves(
        &mut self,
        broker: BrokerId,
        log: &SimulatedLog,
        (from, to): (Offset, Offset),
        leads: bool,
    ) {
        self.require(log.start() <= to && to <= log.end(), || {
            format!("{broker}: high watermark {to} outside of {:?}", log.view())
        });
        for offset in from.max(log.start()).max(self.deleted).0..to.0 {
            let Some(record) = log.get(Offset(offset)) else {
                continue;
            };
            let known = usize::try_from(offset)
                .ok()
                .and_then(|at| self.committed.get(at).copied());
            match known {
                Some(known) => self.require(known == record, || {
                    format!(
                        "{broker} shows {record:?} at {offset}, where {known:?} was shown before"
                    )
                }),
                None => {
                    self.require(leads && offset == self.committed.len() as i64, || {
                        format!(
                            "{broker} shows {record:?} at {offset}, which no leader has committed"
                        )
                    });
                    let acknowledged = self.acknowledged.get(&offset).copied();
                    self.require(acknowledged.is_none_or(|known| known == record), || {
                        format!("{broker} commits {record:?} at {offset}; {acknowledged:?} was acknowledged")
                    });
                    self.committed.push(record);
                }
            }
        }
    }

    /// An acks=all write is told that all have it.
    pub(super) fn acknowledged(&mut self, at: Offset, record: Record, held: Option<Record>) {
        self.require(held == Some(record), || {
            format!("{record:?} was acknowledged at {at}, where the log has {held:?}")
        });
        let twice = self.acknowledged.insert(at.0, record);
        self.require(twice.is_none(), || {
            format!("{record:?} was acknowledged at {at}, and {twice:?} before")
        });
    }

    /// A leader deletes what lies below `start`.
    pub(super) fn deleted(&mut self, start: Offset, high_watermark: Offset) {
        self.require(start <= high_watermark, || {
            format!("deleted up to {start}, committed up to {high_watermark}")
        });
        self.deleted = self.deleted.max(start);
    }

    /// 1, 2, 6: the log holds what is committed and acknowledged from `from` on.
    pub(super) fn must_hold(
        &mut self,
        what: &str,
        broker: BrokerId,
        log: &SimulatedLog,
        from: Offset,
    ) {
        let deleted = self.deleted;
        self.require(log.start() <= deleted, || {
            format!(
                "{broker} ({what}) begins at {}, deleted up to {deleted}",
                log.start()
            )
        });
        let from = from.max(deleted).0;
        let committed = self.committed.iter().enumerate().skip(from as usize);
        let missing = committed
            .map(|(offset, record)| (offset as i64, *record))
            .chain(
                self.acknowledged
                    .range(from.max(self.committed_end().0)..)
                    .map(|(at, record)| (*at, *record)),
            )
            .find(|(offset, record)| log.get(Offset(*offset)) != Some(*record));
        if let Some((offset, record)) = missing {
            self.require(false, || {
                format!(
                    "{broker} ({what}) has {:?} at {offset}, not {record:?}: {:?}",
                    log.get(Offset(offset)),
                    log.view()
                )
            });
        }
    }

    /// One leader per epoch, and records of it only from there.
    pub(super) fn leads(&mut self, broker: BrokerId, epoch: LeaderEpoch) {
        let leader = *self.leaders.entry(epoch).or_insert(broker);
        self.require(leader == broker, || {
            format!("{broker} leads in {epoch}, and so does {leader}")
        });
    }

    /// 7, 8: the rules of the image.
    pub(super) fn image_moves(&mut self, before: Option<&View>, after: &View) {
        let partition = &after.partition;
        let is_fenced = |id: &BrokerId| after.brokers.get(id).is_none_or(|broker| broker.fenced);
        let fenced = partition.isr.iter().any(is_fenced);
        let strangers = after.eligible().any(|id| !partition.replicas.contains(&id));
        let both = partition.isr.iter().any(|id| partition.elr.contains(id));
        let superfluous = partition.isr.len() >= after.needed() && !partition.elr.is_empty();
        let leads = partition
            .leader
            .is_none_or(|leader| partition.isr.contains(&leader));
        self.require(
            !(fenced || strangers || both || superfluous) && leads,
            || format!("the image breaks its rules: {partition:?}"),
        );
        if let Some(before) = before {
            let (earlier, later) = (&before.partition, partition);
            let same = earlier == later;
            let leader_stays = earlier.leader == later.leader;
            let counted = earlier.leader_epoch <= later.leader_epoch
                && (leader_stays || earlier.leader_epoch < later.leader_epoch)
                && (same || earlier.partition_epoch < later.partition_epoch);
            let registered = |id: &BrokerId| before.epoch_of(*id) <= after.epoch_of(*id);
            self.require(counted && before.brokers.keys().all(registered), || {
                format!("epochs go back: {before:?}, {after:?}")
            });
        }
    }
}
