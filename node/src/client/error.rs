//! What can go wrong between a client and a cluster, each said in one sentence.

use std::io;
use std::time::Duration;

use kafka_wire_core::{DecodeError, EncodeError};
use kafka_wire_records::RecordError;

use crate::api::error::ErrorCode;

/// Why a request, or the work made of several, did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An address that is not `HOST:PORT`, or a list without one.
    #[error("{address:?} is not a bootstrap address: give HOST:PORT[,HOST:PORT...]")]
    BadAddress {
        /// The text as given.
        address: String,
    },
    /// No TCP connection.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// HOST:PORT.
        address: String,
        /// connect(2)'s reason, or the name lookup's.
        reason: io::Error,
    },
    /// None of the bootstrap addresses answered; holds the last one's reason.
    #[error("no broker of {bootstrap} answers: {reason}")]
    NoBroker {
        /// The bootstrap list.
        bootstrap: String,
        /// The last address's failure.
        reason: Box<ClientError>,
    },
    /// The connection broke with requests in flight or before one could be sent.
    #[error("the connection to {address} broke: {reason}")]
    Broken {
        /// HOST:PORT.
        address: String,
        /// The socket's reason; `UnexpectedEof` when the broker closed it.
        reason: io::Error,
    },
    /// No answer in time.
    #[error("{address} did not answer a {api} request within {} ms", timeout.as_millis())]
    Timeout {
        /// HOST:PORT.
        address: String,
        /// The request's name.
        api: &'static str,
        /// The deadline it missed.
        timeout: Duration,
    },
    /// An answer that is not one to what was asked.
    #[error("{address} does not speak Kafka's protocol: {reason}")]
    Protocol {
        /// HOST:PORT.
        address: String,
        /// What was wrong with the answer.
        reason: String,
    },
    /// No version in common.
    #[error(
        "{address} has no version of {api} in common with this client ({ours} here, {theirs} there)"
    )]
    UnsupportedApi {
        /// HOST:PORT.
        address: String,
        /// The request's name.
        api: &'static str,
        /// Our range.
        ours: String,
        /// The broker's range, or "none".
        theirs: String,
    },
    /// A request that cannot be put on the wire.
    #[error("the {api} request cannot be encoded: {reason}")]
    Encode {
        /// The request's name.
        api: &'static str,
        /// The codec's reason.
        reason: EncodeError,
    },
    /// A response that cannot be read.
    #[error("the {api} response of {address} cannot be decoded: {reason}")]
    Decode {
        /// HOST:PORT.
        address: String,
        /// The request's name.
        api: &'static str,
        /// The codec's reason.
        reason: DecodeError,
    },
    /// Records that cannot be encoded, or that came back damaged.
    #[error("records of {subject}: {reason}")]
    Records {
        /// `topic-partition`, or what the records were for.
        subject: String,
        /// The codec's reason.
        reason: RecordError,
    },
    /// The broker's own refusal.
    #[error("{subject}: {}{}", code_name(*code), detail(message))]
    Refused {
        /// What was refused: `topic-partition`, a topic.
        subject: String,
        /// Kafka's error code.
        code: i16,
        /// The broker's words, where it gave some.
        message: Option<String>,
    },
    /// A partition number the topic does not have.
    #[error("topic {topic} has partitions 0 to {}, not {partition}", partitions - 1)]
    NoPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: i32,
        /// How many there are.
        partitions: usize,
    },
    /// Retries ran out; holds the last reason.
    #[error("gave up after {} ms: {reason}", after.as_millis())]
    GaveUp {
        /// How long it was tried.
        after: Duration,
        /// The last failure.
        reason: Box<ClientError>,
    },
}

fn detail(message: &Option<String>) -> String {
    message
        .as_ref()
        .map_or_else(String::new, |text| format!(" ({text})"))
}

/// Kafka's name of an error code; the number where we do not know it.
fn code_name(code: i16) -> String {
    ErrorCode::from_code(code)
        .map_or_else(|| format!("error {code}"), |known| known.name().to_owned())
}

impl ClientError {
    pub(crate) fn refused(subject: impl Into<String>, code: i16, message: Option<&str>) -> Self {
        Self::Refused {
            subject: subject.into(),
            code,
            message: message.filter(|text| !text.is_empty()).map(str::to_owned),
        }
    }

    /// Whether the same request can succeed later or at another broker: Kafka's `RetriableException`
    /// codes that data requests meet, and everything that says the connection, not the request, failed.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::NoBroker { .. }
            | Self::Broken { .. }
            | Self::Timeout { .. } => true,
            Self::Refused { code, .. } => ErrorCode::from_code(*code).is_some_and(is_retriable),
            _ => false,
        }
    }

    /// Whether the broker refused with exactly this code.
    pub(crate) fn is_refusal(&self, expected: ErrorCode) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == expected.code())
    }
}

fn is_retriable(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::UnknownTopicOrPartition
            | ErrorCode::LeaderNotAvailable
            | ErrorCode::NotLeaderOrFollower
            | ErrorCode::RequestTimedOut
            | ErrorCode::BrokerNotAvailable
            | ErrorCode::ReplicaNotAvailable
            | ErrorCode::NotEnoughReplicas
            | ErrorCode::NotEnoughReplicasAfterAppend
            | ErrorCode::NotController
            | ErrorCode::KafkaStorageError
            | ErrorCode::FencedLeaderEpoch
            | ErrorCode::UnknownLeaderEpoch
            | ErrorCode::OffsetNotAvailable
            | ErrorCode::ThrottlingQuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_one_sentence() {
        let error = ClientError::refused("logs-3", 10, Some("record of 2 MiB"));
        assert_eq!(
            error.to_string(),
            "logs-3: MESSAGE_TOO_LARGE (record of 2 MiB)"
        );
        assert_eq!(
            ClientError::refused("logs-3", 999, None).to_string(),
            "logs-3: error 999"
        );
    }

    #[test]
    fn only_what_can_pass_later_is_retried() {
        assert!(ClientError::refused("t-0", 6, None).is_retriable());
        assert!(!ClientError::refused("t-0", 10, None).is_retriable());
        assert!(!ClientError::refused("t-0", 999, None).is_retriable());
    }
}
