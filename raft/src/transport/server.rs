//! The answering side.

use std::sync::Arc;

use kittiwake_proto::kittiwake::raft::v1 as pb;
use openraft::errors::Fatal;
use openraft::raft::AppendEntriesResponse;
use pb::raft_server::Raft as RaftRpc;
use prost::bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::codec::{
    CodecError, decode_command, decode_log_id, decode_stored_membership, directory_id, encode_vote,
};
use crate::forward::{ChangeMember, check_size, encode_changed, encode_proposed};
use crate::ids::BrokerId;
use crate::local::Local;
use crate::snapshot::Snapshot;
use crate::transport::SNAPSHOT_BYTES_MAX;
use crate::transport::messages::{
    decode_append, decode_transfer, decode_vote_request, encode_append_response,
    encode_transfer_response, encode_vote_response, required_vote,
};
use crate::types::{MemberNode, SnapshotMeta, Types};

/// Answers other members of the quorum.
#[derive(Clone)]
pub struct RaftService {
    pub(crate) local: Arc<Local>,
    /// Set when this node must stop: see [`RaftService::undecodable`].
    pub(crate) failure: watch::Sender<Option<String>>,
}

impl RaftService {
    fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if cluster_id == self.local.cluster_id {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this is cluster '{}'",
            self.local.cluster_id
        )))
    }

    fn check_recipient(&self, to: Option<&pb::Recipient>) -> Result<(), Status> {
        let to = to.ok_or_else(|| Status::invalid_argument("no recipient"))?;
        self.check_cluster(&to.cluster_id)?;
        if to.directory_id.as_ref() == self.local.directory_id.as_bytes() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this is directory {}",
            self.local.directory_id
        )))
    }

    /// Until when this node tries what it was asked to do.
    fn deadline(&self) -> Instant {
        Instant::now() + self.local.propose_timeout
    }

    /// A command of a later version cannot be stored, because it could not be applied: this node
    /// stops rather than fall behind the others in silence.
    fn undecodable(&self, error: &CodecError) -> Status {
        if matches!(error, CodecError::UnknownCommand { .. }) {
            tracing::error!(%error, "the controller runs a later version; this node stops");
            self.failure.send_replace(Some(error.to_string()));
            let raft = self.local.raft.clone();
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
        let has_state = self.local.raft.is_initialized().await.map_err(stopped)?;
        Ok(Response::new(pb::DescribeResponse {
            directory_id: self.local.directory_id.to_bytes().to_vec().into(),
            broker: self.local.node.broker.0,
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
        let answer = self
            .local
            .raft
            .append_entries(request)
            .await
            .map_err(failed)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            *self.local.heard.lock() = Some(Instant::now());
        }
        Ok(Response::new(encode_append_response(&answer)))
    }

    async fn vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let request = decode_vote_request(request).map_err(|error| self.undecodable(&error))?;
        let answer = self.local.raft.vote(request).await.map_err(failed)?;
        Ok(Response::new(encode_vote_response(&answer)))
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let request = decode_vote_request(request).map_err(|error| self.undecodable(&error))?;
        let answer = self.local.raft.pre_vote(request).await.map_err(failed)?;
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
        if snapshot.meta() != announced || *snapshot.image.cluster_id != *self.local.cluster_id {
            return Err(Status::invalid_argument(
                "the snapshot is not the one announced",
            ));
        }
        let snapshot = openraft::Snapshot {
            meta: announced,
            snapshot: bytes,
        };
        let answer = self
            .local
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
        let request = decode_transfer(self.local.directory_id, request)
            .map_err(|error| self.undecodable(&error))?;
        let answer = self
            .local
            .raft
            .handle_transfer_leader(request)
            .await
            .map_err(stopped)?;
        Ok(Response::new(encode_transfer_response(&answer)))
    }

    async fn propose(
        &self,
        request: Request<pb::ProposeRequest>,
    ) -> Result<Response<pb::ProposeResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let rejected = |reason: String| {
            Ok(Response::new(pb::ProposeResponse {
                result: Some(pb::propose_response::Result::Rejected(reason)),
            }))
        };
        let Some(record) = request.command.as_ref() else {
            return rejected("no command".into());
        };
        if let Err(reason) = check_size(record) {
            return rejected(reason);
        }
        // A command this version does not know is the proposer's trouble, not a reason to stop.
        let command = match decode_command(record) {
            Ok(command) => Arc::new(command),
            Err(error) => return rejected(error.to_string()),
        };
        let proposed = self.local.propose(command, self.deadline()).await;
        Ok(Response::new(encode_proposed(proposed)))
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::MembershipResponse>, Status> {
        let request = request.get_ref();
        self.check_cluster(&request.cluster_id)?;
        let invalid = |error: CodecError| Status::invalid_argument(error.to_string());
        let member = request.member.as_ref();
        let member = member.ok_or(CodecError::Field("member")).map_err(invalid)?;
        let id = directory_id(&member.directory_id).map_err(invalid)?;
        if member.broker < 0 || member.address.is_empty() {
            return Err(invalid(CodecError::Field("member")));
        }
        let node = MemberNode {
            broker: BrokerId(member.broker),
            address: member.address.clone(),
        };
        let committed = request.committed.as_ref().map(decode_log_id);
        let admitted = self.local.admit(id, node, committed, self.deadline()).await;
        Ok(Response::new(encode_changed(admitted)))
    }

    async fn add_voter(
        &self,
        request: Request<pb::MemberRequest>,
    ) -> Result<Response<pb::MembershipResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let change = ChangeMember::AddVoter(BrokerId(request.broker));
        let changed = self.local.change_member(change, self.deadline()).await;
        Ok(Response::new(encode_changed(changed)))
    }

    async fn remove_member(
        &self,
        request: Request<pb::MemberRequest>,
    ) -> Result<Response<pb::MembershipResponse>, Status> {
        let request = request.get_ref();
        self.check_recipient(request.to.as_ref())?;
        let change = ChangeMember::Remove(BrokerId(request.broker));
        let changed = self.local.change_member(change, self.deadline()).await;
        Ok(Response::new(encode_changed(changed)))
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
