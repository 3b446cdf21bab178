//! Deadlines by key: at most one per key, the earliest found in O(log n).

use std::collections::{BTreeMap, BTreeSet};

/// A set of timers that somebody else's clock fires. Times are milliseconds of any one clock.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines<K> {
    by_time: BTreeSet<(i64, K)>,
    by_key: BTreeMap<K, i64>,
}

impl<K: Ord + Clone> Deadlines<K> {
    pub(crate) fn new() -> Self {
        Self {
            by_time: BTreeSet::new(),
            by_key: BTreeMap::new(),
        }
    }

    /// Fires `key` at `at`, and no longer when it was to fire before.
    pub(crate) fn set(&mut self, key: K, at: i64) {
        self.cancel(&key);
        self.by_time.insert((at, key.clone()));
        self.by_key.insert(key, at);
    }

    pub(crate) fn cancel(&mut self, key: &K) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.by_time.clear();
        self.by_key.clear();
    }

    pub(crate) fn get(&self, key: &K) -> Option<i64> {
        self.by_key.get(key).copied()
    }

    /// When the earliest deadline is.
    pub(crate) fn next(&self) -> Option<i64> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out one key whose deadline is at or before `now`, earliest first.
    pub(crate) fn pop_due(&mut self, now: i64) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_again_moves_a_deadline_and_due_ones_come_earliest_first() {
        let mut deadlines = Deadlines::new();
        deadlines.set("a", 10);
        deadlines.set("b", 20);
        deadlines.set("a", 30);
        assert_eq!(deadlines.next(), Some(20));
        assert_eq!(deadlines.pop_due(19), None);
        assert_eq!(deadlines.pop_due(30), Some("b"));
        assert_eq!(deadlines.pop_due(30), Some("a"));
        assert_eq!(deadlines.pop_due(30), None);
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn a_cancelled_deadline_never_fires() {
        let mut deadlines = Deadlines::new();
        deadlines.set(1, 5);
        deadlines.cancel(&1);
        deadlines.cancel(&2);
        assert_eq!(deadlines.get(&1), None);
        assert_eq!(deadlines.pop_due(i64::MAX), None);
    }
}
