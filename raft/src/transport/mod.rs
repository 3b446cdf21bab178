//! What members of the quorum send each other, over gRPC (`kittiwake.raft.v1`).
//!
//! Every call has a deadline: a member that hangs, or a connection that swallows packets, costs a
//! round, not the leader's attention.

mod client;
mod connection;
mod messages;
mod server;

pub(crate) use client::{Network, describe, join};
pub(crate) use connection::{AddressBook, Connection};
pub use server::RaftService;

/// Largest message that is accepted: a full read of the log ([`READ_BYTES_MAX`]) or one command of
/// the largest size, with room for what is around them.
///
/// [`READ_BYTES_MAX`]: crate::log_store::READ_BYTES_MAX
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Part of a snapshot that is sent in one message.
const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;

/// Largest snapshot that is accepted: millions of partitions.
const SNAPSHOT_BYTES_MAX: usize = 1024 * 1024 * 1024;
