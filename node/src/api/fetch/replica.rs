//! Fetch 15–18 from followers, on the replication listener only.
//!
//! A replica fetch is believed if it names a registered broker and that broker's current epoch (KIP-903), and only on
//! this listener: a client that claims a `replica_id` elsewhere stays a consumer (CVE-2018-1288). Followers read to the
//! log end. Topics are named by id. Sessions are [`crate::replication::sessions`].
//!
//! **Waiting.** A fetch is answered when there are records, an error or a diverging epoch. A watermark that moved waits
//! [`WATERMARK_DELAY`] for records to go with it. A later request of the same session ends the wait: a follower with
//! something to say does not wait for its leader to have something to tell.
//!
//! **Throttling** (KIP-73). Records that a throttled leader holds back are no reason to answer; see
//! [`crate::replication::throttle`].
//!
//! **Epochs.** Each partition of an answer names, as the current leader, this node and the epoch it was asked in.
//!
//! **Private tag.** A partition of a `kittiwake.durability=persisted` topic carries [`FLUSHED_OFFSET_TAG`]: how far the
//! follower's log is on its disk, an i64. Kafka's Fetch has no field for it.

use kafka_wire::FetchRequest;
use kafka_wire::fetch_request::FetchPartition;
use kafka_wire_core::StrBytes;
use kittiwake_raft::{BrokerEpoch, BrokerId};
use kittiwake_storage::{LeaderEpoch, Offset};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

use super::response::{self, Partition, Response, Topic};
use super::{Admitted, STRUCT_EXPANSION_MAX, WAIT_MAX};
use crate::api::answered::Stopwatch;
use crate::api::{ErrorCode, RequestContext, decode, topic_id};
use crate::partition::FollowerFetch;
use crate::replication::sessions::{
    Ask, Changes, Gathered, INITIAL_EPOCH, Lane, ReplicaSession, Told,
};
use crate::wire::send_plan::SendPlan;
use crate::wire::{CloseReason, Reply};

/// Tag of a fetched partition: how far the follower has flushed it. Far above Kafka's own.
pub(crate) const FLUSHED_OFFSET_TAG: u32 = 10_000;

/// First version with a replica's epoch.
const REPLICA_STATE_FROM: i16 = 15;

/// How long a higher watermark waits for records to go with it.
const WATERMARK_DELAY: Duration = Duration::from_millis(10);

pub(super) fn begin(ctx: RequestContext, admitted: Admitted) -> Reply {
    let request = match decode::<FetchRequest>(&admitted, STRUCT_EXPANSION_MAX) {
        Ok(request) => request,
        Err(reason) => return Reply::Close(reason),
    };
    let Admitted {
        header, stopwatch, ..
    } = admitted;
    let (version, correlation_id) = (header.api_version, header.correlation_id);
    if version < REPLICA_STATE_FROM || request.replica_state.replica_id < 0 {
        return Reply::Close(CloseReason(
            "the replication listener serves replicas only".into(),
        ));
    }
    let (session, number) = match begin_session(&ctx, &request) {
        Ok(begun) => begun,
        Err(error) => {
            let failed = Response {
                error: Some(error),
                ..Response::default()
            };
            stopwatch.answered(Some(error));
            return Reply::Ready(response::encode(failed, correlation_id, version));
        }
    };
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    let fetch = ReplicaFetch {
        bytes_max: usize::try_from(request.max_bytes)
            .unwrap_or(0)
            .min(ctx.broker.fetch_bytes_max()),
        deadline: Instant::now() + wait.min(WAIT_MAX),
        ctx,
        session,
        number,
        correlation_id,
        version,
    };
    let found = fetch.session.gather(fetch.bytes_max, Lane::Inline);
    if found.told.iter().any(is_urgent) {
        return Reply::Ready(fetch.finish(found.told, stopwatch));
    }
    Reply::Later(Box::pin(async move {
        let told = fetch.later(found).await;
        Ok(fetch.finish(told, stopwatch))
    }))
}

fn begin_session(
    ctx: &RequestContext,
    request: &FetchRequest,
) -> Result<(Arc<ReplicaSession>, u64), ErrorCode> {
    let replica = BrokerId(request.replica_state.replica_id);
    let broker_epoch = BrokerEpoch(request.replica_state.replica_epoch);
    let image = ctx.broker.image();
    match image.broker(replica) {
        Some(registered) if registered.epoch == broker_epoch => {}
        _ => return Err(ErrorCode::StaleBrokerEpoch),
    }
    let changes = changes(request, replica, broker_epoch)?;
    let sessions = &ctx.broker.replica_sessions;
    let session = match request.session_epoch {
        INITIAL_EPOCH => sessions.open(replica, broker_epoch),
        epoch => sessions.get(replica, broker_epoch, request.session_id, epoch)?,
    };
    let number = session.begin(changes, &ctx.broker.partitions);
    Ok((session, number))
}

fn changes(
    request: &FetchRequest,
    replica: BrokerId,
    broker_epoch: BrokerEpoch,
) -> Result<Changes, ErrorCode> {
    let mut asks = Vec::new();
    for topic in &request.topics {
        let id = topic_id(topic.topic_id)?;
        asks.extend(topic.partitions.iter().map(|partition| Ask {
            key: (id, partition.partition),
            fetch: FollowerFetch {
                replica,
                broker_epoch,
                leader_epoch: LeaderEpoch(partition.current_leader_epoch),
                from: Offset(partition.fetch_offset),
                last_epoch: LeaderEpoch(partition.last_fetched_epoch),
                flushed: flushed_offset(partition),
                log_start: Offset(partition.log_start_offset),
            },
            bytes_max: usize::try_from(partition.partition_max_bytes).unwrap_or(0),
        }));
    }
    let mut forgotten = Vec::new();
    for topic in &request.forgotten_topics_data {
        let id = topic_id(topic.topic_id)?;
        forgotten.extend(topic.partitions.iter().map(|partition| (id, *partition)));
    }
    Ok(Changes { asks, forgotten })
}

fn flushed_offset(partition: &FetchPartition) -> Offset {
    let tag = partition
        .unknown_tagged_fields
        .iter()
        .find(|field| field.tag() == FLUSHED_OFFSET_TAG);
    let bytes = tag.and_then(|field| <[u8; 8]>::try_from(field.data().as_ref()).ok());
    bytes.map_or(Offset::ZERO, |bytes| Offset(i64::from_be_bytes(bytes)))
}

/// More than a watermark.
fn is_urgent(told: &Told) -> bool {
    told.error.is_error() || told.diverging.is_some() || !told.slices.is_empty()
}

/// One replica fetch under way.
struct ReplicaFetch {
    ctx: RequestContext,
    session: Arc<ReplicaSession>,
    /// Its number among the session's requests.
    number: u64,
    correlation_id: i32,
    version: i16,
    bytes_max: usize,
    deadline: Instant,
}

impl ReplicaFetch {
    /// Waits until there is something to tell.
    async fn later(&self, mut found: Gathered) -> Vec<Told> {
        let mut told = Vec::new();
        let mut deadline = self.deadline;
        loop {
            if found.needs_disk {
                found = self.gather_from_disk(found).await;
            }
            told.append(&mut found.told);
            if told.iter().any(is_urgent) {
                return told;
            }
            if !told.is_empty() {
                deadline = deadline.min(Instant::now() + WATERMARK_DELAY);
            }
            loop {
                let stopping = self.ctx.broker.shutdown.is_cancelled();
                if stopping || self.session.is_superseded(self.number) {
                    return told;
                }
                let let_go = self.session.held_until().filter(|until| *until < deadline);
                let patience = let_go.unwrap_or(deadline);
                let woken = tokio::select! {
                    woken = timeout_at(patience, self.session.news().woken()) => woken.is_ok(),
                    () = self.ctx.broker.shutdown.cancelled() => false,
                };
                if !woken && let_go.is_some() {
                    break;
                }
                if !woken {
                    // What is left by now is not urgent; if it needs the disk, it can wait for the next request.
                    told.extend(self.session.gather(self.bytes_max, Lane::Inline).told);
                    return told;
                }
                if self.session.news().is_urgent() {
                    break;
                }
                if !self.session.news().is_empty() {
                    deadline = deadline.min(Instant::now() + WATERMARK_DELAY);
                }
            }
            found = self.session.gather(self.bytes_max, Lane::Inline);
        }
    }

    async fn gather_from_disk(&self, mut found: Gathered) -> Gathered {
        let (session, bytes_max) = (Arc::clone(&self.session), self.bytes_max);
        let read = move || session.gather(bytes_max, Lane::Disk);
        let more = self.ctx.broker.look_up(read).await.unwrap_or_default();
        found.told.extend(more.told);
        found.needs_disk = false;
        found
    }

    fn finish(&self, told: Vec<Told>, stopwatch: Stopwatch) -> SendPlan {
        let first_error = told
            .iter()
            .map(|told| told.error)
            .find(|error| error.is_error());
        let mut response = Response {
            session_id: self.session.id(),
            ..Response::default()
        };
        for told in told {
            let id = kafka_wire_core::Uuid::from_bytes(told.key.0.to_bytes());
            let partition = Partition {
                index: told.key.1,
                error: told.error,
                high_watermark: told.high_watermark.0,
                last_stable_offset: told.high_watermark.0,
                log_start_offset: told.log_start.0,
                read_committed: false,
                diverging: told.diverging.map(|(epoch, end)| (epoch.0, end.0)),
                current_leader: Some((self.ctx.broker.node_id.0, told.asked_in.0)),
                preferred_read_replica: None,
                slices: told.slices,
            };
            match response.topics.last_mut() {
                Some(topic) if topic.id == id => topic.partitions.push(partition),
                _ => response.topics.push(Topic {
                    name: StrBytes::default(),
                    id,
                    partitions: vec![partition],
                }),
            }
        }
        stopwatch.answered(first_error);
        response::encode(response, self.correlation_id, self.version)
    }
}
