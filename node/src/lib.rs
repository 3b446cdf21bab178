//! The node: listeners, Kafka APIs, partitions, coordinators, administration.
//!
//! A produce goes `wire` → `api::produce` → `partition` → storage and back; a fetch goes `wire` → `api::fetch` →
//! `partition` → storage (slice) → `wire::send_plan` → `sendfile`. Nothing points backwards.
#![deny(unsafe_code)]

mod admin;
pub mod api;
pub mod broker;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod coordinator;
mod grpc;
pub mod http;
mod listeners;
pub mod metrics;
mod node;
pub mod partition;
pub mod replication;
pub mod wire;

pub use node::{Bound, run};
