//! The join phase: when it starts, whom it waits for, when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Answer, Group, GroupError, GroupState, MemberId, Now, Storing, Timer};

/// How an empty group waits for more members (KIP-134): in steps of
/// `group.initial.rebalance.delay.ms`, for as long as each step brings somebody and the rebalance
/// timeout allows.
#[derive(Clone, Debug)]
pub(super) struct InitialDelay {
    pub(super) member_added: bool,
    step_ms: i64,
    remaining_ms: i64,
}

/// Shortest time to the next attempt when no member came back in a whole rebalance timeout, so that a
/// member with a timeout of zero does not make the group spin.
const REJOIN_WAIT_MS_MIN: i64 = 1_000;

impl Group {
    pub(super) fn joining_count(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.joining.is_some())
            .count()
    }

    fn all_joined(&self) -> bool {
        self.pending.is_empty() && self.members.values().all(|member| member.joining.is_some())
    }

    fn rebalance_timeout_ms(&self) -> i64 {
        let longest = self
            .members
            .values()
            .map(|member| member.rebalance_timeout_ms)
            .max();
        i64::from(longest.unwrap_or(0).max(0))
    }

    /// Whether every member offers the protocol.
    pub(super) fn is_common(&self, protocol: &str) -> bool {
        self.members
            .values()
            .all(|member| member.metadata(protocol).is_some())
    }

    /// The protocol most members prefer among those that all of them offer; the first by name among
    /// equals. None without members.
    pub(super) fn select_protocol(&self) -> Option<Arc<str>> {
        let common: Vec<&Arc<str>> = self
            .members
            .values()
            .next()?
            .protocols
            .iter()
            .map(|protocol| &protocol.name)
            .filter(|name| self.is_common(name))
            .collect();
        let mut votes: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for member in self.members.values() {
            let vote = member
                .protocols
                .iter()
                .map(|protocol| &protocol.name)
                .find(|name| common.contains(name));
            if let Some(name) = vote {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().max().copied()?;
        votes
            .into_iter()
            .find(|(_, count)| *count == most)
            .map(|(name, _)| name.clone())
    }

    pub(super) fn rebalance_or_complete_join(&mut self, now: Now, reason: &str) {
        match self.state {
            GroupState::Empty | GroupState::CompletingRebalance | GroupState::Stable => {
                self.prepare_rebalance(now, reason);
            }
            GroupState::PreparingRebalance => self.complete_join_if_due(now),
            GroupState::Dead => {}
        }
    }

    pub(super) fn prepare_rebalance(&mut self, now: Now, reason: &str) {
        tracing::info!(
            group = %self.id,
            state = self.state.name(),
            generation = self.generation,
            members = self.members.len(),
            reason,
            "preparing to rebalance"
        );
        if self.state == GroupState::CompletingRebalance {
            self.reset_assignment(now, GroupError::RebalanceInProgress);
        }
        self.unsynced.clear();
        self.timers.cancel(&Timer::Sync);
        let is_initial = self.state == GroupState::Empty;
        self.enter(GroupState::PreparingRebalance, now);
        if is_initial {
            let step_ms = i64::from(self.limits.initial_rebalance_delay_ms);
            self.initial_delay = Some(InitialDelay {
                member_added: false,
                step_ms,
                remaining_ms: (self.rebalance_timeout_ms() - step_ms).max(0),
            });
            self.timers.set(Timer::Join, now.uptime_ms + step_ms);
        } else if self.all_joined() {
            self.complete_join(now);
        } else {
            self.timers
                .set(Timer::Join, now.uptime_ms + self.rebalance_timeout_ms());
        }
    }

    /// Ends the join phase when everybody is there, unless an empty group still waits for others.
    pub(super) fn complete_join_if_due(&mut self, now: Now) {
        if self.initial_delay.is_none() {
            self.complete_join_if_all_joined(now);
        }
    }

    pub(super) fn complete_join_if_all_joined(&mut self, now: Now) {
        if self.state == GroupState::PreparingRebalance && self.all_joined() {
            self.complete_join(now);
        }
    }

    pub(super) fn join_time_is_up(&mut self, now: Now) {
        match &mut self.initial_delay {
            Some(delay) if delay.member_added && delay.remaining_ms > 0 => {
                let step_ms = delay
                    .remaining_ms
                    .min(i64::from(self.limits.initial_rebalance_delay_ms));
                *delay = InitialDelay {
                    member_added: false,
                    step_ms,
                    remaining_ms: (delay.remaining_ms - delay.step_ms).max(0),
                };
                self.timers.set(Timer::Join, now.uptime_ms + step_ms);
            }
            _ => self.complete_join(now),
        }
    }

    fn complete_join(&mut self, now: Now) {
        self.timers.cancel(&Timer::Join);
        let absent: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_none() && !member.is_static())
            .map(|(id, _)| id.clone())
            .collect();
        for member_id in absent {
            tracing::info!(group = %self.id, member = %member_id, "member did not join again in time");
            self.remove_member(&member_id, GroupError::UnknownMemberId);
        }
        if self.members.is_empty() {
            self.become_empty(now);
        } else if self.elect_joined_leader() {
            self.start_generation(now);
        } else {
            // Only static members, and none of them is back: they keep their places until their
            // sessions end.
            let wait_ms = self.rebalance_timeout_ms().max(REJOIN_WAIT_MS_MIN);
            self.timers.set(Timer::Join, now.uptime_ms + wait_ms);
        }
    }

    /// Makes sure that the leader is somebody who joined, since it has to compute the assignment.
    fn elect_joined_leader(&mut self) -> bool {
        let has_joined = |id: &MemberId| {
            self.members
                .get(id)
                .is_some_and(|member| member.joining.is_some())
        };
        if self.leader.as_ref().is_some_and(has_joined) {
            return true;
        }
        let joined = self.members.keys().find(|id| has_joined(id)).cloned();
        match joined {
            Some(leader) => {
                tracing::info!(group = %self.id, leader = %leader, "the leader did not join again, another takes over");
                self.leader = Some(leader);
                true
            }
            None => false,
        }
    }

    fn become_empty(&mut self, now: Now) {
        self.initial_delay = None;
        self.unsynced.clear();
        self.next_generation();
        self.protocol = None;
        self.enter(GroupState::Empty, now);
        tracing::info!(group = %self.id, generation = self.generation, "the group is empty");
        let metadata = self.metadata();
        self.store(Storing::Empty, metadata);
    }

    fn start_generation(&mut self, now: Now) {
        self.initial_delay = None;
        self.next_generation();
        self.protocol = self.select_protocol();
        self.enter(GroupState::CompletingRebalance, now);
        tracing::info!(
            group = %self.id,
            generation = self.generation,
            members = self.members.len(),
            "the members have joined"
        );
        let member_ids: Vec<MemberId> = self.members.keys().cloned().collect();
        self.unsynced = member_ids.iter().cloned().collect();
        for member_id in &member_ids {
            let Some(member) = self.members.get_mut(member_id) else {
                continue;
            };
            member.is_new = false;
            if let Some(reply) = member.joining.take() {
                let joined = self.joined(member_id);
                self.answer(reply, Answer::Join(Ok(Box::new(joined))));
            }
            self.restart_session(now, member_id);
        }
        self.timers
            .set(Timer::Sync, now.uptime_ms + self.rebalance_timeout_ms());
    }

    fn next_generation(&mut self) {
        // At one rebalance a second the last number is reached after 68 years; going back to an old
        // one would let its members commit again.
        self.generation = self.generation.saturating_add(1);
    }

    /// Takes every assignment back; whoever waits for one is told why.
    pub(super) fn reset_assignment(&mut self, now: Now, error: GroupError) {
        let mut waiting = Vec::new();
        for (member_id, member) in &mut self.members {
            member.assignment = Bytes::new();
            if let Some(reply) = member.syncing.take() {
                waiting.push((member_id.clone(), reply));
            }
        }
        for (member_id, reply) in waiting {
            self.answer(reply, Answer::Sync(Err(error)));
            self.restart_session(now, &member_id);
        }
    }

    pub(super) fn sync_time_is_up(&mut self, now: Now) {
        let late: Vec<MemberId> = self.unsynced.iter().cloned().collect();
        if late.is_empty() {
            return;
        }
        for member_id in &late {
            tracing::info!(group = %self.id, member = %member_id, "member did not ask for its assignment in time");
            self.remove_member(member_id, GroupError::UnknownMemberId);
        }
        self.prepare_rebalance(now, "members did not ask for their assignment in time");
    }

    pub(super) fn session_expired(&mut self, now: Now, member_id: &MemberId) {
        let Some(member) = self.members.get(member_id) else {
            if self.pending.contains(member_id) {
                self.remove_member(member_id, GroupError::UnknownMemberId);
                self.complete_join_if_all_joined(now);
            }
            return;
        };
        if member.is_excused() {
            // Its session starts again with the answer it waits for.
            return;
        }
        tracing::info!(group = %self.id, member = %member_id, "member has been silent for too long");
        self.remove_member(member_id, GroupError::UnknownMemberId);
        match self.state {
            GroupState::CompletingRebalance | GroupState::Stable => {
                self.prepare_rebalance(now, &format!("member {member_id} has died"));
            }
            _ => self.complete_join_if_all_joined(now),
        }
    }
}
