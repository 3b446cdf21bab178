//! Brings record bytes that are not in the page cache into it, so that the `sendfile` behind it does not wait for the disk.
//!
//! **Threads of its own**, a fixed number: more reads at once would only queue at the device. They run at the lowest CPU
//! priority (`nice` 19). A page read from disk costs CPU time as well, and on a busy machine a reader of old data would
//! take that time from everybody who writes; it waits for the disk anyway, so it can wait for the CPU too.
//!
//! **Nothing queues here without a bound**: a connection has one turn on its way, and waits for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// The largest that setpriority(2) knows: 1/68 of the weight of an ordinary thread, where both want the CPU.
const NICE: i32 = 19;

/// A range of a file that somebody waits for.
struct Read {
    file: Arc<File>,
    position: u64,
    length: usize,
    done: oneshot::Sender<io::Result<()>>,
}

/// The threads, and the way to them. They end when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct ColdLane {
    reads: mpsc::Sender<Read>,
}

impl ColdLane {
    /// A lane of `threads` reads at once.
    ///
    /// # Errors
    /// A thread cannot be started, or `/dev/null`, which cold pages are drawn through, cannot be opened.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let sink = Arc::new(OpenOptions::new().write(true).open("/dev/null")?);
        let (reads, queue) = mpsc::channel(threads);
        let queue = Arc::new(Mutex::new(queue));
        for thread in 0..threads {
            let (queue, sink) = (Arc::clone(&queue), Arc::clone(&sink));
            std::thread::Builder::new()
                .name(format!("cold-read-{thread}"))
                .spawn(move || serve(&queue, &sink))?;
        }
        Ok(Self { reads })
    }

    /// Returns when the range is in the page cache; it may leave it again at any time.
    ///
    /// # Errors
    /// The file ends before the range does, or cannot be read.
    pub(super) async fn warm(
        &self,
        file: Arc<File>,
        position: u64,
        length: usize,
    ) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        let read = Read {
            file,
            position,
            length,
            done,
        };
        self.reads.send(read).await.map_err(io::Error::other)?;
        outcome.await.map_err(io::Error::other)?
    }
}

fn serve(queue: &Mutex<mpsc::Receiver<Read>>, sink: &File) {
    // Of this thread alone: on Linux a priority belongs to a thread.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        debug!(%error, "cold reads run at the ordinary CPU priority");
    }
    loop {
        // Held while waiting: whoever has it takes the next read.
        let next = queue.lock().blocking_recv();
        let Some(read) = next else { return };
        let outcome = draw(&read, sink);
        // Whoever waited may have gone.
        let _ = read.done.send(outcome);
    }
}

/// Reads the range into the page cache: `sendfile` into `/dev/null` waits for each page and copies none.
fn draw(read: &Read, sink: &File) -> io::Result<()> {
    let length = read.length as u64;
    let end = i64::try_from(read.position + length).map_err(|_| Errno::EOVERFLOW)?;
    // Only a hint: without it the reads below are smaller, not wrong.
    let _ = rustix::fs::fadvise(
        &*read.file,
        read.position,
        NonZeroU64::new(length),
        rustix::fs::Advice::WillNeed,
    );
    let mut at = end - length as i64;
    while at < end {
        let rest = (end - at) as usize;
        match sendfile64(sink, &*read.file, Some(&mut at), rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[tokio::test]
    async fn more_reads_than_threads_are_all_served_and_one_past_the_end_is_an_error() {
        const LEN: u64 = 256 << 10;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; LEN as usize]).unwrap();
        let file = Arc::new(file);
        let lane = ColdLane::new(2).unwrap();
        let mut reads = tokio::task::JoinSet::new();
        for quarter in (0..5).cycle().take(12) {
            let (lane, file) = (lane.clone(), Arc::clone(&file));
            reads.spawn(async move {
                let position = quarter * (LEN / 4);
                (quarter, lane.warm(file, position, LEN as usize / 4).await)
            });
        }
        for (quarter, outcome) in reads.join_all().await {
            match quarter {
                4 => assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
                _ => outcome.unwrap(),
            }
        }
    }
}
