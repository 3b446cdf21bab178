//! How many sealed segments are open at a time: a second-chance clock over all logs of a directory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::segment::Segment;

/// The open segments of one data directory, except those that are being appended to.
#[derive(Debug)]
pub(crate) struct OpenSegments {
    max: usize,
    clock: Mutex<VecDeque<Weak<Segment>>>,
    opened: AtomicU64,
}

impl OpenSegments {
    /// Keeps at most `max` segments open.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            clock: Mutex::default(),
            opened: AtomicU64::new(0),
        }
    }

    /// Notes that `segment` has been opened, and closes one that was not read lately if that makes
    /// too many. Slices that were handed out keep their file open.
    pub(crate) fn opened(&self, segment: &Arc<Segment>) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut clock = self.clock.lock();
        clock.push_back(Arc::downgrade(segment));
        let mut second_chances = clock.len();
        while clock.len() > self.max {
            let Some(oldest) = clock.pop_front() else {
                return;
            };
            let Some(segment) = oldest.upgrade() else {
                continue;
            };
            if second_chances > 0 && segment.take_used() {
                second_chances -= 1;
                clock.push_back(oldest);
            } else {
                segment.close_unless_appending();
            }
        }
    }

    /// How many segments have been opened since the start.
    pub(crate) fn opened_total(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}
