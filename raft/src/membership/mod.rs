//! Who is in the quorum: pure decisions on a [`View`] of the membership. `steward.rs` carries them
//! out, one at a time.
//!
//! A member is a data directory, not a broker (KIP-853): a broker that comes back with an empty disk
//! is another member. Hence the rules:
//!
//! - Whoever asks is taken in as a *learner*: it gets the log and has no vote.
//! - A learner takes the place of its broker's earlier directory once it has caught up. Both steps,
//!   in and out, are one joint change: it needs a majority of the old voters and of the new ones, and
//!   the lost directory is only one of them in either.
//! - A learner whose broker is configured as a voter becomes one as soon as it has caught up, but the
//!   automatism never stops at an even number of voters while another configured one is on its way:
//!   two voters stand still when either fails, one does only when it fails itself.
//! - Every other learner stays one until an operator says otherwise.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{BrokerId, DirectoryId};
use crate::types::MemberNode;

/// What the controller knows about the quorum.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The voters; while they change, the old and the new ones.
    pub(crate) configs: Vec<BTreeSet<DirectoryId>>,
    /// Every member, voters and learners.
    pub(crate) members: BTreeMap<DirectoryId, Seen>,
    /// Brokers that are to vote without anybody asking.
    pub(crate) configured: BTreeSet<BrokerId>,
}

/// A member, as the controller sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) node: MemberNode,
    /// It has answered recently; the controller itself always has.
    pub(crate) alive: bool,
    /// Its log is as long as the controller's, but for what is on its way.
    pub(crate) caught_up: bool,
}

/// One step; safe to take twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// Ends a change that its controller did not live to end.
    Finish,
    /// Takes in a learner, and forgets the learners its broker was before.
    Admit {
        id: DirectoryId,
        node: MemberNode,
        instead_of: BTreeSet<DirectoryId>,
    },
    /// Takes over the address of a member.
    Readdress { id: DirectoryId, node: MemberNode },
    /// Lets learners vote, and takes out the voters they replace.
    Promote {
        ids: BTreeSet<DirectoryId>,
        instead_of: BTreeSet<DirectoryId>,
    },
    /// Takes members out.
    Remove {
        voters: BTreeSet<DirectoryId>,
        learners: BTreeSet<DirectoryId>,
    },
}

/// What the controller does next about the membership, unasked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Upkeep {
    Do(Change),
    /// A learner is to vote, but has not caught up.
    Wait,
    Settled,
}

/// Why the controller does not change the membership.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MembershipRefusal {
    /// The broker is not a member of the quorum.
    #[error("broker {0} is not a member of the metadata quorum")]
    UnknownMember(BrokerId),
    /// Nobody would be left to vote.
    #[error("broker {0} is the last voter")]
    LastVoter(BrokerId),
    /// The learner is not there or lacks entries; it may vote when it has them.
    #[error("broker {0} has not caught up with the metadata log")]
    NotCaughtUp(BrokerId),
    /// Another change is under way; it is over in moments, or when a majority is back.
    #[error("another change of the metadata quorum is in progress")]
    InProgress,
    /// It contradicts what the cluster knows.
    #[error("{0}")]
    Invalid(String),
}

/// Why the membership was not changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MembershipError {
    /// The controller refused.
    #[error(transparent)]
    Refused(#[from] MembershipRefusal),
    /// No controller could be reached in time. Nothing was changed.
    #[error("no controller could be reached; it is {}", leader.map_or("unknown".to_owned(), |id| format!("broker {id}")))]
    NotController {
        /// Who leads, as far as this node knows.
        leader: Option<BrokerId>,
    },
    /// No answer in time. The change may be made later; asking again is safe.
    #[error("the metadata quorum is unavailable")]
    Unavailable,
    /// This node shuts down, or its metadata store failed.
    #[error("the metadata quorum has stopped: {0}")]
    Stopped(String),
}

impl View {
    fn voters(&self) -> BTreeSet<DirectoryId> {
        self.configs.iter().flatten().copied().collect()
    }

    fn is_changing(&self) -> bool {
        self.configs.len() > 1
    }

    /// Directories of a broker: those that vote, and those that do not.
    fn of(&self, broker: BrokerId) -> (BTreeSet<DirectoryId>, BTreeSet<DirectoryId>) {
        let voters = self.voters();
        self.members
            .iter()
            .filter(|(_, seen)| seen.node.broker == broker)
            .map(|(id, _)| *id)
            .partition(|id| voters.contains(id))
    }

    /// A node asks to be a member. `None`: it is one already.
    pub(crate) fn join(
        &self,
        id: DirectoryId,
        node: &MemberNode,
    ) -> Result<Option<Change>, MembershipRefusal> {
        if let Some(known) = self.members.get(&id) {
            if known.node.broker != node.broker {
                return Err(MembershipRefusal::Invalid(format!(
                    "directory {id} belongs to broker {}",
                    known.node.broker
                )));
            }
            let moved = known.node.address != node.address;
            return Ok(moved.then(|| Change::Readdress {
                id,
                node: node.clone(),
            }));
        }
        let (voters, learners) = self.of(node.broker);
        let alive = voters
            .union(&learners)
            .find(|id| self.members.get(id).is_some_and(|seen| seen.alive));
        if let Some(alive) = alive {
            // Two processes with one broker id, or the other one died a moment ago.
            return Err(MembershipRefusal::Invalid(format!(
                "broker {} is running with directory {alive}",
                node.broker
            )));
        }
        Ok(Some(Change::Admit {
            id,
            node: node.clone(),
            instead_of: learners,
        }))
    }

    /// What is to be done without being asked.
    pub(crate) fn upkeep(&self) -> Upkeep {
        if self.is_changing() {
            return Upkeep::Do(Change::Finish);
        }
        let voters = self.voters();
        let learners = || self.members.iter().filter(|(id, _)| !voters.contains(id));
        let mut waits = false;

        for (id, seen) in learners() {
            let (lost, _) = self.of(seen.node.broker);
            if lost.is_empty() {
                continue;
            }
            let running = |id| self.members.get(id).is_some_and(|seen| seen.alive);
            if seen.caught_up && seen.alive && !lost.iter().any(running) {
                return Upkeep::Do(Change::Promote {
                    ids: [*id].into(),
                    instead_of: lost,
                });
            }
            waits = true;
        }

        let missing: BTreeSet<BrokerId> = self
            .configured
            .iter()
            .copied()
            .filter(|broker| self.of(*broker).0.is_empty())
            .collect();
        let candidates: Vec<_> = learners()
            .filter(|(_, seen)| missing.contains(&seen.node.broker))
            .collect();
        let mut ready: BTreeMap<BrokerId, DirectoryId> = candidates
            .iter()
            .filter(|(_, seen)| seen.caught_up && seen.alive)
            .map(|(id, seen)| (seen.node.broker, **id))
            .collect();
        if (voters.len() + ready.len()).is_multiple_of(2) && ready.len() < missing.len() {
            ready.pop_last();
        }
        if !ready.is_empty() {
            return Upkeep::Do(Change::Promote {
                ids: ready.into_values().collect(),
                instead_of: BTreeSet::new(),
            });
        }
        if waits || !candidates.is_empty() {
            Upkeep::Wait
        } else {
            Upkeep::Settled
        }
    }

    /// An operator wants a broker to vote. `None`: it does.
    pub(crate) fn add_voter(&self, broker: BrokerId) -> Result<Option<Change>, MembershipRefusal> {
        if self.is_changing() {
            return Err(MembershipRefusal::InProgress);
        }
        let (voters, learners) = self.of(broker);
        if learners.is_empty() {
            return if voters.is_empty() {
                Err(MembershipRefusal::UnknownMember(broker))
            } else {
                Ok(None)
            };
        }
        let ready = learners.iter().find(|id| {
            let seen = self.members.get(id);
            seen.is_some_and(|seen| seen.caught_up && seen.alive)
        });
        let ready = ready.ok_or(MembershipRefusal::NotCaughtUp(broker))?;
        Ok(Some(Change::Promote {
            ids: [*ready].into(),
            instead_of: voters,
        }))
    }

    /// An operator wants a broker out.
    pub(crate) fn remove(&self, broker: BrokerId) -> Result<Change, MembershipRefusal> {
        if self.is_changing() {
            return Err(MembershipRefusal::InProgress);
        }
        let (voters, learners) = self.of(broker);
        if voters.is_empty() && learners.is_empty() {
            return Err(MembershipRefusal::UnknownMember(broker));
        }
        if !voters.is_empty() && voters.len() == self.voters().len() {
            return Err(MembershipRefusal::LastVoter(broker));
        }
        Ok(Change::Remove { voters, learners })
    }
}
