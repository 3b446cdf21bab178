//! The calling side.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::raft::v1 as pb;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use pb::raft_client::RaftClient;
use prost::bytes::Bytes;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::codec::{CodecError, encode_log_id, encode_stored_membership, encode_vote};
use crate::ids::DirectoryId;
use crate::transport::SNAPSHOT_CHUNK_BYTES;
use crate::transport::connection::{AddressBook, Connection, connect};
use crate::transport::messages::{
    decode_append_response, decode_transfer_response, decode_vote_response, encode_append,
    encode_transfer, encode_vote_request, required_vote,
};
use crate::types::{MemberNode, Types, Vote};

/// A member that is only short of processor time is waited for at least this long: openraft's own limit for appending
/// entries is a part of the heartbeat interval, and each call that is given up costs a new connection. Heartbeats are
/// given up by openraft itself, sooner.
const APPEND_PATIENCE_MIN: Duration = Duration::from_millis(250);

/// Connects to other members of one cluster.
pub(crate) struct Network {
    pub(crate) cluster_id: String,
    pub(crate) addresses: Arc<AddressBook>,
}

/// Calls one member.
pub(crate) struct Peer {
    to: pb::Recipient,
    connection: Connection,
}

/// Asks whoever listens at `address` who it is.
pub(crate) async fn describe(
    cluster_id: &str,
    address: &str,
    deadline: Duration,
) -> Result<pb::DescribeResponse, Status> {
    let mut client = connect(address).ok_or_else(|| Status::invalid_argument("not a host:port"))?;
    let request = pb::DescribeRequest {
        cluster_id: cluster_id.to_owned(),
    };
    let answer = timeout(deadline, client.describe(request)).await;
    answer
        .map_err(|_| Status::deadline_exceeded("no answer"))?
        .map(Response::into_inner)
}

/// Asks whoever listens at `address` to take a node in.
pub(crate) async fn join(
    address: &str,
    request: pb::JoinRequest,
    deadline: Duration,
) -> Result<pb::MembershipResponse, Status> {
    let mut client = connect(address).ok_or_else(|| Status::invalid_argument("not a host:port"))?;
    let mut request = Request::new(request);
    request.set_timeout(deadline);
    let answer = timeout(deadline, client.join(request)).await;
    answer
        .map_err(|_| Status::deadline_exceeded("no answer"))?
        .map(Response::into_inner)
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: DirectoryId, node: &MemberNode) -> Peer {
        Peer {
            to: pb::Recipient {
                cluster_id: self.cluster_id.clone(),
                directory_id: target.to_bytes().to_vec().into(),
            },
            connection: Connection::new(Arc::clone(&self.addresses), target, node.clone()),
        }
    }
}

/// Why a call has no answer.
enum Failure {
    /// Worth a pause before the next one: openraft backs off.
    Unreachable(String),
    /// Refused or garbled.
    Failed(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Unreachable(status.to_string())
    }
}

impl From<CodecError> for Failure {
    fn from(error: CodecError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Failure> for RPCError<Types> {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(reason) => Unreachable::from_string(reason).into(),
            Failure::Failed(reason) => NetworkError::from_string(reason).into(),
        }
    }
}

impl From<Failure> for StreamingError<Types> {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(reason) => Unreachable::from_string(reason).into(),
            Failure::Failed(reason) => NetworkError::from_string(reason).into(),
        }
    }
}

impl Peer {
    /// One call with its deadline, on this side and announced to the other.
    async fn call<Q, A, F>(
        &mut self,
        deadline: Duration,
        message: Q,
        send: impl FnOnce(RaftClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let client = self
            .connection
            .client()
            .ok_or_else(|| Failure::Unreachable("the member's address is not host:port".into()))?;
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        let answer = timeout(deadline, send(client, request)).await;
        if let Ok(Ok(answer)) = answer {
            self.connection.answered();
            return Ok(answer.into_inner());
        }
        self.connection.failed();
        Err(match answer {
            Ok(Err(status)) => status.into(),
            _ => Failure::Unreachable(format!("no answer within {deadline:?}")),
        })
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let patience = option.soft_ttl().max(APPEND_PATIENCE_MIN);
        let message = encode_append(self.to.clone(), &request);
        let answer = self
            .call(patience, message, |mut client, request| async move {
                client.append_entries(request).await
            })
            .await?;
        Ok(decode_append_response(&answer).map_err(Failure::from)?)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let message = encode_vote_request(self.to.clone(), &request);
        let answer = self
            .call(
                option.soft_ttl(),
                message,
                |mut client, request| async move { client.vote(request).await },
            )
            .await?;
        Ok(decode_vote_response(&answer).map_err(Failure::from)?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let message = encode_vote_request(self.to.clone(), &request);
        let answer = self
            .call(
                option.soft_ttl(),
                message,
                |mut client, request| async move { client.pre_vote(request).await },
            )
            .await?;
        Ok(decode_vote_response(&answer).map_err(Failure::from)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let chunks = snapshot_chunks(self.to.clone(), &vote, &snapshot);
        let stream = tokio_stream::iter(chunks);
        let send = self.call(
            option.soft_ttl(),
            stream,
            |mut client, request| async move { client.install_snapshot(request).await },
        );
        let answer = tokio::select! {
            answer = send => answer?,
            closed = cancel => return Err(closed.into()),
        };
        let vote = required_vote(answer.vote.as_ref()).map_err(Failure::from)?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = encode_transfer(self.to.clone(), &request);
        let answer = self
            .call(
                option.soft_ttl(),
                message,
                |mut client, request| async move { client.transfer_leader(request).await },
            )
            .await?;
        Ok(decode_transfer_response(&request, &answer).map_err(Failure::from)?)
    }
}

fn snapshot_chunks(
    to: pb::Recipient,
    vote: &Vote,
    snapshot: &SnapshotOf<Types, Bytes>,
) -> Vec<pb::SnapshotChunk> {
    let mut rest = snapshot.snapshot.clone();
    let mut chunks = vec![pb::SnapshotChunk {
        to: Some(to),
        vote: Some(encode_vote(vote)),
        last: snapshot.meta.last_log_id.as_ref().map(encode_log_id),
        membership: Some(encode_stored_membership(&snapshot.meta.last_membership)),
        size: rest.len() as u64,
        data: Bytes::new(),
    }];
    while !rest.is_empty() {
        let data = rest.split_to(rest.len().min(SNAPSHOT_CHUNK_BYTES));
        chunks.push(pb::SnapshotChunk {
            data,
            ..pb::SnapshotChunk::default()
        });
    }
    chunks
}
