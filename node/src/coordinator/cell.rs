//! A [`Shard`] at work: behind its lock, on top of its partition, with the requests that wait.
//!
//! Nothing here awaits with the lock held. A request changes the shard under the lock and then waits,
//! outside, for its answer and for what was appended before it to be committed. A request that is
//! dropped meanwhile (its client has gone) has changed all it was going to change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kittiwake_raft::ClusterImage;
use kittiwake_storage::{Compression, Offset, RecordsBuilder};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::error::GroupError;
use super::group::{Answer, Now, ReplyId};
use super::loader::{self, LoadError};
use super::offsets_log::{self, OffsetsRecord};
use super::offsets_partition::OffsetsPartition;
use super::shard::{Answers, Journal, Shard};

/// The newest image of the cluster. Whoever judges by it whether a topic still exists looks with the lock
/// of the cell held: no commit can have been admitted by a newer one then.
pub(crate) type Images = watch::Receiver<Arc<ClusterImage>>;

/// One leadership over one partition of `__consumer_offsets`.
pub(crate) struct Cell {
    partition: Arc<dyn OffsetsPartition>,
    state: Mutex<State>,
}

enum State {
    Loading {
        /// Topics deleted meanwhile, whose offsets go when the load is done.
        deleted_topics: Vec<Arc<str>>,
    },
    Active(Active),
    /// The log is damaged: nobody is answered from it.
    Failed,
    /// The leadership is over.
    Unloaded,
}

/// An answer, and the offset that must be committed before it may be sent.
type Ready = (Answer, Offset);

struct Active {
    shard: Shard,
    waiting: HashMap<ReplyId, oneshot::Sender<Ready>>,
    next_reply: u64,
    /// The log end this shard's memory corresponds to.
    end: Offset,
}

/// Appends to the partition on behalf of the shard.
struct Appender<'a> {
    partition: &'a dyn OffsetsPartition,
    wall_ms: i64,
    end: &'a mut Offset,
}

impl Journal for Appender<'_> {
    fn append(&mut self, records: &[OffsetsRecord]) -> Result<(), GroupError> {
        let mut batch = RecordsBuilder::new(Compression::None);
        for record in records {
            let (key, value) = offsets_log::encode(record).map_err(|error| {
                tracing::warn!(%error, "group records were not written");
                GroupError::InvalidCommitOffsetSize
            })?;
            batch.push(self.wall_ms, Some(&key), value.as_deref(), &[]);
        }
        let batch = batch
            .build()
            .map_err(|_| GroupError::InvalidCommitOffsetSize)?;
        *self.end = self.partition.append(&batch, self.wall_ms)?;
        Ok(())
    }
}

/// Gives access to an active shard.
pub(crate) struct Work<'a> {
    pub(crate) shard: &'a mut Shard,
    pub(crate) journal: &'a mut dyn Journal,
    pub(crate) now: Now,
}

impl Cell {
    pub(crate) fn new(partition: Arc<dyn OffsetsPartition>) -> Self {
        Self {
            partition,
            state: Mutex::new(State::Loading {
                deleted_topics: Vec::new(),
            }),
        }
    }

    pub(crate) fn partition(&self) -> &dyn OffsetsPartition {
        &*self.partition
    }

    /// Whether loading has nothing to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.partition.start() >= self.partition.end()
    }

    /// Whether the log is still to be read.
    pub(crate) fn is_loading(&self) -> bool {
        matches!(*self.state.lock(), State::Loading { .. })
    }

    /// Reads the log and goes to work; blocks on the disk. After an I/O error it may be tried again.
    pub(crate) fn load(
        &self,
        mut shard: Shard,
        now: Now,
        images: &Images,
    ) -> Result<(), LoadError> {
        let loaded = loader::load(&*self.partition, now, &mut shard);
        let mut state = self.state.lock();
        let State::Loading { deleted_topics } = &mut *state else {
            return loaded;
        };
        let deleted_topics = std::mem::take(deleted_topics);
        match loaded {
            Ok(()) => {}
            // For want of descriptors, say: that passes.
            Err(LoadError::Io(error)) => {
                *state = State::Loading { deleted_topics };
                return Err(error.into());
            }
            Err(error) => {
                *state = State::Failed;
                return Err(error);
            }
        }
        let mut active = Active {
            shard,
            waiting: HashMap::new(),
            next_reply: 0,
            end: self.partition.end(),
        };
        // Before anybody is answered: a topic may have been deleted while nobody coordinated this partition,
        // or the former coordinator could not write the tombstones.
        active.drive(&*self.partition, now, |work| {
            work.shard.loaded(work.now, work.journal);
            Answers::new()
        });
        active.forget_deleted_topics(&*self.partition, now, images, &deleted_topics);
        *state = State::Active(active);
        Ok(())
    }

    /// Ends the leadership: everybody who waits is told to look for another coordinator.
    pub(crate) fn unload(&self, now: Now) {
        let former = std::mem::replace(&mut *self.state.lock(), State::Unloaded);
        if let State::Active(Active {
            shard,
            mut waiting,
            end,
            ..
        }) = former
        {
            send(&mut waiting, shard.unload(now), end);
        }
    }

    /// Works on the shard; returns the result and the offset that must be committed before anybody
    /// may hear of it.
    pub(crate) fn work<T>(
        &self,
        now: Now,
        work: impl FnOnce(Work<'_>) -> T,
    ) -> Result<(T, Offset), GroupError> {
        self.lock_active(|active| {
            let mut journal = Appender {
                partition: &*self.partition,
                wall_ms: now.wall_ms,
                end: &mut active.end,
            };
            let result = work(Work {
                shard: &mut active.shard,
                journal: &mut journal,
                now,
            });
            (result, active.end)
        })
    }

    /// Hands a request to the shard; the receiver gets its answer, now or later.
    pub(crate) fn ask(
        &self,
        now: Now,
        request: impl FnOnce(Work<'_>, ReplyId) -> Answers,
    ) -> Result<oneshot::Receiver<Ready>, GroupError> {
        self.lock_active(|active| {
            active.next_reply += 1;
            let reply = ReplyId(active.next_reply);
            let (sender, receiver) = oneshot::channel();
            active.waiting.insert(reply, sender);
            active.drive(&*self.partition, now, |work| request(work, reply));
            receiver
        })
    }

    /// Fires the timers that are due.
    pub(crate) fn tick(&self, now: Now) {
        // A cell that is not active has no timers.
        let _ = self.lock_active(|active| {
            let due = active
                .shard
                .next_deadline()
                .is_some_and(|at| at <= now.uptime_ms);
            if due {
                active.drive(&*self.partition, now, |work| {
                    work.shard.tick(work.now, work.journal)
                });
            }
        });
    }

    pub(crate) fn next_deadline(&self) -> Option<i64> {
        self.lock_active(|active| active.shard.next_deadline())
            .ok()
            .flatten()
    }

    /// Expires offsets and groups, and removes what is left of deleted topics.
    pub(crate) fn expire(&self, now: Now, images: &Images) {
        // A cell that is not active does it when it is loaded.
        let _ = self.lock_active(|active| {
            active.forget_deleted_topics(&*self.partition, now, images, &[]);
        });
        if let Ok((Err(error), _)) = self.work(now, |work| work.shard.expire(now, work.journal)) {
            tracing::warn!(partition = self.partition.index(), %error, "expired offsets were not removed");
        }
    }

    /// Removes the offsets of deleted topics, and those that could not be removed before; while the log is
    /// still read, when that is done.
    pub(crate) fn forget_topics(&self, now: Now, images: &Images, deleted: &[Arc<str>]) {
        match &mut *self.state.lock() {
            State::Loading { deleted_topics } => deleted_topics.extend_from_slice(deleted),
            State::Active(active) if !deleted.is_empty() || active.shard.has_unforgotten() => {
                active.forget_deleted_topics(&*self.partition, now, images, deleted);
            }
            State::Active(_) | State::Failed | State::Unloaded => {}
        }
    }

    /// Waits until everything below `end` is committed.
    pub(crate) async fn committed(&self, end: Offset, timeout: Duration) -> Result<(), GroupError> {
        if self.partition.is_committed(end) {
            return Ok(());
        }
        match tokio::time::timeout(timeout, self.partition.committed(end)).await {
            Ok(result) => result,
            // It is in the log and may yet be committed; the client tries again and finds out.
            Err(_) => Err(GroupError::CoordinatorNotAvailable),
        }
    }

    fn lock_active<T>(&self, work: impl FnOnce(&mut Active) -> T) -> Result<T, GroupError> {
        match &mut *self.state.lock() {
            State::Active(active) => Ok(work(active)),
            State::Loading { .. } => Err(GroupError::CoordinatorLoadInProgress),
            State::Failed | State::Unloaded => Err(GroupError::NotCoordinator),
        }
    }
}

impl Active {
    fn drive(
        &mut self,
        partition: &dyn OffsetsPartition,
        now: Now,
        work: impl FnOnce(Work<'_>) -> Answers,
    ) {
        let mut journal = Appender {
            partition,
            wall_ms: now.wall_ms,
            end: &mut self.end,
        };
        let answers = work(Work {
            shard: &mut self.shard,
            journal: &mut journal,
            now,
        });
        send(&mut self.waiting, answers, self.end);
    }

    /// What fails here is tried again when the metadata changes and by the next expiry check.
    fn forget_deleted_topics(
        &mut self,
        partition: &dyn OffsetsPartition,
        now: Now,
        images: &Images,
        deleted: &[Arc<str>],
    ) {
        let image = images.borrow().clone();
        let mut journal = Appender {
            partition,
            wall_ms: now.wall_ms,
            end: &mut self.end,
        };
        let forgotten = self
            .shard
            .forget_deleted_topics(now, &image, deleted, &mut journal);
        if let Err(error) = forgotten {
            tracing::warn!(partition = partition.index(), %error, "offsets of deleted topics are not removed yet");
        }
    }
}

fn send(waiting: &mut HashMap<ReplyId, oneshot::Sender<Ready>>, answers: Answers, end: Offset) {
    for (reply, answer) in answers {
        if let Some(sender) = waiting.remove(&reply) {
            // Nobody listens when the client has gone.
            let _ = sender.send((answer, end));
        }
    }
}
