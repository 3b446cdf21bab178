//! SyncGroup: the leader's assignment goes to the log, then to everyone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Answer, Group, GroupError, GroupState, MemberId, Now, ReplyId, Storing, Timer};

/// A SyncGroup request.
#[derive(Clone, Debug)]
pub struct SyncGroup {
    /// Whom to answer.
    pub reply: ReplyId,
    /// Member id.
    pub member_id: MemberId,
    /// Group instance id of a static member.
    pub instance_id: Option<Arc<str>>,
    /// The generation it joined.
    pub generation: i32,
    /// The protocol type it joined with (v5+); checked when given.
    pub protocol_type: Option<Arc<str>>,
    /// The protocol it was told (v5+); checked when given.
    pub protocol: Option<Arc<str>>,
    /// The leader's assignment, by member id; empty from the others.
    pub assignments: BTreeMap<MemberId, Bytes>,
}

/// A member's assignment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Synced {
    /// Protocol type.
    pub protocol_type: Option<Arc<str>>,
    /// Assignment protocol.
    pub protocol: Option<Arc<str>>,
    /// What the leader assigned to this member; empty if nothing.
    pub assignment: Bytes,
}

impl Group {
    pub(super) fn sync(&mut self, now: Now, sync: SyncGroup) {
        let reply = sync.reply;
        if let Err(error) = self.check_sync(&sync) {
            return self.answer(reply, Answer::Sync(Err(error)));
        }
        match self.state {
            GroupState::CompletingRebalance => self.await_assignment(now, sync),
            GroupState::Stable => {
                self.member_synced(&sync.member_id);
                let answer = self
                    .synced(&sync.member_id)
                    .ok_or(GroupError::UnknownMemberId);
                self.answer(reply, Answer::Sync(answer));
            }
            GroupState::PreparingRebalance => {
                self.answer(reply, Answer::Sync(Err(GroupError::RebalanceInProgress)));
            }
            GroupState::Empty | GroupState::Dead => {
                self.answer(reply, Answer::Sync(Err(GroupError::UnknownMemberId)));
            }
        }
    }

    fn check_sync(&self, sync: &SyncGroup) -> Result<(), GroupError> {
        if self.state == GroupState::Dead {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        self.check_member(&sync.member_id, sync.instance_id.as_ref())?;
        if sync.generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        let differs = |told: &Option<Arc<str>>, ours: &Option<Arc<str>>| {
            told.is_some() && told.as_deref() != ours.as_deref()
        };
        if differs(&sync.protocol_type, &self.protocol_type)
            || differs(&sync.protocol, &self.protocol)
        {
            return Err(GroupError::InconsistentGroupProtocol);
        }
        Ok(())
    }

    fn await_assignment(&mut self, now: Now, sync: SyncGroup) {
        let Some(member) = self.members.get_mut(&sync.member_id) else {
            // check_sync has just found it.
            return;
        };
        if let Some(superseded) = member.syncing.replace(sync.reply) {
            self.answer(
                superseded,
                Answer::Sync(Err(GroupError::RebalanceInProgress)),
            );
        }
        self.member_synced(&sync.member_id);
        if self.is_leader(&sync.member_id) {
            self.store_assignment(now, sync.assignments);
        }
    }

    fn member_synced(&mut self, member_id: &MemberId) {
        if self.unsynced.remove(member_id) && self.unsynced.is_empty() {
            self.timers.cancel(&Timer::Sync);
        }
    }

    fn store_assignment(&mut self, now: Now, mut assignments: BTreeMap<MemberId, Bytes>) {
        assignments.retain(|member_id, _| self.members.contains_key(member_id));
        let without = self.members.len() - assignments.len();
        if without > 0 {
            tracing::info!(group = %self.id, generation = self.generation, without, "some members are assigned nothing");
        }
        let mut metadata = self.metadata();
        metadata.state_timestamp_ms = now.wall_ms;
        for member in &mut metadata.members {
            member.assignment = assignments
                .get(&member.member_id)
                .cloned()
                .unwrap_or_default();
        }
        self.store(Storing::Assignment(assignments), metadata);
    }

    pub(super) fn assignment_stored(
        &mut self,
        now: Now,
        mut assignments: BTreeMap<MemberId, Bytes>,
        result: Result<(), GroupError>,
    ) {
        if let Err(error) = result {
            self.reset_assignment(now, error);
            return self.prepare_rebalance(now, "the assignment could not be stored");
        }
        self.enter(GroupState::Stable, now);
        tracing::info!(group = %self.id, generation = self.generation, members = self.members.len(), "the group is stable");
        let member_ids: Vec<MemberId> = self.members.keys().cloned().collect();
        for member_id in member_ids {
            let Some(member) = self.members.get_mut(&member_id) else {
                continue;
            };
            member.assignment = assignments.remove(&member_id).unwrap_or_default();
            if let (Some(reply), Some(synced)) = (member.syncing.take(), self.synced(&member_id)) {
                self.answer_synced(now, &member_id, reply, synced);
            }
        }
    }

    fn answer_synced(&mut self, now: Now, member_id: &MemberId, reply: ReplyId, synced: Synced) {
        self.answer(reply, Answer::Sync(Ok(synced)));
        // Its session may have ended unnoticed while it waited for us.
        self.restart_session(now, member_id);
    }

    fn synced(&self, member_id: &MemberId) -> Option<Synced> {
        self.members.get(member_id).map(|member| Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: member.assignment.clone(),
        })
    }
}
