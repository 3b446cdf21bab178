//! The `.log` file of an active segment, and the rule by which a batch gets into it.
//!
//! ```text
//! 0          dropped         written       populated      allocated          reserved
//! |-- in page cache --|-- mapped --|-- page present --|-- has blocks --|-- address space --|
//! ```
//!
//! - The file grows by `fallocate`, in steps that double from 64 KiB to 64 MiB. It is never sparse:
//!   a full disk is an error code here and would be SIGBUS in a store to a hole.
//! - A small batch whose whole range is populated is copied through the map, without entering the
//!   kernel. Any other batch (bulk, or ahead of the populating thread, or in a partition too quiet
//!   to be mapped) goes by `pwritev` into the same file, which the page cache keeps coherent with
//!   the map. So no append ever waits for the populating thread.
//! - Growing ahead, populating ahead and dropping behind are [`AppendFile::prepare`], run by the
//!   thread in [`crate::populate`].

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};

use crate::disk::Disk;
use crate::mapping::{Mapping, PAGE};

/// First step of growth: what an almost idle partition takes on disk.
const STEP_MIN: u64 = 64 << 10;
/// Last step of growth: larger ones cost less CPU per byte, and tie up more of a small disk.
const STEP_MAX: u64 = 64 << 20;
/// A partition is mapped after this many small appends; before that a `pwritev` each is cheaper
/// than a map, a populated window and their page tables.
const APPENDS_BEFORE_MAP: u32 = 64;
/// Smallest populated window.
pub(crate) const WINDOW_MIN: u64 = 64 << 10;
/// Largest populated window: at 1 GB/s of small batches the populating thread has 1 ms to answer.
pub(crate) const WINDOW_MAX: u64 = 2 << 20;
/// Mapped pages behind the writer are dropped in pieces of at least this size.
const DROP_STEP: u64 = 256 << 10;

/// A file that one appender writes and any number of readers read.
#[derive(Debug)]
pub(crate) struct AppendFile {
    file: Arc<File>,
    disk: Arc<Disk>,
    /// Address space to reserve, and where growth in steps ends: the size of a full segment.
    reserved: u64,
    /// Serialises changes of the file's size. `false` once it has been trimmed.
    growing: Mutex<bool>,
    allocated: AtomicU64,
    written: AtomicU64,
    mapping: OnceLock<Mapping>,
    /// Pages from `written` up to here are present and writable, as far as is known: a hint,
    /// write-back protects them again and a store then faults, which costs time and nothing else.
    populated: AtomicU64,
    dropped: AtomicU64,
    small_appends: AtomicU32,
    window: AtomicU64,
    queued: AtomicBool,
}

impl AppendFile {
    /// Takes over `file`, of which the first `written` bytes are batches.
    ///
    /// # Errors
    /// fstat(2).
    pub(crate) fn new(
        file: Arc<File>,
        written: u64,
        reserved: u64,
        disk: Arc<Disk>,
    ) -> io::Result<Self> {
        let allocated = file.metadata()?.len();
        Ok(Self {
            file,
            disk,
            reserved,
            growing: Mutex::new(true),
            allocated: AtomicU64::new(allocated),
            written: AtomicU64::new(written),
            mapping: OnceLock::new(),
            populated: AtomicU64::new(0),
            dropped: AtomicU64::new(written),
            small_appends: AtomicU32::new(0),
            window: AtomicU64::new(WINDOW_MIN),
            queued: AtomicBool::new(false),
        })
    }

    /// Copies `parts` to the end of the file. On an error nothing counts as written, and the same
    /// range is written again by the next append.
    ///
    /// # Errors
    /// `StorageFull` when there is no room; others from pwritev(2).
    pub(crate) fn append(self: &Arc<Self>, parts: [&[u8]; 2], bulk_bytes: u32) -> io::Result<()> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let start = self.written.load(Ordering::Relaxed);
        let end = start + len;
        let bulk = len >= u64::from(bulk_bytes);
        if end > self.allocated.load(Ordering::Acquire) {
            self.allocate(end)?;
        }
        match self.mapping.get() {
            Some(mapping) if !bulk && end <= self.populated.load(Ordering::Acquire) => {
                mapping.store(position(start), parts);
                self.disk.count_map(len);
            }
            _ => {
                self.pwrite(parts, start)?;
                self.disk.count_pwrite(len);
            }
        }
        self.written.store(end, Ordering::Release);
        if !bulk {
            self.small_appends.fetch_add(1, Ordering::Relaxed);
        }
        if self.wants_preparing(end) && !self.queued.swap(true, Ordering::AcqRel) {
            self.disk.populator().request(self);
        }
        Ok(())
    }

    /// Says that a request to prepare was dropped: the next append makes another.
    pub(crate) fn request_dropped(&self) {
        self.queued.store(false, Ordering::Release);
    }

    /// Cuts the file to `len`, for good: no append follows.
    ///
    /// # Errors
    /// ftruncate(2).
    pub(crate) fn trim(&self, len: u64) -> io::Result<()> {
        let mut open = self.growing.lock();
        *open = false;
        self.populated.store(0, Ordering::Release);
        if let Some(mapping) = self.mapping.get() {
            mapping.set_backed(position(len));
        }
        if self.file.metadata()?.len() != len {
            self.file.set_len(len)?;
        }
        self.allocated.store(len, Ordering::Release);
        Ok(())
    }

    /// Says that write-back has protected the populated pages again: stores there would fault, for
    /// up to milliseconds, until [`Self::prepare`] has run.
    pub(crate) fn forget_populated(&self) {
        self.populated.store(0, Ordering::Release);
    }

    /// Grows the file ahead of the writer, populates a window of `window` bytes at most and drops
    /// what lies behind it. Returns the bytes now mapped. With a window of 0, or where populating
    /// fails, the partition asks again after as many small appends as before its first window.
    /// Runs on the populating thread.
    pub(crate) fn prepare(&self, window: u64) -> u64 {
        self.queued.store(false, Ordering::Release);
        let written = self.written.load(Ordering::Acquire);
        let wanted = self.window.load(Ordering::Relaxed).min(window);
        let small = self.small_appends.load(Ordering::Relaxed) >= APPENDS_BEFORE_MAP;
        let short = small && written + wanted > self.allocated.load(Ordering::Acquire);
        if short || self.wants_growth(written) {
            let ahead = (written + wanted.max(self.step())).min(self.reserved);
            // Out of space is for the append that needs it to report.
            if self.allocate(ahead).is_err() {
                return 0;
            }
        }
        if window == 0 {
            self.small_appends.store(0, Ordering::Relaxed);
            return 0;
        }
        if !small {
            return 0;
        }
        let Some(mapping) = self.mapped() else {
            return 0;
        };
        let start = self.populated.load(Ordering::Acquire).max(written);
        // `segment.bytes` may have grown since the map was made; what lies past it goes by `pwrite`.
        let mapped = self.allocated.load(Ordering::Acquire).min(self.reserved);
        let end = (written + wanted).min(mapped);
        if mapping.populate(position(start), position(end)).is_err() {
            self.small_appends.store(0, Ordering::Relaxed);
            return 0;
        }
        self.populated.store(end, Ordering::Release);
        self.window
            .store((wanted * 2).min(WINDOW_MAX), Ordering::Relaxed);
        self.drop_up_to(mapping, written, DROP_STEP);
        end.saturating_sub(self.dropped.load(Ordering::Relaxed))
    }

    /// Gives back all mapped pages, so that another partition can have a window.
    pub(crate) fn release_window(&self) {
        let end = self.populated.swap(0, Ordering::AcqRel);
        if let Some(mapping) = self.mapping.get() {
            let written = self.written.load(Ordering::Acquire);
            self.drop_up_to(mapping, end.max(written), 0);
            // The pages ahead may be populated again later: only what was written is done with.
            self.dropped.store(written, Ordering::Relaxed);
        }
        self.window.store(WINDOW_MIN, Ordering::Relaxed);
    }

    fn wants_preparing(&self, written: u64) -> bool {
        let populated = self.populated.load(Ordering::Relaxed);
        let allocated = self.allocated.load(Ordering::Relaxed);
        let wants_window = self.small_appends.load(Ordering::Relaxed) >= APPENDS_BEFORE_MAP
            && populated < self.reserved.min(allocated)
            && populated < written + self.window.load(Ordering::Relaxed) / 2;
        wants_window || self.wants_growth(written)
    }

    /// Whether the next step should be allocated ahead; the first ones are taken when needed, so
    /// that quiet partitions stay small.
    fn wants_growth(&self, written: u64) -> bool {
        let allocated = self.allocated.load(Ordering::Relaxed);
        let step = self.step();
        step > STEP_MIN && allocated < self.reserved && written + step / 4 > allocated
    }

    fn step(&self) -> u64 {
        self.allocated
            .load(Ordering::Relaxed)
            .clamp(STEP_MIN, STEP_MAX)
    }

    fn drop_up_to(&self, mapping: &Mapping, end: u64, step: u64) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if end.saturating_sub(dropped) < step.max(1) {
            return;
        }
        // Failing to drop leaves pages mapped that the kernel can still reclaim.
        if mapping
            .drop_behind(position(dropped - dropped % PAGE as u64), position(end))
            .is_ok()
        {
            self.dropped
                .store(end - end % PAGE as u64, Ordering::Relaxed);
        }
    }

    fn mapped(&self) -> Option<&Mapping> {
        if let Some(mapping) = self.mapping.get() {
            return Some(mapping);
        }
        let open = self.growing.lock();
        if !*open {
            return None;
        }
        let reserved = position(self.reserved).next_multiple_of(PAGE);
        let backed = position(self.allocated.load(Ordering::Acquire));
        match Mapping::reserve(&self.file, reserved, backed) {
            Ok(mapping) => Some(self.mapping.get_or_init(|| mapping)),
            Err(error) => {
                tracing::warn!(%error, "cannot map a segment; appending by pwrite (vm.max_map_count?)");
                None
            }
        }
    }

    fn allocate(&self, end: u64) -> io::Result<()> {
        let open = self.growing.lock();
        let have = self.allocated.load(Ordering::Acquire);
        if end <= have {
            return Ok(());
        }
        if !*open {
            return Err(io::Error::other("the segment has been closed"));
        }
        let page = PAGE as u64;
        let needed = end.next_multiple_of(page);
        let stepped = (have + self.step()).next_multiple_of(page);
        let preferred = stepped
            .min(self.reserved.next_multiple_of(page))
            .max(needed);
        let allocated = match self.allocate_range(have, preferred) {
            Err(error) if is_full(&error) && needed < preferred => {
                self.allocate_range(have, needed)?;
                needed
            }
            result => result.map(|()| preferred)?,
        };
        self.allocated.store(allocated, Ordering::Release);
        if let Some(mapping) = self.mapping.get() {
            mapping.set_backed(position(allocated));
        }
        Ok(())
    }

    fn allocate_range(&self, start: u64, end: u64) -> io::Result<()> {
        self.disk.reserve(&self.file, end - start)?;
        let flags = FallocateFlags::empty();
        match retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, start, end - start)) {
            // A filesystem without fallocate: blocks are had by writing zeros, as posix_fallocate(3).
            Err(Errno::OPNOTSUPP) => write_zeros(&self.file, start, end),
            result => result.map_err(Into::into),
        }
    }

    fn pwrite(&self, parts: [&[u8]; 2], start: u64) -> io::Result<()> {
        let [head, tail] = parts;
        let slices = [IoSlice::new(head), IoSlice::new(tail)];
        let written = retry_on_intr(|| rustix::io::pwritev(&*self.file, &slices, start))?;
        // A short count is rare (a signal, the last bytes of a disk): the rest goes by itself.
        if written < head.len() {
            self.file
                .write_all_at(&head[written..], start + written as u64)?;
            self.file.write_all_at(tail, start + head.len() as u64)
        } else {
            self.file
                .write_all_at(&tail[written - head.len()..], start + written as u64)
        }
    }
}

/// Whether `error` goes away when space returns.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn write_zeros(file: &File, start: u64, end: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = start;
    while at < end {
        let len = (end - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..position(len)], at)?;
        at += len;
    }
    Ok(())
}

/// A position as an index: segments are smaller than 2 GiB, and this crate is for 64-bit machines.
fn position(bytes: u64) -> usize {
    const { assert!(usize::BITS >= 64) };
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append_file(disk: &Arc<Disk>) -> Arc<AppendFile> {
        let file = Arc::new(tempfile::tempfile().unwrap());
        Arc::new(AppendFile::new(file, 0, 8 << 20, Arc::clone(disk)).unwrap())
    }

    #[test]
    fn small_and_bulk_batches_interleave_in_one_file() {
        let disk = Disk::for_tests();
        let file = append_file(&disk);
        let mut expected = Vec::new();
        for i in 0..3_000_usize {
            let len = if i % 97 == 0 { 20_000 } else { 1 + i % 700 };
            let body: Vec<u8> = (0..len).map(|at| (at + i) as u8).collect();
            file.append([&[i as u8; 61], &body], 16_384).unwrap();
            expected.extend_from_slice(&[i as u8; 61]);
            expected.extend_from_slice(&body);
            if i % 50 == 0 {
                file.prepare(WINDOW_MAX);
            }
            if i % 400 == 0 {
                file.forget_populated();
            }
            if i % 900 == 0 {
                file.release_window();
            }
        }
        assert!(file.mapping.get().is_some(), "the map has been used");
        file.trim(expected.len() as u64).unwrap();
        let appended = disk.appended_bytes();
        assert_eq!(appended.map + appended.pwrite, expected.len() as u64);
        assert!(appended.map > 0, "the map has been used");
        assert!(appended.pwrite >= 31 * 20_061, "bulk batches never are");
        let mut read = vec![0; expected.len()];
        file.file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == expected);
        assert_eq!(file.file.metadata().unwrap().len(), expected.len() as u64);
    }

    #[test]
    fn a_quiet_partition_is_not_mapped_and_takes_one_step_of_disk() {
        let disk = Disk::for_tests();
        let file = append_file(&disk);
        for _ in 0..10 {
            file.append([b"head", b"tail"], 65_536).unwrap();
            file.prepare(WINDOW_MAX);
        }
        assert!(file.mapping.get().is_none());
        assert_eq!(file.file.metadata().unwrap().len(), STEP_MIN);
    }

    #[test]
    fn a_trimmed_file_does_not_grow_again() {
        let disk = Disk::for_tests();
        let file = append_file(&disk);
        file.append([b"head", b"tail"], 65_536).unwrap();
        file.trim(8).unwrap();
        file.prepare(WINDOW_MAX);
        assert_eq!(file.file.metadata().unwrap().len(), 8);
        assert!(file.append([b"more", b""], 65_536).is_err());
    }

    #[test]
    fn under_the_free_space_floor_appends_fail_and_resume_when_it_is_lifted() {
        let disk = Disk::for_tests();
        disk.set_free_floor_bytes(u64::MAX / 2);
        let file = append_file(&disk);
        assert!(is_full(
            &file.append([b"head", b"tail"], 65_536).unwrap_err()
        ));
        disk.set_free_floor_bytes(0);
        file.append([b"head", b"tail"], 65_536).unwrap();
    }

    /// `segment.bytes` was raised while the segment was open.
    #[test]
    fn what_lies_past_the_map_goes_by_pwrite() {
        let disk = Disk::for_tests();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let file = Arc::new(AppendFile::new(file, 0, 96 << 10, Arc::clone(&disk)).unwrap());
        for i in 0..3_000_usize {
            file.append([&[i as u8; 61], &[i as u8; 40]], 16_384)
                .unwrap();
            if i % 20 == 0 {
                file.prepare(WINDOW_MAX);
            }
        }
        assert!(disk.appended_bytes().map > 0 && disk.appended_bytes().pwrite > 0);
    }
}
