//! Whether what a node acknowledges is on the disk by then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use super::{Call, calls};

/// Answers on connections with one request in flight, and how many of them came too early.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Requests that were answered.
    pub total: usize,
    /// Answers before which no flush of the log began after the request had arrived and ended before the answer left.
    /// Another client's flush counts only if it did so, too: one that had begun may have missed the record.
    pub unflushed: usize,
}

impl Acknowledged {
    /// Reads what [`spawn_for_flushes`](super::spawn_for_flushes) has written, of the connections between the node's `port` and those of
    /// `clients`. A flush is one of any file in `directory` with the ending `.log`.
    pub fn read(
        trace: &Path,
        port: u16,
        clients: &BTreeSet<u16>,
        directory: &Path,
    ) -> Result<Self> {
        let trace = std::fs::read_to_string(trace)?;
        Ok(Self::of(&trace, port, clients, directory))
    }

    fn of(trace: &str, port: u16, clients: &BTreeSet<u16>, directory: &Path) -> Self {
        let mut acknowledged = Self::default();
        let mut flushes: Vec<Call<'_>> = Vec::new();
        // Client and the line on which the last byte of its request had been received.
        let mut asked: BTreeMap<u16, usize> = BTreeMap::new();
        for call in calls(trace) {
            if matches!(call.name(), "fsync" | "fdatasync") {
                let file = Path::new(call.file());
                if file.parent() == Some(directory)
                    && file.extension().is_some_and(|it| it == "log")
                {
                    flushes.push(call);
                }
                continue;
            }
            let Some(client) = call.accepted_on(port).filter(|it| clients.contains(it)) else {
                continue;
            };
            if matches!(call.name(), "read" | "recvfrom") {
                if call.result > 0 {
                    asked.insert(client, call.ended);
                }
            } else if let Some(received) = asked.remove(&client) {
                let timely = |flush: &Call<'_>| flush.begun > received && flush.ended < call.begun;
                acknowledged.total += 1;
                acknowledged.unflushed += usize::from(!flushes.iter().rev().any(timely));
            }
        }
        acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 9092;

    fn judge(trace: &str) -> (usize, usize) {
        let clients = BTreeSet::from([40000, 40001]);
        let found = Acknowledged::of(trace, PORT, &clients, Path::new("/d/t-0"));
        (found.total, found.unflushed)
    }

    #[test]
    fn a_flush_counts_from_the_request_to_its_answer() {
        let flushed = "\
7 recvfrom(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 16384, 0, NULL, NULL) = 90
8 fdatasync(14</d/t-0/00000000000000000000.log>) = 0
7 sendto(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 50, 0, NULL, 0) = 50
";
        assert_eq!(judge(flushed), (1, 0));
        let elsewhere = flushed.replace("t-0", "u-0");
        assert_eq!(judge(&elsewhere), (1, 1));
        let failed = flushed.replace(">) = 0", ">) = -1 EIO (Input/output error)");
        assert_eq!(judge(&failed), (1, 1));
        let others = flushed.replace("40000", "40002");
        assert_eq!(judge(&others), (0, 0));
    }

    #[test]
    fn a_flush_that_had_begun_or_is_under_way_does_not_count() {
        let one_flush_for_two = "\
7 recvfrom(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 16384, 0, NULL, NULL) = 90
8 fdatasync(14</d/t-0/00000000000000000000.log> <unfinished ...>
7 recvfrom(13<TCP:[127.0.0.1:9092->127.0.0.1:40001]>, \"\"..., 16384, 0, NULL, NULL) = 90
8 <... fdatasync resumed>) = 0
7 sendto(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 50, 0, NULL, 0) = 50
7 sendto(13<TCP:[127.0.0.1:9092->127.0.0.1:40001]>, \"\"..., 50, 0, NULL, 0) = 50
";
        assert_eq!(judge(one_flush_for_two), (2, 1));
        let too_early = "\
7 recvfrom(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 16384, 0, NULL, NULL) = 90
8 fdatasync(14</d/t-0/00000000000000000000.log> <unfinished ...>
7 sendto(12<TCP:[127.0.0.1:9092->127.0.0.1:40000]>, \"\"..., 50, 0, NULL, 0) = 50
8 <... fdatasync resumed>) = 0
";
        assert_eq!(judge(too_early), (1, 1));
    }
}
