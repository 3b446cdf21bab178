//! What a partition's leader decides: how far records are committed, and who is in sync.
//!
//! Pure: events in, actions out, no log, clock or task inside. [`super::replica`] feeds it and carries its actions out.
//!
//! **Invariants.** `high_watermark <= log_end`; the high watermark never goes back within an epoch; it advances only
//! while |committed ISR| ≥ min(`min.insync.replicas`, replicas), and to the smallest *acknowledged end* over the maximal
//! ISR (KIP-497, KIP-966), the leader included. What acknowledges an offset depends on the topic's durability: being in
//! the log (`replicated`), or being flushed (`persisted`).
//!
//! **ISR.** The leader proposes, the quorum decides by compare-and-set on the partition epoch. The *maximal* ISR is the
//! committed one and whoever a proposal under way would add: until the outcome is known, the addition may already count.
//! One proposal is under way at a time, and it is repeated as it is until the partition epoch has moved or it was refused:
//! a proposal without an answer may yet be applied. A follower joins when it has everything below the high watermark and
//! the beginning of this reign, under the registration that fetched it (KIP-903); it leaves when it has not been at the
//! log end for `replica.lag.time.max.ms`. A dead follower needs none of this: fencing takes it out of every ISR at once.

use kittiwake_raft::{BrokerEpoch, BrokerId, IsrMember, PartitionEpoch};
use kittiwake_storage::{LeaderEpoch, Offset};
use std::collections::BTreeMap;

use crate::config::topic_layers::Durability;

/// How long a follower that the quorum refused (it is fenced, draining, or has registered again) is not proposed.
const JOIN_RETRY_MS: i64 = 200;

/// How far one replica has come. Invariant: `flushed <= log_end`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Progress {
    log_end: Offset,
    flushed: Offset,
}

/// What the leader knows of another replica.
#[derive(Clone, Copy, Debug)]
struct Follower {
    /// As of its last fetch in this reign; nothing before that.
    progress: Option<Progress>,
    log_start: Offset,
    /// The registration its last fetch came from.
    broker_epoch: Option<BrokerEpoch>,
    /// When it last had everything, ms.
    caught_up_ms: i64,
    /// Not before then is it proposed for the ISR again, ms: the quorum has just refused it.
    join_after_ms: i64,
    /// When it last fetched, ms, and the log end it was then offered: once it is there, it had caught up with that fetch.
    offered: (i64, Offset),
}

/// What a partition's state in the cluster image says about a reign under way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Committed {
    /// Version of the state.
    pub partition_epoch: PartitionEpoch,
    /// All replicas of the partition.
    pub replicas: Vec<BrokerId>,
    /// The committed in-sync replicas, the leader among them.
    pub isr: Vec<BrokerId>,
}

/// Something that happened to the partition. Times are monotonic, in milliseconds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The leader's log now ends here.
    Appended {
        /// Its end.
        log_end: Offset,
        /// When.
        now_ms: i64,
    },
    /// The leader's log is on disk up to here.
    Flushed(Offset),
    /// A follower fetches: it has everything below.
    Fetched {
        /// Which.
        replica: BrokerId,
        /// The registration it speaks for.
        broker_epoch: BrokerEpoch,
        /// The end of its log.
        log_end: Offset,
        /// The end of what is on its disk.
        flushed: Offset,
        /// The start of its log.
        log_start: Offset,
        /// When.
        now_ms: i64,
    },
    /// The topic's configuration changed.
    Configured {
        /// `min.insync.replicas`.
        min_insync_replicas: usize,
        /// `kittiwake.durability`.
        durability: Durability,
    },
    /// The cluster image has a newer state of the partition, in the same reign.
    Committed(Committed),
    /// The proposal made at this partition epoch was refused, for good.
    Refused {
        /// Its partition epoch.
        partition_epoch: PartitionEpoch,
        /// When.
        now_ms: i64,
    },
    /// Time has passed: who lags leaves, and who was refused is proposed again.
    Tick(i64),
}

/// Something to be done about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Publish a higher high watermark and wake what waits for it.
    AdvanceHighWatermark(Offset),
    /// Bring the log to disk up to its end: acknowledgements wait for it.
    Flush,
    /// Propose [`Leader::proposal`] to the quorum, until it is obsolete.
    ProposeIsr,
    /// Fewer in-sync replicas than `min.insync.replicas` are left: what waits for acks=all is told so.
    FailWaiting,
}

/// How long after the beginning of a reign clients may still be sorting out what they had in flight: far longer than they
/// take, far shorter than the time they give a record.
const TAKING_OVER_MS: i64 = 1_000;

/// A change of the ISR that the quorum has not decided yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proposal {
    /// The state it was computed from.
    pub partition_epoch: PartitionEpoch,
    /// The ISR it asks for.
    pub isr: Vec<IsrMember>,
}

/// The leader's view of one partition during one leader epoch.
#[derive(Clone, Debug)]
pub struct Leader {
    epoch: LeaderEpoch,
    began_ms: i64,
    /// Where its reign begins: nothing below is its own.
    epoch_start: Offset,
    this_node: BrokerId,
    partition_epoch: PartitionEpoch,
    own: Progress,
    /// Every replica but this node.
    followers: BTreeMap<BrokerId, Follower>,
    /// Committed in-sync replicas, this node among them.
    isr: Vec<BrokerId>,
    proposal: Option<Proposal>,
    min_insync_replicas: usize,
    durability: Durability,
    lag_max_ms: i64,
    high_watermark: Offset,
}

/// What a node knows when it becomes leader.
#[derive(Clone, Debug)]
pub struct Reign {
    /// The epoch it leads in.
    pub epoch: LeaderEpoch,
    /// Itself.
    pub this_node: BrokerId,
    /// Replicas and ISR.
    pub committed: Committed,
    /// `min.insync.replicas` of the topic.
    pub min_insync_replicas: usize,
    /// `kittiwake.durability` of the topic.
    pub durability: Durability,
    /// `replica.lag.time.max.ms`.
    pub lag_max_ms: i64,
    /// End of its log.
    pub log_end: Offset,
    /// End of what is on its disk.
    pub flushed: Offset,
    /// The last high watermark it knew; it may lag what the previous leader had.
    pub high_watermark: Offset,
    /// When its reign begins, monotonic ms: in-sync followers have from then on to show themselves.
    pub now_ms: i64,
}

impl Leader {
    /// Begins a reign; the actions are those that its state calls for at once.
    pub fn new(reign: Reign) -> (Self, Vec<Action>) {
        let mut leader = Self {
            epoch: reign.epoch,
            began_ms: reign.now_ms,
            epoch_start: reign.log_end,
            this_node: reign.this_node,
            partition_epoch: reign.committed.partition_epoch,
            own: Progress {
                log_end: reign.log_end,
                flushed: reign.flushed.min(reign.log_end),
            },
            followers: BTreeMap::new(),
            isr: reign.committed.isr,
            proposal: None,
            min_insync_replicas: reign.min_insync_replicas,
            durability: reign.durability,
            lag_max_ms: reign.lag_max_ms,
            high_watermark: reign.high_watermark.min(reign.log_end),
        };
        leader.set_replicas(&reign.committed.replicas, reign.now_ms);
        let actions = leader.advance();
        (leader, actions)
    }

    /// The epoch of this reign.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Whether batches may still arrive out of order through nobody's fault: clients pipeline, and the one before may have
    /// been refused by this node, which did not lead yet, or have been lost with the leader before.
    pub fn is_taking_over(&self, now_ms: i64) -> bool {
        self.epoch > LeaderEpoch(0) && now_ms < self.began_ms + TAKING_OVER_MS
    }

    /// The state of the partition this reign is up to date with.
    pub fn partition_epoch(&self) -> PartitionEpoch {
        self.partition_epoch
    }

    /// End of what is committed.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether the high watermark has reached the beginning of this reign: before that it may lie below one that the
    /// previous leader has shown (KIP-207).
    pub fn high_watermark_is_current(&self) -> bool {
        self.high_watermark >= self.epoch_start
    }

    /// Whether enough replicas are in sync for acks=all to be accepted.
    pub fn has_enough_replicas(&self) -> bool {
        self.isr.len() >= self.min_insync_replicas.min(self.followers.len() + 1)
    }

    /// Whether `broker` has a replica to follow with, as far as this leader knows.
    pub fn is_follower(&self, broker: BrokerId) -> bool {
        self.followers.contains_key(&broker)
    }

    /// The ISR change that waits for the quorum.
    pub fn proposal(&self) -> Option<&Proposal> {
        self.proposal.as_ref()
    }

    /// The smallest log start over the in-sync replicas, `own` being the leader's: what DeleteRecords answers with.
    pub fn low_watermark(&self, own: Offset) -> Offset {
        let in_sync = self
            .followers
            .iter()
            .filter(|(id, _)| self.isr.contains(id));
        in_sync
            .map(|(_, follower)| follower.log_start)
            .fold(own, Offset::min)
    }

    /// Whether the cluster counts `replica` as in sync.
    pub fn is_in_sync(&self, replica: BrokerId) -> bool {
        self.isr.contains(&replica)
    }

    /// In-sync followers that have the log up to `offset`: where a consumer may be sent to read it (KIP-392).
    pub fn followers_with(&self, offset: Offset) -> impl Iterator<Item = BrokerId> {
        let has = move |follower: &Follower| {
            follower
                .progress
                .is_some_and(|progress| progress.log_end >= offset)
                && follower.log_start <= offset
        };
        self.followers
            .iter()
            .filter(move |(id, follower)| self.isr.contains(id) && has(follower))
            .map(|(id, _)| *id)
    }

    /// How far each follower has fetched in this reign, none before its first fetch.
    pub fn follower_ends(&self) -> impl Iterator<Item = (BrokerId, Option<Offset>)> {
        let end = |follower: &Follower| follower.progress.map(|progress| progress.log_end);
        self.followers
            .iter()
            .map(move |(id, follower)| (*id, end(follower)))
    }

    /// Takes an event in and says what follows.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Appended { log_end, now_ms } => self.appended(log_end, now_ms),
            Event::Flushed(end) => {
                self.own.flushed = self.own.flushed.max(end).min(self.own.log_end);
            }
            Event::Fetched {
                replica,
                broker_epoch,
                log_end,
                flushed,
                log_start,
                now_ms,
            } => {
                let progress = Progress {
                    log_end,
                    flushed: flushed.min(log_end),
                };
                self.fetched(replica, broker_epoch, progress, log_start, now_ms);
                let mut actions = self.advance();
                if self.may_join(replica, now_ms) {
                    actions.extend(self.propose(&self.isr.clone(), &[replica], now_ms));
                }
                return actions;
            }
            Event::Configured {
                min_insync_replicas,
                durability,
            } => {
                self.min_insync_replicas = min_insync_replicas;
                self.durability = durability;
            }
            Event::Committed(committed) => return self.committed(committed),
            Event::Refused {
                partition_epoch,
                now_ms,
            } => self.refused(partition_epoch, now_ms),
            Event::Tick(now_ms) => return self.tick(now_ms),
        }
        self.advance()
    }

    fn appended(&mut self, log_end: Offset, now_ms: i64) {
        let before = self.own.log_end;
        self.own.log_end = before.max(log_end);
        for follower in self.followers.values_mut() {
            // It had everything until now; from here on it has `lag_max_ms` to have everything again.
            if follower
                .progress
                .is_some_and(|progress| progress.log_end >= before)
            {
                follower.caught_up_ms = follower.caught_up_ms.max(now_ms);
            }
        }
    }

    fn fetched(
        &mut self,
        replica: BrokerId,
        broker_epoch: BrokerEpoch,
        progress: Progress,
        log_start: Offset,
        now_ms: i64,
    ) {
        let own_end = self.own.log_end;
        let Some(follower) = self.followers.get_mut(&replica) else {
            return;
        };
        if follower.broker_epoch > Some(broker_epoch) {
            // A fetch of an earlier life that was on its way.
            return;
        }
        follower.broker_epoch = Some(broker_epoch);
        let (offered_ms, offered) = follower.offered;
        if progress.log_end >= own_end {
            follower.caught_up_ms = follower.caught_up_ms.max(now_ms);
        } else if progress.log_end >= offered {
            follower.caught_up_ms = follower.caught_up_ms.max(offered_ms);
        }
        follower.offered = (now_ms, own_end);
        follower.progress = Some(progress);
        follower.log_start = log_start;
    }

    /// Whether a follower outside the ISR has all that is committed and the beginning of this reign.
    fn may_join(&self, replica: BrokerId, now_ms: i64) -> bool {
        let needed = self.high_watermark.max(self.epoch_start);
        self.proposal.is_none()
            && !self.isr.contains(&replica)
            && self.followers.get(&replica).is_some_and(|follower| {
                now_ms >= follower.join_after_ms
                    && follower
                        .progress
                        .is_some_and(|progress| progress.log_end >= needed)
            })
    }

    fn lags(&self, replica: BrokerId, now_ms: i64) -> bool {
        self.followers.get(&replica).is_some_and(|follower| {
            let behind = follower
                .progress
                .is_none_or(|progress| progress.log_end < self.own.log_end);
            behind && now_ms - follower.caught_up_ms > self.lag_max_ms
        })
    }

    fn tick(&mut self, now_ms: i64) -> Vec<Action> {
        // A flush that could not be done for want of room is asked for again.
        let mut actions = self.advance();
        if self.proposal.is_none() {
            actions.extend(self.change_isr(now_ms));
        }
        actions
    }

    fn change_isr(&mut self, now_ms: i64) -> Vec<Action> {
        let lags = |id: &BrokerId| self.lags(*id, now_ms);
        let staying: Vec<_> = self.isr.iter().copied().filter(|id| !lags(id)).collect();
        // Behind, it has to show by a fetch that it is alive; with everything it need not fetch, and cannot show it.
        let has_everything = |id: &BrokerId| self.progress(*id).log_end >= self.own.log_end;
        let joining: Vec<_> = self
            .followers
            .keys()
            .copied()
            .filter(|id| self.may_join(*id, now_ms) && has_everything(id))
            .collect();
        if joining.is_empty() && staying.len() == self.isr.len() {
            return Vec::new();
        }
        self.propose(&staying, &joining, now_ms)
    }

    fn propose(&mut self, staying: &[BrokerId], joining: &[BrokerId], now_ms: i64) -> Vec<Action> {
        let mut isr = Vec::new();
        for id in staying {
            // Needs no epoch: who starts again leaves the ISR in that entry, which makes this proposal obsolete.
            isr.push(IsrMember {
                broker: *id,
                broker_epoch: None,
            });
        }
        for id in joining {
            let Some(follower) = self.followers.get_mut(id) else {
                continue;
            };
            // From now on it has the time that every member has.
            follower.caught_up_ms = now_ms;
            isr.push(IsrMember {
                broker: *id,
                broker_epoch: follower.broker_epoch,
            });
        }
        self.proposal = Some(Proposal {
            partition_epoch: self.partition_epoch,
            isr,
        });
        vec![Action::ProposeIsr]
    }

    fn refused(&mut self, partition_epoch: PartitionEpoch, now_ms: i64) {
        let refused = self
            .proposal
            .take_if(|proposal| proposal.partition_epoch == partition_epoch);
        for member in refused.into_iter().flat_map(|proposal| proposal.isr) {
            if let Some(follower) = self.followers.get_mut(&member.broker) {
                follower.join_after_ms = now_ms + JOIN_RETRY_MS;
            }
        }
    }

    fn committed(&mut self, committed: Committed) -> Vec<Action> {
        if committed.partition_epoch <= self.partition_epoch {
            return Vec::new();
        }
        self.partition_epoch = committed.partition_epoch;
        // Whatever was proposed at an earlier epoch has been applied by now, or never will be.
        self.proposal = None;
        let had_enough = self.has_enough_replicas();
        self.isr = committed.isr;
        // New replicas have no history here; when they begin does not matter before they are in sync.
        self.set_replicas(&committed.replicas, 0);
        let mut actions = self.advance();
        if had_enough && !self.has_enough_replicas() {
            actions.push(Action::FailWaiting);
        }
        actions
    }

    fn set_replicas(&mut self, replicas: &[BrokerId], now_ms: i64) {
        self.followers.retain(|id, _| replicas.contains(id));
        for id in replicas.iter().filter(|id| **id != self.this_node) {
            self.followers.entry(*id).or_insert(Follower {
                progress: None,
                log_start: Offset::ZERO,
                broker_epoch: None,
                caught_up_ms: now_ms,
                join_after_ms: 0,
                offered: (now_ms, Offset(i64::MAX)),
            });
        }
    }

    /// The committed ISR and who may have joined it.
    fn maximal_isr(&self) -> impl Iterator<Item = BrokerId> {
        let proposed = self.proposal.iter().flat_map(|proposal| &proposal.isr);
        let joining = proposed
            .map(|member| member.broker)
            .filter(|id| !self.isr.contains(id));
        self.isr.iter().copied().chain(joining)
    }

    fn progress(&self, id: BrokerId) -> Progress {
        if id == self.this_node {
            return self.own;
        }
        let follower = self.followers.get(&id);
        follower
            .and_then(|follower| follower.progress)
            .unwrap_or_default()
    }

    fn acknowledged(&self, id: BrokerId) -> Offset {
        let progress = self.progress(id);
        match self.durability {
            Durability::Replicated => progress.log_end,
            Durability::Persisted => progress.flushed,
        }
    }

    fn advance(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.has_enough_replicas() {
            let acknowledged = self.maximal_isr().map(|id| self.acknowledged(id));
            // A follower can be ahead of this log for a moment: it has yet to find out that they diverge.
            let committed = acknowledged.fold(self.own.log_end, Offset::min);
            if committed > self.high_watermark {
                self.high_watermark = committed;
                actions.push(Action::AdvanceHighWatermark(committed));
            }
        }
        if self.durability == Durability::Persisted && self.own.flushed < self.own.log_end {
            actions.push(Action::Flush);
        }
        actions
    }
}

#[cfg(test)]
mod tests;
