//! Sends a [`SendPlan`]: encoded bytes by `send`, record bytes by `sendfile(2)`, from the page cache to the socket.
//!
//! **Turns.** A slice goes out at most [`TURN_BYTES`] at a time, so that connections share a worker. Inside `try_io` a
//! short count means that the socket is full: it is reported to tokio as `WouldBlock`, which saves the system call that
//! would only say so.
//!
//! **Two lanes.** `sendfile` of bytes that are not in the page cache blocks its thread on the disk, and everyone else on
//! that thread with it (KAFKA-7504). So residency is asked before every turn: hot bytes are sent at once, cold ones are
//! first brought into the page cache by the bounded [`ColdLane`], off the async workers.
//!
//! **Never padded.** `sendfile` returning 0 before the slice ends, or an error other than EAGAIN and EINTR, closes the
//! connection: the client sees a cut response, never bytes that are not the log's.

use bytes::Buf;
use kittiwake_storage::FileSlice;
use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use prometheus_client::metrics::counter::Counter;
use rustix::net::{SendFlags, send};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::cold_lane::ColdLane;
use super::send_plan::{Part, SendPlan};

/// Most record bytes sent before the next residency probe.
const TURN_BYTES: usize = 1 << 20;

/// What is counted on the wire: bytes received, and bytes sent by the path they took and the lane each turn was in.
#[derive(Clone, Debug, Default)]
pub struct WireCounters {
    /// Bytes of requests, with their size fields.
    pub received_bytes: Counter,
    /// Record bytes from the page cache to the socket, never in user space.
    pub sendfile_bytes: Counter,
    /// Encoded bytes: response headers and everything that is not records.
    pub encoded_bytes: Counter,
    /// Turns whose bytes were in the page cache.
    pub hot_turns: Counter,
    /// Turns that were read from disk first, off the workers.
    pub cold_turns: Counter,
}

/// Sends plans for the connections of one node.
#[derive(Clone, Debug)]
pub struct Sender {
    counters: WireCounters,
    cold_lane: ColdLane,
    progress_max: Duration,
}

impl Sender {
    /// A sender that gives up on a peer which takes nothing for `progress_max`, and reads at most `cold_reads_max` turns
    /// from disk at once (`kittiwake.cold.read.threads`): more would only queue at the device and hold threads.
    ///
    /// # Errors
    /// The threads of the cold lane cannot be started.
    pub fn new(
        counters: WireCounters,
        progress_max: Duration,
        cold_reads_max: usize,
    ) -> io::Result<Self> {
        Ok(Self {
            counters,
            cold_lane: ColdLane::new(cold_reads_max)?,
            progress_max,
        })
    }

    /// Takes note of a request of `bytes`.
    pub(super) fn received(&self, bytes: usize) {
        self.counters.received_bytes.inc_by(bytes as u64);
    }

    /// Sends all of `plan`.
    ///
    /// # Errors
    /// The peer is gone or takes nothing, or a slice could not be read; the connection must be closed.
    pub async fn send(&self, stream: &TcpStream, plan: &mut SendPlan) -> io::Result<()> {
        while !plan.is_empty() {
            let more = plan.more_behind_front();
            let Some(part) = plan.front_mut() else { break };
            match part {
                Part::Bytes(bytes) => {
                    while bytes.has_remaining() {
                        let sent = self
                            .progress(stream, || send_bytes(stream.as_fd(), bytes, more))
                            .await?;
                        bytes.advance(sent);
                        self.counters.encoded_bytes.inc_by(sent as u64);
                    }
                }
                Part::Slice { slice, sent } => {
                    while *sent < slice.length() {
                        let turn = Turn::next(slice, *sent);
                        self.heat(&turn).await?;
                        let moved = self.progress(stream, || turn.send(stream.as_fd())).await?;
                        // A turn is far below 4 GiB, and no more is moved than was asked for.
                        *sent += moved as u32;
                        self.counters.sendfile_bytes.inc_by(moved as u64);
                    }
                }
            }
            plan.pop_front();
        }
        Ok(())
    }

    /// Makes sure that the bytes of `turn` are in the page cache.
    async fn heat(&self, turn: &Turn<'_>) -> io::Result<()> {
        if turn.is_resident() {
            self.counters.hot_turns.inc();
            return Ok(());
        }
        self.counters.cold_turns.inc();
        self.cold_lane
            .warm(Arc::clone(turn.slice.file()), turn.position, turn.length)
            .await
    }

    /// Tries `attempt` until it moves at least a byte, waiting for the socket in between.
    ///
    /// `attempt` returns how much it moved and whether that filled the socket.
    async fn progress(
        &self,
        stream: &TcpStream,
        mut attempt: impl FnMut() -> io::Result<(usize, bool)>,
    ) -> io::Result<usize> {
        loop {
            let mut moved = 0;
            let outcome = stream.try_io(Interest::WRITABLE, || {
                let (sent, full) = attempt()?;
                moved = sent;
                if full {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    Ok(())
                }
            });
            match outcome {
                Ok(()) => return Ok(moved),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && moved > 0 => {
                    return Ok(moved);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match timeout(self.progress_max, stream.writable()).await {
                        Ok(ready) => ready?,
                        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// One `send`; `more` keeps the kernel from sending a short packet before the records that follow.
fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], more: bool) -> io::Result<(usize, bool)> {
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more);
    let sent = send(socket, bytes, flags)?;
    Ok((sent, sent < bytes.len()))
}

/// The part of a slice that is sent next.
struct Turn<'a> {
    slice: &'a FileSlice,
    position: u64,
    length: usize,
}

impl<'a> Turn<'a> {
    fn next(slice: &'a FileSlice, sent: u32) -> Self {
        let length = ((slice.length() - sent) as usize).min(TURN_BYTES);
        Self {
            slice,
            position: slice.position() + u64::from(sent),
            length,
        }
    }

    /// One `sendfile`: how much it moved, and whether that filled the socket.
    fn send(&self, socket: BorrowedFd<'_>) -> io::Result<(usize, bool)> {
        let mut position = i64::try_from(self.position).map_err(|_| Errno::EOVERFLOW)?;
        let sent = sendfile64(socket, self.slice.as_fd(), Some(&mut position), self.length)?;
        if sent == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the segment file ends before byte {} of a slice",
                    self.position
                ),
            ));
        }
        Ok((sent, sent < self.length))
    }

    /// Whether `sendfile` of it will not wait for the disk.
    ///
    /// `cachestat` counts pages of the range in the cache, also those still being read, so the last byte is asked for as
    /// well, without waiting. A file system without page cache accounting (tmpfs answers EOPNOTSUPP) has everything in
    /// memory. Where the kernel has no `cachestat` (before Linux 6.5) only the active segment counts as resident.
    fn is_resident(&self) -> bool {
        match pages_in_cache(self.slice.as_fd(), self.position, self.length as u64) {
            Ok(cached) => {
                cached >= pages_spanned(self.position, self.length as u64)
                    && self.last_byte_is_ready()
            }
            Err(Errno::EOPNOTSUPP) => true,
            Err(_) => self.slice.is_active() && self.last_byte_is_ready(),
        }
    }

    fn last_byte_is_ready(&self) -> bool {
        let mut byte = [0];
        let last = self.position + self.length as u64 - 1;
        let nowait = rustix::io::ReadWriteFlags::NOWAIT;
        match rustix::io::preadv2(self.slice, &mut [IoSliceMut::new(&mut byte)], last, nowait) {
            Ok(read) => read == 1,
            Err(rustix::io::Errno::OPNOTSUPP) => true,
            Err(_) => false,
        }
    }
}

fn pages_spanned(position: u64, length: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    (position + length).div_ceil(page) - position / page
}

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    length: u64,
}

/// `struct cachestat` of linux/mman.h; only the first count is read.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// `cachestat(2)`, Linux 6.5; no wrapper in nix, rustix or libc yet.
const SYS_CACHESTAT: nix::libc::c_long = 451;

/// Pages of the range that are in the page cache.
fn pages_in_cache(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<u64, Errno> {
    let range = CachestatRange { offset, length };
    let mut stat = Cachestat::default();
    // SAFETY: the file descriptor is borrowed, so open for the whole call. The kernel reads one `CachestatRange` and
    // writes one `Cachestat`, both `repr(C)` with the layout of linux/mman.h, live and exclusively ours during the call;
    // it keeps no pointer. The number is this call on every 64-bit Linux architecture (unified table), and an older
    // kernel answers ENOSYS.
    let status = unsafe {
        nix::libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            std::ptr::from_ref(&range),
            std::ptr::from_mut(&mut stat),
            0u32,
        )
    };
    Errno::result(status).map(|_| stat.cached)
}
