//! One connection: requests in, responses out in the same order.
//!
//! A single task owns both directions. It takes whole frames from its read buffer and begins each request; responses
//! that are ready at once are gathered and sent together when the buffer holds no further frame, so a pipelining client
//! costs one `send` for many requests. Requests wait for the one before them, as Kafka's do, except those the service
//! lets overlap (Produce): their order is fixed when they begin.
//!
//! **Limits.** The frame's size is checked before anything is sized by it; memory for a frame is taken from the node's
//! request memory before it is buffered, and is refused where it could take more than all of it; a frame that stops arriving, a peer that stops taking, and an idle connection
//! each have a deadline; at most [`OVERLAP_MAX`] requests are in flight.

use bytes::{BufMut, BytesMut};
use kafka_wire_core::DecodeLimits;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, SMALL_FRAME_LEN};
use super::frame::{self, FrameError, SIZE_LEN};
use super::send_plan::SendPlan;
use super::sendfile::Sender;
use super::{CloseReason, LaterReply, Peer, Reply, Request, Service};

/// Requests of one connection that may be in flight together.
const OVERLAP_MAX: usize = 64;

/// Encoded responses gathered before they are sent although more requests wait in the buffer.
const GATHER_BYTES_MAX: usize = 64 * 1024;

/// Read buffer that a connection keeps between large frames; a larger one is given back at once.
const KEPT_BUFFER_LEN_MAX: usize = 4 << 20;

/// Slowest arrival of a frame that holds request memory, bytes per second, after the time that any frame may pause: a
/// peer that trickles must not keep the memory from everyone else.
const FRAME_BYTES_PER_SECOND_MIN: usize = 1 << 20;

/// How a connection ended, where it was not its peer's wish.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The bytes are not Kafka requests.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer is gone, or a slice could not be sent.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The service gave the connection up.
    #[error("{0}")]
    Closed(CloseReason),
    /// A frame began and did not go on, or not fast enough for the memory it holds.
    #[error("a request stopped arriving, or all but stopped, after {0} bytes")]
    FrameDeadline(usize),
    /// Nothing was asked for `connections.max.idle.ms`.
    #[error("idle")]
    Idle,
}

/// Serves `stream` until its peer closes it, `shutdown` is set and nothing is in flight, or it goes wrong.
///
/// # Errors
/// See [`ConnectionError`].
pub async fn serve<S: Service>(
    stream: TcpStream,
    peer: Arc<Peer>,
    service: Arc<S>,
    sender: Sender,
    admission: Arc<Admission>,
    shutdown: CancellationToken,
) -> Result<(), ConnectionError> {
    let limits = admission.limits();
    let check_every = limits.progress_max.min(limits.idle_max);
    let connection = Connection {
        stream,
        peer,
        service,
        sender,
        buffer: BytesMut::new(),
        memory: None,
        in_flight: VecDeque::new(),
        in_flight_api: 0,
        out: SendPlan::default(),
        close: None,
        last_progress: Instant::now(),
        deadline_check: Box::pin(sleep(check_every)),
        decode_limits: frame::header_limits(limits.frame_bytes_max),
        admission,
    };
    connection.run(&shutdown).await
}

/// A response that waits for its turn.
enum InFlight {
    Ready(SendPlan),
    Later(LaterReply),
}

struct Connection<S> {
    stream: TcpStream,
    peer: Arc<Peer>,
    service: Arc<S>,
    sender: Sender,
    admission: Arc<Admission>,
    decode_limits: DecodeLimits,
    /// Bytes received and not yet taken; begins at a frame's size field.
    buffer: BytesMut,
    /// Request memory taken for the frame at the front of the buffer, and when that must have arrived.
    memory: Option<(OwnedSemaphorePermit, Instant)>,
    /// Requests begun and not answered, oldest first.
    in_flight: VecDeque<InFlight>,
    /// API key of the requests in flight; all are of one.
    in_flight_api: i16,
    /// Responses whose turn has come.
    out: SendPlan,
    /// Set once the connection shall end after what is in flight.
    close: Option<CloseReason>,
    last_progress: Instant,
    deadline_check: Pin<Box<Sleep>>,
}

/// What a wait ended with.
enum Woken {
    Received(usize),
    Answered(Result<SendPlan, CloseReason>),
    CheckDeadlines,
    ShutDown,
}

impl<S: Service> Connection<S> {
    async fn run(mut self, shutdown: &CancellationToken) -> Result<(), ConnectionError> {
        loop {
            let wants_memory = self.begin_requests(shutdown.is_cancelled())?;
            self.gather_ready();
            if !self.out.is_empty() {
                self.sender.send(&self.stream, &mut self.out).await?;
                self.last_progress = Instant::now();
                continue;
            }
            if self.in_flight.is_empty() {
                if let Some(reason) = self.close.take() {
                    return Err(ConnectionError::Closed(reason));
                }
                if shutdown.is_cancelled() {
                    return Ok(());
                }
            }
            if let Some(bytes) = wants_memory {
                self.take_memory(bytes).await?;
                continue;
            }
            match self.wait(shutdown).await? {
                Woken::Received(0) => return Ok(()),
                Woken::Received(_) => self.last_progress = Instant::now(),
                Woken::Answered(Ok(plan)) => {
                    self.in_flight.pop_front();
                    self.out.append(plan);
                }
                Woken::Answered(Err(reason)) => return Err(ConnectionError::Closed(reason)),
                Woken::CheckDeadlines => self.check_deadlines()?,
                Woken::ShutDown => {}
            }
        }
    }

    /// Begins every request that is whole and whose turn it is. Returns the memory that the next one waits for, if any.
    fn begin_requests(&mut self, shutting_down: bool) -> Result<Option<usize>, ConnectionError> {
        while self.close.is_none()
            && !shutting_down
            && self.out.len() < GATHER_BYTES_MAX
            && !self.out.has_slices()
        {
            let Some((size, api_key)) = self.next_frame()? else {
                return Ok(None);
            };
            if !self.may_begin(api_key) {
                return Ok(None);
            }
            let memory = self.service.memory_for(api_key, size);
            if memory > self.admission.request_memory_max() {
                self.close = Some(CloseReason(format!(
                    "a request of {size} bytes may take {memory}, more than queued.max.request.bytes"
                )));
                return Ok(None);
            }
            if memory > SMALL_FRAME_LEN && self.memory.is_none() {
                return Ok(Some(memory));
            }
            if self.buffer.len() < SIZE_LEN + size {
                return Ok(None);
            }
            self.begin(size)?;
        }
        Ok(None)
    }

    /// Size and API key of the frame at the front, once both are known.
    fn next_frame(&self) -> Result<Option<(usize, i16)>, FrameError> {
        let limit = self.admission.limits().frame_bytes_max;
        let size = frame::peek_size(&self.buffer, limit)?;
        let key = self.buffer.get(SIZE_LEN..SIZE_LEN + 2);
        Ok(size
            .zip(key)
            .map(|(size, key)| (size, i16::from_be_bytes([key[0], key[1]]))))
    }

    fn may_begin(&self, api_key: i16) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight_api == api_key
                && self.in_flight.len() < OVERLAP_MAX
                && self.service.may_overlap(&self.peer, api_key))
    }

    fn begin(&mut self, size: usize) -> Result<(), ConnectionError> {
        self.sender.received(SIZE_LEN + size);
        let frame = frame::take(&mut self.buffer, size);
        let flexible = |key, version| self.service.is_flexible(key, version);
        let (header, body) = frame::split_request(frame, self.decode_limits, flexible)?;
        let api_key = header.api_key;
        let request = Request {
            header,
            body,
            frame_len: size,
            memory: self.memory.take().map(|(permit, _)| permit),
        };
        let reply = self.service.call(&self.peer, request);
        match reply {
            Reply::None => {}
            Reply::Ready(plan) if self.in_flight.is_empty() => self.out.append(plan),
            Reply::Ready(plan) => self.in_flight.push_back(InFlight::Ready(plan)),
            Reply::Later(later) => {
                self.in_flight_api = api_key;
                self.in_flight.push_back(InFlight::Later(later));
            }
            Reply::Close(reason) => self.close = Some(reason),
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER_LEN_MAX {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// Moves responses whose turn has come to `out`.
    fn gather_ready(&mut self) {
        while let Some(InFlight::Ready(_)) = self.in_flight.front() {
            if let Some(InFlight::Ready(plan)) = self.in_flight.pop_front() {
                self.out.append(plan);
            }
        }
    }

    /// Waits for the node to have memory for the frame at the front, no longer than a frame may take to arrive.
    async fn take_memory(&mut self, bytes: usize) -> Result<(), ConnectionError> {
        let frame_len = self.next_frame()?.map_or(0, |(size, _)| size);
        let deadline = self.admission.limits().progress_max;
        let permit = tokio::time::timeout(deadline, self.admission.request_memory(bytes)).await;
        match permit {
            Ok(Some(permit)) => {
                self.last_progress = Instant::now();
                let arrival_max =
                    deadline + Duration::from_secs((frame_len / FRAME_BYTES_PER_SECOND_MIN) as u64);
                self.memory = Some((permit, self.last_progress + arrival_max));
                Ok(())
            }
            Ok(None) | Err(_) => Err(ConnectionError::Closed(CloseReason(format!(
                "no request memory for {bytes} bytes within {deadline:?} (queued.max.request.bytes)"
            )))),
        }
    }

    async fn wait(&mut self, shutdown: &CancellationToken) -> Result<Woken, ConnectionError> {
        let wants = self.bytes_wanted()?;
        let Self {
            stream,
            buffer,
            in_flight,
            deadline_check,
            ..
        } = self;
        let may_read = wants > 0 && self.close.is_none() && !shutdown.is_cancelled();
        let woken = tokio::select! {
            biased;
            answer = poll_front(in_flight), if !in_flight.is_empty() => Woken::Answered(answer),
            received = receive(stream, buffer, wants), if may_read => Woken::Received(received?),
            () = deadline_check.as_mut() => Woken::CheckDeadlines,
            () = shutdown.cancelled(), if !shutdown.is_cancelled() => Woken::ShutDown,
        };
        Ok(woken)
    }

    /// How much to read next; 0 while the frame at the front must wait for its turn.
    fn bytes_wanted(&self) -> Result<usize, FrameError> {
        Ok(match self.next_frame()? {
            None => SMALL_FRAME_LEN,
            Some((size, api_key)) if self.may_begin(api_key) => {
                // Of a large frame only its rest is read, so that the next frame's bytes need not be moved.
                (SIZE_LEN + size)
                    .saturating_sub(self.buffer.len())
                    .max(usize::from(size < SMALL_FRAME_LEN))
            }
            Some(_) => 0,
        })
    }

    fn check_deadlines(&mut self) -> Result<(), ConnectionError> {
        let limits = self.admission.limits();
        let quiet = self.last_progress.elapsed();
        let check_every = limits.progress_max.min(limits.idle_max);
        if matches!(self.memory, Some((_, due)) if Instant::now() >= due) {
            return Err(ConnectionError::FrameDeadline(self.buffer.len()));
        }
        if self.in_flight.is_empty() {
            if !self.buffer.is_empty() && quiet >= limits.progress_max {
                return Err(ConnectionError::FrameDeadline(self.buffer.len()));
            }
            if quiet >= limits.idle_max {
                return Err(ConnectionError::Idle);
            }
            if self.buffer.is_empty() {
                // An idle connection holds no memory: with many of them, buffers would be most of the node.
                self.buffer = BytesMut::new();
            }
        }
        self.deadline_check
            .as_mut()
            .reset(Instant::now() + check_every);
        Ok(())
    }
}

/// Completes when the oldest request in flight does. The queue must not be empty.
async fn poll_front(in_flight: &mut VecDeque<InFlight>) -> Result<SendPlan, CloseReason> {
    poll_fn(|cx| match in_flight.front_mut() {
        Some(InFlight::Later(later)) => later.as_mut().poll(cx),
        // `gather_ready` has taken every ready response at the front before a wait.
        Some(InFlight::Ready(_)) | None => std::task::Poll::Pending,
    })
    .await
}

/// Reads at most `wants` bytes behind those in `buffer`; 0 means that the peer has closed its side.
///
/// The buffer is made ready only when there is something to read: a connection that waits holds no memory.
async fn receive(stream: &mut TcpStream, buffer: &mut BytesMut, wants: usize) -> io::Result<usize> {
    stream.readable().await?;
    buffer.reserve(wants);
    // Takes a short read for what it is, the end of what has arrived: no second recv(2) to hear EAGAIN.
    stream.read_buf(&mut buffer.limit(wants)).await
}

#[cfg(test)]
mod tests;
