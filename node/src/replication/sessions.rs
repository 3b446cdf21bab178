//! Fetch sessions of followers, on the leader's side.
//!
//! KIP-227's sessions, made for thousands of partitions of which few have news: a request names only partitions whose
//! fetch position changed, partitions with news announce themselves ([`News`]), and a fetch looks at those alone. An idle
//! partition costs nothing on either side.
//!
//! **Throttled replicas** (KIP-73). Records for a follower that is not in sync, of a partition whose leader is throttled, are
//! held back while the node has sent more than its rate allows. Their numbers are kept apart, and are news again when the
//! pause is over.
//!
//! One session per follower: a fetch that opens one ends the one before. What a partition was told of its records it has
//! to answer before it gets more (`awaiting`), so records are sent once unless they are asked for again.

use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage, TopicId};
use kittiwake_storage::{FileSlice, LeaderEpoch, Offset, ReadError};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};
use tokio::time::Instant;

use super::throttle::Limit;
use crate::api::ErrorCode;
use crate::broker::uptime_ms;
use crate::partition::{Continuity, FollowerFetch, News, Partition, PartitionManager, Slot};

/// A partition, as replicas name it.
pub type Key = (TopicId, i32);

/// The epoch that opens a session.
pub const INITIAL_EPOCH: i32 = 0;

/// A fenced follower that has not fetched for this long is gone, ms.
const IDLE_MAX_MS: i64 = 60_000;

/// Partitions of one session; more than a node can hold.
const PARTITIONS_MAX: usize = 1_000_000;

/// The sessions of this node's followers.
#[derive(Debug)]
pub struct ReplicaSessions {
    by_follower: Mutex<HashMap<BrokerId, Arc<ReplicaSession>>>,
    last_id: AtomicI32,
    limit: Arc<Limit>,
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
    /// No sessions yet; `limit` is that of all of them together.
    pub fn new(limit: Limit) -> Self {
        Self {
            by_follower: Mutex::default(),
            last_id: AtomicI32::default(),
            limit: Arc::new(limit),
        }
    }

    /// Opens a session for a follower, in place of the one it had.
    pub fn open(&self, follower: BrokerId, broker_epoch: BrokerEpoch) -> Arc<ReplicaSession> {
        // Wraps after two thousand million sessions; 0 means none.
        let id = (self.last_id.fetch_add(1, Ordering::Relaxed) & i32::MAX).max(1);
        let session = Arc::new(ReplicaSession {
            id,
            broker_epoch,
            news: Arc::default(),
            requests: AtomicU64::new(0),
            last_begun_ms: AtomicI64::new(uptime_ms()),
            limit: Arc::clone(&self.limit),
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

    /// Ends the sessions of followers that are gone: they hold on to logs. One that is only fenced may be about to come
    /// back, and fetches meanwhile.
    pub fn retain(&self, image: &ClusterImage) {
        let now_ms = uptime_ms();
        let mut gone = Vec::new();
        self.by_follower.lock().retain(|follower, session| {
            let idle_ms = now_ms - session.last_begun_ms.load(Ordering::Relaxed);
            let stays = image.broker(*follower).is_some_and(|broker| {
                broker.epoch == session.broker_epoch && (!broker.fenced || idle_ms < IDLE_MAX_MS)
            });
            if !stays {
                gone.push(Arc::clone(session));
            }
            stays
        });
        gone.iter().for_each(|session| session.close());
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
    /// By the node's uptime.
    last_begun_ms: AtomicI64,
    limit: Arc<Limit>,
    /// Never held while the disk is waited for.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_epoch: i32,
    numbers: HashMap<Key, usize>,
    places: Vec<Option<Place>>,
    free: Vec<usize>,
    /// Numbers with records that have to wait, and until when.
    held_back: BTreeSet<usize>,
    held_until: Option<Instant>,
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
    /// How often it was asked for.
    asks: u64,
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
        self.last_begun_ms.store(uptime_ms(), Ordering::Relaxed);
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

    /// When something that was held back is to be looked at again.
    pub fn held_until(&self) -> Option<Instant> {
        self.state.lock().held_until
    }

    /// Makes news of what was held back, if it may go by now.
    fn let_go(&self) {
        let held_back = {
            let mut state = self.state.lock();
            match state.held_until {
                Some(until) if until <= Instant::now() => {}
                _ => return,
            }
            state.held_until = None;
            std::mem::take(&mut state.held_back)
        };
        for number in held_back {
            self.news.put_back(number);
        }
    }

    /// Looks at the partitions with news, in the order of their news, until `bytes_max` of records are found; at least
    /// one batch. The rest keeps its place.
    pub fn gather(&self, bytes_max: usize, lane: Lane) -> Gathered {
        self.let_go();
        let mut numbers = self.news.take().into_iter();
        let mut gathered = Gathered::default();
        let mut budget = bytes_max;
        for number in numbers.by_ref() {
            let look = self.state.lock().look(number);
            let told = match look {
                Look::Nothing => None,
                Look::Tell(told) => Some(told),
                Look::Read(read) => {
                    let throttled = read.is_throttled();
                    if throttled && let Some(until) = self.limit.pause() {
                        self.state.lock().hold_back(number, until);
                        continue;
                    }
                    if lane == Lane::Inline && read.may_need_disk() {
                        read.slot.announce(true);
                        gathered.needs_disk = true;
                        break;
                    }
                    let slices = read.slices(budget, budget == bytes_max);
                    let told = self.state.lock().take_read(number, read, slices);
                    if throttled {
                        self.limit
                            .record(told.as_ref().map_or(0, Told::records_len));
                    }
                    told
                }
            };
            if let Some(told) = told {
                budget = budget.saturating_sub(told.records_len());
                gathered.told.push(told);
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

/// What a look at a partition came to.
enum Look {
    Nothing,
    Tell(Told),
    Read(Read),
}

/// Records to be found in the log, with nothing locked.
struct Read {
    partition: Arc<Partition>,
    slot: Arc<Slot>,
    ask: Ask,
    /// Which of the partition's asks this is for; a later one makes it worthless.
    asks: u64,
    told: Told,
}

impl Read {
    /// Whether the offset is in a segment whose index or headers may have to be read from disk.
    fn may_need_disk(&self) -> bool {
        self.ask.fetch.from < self.partition.log().active_base_offset()
    }

    /// Whether its follower may be held back.
    fn is_throttled(&self) -> bool {
        self.partition.throttles(self.ask.fetch.replica)
    }

    fn slices(&self, budget: usize, one_batch_at_least: bool) -> Result<Vec<FileSlice>, ReadError> {
        let log = self.partition.log();
        let bytes_max = u32::try_from(self.ask.bytes_max.min(budget)).unwrap_or(u32::MAX);
        let upto = log.log_end_offset();
        log.read_whole_batches(self.ask.fetch.from, upto, bytes_max, one_batch_at_least)
    }
}

impl State {
    fn look(&mut self, number: usize) -> Look {
        let place = self.places.get_mut(number).and_then(Option::as_mut);
        place.map_or(Look::Nothing, |place| {
            place.slot.seen();
            place.look()
        })
    }

    fn take_read(
        &mut self,
        number: usize,
        read: Read,
        slices: Result<Vec<FileSlice>, ReadError>,
    ) -> Option<Told> {
        let place = self.places.get_mut(number).and_then(Option::as_mut)?;
        // Asked again meanwhile, or another partition's place by now.
        if place.asks != read.asks || place.ask.key != read.ask.key {
            return None;
        }
        place.take_read(read, slices)
    }

    fn hold_back(&mut self, number: usize, until: Instant) {
        self.held_back.insert(number);
        self.held_until = Some(self.held_until.map_or(until, |earlier| earlier.min(until)));
    }

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
            asks: 0,
        });
        place.ask = ask;
        place.asks += 1;
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
    fn look(&mut self) -> Look {
        if self.awaiting {
            return Look::Nothing;
        }
        let (partition, continuity) = match &self.partition {
            Ok((partition, continuity)) => (Arc::clone(partition), *continuity),
            Err(error) => return Look::Tell(self.failed(*error)),
        };
        let mut told = Told {
            key: self.ask.key,
            asked_in: self.ask.fetch.leader_epoch,
            error: ErrorCode::None,
            diverging: None,
            high_watermark: partition.high_watermark(),
            log_start: partition.log_start_offset(),
            slices: Vec::new(),
        };
        if !self.is_asked_in_epoch_of(&partition) {
            return Look::Tell(self.failed(ErrorCode::NotLeaderOrFollower));
        }
        match continuity {
            Continuity::Diverges(epoch, end) => {
                told.diverging = Some((epoch, end));
                self.awaiting = true;
                return Look::Tell(told);
            }
            Continuity::OutOfRange => return Look::Tell(self.out_of_range(told)),
            Continuity::UnknownEpoch => {
                return Look::Tell(self.failed(ErrorCode::UnknownLeaderEpoch));
            }
            Continuity::Continues => {}
        }
        if self.ask.fetch.from < partition.log_end_offset() {
            return Look::Read(Read {
                partition,
                slot: Arc::clone(&self.slot),
                ask: self.ask,
                asks: self.asks,
                told,
            });
        }
        self.news(told).map_or(Look::Nothing, Look::Tell)
    }

    fn take_read(&mut self, read: Read, slices: Result<Vec<FileSlice>, ReadError>) -> Option<Told> {
        let Read {
            partition,
            mut told,
            ..
        } = read;
        if !self.is_asked_in_epoch_of(&partition) {
            return Some(self.failed(ErrorCode::NotLeaderOrFollower));
        }
        match slices {
            Ok(slices) => told.slices = slices,
            // Retention was faster.
            Err(ReadError::OffsetOutOfRange { .. }) => return Some(self.out_of_range(told)),
            Err(error) => {
                tracing::error!(topic = partition.topic(), partition = partition.index(), offset = %self.ask.fetch.from, %error,
                    "cannot read the log for a follower");
                return Some(self.failed(ErrorCode::KafkaStorageError));
            }
        }
        if told.slices.is_empty() {
            // The budget of this answer is spent: the next one begins with it.
            self.slot.announce(true);
        } else {
            self.awaiting = true;
        }
        self.news(told)
    }

    /// Whether this node still leads in the epoch of the ask. To be asked *after* log and watermarks were looked at: a leader
    /// that follows another one by now has perhaps cut its log and gone on with other records, which a follower of this
    /// epoch would append to the tail that was cut here. An epoch that is over does not come back, and nothing is changed
    /// in the next role before it is over.
    fn is_asked_in_epoch_of(&self, partition: &Partition) -> bool {
        partition.leader_epoch() == self.ask.fetch.leader_epoch
    }

    /// What is worth telling: records, or watermarks that were not told yet.
    fn news(&mut self, told: Told) -> Option<Told> {
        let watermarks = Some((told.high_watermark, told.log_start));
        let news = !told.slices.is_empty() || self.watermarks != watermarks;
        self.watermarks = watermarks;
        news.then_some(told)
    }

    fn out_of_range(&mut self, mut told: Told) -> Told {
        told.error = ErrorCode::OffsetOutOfRange;
        self.awaiting = true;
        told
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

#[cfg(test)]
mod tests;
