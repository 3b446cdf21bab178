//! Why something was not done: Kafka's error code and a sentence for the operator. The one place where errors of the
//! metadata quorum become Kafka's.

use std::fmt;

use kittiwake_raft::{CommandError, MembershipError, MembershipRefusal, ProposeError};

use super::placement::PlacementError;
use crate::api::ErrorCode;

/// A request, or one item of it, was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// What Kafka calls it.
    pub code: ErrorCode,
    /// What an operator is told.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// No topic of this name.
    pub fn unknown_topic(name: &str) -> Self {
        Self::new(
            ErrorCode::UnknownTopicOrPartition,
            format!("Topic '{name}' does not exist."),
        )
    }

    /// The quorum did not say what became of it.
    pub(super) fn no_answer() -> Self {
        Self::new(
            ErrorCode::UnknownServerError,
            "The metadata quorum gave no result.",
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Refusal {}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        let code = match &error {
            CommandError::UnknownBroker(_) => ErrorCode::BrokerIdNotRegistered,
            CommandError::StaleBrokerEpoch { .. } => ErrorCode::StaleBrokerEpoch,
            CommandError::FencedSince { .. } => ErrorCode::BrokerNotAvailable,
            CommandError::InvalidRegistration(_)
            | CommandError::BrokerInUse(_)
            | CommandError::InvalidChange(_) => ErrorCode::InvalidRequest,
            // Kafka has no code of its own for the collision.
            CommandError::InvalidTopicName(_) | CommandError::TopicNameCollision(_) => {
                ErrorCode::InvalidTopicException
            }
            CommandError::TopicExists(_) => ErrorCode::TopicAlreadyExists,
            CommandError::UnknownTopic | CommandError::UnknownPartition => {
                ErrorCode::UnknownTopicOrPartition
            }
            CommandError::InvalidPartitions(_) => ErrorCode::InvalidPartitions,
            CommandError::InvalidReplicas(_) | CommandError::IneligibleReplica(_) => {
                ErrorCode::InvalidReplicaAssignment
            }
            CommandError::StaleLeaderEpoch { .. } => ErrorCode::FencedLeaderEpoch,
            CommandError::StalePartitionEpoch { .. } | CommandError::ConfigChanged(_) => {
                ErrorCode::InvalidUpdateVersion
            }
            CommandError::InvalidConfig { .. } => ErrorCode::InvalidConfig,
            CommandError::InvalidProducerIds(_) => ErrorCode::UnknownServerError,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        let code = match &error {
            // A client that is told so looks for the controller again, which is what a stopping node wants of it too.
            ProposeError::NotController { .. } | ProposeError::Stopped(_) => {
                ErrorCode::NotController
            }
            ProposeError::Unavailable => ErrorCode::RequestTimedOut,
            ProposeError::Rejected(_) => ErrorCode::InvalidRequest,
        };
        Self::new(code, error.to_string())
    }
}

impl From<MembershipError> for Refusal {
    fn from(error: MembershipError) -> Self {
        let code = match &error {
            MembershipError::Refused(MembershipRefusal::UnknownMember(_)) => {
                ErrorCode::BrokerIdNotRegistered
            }
            MembershipError::Refused(MembershipRefusal::Invalid(_)) => ErrorCode::InvalidRequest,
            MembershipError::Refused(
                MembershipRefusal::LastVoter(_)
                | MembershipRefusal::NotCaughtUp(_)
                | MembershipRefusal::InProgress,
            ) => ErrorCode::PolicyViolation,
            MembershipError::NotController { .. } | MembershipError::Stopped(_) => {
                ErrorCode::NotController
            }
            MembershipError::Unavailable => ErrorCode::RequestTimedOut,
        };
        Self::new(code, error.to_string())
    }
}

impl From<PlacementError> for Refusal {
    fn from(error: PlacementError) -> Self {
        Self::new(ErrorCode::InvalidReplicationFactor, error.to_string())
    }
}
