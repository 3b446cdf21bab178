//! Raft's messages as protobuf and back.

use kittiwake_proto::kittiwake::raft::v1 as pb;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::codec::{
    CodecError, decode_entry, decode_log_id, decode_vote, encode_entry, encode_log_id, encode_vote,
};
use crate::ids::DirectoryId;
use crate::types::{Types, Vote};

type VoteRecord = kittiwake_proto::metadata::v1::Vote;

pub(super) fn required_vote(vote: Option<&VoteRecord>) -> Result<Vote, CodecError> {
    decode_vote(vote.ok_or(CodecError::Field("vote"))?)
}

pub(super) fn encode_append(
    to: pb::Recipient,
    request: &AppendEntriesRequest<Types>,
) -> pb::AppendEntriesRequest {
    pb::AppendEntriesRequest {
        to: Some(to),
        vote: Some(encode_vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(encode_log_id),
        entries: request.entries.iter().map(encode_entry).collect(),
        committed: request.leader_commit.as_ref().map(encode_log_id),
    }
}

pub(super) fn decode_append(
    request: &pb::AppendEntriesRequest,
) -> Result<AppendEntriesRequest<Types>, CodecError> {
    Ok(AppendEntriesRequest {
        vote: required_vote(request.vote.as_ref())?,
        prev_log_id: request.previous.as_ref().map(decode_log_id),
        entries: request
            .entries
            .iter()
            .map(decode_entry)
            .collect::<Result<_, _>>()?,
        leader_commit: request.committed.as_ref().map(decode_log_id),
    })
}

pub(super) fn encode_append_response(
    response: &AppendEntriesResponse<Types>,
) -> pb::AppendEntriesResponse {
    use pb::append_entries_response::{Conflict, PartialSuccess, Result as Outcome, Success};
    pb::AppendEntriesResponse {
        result: Some(match response {
            AppendEntriesResponse::Success => Outcome::Success(Success {}),
            AppendEntriesResponse::PartialSuccess(matching) => {
                let matching = matching.as_ref().map(encode_log_id);
                Outcome::PartialSuccess(PartialSuccess { matching })
            }
            AppendEntriesResponse::Conflict => Outcome::Conflict(Conflict {}),
            AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(encode_vote(vote)),
        }),
    }
}

pub(super) fn decode_append_response(
    response: &pb::AppendEntriesResponse,
) -> Result<AppendEntriesResponse<Types>, CodecError> {
    use pb::append_entries_response::Result as Outcome;
    Ok(
        match response
            .result
            .as_ref()
            .ok_or(CodecError::Field("result"))?
        {
            Outcome::Success(_) => AppendEntriesResponse::Success,
            Outcome::PartialSuccess(partial) => {
                AppendEntriesResponse::PartialSuccess(partial.matching.as_ref().map(decode_log_id))
            }
            Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
            Outcome::HigherVote(vote) => AppendEntriesResponse::HigherVote(decode_vote(vote)?),
        },
    )
}

pub(super) fn encode_vote_request(
    to: pb::Recipient,
    request: &VoteRequest<Types>,
) -> pb::VoteRequest {
    pb::VoteRequest {
        to: Some(to),
        vote: Some(encode_vote(&request.vote)),
        last: request.last_log_id.as_ref().map(encode_log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn decode_vote_request(
    request: &pb::VoteRequest,
) -> Result<VoteRequest<Types>, CodecError> {
    let vote = required_vote(request.vote.as_ref())?;
    let mut decoded = VoteRequest::new(vote, request.last.as_ref().map(decode_log_id));
    decoded.leadership_transfer = request.leadership_transfer;
    Ok(decoded)
}

pub(super) fn encode_vote_response(response: &VoteResponse<Types>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(encode_vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(encode_log_id),
    }
}

pub(super) fn decode_vote_response(
    response: &pb::VoteResponse,
) -> Result<VoteResponse<Types>, CodecError> {
    let vote = required_vote(response.vote.as_ref())?;
    Ok(VoteResponse::new(
        vote,
        response.last.as_ref().map(decode_log_id),
        response.granted,
    ))
}

pub(super) fn encode_transfer(
    to: pb::Recipient,
    request: &TransferLeaderRequest<Types>,
) -> pb::TransferLeaderRequest {
    pb::TransferLeaderRequest {
        to: Some(to),
        from: Some(encode_vote(request.from_leader())),
        last: request.last_log_id().map(encode_log_id),
    }
}

pub(super) fn decode_transfer(
    to: DirectoryId,
    request: &pb::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<Types>, CodecError> {
    let from = required_vote(request.from.as_ref())?;
    Ok(TransferLeaderRequest::new(
        from,
        to,
        request.last.as_ref().map(decode_log_id),
    ))
}

pub(super) fn encode_transfer_response(
    response: &TransferLeaderResponse<Types>,
) -> pb::TransferLeaderResponse {
    use pb::transfer_leader_response::{Accepted, NotFlushed, Result as Outcome};
    pb::TransferLeaderResponse {
        result: Some(match response {
            Ok(()) => Outcome::Accepted(Accepted {}),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                Outcome::VoteChanged(encode_vote(actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Outcome::NotFlushed(NotFlushed {
                    flushed: actual.as_ref().map(encode_log_id),
                })
            }
        }),
    }
}

pub(super) fn decode_transfer_response(
    request: &TransferLeaderRequest<Types>,
    response: &pb::TransferLeaderResponse,
) -> Result<TransferLeaderResponse<Types>, CodecError> {
    use pb::transfer_leader_response::Result as Outcome;
    Ok(
        match response
            .result
            .as_ref()
            .ok_or(CodecError::Field("result"))?
        {
            Outcome::Accepted(_) => Ok(()),
            Outcome::VoteChanged(actual) => Err(TransferLeaderError::VoteChanged {
                expected: *request.from_leader(),
                actual: decode_vote(actual)?,
            }),
            Outcome::NotFlushed(not_flushed) => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: not_flushed.flushed.as_ref().map(decode_log_id),
            }),
        },
    )
}
