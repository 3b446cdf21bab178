//! LeaveGroup: members go, by their own will or an administrator's.

use std::sync::Arc;

use super::join::client_reason;
use super::{Answer, Group, GroupError, GroupState, MemberId, Now, ReplyId};

/// A LeaveGroup request.
#[derive(Clone, Debug)]
pub struct LeaveGroup {
    /// Whom to answer.
    pub reply: ReplyId,
    /// Who leaves.
    pub members: Vec<LeavingMember>,
}

/// One of the members that leave.
#[derive(Clone, Debug)]
pub struct LeavingMember {
    /// Member id; empty when an administrator removes a static member by its instance id.
    pub member_id: MemberId,
    /// Group instance id.
    pub instance_id: Option<Arc<str>>,
    /// Why, for the log (KIP-800).
    pub reason: Option<String>,
}

impl Group {
    pub(super) fn leave(&mut self, now: Now, leave: LeaveGroup) {
        if self.state == GroupState::Dead {
            let refused = Err(GroupError::CoordinatorNotAvailable);
            return self.answer(leave.reply, Answer::Leave(refused));
        }
        let members_before = self.members.len();
        let pending_before = self.pending.len();
        let results = leave
            .members
            .iter()
            .map(|leaving| self.let_go(leaving))
            .collect();
        match self.state {
            GroupState::CompletingRebalance | GroupState::Stable
                if self.members.len() < members_before =>
            {
                self.prepare_rebalance(now, "members have left");
            }
            GroupState::PreparingRebalance
                if self.members.len() < members_before || self.pending.len() < pending_before =>
            {
                self.complete_join_if_due(now);
            }
            _ => {}
        }
        self.answer(leave.reply, Answer::Leave(Ok(results)));
    }

    fn let_go(&mut self, leaving: &LeavingMember) -> Result<(), GroupError> {
        let member_id = if leaving.member_id.is_empty() {
            leaving
                .instance_id
                .as_ref()
                .and_then(|instance| self.static_members.get(instance))
                .cloned()
                .ok_or(GroupError::UnknownMemberId)?
        } else {
            if !self.pending.contains(&leaving.member_id) {
                self.check_member(&leaving.member_id, leaving.instance_id.as_ref())?;
            }
            leaving.member_id.clone()
        };
        tracing::info!(
            group = %self.id,
            member = %member_id,
            reason = %client_reason(leaving.reason.as_deref()),
            "member leaves"
        );
        self.remove_member(&member_id, GroupError::UnknownMemberId);
        Ok(())
    }
}
