//! A member of a classic group.

use std::sync::Arc;

use bytes::Bytes;

use super::ReplyId;
use crate::coordinator::offsets_log::MemberMetadata;

/// One of the assignment protocols a member can take part in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Protocol {
    /// Name, `range` for one.
    pub name: Arc<str>,
    /// What the leader needs to know of the member, subscription included.
    pub metadata: Bytes,
}

/// A member of a classic group.
#[derive(Clone, Debug)]
pub struct Member {
    /// Group instance id of a static member.
    pub instance_id: Option<Arc<str>>,
    /// Client id of its last JoinGroup.
    pub client_id: Arc<str>,
    /// Address of its last JoinGroup.
    pub client_host: Arc<str>,
    /// How long the others wait for it in a rebalance, in milliseconds.
    pub rebalance_timeout_ms: i32,
    /// How long it may stay silent, in milliseconds.
    pub session_timeout_ms: i32,
    /// Protocols it offers, the preferred one first.
    pub protocols: Vec<Protocol>,
    /// Its share of the work in this generation.
    pub assignment: Bytes,
    /// Its JoinGroup waits for the join phase to end.
    pub(super) joining: Option<ReplyId>,
    /// Its SyncGroup waits for the assignment.
    pub(super) syncing: Option<ReplyId>,
    /// It has joined no generation yet.
    pub(super) is_new: bool,
}

impl Member {
    pub(super) fn restore(stored: &MemberMetadata, protocol: Option<&Arc<str>>) -> Self {
        Self {
            instance_id: stored.instance_id.clone(),
            client_id: stored.client_id.clone(),
            client_host: stored.client_host.clone(),
            rebalance_timeout_ms: stored.rebalance_timeout_ms,
            session_timeout_ms: stored.session_timeout_ms,
            protocols: vec![Protocol {
                name: protocol.cloned().unwrap_or_default(),
                metadata: stored.subscription.clone(),
            }],
            assignment: stored.assignment.clone(),
            joining: None,
            syncing: None,
            is_new: false,
        }
    }

    pub(super) fn stored(
        &self,
        member_id: &Arc<str>,
        protocol: Option<&Arc<str>>,
    ) -> MemberMetadata {
        MemberMetadata {
            member_id: member_id.clone(),
            instance_id: self.instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            session_timeout_ms: self.session_timeout_ms,
            subscription: protocol
                .and_then(|protocol| self.metadata(protocol))
                .cloned()
                .unwrap_or_default(),
            assignment: self.assignment.clone(),
        }
    }

    /// Its metadata for one protocol.
    pub fn metadata(&self, protocol: &str) -> Option<&Bytes> {
        self.protocols
            .iter()
            .find(|offered| &*offered.name == protocol)
            .map(|offered| &offered.metadata)
    }

    pub(super) fn is_static(&self) -> bool {
        self.instance_id.is_some()
    }

    /// Whether silence is what is expected of it: it waits for us. A new member may wait too, but not
    /// for ever, because its client may have gone and joined again as somebody else.
    pub(super) fn is_excused(&self) -> bool {
        !self.is_new && (self.joining.is_some() || self.syncing.is_some())
    }
}
