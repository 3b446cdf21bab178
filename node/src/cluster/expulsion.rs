//! Whether the cluster has given this node's place away.
//!
//! A node reads it in its own image, if that still grows. A voter whose vote has moved to the process that took its id is no
//! member of the quorum any more and hears of nothing: it is told by the voters, in answer to its heartbeats.

use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage};
use tokio::sync::watch;
use tonic::{Code, Status};

/// Why this process must not go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Expelled {
    /// Somebody else has this node's id.
    #[error(
        "another process has registered as node {node_id}: two processes have the same node.id, or \
         this one was taken for dead and replaced"
    )]
    Superseded {
        /// The id.
        node_id: BrokerId,
    },
    /// An operator has removed the node.
    #[error("this node was removed from the cluster")]
    Unregistered,
}

impl Expelled {
    /// As a voter answers a heartbeat.
    pub(super) fn to_status(self) -> Status {
        let code = match self {
            Self::Superseded { .. } => Code::AlreadyExists,
            Self::Unregistered => Code::NotFound,
        };
        Status::new(code, self.to_string())
    }

    /// What a voter's answer to a heartbeat of `node_id` says of it, if it is about that.
    pub(super) fn from_status(node_id: BrokerId, status: &Status) -> Option<Self> {
        match status.code() {
            Code::AlreadyExists => Some(Self::Superseded { node_id }),
            Code::NotFound => Some(Self::Unregistered),
            _ => None,
        }
    }
}

/// Whether the life of a node that was registered with `epoch` is fenced, while it is registered.
pub(super) fn is_fenced(
    image: &ClusterImage,
    node_id: BrokerId,
    epoch: BrokerEpoch,
) -> Result<bool, Expelled> {
    // An epoch is the metadata offset of the registration, which this image may not have yet.
    if u64::try_from(epoch.0).is_ok_and(|registration| image.offset < registration) {
        return Ok(true);
    }
    match image.broker(node_id) {
        None => Err(Expelled::Unregistered),
        Some(registered) if registered.epoch != epoch => Err(Expelled::Superseded { node_id }),
        Some(registered) => Ok(registered.fenced),
    }
}

/// What the voters have said of this life of the node.
#[derive(Debug)]
pub(crate) struct Expulsion(watch::Sender<Option<Expelled>>);

impl Default for Expulsion {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Expulsion {
    /// A voter has said that this node is expelled; there is no way back.
    pub(super) fn set(&self, expelled: Expelled) {
        self.0.send_replace(Some(expelled));
    }

    /// Waits until a voter has said so.
    pub(super) async fn told(&self) -> Expelled {
        let mut said = self.0.subscribe();
        let expelled = said
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|said| *said);
        match expelled {
            Some(expelled) => expelled,
            // The sender is a field of self, and what was waited for is there.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_voter_answers_is_what_the_node_is_told() {
        let node_id = BrokerId(2);
        for expelled in [Expelled::Superseded { node_id }, Expelled::Unregistered] {
            let answer = expelled.to_status();
            assert_eq!(Expelled::from_status(node_id, &answer), Some(expelled));
            let expulsion = Expulsion::default();
            expulsion.set(expelled);
            assert_eq!(expulsion.told().await, expelled);
        }
        for other in [
            Status::unavailable("the registration is not known here yet"),
            Status::failed_precondition("this is cluster 'x'"),
            Status::unimplemented("an older version"),
        ] {
            assert_eq!(Expelled::from_status(node_id, &other), None);
        }
    }
}
