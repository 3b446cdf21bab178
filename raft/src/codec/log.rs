//! What Raft itself keeps: log ids, votes, entries, memberships.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kittiwake_proto::metadata::v1 as pb;
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId;

use crate::codec::{CodecError, decode_command, directory_id, encode_command};
use crate::ids::{BrokerId, DirectoryId};
use crate::types::{
    Entry, LeaderId, LogId, MemberNode, Membership, Proposal, StoredMembership, Vote, log_id,
};

pub(crate) fn encode_log_id(id: &LogId) -> pb::LogId {
    pb::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

pub(crate) fn decode_log_id(id: &pb::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn encode_vote(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        candidate: vote.leader_id.voted_for.to_bytes().to_vec().into(),
        committed: vote.committed,
    }
}

pub(crate) fn decode_vote(vote: &pb::Vote) -> Result<Vote, CodecError> {
    let candidate = directory_id(&vote.candidate)?;
    Ok(Vote {
        leader_id: LeaderId::new(vote.term, candidate),
        committed: vote.committed,
    })
}

pub(crate) fn encode_entry(entry: &Entry) -> pb::Entry {
    use pb::entry::Payload;
    pb::Entry {
        id: Some(encode_log_id(&entry.log_id)),
        payload: Some(match &entry.payload {
            EntryPayload::Blank => Payload::Blank(pb::Blank {}),
            EntryPayload::Normal(Proposal(command)) => Payload::Command(encode_command(command)),
            EntryPayload::Membership(membership) => {
                Payload::Membership(encode_membership(membership))
            }
        }),
    }
}

pub(crate) fn decode_entry(entry: &pb::Entry) -> Result<Entry, CodecError> {
    use pb::entry::Payload;
    let id = entry.id.as_ref().ok_or(CodecError::Field("id"))?;
    let payload = match entry.payload.as_ref().ok_or(CodecError::Field("payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Command(command) => {
            EntryPayload::Normal(Proposal(Arc::new(decode_command(command)?)))
        }
        Payload::Membership(membership) => EntryPayload::Membership(decode_membership(membership)?),
    };
    Ok(Entry {
        log_id: decode_log_id(id),
        payload,
    })
}

pub(crate) fn encode_membership(membership: &Membership) -> pb::Membership {
    pb::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| pb::Voters {
                directory_ids: voters
                    .iter()
                    .map(|id| id.to_bytes().to_vec().into())
                    .collect(),
            })
            .collect(),
        members: membership
            .nodes()
            .map(|(id, node)| pb::Member {
                directory_id: id.to_bytes().to_vec().into(),
                broker: node.broker.0,
                address: node.address.clone(),
            })
            .collect(),
    }
}

pub(crate) fn decode_membership(record: &pb::Membership) -> Result<Membership, CodecError> {
    let configs = record
        .configs
        .iter()
        .map(|voters| {
            voters
                .directory_ids
                .iter()
                .map(|id| directory_id(id))
                .collect()
        })
        .collect::<Result<Vec<BTreeSet<DirectoryId>>, _>>()?;
    let members = record
        .members
        .iter()
        .map(|member| {
            let node = MemberNode {
                broker: BrokerId(member.broker),
                address: member.address.clone(),
            };
            Ok((directory_id(&member.directory_id)?, node))
        })
        .collect::<Result<BTreeMap<_, _>, CodecError>>()?;
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members).map_err(|_| CodecError::Field("membership"))
}

pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        id: stored.log_id().as_ref().map(encode_log_id),
        membership: Some(encode_membership(stored.membership())),
    }
}

pub(crate) fn decode_stored_membership(
    record: &pb::StoredMembership,
) -> Result<StoredMembership, CodecError> {
    let membership = record
        .membership
        .as_ref()
        .ok_or(CodecError::Field("membership"))?;
    Ok(StoredMembership::new(
        record.id.as_ref().map(decode_log_id),
        decode_membership(membership)?,
    ))
}
