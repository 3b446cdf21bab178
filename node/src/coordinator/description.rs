//! Groups as administrators see them.

use std::sync::Arc;

use bytes::Bytes;
use kittiwake_raft::ClusterImage;

use super::group::{Group, GroupState};
use super::shard::Entry;

/// One line of a list of groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupListing {
    /// Group id.
    pub group_id: Arc<str>,
    /// `consumer`, `connect`, …; empty for a group that only commits offsets.
    pub protocol_type: Arc<str>,
    /// State.
    pub state: GroupState,
}

impl GroupListing {
    /// Kafka's name of the kind of group: the only one there is here.
    pub const GROUP_TYPE: &str = "Classic";

    pub(crate) fn of(group: &Group) -> Self {
        Self {
            group_id: group.id().clone(),
            protocol_type: group.protocol_type().cloned().unwrap_or_default(),
            state: group.state(),
        }
    }
}

/// Everything about one group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupDescription {
    /// Group id, protocol type and state.
    pub listing: GroupListing,
    /// Generation.
    pub generation: i32,
    /// Assignment protocol of this generation.
    pub protocol: Option<Arc<str>>,
    /// Member id of the leader.
    pub leader: Option<Arc<str>>,
    /// Members, by member id.
    pub members: Vec<MemberDescription>,
    /// Committed offsets, by topic and partition; of deleted topics none.
    pub offsets: Vec<OffsetDescription>,
}

/// A member of a group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberDescription {
    /// Member id.
    pub member_id: Arc<str>,
    /// Group instance id of a static member.
    pub instance_id: Option<Arc<str>>,
    /// Client id.
    pub client_id: Arc<str>,
    /// Client address, `/127.0.0.1`.
    pub client_host: Arc<str>,
    /// Metadata for the group's protocol; only while the group is stable.
    pub metadata: Bytes,
    /// Assignment.
    pub assignment: Bytes,
}

/// An offset that a group has committed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OffsetDescription {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Next offset to read.
    pub offset: i64,
    /// What the client kept with it.
    pub metadata: Arc<str>,
    /// When it was committed, in wall-clock milliseconds.
    pub commit_timestamp_ms: i64,
}

impl GroupDescription {
    pub(crate) fn of(entry: &Entry, image: &ClusterImage) -> Self {
        let group = &entry.group;
        let protocol = group
            .protocol()
            .filter(|_| group.state() == GroupState::Stable);
        Self {
            listing: GroupListing::of(group),
            generation: group.generation(),
            protocol: protocol.cloned(),
            leader: group.leader().cloned(),
            members: group
                .members()
                .iter()
                .map(|(member_id, member)| MemberDescription {
                    member_id: member_id.clone(),
                    instance_id: member.instance_id.clone(),
                    client_id: member.client_id.clone(),
                    client_host: member.client_host.clone(),
                    metadata: protocol
                        .and_then(|protocol| member.metadata(protocol))
                        .cloned()
                        .unwrap_or_default(),
                    assignment: member.assignment.clone(),
                })
                .collect(),
            offsets: entry
                .offsets
                .iter()
                .flat_map(|(topic, partitions)| {
                    let current = image.topic_by_name(topic).map(|topic| &**topic);
                    partitions
                        .iter()
                        .filter(move |(_, offset)| offset.is_of(current))
                        .map(|(partition, offset)| OffsetDescription {
                            topic: topic.clone(),
                            partition: *partition,
                            offset: offset.offset,
                            metadata: offset.metadata.clone(),
                            commit_timestamp_ms: offset.commit_timestamp_ms,
                        })
                })
                .collect(),
        }
    }
}
