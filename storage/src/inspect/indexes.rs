//! The indexes of one segment, walked along with its log: every entry must be true of a batch that is there.
//!
//! Whether the log has *enough* entries is not asked: they are hints, and a missing one costs a longer search.

use std::fs;
use std::io;

use super::{FoundBatch, InspectError, PartitionDir, file_name};
use crate::Offset;
use crate::batch::{BatchHeader, NO_TIMESTAMP};

/// Relative offset i32, position i32.
const INDEX_ENTRY_LEN: usize = 8;
/// Timestamp i64, relative offset i32.
const TIME_INDEX_ENTRY_LEN: usize = 12;

/// An index file read whole (they are 10 MiB at most), walked along with the log.
pub(super) struct Index {
    pub(super) name: String,
    pub(super) entry_len: usize,
    pub(super) bytes: Vec<u8>,
    /// Bytes up to the zero tail an active segment's index has.
    pub(super) used: usize,
    /// The first entry no batch has been found for.
    pub(super) next: usize,
}

impl Index {
    fn open(
        dir: &PartitionDir,
        base: Offset,
        extension: &str,
        entry_len: usize,
    ) -> Result<Option<Self>, InspectError> {
        let name = file_name(base, extension);
        let path = dir.path().join(&name);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(InspectError::at(&path))?,
        };
        let entries = bytes.chunks_exact(entry_len);
        let zeros = entries
            .rev()
            .take_while(|entry| entry.iter().all(|&byte| byte == 0));
        let mut used = bytes.len() / entry_len * entry_len - zeros.count() * entry_len;
        // A first record that is large enough to be indexed has offset 0 at position 0.
        if bytes.len() == entry_len {
            used = entry_len;
        }
        Ok(Some(Self {
            name,
            entry_len,
            bytes,
            used,
            next: 0,
        }))
    }

    fn entry(&self) -> Option<&[u8]> {
        (self.next < self.used).then(|| &self.bytes[self.next..self.next + self.entry_len])
    }
}

/// See the module.
pub(super) struct Indexes {
    pub(super) offsets: Option<Index>,
    pub(super) times: Option<Index>,
    max_timestamp: i64,
}

impl Indexes {
    pub(super) fn open(dir: &PartitionDir, base: Offset) -> Result<Self, InspectError> {
        Ok(Self {
            offsets: Index::open(dir, base, "index", INDEX_ENTRY_LEN)?,
            times: Index::open(dir, base, "timeindex", TIME_INDEX_ENTRY_LEN)?,
            max_timestamp: NO_TIMESTAMP,
        })
    }

    /// Compares the entries for a batch, and those before it that have none, with it.
    pub(super) fn batch(
        &mut self,
        base: Offset,
        batch: &FoundBatch,
        mut fault: impl FnMut(&str, u64, String),
    ) {
        let header = &batch.header;
        if let Some(index) = &mut self.offsets {
            while let Some((offset, position)) = index.entry().map(index_entry)
                && u64::from(position) <= batch.position
            {
                if u64::from(position) < batch.position {
                    fault(
                        &index.name,
                        index.next as u64,
                        format!("no batch begins at {position}"),
                    );
                } else if base + i64::from(offset) != header.last_offset() {
                    let what = format!(
                        "offset {} at {position}, where the batch ends at {}",
                        base + i64::from(offset),
                        header.last_offset()
                    );
                    fault(&index.name, index.next as u64, what);
                }
                index.next += INDEX_ENTRY_LEN;
            }
        }
        let is_maximum = header.max_timestamp > self.max_timestamp;
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        if let Some(index) = &mut self.times {
            while let Some((timestamp, offset)) = index.entry().map(time_index_entry)
                && base + i64::from(offset) <= header.last_offset()
            {
                if let Some(what) =
                    time_fault(timestamp, base + i64::from(offset), header, is_maximum)
                {
                    fault(&index.name, index.next as u64, what);
                }
                index.next += TIME_INDEX_ENTRY_LEN;
            }
        }
    }
}

/// What is wrong with a time index entry whose offset is at most that of this batch.
fn time_fault(
    timestamp: i64,
    offset: Offset,
    header: &BatchHeader,
    is_maximum: bool,
) -> Option<String> {
    if offset != header.last_offset() {
        return Some(format!("no batch ends at offset {offset}"));
    }
    if timestamp != header.max_timestamp {
        return Some(format!(
            "timestamp {timestamp} for offset {offset}, whose batch has {}",
            header.max_timestamp
        ));
    }
    (!is_maximum)
        .then(|| format!("timestamp {timestamp} at offset {offset} is not the largest so far"))
}

/// Relative offset and position; the caller hands over whole entries.
fn index_entry(entry: &[u8]) -> (u32, u32) {
    let (offset, position) = entry.split_at(4);
    (
        u32::from_be_bytes(array(offset)),
        u32::from_be_bytes(array(position)),
    )
}

/// Timestamp and relative offset.
fn time_index_entry(entry: &[u8]) -> (i64, u32) {
    let (timestamp, offset) = entry.split_at(8);
    (
        i64::from_be_bytes(array(timestamp)),
        u32::from_be_bytes(array(offset)),
    )
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}
