//! A file mapped for appending: the only `unsafe` code of this crate.
//!
//! A [`Mapping`] reserves address space once, past the end of the file if need be, and the file
//! grows under it. What makes the stores below sound is one number, *backed*: how many bytes from
//! the start of the file have blocks behind them.
//!
//! ```text
//! 0            published          backed                       reserved
//! |-- written ----|-- may be stored to --|-- a touch is SIGBUS ----|
//! ```
//!
//! - A store to a hole of a full disk, or past the end of the file, is SIGBUS. So only bytes below
//!   `backed` are touched, and `backed` is raised only after `fallocate` has succeeded and lowered
//!   only before the file is cut.
//! - Bytes below `published` are never stored to again; the caller publishes a length with a
//!   Release store after it has stored the bytes and readers load it with Acquire. So there is no
//!   data race between the one appender and any number of readers.
//! - Another process that cuts the file under us can still cause SIGBUS: the directory lock keeps
//!   other brokers out, and an operator who truncates live files has been told.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

/// Size of a page. A larger one (arm64 with 64 KiB) makes the kernel refuse the advice of
/// [`Mapping::populate`], and appends then take the `pwrite` path: slower, never wrong.
pub(crate) const PAGE: usize = 4096;

/// A shared writable mapping of a file that grows under it.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: MmapRaw,
    backed: AtomicUsize,
}

impl Mapping {
    /// Reserves `reserved` bytes of address space over `file`, of which the first `backed` have
    /// blocks behind them already.
    ///
    /// # Errors
    /// mmap(2): ENOMEM when `vm.max_map_count` is reached.
    pub(crate) fn reserve(file: &File, reserved: usize, backed: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(reserved).map_raw(file)?;
        Ok(Self {
            backed: AtomicUsize::new(backed.min(reserved)),
            map,
        })
    }

    /// Bytes of address space.
    pub(crate) fn reserved(&self) -> usize {
        self.map.len()
    }

    /// Bytes from the start of the file that may be touched.
    pub(crate) fn backed(&self) -> usize {
        self.backed.load(Ordering::Acquire)
    }

    /// Raises or lowers [`Self::backed`]: after `fallocate` has answered, or before the file is cut.
    pub(crate) fn set_backed(&self, backed: usize) {
        self.backed
            .store(backed.min(self.reserved()), Ordering::Release);
    }

    /// Stores `parts` one after another from `position` on. There is one appender at a time (the
    /// caller holds the partition's lock) and the range is not published yet.
    ///
    /// # Panics
    /// When the range is not backed: the caller allocates first, and a store there would be SIGBUS.
    pub(crate) fn store(&self, position: usize, parts: [&[u8]; 2]) {
        let end = parts
            .iter()
            .try_fold(position, |at, part| at.checked_add(part.len()));
        assert!(
            end.is_some_and(|end| end <= self.backed()),
            "store at {position} past {} backed bytes",
            self.backed()
        );
        let mut at = position;
        for part in parts {
            // SAFETY: `at + part.len() <= backed <= reserved`, so the destination lies inside the
            // mapping and has blocks behind it. The source is a borrowed slice and cannot overlap
            // a mapping that is never lent out. Nobody else stores here (one appender), and no
            // reader loads here (the range is not published).
            unsafe {
                std::ptr::copy_nonoverlapping(
                    part.as_ptr(),
                    self.map.as_mut_ptr().add(at),
                    part.len(),
                );
            }
            at += part.len();
        }
    }

    /// Loads `N` published bytes at `position`.
    ///
    /// # Panics
    /// When the range is not backed.
    pub(crate) fn load<const N: usize>(&self, position: usize) -> [u8; N] {
        assert!(
            position
                .checked_add(N)
                .is_some_and(|end| end <= self.backed()),
            "load at {position} past {} backed bytes",
            self.backed()
        );
        let mut bytes = [0; N];
        // SAFETY: the range lies below `backed`, so inside the mapping and the file; it is
        // published, so nobody stores to it any more, and the Acquire load of the published length
        // ordered those stores before this one.
        unsafe {
            std::ptr::copy_nonoverlapping(self.map.as_ptr().add(position), bytes.as_mut_ptr(), N);
        }
        bytes
    }

    /// Makes the pages of `start..end` present and writable without changing a byte, so that the
    /// appender's stores do not fault.
    ///
    /// # Errors
    /// madvise(2) `MADV_POPULATE_WRITE`: EFAULT where a store would have been SIGBUS, EINVAL on
    /// kernels before 5.14. Both mean: append by `pwrite`.
    pub(crate) fn populate(&self, start: usize, end: usize) -> io::Result<()> {
        let start = start - start % PAGE;
        let end = end.min(self.backed());
        if start >= end {
            return Ok(());
        }
        self.map
            .advise_range(Advice::PopulateWrite, start, end - start)
    }

    /// Drops the page table entries of the whole pages in `start..end`: resident memory shrinks,
    /// the data stays in the page cache and in the file.
    ///
    /// # Errors
    /// madvise(2).
    pub(crate) fn drop_behind(&self, start: usize, end: usize) -> io::Result<()> {
        let start = start.next_multiple_of(PAGE);
        let end = end.min(self.reserved()) / PAGE * PAGE;
        if start >= end {
            return Ok(());
        }
        // SAFETY: the mapping is shared and file-backed, so MADV_DONTNEED loses nothing: the next
        // touch maps the same page of the page cache again. No reference into the mapping exists
        // outside `store` and `load`, which use raw pointers.
        unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn stores_are_seen_through_the_file_and_pwrites_through_the_mapping() {
        let file = file(PAGE as u64);
        let mapping = Mapping::reserve(&file, 16 * PAGE, PAGE).unwrap();
        mapping.store(10, [b"abc", b"defg"]);
        let mut read = [0; 7];
        file.read_exact_at(&mut read, 10).unwrap();
        assert_eq!(&read, b"abcdefg");
        file.write_all_at(b"XY", 100).unwrap();
        assert_eq!(mapping.load::<2>(100), *b"XY");
    }

    #[test]
    fn dropped_pages_keep_their_bytes() {
        let file = file(4 * PAGE as u64);
        let mapping = Mapping::reserve(&file, 4 * PAGE, 4 * PAGE).unwrap();
        mapping.populate(0, 4 * PAGE).unwrap();
        mapping.store(PAGE, [b"kept", b""]);
        mapping.drop_behind(0, 4 * PAGE).unwrap();
        assert_eq!(mapping.load::<4>(PAGE), *b"kept");
    }

    #[test]
    #[should_panic(expected = "backed bytes")]
    fn a_store_past_the_backed_bytes_is_refused() {
        let file = file(PAGE as u64);
        Mapping::reserve(&file, 2 * PAGE, PAGE)
            .unwrap()
            .store(PAGE - 1, [b"ab", b""]);
    }

    #[test]
    fn populating_past_the_end_of_the_file_is_an_error_and_no_signal() {
        let file = file(PAGE as u64);
        let mapping = Mapping::reserve(&file, 4 * PAGE, 4 * PAGE).unwrap();
        assert!(mapping.populate(0, 4 * PAGE).is_err());
    }
}
