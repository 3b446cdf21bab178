//! What all logs of one data directory share: whether the disk still works, how much of it must
//! stay free, and the threads that keep slow work off the append path.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::background::Background;
use crate::open_segments::OpenSegments;
use crate::populate::Populator;

/// Bytes of batches appended since the start, by how they got into the page cache.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AppendedBytes {
    /// Copied through the map of a segment.
    pub map: u64,
    /// Written by `pwritev`.
    pub pwrite: u64,
}

/// The disk under a data directory.
#[derive(Debug)]
pub(crate) struct Disk {
    offline: OnceLock<String>,
    free_floor_bytes: AtomicU64,
    appended_by_map: AtomicU64,
    appended_by_pwrite: AtomicU64,
    populator: Populator,
    background: Background,
    open_segments: OpenSegments,
    #[cfg(test)]
    pub(crate) at_step: AtStep,
}

impl Disk {
    /// Starts the threads. Appends fail while less than `free_floor_bytes` are free, so that
    /// metadata keeps room; at most `open_segments_max` sealed segments are open at a time.
    ///
    /// # Errors
    /// clone(2).
    pub(crate) fn start(free_floor_bytes: u64, open_segments_max: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            offline: OnceLock::new(),
            free_floor_bytes: AtomicU64::new(free_floor_bytes),
            appended_by_map: AtomicU64::new(0),
            appended_by_pwrite: AtomicU64::new(0),
            populator: Populator::start()?,
            background: Background::start()?,
            open_segments: OpenSegments::new(open_segments_max),
            #[cfg(test)]
            at_step: AtStep::default(),
        }))
    }

    /// Why the directory is offline, if it is.
    pub(crate) fn offline(&self) -> Option<&str> {
        self.offline.get().map(String::as_str)
    }

    /// Takes the directory offline for ever: after a failed fsync the page cache no longer says
    /// what is on disk, and asking again would answer "fine" (see fsync(2), "Linux error reporting").
    pub(crate) fn take_offline(&self, path: &Path, error: &io::Error) {
        let reason = format!("cannot make {} durable: {error}", path.display());
        if self.offline.set(reason.clone()).is_ok() {
            tracing::error!(path = %path.display(), %error, "log directory goes offline");
        }
    }

    /// Whether `bytes` more can be taken without going under the floor.
    ///
    /// # Errors
    /// `StorageFull` when they cannot; fstatvfs(2).
    pub(crate) fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        let floor = self.free_floor_bytes.load(Ordering::Relaxed);
        if floor == 0 {
            return Ok(());
        }
        let disk = rustix::fs::fstatvfs(file)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < floor.saturating_add(bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Changes the floor.
    pub(crate) fn set_free_floor_bytes(&self, bytes: u64) {
        self.free_floor_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Counts a batch that was copied through the map.
    pub(crate) fn count_map(&self, bytes: u64) {
        self.appended_by_map.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a batch that was written by `pwritev`.
    pub(crate) fn count_pwrite(&self, bytes: u64) {
        self.appended_by_pwrite.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn appended_bytes(&self) -> AppendedBytes {
        AppendedBytes {
            map: self.appended_by_map.load(Ordering::Relaxed),
            pwrite: self.appended_by_pwrite.load(Ordering::Relaxed),
        }
    }

    /// Ends the threads. What they would have done counts as not done.
    pub(crate) fn stop(&self) {
        self.populator.stop();
        self.background.stop();
    }

    pub(crate) fn populator(&self) -> &Populator {
        &self.populator
    }

    pub(crate) fn background(&self) -> &Background {
        &self.background
    }

    pub(crate) fn open_segments(&self) -> &OpenSegments {
        &self.open_segments
    }

    /// Marks a point between two steps of a change where a crash leaves something else than before.
    /// Tests look at the files there.
    pub(crate) fn step(&self) {
        #[cfg(test)]
        if let Some(look) = &mut *self.at_step.0.lock() {
            look();
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Self> {
        Self::start(0, 64).unwrap()
    }
}

/// What a test does at each [`Disk::step`].
#[cfg(test)]
#[derive(Default)]
pub(crate) struct AtStep(pub(crate) parking_lot::Mutex<Option<Box<dyn FnMut() + Send>>>);

#[cfg(test)]
impl std::fmt::Debug for AtStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtStep")
    }
}
