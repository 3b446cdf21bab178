//! What clients did and saw, in the form the [checker](crate::checker) judges.
//!
//! Every value is unique and says who wrote it and when: a [`Value`] is (producer, sequence), and its [payload](Value::payload)
//! carries both, filler derived from them, and a CRC-32C, so that a single changed bit shows.
//!
//! ```text
//! payload: producer u32 | sequence u64 | filler … | crc32c u32      (big-endian; the CRC covers what precedes it)
//! ```

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Bytes of a payload that are not filler.
const FIXED_LEN: usize = 4 + 8 + 4;

/// A record's identity: the producer that wrote it and its number in that producer's order of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    /// Which producer; unique in a history.
    pub producer: u32,
    /// Counts from 0 in the order of sending.
    pub sequence: u64,
}

impl Value {
    /// The record body that stands for this value, `size` bytes long (at least the fixed part).
    pub fn payload(self, size: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(size.max(FIXED_LEN));
        payload.extend(self.producer.to_be_bytes());
        payload.extend(self.sequence.to_be_bytes());
        // Words, not noise: the codecs must have something to compress.
        let filler = format!("kittiwake {} of {} ", self.sequence, self.producer);
        payload.extend(filler.bytes().cycle().take(size.saturating_sub(FIXED_LEN)));
        let crc = crc32c::crc32c(&payload);
        payload.extend(crc.to_be_bytes());
        payload
    }

    /// The value a body stands for, or `None` if the body is not, bit for bit, one that [`payload`](Self::payload) made.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let producer = u32::from_be_bytes(payload.get(..4)?.try_into().ok()?);
        let sequence = u64::from_be_bytes(payload.get(4..12)?.try_into().ok()?);
        let value = Self { producer, sequence };
        (value.payload(payload.len()) == payload).then_some(value)
    }
}

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged at this offset.
    Ok(i64),
    /// Acknowledged, at an offset the client does not know: a batch whose answer was lost is in the log once a later one
    /// of the same idempotent producer has been accepted.
    Implied,
    /// Provably not applied.
    Fail,
    /// Unknown: a timeout, a lost connection, or never answered.
    Info,
}

impl Outcome {
    fn is_acknowledged(self) -> bool {
        matches!(self, Self::Ok(_) | Self::Implied)
    }
}

/// One send.
#[derive(Debug, Clone, Copy)]
pub struct Send {
    /// What was sent.
    pub value: Value,
    /// Where to.
    pub partition: i32,
    /// When it was sent, counted from the beginning of the history.
    pub invoked: Duration,
    /// When its end was known, on the same clock; `None` while it is open.
    pub ended: Option<Duration>,
    /// How it ended.
    pub outcome: Outcome,
}

impl Send {
    /// When it was acknowledged, if it was.
    pub fn acknowledged_at(&self) -> Option<Duration> {
        self.ended.filter(|_| self.outcome.is_acknowledged())
    }
}

/// One record a consumer was given.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// The consumer's assignment: within one, offsets go up and skip nothing. Each assignment or seek gets a new number.
    pub assignment: u32,
    /// Where from.
    pub partition: i32,
    /// At which offset.
    pub offset: i64,
    /// `None`: a body that no producer made.
    pub value: Option<Value>,
}

/// A producer goes on under a new producer epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEpoch {
    /// Which producer.
    pub producer: u32,
    /// When, counted from the beginning of the history.
    pub at: Duration,
    /// What the client says of it.
    pub why: String,
}

/// A finished history. Sends of one producer stand in the order of sending, reads of one assignment in the order of reading.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// All sends.
    pub sends: Vec<Send>,
    /// When producers went on under a new producer epoch. librdkafka does so when a batch overtook the one before it, which
    /// a node refused that was not the leader yet.
    pub new_epochs: Vec<NewEpoch>,
    /// All reads while the system was disturbed.
    pub reads: Vec<Read>,
    /// The fresh client's reading of every partition from the beginning to past the highest offset ever seen, after healing.
    pub final_reads: Vec<Read>,
}

/// Collects a history from many clients. Clones share one history.
#[derive(Debug, Clone)]
pub struct Recorder {
    began: Instant,
    history: Arc<Mutex<History>>,
    acknowledged: Arc<AtomicUsize>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            history: Arc::default(),
            acknowledged: Arc::default(),
        }
    }
}

/// Which send a completion belongs to.
#[derive(Debug, Clone, Copy)]
pub struct SendId(usize);

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.history
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Now, on the history's clock.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A send is invoked; until it is completed it counts as [`Outcome::Info`].
    pub fn invoke(&self, value: Value, partition: i32) -> SendId {
        let mut history = self.lock();
        history.sends.push(Send {
            value,
            partition,
            invoked: self.now(),
            ended: None,
            outcome: Outcome::Info,
        });
        SendId(history.sends.len() - 1)
    }

    /// The send ended.
    pub fn complete(&self, id: SendId, outcome: Outcome) {
        let mut history = self.lock();
        let send = &mut history.sends[id.0];
        send.ended = Some(self.now());
        send.outcome = outcome;
        if outcome.is_acknowledged() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A producer goes on under a new producer epoch.
    pub fn new_epoch(&self, producer: u32, why: &str) {
        let mut history = self.lock();
        history.new_epochs.push(NewEpoch {
            producer,
            at: self.now(),
            why: why.to_owned(),
        });
    }

    /// A consumer was given a record.
    pub fn read(&self, read: Read) {
        self.lock().reads.push(read);
    }

    /// The fresh client of the end was given a record.
    pub fn final_read(&self, read: Read) {
        self.lock().final_reads.push(read);
    }

    /// How many sends are acknowledged by now.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Of partitions 0 to `partitions`, those where no record sent at `from` or later is acknowledged yet.
    pub fn unacknowledged_since(&self, from: Duration, partitions: i32) -> Vec<i32> {
        let history = self.lock();
        let sends = history.sends.iter().rev();
        let found: HashSet<i32> = sends
            .take_while(|send| send.invoked >= from)
            .filter(|send| send.acknowledged_at().is_some())
            .map(|send| send.partition)
            .collect();
        (0..partitions)
            .filter(|partition| !found.contains(partition))
            .collect()
    }

    /// A copy of what was recorded so far.
    pub fn snapshot(&self) -> History {
        self.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_gives_its_value_back_and_no_changed_bit_does() {
        let value = Value {
            producer: 3,
            sequence: 1 << 40,
        };
        for size in [0, FIXED_LEN, 100, 1024] {
            let payload = value.payload(size);
            assert_eq!(payload.len(), size.max(FIXED_LEN));
            assert_eq!(Value::parse(&payload), Some(value));
            for bit in 0..payload.len() * 8 {
                let mut changed = payload.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Value::parse(&changed), None, "bit {bit} of {size} bytes");
            }
        }
        assert_eq!(Value::parse(b"short"), None);
    }
}
