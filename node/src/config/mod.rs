//! Configuration: Kafka's property names, typed once, every fault reported.

pub mod broker;
pub mod kind;
pub mod topic;

pub use broker::BrokerConfig;
pub use topic::TopicConfig;
