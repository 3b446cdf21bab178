//! Partitions on this node.
//!
//! [`leader`] decides (pure), [`replica`] is one partition's log with what waits for it, [`manager`] keeps the set of
//! them in step with the cluster image. Nothing here knows the Kafka protocol beyond its error codes.

pub mod housekeeping;
pub mod leader;
pub mod manager;
mod replica;

pub use manager::PartitionManager;
pub use replica::{Acks, AppendRefused, FetchWaiter, Partition, ReaderRegistration, Settings};
