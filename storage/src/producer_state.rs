//! What one partition remembers of its idempotent producers, so that a retried batch is appended once (KIP-98).
//!
//! Pure: a batch's header in, a verdict out. Everything here follows from the log and is rebuilt from it; the snapshot
//! only saves reading all of it. A snapshot keeps the last batch of each producer; the other four that are remembered
//! come from reading on.
//!
//! `.snapshot`, version 1, big-endian, as Kafka writes it:
//!
//! ```text
//! | version i16 | crc u32 | count i32 | entries ...           CRC32C of all that follows it
//! entry: | producer id i64 | epoch i16 | last sequence i32 | last offset i64 | offset delta i32 | timestamp i64
//!        | coordinator epoch i32 | first offset of the open transaction i64 |       −1 where there is none
//! ```

mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use thiserror::Error;

use crate::Offset;
use crate::batch::{BatchHeader, sequence_after};

pub use snapshot::SnapshotError;

/// Batches remembered per producer: as many as a Java producer has in flight.
const BATCHES_REMEMBERED: usize = 5;
/// A transaction coordinator's epoch before any marker.
const NO_COORDINATOR_EPOCH: i32 = -1;

/// What a batch is to its producer's sequence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sequence {
    /// Next in line: append it.
    New,
    /// No producer id, so nothing to check: append it.
    NotIdempotent,
    /// Already in the log: answer with where it is, append nothing.
    Duplicate {
        /// Offset of the first record of the original.
        base_offset: Offset,
        /// Offset of the last record of the original.
        last_offset: Offset,
        /// Largest timestamp of the original.
        timestamp: i64,
    },
}

/// A batch its producer may not append.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ProducerError {
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`: a gap, a batch too old to recognise, or a new epoch that does not start at 0.
    #[error("producer {producer_id}: sequence {sequence} does not follow {last_sequence}")]
    OutOfOrderSequence {
        /// The producer.
        producer_id: i64,
        /// First sequence of the batch.
        sequence: i32,
        /// Last sequence in the log at this epoch; −1 if there is none.
        last_sequence: i32,
    },
    /// `INVALID_PRODUCER_EPOCH`: a newer incarnation of the producer has written.
    #[error("producer {producer_id}: epoch {epoch} is fenced by {current_epoch}")]
    InvalidProducerEpoch {
        /// The producer.
        producer_id: i64,
        /// Epoch of the batch.
        epoch: i16,
        /// Epoch in the log.
        current_epoch: i16,
    },
    /// `INVALID_TXN_STATE`: a batch outside the transaction its producer has open.
    #[error("producer {producer_id}: batch outside its open transaction")]
    OutsideTransaction {
        /// The producer.
        producer_id: i64,
    },
}

/// All producers of one partition.
#[derive(Clone, Debug, Default)]
pub struct ProducerState {
    producers: BTreeMap<i64, Producer>,
    /// First offset of each open transaction, and whose it is.
    open_transactions: BTreeMap<Offset, i64>,
}

/// One producer, as a snapshot keeps it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProducerEntry {
    /// The producer.
    pub producer_id: i64,
    /// Its incarnation.
    pub epoch: i16,
    /// Sequence of its last record; −1 if none is remembered.
    pub last_sequence: i32,
    /// Offset of its last record.
    pub last_offset: Option<Offset>,
    /// Its last batch's last offset less its base offset.
    pub last_offset_delta: i32,
    /// Largest timestamp of its last batch, ms since 1970.
    pub timestamp: i64,
    /// Where its open transaction begins.
    pub transaction_start: Option<Offset>,
}

impl fmt::Display for ProducerEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "producer {} epoch {} sequence {}",
            self.producer_id, self.epoch, self.last_sequence
        )?;
        self.last_offset
            .map_or(Ok(()), |offset| write!(f, " at offset {offset}"))
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Producer {
    epoch: i16,
    coordinator_epoch: i32,
    transaction_start: Option<Offset>,
    /// Largest timestamp of the last batch; what the snapshot keeps.
    timestamp: i64,
    /// When this node last saw a batch. The producer chooses `timestamp`: one that replays old records would otherwise
    /// be forgotten while it writes.
    seen_ms: i64,
    /// At most [`BATCHES_REMEMBERED`], oldest first, all of `epoch`.
    batches: VecDeque<Appended>,
}

/// A batch in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Appended {
    last_sequence: i32,
    last_offset: Offset,
    offset_delta: i32,
    timestamp: i64,
}

impl Appended {
    fn base_offset(&self) -> Offset {
        self.last_offset + -i64::from(self.offset_delta)
    }

    /// Whether a batch with these sequences is this one.
    fn is(&self, base_sequence: i32, last_sequence: i32) -> bool {
        self.last_sequence == last_sequence
            && sequence_after(base_sequence, self.offset_delta) == last_sequence
    }
}

impl Producer {
    fn new(epoch: i16) -> Self {
        Self {
            epoch,
            coordinator_epoch: NO_COORDINATOR_EPOCH,
            transaction_start: None,
            timestamp: crate::batch::NO_TIMESTAMP,
            seen_ms: crate::batch::NO_TIMESTAMP,
            batches: VecDeque::new(),
        }
    }

    fn last_sequence(&self) -> i32 {
        self.batches
            .back()
            .map_or(crate::batch::NO_SEQUENCE, |batch| batch.last_sequence)
    }

    fn entry(&self, producer_id: i64) -> ProducerEntry {
        ProducerEntry {
            producer_id,
            epoch: self.epoch,
            last_sequence: self.last_sequence(),
            last_offset: self.batches.back().map(|batch| batch.last_offset),
            last_offset_delta: self.batches.back().map_or(0, |batch| batch.offset_delta),
            timestamp: self.timestamp,
            transaction_start: self.transaction_start,
        }
    }

    fn remember(&mut self, batch: Appended) {
        if self.batches.len() == BATCHES_REMEMBERED {
            self.batches.pop_front();
        }
        self.batches.push_back(batch);
    }
}

impl ProducerState {
    /// What the leader should do with a client's batch. Changes nothing: [`ProducerState::record`] does, once the batch
    /// has its offset.
    pub fn check(&self, header: &BatchHeader) -> Result<Sequence, ProducerError> {
        if !header.has_producer_id() {
            return Ok(Sequence::NotIdempotent);
        }
        let Some(producer) = self.producers.get(&header.producer_id) else {
            // Its state may have expired or been deleted with its records: it may go on wherever it was.
            return Ok(Sequence::New);
        };
        if header.producer_epoch < producer.epoch {
            return Err(ProducerError::InvalidProducerEpoch {
                producer_id: header.producer_id,
                epoch: header.producer_epoch,
                current_epoch: producer.epoch,
            });
        }
        // A coordinator's marker or offset commit has no sequence; a client's batch always does.
        if header.is_control() || header.base_sequence < 0 {
            return Ok(Sequence::New);
        }
        if header.producer_epoch == producer.epoch
            && let Some(original) = producer
                .batches
                .iter()
                .find(|batch| batch.is(header.base_sequence, header.last_sequence()))
        {
            return Ok(Sequence::Duplicate {
                base_offset: original.base_offset(),
                last_offset: original.last_offset,
                timestamp: original.timestamp,
            });
        }
        let last_sequence = if header.producer_epoch == producer.epoch {
            producer.last_sequence()
        } else {
            crate::batch::NO_SEQUENCE
        };
        if header.base_sequence != next_sequence(last_sequence) {
            return Err(ProducerError::OutOfOrderSequence {
                producer_id: header.producer_id,
                sequence: header.base_sequence,
                last_sequence,
            });
        }
        if producer.transaction_start.is_some() && !header.is_transactional() {
            return Err(ProducerError::OutsideTransaction {
                producer_id: header.producer_id,
            });
        }
        Ok(Sequence::New)
    }

    /// Takes in a batch that is in the log, by this leader, from another one, or read back: it never rejects, because
    /// the log is right. `now_ms` only delays expiry.
    pub fn record(&mut self, header: &BatchHeader, now_ms: i64) {
        if !header.has_producer_id() {
            return;
        }
        let producer = self
            .producers
            .entry(header.producer_id)
            .or_insert_with(|| Producer::new(header.producer_epoch));
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.timestamp = header.max_timestamp;
        producer.seen_ms = now_ms;
        if header.is_control() {
            // A marker: it ends the transaction and has no sequence.
            if let Some(start) = producer.transaction_start.take() {
                self.open_transactions.remove(&start);
            }
            return;
        }
        if header.base_sequence >= 0 {
            producer.remember(Appended {
                last_sequence: header.last_sequence(),
                last_offset: header.last_offset(),
                offset_delta: header.last_offset_delta,
                timestamp: header.max_timestamp,
            });
        }
        if header.is_transactional() && producer.transaction_start.is_none() {
            producer.transaction_start = Some(header.base_offset);
            self.open_transactions
                .insert(header.base_offset, header.producer_id);
        }
    }

    /// Takes over, for producers that are where `read_back` says they are, the earlier batches it
    /// knows: a snapshot keeps only the last one.
    pub(crate) fn recall(&mut self, read_back: &Self) {
        for (id, known) in &read_back.producers {
            if let Some(producer) = self.producers.get_mut(id)
                && producer.epoch == known.epoch
                && producer.batches.back() == known.batches.back()
            {
                producer.batches.clone_from(&known.batches);
            }
        }
    }

    /// Forgets producers that have been silent for `expiration_ms` (`producer.id.expiration.ms`) and have no open
    /// transaction; says how many.
    pub fn expire(&mut self, now_ms: i64, expiration_ms: i64) -> usize {
        let before = self.producers.len();
        self.producers.retain(|_, producer| {
            let last_ms = producer.timestamp.max(producer.seen_ms);
            producer.transaction_start.is_some() || now_ms.saturating_sub(last_ms) < expiration_ms
        });
        before - self.producers.len()
    }

    /// When this node last saw a batch of any producer, ms.
    pub(crate) fn last_seen_ms(&self) -> i64 {
        let seen = self.producers.values().map(|producer| producer.seen_ms);
        seen.max().unwrap_or(crate::batch::NO_TIMESTAMP)
    }

    /// Forgets everything: the log starts over.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Producers remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether no producer is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// All producers, by id.
    pub fn producers(&self) -> impl Iterator<Item = ProducerEntry> + '_ {
        self.producers
            .iter()
            .map(|(&id, producer)| producer.entry(id))
    }

    /// One producer.
    #[must_use]
    pub fn producer(&self, producer_id: i64) -> Option<ProducerEntry> {
        Some(self.producers.get(&producer_id)?.entry(producer_id))
    }

    /// Where the oldest open transaction begins: nothing from there on is stable.
    ///
    /// A transaction whose marker is in the log counts as closed here even where the marker is not committed yet; the
    /// caller holds the last stable offset at or below the high watermark.
    #[must_use]
    pub fn first_unstable_offset(&self) -> Option<Offset> {
        self.open_transactions.keys().next().copied()
    }
}

/// The sequence that follows `last` (−1: none yet).
fn next_sequence(last: i32) -> i32 {
    if last < 0 { 0 } else { sequence_after(last, 1) }
}

#[cfg(test)]
mod tests;
