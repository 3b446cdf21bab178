//! Accepts connections and gives each a task.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::admission::Admission;
use super::connection::{self, ConnectionError};
use super::sendfile::Sender;
use super::{Peer, Service};

/// Pause after `accept` failed for want of something (file descriptors, memory) that only time brings back.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// One listening socket of the node.
pub struct Listener<S> {
    /// The bound socket.
    pub socket: TcpListener,
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What answers requests.
    pub service: Arc<S>,
    /// What sends responses.
    pub sender: Sender,
    /// What connections and requests share.
    pub admission: Arc<Admission>,
}

impl<S: Service> Listener<S> {
    /// Accepts until `shutdown` is set; connections run in `tasks` and end by themselves after it.
    pub async fn run(self, tasks: TaskTracker, shutdown: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, address)) => self.admit(stream, address, &tasks, &shutdown),
                Err(error) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection ended before it began")
                }
                Err(error) => {
                    warn!(%error, listener = %self.name, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn admit(
        &self,
        stream: tokio::net::TcpStream,
        address: SocketAddr,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let ticket = match self.admission.connect(address.ip()) {
            Ok(ticket) => ticket,
            Err(limit) => {
                info!(%address, ?limit, "connection refused at its limit");
                return;
            }
        };
        // Responses are written whole; Nagle's delay would only hold back their last packet.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%address, %error, "a connection ended before it began");
            return;
        }
        let peer = Arc::new(Peer {
            address,
            listener: Arc::clone(&self.name),
        });
        let serving = connection::serve(
            stream,
            peer,
            Arc::clone(&self.service),
            self.sender.clone(),
            Arc::clone(&self.admission),
            shutdown.clone(),
        );
        tasks.spawn(async move {
            match serving.await {
                Ok(()) | Err(ConnectionError::Idle) => debug!(%address, "connection closed"),
                Err(ConnectionError::Io(error)) => debug!(%address, %error, "connection lost"),
                Err(error) => info!(%address, %error, "connection closed"),
            }
            drop(ticket);
        });
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
