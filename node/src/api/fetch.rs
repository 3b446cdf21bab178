//! Fetch 4–18: record bytes to consumers, as slices of log files.
//!
//! A fetch is answered at once when it has an error, asks for nothing, may not wait, meets `min_bytes`, or finds a
//! diverging epoch; else it waits for the high watermarks of its partitions, no longer than `max_wait_ms`. Consumers read
//! to the high watermark, read_committed ones to the last stable offset; both are batch boundaries, so both take the
//! zero-copy path. A `replica_id` in a request on a client listener does not make a follower (CVE-2018-1288); followers
//! come in by a listener of their own, see [`replica`].
//!
//! **Near replicas** (KIP-392). A consumer that names its rack and asks a leader in another one is sent to an in-sync
//! follower in its rack; a follower serves consumers (v11+) to the high watermark that it knows. It may lag, and delete
//! earlier than its leader: where its log has not what is asked for it answers OFFSET_NOT_AVAILABLE, and clients go
//! back to the leader. (Apache Kafka answers OFFSET_OUT_OF_RANGE, and leaves it to the client to remember that a
//! follower said so.)
//!
//! **Size.** Partitions are served in request order out of one budget of `max_bytes`; the first that has records returns
//! at least one whole batch even over it. **Epochs.** The client's current leader epoch is checked (KIP-320), and the
//! epoch of its last record against our history (KIP-595). **Offsets.** OFFSET_OUT_OF_RANGE is judged against the
//! leader's log start and log end; between high watermark and log end the answer is empty. A leader without a lease may
//! have been replaced: it serves records, and answers NOT_LEADER_OR_FOLLOWER where it has none. **Sessions** are KIP-227's, see [`session`].
//!
//! **Disk.** Finding an offset in the active segment needs no disk; in older segments it may, and is then done off the
//! async workers.

pub(crate) mod replica;
mod response;
mod session;

pub use session::SessionCache;

use kafka_wire::FetchRequest;
use kafka_wire_core::StrBytes;
use kittiwake_raft::BrokerId;
use kittiwake_storage::{LeaderEpoch, Offset, ReadError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

use self::response::{Endpoint, Partition, Response, Topic};
use self::session::{Content, FetchContext, NO_SESSION, Told, Wanted};
use super::answered::Stopwatch;
use super::{
    Admitted, ErrorCode, RequestContext, STRUCT_EXPANSION_MAX, decode, is_replication, topic_id,
};
use crate::broker::now_ms;
use crate::partition::{self, Continuity, FetchWaiter};
use crate::wire::Reply;
use crate::wire::send_plan::SendPlan;

const TOPIC_IDS_FROM: i16 = 13;
const NEAR_REPLICAS_FROM: i16 = 11;
const READ_COMMITTED: i8 = 1;

/// A wait is never longer than this, whatever the client asks.
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) fn begin(ctx: RequestContext, admitted: Admitted) -> Reply {
    if is_replication(&ctx.peer) {
        return replica::begin(ctx, admitted);
    }
    let request = match decode::<FetchRequest>(&admitted, STRUCT_EXPANSION_MAX) {
        Ok(request) => request,
        Err(reason) => return Reply::Close(reason),
    };
    // The frame's memory is given back before a long poll: the request is a struct by now.
    let Admitted {
        header, stopwatch, ..
    } = admitted;
    let (version, correlation_id) = (header.api_version, header.correlation_id);
    let context = {
        let fresh_id = rand::random_range(1..=i32::MAX);
        ctx.broker
            .fetch_sessions
            .lock()
            .begin(&request, version, now_ms(), fresh_id)
    };
    let context = match context {
        Ok(context) => context,
        Err(error) => {
            let failed = Response {
                error: Some(error),
                ..Response::default()
            };
            let plan = response::encode(failed, correlation_id, version);
            stopwatch.answered(Some(error));
            return Reply::Ready(plan);
        }
    };
    let fetch = Fetch {
        deadline: deadline(&request),
        terms: Terms::new(&ctx, &request, version),
        ctx,
        correlation_id,
        context,
    };
    match fetch.read(Lane::Inline) {
        Ok(found) if fetch.is_satisfied(&found) => Reply::Ready(fetch.finish(found, stopwatch)),
        Ok(_) | Err(NeedsDisk) => Reply::Later(Box::pin(async move {
            Ok(Arc::new(fetch).later(stopwatch).await)
        })),
    }
}

fn deadline(request: &FetchRequest) -> Option<Instant> {
    let wait_ms = u64::try_from(request.max_wait_ms)
        .ok()
        .filter(|&wait_ms| wait_ms > 0)?;
    Some(Instant::now() + Duration::from_millis(wait_ms).min(WAIT_MAX))
}

/// How much a fetch wants and may see.
struct Terms {
    version: i16,
    bytes_min: usize,
    bytes_max: usize,
    read_committed: bool,
    /// The consumer's rack, if it is not this node's.
    other_rack: Option<StrBytes>,
}

impl Terms {
    fn new(ctx: &RequestContext, request: &FetchRequest, version: i16) -> Self {
        Self {
            version,
            bytes_min: usize::try_from(request.min_bytes).unwrap_or(0),
            bytes_max: usize::try_from(request.max_bytes)
                .unwrap_or(0)
                .min(ctx.broker.fetch_bytes_max()),
            read_committed: request.isolation_level == READ_COMMITTED,
            other_rack: Some(&request.rack_id)
                .filter(|rack| !rack.is_empty())
                .filter(|rack| ctx.broker.config.broker_rack.as_deref() != Some(rack))
                .cloned(),
        }
    }
}

/// Where offsets may be looked up.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Lane {
    /// On an async worker: only what needs no disk.
    Inline,
    /// On the blocking pool.
    Disk,
}

/// An offset in a segment whose index or headers may have to be read from disk.
struct NeedsDisk;

/// One fetch request under way.
struct Fetch {
    ctx: RequestContext,
    correlation_id: i32,
    context: FetchContext,
    terms: Terms,
    /// Until when it may wait; none where it may not.
    deadline: Option<Instant>,
}

/// What was found for a partition, in the order wanted.
type Found = Vec<Partition>;

impl Fetch {
    /// Waits until the fetch is satisfied or its time is up, and answers.
    async fn later(self: Arc<Self>, stopwatch: Stopwatch) -> SendPlan {
        let waiter = FetchWaiter::new();
        let registrations: Vec<_> = self
            .context
            .wanted
            .iter()
            .filter_map(|wanted| self.partition(wanted).ok())
            .map(|partition| waiter.wait_for(&partition))
            .collect();
        loop {
            let found = self.read_anywhere().await;
            let Some(deadline) = self.deadline else {
                return self.finish(found, stopwatch);
            };
            if self.is_satisfied(&found) {
                return self.finish(found, stopwatch);
            }
            let waited = tokio::select! {
                waited = timeout_at(deadline, waiter.woken()) => waited.is_ok(),
                // The node stops: what there is goes out now, so that the stop need not wait.
                () = self.ctx.broker.shutdown.cancelled() => false,
            };
            if !waited {
                drop(registrations);
                let found = self.read_anywhere().await;
                return self.finish(found, stopwatch);
            }
        }
    }

    /// Reads, leaving the async worker where a lookup may need the disk.
    async fn read_anywhere(self: &Arc<Self>) -> Found {
        if let Ok(found) = self.read(Lane::Inline) {
            return found;
        }
        let fetch = Arc::clone(self);
        match self
            .ctx
            .broker
            .look_up(move || fetch.read(Lane::Disk))
            .await
        {
            Some(Ok(found)) => found,
            // `Lane::Disk` never asks for the disk; a look-up that died is our fault, not the client's.
            Some(Err(NeedsDisk)) | None => self.failed(ErrorCode::UnknownServerError),
        }
    }

    fn failed(&self, error: ErrorCode) -> Found {
        self.context
            .wanted
            .iter()
            .map(|wanted| Partition::failed(wanted.key.partition, error))
            .collect()
    }

    fn read(&self, lane: Lane) -> Result<Found, NeedsDisk> {
        let mut budget = self.terms.bytes_max;
        let mut any = false;
        self.context
            .wanted
            .iter()
            .map(|wanted| {
                let found = match self.partition(wanted) {
                    Ok(partition) => self.read_partition(&partition, wanted, budget, !any, lane)?,
                    Err(error) => Partition::failed(wanted.key.partition, error),
                };
                let length = found.records_len();
                any |= length > 0;
                budget = budget.saturating_sub(length);
                Ok(found)
            })
            .collect()
    }

    fn partition(&self, wanted: &Wanted) -> Result<Arc<partition::Partition>, ErrorCode> {
        let partitions = &self.ctx.broker.partitions;
        let (key, index) = (&wanted.key, wanted.key.partition);
        if self.terms.version >= TOPIC_IDS_FROM {
            partitions.get_readable_by_id(topic_id(key.topic_id)?, index)
        } else if self.terms.version >= NEAR_REPLICAS_FROM {
            partitions.get_readable(&key.topic, index)
        } else {
            partitions.get(&key.topic, index)
        }
    }

    /// An in-sync follower in the consumer's rack that has what it wants to read.
    fn near_replica(&self, partition: &partition::Partition, from: Offset) -> Option<BrokerId> {
        let rack = self.terms.other_rack.as_ref()?;
        let image = self.ctx.broker.image();
        let is_near = |id: &BrokerId| {
            let broker = image.broker(*id);
            broker.is_some_and(|broker| !broker.fenced && broker.rack.as_deref() == Some(rack))
        };
        partition.followers_with(from).into_iter().find(is_near)
    }

    fn read_partition(
        &self,
        partition: &partition::Partition,
        wanted: &Wanted,
        budget: usize,
        one_batch_at_least: bool,
        lane: Lane,
    ) -> Result<Partition, NeedsDisk> {
        let index = wanted.key.partition;
        let epoch = match partition.check_reader_epoch(wanted.current_leader_epoch) {
            Ok(epoch) => epoch,
            Err(error) => return Ok(Partition::failed(index, error)),
        };
        let high_watermark = partition.high_watermark();
        let last_stable_offset = partition.last_stable_offset();
        let mut found = Partition {
            index,
            error: ErrorCode::None,
            high_watermark: high_watermark.0,
            last_stable_offset: last_stable_offset.0,
            log_start_offset: partition.log_start_offset().0,
            read_committed: self.terms.read_committed,
            diverging: None,
            current_leader: None,
            preferred_read_replica: None,
            slices: Vec::new(),
        };
        let from = Offset(wanted.fetch_offset);
        let out_of_range = || {
            let denial = partition.check_denial(epoch);
            Partition::failed(index, denial.err().unwrap_or(ErrorCode::OffsetOutOfRange))
        };
        match partition.continuity(from, LeaderEpoch(wanted.last_fetched_epoch)) {
            Continuity::Continues => {}
            Continuity::Diverges(last_common, end) => {
                if let Err(error) = partition.check_denial(epoch) {
                    return Ok(Partition::failed(index, error));
                }
                found.diverging = Some((last_common.0, end.0));
                return Ok(found);
            }
            Continuity::OutOfRange | Continuity::UnknownEpoch => return Ok(out_of_range()),
        }
        found.preferred_read_replica = self.near_replica(partition, from).map(|id| id.0);
        if found.preferred_read_replica.is_some() {
            return Ok(found);
        }
        let upto = if self.terms.read_committed {
            last_stable_offset
        } else {
            high_watermark
        };
        let bytes_max = usize::try_from(wanted.partition_max_bytes)
            .unwrap_or(0)
            .min(budget);
        if from >= upto || (bytes_max == 0 && !one_batch_at_least) {
            return Ok(found);
        }
        if lane == Lane::Inline && from < partition.log().active_base_offset() {
            return Err(NeedsDisk);
        }
        match partition
            .log()
            .read(from, upto, bytes_max as u32, one_batch_at_least)
        {
            Ok(slices) => found.slices = slices,
            Err(ReadError::OffsetOutOfRange { .. }) => return Ok(out_of_range()),
            Err(error) => {
                tracing::error!(topic = partition.topic(), partition = index, offset = %from, %error, "cannot read the log");
                return Ok(Partition::failed(index, ErrorCode::KafkaStorageError));
            }
        }
        Ok(found)
    }

    fn is_satisfied(&self, found: &Found) -> bool {
        let bytes: usize = found.iter().map(Partition::records_len).sum();
        self.deadline.is_none()
            || found.is_empty()
            || bytes >= self.terms.bytes_min
            || found
                .iter()
                .any(|partition| content(partition) == Content::Error)
    }

    fn finish(&self, found: Found, stopwatch: Stopwatch) -> SendPlan {
        let mut errors = found.iter().map(|partition| partition.error);
        let first_error = errors.find(|error| error.is_error());
        let mut response = Response {
            session_id: self.context.session_id,
            ..Response::default()
        };
        let mut endpoints = BTreeMap::new();
        let mut sessions =
            (self.context.session_id != NO_SESSION).then(|| self.ctx.broker.fetch_sessions.lock());
        for (wanted, mut partition) in self.context.wanted.iter().zip(found) {
            if let Some(sessions) = &mut sessions {
                let told = Told {
                    high_watermark: partition.high_watermark,
                    last_stable_offset: partition.last_stable_offset,
                    log_start_offset: partition.log_start_offset,
                };
                if !sessions.tell(&self.context, &wanted.key, told, content(&partition)) {
                    continue;
                }
            }
            self.name_leader(wanted, &mut partition, &mut endpoints);
            match response.topics.last_mut() {
                Some(topic)
                    if topic.name == wanted.key.topic && topic.id == wanted.key.topic_id =>
                {
                    topic.partitions.push(partition);
                }
                _ => response.topics.push(Topic {
                    name: wanted.key.topic.clone(),
                    id: wanted.key.topic_id,
                    partitions: vec![partition],
                }),
            }
        }
        drop(sessions);
        response.endpoints = endpoints.into_values().collect();
        let plan = response::encode(response, self.correlation_id, self.terms.version);
        stopwatch.answered(first_error);
        plan
    }

    /// Tells a client with another leader in mind who leads now (KIP-951).
    fn name_leader(
        &self,
        wanted: &Wanted,
        partition: &mut Partition,
        endpoints: &mut BTreeMap<i32, Endpoint>,
    ) {
        if !matches!(
            partition.error,
            ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch
        ) {
            return;
        }
        let broker = &self.ctx.broker;
        let listener = &self.ctx.peer.listener;
        let leader = if self.terms.version >= TOPIC_IDS_FROM {
            topic_id(wanted.key.topic_id)
                .ok()
                .and_then(|id| broker.leader_by_id(id, wanted.key.partition, listener))
        } else {
            broker.leader(&wanted.key.topic, wanted.key.partition, listener)
        };
        if let Some(leader) = leader {
            partition.current_leader = Some((leader.id.0, leader.epoch));
            let endpoint = Endpoint {
                node_id: leader.id.0,
                host: leader.host,
                port: leader.port,
                rack: leader.rack,
            };
            endpoints.insert(leader.id.0, endpoint);
        }
    }
}

fn content(partition: &Partition) -> Content {
    if partition.error.is_error()
        || partition.diverging.is_some()
        || partition.preferred_read_replica.is_some()
    {
        Content::Error
    } else if partition.slices.is_empty() {
        Content::Nothing
    } else {
        Content::Records
    }
}
