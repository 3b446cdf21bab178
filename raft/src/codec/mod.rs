//! From the crate's types to the protobuf records of `metadata/v1` and back.
//!
//! Decoding is strict: what this version would not have written is an error, never a default. A
//! node that guessed would have another image than its peers.

mod command;
mod image;
mod log;
mod outcome;

use kittiwake_proto::metadata::v1 as pb;

use crate::ids::{BrokerId, DirectoryId, IncarnationId, TopicId};
use crate::image::Endpoint;

pub(crate) use command::{decode_command, encode_command};
pub(crate) use image::{decode_image, encode_image};
pub(crate) use log::{
    decode_entry, decode_log_id, decode_stored_membership, decode_vote, encode_entry,
    encode_log_id, encode_stored_membership, encode_vote,
};
pub(crate) use outcome::{decode_outcome, encode_outcome};

/// A record that this version cannot have written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// Not protobuf, or not this message.
    #[error("not a valid record: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Not the bytes that were written.
    #[error("the checksum does not match")]
    Checksum,
    /// A field is missing or out of its range.
    #[error("field {0} is missing or invalid")]
    Field(&'static str),
    /// Written by a later version: skipping it would make this node's image another one.
    #[error(
        "command type {command_type} version {version} is not known to this version of Kittiwake; \
         run the version that wrote it or a later one"
    )]
    UnknownCommand {
        /// Its type number.
        command_type: u32,
        /// Its version.
        version: u32,
    },
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

fn bytes16(bytes: &[u8], field: &'static str) -> Result<[u8; 16], CodecError> {
    bytes.try_into().map_err(|_| CodecError::Field(field))
}

fn topic_id(bytes: &[u8]) -> Result<TopicId, CodecError> {
    TopicId::from_bytes(bytes16(bytes, "topic id")?).ok_or(CodecError::Field("topic id"))
}

pub(crate) fn directory_id(bytes: &[u8]) -> Result<DirectoryId, CodecError> {
    DirectoryId::from_bytes(bytes16(bytes, "directory id")?)
        .ok_or(CodecError::Field("directory id"))
}

fn incarnation_id(bytes: &[u8]) -> Result<IncarnationId, CodecError> {
    IncarnationId::from_bytes(bytes16(bytes, "incarnation id")?)
        .ok_or(CodecError::Field("incarnation id"))
}

fn numbers(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|broker| broker.0).collect()
}

fn brokers(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId).collect()
}

fn encode_endpoints(endpoints: &[Endpoint]) -> Vec<pb::Endpoint> {
    endpoints
        .iter()
        .map(|endpoint| pb::Endpoint {
            listener: endpoint.listener.clone(),
            host: endpoint.host.clone(),
            port: u32::from(endpoint.port),
        })
        .collect()
}

fn decode_endpoints(endpoints: Vec<pb::Endpoint>) -> Result<Vec<Endpoint>, CodecError> {
    endpoints
        .into_iter()
        .map(|endpoint| {
            Ok(Endpoint {
                listener: endpoint.listener,
                host: endpoint.host,
                port: u16::try_from(endpoint.port).map_err(|_| CodecError::Field("port"))?,
            })
        })
        .collect()
}
