//! Which brokers live: what a voter hears of them, and what the controller makes of it.
//!
//! Every voter keeps its own evidence, so that a new controller goes on where the old one was; only the controller acts.
//! A broker whose heartbeat stream broke is asked for at once ([`Action::Confirm`]) and fenced if its process is found
//! dead; one that is silent for `broker.session.timeout.ms` (T) is fenced whatever the reason.
//!
//! **No broker is fenced for its silence while it holds a lease** (unless the nodes' clocks differ by a third in speed).
//! A lease is valid until s + 2T/3, s being the time at which the broker *sent* a heartbeat that a controller has
//! answered while it was *fresh*: a majority of the voters had acknowledged, within [`FRESH`], that it leads.
//!
//! - Fenced by the controller that answered: that heard the heartbeat after s, so it fences after s + T; and once it has
//!   decided to fence it grants nothing more ([`Liveness::grants`]), until the broker knows that it was fenced.
//! - Fenced by one that took over at t, elected by a majority; one of those voters is also among the last to acknowledge
//!   the old controller, and acknowledges it no more. So the old one was fresh until t + FRESH at most, and
//!   s <= t + FRESH. The new one counts the silence of every broker from t + FRESH - T/3 or later
//!   ([`Reign::counts_from`]), so it fences after t + FRESH + 2T/3. It may have inherited the log entry of an older
//!   decision; it grants nothing before everything it inherited is applied.
//!
//! What a new controller inherits is therefore evidence of at most T/3 of silence. A living broker is heard more often
//! than that, so it is only a broker that fell silent just before its controller did which is given more time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kittiwake_raft::{BrokerEpoch, BrokerId, ClusterImage};

/// A controller that no majority has acknowledged within this is not sure that it still is one.
pub const FRESH: Duration = Duration::from_millis(300);

/// Pause before a broker without a heartbeat stream is asked for again; doubled each time.
const CONFIRM_PAUSE_MIN: Duration = Duration::from_millis(20);
/// It is not doubled beyond this.
const CONFIRM_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a broker is suspected after its last heartbeat stream broke, at most. A dead process is found dead and fenced
/// within milliseconds, and within half a second if a controller has to be elected first; what takes longer than this is
/// no failover that somebody could wait for.
pub const SUSPICION: Duration = Duration::from_secs(1);

/// How long after its last heartbeat stream broke clients are still told where a broker is, although it is fenced. librdkafka
/// drops a broker that is not listed at once, and with it the new leader of the partitions that it is just
/// moving elsewhere; it then finds that leader again only at its next refresh.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// How long a lease lasts, from the time the heartbeat was sent.
#[must_use]
pub fn lease_duration(session_timeout: Duration) -> Duration {
    session_timeout - session_timeout / 3
}

/// Something a voter has learnt. What names a registration that is not the broker's latest has no effect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A heartbeat has arrived.
    Heartbeat(Registration),
    /// The broker has opened a heartbeat stream.
    StreamOpened(Registration),
    /// One of its streams has ended, in whatever way.
    StreamClosed(Registration),
    /// [`Action::Confirm`] has been carried out.
    Confirmed(Registration, Verdict),
    /// The cluster image is another one.
    Image {
        /// Its metadata offset.
        offset: u64,
        /// Its brokers.
        brokers: Vec<Known>,
    },
    /// This node leads the quorum now.
    BecameController {
        /// Metadata offset of the last entry it has inherited.
        log_end: u64,
    },
    /// It does not any more.
    LostController,
    /// Time has passed.
    Tick,
}

/// One registration of one broker.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Registration {
    /// Which broker.
    pub broker: BrokerId,
    /// Its epoch.
    pub epoch: BrokerEpoch,
}

/// A broker, as far as it matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Known {
    /// Its latest registration.
    pub registration: Registration,
    /// Whether it is fenced.
    pub fenced: bool,
}

/// What was found at a broker's address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nobody listens there, or another process does.
    Dead,
    /// The process that registered answered.
    Alive,
    /// Nobody could be reached.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Look whether the process is still there, and report [`Event::Confirmed`].
    Confirm(Registration),
    /// Propose to fence it, again and again until the image shows it fenced or registered anew, or the reign is over.
    Fence(Registration, Cause),
}

/// Why a broker is fenced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Its process is gone.
    Dead,
    /// It has not been heard for the session timeout.
    Silent,
}

/// The evidence of one voter.
#[derive(Debug)]
pub struct Liveness {
    session_timeout: Duration,
    brokers: BTreeMap<BrokerId, Evidence>,
    offset: u64,
    reign: Option<Reign>,
    last_step: Option<Instant>,
}

/// This node as the controller.
#[derive(Clone, Copy, Debug)]
struct Reign {
    since: Instant,
    /// Silence before this is not held against anybody.
    counts_from: Instant,
    log_end: u64,
}

#[derive(Debug)]
struct Evidence {
    registration: Registration,
    /// The metadata offset at which it was seen fenced, while it is.
    fenced: Option<u64>,
    /// Last heartbeat.
    heard: Option<Instant>,
    /// Seen unfenced, or registered, since then.
    since: Instant,
    /// Heartbeat streams that are open.
    streams: u32,
    /// When the last of them broke, if nothing was learnt of the process since.
    lost: Option<Instant>,
    /// An answer to [`Action::Confirm`] is outstanding.
    asked: bool,
    /// When it may be asked for (again).
    ask_at: Instant,
    ask_pause: Duration,
    dead: bool,
    /// A fence is on its way.
    condemned: bool,
}

impl Evidence {
    fn new(known: Known, offset: u64, now: Instant) -> Self {
        Self {
            registration: known.registration,
            fenced: known.fenced.then_some(offset),
            heard: None,
            since: now,
            streams: 0,
            lost: None,
            asked: false,
            ask_at: now,
            ask_pause: CONFIRM_PAUSE_MIN,
            dead: false,
            condemned: false,
        }
    }

    fn ask_soon(&mut self, now: Instant) {
        self.ask_at = now;
        self.ask_pause = CONFIRM_PAUSE_MIN;
    }

    fn silent_from(&self, reign: Reign) -> Instant {
        let heard = self
            .heard
            .map_or(reign.since.max(reign.counts_from), |heard| {
                heard.max(reign.counts_from)
            });
        heard.max(self.since)
    }

    fn wants_answer(&self) -> bool {
        self.streams == 0 && !self.asked && !self.dead
    }
}

impl Liveness {
    /// No evidence yet.
    #[must_use]
    pub fn new(session_timeout: Duration) -> Self {
        Self {
            session_timeout,
            brokers: BTreeMap::new(),
            offset: 0,
            reign: None,
            last_step: None,
        }
    }

    /// Takes note of `event` at `now`, which never goes back, and says what is to be done.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        self.forgive_own_pause(now);
        match event {
            Event::Heartbeat(from) => self.of(from, |evidence| {
                evidence.heard = Some(now);
                evidence.dead = false;
            }),
            Event::StreamOpened(by) => self.of(by, |evidence| {
                evidence.streams = evidence.streams.saturating_add(1);
                evidence.lost = None;
            }),
            Event::StreamClosed(by) => self.of(by, |evidence| {
                evidence.streams = evidence.streams.saturating_sub(1);
                if evidence.streams == 0 {
                    evidence.lost = Some(now);
                    evidence.ask_soon(now);
                }
            }),
            Event::Confirmed(who, verdict) => self.of(who, |evidence| {
                evidence.asked = false;
                evidence.ask_at = now + evidence.ask_pause;
                evidence.ask_pause = (evidence.ask_pause * 2).min(CONFIRM_PAUSE_MAX);
                // It came back while it was asked for: that is the newer news.
                evidence.dead = verdict == Verdict::Dead && evidence.streams == 0;
                if verdict == Verdict::Alive {
                    evidence.lost = None;
                }
            }),
            Event::Image { offset, brokers } => self.follow(now, offset, &brokers),
            Event::BecameController { log_end } => {
                self.reign = Some(Reign {
                    since: now,
                    counts_from: (now + FRESH)
                        .checked_sub(self.session_timeout / 3)
                        .unwrap_or(now),
                    log_end,
                });
                for evidence in self.brokers.values_mut() {
                    evidence.condemned = false;
                    evidence.dead = false;
                    evidence.asked = false;
                    evidence.ask_soon(now);
                }
            }
            Event::LostController => self.reign = None,
            Event::Tick => {}
        }
        self.decide(now)
    }

    /// Whether a heartbeat of `registration`, sent by a broker whose partitions are as the image was at
    /// `metadata_offset`, may extend the broker's lease. The
    /// caller has still to make sure that this node is fresh.
    #[must_use]
    pub fn grants(&self, registration: Registration, metadata_offset: u64) -> bool {
        let inherited_applied = self.reign.is_some_and(|reign| self.offset >= reign.log_end);
        let evidence = self.brokers.get(&registration.broker);
        inherited_applied
            && evidence.is_some_and(|evidence| {
                evidence.registration == registration
                    && !evidence.condemned
                    // It gave its leaderships up when its partitions followed the fence; not before.
                    && evidence.fenced.is_none_or(|fenced| metadata_offset >= fenced)
            })
    }

    /// Until when an unfenced broker is *suspected*, unless more is learnt before: its last heartbeat stream to this voter
    /// broke less than [`SUSPICION`] ago, and its process has not been found alive since. What the image says it leads
    /// is about to change; `None` where nobody is suspected. A voter that is not the controller asks nobody, so there
    /// only a new stream, the fence or the time ends it.
    #[must_use]
    pub fn suspicion_ends(&self) -> Option<Instant> {
        let unfenced = self
            .brokers
            .values()
            .filter(|evidence| evidence.fenced.is_none());
        let lost = unfenced.filter_map(|evidence| evidence.lost).max()?;
        Some(lost + SUSPICION)
    }

    /// Whether somebody is suspected at `now`.
    #[must_use]
    pub fn has_suspects(&self, now: Instant) -> bool {
        self.suspicion_ends().is_some_and(|ends| now < ends)
    }

    /// Whether `broker` was lost less than [`FAREWELL`] before `now`.
    #[must_use]
    pub fn is_lost_lately(&self, broker: BrokerId, now: Instant) -> bool {
        let lost = self.brokers.get(&broker).and_then(|evidence| evidence.lost);
        lost.is_some_and(|lost| now < lost + FAREWELL)
    }

    /// When the next step is due, whatever happens; `None` while this node is not the controller.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let reign = self.reign?;
        let pulse = self.last_step? + self.pulse();
        let of_brokers = self.brokers.values().filter_map(|evidence| {
            if evidence.fenced.is_some() || evidence.condemned {
                return None;
            }
            let silence_ends = evidence.silent_from(reign) + self.session_timeout;
            let ask = evidence.wants_answer().then_some(evidence.ask_at);
            Some(ask.map_or(silence_ends, |ask| ask.min(silence_ends)))
        });
        of_brokers.chain([pulse]).min()
    }

    /// The controller steps at least this often, so that it notices when it was stopped itself.
    fn pulse(&self) -> Duration {
        self.session_timeout / 6
    }

    /// While this process was stopped nobody was heard; that is not the brokers' silence.
    fn forgive_own_pause(&mut self, now: Instant) {
        let last = self.last_step.replace(now).unwrap_or(now);
        let gap = now.saturating_duration_since(last);
        if gap <= self.pulse() * 2 {
            return;
        }
        let Some(reign) = &mut self.reign else { return };
        reign.since += gap;
        reign.counts_from += gap;
        for evidence in self.brokers.values_mut() {
            evidence.since += gap;
            evidence.heard = evidence.heard.map(|heard| heard + gap);
        }
    }

    fn of(&mut self, registration: Registration, note: impl FnOnce(&mut Evidence)) {
        let evidence = self.brokers.get_mut(&registration.broker);
        if let Some(evidence) = evidence.filter(|found| found.registration == registration) {
            note(evidence);
        }
    }

    fn follow(&mut self, now: Instant, offset: u64, brokers: &[Known]) {
        if offset < self.offset {
            return; // Several tasks read images; this one was overtaken.
        }
        self.offset = offset;
        self.brokers.retain(|id, evidence| {
            brokers.iter().any(|known| {
                known.registration == evidence.registration && known.registration.broker == *id
            })
        });
        for known in brokers {
            let evidence = self
                .brokers
                .entry(known.registration.broker)
                .or_insert_with(|| Evidence::new(*known, offset, now));
            if evidence.fenced.is_some() == known.fenced {
                continue;
            }
            evidence.fenced = known.fenced.then_some(offset);
            evidence.condemned = false;
            evidence.dead = false;
            if !known.fenced {
                evidence.since = now;
                evidence.lost = None;
                evidence.ask_soon(now);
            }
        }
    }

    fn decide(&mut self, now: Instant) -> Vec<Action> {
        let Some(reign) = self.reign else {
            return Vec::new();
        };
        let mut actions = Vec::new();
        for evidence in self.brokers.values_mut() {
            if evidence.fenced.is_some() || evidence.condemned {
                continue;
            }
            let silent = now >= evidence.silent_from(reign) + self.session_timeout;
            if evidence.dead || silent {
                evidence.condemned = true;
                let cause = if evidence.dead {
                    Cause::Dead
                } else {
                    Cause::Silent
                };
                actions.push(Action::Fence(evidence.registration, cause));
            } else if evidence.wants_answer() && now >= evidence.ask_at {
                evidence.asked = true;
                actions.push(Action::Confirm(evidence.registration));
            }
        }
        actions
    }
}

/// The brokers of an image, as an event.
#[must_use]
pub fn image_event(image: &ClusterImage) -> Event {
    let known = |broker: &std::sync::Arc<kittiwake_raft::Broker>| Known {
        registration: Registration {
            broker: broker.id,
            epoch: broker.epoch,
        },
        fenced: broker.fenced,
    };
    Event::Image {
        offset: image.offset,
        brokers: image.brokers.values().map(known).collect(),
    }
}

#[cfg(test)]
mod tests;
