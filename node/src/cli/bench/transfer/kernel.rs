//! The two things the transfer bench asks of the kernel that have no safe wrapper: a file mapping
//! whose address goes into a system call, and an interface's offload settings (SIOCETHTOOL).
//!
//! This is the bench's only `unsafe` code. No reference into a mapping is ever formed: bytes move by
//! raw pointer or inside the kernel. The files are created by the bench without a name, so no other
//! process can cut them short under the mapping (a touch past their end would be SIGBUS).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::libc;

/// A shared mapping of a whole file.
#[derive(Debug)]
pub(super) struct Mapping {
    map: MmapRaw,
    writable: bool,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which has at least as many, for reading.
    pub(super) fn for_reading(file: &File, len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Self {
            map,
            writable: false,
        })
    }

    /// Maps the first `len` bytes of `file`, which has blocks for as many, for writing.
    pub(super) fn for_writing(file: &File, len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len).map_raw(file)?;
        Ok(Self {
            map,
            writable: true,
        })
    }

    /// Makes pages present and writable ahead of the stores to them (`MADV_POPULATE_WRITE`).
    pub(super) fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.map
            .advise_range(Advice::PopulateWrite, range.start, range.len())
    }

    /// `write(socket, mapping + start, len)`.
    pub(super) fn write_to(
        &self,
        socket: BorrowedFd<'_>,
        range: Range<usize>,
    ) -> io::Result<usize> {
        assert!(range.start <= range.end && range.end <= self.map.len());
        // SAFETY: the range lies inside the mapping, which lives as long as `self`, and the file is
        // at least as long. The kernel only reads from it.
        let written = unsafe {
            libc::write(
                socket.as_raw_fd(),
                self.map.as_ptr().add(range.start).cast(),
                range.len(),
            )
        };
        count(written)
    }

    /// `recv(socket, mapping + start, len, 0)`.
    pub(super) fn receive_from(
        &mut self,
        socket: BorrowedFd<'_>,
        range: Range<usize>,
    ) -> io::Result<usize> {
        assert!(self.writable && range.start <= range.end && range.end <= self.map.len());
        // SAFETY: the range lies inside a writable mapping whose file has blocks for it, `self` is
        // borrowed mutably, and no reference into the mapping exists: the kernel is the only one
        // that stores here.
        let received = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                self.map.as_mut_ptr().add(range.start).cast(),
                range.len(),
                0,
            )
        };
        count(received)
    }

    /// Copies `bytes` into the mapping.
    pub(super) fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        assert!(
            self.writable
                && at
                    .checked_add(bytes.len())
                    .is_some_and(|end| end <= self.map.len())
        );
        // SAFETY: the destination lies inside a writable mapping whose file has blocks for it; the
        // source is a slice of other memory, because no slice of a mapping exists.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.map.as_mut_ptr().add(at),
                bytes.len(),
            )
        };
    }
}

fn count(answer: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// `linux/sockios.h`.
const SIOCETHTOOL: libc::Ioctl = 0x8946 as libc::Ioctl;

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Asks `interface` for one of ethtool's boolean settings (`ETHTOOL_G*`).
pub(super) fn ethtool_flag(
    socket: BorrowedFd<'_>,
    interface: &str,
    command: u32,
) -> io::Result<bool> {
    let name = interface.as_bytes();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut value = EthtoolValue {
        cmd: command,
        data: 0,
    };
    // SAFETY: an ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, &byte) in request.ifr_name.iter_mut().zip(name) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL takes an ifreq with a zero-terminated name (shorter than the zeroed array)
    // and a pointer to what the command expects. The `ETHTOOL_G*` commands used here write one
    // `ethtool_value`, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data != 0)
}
