//! The one place where Kafka's errors become gRPC statuses.

use tonic::{Code, Status};

use crate::api::ErrorCode;

/// The status of an error, with a sentence for people.
pub(super) fn status(code: ErrorCode, message: impl Into<String>) -> Status {
    Status::new(grpc_code(code), message)
}

fn grpc_code(code: ErrorCode) -> Code {
    use ErrorCode as E;
    match code {
        E::UnknownTopicOrPartition
        | E::UnknownTopicId
        | E::GroupIdNotFound
        | E::ResourceNotFound => Code::NotFound,
        E::TopicAlreadyExists => Code::AlreadyExists,
        E::InvalidTopicException
        | E::InvalidPartitions
        | E::InvalidReplicationFactor
        | E::InvalidReplicaAssignment
        | E::InvalidConfig
        | E::InvalidGroupId
        | E::InvalidRequest => Code::InvalidArgument,
        E::PolicyViolation
        | E::TopicDeletionDisabled
        | E::NonEmptyGroup
        | E::ElectionNotNeeded
        | E::PreferredLeaderNotAvailable
        | E::EligibleLeadersNotAvailable
        | E::NoReassignmentInProgress
        | E::BrokerIdNotRegistered => Code::FailedPrecondition,
        E::TopicAuthorizationFailed
        | E::GroupAuthorizationFailed
        | E::ClusterAuthorizationFailed => Code::PermissionDenied,
        E::RequestTimedOut => Code::DeadlineExceeded,
        E::NotController
        | E::NotCoordinator
        | E::CoordinatorLoadInProgress
        | E::CoordinatorNotAvailable
        | E::BrokerNotAvailable
        | E::LeaderNotAvailable
        | E::NotLeaderOrFollower
        | E::StaleBrokerEpoch => Code::Unavailable,
        // The other codes belong to the data path; an administrator meets them only through a bug.
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_can_mend_is_told_apart_from_what_time_mends() {
        assert_eq!(
            status(ErrorCode::InvalidConfig, "x").code(),
            Code::InvalidArgument
        );
        assert_eq!(
            status(ErrorCode::NotController, "x").code(),
            Code::Unavailable
        );
        assert_eq!(status(ErrorCode::UnknownServerError, "x").message(), "x");
    }
}
