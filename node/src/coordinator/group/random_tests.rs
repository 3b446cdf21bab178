//! Random clients against one group. The seed is fixed and printed; `KITTIWAKE_SEED` sets another.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const STEPS: usize = 20_000;
const SEEDS: u64 = 8;
const CLIENTS: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Waiting {
    Join(usize),
    Sync(usize),
}

/// A client, which may or may not know who it is.
#[derive(Clone, Debug, Default)]
struct Client {
    member_id: String,
    instance: Option<&'static str>,
    generation: i32,
    told_to_lead: Vec<MemberId>,
}

struct World {
    rng: StdRng,
    limits: GroupLimits,
    group: Group,
    now: Now,
    log: Option<GroupMetadata>,
    /// The last record could not be written, so the log may differ from the group.
    log_is_behind: bool,
    clients: Vec<Client>,
    waiting: BTreeMap<ReplyId, Waiting>,
    next: u64,
    highest_generation: i32,
    /// Who sent the assignment of each generation.
    assigned_by: BTreeMap<i32, MemberId>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let limits = GroupLimits {
            session_timeout_ms_min: 100,
            session_timeout_ms_max: 60_000,
            initial_rebalance_delay_ms: [0, 300, 3_000][rng.random_range(0..3)],
            members_max: [3, 5, 100][rng.random_range(0..3)],
        };
        let now = Now {
            uptime_ms: 0,
            wall_ms: 1_700_000_000_000,
        };
        let clients = (0..CLIENTS)
            .map(|index| Client {
                instance: [None, None, None, Some("s3"), Some("s4"), Some("s4")][index],
                ..Client::default()
            })
            .collect();
        Self {
            rng,
            limits,
            group: Group::new("g".into(), limits, now),
            now,
            log: None,
            log_is_behind: false,
            clients,
            waiting: BTreeMap::new(),
            next: 0,
            highest_generation: 0,
            assigned_by: BTreeMap::new(),
        }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn step(&mut self, event: Event) {
        let actions = self.group.step(self.now, event);
        for action in actions {
            match action {
                Action::Persist(metadata) => {
                    let fails = self.rng.random_ratio(1, 20);
                    self.log_is_behind = fails;
                    let result = if fails {
                        Err(GroupError::CoordinatorNotAvailable)
                    } else {
                        self.log = Some(metadata);
                        Ok(())
                    };
                    self.step(Event::Persisted(result));
                }
                Action::Answer(reply, answer) => self.answered(reply, answer),
            }
        }
    }

    fn answered(&mut self, reply: ReplyId, answer: Answer) {
        let waiting = self.waiting.remove(&reply);
        match answer {
            Answer::Join(result) => {
                let Some(Waiting::Join(client)) = waiting else {
                    panic!("{reply:?} answered twice or with the wrong kind");
                };
                let client = &mut self.clients[client];
                match result {
                    Ok(joined) => {
                        assert_eq!(joined.generation, self.group.generation());
                        assert_eq!(
                            joined.members.is_empty(),
                            *joined.leader != *joined.member_id,
                            "only the leader gets the members"
                        );
                        client.member_id = joined.member_id.to_string();
                        client.generation = joined.generation;
                        client.told_to_lead =
                            joined.members.into_iter().map(|m| m.member_id).collect();
                        if joined.skip_assignment {
                            client.told_to_lead.clear();
                        }
                    }
                    Err(refused) => client.member_id = refused.member_id.to_string(),
                }
            }
            Answer::Sync(result) => {
                let Some(Waiting::Sync(_)) = waiting else {
                    panic!("{reply:?} answered twice or with the wrong kind");
                };
                if let Ok(synced) = result
                    && !synced.assignment.is_empty()
                {
                    let generation = self.group.generation();
                    let expected = format!("{generation} by {}", self.assigned_by[&generation]);
                    assert_eq!(synced.assignment, expected.as_bytes());
                }
            }
            Answer::Heartbeat(_) | Answer::Leave(_) => {}
        }
    }

    /// One client does what a client should do next.
    fn diligent(&mut self) {
        let index = self.rng.random_range(0..CLIENTS);
        if self
            .waiting
            .values()
            .any(|waiting| [Waiting::Join(index), Waiting::Sync(index)].contains(waiting))
        {
            return;
        }
        let client = &self.clients[index];
        let member_id = MemberId::from(client.member_id.as_str());
        let is_current = self.group.members.contains_key(&member_id)
            && client.generation == self.group.generation;
        if !is_current || self.group.state == GroupState::PreparingRebalance {
            self.join(index, false);
        } else if self.group.unsynced.contains(&member_id) {
            self.sync(index);
        } else {
            self.heartbeat(index);
        }
    }

    fn join(&mut self, index: usize, may_change: bool) {
        let n = self.next();
        let version = self.rng.random_range(0..10);
        // A restarted client has forgotten its id; an old one may come back with it.
        let forgets = may_change && self.rng.random_ratio(1, 3);
        let variant = if may_change {
            self.rng.random_range(0..4)
        } else {
            0
        };
        let client = &self.clients[index];
        let instance_id = client.instance.map(Arc::from);
        let member_id = if forgets { "" } else { &client.member_id };
        let protocols = [
            &["range", "sticky"][..],
            &["sticky", "range"],
            &["range"],
            &["own"],
        ][variant]
            .iter()
            .map(|name| Protocol {
                name: Arc::from(*name),
                metadata: Bytes::from(format!("topics {variant}")),
            })
            .collect();
        let reply = ReplyId(n);
        let request = JoinGroup {
            reply,
            member_id: member_id.into(),
            fresh_member_id: format!("m{n:07}").into(),
            id_required: version >= 4,
            may_skip_assignment: version >= 9,
            instance_id,
            client_id: "c".into(),
            client_host: "/h".into(),
            session_timeout_ms: self.rng.random_range(100..5_000),
            rebalance_timeout_ms: self.rng.random_range(0..5_000),
            protocol_type: "consumer".into(),
            protocols,
            reason: None,
        };
        self.waiting.insert(reply, Waiting::Join(index));
        self.step(Event::Join(Box::new(request)));
    }

    fn sync(&mut self, index: usize) {
        let reply = ReplyId(self.next());
        let client = self.clients[index].clone();
        let member_id = MemberId::from(client.member_id.as_str());
        let leads = self.group.leader() == Some(&member_id);
        if leads
            && client.generation == self.group.generation()
            && self.group.state() == GroupState::CompletingRebalance
        {
            self.assigned_by
                .insert(client.generation, member_id.clone());
        }
        let content = if leads {
            format!("{} by {member_id}", client.generation)
        } else {
            "not from the leader".to_owned()
        };
        let assignments = client
            .told_to_lead
            .iter()
            .chain([&member_id])
            .map(|id| (id.clone(), Bytes::from(content.clone())))
            .collect();
        self.waiting.insert(reply, Waiting::Sync(index));
        self.step(Event::Sync(SyncGroup {
            reply,
            member_id,
            instance_id: client.instance.map(Arc::from),
            generation: client.generation,
            protocol_type: None,
            protocol: None,
            assignments,
        }));
    }

    fn heartbeat(&mut self, index: usize) {
        let reply = ReplyId(self.next());
        let client = self.clients[index].clone();
        self.step(Event::Heartbeat {
            reply,
            member_id: client.member_id.as_str().into(),
            instance_id: client.instance.map(Arc::from),
            generation: client.generation,
        });
    }

    fn leave(&mut self) {
        let reply = ReplyId(self.next());
        let count = self.rng.random_range(1..3);
        let members = (0..count)
            .map(|_| {
                let client = &self.clients[self.rng.random_range(0..CLIENTS)];
                LeavingMember {
                    member_id: client.member_id.as_str().into(),
                    instance_id: client.instance.map(Arc::from),
                    reason: None,
                }
            })
            .collect();
        self.step(Event::Leave(LeaveGroup { reply, members }));
    }

    fn commit(&mut self) {
        let client = self.clients[self.rng.random_range(0..CLIENTS)].clone();
        let instance: Option<Arc<str>> = client.instance.map(Arc::from);
        let member_id = MemberId::from(client.member_id.as_str());
        let admitted =
            self.group
                .admit_commit(self.now, &member_id, instance.as_ref(), client.generation);
        if admitted.is_ok() && client.generation >= 0 {
            assert_eq!(client.generation, self.group.generation());
            assert!(self.group.members().contains_key(&member_id));
        }
    }

    fn pass(&mut self, ms: i64) {
        let end = self.now.uptime_ms + ms;
        while let Some(at) = self.group.next_deadline().filter(|at| *at <= end) {
            self.set_time(at.max(self.now.uptime_ms));
            self.step(Event::Tick);
            self.check();
        }
        self.set_time(end);
    }

    fn set_time(&mut self, uptime_ms: i64) {
        self.now.wall_ms += uptime_ms - self.now.uptime_ms;
        self.now.uptime_ms = uptime_ms;
    }

    /// Another node takes over: it knows what the log says, and nobody waits there.
    fn fail_over(&mut self) {
        self.step(Event::Unload);
        assert!(self.waiting.is_empty(), "{:?}", self.waiting);
        self.group = match &self.log {
            Some(stored) => Group::restore("g".into(), self.limits, stored),
            None => Group::new("g".into(), self.limits, self.now),
        };
        self.log_is_behind = false;
        self.highest_generation = self.group.generation();
        self.step(Event::Loaded);
    }

    fn check(&mut self) {
        let group = &self.group;
        assert!(group.generation >= self.highest_generation);
        self.highest_generation = group.generation;

        assert_eq!(group.leader.is_some(), !group.members.is_empty());
        if let Some(leader) = &group.leader {
            assert!(group.members.contains_key(leader));
        }
        let statics: BTreeMap<_, _> = group
            .members
            .iter()
            .filter_map(|(id, member)| Some((member.instance_id.clone()?, id.clone())))
            .collect();
        assert_eq!(statics, group.static_members);
        assert!(
            group
                .unsynced
                .iter()
                .all(|id| group.members.contains_key(id))
        );
        assert!(
            group
                .pending
                .iter()
                .all(|id| !group.members.contains_key(id))
        );
        assert!(group.storing.is_none());

        // Who waits here waits there.
        let parked: BTreeSet<ReplyId> = group
            .members
            .values()
            .flat_map(|member| member.joining.into_iter().chain(member.syncing))
            .collect();
        assert_eq!(parked, self.waiting.keys().copied().collect());

        // No timer is lost.
        for (id, member) in &group.members {
            assert!(
                member.is_excused() || group.timers.get(&Timer::Session(id.clone())).is_some(),
                "nobody watches {id}"
            );
        }
        for id in &group.pending {
            assert!(group.timers.get(&Timer::Session(id.clone())).is_some());
        }
        let join_timer = group.timers.get(&Timer::Join).is_some();
        let sync_timer = group.timers.get(&Timer::Sync).is_some();
        assert_eq!(join_timer, group.state == GroupState::PreparingRebalance);
        match group.state {
            GroupState::Empty => assert!(group.members.is_empty() && !sync_timer),
            GroupState::PreparingRebalance => assert!(!sync_timer),
            GroupState::CompletingRebalance => {
                assert!(
                    sync_timer
                        && group
                            .leader
                            .as_ref()
                            .is_some_and(|l| group.unsynced.contains(l))
                );
            }
            GroupState::Stable => assert_eq!(sync_timer, !group.unsynced.is_empty()),
            GroupState::Dead => panic!("nobody deleted the group"),
        }

        // A group at rest is what its log says.
        let at_rest = match group.state {
            GroupState::Stable => true,
            GroupState::Empty => group.stored,
            _ => false,
        };
        if at_rest && !self.log_is_behind {
            let stored = self.log.as_ref().expect("a group at rest has been stored");
            assert_eq!(&group.metadata(), stored);
            let restored = Group::restore("g".into(), self.limits, stored);
            assert_eq!(restored.metadata(), *stored);
            assert_eq!(restored.state(), group.state());
        }
    }
}

fn run(seed: u64) {
    println!("KITTIWAKE_SEED={seed}");
    let mut world = World::new(seed);
    let mut stable_steps = 0;
    for _ in 0..STEPS {
        let index = world.rng.random_range(0..CLIENTS);
        match world.rng.random_range(0..1_000) {
            0..10 => world.join(index, true),
            10..30 => world.sync(index),
            30..40 => world.heartbeat(index),
            40..50 => world.leave(),
            50..100 => world.commit(),
            100..102 => world.fail_over(),
            102..104 => world.pass(10_000),
            104..300 => {
                let ms = world.rng.random_range(0..300);
                world.pass(ms);
            }
            _ => world.diligent(),
        }
        world.check();
        stable_steps += usize::from(world.group.state() == GroupState::Stable);
    }
    println!(
        "stable in {stable_steps} of {STEPS} steps, generation {}",
        world.group.generation()
    );
    assert!(stable_steps > STEPS / 50, "the clients never got to work");
    // Everybody falls silent: every request is answered, and the group ends empty.
    world.pass(2 * NEW_MEMBER_JOIN_TIMEOUT_MS);
    assert!(world.waiting.is_empty(), "{:?}", world.waiting);
    assert_eq!(world.group.state(), GroupState::Empty);
    assert_eq!(world.group.next_deadline(), None);
}

#[test]
fn random_clients_never_break_the_group() {
    match std::env::var("KITTIWAKE_SEED") {
        Ok(seed) => run(seed.parse().expect("KITTIWAKE_SEED is a number")),
        Err(_) => (1..=SEEDS).for_each(run),
    }
}
