//! Who shall lead a partition, where the image does not say so by itself. Pure: image and time are arguments.
//!
//! Fencing, draining and leaving the ISR move leaderships in the entry that says so (`kittiwake_raft::Partition`). Left to
//! the controller are
//!
//! - leaders on draining brokers, as soon as another in-sync replica can lead;
//! - leaders of partitions that nobody leads, from replicas that may lack acknowledged records, where
//!   `unclean.leader.election.enable` allows it;
//! - leaderships that belong elsewhere: the *preferred* leader of a partition is its first replica, and creation spreads
//!   those evenly. [`Homecoming`] says when they are given back.
//!
//! A damaged replica is never elected. Others than in-sync replicas on brokers that are neither fenced nor draining are
//! elected uncleanly only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage, Election, Partition, Reassignment};

use super::Refusal;
use crate::api::ErrorCode;

/// What ElectLeaders is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ElectionType {
    /// The first replica, if it is in sync.
    Preferred,
    /// Any live replica that is not damaged, where nobody leads: acknowledged records may be lost.
    Unclean,
}

impl ElectionType {
    /// The type with this number on the wire.
    pub const fn from_wire(code: i8) -> Option<Self> {
        match code {
            0 => Some(Self::Preferred),
            1 => Some(Self::Unclean),
            _ => None,
        }
    }
}

/// The election an operator asks for.
///
/// # Errors
/// ELECTION_NOT_NEEDED, PREFERRED_LEADER_NOT_AVAILABLE or ELIGIBLE_LEADERS_NOT_AVAILABLE.
pub fn on_request(
    image: &ClusterImage,
    partition: &Partition,
    kind: ElectionType,
) -> Result<Election, Refusal> {
    match (kind, partition.leader) {
        (ElectionType::Preferred, leader) => {
            if leader.is_some() && leader == preferred(partition) {
                return Err(not_needed("The preferred leader leads already."));
            }
            let home = preferred(partition).filter(|home| may_lead(image, partition, *home));
            home.map(Election::Clean).ok_or_else(|| {
                Refusal::new(
                    ErrorCode::PreferredLeaderNotAvailable,
                    "The first replica is not in sync, or its broker is fenced or draining.",
                )
            })
        }
        (ElectionType::Unclean, Some(_)) => Err(not_needed("The partition has a leader.")),
        (ElectionType::Unclean, None) => unclean_candidate(image, partition)
            .map(Election::Unclean)
            .ok_or_else(|| {
                Refusal::new(
                    ErrorCode::EligibleLeadersNotAvailable,
                    "Every replica is damaged or on a fenced broker.",
                )
            }),
    }
}

fn not_needed(message: &str) -> Refusal {
    Refusal::new(ErrorCode::ElectionNotNeeded, message)
}

/// The election that must not wait: off a draining broker, or out of having no leader.
pub fn urgent(
    image: &ClusterImage,
    partition: &Partition,
    unclean_allowed: impl FnOnce() -> bool,
) -> Option<Election> {
    let Some(leader) = partition.leader else {
        let candidate = unclean_candidate(image, partition)?;
        return unclean_allowed().then_some(Election::Unclean(candidate));
    };
    if is_willing(image, leader) {
        return None;
    }
    let mut others = partition.replicas.iter().copied();
    others
        .find(|other| may_lead(image, partition, *other))
        .map(Election::Clean)
}

/// The leader that placement meant the partition to have.
pub fn preferred(partition: &Partition) -> Option<BrokerId> {
    partition.replicas.first().copied()
}

fn is_live(image: &ClusterImage, broker: BrokerId) -> bool {
    image.broker(broker).is_some_and(|broker| !broker.fenced)
}

fn is_willing(image: &ClusterImage, broker: BrokerId) -> bool {
    image
        .broker(broker)
        .is_some_and(|broker| !broker.fenced && !broker.draining)
}

fn may_lead(image: &ClusterImage, partition: &Partition, broker: BrokerId) -> bool {
    partition.isr.contains(&broker) && is_willing(image, broker)
}

/// The live replica, not damaged, that probably lacks least: the last leader, else one that is not just being added.
fn unclean_candidate(image: &ClusterImage, partition: &Partition) -> Option<BrokerId> {
    let live = |broker: &BrokerId| is_live(image, *broker) && !partition.damaged.contains(broker);
    // It may have been reassigned away since.
    let last = partition
        .last_known_leader
        .filter(|last| partition.replicas.contains(last));
    last.filter(live).or_else(|| {
        let replicas = partition.replicas.iter().copied().filter(live);
        replicas.min_by_key(|broker| {
            (
                partition.adding.contains(broker),
                !is_willing(image, *broker),
            )
        })
    })
}

/// When leaderships go back to preferred leaders.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RebalanceOptions {
    /// `auto.leader.rebalance.enable`
    pub enabled: bool,
    /// `leader.imbalance.check.interval.seconds`
    pub check_interval: Duration,
    /// `leader.imbalance.per.broker.percentage`
    pub imbalance_percentage: usize,
}

/// How long a broker that came back must have stayed before it gets its leaderships: one that crashes in a loop should not
/// take them with it every time.
pub const HOMECOMING_DELAY: Duration = Duration::from_secs(5);

/// Which brokers shall get the leaderships back that they are preferred for.
///
/// Kafka looks every `leader.imbalance.check.interval.seconds` (300) for brokers that lack more than
/// `leader.imbalance.per.broker.percentage` (10) of theirs, so that a restarted broker idles for minutes and one that lacks
/// a tenth does for ever. Here a broker that comes back (unfenced, or its drain ended) gets all of them at once,
/// [`HOMECOMING_DELAY`] later or when it is in sync with the last of them; a reassignment that ends brings its preferred
/// leader with it; Kafka's check remains for whatever that leaves.
#[derive(Debug)]
pub struct Homecoming {
    options: RebalanceOptions,
    /// Brokers that can lead, by registration.
    present: BTreeMap<BrokerId, BrokerEpoch>,
    /// Those of them that came back and do not lead all they are preferred for yet, and from when on they may.
    returning: BTreeMap<BrokerId, Instant>,
    next_check: Instant,
}

/// How a broker stands with the partitions it is preferred for.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    preferred: usize,
    /// It is in sync and another leads.
    away: usize,
    /// It is not in sync.
    behind: usize,
}

impl Homecoming {
    /// At the start of a controller's reign. Everybody present has just come back as far as it knows.
    pub fn new(options: RebalanceOptions, now: Instant) -> Self {
        Self {
            options,
            present: BTreeMap::new(),
            returning: BTreeMap::new(),
            next_check: now + options.check_interval,
        }
    }

    /// The brokers whose leaderships go back to them now, wherever they are in sync.
    pub fn due(&mut self, now: Instant, image: &ClusterImage) -> BTreeSet<BrokerId> {
        if !self.options.enabled {
            return BTreeSet::new();
        }
        self.notice(now, image);
        let check = now >= self.next_check;
        if check {
            self.next_check = now + self.options.check_interval;
        }
        if !check && !self.returning.values().any(|from| *from <= now) {
            return BTreeSet::new();
        }
        let tallies = tallies(image);
        let tally = |broker: &BrokerId| tallies.get(broker).copied().unwrap_or_default();
        self.returning.retain(|broker, from| {
            let Tally { away, behind, .. } = tally(broker);
            *from > now || away > 0 || behind > 0
        });
        let home = |broker: &BrokerId| {
            let returned = self.returning.get(broker).is_some_and(|from| *from <= now);
            returned && tally(broker).behind == 0
        };
        let imbalanced = |broker: &BrokerId| {
            let Tally {
                preferred, away, ..
            } = tally(broker);
            check && away * 100 > preferred * self.options.imbalance_percentage
        };
        let present = self.present.keys().copied();
        present
            .filter(|broker| home(broker) || imbalanced(broker))
            .collect()
    }

    /// The election that goes with the end of a reassignment: of the first of its replicas.
    pub fn on_arrival(
        &self,
        image: &ClusterImage,
        partition: &Partition,
        arrived: &Reassignment,
    ) -> Option<Election> {
        let home = arrived.replicas.first().copied()?;
        let election = to(image, partition, home);
        election.filter(|_| self.options.enabled)
    }

    /// When to look again if nothing changes before.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let later = |from: &&Instant| **from > now;
        let returning = self.returning.values().filter(later).min().copied();
        let check = self.options.enabled.then_some(self.next_check);
        returning.into_iter().chain(check).min()
    }

    fn notice(&mut self, now: Instant, image: &ClusterImage) {
        let willing = |broker: BrokerId| {
            let broker = image.broker(broker)?;
            (!broker.fenced && !broker.draining).then_some(broker.epoch)
        };
        self.present
            .retain(|broker, epoch| willing(*broker) == Some(*epoch));
        self.returning
            .retain(|broker, _| self.present.contains_key(broker));
        for broker in image.brokers.keys() {
            if let Some(epoch) = willing(*broker)
                && self.present.insert(*broker, epoch).is_none()
            {
                self.returning.insert(*broker, now + HOMECOMING_DELAY);
            }
        }
    }
}

/// The election that gives a leadership back to one of the brokers it is due to.
pub fn homeward(
    image: &ClusterImage,
    partition: &Partition,
    due: &BTreeSet<BrokerId>,
) -> Option<Election> {
    let home = preferred(partition).filter(|home| due.contains(home))?;
    to(image, partition, home)
}

/// The election of `home` as leader, if another leads and it may.
fn to(image: &ClusterImage, partition: &Partition, home: BrokerId) -> Option<Election> {
    let away = partition.leader.is_some_and(|leader| leader != home);
    (away && may_lead(image, partition, home)).then_some(Election::Clean(home))
}

fn tallies(image: &ClusterImage) -> BTreeMap<BrokerId, Tally> {
    let mut tallies: BTreeMap<BrokerId, Tally> = BTreeMap::new();
    for partition in image.topics().flat_map(|topic| &topic.partitions) {
        let Some(home) = preferred(partition) else {
            continue;
        };
        // One that a reassignment adds is not behind: it was never there.
        if partition.adding.contains(&home) && !partition.isr.contains(&home) {
            continue;
        }
        let tally = tallies.entry(home).or_default();
        tally.preferred += 1;
        if !partition.isr.contains(&home) {
            tally.behind += 1;
        } else if partition.leader != Some(home) {
            tally.away += 1;
        }
    }
    tallies
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::Command;

    use super::*;
    use crate::controller::tests_support::{
        apply, create, image_of, move_leaders, partition_of, rejoin,
    };

    const OPTIONS: RebalanceOptions = RebalanceOptions {
        enabled: true,
        check_interval: Duration::from_secs(300),
        imbalance_percentage: 10,
    };

    fn on(ids: [i32; 3]) -> Vec<BrokerId> {
        ids.map(BrokerId).to_vec()
    }

    /// Three brokers, one topic `t` of `partitions`, all preferring broker 0.
    fn cluster(partitions: usize, configs: &[(&str, &str)]) -> ClusterImage {
        let mut image = image_of(3);
        create(&mut image, "t", configs, vec![on([0, 1, 2]); partitions]);
        image
    }

    fn epoch(image: &ClusterImage, id: i32) -> BrokerEpoch {
        image.broker(BrokerId(id)).unwrap().epoch
    }

    fn fence(image: &mut ClusterImage, id: i32) {
        let (broker, epoch) = (BrokerId(id), epoch(image, id));
        apply(image, Command::FenceBroker { broker, epoch });
    }

    fn unfence(image: &mut ClusterImage, id: i32) {
        let (broker, epoch) = (BrokerId(id), epoch(image, id));
        let reconciled = image.offset;
        apply(
            image,
            Command::UnfenceBroker {
                broker,
                epoch,
                reconciled,
            },
        );
    }

    fn drain(image: &mut ClusterImage, id: i32, draining: bool) {
        let (broker, epoch) = (BrokerId(id), epoch(image, id));
        apply(
            image,
            Command::DrainBroker {
                broker,
                epoch,
                draining,
            },
        );
    }

    fn request(image: &ClusterImage, kind: ElectionType) -> Result<Election, ErrorCode> {
        on_request(image, partition_of(image, "t", 0), kind).map_err(|refusal| refusal.code)
    }

    #[test]
    fn the_preferred_leader_is_elected_once_it_is_in_sync_and_willing() {
        let mut image = cluster(1, &[]);
        let not_available = Err(ErrorCode::PreferredLeaderNotAvailable);
        assert_eq!(
            request(&image, ElectionType::Preferred),
            Err(ErrorCode::ElectionNotNeeded)
        );
        fence(&mut image, 0);
        assert_eq!(request(&image, ElectionType::Preferred), not_available);
        unfence(&mut image, 0);
        assert_eq!(request(&image, ElectionType::Preferred), not_available);
        rejoin(&mut image, BrokerId(0));
        assert_eq!(
            request(&image, ElectionType::Preferred),
            Ok(Election::Clean(BrokerId(0)))
        );
        drain(&mut image, 0, true);
        assert_eq!(request(&image, ElectionType::Preferred), not_available);
    }

    #[test]
    fn an_unclean_election_is_for_partitions_without_a_leader() {
        let mut image = cluster(1, &[]);
        assert_eq!(
            request(&image, ElectionType::Unclean),
            Err(ErrorCode::ElectionNotNeeded)
        );
        for id in [0, 1, 2] {
            fence(&mut image, id);
        }
        assert_eq!(
            request(&image, ElectionType::Unclean),
            Err(ErrorCode::EligibleLeadersNotAvailable)
        );
        // 0 was the first to leave the ISR, long before the others: it is not eligible.
        unfence(&mut image, 0);
        assert_eq!(partition_of(&image, "t", 0).leader, None);
        assert_eq!(
            request(&image, ElectionType::Unclean),
            Ok(Election::Unclean(BrokerId(0)))
        );
        let partition = partition_of(&image, "t", 0);
        assert_eq!(urgent(&image, partition, || false), None);
        assert_eq!(
            urgent(&image, partition, || true),
            Some(Election::Unclean(BrokerId(0)))
        );
    }

    #[test]
    fn a_last_leader_that_was_reassigned_away_is_not_elected() {
        let image = cluster(1, &[]);
        let partition = Partition {
            last_known_leader: Some(BrokerId(2)),
            replicas: vec![BrokerId(1), BrokerId(0)],
            adding: vec![BrokerId(1)],
            ..Partition::default()
        };
        assert_eq!(
            urgent(&image, &partition, || true),
            Some(Election::Unclean(BrokerId(0)))
        );
    }

    #[test]
    fn a_draining_leader_hands_over_as_soon_as_somebody_is_in_sync() {
        let mut image = cluster(1, &[]);
        fence(&mut image, 1);
        fence(&mut image, 2);
        drain(&mut image, 0, true);
        let leader = |image: &ClusterImage| partition_of(image, "t", 0).leader;
        assert_eq!(leader(&image), Some(BrokerId(0)));
        assert_eq!(urgent(&image, partition_of(&image, "t", 0), || true), None);
        unfence(&mut image, 2);
        rejoin(&mut image, BrokerId(2));
        assert_eq!(
            urgent(&image, partition_of(&image, "t", 0), || true),
            Some(Election::Clean(BrokerId(2)))
        );
    }

    #[test]
    fn whoever_comes_back_gets_its_leaderships_when_it_is_in_sync_with_all() {
        let mut image = cluster(20, &[]);
        let start = Instant::now();
        let mut homecoming = Homecoming::new(OPTIONS, start);
        let later = start + HOMECOMING_DELAY;
        assert_eq!(homecoming.due(later, &image), BTreeSet::new());
        fence(&mut image, 0);
        assert_eq!(homecoming.due(later, &image), BTreeSet::new());
        unfence(&mut image, 0);
        assert_eq!(homecoming.due(later, &image), BTreeSet::new());
        let at = later + HOMECOMING_DELAY;
        assert_eq!(homecoming.wake_at(later), Some(at));
        assert_eq!(homecoming.due(at, &image), BTreeSet::new(), "not in sync");
        rejoin(&mut image, BrokerId(0));
        assert_eq!(
            homecoming.due(at - Duration::from_millis(1), &image),
            BTreeSet::new()
        );
        let due = homecoming.due(at, &image);
        assert_eq!(due, BTreeSet::from([BrokerId(0)]));
        let partition = partition_of(&image, "t", 0);
        assert_eq!(
            homeward(&image, partition, &due),
            Some(Election::Clean(BrokerId(0)))
        );
    }

    #[test]
    fn without_the_rebalance_nothing_moves() {
        let mut image = cluster(1, &[]);
        let start = Instant::now();
        let off = RebalanceOptions {
            enabled: false,
            ..OPTIONS
        };
        let mut homecoming = Homecoming::new(off, start);
        fence(&mut image, 0);
        unfence(&mut image, 0);
        rejoin(&mut image, BrokerId(0));
        assert_eq!(
            homecoming.due(start + OPTIONS.check_interval * 2, &image),
            BTreeSet::new()
        );
        assert_eq!(homecoming.wake_at(start), None);
    }

    #[test]
    fn the_check_leaves_small_imbalances_alone() {
        for (moved, expected) in [(2, false), (3, true)] {
            let mut image = cluster(20, &[]);
            let start = Instant::now();
            let mut homecoming = Homecoming::new(OPTIONS, start);
            assert_eq!(homecoming.due(start, &image), BTreeSet::new());
            // All are home: nobody is returning any more.
            assert_eq!(
                homecoming.due(start + HOMECOMING_DELAY, &image),
                BTreeSet::new()
            );
            move_leaders(&mut image, "t", moved, BrokerId(1));
            let check = start + OPTIONS.check_interval;
            assert_eq!(
                !homecoming.due(check, &image).is_empty(),
                expected,
                "{moved} of 20"
            );
        }
    }
}
