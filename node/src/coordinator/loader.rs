//! Reads a partition of `__consumer_offsets` into a [`Shard`].

use std::io;

use kittiwake_storage::records::{batches, decode, plain_records};
use kittiwake_storage::{BatchError, Offset, RecordsError};

use super::group::Now;
use super::offsets_log::{self, DecodeError};
use super::offsets_partition::OffsetsPartition;
use super::shard::Shard;

/// Why a partition could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the log cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("bad batch: {0}")]
    Batch(#[from] BatchError),
    #[error("batch at offset {0}: {1}")]
    Records(Offset, RecordsError),
    #[error("record at offset {0}: {1}")]
    Record(Offset, DecodeError),
    #[error(
        "batch at offset {0} belongs to a transaction, and transactional commits are not supported"
    )]
    Transactional(Offset),
    #[error("nothing to read at offset {0}, below the log end")]
    Gap(Offset),
}

/// What one compressed batch may expand to. The coordinator writes far smaller ones.
const DECOMPRESSED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Replays the whole log, up to its end at the time of the call. Blocks on the disk.
///
/// A damaged record stops the load: leaving it out would answer with an offset that is not the last
/// one committed.
pub(crate) fn load(
    partition: &dyn OffsetsPartition,
    now: Now,
    shard: &mut Shard,
) -> Result<(), LoadError> {
    let end = partition.end();
    let mut next = partition.start();
    while next < end {
        let bytes = partition.read(next, end)?;
        let reached = replay(&bytes, next, now, shard)?;
        if reached <= next {
            return Err(LoadError::Gap(next));
        }
        next = reached;
    }
    Ok(())
}

/// Replays the whole batches in `bytes` from offset `from` on; returns the offset behind the last.
fn replay(bytes: &[u8], from: Offset, now: Now, shard: &mut Shard) -> Result<Offset, LoadError> {
    let mut next = from;
    for batch in batches(bytes) {
        let (header, body) = batch?;
        next = header.next_offset();
        if header.is_control() {
            continue;
        }
        if header.is_transactional() {
            return Err(LoadError::Transactional(header.base_offset));
        }
        let plain = plain_records(&header, body, DECOMPRESSED_BYTES_MAX)
            .map_err(|error| LoadError::Records(header.base_offset, error))?;
        for record in decode(&header, &plain) {
            let record = record.map_err(|error| LoadError::Records(header.base_offset, error))?;
            if record.offset < from {
                continue;
            }
            match offsets_log::decode(record.key, record.value) {
                Ok(Ok(record)) => shard.replay(now, record),
                Ok(Err(version)) => {
                    tracing::warn!(offset = %record.offset, version, "record of a newer coordinator is left alone");
                }
                Err(error) => return Err(LoadError::Record(record.offset, error)),
            }
        }
    }
    Ok(next)
}
