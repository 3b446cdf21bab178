//! The connections of the gRPC listener: so many at once, and none that stays silent.
//!
//! HTTP/2 pings keep a living client's connection from being silent ([`super::KEEPALIVE`]); what is closed here has
//! vanished, or never spoke HTTP/2, which pings alone would not find out.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::warn;

/// Every node has a few, administrators and their tools a handful; further connections wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 256;
/// Pause after `accept` failed for want of something that only time brings back.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Accepts until `shutdown`; a connection is closed when nothing comes in for `silence_max`.
pub(super) fn accept(
    socket: TcpListener,
    silence_max: Duration,
    shutdown: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, incoming) = mpsc::channel(1);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let connection = tokio::select! {
                connection = accept_one(&socket, &permits, silence_max) => connection,
                () = shutdown.cancelled() => return,
            };
            match connection {
                Ok(connection) => {
                    if accepted.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot accept gRPC connections; trying again");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    });
    ReceiverStream::new(incoming)
}

async fn accept_one(
    socket: &TcpListener,
    permits: &Arc<Semaphore>,
    silence_max: Duration,
) -> io::Result<Connection> {
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = socket.accept().await?;
    stream.set_nodelay(true)?;
    Ok(Connection {
        stream,
        silence_max,
        silent_until: Box::pin(sleep(silence_max)),
        _permit: permit,
    })
}

/// A connection that fails with `TimedOut` after a silence.
pub(super) struct Connection {
    stream: TcpStream,
    silence_max: Duration,
    silent_until: Pin<Box<Sleep>>,
    /// Lets the next one in when dropped.
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Option<SocketAddr>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.peer_addr().ok()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            let until = Instant::now() + self.silence_max;
            self.silent_until.as_mut().reset(until);
            return read;
        }
        ready!(self.silent_until.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    async fn listening() -> (TcpListener, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn a_silent_connection_is_given_up_and_a_speaking_one_is_not() {
        let (socket, address) = listening().await;
        let shutdown = CancellationToken::new();
        let mut incoming = accept(socket, Duration::from_millis(20), shutdown.clone());
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let mut connection = incoming.next().await.unwrap().unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        let silent = connection.read_u8().await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        shutdown.cancel();
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_one_to_end() {
        let (socket, address) = listening().await;
        let shutdown = CancellationToken::new();
        let mut incoming = accept(socket, Duration::from_secs(60), shutdown.clone());
        let mut clients = Vec::new();
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            clients.push(TcpStream::connect(address).await.unwrap());
            connections.push(incoming.next().await.unwrap().unwrap());
        }
        clients.push(TcpStream::connect(address).await.unwrap());
        let next = incoming.next();
        tokio::pin!(next);
        let poll = std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context)));
        assert!(poll.await.is_pending());
        connections.pop();
        assert!(next.await.is_some());
        shutdown.cancel();
    }
}
