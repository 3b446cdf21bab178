//! How many connections the gRPC listener has, by who they are of.
//!
//! Other nodes and operators have places of their own, so that a flood of the ones does not lock the others out. Who it is
//! shows in a connection's first request. Until then it has one of a few places for those that have not asked anything yet;
//! they are given back soon, by a request or by a deadline.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Status};
use tracing::info;

/// Connections that have not asked anything yet. Further ones wait in the socket's backlog.
pub(super) const UNASKED_MAX: usize = 64;
/// Every node has a few.
pub(super) const NODES_MAX: usize = 256;
/// Administrators and their tools, health checks.
pub(super) const OPERATORS_MAX: usize = 256;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Peer {
    /// Another node: the metadata quorum, heartbeats.
    Node,
    /// Whoever asks for anything else.
    Operator,
}

/// The places of one listener.
#[derive(Clone, Debug)]
pub(super) struct Places {
    unasked: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
    operators: Arc<Semaphore>,
}

impl Places {
    pub(super) fn new() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            unasked: places(UNASKED_MAX),
            nodes: places(NODES_MAX),
            operators: places(OPERATORS_MAX),
        }
    }

    /// Waits for a place of a connection that has not asked anything yet.
    ///
    /// # Errors
    /// None: the places are never closed.
    pub(super) async fn arrive(&self) -> Result<Arc<Place>, AcquireError> {
        let permit = Arc::clone(&self.unasked).acquire_owned().await?;
        Ok(Arc::new(Place {
            places: self.clone(),
            standing: Mutex::new((None, permit)),
            refused: CancellationToken::new(),
        }))
    }

    fn of(&self, peer: Peer) -> &Arc<Semaphore> {
        match peer {
            Peer::Node => &self.nodes,
            Peer::Operator => &self.operators,
        }
    }
}

/// The place of one connection, given back with the last of it.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    /// Who it is of, once it has asked something.
    standing: Mutex<(Option<Peer>, OwnedSemaphorePermit)>,
    refused: CancellationToken,
}

impl Place {
    /// Whether it is known who it is of.
    pub(super) fn has_asked(&self) -> bool {
        self.standing.lock().0.is_some()
    }

    /// Completes when the connection was refused a place among its like.
    pub(super) fn refused(&self) -> WaitForCancellationFutureOwned {
        self.refused.clone().cancelled_owned()
    }

    /// A request has come from this peer. The first one decides where the connection belongs.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when there is no place left; the connection is about to be closed.
    fn ask(&self, peer: Peer) -> Result<(), Status> {
        let mut standing = self.standing.lock();
        if standing.0.is_some() {
            return Ok(());
        }
        match Arc::clone(self.places.of(peer)).try_acquire_owned() {
            Ok(permit) => {
                *standing = (Some(peer), permit);
                Ok(())
            }
            Err(_) => {
                info!(
                    ?peer,
                    "a gRPC connection was refused at the limit of its kind"
                );
                self.refused.cancel();
                let message = match peer {
                    Peer::Node => "too many gRPC connections of nodes",
                    Peer::Operator => "too many gRPC connections of operators and their tools",
                };
                Err(Status::resource_exhausted(message))
            }
        }
    }
}

/// An interceptor of the services that are for this peer.
pub(super) fn of(
    peer: Peer,
) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| {
        // What does not come by the listener has no place, and needs none.
        if let Some(place) = request.extensions().get::<Arc<Place>>() {
            place.ask(peer)?;
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{Future as _, poll_fn};
    use std::task::Poll;

    async fn arrive_and_ask(places: &Places, peer: Peer) -> Result<Arc<Place>, Status> {
        let place = places.arrive().await.unwrap();
        place.ask(peer).map(|()| place)
    }

    #[tokio::test]
    async fn a_flood_of_one_kind_leaves_the_places_of_the_other() {
        for (flood, other, count) in [
            (Peer::Operator, Peer::Node, OPERATORS_MAX),
            (Peer::Node, Peer::Operator, NODES_MAX),
        ] {
            let places = Places::new();
            let mut kept = Vec::new();
            for _ in 0..count {
                kept.push(arrive_and_ask(&places, flood).await.unwrap());
            }
            let refused = places.arrive().await.unwrap();
            let status = refused.ask(flood).unwrap_err();
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
            refused.refused().await;
            kept.push(arrive_and_ask(&places, other).await.unwrap());
            kept.remove(0);
            arrive_and_ask(&places, flood).await.unwrap();
        }
    }

    #[tokio::test]
    async fn whoever_has_not_asked_holds_nobody_up_that_asks() {
        let places = Places::new();
        let mut silent = Vec::new();
        for _ in 1..UNASKED_MAX {
            silent.push(places.arrive().await.unwrap());
        }
        // One place is enough for any number that ask.
        let mut kept = Vec::new();
        for _ in 0..NODES_MAX {
            kept.push(arrive_and_ask(&places, Peer::Node).await.unwrap());
        }
        silent.push(places.arrive().await.unwrap());
        let next = places.arrive();
        tokio::pin!(next);
        let poll = poll_fn(|context| Poll::Ready(next.as_mut().poll(context)));
        assert!(poll.await.is_pending());
        silent.pop();
        next.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_stays_what_its_first_request_made_it() {
        let places = Places::new();
        let place = arrive_and_ask(&places, Peer::Node).await.unwrap();
        place.ask(Peer::Operator).unwrap();
        assert_eq!(places.operators.available_permits(), OPERATORS_MAX);
        assert_eq!(places.nodes.available_permits(), NODES_MAX - 1);
        drop(place);
        assert_eq!(places.nodes.available_permits(), NODES_MAX);
    }
}
