//! The types Raft runs with here. Nothing in this file leaves the crate.

use std::fmt;
use std::sync::Arc;

use crate::command::{Applied, Command, CommandError};
use crate::ids::{BrokerId, DirectoryId};

openraft::declare_raft_types!(
    /// Raft identities are data-directory ids: whoever comes back with an empty disk has forgotten
    /// its votes and is somebody else. One leader per term, so that a log id is (term, index).
    pub(crate) Types:
        D = Proposal,
        R = Vec<Result<Applied, CommandError>>,
        NodeId = DirectoryId,
        Node = MemberNode,
        LeaderId = openraft::vote::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Membership = openraft::Membership<DirectoryId, MemberNode>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;

/// The position of an entry.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    // Who led the term is not part of it: there is one leader per term.
    LogId::new(
        openraft::vote::leader_id_std::CommittedLeaderId::new(term),
        index,
    )
}

/// A command on its way through the log; shared, because the log, the replication streams and the
/// state machine each want it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Proposal(pub(crate) Arc<Command>);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// What the membership says about a member, beside its directory id.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct MemberNode {
    /// The broker that runs it.
    pub(crate) broker: BrokerId,
    /// `host:port` of its gRPC listener.
    pub(crate) address: String,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broker {} at {}", self.broker, self.address)
    }
}
