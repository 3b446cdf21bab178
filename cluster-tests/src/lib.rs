//! Drives real Kittiwake processes from outside: the harness of every system test.
//!
//! ```no_run
//! use cluster_tests::{Cluster, Options};
//!
//! let mut cluster = Cluster::with(Options::nodes(1).config("log.segment.bytes", 1 << 20))?;
//! let clients = cluster.bootstrap(); // for any Kafka client
//! cluster.node(0).kill()?;           // kill -9
//! let ready_after = cluster.node(0).start()?;
//! # anyhow::Ok(())
//! ```
//!
//! - [`Cluster`] starts nodes on free ports in a temporary directory and takes all of it down again, whatever happens.
//! - [`Node`] kills, stops, hangs, resumes and restarts one of them, reads its metrics, memory and log.
//! - [`history`] and [`checker`] record what clients did and saw and judge it; [`workload`] makes such histories.
//! - [`wire`] speaks the Kafka protocol by hand, for frames that no client library would send.
//!
//! The crate knows nothing of the node's inside: it is given a binary, a configuration file and sockets.
#![forbid(unsafe_code)]

mod binary;
pub mod checker;
mod cluster;
pub mod history;
mod http;
mod janitor;
mod metrics;
mod network;
mod node;
pub mod pauses;
mod ports;
pub mod privileges;
pub mod strace;
pub mod trials;
pub mod view;
pub mod wait;
pub mod wire;
pub mod workload;

pub use cluster::{Cluster, Options};
pub use metrics::Metrics;
pub use network::CutFrom;
pub use node::{Node, START_DEADLINE, STOP_DEADLINE, run_kittiwake};
