//! The answering side.

use kittiwake_proto::kittiwake::raft::v1 as pb;
use openraft::Raft;
use openraft::errors::Fatal;
use pb::raft_server::Raft as RaftRpc;
use prost::bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::codec::{CodecError, decode_log_id, decode_stored_membership, encode_vote};
use crate::ids::{BrokerId, DirectoryId};
use crate::snapshot::Snapshot;
use crate::state_machine::StateMachine;
use crate::transport::SNAPSHOT_BYTES_MAX;
use crate::transport::messages::{
    decode_append, decode_transfer, decode_vote_request, encode_append_response,
    encode_transfer_response, encode_vote_response, required_vote,
};
use crate::types::{SnapshotMeta, Types};

/// Answers other members of the quorum.
#[derive(Clone)]
pub struct RaftService {
    pub(crate) raft: Raft<Types, StateMachine>,
    pub(crate) cluster_id: String,
    pub(crate) broker: BrokerId,
    pub(crate) directory_id: DirectoryId,
    /// Set when this node must stop: see [`RaftService::undecodable`].
    pub(crate) failure: watch::Sender<Option<String>>,
}

impl RaftService {
    fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if cluster_id == self.cluster_id {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this is cluster '{}'",
            self.cluster_id
        )))
    }

    fn check_recipient(&self, to: Option<&pb::Recipient>) -> Result<(), Status> {
        let to = to.ok_or_else(|| Status::invalid_argument("no recipient"))?;
        self.check_cluster(&to.cluster_id)?;
        if to.directory_id.as_ref() == self.directory_id.as_bytes() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this is directory {}",
            self.directory_id
        )))
    }

    /// A command of a later version cannot be stored, because it could not be applied: this node
    /// stops rather than fall behind the others in silence.
    fn undecodable(&self, error: &CodecError) -> Status {
        if matches!(error, CodecError::UnknownCommand { .. }) {
            tracing::error!(%error, "the controller runs a later version; this node stops");
            self.failure.send_replace(Some(error.to_string()));
            let raft = self.raft.clone();
            tokio::spawn(async move { raft.shutdown().await });
        }
        Status::invalid_argument(error.to_string())
    }
}

fn stopped(error: Fatal<Types>) -> Status {
    Status::unavailable(error.to_string())
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        self.check_cluster(&request.get_ref().cluster_id)?;
        let has_state = self.raft.is_initialized().await.map_err(stopped)?;
        Ok(Response::new(pb::DescribeResponse {
            directory_id: self.directory_id.to_bytes().to_vec().into(),
            broker: self.broker.0,
            has_state,
        }))
    }

    async fn append_entries(
        &self,
        request: Request<pb::AppendEntriesRequest>,
    ) -> Result<Response<pb::AppendEntriesResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let request = decode_append(request).map_err(|error| self.undecodable(&error))?;
        let answer = self.raft.append_entries(request).await.map_err(failed)?;
        Ok(Response::new(encode_append_response(&answer)))
    }

    async fn vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let request = decode_vote_request(request).map_err(|error| self.undecodable(&error))?;
        let answer = self.raft.vote(request).await.map_err(failed)?;
        Ok(Response::new(encode_vote_response(&answer)))
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let request = decode_vote_request(request).map_err(|error| self.undecodable(&error))?;
        let answer = self.raft.pre_vote(request).await.map_err(failed)?;
        Ok(Response::new(encode_vote_response(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("an empty stream"))?;
        self.check_recipient(first.to.as_ref())?;
        let vote = required_vote(first.vote.as_ref()).map_err(|error| self.undecodable(&error))?;
        let bytes = receive(&first, chunks).await?;
        let announced = announced_meta(&first).map_err(|error| self.undecodable(&error))?;
        // openraft takes a snapshot at its word; what cannot be read must not get that far.
        let snapshot = Snapshot::decode(bytes.clone()).map_err(|error| self.undecodable(&error))?;
        if snapshot.meta() != announced || *snapshot.image.cluster_id != *self.cluster_id {
            return Err(Status::invalid_argument(
                "the snapshot is not the one announced",
            ));
        }
        let snapshot = openraft::Snapshot {
            meta: announced,
            snapshot: bytes,
        };
        let answer = self
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(stopped)?;
        Ok(Response::new(pb::SnapshotResponse {
            vote: Some(encode_vote(&answer.vote)),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let request = decode_transfer(self.directory_id, request)
            .map_err(|error| self.undecodable(&error))?;
        let answer = self
            .raft
            .handle_transfer_leader(request)
            .await
            .map_err(stopped)?;
        Ok(Response::new(encode_transfer_response(&answer)))
    }
}

async fn receive(
    first: &pb::SnapshotChunk,
    mut chunks: Streaming<pb::SnapshotChunk>,
) -> Result<Bytes, Status> {
    let size = usize::try_from(first.size)
        .ok()
        .filter(|size| *size <= SNAPSHOT_BYTES_MAX);
    let size = size.ok_or_else(|| Status::invalid_argument("the snapshot is too large"))?;
    // Grows with what arrives, not with what was announced.
    let mut bytes = BytesMut::new();
    bytes.extend_from_slice(&first.data);
    while let Some(chunk) = chunks.message().await? {
        if bytes.len() + chunk.data.len() > size {
            break;
        }
        bytes.extend_from_slice(&chunk.data);
    }
    if bytes.len() != size {
        return Err(Status::invalid_argument(
            "the snapshot has not the announced size",
        ));
    }
    Ok(bytes.freeze())
}

fn announced_meta(first: &pb::SnapshotChunk) -> Result<SnapshotMeta, CodecError> {
    let membership = first
        .membership
        .as_ref()
        .ok_or(CodecError::Field("membership"))?;
    Ok(SnapshotMeta {
        last_log_id: first.last.as_ref().map(decode_log_id),
        last_membership: decode_stored_membership(membership)?,
    })
}
