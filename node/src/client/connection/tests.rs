//! A connection against brokers made of a few bytes.

use kafka_wire::MetadataRequest;
use kafka_wire_core::KafkaEncode as _;
use tokio::net::TcpListener;

use super::*;

/// Serves one connection: `answer(n, request frame)` gives the n-th answer's bytes after the
/// correlation id, or none to hang up.
async fn broker<F>(mut answer: F) -> String
where
    F: FnMut(usize, &[u8]) -> Option<Vec<u8>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for count in 0.. {
            let mut length = [0; 4];
            if stream.read_exact(&mut length).await.is_err() {
                return;
            }
            let mut request = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut request).await.unwrap();
            let Some(body) = answer(count, &request) else {
                return;
            };
            let mut frame = ((body.len() + 4) as u32).to_be_bytes().to_vec();
            frame.extend(&request[4..8]);
            frame.extend(body);
            // A client that has seen enough hangs up.
            let _ = stream.write_all(&frame).await;
        }
    });
    address
}

fn versions(version: i16, apis: &[(i16, i16, i16)]) -> Vec<u8> {
    let mut response = ApiVersionsResponse::default();
    response.api_keys = apis
        .iter()
        .map(|&(api_key, min_version, max_version)| {
            let mut api = kafka_wire::api_versions_response::ApiVersion::default();
            api.api_key = api_key;
            api.min_version = min_version;
            api.max_version = max_version;
            api
        })
        .collect();
    response
        .encode_to_bytes(ApiVersion::new(version))
        .unwrap()
        .to_vec()
}

fn api_version_of(request: &[u8]) -> i16 {
    i16::from_be_bytes([request[2], request[3]])
}

#[tokio::test]
async fn the_highest_common_version_is_used() {
    let address = broker(|count, request| match count {
        0 => Some(versions(3, &[(3, 0, 8), (18, 0, 3)])),
        _ => {
            assert_eq!(api_version_of(request), 8);
            Some(
                kafka_wire::MetadataResponse::default()
                    .encode_to_bytes(ApiVersion::new(8))
                    .unwrap()
                    .to_vec(),
            )
        }
    })
    .await;
    let mut connection = Connection::open(&address, &ConnectionConfig::default())
        .await
        .unwrap();
    connection.call(&MetadataRequest::default()).await.unwrap();
}

#[tokio::test]
async fn an_old_broker_is_asked_again_in_version_0() {
    let address = broker(|count, request| match count {
        // Error 35 in a v0 body, whatever was asked.
        0 => Some(vec![0, 35, 0, 0, 0, 0]),
        _ => {
            assert_eq!(api_version_of(request), 0);
            Some(versions(0, &[(3, 0, 1)]))
        }
    })
    .await;
    let connection = Connection::open(&address, &ConnectionConfig::default())
        .await
        .unwrap();
    assert_eq!(
        connection.version_of::<MetadataRequest>().unwrap(),
        ApiVersion::new(1)
    );
}

#[tokio::test]
async fn no_version_in_common_is_said_before_anything_is_sent() {
    let address = broker(|_, _| Some(versions(3, &[(18, 0, 4), (3, 90, 91)]))).await;
    let mut connection = Connection::open(&address, &ConnectionConfig::default())
        .await
        .unwrap();
    let error = connection
        .call(&MetadataRequest::default())
        .await
        .unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("no version of MetadataRequest in common") && said.contains("90 to 91"),
        "{said}"
    );
}

#[tokio::test]
async fn a_broker_that_hangs_up_is_a_broken_connection() {
    let address = broker(|count, _| (count == 0).then(|| versions(3, &[(3, 0, 12)]))).await;
    let mut connection = Connection::open(&address, &ConnectionConfig::default())
        .await
        .unwrap();
    let error = connection
        .call(&MetadataRequest::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::Broken { .. }) && error.is_retriable(),
        "{error}"
    );
}

#[tokio::test]
async fn a_claimed_length_past_the_limit_is_refused_without_the_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(&0x7fff_ffff_u32.to_be_bytes())
            .await
            .unwrap();
        stream
    });
    let error = Connection::open(&address, &ConnectionConfig::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    server.await.unwrap();
}

#[test]
fn data_requests_stay_at_versions_that_carry_topic_names() {
    let supported = VersionRange::new(4, 18);
    assert_eq!(client_range(1, supported), VersionRange::new(4, 12));
    assert_eq!(client_range(3, supported), supported);
}
