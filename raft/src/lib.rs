//! The metadata quorum: who is in the cluster, which topics there are, who leads what.
//!
//! One Raft group agrees on a log of [`Command`]s; applying them in order gives the
//! [`ClusterImage`]. A node opens its [`MetadataQuorum`], proposes commands to it (they are
//! forwarded to the controller, the group's leader), and acts on the images it watches. An entry's index is its
//! *metadata offset*: what Kafka calls so, and what broker epochs are made of.
//!
//! ```text
//! propose ─▶ openraft ─▶ log_store ─▶ writer thread ─▶ redb, fsync ─▶ acknowledged
//!               │            └─ transport ─▶ the other members
//!               └─▶ state_machine ─▶ image::apply ─▶ published: image(), watch()
//! ```
//!
//! - `image/` decides: pure, deterministic, no I/O.
//! - `codec/` is the only place that knows both our types and the protobuf records.
//! - `log_store/` keeps votes, entries and snapshots; nothing is acknowledged before it is fsynced.
//! - `forward.rs` brings a proposal to the controller; `controller.rs` says who that is.
//! - `formation.rs` begins a cluster, `join.rs` has a node taken in, `membership/` decides who is in
//!   the quorum (pure) and `steward.rs` carries it out on the controller.
//! - `transport/` is the gRPC between members, `local.rs` what all of this knows of the node itself.
//!
//! No openraft type leaves this crate, in its interface or on disk.
#![forbid(unsafe_code)]

mod codec;
mod command;
mod controller;
mod formation;
mod forward;
mod ids;
pub mod image;
mod join;
mod local;
mod log_store;
mod membership;
mod options;
mod quorum;
mod snapshot;
mod state_machine;
mod steward;
mod transport;
mod types;

pub use command::{
    Applied, Command, CommandError, ConfigChange, ConfigResource, Damage, Election, IsrMember,
    LastStop, NewPartitions, NewTopic, Outcome, PartitionChange, Reassignment, RegisterBroker,
    Requester,
};
pub use controller::{Controller, NoLeader};
pub use forward::ProposeError;
pub use ids::{
    BrokerEpoch, BrokerId, DirectoryId, IncarnationId, ParseIdError, PartitionEpoch, TopicId,
};
pub use image::{Broker, ClusterImage, Endpoint, Partition, Topic};
pub use membership::{MembershipError, MembershipRefusal};
pub use options::QuorumOptions;
pub use quorum::{Member, MetadataQuorum, OpenError, QuorumStatus};
pub use transport::RaftService;
