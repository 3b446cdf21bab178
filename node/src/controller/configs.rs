//! Configuration of topics and brokers: described, altered.
//!
//! Dynamic broker configuration is the defaults of topics (`log.retention.ms` and the like) and the keys of
//! [`DYNAMIC_KEYS`](crate::config::dynamic::DYNAMIC_KEYS), for all brokers or for one. Everything else about a broker is in
//! its configuration file and read-only here.

mod alter;
mod describe;

pub use alter::{Alteration, KeyChange, Operation, alter_configs};
pub use describe::{ConfigEntry, Synonym, describe_configs};

use kittiwake_raft::{BrokerId, ConfigResource};

use super::Refusal;
use crate::api::ErrorCode;

/// Resource types of the config APIs (`org.apache.kafka.common.config.ConfigResource.Type`).
pub mod resource_type {
    /// A topic.
    pub const TOPIC: i8 = 2;
    /// A broker, or with an empty name all of them.
    pub const BROKER: i8 = 4;
    /// The loggers of a broker.
    pub const BROKER_LOGGER: i8 = 8;
    /// A subscription to clients' metrics (KIP-714).
    pub const CLIENT_METRICS: i8 = 16;
    /// A consumer group (KIP-848).
    pub const GROUP: i8 = 32;
}

/// The resource a request names.
///
/// # Errors
/// INVALID_REQUEST for types that have no configuration here and for names that are no broker's number.
pub fn resource(kind: i8, name: &str) -> Result<ConfigResource, Refusal> {
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidRequest, message));
    match kind {
        resource_type::TOPIC => Ok(ConfigResource::Topic(name.to_owned())),
        resource_type::BROKER if name.is_empty() => Ok(ConfigResource::Broker(None)),
        resource_type::BROKER => match name.parse() {
            Ok(id) => Ok(ConfigResource::Broker(Some(BrokerId(id)))),
            Err(_) => refuse(format!("{name:?} is not a broker id")),
        },
        resource_type::BROKER_LOGGER => {
            refuse("Loggers are configured by log.level in the broker's configuration file.".into())
        }
        resource_type::CLIENT_METRICS => refuse("Client metrics are not supported.".into()),
        resource_type::GROUP => refuse("Groups have no configuration of their own.".into()),
        other => refuse(format!("Unknown resource type {other}.")),
    }
}
