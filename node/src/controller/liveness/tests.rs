//! Examples, and random runs of three voters and their brokers: heartbeats and answers are delayed, lost and cut off,
//! controllers change while the old one still believes that it is fresh, processes stop and go on. The seed is printed;
//! `KITTIWAKE_SEED` sets another.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(3);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn registered(broker: i32, epoch: i64) -> Registration {
    Registration {
        broker: BrokerId(broker),
        epoch: BrokerEpoch(epoch),
    }
}

fn image(offset: u64, brokers: &[(Registration, bool)]) -> Event {
    let known = |(registration, fenced): &(Registration, bool)| Known {
        registration: *registration,
        fenced: *fenced,
    };
    Event::Image {
        offset,
        brokers: brokers.iter().map(known).collect(),
    }
}

/// A controller of some time, and a broker that has a stream to it.
fn controller(begin: Instant) -> (Liveness, Registration) {
    let broker = registered(1, 10);
    let mut liveness = Liveness::new(TIMEOUT);
    liveness.step(begin, image(10, &[(broker, false)]));
    liveness.step(begin, Event::StreamOpened(broker));
    liveness.step(begin, Event::BecameController { log_end: 10 });
    liveness.step(begin, Event::Heartbeat(broker));
    (liveness, broker)
}

#[test]
fn a_silent_broker_is_fenced_after_the_session_timeout_and_once() {
    let begin = Instant::now();
    let (mut liveness, broker) = controller(begin);
    let mut fenced = Vec::new();
    for passed in (0..6_000).step_by(50) {
        let actions = liveness.step(begin + ms(passed), Event::Tick);
        fenced.extend(actions.into_iter().map(|action| (passed, action)));
    }
    assert_eq!(fenced, [(3_000, Action::Fence(broker, Cause::Silent))]);
    assert!(!liveness.grants(broker, 10));
}

#[test]
fn a_broken_stream_is_asked_about_at_once_and_the_dead_are_fenced() {
    let begin = Instant::now();
    let (mut liveness, broker) = controller(begin);
    let asked = liveness.step(begin + ms(5), Event::StreamClosed(broker));
    assert_eq!(asked, [Action::Confirm(broker)]);
    let actions = liveness.step(begin + ms(6), Event::Confirmed(broker, Verdict::Unknown));
    assert_eq!(actions, []);
    assert_eq!(liveness.next_deadline(), Some(begin + ms(26)));
    let actions = liveness.step(begin + ms(26), Event::Tick);
    assert_eq!(actions, [Action::Confirm(broker)]);
    let actions = liveness.step(begin + ms(27), Event::Confirmed(broker, Verdict::Dead));
    assert_eq!(actions, [Action::Fence(broker, Cause::Dead)]);
}

#[test]
fn a_living_broker_is_not_fenced_for_a_broken_stream() {
    let begin = Instant::now();
    let (mut liveness, broker) = controller(begin);
    liveness.step(begin, Event::StreamClosed(broker));
    let actions = liveness.step(begin + ms(1), Event::Confirmed(broker, Verdict::Alive));
    assert_eq!(actions, []);
    liveness.step(begin + ms(2), Event::StreamOpened(broker));
    let late = liveness.step(begin + ms(3), Event::Confirmed(broker, Verdict::Dead));
    assert_eq!(late, [], "it has come back since it was asked for");
}

#[test]
fn a_new_controller_goes_on_from_its_own_evidence() {
    let begin = Instant::now();
    let broker = registered(1, 10);
    let mut liveness = Liveness::new(TIMEOUT);
    liveness.step(begin, image(10, &[(broker, false)]));
    liveness.step(begin, Event::StreamOpened(broker));
    liveness.step(begin, Event::Heartbeat(broker));
    liveness.step(begin + ms(500), Event::BecameController { log_end: 10 });
    let deadline = |liveness: &mut Liveness, at| {
        let mut now = begin + ms(at);
        while liveness.step(now, Event::Tick).is_empty() {
            now = liveness.next_deadline().unwrap();
        }
        now - begin
    };
    assert_eq!(deadline(&mut liveness, 500), TIMEOUT);

    let mut late = Liveness::new(TIMEOUT);
    late.step(begin, image(10, &[(broker, false)]));
    late.step(begin, Event::StreamOpened(broker));
    late.step(begin, Event::Heartbeat(broker));
    late.step(begin + ms(2_900), Event::BecameController { log_end: 10 });
    assert_eq!(
        deadline(&mut late, 2_900),
        ms(2_900) + FRESH + lease_duration(TIMEOUT)
    );
}

#[test]
fn a_broken_stream_that_a_controller_inherits_is_asked_about_at_once() {
    let begin = Instant::now();
    let broker = registered(1, 10);
    let mut liveness = Liveness::new(TIMEOUT);
    liveness.step(begin, image(10, &[(broker, false)]));
    liveness.step(begin, Event::StreamOpened(broker));
    liveness.step(begin, Event::StreamClosed(broker));
    let actions = liveness.step(begin + ms(300), Event::BecameController { log_end: 10 });
    assert_eq!(actions, [Action::Confirm(broker)]);
}

#[test]
fn a_broker_whose_stream_broke_is_suspected_until_more_is_known() {
    let begin = Instant::now();
    let suspected = || {
        let (mut liveness, broker) = controller(begin);
        assert!(!liveness.has_suspects(begin));
        liveness.step(begin, Event::StreamOpened(broker));
        liveness.step(begin, Event::StreamClosed(broker));
        assert!(!liveness.has_suspects(begin), "it has another stream");
        liveness.step(begin, Event::StreamClosed(broker));
        assert!(liveness.has_suspects(begin));
        (liveness, broker)
    };
    let ends = |event: fn(Registration) -> Event| {
        let (mut liveness, broker) = suspected();
        liveness.step(begin, event(broker));
        !liveness.has_suspects(begin)
    };
    assert!(ends(Event::StreamOpened));
    assert!(ends(|broker| Event::Confirmed(broker, Verdict::Alive)));
    assert!(ends(|broker| image(11, &[(broker, true)])));
    assert!(ends(|_| image(11, &[(registered(1, 11), true)])));
    assert!(ends(|_| image(11, &[])));
    // The decision to fence is not yet the fence, and a controller that is lost has not fenced.
    assert!(!ends(|broker| Event::Confirmed(broker, Verdict::Dead)));
    assert!(!ends(|broker| Event::Confirmed(broker, Verdict::Unknown)));
    assert!(!ends(|_| Event::LostController));
    assert!(!ends(|_| Event::BecameController { log_end: 10 }));
    let (liveness, _) = suspected();
    assert_eq!(liveness.suspicion_ends(), Some(begin + SUSPICION));
    assert!(!liveness.has_suspects(begin + SUSPICION));
    let (mut liveness, broker) = suspected();
    liveness.step(begin, image(11, &[(broker, true)]));
    assert!(liveness.is_lost_lately(broker.broker, begin));
    assert!(!liveness.is_lost_lately(broker.broker, begin + FAREWELL));
    liveness.step(begin, image(12, &[(broker, false)]));
    assert!(!liveness.is_lost_lately(broker.broker, begin));
}

#[test]
fn a_broker_that_was_never_heard_here_is_not_suspected() {
    let begin = Instant::now();
    let mut liveness = Liveness::new(TIMEOUT);
    liveness.step(begin, image(10, &[(registered(1, 10), false)]));
    liveness.step(begin, Event::BecameController { log_end: 10 });
    assert!(!liveness.has_suspects(begin));
}

#[test]
fn events_of_an_earlier_life_do_nothing() {
    let begin = Instant::now();
    let (mut liveness, old) = controller(begin);
    let new = registered(1, 20);
    liveness.step(begin, image(20, &[(new, false)]));
    liveness.step(begin, Event::StreamOpened(new));
    for event in [
        Event::StreamClosed(old),
        Event::Confirmed(old, Verdict::Dead),
        Event::Heartbeat(old),
    ] {
        assert_eq!(liveness.step(begin + ms(1), event), []);
    }
    assert!(!liveness.grants(old, 20));
    assert!(liveness.grants(new, 20));
}

#[test]
fn a_fenced_broker_gets_its_lease_when_it_knows_that_it_was_fenced() {
    let begin = Instant::now();
    let (mut liveness, broker) = controller(begin);
    liveness.step(begin, image(30, &[(broker, true)]));
    assert!(!liveness.grants(broker, 29));
    assert!(liveness.grants(broker, 30));
}

#[test]
fn nothing_is_granted_before_what_was_inherited_is_applied() {
    let begin = Instant::now();
    let (mut liveness, broker) = controller(begin);
    liveness.step(begin, Event::BecameController { log_end: 12 });
    assert!(!liveness.grants(broker, 12));
    liveness.step(begin, image(12, &[(broker, false)]));
    assert!(liveness.grants(broker, 12));
    liveness.step(begin, Event::LostController);
    assert!(!liveness.grants(broker, 12));
}

#[test]
fn its_own_pause_is_not_the_brokers() {
    let begin = Instant::now();
    let (mut liveness, broker) = controller(begin);
    let resumed = begin + Duration::from_secs(60);
    assert_eq!(liveness.step(resumed, Event::Tick), []);
    liveness.step(resumed, Event::Heartbeat(broker));
    let mut now = resumed;
    while liveness.step(now, Event::Tick).is_empty() {
        now = liveness.next_deadline().unwrap();
    }
    assert_eq!(now - resumed, TIMEOUT);
}

const VOTERS: usize = 3;
const BROKERS: usize = 4;
const STEPS: usize = 30_000;
const SEEDS: u64 = 12;
/// Everything that happens is done by then, once its time has come.
const SLACK: Duration = Duration::from_millis(60);

struct Process {
    registration: Registration,
    fenced: bool,
    alive: bool,
    /// Stopped, or cut off from everybody.
    mute_since: Option<Instant>,
    lease: Instant,
    next_beat: Instant,
}

struct Heartbeat {
    arrives: Instant,
    sent: Instant,
    knows: u64,
    from: Registration,
    to: usize,
}

/// What waits in the controller's log for a majority.
enum Entry {
    Fence(Registration, Cause),
    /// The first of a reign.
    Blank,
}

struct World {
    rng: StdRng,
    now: Instant,
    offset: u64,
    voters: Vec<Liveness>,
    controller: usize,
    since: Instant,
    /// Those before, and until when they may take themselves for fresh.
    deposed: Vec<(usize, Instant)>,
    /// Committed in this order, each when its time has come.
    log: VecDeque<(Instant, Entry)>,
    processes: Vec<Process>,
    /// Pairs (broker, voter) that cannot reach each other.
    cut: Vec<(usize, usize)>,
    beats: Vec<Heartbeat>,
    fences: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let processes = (0..BROKERS)
            .map(|id| Process {
                registration: registered(i32::try_from(id).unwrap(), 1 + id as i64),
                fenced: false,
                alive: true,
                mute_since: None,
                lease: now,
                next_beat: now,
            })
            .collect();
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            now,
            offset: 10,
            voters: (0..VOTERS).map(|_| Liveness::new(TIMEOUT)).collect(),
            controller: 0,
            since: now,
            deposed: Vec::new(),
            log: VecDeque::new(),
            processes,
            cut: Vec::new(),
            beats: Vec::new(),
            fences: 0,
        };
        world.publish();
        for voter in 0..VOTERS {
            for broker in 0..BROKERS {
                let opened = Event::StreamOpened(world.processes[broker].registration);
                world.step(voter, opened);
            }
        }
        world.step(0, Event::BecameController { log_end: 10 });
        world
    }

    fn publish(&mut self) {
        let brokers: Vec<_> = self
            .processes
            .iter()
            .map(|process| (process.registration, process.fenced))
            .collect();
        for voter in 0..VOTERS {
            self.step(voter, image(self.offset, &brokers));
        }
    }

    fn step(&mut self, voter: usize, event: Event) {
        for action in self.voters[voter].step(self.now, event) {
            match action {
                Action::Confirm(who) => {
                    let process = &self.processes[who.broker.0 as usize];
                    let verdict = match (process.alive, process.mute_since) {
                        _ if process.registration != who => Verdict::Dead,
                        (false, _) => Verdict::Dead,
                        (true, None) if self.rng.random_bool(0.8) => Verdict::Alive,
                        (true, _) => Verdict::Unknown,
                    };
                    self.step(voter, Event::Confirmed(who, verdict));
                }
                Action::Fence(who, cause) => self.fence(voter, who, cause),
            }
        }
    }

    fn fence(&mut self, voter: usize, who: Registration, cause: Cause) {
        // A deposed controller gets nothing committed.
        if voter == self.controller {
            let commits = self.now + ms(self.rng.random_range(0..300));
            self.log.push_back((commits, Entry::Fence(who, cause)));
        }
    }

    fn commit(&mut self) {
        while self.log.front().is_some_and(|(due, _)| *due <= self.now) {
            let Some((_, entry)) = self.log.pop_front() else {
                return;
            };
            self.offset += 1;
            if let Entry::Fence(who, cause) = entry {
                self.fenced(who, cause);
            }
            self.publish();
        }
    }

    fn fenced(&mut self, who: Registration, cause: Cause) {
        let process = &mut self.processes[who.broker.0 as usize];
        if process.registration != who || process.fenced {
            return;
        }
        match cause {
            Cause::Dead => assert!(!process.alive, "a living process was found dead"),
            Cause::Silent => assert!(
                process.lease <= self.now,
                "fenced while its lease is valid for another {:?}",
                process.lease - self.now
            ),
        }
        process.fenced = true;
        self.fences += 1;
    }

    fn beat(&mut self) {
        for broker in 0..BROKERS {
            let process = &mut self.processes[broker];
            if !process.alive || process.mute_since.is_some() || process.next_beat > self.now {
                continue;
            }
            process.next_beat = self.now + ms(500);
            for voter in 0..VOTERS {
                let lost = self.cut.contains(&(broker, voter)) || self.rng.random_bool(0.05);
                if lost {
                    continue;
                }
                let delay = match self.rng.random_range(0..20) {
                    0 => self.rng.random_range(0..2_500),
                    _ => self.rng.random_range(0..20),
                };
                self.beats.push(Heartbeat {
                    arrives: self.now + ms(delay),
                    sent: self.now,
                    knows: self.offset,
                    from: self.processes[broker].registration,
                    to: voter,
                });
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) =
            self.beats.drain(..).partition(|beat| beat.arrives <= now);
        self.beats = later;
        for beat in due {
            self.step(beat.to, Event::Heartbeat(beat.from));
            let fresh = beat.to == self.controller
                || self
                    .deposed
                    .iter()
                    .any(|(voter, until)| *voter == beat.to && now <= *until);
            let process = &mut self.processes[beat.from.broker.0 as usize];
            if fresh
                && self.voters[beat.to].grants(beat.from, beat.knows)
                && process.registration == beat.from
                && process.alive
            {
                process.lease = process.lease.max(beat.sent + lease_duration(TIMEOUT));
            }
        }
    }

    fn happen(&mut self) {
        let broker = self.rng.random_range(0..BROKERS);
        let voter = self.rng.random_range(0..VOTERS);
        match self.rng.random_range(0..2_000) {
            0..4 => self.elect(voter),
            4..8 => {
                self.processes[broker].mute_since.get_or_insert(self.now);
            }
            8..20 => self.processes[broker].mute_since = None,
            20..26 => self.cut.push((broker, voter)),
            26..40 => self.cut.retain(|pair| pair.0 != broker),
            40..43 if self.processes[broker].alive => {
                self.processes[broker].alive = false;
                let gone = self.processes[broker].registration;
                for voter in 0..VOTERS {
                    self.step(voter, Event::StreamClosed(gone));
                }
            }
            43..60 if !self.processes[broker].alive && self.log.is_empty() => self.restart(broker),
            60..200 if self.log.is_empty() => self.unfence(broker),
            _ => {}
        }
    }

    fn elect(&mut self, voter: usize) {
        if voter == self.controller {
            return;
        }
        let old = self.controller;
        self.deposed.retain(|(deposed, _)| *deposed != voter);
        self.deposed.push((old, self.now + FRESH));
        self.controller = voter;
        self.since = self.now;
        // The new one has the whole log of the old one, or has lost its end.
        if self.rng.random() {
            self.log.clear();
        }
        let commits = self.now + ms(self.rng.random_range(0..300));
        self.log.push_back((commits, Entry::Blank));
        let log_end = self.offset + self.log.len() as u64;
        self.step(voter, Event::BecameController { log_end });
    }

    fn restart(&mut self, broker: usize) {
        self.offset += 1;
        let process = &mut self.processes[broker];
        process.registration.epoch = BrokerEpoch(self.offset.try_into().unwrap());
        process.alive = true;
        process.fenced = true;
        process.mute_since = None;
        process.lease = self.now;
        self.publish();
        for voter in 0..VOTERS {
            let opened = Event::StreamOpened(self.processes[broker].registration);
            self.step(voter, opened);
        }
    }

    fn unfence(&mut self, broker: usize) {
        let process = &mut self.processes[broker];
        let willing = process.alive && process.mute_since.is_none() && process.lease > self.now;
        if process.fenced && willing {
            process.fenced = false;
            self.offset += 1;
            self.publish();
        }
    }

    /// Whoever is dead or mute under one controller for long enough is fenced.
    fn check_progress(&self) {
        // What was under way when it fell silent may still arrive.
        let longest = ms(2_500) + TIMEOUT + ms(300) + SLACK;
        for process in &self.processes {
            let Some(since) = process.mute_since.map(|since| since.max(self.since)) else {
                continue;
            };
            assert!(
                process.fenced || self.now - since <= longest,
                "mute for {:?} and not fenced",
                self.now - since
            );
        }
    }
}

fn run(seed: u64) -> usize {
    println!("KITTIWAKE_SEED={seed}");
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.now += ms(world.rng.random_range(1..20));
        world.happen();
        world.beat();
        world.deliver();
        world.commit();
        let now = world.now;
        let (over, fresh): (Vec<_>, Vec<_>) =
            world.deposed.drain(..).partition(|(_, until)| now > *until);
        world.deposed = fresh;
        for (voter, _) in over {
            world.step(voter, Event::LostController);
        }
        for voter in 0..VOTERS {
            world.step(voter, Event::Tick);
        }
        world.check_progress();
    }
    world.fences
}

#[test]
fn no_broker_is_fenced_while_it_holds_a_lease_and_every_silent_one_is() {
    match std::env::var("KITTIWAKE_SEED") {
        Ok(seed) => drop(run(seed.parse().unwrap())),
        Err(_) => {
            let fences: usize = (0..SEEDS).map(run).sum();
            assert!(fences > 100, "only {fences} brokers were ever fenced");
        }
    }
}
