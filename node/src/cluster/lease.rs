//! The time for which this node may believe that it is not fenced.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::controller::liveness::lease_duration;

/// Valid until two thirds of `broker.session.timeout.ms` after the *sending* of the last heartbeat that a fresh
/// controller has answered. No controller fences this node for its silence before that; why is said in
/// [`crate::controller::liveness`]. A node without a valid lease may have been replaced as a leader, and refuses writes.
#[derive(Debug)]
pub struct ControllerLease {
    begin: Instant,
    duration: Duration,
    /// Microseconds after `begin`.
    valid_until: AtomicU64,
    extended: Notify,
}

impl ControllerLease {
    /// A lease of a node with this session timeout; not valid yet.
    pub fn new(session_timeout: Duration) -> Self {
        Self {
            begin: Instant::now(),
            duration: lease_duration(session_timeout),
            valid_until: AtomicU64::new(0),
            extended: Notify::new(),
        }
    }

    /// Whether this node may serve as a leader now.
    pub fn is_valid(&self) -> bool {
        self.begin.elapsed() < self.end()
    }

    /// Until when it is valid, or was.
    pub fn valid_until(&self) -> Instant {
        self.begin + self.end()
    }

    /// A fresh controller has answered a heartbeat sent at `sent`.
    pub(crate) fn extend(&self, sent: Instant) {
        let until = sent.saturating_duration_since(self.begin) + self.duration;
        let until = u64::try_from(until.as_micros()).unwrap_or(u64::MAX);
        self.valid_until.fetch_max(until, Ordering::Release);
        self.extended.notify_waiters();
    }

    /// Waits until it is valid.
    pub(crate) async fn wait_valid(&self) {
        loop {
            let extended = self.extended.notified();
            if self.is_valid() {
                return;
            }
            extended.await;
        }
    }

    /// Waits until it is not valid.
    pub(crate) async fn wait_lost(&self) {
        while self.is_valid() {
            tokio::time::sleep_until(self.valid_until().into()).await;
        }
    }

    fn end(&self) -> Duration {
        Duration::from_micros(self.valid_until.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_counts_from_the_sending_of_the_heartbeat_and_ends_by_itself() {
        let lease = ControllerLease::new(Duration::from_millis(150));
        assert!(!lease.is_valid());
        let sent = Instant::now();
        lease.extend(sent);
        lease.wait_valid().await;
        lease.wait_lost().await;
        assert!(sent.elapsed() >= Duration::from_millis(100));
        // An answer that was long under way is worth what is left.
        lease.extend(sent);
        assert!(!lease.is_valid());
    }
}
