//! The Raft log and vote, as openraft wants them.
//!
//! The log that is not yet purged is in memory too: it is short (a snapshot ends it), it is read
//! right after it is written, to be applied and replicated, and a reader must never wait for the
//! disk. The disk is read once, when the store is opened.

mod store;
mod writer;

#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::RwLock;
use prost::bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::log_store::store::{Change, Store, seal_entry};
use crate::log_store::writer::{Done, Request};
use crate::quorum::OpenError;
use crate::types::{Entry, LogId, Types, Vote};

pub(crate) use store::{Owner, Recovered, store_path};

/// Most bytes of entries that are read for one message to a follower; one entry is read whatever
/// its size.
pub(crate) const READ_BYTES_MAX: usize = 1024 * 1024;

/// The log store, held by the Raft core, which is the only writer.
pub(crate) struct LogStore {
    state: Arc<RwLock<State>>,
    writer: Writer,
}

/// A reader of the log; any number of them.
#[derive(Clone)]
pub(crate) struct LogReader {
    state: Arc<RwLock<State>>,
}

/// Makes changes durable through the writer thread.
#[derive(Clone)]
pub(crate) struct Writer {
    requests: mpsc::Sender<Request>,
}

/// Completes when the store file is closed.
pub(crate) type Closed = oneshot::Receiver<()>;

/// Invariant: `entries` are consecutive and, once something was purged, begin right after it.
#[derive(Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: VecDeque<Stored>,
}

struct Stored {
    entry: Entry,
    /// Size on disk.
    bytes: usize,
}

impl LogStore {
    /// Opens or creates the store below `data_dir`. Blocks for the disk.
    pub(crate) fn open(
        data_dir: &Path,
        owner: &Owner,
    ) -> Result<(Self, Recovered, Closed), OpenError> {
        let (store, recovered) = Store::open(data_dir, owner)?;
        Self::start(store, recovered).map_err(|source| OpenError::Io {
            path: store_path(data_dir),
            source,
        })
    }

    fn start(store: Store, mut recovered: Recovered) -> io::Result<(Self, Recovered, Closed)> {
        let mut state = State {
            vote: recovered.vote,
            committed: recovered.committed,
            purged: recovered.purged,
            ..State::default()
        };
        for entry in recovered.entries.drain(..) {
            let bytes = seal_entry(&entry).len();
            state.push(entry, bytes);
        }
        let state = Arc::new(RwLock::new(state));
        let (requests, closed) = writer::start(store, Arc::clone(&state))?;
        Ok((
            Self {
                state,
                writer: Writer { requests },
            },
            recovered,
            closed,
        ))
    }

    /// A handle that can write snapshots.
    pub(crate) fn writer(&self) -> Writer {
        self.writer.clone()
    }
}

impl Writer {
    /// Keeps an encoded snapshot in place of the one before; durable on return.
    pub(crate) async fn save_snapshot(&self, snapshot: Bytes) -> io::Result<()> {
        self.write(Change::Snapshot(snapshot)).await
    }

    async fn write(&self, change: Change) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.send(change, Done::Wait(done)).await?;
        result.await.map_err(|_| stopped())?
    }

    async fn send(&self, change: Change, done: Done) -> io::Result<()> {
        self.requests
            .send(Request { change, done })
            .await
            .map_err(|_| stopped())
    }
}

fn stopped() -> io::Error {
    io::Error::other("the metadata log was closed after a failure to write it")
}

impl State {
    fn first(&self) -> u64 {
        self.entries
            .front()
            .map_or(0, |stored| stored.entry.log_id.index)
    }

    fn last(&self) -> Option<LogId> {
        self.entries
            .back()
            .map(|stored| stored.entry.log_id)
            .or(self.purged)
    }

    fn push(&mut self, entry: Entry, bytes: usize) {
        self.entries.push_back(Stored { entry, bytes });
    }

    fn truncate_from(&mut self, index: u64) {
        while self
            .entries
            .back()
            .is_some_and(|stored| stored.entry.log_id.index >= index)
        {
            self.entries.pop_back();
        }
    }

    fn purge_to(&mut self, id: LogId) {
        while self
            .entries
            .front()
            .is_some_and(|stored| stored.entry.log_id.index <= id.index)
        {
            self.entries.pop_front();
        }
        self.purged = Some(id);
    }

    fn read(&self, range: &impl RangeBounds<u64>) -> impl Iterator<Item = &Stored> {
        let first = self.first();
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => first,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let skip = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let count = usize::try_from(end.saturating_sub(start.max(first))).unwrap_or(usize::MAX);
        self.entries.iter().skip(skip).take(count)
    }
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        Ok(self
            .state
            .read()
            .read(&range)
            .map(|stored| stored.entry.clone())
            .collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state.read().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let state = self.state.read();
        let mut bytes = 0;
        let fits = |stored: &&Stored| {
            let first = bytes == 0;
            bytes += stored.bytes;
            first || bytes <= READ_BYTES_MAX
        };
        Ok(state
            .read(&(start..end))
            .take_while(fits)
            .map(|stored| stored.entry.clone())
            .collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.state.read();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last(),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            state: Arc::clone(&self.state),
        }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.writer.write(Change::Vote(*vote)).await?;
        self.state.write().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.state.write().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.state.read().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut sealed = Vec::new();
        {
            let mut state = self.state.write();
            for entry in entries {
                let index = entry.log_id.index;
                if let Some(last) = state.last()
                    && index != last.index + 1
                {
                    let reason = format!("entry {index} does not follow {}", last.index);
                    return Err(io::Error::other(reason));
                }
                let bytes = seal_entry(&entry);
                let size = bytes.len();
                sealed.push((index, bytes));
                state.push(entry, size);
            }
        }
        self.writer
            .send(Change::Append(sealed), Done::Append(flushed))
            .await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        self.state.write().truncate_from(from);
        self.writer.write(Change::TruncateFrom(from)).await
    }

    async fn purge(&mut self, id: LogId) -> io::Result<()> {
        self.state.write().purge_to(id);
        self.writer.write(Change::PurgeTo(id)).await
    }
}
