use super::*;
use crate::wire::admission::Limits;
use crate::wire::sendfile::WireCounters;
use kafka_wire_core::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const OVERLAPPING: i16 = 0;
const WAITING: i16 = 1;
const SILENT: i16 = 2;
const CLOSING: i16 = 3;
/// Takes a hundred times its bytes.
const EXPANDING: i16 = 4;

/// Echoes the correlation id; requests of [`WAITING`] and [`OVERLAPPING`] with a body wait to be let go.
#[derive(Default)]
struct Echo {
    held: Mutex<Vec<oneshot::Sender<()>>>,
}

fn echo(correlation_id: i32) -> SendPlan {
    let mut plan = SendPlan::default();
    plan.push_bytes(BytesMut::from(&correlation_id.to_be_bytes()[..]));
    plan
}

impl Service for Echo {
    fn is_flexible(&self, _: i16, _: i16) -> bool {
        false
    }

    fn memory_for(&self, api_key: i16, frame_len: usize) -> usize {
        match api_key {
            EXPANDING => frame_len * 100,
            _ => frame_len,
        }
    }

    fn may_overlap(&self, _peer: &Peer, api_key: i16) -> bool {
        api_key == OVERLAPPING
    }

    fn call(&self, _: &Arc<Peer>, request: Request) -> Reply {
        let id = request.header.correlation_id;
        match request.header.api_key {
            SILENT => Reply::None,
            CLOSING => Reply::Close(CloseReason("asked to".into())),
            WAITING | OVERLAPPING if !request.body.is_empty() => {
                let (let_go, held) = oneshot::channel();
                self.held.lock().push(let_go);
                Reply::Later(Box::pin(async move {
                    held.await.map_err(|_| CloseReason("dropped".into()))?;
                    Ok(echo(id))
                }))
            }
            _ => Reply::Ready(echo(id)),
        }
    }
}

struct Fixture {
    client: TcpStream,
    service: Arc<Echo>,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), ConnectionError>>,
}

async fn connect(limits: Limits) -> Fixture {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(socket.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, address) = socket.accept().await.unwrap();
    let service = Arc::new(Echo::default());
    let shutdown = CancellationToken::new();
    let sender = Sender::new(WireCounters::default(), limits.progress_max, 1).unwrap();
    let peer = Arc::new(Peer {
        address,
        listener: "TEST".into(),
    });
    let serving = serve(
        stream,
        peer,
        Arc::clone(&service),
        sender,
        Admission::new(limits, Counter::default(), Counter::default()),
        shutdown.clone(),
    );
    Fixture {
        client,
        service,
        shutdown,
        served: tokio::spawn(serving),
    }
}

fn limits() -> Limits {
    Limits {
        frame_bytes_max: 1 << 20,
        request_memory_bytes: 1 << 20,
        connections_max: 10,
        connections_per_address_max: 10,
        idle_max: Duration::from_secs(600),
        progress_max: Duration::from_secs(600),
    }
}

fn request(api_key: i16, correlation_id: i32, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i32(10 + body.len() as i32);
    bytes.put_i16(api_key);
    bytes.put_i16(0);
    bytes.put_i32(correlation_id);
    bytes.put_i16(-1);
    bytes.put_slice(body);
    bytes.freeze()
}

async fn until_held(service: &Echo, count: usize) {
    while service.held.lock().len() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn responses_come_in_request_order_although_later_ones_are_ready_first() {
    let mut fixture = connect(limits()).await;
    let mut requests = BytesMut::new();
    requests.extend_from_slice(&request(OVERLAPPING, 1, b"wait"));
    requests.extend_from_slice(&request(OVERLAPPING, 2, b"wait"));
    requests.extend_from_slice(&request(OVERLAPPING, 3, b""));
    fixture.client.write_all(&requests).await.unwrap();
    until_held(&fixture.service, 2).await;
    let held = std::mem::take(&mut *fixture.service.held.lock());
    for let_go in held.into_iter().rev() {
        let_go.send(()).unwrap();
    }
    for expected in 1..=3 {
        assert_eq!(fixture.client.read_i32().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_request_waits_for_the_one_before_it() {
    let mut fixture = connect(limits()).await;
    let mut requests = BytesMut::new();
    requests.extend_from_slice(&request(WAITING, 1, b"wait"));
    requests.extend_from_slice(&request(WAITING, 2, b"wait"));
    fixture.client.write_all(&requests).await.unwrap();
    until_held(&fixture.service, 1).await;
    for expected in 1..=2 {
        until_held(&fixture.service, 1).await;
        let let_go = fixture.service.held.lock().pop().unwrap();
        assert!(fixture.service.held.lock().is_empty(), "only one is begun");
        let_go.send(()).unwrap();
        assert_eq!(fixture.client.read_i32().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_large_request_arrives_in_pieces_and_the_next_one_with_it() {
    let mut fixture = connect(limits()).await;
    let body = vec![7; 500_000];
    let mut requests = BytesMut::new();
    requests.extend_from_slice(&request(WAITING + 10, 1, &body));
    requests.extend_from_slice(&request(SILENT, 2, b""));
    requests.extend_from_slice(&request(WAITING + 10, 3, b"x"));
    for piece in requests.chunks(100_001) {
        fixture.client.write_all(piece).await.unwrap();
    }
    assert_eq!(fixture.client.read_i32().await.unwrap(), 1);
    assert_eq!(
        fixture.client.read_i32().await.unwrap(),
        3,
        "a silent request is not answered"
    );
}

#[tokio::test]
async fn what_is_no_request_closes_the_connection() {
    for (bytes, what) in [
        (vec![0xff; 8], "a negative size"),
        (vec![0; 8], "size zero"),
        (i32::MAX.to_be_bytes().to_vec(), "two gigabytes"),
        (request(CLOSING, 1, b"").to_vec(), "the service's wish"),
    ] {
        let mut fixture = connect(limits()).await;
        fixture.client.write_all(&bytes).await.unwrap();
        assert_eq!(fixture.client.read(&mut [0; 1]).await.unwrap(), 0, "{what}");
        assert!(fixture.served.await.unwrap().is_err(), "{what}");
    }
}

#[tokio::test]
async fn a_disconnect_drops_what_is_in_flight() {
    let mut fixture = connect(limits()).await;
    fixture
        .client
        .write_all(&request(WAITING, 1, b"wait"))
        .await
        .unwrap();
    until_held(&fixture.service, 1).await;
    drop(fixture.client);
    fixture.served.await.unwrap().unwrap();
    let let_go = fixture.service.held.lock().pop().unwrap();
    assert!(let_go.is_closed(), "nobody waits for the answer any more");
}

#[tokio::test]
async fn a_shutdown_answers_what_is_in_flight_first() {
    let mut fixture = connect(limits()).await;
    fixture
        .client
        .write_all(&request(WAITING, 1, b"wait"))
        .await
        .unwrap();
    until_held(&fixture.service, 1).await;
    fixture.shutdown.cancel();
    fixture.service.held.lock().pop().unwrap().send(()).unwrap();
    assert_eq!(fixture.client.read_i32().await.unwrap(), 1);
    fixture.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_frame_that_stops_arriving_and_an_idle_connection_have_deadlines() {
    let short = Limits {
        progress_max: Duration::from_millis(20),
        idle_max: Duration::from_millis(40),
        ..limits()
    };
    let mut fixture = connect(short.clone()).await;
    fixture
        .client
        .write_all(&request(WAITING, 1, b"")[..6])
        .await
        .unwrap();
    assert!(matches!(
        fixture.served.await.unwrap(),
        Err(ConnectionError::FrameDeadline(6))
    ));
    let fixture = connect(short).await;
    assert!(matches!(
        fixture.served.await.unwrap(),
        Err(ConnectionError::Idle)
    ));
}

#[tokio::test]
async fn a_frame_that_trickles_does_not_keep_its_memory() {
    let mut fixture = connect(Limits {
        progress_max: Duration::from_millis(100),
        ..limits()
    })
    .await;
    let frame = request(WAITING, 1, &[0; 100_000]);
    let mut bytes = frame.chunks(1);
    fixture
        .client
        .write_all(
            &bytes
                .by_ref()
                .take(6)
                .flatten()
                .copied()
                .collect::<Vec<_>>(),
        )
        .await
        .unwrap();
    let mut pace = tokio::time::interval(Duration::from_millis(1));
    let ended = loop {
        tokio::select! {
            ended = &mut fixture.served => break ended.unwrap(),
            _ = pace.tick() => {
                // The peer may have closed by now.
                let _ = fixture.client.write_all(bytes.next().expect("it goes on for 100 s")).await;
            }
        }
    };
    assert!(matches!(ended, Err(ConnectionError::FrameDeadline(_))));
}

#[tokio::test]
async fn a_request_that_could_take_more_than_all_memory_is_refused_by_its_size() {
    let mut fixture = connect(limits()).await;
    let claimed = request(EXPANDING, 1, &[0; 50_000]);
    fixture.client.write_all(&claimed[..6]).await.unwrap();
    assert!(matches!(
        fixture.served.await.unwrap(),
        Err(ConnectionError::Closed(_))
    ));
}
