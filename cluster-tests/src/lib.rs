//! Drives real Kittiwake processes from outside: the harness of every system test.
//!
//! ```no_run
//! use cluster_tests::trials::{Clients, DEADLINE};
//! use cluster_tests::workload::{Load, create_topic};
//! use cluster_tests::{Cluster, Options};
//!
//! let mut cluster = Cluster::with(Options::nodes(3).config("log.segment.bytes", 1 << 20))?;
//! create_topic(&cluster.bootstrap(), "orders", 3, &[])?;
//! let clients = Clients::start(&cluster, Load::of("orders"))?; // idempotent producers, a consumer
//! let leader = cluster.leader("orders", 0, DEADLINE)?;
//! cluster.node(leader).kill()?;                                // kill -9
//! clients.workload.progress_everywhere(DEADLINE)?;             // writes go on without it
//! cluster.node(leader).start()?;
//! cluster.wait_in_sync(DEADLINE)?;                             // back in every ISR
//! clients.finish()?;                                           // fails on any anomaly
//! cluster.conclude(&["orders"], DEADLINE)?;                    // replicas are equal, logs clean
//! # anyhow::Ok(())
//! ```
//!
//! - [`Cluster`] starts nodes on free ports in a temporary directory and takes all of it down again, whatever happens. It
//!   says who leads and who is the controller, waits until all are in sync, cuts nodes off the network (as root), compares
//!   replicas, and runs `kittiwake` commands against a node.
//! - [`Node`] kills, stops, hangs, resumes, empties and restarts one of them, reads its metrics, memory, CPU time, status
//!   and log.
//! - [`view`] is what a node tells Kafka clients of the cluster.
//! - [`history`] and [`checker`] record what clients did and saw and judge it; [`workload`] makes such histories, and
//!   [`pauses`] says how long nothing was acknowledged.
//! - [`trials`] put it together: a load, a fault, and what must be true after it; for tests and for the programs in `bin/`.
//! - [`wire`] speaks the Kafka protocol by hand, for frames that no client library would send; [`strace`] counts how bytes
//!   are sent, and says whether they were on the disk when they were acknowledged.
//! - [`mount`] makes file systems that can be filled and that lose power.
//!
//! Every wait has a deadline. A node that logs an unexpected ERROR fails the test. What needs root is skipped, with a line
//! that says so, or fails, see [`privileges`].
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
pub mod mount;
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
