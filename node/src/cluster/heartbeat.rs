//! This node's heartbeats: one stream to every voter, the node itself without the network.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kittiwake_proto::kittiwake::cluster::v1 as proto;
use kittiwake_raft::{BrokerId, IncarnationId, MetadataQuorum};
use prometheus_client::metrics::counter::Counter;
use proto::cluster_client::ClusterClient;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info};

use super::expulsion::{Expelled, Expulsion};
use super::service::Opened;
use super::{ControllerLease, Life, MESSAGE_BYTES_MAX, Voter};
use crate::controller::liveness::{Registration, Verdict};

/// Pause before a voter that cannot be reached is tried again: it may be back any moment, and a refused connection
/// costs little.
const RECONNECT: Duration = Duration::from_millis(100);

/// Everything that the heartbeats of this node need.
#[derive(Clone)]
pub(crate) struct Heartbeats {
    pub(crate) life: Life,
    pub(crate) quorum: MetadataQuorum,
    /// The metadata offset up to which the partitions of this node are in step with the image. A broker that was fenced
    /// is granted a lease once it knows, and it does not *know* before its partitions have given up leading: the image
    /// is here earlier than that.
    pub(crate) reconciled: watch::Receiver<u64>,
    /// This node's own ear.
    pub(crate) voter: Arc<Voter>,
    pub(crate) lease: Arc<ControllerLease>,
    pub(crate) expulsion: Arc<Expulsion>,
    pub(crate) interval: Duration,
    pub(crate) session_timeout: Duration,
    pub(crate) answered: Counter,
}

impl Heartbeats {
    /// Keeps a stream to every voter, those that become voters later too, until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let mut streams: BTreeMap<(BrokerId, String), CancellationToken> = BTreeMap::new();
        while !shutdown.is_cancelled() {
            let voters = self.quorum.status().voters;
            streams.retain(|(broker, address), stop| {
                let votes = voters
                    .iter()
                    .any(|voter| voter.broker == *broker && voter.address == *address);
                if !votes {
                    stop.cancel();
                }
                votes
            });
            for voter in voters {
                streams
                    .entry((voter.broker, voter.address.clone()))
                    .or_insert_with(|| {
                        let stop = shutdown.child_token();
                        let heartbeats = self.clone();
                        let stopped = stop.clone();
                        tasks.spawn(async move {
                            tokio::select! {
                                () = heartbeats.keep_alive(voter.broker, &voter.address) => {}
                                () = stopped.cancelled() => {}
                            }
                        });
                        stop
                    });
            }
            tokio::select! {
                () = sleep(self.interval) => {}
                () = shutdown.cancelled() => {}
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn keep_alive(&self, voter: BrokerId, address: &str) {
        if voter == self.life.broker {
            return self.hear_oneself().await;
        }
        let mut connected = false;
        loop {
            let ended = self.stream(voter, address, &mut connected).await;
            let Err(error) = ended;
            match &error {
                StreamError::Stopped => return,
                StreamError::Status(status) => {
                    if let Some(expelled) = Expelled::from_status(self.life.broker, status) {
                        return self.expulsion.set(expelled);
                    }
                }
                _ => {}
            }
            if std::mem::take(&mut connected) {
                info!(%voter, %address, %error, "lost a voter; reconnecting");
            } else {
                debug!(%voter, %address, %error, "a voter cannot be reached");
            }
            sleep(RECONNECT).await;
        }
    }

    /// The same rules without the network: this node is one of those that it may fence.
    async fn hear_oneself(&self) {
        let own = self.registration();
        let mut controllers = self.quorum.watch_controller();
        let mut reconciled = self.reconciled.clone();
        let _stream = Opened::new(Arc::clone(&self.voter), own);
        loop {
            let sent = Instant::now();
            let metadata_offset = *reconciled.borrow_and_update();
            if self.voter.heard(own, metadata_offset) {
                self.lease.extend(sent);
            }
            self.answered.inc();
            tokio::select! {
                () = sleep_until((sent + self.pause()).into()) => {}
                // The quorum has stopped, and this node with it.
                changed = controllers.changed() => if changed.is_err() { return },
                () = self.worth_telling(&mut reconciled) => {}
            }
        }
    }

    /// Heartbeats on one connection, each sent when the one before it is answered and its time has come; a new
    /// controller is told at once. Ends with what went wrong.
    async fn stream(
        &self,
        voter: BrokerId,
        address: &str,
        connected: &mut bool,
    ) -> Result<std::convert::Infallible, StreamError> {
        // A voter that keeps silent this long may be reached on a new connection: retransmissions on the old one come
        // ever more slowly, also after the network is back.
        let patience = self.session_timeout / 3;
        let mut client = connect(address, patience)?;
        let mut controllers = self.quorum.watch_controller();
        let mut reconciled = self.reconciled.clone();
        let (heartbeats, sending) = mpsc::channel(1);
        let mut sent = self.send(&heartbeats, &mut reconciled).await?;
        let opening = client.heartbeat(ReceiverStream::new(sending));
        let mut answers = timeout(patience, opening)
            .await
            .map_err(|_| StreamError::Silent)??
            .into_inner();
        loop {
            let answer = timeout(patience, answers.message())
                .await
                .map_err(|_| StreamError::Silent)??
                .ok_or(StreamError::Closed)?;
            if !std::mem::replace(connected, true) {
                debug!(%voter, %address, "heard by a voter");
            }
            if answer.controller {
                self.lease.extend(sent);
            }
            self.answered.inc();
            tokio::select! {
                () = sleep_until((sent + self.pause()).into()) => {}
                changed = controllers.changed() => {
                    changed.map_err(|_| StreamError::Stopped)?;
                }
                () = self.worth_telling(&mut reconciled) => {}
                // Nothing is due: it is the end of the stream, which must not go unnoticed until then.
                ended = answers.message() => {
                    ended?;
                    return Err(StreamError::Closed);
                }
            }
            sent = self.send(&heartbeats, &mut reconciled).await?;
        }
    }

    async fn send(
        &self,
        heartbeats: &mpsc::Sender<proto::HeartbeatRequest>,
        reconciled: &mut watch::Receiver<u64>,
    ) -> Result<Instant, StreamError> {
        let heartbeat = proto::HeartbeatRequest {
            cluster_id: self.life.cluster_id.clone(),
            broker_id: self.life.broker.0,
            broker_epoch: self.life.epoch.0,
            incarnation_id: self.life.incarnation_id.as_bytes().to_vec().into(),
            metadata_offset: *reconciled.borrow_and_update(),
        };
        // Taken before the message can be on its way: the lease counts from here.
        let sent = Instant::now();
        heartbeats
            .send(heartbeat)
            .await
            .map_err(|_| StreamError::Closed)?;
        Ok(sent)
    }

    /// Returns when the partitions have come further than the last heartbeat said, and that may bring a lease.
    async fn worth_telling(&self, reconciled: &mut watch::Receiver<u64>) {
        loop {
            // The partitions live as long as the node; without them it waits for the interval.
            if reconciled.changed().await.is_err() {
                return std::future::pending().await;
            }
            if !self.lease.is_valid() {
                return;
            }
        }
    }

    fn registration(&self) -> Registration {
        Registration {
            broker: self.life.broker,
            epoch: self.life.epoch,
        }
    }

    /// Until the next heartbeat. Sooner while there is no lease: nothing is served without one.
    fn pause(&self) -> Duration {
        if self.lease.is_valid() {
            self.interval
        } else {
            self.interval.min(RECONNECT)
        }
    }
}

/// Why a heartbeat stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("not a host:port")]
    Address,
    #[error("no answer")]
    Silent,
    #[error("the voter closed the stream")]
    Closed,
    #[error("the metadata quorum of this node has stopped")]
    Stopped,
    #[error("{0}")]
    Status(#[from] Status),
}

fn connect(address: &str, patience: Duration) -> Result<ClusterClient<Channel>, StreamError> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|_| StreamError::Address)?;
    let channel = endpoint
        .tcp_nodelay(true)
        .connect_timeout(patience)
        .connect_lazy();
    Ok(ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Looks who is at `address`: whether the process of this incarnation is still there.
pub(crate) async fn identify(
    cluster_id: &str,
    broker: BrokerId,
    incarnation_id: IncarnationId,
    address: &str,
    patience: Duration,
) -> Verdict {
    let Ok(mut client) = connect(address, patience) else {
        return Verdict::Unknown;
    };
    let request = proto::IdentifyRequest {
        cluster_id: cluster_id.to_owned(),
    };
    match timeout(patience, client.identify(request)).await {
        Err(_) => Verdict::Unknown,
        Ok(Err(status)) if is_refused(&status) => Verdict::Dead,
        Ok(Err(_)) => Verdict::Unknown,
        Ok(Ok(answer)) => {
            let answer = answer.into_inner();
            if answer.broker_id != broker.0 {
                // Its address is another one by now, or was never right.
                Verdict::Unknown
            } else if answer.incarnation_id.as_ref() == incarnation_id.as_bytes() {
                Verdict::Alive
            } else {
                Verdict::Dead
            }
        }
    }
}

/// Whether the operating system at the other end says that nobody listens there.
fn is_refused(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_a_dead_process_and_a_deaf_one_is_not() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let look = || {
            identify(
                "cluster",
                BrokerId(0),
                IncarnationId::random(),
                &address,
                Duration::from_millis(100),
            )
        };
        assert_eq!(look().await, Verdict::Unknown);
        drop(socket);
        assert_eq!(look().await, Verdict::Dead);
    }
}
