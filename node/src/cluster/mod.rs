//! The life of a node in a cluster: it registers, is heard, is fenced and comes back, and leaves.
//!
//! - `voter`: this node hears the others' heartbeats and answers them; as the controller it lets them lead.
//! - `heartbeat`: this node is heard by every voter, and keeps its [`ControllerLease`].
//! - `membership`: it registers, is unfenced, and is unfenced again after it was taken for dead.
//! - `expulsion`: it learns that it was removed, or replaced by another process.
//! - `leave`: a planned stop moves leadership away first.
//!
//! Who is dead is decided in [`crate::controller::liveness`], and carried out in `crate::controller::fencing`.

mod expulsion;
mod heartbeat;
mod lease;
pub(crate) mod leave;
pub(crate) mod membership;
mod service;
mod voter;

pub(crate) use expulsion::Expulsion;
pub(crate) use heartbeat::{Heartbeats, identify};
pub use lease::ControllerLease;
pub(crate) use service::ClusterService;
pub(crate) use voter::Voter;

use kittiwake_proto::kittiwake::cluster::v1::cluster_server::ClusterServer;
use kittiwake_raft::{BrokerEpoch, BrokerId, IncarnationId};

/// The service, as the gRPC listener serves it.
pub(crate) type Server = ClusterServer<ClusterService>;

/// The largest message: a cluster id and a few numbers.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// One registered life of this process.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) cluster_id: String,
    pub(crate) broker: BrokerId,
    pub(crate) incarnation_id: IncarnationId,
    pub(crate) epoch: BrokerEpoch,
}
