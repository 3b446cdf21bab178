//! One partition on this node: its log, who leads it, and what waits for it.
//!
//! The decisions are [`super::leader`]'s; this carries them out. Watermark order:
//! `log_start <= last_stable_offset <= high_watermark <= log_end`. The high watermark is published with a Release store
//! after the log end it follows, so a reader that sees it sees the records below it.

use arc_swap::ArcSwap;
use kittiwake_raft::TopicId;
use kittiwake_storage::{
    AppendError, Appended, BatchRules, FlushError, LeaderEpoch, Log, Offset, RetainError,
    ValidBatch,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering, fence};
use thiserror::Error;
use tokio::sync::{Notify, oneshot};
use tracing::error;

use super::leader::{Action, Event, Leader, Reign};
use crate::api::ErrorCode;
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

/// What a topic's configuration means for each of its partitions.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What batches of clients must comply with.
    pub batch_rules: BatchRules,
    /// `min.insync.replicas`.
    pub min_insync_replicas: usize,
    /// `kittiwake.durability`.
    pub durability: Durability,
}

/// Not leading: no epoch is below it, none equal to it.
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
    leadership: Mutex<Leadership>,
    readers: Readers,
    /// Whether a flush that acknowledgements wait for is under way.
    flushing: AtomicBool,
}

#[derive(Debug, Default)]
struct Leadership {
    leader: Option<Leader>,
    /// Writes that wait for the high watermark, by the offset it must reach. Emptied whenever the leader changes, so
    /// that none is answered by another epoch's records (KAFKA-20634).
    commits: BTreeMap<(Offset, u64), oneshot::Sender<Result<(), ErrorCode>>>,
    commits_begun: u64,
}

impl Partition {
    /// A replica around `log`, leading nothing yet.
    pub(super) fn new(
        topic: Arc<str>,
        topic_id: TopicId,
        index: i32,
        log: Arc<Log>,
        high_watermark: Offset,
        settings: Settings,
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
            leadership: Mutex::default(),
            readers: Readers::default(),
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
        let ours = self.leader_epoch().0;
        match theirs {
            _ if theirs < 0 || theirs == ours => Ok(()),
            _ if theirs < ours => Err(ErrorCode::FencedLeaderEpoch),
            _ => Err(ErrorCode::UnknownLeaderEpoch),
        }
    }

    /// Appends a batch of a client or coordinator and wakes what waits for it. Returns at once; with `acks` = all the
    /// caller then waits with [`Partition::committed`], in the epoch returned: any other would wait for other records.
    ///
    /// # Errors
    /// See [`AppendRefused`].
    pub fn append(
        self: &Arc<Self>,
        batch: &ValidBatch<'_>,
        acks: Acks,
        now_ms: i64,
    ) -> Result<(Appended, LeaderEpoch), AppendRefused> {
        let mut leadership = self.leadership.lock();
        let leader = leadership.leader.as_mut().ok_or(AppendRefused::NotLeader)?;
        if acks == Acks::All && !leader.has_enough_replicas() {
            return Err(AppendRefused::NotEnoughReplicas);
        }
        let epoch = leader.epoch();
        let appended = self.log.append(batch, epoch, now_ms)?;
        let actions = leader.step(Event::Appended(appended.last_offset + 1));
        self.carry_out(&mut leadership, &actions);
        Ok((appended, epoch))
    }

    /// Waits until everything below `end` is committed, in `epoch`.
    ///
    /// # Errors
    /// NOT_LEADER_OR_FOLLOWER when another epoch has begun.
    pub async fn committed(&self, epoch: LeaderEpoch, end: Offset) -> Result<(), ErrorCode> {
        let answer = {
            let mut leadership = self.leadership.lock();
            match &leadership.leader {
                Some(leader) if leader.epoch() == epoch => {
                    if leader.high_watermark() >= end {
                        return Ok(());
                    }
                }
                _ => return Err(ErrorCode::NotLeaderOrFollower),
            }
            let (sender, answer) = oneshot::channel();
            leadership.commits_begun += 1;
            let key = (end, leadership.commits_begun);
            leadership.commits.insert(key, sender);
            answer
        };
        answer.await.unwrap_or(Err(ErrorCode::NotLeaderOrFollower))
    }

    /// Moves the log start up to `before`, no further than the high watermark; returns the new low watermark.
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
        let advanced = self.log.advance_log_start(before, high_watermark).and_then(|start| {
            self.log.checkpoint_log_start()?;
            Ok(start)
        });
        advanced.map_err(|error| match error {
            RetainError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            error => {
                error!(topic = %self.topic, partition = self.index, %error, "cannot delete records");
                ErrorCode::KafkaStorageError
            }
        })
    }

    /// Begins to lead.
    pub(super) fn lead(self: &Arc<Self>, reign: Reign) {
        let mut leadership = self.leadership.lock();
        let epoch = reign.epoch;
        self.log.assign_epoch(epoch, reign.log_end);
        let (leader, actions) = Leader::new(reign);
        leadership.fail_commits();
        leadership.leader = Some(leader);
        self.leader_epoch.store(epoch.0, Ordering::Release);
        self.carry_out(&mut leadership, &actions);
        drop(leadership);
        self.readers.wake();
    }

    /// Stops leading: waiting writes fail, waiting readers look again.
    pub(super) fn resign(&self) {
        let mut leadership = self.leadership.lock();
        leadership.leader = None;
        self.leader_epoch.store(NOT_LEADING, Ordering::Release);
        leadership.fail_commits();
        drop(leadership);
        self.readers.wake();
    }

    /// Takes a changed topic configuration over.
    pub(super) fn configure(self: &Arc<Self>, settings: Settings) {
        self.settings.store(Arc::new(settings));
        let mut leadership = self.leadership.lock();
        if let Some(leader) = leadership.leader.as_mut() {
            let actions = leader.step(Event::Configured {
                min_insync_replicas: settings.min_insync_replicas,
                durability: settings.durability,
            });
            self.carry_out(&mut leadership, &actions);
        }
    }

    fn carry_out(self: &Arc<Self>, leadership: &mut Leadership, actions: &[Action]) {
        for action in actions {
            match *action {
                Action::AdvanceHighWatermark(offset) => {
                    self.high_watermark.store(offset.0, Ordering::Release);
                    leadership.answer_commits(offset);
                    self.readers.wake();
                }
                Action::Flush => self.flush_in_background(),
            }
        }
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
                Ok(offset) => {
                    let mut leadership = partition.leadership.lock();
                    if let Some(leader) = leadership.leader.as_mut() {
                        let actions = leader.step(Event::Flushed(offset));
                        partition.carry_out(&mut leadership, &actions);
                    }
                }
                // What waits is acknowledged by a later flush: the next append asks for one, a retry included.
                Err(error @ (FlushError::DiskFull | FlushError::TooManyOpenFiles)) => {
                    error!(topic = %partition.topic, partition = partition.index, %error, "cannot flush the log yet");
                }
                // The log directory is offline now: no write of this partition is ever acknowledged again.
                Err(error @ FlushError::Offline(_)) => {
                    error!(topic = %partition.topic, partition = partition.index, %error, "cannot flush the log");
                    partition.resign();
                }
            }
        });
    }
}

impl Leadership {
    fn answer_commits(&mut self, high_watermark: Offset) {
        while let Some(first) = self.commits.first_entry()
            && first.key().0 <= high_watermark
        {
            // The waiting request may have timed out; then nobody takes the answer.
            let _ = first.remove().send(Ok(()));
        }
    }

    fn fail_commits(&mut self) {
        for waiting in std::mem::take(&mut self.commits).into_values() {
            let _ = waiting.send(Err(ErrorCode::NotLeaderOrFollower));
        }
    }
}

/// Fetches that wait for a partition. Few at a time: one per consumer connection that has read everything.
#[derive(Debug, Default)]
struct Readers {
    waiting: Mutex<Vec<Arc<Notify>>>,
    /// Whether there are any, so that an append without readers takes no lock.
    any: AtomicBool,
}

impl Readers {
    fn wake(&self) {
        // The fence pairs with the one in `add`: either this load sees the reader, or the reader's look at the watermark,
        // which comes after its registration, sees the store that came before this call.
        fence(Ordering::SeqCst);
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        for reader in self.waiting.lock().iter() {
            reader.notify_one();
        }
    }

    fn add(&self, reader: &Arc<Notify>) {
        self.waiting.lock().push(Arc::clone(reader));
        self.any.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn remove(&self, reader: &Arc<Notify>) {
        let mut waiting = self.waiting.lock();
        waiting.retain(|other| !Arc::ptr_eq(other, reader));
        if waiting.is_empty() {
            self.any.store(false, Ordering::Relaxed);
        }
    }
}

/// A fetch that waits for any of its partitions.
#[derive(Debug, Default)]
pub struct FetchWaiter {
    woken: Arc<Notify>,
}

impl FetchWaiter {
    /// Waits for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has `partition` wake this fetch until the registration is dropped. Look at the partition after this, not before:
    /// what happened in between wakes nobody.
    pub fn wait_for(&self, partition: &Arc<Partition>) -> ReaderRegistration {
        partition.readers.add(&self.woken);
        ReaderRegistration {
            partition: Arc::clone(partition),
            reader: Arc::clone(&self.woken),
        }
    }

    /// Completes when a partition has woken this since the last time.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

/// Takes a fetch out of its partition's readers when dropped.
#[derive(Debug)]
pub struct ReaderRegistration {
    partition: Arc<Partition>,
    reader: Arc<Notify>,
}

impl Drop for ReaderRegistration {
    fn drop(&mut self) {
        self.partition.readers.remove(&self.reader);
    }
}
