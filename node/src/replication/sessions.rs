//! Fetch sessions of followers, on the leader's side.
//!
//! KIP-227's sessions, made for thousands of partitions of which few have news: a request names only partitions whose
//! fetch position changed, partitions with news announce themselves ([`News`]), and a fetch looks at those alone. An idle
//! partition costs nothing on either side.
//!
//! One session per follower: a fetch that opens one ends the one before. What a partition was told of its records it has
//! to answer before it gets more (`awaiting`), so records are sent once unless they are asked for again.

use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage, TopicId};
use kittiwake_storage::{FileSlice, LeaderEpoch, Offset, ReadError};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::api::ErrorCode;
use crate::partition::{Continuity, FollowerFetch, News, Partition, PartitionManager, Slot};

/// A partition, as replicas name it.
pub type Key = (TopicId, i32);

/// The epoch that opens a session.
pub const INITIAL_EPOCH: i32 = 0;

/// Partitions of one session; more than a node can hold.
const PARTITIONS_MAX: usize = 1_000_000;

/// The sessions of this node's followers.
#[derive(Debug, Default)]
pub struct ReplicaSessions {
    by_follower: Mutex<HashMap<BrokerId, Arc<ReplicaSession>>>,
    last_id: AtomicI32,
}

/// What a follower asks of one partition.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Which.
    pub key: Key,
    /// Its position, history and watermarks.
    pub fetch: FollowerFetch,
    /// The most bytes it wants.
    pub bytes_max: usize,
}

/// What a request changes in its session.
#[derive(Debug)]
pub struct Changes {
    /// Partitions whose position changed.
    pub asks: Vec<Ask>,
    /// Partitions it does not follow here any more.
    pub forgotten: Vec<Key>,
}

/// What the leader has to tell of a partition.
#[derive(Debug)]
pub struct Told {
    /// Which.
    pub key: Key,
    /// The epoch it was asked in. An answer that comes late, in another reign of the same leader, says nothing about the
    /// log of that reign.
    pub asked_in: LeaderEpoch,
    /// What went wrong, or none.
    pub error: ErrorCode,
    /// Where the histories part.
    pub diverging: Option<(LeaderEpoch, Offset)>,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// The leader's log start.
    pub log_start: Offset,
    /// Records, still in their files.
    pub slices: Vec<FileSlice>,
}

impl Told {
    /// Bytes of its records.
    pub fn records_len(&self) -> usize {
        self.slices
            .iter()
            .map(|slice| slice.length() as usize)
            .sum()
    }
}

/// Where a session's partitions may be looked up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lane {
    /// On an async worker: only what needs no disk.
    Inline,
    /// On the blocking pool.
    Disk,
}

/// What a look at the news came to.
#[derive(Debug, Default)]
pub struct Gathered {
    /// What there is to tell.
    pub told: Vec<Told>,
    /// Whether something was left because it may need the disk.
    pub needs_disk: bool,
}

impl ReplicaSessions {
    /// Opens a session for a follower, in place of the one it had.
    pub fn open(&self, follower: BrokerId, broker_epoch: BrokerEpoch) -> Arc<ReplicaSession> {
        // Wraps after two thousand million sessions; 0 means none.
        let id = (self.last_id.fetch_add(1, Ordering::Relaxed) & i32::MAX).max(1);
        let session = Arc::new(ReplicaSession {
            id,
            broker_epoch,
            news: Arc::default(),
            requests: AtomicU64::new(0),
            state: Mutex::new(State {
                next_epoch: INITIAL_EPOCH + 1,
                ..State::default()
            }),
        });
        let replaced = self
            .by_follower
            .lock()
            .insert(follower, Arc::clone(&session));
        if let Some(replaced) = replaced {
            replaced.close();
        }
        session
    }

    /// The follower's session, if it has this id and expects this epoch next.
    ///
    /// # Errors
    /// FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH: the follower begins anew.
    pub fn get(
        &self,
        follower: BrokerId,
        broker_epoch: BrokerEpoch,
        id: i32,
        epoch: i32,
    ) -> Result<Arc<ReplicaSession>, ErrorCode> {
        let session = self
            .by_follower
            .lock()
            .get(&follower)
            .filter(|session| session.id == id && session.broker_epoch == broker_epoch)
            .map(Arc::clone)
            .ok_or(ErrorCode::FetchSessionIdNotFound)?;
        let mut state = session.state.lock();
        if state.next_epoch != epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        state.next_epoch = if epoch == i32::MAX { 1 } else { epoch + 1 };
        drop(state);
        Ok(session)
    }

    /// Ends the sessions of followers that are gone: they hold on to logs.
    pub fn retain(&self, image: &ClusterImage) {
        self.by_follower.lock().retain(|follower, session| {
            let stays = image
                .broker(*follower)
                .is_some_and(|broker| broker.epoch == session.broker_epoch && !broker.fenced);
            if !stays {
                session.close();
            }
            stays
        });
    }
}

/// The session of one follower.
#[derive(Debug)]
pub struct ReplicaSession {
    id: i32,
    broker_epoch: BrokerEpoch,
    news: Arc<News>,
    /// Requests begun: an earlier one that still waits is answered when the next one comes.
    requests: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_epoch: i32,
    numbers: HashMap<Key, usize>,
    places: Vec<Option<Place>>,
    free: Vec<usize>,
    closed: bool,
}

/// A partition in a session.
#[derive(Debug)]
struct Place {
    ask: Ask,
    slot: Arc<Slot>,
    /// The partition, and how it judged the last ask; an error where this node cannot answer.
    partition: Result<(Arc<Partition>, Continuity), ErrorCode>,
    /// Watermarks last told.
    watermarks: Option<(Offset, Offset)>,
    /// It was told something that it has to answer before it is told more.
    awaiting: bool,
}

impl Place {
    fn leave_partition(&mut self) {
        if let Ok((partition, _)) = &self.partition {
            partition.forget(&self.slot);
        }
        self.partition = Err(ErrorCode::NotLeaderOrFollower);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_partition();
    }
}

impl ReplicaSession {
    /// Its number, never 0.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Takes a request in: what it changes counts at once, before it is answered. Returns its number.
    pub fn begin(&self, changes: Changes, partitions: &PartitionManager) -> u64 {
        let mut state = self.state.lock();
        for key in changes.forgotten {
            state.forget(key);
        }
        for ask in changes.asks {
            state.ask(ask, partitions, &self.news);
        }
        drop(state);
        let number = self.requests.fetch_add(1, Ordering::AcqRel) + 1;
        self.news.wake();
        number
    }

    /// Whether a later request than `number` has come, or the session has ended.
    pub fn is_superseded(&self, number: u64) -> bool {
        self.requests.load(Ordering::Acquire) != number || self.state.lock().closed
    }

    /// What its partitions announce.
    pub fn news(&self) -> &News {
        &self.news
    }

    /// Looks at the partitions with news, in the order of their news, until `bytes_max` of records are found; at least
    /// one batch. The rest keeps its place.
    pub fn gather(&self, bytes_max: usize, lane: Lane) -> Gathered {
        let mut state = self.state.lock();
        let mut numbers = self.news.take().into_iter();
        let mut gathered = Gathered::default();
        let mut budget = bytes_max;
        for number in numbers.by_ref() {
            let Some(place) = state.places.get_mut(number).and_then(Option::as_mut) else {
                continue;
            };
            let slot = Arc::clone(&place.slot);
            slot.seen();
            let one_batch_at_least = budget == bytes_max;
            match place.look(budget, one_batch_at_least, lane) {
                Ok(Some(told)) => {
                    budget = budget.saturating_sub(told.records_len());
                    gathered.told.push(told);
                }
                Ok(None) => {}
                Err(NeedsDisk) => {
                    slot.announce(true);
                    gathered.needs_disk = true;
                    break;
                }
            }
            if budget == 0 {
                break;
            }
        }
        for number in numbers {
            self.news.put_back(number);
        }
        gathered
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.numbers.clear();
        state.places.clear();
        drop(state);
        self.news.wake();
    }
}

/// An offset in a segment whose index or headers may have to be read from disk.
struct NeedsDisk;

impl State {
    fn forget(&mut self, key: Key) {
        if let Some(number) = self.numbers.remove(&key) {
            self.places[number] = None;
            self.free.push(number);
        }
    }

    fn ask(&mut self, ask: Ask, partitions: &PartitionManager, news: &Arc<News>) {
        if self.closed {
            return;
        }
        let number = match self.numbers.get(&ask.key) {
            Some(number) => *number,
            None if self.numbers.len() >= PARTITIONS_MAX => return,
            None => {
                let number = self.free.pop().unwrap_or(self.places.len());
                if number == self.places.len() {
                    self.places.push(None);
                }
                self.numbers.insert(ask.key, number);
                number
            }
        };
        let place = self.places[number].get_or_insert_with(|| Place {
            ask,
            slot: Slot::new(number, Arc::clone(news)),
            partition: Err(ErrorCode::NotLeaderOrFollower),
            watermarks: None,
            awaiting: false,
        });
        place.ask = ask;
        place.awaiting = false;
        let (topic, index) = ask.key;
        match partitions.get_by_id(topic, index) {
            Ok(partition) => {
                let known =
                    matches!(&place.partition, Ok((known, _)) if Arc::ptr_eq(known, &partition));
                if !known {
                    place.leave_partition();
                    partition.announce_to(&place.slot);
                }
                let judged = partition.fetched(&ask.fetch);
                if judged.is_err() {
                    partition.forget(&place.slot);
                }
                place.partition = judged.map(|continuity| (partition, continuity));
            }
            Err(error) => {
                place.leave_partition();
                place.partition = Err(error);
            }
        }
        place.slot.announce(true);
    }
}

impl Place {
    /// What is to be told now, if anything.
    fn look(
        &mut self,
        budget: usize,
        one_batch_at_least: bool,
        lane: Lane,
    ) -> Result<Option<Told>, NeedsDisk> {
        if self.awaiting {
            return Ok(None);
        }
        let (partition, continuity) = match &self.partition {
            Ok((partition, continuity)) => (Arc::clone(partition), *continuity),
            Err(error) => return Ok(Some(self.failed(*error))),
        };
        if partition.leader_epoch() != self.ask.fetch.leader_epoch {
            return Ok(Some(self.failed(ErrorCode::NotLeaderOrFollower)));
        }
        let (log_end, log_start) = (partition.log_end_offset(), partition.log_start_offset());
        let mut told = Told {
            key: self.ask.key,
            asked_in: self.ask.fetch.leader_epoch,
            error: ErrorCode::None,
            diverging: None,
            high_watermark: partition.high_watermark(),
            log_start,
            slices: Vec::new(),
        };
        let from = self.ask.fetch.from;
        match continuity {
            Continuity::Diverges(epoch, end) => {
                told.diverging = Some((epoch, end));
                self.awaiting = true;
                return Ok(Some(told));
            }
            Continuity::OutOfRange => {
                told.error = ErrorCode::OffsetOutOfRange;
                self.awaiting = true;
                return Ok(Some(told));
            }
            Continuity::UnknownEpoch => {
                return Ok(Some(self.failed(ErrorCode::UnknownLeaderEpoch)));
            }
            Continuity::Continues => {}
        }
        if from < log_end {
            if lane == Lane::Inline && from < partition.log().active_base_offset() {
                return Err(NeedsDisk);
            }
            let bytes_max = u32::try_from(self.ask.bytes_max.min(budget)).unwrap_or(u32::MAX);
            match partition
                .log()
                .read(from, log_end, bytes_max, one_batch_at_least)
            {
                Ok(slices) => told.slices = slices,
                // Retention was faster.
                Err(ReadError::OffsetOutOfRange { .. }) => {
                    told.error = ErrorCode::OffsetOutOfRange;
                    self.awaiting = true;
                    return Ok(Some(told));
                }
                Err(error) => {
                    tracing::error!(topic = partition.topic(), partition = partition.index(), offset = %from, %error,
                        "cannot read the log for a follower");
                    return Ok(Some(self.failed(ErrorCode::KafkaStorageError)));
                }
            }
            if told.slices.is_empty() {
                // The budget of this answer is spent: the next one begins with it.
                self.slot.announce(true);
            } else {
                self.awaiting = true;
            }
        }
        let watermarks = Some((told.high_watermark, log_start));
        let news = !told.slices.is_empty() || self.watermarks != watermarks;
        self.watermarks = watermarks;
        Ok(news.then_some(told))
    }

    fn failed(&mut self, error: ErrorCode) -> Told {
        self.leave_partition();
        self.awaiting = true;
        self.watermarks = None;
        Told {
            key: self.ask.key,
            asked_in: self.ask.fetch.leader_epoch,
            error,
            diverging: None,
            high_watermark: Offset(-1),
            log_start: Offset(-1),
            slices: Vec::new(),
        }
    }
}
