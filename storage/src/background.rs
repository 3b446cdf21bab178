//! The thread that flushes sealed segments and removes files, so that no append waits for either.
//!
//! The queue is bounded by what it holds: a log at most once (see `Log::request_flush`), and paths
//! that exist.

use std::io;
use std::path::PathBuf;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::log::Log;

/// Handle on the thread.
#[derive(Debug)]
pub(crate) struct Background {
    queue: Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Something that may take as long as a disk does.
#[derive(Debug)]
pub(crate) enum Job {
    /// Make the sealed segments of a log durable.
    Flush(Weak<Log>),
    /// Remove a file or a directory tree, which has been renamed out of the way, after a while.
    Remove { path: PathBuf, delay: Duration },
    /// End the thread, after what was submitted before.
    Stop,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// clone(2).
    pub(crate) fn start() -> io::Result<Self> {
        let (queue, jobs) = channel();
        let thread = thread::Builder::new()
            .name("log-background".into())
            .spawn(move || serve(&jobs))?;
        Ok(Self {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Waits until the thread has ended: it touches no file afterwards. What waits for its delay
    /// is removed at the next start.
    pub(crate) fn stop(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // Either fails only when the thread is gone already.
            let _ = self.queue.send(Job::Stop);
            let _ = thread.join();
        }
    }

    /// Queues `job`. When the thread has gone the job is left undone: what it would have flushed
    /// counts as unflushed, and what it would have removed is removed at the next start.
    pub(crate) fn submit(&self, job: Job) {
        if let Err(unsent) = self.queue.send(job) {
            tracing::error!(job = ?unsent.0, "the background thread of the log has ended");
        }
    }
}

fn serve(jobs: &Receiver<Job>) {
    let mut doomed: Vec<(Instant, PathBuf)> = Vec::new();
    loop {
        let next = doomed.iter().map(|(due, _)| *due).min();
        let job = match next {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => jobs.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match job {
            Ok(Job::Flush(log)) => {
                if let Some(log) = log.upgrade() {
                    log.flush_in_background();
                }
            }
            Ok(Job::Remove { path, delay }) => doomed.push((Instant::now() + delay, path)),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        for (_, path) in doomed.extract_if(.., |(due, _)| *due <= now) {
            remove(&path);
        }
    }
}

fn remove(path: &std::path::Path) {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => tracing::debug!(path = %path.display(), "removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::error!(path = %path.display(), %error, "cannot remove"),
    }
}
