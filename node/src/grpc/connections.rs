//! The connections of the gRPC listener: so many at once of each kind ([`Places`]), and none that stays silent.
//!
//! HTTP/2 pings keep a living client's connection from being silent ([`super::KEEPALIVE`]); what is closed here has
//! vanished, never spoke HTTP/2, which pings alone would not find out, or never asked anything.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tracing::warn;

use super::places::{Place, Places};

/// Pause after `accept` failed for want of something that only time brings back.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a connection that was refused a place stays, so that its client reads why.
const GOODBYE: Duration = Duration::from_millis(200);

/// How long a connection may keep quiet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until its first request.
    pub(super) first_request: Duration,
    /// Between any two things that come in, after that.
    pub(super) silence: Duration,
}

/// Accepts until `shutdown`; a connection is closed when its patience ends.
pub(super) fn accept(
    socket: TcpListener,
    patience: Patience,
    shutdown: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, incoming) = mpsc::channel(1);
    tokio::spawn(async move {
        let places = Places::new();
        loop {
            let connection = tokio::select! {
                connection = accept_one(&socket, &places, patience) => connection,
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
    places: &Places,
    patience: Patience,
) -> io::Result<Connection> {
    let place = places.arrive().await.map_err(io::Error::other)?;
    let (stream, _) = socket.accept().await?;
    stream.set_nodelay(true)?;
    Ok(Connection {
        stream,
        silence_max: patience.silence,
        last_read: Instant::now(),
        deadline: Box::pin(sleep(patience.first_request)),
        refused: Some(Box::pin(place.refused())),
        place,
    })
}

/// A connection that fails with `TimedOut` when its patience has ended.
pub(super) struct Connection {
    stream: TcpStream,
    silence_max: Duration,
    last_read: Instant,
    /// When to look whether it has been silent for too long.
    deadline: Pin<Box<Sleep>>,
    /// Completes when it was refused; none from then on.
    refused: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    place: Arc<Place>,
}

impl Connection {
    /// Ready when the connection has to go.
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(refused) = &mut self.refused
            && refused.as_mut().poll(context).is_ready()
        {
            self.refused = None;
            self.deadline.as_mut().reset(Instant::now() + GOODBYE);
        }
        loop {
            ready!(self.deadline.as_mut().poll(context));
            let until = self.last_read + self.silence_max;
            if !self.place.has_asked() || until <= Instant::now() {
                return Poll::Ready(());
            }
            self.deadline.as_mut().reset(until);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Place>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.place)
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
            self.last_read = Instant::now();
            return read;
        }
        ready!(self.poll_ended(context));
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
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    use crate::grpc::places::{Peer, UNASKED_MAX, of};

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    async fn listening() -> (TcpListener, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    /// One connection: the client's end, and the server's.
    async fn connected(patience: Patience) -> (TcpStream, Connection) {
        let (socket, address) = listening().await;
        let mut incoming = accept(socket, patience, CancellationToken::new());
        let client = TcpStream::connect(address).await.unwrap();
        (client, incoming.next().await.unwrap().unwrap())
    }

    /// What a request of this peer does to a connection's place.
    fn ask(connection: &Connection, peer: Peer) {
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(connection.connect_info());
        of(peer)(request).unwrap();
    }

    #[tokio::test]
    async fn a_silent_connection_is_given_up_and_a_speaking_one_is_not() {
        let patience = Patience {
            first_request: SHORT,
            silence: SHORT,
        };
        let (mut client, mut connection) = connected(patience).await;
        client.write_all(b"x").await.unwrap();
        ask(&connection, Peer::Operator);
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        let silent = connection.read_u8().await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_asks_nothing_is_given_up_whatever_it_says() {
        let patience = Patience {
            first_request: SHORT,
            silence: LONG,
        };
        let (mut client, mut connection) = connected(patience).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        let quiet = connection.read_u8().await.unwrap_err();
        assert_eq!(quiet.kind(), io::ErrorKind::TimedOut);

        let (mut client, mut connection) = connected(patience).await;
        ask(&connection, Peer::Node);
        let write_later = async {
            sleep(2 * SHORT).await;
            client.write_all(b"x").await.unwrap();
        };
        let (read, ()) = tokio::join!(connection.read_u8(), write_later);
        assert_eq!(read.unwrap(), b'x', "it has asked, and may take its time");
    }

    #[tokio::test]
    async fn connections_that_have_not_asked_yet_wait_for_each_other() {
        let (socket, address) = listening().await;
        let patience = Patience {
            first_request: LONG,
            silence: LONG,
        };
        let mut incoming = accept(socket, patience, CancellationToken::new());
        let mut clients = Vec::new();
        let mut connections = Vec::new();
        for _ in 0..UNASKED_MAX {
            clients.push(TcpStream::connect(address).await.unwrap());
            connections.push(incoming.next().await.unwrap().unwrap());
        }
        clients.push(TcpStream::connect(address).await.unwrap());
        let next = incoming.next();
        tokio::pin!(next);
        let poll = std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context)));
        assert!(poll.await.is_pending());
        ask(&connections[0], Peer::Node);
        assert!(next.await.is_some());
    }
}
