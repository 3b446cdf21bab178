//! JoinGroup: becoming a member, and being one again.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Answer, Group, GroupError, GroupState, Member, MemberId, NEW_MEMBER_JOIN_TIMEOUT_MS, Now,
    PROTOCOLS_MAX, Protocol, ReplyId, Storing, Timer,
};

/// A JoinGroup request.
#[derive(Clone, Debug)]
pub struct JoinGroup {
    /// Whom to answer.
    pub reply: ReplyId,
    /// Member id, empty for one that has none yet.
    pub member_id: MemberId,
    /// The id to give to a member that has none.
    pub fresh_member_id: MemberId,
    /// A dynamic member without an id must come back with the one it is given (v4+, KIP-394).
    pub id_required: bool,
    /// The client understands `skip_assignment` (v9+, KIP-814).
    pub may_skip_assignment: bool,
    /// Group instance id of a static member.
    pub instance_id: Option<Arc<str>>,
    /// Client id.
    pub client_id: Arc<str>,
    /// Client address.
    pub client_host: Arc<str>,
    /// Session timeout, checked against the broker's bounds by the caller.
    pub session_timeout_ms: i32,
    /// Rebalance timeout.
    pub rebalance_timeout_ms: i32,
    /// Protocol type, `consumer` for one.
    pub protocol_type: Arc<str>,
    /// Protocols, the preferred one first.
    pub protocols: Vec<Protocol>,
    /// Why the client joins, for the log (KIP-800).
    pub reason: Option<String>,
}

/// A member's place in the generation it joined.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Joined {
    /// Its member id.
    pub member_id: MemberId,
    /// Generation.
    pub generation: i32,
    /// Protocol type.
    pub protocol_type: Option<Arc<str>>,
    /// Assignment protocol.
    pub protocol: Option<Arc<str>>,
    /// Leader's member id.
    pub leader: MemberId,
    /// The leader keeps the assignment it has instead of computing one.
    pub skip_assignment: bool,
    /// Every member, for the leader; empty for the others.
    pub members: Vec<JoinedMember>,
}

/// A member as its leader sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinedMember {
    /// Member id.
    pub member_id: MemberId,
    /// Group instance id.
    pub instance_id: Option<Arc<str>>,
    /// Its metadata for the group's protocol.
    pub metadata: Bytes,
}

/// Why a member did not join.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinRefused {
    /// Kafka's error.
    pub error: GroupError,
    /// The id to use from now on; empty to start afresh.
    pub member_id: MemberId,
}

impl Group {
    pub(super) fn refuse_join(&mut self, reply: ReplyId, error: GroupError, member_id: MemberId) {
        self.answer(reply, Answer::Join(Err(JoinRefused { error, member_id })));
    }

    pub(super) fn join(&mut self, now: Now, join: JoinGroup) {
        let reply = join.reply;
        let member_id = join.member_id.clone();
        if self.state == GroupState::Dead {
            self.refuse_join(reply, GroupError::CoordinatorNotAvailable, member_id);
        } else if !self.has_room_for(&member_id) {
            self.refuse_join(reply, GroupError::GroupMaxSizeReached, "".into());
            self.remove_member(&member_id, GroupError::GroupMaxSizeReached);
            self.complete_join_if_all_joined(now);
        } else if !self.supports(&join.protocol_type, &join.protocols) {
            self.refuse_join(reply, GroupError::InconsistentGroupProtocol, member_id);
        } else if member_id.is_empty() {
            self.join_without_id(now, join);
        } else if self.pending.contains(&member_id) && join.instance_id.is_none() {
            self.add_member(now, member_id, join);
        } else {
            match self.check_member(&member_id, join.instance_id.as_ref()) {
                Ok(()) => self.join_again(now, &member_id, join),
                Err(error) => self.refuse_join(reply, error, member_id),
            }
        }
    }

    /// `group.max.size` (KIP-389). While members rejoin, those who have count, not those who were
    /// members before: a limit that was lowered turns the last ones away.
    fn has_room_for(&self, member_id: &str) -> bool {
        let member = self.members.get(member_id);
        match self.state {
            GroupState::Empty | GroupState::Dead => true,
            GroupState::PreparingRebalance => {
                member.is_some_and(|member| member.joining.is_some())
                    || self.joining_count() < self.limits.members_max
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                member.is_some() || self.members.len() < self.limits.members_max
            }
        }
    }

    /// Whether somebody who offers these protocols can be a member.
    fn supports(&self, protocol_type: &str, protocols: &[Protocol]) -> bool {
        if protocol_type.is_empty() || protocols.is_empty() || protocols.len() > PROTOCOLS_MAX {
            return false;
        }
        self.state == GroupState::Empty
            || (self.protocol_type.as_deref() == Some(protocol_type)
                && protocols
                    .iter()
                    .any(|protocol| self.is_common(&protocol.name)))
    }

    fn join_without_id(&mut self, now: Now, join: JoinGroup) {
        let fresh = join.fresh_member_id.clone();
        match &join.instance_id {
            Some(instance) => match self.static_members.get(instance).cloned() {
                Some(former) => self.replace_static_member(now, &former, join),
                None => self.add_member(now, fresh, join),
            },
            None if join.id_required => {
                self.timers.set(
                    Timer::Session(fresh.clone()),
                    now.uptime_ms + i64::from(join.session_timeout_ms),
                );
                self.pending.insert(fresh.clone());
                self.refuse_join(join.reply, GroupError::MemberIdRequired, fresh);
            }
            None => self.add_member(now, fresh, join),
        }
    }

    fn add_member(&mut self, now: Now, member_id: MemberId, join: JoinGroup) {
        self.pending.remove(&member_id);
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type);
        }
        if let Some(delay) = &mut self.initial_delay {
            delay.member_added = true;
        }
        if let Some(instance) = &join.instance_id {
            self.static_members
                .insert(instance.clone(), member_id.clone());
        }
        let reason = format!(
            "adding member {member_id}; client reason: {}",
            client_reason(join.reason.as_deref())
        );
        self.members.insert(
            member_id.clone(),
            Member {
                instance_id: join.instance_id,
                client_id: join.client_id,
                client_host: join.client_host,
                rebalance_timeout_ms: join.rebalance_timeout_ms,
                session_timeout_ms: join.session_timeout_ms,
                protocols: join.protocols,
                assignment: Bytes::new(),
                joining: Some(join.reply),
                syncing: None,
                is_new: true,
            },
        );
        self.leader.get_or_insert_with(|| member_id.clone());
        self.timers.set(
            Timer::Session(member_id),
            now.uptime_ms + NEW_MEMBER_JOIN_TIMEOUT_MS,
        );
        self.rebalance_or_complete_join(now, &reason);
    }

    fn join_again(&mut self, now: Now, member_id: &MemberId, join: JoinGroup) {
        let Some(member) = self.members.get(member_id) else {
            // check_member has just found it.
            return;
        };
        let unchanged = member.protocols == join.protocols;
        match self.state {
            // It may not have seen the answer to its first JoinGroup: tell it again.
            GroupState::CompletingRebalance if unchanged => {
                let joined = self.joined(member_id);
                self.answer(join.reply, Answer::Join(Ok(Box::new(joined))));
            }
            // A leader joins again when something else it assigns by has changed, added partitions
            // for one; nobody else has a reason to disturb the group.
            GroupState::Stable if unchanged && !self.is_leader(member_id) => {
                let joined = self.joined(member_id);
                self.answer(join.reply, Answer::Join(Ok(Box::new(joined))));
            }
            _ => {
                let reason = format!(
                    "member {member_id} joins again; client reason: {}",
                    client_reason(join.reason.as_deref())
                );
                self.update_member(member_id, join);
                self.rebalance_or_complete_join(now, &reason);
            }
        }
    }

    fn update_member(&mut self, member_id: &MemberId, join: JoinGroup) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        member.protocols = join.protocols;
        member.rebalance_timeout_ms = join.rebalance_timeout_ms;
        member.session_timeout_ms = join.session_timeout_ms;
        if let Some(superseded) = member.joining.replace(join.reply) {
            // Only a client that gave up on its first request sends a second one.
            self.refuse_join(
                superseded,
                GroupError::RebalanceInProgress,
                member_id.clone(),
            );
        }
    }

    /// A static member that lost its id takes its former place, and the assignment with it.
    fn replace_static_member(&mut self, now: Now, former: &MemberId, join: JoinGroup) {
        let Some(mut member) = self.members.remove(former) else {
            // static_members names members only.
            return;
        };
        let member_id = join.fresh_member_id.clone();
        let may_skip_assignment = join.may_skip_assignment;
        let former_leader = self.leader.clone();
        let reason = format!(
            "static member {} replaces {former}; client reason: {}",
            member_id,
            client_reason(join.reason.as_deref())
        );
        tracing::info!(group = %self.id, member = %member_id, former = %former, "static member came back");

        // Two processes with one instance id: the older one stops.
        if let Some(reply) = member.joining.take() {
            self.refuse_join(reply, GroupError::FencedInstanceId, former.clone());
        }
        self.refuse_waiting(&mut member, GroupError::FencedInstanceId);
        if self.unsynced.remove(former) {
            self.unsynced.insert(member_id.clone());
        }
        if self.is_leader(former) {
            self.leader = Some(member_id.clone());
        }
        if let Some(instance) = &member.instance_id {
            self.static_members
                .insert(instance.clone(), member_id.clone());
        }
        member.is_new = false;
        member.client_id = join.client_id.clone();
        member.client_host = join.client_host.clone();
        self.members.insert(member_id.clone(), member);
        self.update_member(&member_id, join);
        self.timers.cancel(&Timer::Session(former.clone()));
        self.restart_session(now, &member_id);

        match self.state {
            GroupState::Stable if self.select_protocol() == self.protocol => {
                // Same protocol, same assignment: the others need not notice.
                let metadata = self.metadata();
                self.store(
                    Storing::StaticMember {
                        member_id,
                        former_leader,
                        may_skip_assignment,
                    },
                    metadata,
                );
            }
            // In CompletingRebalance the leader may be computing an assignment for the former id.
            GroupState::Stable | GroupState::CompletingRebalance => {
                self.prepare_rebalance(now, &reason);
            }
            _ => self.complete_join_if_due(now),
        }
    }

    /// Answers a static member that came back to a stable group, once its new id is in the log.
    pub(super) fn static_member_stored(
        &mut self,
        member_id: &MemberId,
        former_leader: Option<MemberId>,
        may_skip_assignment: bool,
        result: Result<(), GroupError>,
    ) {
        let Some(reply) = self
            .members
            .get_mut(member_id)
            .and_then(|member| member.joining.take())
        else {
            return;
        };
        if let Err(error) = result {
            // The former id stays fenced: the client joins again without an id and gets another.
            return self.refuse_join(reply, error, "".into());
        }
        let mut joined = self.joined(member_id);
        if may_skip_assignment {
            joined.skip_assignment = self.is_leader(member_id);
        } else {
            // A client that cannot skip the assignment must not find itself the leader, or it would
            // compute one that nobody waits for.
            joined.leader = former_leader.unwrap_or_default();
            joined.members = Vec::new();
        }
        self.answer(reply, Answer::Join(Ok(Box::new(joined))));
    }

    /// What a member learns of the generation it is in.
    pub(super) fn joined(&self, member_id: &MemberId) -> Joined {
        let members = if self.is_leader(member_id) {
            self.members
                .iter()
                .map(|(id, member)| JoinedMember {
                    member_id: id.clone(),
                    instance_id: member.instance_id.clone(),
                    metadata: self
                        .protocol
                        .as_ref()
                        .and_then(|protocol| member.metadata(protocol))
                        .cloned()
                        .unwrap_or_default(),
                })
                .collect()
        } else {
            Vec::new()
        };
        Joined {
            member_id: member_id.clone(),
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            members,
        }
    }
}

/// Longest client reason that is logged, in characters: Kafka's clients cut theirs here.
const REASON_CHARS_MAX: usize = 255;

pub(super) fn client_reason(reason: Option<&str>) -> String {
    reason
        .unwrap_or("not provided")
        .chars()
        .take(REASON_CHARS_MAX)
        .collect()
}
