//! The controller's decisions on simulated clusters: nodes fail, return and drain, ISRs change, operators reassign and
//! elect, and the controller sees now the current image, now one that others have changed before its commands arrive.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kittiwake_raft::{
    BrokerId, ClusterImage, Command, Election, IncarnationId, IsrMember, LastStop, Partition,
    PartitionChange, RegisterBroker, Requester, Topic,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::elections::{ElectionType, RebalanceOptions, on_request, preferred};
use super::partitions::unchanged;
use super::reassignment;
use super::tests_support::{create, image_of, rejoin};
use super::upkeep::Upkeep;

const BROKERS: i32 = 5;
const STEPS: usize = 4_000;

/// Seeds of every run; `KITTIWAKE_SEED` replaces them.
const SEEDS: [u64; 6] = [1, 2, 3, 4, 5, 6];

/// The topic that allows unclean elections.
const UNCLEAN: &str = "unclean";

const OPTIONS: RebalanceOptions = RebalanceOptions {
    enabled: true,
    check_interval: Duration::from_secs(300),
    // A broker at home that lacks one leadership gets it by the check.
    imbalance_percentage: 0,
};

#[test]
fn random_events_keep_the_rules_and_end_in_order() {
    let seeds = match std::env::var("KITTIWAKE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => SEEDS.to_vec(),
    };
    for seed in seeds {
        println!("KITTIWAKE_SEED={seed}");
        let mut cluster = Cluster::new(seed);
        for _ in 0..STEPS {
            cluster.event();
        }
        cluster.heal();
    }
}

struct Cluster {
    random: StdRng,
    image: ClusterImage,
    upkeep: Upkeep,
    now: Instant,
}

fn unclean_allowed(topic: &Topic) -> bool {
    topic.name == UNCLEAN
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut image = image_of(BROKERS);
        for (name, configs) in [
            ("orders", &[][..]),
            ("single", &[("min.insync.replicas", "1")]),
            (UNCLEAN, &[]),
        ] {
            let placed = (0..4).map(|_| some_brokers(&mut random)).collect();
            create(&mut image, name, configs, placed);
        }
        let now = Instant::now();
        Self {
            random,
            image,
            upkeep: Upkeep::new(OPTIONS, now),
            now,
        }
    }

    fn event(&mut self) {
        self.now += Duration::from_millis(self.random.random_range(0..3_000));
        match self.random.random_range(0..12) {
            0..=3 => {
                let changes = self.upkeep.step(self.now, &self.image, unclean_allowed);
                if self.random.random_ratio(1, 3) {
                    self.disturb();
                }
                self.alter_by_controller(changes);
            }
            // A new controller knows nothing of what the last one had seen.
            4 if self.random.random_ratio(1, 10) => {
                self.upkeep = Upkeep::new(OPTIONS, self.now);
            }
            _ => self.disturb(),
        }
    }

    fn unfence(&mut self, broker: BrokerId) {
        let (epoch, reconciled) = (self.image.broker(broker).unwrap().epoch, self.image.offset);
        self.apply(&Command::UnfenceBroker {
            broker,
            epoch,
            reconciled,
        });
    }

    /// What happens without the controller.
    fn disturb(&mut self) {
        let broker = BrokerId(self.random.random_range(0..BROKERS));
        let epoch = self.image.broker(broker).unwrap().epoch;
        match self.random.random_range(0..12) {
            0 => self.apply(&Command::FenceBroker { broker, epoch }),
            1..=2 => self.unfence(broker),
            3 => self.restart(broker),
            4 => {
                let draining = self.random.random_ratio(1, 3);
                self.apply(&Command::DrainBroker {
                    broker,
                    epoch,
                    draining,
                });
            }
            5..=8 => self.change_isr(),
            9..=10 => self.reassign(),
            _ => self.elect(),
        }
    }

    fn restart(&mut self, broker: BrokerId) {
        let before = self.image.broker(broker).unwrap().clone();
        let last_stop = *[
            LastStop::Killed,
            LastStop::Lossy,
            LastStop::Clean(before.epoch),
        ]
        .choose(&mut self.random)
        .unwrap();
        self.apply(&Command::RegisterBroker(RegisterBroker {
            broker,
            incarnation_id: IncarnationId::random(),
            directory_id: before.directory_id,
            endpoints: before.endpoints.clone(),
            rack: None,
            last_stop,
        }));
    }

    fn some_partition(&mut self) -> (Topic, i32, Partition) {
        let topics: Vec<_> = self.image.topics().collect();
        let topic = Topic::clone(topics.choose(&mut self.random).unwrap());
        let index = self.random.random_range(0..topic.partitions.len());
        let partition = Partition::clone(&topic.partitions[index]);
        (topic, i32::try_from(index).unwrap(), partition)
    }

    /// A leader takes a replica into the ISR or drops one.
    fn change_isr(&mut self) {
        let (topic, index, partition) = self.some_partition();
        let Some(leader) = partition.leader else {
            return;
        };
        let replica = *partition.replicas.choose(&mut self.random).unwrap();
        let mut isr = partition.isr.clone();
        match isr.iter().position(|member| *member == replica) {
            None => isr.push(replica),
            Some(at) if self.random.random_ratio(1, 4) && replica != leader => drop(isr.remove(at)),
            Some(_) => return,
        }
        let member = |broker| IsrMember {
            broker,
            broker_epoch: self.image.broker(broker).map(|broker| broker.epoch),
        };
        let change = PartitionChange {
            requester: Some(Requester {
                broker: leader,
                broker_epoch: self.image.broker(leader).unwrap().epoch,
                leader_epoch: partition.leader_epoch,
            }),
            isr: Some(isr.into_iter().map(member).collect()),
            ..unchanged(&topic, index, &partition)
        };
        self.apply(&Command::AlterPartitions(vec![change]));
    }

    fn reassign(&mut self) {
        let (topic, index, partition) = self.some_partition();
        let planned = if self.random.random_ratio(1, 4) {
            reassignment::cancel(&partition).map(Some)
        } else {
            let wanted = some_brokers(&mut self.random);
            reassignment::start(&self.image, &partition, &wanted, true)
        };
        if let Ok(Some(replicas)) = planned {
            let change = PartitionChange {
                replicas: Some(replicas),
                ..unchanged(&topic, index, &partition)
            };
            self.alter(vec![change]);
        }
    }

    fn elect(&mut self) {
        let (topic, index, partition) = self.some_partition();
        if let Ok(election) = on_request(&self.image, &partition, ElectionType::Preferred) {
            let change = PartitionChange {
                leader: Some(election),
                ..unchanged(&topic, index, &partition)
            };
            self.alter(vec![change]);
        }
    }

    fn alter_by_controller(&mut self, changes: Vec<PartitionChange>) {
        for change in &changes {
            let topic = self.image.topic(change.topic).unwrap();
            let index = usize::try_from(change.partition).unwrap();
            let partition = &topic.partitions[index];
            if partition.partition_epoch == change.partition_epoch {
                match change.leader {
                    Some(Election::Unclean(_)) => {
                        assert!(unclean_allowed(topic) && partition.leader.is_none());
                    }
                    Some(Election::Clean(leader)) => assert!(partition.isr.contains(&leader)),
                    None => assert!(change.replicas.is_some(), "a change of nothing"),
                }
            }
        }
        self.alter(changes);
    }

    /// Changes that only a partition which has moved on may refuse, or a broker that is no longer eligible; and that keep
    /// somebody in sync who was.
    fn alter(&mut self, changes: Vec<PartitionChange>) {
        let before = self.image.clone();
        self.apply(&Command::AlterPartitions(changes.clone()));
        for change in changes {
            let old = before.partition(change.topic, change.partition).unwrap();
            let new = self
                .image
                .partition(change.topic, change.partition)
                .unwrap();
            let unclean = matches!(change.leader, Some(Election::Unclean(_)));
            assert!(
                unclean
                    || old.isr.is_empty()
                    || old.isr.iter().any(|member| new.isr.contains(member)),
                "{old:?} became {new:?}"
            );
        }
    }

    fn apply(&mut self, command: &Command) {
        self.image.apply(self.image.offset + 1, command);
        for partition in self.image.topics().flat_map(|topic| &topic.partitions) {
            let replicas: BTreeSet<_> = partition.replicas.iter().collect();
            assert_eq!(replicas.len(), partition.replicas.len());
            let of_replicas = |some: &[BrokerId]| some.iter().all(|one| replicas.contains(one));
            assert!(of_replicas(&partition.isr) && of_replicas(&partition.adding));
            assert!(of_replicas(&partition.removing));
            if let Some(leader) = partition.leader {
                assert!(partition.isr.contains(&leader), "{partition:?}");
                assert!(!self.image.broker(leader).unwrap().fenced);
            }
        }
    }

    /// Everybody comes back and catches up: every move ends, every leadership goes home, and then nothing more happens.
    fn heal(&mut self) {
        for broker in (0..BROKERS).map(BrokerId) {
            let epoch = self.image.broker(broker).unwrap().epoch;
            self.unfence(broker);
            self.apply(&Command::DrainBroker {
                broker,
                epoch,
                draining: false,
            });
        }
        self.accept_losses();
        for _ in 0..10 {
            for broker in (0..BROKERS).map(BrokerId) {
                rejoin(&mut self.image, broker);
            }
            let changes = self.upkeep.step(self.now, &self.image, unclean_allowed);
            self.alter_by_controller(changes);
            self.now += Duration::from_secs(100);
        }
        for topic in self.image.topics() {
            for partition in &topic.partitions {
                assert!(!reassignment::in_progress(partition), "{partition:?}");
                assert_eq!(partition.leader, preferred(partition), "{partition:?}");
                assert_eq!(partition.isr.len(), partition.replicas.len());
            }
        }
        for later in [0, 1, 10, 1_000, 1_000_000] {
            let now = self.now + Duration::from_secs(later);
            let changes = self.upkeep.step(now, &self.image, unclean_allowed);
            assert_eq!(changes, [], "an image at rest, {later} s later");
        }
    }

    /// Where everybody who was eligible has lost records, an operator decides.
    fn accept_losses(&mut self) {
        let mut changes = Vec::new();
        for topic in self.image.topics() {
            for (index, partition) in (0..).zip(&topic.partitions) {
                if let Ok(election) = on_request(&self.image, partition, ElectionType::Unclean) {
                    changes.push(PartitionChange {
                        leader: Some(election),
                        ..unchanged(topic, index, partition)
                    });
                }
            }
        }
        self.alter(changes);
    }
}

/// One to three of them, in any order.
fn some_brokers(random: &mut StdRng) -> Vec<BrokerId> {
    let count = random.random_range(1..=3);
    let all: Vec<BrokerId> = (0..BROKERS).map(BrokerId).collect();
    all.sample(random, count).copied().collect()
}
