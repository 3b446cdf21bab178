//! The ways to send a file over TCP and to receive one into a file, each on a thread of its own, with
//! what the thread spent.
//!
//! System calls are counted at the call sites below, so the counts are exact and cost nothing. On
//! loopback the receiver's half of the TCP stack runs in the sender's `write`: read the two sides
//! together, and compare methods rather than sides.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::kernel::Mapping;
use crate::wire::send_plan::SendPlan;
use crate::wire::sendfile::{Sender as PlanSender, WireCounters};
use clap::ValueEnum;
use kittiwake_storage::FileSlice;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::sendfile::sendfile;
use serde::Serialize;

/// Pages ahead of the writer of a map are populated in steps of this many bytes.
const POPULATE_STEP: usize = 8 << 20;

/// How the file leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SendMethod {
    /// `pread` into a buffer, `write` from it.
    ReadWrite,
    /// `write` from a mapping.
    MmapWrite,
    /// `sendfile`.
    Sendfile,
}

/// Where the bytes go on arrival.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ReceiveMethod {
    /// `recv` into a buffer, and no further.
    Discard,
    /// `recv` into a buffer, `pwrite` from it.
    Pwrite,
    /// `recv` into a buffer, copied into a mapping.
    CopyIntoMap,
    /// `recv` into a mapping.
    ReceiveIntoMap,
}

/// What one side spent.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Spent {
    /// CPU time of its thread, user and system, in seconds.
    pub(super) cpu_seconds: f64,
    /// System calls that moved or prepared its bytes.
    pub(super) system_calls: u64,
    /// Times it slept.
    pub(super) voluntary_switches: i64,
    /// Times it was preempted.
    pub(super) involuntary_switches: i64,
}

/// One transfer of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) wall: Duration,
    pub(super) sender: Spent,
    pub(super) receiver: Spent,
}

/// A file without a name: it goes when it is closed, whatever happens to the process.
pub(super) fn unnamed_file(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(dir)
}

/// A file of `len` bytes, none of them repeated often enough to be told apart from real ones.
pub(super) fn source_file(dir: &Path, len: u64) -> io::Result<File> {
    let mut file = unnamed_file(dir)?;
    let mut block = vec![0; 1 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in block.as_chunks_mut::<8>().0 {
        // xorshift64: content does not matter, except that it is not all zeroes.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
    let mut left = len;
    while left > 0 {
        let take = left.min(block.len() as u64) as usize;
        file.write_all(&block[..take])?;
        left -= take as u64;
    }
    Ok(file)
}

/// Sends `len` bytes of `file` to a receiver on this machine.
pub(super) fn transfer(
    file: &File,
    len: u64,
    chunk: usize,
    send: Sender,
    receive: ReceiveMethod,
    dir: &Path,
) -> io::Result<Transfer> {
    let destination = match receive {
        ReceiveMethod::Discard => None,
        _ => Some(unnamed_file(dir)?),
    };
    transfer_into(file, len, chunk, send, receive, destination.as_ref())
}

/// Which code sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sender {
    /// A thread with a blocking socket.
    Blocking(SendMethod),
    /// The broker's sender: `sendfile` on a non-blocking socket under tokio.
    Broker,
}

fn transfer_into(
    file: &File,
    len: u64,
    chunk: usize,
    send: Sender,
    receive: ReceiveMethod,
    destination: Option<&File>,
) -> io::Result<Transfer> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let outgoing = TcpStream::connect(listener.local_addr()?)?;
    let (incoming, _) = listener.accept()?;
    let started = Instant::now();
    // Each side owns its socket, so that one that fails hangs up on the other.
    thread::scope(|scope| {
        let sender = scope.spawn(move || measured(|| send_file(file, len, chunk, send, outgoing)));
        let receiver = scope.spawn(move || {
            measured(|| receive_file(incoming, len as usize, chunk, receive, destination))
        });
        let [sender, receiver] = [sender.join(), receiver.join()];
        let wall = started.elapsed();
        let [sender, receiver] = [sender, receiver]
            .map(|side| side.unwrap_or_else(|_| Err(io::Error::other("panicked"))));
        Ok(Transfer {
            wall,
            sender: sender?,
            receiver: receiver?,
        })
    })
}

/// Runs one side on this thread and takes the difference of its resource usage.
fn measured(side: impl FnOnce() -> io::Result<u64>) -> io::Result<Spent> {
    let before = getrusage(UsageWho::RUSAGE_THREAD)?;
    let system_calls = side()?;
    let after = getrusage(UsageWho::RUSAGE_THREAD)?;
    let cpu = |usage: &nix::sys::resource::Usage| {
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) as f64 + (user.tv_usec() + system.tv_usec()) as f64 / 1e6
    };
    Ok(Spent {
        cpu_seconds: cpu(&after) - cpu(&before),
        system_calls,
        voluntary_switches: after.voluntary_context_switches()
            - before.voluntary_context_switches(),
        involuntary_switches: after.involuntary_context_switches()
            - before.involuntary_context_switches(),
    })
}

/// Sends the file; the number of system calls it took.
fn send_file(
    file: &File,
    len: u64,
    chunk: usize,
    sender: Sender,
    socket: TcpStream,
) -> io::Result<u64> {
    match sender {
        Sender::Blocking(SendMethod::ReadWrite) => send_by_read_write(file, len, chunk, &socket),
        Sender::Blocking(SendMethod::MmapWrite) => {
            send_by_mmap_write(file, len as usize, chunk, &socket)
        }
        Sender::Blocking(SendMethod::Sendfile) => send_by_sendfile(file, len, chunk, &socket),
        Sender::Broker => send_as_the_broker(file, len, chunk, socket),
    }
}

fn send_by_read_write(
    file: &File,
    len: u64,
    chunk: usize,
    mut socket: &TcpStream,
) -> io::Result<u64> {
    let mut buffer = vec![0; chunk];
    let (mut at, mut calls) = (0, 0);
    while at < len {
        let want = buffer.len().min((len - at) as usize);
        let read = file.read_at(&mut buffer[..want], at)?;
        calls += 1;
        let mut sent = 0;
        while sent < read {
            sent += socket.write(&buffer[sent..read])?;
            calls += 1;
        }
        at += at_least_one(read)? as u64;
    }
    Ok(calls)
}

fn send_by_mmap_write(
    file: &File,
    len: usize,
    chunk: usize,
    socket: &TcpStream,
) -> io::Result<u64> {
    let mapping = Mapping::for_reading(file, len)?;
    // mmap and munmap.
    let mut calls = 2;
    let mut at = 0;
    while at < len {
        at += at_least_one(mapping.write_to(socket.as_fd(), at..len.min(at + chunk))?)?;
        calls += 1;
    }
    Ok(calls)
}

fn send_by_sendfile(file: &File, len: u64, chunk: usize, socket: &TcpStream) -> io::Result<u64> {
    let (mut at, mut calls) = (0, 0);
    while at < len {
        let want = chunk.min((len - at) as usize);
        let mut offset = at as libc::off_t;
        at += at_least_one(sendfile(socket, file, Some(&mut offset), want)?)? as u64;
        calls += 1;
    }
    Ok(calls)
}

/// The broker's own sender, with slices of `chunk` bytes. Its turns are what is counted as calls: how
/// many `sendfile`s a turn takes is its own business.
fn send_as_the_broker(file: &File, len: u64, chunk: usize, socket: TcpStream) -> io::Result<u64> {
    /// As the broker's: a receiver that takes nothing for this long is gone.
    const PROGRESS_MAX: Duration = Duration::from_secs(30);
    let file = Arc::new(file.try_clone()?);
    socket.set_nonblocking(true)?;
    let counters = WireCounters::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let sender = PlanSender::new(counters.clone(), PROGRESS_MAX, 1)?;
        let socket = tokio::net::TcpStream::from_std(socket)?;
        let mut at = 0;
        while at < len {
            let slice = (len - at).min(chunk as u64);
            let mut plan = SendPlan::default();
            // A chunk is at most 1 GiB: `check` in the module above.
            plan.push_slice(FileSlice::new(Arc::clone(&file), at, slice as u32, true));
            sender.send(&socket, &mut plan).await?;
            at += slice;
        }
        io::Result::Ok(())
    })?;
    Ok(counters.hot_turns.get() + counters.cold_turns.get())
}

/// A source that ends early would otherwise be tried for ever.
fn at_least_one(moved: usize) -> io::Result<usize> {
    if moved == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(moved)
}

/// Receives `len` bytes; the number of system calls it took.
fn receive_file(
    socket: TcpStream,
    len: usize,
    chunk: usize,
    method: ReceiveMethod,
    destination: Option<&File>,
) -> io::Result<u64> {
    match (method, destination) {
        (ReceiveMethod::Discard, _) | (_, None) => {
            receive_by_buffer(&socket, len, chunk, |_, _| Ok(0))
        }
        (ReceiveMethod::Pwrite, Some(file)) => {
            receive_by_buffer(&socket, len, chunk, |bytes, at| {
                file.write_all_at(bytes, at as u64)?;
                Ok(1)
            })
        }
        (ReceiveMethod::CopyIntoMap, Some(file)) => {
            let mut map = GrowingMap::new(file, len)?;
            let calls = receive_by_buffer(&socket, len, chunk, |bytes, at| {
                map.populate_to(at + bytes.len())?;
                map.mapping.copy_in(at, bytes);
                Ok(0)
            })?;
            Ok(calls + map.calls)
        }
        (ReceiveMethod::ReceiveIntoMap, Some(file)) => {
            let mut map = GrowingMap::new(file, len)?;
            let (mut at, mut calls) = (0, 0);
            while at < len {
                let end = len.min(at + chunk);
                map.populate_to(end)?;
                at += at_least_one(map.mapping.receive_from(socket.as_fd(), at..end)?)?;
                calls += 1;
            }
            Ok(calls + map.calls)
        }
    }
}

fn receive_by_buffer(
    mut socket: &TcpStream,
    len: usize,
    chunk: usize,
    mut take: impl FnMut(&[u8], usize) -> io::Result<u64>,
) -> io::Result<u64> {
    let mut buffer = vec![0; chunk];
    let (mut at, mut calls) = (0, 0);
    while at < len {
        let want = chunk.min(len - at);
        let read = at_least_one(socket.read(&mut buffer[..want])?)?;
        calls += 1 + take(&buffer[..read], at)?;
        at += read;
    }
    Ok(calls)
}

/// A map whose pages are allocated first and made present ahead of the writer, as the broker's
/// active segment is.
struct GrowingMap {
    mapping: Mapping,
    len: usize,
    populated: usize,
    calls: u64,
}

impl GrowingMap {
    fn new(file: &File, len: usize) -> io::Result<Self> {
        fallocate(file, FallocateFlags::empty(), 0, len as libc::off_t)?;
        Ok(Self {
            mapping: Mapping::for_writing(file, len)?,
            len,
            populated: 0,
            // fallocate, mmap and munmap.
            calls: 3,
        })
    }

    fn populate_to(&mut self, end: usize) -> io::Result<()> {
        while self.populated < end {
            let step = self.populated..self.len.min(self.populated + POPULATE_STEP);
            self.populated = step.end;
            self.calls += 1;
            match self.mapping.populate(step) {
                // Before Linux 5.14 the stores fault the pages in themselves.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Touches as much memory as a transfer will, so that its first touch (a VM's host hands out pages
/// then) is not booked on whichever method runs first.
pub(super) fn pretouch(dir: &Path, len: u64) -> io::Result<()> {
    drop(source_file(dir, len)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(file: &File, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn every_way_in_and_out_delivers_the_file() {
        // Not a multiple of a page or a chunk, and more than a populate step.
        let len = POPULATE_STEP + 12_345;
        let dir = std::env::temp_dir();
        let source = source_file(&dir, len as u64).unwrap();
        let expected = contents(&source, len);
        let senders = [
            Sender::Blocking(SendMethod::ReadWrite),
            Sender::Blocking(SendMethod::MmapWrite),
            Sender::Blocking(SendMethod::Sendfile),
            Sender::Broker,
        ];
        let receivers = [
            ReceiveMethod::Pwrite,
            ReceiveMethod::CopyIntoMap,
            ReceiveMethod::ReceiveIntoMap,
        ];
        for send in senders {
            for receive in receivers {
                let destination = unnamed_file(&dir).unwrap();
                let done = transfer_into(
                    &source,
                    len as u64,
                    100_000,
                    send,
                    receive,
                    Some(&destination),
                )
                .unwrap();
                assert!(
                    contents(&destination, len) == expected,
                    "{send:?} to {receive:?} changed bytes"
                );
                assert!(
                    done.sender.system_calls >= (len / 100_000) as u64,
                    "{send:?}"
                );
            }
        }
    }

    #[test]
    fn a_source_that_ends_early_is_an_error_on_both_sides() {
        let dir = std::env::temp_dir();
        let source = source_file(&dir, 1_000).unwrap();
        for send in [
            Sender::Blocking(SendMethod::ReadWrite),
            Sender::Blocking(SendMethod::Sendfile),
            Sender::Broker,
        ] {
            let done = transfer(&source, 5_000, 512, send, ReceiveMethod::Discard, &dir);
            assert!(done.is_err(), "{send:?}");
        }
    }
}
