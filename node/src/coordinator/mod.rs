//! Group coordination: classic consumer groups and their offsets, kept in `__consumer_offsets`.
//!
//! ```text
//! api/join_group … ──▶ GroupCoordinator ──▶ Cell (lock, waiting requests) ──▶ Shard ──▶ Group     pure
//!                        one task: timers,      one per led partition           └▶ offsets_log    bytes
//!                        loading, expiry        └▶ OffsetsPartition (append, committed, read)
//! ```
//!
//! A group belongs to partition `abs(hashCode(group id)) % partitions` of `__consumer_offsets`, and the
//! leader of that partition coordinates it. When this node becomes the leader it reads the partition to
//! its end and answers COORDINATOR_LOAD_IN_PROGRESS meanwhile, never "no offset", or consumers would
//! start over. When it stops leading, everybody who waits is told NOT_COORDINATOR.
//!
//! Every answer that says yes is held back until all records before it are committed in the same epoch.
//! Heartbeats are the exception: they promise nothing.

mod cell;
mod config;
mod deadlines;
mod description;
mod error;
pub mod group;
pub(crate) mod internal_topic;
mod led_partition;
mod loader;
pub mod offsets_log;
mod offsets_partition;
mod shard;
mod subscription;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use kittiwake_raft::ClusterImage;
use kittiwake_storage::Offset;
use parking_lot::RwLock;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::partition::PartitionManager;

use cell::{Cell, Images, Work};
use group::{Answer, Event, Now, ReplyId};
use led_partition::LedPartition;
use loader::LoadError;
use offsets_partition::OffsetsPartition;
use shard::Shard;

pub use config::GroupConfig;
pub use description::{GroupDescription, GroupListing, MemberDescription, OffsetDescription};
pub use error::GroupError;
pub(crate) use error::code_of;
pub(crate) use shard::{Commit, NewOffset, Offsets as OffsetsOfGroup};

/// The topic that groups are kept in.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// Partitions that are read at the same time when this node takes many over.
const LOADS_MAX: usize = 4;

/// Pause before a partition that could not be read is tried again.
const LOAD_RETRY: Duration = Duration::from_secs(1);

/// How long a client that creates `__consumer_offsets` waits for its coordinator to be ready.
const FOLLOW_WAIT_MAX: Duration = Duration::from_secs(1);

/// Coordinates the groups whose partitions of `__consumer_offsets` this node leads.
pub struct GroupCoordinator {
    config: Arc<GroupConfig>,
    cells: RwLock<HashMap<i32, Arc<Cell>>>,
    /// Partitions of `__consumer_offsets`; any number while there is no such topic.
    partitions: AtomicUsize,
    started: Instant,
    /// Uptime at which the timer task is going to wake by itself.
    planned_wake_ms: AtomicI64,
    wake: Notify,
    loads: Arc<Semaphore>,
    images: Images,
    /// An image up to which leaderships have been taken over and given up.
    followed: watch::Sender<Arc<ClusterImage>>,
}

impl GroupCoordinator {
    /// A coordinator of nothing yet, in the cluster of `images`.
    pub fn new(config: GroupConfig, images: watch::Receiver<Arc<ClusterImage>>) -> Self {
        let before_all = ClusterImage::new(&images.borrow().cluster_id);
        Self {
            images,
            partitions: AtomicUsize::new(1),
            config: Arc::new(config),
            cells: RwLock::default(),
            started: Instant::now(),
            planned_wake_ms: AtomicI64::new(i64::MAX),
            wake: Notify::new(),
            loads: Arc::new(Semaphore::new(LOADS_MAX)),
            followed: watch::Sender::new(Arc::new(before_all)),
        }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// Every group coordinated here.
    ///
    /// # Errors
    /// A partition is still being read.
    pub fn list(&self) -> Result<Vec<GroupListing>, GroupError> {
        let cells: Vec<Arc<Cell>> = self.cells.read().values().cloned().collect();
        let mut groups = Vec::new();
        for cell in cells {
            if !cell.partition().is_leased() {
                continue;
            }
            let listed = cell.work(self.now(), |work| {
                groups.extend(
                    work.shard
                        .entries()
                        .map(|entry| GroupListing::of(&entry.group)),
                );
            });
            match listed {
                // Its groups are another node's by now.
                Ok(_) | Err(GroupError::NotCoordinator) => {}
                Err(error) => return Err(error),
            }
        }
        groups.sort_by(|a, b| a.group_id.cmp(&b.group_id));
        Ok(groups)
    }

    /// One group; none if it does not exist.
    ///
    /// # Errors
    /// This node does not coordinate it, or not yet.
    pub async fn describe(&self, group_id: &str) -> Result<Option<GroupDescription>, GroupError> {
        self.read(group_id, |work| {
            let image = self.images.borrow().clone();
            let entry = work.shard.get(group_id);
            entry.map(|entry| GroupDescription::of(entry, &image))
        })
        .await
    }

    /// Deletes a group without members, with its offsets.
    ///
    /// # Errors
    /// No such group, it has members, or this node does not coordinate it.
    pub async fn delete(&self, group_id: &str) -> Result<(), GroupError> {
        let id: Arc<str> = group_id.into();
        self.write(group_id, |work| {
            work.shard.delete_group(work.now, &id, work.journal)
        })
        .await
    }

    /// Hands a request to its group and waits for the answer, however long that takes.
    pub(crate) async fn ask(
        &self,
        group_id: &str,
        event: impl FnOnce(ReplyId) -> Event,
    ) -> Result<Answer, GroupError> {
        if group_id.is_empty() {
            return Err(GroupError::InvalidGroupId);
        }
        let cell = self.cell(group_id)?;
        let id: Arc<str> = group_id.into();
        let receiver = cell.ask(self.now(), |work, reply| {
            work.shard.step(work.now, &id, event(reply), work.journal)
        })?;
        self.watch_timers(&cell);
        let (answer, end) = receiver.await.map_err(|_| GroupError::NotCoordinator)?;
        if promises_something(&answer) {
            self.committed(&cell, end).await?;
        }
        Ok(answer)
    }

    /// Commits offsets; one result per offset, in the order of the request.
    pub(crate) async fn commit(
        &self,
        commit: Commit,
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        self.wait_topics_followed(&commit).await?;
        let group_id = commit.group_id.clone();
        self.write(&group_id, |work| {
            work.shard.commit(work.now, commit, work.journal)
        })
        .await
    }

    /// Looks at the committed offsets of a group; none if the group does not exist.
    pub(crate) async fn offsets<T>(
        &self,
        group_id: &str,
        look: impl FnOnce(Option<&OffsetsOfGroup>) -> T,
    ) -> Result<T, GroupError> {
        self.read(group_id, |work| {
            look(work.shard.get(group_id).map(|entry| &entry.offsets))
        })
        .await
    }

    /// Deletes single offsets; one result per partition, in the order of the request.
    pub(crate) async fn delete_offsets(
        &self,
        group_id: &str,
        partitions: &[(Arc<str>, i32)],
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        let id: Arc<str> = group_id.into();
        self.write(group_id, |work| {
            work.shard
                .delete_offsets(work.now, &id, partitions, work.journal)
        })
        .await
    }

    /// Waits until the partitions this node leads as of `metadata_offset` are taken over, but not long:
    /// whoever asks too early is told to ask again.
    pub(crate) async fn wait_followed(&self, metadata_offset: u64) {
        let mut followed = self.followed.subscribe();
        let reached = followed.wait_for(|image| image.offset >= metadata_offset);
        let _ = tokio::time::timeout(FOLLOW_WAIT_MAX, reached).await;
    }

    /// Waits until the leaderships are as new as the topics of a commit.
    ///
    /// A node that has lost a leadership without having noticed may know topics that were created since. Its
    /// successor, who need not know them yet, must not find their offsets in the log: it would take them for
    /// those of deleted topics.
    async fn wait_topics_followed(&self, commit: &Commit) -> Result<(), GroupError> {
        let all_known = |image: &Arc<ClusterImage>| {
            let mut offsets = commit.offsets.iter();
            offsets.all(|offset| image.topic(offset.topic_id).is_some())
        };
        let mut followed = self.followed.subscribe();
        match tokio::time::timeout(FOLLOW_WAIT_MAX, followed.wait_for(all_known)).await {
            Ok(Ok(_)) => Ok(()),
            // The client tries again, and learns if the topic is gone.
            _ => Err(GroupError::CoordinatorLoadInProgress),
        }
    }

    async fn read<T>(
        &self,
        group_id: &str,
        look: impl FnOnce(Work<'_>) -> T,
    ) -> Result<T, GroupError> {
        self.write(group_id, |work| Ok(look(work))).await
    }

    async fn write<T>(
        &self,
        group_id: &str,
        work: impl FnOnce(Work<'_>) -> Result<T, GroupError>,
    ) -> Result<T, GroupError> {
        let cell = self.cell(group_id)?;
        let (result, end) = cell.work(self.now(), work)?;
        self.watch_timers(&cell);
        let result = result?;
        self.committed(&cell, end).await?;
        Ok(result)
    }

    async fn committed(&self, cell: &Cell, end: Offset) -> Result<(), GroupError> {
        cell.committed(end, self.config.offsets_commit_timeout)
            .await
    }

    fn cell(&self, group_id: &str) -> Result<Arc<Cell>, GroupError> {
        if group_id.len() > offsets_log::STRING_BYTES_MAX {
            return Err(GroupError::InvalidGroupId);
        }
        let index = partition_for(group_id, self.partitions.load(Ordering::Relaxed))
            .ok_or(GroupError::NotCoordinator)?;
        self.cells
            .read()
            .get(&index)
            .filter(|cell| cell.partition().is_leased())
            .cloned()
            .ok_or(GroupError::NotCoordinator)
    }

    fn now(&self) -> Now {
        let uptime = self.started.elapsed().as_millis();
        Now {
            uptime_ms: i64::try_from(uptime).unwrap_or(i64::MAX),
            wall_ms: crate::broker::now_ms(),
        }
    }

    /// Wakes the timer task if the cell needs it earlier than it plans to wake.
    fn watch_timers(&self, cell: &Cell) {
        if let Some(at) = cell.next_deadline()
            && at < self.planned_wake_ms.load(Ordering::SeqCst)
        {
            self.wake.notify_one();
        }
    }

    /// Does what no request does, until `shutdown`: takes partitions over and gives them up, fires timers,
    /// expires offsets, removes those of deleted topics.
    pub async fn run(
        self: Arc<Self>,
        partitions: Arc<PartitionManager>,
        shutdown: CancellationToken,
    ) {
        tokio::select! {
            () = self.run_leaderships(&partitions) => {}
            () = self.run_timers() => {}
            () = self.run_expiry() => {}
            () = shutdown.cancelled() => {}
        }
        self.follow(Vec::new());
    }

    async fn run_leaderships(self: &Arc<Self>, partitions: &PartitionManager) {
        let mut reconciled = partitions.reconciled();
        let mut former = self.images.borrow().clone();
        let mut to_follow = Arc::clone(&former);
        loop {
            let offset = *reconciled.borrow_and_update();
            let image = self.images.borrow().clone();
            if let Some(topic) = image.topic_by_name(OFFSETS_TOPIC) {
                let count = topic.partitions.len();
                self.partitions.store(count, Ordering::Relaxed);
            }
            self.follow(led(partitions));
            let deleted: Vec<Arc<str>> = former
                .topics()
                .filter(|topic| image.topic(topic.id).is_none())
                .map(|topic| topic.name.as_str().into())
                .collect();
            self.forget_topics(&deleted);
            if let Some(followed) = followed_image(&mut to_follow, &image, offset) {
                self.followed.send_replace(followed);
            }
            former = image;
            if reconciled.changed().await.is_err() {
                return;
            }
        }
    }

    /// Fires timers for ever, sleeping for as long as none is due.
    pub(crate) async fn run_timers(&self) {
        loop {
            // Whoever sets an earlier deadline from here on sees MAX or the new plan, and wakes us.
            self.planned_wake_ms.store(i64::MAX, Ordering::SeqCst);
            let cells: Vec<Arc<Cell>> = self.cells.read().values().cloned().collect();
            let now = self.now();
            let mut next = i64::MAX;
            for cell in &cells {
                cell.tick(now);
                next = next.min(cell.next_deadline().unwrap_or(i64::MAX));
            }
            self.planned_wake_ms.store(next, Ordering::SeqCst);
            let asleep = async {
                match u64::try_from(next) {
                    Ok(at) if next < i64::MAX => {
                        tokio::time::sleep_until(self.started + Duration::from_millis(at)).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = asleep => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Expires offsets and groups for ever, every `offsets.retention.check.interval.ms`.
    pub(crate) async fn run_expiry(&self) {
        let interval = self.config.offsets_retention_check_interval;
        loop {
            tokio::time::sleep(interval).await;
            self.expire();
        }
    }

    fn expire(&self) {
        let cells: Vec<Arc<Cell>> = self.cells.read().values().cloned().collect();
        for cell in cells {
            cell.expire(self.now(), &self.images);
        }
    }

    /// Takes over the partitions this node leads now and gives up the others.
    pub(crate) fn follow(self: &Arc<Self>, led: Vec<Arc<dyn OffsetsPartition>>) {
        let mut taken_over = Vec::new();
        let mut given_up = Vec::new();
        {
            let mut cells = self.cells.write();
            let mut former = std::mem::take(&mut *cells);
            for partition in led {
                let index = partition.index();
                let cell = match former.remove(&index) {
                    Some(cell) if cell.partition().epoch() == partition.epoch() => cell,
                    other => {
                        given_up.extend(other);
                        let cell = Arc::new(Cell::new(partition));
                        taken_over.push(cell.clone());
                        cell
                    }
                };
                cells.insert(index, cell);
            }
            given_up.extend(former.into_values());
        }
        for cell in given_up {
            cell.unload(self.now());
            tracing::debug!(
                partition = cell.partition().index(),
                "no longer coordinating its groups"
            );
        }
        for cell in taken_over {
            self.start_load(cell);
        }
    }

    /// Removes the offsets of deleted topics, and those that could not be removed before.
    pub(crate) fn forget_topics(&self, deleted: &[Arc<str>]) {
        let cells: Vec<Arc<Cell>> = self.cells.read().values().cloned().collect();
        for cell in cells {
            cell.forget_topics(self.now(), &self.images, deleted);
        }
    }

    fn start_load(self: &Arc<Self>, cell: Arc<Cell>) {
        // Nothing to read: most partitions of a small cluster.
        if cell.is_empty() && self.load(&cell) == Load::Over {
            return;
        }
        let this = Arc::clone(self);
        let loads = Arc::clone(&self.loads);
        tokio::spawn(async move {
            loop {
                // The semaphore is never closed, so this waits for a turn and no more.
                let turn = Arc::clone(&loads).acquire_owned().await;
                let (this, cell) = (Arc::clone(&this), Arc::clone(&cell));
                let loading = tokio::task::spawn_blocking(move || this.load(&cell));
                match loading.await {
                    Ok(Load::Over) => return,
                    Ok(Load::Again) => {}
                    Err(error) => return tracing::error!(%error, "loading groups has died"),
                }
                drop(turn);
                tokio::time::sleep(LOAD_RETRY).await;
            }
        });
    }

    fn load(&self, cell: &Cell) -> Load {
        let began = Instant::now();
        let partition = cell.partition();
        let records = partition.end() - partition.start();
        let shard = Shard::new(Arc::clone(&self.config));
        match cell.load(shard, self.now(), &self.images) {
            Ok(()) if records > 0 => {
                let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(
                    partition = partition.index(),
                    records,
                    elapsed_ms,
                    "groups are loaded"
                );
            }
            Ok(()) => {}
            Err(error @ LoadError::Io(_)) if cell.is_loading() => {
                tracing::warn!(partition = partition.index(), %error, "the groups of this partition are not loaded yet; trying again");
                return Load::Again;
            }
            Err(error) => tracing::error!(
                partition = partition.index(),
                %error,
                "the groups of this partition cannot be loaded and are not served"
            ),
        }
        self.watch_timers(cell);
        Load::Over
    }
}

/// How an attempt to load a partition ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    /// It is served, or not to be served in this leadership.
    Over,
    /// The disk could not be read, which may pass.
    Again,
}

impl fmt::Debug for GroupCoordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut partitions: Vec<i32> = self.cells.read().keys().copied().collect();
        partitions.sort_unstable();
        f.debug_struct("GroupCoordinator")
            .field("partitions", &partitions)
            .finish_non_exhaustive()
    }
}

/// The image that is followed when the partitions are reconciled up to `reconciled`; none if it is still the
/// former one. The newest may be ahead of that: it is noted in `to_follow` then, for the next time.
fn followed_image(
    to_follow: &mut Arc<ClusterImage>,
    newest: &Arc<ClusterImage>,
    reconciled: u64,
) -> Option<Arc<ClusterImage>> {
    if newest.offset <= reconciled {
        *to_follow = Arc::clone(newest);
    }
    (to_follow.offset <= reconciled).then(|| std::mem::replace(to_follow, Arc::clone(newest)))
}

/// The partitions of `__consumer_offsets` this node leads.
fn led(partitions: &PartitionManager) -> Vec<Arc<dyn OffsetsPartition>> {
    let led = partitions.led(OFFSETS_TOPIC).into_iter();
    led.filter_map(|(index, epoch)| {
        // One that is lost between the two calls is given up at the next change.
        let partition = partitions.get(OFFSETS_TOPIC, index).ok()?;
        let lease = Arc::clone(partitions.lease());
        Some(Arc::new(LedPartition::new(partition, epoch, lease)) as Arc<dyn OffsetsPartition>)
    })
    .collect()
}

/// Whether a client relies on what an answer says: an error or a heartbeat's answer binds nobody.
fn promises_something(answer: &Answer) -> bool {
    match answer {
        Answer::Join(result) => result.is_ok(),
        Answer::Sync(result) => result.is_ok(),
        Answer::Leave(result) => result.is_ok(),
        Answer::Heartbeat(_) => false,
    }
}

/// `Utils.abs(groupId.hashCode()) % partitions`, as Apache Kafka files groups; none without partitions.
pub(crate) fn partition_for(group_id: &str, partitions: usize) -> Option<i32> {
    let hash = group_id.encode_utf16().fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    // The one number without a positive counterpart counts as 0.
    let hash = hash.checked_abs().unwrap_or(0);
    hash.checked_rem(i32::try_from(partitions).ok()?)
}
