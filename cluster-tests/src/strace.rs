//! The system calls by which a node sends bytes, as strace(1) sees them.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

/// Whether strace can be run here.
pub fn is_installed() -> bool {
    Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The wrapper for [`Node::spawn_under`](crate::Node::spawn_under) that writes every sending call to `output`.
pub fn sends_to(output: &str) -> [&str; 11] {
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
        "trace=sendfile,splice,write,writev,pwrite64,sendto,sendmsg,sendmmsg",
        "-o",
        output,
    ]
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
    /// Reads strace's lines: `PID sendfile(12<TCP:[127.0.0.1:PORT->127.0.0.1:40000]>, 14</…/0.log>, [0] => [9], 9) = 9`.
    /// A call that another thread's interrupted stands on two lines: `PID sendfile(12<…>, … <unfinished ...>`, and later
    /// `PID <... sendfile resumed>[9], 9) = 9`.
    pub fn read(trace: &Path, port: u16) -> Result<Self> {
        Ok(Self::of(&std::fs::read_to_string(trace)?, port))
    }

    fn of(trace: &str, port: u16) -> Self {
        let mut sent = Self::default();
        let local = format!(":{port}->");
        let mut unfinished = HashMap::new();
        for line in trace.lines() {
            let thread = line.split_whitespace().next().unwrap_or_default();
            if line.ends_with("<unfinished ...>") {
                unfinished.insert(thread.to_owned(), line.to_owned());
                continue;
            }
            let Some((call, result)) = line.rsplit_once(" = ") else {
                continue;
            };
            let Ok(bytes) = result.split(' ').next().unwrap_or_default().parse::<u64>() else {
                continue;
            };
            let begun = call
                .contains(" resumed>")
                .then(|| unfinished.remove(thread))
                .flatten();
            let call = begun.as_deref().unwrap_or(call);
            let first = call.split(", ").next().unwrap_or_default();
            if first.contains("<TCP:[") && first.contains(&local) {
                if call.contains("sendfile") {
                    sent.sendfile += bytes
                } else {
                    sent.other += bytes
                }
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
