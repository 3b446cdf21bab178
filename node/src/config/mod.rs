//! Configuration: Kafka's property names, typed once, every fault reported.
//!
//! A broker's values come from, the first that has one: the environment (`KITTIWAKE_LOG_RETENTION_MS`
//! is `log.retention.ms`), the file, the key's default.

pub mod address;
pub mod broker;
mod docs;
pub mod dynamic;
mod file;
pub mod kind;
mod load;
pub mod throttled_replicas;
pub mod topic;
pub mod topic_layers;
pub mod value;

pub use broker::{BROKER_KEYS, BrokerConfig, BrokerKey};
pub use docs::markdown;
pub use load::{ENV_PREFIX, Fault, Invalid, LoadError, Loaded, load, load_file};
pub use topic_layers::TopicConfig;
