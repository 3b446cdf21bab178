//! Limits how fast replicas that are not in sync catch up (KIP-73).
//!
//! In-sync replicas are never held back: acknowledgements wait for them. Kafka names the throttled replicas topic by topic;
//! here the limit holds for every replica that is out of sync, which is what its tools name them for.

use std::time::Duration;
use tokio::time::Instant;

/// No pause is longer: a rate that was raised is noticed by then.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The time that what was fetched takes at the rate that is allowed. Pure: the time is an argument.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throttle {
    /// Until then everything that was fetched has its time.
    spent_until: Instant,
}

impl Throttle {
    pub(super) fn new(now: Instant) -> Self {
        Self { spent_until: now }
    }

    /// Takes note of `bytes` fetched at a `rate` in bytes a second; says until when to pause, if at all.
    pub(super) fn take(&mut self, now: Instant, bytes: usize, rate: u64) -> Option<Instant> {
        let seconds = bytes as f64 / rate.max(1) as f64;
        let takes = Duration::from_secs_f64(seconds.min(PAUSE_MAX.as_secs_f64()));
        self.spent_until = (self.spent_until.max(now) + takes).min(now + PAUSE_MAX);
        (self.spent_until > now).then_some(self.spent_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_takes_its_time() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        let mut now = begin;
        for _ in 0..100 {
            if let Some(until) = throttle.take(now, 1_000, 10_000) {
                now = until;
            }
        }
        assert_eq!((now - begin).as_millis(), 10_000);
    }

    #[test]
    fn several_fetchers_share_the_rate() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        let first = throttle.take(begin, 1_000, 10_000);
        let second = throttle.take(begin, 1_000, 10_000);
        assert_eq!(first, Some(begin + Duration::from_millis(100)));
        assert_eq!(second, Some(begin + Duration::from_millis(200)));
    }

    #[test]
    fn nobody_pauses_for_long_and_time_unused_is_not_saved_up() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        assert_eq!(throttle.take(begin, usize::MAX, 0), Some(begin + PAUSE_MAX));
        let later = begin + Duration::from_secs(60);
        let until = throttle.take(later, 1_000, 10_000);
        assert_eq!(until, Some(later + Duration::from_millis(100)));
        assert_eq!(throttle.take(later, 0, 10_000), until);
    }
}
