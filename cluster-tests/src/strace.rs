//! A node's system calls, as strace(1) sees them: [how it sends bytes](Sent), and [whether what it acknowledges is on the
//! disk](Acknowledged).

mod acknowledged;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

pub use acknowledged::Acknowledged;

use crate::Node;

/// Whether strace can be run here.
pub fn is_installed() -> bool {
    Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Every call that sends.
const SENDS: &str = "trace=sendfile,splice,write,writev,pwrite64,sendto,sendmsg,sendmmsg";
/// Every call that receives, sends, or makes a file durable.
const FLUSHES: &str = "trace=read,recvfrom,write,writev,sendto,sendmsg,sendfile,fsync,fdatasync";

/// Starts a process of `node` whose sending calls go to a file: that file, and when it was started.
pub fn spawn_for_sends(node: &mut Node) -> Result<(PathBuf, Instant)> {
    spawn(node, SENDS)
}

/// The same for every call that receives, sends, or makes a file durable.
pub fn spawn_for_flushes(node: &mut Node) -> Result<(PathBuf, Instant)> {
    spawn(node, FLUSHES)
}

fn spawn(node: &mut Node, calls: &str) -> Result<(PathBuf, Instant)> {
    let trace = node.config_file().with_file_name("trace");
    let began = node.spawn_under(&wrapper(calls, trace.to_str().context("a UTF-8 path")?))?;
    Ok((trace, began))
}

fn wrapper<'a>(calls: &'a str, output: &'a str) -> [&'a str; 11] {
    // -D: strace is the node's descendant instead of its parent, so that signals and the exit status are the node's own.
    [
        "strace",
        "-D",
        "-f",
        "-yy",
        "--seccomp-bpf",
        "-s",
        "0",
        "-e",
        calls,
        "-o",
        output,
    ]
}

/// A call that returned a number: how many bytes were sent, or 0 for done.
struct Call<'a> {
    /// The line on which it began, and the one on which it had ended. strace stops a thread at both, so a call that caused
    /// another one ended on a line before the other began.
    begun: usize,
    ended: usize,
    /// Its line from the beginning: `PID sendfile(12<TCP:[127.0.0.1:PORT->127.0.0.1:40000]>, 14</…/0.log>, …`
    text: &'a str,
    result: u64,
}

impl<'a> Call<'a> {
    fn name(&self) -> &'a str {
        let (call, _) = self.text.split_once('(').unwrap_or_default();
        call.rsplit(' ').next().unwrap_or_default()
    }

    /// What the call's first argument, a descriptor, stands for.
    fn file(&self) -> &'a str {
        let (_, arguments) = self.text.split_once('(').unwrap_or_default();
        let descriptor = arguments.split(", ").next().unwrap_or_default();
        let named = descriptor
            .split_once('<')
            .and_then(|(_, name)| name.rsplit_once('>'));
        named.map_or("", |(name, _)| name)
    }

    /// The peer's port, if the file is a connection that was accepted on `port`.
    fn accepted_on(&self, port: u16) -> Option<u16> {
        let (own, peer) = self
            .file()
            .strip_prefix("TCP:[")?
            .strip_suffix(']')?
            .split_once("->")?;
        (own.ends_with(&format!(":{port}"))).then_some(())?;
        peer.rsplit_once(':')?.1.parse().ok()
    }
}

/// The calls in the order in which they ended; those that failed are left out. A call that another thread's interrupted
/// stands on two lines: `PID sendfile(12<…>, … <unfinished ...>`, and later `PID <... sendfile resumed>[9], 9) = 9`.
fn calls(trace: &str) -> impl Iterator<Item = Call<'_>> {
    let mut unfinished = HashMap::new();
    trace.lines().enumerate().filter_map(move |(number, line)| {
        let thread = line.split_whitespace().next().unwrap_or_default();
        if let Some(begun) = line.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (number, begun));
            return None;
        }
        let (call, result) = line.rsplit_once(" = ")?;
        let (begun, text) = match call.contains(" resumed>") {
            true => unfinished.remove(thread)?,
            false => (number, call),
        };
        let result = result.split(' ').next()?.parse().ok()?;
        Some(Call {
            begun,
            ended: number,
            text,
            result,
        })
    })
}

/// Bytes sent on connections that one of the node's ports accepted, by the call that sent them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// By `sendfile`.
    pub sendfile: u64,
    /// By any other call.
    pub other: u64,
}

impl Sent {
    /// Reads what [`spawn_for_sends`] has written.
    pub fn read(trace: &Path, port: u16) -> Result<Self> {
        Ok(Self::of(&std::fs::read_to_string(trace)?, port))
    }

    fn of(trace: &str, port: u16) -> Self {
        let mut sent = Self::default();
        for call in calls(trace).filter(|call| call.accepted_on(port).is_some()) {
            match call.name() {
                "sendfile" => sent.sendfile += call.result,
                _ => sent.other += call.result,
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_booked_on_the_port_that_accepted() {
        let trace = "\
7 sendfile(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, 14</d/0.log>, [0] => [9], 9) = 9
7 sendto(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 5, MSG_MORE, NULL, 0) = 5
7 sendto(13<TCP:[127.0.0.1:40000->127.0.0.1:9092]>, \"\"..., 7, 0, NULL, 0) = 7
7 sendfile(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, 14</d/0.log>, [9], 9 <unfinished ...>
8 sendto(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 5, MSG_MORE, NULL, 0) = -1 EAGAIN
7 <... sendfile resumed> => [12], 9) = 3
";
        let expected = Sent {
            sendfile: 12,
            other: 5,
        };
        assert_eq!(Sent::of(trace, 9092), expected);
    }
}
