//! Who waits for news of a partition: long-polling consumers, and the fetch sessions of followers.
//!
//! A consumer's fetch waits for a handful of partitions and is woken as a whole. A follower's session holds thousands of
//! them, most of them idle: a partition with news puts its number into the session's [`News`], so that a fetch costs what
//! has changed and not what there is.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use tokio::sync::Notify;

use super::replica::Partition;

/// Fetches that wait for a partition. Few at a time: one per consumer connection that has read everything.
#[derive(Debug, Default)]
pub(super) struct Readers {
    waiting: Mutex<Vec<Arc<Notify>>>,
    /// Whether there are any, so that an append without readers takes no lock.
    any: AtomicBool,
}

impl Readers {
    pub(super) fn wake(&self) {
        // The fence pairs with the one in `add`: either this load sees the reader, or the reader's look at the watermark,
        // which comes after its registration, sees the store that came before this call.
        fence(Ordering::SeqCst);
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        for reader in self.waiting.lock().iter() {
            reader.notify_one();
        }
    }

    fn add(&self, reader: &Arc<Notify>) {
        self.waiting.lock().push(Arc::clone(reader));
        self.any.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn remove(&self, reader: &Arc<Notify>) {
        let mut waiting = self.waiting.lock();
        waiting.retain(|other| !Arc::ptr_eq(other, reader));
        if waiting.is_empty() {
            self.any.store(false, Ordering::Relaxed);
        }
    }
}

/// A fetch that waits for any of its partitions.
#[derive(Debug, Default)]
pub struct FetchWaiter {
    woken: Arc<Notify>,
}

impl FetchWaiter {
    /// Waits for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has `partition` wake this fetch until the registration is dropped. Look at the partition after this, not before:
    /// what happened in between wakes nobody.
    pub fn wait_for(&self, partition: &Arc<Partition>) -> ReaderRegistration {
        partition.readers().add(&self.woken);
        ReaderRegistration {
            partition: Arc::clone(partition),
            reader: Arc::clone(&self.woken),
        }
    }

    /// Completes when a partition has woken this since the last time.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

/// Takes a fetch out of its partition's readers when dropped.
#[derive(Debug)]
pub struct ReaderRegistration {
    partition: Arc<Partition>,
    reader: Arc<Notify>,
}

impl Drop for ReaderRegistration {
    fn drop(&mut self) {
        self.partition.readers().remove(&self.reader);
    }
}

/// The partitions of one follower's session that have something to tell it, by their numbers in the session.
#[derive(Debug, Default)]
pub struct News {
    queue: Mutex<Vec<usize>>,
    /// Whether any of it is more than a watermark.
    urgent: AtomicBool,
    woken: Notify,
}

impl News {
    /// Takes everything there is. What comes afterwards is announced again.
    pub fn take(&self) -> Vec<usize> {
        self.urgent.store(false, Ordering::Release);
        std::mem::take(&mut self.queue.lock())
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.queue.lock().is_empty()
    }

    /// Whether there are records, or a change of leader.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Acquire)
    }

    /// Completes when something has come since the last time.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Wakes whoever waits, although there is nothing.
    pub fn wake(&self) {
        self.woken.notify_one();
    }

    fn put(&self, number: usize) {
        self.queue.lock().push(number);
    }

    /// Puts a number that was taken and not looked at back.
    pub fn put_back(&self, number: usize) {
        self.put(number);
        self.urgent.store(true, Ordering::Release);
    }
}

/// One partition's place in a follower's session.
#[derive(Debug)]
pub struct Slot {
    number: usize,
    queued: AtomicBool,
    news: Arc<News>,
}

impl Slot {
    /// The place with this number.
    pub fn new(number: usize, news: Arc<News>) -> Arc<Self> {
        Arc::new(Self {
            number,
            queued: AtomicBool::new(false),
            news,
        })
    }

    /// The partition is about to be looked at: what happens from here on is news again.
    pub fn seen(&self) {
        self.queued.store(false, Ordering::SeqCst);
    }

    /// Announces news. A watermark alone (`urgent` false) can wait a little, for records to come with it.
    pub fn announce(&self, urgent: bool) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.news.put(self.number);
        } else if !urgent || self.news.is_urgent() {
            return;
        }
        if urgent {
            self.news.urgent.store(true, Ordering::Release);
        }
        self.news.woken.notify_one();
    }
}

/// The followers' sessions that a partition is in: at most one per replica.
#[derive(Debug, Default)]
pub(super) struct Followers {
    slots: Mutex<Vec<Arc<Slot>>>,
    any: AtomicBool,
}

impl Followers {
    pub(super) fn announce(&self, urgent: bool) {
        // Pairs with the fence in `add`, as in `Readers`.
        fence(Ordering::SeqCst);
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        for slot in self.slots.lock().iter() {
            slot.announce(urgent);
        }
    }

    pub(super) fn add(&self, slot: &Arc<Slot>) {
        self.slots.lock().push(Arc::clone(slot));
        self.any.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(super) fn remove(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock();
        slots.retain(|other| !Arc::ptr_eq(other, slot));
        if slots.is_empty() {
            self.any.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_queued_once_until_it_is_seen() {
        let news = Arc::new(News::default());
        let slot = Slot::new(7, Arc::clone(&news));
        slot.announce(true);
        slot.announce(true);
        slot.announce(false);
        assert_eq!(news.take(), [7]);
        // Not seen yet: whoever has taken the number is about to look.
        slot.announce(true);
        assert!(news.take().is_empty());
        slot.seen();
        slot.announce(true);
        assert_eq!(news.take(), [7]);
    }

    #[test]
    fn a_watermark_alone_is_not_urgent_and_records_make_it_so() {
        let news = Arc::new(News::default());
        let slot = Slot::new(0, Arc::clone(&news));
        slot.announce(false);
        assert!(!news.is_urgent() && !news.is_empty());
        slot.announce(true);
        assert!(news.is_urgent());
        assert_eq!(news.take(), [0]);
        assert!(!news.is_urgent() && news.is_empty());
    }

    #[tokio::test]
    async fn news_that_came_before_the_wait_end_it() {
        let news = Arc::new(News::default());
        Slot::new(0, Arc::clone(&news)).announce(false);
        news.woken().await;
    }

    #[test]
    fn what_was_not_looked_at_comes_next() {
        let news = News::default();
        news.put(1);
        news.put(2);
        let mut taken = news.take().into_iter();
        assert_eq!(taken.next(), Some(1));
        taken.for_each(|number| news.put_back(number));
        assert!(news.is_urgent());
        assert_eq!(news.take(), [2]);
    }
}
