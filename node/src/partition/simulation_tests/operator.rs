//! What befalls the cluster: crashes and starts, fences, drains, elections, reassignments, configuration.

use kittiwake_raft::{
    Applied, BrokerId, Command, Damage, Election, Endpoint, IncarnationId, LastStop, Reassignment,
    RegisterBroker,
};
use kittiwake_storage::Offset;
use rand::RngExt;

use super::Mutation;
use super::broker::Process;
use super::log::SimulatedLog;
use super::world::{World, random_directory};
use crate::config::topic_layers::Durability;
use crate::partition::damage::is_due;

impl World {
    pub(super) fn disturb(&mut self, at: usize) {
        match self.random.random_range(0..100) {
            0..11 => self.kill(at),
            11..14 => self.damage(at),
            14..22 => self.lose_power(at, false),
            22..24 => self.lose_power(at, true),
            24..28 => self.stop(at),
            28..36 => self.hang(at),
            36..52 => self.fence(at),
            52..60 => self.drain(at, true),
            60..70 => self.undrain(at),
            70..78 => self.elect_preferred(),
            78..86 => self.begin_reassignment(),
            86..96 => self.end_reassignment(),
            _ => self.set_min_insync_replicas(),
        }
    }

    /// The process ends; the page cache keeps what it wrote.
    fn kill(&mut self, at: usize) {
        if self.brokers[at].process.take().is_some() {
            self.note(|world| format!("{} is killed", world.brokers[at].id));
        }
    }

    /// A planned stop: everything is flushed.
    fn stop(&mut self, at: usize) {
        let broker = &mut self.brokers[at];
        let Some(process) = broker.process.take() else {
            return;
        };
        broker.log.flush();
        broker.checkpoint = process.high_watermark;
        if let Some(epoch) = process.epoch {
            broker.last_stop = LastStop::Clean(epoch);
        }
        self.note(|world| format!("{} stops", world.brokers[at].id));
    }

    /// The machine ends, or with `disk` its disk too, where [`World::may_lose`] allows it.
    fn lose_power(&mut self, at: usize, disk: bool) {
        if !self.may_lose(at, disk) {
            return;
        }
        let broker = &mut self.brokers[at];
        broker.process = None;
        let (flushed, end) = (broker.log.flushed(), broker.log.end());
        let survives = self.random.random_range(flushed.0..=end.0);
        broker.log.lose_unflushed(Offset(survives));
        broker.last_stop = LastStop::Lossy;
        if disk {
            broker.directory = random_directory(&mut self.random);
            broker.forget_log();
        }
        // What a persisted topic has acknowledged is on the disk.
        let keeps = self.durability == Durability::Persisted && !disk;
        broker.has_lost = !keeps;
        broker.recovers = !keeps;
        self.note(|world| {
            format!(
                "{} loses what was after {survives} (its disk: {disk})",
                world.brokers[at].id
            )
        });
    }

    /// The log of a broker that is down is damaged, where its disk might be lost too ([`World::may_lose`]).
    fn damage(&mut self, at: usize) {
        let broker = &self.brokers[at];
        if broker.process.is_some() || broker.log.view() == SimulatedLog::default().view() {
            return;
        }
        if !self.may_lose(at, true) {
            return;
        }
        let broker = &mut self.brokers[at];
        broker.damaged = true;
        broker.recovers = true;
        self.note(|world| format!("{} is damaged", world.brokers[at].id));
    }

    /// Tells the quorum, as `partition::damage` does, whether the replica is damaged, by the image the broker knows.
    fn report_damage(&mut self, at: usize) {
        let broker = &self.brokers[at];
        let Some(process) = &broker.process else {
            return;
        };
        let (Some(broker_epoch), Some(known)) = (process.epoch, process.reconciled) else {
            return;
        };
        let (id, damaged) = (broker.id, process.damaged);
        let partition = &self.quorum.views[known].partition;
        if !is_due(partition, id, damaged) {
            return;
        }
        let partition_epoch = partition.partition_epoch;
        let before = self.quorum.views.len();
        let _ = self.quorum.alter(|change| {
            change.partition_epoch = partition_epoch;
            change.damage = Some(Damage {
                broker: id,
                broker_epoch,
                damaged,
            });
        });
        self.image_moved(before);
    }

    /// How many may have lost something at a time: `min.insync.replicas` (or the replicas, where they are fewer) less
    /// one, counted from the loss until it is in sync again. That is what KIP-966 promises to survive, from the moment
    /// the ISR has that many members; after a change of `min.insync.replicas` or of the replicas, until the ISR has as
    /// many as are asked for now, another that is eligible must be intact. A persisted topic survives any number of
    /// machines, only not their disks.
    fn may_lose(&self, at: usize, disk: bool) -> bool {
        if self.durability == Durability::Persisted {
            return !disk;
        }
        let view = self.quorum.last();
        let id = self.brokers[at].id;
        if !view.partition.replicas.contains(&id) {
            return true;
        }
        let others = || self.brokers.iter().filter(|other| other.id != id);
        let recovering = others().filter(|other| other.recovers).count() + 1;
        let another = others()
            .any(|other| !other.is_lossy() && view.eligible().any(|eligible| eligible == other.id));
        recovering < view.needed() && (self.covered || another)
    }

    /// It stops for a while; what it believed is then old.
    fn hang(&mut self, at: usize) {
        if let Some(process) = self.process(at) {
            process.hangs = true;
            self.note(|world| format!("{} hangs", world.brokers[at].id));
        }
    }

    /// Starts what is down, wakes what hangs.
    pub(super) fn bring_back(&mut self, at: usize) {
        match self.process(at) {
            Some(process) => process.hangs = false,
            None => self.start(at),
        }
    }

    pub(super) fn start(&mut self, at: usize) {
        let life = self.next_number();
        self.brokers[at].start(life);
        if self.mutation == Some(Mutation::ForgetLossBeforeRegistering)
            && self.random.random_ratio(1, 4)
        {
            self.brokers[at].last_stop = LastStop::Killed;
        }
        self.check_epochs(at, Offset::ZERO);
        self.note(|world| {
            format!(
                "{} starts, {:?}",
                world.brokers[at].id,
                world.brokers[at].log.view()
            )
        });
    }

    pub(super) fn register(&mut self, at: usize) {
        let incarnation = self.random.random_range(1..u128::MAX).to_be_bytes();
        let broker = &mut self.brokers[at];
        let last_stop = match std::mem::replace(&mut broker.last_stop, LastStop::Killed) {
            LastStop::Lossy if self.mutation == Some(Mutation::RegisterLossAsKilled) => {
                LastStop::Killed
            }
            last_stop => last_stop,
        };
        broker.has_lost = false;
        let request = RegisterBroker {
            broker: broker.id,
            incarnation_id: IncarnationId::from_bytes(incarnation).expect("the number is not zero"),
            directory_id: broker.directory,
            endpoints: vec![Endpoint {
                listener: "REPLICATION".into(),
                host: "host".into(),
                port: 1,
            }],
            rack: None,
            last_stop,
        };
        let registered = self.command(&Command::RegisterBroker(request));
        let image = self.quorum.views.len().saturating_sub(1);
        if let (Ok(Applied::Registered(epoch)), Some(process)) = (registered, self.process(at)) {
            process.epoch = Some(epoch);
            process.image = image;
        }
    }

    /// What a broker is after once it runs.
    pub(super) fn register_or_unfence(&mut self, at: usize) {
        match self.process(at).map(|process| process.epoch) {
            None => {}
            Some(None) => self.register(at),
            Some(Some(_)) => {
                self.unfence(at);
                self.report_damage(at);
            }
        }
    }

    pub(super) fn unfence(&mut self, at: usize) {
        let broker = &self.brokers[at];
        let Some(epoch) = broker.process.as_ref().and_then(|process| process.epoch) else {
            return;
        };
        let told = |process: &Process| {
            let tell = process.damaged && self.mutation != Some(Mutation::UnfenceUntold);
            !tell || self.quorum.last().partition.damaged.contains(&broker.id)
        };
        if !broker.process.as_ref().is_some_and(told) {
            return;
        }
        let is_fenced = self
            .quorum
            .registered(broker.id)
            .is_some_and(|broker| broker.fenced);
        if is_fenced {
            let broker = broker.id;
            let _ = self.command(&Command::UnfenceBroker {
                broker,
                epoch,
                // Even sooner than it may.
                reconciled: u64::MAX,
            });
        }
    }

    fn fence(&mut self, at: usize) {
        let broker = self.brokers[at].id;
        if let Some(epoch) = self
            .quorum
            .registered(broker)
            .map(|registered| registered.epoch)
        {
            let _ = self.command(&Command::FenceBroker { broker, epoch });
        }
    }

    fn drain(&mut self, at: usize, draining: bool) {
        let broker = self.brokers[at].id;
        if let Some(epoch) = self
            .quorum
            .registered(broker)
            .map(|registered| registered.epoch)
        {
            let _ = self.command(&Command::DrainBroker {
                broker,
                epoch,
                draining,
            });
        }
    }

    pub(super) fn undrain(&mut self, at: usize) {
        let is_draining = |broker: &kittiwake_raft::Broker| broker.draining;
        let registered = self.quorum.registered(self.brokers[at].id);
        if registered.is_some_and(|registered| is_draining(registered)) {
            self.drain(at, false);
        }
    }

    fn elect_preferred(&mut self) {
        let before = self.quorum.views.len();
        let preferred = self.quorum.last().partition.replicas[0];
        let _ = self
            .quorum
            .alter(|change| change.leader = Some(Election::Clean(preferred)));
        self.image_moved(before);
    }

    fn begin_reassignment(&mut self) {
        let partition = &self.quorum.last().partition;
        if !partition.adding.is_empty() || !partition.removing.is_empty() || !self.is_intact() {
            return;
        }
        let mut replicas = partition.replicas.clone();
        let absent = self
            .brokers
            .iter()
            .map(|broker| broker.id)
            .filter(|id| !replicas.contains(id));
        let adding: Vec<BrokerId> = absent.take(1).collect();
        let removes = replicas.len() > 2 || !adding.is_empty() && self.random.random_ratio(1, 2);
        let leaving = self.random.random_range(0..replicas.len());
        let removing: Vec<BrokerId> = removes.then(|| replicas[leaving]).into_iter().collect();
        replicas.extend(&adding);
        self.reassign(Reassignment {
            replicas,
            adding,
            removing,
        });
    }

    /// Completes it once the new replicas are in sync, and enough remain.
    pub(super) fn end_reassignment(&mut self) {
        let view = self.quorum.last();
        let partition = &view.partition;
        if partition.adding.is_empty() && partition.removing.is_empty() || !self.is_intact() {
            return;
        }
        let replicas: Vec<BrokerId> = partition
            .replicas
            .iter()
            .copied()
            .filter(|id| !partition.removing.contains(id))
            .collect();
        let remaining = partition
            .isr
            .iter()
            .filter(|id| replicas.contains(id))
            .count();
        let joined = partition.adding.iter().all(|id| partition.isr.contains(id));
        if joined && remaining >= view.min_insync_replicas.min(replicas.len()) {
            self.reassign(Reassignment {
                replicas,
                adding: Vec::new(),
                removing: Vec::new(),
            });
        }
    }

    fn reassign(&mut self, to: Reassignment) {
        let before = self.quorum.views.len();
        let _ = self.quorum.alter(|change| change.replicas = Some(to));
        self.image_moved(before);
    }

    /// An operator leaves `min.insync.replicas` and the replicas alone while a broker recovers from a loss: fewer are
    /// then promised to be survived than there may have been already, and the ELR is emptied (KIP-966).
    fn is_intact(&self) -> bool {
        !self.brokers.iter().any(|broker| broker.recovers)
    }

    fn set_min_insync_replicas(&mut self) {
        if !self.is_intact() {
            return;
        }
        let before = self.quorum.views.len();
        let to = self.random.random_range(1..=3);
        let _ = self.quorum.set_min_insync_replicas(to);
        // Whatever the value was: the ELR is empty now.
        self.covered = false;
        self.image_moved(before);
    }
}
