//! The cluster, and one random step of it after another.

use kittiwake_raft::{Applied, BrokerId, Command, CommandError, DirectoryId};
use kittiwake_storage::Offset;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Mutation;
use super::broker::{Broker, Message, Process};
use super::checker::Checker;
use super::quorum::Quorum;
use crate::config::topic_layers::Durability;
use crate::partition::leader::Event;

/// `replica.lag.time.max.ms`: short, so that it happens.
pub(super) const LAG_MAX_MS: i64 = 400;

/// Messages on their way; more are lost.
const NETWORK_MAX: usize = 24;

/// Fair rounds within which everything must be well again after the last fault.
const HEALING_ROUNDS_MAX: usize = 120;

#[derive(Debug)]
pub(super) struct World {
    pub(super) random: StdRng,
    pub(super) now_ms: i64,
    pub(super) durability: Durability,
    pub(super) mutation: Option<Mutation>,
    pub(super) quorum: Quorum,
    pub(super) brokers: Vec<Broker>,
    pub(super) network: Vec<Message>,
    pub(super) checker: Checker,
    /// ISR and ELR together are as many as `min.insync.replicas`, less those that have lost something.
    pub(super) covered: bool,
    pub(super) steps: u64,
    /// A follower and a leader between which answers take long.
    slow: Option<(usize, usize)>,
    last_number: u32,
    trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>, traced: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let durability = match random.random_range(0..4) {
            0 => Durability::Persisted,
            _ => Durability::Replicated,
        };
        let count = random.random_range(3..=4);
        let is_slow = random.random_ratio(1, 2);
        let slow = is_slow.then(|| (random.random_range(0..count), random.random_range(0..count)));
        let slow = slow.map(|(follower, leader)| (follower as usize, leader as usize));
        let brokers = (0..count)
            .map(|id| Broker::new(BrokerId(id), random_directory(&mut random)))
            .collect();
        let mut world = Self {
            random,
            now_ms: 0,
            durability,
            mutation,
            quorum: Quorum::new(),
            brokers,
            network: Vec::new(),
            checker: Checker::default(),
            covered: false,
            steps: 0,
            slow,
            last_number: 0,
            trace: traced.then(Vec::new),
        };
        world.form();
        world
    }

    /// All brokers start, and the partition is created.
    fn form(&mut self) {
        for at in 0..self.brokers.len() {
            self.start(at);
            self.register(at);
            self.unfence(at);
        }
        let (replicas, min_insync_replicas) = match self.random.random_range(0..8) {
            0 => (2, 2),
            1 => (2, 1),
            2 => (3, 1),
            3 => (3, 3),
            _ => (3, 2),
        };
        let replicas: Vec<_> = self.brokers[..replicas]
            .iter()
            .map(|broker| broker.id)
            .collect();
        self.quorum.create_partition(&replicas, min_insync_replicas);
        self.image_moved(0);
        self.note(|world| {
            format!(
                "{:?}, {:?}",
                world.durability,
                world.quorum.last().partition
            )
        });
    }

    /// Runs an episode; none if all went well.
    pub(super) fn run(&mut self, steps: usize) -> Option<String> {
        for _ in 0..steps {
            self.step();
            if self.checker.violation.is_some() {
                return self.checker.violation.take();
            }
        }
        self.heal();
        self.checker.violation.take()
    }

    pub(super) fn into_trace(self) -> Vec<String> {
        self.trace.unwrap_or_default()
    }

    /// Writes down what happens, where somebody is going to read it.
    pub(super) fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = line(self);
            self.trace.get_or_insert_default().push(line);
        }
    }

    pub(super) fn next_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn process(&mut self, at: usize) -> Option<&mut Process> {
        self.brokers[at].process.as_mut()
    }

    pub(super) fn index_of(&self, broker: BrokerId) -> usize {
        broker.0 as usize
    }

    fn runs(&self, at: usize) -> bool {
        self.brokers[at]
            .process
            .as_ref()
            .is_some_and(|process| !process.hangs)
    }

    // ---- checks ------------------------------------------------------------------------------

    /// A command to the quorum, and what must be true after it.
    pub(super) fn command(&mut self, command: &Command) -> Result<Applied, CommandError> {
        let views = self.quorum.views.len();
        let result = self.quorum.apply(command);
        self.image_moved(views);
        result
    }

    /// `before` views were known; checks what has come.
    pub(super) fn image_moved(&mut self, before: usize) {
        if self.quorum.views.len() <= before {
            return;
        }
        let views = &self.quorum.views;
        let earlier = before.checked_sub(1).map(|at| &views[at]);
        let view = self.quorum.last();
        self.checker.image_moves(earlier, view);
        if earlier.is_some_and(|earlier| {
            earlier.partition == view.partition
                && earlier.min_insync_replicas == view.min_insync_replicas
        }) {
            return;
        }
        let (partition, needed) = (&view.partition, view.needed());
        let changed = earlier.is_none_or(|earlier| {
            earlier.min_insync_replicas != view.min_insync_replicas
                || earlier.partition.replicas != partition.replicas
        });
        let intact = self
            .brokers
            .iter()
            .filter(|broker| partition.isr.contains(&broker.id) && !broker.is_lossy());
        if intact.count() >= needed {
            self.covered = true;
        } else if changed {
            self.covered = false;
        }
        for broker in &mut self.brokers {
            let id = broker.id;
            let in_sync = partition.isr.contains(&id) && !broker.is_lossy();
            if in_sync || !partition.replicas.contains(&id) {
                broker.recovers = false;
            }
            broker.emptied &= !in_sync;
        }
        for broker in &self.brokers {
            let was = earlier.is_some_and(|earlier| {
                earlier.eligible().any(|id| id == broker.id)
                    && earlier.partition.leader == partition.leader
            });
            let leads = partition.leader == Some(broker.id);
            let elected =
                leads && earlier.is_none_or(|earlier| earlier.partition.leader != partition.leader);
            let found_damaged = broker
                .process
                .as_ref()
                .is_some_and(|process| process.damaged && process.epoch.is_some());
            self.checker.require(!(elected && found_damaged), || {
                format!("{} is elected, and its log is damaged", broker.id)
            });
            if !was && !broker.has_lost && (leads || view.eligible().any(|id| id == broker.id)) {
                let what = if leads { "leader" } else { "eligible" };
                self.checker
                    .must_hold(what, broker.id, &broker.log, Offset::ZERO);
            }
        }
        let line = format!(
            "image {}: {partition:?} min.insync.replicas {needed}",
            self.quorum.views.len() - 1
        );
        self.note(|_| line);
    }

    /// 1, 2: who may be elected has what was committed from `from` on.
    pub(super) fn check_eligible(&mut self, from: Offset) {
        let view = self.quorum.views.last();
        for id in view.into_iter().flat_map(|view| view.eligible()) {
            let broker = &self.brokers[id.0 as usize];
            if !broker.has_lost {
                self.checker.must_hold("eligible", id, &broker.log, from);
            }
        }
    }

    /// The same, of one broker whose log was cut.
    pub(super) fn check_member(&mut self, at: usize) {
        let broker = &self.brokers[at];
        if !broker.has_lost && self.quorum.last().eligible().any(|id| id == broker.id) {
            self.checker
                .must_hold("cut", broker.id, &broker.log, broker.log.end());
        }
    }

    pub(super) fn check_epochs(&mut self, at: usize, from: Offset) {
        let broker = &self.brokers[at];
        let fault = broker.log.fault_of_epochs(from);
        self.checker
            .require(fault.is_none(), || format!("{}: {fault:?}", broker.id));
    }

    // ---- steps -------------------------------------------------------------------------------

    fn step(&mut self) {
        self.steps += 1;
        self.now_ms += self.random.random_range(0..12);
        let at = self.random.random_range(0..self.brokers.len());
        let other = self.random.random_range(0..self.brokers.len());
        match self.random.random_range(0..1000) {
            0..240 => self.deliver_some(),
            240..250 => self.lose_some(),
            250..985 if !self.runs(at) => {
                if self.random.random_ratio(1, 10) {
                    self.bring_back(at);
                }
            }
            250..330 => self.append(at, self.now_ms % 4 != 0),
            330..370 => self.begin_waiting(at),
            370..520 => {
                let reconnects = self.random.random_ratio(1, 16);
                self.fetch(at, reconnects);
            }
            520..650 => self.answer(at, other),
            // One connection of the cluster can be slow: its answers outlive the reign they were asked in.
            650..780 if Some((at, other)) == self.slow && !self.random.random_ratio(1, 40) => {}
            650..780 => self.take_answer(at, BrokerId(other as i32)),
            780..820 => self.learn(at),
            820..860 => self.reconcile(at),
            860..880 => self.propose(at),
            880..896 => self.give_up_proposal(at),
            896..920 => self.tick(at),
            920..950 => self.flush_for_leader(at),
            950..958 => self.brokers[at].log.flush(),
            958..964 => self.checkpoint(at),
            964..970 => self.delete_records(at),
            970..985 => self.register_or_unfence(at),
            _ => self.disturb(at),
        }
    }

    fn deliver_some(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.network.len());
        let message = self.network.swap_remove(at);
        if self.random.random_ratio(1, 12) {
            self.network.push(message.clone());
        }
        if self.network.len() > NETWORK_MAX {
            self.network.swap_remove(0);
        }
        self.deliver(message);
    }

    fn lose_some(&mut self) {
        if !self.network.is_empty() {
            let at = self.random.random_range(0..self.network.len());
            self.network.swap_remove(at);
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Fetch { to, fetch } => {
                let at = self.index_of(to);
                if self.runs(at) {
                    self.receive_fetch(at, fetch);
                }
            }
            Message::Proposal {
                from,
                life,
                request,
                change,
            } => {
                self.receive_proposal((from, life, request), change);
            }
            Message::Reply { to, .. } => {
                let at = self.index_of(to);
                if self.runs(at) {
                    self.receive_reply(at, message);
                }
            }
        }
    }

    /// A newer image arrives, not always the newest.
    fn learn(&mut self, at: usize) {
        let last = self.quorum.views.len() - 1;
        let known = self.brokers[at]
            .process
            .as_ref()
            .map_or(last, |process| process.image);
        let image = self.random.random_range(known..=last);
        if let Some(process) = self.process(at) {
            process.image = image;
        }
    }

    fn tick(&mut self, at: usize) {
        let now_ms = self.now_ms;
        self.step_leader(at, Event::Tick(now_ms));
    }

    fn checkpoint(&mut self, at: usize) {
        let broker = &mut self.brokers[at];
        if let Some(process) = &broker.process {
            broker.checkpoint = process.high_watermark;
        }
    }

    // ---- healing -----------------------------------------------------------------------------

    /// 13: without faults, everybody has everything before long, and writes are acknowledged.
    fn heal(&mut self) {
        self.note(|_| "healing".into());
        self.network.clear();
        for at in 0..self.brokers.len() {
            self.bring_back(at);
            self.undrain(at);
        }
        let before = self.checker.acknowledged_count();
        for round in 0..HEALING_ROUNDS_MAX {
            self.end_reassignment();
            for at in 0..self.brokers.len() {
                self.register_or_unfence(at);
                let unheard = self.checker.acknowledged_count() == before;
                self.fair_turn(at, round, unheard && round.is_multiple_of(5));
                if self.checker.violation.is_some() {
                    return;
                }
            }
            if round > 10 && self.checker.acknowledged_count() > before && self.is_whole() {
                return;
            }
        }
        let states: Vec<_> = self
            .brokers
            .iter()
            .map(|broker| {
                (
                    broker.id,
                    broker.log.view(),
                    broker.log.flushed(),
                    &broker.process,
                )
            })
            .collect();
        let image = self.quorum.last();
        self.checker.require(false, || {
            format!(
                "not whole after {HEALING_ROUNDS_MAX} fair rounds: {:?} {:?}\n{states:?}",
                image.partition,
                image
                    .brokers
                    .values()
                    .map(|broker| (broker.id.0, broker.fenced, broker.draining))
                    .collect::<Vec<_>>()
            )
        });
    }

    /// Everything that can happen to a broker happens, in order.
    fn fair_turn(&mut self, at: usize, round: usize, writes: bool) {
        self.now_ms += 10;
        let last = self.quorum.views.len() - 1;
        if let Some(process) = self.process(at) {
            process.image = last;
        }
        self.reconcile(at);
        if writes {
            self.append(at, true);
        }
        self.begin_waiting(at);
        self.fetch(at, round.is_multiple_of(10));
        if round % 10 == 9 {
            self.give_up_proposal(at);
        }
        self.propose(at);
        for message in std::mem::take(&mut self.network) {
            self.deliver(message);
        }
        for other in 0..self.brokers.len() {
            self.answer(at, other);
            self.take_answer(other, BrokerId(at as i32));
        }
        self.flush_for_leader(at);
        self.flush_for_leader(at);
        self.tick(at);
    }

    fn is_whole(&self) -> bool {
        let partition = &self.quorum.last().partition;
        let first = &self.brokers[partition.replicas[0].0 as usize];
        partition.isr.len() == partition.replicas.len()
            && partition.replicas.iter().all(|id| {
                let broker = &self.brokers[id.0 as usize];
                let (log, end) = (&broker.log, first.log.end());
                let from = log.start().max(first.log.start());
                log.end() == end
                    && (from.0..end.0).all(|at| log.get(Offset(at)) == first.log.get(Offset(at)))
                    && broker
                        .process
                        .as_ref()
                        .is_some_and(|process| process.high_watermark == end)
            })
    }
}

pub(super) fn random_directory(random: &mut StdRng) -> DirectoryId {
    let id = random.random_range(1..u128::MAX);
    DirectoryId::from_bytes(id.to_be_bytes()).expect("the number is not zero")
}
