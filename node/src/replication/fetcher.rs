//! Fetches every partition that follows one leader, over one connection.
//!
//! A request names only partitions whose position changed since the last one: an idle partition is not mentioned, in
//! either direction. With something to say while a request still waits at the leader (a partition was added, a flush is
//! done, a pause is over) the next request is sent at once; the leader then answers the first one.
//!
//! While a throttled replica has to pause ([`super::throttle`]) the session forgets it, so that the leader sends nothing of
//! it. What was asked for already is taken: an answer's worth, of which the time is then waited for.

use bytes::Bytes;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic, ReplicaState};
use kafka_wire::fetch_response::PartitionData;
use kafka_wire::{FetchRequest, FetchResponse};
use kafka_wire_core::{TaggedField, TaggedFields, Uuid};
use kittiwake_raft::{BrokerId, TopicId};
use kittiwake_storage::{BatchHeader, LeaderEpoch, Offset};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use super::channel::Channel;
use super::pool::{Inbox, Shared};
use super::sessions::{INITIAL_EPOCH, Key};
use crate::api::ErrorCode;
use crate::api::fetch::replica::FLUSHED_OFFSET_TAG;
use crate::config::BrokerConfig;
use crate::config::address::REPLICATION_LISTENER;
use crate::partition::{Followed as Outcome, Following, LeaderAnswer, Partition};

/// Requests on their way at once: one that waits at the leader, and one with news.
const IN_FLIGHT_MAX: usize = 2;

/// Pause after a leader that is not there, or does not know this node yet. Short: it may be about to.
const RECONNECT: Duration = Duration::from_millis(50);

/// Pause of a partition whose leader, or whose replica here, has yet to learn of a change; doubled each time in a row.
const RETRY: Duration = Duration::from_millis(20);

/// It is not doubled beyond this: what lasts longer is a full disk or a fault.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// A leader that does not accept a connection within this is not there.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Records from here on are checked and appended off the async workers, in bytes of one response.
const HEAVY_BYTES: usize = 64 << 10;

/// A partition that follows this leader.
struct Followed {
    partition: Arc<Partition>,
    following: Following,
    /// Its end when it was last named to the leader; none where the session does not hold it.
    named: Option<Offset>,
    /// Answers in a row that came to nothing.
    failures: u32,
}

/// Fetches from one leader.
pub(super) struct Fetcher {
    shared: Arc<Shared>,
    leader: BrokerId,
    inbox: Arc<Inbox>,
    partitions: HashMap<Key, Followed>,
    /// Partitions to be named in the next request.
    to_name: BTreeSet<Key>,
    /// Partitions that the session holds and this fetcher does not.
    to_forget: BTreeSet<Key>,
    /// Partitions that pause, and until when.
    pausing: BTreeMap<Instant, BTreeSet<Key>>,
    /// Flushes and moves of log starts under way; what they change is named when they are done.
    background: JoinSet<Key>,
    session: Session,
}

/// The session at the leader.
#[derive(Clone, Copy, Debug, Default)]
struct Session {
    id: i32,
    next_epoch: i32,
}

/// Why a connection is given up.
enum Ended {
    /// It broke, or what came was no answer.
    Broken(io::Error),
    /// The leader does not accept this node's registration, yet.
    Refused(ErrorCode),
    /// No partition follows this leader any more.
    Idle,
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Fetcher {
    pub(super) fn new(shared: Arc<Shared>, leader: BrokerId, inbox: Arc<Inbox>) -> Self {
        Self {
            shared,
            leader,
            inbox,
            partitions: HashMap::new(),
            to_name: BTreeSet::new(),
            to_forget: BTreeSet::new(),
            pausing: BTreeMap::new(),
            background: JoinSet::new(),
            session: Session::default(),
        }
    }

    /// Fetches until the node stops.
    pub(super) async fn run(mut self) {
        let stop = self.shared.stop.clone();
        stop.run_until_cancelled(async move {
            let mut refused = None;
            loop {
                self.take_changes();
                if self.partitions.is_empty() {
                    self.inbox.changed().await;
                    continue;
                }
                let ended = self.fetch().await;
                self.begin_anew();
                match ended {
                    Ended::Idle => continue,
                    Ended::Broken(error) => {
                        debug!(leader = %self.leader, %error, "the connection to a leader ended");
                    }
                    Ended::Refused(error) => {
                        if refused.replace(error) != Some(error) {
                            info!(leader = %self.leader, error = error.name(), "a leader does not accept this node yet");
                        }
                    }
                }
                // A change may be that the leader is another.
                let _ = timeout(RECONNECT, self.inbox.changed()).await;
            }
        })
        .await;
    }

    fn begin_anew(&mut self) {
        self.session = Session::default();
        self.to_forget.clear();
        self.pausing.clear();
        self.to_name = self.partitions.keys().copied().collect();
        for followed in self.partitions.values_mut() {
            followed.named = None;
        }
    }

    fn take_changes(&mut self) {
        for (key, assignment) in self.inbox.take() {
            match assignment {
                Some((partition, following)) => {
                    if has_unflushed(&partition) {
                        // The leader waits for it, and may have nothing to send that would bring it about.
                        self.flush(key, &partition);
                    }
                    let followed = Followed {
                        partition,
                        following,
                        named: None,
                        failures: 0,
                    };
                    self.partitions.insert(key, followed);
                    self.to_forget.remove(&key);
                    self.to_name.insert(key);
                }
                None => {
                    self.to_name.remove(&key);
                    if self.partitions.remove(&key).is_some() {
                        self.to_forget.insert(key);
                    }
                }
            }
        }
    }

    /// Takes note of what throttled replicas were sent; if it was too much, all of them are looked at before the next request.
    fn count_throttled(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.shared.limit.record(bytes);
        if self.shared.limit.pause().is_some() {
            let asked = self.partitions.iter().filter(|(key, followed)| {
                followed.named.is_some() && self.shared.may_hold_back(**key, &followed.partition)
            });
            self.to_name.extend(asked.map(|(key, _)| *key));
        }
    }

    /// Takes what has to pause out of what the next request is to name; the session forgets it until the pause is over.
    fn hold_back(&mut self) {
        let throttled = self.to_name.iter().filter(|key| {
            let followed = self.partitions.get(key);
            followed.is_some_and(|followed| self.shared.may_hold_back(**key, &followed.partition))
        });
        let throttled: Vec<Key> = throttled.copied().collect();
        if throttled.is_empty() {
            return;
        }
        let Some(until) = self.shared.limit.pause() else {
            return;
        };
        for key in throttled {
            self.to_name.remove(&key);
            if let Some(followed) = self.partitions.get_mut(&key)
                && followed.named.take().is_some()
            {
                self.to_forget.insert(key);
            }
            self.pausing.entry(until).or_default().insert(key);
        }
    }

    /// Flushes in the background; how far it came is named when it is done. One that failed for want of room or
    /// descriptors is tried again after a pause; what else fails takes the log directory offline, and is reported there.
    fn flush(&mut self, key: Key, partition: &Arc<Partition>) {
        let partition = Arc::clone(partition);
        self.background.spawn_blocking(move || {
            let _ = partition.log().flush();
            key
        });
    }

    /// Names a partition that has changed in the background.
    fn changed_in_background(&mut self, key: Key) {
        let Some(followed) = self.partitions.get(&key) else {
            return;
        };
        self.to_name.insert(key);
        if has_unflushed(&followed.partition) {
            let until = Instant::now() + RETRY_MAX;
            self.pausing.entry(until).or_default().insert(key);
        }
    }

    async fn connect(&self) -> Result<Channel, Ended> {
        let image = self.shared.quorum.image();
        let endpoint = image
            .broker(self.leader)
            .and_then(|leader| leader.endpoint(REPLICATION_LISTENER))
            .ok_or_else(|| io::Error::other("it has no replication listener"))?;
        let config = &self.shared.config;
        let client_id = format!("replica-{}", self.shared.node_id);
        let channel = Channel::connect(
            &endpoint.host,
            endpoint.port,
            &client_id,
            config.replica_socket_timeout_ms.min(CONNECT_MAX),
            config.replica_fetch_response_max_bytes as usize,
        )
        .await?;
        Ok(channel)
    }

    /// One connection, from its beginning to its end.
    async fn fetch(&mut self) -> Ended {
        let mut channel = match self.connect().await {
            Ok(channel) => channel,
            Err(ended) => return ended,
        };
        let config = Arc::clone(&self.shared.config);
        let patience = config.replica_fetch_wait_max_ms + config.replica_socket_timeout_ms;
        let mut answer_due = Instant::now() + patience;
        loop {
            self.take_changes();
            if self.partitions.is_empty() {
                return Ended::Idle;
            }
            self.resume();
            self.hold_back();
            let in_flight = channel.in_flight();
            // The first answer says which session the next request is of.
            let has_news =
                self.session.id != 0 && (!self.to_name.is_empty() || !self.to_forget.is_empty());
            if in_flight == 0 || (has_news && in_flight < IN_FLIGHT_MAX) {
                let request = match self.request() {
                    Ok(request) => request,
                    Err(ended) => return ended,
                };
                match timeout(patience, channel.send(&request)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error.into(),
                    Err(_) => return io::Error::from(io::ErrorKind::TimedOut).into(),
                }
                answer_due = Instant::now() + patience;
            }
            let pause_ends = self.pausing.keys().next().copied();
            tokio::select! {
                response = channel.receive() => {
                    let taken = match response {
                        Ok(response) => self.take_response(response).await,
                        Err(error) => Err(error.into()),
                    };
                    if let Err(ended) = taken {
                        return ended;
                    }
                }
                () = self.inbox.changed() => {}
                Some(done) = self.background.join_next() => {
                    // The partition of a task that died is named by its next records.
                    if let Ok(key) = done {
                        self.changed_in_background(key);
                    }
                }
                () = sleep_until(pause_ends.unwrap_or(answer_due)), if pause_ends.is_some() => {}
                () = sleep_until(answer_due) => {
                    return io::Error::from(io::ErrorKind::TimedOut).into();
                }
            }
        }
    }

    /// Goes on with the partitions whose pause is over.
    fn resume(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.pausing.first_entry()
            && *first.key() <= now
        {
            for key in first.remove() {
                let Some(followed) = self.partitions.get(&key) else {
                    continue;
                };
                if has_unflushed(&followed.partition) {
                    // Named when it is flushed.
                    let partition = Arc::clone(&followed.partition);
                    self.flush(key, &partition);
                } else {
                    self.to_name.insert(key);
                }
            }
        }
    }

    fn request(&mut self) -> Result<FetchRequest, Ended> {
        let shared = &self.shared;
        // Never the image's: this node's may be that of a process which has taken its place.
        let epoch = shared
            .epoch
            .get()
            .ok_or(Ended::Refused(ErrorCode::BrokerIdNotRegistered))?;
        let mut request = FetchRequest::default();
        request.replica_state = ReplicaState::default();
        request.replica_state.replica_id = shared.node_id.0;
        request.replica_state.replica_epoch = epoch.0;
        request.max_wait_ms =
            i32::try_from(shared.config.replica_fetch_wait_max_ms.as_millis()).unwrap_or(i32::MAX);
        request.min_bytes = 1;
        request.max_bytes =
            i32::try_from(shared.config.replica_fetch_response_max_bytes).unwrap_or(i32::MAX);
        request.session_id = self.session.id;
        request.session_epoch = self.session.next_epoch;
        self.session.next_epoch = match self.session.next_epoch {
            i32::MAX => 1,
            epoch => epoch + 1,
        };
        for (topic, index) in std::mem::take(&mut self.to_name) {
            let Some(followed) = self.partitions.get_mut(&(topic, index)) else {
                continue;
            };
            let wanted = wanted(index, followed, &self.shared.config);
            followed.named = Some(Offset(wanted.fetch_offset));
            match request.topics.last_mut() {
                Some(last) if last.topic_id == uuid(topic) => last.partitions.push(wanted),
                _ => {
                    let mut first = FetchTopic::default();
                    first.topic_id = uuid(topic);
                    first.partitions.push(wanted);
                    request.topics.push(first);
                }
            }
        }
        for (topic, index) in std::mem::take(&mut self.to_forget) {
            match request.forgotten_topics_data.last_mut() {
                Some(last) if last.topic_id == uuid(topic) => last.partitions.push(index),
                _ => {
                    let mut first = ForgottenTopic::default();
                    first.topic_id = uuid(topic);
                    first.partitions.push(index);
                    request.forgotten_topics_data.push(first);
                }
            }
        }
        Ok(request)
    }

    async fn take_response(&mut self, response: FetchResponse) -> Result<(), Ended> {
        match ErrorCode::from_code(response.error_code) {
            Some(ErrorCode::None) => {}
            Some(error) => return Err(Ended::Refused(error)),
            None => {
                return Err(io::Error::other(format!("error {}", response.error_code)).into());
            }
        }
        self.session.id = response.session_id;
        self.session.next_epoch = self.session.next_epoch.max(INITIAL_EPOCH + 1);
        let mut answers = Vec::new();
        for topic in response.responses {
            let Some(id) = TopicId::from_bytes(topic.topic_id.to_bytes()) else {
                continue;
            };
            for data in topic.partitions {
                let key = (id, data.partition_index);
                if let Some(followed) = self.partitions.get(&key)
                    && followed.following.epoch == LeaderEpoch(data.current_leader.leader_epoch)
                {
                    answers.push(Received {
                        key,
                        partition: Arc::clone(&followed.partition),
                        following: followed.following,
                        data,
                    });
                }
            }
        }
        let bytes: usize = answers.iter().map(|answer| answer.records().len()).sum();
        self.shared.counters.fetches.inc();
        self.shared.counters.bytes.inc_by(bytes as u64);
        let is_heavy = bytes >= HEAVY_BYTES || answers.iter().any(Received::may_rewind);
        let outcomes: Vec<Taken> = if is_heavy {
            let taking = spawn_blocking(move || answers.iter().map(Received::take).collect());
            taking.await.map_err(io::Error::other)?
        } else {
            answers.iter().map(Received::take).collect()
        };
        let throttled = outcomes.iter().filter(|taken| {
            let followed = self.partitions.get(&taken.key);
            followed
                .is_some_and(|followed| self.shared.may_hold_back(taken.key, &followed.partition))
        });
        let throttled_bytes = throttled.map(|taken| taken.grown).sum();
        for taken in outcomes {
            self.go_on(taken);
        }
        self.count_throttled(throttled_bytes);
        Ok(())
    }

    fn go_on(&mut self, taken: Taken) {
        let Taken {
            key,
            outcome,
            grown,
            leader_start,
        } = taken;
        let Some(followed) = self.partitions.get_mut(&key) else {
            return;
        };
        let partition = Arc::clone(&followed.partition);
        match outcome {
            Outcome::Advanced => {
                followed.failures = 0;
                if leader_start > partition.log_start_offset() {
                    let (partition, following) = (Arc::clone(&partition), followed.following);
                    self.background.spawn_blocking(move || {
                        partition.follow_log_start(following, leader_start);
                        key
                    });
                }
                if grown > 0 && partition.is_persisted() {
                    // Named when it is flushed: before that the leader could do nothing with it.
                    self.flush(key, &partition);
                } else if grown > 0 {
                    self.to_name.insert(key);
                }
            }
            // The leader was told of another end since, and answers that.
            Outcome::AskAgain if followed.named == Some(partition.log_end_offset()) => {}
            Outcome::Rewound | Outcome::AskAgain => {
                self.to_name.insert(key);
            }
            Outcome::Wait => {
                let pause = RETRY * 2u32.saturating_pow(followed.failures);
                followed.failures = (followed.failures + 1).min(10);
                let until = Instant::now() + pause.min(RETRY_MAX);
                self.pausing.entry(until).or_default().insert(key);
            }
            Outcome::Obsolete => {}
        }
    }
}

/// Whether a leader waits for this replica to flush.
fn has_unflushed(partition: &Partition) -> bool {
    let log = partition.log();
    partition.is_persisted() && log.flushed_offset() < log.log_end_offset()
}

fn wanted(index: i32, followed: &Followed, config: &BrokerConfig) -> FetchPartition {
    let log = followed.partition.log();
    let mut wanted = FetchPartition::default();
    wanted.partition = index;
    wanted.current_leader_epoch = followed.following.epoch.0;
    wanted.fetch_offset = log.log_end_offset().0;
    wanted.last_fetched_epoch = log.latest_epoch().unwrap_or(LeaderEpoch::NONE).0;
    wanted.log_start_offset = log.log_start_offset().0;
    wanted.partition_max_bytes = i32::try_from(config.replica_fetch_max_bytes).unwrap_or(i32::MAX);
    if followed.partition.is_persisted() {
        let flushed = log.flushed_offset().0.to_be_bytes();
        let tag = TaggedField::new(FLUSHED_OFFSET_TAG, Bytes::copy_from_slice(&flushed));
        // One tag is in order.
        wanted.unknown_tagged_fields = TaggedFields::from_sorted(vec![tag]).unwrap_or_default();
    }
    wanted
}

/// The leader's answer for one partition.
struct Received {
    key: Key,
    partition: Arc<Partition>,
    following: Following,
    data: PartitionData,
}

/// What it came to.
struct Taken {
    key: Key,
    outcome: Outcome,
    /// Bytes of records that were appended.
    grown: usize,
    leader_start: Offset,
}

impl Received {
    fn records(&self) -> &[u8] {
        self.data.records.as_deref().unwrap_or_default()
    }

    fn diverging(&self) -> Option<(LeaderEpoch, Offset)> {
        let diverging = &self.data.diverging_epoch;
        (diverging.epoch >= 0 || diverging.end_offset >= 0)
            .then_some((LeaderEpoch(diverging.epoch), Offset(diverging.end_offset)))
    }

    /// Whether the log may have to be cut, which waits for the disk.
    fn may_rewind(&self) -> bool {
        let starts_elsewhere = BatchHeader::parse(self.records())
            .is_ok_and(|header| header.base_offset != self.partition.log_end_offset());
        self.data.error_code != ErrorCode::None.code()
            || self.diverging().is_some()
            || starts_elsewhere
    }

    fn take(&self) -> Taken {
        let data = &self.data;
        let answer = LeaderAnswer {
            error: ErrorCode::from_code(data.error_code).unwrap_or(ErrorCode::UnknownServerError),
            diverging: self.diverging(),
            high_watermark: Offset(data.high_watermark),
            log_start: Offset(data.log_start_offset),
            records: self.records(),
        };
        Taken {
            key: self.key,
            outcome: self.partition.follow_answer(self.following, answer),
            grown: self.records().len(),
            leader_start: answer.log_start,
        }
    }
}

fn uuid(topic: TopicId) -> Uuid {
    Uuid::from_bytes(topic.to_bytes())
}
