//! One partition on this node: its log, its role, and what waits for it.
//!
//! The decisions are [`super::leader`]'s and [`super::follower`]'s; this carries them out. Watermark order:
//! `log_start <= last_stable_offset <= high_watermark <= log_end`. The high watermark is published with a Release store
//! after the log end it follows, so a reader that sees it sees the records below it.
//!
//! **Roles.** Whatever changes the log does so under the role's lock, in the role it believes in: an append as leader of
//! one epoch, or as follower of one epoch's leader. A fetcher or a coordinator that is late finds another role or epoch
//! and changes nothing, so a log has one writer at a time, and none that the cluster has moved on from.

mod following;

pub use following::{Followed, LeaderAnswer};

use arc_swap::ArcSwap;
use kittiwake_raft::{BrokerEpoch, BrokerId, PartitionChange, PartitionEpoch, Requester, TopicId};
use kittiwake_storage::{
    AppendError, Appended, BatchRules, FlushError, LeaderEpoch, Log, Offset, RetainError,
    ValidBatch,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, Ordering};
use thiserror::Error;
use tokio::sync::{Notify, oneshot};
use tracing::error;

use super::follower::{self, Continuity, View};
use super::isr::IsrUpdates;
use super::leader::{Action, Committed, Event, Leader, Reign};
use super::readers::{Followers, Readers, Slot};
use crate::api::ErrorCode;
use crate::broker::uptime_ms;
use crate::cluster::ControllerLease;
use crate::config::topic::Durability;

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
    /// This node does not lead the partition.
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

/// What a topic's configuration means for each of its partitions.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What batches of clients must comply with.
    pub batch_rules: BatchRules,
    /// `min.insync.replicas`.
    pub min_insync_replicas: usize,
    /// `kittiwake.durability`.
    pub durability: Durability,
    /// Whether it may be held back while it catches up.
    pub throttled: Throttled,
}

/// On which sides a replica is throttled (KIP-73).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Throttled {
    /// In what it sends as leader (`leader.replication.throttled.replicas`).
    pub as_leader: bool,
    /// In what it fetches as follower (`follower.replication.throttled.replicas`).
    pub as_follower: bool,
}

/// Not leading, or not following: no epoch is below it, none equal to it.
const NOT_LEADING: i32 = -1;

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

/// One partition's replica on this node.
#[derive(Debug)]
pub struct Partition {
    topic: Arc<str>,
    topic_id: TopicId,
    index: i32,
    log: Arc<Log>,
    settings: ArcSwap<Settings>,
    high_watermark: AtomicI64,
    leader_epoch: AtomicI32,
    /// The epoch it follows in, or [`NOT_LEADING`].
    followed_epoch: AtomicI32,
    standing: Mutex<Standing>,
    /// Consumers that wait for the high watermark.
    readers: Readers,
    /// Sessions of followers that wait for the log end.
    followers: Followers,
    /// Notified when a follower has shown how far it is, or the role is another.
    follower_fetched: Notify,
    /// Without a valid one this node may have been replaced, and does not know yet.
    lease: Arc<ControllerLease>,
    isr_updates: Arc<IsrUpdates>,
    /// Whether a flush that acknowledgements wait for is under way.
    flushing: AtomicBool,
    /// Appends as a follower that failed in a row.
    append_failures: AtomicU32,
}

/// What this replica is to its partition.
#[derive(Debug, Default)]
enum Role {
    /// Nobody leads, as far as this node knows.
    #[default]
    Leaderless,
    Leader(Box<Leader>),
    Follower(Following),
}

/// Whom a follower follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Following {
    /// The leader.
    pub leader: BrokerId,
    /// The epoch it leads in.
    pub epoch: LeaderEpoch,
}

#[derive(Debug, Default)]
struct Standing {
    role: Role,
    /// Writes that wait for the high watermark, by the offset it must reach. Emptied whenever the leader changes, so
    /// that none is answered by another epoch's records (KAFKA-20634).
    commits: BTreeMap<(Offset, u64), oneshot::Sender<Result<(), ErrorCode>>>,
    commits_begun: u64,
}

impl Standing {
    fn leader(&mut self) -> Option<&mut Leader> {
        match &mut self.role {
            Role::Leader(leader) => Some(leader),
            Role::Leaderless | Role::Follower(_) => None,
        }
    }

    fn follows(&self, following: Following) -> bool {
        matches!(self.role, Role::Follower(current) if current == following)
    }

    fn answer_commits(&mut self, high_watermark: Offset) {
        while let Some(first) = self.commits.first_entry()
            && first.key().0 <= high_watermark
        {
            // The waiting request may have timed out; then nobody takes the answer.
            let _ = first.remove().send(Ok(()));
        }
    }

    fn fail_commits(&mut self, error: ErrorCode) {
        for waiting in std::mem::take(&mut self.commits).into_values() {
            let _ = waiting.send(Err(error));
        }
    }
}

impl Partition {
    /// A replica around `log`, leading and following nothing yet.
    pub(super) fn new(
        topic: Arc<str>,
        topic_id: TopicId,
        index: i32,
        (log, high_watermark): (Arc<Log>, Offset),
        settings: Settings,
        (lease, isr_updates): (Arc<ControllerLease>, Arc<IsrUpdates>),
    ) -> Self {
        let high_watermark = high_watermark.clamp(log.log_start_offset(), log.log_end_offset());
        Self {
            topic,
            topic_id,
            index,
            log,
            settings: ArcSwap::from_pointee(settings),
            high_watermark: AtomicI64::new(high_watermark.0),
            leader_epoch: AtomicI32::new(NOT_LEADING),
            followed_epoch: AtomicI32::new(NOT_LEADING),
            append_failures: AtomicU32::new(0),
            standing: Mutex::default(),
            readers: Readers::default(),
            followers: Followers::default(),
            follower_fetched: Notify::new(),
            lease,
            isr_updates,
            flushing: AtomicBool::new(false),
        }
    }

    /// Name of the topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Id of the topic.
    pub fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// Number of the partition.
    pub fn index(&self) -> i32 {
        self.index
    }

    /// The log itself.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Whether this node leads the partition now.
    pub fn is_leader(&self) -> bool {
        self.leader_epoch.load(Ordering::Acquire) != NOT_LEADING
    }

    /// The epoch this node leads in; [`LeaderEpoch::NONE`] where it does not.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        LeaderEpoch(self.leader_epoch.load(Ordering::Acquire))
    }

    /// First offset that can be read.
    pub fn log_start_offset(&self) -> Offset {
        self.log.log_start_offset()
    }

    /// Offset of the next record.
    pub fn log_end_offset(&self) -> Offset {
        self.log.log_end_offset()
    }

    /// End of what is committed, and what read_uncommitted consumers see.
    pub fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark.load(Ordering::Acquire))
    }

    /// End of what read_committed consumers see: the high watermark, or the first open transaction below it.
    pub fn last_stable_offset(&self) -> Offset {
        let high_watermark = self.high_watermark();
        self.log
            .first_unstable_offset()
            .map_or(high_watermark, |unstable| unstable.min(high_watermark))
    }

    /// What batches of clients must comply with.
    pub fn batch_rules(&self) -> BatchRules {
        self.settings.load().batch_rules
    }

    /// Compares the epoch a client has in mind with ours (KIP-320); −1 is not compared.
    ///
    /// # Errors
    /// FENCED_LEADER_EPOCH for an older one, UNKNOWN_LEADER_EPOCH for a newer one.
    pub fn check_leader_epoch(&self, theirs: i32) -> Result<(), ErrorCode> {
        compare_epochs(self.leader_epoch(), theirs)
    }

    /// As [`Partition::check_leader_epoch`], for a reader that may be served by a follower (KIP-392).
    ///
    /// # Errors
    /// The same, and NOT_LEADER_OR_FOLLOWER where this replica is neither.
    pub fn check_reader_epoch(&self, theirs: i32) -> Result<(), ErrorCode> {
        let ours = match self.leader_epoch() {
            epoch if epoch.0 != NOT_LEADING => epoch,
            _ => LeaderEpoch(self.followed_epoch.load(Ordering::Acquire)),
        };
        if ours.0 == NOT_LEADING {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        compare_epochs(ours, theirs)
    }

    /// Where a reader that has everything below `from`, the last of it from `last_epoch` (negative: unknown), stands to
    /// this log (KIP-101, KIP-595).
    pub fn continuity(&self, from: Offset, last_epoch: LeaderEpoch) -> Continuity {
        let view = View {
            log_start: self.log_start_offset(),
            log_end: self.log_end_offset(),
        };
        let end_of_epoch = |epoch| self.log.end_offset_for_epoch(epoch);
        follower::continuity(view, from, last_epoch, end_of_epoch)
    }

    // ---- as leader ---------------------------------------------------------------------------

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
        let appended = self.log.append(batch, epoch, now_ms)?;
        let actions = leader.step(Event::Appended {
            log_end: appended.last_offset + 1,
            now_ms: uptime_ms(),
        });
        let is_committed = leader.high_watermark() > appended.last_offset;
        self.followers.announce(true);
        self.carry_out(&mut standing, &actions);
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
    pub(super) fn isr_change(
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
        })
    }

    /// The quorum has refused the ISR change made at `partition_epoch`.
    pub(super) fn isr_change_refused(self: &Arc<Self>, partition_epoch: PartitionEpoch) {
        self.step(Event::Refused {
            partition_epoch,
            now_ms: uptime_ms(),
        });
    }

    /// The cluster has a newer state of the partition, in the epoch this node leads it in.
    pub(super) fn isr_changed(self: &Arc<Self>, epoch: LeaderEpoch, committed: Committed) {
        if self.leader_epoch() == epoch {
            self.step(Event::Committed(committed));
            self.follower_fetched.notify_waiters();
        }
    }

    /// Time has passed.
    pub(super) fn tick(self: &Arc<Self>) {
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

    fn step(self: &Arc<Self>, event: Event) {
        let mut standing = self.standing.lock();
        if let Some(leader) = standing.leader() {
            let actions = leader.step(event);
            self.carry_out(&mut standing, &actions);
        }
    }

    // ---- changing roles ----------------------------------------------------------------------

    /// Begins to lead in `epoch`; `lag_max_ms` is `replica.lag.time.max.ms`.
    pub(super) fn lead(
        self: &Arc<Self>,
        epoch: LeaderEpoch,
        this_node: BrokerId,
        committed: Committed,
        lag_max_ms: i64,
    ) {
        let mut standing = self.standing.lock();
        let settings = self.settings.load();
        // Read under the lock: until now this replica may have been appended to as a follower.
        let log_end = self.log.log_end_offset();
        let (leader, actions) = Leader::new(Reign {
            epoch,
            this_node,
            committed,
            min_insync_replicas: settings.min_insync_replicas,
            durability: settings.durability,
            lag_max_ms,
            log_end,
            flushed: self.log.flushed_offset(),
            high_watermark: self.high_watermark(),
            now_ms: uptime_ms(),
        });
        self.log.assign_epoch(epoch, log_end);
        standing.fail_commits(ErrorCode::NotLeaderOrFollower);
        standing.role = Role::Leader(Box::new(leader));
        self.followed_epoch.store(NOT_LEADING, Ordering::Release);
        self.leader_epoch.store(epoch.0, Ordering::Release);
        self.carry_out(&mut standing, &actions);
        drop(standing);
        self.wake_all();
    }

    /// Begins to follow; says whether that is news.
    pub(super) fn follow(&self, following: Following) -> bool {
        let mut standing = self.standing.lock();
        if standing.follows(following) {
            return false;
        }
        self.leave(&mut standing, Role::Follower(following));
        drop(standing);
        self.wake_all();
        true
    }

    /// Stops leading and following: nobody leads, or this replica may not.
    pub(super) fn resign(&self) {
        let mut standing = self.standing.lock();
        self.leave(&mut standing, Role::Leaderless);
        drop(standing);
        self.wake_all();
    }

    /// Waiting writes fail; who waits to read looks again.
    fn leave(&self, standing: &mut Standing, role: Role) {
        let followed = match &role {
            Role::Follower(following) => following.epoch.0,
            Role::Leaderless | Role::Leader(_) => NOT_LEADING,
        };
        standing.role = role;
        self.followed_epoch.store(followed, Ordering::Release);
        self.leader_epoch.store(NOT_LEADING, Ordering::Release);
        standing.fail_commits(ErrorCode::NotLeaderOrFollower);
    }

    fn wake_all(&self) {
        self.follower_fetched.notify_waiters();
        self.readers.wake();
        self.followers.announce(true);
    }

    /// Takes a changed topic configuration over; by the same image this node leads in `led_in`, if it does. A reign that
    /// is over by then does not learn of it: with a smaller `min.insync.replicas` and the ISR it last knew it would
    /// acknowledge what its successor lacks.
    pub(super) fn configure(self: &Arc<Self>, settings: Settings, led_in: Option<LeaderEpoch>) {
        self.settings.store(Arc::new(settings));
        if led_in == Some(self.leader_epoch()) {
            self.step(Event::Configured {
                min_insync_replicas: settings.min_insync_replicas,
                durability: settings.durability,
            });
        }
    }

    fn carry_out(self: &Arc<Self>, standing: &mut Standing, actions: &[Action]) {
        for action in actions {
            match *action {
                Action::AdvanceHighWatermark(offset) => {
                    self.high_watermark.store(offset.0, Ordering::Release);
                    standing.answer_commits(offset);
                    self.readers.wake();
                    self.followers.announce(false);
                }
                Action::Flush => self.flush_in_background(),
                Action::ProposeIsr => self.isr_updates.add(self),
                Action::FailWaiting => {
                    standing.fail_commits(ErrorCode::NotEnoughReplicasAfterAppend);
                }
            }
        }
    }

    /// On which sides this replica may be held back.
    pub fn throttled(&self) -> Throttled {
        self.settings.load().throttled
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

    /// Whether what this topic acknowledges is on disk.
    pub fn is_persisted(&self) -> bool {
        self.settings.load().durability == Durability::Persisted
    }

    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Group commit: one flush at a time; what is appended meanwhile is the next one's.
    fn flush_in_background(self: &Arc<Self>) {
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

fn compare_epochs(ours: LeaderEpoch, theirs: i32) -> Result<(), ErrorCode> {
    match theirs {
        _ if theirs < 0 || theirs == ours.0 => Ok(()),
        _ if theirs < ours.0 => Err(ErrorCode::FencedLeaderEpoch),
        _ => Err(ErrorCode::UnknownLeaderEpoch),
    }
}
