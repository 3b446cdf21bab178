//! `.timeindex`: from which offset on a timestamp may be found.
//!
//! ```text
//!  0                               8               12
//!  +-------------------------------+---------------+
//!  | largest timestamp up to and   | last offset   |   i64, i32, big endian
//!  | including a batch, ms         | of that batch |
//!  |                               | - base offset |
//!  +-------------------------------+---------------+
//! ```
//!
//! Timestamps ascend strictly: an entry is left out when it would repeat the one before. The last
//! entry of a sealed segment is its largest timestamp, which retention goes by.

use std::io;
use std::path::Path;

use crate::Offset;
use crate::index_file::IndexFile;

/// Bytes of one entry.
pub(crate) const ENTRY_LEN: usize = 12;

/// "No timestamp", as Kafka writes it.
pub(crate) const NO_TIMESTAMP: i64 = -1;

/// A running maximum.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TimeEntry {
    /// Largest timestamp of the segment so far, ms since the epoch.
    pub(crate) timestamp: i64,
    /// Last offset of the batch that reached it.
    pub(crate) offset: Offset,
}

/// The time index of one segment.
#[derive(Debug)]
pub(crate) struct TimeIndex {
    base: Offset,
    file: IndexFile<ENTRY_LEN>,
}

impl TimeIndex {
    /// Opens the index of a sealed segment that starts at `base`.
    ///
    /// # Errors
    /// `NotFound`, `InvalidData`: rebuild it.
    pub(crate) fn open_sealed(path: &Path, base: Offset) -> io::Result<Self> {
        let file = IndexFile::open_sealed(path)?;
        Ok(Self { base, file })
    }

    /// Creates the index of a segment that starts at `base`, to be put in its place when it is whole.
    ///
    /// # Errors
    /// open(2).
    pub(crate) fn create(path: &Path, base: Offset) -> io::Result<Self> {
        let file = IndexFile::create(path)?;
        Ok(Self { base, file })
    }

    /// Opens the index of the active segment that starts at `base`.
    ///
    /// # Errors
    /// `InvalidData`: rebuild it.
    pub(crate) fn open_appending(path: &Path, base: Offset, bytes_max: usize) -> io::Result<Self> {
        let file = IndexFile::open_appending(path, bytes_max)?;
        Ok(Self { base, file })
    }

    /// The last entry whose timestamp is at most `target`: a record of timestamp `target` or later
    /// lies after its offset, or in its batch.
    ///
    /// # Errors
    /// As [`IndexFile::get`].
    pub(crate) fn lookup(&self, target: i64) -> io::Result<Option<TimeEntry>> {
        let found = self
            .file
            .last_where(|raw| self.decode(raw).timestamp <= target)?;
        Ok(found.map(|raw| self.decode(&raw)))
    }

    /// The last entry of a batch that ends before `offset`.
    ///
    /// # Errors
    /// As [`IndexFile::get`].
    pub(crate) fn lookup_below(&self, offset: Offset) -> io::Result<Option<TimeEntry>> {
        let found = self
            .file
            .last_where(|raw| self.decode(raw).offset < offset)?;
        Ok(found.map(|raw| self.decode(&raw)))
    }

    /// The last entry.
    ///
    /// # Errors
    /// As [`IndexFile::get`].
    pub(crate) fn last(&self) -> io::Result<Option<TimeEntry>> {
        Ok(self.file.last()?.map(|raw| self.decode(&raw)))
    }

    /// Notes the running maximum, unless it repeats the last entry.
    ///
    /// # Errors
    /// As [`IndexFile::push`]; `InvalidInput` when the offset does not fit.
    pub(crate) fn append_if_later(&self, entry: TimeEntry) -> io::Result<()> {
        let last = self.last()?.map_or(NO_TIMESTAMP, |last| last.timestamp);
        if entry.timestamp <= last {
            return Ok(());
        }
        let relative = i32::try_from(entry.offset - self.base)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut raw = [0; ENTRY_LEN];
        raw[..8].copy_from_slice(&entry.timestamp.to_be_bytes());
        raw[8..].copy_from_slice(&relative.to_be_bytes());
        self.file.push(raw)
    }

    /// All entries, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = io::Result<TimeEntry>> {
        (0..self.file.count()).map(|slot| self.file.get(slot).map(|raw| self.decode(&raw)))
    }

    /// How many further entries fit before the segment has to be rolled: one is kept free for the
    /// closing one.
    pub(crate) fn room(&self) -> usize {
        self.file.room().saturating_sub(1)
    }

    /// As [`IndexFile::sync`].
    ///
    /// # Errors
    /// fdatasync(2).
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Cuts the file to its entries.
    ///
    /// # Errors
    /// ftruncate(2).
    pub(crate) fn trim(&self) -> io::Result<()> {
        self.file.trim()
    }

    fn decode(&self, raw: &[u8; ENTRY_LEN]) -> TimeEntry {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *raw;
        TimeEntry {
            timestamp: i64::from_be_bytes([a, b, c, d, e, f, g, h]),
            offset: self.base + i64::from(i32::from_be_bytes([i, j, k, l])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_running_maximum_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.timeindex");
        let index = TimeIndex::open_appending(&path, Offset(7), 1 << 10).unwrap();
        let entry = |timestamp, offset| TimeEntry {
            timestamp,
            offset: Offset(offset),
        };
        for (timestamp, offset) in [(NO_TIMESTAMP, 8), (50, 9), (50, 12), (40, 15), (60, 20)] {
            index.append_if_later(entry(timestamp, offset)).unwrap();
        }
        let kept: Vec<_> = index.entries().map(Result::unwrap).collect();
        assert_eq!(kept, [entry(50, 9), entry(60, 20)]);
        assert_eq!(index.lookup(49).unwrap(), None);
        assert_eq!(index.lookup(59).unwrap(), Some(entry(50, 9)));
        index.trim().unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            [
                0, 0, 0, 0, 0, 0, 0, 50, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 13
            ]
        );
    }
}
