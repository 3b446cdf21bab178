//! What the group coordinator refuses, in Kafka's words.

use std::fmt;

use crate::api::ErrorCode;

/// Why a request about a group was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GroupError {
    /// No coordinator can be named right now (no internal topic yet, its log refuses appends, or a
    /// record did not become durable in time): look it up again and retry.
    CoordinatorNotAvailable,
    /// This node still reads the group's partition of `__consumer_offsets`.
    CoordinatorLoadInProgress,
    /// This node does not lead the group's partition of `__consumer_offsets`.
    NotCoordinator,
    /// The group id is empty or longer than a record's key can hold.
    InvalidGroupId,
    /// No such group.
    GroupIdNotFound,
    /// The group has members.
    NonEmptyGroup,
    /// The group has as many members as `group.max.size` allows.
    GroupMaxSizeReached,
    /// A member of the group is subscribed to the topic.
    GroupSubscribedToTopic,
    /// Session timeout outside `group.min.session.timeout.ms` and `group.max.session.timeout.ms`.
    InvalidSessionTimeout,
    /// The member shares no protocol with the rest of the group, or names another type or protocol.
    InconsistentGroupProtocol,
    /// Join again with the member id in the answer (KIP-394).
    MemberIdRequired,
    /// The group does not know this member.
    UnknownMemberId,
    /// Another member took over this group instance id (KIP-345).
    FencedInstanceId,
    /// Not the group's current generation.
    IllegalGeneration,
    /// The group is rebalancing: join again.
    RebalanceInProgress,
    /// A commit's metadata is longer than `offset.metadata.max.bytes`.
    OffsetMetadataTooLarge,
    /// The records of one commit do not fit into one batch.
    InvalidCommitOffsetSize,
    /// No such topic or partition.
    UnknownTopicOrPartition,
    /// No topic has this id.
    UnknownTopicId,
    /// The request makes no sense.
    InvalidRequest,
    /// The group's metadata is larger than a batch of the internal topic may be.
    UnknownServerError,
}

impl GroupError {
    /// Kafka's code for it.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::CoordinatorNotAvailable => ErrorCode::CoordinatorNotAvailable,
            Self::CoordinatorLoadInProgress => ErrorCode::CoordinatorLoadInProgress,
            Self::NotCoordinator => ErrorCode::NotCoordinator,
            Self::InvalidGroupId => ErrorCode::InvalidGroupId,
            Self::GroupIdNotFound => ErrorCode::GroupIdNotFound,
            Self::NonEmptyGroup => ErrorCode::NonEmptyGroup,
            Self::GroupMaxSizeReached => ErrorCode::GroupMaxSizeReached,
            Self::GroupSubscribedToTopic => ErrorCode::GroupSubscribedToTopic,
            Self::InvalidSessionTimeout => ErrorCode::InvalidSessionTimeout,
            Self::InconsistentGroupProtocol => ErrorCode::InconsistentGroupProtocol,
            Self::MemberIdRequired => ErrorCode::MemberIdRequired,
            Self::UnknownMemberId => ErrorCode::UnknownMemberId,
            Self::FencedInstanceId => ErrorCode::FencedInstanceId,
            Self::IllegalGeneration => ErrorCode::IllegalGeneration,
            Self::RebalanceInProgress => ErrorCode::RebalanceInProgress,
            Self::OffsetMetadataTooLarge => ErrorCode::OffsetMetadataTooLarge,
            Self::InvalidCommitOffsetSize => ErrorCode::InvalidCommitOffsetSize,
            Self::UnknownTopicOrPartition => ErrorCode::UnknownTopicOrPartition,
            Self::UnknownTopicId => ErrorCode::UnknownTopicId,
            Self::InvalidRequest => ErrorCode::InvalidRequest,
            Self::UnknownServerError => ErrorCode::UnknownServerError,
        }
    }
}

/// The code of a result that carries nothing else.
pub(crate) fn code_of(result: Result<(), GroupError>) -> i16 {
    result.map_or_else(|error| error.code().code(), |()| ErrorCode::None.code())
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CoordinatorNotAvailable => "the coordinator is not available",
            Self::CoordinatorLoadInProgress => "the coordinator is loading",
            Self::NotCoordinator => "this node is not the group's coordinator",
            Self::InvalidGroupId => "the group id is invalid",
            Self::GroupIdNotFound => "the group does not exist",
            Self::NonEmptyGroup => "the group is not empty",
            Self::GroupMaxSizeReached => "the group is full",
            Self::GroupSubscribedToTopic => "the group is subscribed to the topic",
            Self::InvalidSessionTimeout => "the session timeout is out of range",
            Self::InconsistentGroupProtocol => "the group protocol is inconsistent",
            Self::MemberIdRequired => "a member id is required",
            Self::UnknownMemberId => "the member is unknown",
            Self::FencedInstanceId => "the group instance id is fenced",
            Self::IllegalGeneration => "the generation is not current",
            Self::RebalanceInProgress => "the group is rebalancing",
            Self::OffsetMetadataTooLarge => "the offset metadata is too large",
            Self::InvalidCommitOffsetSize => "the commit is too large",
            Self::UnknownTopicOrPartition => "no such topic or partition",
            Self::UnknownTopicId => "no such topic id",
            Self::InvalidRequest => "the request is invalid",
            Self::UnknownServerError => "the group's metadata could not be stored",
        })
    }
}

impl std::error::Error for GroupError {}
