//! One scene per rule of the classic protocol.

use super::*;

const LIMITS: GroupLimits = GroupLimits {
    session_timeout_ms_min: 6_000,
    session_timeout_ms_max: 1_800_000,
    initial_rebalance_delay_ms: 3_000,
    members_max: 3,
};
const SESSION_MS: i32 = 10_000;
const REBALANCE_MS: i32 = 60_000;

/// A group, its clock, its log, and the answers it has given.
struct Scene {
    group: Group,
    now: Now,
    log: Vec<GroupMetadata>,
    log_fails: Option<GroupError>,
    next_reply: u64,
    answers: BTreeMap<ReplyId, Answer>,
}

impl Scene {
    fn new() -> Self {
        let now = Now {
            uptime_ms: 1_000,
            wall_ms: 1_700_000_000_000,
        };
        Self {
            group: Group::new("g".into(), LIMITS, now),
            now,
            log: Vec::new(),
            log_fails: None,
            next_reply: 0,
            answers: BTreeMap::new(),
        }
    }

    fn step(&mut self, event: Event) {
        for action in self.group.step(self.now, event) {
            match action {
                Action::Persist(metadata) => {
                    let result = match self.log_fails {
                        Some(error) => Err(error),
                        None => {
                            self.log.push(metadata);
                            Ok(())
                        }
                    };
                    self.step(Event::Persisted(result));
                }
                Action::Answer(reply, answer) => {
                    assert!(
                        self.answers.insert(reply, answer).is_none(),
                        "answered twice"
                    );
                }
            }
        }
    }

    fn reply(&mut self) -> ReplyId {
        self.next_reply += 1;
        ReplyId(self.next_reply)
    }

    fn pass(&mut self, ms: i64) {
        let end = self.now.uptime_ms + ms;
        while let Some(at) = self.group.next_deadline().filter(|at| *at <= end) {
            self.set_time(at.max(self.now.uptime_ms));
            self.step(Event::Tick);
        }
        self.set_time(end);
    }

    fn set_time(&mut self, uptime_ms: i64) {
        self.now.wall_ms += uptime_ms - self.now.uptime_ms;
        self.now.uptime_ms = uptime_ms;
    }

    fn request(&mut self, member_id: &str, fresh: &str) -> JoinGroup {
        JoinGroup {
            reply: self.reply(),
            member_id: member_id.into(),
            fresh_member_id: fresh.into(),
            id_required: false,
            may_skip_assignment: false,
            instance_id: None,
            client_id: "client".into(),
            client_host: "/127.0.0.1".into(),
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            protocol_type: "consumer".into(),
            protocols: protocols(&["range", "roundrobin"]),
            reason: None,
        }
    }

    fn send(&mut self, request: JoinGroup) -> ReplyId {
        let reply = request.reply;
        self.step(Event::Join(Box::new(request)));
        reply
    }

    fn join(&mut self, member_id: &str, fresh: &str) -> ReplyId {
        let request = self.request(member_id, fresh);
        self.send(request)
    }

    fn join_static(&mut self, instance: &str, fresh: &str, may_skip: bool) -> ReplyId {
        let mut request = self.request("", fresh);
        request.instance_id = Some(instance.into());
        request.may_skip_assignment = may_skip;
        self.send(request)
    }

    fn joined(&self, reply: ReplyId) -> &Joined {
        match &self.answers[&reply] {
            Answer::Join(Ok(joined)) => joined,
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self, reply: ReplyId) -> (GroupError, &str) {
        match &self.answers[&reply] {
            Answer::Join(Err(refused)) => (refused.error, &refused.member_id),
            other => panic!("{other:?}"),
        }
    }

    fn sync_request(&mut self, member_id: &str, assignments: &[(&str, &'static str)]) -> SyncGroup {
        SyncGroup {
            reply: self.reply(),
            member_id: member_id.into(),
            instance_id: None,
            generation: self.group.generation(),
            protocol_type: None,
            protocol: None,
            assignments: assignments
                .iter()
                .map(|(id, bytes)| (MemberId::from(*id), Bytes::from_static(bytes.as_bytes())))
                .collect(),
        }
    }

    fn sync(&mut self, member_id: &str, assignments: &[(&str, &'static str)]) -> ReplyId {
        let request = self.sync_request(member_id, assignments);
        let reply = request.reply;
        self.step(Event::Sync(request));
        reply
    }

    fn synced(&self, reply: ReplyId) -> Result<&[u8], GroupError> {
        match &self.answers[&reply] {
            Answer::Sync(Ok(synced)) => Ok(&synced.assignment),
            Answer::Sync(Err(error)) => Err(*error),
            other => panic!("{other:?}"),
        }
    }

    fn heartbeat(&mut self, member_id: &str) -> Result<(), GroupError> {
        let reply = self.reply();
        self.step(Event::Heartbeat {
            reply,
            member_id: member_id.into(),
            instance_id: None,
            generation: self.group.generation(),
        });
        match self.answers[&reply] {
            Answer::Heartbeat(result) => result,
            ref other => panic!("{other:?}"),
        }
    }

    fn leave(&mut self, members: &[(&str, Option<&str>)]) -> Vec<Result<(), GroupError>> {
        let reply = self.reply();
        self.step(Event::Leave(LeaveGroup {
            reply,
            members: members
                .iter()
                .map(|(id, instance)| LeavingMember {
                    member_id: (*id).into(),
                    instance_id: instance.map(Arc::from),
                    reason: None,
                })
                .collect(),
        }));
        match self.answers.remove(&reply) {
            Some(Answer::Leave(Ok(results))) => results,
            other => panic!("{other:?}"),
        }
    }

    /// A stable group of `a` (the leader) and `b`, dynamic or static.
    fn stable(is_static: bool) -> Self {
        let mut scene = Self::new();
        for (id, instance) in [("a", "ia"), ("b", "ib")] {
            if is_static {
                scene.join_static(instance, id, true);
            } else {
                scene.join("", id);
            }
        }
        scene.pass(10_000);
        scene.sync("b", &[]);
        scene.sync("a", &[("a", "A"), ("b", "B")]);
        assert_eq!(scene.group.state(), GroupState::Stable);
        assert_eq!(scene.group.leader().map(|id| &**id), Some("a"));
        scene
    }
}

fn protocols(names: &[&str]) -> Vec<Protocol> {
    names
        .iter()
        .map(|name| Protocol {
            name: (*name).into(),
            metadata: Bytes::from_static(b"topics"),
        })
        .collect()
}

#[test]
fn a_dynamic_member_first_gets_an_id_and_then_joins_with_it() {
    let mut scene = Scene::new();
    let mut request = scene.request("", "a");
    request.id_required = true;
    let reply = scene.send(request);
    assert_eq!(scene.refused(reply), (GroupError::MemberIdRequired, "a"));
    assert_eq!(scene.group.state(), GroupState::Empty);
    assert!(!scene.group.is_forgettable());

    let reply = scene.join("a", "unused");
    scene.pass(3_000);
    let joined = scene.joined(reply);
    assert_eq!((&*joined.member_id, &*joined.leader), ("a", "a"));
    assert_eq!((joined.generation, joined.members.len()), (1, 1));
    assert_eq!(joined.protocol.as_deref(), Some("range"));
}

#[test]
fn a_promised_id_that_nobody_uses_is_forgotten_after_the_session_timeout() {
    let mut scene = Scene::new();
    let mut request = scene.request("", "a");
    request.id_required = true;
    scene.send(request);
    scene.pass(i64::from(SESSION_MS));
    assert!(scene.group.is_forgettable());
    let reply = scene.join("a", "unused");
    assert_eq!(scene.refused(reply), (GroupError::UnknownMemberId, "a"));
}

#[test]
fn an_empty_group_waits_for_more_members_while_they_keep_coming() {
    let mut scene = Scene::new();
    let first = scene.join("", "a");
    scene.pass(2_999);
    let second = scene.join("", "b");
    scene.pass(2_000);
    assert!(!scene.answers.contains_key(&first));
    scene.pass(1_001);
    assert_eq!(scene.joined(first).generation, 1);
    assert_eq!(scene.joined(first).members.len(), 2);
    assert_eq!(scene.joined(second).members.len(), 0);
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
}

#[test]
fn assignments_are_stored_before_anybody_sees_them() {
    let mut scene = Scene::new();
    scene.join("", "a");
    scene.join("", "b");
    scene.pass(10_000);
    let follower = scene.sync("b", &[("a", "evil"), ("b", "evil")]);
    assert!(!scene.answers.contains_key(&follower));
    let leader = scene.sync("a", &[("a", "A"), ("b", "B"), ("nobody", "N")]);
    assert_eq!(scene.synced(leader), Ok(&b"A"[..]));
    assert_eq!(scene.synced(follower), Ok(&b"B"[..]));
    assert_eq!(scene.log, vec![scene.group.metadata()]);
    assert_eq!(scene.log[0].members[1].assignment, &b"B"[..]);
    assert_eq!(scene.log[0].members.len(), 2);
}

#[test]
fn an_assignment_that_cannot_be_stored_is_not_believed() {
    let mut scene = Scene::new();
    scene.join("", "a");
    scene.join("", "b");
    scene.pass(10_000);
    scene.log_fails = Some(GroupError::NotCoordinator);
    let follower = scene.sync("b", &[]);
    let leader = scene.sync("a", &[("a", "A"), ("b", "B")]);
    assert_eq!(scene.synced(leader), Err(GroupError::NotCoordinator));
    assert_eq!(scene.synced(follower), Err(GroupError::NotCoordinator));
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
}

#[test]
fn the_leader_rejoining_rebalances_and_an_unchanged_follower_does_not() {
    let mut scene = Scene::stable(false);
    let follower = scene.join("b", "unused");
    assert_eq!(scene.joined(follower).generation, 1);
    assert_eq!(scene.joined(follower).members, vec![]);
    assert_eq!(scene.group.state(), GroupState::Stable);

    let leader = scene.join("a", "unused");
    assert!(!scene.answers.contains_key(&leader));
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
    assert_eq!(scene.heartbeat("b"), Err(GroupError::RebalanceInProgress));
    scene.join("b", "unused");
    assert_eq!(scene.joined(leader).generation, 2);
    assert_eq!(scene.joined(leader).members.len(), 2);
}

#[test]
fn a_follower_with_new_metadata_rebalances() {
    let mut scene = Scene::stable(false);
    let mut request = scene.request("b", "unused");
    request.protocols[0].metadata = Bytes::from_static(b"other topics");
    scene.send(request);
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
}

#[test]
fn a_lost_join_answer_is_given_again_while_the_assignment_is_computed() {
    let mut scene = Scene::new();
    let first = scene.join("", "a");
    scene.pass(3_000);
    let again = scene.join("a", "unused");
    assert_eq!(scene.joined(again), scene.joined(first));
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
}

#[test]
fn a_second_join_of_a_member_ends_the_first() {
    let mut scene = Scene::stable(false);
    let first = scene.join("a", "unused");
    let second = scene.join("a", "unused");
    assert_eq!(scene.refused(first), (GroupError::RebalanceInProgress, "a"));
    scene.join("b", "unused");
    assert_eq!(scene.joined(second).generation, 2);
}

#[test]
fn the_protocol_most_members_prefer_among_the_common_ones_wins() {
    let mut scene = Scene::new();
    for (id, offers) in [
        ("a", ["sticky", "range", "roundrobin"]),
        ("b", ["roundrobin", "range", "other"]),
        ("c", ["roundrobin", "range", "sticky"]),
    ] {
        let mut request = scene.request("", id);
        request.protocols = protocols(&offers);
        scene.send(request);
    }
    scene.pass(6_000);
    assert_eq!(
        scene.group.protocol().map(|name| &**name),
        Some("roundrobin")
    );
}

#[test]
fn a_member_with_nothing_in_common_is_refused() {
    let mut scene = Scene::stable(false);
    let mut stranger = scene.request("", "c");
    stranger.protocols = protocols(&["alien"]);
    let mut worker = scene.request("", "d");
    worker.protocol_type = "connect".into();
    let mut empty = scene.request("", "e");
    empty.protocols.clear();
    for request in [stranger, worker, empty] {
        let reply = scene.send(request);
        assert_eq!(
            scene.refused(reply).0,
            GroupError::InconsistentGroupProtocol
        );
    }
    assert_eq!(scene.group.state(), GroupState::Stable);
}

#[test]
fn a_full_group_takes_nobody_else() {
    let mut scene = Scene::stable(false);
    scene.join("", "c");
    scene.join("a", "unused");
    scene.join("b", "unused");
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
    let fourth = scene.join("", "d");
    assert_eq!(scene.refused(fourth), (GroupError::GroupMaxSizeReached, ""));
    assert_eq!(scene.group.members().len(), 3);
}

#[test]
fn members_that_do_not_rejoin_in_time_are_left_behind() {
    let mut scene = Scene::stable(false);
    let joiner = scene.join("", "c");
    let survivor = scene.join("b", "unused");
    // `a` is alive but never joins again.
    for _ in 0..12 {
        scene.pass(5_000);
        if scene.group.members().contains_key("a") {
            let _ = scene.heartbeat("a");
        }
    }
    assert_eq!(scene.joined(joiner).generation, 2);
    let leader = scene.joined(survivor).leader.clone();
    assert!(&*leader == "b" || &*leader == "c");
    assert_eq!(scene.heartbeat("a"), Err(GroupError::UnknownMemberId));
}

#[test]
fn a_silent_member_dies_and_the_group_rebalances() {
    let mut scene = Scene::stable(false);
    for _ in 0..3 {
        scene.pass(4_000);
        let _ = scene.heartbeat("a");
    }
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
    assert_eq!(scene.group.members().len(), 1);
    assert_eq!(scene.heartbeat("b"), Err(GroupError::UnknownMemberId));
}

#[test]
fn members_that_never_ask_for_their_assignment_are_left_behind() {
    let mut scene = Scene::new();
    scene.join("", "a");
    scene.join("", "b");
    scene.pass(6_000);
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
    scene.sync("a", &[("a", "A"), ("b", "B")]);
    assert_eq!(scene.group.state(), GroupState::Stable);
    for _ in 0..15 {
        scene.pass(4_000);
        let _ = scene.heartbeat("a");
        let _ = scene.heartbeat("b");
    }
    assert!(!scene.group.members().contains_key("b"));
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
}

#[test]
fn the_last_member_leaving_empties_the_group() {
    let mut scene = Scene::stable(false);
    assert_eq!(
        scene.leave(&[("a", None), ("b", None), ("c", None)]),
        vec![Ok(()), Ok(()), Err(GroupError::UnknownMemberId)]
    );
    assert_eq!(scene.group.state(), GroupState::Empty);
    assert_eq!(scene.group.generation(), 2);
    assert_eq!(scene.log.last(), Some(&scene.group.metadata()));
    assert_eq!(scene.group.next_deadline(), None);
    assert!(!scene.group.is_forgettable());
}

#[test]
fn leaving_ends_whatever_the_member_waits_for() {
    let mut scene = Scene::new();
    scene.join("", "a");
    scene.join("", "b");
    scene.pass(6_000);
    let waiting = scene.sync("b", &[]);
    assert_eq!(scene.leave(&[("b", None)]), vec![Ok(())]);
    assert_eq!(scene.synced(waiting), Err(GroupError::UnknownMemberId));
}

#[test]
fn a_static_member_that_comes_back_keeps_its_assignment_and_disturbs_nobody() {
    let mut scene = Scene::stable(true);
    let back = scene.join_static("ib", "b2", true);
    let joined = scene.joined(back);
    assert_eq!((&*joined.member_id, joined.generation), ("b2", 1));
    assert!(!joined.skip_assignment);
    assert_eq!(scene.group.state(), GroupState::Stable);
    assert_eq!(scene.log.last(), Some(&scene.group.metadata()));
    let sync = scene.sync("b2", &[]);
    assert_eq!(scene.synced(sync), Ok(&b"B"[..]));

    let mut stale = scene.sync_request("b", &[]);
    stale.instance_id = Some("ib".into());
    let reply = stale.reply;
    scene.step(Event::Sync(stale));
    assert_eq!(scene.synced(reply), Err(GroupError::FencedInstanceId));
    let mut stale = scene.request("b", "unused");
    stale.instance_id = Some("ib".into());
    let reply = scene.send(stale);
    assert_eq!(scene.refused(reply), (GroupError::FencedInstanceId, "b"));
}

#[test]
fn a_static_leader_that_comes_back_skips_the_assignment_if_it_can() {
    let mut scene = Scene::stable(true);
    let back = scene.join_static("ia", "a2", true);
    let joined = scene.joined(back);
    assert!(joined.skip_assignment);
    assert_eq!((&*joined.leader, joined.members.len()), ("a2", 2));

    let back = scene.join_static("ia", "a3", false);
    let joined = scene.joined(back);
    assert!(!joined.skip_assignment);
    assert_eq!((&*joined.leader, joined.members.len()), ("a2", 0));
    assert_eq!(scene.group.leader().map(|id| &**id), Some("a3"));
}

#[test]
fn a_static_member_that_comes_back_while_the_leader_computes_rebalances() {
    let mut scene = Scene::new();
    scene.join_static("ia", "a", true);
    scene.join_static("ib", "b", true);
    scene.pass(6_000);
    let waiting = scene.sync("b", &[]);
    let back = scene.join_static("ib", "b2", true);
    assert_eq!(scene.synced(waiting), Err(GroupError::FencedInstanceId));
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
    let mut leader = scene.request("a", "unused");
    leader.instance_id = Some("ia".into());
    scene.send(leader);
    assert_eq!(scene.joined(back).generation, 2);
}

#[test]
fn static_members_keep_their_place_until_their_session_ends() {
    let mut scene = Scene::stable(true);
    scene.join("", "c");
    scene.join_static("ib", "b2", true);
    // `a` is away; its session ends long before the rebalance timeout.
    scene.pass(i64::from(SESSION_MS));
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
    assert!(!scene.group.members().contains_key("a"));
}

#[test]
fn an_administrator_removes_a_static_member_by_its_instance_id() {
    let mut scene = Scene::stable(true);
    assert_eq!(
        scene.leave(&[("", Some("ib")), ("", Some("nobody")), ("", None)]),
        vec![
            Ok(()),
            Err(GroupError::UnknownMemberId),
            Err(GroupError::UnknownMemberId)
        ]
    );
    assert_eq!(
        scene.leave(&[("b", Some("ia"))]),
        vec![Err(GroupError::FencedInstanceId)]
    );
    assert_eq!(scene.group.members().len(), 1);
}

#[test]
fn sync_names_its_generation_and_protocol() {
    let mut scene = Scene::stable(false);
    type Change = fn(&mut SyncGroup);
    let cases: [(Change, GroupError); 4] = [
        (|sync| sync.generation = 0, GroupError::IllegalGeneration),
        (
            |sync| sync.protocol = Some("sticky".into()),
            GroupError::InconsistentGroupProtocol,
        ),
        (
            |sync| sync.protocol_type = Some("connect".into()),
            GroupError::InconsistentGroupProtocol,
        ),
        (
            |sync| sync.member_id = "nobody".into(),
            GroupError::UnknownMemberId,
        ),
    ];
    for (change, error) in cases {
        let mut request = scene.sync_request("a", &[]);
        change(&mut request);
        let reply = request.reply;
        scene.step(Event::Sync(request));
        assert_eq!(scene.synced(reply), Err(error));
    }
}

#[test]
fn commits_are_admitted_from_current_members_and_from_anybody_while_empty() {
    let mut scene = Scene::new();
    let now = scene.now;
    let nobody = MemberId::from("");
    assert_eq!(scene.group.admit_commit(now, &nobody, None, -1), Ok(()));

    scene.join("", "a");
    scene.pass(3_000);
    let (now, a) = (scene.now, MemberId::from("a"));
    let group = &mut scene.group;
    assert_eq!(
        group.admit_commit(now, &a, None, 1),
        Err(GroupError::RebalanceInProgress)
    );
    assert_eq!(
        group.admit_commit(now, &nobody, None, -1),
        Err(GroupError::UnknownMemberId)
    );
    scene.sync("a", &[]);
    let group = &mut scene.group;
    assert_eq!(group.admit_commit(now, &a, None, 1), Ok(()));
    assert_eq!(
        group.admit_commit(now, &a, None, 0),
        Err(GroupError::IllegalGeneration)
    );
    assert_eq!(
        group.admit_commit(now, &a, Some(&"i".into()), 1),
        Err(GroupError::UnknownMemberId)
    );
    // While others join, a member still commits what it has read.
    scene.join("", "b");
    let now = scene.now;
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
    assert_eq!(scene.group.admit_commit(now, &a, None, 1), Ok(()));
}

#[test]
fn a_group_read_back_from_its_log_goes_on_where_it_was() {
    let mut scene = Scene::stable(true);
    let stored = scene.log.last().unwrap().clone();
    scene.group = Group::restore("g".into(), LIMITS, &stored);
    scene.step(Event::Loaded);
    assert_eq!(scene.group.metadata(), stored);
    assert_eq!(scene.group.state(), GroupState::Stable);
    assert_eq!(scene.heartbeat("a"), Ok(()));
    let sync = scene.sync("b", &[]);
    assert_eq!(scene.synced(sync), Ok(&b"B"[..]));
    scene.pass(i64::from(SESSION_MS));
    assert_eq!(scene.group.state(), GroupState::Empty);
}

#[test]
fn a_group_read_back_over_a_lowered_limit_rebalances() {
    let scene = Scene::stable(false);
    let stored = scene.log.last().unwrap().clone();
    let limits = GroupLimits {
        members_max: 1,
        ..LIMITS
    };
    let mut scene = Scene::new();
    scene.group = Group::restore("g".into(), limits, &stored);
    scene.step(Event::Loaded);
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
    scene.join("b", "unused");
    let last = scene.join("a", "unused");
    assert_eq!(scene.refused(last), (GroupError::GroupMaxSizeReached, ""));
    assert_eq!(scene.group.members().len(), 1);
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
}

#[test]
fn unloading_answers_everyone_and_leaves_a_dead_group() {
    let mut scene = Scene::stable(false);
    let waiting = scene.join("a", "unused");
    scene.step(Event::Unload);
    assert_eq!(scene.refused(waiting).0, GroupError::NotCoordinator);
    assert_eq!(scene.group.next_deadline(), None);
    let late = scene.join("a", "unused");
    assert_eq!(scene.refused(late).0, GroupError::CoordinatorNotAvailable);
    assert_eq!(
        scene.heartbeat("a"),
        Err(GroupError::CoordinatorNotAvailable)
    );
}
