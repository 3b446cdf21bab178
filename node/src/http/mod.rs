//! The HTTP listener: `/metrics`, `/livez`, `/readyz`.
//!
//! It answers whoever can connect, so everything is bounded: connections, what a request's head may
//! take in bytes and time, and how long a connection lives.

mod monitor;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub use monitor::Monitor;

/// Monitoring needs a handful; further connections wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;
/// A request's head must arrive within this, which also ends idle connections.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// A connection is closed when it is this old, whatever it does: nothing here takes long.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(300);
/// A request's head is at most this long.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Pause after `accept` failed for want of something that only time brings back.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the listener tells about the node.
pub trait Monitored: Send + Sync + 'static {
    /// Every metric, as of now, in the OpenMetrics text format.
    fn metrics(&self) -> String;

    /// Whether clients are served; else why not.
    fn ready(&self) -> Result<(), String>;
}

/// Serves until `shutdown`; connections run in `tasks`.
pub async fn serve(
    socket: TcpListener,
    node: Arc<dyn Monitored>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(node);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&socket, &permits) => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = connection(stream, router.clone(), shutdown.clone());
                tasks.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept HTTP connections; trying again");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn accept(
    socket: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = socket.accept().await?;
    Ok((stream, permit))
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let ended = tokio::select! {
        ended = timeout(CONNECTION_AGE_MAX, serving) => ended,
        () = shutdown.cancelled() => return,
    };
    if let Ok(Err(error)) = ended {
        debug!(%error, "HTTP connection lost");
    }
}

async fn metrics(State(node): State<Arc<dyn Monitored>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], node.metrics())
}

async fn ready(State(node): State<Arc<dyn Monitored>>) -> impl IntoResponse {
    match node.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    struct Node(Result<(), String>);

    impl Monitored for Node {
        fn metrics(&self) -> String {
            "x 1\n".into()
        }

        fn ready(&self) -> Result<(), String> {
            self.0.clone()
        }
    }

    async fn asked(node: Node, request: &str) -> String {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let serving = tokio::spawn(serve(
            socket,
            Arc::new(node),
            tasks.clone(),
            shutdown.clone(),
        ));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        shutdown.cancel();
        serving.await.unwrap();
        tasks.close();
        tasks.wait().await;
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn a_node_is_alive_before_it_is_ready() {
        let starting = || Node(Err("not registered".into()));
        assert!(
            asked(starting(), &get("/livez"))
                .await
                .starts_with("HTTP/1.1 200")
        );
        let answer = asked(starting(), &get("/readyz")).await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("not registered\n"),
            "{answer}"
        );
        assert!(
            asked(Node(Ok(())), &get("/readyz"))
                .await
                .starts_with("HTTP/1.1 200")
        );
    }

    #[tokio::test]
    async fn metrics_say_what_they_are() {
        let answer = asked(Node(Ok(())), &get("/metrics")).await;
        assert!(
            answer.contains(OPEN_METRICS) && answer.ends_with("x 1\n"),
            "{answer}"
        );
        assert!(
            asked(Node(Ok(())), &get("/other"))
                .await
                .starts_with("HTTP/1.1 404")
        );
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let head = format!(
            "GET / HTTP/1.1\r\nx: {}\r\n\r\n",
            "y".repeat(2 * HEAD_BYTES_MAX)
        );
        assert!(asked(Node(Ok(())), &head).await.starts_with("HTTP/1.1 431"));
    }
}
