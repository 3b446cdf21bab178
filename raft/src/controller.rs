//! Who the controller is: the leader of the quorum.

use std::sync::Arc;
use std::time::Duration;

use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::ids::{BrokerId, DirectoryId};
use crate::local::Local;
use crate::types::Types;

/// The leader of the quorum, in one reign.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Controller {
    /// The broker.
    pub broker: BrokerId,
    /// Its reign; grows with every election, also when the same broker is elected again.
    pub epoch: u64,
}

/// No leader was elected before the deadline.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no controller was elected in time")]
pub struct NoLeader;

impl Controller {
    fn of(metrics: &RaftServerMetrics<Types>) -> Option<Self> {
        let leader = metrics.current_leader?;
        let membership = metrics.membership_config.membership();
        Some(Self {
            broker: membership.get_node(&leader)?.broker,
            epoch: metrics.vote.leader_id.term,
        })
    }
}

/// What this node does about time. Raft's own clock ticks 13/64 of a heartbeat interval apart on
/// every member, which would be most of what an idle node costs; it is needed for elections only.
enum Clock {
    /// There is no election to call and nobody to send heartbeats to.
    Rest,
    /// Send heartbeats.
    Beat,
    /// Tick once the controller is silent: long before its lease is over.
    Watch,
    /// Tick: there is no controller.
    Tick,
}

impl Clock {
    fn of(metrics: &RaftServerMetrics<Types>) -> Self {
        let own = metrics.id;
        let membership = metrics.membership_config.membership();
        let committed = &metrics.committed_membership_config;
        let votes = membership.voter_ids().chain(committed.voter_ids());
        let votes = votes.into_iter().any(|id| id == own);
        let alone = membership.nodes().map(|(id, _)| *id).eq([own]);
        match metrics.current_leader {
            Some(leader) if leader == own && alone => Self::Rest,
            Some(leader) if leader == own => Self::Beat,
            _ if !votes => Self::Rest,
            Some(_) => Self::Watch,
            None => Self::Tick,
        }
    }
}

/// Follows Raft's own account of itself, until it stops: tells who leads, keeps the address book and
/// the clock.
pub(crate) async fn follow(local: Arc<Local>, controller: watch::Sender<Option<Controller>>) {
    let mut metrics = local.raft.server_metrics();
    let interval = Duration::from_millis(local.raft.config().heartbeat_interval);
    let mut beat = Instant::now();
    loop {
        let clock = {
            let now = metrics.borrow_and_update();
            controller.send_if_modified(|known| {
                let new = Controller::of(&now);
                let changed = *known != new;
                *known = new;
                changed
            });
            local.addresses.update(now.membership_config.membership());
            Clock::of(&now)
        };
        let now = Instant::now();
        // Half an interval late is silence; the lease is two intervals or more.
        let silent_at = local.heard_at().map(|heard| heard + interval * 3 / 2);
        let silent = silent_at.is_none_or(|silent_at| silent_at <= now);
        let (ticks, wake) = match clock {
            Clock::Rest => (false, None),
            Clock::Tick => (true, None),
            // Until it is heard of, or another one leads.
            Clock::Watch if silent => (true, Some(now + interval)),
            Clock::Watch => (false, silent_at),
            Clock::Beat => {
                if beat <= now {
                    beat = now + interval;
                    if local.raft.trigger().heartbeat().await.is_err() {
                        return;
                    }
                }
                (false, Some(beat))
            }
        };
        local.raft.runtime_config().tick(ticks);
        let changed = match wake {
            None => metrics.changed().await,
            Some(wake) => timeout_at(wake, metrics.changed()).await.unwrap_or(Ok(())),
        };
        if changed.is_err() {
            controller.send_replace(None);
            return;
        }
    }
}

impl Local {
    /// The voter to take over: one that is there, with the longest log.
    fn successor(&self) -> Option<DirectoryId> {
        let (view, _) = self.view();
        let metrics = self.metrics();
        let length = |id: &DirectoryId| {
            let replication = metrics.replication.as_ref()?;
            replication.get(id)?.as_ref().map(|id| id.index)
        };
        let voters = metrics.membership_config.voter_ids();
        let others = voters.filter(|id| *id != self.directory_id);
        others.max_by_key(|id| {
            let alive = view.members.get(id).is_some_and(|seen| seen.alive);
            (alive, length(id))
        })
    }

    /// Has another voter take over, if this node leads, and waits until another one is known to.
    pub(crate) async fn hand_over(&self, deadline: Instant) -> Result<BrokerId, NoLeader> {
        let own = self.directory_id;
        if self.leads() {
            let successor = self.successor().ok_or(NoLeader)?;
            let trigger = self.raft.trigger();
            let asked = trigger.transfer_leader(successor).await;
            asked.map_err(|_| NoLeader)?;
        }
        let mut metrics = self.raft.server_metrics();
        loop {
            drop(metrics.borrow_and_update());
            match self.leader() {
                Some((id, node)) if id != own => return Ok(node.broker),
                _ => {}
            }
            let changed = timeout_at(deadline, metrics.changed()).await;
            changed.map_err(|_| NoLeader)?.map_err(|_| NoLeader)?;
        }
    }
}

/// The broker that leads, as far as this node knows.
pub(crate) fn leader_of(metrics: &RaftMetrics<Types>) -> Option<BrokerId> {
    let leader = metrics.current_leader?;
    let membership = metrics.membership_config.membership();
    membership.get_node(&leader).map(|node| node.broker)
}
