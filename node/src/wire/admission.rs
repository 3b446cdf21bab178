//! What a node lets in: how many connections, from how many per address, and how much request memory in all.
//!
//! Every limit is finite by default. A request is admitted *before* its bytes are buffered, by what it may cost: its
//! frame, and for requests that decode into many small structs a multiple of it.

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes in one permit of the request memory semaphore: it counts in `u32`, memory in more.
const PERMIT_BYTES: usize = 1024;

/// Frames up to this size need no admission: the connection's own read buffer holds them, so that the connection cap
/// bounds them.
pub const SMALL_FRAME_LEN: usize = 16 * 1024;

/// The limits of one listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest request frame (`socket.request.max.bytes`).
    pub frame_bytes_max: usize,
    /// Memory that requests may hold together (`queued.max.request.bytes`).
    pub request_memory_bytes: usize,
    /// Connections at once (`max.connections`).
    pub connections_max: usize,
    /// Connections at once from one address (`max.connections.per.ip`).
    pub connections_per_address_max: usize,
    /// A connection without a request for this long is closed (`connections.max.idle.ms`).
    pub idle_max: Duration,
    /// A frame that has begun must be complete, and a response taken, within this time since the last byte moved.
    pub progress_max: Duration,
}

/// Admission control, shared by the connections of a node.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    accepted: Counter,
    refused: Counter,
    memory: Arc<Semaphore>,
    memory_permits: u32,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    total: usize,
    per_address: HashMap<IpAddr, usize>,
}

/// Why a connection was not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectionRefused {
    /// `max.connections` is reached.
    Total,
    /// `max.connections.per.ip` is reached for this address.
    PerAddress,
}

impl Admission {
    /// Admission under `limits`, with nothing admitted yet, that counts the connections it accepts and refuses.
    pub fn new(limits: Limits, accepted: Counter, refused: Counter) -> Arc<Self> {
        let permits =
            permits_for(limits.request_memory_bytes).max(permits_for(limits.frame_bytes_max));
        Arc::new(Self {
            memory: Arc::new(Semaphore::new(permits as usize)),
            memory_permits: permits,
            connections: Mutex::default(),
            accepted,
            refused,
            limits,
        })
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// All the request memory there is, bytes. A request that may take more is never admitted.
    pub fn request_memory_max(&self) -> usize {
        self.memory_permits as usize * PERMIT_BYTES
    }

    /// Waits until `bytes` of request memory are free and takes them; more than there is counts as all of it.
    pub async fn request_memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = permits_for(bytes).min(self.memory_permits);
        // The semaphore is never closed, so this waits for ever rather than failing; callers bound the wait.
        Arc::clone(&self.memory)
            .acquire_many_owned(permits)
            .await
            .ok()
    }

    /// Bytes of request memory in use.
    pub fn request_memory_used(&self) -> usize {
        (self.memory_permits as usize).saturating_sub(self.memory.available_permits())
            * PERMIT_BYTES
    }

    /// Connections that are in.
    pub fn connections(&self) -> usize {
        self.connections.lock().total
    }

    /// Counts a connection in, until the ticket is dropped.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn connect(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> Result<ConnectionTicket, ConnectionRefused> {
        let admitted = self.count_in(address);
        match admitted {
            Ok(()) => self.accepted.inc(),
            Err(_) => self.refused.inc(),
        };
        admitted.map(|()| ConnectionTicket {
            admission: Arc::clone(self),
            address,
        })
    }

    fn count_in(&self, address: IpAddr) -> Result<(), ConnectionRefused> {
        let mut connections = self.connections.lock();
        if connections.total >= self.limits.connections_max {
            return Err(ConnectionRefused::Total);
        }
        let from_address = connections
            .per_address
            .get(&address)
            .copied()
            .unwrap_or_default();
        if from_address >= self.limits.connections_per_address_max {
            return Err(ConnectionRefused::PerAddress);
        }
        connections.per_address.insert(address, from_address + 1);
        connections.total += 1;
        Ok(())
    }
}

fn permits_for(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
}

/// A connection that was let in; dropping it lets the next one in.
#[derive(Debug)]
pub struct ConnectionTicket {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for ConnectionTicket {
    fn drop(&mut self) {
        let mut connections = self.admission.connections.lock();
        connections.total -= 1;
        if let Some(count) = connections.per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                connections.per_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            frame_bytes_max: 64 * 1024,
            request_memory_bytes: 128 * 1024,
            connections_max: 3,
            connections_per_address_max: 2,
            idle_max: Duration::from_secs(1),
            progress_max: Duration::from_secs(1),
        }
    }

    #[test]
    fn connections_are_capped_in_all_and_per_address_and_come_back() {
        let admission = Admission::new(limits(), Counter::default(), Counter::default());
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let first = admission.connect(a).unwrap();
        let _second = admission.connect(a).unwrap();
        assert_eq!(
            admission.connect(a).unwrap_err(),
            ConnectionRefused::PerAddress
        );
        let _third = admission.connect(b).unwrap();
        assert_eq!(admission.connect(b).unwrap_err(), ConnectionRefused::Total);
        drop(first);
        assert!(admission.connect(a).is_ok());
    }

    #[tokio::test]
    async fn request_memory_is_finite_and_a_request_over_it_runs_alone() {
        let admission = Admission::new(limits(), Counter::default(), Counter::default());
        let whole = admission.request_memory(usize::MAX).await.unwrap();
        assert_eq!(admission.request_memory_used(), 128 * 1024);
        let waiting = admission.request_memory(1);
        tokio::pin!(waiting);
        assert!(futures_poll_once(&mut waiting).is_pending());
        drop(whole);
        assert!(waiting.await.is_some());
    }

    fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
        std::pin::Pin::new(future)
            .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
