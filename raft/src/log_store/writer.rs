//! The thread that writes the store: everything that has piled up while the disk was busy becomes
//! one transaction and one wait for the disk (group commit).

use std::io;
use std::sync::Arc;
use std::thread;

use openraft::storage::IOFlushed;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use crate::log_store::State;
use crate::log_store::store::{Change, Store};
use crate::types::Types;

/// Requests that may wait for the disk; senders beyond it wait for the queue.
const QUEUE: usize = 1024;

/// A change and who waits for it.
pub(super) struct Request {
    pub(super) change: Change,
    pub(super) done: Done,
}

pub(super) enum Done {
    Append(IOFlushed<Types>),
    Wait(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn complete(self, result: io::Result<()>) {
        match self {
            Self::Append(flushed) => flushed.io_completed(result),
            // Whoever asked may have gone away; the change is durable all the same.
            Self::Wait(waiter) => drop(waiter.send(result)),
        }
    }
}

/// Starts the thread. It ends when the last sender is gone, and closes the second channel after it
/// has closed the store.
pub(super) fn start(
    store: Store,
    state: Arc<RwLock<State>>,
) -> io::Result<(mpsc::Sender<Request>, oneshot::Receiver<()>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (closed, on_closed) = oneshot::channel::<()>();
    thread::Builder::new()
        .name("metadata-log".into())
        .spawn(move || {
            run(&store, &state, receiver);
            drop(store);
            drop(closed);
        })?;
    Ok((sender, on_closed))
}

fn run(store: &Store, state: &RwLock<State>, mut receiver: mpsc::Receiver<Request>) {
    let mut committed_written = state.read().committed;
    let mut requests = Vec::new();
    while receiver.blocking_recv_many(&mut requests, QUEUE) > 0 {
        let mut changes = Vec::with_capacity(requests.len() + 1);
        let mut waiting = Vec::with_capacity(requests.len());
        for request in requests.drain(..) {
            changes.push(request.change);
            waiting.push(request.done);
        }
        // The commit point is only a hint of how far to apply at the next start, not worth a write
        // of its own. It may be ahead of what the queue has brought here: that waits its turn,
        // because a start cannot apply entries it does not have.
        let committed = state.read().committed;
        let last = changes.iter().rev().find_map(last_appended);
        if committed != committed_written
            && let Some(id) = committed
            && last.is_some_and(|last| id.index <= last)
        {
            changes.push(Change::Committed(id));
            committed_written = committed;
        }
        let result = store.commit(&changes);
        if let Err(error) = &result {
            tracing::error!(%error, "the metadata log cannot be written");
        }
        for done in waiting {
            done.complete(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
        if result.is_err() {
            // What the disk holds now is unknown; nothing may be acknowledged on top of it.
            return;
        }
    }
}

fn last_appended(change: &Change) -> Option<u64> {
    match change {
        Change::Append(entries) => entries.last().map(|(index, _)| *index),
        _ => None,
    }
}
