//! `kittiwake.cluster.v1`, the answering side.

use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::cluster::v1 as proto;
use kittiwake_raft::{BrokerEpoch, BrokerId, IncarnationId};
use proto::cluster_server::Cluster;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{MESSAGE_BYTES_MAX, Server, Voter};
use crate::controller::liveness::{Event, Registration, image_event};

/// Answers the other nodes.
pub(crate) struct ClusterService {
    voter: Arc<Voter>,
    cluster_id: String,
    incarnation_id: IncarnationId,
    /// A broker whose registration has not got here by then opens its stream again.
    patience: Duration,
    shutdown: CancellationToken,
}

impl ClusterService {
    /// Answers for `voter`, in this life of the process, until `shutdown`.
    pub(crate) fn server(
        voter: Arc<Voter>,
        cluster_id: String,
        incarnation_id: IncarnationId,
        patience: Duration,
        shutdown: CancellationToken,
    ) -> Server {
        let service = Self {
            voter,
            cluster_id,
            incarnation_id,
            patience,
            shutdown,
        };
        Server::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if cluster_id == self.cluster_id {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this is cluster '{}'",
            self.cluster_id
        )))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    type HeartbeatStream = ReceiverStream<Result<proto::HeartbeatResponse, Status>>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<proto::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let mut heartbeats = request.into_inner();
        let first = timeout(self.patience, heartbeats.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no heartbeat"))??
            .ok_or_else(|| Status::invalid_argument("an empty stream"))?;
        self.check_cluster(&first.cluster_id)?;
        let broker = Registration {
            broker: BrokerId(first.broker_id),
            epoch: BrokerEpoch(first.broker_epoch),
        };
        self.known(broker).await?;
        let (answers, stream) = mpsc::channel(1);
        let opened = Opened::new(Arc::clone(&self.voter), broker);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = opened.hear(first, heartbeats, answers) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn identify(
        &self,
        request: Request<proto::IdentifyRequest>,
    ) -> Result<Response<proto::IdentifyResponse>, Status> {
        self.check_cluster(&request.get_ref().cluster_id)?;
        Ok(Response::new(proto::IdentifyResponse {
            broker_id: self.voter.node_id().0,
            incarnation_id: self.incarnation_id.as_bytes().to_vec().into(),
        }))
    }
}

impl ClusterService {
    /// Waits until the image here has the registration: an epoch is the metadata offset of its entry.
    async fn known(&self, broker: Registration) -> Result<(), Status> {
        let offset = u64::try_from(broker.epoch.0)
            .map_err(|_| Status::invalid_argument("a negative broker epoch"))?;
        let mut images = self.voter.quorum.watch();
        let reached = images.wait_for(|image| image.offset >= offset);
        match timeout(self.patience, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::unavailable(
                "the registration is not known here yet",
            )),
        }
    }
}

/// An open heartbeat stream; dropped, it is closed.
pub(super) struct Opened {
    voter: Arc<Voter>,
    broker: Registration,
}

impl Opened {
    pub(super) fn new(voter: Arc<Voter>, broker: Registration) -> Self {
        // The image may have got to the evidence later than to its watchers.
        voter.note(image_event(&voter.quorum.image()));
        voter.note(Event::StreamOpened(broker));
        Self { voter, broker }
    }

    async fn hear(
        &self,
        first: proto::HeartbeatRequest,
        mut heartbeats: Streaming<proto::HeartbeatRequest>,
        answers: mpsc::Sender<Result<proto::HeartbeatResponse, Status>>,
    ) {
        let mut heartbeat = first;
        loop {
            if let Err(expelled) = self.voter.registered(self.broker) {
                // The stream ends with it, whether or not somebody takes it.
                let _ = answers.send(Err(expelled.to_status())).await;
                return;
            }
            let controller = self.voter.heard(self.broker, heartbeat.metadata_offset);
            let answer = proto::HeartbeatResponse {
                controller,
                metadata_offset: self.voter.quorum.image().offset,
            };
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
            // An end and an error are the same: the stream is gone.
            match heartbeats.message().await {
                Ok(Some(next)) => heartbeat = next,
                Ok(None) | Err(_) => return,
            }
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.voter.note(Event::StreamClosed(self.broker));
    }
}
