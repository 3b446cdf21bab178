//! The node: listeners, Kafka APIs, partitions, coordinators, administration.
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod controller;
pub mod coordinator;
pub mod metrics;
