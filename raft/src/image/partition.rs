//! One partition: who has a replica, who is in sync, who leads.
//!
//! Rules (KIP-966 unless noted), after every change:
//! - ISR and ELR are disjoint subsets of the replicas; no fenced broker is in the ISR.
//! - ELR is empty while the ISR has `min(min.insync.replicas, replicas)` members. Below that, who
//!   leaves the ISR with its log intact joins the ELR: the high watermark cannot pass what it has.
//! - The leader is in the ISR. Where the ISR is empty there is no leader.
//! - A damaged replica is not in the ISR and is never elected, not even uncleanly. It stays in the ELR while nobody leads:
//!   it may be the only one that holds some record, and is eligible again if its log is whole at the broker's next
//!   start. Once another leads, whoever that is has every committed record, and the damaged log may be replaced.
//! - Leaders come from the ISR, else from the ELR, else, if both are empty, from
//!   `last_known_leader`: it is the only replica that may hold what nobody else does.
//! - `leader_epoch` grows with every change of leader, `partition_epoch` with every change.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::command::{
    CommandError, Damage, Election, IsrMember, PartitionChange, Reassignment, Requester,
};
use crate::ids::{BrokerId, PartitionEpoch};
use crate::image::broker::{self, Broker, Kept};

/// State of a partition.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Partition {
    /// All replicas, preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// In-sync replicas; empty only while there is no leader.
    pub isr: Vec<BrokerId>,
    /// Eligible leader replicas: out of sync, but they hold every committed record (KIP-966).
    pub elr: Vec<BrokerId>,
    /// Who led last, while nobody leads.
    pub last_known_leader: Option<BrokerId>,
    /// Who leads.
    pub leader: Option<BrokerId>,
    /// Reign of the leader; from 0.
    pub leader_epoch: i32,
    /// Version of this state; from 0.
    pub partition_epoch: PartitionEpoch,
    /// Replicas that a reassignment adds and that have not joined yet.
    pub adding: Vec<BrokerId>,
    /// Replicas that leave when the reassignment completes.
    pub removing: Vec<BrokerId>,
    /// Replicas whose logs cannot be used, as their brokers have reported in their latest registration.
    pub damaged: Vec<BrokerId>,
}

/// What a partition's rules need to know of the rest of the image.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) brokers: &'a BTreeMap<BrokerId, Arc<Broker>>,
    /// `min.insync.replicas` of the topic, not yet capped by the number of replicas.
    pub(super) min_insync_replicas: usize,
}

impl Context<'_> {
    fn is_live(&self, broker: BrokerId) -> bool {
        self.brokers
            .get(&broker)
            .is_some_and(|broker| !broker.fenced)
    }

    fn is_willing(&self, broker: BrokerId) -> bool {
        self.brokers
            .get(&broker)
            .is_some_and(|broker| !broker.fenced && !broker.draining)
    }
}

impl Partition {
    /// A new partition: every live replica is in sync with the empty log.
    pub(super) fn create(
        replicas: &[BrokerId],
        context: Context<'_>,
    ) -> Result<Self, CommandError> {
        validate_replicas(replicas, context)?;
        let mut partition = Self {
            replicas: replicas.to_vec(),
            isr: replicas
                .iter()
                .copied()
                .filter(|broker| context.is_live(*broker))
                .collect(),
            ..Self::default()
        };
        if partition.isr.is_empty() {
            return Err(CommandError::InvalidReplicas(
                "all replicas are fenced".into(),
            ));
        }
        partition.leader = partition.candidate(&partition.isr, context);
        Ok(partition)
    }

    /// The broker was fenced or starts again: it leaves the ISR, and what it keeps decides whether
    /// it may still be elected.
    pub(super) fn lose_broker(&mut self, broker: BrokerId, kept: Kept, context: Context<'_>) {
        let before = self.clone();
        self.isr.retain(|member| *member != broker);
        self.derive_elr(&before, context);
        if kept != Kept::Log {
            self.elr.retain(|member| *member != broker);
        }
        self.derive_leader(context);
        if kept == Kept::Nothing && self.last_known_leader == Some(broker) {
            self.last_known_leader = None;
        }
        self.count_change(&before);
    }

    /// The broker starts again, and will say anew what it finds.
    pub(super) fn forget_damage(&mut self, broker: BrokerId) {
        let before = self.clone();
        self.damaged.retain(|member| *member != broker);
        self.count_change(&before);
    }

    /// Applies the rules to a partition around which something changed: a broker came back, or
    /// `min.insync.replicas` is another.
    pub(super) fn settle(&mut self, context: Context<'_>) {
        let before = self.clone();
        self.derive_elr(&before, context);
        self.derive_leader(context);
        self.count_change(&before);
    }

    /// The broker may join ISRs again: it was unfenced, or its drain has ended. Where it is not in the ISR this counts as a
    /// change, although nothing else does: a proposal to add it that was refused until now, and that its leader has
    /// given up, must not be accepted after all if a copy of it was on its way.
    pub(super) fn broker_is_back(&mut self, broker: BrokerId, context: Context<'_>) {
        let before = self.clone();
        self.settle(context);
        if *self == before && !self.isr.contains(&broker) {
            self.partition_epoch = PartitionEpoch(next_epoch(self.partition_epoch.0));
        }
    }

    /// `min.insync.replicas` was set. Whoever is in the ELR was eligible by the old value only: a
    /// smaller one lets the high watermark pass it. Where nobody leads, nothing can be written
    /// that the ELR lacks, and emptying it would leave nobody to elect.
    ///
    /// Counts as a change even where nothing else changes: the ISR that a leader has proposed by
    /// the old value is refused. Accepted, it would reach the leader before the new value does, and
    /// the leader would commit with too few replicas what the new ELR lacks.
    pub(super) fn min_insync_replicas_set(&mut self, context: Context<'_>) {
        let before = self.clone();
        if self.leader.is_some() {
            self.elr.clear();
        }
        self.derive_leader(context);
        self.count_change(&before);
        if *self == before {
            self.partition_epoch = PartitionEpoch(next_epoch(self.partition_epoch.0));
        }
    }

    /// Moves leadership away from a draining broker where another in-sync replica is willing.
    pub(super) fn move_leader_from(&mut self, broker: BrokerId, context: Context<'_>) {
        let before = self.clone();
        let another = self
            .replicas
            .iter()
            .copied()
            .find(|other| self.isr.contains(other) && context.is_willing(*other));
        if self.leader == Some(broker) && another.is_some() {
            self.leader = another;
        }
        self.count_change(&before);
    }

    /// A change asked for by the leader or the controller; all or nothing.
    pub(super) fn alter(
        &mut self,
        change: &PartitionChange,
        context: Context<'_>,
    ) -> Result<(), CommandError> {
        if let Some(requester) = &change.requester {
            self.validate_requester(requester, context)?;
        }
        if change.partition_epoch != self.partition_epoch {
            return Err(CommandError::StalePartitionEpoch {
                current: self.partition_epoch,
            });
        }
        let mut after = self.clone();
        let mut reign_ends = false;
        if let Some(reassignment) = &change.replicas {
            after.reassign(reassignment, context)?;
            // A replica that is gone must not go on acknowledging as a follower of this epoch.
            reign_ends = self
                .replicas
                .iter()
                .any(|old| !after.replicas.contains(old));
        }
        if let Some(isr) = &change.isr {
            after.replace_isr(isr, context)?;
        }
        if let Some(damage) = &change.damage {
            after.report_damage(damage, context)?;
        }
        after.derive_elr(self, context);
        if let Some(election) = change.leader {
            after.elect(election, context)?;
        }
        after.derive_leader(context);
        if reign_ends && after.leader == self.leader {
            after.leader_epoch = next_epoch(after.leader_epoch);
        }
        after.count_change(self);
        *self = after;
        Ok(())
    }

    fn validate_requester(
        &self,
        requester: &Requester,
        context: Context<'_>,
    ) -> Result<(), CommandError> {
        broker::current(context.brokers, requester.broker, requester.broker_epoch)?;
        if self.leader_epoch != requester.leader_epoch || self.leader != Some(requester.broker) {
            return Err(CommandError::StaleLeaderEpoch {
                current: self.leader_epoch,
            });
        }
        Ok(())
    }

    fn reassign(&mut self, to: &Reassignment, context: Context<'_>) -> Result<(), CommandError> {
        validate_replicas(&to.replicas, context)?;
        let moving = || to.adding.iter().chain(&to.removing);
        if !moving().all(|broker| to.replicas.contains(broker))
            || to.adding.iter().any(|broker| to.removing.contains(broker))
        {
            return Err(CommandError::InvalidReplicas(
                "adding and removing must be disjoint parts of the replicas".into(),
            ));
        }
        self.replicas.clone_from(&to.replicas);
        self.adding.clone_from(&to.adding);
        self.removing.clone_from(&to.removing);
        self.isr.retain(|broker| to.replicas.contains(broker));
        self.elr.retain(|broker| to.replicas.contains(broker));
        self.damaged.retain(|broker| to.replicas.contains(broker));
        if self.isr.is_empty() && self.elr.is_empty() {
            return Err(CommandError::InvalidReplicas(
                "no replica that holds the committed records would remain".into(),
            ));
        }
        Ok(())
    }

    fn replace_isr(&mut self, isr: &[IsrMember], context: Context<'_>) -> Result<(), CommandError> {
        let Some(leader) = self.leader else {
            return Err(CommandError::InvalidChange(
                "a partition without leader has no ISR".into(),
            ));
        };
        if !isr.iter().any(|member| member.broker == leader) {
            return Err(CommandError::InvalidChange(
                "the leader is not in the new ISR".into(),
            ));
        }
        for (position, member) in isr.iter().enumerate() {
            let broker = member.broker;
            if isr[..position].iter().any(|other| other.broker == broker)
                || !self.replicas.contains(&broker)
            {
                return Err(CommandError::InvalidChange(format!(
                    "broker {broker} appears twice or is not a replica"
                )));
            }
            let epoch_matches = match (member.broker_epoch, context.brokers.get(&broker)) {
                (Some(epoch), Some(registered)) => epoch == registered.epoch,
                (None, Some(_)) => true,
                (_, None) => false,
            };
            // A draining member may stay; it only may not join.
            let may_be_in = self.isr.contains(&broker) || context.is_willing(broker);
            if !epoch_matches || !may_be_in || self.damaged.contains(&broker) {
                return Err(CommandError::IneligibleReplica(broker));
            }
        }
        self.isr = isr.iter().map(|member| member.broker).collect();
        Ok(())
    }

    fn report_damage(&mut self, damage: &Damage, context: Context<'_>) -> Result<(), CommandError> {
        let Damage {
            broker,
            broker_epoch,
            damaged,
        } = *damage;
        broker::current(context.brokers, broker, broker_epoch)?;
        if !self.replicas.contains(&broker) {
            return Err(CommandError::InvalidChange(format!(
                "broker {broker} is not a replica"
            )));
        }
        if self.damaged.contains(&broker) == damaged {
            return Ok(());
        }
        if damaged {
            self.damaged.push(broker);
            self.isr.retain(|member| *member != broker);
        } else if self.leader.is_some() {
            self.damaged.retain(|member| *member != broker);
        } else {
            return Err(CommandError::InvalidChange(
                "a log begins anew only where another leads".into(),
            ));
        }
        Ok(())
    }

    fn elect(&mut self, election: Election, context: Context<'_>) -> Result<(), CommandError> {
        let (Election::Clean(broker) | Election::Unclean(broker)) = election;
        let is_usable = context.is_live(broker) && !self.damaged.contains(&broker);
        if !self.replicas.contains(&broker) || !is_usable {
            return Err(CommandError::IneligibleReplica(broker));
        }
        match election {
            Election::Clean(_) if self.isr.contains(&broker) => self.leader = Some(broker),
            Election::Clean(_) if self.isr.is_empty() && self.elr.contains(&broker) => {
                self.lead_alone(broker, context);
            }
            Election::Clean(_) => return Err(CommandError::IneligibleReplica(broker)),
            Election::Unclean(_) if self.leader.is_some() => {
                return Err(CommandError::InvalidChange(
                    "the partition has a leader".into(),
                ));
            }
            Election::Unclean(_) => {
                // The others' logs are no longer what this one will serve.
                self.elr.clear();
                self.lead_alone(broker, context);
            }
        }
        self.last_known_leader = None;
        Ok(())
    }

    fn lead_alone(&mut self, broker: BrokerId, context: Context<'_>) {
        self.isr = vec![broker];
        self.leader = Some(broker);
        self.elr.retain(|member| *member != broker);
        if self.has_min_isr(context) {
            self.elr.clear();
        }
    }

    fn has_min_isr(&self, context: Context<'_>) -> bool {
        self.isr.len() >= context.min_insync_replicas.min(self.replicas.len())
    }

    fn derive_elr(&mut self, before: &Self, context: Context<'_>) {
        if self.has_min_isr(context) {
            self.elr.clear();
            return;
        }
        let mut elr: Vec<BrokerId> = Vec::new();
        for broker in before.elr.iter().chain(&before.isr) {
            if self.replicas.contains(broker) && !self.isr.contains(broker) && !elr.contains(broker)
            {
                elr.push(*broker);
            }
        }
        self.elr = elr;
    }

    fn derive_leader(&mut self, context: Context<'_>) {
        self.choose_leader(context);
        if self.leader.is_some() {
            self.elr.retain(|broker| !self.damaged.contains(broker));
        }
    }

    fn choose_leader(&mut self, context: Context<'_>) {
        if self.leader.is_some_and(|leader| self.isr.contains(&leader)) {
            return;
        }
        if let Some(leader) = self.leader.take() {
            self.last_known_leader = Some(leader);
        }
        if !self.isr.is_empty() {
            self.leader = self.candidate(&self.isr, context);
        } else if let Some(eligible) = self.candidate(&self.elr, context) {
            self.lead_alone(eligible, context);
        } else if self.elr.is_empty()
            && let Some(last) = self.last_known_leader
            && let Some(last) = self.candidate(&[last], context)
        {
            self.lead_alone(last, context);
        }
        if self.leader.is_some() {
            self.last_known_leader = None;
        }
    }

    /// The first live replica among `from` that is not damaged, one that is not draining if there is one.
    fn candidate(&self, from: &[BrokerId], context: Context<'_>) -> Option<BrokerId> {
        let mut live = self.replicas.iter().copied().filter(|broker| {
            from.contains(broker) && context.is_live(*broker) && !self.damaged.contains(broker)
        });
        let first = live.clone().next();
        live.find(|broker| context.is_willing(*broker)).or(first)
    }

    fn count_change(&mut self, before: &Self) {
        if self.leader != before.leader {
            self.leader_epoch = next_epoch(self.leader_epoch);
        }
        if self != before {
            self.partition_epoch = PartitionEpoch(next_epoch(self.partition_epoch.0));
        }
    }
}

/// Kafka gives these epochs 31 bits. At the end they stand still rather than go back: a change a
/// millisecond gets there in 25 days, a change a second in 68 years.
fn next_epoch(epoch: i32) -> i32 {
    epoch.saturating_add(1)
}

fn validate_replicas(replicas: &[BrokerId], context: Context<'_>) -> Result<(), CommandError> {
    if replicas.is_empty() {
        return Err(CommandError::InvalidReplicas(
            "a partition without replicas".into(),
        ));
    }
    for (position, broker) in replicas.iter().enumerate() {
        if replicas[..position].contains(broker) {
            return Err(CommandError::InvalidReplicas(format!(
                "broker {broker} appears twice"
            )));
        }
        if !context.brokers.contains_key(broker) {
            return Err(CommandError::UnknownBroker(*broker));
        }
    }
    Ok(())
}
