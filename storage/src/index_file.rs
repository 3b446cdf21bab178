//! Fixed-size entries in a file: what `.index` and `.timeindex` have in common.
//!
//! ```text
//! | entry 0 | entry 1 | ... | entry n-1 | zeros up to the allocated size |
//! ```
//!
//! The index of the active segment is appended to through a mapping that is made at its first
//! entry (an idle partition has none), and is cut to its entries when the segment comes to rest.
//! A sealed index is read with `pread`: a bad sector in an old index is then an error code and not
//! SIGBUS, and no map is spent on it; a look-up costs about ten reads of the page cache.
//!
//! Indexes are hints. An entry that cannot be written (full disk) is left out, and a wrong index is
//! rebuilt from the log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::retry_on_intr;

use crate::mapping::{Mapping, PAGE};

/// Index files grow by this much at most: 8,192 entries of 8 bytes, 32 MiB of log.
const STEP_MAX: usize = 64 << 10;

/// A file of entries of `N` bytes; one appender, many readers.
#[derive(Debug)]
pub(crate) struct IndexFile<const N: usize> {
    path: PathBuf,
    count: AtomicUsize,
    count_max: usize,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Sealed(File),
    /// Not mapped before the first entry. The descriptor is not kept: 10,000 active segments
    /// would hold 20,000 of them.
    Appending(OnceLock<Mapping>),
    /// Written anew and not in its place yet. By the descriptor alone: its name may be another file's
    /// soon, and a map that grew by growing that one would end in SIGBUS.
    New(File),
}

impl<const N: usize> IndexFile<N> {
    /// Opens the index of a sealed segment.
    ///
    /// # Errors
    /// `NotFound` and `InvalidData` (not a whole number of entries): rebuild it.
    pub(crate) fn open_sealed(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let count = whole_entries::<N>(path, file.metadata()?.len())?;
        Ok(Self {
            path: path.to_owned(),
            count: AtomicUsize::new(count),
            count_max: count,
            source: Source::Sealed(file),
        })
    }

    /// Opens (or creates) the index of the active segment, which has been cut to its entries, for
    /// up to `bytes_max` bytes.
    ///
    /// # Errors
    /// `InvalidData` when the file is not a whole number of entries: rebuild it.
    pub(crate) fn open_appending(path: &Path, bytes_max: usize) -> io::Result<Self> {
        let file = open_writable(path)?;
        let count = whole_entries::<N>(path, file.metadata()?.len())?;
        let index = Self {
            path: path.to_owned(),
            count: AtomicUsize::new(count),
            count_max: (bytes_max / N).max(count).max(1),
            source: Source::Appending(OnceLock::new()),
        };
        if count > 0 {
            index.map(&file, count * N)?;
        }
        Ok(index)
    }

    /// Creates an index at `path`, in place of what is there, that is written whole before anyone reads it.
    /// It needs no trimming, and its directory may be renamed meanwhile.
    ///
    /// # Errors
    /// open(2).
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            count: AtomicUsize::new(0),
            count_max: usize::MAX / N,
            source: Source::New(file),
        })
    }

    /// Where it was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of entries.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// How many further entries fit.
    pub(crate) fn room(&self) -> usize {
        self.count_max.saturating_sub(self.count())
    }

    /// The entry at `slot`, which is below [`Self::count`].
    ///
    /// # Errors
    /// pread(2), unless it is that of the active segment.
    pub(crate) fn get(&self, slot: usize) -> io::Result<[u8; N]> {
        match &self.source {
            Source::Sealed(file) | Source::New(file) => {
                let mut entry = [0; N];
                file.read_exact_at(&mut entry, (slot * N) as u64)?;
                Ok(entry)
            }
            Source::Appending(mapping) => mapping
                .get()
                .filter(|mapping| (slot + 1) * N <= mapping.backed())
                .map(|mapping| mapping.load(slot * N))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The last entry.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn last(&self) -> io::Result<Option<[u8; N]>> {
        self.count()
            .checked_sub(1)
            .map(|slot| self.get(slot))
            .transpose()
    }

    /// Appends an entry; only the appender of the segment calls this.
    ///
    /// # Errors
    /// `StorageFull` when the disk or the index is; nothing has changed then.
    pub(crate) fn push(&self, entry: [u8; N]) -> io::Result<()> {
        let count = self.count();
        if count >= self.count_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match &self.source {
            Source::Sealed(_) => return Err(io::Error::other("a sealed index takes no entries")),
            Source::Appending(slot) => self.store(slot, count, entry)?,
            Source::New(file) => file.write_all_at(&entry, (count * N) as u64)?,
        }
        self.count.store(count + 1, Ordering::Release);
        Ok(())
    }

    /// Makes what is written of a new index durable, before it takes the place of an old one.
    ///
    /// # Errors
    /// fdatasync(2).
    pub(crate) fn sync(&self) -> io::Result<()> {
        match &self.source {
            Source::New(file) => file.sync_data(),
            Source::Sealed(_) | Source::Appending(_) => Ok(()),
        }
    }

    fn store(&self, slot: &OnceLock<Mapping>, count: usize, entry: [u8; N]) -> io::Result<()> {
        let end = (count + 1) * N;
        let mapping = match slot.get() {
            Some(mapping) => mapping,
            None => self.map(&open_writable(&self.path)?, 0)?,
        };
        if end > mapping.backed() {
            self.grow(mapping, end)?;
        }
        mapping.store(count * N, [&entry, &[]]);
        Ok(())
    }

    /// Largest `slot` whose entry satisfies `is_at_most`, which holds for a prefix of the entries.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn last_where(
        &self,
        is_at_most: impl Fn(&[u8; N]) -> bool,
    ) -> io::Result<Option<[u8; N]>> {
        let (mut low, mut high) = (0, self.count());
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.get(middle)?;
            if is_at_most(&entry) {
                found = Some(entry);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(found)
    }

    /// Cuts the file to its entries: Kafka's tools take trailing zeros for entries.
    ///
    /// # Errors
    /// ftruncate(2).
    pub(crate) fn trim(&self) -> io::Result<()> {
        if let Source::Appending(slot) = &self.source {
            let len = self.count() * N;
            if let Some(mapping) = slot.get() {
                mapping.set_backed(len);
            }
            let file = open_writable(&self.path)?;
            if file.metadata()?.len() != len as u64 {
                file.set_len(len as u64)?;
            }
        }
        Ok(())
    }

    fn map(&self, file: &File, backed: usize) -> io::Result<&Mapping> {
        let Source::Appending(slot) = &self.source else {
            return Err(io::Error::other(
                "only the index of an active segment is mapped",
            ));
        };
        let reserved = (self.count_max * N).next_multiple_of(PAGE);
        let mapping = Mapping::reserve(file, reserved, backed)?;
        Ok(slot.get_or_init(|| mapping))
    }

    fn grow(&self, mapping: &Mapping, needed: usize) -> io::Result<()> {
        let backed = mapping.backed();
        let step = backed.clamp(PAGE, STEP_MAX);
        let end = (backed + step)
            .max(needed)
            .next_multiple_of(PAGE)
            .min(mapping.reserved());
        let file = open_writable(&self.path)?;
        retry_on_intr(|| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, end as u64))?;
        mapping.set_backed(end);
        Ok(())
    }
}

fn open_writable(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn whole_entries<const N: usize>(path: &Path, len: u64) -> io::Result<usize> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    if len.is_multiple_of(N) {
        Ok(len / N)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{}: {len} bytes are no whole number of {N}-byte entries",
                path.display()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_growth_trim_and_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.index");
        let index = IndexFile::<8>::open_appending(&path, 1 << 20).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            0,
            "no blocks before the first entry"
        );
        for i in 0..20_000_u64 {
            index.push(i.to_be_bytes()).unwrap();
        }
        index.trim().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 160_000);
        let sealed = IndexFile::<8>::open_sealed(&path).unwrap();
        for probe in [0, 1, 7, 19_999] {
            let at_most = |entry: &[u8; 8]| u64::from_be_bytes(*entry) <= probe;
            assert_eq!(
                sealed.last_where(at_most).unwrap(),
                Some(probe.to_be_bytes())
            );
        }
        let again = IndexFile::<8>::open_appending(&path, 1 << 20).unwrap();
        again.push(20_000_u64.to_be_bytes()).unwrap();
        assert_eq!(again.get(0).unwrap(), 0_u64.to_be_bytes());
        assert_eq!(again.last().unwrap(), Some(20_000_u64.to_be_bytes()));
    }

    #[test]
    fn a_full_index_refuses_and_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let index = IndexFile::<12>::open_appending(&dir.path().join("x"), 25).unwrap();
        index.push([1; 12]).unwrap();
        index.push([2; 12]).unwrap();
        assert_eq!(index.room(), 0);
        assert_eq!(
            index.push([3; 12]).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert_eq!(index.last().unwrap(), Some([2; 12]));
    }

    #[test]
    fn a_torn_file_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [0; 13]).unwrap();
        assert_eq!(
            IndexFile::<8>::open_sealed(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
