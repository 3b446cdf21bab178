//! Incremental fetch sessions (KIP-227): a consumer names its partitions once and then only what changes.
//!
//! Pure: the clock and session ids are arguments. A session is a list of partitions in the order in which they are
//! served; one that was given records goes to the back, so that a busy partition cannot starve those behind it. An
//! incremental response leaves out partitions with nothing new.
//!
//! **Epochs.** `0` opens a session, `-1` ends one (or is a fetch without), others must be the next one of the session.
//! Anything else is INVALID_FETCH_SESSION_EPOCH, an id we do not hold FETCH_SESSION_ID_NOT_FOUND: the client then starts
//! over with a full fetch, so dropping a session loses nothing.

use kafka_wire::FetchRequest;
use kafka_wire::fetch_request::FetchPartition;
use kafka_wire_core::{StrBytes, Uuid};
use std::collections::{BTreeMap, HashMap};

use crate::api::ErrorCode;

/// The epoch that opens a session.
const INITIAL_EPOCH: i32 = 0;
/// The epoch that ends a session, or of a fetch without one.
const FINAL_EPOCH: i32 = -1;
/// "No session".
pub(super) const NO_SESSION: i32 = 0;

/// Partitions of one session; a consumer of more fetches without one. Bounds what sessions hold together.
const PARTITIONS_MAX: usize = 10_000;

/// A session idle for this long gives way to a new one (`min.incremental.fetch.session.eviction.ms`).
pub(super) const EVICTION_MS: i64 = 120_000;

/// Which partition, as the client names it: by topic name below v13, by topic id from v13 on.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PartitionKey {
    /// Empty where the client names topics by id.
    pub topic: StrBytes,
    /// Zero where the client names topics by name.
    pub topic_id: Uuid,
    /// Number of the partition.
    pub partition: i32,
}

/// What the client wants of a partition.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which.
    pub key: PartitionKey,
    /// First offset wanted.
    pub fetch_offset: i64,
    /// The leader epoch the client believes in, or −1.
    pub current_leader_epoch: i32,
    /// Epoch of the last record the client has, or −1 (KIP-595).
    pub last_fetched_epoch: i32,
    /// `max.partition.fetch.bytes` of the client.
    pub partition_max_bytes: i32,
}

/// What the client was last told of a partition, beside records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Told {
    /// High watermark.
    pub high_watermark: i64,
    /// Last stable offset.
    pub last_stable_offset: i64,
    /// Log start offset.
    pub log_start_offset: i64,
}

const TOLD_NOTHING: Told = Told {
    high_watermark: -1,
    last_stable_offset: -1,
    log_start_offset: -1,
};

#[derive(Debug)]
struct SessionPartition {
    wanted: Wanted,
    told: Told,
}

#[derive(Debug)]
struct Session {
    next_epoch: i32,
    by_id: bool,
    last_used_ms: i64,
    /// In serving order; the numbers only ever grow.
    order: BTreeMap<u64, SessionPartition>,
    place: HashMap<PartitionKey, u64>,
    next_place: u64,
}

impl Session {
    fn new(by_id: bool, now_ms: i64) -> Self {
        Self {
            next_epoch: 1,
            by_id,
            last_used_ms: now_ms,
            order: BTreeMap::new(),
            place: HashMap::new(),
            next_place: 0,
        }
    }

    fn want(&mut self, wanted: Wanted) {
        if let Some(known) = self
            .place
            .get(&wanted.key)
            .and_then(|place| self.order.get_mut(place))
        {
            known.wanted = wanted;
            return;
        }
        self.place.insert(wanted.key.clone(), self.next_place);
        self.order.insert(
            self.next_place,
            SessionPartition {
                wanted,
                told: TOLD_NOTHING,
            },
        );
        self.next_place += 1;
    }

    fn forget(&mut self, key: &PartitionKey) {
        if let Some(place) = self.place.remove(key) {
            self.order.remove(&place);
        }
    }

    fn wanted(&self) -> Vec<Wanted> {
        self.order
            .values()
            .map(|partition| partition.wanted.clone())
            .collect()
    }
}

/// What a fetch is about: its partitions, and how its response is made.
#[derive(Debug)]
pub struct FetchContext {
    /// In the order to be served.
    pub wanted: Vec<Wanted>,
    /// The session to be named in the response; [`NO_SESSION`] without one.
    pub session_id: i32,
    /// Whether partitions with nothing new are left out of the response.
    pub incremental: bool,
}

/// The sessions of a node, a bounded number.
#[derive(Debug)]
pub struct SessionCache {
    sessions: HashMap<i32, Session>,
    slots: usize,
}

impl SessionCache {
    /// A cache of at most `slots` sessions (`max.incremental.fetch.session.cache.slots`).
    pub fn new(slots: usize) -> Self {
        Self {
            sessions: HashMap::new(),
            slots,
        }
    }

    /// Finds out what `request` is about. `fresh_id` proposes the id of a new session, any positive number.
    ///
    /// # Errors
    /// The session errors of KIP-227, which are answered for the whole request.
    pub fn begin(
        &mut self,
        request: &FetchRequest,
        version: i16,
        now_ms: i64,
        fresh_id: i32,
    ) -> Result<FetchContext, ErrorCode> {
        let by_id = version >= 13;
        match request.session_epoch {
            FINAL_EPOCH => {
                self.sessions.remove(&request.session_id);
                Ok(FetchContext {
                    wanted: wanted(request).collect(),
                    session_id: NO_SESSION,
                    incremental: false,
                })
            }
            INITIAL_EPOCH => {
                self.sessions.remove(&request.session_id);
                let wanted: Vec<_> = wanted(request).collect();
                let session_id = if wanted.is_empty() {
                    NO_SESSION
                } else {
                    self.open(&wanted, by_id, now_ms, fresh_id)
                };
                Ok(FetchContext {
                    wanted,
                    session_id,
                    incremental: false,
                })
            }
            epoch => {
                let session = self
                    .sessions
                    .get_mut(&request.session_id)
                    .ok_or(ErrorCode::FetchSessionIdNotFound)?;
                if session.next_epoch != epoch {
                    return Err(ErrorCode::InvalidFetchSessionEpoch);
                }
                if session.by_id != by_id {
                    return Err(ErrorCode::FetchSessionTopicIdError);
                }
                session.next_epoch = if epoch == i32::MAX { 1 } else { epoch + 1 };
                session.last_used_ms = now_ms;
                for key in forgotten(request) {
                    session.forget(&key);
                }
                for wanted in wanted(request) {
                    session.want(wanted);
                }
                if session.place.len() > PARTITIONS_MAX {
                    // The client starts over with a full fetch, and gets no session for that.
                    self.sessions.remove(&request.session_id);
                    return Err(ErrorCode::FetchSessionIdNotFound);
                }
                Ok(FetchContext {
                    wanted: session.wanted(),
                    session_id: request.session_id,
                    incremental: true,
                })
            }
        }
    }

    /// Takes note of what a response tells of a partition, and says whether the response must contain it: a full one
    /// contains everything, an incremental one what has `content` (records or an error) or news.
    pub fn tell(
        &mut self,
        context: &FetchContext,
        key: &PartitionKey,
        told: Told,
        content: Content,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&context.session_id) else {
            return true;
        };
        let Some(place) = session.place.get(key).copied() else {
            return true;
        };
        let Some(partition) = session.order.get_mut(&place) else {
            return true;
        };
        let news = partition.told != told || content != Content::Nothing;
        // An error is told again on every fetch until it is over, as is what comes after it.
        partition.told = if content == Content::Error {
            TOLD_NOTHING
        } else {
            told
        };
        if content == Content::Records
            && let Some(partition) = session.order.remove(&place)
        {
            session.order.insert(session.next_place, partition);
            session.place.insert(key.clone(), session.next_place);
            session.next_place += 1;
        }
        news || !context.incremental
    }

    fn open(&mut self, wanted: &[Wanted], by_id: bool, now_ms: i64, fresh_id: i32) -> i32 {
        if wanted.len() > PARTITIONS_MAX {
            return NO_SESSION;
        }
        if self.sessions.len() >= self.slots && !self.evict(now_ms) {
            return NO_SESSION;
        }
        if fresh_id <= NO_SESSION || self.sessions.contains_key(&fresh_id) {
            return NO_SESSION;
        }
        let mut session = Session::new(by_id, now_ms);
        for wanted in wanted {
            session.want(wanted.clone());
        }
        self.sessions.insert(fresh_id, session);
        fresh_id
    }

    /// Drops the session that was not used for longest, if that is long enough.
    fn evict(&mut self, now_ms: i64) -> bool {
        let oldest = self
            .sessions
            .iter()
            .min_by_key(|(_, session)| session.last_used_ms);
        match oldest.map(|(&id, session)| (id, session.last_used_ms)) {
            Some((id, last_used_ms)) if now_ms - last_used_ms >= EVICTION_MS => {
                self.sessions.remove(&id);
                true
            }
            _ => false,
        }
    }
}

/// What a response holds for a partition beside its offsets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// No records, no error.
    Nothing,
    /// Records.
    Records,
    /// An error, a diverging epoch, or another replica to read from.
    Error,
}

fn wanted(request: &FetchRequest) -> impl Iterator<Item = Wanted> {
    request.topics.iter().flat_map(|topic| {
        topic
            .partitions
            .iter()
            .map(|partition: &FetchPartition| Wanted {
                key: PartitionKey {
                    topic: topic.topic.clone(),
                    topic_id: topic.topic_id,
                    partition: partition.partition,
                },
                fetch_offset: partition.fetch_offset,
                current_leader_epoch: partition.current_leader_epoch,
                last_fetched_epoch: partition.last_fetched_epoch,
                partition_max_bytes: partition.partition_max_bytes,
            })
    })
}

fn forgotten(request: &FetchRequest) -> impl Iterator<Item = PartitionKey> {
    request.forgotten_topics_data.iter().flat_map(|topic| {
        topic.partitions.iter().map(|&partition| PartitionKey {
            topic: topic.topic.clone(),
            topic_id: topic.topic_id,
            partition,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_wire::fetch_request::{FetchTopic, ForgottenTopic};

    const TOLD: Told = Told {
        high_watermark: 5,
        last_stable_offset: 5,
        log_start_offset: 0,
    };

    fn request(session_id: i32, session_epoch: i32, partitions: &[i32]) -> FetchRequest {
        let mut topic = FetchTopic::default();
        topic.topic = "t".into();
        topic.partitions = partitions
            .iter()
            .map(|&index| {
                let mut partition = FetchPartition::default();
                partition.partition = index;
                partition
            })
            .collect();
        let mut request = FetchRequest::default();
        request.session_id = session_id;
        request.session_epoch = session_epoch;
        if !partitions.is_empty() {
            request.topics = vec![topic];
        }
        request
    }

    fn numbers(context: &FetchContext) -> Vec<i32> {
        context
            .wanted
            .iter()
            .map(|wanted| wanted.key.partition)
            .collect()
    }

    fn open(cache: &mut SessionCache, partitions: &[i32]) -> FetchContext {
        cache.begin(&request(0, 0, partitions), 12, 0, 77).unwrap()
    }

    #[test]
    fn a_session_remembers_its_partitions_and_what_was_told() {
        let mut cache = SessionCache::new(2);
        let first = open(&mut cache, &[0, 1]);
        assert_eq!((first.session_id, first.incremental), (77, false));
        for wanted in &first.wanted {
            assert!(
                cache.tell(&first, &wanted.key, TOLD, Content::Nothing),
                "a full response holds all"
            );
        }
        let second = cache.begin(&request(77, 1, &[]), 12, 1, 0).unwrap();
        assert_eq!(numbers(&second), [0, 1]);
        assert!(
            !cache.tell(&second, &second.wanted[0].key, TOLD, Content::Nothing),
            "nothing new is left out"
        );
        let moved = Told {
            high_watermark: 6,
            ..TOLD
        };
        assert!(
            cache.tell(&second, &second.wanted[1].key, moved, Content::Nothing),
            "a moved watermark is news"
        );
    }

    #[test]
    fn records_move_a_partition_to_the_back() {
        let mut cache = SessionCache::new(2);
        let first = open(&mut cache, &[0, 1, 2]);
        cache.tell(&first, &first.wanted[0].key, TOLD, Content::Records);
        let second = cache.begin(&request(77, 1, &[]), 12, 1, 0).unwrap();
        assert_eq!(numbers(&second), [1, 2, 0]);
    }

    #[test]
    fn partitions_are_added_changed_and_forgotten() {
        let mut cache = SessionCache::new(2);
        open(&mut cache, &[0, 1]);
        let mut change = request(77, 1, &[1, 2]);
        change.topics[0].partitions[0].fetch_offset = 9;
        let mut forgotten = ForgottenTopic::default();
        forgotten.topic = "t".into();
        forgotten.partitions = vec![0];
        change.forgotten_topics_data = vec![forgotten];
        let context = cache.begin(&change, 12, 1, 0).unwrap();
        assert_eq!(numbers(&context), [1, 2]);
        assert_eq!(context.wanted[0].fetch_offset, 9);
    }

    #[test]
    fn wrong_ids_and_epochs_are_kip_227s_errors() {
        let mut cache = SessionCache::new(2);
        open(&mut cache, &[0]);
        let error = |cache: &mut SessionCache, id, epoch, version| {
            cache
                .begin(&request(id, epoch, &[]), version, 1, 0)
                .unwrap_err()
        };
        assert_eq!(
            error(&mut cache, 5, 1, 12),
            ErrorCode::FetchSessionIdNotFound
        );
        assert_eq!(
            error(&mut cache, 77, 2, 12),
            ErrorCode::InvalidFetchSessionEpoch
        );
        assert_eq!(
            error(&mut cache, 77, 1, 13),
            ErrorCode::FetchSessionTopicIdError
        );
        assert!(
            cache.begin(&request(77, 1, &[]), 12, 1, 0).is_ok(),
            "an error does not use the epoch up"
        );
    }

    #[test]
    fn a_full_fetch_closes_the_named_session() {
        for epoch in [FINAL_EPOCH, INITIAL_EPOCH] {
            let mut cache = SessionCache::new(1);
            open(&mut cache, &[0]);
            let context = cache.begin(&request(77, epoch, &[0]), 12, 1, 78).unwrap();
            assert_eq!(
                context.session_id,
                if epoch == FINAL_EPOCH { NO_SESSION } else { 78 }
            );
            assert!(cache.begin(&request(77, 1, &[]), 12, 1, 0).is_err());
        }
    }

    #[test]
    fn a_consumer_of_too_many_partitions_has_no_session() {
        let mut cache = SessionCache::new(2);
        let all: Vec<i32> = (0..=PARTITIONS_MAX as i32).collect();
        assert_eq!(open(&mut cache, &all).session_id, NO_SESSION);
        open(&mut cache, &all[1..]);
        let grown = cache.begin(&request(77, 1, &[0]), 12, 1, 0);
        assert_eq!(grown.unwrap_err(), ErrorCode::FetchSessionIdNotFound);
        assert!(cache.sessions.is_empty());
    }

    #[test]
    fn a_full_cache_gives_way_only_to_time() {
        let mut cache = SessionCache::new(1);
        open(&mut cache, &[0]);
        let refused = cache
            .begin(&request(0, 0, &[0]), 12, EVICTION_MS - 1, 80)
            .unwrap();
        assert_eq!(refused.session_id, NO_SESSION);
        let opened = cache
            .begin(&request(0, 0, &[0]), 12, EVICTION_MS, 81)
            .unwrap();
        assert_eq!((opened.session_id, cache.sessions.len()), (81, 1));
    }
}
