//! A range of a segment file: what a read answers with, and what `sendfile` sends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// `length` bytes of whole record batches from `position` on. Only the last batch of the last slice
/// of a [`Log::read`](crate::Log::read) may be cut short, by the reader's own byte budget (clients expect that, KIP-74).
///
/// The bytes are published: they never change, and they stay readable through this slice when
/// retention removes the file meanwhile.
#[derive(Clone, Debug)]
pub struct FileSlice {
    file: Arc<File>,
    position: u64,
    length: u32,
    is_active: bool,
}

impl FileSlice {
    /// A range of any file. Those of a log come from [`Log::read`](crate::Log::read).
    #[must_use]
    pub fn new(file: Arc<File>, position: u64, length: u32, is_active: bool) -> Self {
        Self {
            file,
            position,
            length,
            is_active,
        }
    }

    /// The segment file, opened for reading at least.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the slice starts in the file, in bytes.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes it has; never 0.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Whether it lies in the segment that is being appended to: then it is recent, and probably in
    /// the page cache. A hint for filesystems that cannot be asked.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// Reads the whole slice into memory: for coordinators, tools and tests. Blocks on the disk.
    ///
    /// # Errors
    /// pread(2).
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length as usize];
        self.file.read_exact_at(&mut bytes, self.position)?;
        Ok(bytes)
    }
}

impl AsFd for FileSlice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
