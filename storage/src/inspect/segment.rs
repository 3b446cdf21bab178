//! One `.log` file, batch by batch.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Offset;
use crate::batch::{self, BatchError, BatchHeader, HEADER_LEN};

/// Bytes read ahead; a larger batch is checked in steps of this.
const WINDOW_BYTES: usize = 1 << 20;

/// A batch in a segment.
#[derive(Clone, Debug)]
pub struct FoundBatch {
    /// Where it starts in the file.
    pub position: u64,
    /// Its header.
    pub header: BatchHeader,
    /// What is wrong with its CRC.
    pub crc: Result<(), BatchError>,
}

/// Why the batches of a segment end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SegmentEnd {
    /// With the file.
    File,
    /// At the base offset of the next segment; so many bytes after it were cut off by a truncation.
    Successor {
        /// Bytes of the file that are no part of the log any more.
        superseded: u64,
    },
    /// At a zero header: space that is allocated and not yet used.
    Zeros {
        /// Bytes from there to the end of the file.
        bytes: u64,
        /// Position of the first that is not zero after all.
        nonzero_at: Option<u64>,
    },
    /// At something that is no batch.
    Damage {
        /// What is wrong with it.
        reason: BatchError,
        /// Bytes from there to the end of the file.
        bytes: u64,
        /// Whether all bytes after what would be its header are zero: then it is a header cut short.
        last: bool,
    },
}

/// The next thing in a segment.
#[derive(Clone, Debug)]
pub enum Step {
    /// A batch whose header makes sense.
    Batch(FoundBatch),
    /// No further batch: where, and why.
    End(u64, SegmentEnd),
}

/// Reads a segment from its start. The file may grow meanwhile; it is read to the length it had when opened.
#[derive(Debug)]
pub struct SegmentReader {
    file: File,
    length: u64,
    /// Base offset of the next segment.
    successor: Option<Offset>,
    position: u64,
    /// Offset after the last batch.
    reached: Option<Offset>,
    window: Vec<u8>,
    window_at: u64,
}

impl SegmentReader {
    pub(super) fn open(path: &Path, successor: Option<Offset>) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            file,
            length,
            successor,
            position: 0,
            reached: None,
            window: Vec::new(),
            window_at: 0,
        })
    }

    /// Bytes of the file when it was opened.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The batch at the current position; steps over it. At an end it stays there.
    pub fn step(&mut self) -> io::Result<Step> {
        let position = self.position;
        let left = self.length - position;
        if left == 0 {
            return Ok(Step::End(position, SegmentEnd::File));
        }
        if self.reached.is_some() && self.reached == self.successor {
            return self.superseded(left);
        }
        let head = self.bytes(position, left.min(HEADER_LEN as u64) as usize)?;
        if head.iter().all(|&byte| byte == 0) {
            let end = SegmentEnd::Zeros {
                bytes: left,
                nonzero_at: self.first_nonzero(position)?,
            };
            return Ok(Step::End(position, end));
        }
        let header = match BatchHeader::parse(head) {
            Ok(header) => header,
            Err(reason) => return self.damage(reason),
        };
        if self
            .successor
            .is_some_and(|successor| header.base_offset >= successor)
        {
            return self.superseded(left);
        }
        if header.size() as u64 > left {
            return self.damage(BatchError::Corrupt(format!(
                "batch of {} bytes with {left} left in the file",
                header.size()
            )));
        }
        let crc = self.check_crc(position, &header)?;
        self.position += header.size() as u64;
        self.reached = Some(header.next_offset());
        Ok(Step::Batch(FoundBatch {
            position,
            header,
            crc,
        }))
    }

    /// The segment ends where its successor begins. What follows, unless it is allocated space, a truncation
    /// has cut off; nobody has to be able to read it.
    fn superseded(&mut self, left: u64) -> io::Result<Step> {
        let end = match self.first_nonzero(self.position)? {
            Some(_) => SegmentEnd::Successor { superseded: left },
            None => SegmentEnd::Zeros {
                bytes: left,
                nonzero_at: None,
            },
        };
        Ok(Step::End(self.position, end))
    }

    fn damage(&mut self, reason: BatchError) -> io::Result<Step> {
        let position = self.position;
        let bytes = self.length - position;
        let after_header = position + bytes.min(HEADER_LEN as u64);
        let last = self.first_nonzero(after_header)?.is_none();
        Ok(Step::End(
            position,
            SegmentEnd::Damage {
                reason,
                bytes,
                last,
            },
        ))
    }

    /// Reads the records of a batch this reader found.
    pub fn body(&mut self, batch: &FoundBatch) -> io::Result<Vec<u8>> {
        // Found batches lie within the file, so the allocation is bounded by bytes that exist.
        let mut body = vec![0; batch.header.size() - HEADER_LEN];
        self.file
            .read_exact_at(&mut body, batch.position + HEADER_LEN as u64)?;
        Ok(body)
    }

    /// Reads a batch this reader found again: it may have been half written.
    pub(super) fn again(&mut self, batch: &FoundBatch) -> io::Result<Result<(), BatchError>> {
        self.window.clear();
        self.check_crc(batch.position, &batch.header)
    }

    /// Goes back to `position`, to look again at what may have been written meanwhile.
    pub(super) fn back_to(&mut self, position: u64) {
        self.window.clear();
        self.position = position;
    }

    fn check_crc(
        &mut self,
        position: u64,
        header: &BatchHeader,
    ) -> io::Result<Result<(), BatchError>> {
        let end = position + header.size() as u64;
        let mut at = position + batch::CRC_COVERS_FROM as u64;
        let mut crc = 0;
        while at < end {
            let length = (end - at).min(WINDOW_BYTES as u64) as usize;
            crc = crc32c::crc32c_append(crc, self.bytes(at, length)?);
            at += length as u64;
        }
        Ok(batch::crc_matches(header.crc, crc))
    }

    fn first_nonzero(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < self.length {
            let length = (self.length - at).min(WINDOW_BYTES as u64) as usize;
            if let Some(found) = self.bytes(at, length)?.iter().position(|&byte| byte != 0) {
                return Ok(Some(at + found as u64));
            }
            at += length as u64;
        }
        Ok(None)
    }

    /// `length` bytes (at most a window) at `position`, which must lie within the file.
    fn bytes(&mut self, position: u64, length: usize) -> io::Result<&[u8]> {
        let within = position
            .checked_sub(self.window_at)
            .is_some_and(|skip| skip + length as u64 <= self.window.len() as u64);
        if !within {
            let size = (self.length - position).min(WINDOW_BYTES as u64) as usize;
            self.window.resize(size, 0);
            self.window_at = position;
            if let Err(error) = self.file.read_exact_at(&mut self.window, position) {
                self.window.clear();
                return Err(error);
            }
        }
        let start = (position - self.window_at) as usize;
        Ok(&self.window[start..start + length])
    }
}
