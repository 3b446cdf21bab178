//! This node as a voter: what it hears of the brokers.

use std::time::Instant;

use kittiwake_raft::{BrokerId, MetadataQuorum};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::timeout_at;

use super::expulsion::{Expelled, is_fenced};
use crate::config::BrokerConfig;
use crate::controller::liveness::{Action, Event, FRESH, Liveness, Registration};

/// The evidence of this node, shared by the heartbeat streams, which add to it, and the task that acts on it.
#[derive(Debug)]
pub(crate) struct Voter {
    pub(crate) quorum: MetadataQuorum,
    state: Mutex<State>,
    changed: Notify,
    /// [`Liveness::suspicion_ends`], for those who answer clients.
    suspicion_ends: watch::Sender<Option<Instant>>,
}

#[derive(Debug)]
struct State {
    liveness: Liveness,
    /// To be carried out; at most two for every broker.
    actions: Vec<Action>,
}

impl Voter {
    pub(crate) fn new(config: &BrokerConfig, quorum: MetadataQuorum) -> Self {
        Self {
            quorum,
            state: Mutex::new(State {
                liveness: Liveness::new(config.broker_session_timeout_ms),
                actions: Vec::new(),
            }),
            changed: Notify::new(),
            suspicion_ends: watch::Sender::new(None),
        }
    }

    pub(crate) fn node_id(&self) -> BrokerId {
        self.quorum.node_id()
    }

    /// Whether this is a life that the cluster still knows, as far as the image here goes.
    pub(super) fn registered(&self, life: Registration) -> Result<(), Expelled> {
        is_fenced(&self.quorum.image(), life.broker, life.epoch).map(drop)
    }

    /// Adds to the evidence.
    pub(crate) fn note(&self, event: Event) {
        self.step(&mut self.state.lock(), event);
        self.changed.notify_one();
    }

    /// A heartbeat has arrived from a broker whose partitions follow `metadata_offset`. Whether its lease is extended: this
    /// node is the controller, and sure of it *after* it took note of the heartbeat.
    pub(crate) fn heard(&self, from: Registration, metadata_offset: u64) -> bool {
        let granted = {
            let mut state = self.state.lock();
            self.step(&mut state, Event::Heartbeat(from));
            state.liveness.grants(from, metadata_offset)
        };
        granted && self.quorum.controller_is_fresh(FRESH)
    }

    /// What is to be done, and when to look again whatever happens.
    pub(crate) fn decisions(&self) -> (Vec<Action>, Option<Instant>) {
        let mut state = self.state.lock();
        let actions = std::mem::take(&mut state.actions);
        (actions, state.liveness.next_deadline())
    }

    /// Waits until somebody else has added to the evidence.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits while a broker is suspected: who is told of the leaders now is likely told of one that is dead, and clients
    /// look again only at their refresh interval. Returns at once while all is well, and after
    /// [`SUSPICION`](crate::controller::liveness::SUSPICION) at the latest.
    pub(crate) async fn settled(&self) {
        let Some(ends) = *self.suspicion_ends.borrow() else {
            return;
        };
        let mut suspicions = self.suspicion_ends.subscribe();
        let none = suspicions.wait_for(Option::is_none);
        // Over in time or not, what is known then is the answer.
        let _ = timeout_at(ends.into(), none).await;
    }

    /// Whether clients are still told where `broker` is, although it is fenced.
    pub(crate) fn is_lost_lately(&self, broker: BrokerId) -> bool {
        let state = self.state.lock();
        state.liveness.is_lost_lately(broker, Instant::now())
    }

    fn step(&self, state: &mut State, event: Event) {
        let actions = state.liveness.step(Instant::now(), event);
        state.actions.extend(actions);
        let ends = state.liveness.suspicion_ends();
        self.suspicion_ends
            .send_if_modified(|published| std::mem::replace(published, ends) != ends);
    }
}
