//! Waits until an instant, to some microseconds.
//!
//! tokio's timers tick in milliseconds: a load of 100,000 records a second paced by them would come
//! in bursts of a hundred, and the bench would measure its own bursts. A thread that does nothing but
//! sleep wakes up in time, once the kernel is told not to round its sleeps up.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use tokio::sync::Notify;

/// How late the kernel may wake the thread, in nanoseconds (its default is 50,000).
const TIMER_SLACK_NS: u32 = 1_000;

/// A clock for one task; its thread ends with it.
#[derive(Debug)]
pub(super) struct Pacer {
    instants: mpsc::Sender<Instant>,
    requested: Option<Instant>,
    passed: Arc<Notify>,
}

impl Pacer {
    /// Starts the thread.
    pub(super) fn new() -> io::Result<Self> {
        let (instants, requests) = mpsc::channel();
        let passed = Arc::new(Notify::new());
        let notify = Arc::clone(&passed);
        thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || pace(&requests, &notify))?;
        Ok(Self {
            instants,
            requested: None,
            passed,
        })
    }

    /// Returns at `instant`, at once if it has passed. Instants may only grow. Safe to cancel.
    pub(super) async fn until(&mut self, instant: Instant) -> io::Result<()> {
        while Instant::now() < instant {
            // After a cancelled wait the thread may still be at this instant.
            if self.requested != Some(instant) {
                let sent = self.instants.send(instant);
                sent.map_err(|_| io::Error::other("the thread that keeps the time has ended"))?;
                self.requested = Some(instant);
            }
            self.passed.notified().await;
        }
        Ok(())
    }
}

fn pace(requests: &mpsc::Receiver<Instant>, passed: &Notify) {
    // Where it cannot be set (another user's /proc), records are up to 50 us late.
    let _ = set_timer_slack();
    while let Ok(instant) = requests.recv() {
        loop {
            let left = instant.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left);
        }
        passed.notify_one();
    }
}

/// proc_pid_timerslack_ns(5). Its file exists per thread, but only under the thread's own number.
fn set_timer_slack() -> io::Result<()> {
    let own = fs::read_link("/proc/thread-self")?;
    let thread = own.file_name().ok_or(io::ErrorKind::NotFound)?;
    let path = std::path::Path::new("/proc")
        .join(thread)
        .join("timerslack_ns");
    fs::write(path, TIMER_SLACK_NS.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_never_returns_early_also_after_a_cancelled_wait() {
        let mut pacer = Pacer::new().unwrap();
        for micros in [0, 1, 300, 2_000] {
            let due = Instant::now() + Duration::from_micros(micros);
            tokio::select! {
                biased;
                waited = pacer.until(due + Duration::from_millis(1)) => waited.unwrap(),
                () = std::future::ready(()) => {}
            }
            let due = due + Duration::from_millis(2);
            pacer.until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
    }
}
