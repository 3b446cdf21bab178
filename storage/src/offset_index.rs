//! `.index`: where in a segment a batch lies.
//!
//! ```text
//!  0               4               8
//!  +---------------+---------------+
//!  | last offset   | start         |   both i32, big endian
//!  | of a batch    | of that batch |
//!  | - base offset | in the .log   |
//!  +---------------+---------------+
//! ```
//!
//! Entries ascend strictly in both columns. One is written for the batch that crosses
//! `index.interval.bytes` since the entry before, so at most that much of the log, and one batch,
//! is walked from an entry.

use std::io;
use std::path::Path;

use crate::Offset;
use crate::index_file::IndexFile;

/// Bytes of one entry.
pub(crate) const ENTRY_LEN: usize = 8;

/// A batch the index knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct OffsetEntry {
    /// Last offset of the batch.
    pub(crate) offset: Offset,
    /// Where the batch starts in the segment.
    pub(crate) position: u32,
}

/// The offset index of one segment.
#[derive(Debug)]
pub(crate) struct OffsetIndex {
    base: Offset,
    file: IndexFile<ENTRY_LEN>,
}

impl OffsetIndex {
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

    /// The last batch whose last offset is at most `target`.
    ///
    /// # Errors
    /// As [`IndexFile::get`].
    pub(crate) fn lookup(&self, target: Offset) -> io::Result<Option<OffsetEntry>> {
        let found = self
            .file
            .last_where(|raw| self.decode(raw).offset <= target)?;
        Ok(found.map(|raw| self.decode(&raw)))
    }

    /// The last batch that starts at `position` or before.
    ///
    /// # Errors
    /// As [`IndexFile::get`].
    pub(crate) fn lookup_position(&self, position: u64) -> io::Result<Option<OffsetEntry>> {
        let found = self
            .file
            .last_where(|raw| u64::from(self.decode(raw).position) <= position)?;
        Ok(found.map(|raw| self.decode(&raw)))
    }

    /// Notes that the batch that ends at `last_offset` starts at `position`.
    ///
    /// # Errors
    /// As [`IndexFile::push`]; `InvalidInput` when the offset does not fit.
    pub(crate) fn append(&self, last_offset: Offset, position: u32) -> io::Result<()> {
        let relative = i32::try_from(last_offset - self.base);
        let (Ok(relative), Ok(position)) = (relative, i32::try_from(position)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut raw = [0; ENTRY_LEN];
        raw[..4].copy_from_slice(&relative.to_be_bytes());
        raw[4..].copy_from_slice(&position.to_be_bytes());
        self.file.push(raw)
    }

    /// All entries, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = io::Result<OffsetEntry>> {
        (0..self.file.count()).map(|slot| self.file.get(slot).map(|raw| self.decode(&raw)))
    }

    /// Where it was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// How many further entries fit.
    pub(crate) fn room(&self) -> usize {
        self.file.room()
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

    fn decode(&self, raw: &[u8; ENTRY_LEN]) -> OffsetEntry {
        let [a, b, c, d, e, f, g, h] = *raw;
        OffsetEntry {
            offset: self.base + i64::from(i32::from_be_bytes([a, b, c, d])),
            position: u32::from_be_bytes([e, f, g, h]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_batch_at_or_before_an_offset() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("100.index");
        let index = OffsetIndex::open_appending(&path, Offset(100), 1 << 10).unwrap();
        index.append(Offset(109), 0).unwrap();
        index.append(Offset(119), 4_200).unwrap();
        let entry = |offset, position| {
            Some(OffsetEntry {
                offset: Offset(offset),
                position,
            })
        };
        assert_eq!(index.lookup(Offset(108)).unwrap(), None);
        assert_eq!(index.lookup(Offset(109)).unwrap(), entry(109, 0));
        assert_eq!(index.lookup(Offset(118)).unwrap(), entry(109, 0));
        assert_eq!(index.lookup(Offset(5_000)).unwrap(), entry(119, 4_200));
        index.trim().unwrap();
        // Kafka's layout, byte for byte.
        assert_eq!(
            std::fs::read(&path).unwrap(),
            [0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 19, 0, 0, 0x10, 0x68]
        );
    }

    #[test]
    fn an_offset_too_far_from_the_base_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let index = OffsetIndex::open_appending(&dir.path().join("i"), Offset(0), 1 << 10).unwrap();
        assert!(index.append(Offset(i64::from(i32::MAX) + 1), 0).is_err());
    }
}
