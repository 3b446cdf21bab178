//! The thread that keeps pages ready in front of the appenders of one data directory.
//!
//! Its queue holds a file at most once and is bounded; a request that does not fit is dropped, and
//! that partition appends by `pwrite` until its next request. All windows together stay below
//! [`WINDOWS_BYTES_MAX`]: the least recently used one makes room, unless it is still in use, and
//! then the newcomer goes on by `pwrite`.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::append_file::{AppendFile, WINDOW_MAX, WINDOW_MIN};

/// Requests that wait at most.
const QUEUE_MAX: usize = 1024;
/// Mapped pages of all windows together: most of what a busy broker has resident.
const WINDOWS_BYTES_MAX: u64 = 12 << 20;

/// Handle on the thread.
#[derive(Debug)]
pub(crate) struct Populator {
    queue: SyncSender<Request>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Request {
    Prepare(Weak<AppendFile>),
    Stop,
}

impl Populator {
    /// Starts the thread.
    ///
    /// # Errors
    /// clone(2).
    pub(crate) fn start() -> std::io::Result<Self> {
        let (queue, requests) = sync_channel(QUEUE_MAX);
        let thread = thread::Builder::new()
            .name("log-populate".into())
            .spawn(move || Windows::default().serve(&requests))?;
        Ok(Self {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Asks for pages in front of `file`. Never waits.
    pub(crate) fn request(&self, file: &Arc<AppendFile>) {
        let request = Request::Prepare(Arc::downgrade(file));
        if self.queue.try_send(request).is_err() {
            file.request_dropped();
        }
    }

    /// Waits until the thread has ended: it touches no file afterwards.
    pub(crate) fn stop(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // Either fails only when the thread is gone already.
            let _ = self.queue.send(Request::Stop);
            let _ = thread.join();
        }
    }
}

/// The windows in use, least recently requested first.
#[derive(Default)]
struct Windows {
    used: VecDeque<Window>,
    bytes: u64,
    requests: u64,
}

struct Window {
    file: Weak<AppendFile>,
    bytes: u64,
    requested: u64,
}

impl Windows {
    fn serve(&mut self, requests: &Receiver<Request>) {
        while let Ok(Request::Prepare(file)) = requests.recv() {
            if let Some(file) = file.upgrade() {
                self.prepare(&file);
            }
        }
    }

    fn prepare(&mut self, file: &Arc<AppendFile>) {
        self.requests += 1;
        let weak = Arc::downgrade(file);
        if let Some(slot) = self
            .used
            .iter()
            .position(|window| window.file.ptr_eq(&weak))
        {
            self.remove(slot);
        }
        let window = self.share();
        let bytes = if self.make_room(window) {
            file.prepare(window)
        } else {
            file.prepare(0)
        };
        if bytes > 0 {
            self.bytes += bytes;
            self.used.push_back(Window {
                file: weak,
                bytes,
                requested: self.requests,
            });
        }
    }

    fn share(&self) -> u64 {
        (WINDOWS_BYTES_MAX / (self.used.len() as u64 + 1)).clamp(WINDOW_MIN, WINDOW_MAX)
    }

    fn make_room(&mut self, wanted: u64) -> bool {
        while self.bytes + wanted > WINDOWS_BYTES_MAX {
            let Some(oldest) = self.used.front() else {
                return true;
            };
            if let Some(file) = oldest.file.upgrade() {
                // Asked for within the last rounds: taking it away would only move the faults.
                if self.requests - oldest.requested < 4 * self.used.len() as u64 {
                    return false;
                }
                file.release_window();
            }
            self.remove(0);
        }
        true
    }

    fn remove(&mut self, slot: usize) {
        if let Some(window) = self.used.remove(slot) {
            self.bytes -= window.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    #[test]
    fn windows_stay_within_their_budget_and_quiet_ones_make_room() {
        let disk = Disk::for_tests();
        let files: Vec<_> = (0..400)
            .map(|_| {
                let file = Arc::new(tempfile::tempfile().unwrap());
                Arc::new(AppendFile::new(file, 0, 4 << 20, Arc::clone(&disk)).unwrap())
            })
            .collect();
        let mut windows = Windows::default();
        for round in 0..3 {
            for file in &files {
                for _ in 0..70 {
                    file.append([&[round; 61], &[round; 100]], 65_536).unwrap();
                }
                windows.prepare(file);
                assert!(windows.bytes <= WINDOWS_BYTES_MAX + WINDOW_MAX);
            }
        }
        let last = &files[399];
        // The others fall silent: by and by they are the ones to make room.
        for _ in 0..2_000 {
            windows.prepare(last);
        }
        for _ in 0..70 {
            last.append([&[0; 61], &[0; 100]], 65_536).unwrap();
        }
        windows.prepare(last);
        let weak = Arc::downgrade(last);
        assert!(windows.used.iter().any(|window| window.file.ptr_eq(&weak)));
    }
}
