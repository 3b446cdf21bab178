//! A replica as the leader: appends, waiting for their commit, and what its followers show of themselves.

use kittiwake_raft::{BrokerEpoch, BrokerId, PartitionChange, PartitionEpoch, Requester};
use kittiwake_storage::{
    AppendError, Appended, FlushError, LeaderEpoch, Offset, ProducerError, RetainError, ValidBatch,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use thiserror::Error;
use tokio::sync::oneshot;
use tracing::error;

use super::super::follower::Continuity;
use super::super::leader::{Committed, Event};
use super::super::readers::Slot;
use super::Partition;
use crate::api::ErrorCode;
use crate::broker::uptime_ms;

/// When a producer counts its records as written (`acks`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Acks {
    /// As soon as they are sent; no answer (0).
    None,
    /// When the leader has them (1).
    Leader,
    /// When they are below the high watermark (−1, "all").
    All,
}

impl Acks {
    /// The meaning of the number in a Produce request; none for a number without one.
    pub fn from_wire(acks: i16) -> Option<Self> {
        match acks {
            0 => Some(Self::None),
            1 => Some(Self::Leader),
            -1 => Some(Self::All),
            _ => None,
        }
    }
}

/// Why a batch was not appended.
#[derive(Debug, Error)]
pub enum AppendRefused {
    /// This node does not lead the partition, or only just does and something else is expected first.
    #[error("not the leader of the partition")]
    NotLeader,
    /// acks=all, and fewer replicas in sync than `min.insync.replicas`.
    #[error("fewer in-sync replicas than min.insync.replicas")]
    NotEnoughReplicas,
    /// The log refused it.
    #[error(transparent)]
    Log(#[from] AppendError),
}

/// What a batch's append came to.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Where it is.
    pub appended: Appended,
    /// The epoch it was appended in: the one to wait in.
    pub epoch: LeaderEpoch,
    /// Whether it is below the high watermark already.
    pub is_committed: bool,
}

/// A follower's fetch of one partition, as its leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct FollowerFetch {
    /// Who asks.
    pub replica: BrokerId,
    /// The registration it speaks for.
    pub broker_epoch: BrokerEpoch,
    /// The epoch it believes the leader to be in.
    pub leader_epoch: LeaderEpoch,
    /// The end of its log.
    pub from: Offset,
    /// The epoch of its last record; none if it has no records.
    pub last_epoch: LeaderEpoch,
    /// The end of what is on its disk.
    pub flushed: Offset,
    /// The start of its log.
    pub log_start: Offset,
}

impl Partition {
    /// Appends a batch of a client or coordinator and wakes what waits for it. Returns at once; with `acks` = all the
    /// caller then waits with [`Partition::committed`], in the epoch returned: any other would wait for other records.
    /// A coordinator names the `epoch` it has loaded the partition in; in another one nothing is appended.
    ///
    /// # Errors
    /// See [`AppendRefused`].
    pub fn append(
        self: &Arc<Self>,
        batch: &ValidBatch<'_>,
        acks: Acks,
        epoch: Option<LeaderEpoch>,
        now_ms: i64,
    ) -> Result<Written, AppendRefused> {
        if !self.lease.is_valid() {
            return Err(AppendRefused::NotLeader);
        }
        let mut standing = self.standing.lock();
        let leader = standing.leader().ok_or(AppendRefused::NotLeader)?;
        if epoch.is_some_and(|epoch| epoch != leader.epoch()) {
            return Err(AppendRefused::NotLeader);
        }
        if acks == Acks::All && !leader.has_enough_replicas() {
            return Err(AppendRefused::NotEnoughReplicas);
        }
        let epoch = leader.epoch();
        let appended = match self.log.append(batch, epoch, now_ms) {
            // Told to try again, the producer sends what precedes it first. Told of a gap, librdkafka takes a new producer
            // epoch instead, under which what it has in flight to other partitions is not recognised as a duplicate.
            Err(AppendError::Producer(ProducerError::OutOfOrderSequence { .. }))
                if leader.is_taking_over(uptime_ms()) =>
            {
                return Err(AppendRefused::NotLeader);
            }
            appended => appended?,
        };
        let actions = leader.step(Event::Appended {
            log_end: appended.last_offset + 1,
            now_ms: uptime_ms(),
        });
        let is_committed = leader.high_watermark() > appended.last_offset;
        self.followers.announce(true);
        self.carry_out(&mut standing, &actions);
        // A process that was stopped since it looked may have been replaced meanwhile. What waits for others finds out by
        // itself; nothing else would.
        if acks != Acks::All && !self.lease.is_valid() {
            return Err(AppendRefused::NotLeader);
        }
        Ok(Written {
            appended,
            epoch,
            is_committed,
        })
    }

    /// Waits until everything below `end` is committed, in `epoch`.
    ///
    /// # Errors
    /// NOT_LEADER_OR_FOLLOWER when another epoch has begun, NOT_ENOUGH_REPLICAS_AFTER_APPEND when too few replicas are
    /// left in sync.
    pub async fn committed(&self, epoch: LeaderEpoch, end: Offset) -> Result<(), ErrorCode> {
        let answer = {
            let mut standing = self.standing.lock();
            match standing.leader() {
                Some(leader) if leader.epoch() == epoch => {
                    if leader.high_watermark() >= end {
                        return Ok(());
                    }
                    if !leader.has_enough_replicas() {
                        return Err(ErrorCode::NotEnoughReplicasAfterAppend);
                    }
                }
                _ => return Err(ErrorCode::NotLeaderOrFollower),
            }
            let (sender, answer) = oneshot::channel();
            standing.commits_begun += 1;
            let key = (end, standing.commits_begun);
            standing.commits.insert(key, sender);
            answer
        };
        answer.await.unwrap_or(Err(ErrorCode::NotLeaderOrFollower))
    }

    /// Takes a follower's fetch in: it has everything below `from`, if its history is this log's.
    ///
    /// # Errors
    /// NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH or UNKNOWN_LEADER_EPOCH, as for any reader; every replica fetch
    /// names its epoch. REPLICA_NOT_AVAILABLE for a replica that this node has not heard of: it asks again, and is then
    /// counted from its first fetch on.
    pub fn fetched(self: &Arc<Self>, fetch: &FollowerFetch) -> Result<Continuity, ErrorCode> {
        let mut standing = self.standing.lock();
        let leader = standing.leader().ok_or(ErrorCode::NotLeaderOrFollower)?;
        match fetch.leader_epoch.cmp(&leader.epoch()) {
            std::cmp::Ordering::Less => return Err(ErrorCode::FencedLeaderEpoch),
            std::cmp::Ordering::Greater => return Err(ErrorCode::UnknownLeaderEpoch),
            std::cmp::Ordering::Equal => {}
        }
        if !leader.is_follower(fetch.replica) {
            return Err(ErrorCode::ReplicaNotAvailable);
        }
        let continuity = self.continuity(fetch.from, fetch.last_epoch);
        // Only what is a prefix of this log counts: the same offset in another history is other records.
        if continuity == Continuity::Continues {
            let actions = leader.step(Event::Fetched {
                replica: fetch.replica,
                broker_epoch: fetch.broker_epoch,
                log_end: fetch.from,
                flushed: fetch.flushed,
                log_start: fetch.log_start,
                now_ms: uptime_ms(),
            });
            self.carry_out(&mut standing, &actions);
            self.follower_fetched.notify_waiters();
        }
        Ok(continuity)
    }

    /// Announces news of this partition to a follower's session from now on. Look at the partition after this, not
    /// before.
    pub fn announce_to(&self, slot: &Arc<Slot>) {
        self.followers.add(slot);
    }

    /// Ends what [`Partition::announce_to`] began.
    pub fn forget(&self, slot: &Arc<Slot>) {
        self.followers.remove(slot);
    }

    /// Whether offsets up to the high watermark can be told: a new leader may not know yet how far the one before it had
    /// committed (KIP-207).
    pub fn high_watermark_is_current(&self) -> bool {
        let mut standing = self.standing.lock();
        standing
            .leader()
            .is_some_and(|leader| leader.high_watermark_is_current())
    }

    /// In-sync followers that a consumer can read `from` at (KIP-392); none where this node does not lead.
    pub fn followers_with(&self, from: Offset) -> Vec<BrokerId> {
        let mut standing = self.standing.lock();
        standing
            .leader()
            .map(|leader| leader.followers_with(from).collect())
            .unwrap_or_default()
    }

    /// How far each follower has fetched in this reign; none where this node does not lead.
    pub fn follower_ends(&self) -> Vec<(BrokerId, Option<Offset>)> {
        let mut standing = self.standing.lock();
        standing
            .leader()
            .map(|leader| leader.follower_ends().collect())
            .unwrap_or_default()
    }

    /// Moves the log start up to `before`, no further than the high watermark; returns the new log start.
    ///
    /// Blocks on the disk: the new start is durable before records go.
    ///
    /// # Errors
    /// OFFSET_OUT_OF_RANGE above the high watermark, NOT_LEADER_OR_FOLLOWER, or KAFKA_STORAGE_ERROR.
    pub fn delete_records(&self, before: Offset) -> Result<Offset, ErrorCode> {
        if !self.is_leader() {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        let high_watermark = self.high_watermark();
        if before > high_watermark || before < Offset::ZERO {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        let moved = self
            .log
            .advance_log_start(before, high_watermark)
            .and_then(|start| {
                self.log.checkpoint_log_start()?;
                Ok(start)
            });
        self.followers.announce(true);
        moved.map_err(|error| match error {
            RetainError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            error => {
                error!(topic = %self.topic, partition = self.index, %error, "cannot delete records");
                ErrorCode::KafkaStorageError
            }
        })
    }

    /// Waits until every in-sync replica's log starts at `start` or later; returns the smallest of their starts.
    ///
    /// # Errors
    /// NOT_LEADER_OR_FOLLOWER.
    pub async fn low_watermark_reaches(&self, start: Offset) -> Result<Offset, ErrorCode> {
        loop {
            // Before the look: a fetch in between wakes this.
            let fetched = self.follower_fetched.notified();
            let low_watermark = {
                let own = self.log_start_offset();
                let mut standing = self.standing.lock();
                let leader = standing.leader().ok_or(ErrorCode::NotLeaderOrFollower)?;
                leader.low_watermark(own)
            };
            if low_watermark >= start {
                return Ok(low_watermark);
            }
            fetched.await;
        }
    }

    /// The ISR change that waits for the quorum, asked for by the broker with this registration.
    pub(in crate::partition) fn isr_change(
        &self,
        broker: BrokerId,
        broker_epoch: BrokerEpoch,
    ) -> Option<PartitionChange> {
        let mut standing = self.standing.lock();
        let leader = standing.leader()?;
        let proposal = leader.proposal()?;
        Some(PartitionChange {
            topic: self.topic_id,
            partition: self.index,
            partition_epoch: proposal.partition_epoch,
            requester: Some(Requester {
                broker,
                broker_epoch,
                leader_epoch: leader.epoch().0,
            }),
            isr: Some(proposal.isr.clone()),
            leader: None,
            replicas: None,
            damage: None,
        })
    }

    /// The quorum has refused the ISR change made at `partition_epoch`.
    pub(in crate::partition) fn isr_change_refused(
        self: &Arc<Self>,
        partition_epoch: PartitionEpoch,
    ) {
        self.step(Event::Refused {
            partition_epoch,
            now_ms: uptime_ms(),
        });
    }

    /// The cluster has a newer state of the partition, in the epoch this node leads it in.
    pub(in crate::partition) fn isr_changed(
        self: &Arc<Self>,
        epoch: LeaderEpoch,
        committed: Committed,
    ) {
        if self.leader_epoch() == epoch {
            self.step(Event::Committed(committed));
            self.follower_fetched.notify_waiters();
        }
    }

    /// Time has passed.
    pub(in crate::partition) fn tick(self: &Arc<Self>) {
        if self.is_leader() {
            self.step(Event::Tick(uptime_ms()));
        }
    }

    /// Says how far the log is flushed, as of now: it may have been cut since the flush, and led again.
    fn step_flushed(self: &Arc<Self>) {
        let mut standing = self.standing.lock();
        let flushed = self.log.flushed_offset();
        if let Some(leader) = standing.leader() {
            let actions = leader.step(Event::Flushed(flushed));
            self.carry_out(&mut standing, &actions);
        }
    }

    pub(super) fn step(self: &Arc<Self>, event: Event) {
        let mut standing = self.standing.lock();
        if let Some(leader) = standing.leader() {
            let actions = leader.step(event);
            self.carry_out(&mut standing, &actions);
        }
    }

    /// Whether what this replica sends `follower` may be held back: it leads, is throttled, and the follower is not in sync.
    pub fn throttles(&self, follower: BrokerId) -> bool {
        self.throttled().as_leader
            && self
                .standing
                .lock()
                .leader()
                .is_some_and(|leader| !leader.is_in_sync(follower))
    }

    /// Group commit: one flush at a time; what is appended meanwhile is the next one's.
    pub(super) fn flush_in_background(self: &Arc<Self>) {
        if self.flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        let partition = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let flushed = partition.log.flush();
            partition.flushing.store(false, Ordering::Release);
            match flushed {
                Ok(_) => partition.step_flushed(),
                // What waits is acknowledged by a later flush: the next append asks for one, a retry included.
                Err(error @ (FlushError::DiskFull | FlushError::TooManyOpenFiles)) => {
                    error!(topic = %partition.topic, partition = partition.index, %error, "cannot flush the log yet");
                }
                // Deleted while it was being flushed.
                Err(FlushError::Gone) => {}
                // The log directory is offline now: no write of this partition is ever acknowledged again.
                Err(error @ FlushError::Offline(_)) => {
                    error!(topic = %partition.topic, partition = partition.index, %error, "cannot flush the log");
                    partition.resign();
                }
            }
        });
    }
}
