//! Partitions on this node.
//!
//! [`leader`] and [`follower`] decide (pure), [`replica`] is one partition's log with its role and what waits for it,
//! [`isr`] takes changes of in-sync replicas to the quorum, [`damage`] what was found damaged, [`manager`] keeps the set of
//! partitions in step with the cluster image. Nothing here knows the Kafka protocol beyond its error codes.

pub mod damage;
pub mod follower;
pub mod housekeeping;
pub mod isr;
pub mod leader;
pub mod manager;
mod readers;
mod replica;

#[cfg(test)]
mod simulation_tests;

pub use follower::Continuity;
pub use manager::PartitionManager;
pub use readers::{FetchWaiter, News, ReaderRegistration, Slot};
pub use replica::{
    Acks, AppendRefused, Followed, FollowerFetch, Following, LeaderAnswer, Partition, Settings,
    Throttled, Written,
};
