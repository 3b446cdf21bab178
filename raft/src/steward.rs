//! Carries out what `membership.rs` decides, on the controller: for nodes that ask to be taken in,
//! for operators, and unasked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, Instant as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::forward::{Attempt, ChangeMember};
use crate::ids::DirectoryId;
use crate::local::Local;
use crate::membership::{Change, MembershipRefusal, Seen, Upkeep, View};
use crate::types::{LogId, MemberNode};

/// A member that has not answered for so long is not counted on, nor protected.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// So many entries may be on their way to a learner that has caught up.
const ENTRIES_ON_THEIR_WAY: u64 = 100;

/// How often it is looked whether a learner has caught up, and a change that failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Local {
    /// What this node, as the controller, knows about the members, and the entry that made them so.
    pub(crate) fn view(&self) -> (View, Option<LogId>) {
        let metrics = self.metrics();
        let stored = &metrics.membership_config;
        let last = metrics.last_log_index.unwrap_or(0);
        let seen = |id: &DirectoryId, node: &MemberNode| {
            let own = *id == self.directory_id;
            let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(id));
            let heard = heard.and_then(Option::as_ref);
            let matching = metrics
                .replication
                .as_ref()
                .and_then(|match_| match_.get(id));
            let matching = matching.and_then(Option::as_ref);
            Seen {
                node: node.clone(),
                alive: own || heard.is_some_and(|heard| heard.elapsed() <= ALIVE_WITHIN),
                caught_up: own
                    || matching.is_some_and(|id| id.index + ENTRIES_ON_THEIR_WAY >= last),
            }
        };
        let membership = stored.membership();
        let view = View {
            configs: membership.get_joint_config().clone(),
            members: membership
                .nodes()
                .map(|(id, node)| (*id, seen(id, node)))
                .collect(),
            configured: self.voters.iter().map(|(broker, _)| *broker).collect(),
        };
        (view, *stored.log_id())
    }

    /// Takes a node in, if this one is the controller.
    pub(crate) async fn admit(
        &self,
        id: DirectoryId,
        node: MemberNode,
        committed: Option<LogId>,
        deadline: Instant,
    ) -> Attempt<Result<(), MembershipRefusal>> {
        if committed.map(|id| id.index) > self.metrics().last_log_index {
            let reason = "it holds metadata that this cluster never had".to_owned();
            return Attempt::Answered(Err(MembershipRefusal::Invalid(reason)));
        }
        self.decide(|view| view.join(id, &node), deadline).await
    }

    /// Does what an operator asks, if this node is the controller.
    pub(crate) async fn change_member(
        &self,
        request: ChangeMember,
        deadline: Instant,
    ) -> Attempt<Result<(), MembershipRefusal>> {
        let decide = |view: &View| match request {
            ChangeMember::AddVoter(broker) => view.add_voter(broker),
            ChangeMember::Remove(broker) => view.remove(broker).map(Some),
        };
        // An operator need not time it: what is a matter of moments is waited for, but not for so
        // long that the answer comes too late.
        let patience = deadline - self.propose_timeout / 2;
        loop {
            let decided = self.decide(decide, deadline).await;
            let passing = matches!(
                decided,
                Attempt::Answered(Err(
                    MembershipRefusal::NotCaughtUp(_) | MembershipRefusal::InProgress
                ))
            );
            if !passing || Instant::now() >= patience {
                return decided;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn decide(
        &self,
        decide: impl Fn(&View) -> Result<Option<Change>, MembershipRefusal>,
        deadline: Instant,
    ) -> Attempt<Result<(), MembershipRefusal>> {
        if !self.leads() {
            let leader = self.leader().map(|(_, node)| node);
            return Attempt::NotController { leader };
        }
        let Ok(_one_at_a_time) = timeout_at(deadline, self.membership.lock()).await else {
            return Attempt::Answered(Err(MembershipRefusal::InProgress));
        };
        let (view, from) = self.view();
        match decide(&view) {
            Err(refusal) => Attempt::Answered(Err(refusal)),
            Ok(None) => Attempt::Answered(Ok(())),
            Ok(Some(change)) => self.change(change, from, deadline).await,
        }
    }

    /// Makes one change to the membership that entry `from` brought; of another one it would be
    /// another change.
    async fn change(
        &self,
        change: Change,
        from: Option<LogId>,
        deadline: Instant,
    ) -> Attempt<Result<(), MembershipRefusal>> {
        tracing::info!(?change, "changing the metadata quorum");
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id: from,
        };
        // A voter that is taken out is not kept as a learner.
        let write = self
            .raft
            .change_membership_if(to_raft(change), false, [unchanged]);
        match timeout_at(deadline, write).await {
            Err(_) => Attempt::Unknown,
            Ok(Ok(_)) => Attempt::Answered(Ok(())),
            Ok(Err(RaftError::APIError(error))) => match error {
                ClientWriteError::PreconditionFailed(_)
                | ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_)
                    | ChangeMembershipError::UncommittedLeaderLog(_),
                ) => Attempt::Answered(Err(MembershipRefusal::InProgress)),
                ClientWriteError::ChangeMembershipError(error) => {
                    Attempt::Answered(Err(MembershipRefusal::Invalid(error.to_string())))
                }
                other => RaftError::APIError(other).into(),
            },
            Ok(Err(fatal)) => fatal.into(),
        }
    }
}

fn to_raft(change: Change) -> ChangeMembers<DirectoryId, MemberNode> {
    match change {
        // Nobody joins: what is left is to leave the joint membership.
        Change::Finish => ChangeMembers::AddVoterIds([].into()),
        Change::Admit {
            id,
            node,
            instead_of,
        } => ChangeMembers::Batch(vec![
            ChangeMembers::AddNodes(BTreeMap::from([(id, node)])),
            ChangeMembers::RemoveNodes(instead_of),
        ]),
        // Safe, because every call names the directory it is for: whoever else is at that address
        // does not answer in its name.
        Change::Readdress { id, node } => ChangeMembers::SetNodes(BTreeMap::from([(id, node)])),
        Change::Promote { ids, instead_of } => ChangeMembers::Batch(vec![
            ChangeMembers::AddVoterIds(ids),
            ChangeMembers::RemoveVoters(instead_of),
        ]),
        Change::Remove { voters, learners } => ChangeMembers::Batch(vec![
            ChangeMembers::RemoveVoters(voters),
            ChangeMembers::RemoveNodes(learners),
        ]),
    }
}

/// Keeps the membership in order for as long as this node leads, until the quorum stops.
pub(crate) async fn run(local: Arc<Local>) {
    let mut changes = local.raft.server_metrics();
    loop {
        drop(changes.borrow_and_update());
        let next = if local.leads() {
            upkeep(&local).await
        } else {
            Upkeep::Settled
        };
        let changed = match next {
            Upkeep::Do(_) | Upkeep::Wait => timeout(LOOK_AGAIN, changes.changed())
                .await
                .unwrap_or(Ok(())),
            Upkeep::Settled => changes.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Does the next thing there is to do; what is left is decided on what became of it.
async fn upkeep(local: &Local) -> Upkeep {
    let _one_at_a_time = local.membership.lock().await;
    let (view, from) = local.view();
    let next = view.upkeep();
    if let Upkeep::Do(change) = &next {
        let deadline = Instant::now() + local.propose_timeout;
        match local.change(change.clone(), from, deadline).await {
            Attempt::Answered(Ok(())) => {}
            Attempt::Answered(Err(refusal)) => {
                tracing::info!(%refusal, "the metadata quorum was not changed");
            }
            _ => tracing::info!("the metadata quorum was not changed in time"),
        }
    }
    next
}
