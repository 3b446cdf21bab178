//! One TCP connection to one broker: frames out, frames in, versions negotiated once.
//!
//! ```text
//! frame = length u32 | correlation id i32 | [tagged fields, flexible responses] | body
//! ```
//!
//! Requests may be pipelined: [`Connection::send`] queues what answer to expect and
//! [`Connection::receive`] takes the answers in that order, which is the order Kafka guarantees. One
//! task owns the connection, so an answer costs no hand-over between tasks: that is what lets the
//! latency bench measure the broker rather than the client's scheduler.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use kafka_wire::{
    ApiVersionsRequest, ApiVersionsResponse, KafkaMessage as _, KafkaRequest, OutboundFrameLimits,
    RequestResponsePair, encode_request, response_header_version_for,
};
use kafka_wire_core::{
    ApiVersion, DecodeLimits, Decoder, KafkaDecode, KafkaEncode, StrBytes, VersionRange,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ClientError;
use crate::api::error::ErrorCode;

/// Correlation id that starts every response.
const CORRELATION_BYTES: usize = 4;
/// Length prefix of a frame.
const LENGTH_BYTES: usize = 4;

/// Limits and deadlines of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// How a broker's log names us.
    pub client_id: String,
    /// For connect(2) and for each answer.
    pub timeout: Duration,
    /// The largest answer we hold in memory, in bytes. A broker that claims more is cut off.
    pub response_bytes_max: usize,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            client_id: "kittiwake".to_owned(),
            timeout: Duration::from_secs(30),
            response_bytes_max: 100 << 20,
        }
    }
}

/// What the next answer must be.
#[derive(Debug)]
struct Expected {
    correlation_id: i32,
    api: &'static str,
    version: ApiVersion,
    header_version: i16,
}

/// A connection to one broker.
#[derive(Debug)]
pub struct Connection {
    address: String,
    stream: TcpStream,
    config: ConnectionConfig,
    client_id: StrBytes,
    versions: HashMap<i16, VersionRange>,
    next_correlation_id: i32,
    in_flight: VecDeque<Expected>,
    /// Bytes received and not yet taken; keeps a partial frame across a cancelled `receive`.
    inbound: BytesMut,
    outbound: BytesMut,
}

impl Connection {
    /// Connects to `HOST:PORT` and asks for the broker's versions.
    ///
    /// # Errors
    /// No connection, no answer in time, or an answer that is not Kafka's.
    pub async fn open(address: &str, config: &ConnectionConfig) -> Result<Self, ClientError> {
        let connect_error = |reason| ClientError::Connect {
            address: address.to_owned(),
            reason,
        };
        let stream = timeout(config.timeout, TcpStream::connect(address))
            .await
            .map_err(|_| connect_error(io::ErrorKind::TimedOut.into()))?
            .map_err(connect_error)?;
        stream.set_nodelay(true).map_err(connect_error)?;
        let mut connection = Self {
            address: address.to_owned(),
            stream,
            config: config.clone(),
            client_id: StrBytes::from(config.client_id.as_str()),
            versions: HashMap::new(),
            next_correlation_id: 0,
            in_flight: VecDeque::new(),
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
        };
        connection.negotiate().await?;
        Ok(connection)
    }

    /// HOST:PORT of the other side.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Requests sent and not yet answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends a request and waits for its answer. Not for use while others are in flight.
    ///
    /// # Errors
    /// See [`ClientError`]; after any error the connection is of no further use.
    pub async fn call<R>(&mut self, request: &R) -> Result<R::Response, ClientError>
    where
        R: RequestResponsePair + KafkaEncode,
        R::Response: KafkaDecode,
    {
        self.send(request).await?;
        self.receive::<R>().await
    }

    /// Sends a request whose answer [`Self::receive`] will take.
    ///
    /// Not safe to cancel: half a frame may have gone out.
    ///
    /// # Errors
    /// No version in common, a request too large to encode, or a broken connection.
    pub async fn send<R>(&mut self, request: &R) -> Result<(), ClientError>
    where
        R: KafkaRequest + KafkaEncode,
    {
        let version = self.version_of::<R>()?;
        self.send_at(request, version, true).await
    }

    /// Sends a request that gets no answer: a Produce with acks=0.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_unanswered<R>(&mut self, request: &R) -> Result<(), ClientError>
    where
        R: KafkaRequest + KafkaEncode,
    {
        let version = self.version_of::<R>()?;
        self.send_at(request, version, false).await
    }

    /// Takes the next answer, which must be to a request of type `R`. Safe to cancel.
    ///
    /// # Errors
    /// A broken connection, no answer in time, or one that does not fit the question.
    pub async fn receive<R>(&mut self) -> Result<R::Response, ClientError>
    where
        R: RequestResponsePair,
        R::Response: KafkaDecode,
    {
        let wait = self.config.timeout;
        let frame = match timeout(wait, self.read_frame()).await {
            Ok(frame) => frame?,
            Err(_) => {
                return Err(ClientError::Timeout {
                    address: self.address.clone(),
                    api: R::NAME,
                    timeout: wait,
                });
            }
        };
        let Some(expected) = self.in_flight.pop_front() else {
            return Err(self.protocol("an answer to nothing that was asked"));
        };
        if expected.api != R::NAME {
            return Err(self.protocol(format!(
                "waiting for {}, next answer is {}",
                R::NAME,
                expected.api
            )));
        }
        let body = self.strip_header(frame, &expected)?;
        R::Response::decode_from_bytes(body, expected.version, self.limits()).map_err(|reason| {
            ClientError::Decode {
                address: self.address.clone(),
                api: R::NAME,
                reason,
            }
        })
    }

    /// Asks something harmless and waits for the answer. Kafka handles the requests of a connection
    /// in order, so everything sent before has been handled when this returns; an acks=0 write that
    /// was refused has closed the connection, which is then the error.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn barrier(&mut self) -> Result<(), ClientError> {
        self.api_versions(ApiVersion::new(0)).await.map(drop)
    }

    /// The version both sides speak: the highest, but none that names topics by id only.
    fn version_of<R: KafkaRequest>(&self) -> Result<ApiVersion, ClientError> {
        let ours = client_range(R::API_KEY.value(), R::SUPPORTED_VERSIONS);
        let theirs = self.versions.get(&R::API_KEY.value()).copied();
        let common = theirs.and_then(|theirs| {
            let version = ours.max().value().min(theirs.max().value());
            (version >= ours.min().value().max(theirs.min().value()))
                .then(|| ApiVersion::new(version))
        });
        common.ok_or_else(|| ClientError::UnsupportedApi {
            address: self.address.clone(),
            api: R::NAME,
            ours: range_text(ours),
            theirs: theirs.map_or_else(|| "none".to_owned(), range_text),
        })
    }

    async fn send_at<R>(
        &mut self,
        request: &R,
        version: ApiVersion,
        answered: bool,
    ) -> Result<(), ClientError>
    where
        R: KafkaRequest + KafkaEncode,
    {
        let encode_error = |reason| ClientError::Encode {
            api: R::NAME,
            reason,
        };
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = self.next_correlation_id.wrapping_add(1);
        self.outbound.clear();
        let header_version = response_header_version_for::<R>(version).map_err(encode_error)?;
        encode_request(
            &mut self.outbound,
            correlation_id,
            Some(self.client_id.clone()),
            request,
            version,
            OutboundFrameLimits::new(i32::MAX as usize),
        )
        .map_err(encode_error)?;
        self.stream
            .write_all(&self.outbound)
            .await
            .map_err(|reason| self.broken(reason))?;
        if answered {
            self.in_flight.push_back(Expected {
                correlation_id,
                api: R::NAME,
                version,
                header_version,
            });
        }
        Ok(())
    }

    /// One whole frame without its length. All state is in `self.inbound`, so this can be cancelled.
    async fn read_frame(&mut self) -> Result<Bytes, ClientError> {
        loop {
            if let Some(prefix) = self.inbound.first_chunk::<LENGTH_BYTES>() {
                let length = u32::from_be_bytes(*prefix) as usize;
                if !(CORRELATION_BYTES..=self.config.response_bytes_max).contains(&length) {
                    return Err(self.protocol(format!(
                        "an answer of {length} bytes, {} allowed",
                        self.config.response_bytes_max
                    )));
                }
                let whole = LENGTH_BYTES + length;
                if self.inbound.len() >= whole {
                    let mut frame = self.inbound.split_to(whole);
                    frame.advance(LENGTH_BYTES);
                    return Ok(frame.freeze());
                }
                self.inbound.reserve(whole - self.inbound.len());
            }
            let read = self.stream.read_buf(&mut self.inbound).await;
            match read {
                Ok(0) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(reason) => return Err(self.broken(reason)),
            }
        }
    }

    fn strip_header(&self, mut frame: Bytes, expected: &Expected) -> Result<Bytes, ClientError> {
        let correlation_id = frame.get_i32();
        if correlation_id != expected.correlation_id {
            return Err(self.protocol(format!(
                "answer {correlation_id} where {} was expected",
                expected.correlation_id
            )));
        }
        if expected.header_version == 0 {
            return Ok(frame);
        }
        let decode_error = |reason| ClientError::Decode {
            address: self.address.clone(),
            api: expected.api,
            reason,
        };
        let mut decoder = Decoder::new(frame.clone(), self.limits()).map_err(decode_error)?;
        decoder.read_tagged_fields().map_err(decode_error)?;
        Ok(frame.split_off(decoder.offset()))
    }

    /// Asks for the broker's versions at v3; a broker that does not know v3 answers in v0 with error 35.
    async fn negotiate(&mut self) -> Result<(), ClientError> {
        let response = match self.api_versions(ApiVersion::new(3)).await {
            Err(ClientError::Refused { code, .. })
                if code == ErrorCode::UnsupportedVersion.code() =>
            {
                self.api_versions(ApiVersion::new(0)).await?
            }
            other => other?,
        };
        self.versions = response
            .api_keys
            .iter()
            .filter_map(|api| {
                Some((
                    api.api_key,
                    VersionRange::try_new(api.min_version, api.max_version)?,
                ))
            })
            .collect();
        Ok(())
    }

    async fn api_versions(
        &mut self,
        version: ApiVersion,
    ) -> Result<ApiVersionsResponse, ClientError> {
        let mut request = ApiVersionsRequest::default();
        if version.value() >= 3 {
            request.client_software_name = StrBytes::from("kittiwake");
            request.client_software_version = StrBytes::from(env!("CARGO_PKG_VERSION"));
        }
        self.send_at(&request, version, true).await?;
        let wait = self.config.timeout;
        let frame =
            timeout(wait, self.read_frame())
                .await
                .map_err(|_| ClientError::Timeout {
                    address: self.address.clone(),
                    api: ApiVersionsRequest::NAME,
                    timeout: wait,
                })??;
        let Some(expected) = self.in_flight.pop_front() else {
            return Err(self.protocol("an answer to nothing that was asked"));
        };
        let body = self.strip_header(frame, &expected)?;
        // Every version's body starts with the error code, and a refused version is answered in v0.
        let code = body
            .first_chunk::<2>()
            .map_or(0, |bytes| i16::from_be_bytes(*bytes));
        if code != ErrorCode::None.code() {
            return Err(ClientError::refused(self.address.clone(), code, None));
        }
        ApiVersionsResponse::decode_from_bytes(body, version, self.limits()).map_err(|reason| {
            self.protocol(format!(
                "its answer to ApiVersions cannot be decoded ({reason})"
            ))
        })
    }

    fn limits(&self) -> DecodeLimits {
        let mut limits = DecodeLimits::default();
        limits.max_frame_bytes = self.config.response_bytes_max;
        limits.max_bytes_bytes = self.config.response_bytes_max;
        limits
    }

    fn broken(&self, reason: io::Error) -> ClientError {
        ClientError::Broken {
            address: self.address.clone(),
            reason,
        }
    }

    fn protocol(&self, reason: impl Into<String>) -> ClientError {
        ClientError::Protocol {
            address: self.address.clone(),
            reason: reason.into(),
        }
    }
}

/// From Produce 13 and Fetch 13 on, requests name topics by id only; this client uses names.
fn client_range(api_key: i16, supported: VersionRange) -> VersionRange {
    const LAST_VERSION_WITH_TOPIC_NAMES: i16 = 12;
    match api_key {
        0 | 1 => VersionRange::new(supported.min().value(), LAST_VERSION_WITH_TOPIC_NAMES),
        _ => supported,
    }
}

fn range_text(range: VersionRange) -> String {
    format!("{} to {}", range.min().value(), range.max().value())
}

#[cfg(test)]
mod tests;
