//! The `.snapshot` file's bytes; the layout is drawn in the parent module.

use std::collections::VecDeque;

use thiserror::Error;

use super::{Appended, Producer, ProducerState};
use crate::Offset;
use crate::batch::NO_SEQUENCE;

const VERSION: i16 = 1;
const CRC_AT: usize = 2;
const CRC_COVERS_FROM: usize = CRC_AT + 4;
const ENTRIES_AT: usize = CRC_COVERS_FROM + 4;
const ENTRY_LEN: usize = 8 + 2 + 4 + 8 + 4 + 8 + 4 + 8;
/// "No offset" in an entry.
const NO_OFFSET: i64 = -1;

/// A producer snapshot that cannot be used; the state is then rebuilt from the log.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("producer snapshot: {0}")]
pub struct SnapshotError(String);

impl ProducerState {
    /// The bytes of a `.snapshot`, ordered by producer id.
    #[must_use]
    pub fn encode_snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENTRIES_AT + self.producers.len() * ENTRY_LEN);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        // Producer ids are handed out in blocks by the cluster; 2^31 of them in memory at once is out of reach.
        bytes.extend_from_slice(&(self.producers.len() as i32).to_be_bytes());
        for (id, producer) in &self.producers {
            let last = producer.batches.back();
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(&producer.epoch.to_be_bytes());
            bytes.extend_from_slice(
                &last
                    .map_or(NO_SEQUENCE, |batch| batch.last_sequence)
                    .to_be_bytes(),
            );
            bytes.extend_from_slice(
                &last
                    .map_or(NO_OFFSET, |batch| batch.last_offset.0)
                    .to_be_bytes(),
            );
            bytes.extend_from_slice(&last.map_or(0, |batch| batch.offset_delta).to_be_bytes());
            bytes.extend_from_slice(&producer.timestamp.to_be_bytes());
            bytes.extend_from_slice(&producer.coordinator_epoch.to_be_bytes());
            bytes.extend_from_slice(
                &producer
                    .transaction_start
                    .map_or(NO_OFFSET, |offset| offset.0)
                    .to_be_bytes(),
            );
        }
        let crc = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
        bytes[CRC_AT..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Reads the bytes of a `.snapshot`.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let fault = |reason: String| Err(SnapshotError(reason));
        let Some(head) = bytes.first_chunk::<ENTRIES_AT>() else {
            return fault(format!("{} bytes are too few", bytes.len()));
        };
        let mut head = Fields { rest: head };
        let (version, crc, count) = (head.i16(), head.u32(), head.i32());
        if version != VERSION {
            return fault(format!("version {version}; only {VERSION} is known"));
        }
        let computed = crc32c::crc32c(&bytes[CRC_COVERS_FROM..]);
        if crc != computed {
            return fault(format!("CRC is {computed:08x} but the file says {crc:08x}"));
        }
        let (entries, trailing) = bytes[ENTRIES_AT..].as_chunks::<ENTRY_LEN>();
        if usize::try_from(count) != Ok(entries.len()) || !trailing.is_empty() {
            return fault(format!(
                "{count} entries announced in {} bytes",
                bytes.len()
            ));
        }
        let mut state = Self::default();
        for entry in entries {
            state.load(entry)?;
        }
        Ok(state)
    }

    fn load(&mut self, entry: &[u8; ENTRY_LEN]) -> Result<(), SnapshotError> {
        let mut fields = Fields { rest: entry };
        let id = fields.i64();
        let epoch = fields.i16();
        let last_sequence = fields.i32();
        let last_offset = fields.i64();
        let offset_delta = fields.i32();
        let timestamp = fields.i64();
        let coordinator_epoch = fields.i32();
        let transaction_start = fields.i64();
        let mut batches = VecDeque::new();
        if last_offset >= 0 {
            if offset_delta < 0 || i64::from(offset_delta) > last_offset || last_sequence < 0 {
                return Err(SnapshotError(format!(
                    "producer {id}: sequence {last_sequence} at offset {last_offset} less {offset_delta}"
                )));
            }
            batches.push_back(Appended {
                last_sequence,
                last_offset: Offset(last_offset),
                offset_delta,
                timestamp,
            });
        }
        let transaction_start = (transaction_start >= 0).then_some(Offset(transaction_start));
        if let Some(start) = transaction_start {
            self.open_transactions.insert(start, id);
        }
        let producer = Producer {
            epoch,
            coordinator_epoch,
            transaction_start,
            timestamp,
            seen_ms: timestamp,
            batches,
        };
        if self.producers.insert(id, producer).is_some() {
            return Err(SnapshotError(format!("producer {id} twice")));
        }
        Ok(())
    }
}

/// Reads big-endian numbers off the front of a slice whose length was checked before.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.rest.split_at(N);
        self.rest = rest;
        let mut bytes = [0; N];
        bytes.copy_from_slice(taken);
        bytes
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take())
    }
}
