//! The Kafka listener: connections, frames, admission, and the fetch channel's `sendfile`.
//!
//! This module knows bytes and their order, not what any API means: a [`Service`] answers requests. It owns the only
//! unsafe code of the crate, one system call in [`sendfile`].

pub mod admission;
mod cold_lane;
pub mod connection;
pub mod frame;
pub mod listener;
pub mod send_plan;
#[allow(unsafe_code)]
pub mod sendfile;

use bytes::Bytes;
use frame::RequestHeader;
use send_plan::SendPlan;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// Name of the listener it came in by.
    pub listener: Arc<str>,
}

/// One request, whole and admitted.
#[derive(Debug)]
pub struct Request {
    /// Its header.
    pub header: RequestHeader,
    /// Its body; shares the memory of the frame.
    pub body: Bytes,
    /// Bytes of the frame.
    pub frame_len: usize,
    /// Request memory taken for it; dropping this gives it back.
    pub memory: Option<OwnedSemaphorePermit>,
}

/// A response that is still being worked out.
pub type LaterReply = Pin<Box<dyn Future<Output = Result<SendPlan, CloseReason>> + Send>>;

/// What comes of a request.
pub enum Reply {
    /// Nothing is sent (Produce with acks=0).
    None,
    /// The response.
    Ready(SendPlan),
    /// The response, later. It is sent in its turn: responses go out in the order of their requests.
    Later(LaterReply),
    /// The connection is closed, after the responses before this one.
    Close(CloseReason),
}

/// Why a connection is closed from our side.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CloseReason(pub String);

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Whether requests of this API and version have tagged fields in their header.
    fn is_flexible(&self, api_key: i16, api_version: i16) -> bool;

    /// Memory that a frame of `frame_len` bytes may take until it is answered.
    fn memory_for(&self, api_key: i16, frame_len: usize) -> usize;

    /// Whether such a request may begin before the one in front of it on its connection, of the same API, is answered.
    fn may_overlap(&self, peer: &Peer, api_key: i16) -> bool;

    /// Begins to answer a request. What must happen in request order has happened when this returns.
    fn call(&self, peer: &Arc<Peer>, request: Request) -> Reply;
}
