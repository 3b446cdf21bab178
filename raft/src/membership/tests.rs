//! Random lives of a cluster, and the rules one by one.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Seeds of every run; `KITTIWAKE_SEED` replaces them.
const SEEDS: std::ops::Range<u64> = 1..200;
const STEPS: usize = 500;

fn node(broker: i32) -> MemberNode {
    MemberNode {
        broker: BrokerId(broker),
        address: format!("b{broker}:1"),
    }
}

fn id(number: u64) -> DirectoryId {
    DirectoryId::from(number)
}

fn seen(broker: i32, caught_up: bool) -> Seen {
    Seen {
        node: node(broker),
        alive: true,
        caught_up,
    }
}

/// Voters and learners are (directory, broker); all are there and have caught up.
fn view(voters: &[(u64, i32)], learners: &[(u64, i32)], configured: &[i32]) -> View {
    let members = voters.iter().chain(learners);
    View {
        configs: vec![voters.iter().map(|(number, _)| id(*number)).collect()],
        members: members
            .map(|(number, broker)| (id(*number), seen(*broker, true)))
            .collect(),
        configured: configured.iter().copied().map(BrokerId).collect(),
    }
}

impl View {
    /// What Raft makes of a change; a joint membership if voters change.
    fn apply(&mut self, change: Change) {
        let voters = self.configs.last().unwrap().clone();
        match change {
            Change::Finish => {
                self.configs = vec![voters.clone()];
            }
            Change::Admit {
                id,
                node,
                instead_of,
            } => {
                self.members.retain(|id, _| !instead_of.contains(id));
                let (alive, caught_up) = (true, false);
                self.members.insert(
                    id,
                    Seen {
                        node,
                        alive,
                        caught_up,
                    },
                );
            }
            Change::Readdress { id, node } => self.members.get_mut(&id).unwrap().node = node,
            Change::Promote { ids, instead_of } => {
                let new = voters.union(&ids).copied().collect::<BTreeSet<_>>();
                let new = new.difference(&instead_of).copied().collect();
                self.configs = vec![voters, new];
            }
            Change::Remove {
                voters: out,
                learners,
            } => {
                self.members.retain(|id, _| !learners.contains(id));
                let new: BTreeSet<_> = voters.difference(&out).copied().collect();
                self.configs = if new == voters {
                    vec![new]
                } else {
                    vec![voters, new]
                };
            }
        }
    }

    /// The end of a change of voters: who is out is forgotten.
    fn finish(&mut self, before: &BTreeSet<DirectoryId>) {
        self.apply(Change::Finish);
        let voters = self.voters();
        self.members
            .retain(|id, _| voters.contains(id) || !before.contains(id));
    }

    fn has_majority(&self) -> bool {
        self.configs.iter().all(|voters| {
            let alive = voters.iter().filter(|id| self.members[id].alive).count();
            alive > voters.len() / 2
        })
    }
}

#[test]
fn random_lives_end_with_every_configured_voter() {
    let seeds: Vec<u64> = match std::env::var("KITTIWAKE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => SEEDS.collect(),
    };
    for seed in seeds {
        println!("KITTIWAKE_SEED={seed}");
        random_life(seed);
    }
}

/// Brokers 1 to 5, of which 1 to 3 are configured voters; the cluster begins with one of them.
fn random_life(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut view = view(&[(1, 1)], &[], &[1, 2, 3]);
    let mut directories = BTreeMap::from([(BrokerId(1), id(1))]);
    let mut next = 2;
    let mut asked = BTreeSet::new();
    for _ in 0..STEPS {
        let broker = random.random_range(1..=5);
        let own = directories.get(&BrokerId(broker)).copied();
        match random.random_range(0..6) {
            // A broker starts, with its disk or an empty one, and asks to be taken in.
            0 | 1 => {
                let lost = own.is_none() || random.random_bool(0.3);
                let others_alive = view.without(own).has_majority();
                if lost && !others_alive {
                    continue;
                }
                let directory = if lost {
                    next += 1;
                    id(next)
                } else {
                    own.unwrap()
                };
                if let (true, Some(old)) = (lost, own)
                    && let Some(old) = view.members.get_mut(&old)
                {
                    old.alive = false;
                }
                directories.insert(BrokerId(broker), directory);
                if let Some(change) = view.join(directory, &node(broker)).unwrap() {
                    view.apply(change);
                    assert_eq!(view.join(directory, &node(broker)), Ok(None), "repeated");
                }
                view.members.get_mut(&directory).unwrap().alive = true;
            }
            // It dies, as long as the others are a majority.
            2 => {
                if let Some(own) = own
                    && view.without(Some(own)).has_majority()
                    && let Some(member) = view.members.get_mut(&own)
                {
                    member.alive = false;
                }
            }
            3 => {
                for member in view.members.values_mut().filter(|member| member.alive) {
                    member.caught_up |= random.random_bool(0.5);
                }
            }
            4 if random.random_bool(0.1) => {
                if let Ok(Some(change)) = view.add_voter(BrokerId(broker)) {
                    asked.insert(BrokerId(broker));
                    step(&mut view, change);
                }
            }
            _ => {
                if let Upkeep::Do(change) = view.upkeep() {
                    step(&mut view, change);
                    let missing = view.missing();
                    assert!(
                        asked.len() + missing.len() > 0 || view.voters().len() % 2 == 1,
                        "stopped at an even number"
                    );
                }
            }
        }
        let voters = view.voters();
        for id in &voters {
            let broker = view.members[id].node.broker;
            assert!(view.configured.contains(&broker) || asked.contains(&broker));
        }
    }

    // Everybody is there: the configured vote, each with the directory it has.
    for broker in 1..=3 {
        let directory = *directories.entry(BrokerId(broker)).or_insert_with(|| {
            next += 1;
            id(next)
        });
        if let Some(change) = view.join(directory, &node(broker)).unwrap() {
            view.apply(change);
        }
    }
    let current: BTreeSet<DirectoryId> = directories.values().copied().collect();
    for (id, member) in &mut view.members {
        member.alive = current.contains(id);
        member.caught_up = true;
    }
    for _ in 0..10 {
        match view.upkeep() {
            Upkeep::Do(change) => step(&mut view, change),
            Upkeep::Wait => panic!("waits for nobody"),
            Upkeep::Settled => break,
        }
    }
    assert_eq!(view.upkeep(), Upkeep::Settled);
    for broker in 1..=3 {
        assert!(view.voters().contains(&directories[&BrokerId(broker)]));
    }
}

/// Carries out a change; some controllers do not live to end it, and the next one does.
fn step(view: &mut View, change: Change) {
    let before = view.voters();
    let had = view.has_majority();
    view.apply(change);
    if view.is_changing() {
        assert!(
            !had || view.has_majority(),
            "the majority was lost half way"
        );
        assert_eq!(view.upkeep(), Upkeep::Do(Change::Finish));
        view.finish(&before);
    }
    assert!(!view.voters().is_empty());
    assert!(!had || view.has_majority(), "the majority was lost");
}

impl View {
    fn missing(&self) -> BTreeSet<BrokerId> {
        let brokers = self.configured.iter().copied();
        brokers
            .filter(|broker| self.of(*broker).0.is_empty())
            .collect()
    }

    fn without(&self, dead: Option<DirectoryId>) -> Self {
        let mut view = self.clone();
        if let Some(member) = dead.and_then(|id| view.members.get_mut(&id)) {
            member.alive = false;
        }
        view
    }
}

#[test]
fn growth_does_not_stop_at_two_voters() {
    let mut one = view(&[(1, 1)], &[(2, 2)], &[1, 2, 3]);
    assert_eq!(one.upkeep(), Upkeep::Wait);
    one.members.insert(id(3), seen(3, true));
    assert_eq!(
        one.upkeep(),
        Upkeep::Do(Change::Promote {
            ids: [id(2), id(3)].into(),
            instead_of: BTreeSet::new(),
        })
    );
    // Configured so, it is what the operator wants.
    let two = view(&[(1, 1)], &[(2, 2)], &[1, 2]);
    assert!(matches!(two.upkeep(), Upkeep::Do(_)));
    let learner = view(&[(1, 1)], &[(2, 2)], &[1]);
    assert_eq!(learner.upkeep(), Upkeep::Settled);
}

#[test]
fn a_lost_directory_is_replaced_once_the_new_one_has_caught_up() {
    let mut three = view(&[(1, 1), (2, 2), (3, 3)], &[], &[1, 2, 3]);
    let refused = three.join(id(9), &node(3));
    assert!(
        matches!(refused, Err(MembershipRefusal::Invalid(_))),
        "it runs"
    );
    three.members.get_mut(&id(3)).unwrap().alive = false;
    let admitted = three.join(id(9), &node(3)).unwrap().unwrap();
    three.apply(admitted);
    assert_eq!(three.upkeep(), Upkeep::Wait);
    three.members.get_mut(&id(9)).unwrap().caught_up = true;
    assert_eq!(
        three.upkeep(),
        Upkeep::Do(Change::Promote {
            ids: [id(9)].into(),
            instead_of: [id(3)].into(),
        })
    );
    // It came back once more, empty again, before that.
    three.members.get_mut(&id(9)).unwrap().alive = false;
    assert_eq!(
        three.join(id(10), &node(3)),
        Ok(Some(Change::Admit {
            id: id(10),
            node: node(3),
            instead_of: [id(9)].into(),
        }))
    );
}

#[test]
fn operators_are_told_what_is_wrong() {
    let mut one = view(&[(1, 1)], &[(2, 2)], &[1]);
    let (first, second, third) = (BrokerId(1), BrokerId(2), BrokerId(3));
    let unknown = Err(MembershipRefusal::UnknownMember(third));
    assert_eq!(one.add_voter(third), unknown);
    assert_eq!(one.remove(third).map(Some), unknown);
    assert_eq!(one.add_voter(first), Ok(None));
    assert_eq!(one.remove(first), Err(MembershipRefusal::LastVoter(first)));
    one.members.get_mut(&id(2)).unwrap().caught_up = false;
    let not_yet = Err(MembershipRefusal::NotCaughtUp(second));
    assert_eq!(one.add_voter(second), not_yet);
    assert!(one.remove(second).is_ok());
    one.configs.push([id(1), id(2)].into());
    assert_eq!(one.add_voter(second), Err(MembershipRefusal::InProgress));
    assert_eq!(one.remove(second), Err(MembershipRefusal::InProgress));
}

#[test]
fn a_directory_belongs_to_one_broker_and_an_address_may_change() {
    let one = view(&[(1, 1)], &[], &[1]);
    assert!(one.join(id(1), &node(2)).is_err());
    let moved = MemberNode {
        address: "elsewhere:1".into(),
        ..node(1)
    };
    assert_eq!(
        one.join(id(1), &moved),
        Ok(Some(Change::Readdress {
            id: id(1),
            node: moved,
        }))
    );
}
