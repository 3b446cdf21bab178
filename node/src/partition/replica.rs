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
mod leading;

pub use following::{Followed, LeaderAnswer};
pub use leading::{Acks, AppendRefused, FollowerFetch, Written};

use arc_swap::ArcSwap;
use kittiwake_raft::{BrokerId, TopicId};
use kittiwake_storage::{BatchRules, LeaderEpoch, Log, Offset};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, Ordering};
use tokio::sync::{Notify, oneshot};

use super::follower::{self, Continuity, View};
use super::isr::IsrUpdates;
use super::leader::{Action, Committed, Event, Leader, Reign};
use super::readers::{Followers, Readers};
use crate::api::ErrorCode;
use crate::broker::uptime_ms;
use crate::cluster::ControllerLease;
use crate::config::topic_layers::Durability;

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

    /// Compares the epoch a client has in mind with ours (KIP-320), which is returned; −1 is not compared.
    ///
    /// # Errors
    /// FENCED_LEADER_EPOCH for an older one, UNKNOWN_LEADER_EPOCH for a newer one.
    pub fn check_leader_epoch(&self, theirs: i32) -> Result<LeaderEpoch, ErrorCode> {
        compare_epochs(self.leader_epoch(), theirs)
    }

    /// As [`Partition::check_leader_epoch`], for a reader that may be served by a follower (KIP-392).
    ///
    /// # Errors
    /// The same, and NOT_LEADER_OR_FOLLOWER where this replica is neither.
    pub fn check_reader_epoch(&self, theirs: i32) -> Result<LeaderEpoch, ErrorCode> {
        compare_epochs(self.reader_epoch()?, theirs)
    }

    /// The epoch this replica leads or follows in.
    fn reader_epoch(&self) -> Result<LeaderEpoch, ErrorCode> {
        let ours = match self.leader_epoch() {
            epoch if epoch.0 != NOT_LEADING => epoch,
            _ => LeaderEpoch(self.followed_epoch.load(Ordering::Acquire)),
        };
        match ours.0 {
            NOT_LEADING => Err(ErrorCode::NotLeaderOrFollower),
            _ => Ok(ours),
        }
    }

    /// Whether a reader whose epoch was checked in `epoch` may be told what this log lacks: that an offset or an epoch is
    /// not there, or where the log ends. A leader without a lease may have been replaced by one whose log goes on: a client
    /// that is told OFFSET_OUT_OF_RANGE gives its position up, one that is sent to the leader keeps it. What is below the
    /// high watermark is in either log.
    ///
    /// A follower denies nothing: what its log lacks, or has deleted, its leader's may have (KIP-392).
    ///
    /// To be asked *after* the look at the log: a lease that was lost before it comes back only with the next epoch.
    ///
    /// # Errors
    /// NOT_LEADER_OR_FOLLOWER, or OFFSET_NOT_AVAILABLE of a follower, whose reader is to ask the leader.
    pub fn check_denial(&self, epoch: LeaderEpoch) -> Result<(), ErrorCode> {
        let may_be_replaced = self.is_leader() && !self.lease.is_valid();
        if may_be_replaced || self.reader_epoch()? != epoch {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        if !self.is_leader() {
            return Err(ErrorCode::OffsetNotAvailable);
        }
        Ok(())
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

    /// Whether what this topic acknowledges is on disk.
    pub fn is_persisted(&self) -> bool {
        self.settings.load().durability == Durability::Persisted
    }

    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }
}

fn compare_epochs(ours: LeaderEpoch, theirs: i32) -> Result<LeaderEpoch, ErrorCode> {
    match theirs {
        _ if theirs < 0 || theirs == ours.0 => Ok(ours),
        _ if theirs < ours.0 => Err(ErrorCode::FencedLeaderEpoch),
        _ => Err(ErrorCode::UnknownLeaderEpoch),
    }
}

#[cfg(test)]
mod tests;
