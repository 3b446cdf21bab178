//! This node as a voter: what it hears of the brokers.

use std::time::Instant;

use kittiwake_raft::{BrokerId, MetadataQuorum};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::BrokerConfig;
use crate::controller::liveness::{Action, Event, FRESH, Liveness, Registration};

/// The evidence of this node, shared by the heartbeat streams, which add to it, and the task that acts on it.
#[derive(Debug)]
pub(crate) struct Voter {
    pub(crate) quorum: MetadataQuorum,
    state: Mutex<State>,
    changed: Notify,
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
        }
    }

    pub(crate) fn node_id(&self) -> BrokerId {
        self.quorum.node_id()
    }

    /// Adds to the evidence.
    pub(crate) fn note(&self, event: Event) {
        self.state.lock().step(event);
        self.changed.notify_one();
    }

    /// A heartbeat has arrived from a broker that has applied `metadata_offset`. Whether its lease is extended: this
    /// node is the controller, and sure of it *after* it took note of the heartbeat.
    pub(crate) fn heard(&self, from: Registration, metadata_offset: u64) -> bool {
        let granted = {
            let mut state = self.state.lock();
            state.step(Event::Heartbeat(from));
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
}

impl State {
    fn step(&mut self, event: Event) {
        let actions = self.liveness.step(Instant::now(), event);
        self.actions.extend(actions);
    }
}
