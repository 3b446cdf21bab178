//! Random commands, valid and not, against the rules of the image.
//!
//! Beside the image runs a model of the data: which replicas hold every committed record. It knows
//! nothing of elections; the image must never elect, or keep eligible, a replica that lacks one.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::codec::{decode_command, encode_command};
use crate::command::*;
use crate::ids::*;
use crate::image::{ClusterImage, Endpoint, MIN_INSYNC_REPLICAS, Partition};
use crate::snapshot::Snapshot;
use crate::types::{StoredMembership, log_id};

const STEPS: u64 = 5_000;

/// Seeds of every run; `KITTIWAKE_SEED` replaces them.
const SEEDS: [u64; 4] = [1, 2, 3, 4];

type PartitionKey = (TopicId, usize);

/// Per partition, the replicas that hold every committed record.
type Complete = BTreeMap<PartitionKey, BTreeSet<BrokerId>>;

#[test]
fn random_commands_keep_the_rules() {
    let seeds = match std::env::var("KITTIWAKE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => SEEDS.to_vec(),
    };
    for seed in seeds {
        println!("KITTIWAKE_SEED={seed}");
        run(seed);
    }
}

fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut live = ClusterImage::new("test");
    let mut replayed = live.clone();
    let mut complete = Complete::new();
    let mut accepted = BTreeSet::new();
    for offset in 1..=STEPS {
        let command = random_command(&mut random, &live);
        let before = live.clone();
        let results = live.apply(offset, &command);

        let record = decode_command(&encode_command(&command)).unwrap();
        assert_eq!(record, command);
        assert_eq!(replayed.apply(offset, &record), results);
        assert_eq!(replayed, live, "replay differs at {offset}: {command:?}");

        if results.iter().all(Result::is_err) {
            let unchanged = ClusterImage {
                offset,
                ..before.clone()
            };
            assert_eq!(
                live, unchanged,
                "a refused command changed the image: {command:?}"
            );
        } else {
            accepted.insert(command.name());
        }
        check_brokers(&before, &live);
        check_partitions(&before, &live, &command, &mut complete);
        commit_somewhere(&mut random, &live, &mut complete);

        if random.random_ratio(1, 200) {
            // Whoever starts from a snapshot must go on like everybody else.
            let snapshot = Snapshot {
                last: Some(log_id(1, offset)),
                membership: StoredMembership::default(),
                image: live.clone(),
            };
            replayed = Snapshot::decode(snapshot.encode()).unwrap().image;
            assert_eq!(replayed, live, "the snapshot differs at {offset}");
        }
    }
    assert_eq!(
        accepted.len(),
        11,
        "not every kind of command was accepted once: {accepted:?}"
    );
}

fn check_brokers(before: &ClusterImage, after: &ClusterImage) {
    assert!(after.next_producer_id >= before.next_producer_id);
    for (id, broker) in &after.brokers {
        if let Some(earlier) = before.broker(*id) {
            assert!(broker.epoch >= earlier.epoch, "broker epoch went back");
        }
        assert!(broker.epoch.0 <= i64::try_from(after.offset).unwrap());
    }
}

fn check_partitions(
    before: &ClusterImage,
    after: &ClusterImage,
    command: &Command,
    complete: &mut Complete,
) {
    complete.retain(|(topic, _), _| after.topic(*topic).is_some());
    for topic in after.topics() {
        assert_eq!(after.topic_by_name(&topic.name), Some(topic));
        let min_insync = after.min_insync_replicas(topic);
        for (index, partition) in topic.partitions.iter().enumerate() {
            let key = (topic.id, index);
            let earlier = before
                .topic(topic.id)
                .and_then(|topic| topic.partitions.get(index));
            check_state(after, partition, min_insync);
            match earlier {
                None => {
                    complete.insert(key, partition.isr.iter().copied().collect());
                }
                Some(earlier) => {
                    check_step(earlier, partition);
                    let holders = complete.get_mut(&key).unwrap();
                    follow(holders, earlier, partition, command);
                    for eligible in partition.isr.iter().chain(&partition.elr) {
                        assert!(
                            holders.contains(eligible),
                            "{eligible} lacks committed records: {command:?}\n\
                             {earlier:?}\n{partition:?}"
                        );
                    }
                }
            }
        }
    }
}

fn check_state(image: &ClusterImage, partition: &Partition, min_insync: usize) {
    let distinct = |brokers: &[BrokerId]| brokers.iter().collect::<BTreeSet<_>>().len();
    let Partition {
        replicas,
        isr,
        elr,
        adding,
        removing,
        damaged,
        ..
    } = partition;
    for set in [replicas, isr, elr, adding, removing, damaged] {
        assert_eq!(distinct(set), set.len(), "{partition:?}");
        assert!(
            set.iter().all(|broker| replicas.contains(broker)),
            "{partition:?}"
        );
    }
    assert!(
        isr.iter()
            .all(|broker| !image.broker(*broker).unwrap().fenced),
        "{partition:?}"
    );
    assert!(
        isr.iter().all(|broker| !elr.contains(broker)),
        "{partition:?}"
    );
    let led = partition.leader.is_some();
    for broker in damaged {
        assert!(
            !(isr.contains(broker) || led && elr.contains(broker)),
            "{partition:?}"
        );
    }
    if isr.len() >= min_insync.min(replicas.len()) {
        assert!(elr.is_empty(), "{partition:?}");
    }
    match partition.leader {
        Some(leader) => {
            assert!(isr.contains(&leader), "{partition:?}");
            assert_eq!(partition.last_known_leader, None, "{partition:?}");
        }
        None => {
            assert!(isr.is_empty(), "{partition:?}");
            let eligible = |broker: &&BrokerId| {
                !image.broker(**broker).unwrap().fenced && !damaged.contains(broker)
            };
            assert_eq!(
                elr.iter().find(eligible),
                None,
                "nobody was elected: {partition:?}"
            );
        }
    }
}

fn check_step(before: &Partition, after: &Partition) {
    assert!(
        after.leader_epoch >= before.leader_epoch,
        "{before:?} {after:?}"
    );
    assert!(
        after.partition_epoch >= before.partition_epoch,
        "{before:?} {after:?}"
    );
    if after.leader != before.leader {
        assert!(
            after.leader_epoch > before.leader_epoch,
            "{before:?} {after:?}"
        );
    }
    if after != before {
        assert!(
            after.partition_epoch > before.partition_epoch,
            "{before:?} {after:?}"
        );
    }
}

/// What the change means for the data.
fn follow(
    holders: &mut BTreeSet<BrokerId>,
    before: &Partition,
    after: &Partition,
    command: &Command,
) {
    holders.retain(|broker| after.replicas.contains(broker));
    if let Command::RegisterBroker(request) = command
        && before.partition_epoch != after.partition_epoch
        && !after.elr.contains(&request.broker)
    {
        // Only what the image concluded from the registration counts here; that it concludes
        // rightly is in `what_a_broker_keeps_decides_whether_it_stays_eligible`.
        holders.remove(&request.broker);
    }
    let Some(leader) = after.leader else { return };
    let eligible = before.isr.contains(&leader) || before.elr.contains(&leader);
    if before.leader.is_none() && !eligible {
        // An unclean election: what the new leader has is what is committed from now on.
        holders.clear();
        holders.insert(leader);
    }
    // A damaged log that another one has replaced begins empty.
    holders.retain(|broker| {
        !before.damaged.contains(broker) || after.damaged.contains(broker) || {
            matches!(command, Command::RegisterBroker(request) if request.broker == *broker)
        }
    });
    if matches!(command, Command::AlterPartitions(_)) {
        // Whoever is asked into the ISR has everything. No other command may let anybody in.
        holders.extend(&after.isr);
    }
}

/// The high watermark advances where it may: everybody outside the ISR lacks the new record.
fn commit_somewhere(random: &mut StdRng, image: &ClusterImage, complete: &mut Complete) {
    for topic in image.topics() {
        let min_insync = image.min_insync_replicas(topic);
        for (index, partition) in topic.partitions.iter().enumerate() {
            if partition.leader.is_some()
                && partition.isr.len() >= min_insync.min(partition.replicas.len())
                && random.random_ratio(1, 2)
            {
                let holders = complete.get_mut(&(topic.id, index)).unwrap();
                holders.retain(|broker| partition.isr.contains(broker));
            }
        }
    }
}

fn random_command(random: &mut StdRng, image: &ClusterImage) -> Command {
    let broker = random_broker(random);
    let epoch = match image.broker(broker) {
        Some(registered) if random.random_ratio(9, 10) => registered.epoch,
        _ => BrokerEpoch(random.random_range(0..50)),
    };
    match random.random_range(0..100) {
        0..10 => Command::RegisterBroker(random_registration(random, image, broker)),
        10..22 => Command::FenceBroker { broker, epoch },
        22..40 => Command::UnfenceBroker {
            broker,
            epoch,
            // Of those fenced meanwhile many are refused.
            reconciled: image.offset - random.random_range(0..=image.offset.min(20)),
        },
        40..44 => Command::DrainBroker {
            broker,
            epoch,
            draining: random.random(),
        },
        44..46 => Command::UnregisterBroker { broker },
        46..54 => Command::CreateTopics(several(random, random_topic)),
        54..55 => Command::DeleteTopics(vec![pick_topic(random, image)]),
        55..61 => Command::CreatePartitions(vec![NewPartitions {
            topic: pick_topic(random, image),
            existing: random.random_range(1..4),
            partitions: several(random, random_replicas),
        }]),
        61..90 => Command::AlterPartitions(several(random, |random| random_change(random, image))),
        90..98 => Command::AlterConfigs(vec![random_config(random)]),
        _ => Command::AllocateProducerIds {
            broker,
            epoch,
            count: random.random_range(-1..1000),
        },
    }
}

fn several<T>(random: &mut StdRng, mut one: impl FnMut(&mut StdRng) -> T) -> Vec<T> {
    (0..random.random_range(1..4))
        .map(|_| one(random))
        .collect()
}

fn random_broker(random: &mut StdRng) -> BrokerId {
    BrokerId(random.random_range(0..6))
}

fn random_replicas(random: &mut StdRng) -> Vec<BrokerId> {
    (0..random.random_range(0..4))
        .map(|_| random_broker(random))
        .collect()
}

fn random_id(random: &mut StdRng) -> [u8; 16] {
    random.random_range(1..u128::MAX).to_be_bytes()
}

fn random_registration(
    random: &mut StdRng,
    image: &ClusterImage,
    broker: BrokerId,
) -> RegisterBroker {
    let earlier = image.broker(broker);
    let directory_id = match earlier {
        Some(earlier) if random.random_ratio(9, 10) => earlier.directory_id,
        _ => DirectoryId::from_bytes(random_id(random)).unwrap(),
    };
    let incarnation_id = match earlier {
        Some(earlier) if random.random_ratio(1, 10) => earlier.incarnation_id,
        _ => IncarnationId::from_bytes(random_id(random)).unwrap(),
    };
    RegisterBroker {
        broker,
        incarnation_id,
        directory_id,
        endpoints: vec![Endpoint {
            listener: "PLAINTEXT".into(),
            host: "localhost".into(),
            port: random.random_range(0..3),
        }],
        rack: random.random_ratio(1, 2).then(|| "a".into()),
        last_stop: match random.random_range(0..4) {
            0 => LastStop::Lossy,
            1 => LastStop::Killed,
            _ => LastStop::Clean(earlier.map_or(BrokerEpoch(0), |earlier| earlier.epoch)),
        },
    }
}

fn random_topic(random: &mut StdRng) -> NewTopic {
    let names = ["a", "b", "c", "a.b", "a_b", "d", ".", "", "not legal"];
    let mut configs = BTreeMap::new();
    if random.random_ratio(1, 4) {
        configs.insert(
            MIN_INSYNC_REPLICAS.into(),
            random.random_range(0..4).to_string(),
        );
    }
    NewTopic {
        name: names[random.random_range(0..names.len())].into(),
        id: TopicId::from_bytes(random_id(random)).unwrap(),
        configs,
        partitions: several(random, random_replicas),
    }
}

fn pick_topic(random: &mut StdRng, image: &ClusterImage) -> TopicId {
    let index = random.random_range(0..image.topic_count() + 1);
    let known = image.topics().nth(index).map(|topic| topic.id);
    known.unwrap_or_else(|| TopicId::from_bytes(random_id(random)).unwrap())
}

fn random_change(random: &mut StdRng, image: &ClusterImage) -> PartitionChange {
    let topic = pick_topic(random, image);
    let partition = random.random_range(0..3);
    let state = image.partition(topic, partition);
    let current = state.map_or(PartitionEpoch(0), |state| state.partition_epoch);
    let requester = state
        .filter(|_| random.random_ratio(1, 2))
        .and_then(|state| {
            let broker = state.leader?;
            Some(Requester {
                broker,
                broker_epoch: image.broker(broker)?.epoch,
                leader_epoch: state.leader_epoch - i32::from(random.random_ratio(1, 10)),
            })
        });
    let replicas = || state.map_or(Vec::new(), |state| state.replicas.clone());
    let mut isr: Vec<BrokerId> = replicas();
    isr.retain(|broker| {
        state.is_some_and(|state| state.leader == Some(*broker)) || random.random_ratio(2, 3)
    });
    let isr = isr
        .into_iter()
        .map(|broker| IsrMember {
            broker,
            broker_epoch: image.broker(broker).map(|broker| broker.epoch),
        })
        .collect();
    let reassignment = Reassignment {
        replicas: random_replicas(random),
        adding: Vec::new(),
        removing: Vec::new(),
    };
    PartitionChange {
        topic,
        partition,
        partition_epoch: if random.random_ratio(9, 10) {
            current
        } else {
            PartitionEpoch(0)
        },
        requester,
        isr: random.random_ratio(2, 3).then_some(isr),
        leader: match random.random_range(0..6) {
            0 => Some(Election::Clean(random_broker(random))),
            1 => Some(Election::Unclean(random_broker(random))),
            _ => None,
        },
        replicas: random.random_ratio(1, 6).then_some(reassignment),
        damage: random_damage(random, image),
    }
}

fn random_damage(random: &mut StdRng, image: &ClusterImage) -> Option<Damage> {
    let broker = random_broker(random);
    let registered = image.broker(broker)?;
    random.random_ratio(1, 4).then(|| Damage {
        broker,
        broker_epoch: BrokerEpoch(registered.epoch.0 - i64::from(random.random_ratio(1, 10))),
        damaged: random.random_ratio(2, 3),
    })
}

fn random_config(random: &mut StdRng) -> ConfigChange {
    let resource = match random.random_range(0..3) {
        0 => ConfigResource::Broker(None),
        1 => ConfigResource::Broker(Some(random_broker(random))),
        _ => ConfigResource::Topic(["a", "b", "c"][random.random_range(0..3)].into()),
    };
    let key = [MIN_INSYNC_REPLICAS, "retention.ms"][random.random_range(0..2)].to_owned();
    let mut change = ConfigChange {
        resource,
        set: Vec::new(),
        remove: Vec::new(),
        expected: Vec::new(),
    };
    if random.random_ratio(1, 3) {
        let value = random.random_ratio(1, 2).then(|| "1".to_owned());
        change.expected.push((key.clone(), value));
    }
    if random.random_ratio(1, 3) {
        change.remove.push(key);
    } else {
        let value = random.random_range(0..4).to_string();
        change.set.push((key, value));
    }
    change
}

/// One partition on brokers 1 and 2, led by 1, and registrations of both.
fn two_replicas() -> (ClusterImage, TopicId, u64) {
    let mut image = ClusterImage::new("test");
    let mut offset = 0;
    let mut apply = |image: &mut ClusterImage, command: &Command| {
        offset += 1;
        assert!(
            image.apply(offset, command).iter().all(Result::is_ok),
            "{command:?}"
        );
        offset
    };
    for number in [1, 2] {
        let epoch = apply(
            &mut image,
            &Command::RegisterBroker(registration(number, 1)),
        );
        let epoch = BrokerEpoch(i64::try_from(epoch).unwrap());
        apply(
            &mut image,
            &Command::UnfenceBroker {
                broker: BrokerId(number),
                epoch,
                reconciled: u64::MAX,
            },
        );
    }
    let topic = TopicId::random();
    let new = NewTopic {
        name: "t".into(),
        id: topic,
        configs: BTreeMap::new(),
        partitions: vec![vec![BrokerId(1), BrokerId(2)]],
    };
    let last = apply(&mut image, &Command::CreateTopics(vec![new]));
    (image, topic, last)
}

fn registration(broker: i32, directory: u8) -> RegisterBroker {
    RegisterBroker {
        broker: BrokerId(broker),
        incarnation_id: IncarnationId::random(),
        directory_id: DirectoryId::from_bytes([directory * 16 + broker as u8; 16]).unwrap(),
        endpoints: vec![Endpoint {
            listener: "A".into(),
            host: "h".into(),
            port: 1,
        }],
        rack: None,
        last_stop: LastStop::Killed,
    }
}

/// Name, how it stopped, its directory, who is then eligible, who leads once it is unfenced.
type Restart = (&'static str, LastStop, u8, &'static [i32], Option<i32>);

#[test]
fn what_a_broker_keeps_decides_whether_it_stays_eligible() {
    let cases: [Restart; 5] = [
        ("clean", LastStop::Clean(BrokerEpoch(1)), 1, &[1], Some(1)),
        (
            "clean, but an earlier life",
            LastStop::Clean(BrokerEpoch(0)),
            1,
            &[],
            Some(1),
        ),
        ("killed", LastStop::Killed, 1, &[1], Some(1)),
        ("lossy", LastStop::Lossy, 1, &[], Some(1)),
        ("another directory", LastStop::Killed, 2, &[], None),
    ];
    for (name, last_stop, directory, elr, elected) in cases {
        let (mut image, topic, mut offset) = two_replicas();
        // Broker 2 is fenced and loses its directory: broker 1 is all there is.
        let mut second = registration(2, 2);
        second.last_stop = LastStop::Lossy;
        offset += 1;
        image.apply(offset, &Command::RegisterBroker(second));
        let alone = image.partition(topic, 0).unwrap();
        assert_eq!(
            (&alone.isr[..], &alone.elr[..]),
            (&[BrokerId(1)][..], &[][..])
        );

        let mut first = registration(1, directory);
        first.last_stop = last_stop;
        offset += 1;
        image.apply(offset, &Command::RegisterBroker(first));
        let fenced = image.partition(topic, 0).unwrap();
        let eligible: Vec<i32> = fenced.elr.iter().map(|broker| broker.0).collect();
        assert_eq!((fenced.leader, &eligible[..]), (None, elr), "{name}");

        let epoch = image.broker(BrokerId(1)).unwrap().epoch;
        offset += 1;
        image.apply(
            offset,
            &Command::UnfenceBroker {
                broker: BrokerId(1),
                epoch,
                reconciled: u64::MAX,
            },
        );
        let after = image.partition(topic, 0).unwrap();
        assert_eq!(after.leader, elected.map(BrokerId), "{name}");
    }
}

#[test]
fn fencing_a_broker_moves_its_leaderships_in_one_entry() {
    let (mut image, topic, offset) = two_replicas();
    let before = image.partition(topic, 0).unwrap().clone();
    assert_eq!(before.leader, Some(BrokerId(1)));
    let epoch = image.broker(BrokerId(1)).unwrap().epoch;
    image.apply(
        offset + 1,
        &Command::FenceBroker {
            broker: BrokerId(1),
            epoch,
        },
    );
    let after = image.partition(topic, 0).unwrap();
    assert_eq!(
        (after.leader, &after.isr[..]),
        (Some(BrokerId(2)), &[BrokerId(2)][..])
    );
    assert_eq!(
        after.elr,
        [BrokerId(1)],
        "below min.insync.replicas it stays eligible"
    );
    assert_eq!(after.leader_epoch, before.leader_epoch + 1);
    assert_eq!(after.partition_epoch.0, before.partition_epoch.0 + 1);
}

/// What broker 1 or 2 says of its replica of the only partition there is.
fn report(image: &ClusterImage, topic: TopicId, broker: i32, damaged: bool) -> Command {
    let broker = BrokerId(broker);
    Command::AlterPartitions(vec![PartitionChange {
        topic,
        partition: 0,
        partition_epoch: image.partition(topic, 0).unwrap().partition_epoch,
        requester: None,
        isr: None,
        leader: None,
        replicas: None,
        damage: Some(Damage {
            broker,
            broker_epoch: image.broker(broker).unwrap().epoch,
            damaged,
        }),
    }])
}

/// (leader, ISR, ELR, damaged) of it.
fn standing(image: &ClusterImage, topic: TopicId) -> (Option<i32>, [Vec<i32>; 3]) {
    let partition = image.partition(topic, 0).unwrap();
    let numbers = |of: &[BrokerId]| of.iter().map(|broker| broker.0).collect();
    let Partition {
        isr, elr, damaged, ..
    } = &**partition;
    (
        partition.leader.map(|leader| leader.0),
        [numbers(isr), numbers(elr), numbers(damaged)],
    )
}

#[test]
fn a_damaged_replica_gives_way_to_one_that_holds_what_was_committed() {
    let (mut image, topic, mut offset) = two_replicas();
    let mut apply = |image: &mut ClusterImage, command: Command| {
        offset += 1;
        image.apply(offset, &command).remove(0)
    };
    let restart =
        |image: &mut ClusterImage, apply: &mut dyn FnMut(&mut ClusterImage, Command) -> _, id| {
            let _: Result<Applied, CommandError> =
                apply(image, Command::RegisterBroker(registration(id, 1)));
        };
    let unfence = |image: &ClusterImage, id| Command::UnfenceBroker {
        broker: BrokerId(id),
        epoch: image.broker(BrokerId(id)).unwrap().epoch,
        reconciled: u64::MAX,
    };
    // 2 stops first, then 1: both are eligible. 1 comes back, with damage: nobody leads, and it is not forgotten that 1
    // had everything.
    restart(&mut image, &mut apply, 2);
    restart(&mut image, &mut apply, 1);
    assert_eq!(
        standing(&image, topic),
        (None, [vec![], vec![2, 1], vec![]])
    );
    let damage = report(&image, topic, 1, true);
    assert!(apply(&mut image, damage.clone()).is_ok());
    let back = unfence(&image, 1);
    assert!(apply(&mut image, back).is_ok());
    let waits = (None, [vec![], vec![2, 1], vec![1]]);
    assert_eq!(standing(&image, topic), waits);
    for election in [Election::Clean(BrokerId(1)), Election::Unclean(BrokerId(1))] {
        let Command::AlterPartitions(mut changes) = report(&image, topic, 1, true) else {
            unreachable!("a report is a change of a partition")
        };
        (changes[0].damage, changes[0].leader) = (None, Some(election));
        let refused = apply(&mut image, Command::AlterPartitions(changes));
        assert_eq!(refused, Err(CommandError::IneligibleReplica(BrokerId(1))));
    }
    // While nobody leads it cannot begin anew.
    let anew = report(&image, topic, 1, false);
    assert!(apply(&mut image, anew).is_err());
    assert_eq!(standing(&image, topic), waits);

    // 2 comes back and leads; the damaged log is needed no more.
    let back = unfence(&image, 2);
    assert!(apply(&mut image, back).is_ok());
    assert_eq!(
        standing(&image, topic),
        (Some(2), [vec![2], vec![], vec![1]])
    );
    let stale = apply(&mut image, damage);
    assert!(matches!(
        stale,
        Err(CommandError::StalePartitionEpoch { .. })
    ));
    let joins = |image: &ClusterImage| {
        let Command::AlterPartitions(mut changes) = report(image, topic, 1, true) else {
            unreachable!("a report is a change of a partition")
        };
        let member = |id| IsrMember {
            broker: BrokerId(id),
            broker_epoch: None,
        };
        (changes[0].damage, changes[0].isr) = (None, Some(vec![member(2), member(1)]));
        Command::AlterPartitions(changes)
    };
    let early = joins(&image);
    assert!(apply(&mut image, early).is_err(), "it is still damaged");
    let anew = report(&image, topic, 1, false);
    assert!(apply(&mut image, anew).is_ok());
    let joined = joins(&image);
    assert!(apply(&mut image, joined).is_ok());
    assert_eq!(
        standing(&image, topic),
        (Some(2), [vec![2, 1], vec![], vec![]])
    );
    // A leader that finds damage gives way at once.
    let damage = report(&image, topic, 2, true);
    assert!(apply(&mut image, damage).is_ok());
    assert_eq!(
        standing(&image, topic),
        (Some(1), [vec![1], vec![], vec![2]])
    );
}

#[test]
fn the_last_eligible_replica_is_kept_while_it_is_damaged_and_leads_if_its_log_is_mended() {
    let (mut image, topic, mut offset) = two_replicas();
    let mut apply = |image: &mut ClusterImage, command: &Command| {
        offset += 1;
        assert!(image.apply(offset, command).iter().all(Result::is_ok));
    };
    let mut lossy = registration(2, 2);
    lossy.last_stop = LastStop::Lossy;
    apply(&mut image, &Command::RegisterBroker(lossy));
    let damage = report(&image, topic, 1, true);
    apply(&mut image, &damage);
    assert_eq!(standing(&image, topic), (None, [vec![], vec![1], vec![1]]));

    apply(&mut image, &Command::RegisterBroker(registration(1, 1)));
    let unfence = Command::UnfenceBroker {
        broker: BrokerId(1),
        epoch: image.broker(BrokerId(1)).unwrap().epoch,
        reconciled: u64::MAX,
    };
    apply(&mut image, &unfence);
    assert_eq!(
        standing(&image, topic),
        (Some(1), [vec![1], vec![], vec![]])
    );
}

#[test]
fn setting_min_insync_replicas_to_what_it_is_changes_no_partition() {
    for resource in [
        ConfigResource::Topic("t".into()),
        ConfigResource::Broker(None),
    ] {
        let (mut image, topic, mut offset) = two_replicas();
        let mut apply = |image: &mut ClusterImage, command: Command| {
            offset += 1;
            assert!(
                image.apply(offset, &command).iter().all(Result::is_ok),
                "{command:?}"
            );
        };
        let set = |value: &str| {
            Command::AlterConfigs(vec![ConfigChange {
                resource: resource.clone(),
                set: vec![(MIN_INSYNC_REPLICAS.into(), value.into())],
                remove: Vec::new(),
                expected: Vec::new(),
            }])
        };
        apply(&mut image, set("2"));
        let epoch = image.broker(BrokerId(1)).unwrap().epoch;
        let fence = Command::FenceBroker {
            broker: BrokerId(1),
            epoch,
        };
        apply(&mut image, fence);
        let fenced = image.partition(topic, 0).unwrap().clone();
        assert_eq!(fenced.elr, [BrokerId(1)]);

        apply(&mut image, set("2"));
        assert_eq!(*image.partition(topic, 0).unwrap(), fenced, "{resource:?}");
        apply(&mut image, set("1"));
        assert_eq!(image.partition(topic, 0).unwrap().elr, [], "{resource:?}");
    }
}

/// A proposal that was repeated may be applied after a fence that its broker had not heard of when it was made.
#[test]
fn an_unfence_does_not_answer_a_later_fence() {
    let (mut image, topic, offset) = two_replicas();
    let broker = BrokerId(1);
    let epoch = image.broker(broker).unwrap().epoch;
    let unfence = |reconciled| Command::UnfenceBroker {
        broker,
        epoch,
        reconciled,
    };
    let fence = Command::FenceBroker { broker, epoch };
    let (first, second) = (offset + 1, offset + 3);
    assert_eq!(image.apply(first, &fence), [Ok(Applied::Done)]);
    assert_eq!(image.apply(first + 1, &unfence(first)), [Ok(Applied::Done)]);
    assert_eq!(image.apply(second, &fence), [Ok(Applied::Done)]);

    let before = image.partition(topic, 0).cloned();
    let refused = Err(CommandError::FencedSince { offset: second });
    assert_eq!(image.apply(second + 1, &unfence(first)), [refused]);
    assert!(image.broker(broker).unwrap().fenced);
    assert_eq!(image.partition(topic, 0).cloned(), before);
    assert_eq!(
        image.apply(second + 2, &unfence(second)),
        [Ok(Applied::Done)]
    );
    assert!(!image.broker(broker).unwrap().fenced);
}
