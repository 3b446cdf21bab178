//! Limits how fast replicas that are not in sync catch up (KIP-73).
//!
//! Operators name the replicas, topic by topic (`leader.replication.throttled.replicas` and its counterpart of the follower),
//! and the rates, broker by broker (`leader.replication.throttled.rate` and its counterpart). A replica that is in sync is
//! never held back: acknowledgements wait for it. Nor do its bytes count, as they would in Kafka, where they take their share
//! of the rate from those that catch up.

use std::time::Duration;

use kittiwake_raft::{BrokerId, MetadataQuorum};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::dynamic::ReplicationThrottle;

/// No pause is longer: a rate that was raised, or taken away, is noticed by then.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The bytes that went through and whose time, at the rate that is allowed, has yet to pass. Pure: the time is an argument.
///
/// Bytes are let through while nothing is owed, and owed from then on: whoever lets a large answer through pays for it
/// afterwards. Time without traffic is not saved up.
#[derive(Clone, Copy, Debug)]
struct Throttle {
    owed_bytes: f64,
    as_of: Instant,
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self {
            owed_bytes: 0.0,
            as_of: now,
        }
    }

    fn pay(&mut self, now: Instant, rate: u64) {
        let passed = now.saturating_duration_since(self.as_of).as_secs_f64();
        self.owed_bytes = (self.owed_bytes - passed * rate as f64).max(0.0);
        self.as_of = self.as_of.max(now);
    }

    /// Takes note of `bytes` that went through.
    fn record(&mut self, now: Instant, bytes: usize, rate: u64) {
        self.pay(now, rate);
        self.owed_bytes += bytes as f64;
    }

    /// Until when nothing may go through at `rate` bytes a second; it is asked again then.
    fn pause(&mut self, now: Instant, rate: u64) -> Option<Instant> {
        self.pay(now, rate);
        if self.owed_bytes < 1.0 {
            return None;
        }
        let seconds = self.owed_bytes / rate.max(1) as f64;
        Some(now + Duration::from_secs_f64(seconds.min(PAUSE_MAX.as_secs_f64())))
    }
}

/// Which of a node's rates.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// What it sends as leader.
    Leader,
    /// What it fetches as follower.
    Follower,
}

/// One of a node's limits, shared by all connections it holds for. The rate is the cluster image's at each moment.
#[derive(Debug)]
pub struct Limit {
    node_id: BrokerId,
    side: Side,
    quorum: MetadataQuorum,
    throttle: Mutex<Throttle>,
}

impl Limit {
    /// The limit of this node on one side.
    pub fn new(node_id: BrokerId, side: Side, quorum: MetadataQuorum) -> Self {
        Self {
            node_id,
            side,
            quorum,
            throttle: Mutex::new(Throttle::new(Instant::now())),
        }
    }

    fn rate(&self) -> Option<u64> {
        let rates = ReplicationThrottle::of(&self.quorum.image(), self.node_id);
        match self.side {
            Side::Leader => rates.leader,
            Side::Follower => rates.follower,
        }
    }

    /// Until when throttled replicas that are not in sync have to pause, if at all; it is to be asked again then.
    pub fn pause(&self) -> Option<Instant> {
        let rate = self.rate()?;
        self.throttle.lock().pause(Instant::now(), rate)
    }

    /// Takes note of record bytes of a throttled replica that is not in sync.
    pub fn record(&self, bytes: usize) {
        if let Some(rate) = self.rate() {
            self.throttle.lock().record(Instant::now(), bytes, rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    /// Lets `pieces` of `bytes` through as soon as they may go; how long that took.
    fn pass(
        throttle: &mut Throttle,
        begin: Instant,
        pieces: usize,
        bytes: usize,
        rate: u64,
    ) -> Duration {
        let mut now = begin;
        for _ in 0..pieces {
            while let Some(until) = throttle.pause(now, rate) {
                assert!(until > now && until <= now + PAUSE_MAX);
                now = until;
            }
            throttle.record(now, bytes, rate);
        }
        now - begin
    }

    #[test]
    fn what_goes_through_takes_its_time() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        let took = pass(&mut throttle, begin, 101, 1_000, 10_000);
        assert_eq!(took.as_secs_f64().round(), 10.0);
    }

    #[test]
    fn pieces_that_take_longer_than_a_pause_take_their_time_too() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        let took = pass(&mut throttle, begin, 5, 10_000_000, 1_000_000);
        assert_eq!(took.as_secs_f64().round(), 40.0);
    }

    #[test]
    fn time_without_traffic_is_not_saved_up() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        throttle.record(begin, 1_000, 10_000);
        let later = begin + Duration::from_secs(60);
        assert_eq!(throttle.pause(later, 10_000), None);
        throttle.record(later, 1_000, 10_000);
        throttle.record(later, 1_000, 10_000);
        let until = throttle.pause(later, 10_000).unwrap();
        assert_eq!((until - later).as_millis(), 200);
    }

    #[test]
    fn another_rate_counts_from_its_first_moment() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        throttle.record(begin, 100_000, 0);
        assert_eq!(throttle.pause(begin, 0), Some(begin + PAUSE_MAX));
        let later = begin + Duration::from_secs(1_000);
        assert!(
            throttle.pause(later, 0).is_some(),
            "a rate of 0 lets nothing through"
        );
        let until = throttle.pause(later, 1_000_000).unwrap();
        assert_eq!((until - later).as_millis(), 100);
    }

    #[test]
    fn no_window_lets_more_through_than_the_rate_and_one_piece() {
        let seed = 7;
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..200 {
            let rate = random.random_range(1_000..10_000_000_u64);
            let piece_max = random.random_range(1..5_000_000);
            let begin = Instant::now();
            let mut throttle = Throttle::new(begin);
            let (mut now, mut passed, mut largest) = (begin, 0, 0);
            for _ in 0..500 {
                now += Duration::from_micros(random.random_range(0..100_000));
                if throttle.pause(now, rate).is_none() {
                    let bytes = random.random_range(0..=piece_max);
                    throttle.record(now, bytes, rate);
                    passed += bytes;
                    largest = largest.max(bytes);
                }
                let allowed = (now - begin).as_secs_f64() * rate as f64 + largest as f64 + 1.0;
                assert!(
                    passed as f64 <= allowed,
                    "seed {seed}, round {round}: {passed} bytes, {allowed} allowed"
                );
            }
        }
    }
}
