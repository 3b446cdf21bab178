//! Waiting on conditions with a deadline: the only place of this crate that sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at. Short enough that measured times are good to a few milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Returns what `condition` yields as soon as it yields something, or an error naming `what` once `deadline` has passed.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} for {what}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Lets time pass that is being measured: an idle node, a steady load, the length of a fault. Never to wait *for* something.
pub fn pass(time: Duration) {
    std::thread::sleep(time);
}
