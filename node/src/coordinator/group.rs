//! One classic consumer group: membership, generations and assignments, without sockets, clock,
//! randomness or log.
//!
//! [`Group::step`] takes what happened and returns what must be done. Its states are Kafka's:
//!
//! ```text
//!            join                all joined, or join timer         assignment stored
//!   Empty ────────▶ PreparingRebalance ───────▶ CompletingRebalance ───────▶ Stable
//!     ▲                 │   ▲  ▲                      │                        │
//!     └─ nobody joined ─┘   │  └── join, leave, death ┘                        │
//!                           └─────────── join, leave, death, sync timer ───────┘
//!   any ── deleted or unloaded ──▶ Dead
//! ```
//!
//! *Storing.* [`Action::Persist`] asks for the group's metadata to be appended to its log; the caller
//! appends it at once and reports with [`Event::Persisted`] before any other event. The group believes
//! an assignment only once it is in the log, so that a coordinator that takes over knows every
//! assignment a member may have seen.
//!
//! *Waiting.* A JoinGroup or SyncGroup is answered exactly once: when its phase ends, when its member
//! goes, when a newer request of the same member takes its place, or when the group is unloaded.
//!
//! *Timers* belong to the group: the caller wakes it with [`Event::Tick`] at [`Group::next_deadline`].
//!
//! Rules by their source: KIP-62 (rebalance timeout), KIP-134 (initial rebalance delay), KIP-345 (static
//! members), KIP-389 (`group.max.size`), KIP-394 (member id required), KIP-559 (protocol type and name in
//! SyncGroup), KIP-800 (reasons), KIP-814 (a static leader that comes back skips the assignment).

mod join;
mod leave;
mod member;
mod rebalance;
mod sync;

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::deadlines::Deadlines;
use super::error::GroupError;
use super::offsets_log::GroupMetadata;
use super::subscription;

pub use join::{JoinGroup, JoinRefused, Joined, JoinedMember};
pub use leave::{LeaveGroup, LeavingMember};
pub use member::{Member, Protocol};
pub use sync::{SyncGroup, Synced};

/// A member id: the coordinator's name for one incarnation of a member.
pub type MemberId = Arc<str>;

/// The two clocks of one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Now {
    /// Milliseconds of a clock that never jumps: deadlines.
    pub uptime_ms: i64,
    /// Milliseconds since 1970: what is written into records.
    pub wall_ms: i64,
}

/// Names a request that waits for its answer.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ReplyId(pub u64);

/// The limits of every group of a broker, Kafka's property names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GroupLimits {
    /// `group.min.session.timeout.ms`
    pub session_timeout_ms_min: i32,
    /// `group.max.session.timeout.ms`
    pub session_timeout_ms_max: i32,
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members.
    pub initial_rebalance_delay_ms: i32,
    /// `group.max.size`
    pub members_max: usize,
}

/// How long a member that has just joined may wait for its first rebalance to end without a session
/// timeout of its own: it does not know its member id, so it cannot send heartbeats.
pub(crate) const NEW_MEMBER_JOIN_TIMEOUT_MS: i64 = 5 * 60 * 1_000;

/// Protocols one member may offer. The Java consumer offers two, Connect three.
pub(crate) const PROTOCOLS_MAX: usize = 100;

/// Kafka's states of a classic group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GroupState {
    /// No members.
    Empty,
    /// Members join.
    PreparingRebalance,
    /// Members joined; the leader computes the assignment.
    CompletingRebalance,
    /// Every member may have its assignment.
    Stable,
    /// Deleted, or led by another node.
    Dead,
}

impl GroupState {
    /// The name that DescribeGroups and ListGroups show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
            Self::Dead => "Dead",
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A member wants to join, or to join again.
    Join(Box<JoinGroup>),
    /// A member asks for its assignment; the leader brings everyone's.
    Sync(SyncGroup),
    /// A member is alive.
    Heartbeat {
        /// Whom to answer.
        reply: ReplyId,
        /// Its member id.
        member_id: MemberId,
        /// Its group instance id.
        instance_id: Option<Arc<str>>,
        /// The generation it believes in.
        generation: i32,
    },
    /// Members leave.
    Leave(LeaveGroup),
    /// What [`Action::Persist`] asked for is in the log, or was refused by it.
    Persisted(Result<(), GroupError>),
    /// The coordinator has just read the group from its log.
    Loaded,
    /// Time has passed.
    Tick,
    /// The group is deleted.
    Delete,
    /// This node no longer coordinates the group.
    Unload,
}

/// What must be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Append this to the log, then report [`Event::Persisted`] before any other event.
    Persist(GroupMetadata),
    /// Answer a request.
    Answer(ReplyId, Answer),
}

/// The answer to a request.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// To [`Event::Join`].
    Join(Result<Box<Joined>, JoinRefused>),
    /// To [`Event::Sync`].
    Sync(Result<Synced, GroupError>),
    /// To [`Event::Heartbeat`].
    Heartbeat(Result<(), GroupError>),
    /// To [`Event::Leave`]: one result per member, in the order of the request.
    Leave(Result<Vec<Result<(), GroupError>>, GroupError>),
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Timer {
    /// End of the join phase.
    Join,
    /// End of the sync phase.
    Sync,
    /// A member, or one that was promised a member id, has been silent for too long.
    Session(MemberId),
}

/// Why the metadata in [`Action::Persist`] is being stored.
#[derive(Clone, Debug, PartialEq)]
enum Storing {
    /// The leader's assignment, by member id.
    Assignment(BTreeMap<MemberId, Bytes>),
    /// A static member came back under a new id; it waits for its answer.
    StaticMember {
        member_id: MemberId,
        former_leader: Option<MemberId>,
        may_skip_assignment: bool,
    },
    /// The group lost its last member.
    Empty,
}

/// A classic group. See the module's documentation.
#[derive(Debug)]
pub struct Group {
    id: Arc<str>,
    limits: GroupLimits,
    state: GroupState,
    /// When `state` was entered, wall clock; −1 if the log did not say.
    state_timestamp_ms: i64,
    generation: i32,
    protocol_type: Option<Arc<str>>,
    protocol: Option<Arc<str>>,
    leader: Option<MemberId>,
    members: BTreeMap<MemberId, Member>,
    /// Member id by group instance id.
    static_members: BTreeMap<Arc<str>, MemberId>,
    /// Member ids given out that have not joined yet.
    pending: BTreeSet<MemberId>,
    /// Members of this generation that have not asked for their assignment yet.
    unsynced: BTreeSet<MemberId>,
    /// Only while an empty group waits for its first members (KIP-134).
    initial_delay: Option<rebalance::InitialDelay>,
    timers: Deadlines<Timer>,
    storing: Option<Storing>,
    /// The log holds a record of this group.
    stored: bool,
    actions: Vec<Action>,
}

impl Group {
    /// A group that nobody has joined.
    pub fn new(id: Arc<str>, limits: GroupLimits, now: Now) -> Self {
        Self {
            id,
            limits,
            state: GroupState::Empty,
            state_timestamp_ms: now.wall_ms,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            initial_delay: None,
            timers: Deadlines::new(),
            storing: None,
            stored: false,
            actions: Vec::new(),
        }
    }

    /// The group as the log has it. Its timers start with [`Event::Loaded`].
    pub fn restore(id: Arc<str>, limits: GroupLimits, stored: &GroupMetadata) -> Self {
        let mut group = Self::new(
            id,
            limits,
            Now {
                uptime_ms: 0,
                wall_ms: stored.state_timestamp_ms,
            },
        );
        group.stored = true;
        group.generation = stored.generation;
        group.protocol_type =
            (!stored.protocol_type.is_empty()).then(|| stored.protocol_type.clone());
        group.protocol = stored.protocol.clone();
        for stored_member in &stored.members {
            let member = Member::restore(stored_member, stored.protocol.as_ref());
            if let Some(instance) = &member.instance_id {
                group
                    .static_members
                    .insert(instance.clone(), stored_member.member_id.clone());
            }
            group
                .members
                .insert(stored_member.member_id.clone(), member);
        }
        group.leader = stored
            .leader
            .clone()
            .filter(|leader| group.members.contains_key(leader))
            .or_else(|| group.members.keys().next().cloned());
        if !group.members.is_empty() {
            group.state = GroupState::Stable;
        }
        group
    }

    /// Takes in what happened and returns what must be done, in order.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        debug_assert!(
            self.storing.is_none() || matches!(event, Event::Persisted(_)),
            "an append is reported before anything else happens"
        );
        match event {
            Event::Join(join) => self.join(now, *join),
            Event::Sync(sync) => self.sync(now, sync),
            Event::Heartbeat {
                reply,
                member_id,
                instance_id,
                generation,
            } => {
                let answer = self.heartbeat(now, &member_id, instance_id.as_ref(), generation);
                self.answer(reply, Answer::Heartbeat(answer));
            }
            Event::Leave(leave) => self.leave(now, leave),
            Event::Persisted(result) => self.persisted(now, result),
            Event::Loaded => self.loaded(now),
            Event::Tick => self.tick(now),
            Event::Delete | Event::Unload => self.die(now),
        }
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Tick`] is due at the latest, in uptime milliseconds.
    pub fn next_deadline(&self) -> Option<i64> {
        self.timers.next()
    }

    /// Whether a member may commit offsets, and if so, counts as a sign of life.
    ///
    /// A commit without generation and member is an administrator's, or of a consumer that assigns
    /// partitions itself: allowed while the group has no members.
    ///
    /// # Errors
    /// What Kafka answers: the member is unknown or fenced, its generation is old, or the group waits
    /// for an assignment.
    pub fn admit_commit(
        &mut self,
        now: Now,
        member_id: &MemberId,
        instance_id: Option<&Arc<str>>,
        generation: i32,
    ) -> Result<(), GroupError> {
        match self.state {
            GroupState::Dead => return Err(GroupError::CoordinatorNotAvailable),
            GroupState::Empty if generation < 0 => return Ok(()),
            _ => {}
        }
        if generation < 0 && member_id.is_empty() && instance_id.is_none() {
            return Err(GroupError::UnknownMemberId);
        }
        self.check_member(member_id, instance_id)?;
        if generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        match self.state {
            // The member knows the new generation but no assignment in it: it must not commit yet.
            GroupState::CompletingRebalance => Err(GroupError::RebalanceInProgress),
            _ => {
                self.restart_session(now, member_id);
                Ok(())
            }
        }
    }

    /// Whether the group may be deleted.
    ///
    /// # Errors
    /// It has members, or is gone already.
    pub fn check_deletable(&self) -> Result<(), GroupError> {
        match self.state {
            GroupState::Empty => Ok(()),
            GroupState::Dead => Err(GroupError::GroupIdNotFound),
            _ => Err(GroupError::NonEmptyGroup),
        }
    }

    /// Whether single offsets of the group may be deleted (KIP-496): a group whose subscriptions the
    /// coordinator cannot read must be empty.
    ///
    /// # Errors
    /// It has members of another protocol type, or is gone.
    pub fn check_offsets_deletable(&self) -> Result<(), GroupError> {
        match self.state {
            GroupState::Empty => Ok(()),
            GroupState::Dead => Err(GroupError::GroupIdNotFound),
            _ if self.is_consumer_group() => Ok(()),
            _ => Err(GroupError::NonEmptyGroup),
        }
    }

    /// Group id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// State.
    pub fn state(&self) -> GroupState {
        self.state
    }

    /// When the state was entered, wall clock; −1 if the log did not say.
    pub fn state_timestamp_ms(&self) -> i64 {
        self.state_timestamp_ms
    }

    /// Generation.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// Protocol type, none for a group that only commits offsets.
    pub fn protocol_type(&self) -> Option<&Arc<str>> {
        self.protocol_type.as_ref()
    }

    /// Assignment protocol of this generation.
    pub fn protocol(&self) -> Option<&Arc<str>> {
        self.protocol.as_ref()
    }

    /// Member id of the leader.
    pub fn leader(&self) -> Option<&MemberId> {
        self.leader.as_ref()
    }

    /// Members by member id.
    pub fn members(&self) -> &BTreeMap<MemberId, Member> {
        &self.members
    }

    /// Whether the group is in the log, so that deleting it takes a tombstone.
    pub fn is_stored(&self) -> bool {
        self.stored
    }

    /// Whether nothing would be lost by forgetting the group: it is not in the log and nobody is
    /// about to join it.
    pub fn is_forgettable(&self) -> bool {
        self.state == GroupState::Empty && !self.stored && self.pending.is_empty()
    }

    /// Whether a member id was promised to somebody who has not joined with it yet.
    pub fn awaits_members(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether its members speak the consumer protocol.
    pub fn is_consumer_group(&self) -> bool {
        self.protocol_type.as_deref() == Some("consumer")
    }

    /// Topics the members are subscribed to; none when that cannot be told.
    pub fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        if !self.is_consumer_group() {
            return None;
        }
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(subscription::topics(
                member.metadata(self.protocol.as_ref()?)?,
            )?);
        }
        Some(topics)
    }

    /// What a record of the group would say now.
    pub fn metadata(&self) -> GroupMetadata {
        GroupMetadata {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_timestamp_ms: self.state_timestamp_ms,
            members: self
                .members
                .iter()
                .map(|(id, member)| member.stored(id, self.protocol.as_ref()))
                .collect(),
        }
    }

    fn answer(&mut self, reply: ReplyId, answer: Answer) {
        self.actions.push(Action::Answer(reply, answer));
    }

    fn enter(&mut self, state: GroupState, now: Now) {
        self.state = state;
        self.state_timestamp_ms = now.wall_ms;
    }

    fn store(&mut self, why: Storing, metadata: GroupMetadata) {
        self.storing = Some(why);
        self.actions.push(Action::Persist(metadata));
    }

    fn is_leader(&self, member_id: &str) -> bool {
        self.leader.as_deref() == Some(member_id)
    }

    fn check_member(
        &self,
        member_id: &MemberId,
        instance_id: Option<&Arc<str>>,
    ) -> Result<(), GroupError> {
        if let Some(instance) = instance_id {
            let current = self
                .static_members
                .get(instance)
                .ok_or(GroupError::UnknownMemberId)?;
            if current != member_id {
                return Err(GroupError::FencedInstanceId);
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(GroupError::UnknownMemberId)
        }
    }

    fn heartbeat(
        &mut self,
        now: Now,
        member_id: &MemberId,
        instance_id: Option<&Arc<str>>,
        generation: i32,
    ) -> Result<(), GroupError> {
        if self.state == GroupState::Dead {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        self.check_member(member_id, instance_id)?;
        if generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        self.restart_session(now, member_id);
        match self.state {
            GroupState::PreparingRebalance => Err(GroupError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    fn restart_session(&mut self, now: Now, member_id: &MemberId) {
        if let Some(member) = self.members.get(member_id) {
            self.timers.set(
                Timer::Session(member_id.clone()),
                now.uptime_ms + i64::from(member.session_timeout_ms),
            );
        }
    }

    fn loaded(&mut self, now: Now) {
        let members: Vec<MemberId> = self.members.keys().cloned().collect();
        for member_id in &members {
            self.restart_session(now, member_id);
        }
        if members.len() > self.limits.members_max {
            self.prepare_rebalance(now, "the group is larger than group.max.size now");
        }
    }

    fn tick(&mut self, now: Now) {
        while let Some(timer) = self.timers.pop_due(now.uptime_ms) {
            match timer {
                Timer::Join => self.join_time_is_up(now),
                Timer::Sync => self.sync_time_is_up(now),
                Timer::Session(member_id) => self.session_expired(now, &member_id),
            }
            if self.storing.is_some() {
                // The append comes first; what else is due fires at the next tick.
                return;
            }
        }
    }

    fn persisted(&mut self, now: Now, result: Result<(), GroupError>) {
        self.stored |= result.is_ok();
        match self.storing.take() {
            Some(Storing::Assignment(assignment)) => {
                self.assignment_stored(now, assignment, result);
            }
            Some(Storing::StaticMember {
                member_id,
                former_leader,
                may_skip_assignment,
            }) => self.static_member_stored(&member_id, former_leader, may_skip_assignment, result),
            Some(Storing::Empty) => {
                // Without the record the previous generation comes back after a failover, and its
                // members time out there: nothing is lost, so nobody is told.
                if let Err(error) = result {
                    tracing::warn!(group = %self.id, %error, "the empty group was not stored");
                }
            }
            None => {}
        }
    }

    fn die(&mut self, now: Now) {
        let members: Vec<MemberId> = self.members.keys().cloned().collect();
        for member_id in members {
            self.remove_member(&member_id, GroupError::NotCoordinator);
        }
        self.pending.clear();
        self.timers.clear();
        self.initial_delay = None;
        self.enter(GroupState::Dead, now);
    }

    /// Takes a member or a promised member id out of the group; whatever it waits for is answered.
    fn remove_member(&mut self, member_id: &MemberId, answer: GroupError) {
        if let Some(mut member) = self.members.remove(member_id) {
            self.refuse_waiting(&mut member, answer);
            if let Some(instance) = &member.instance_id {
                self.static_members.remove(instance);
            }
        }
        self.pending.remove(member_id);
        self.unsynced.remove(member_id);
        self.timers.cancel(&Timer::Session(member_id.clone()));
        if self.is_leader(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// Ends whatever the member waits for with an error; the member starts afresh without an id.
    fn refuse_waiting(&mut self, member: &mut Member, error: GroupError) {
        if let Some(reply) = member.joining.take() {
            self.refuse_join(reply, error, "".into());
        }
        if let Some(reply) = member.syncing.take() {
            self.answer(reply, Answer::Sync(Err(error)));
        }
    }
}
