//! The controller's part in a node: where replicas go, what topics may look like, how brokers come and go.

pub mod placement;
pub mod registration;
